//! What happened on this node, for who looks later or follows: docs/events.md.
//!
//! The last [`KEPT`] events are in memory, and on the disk over restarts ([`keeper`]); the daemon's log has them, too. Events of the reactors
//! come through a bounded channel, so that none of them waits here.

mod keeper;

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use proto::v1::{self, Event, EventSubject};
use tokio::sync::{Semaphore, mpsc, watch};
use tonic::Status;
use tonic::codegen::tokio_stream::Stream;
use uuid::Uuid;

use self::keeper::Keeper;
use super::error::ControlError;
use super::request;
use crate::state::{Kept as OnDisk, StateDirectory};

/// Events that are kept, those of former runs with them.
const KEPT: usize = 4096;
/// Bytes of why something happened.
const LONGEST_DETAIL: usize = 4096;
/// Those that are on their way from reactors; more are lost, and counted by whoever misses their numbers.
const ON_THEIR_WAY: usize = 1024;
/// Streams at one time.
const MOST_STREAMS: usize = 16;
/// The number that ends all streams.
const END: u64 = u64::MAX;
/// Events that a stream is ahead of its client.
const AHEAD: usize = 64;

/// What is told of an event besides when it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Happened {
    pub(crate) subject: EventSubject,
    pub(crate) name: String,
    pub(crate) uuid: String,
    /// What became of it, in a word or two.
    pub(crate) what: String,
    /// Why, for people.
    pub(crate) detail: String,
}

impl Happened {
    /// Something that became of the node.
    pub(crate) fn of_node(name: &str, uuid: Uuid, what: &str, detail: &str) -> Self {
        Self::of(EventSubject::Node, name, uuid, what, detail)
    }

    /// Something that became of anything.
    pub(crate) fn of(subject: EventSubject, name: &str, uuid: Uuid, what: &str, detail: &str) -> Self {
        let (name, uuid) = (name.to_owned(), uuid.to_string());
        Self { subject, name, uuid, what: what.to_owned(), detail: detail.to_owned() }
    }
}

/// Where reactors put events.
pub(crate) type EventSender = mpsc::Sender<Happened>;

/// The events of this run.
pub(crate) struct Events {
    /// The number of this run: numbers of events are those of a run.
    run: u64,
    kept: Mutex<Kept>,
    /// None where there is no disk for them.
    keeper: Option<Arc<Keeper>>,
    /// The number of the last one.
    newest: watch::Sender<u64>,
    streams: Arc<Semaphore>,
}

#[derive(Default)]
struct Kept {
    events: VecDeque<Event>,
    newest: u64,
}

/// A channel from reactors to [`Events::collect`].
pub(crate) fn channel() -> (EventSender, mpsc::Receiver<Happened>) {
    mpsc::channel(ON_THEIR_WAY)
}

impl Events {
    /// Takes up those of former runs. The daemon runs also where they cannot be kept.
    pub(crate) fn start(run: u64, node: &str, state: &StateDirectory) -> Arc<Self> {
        let opened = state.log("events", KEPT).and_then(|(log, found)| Ok((Keeper::start(log)?, found)));
        let (keeper, found) = match opened {
            Ok((keeper, found)) => (Some(keeper), found),
            Err(error) => {
                tracing::error!(%error, "events are not kept over a restart");
                (None, OnDisk::default())
            }
        };
        let events = Self::with(run, keeper, &found.texts);
        if found.cut > 0 || found.damaged > 0 {
            let OnDisk { cut, damaged, .. } = found;
            let detail =
                format!("{cut} bytes were cut off the end of their log, and {damaged} lines before it are damaged");
            tracing::warn!(cut, damaged, "some events before the last end of the daemon are lost");
            events.note(Happened::of_node(node, state.node_uuid(), "events lost", &detail));
        }
        events
    }

    #[cfg(test)]
    fn new(run: u64) -> Arc<Self> {
        Self::with(run, None, &[])
    }

    fn with(run: u64, keeper: Option<Arc<Keeper>>, kept: &[String]) -> Arc<Self> {
        let former = kept.iter().filter_map(|text| keeper::read(text)).filter(|event| event.run < run);
        let mut events: VecDeque<_> = former.collect();
        events.drain(..events.len().saturating_sub(KEPT));
        let kept = Mutex::new(Kept { events, newest: 0 });
        let streams = Arc::new(Semaphore::new(MOST_STREAMS));
        Arc::new(Self { run, kept, keeper, newest: watch::Sender::new(0), streams })
    }

    /// Takes in what reactors tell, for as long as the runtime lives.
    pub(crate) fn collect(self: &Arc<Self>, mut told: mpsc::Receiver<Happened>) {
        let events = Arc::clone(self);
        tokio::spawn(async move {
            while let Some(happened) = told.recv().await {
                events.note(happened);
            }
        });
    }

    /// Notes an event.
    pub(crate) fn note(&self, happened: Happened) {
        let Happened { subject, name, uuid, what, mut detail } = happened;
        detail.truncate(detail.floor_char_boundary(LONGEST_DETAIL));
        tracing::info!(target: "events", %subject, %name, %uuid, %what, %detail, "event");
        let number = {
            let mut kept = self.kept();
            kept.newest += 1;
            let event = Event {
                run: self.run,
                number: kept.newest,
                at_unix_ms: request::unix_milliseconds(),
                subject: subject.into(),
                name,
                uuid,
                what,
                detail,
            };
            // In the order of their numbers: nothing here waits.
            self.keeper.iter().for_each(|keeper| keeper.keep(&event));
            kept.events.push_back(event);
            if kept.events.len() > KEPT {
                kept.events.pop_front();
            }
            kept.newest
        };
        self.newest.send_if_modified(|newest| {
            let goes_on = *newest != END;
            *newest = if goes_on { number } else { END };
            goes_on
        });
    }

    /// Sends the events after one, not older than asked for, and, if asked to, those that come.
    pub(crate) fn stream(self: &Arc<Self>, request: &v1::EventsRequest) -> Result<EventStream, ControlError> {
        let Ok(permit) = Arc::clone(&self.streams).try_acquire_owned() else {
            let text = format!("{MOST_STREAMS} clients follow the events already");
            return Err(ControlError::unavailable("BUSY", text));
        };
        let mut after = match (request.run, request.after) {
            // Of a run that has not been yet, which is of another state directory, nothing is known.
            (run, _) if run > self.run => (0, 0),
            after => after,
        };
        let (follow, since, events) = (request.follow, request.since_unix_ms, Arc::clone(self));
        let (parts, stream) = mpsc::channel(AHEAD);
        tokio::spawn(async move {
            let _permit = permit;
            let mut newest = events.newest.subscribe();
            loop {
                for event in events.after(after) {
                    after = (event.run, event.number);
                    if event.at_unix_ms >= since && parts.send(Ok(event)).await.is_err() {
                        return;
                    }
                }
                let told = if after.0 == events.run { after.1 } else { 0 };
                if !follow || *newest.borrow_and_update() == END {
                    return;
                }
                tokio::select! {
                    () = parts.closed() => return,
                    come = newest.wait_for(|number| *number > told) => if come.is_err() { return },
                }
            }
        });
        Ok(EventStream(stream))
    }

    /// Ends all streams once they have sent what there is.
    pub(crate) fn end(&self) {
        self.newest.send_replace(END);
    }

    /// Returns when all of them are on the disk. What happens from here on is in the daemon's log only.
    pub(crate) async fn close(self: &Arc<Self>) {
        if let Some(keeper) = self.keeper.clone() {
            // An error is a panic, which is logged.
            let _ = tokio::task::spawn_blocking(move || keeper.end()).await;
        }
    }

    /// The events after the one of that run with that number.
    fn after(&self, last: (u64, u64)) -> Vec<Event> {
        let kept = self.kept();
        let begin = kept.events.partition_point(|event| (event.run, event.number) <= last);
        kept.events.range(begin..).cloned().collect()
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Poisoned or not, an event is there or not.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Events as they come.
pub(crate) struct EventStream(mpsc::Receiver<Result<Event, Status>>);

impl Stream for EventStream {
    type Item = Result<Event, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn happened(what: &str) -> Happened {
        let (subject, name) = (EventSubject::Volume, "v".to_owned());
        Happened { subject, name, uuid: String::new(), what: what.to_owned(), detail: String::new() }
    }

    async fn take(stream: &mut EventStream, count: usize) -> Vec<(u64, String)> {
        let mut taken = Vec::new();
        while taken.len() < count {
            let event = stream.0.recv().await.expect("more events").expect("no error");
            taken.push((event.number, event.what));
        }
        taken
    }

    #[tokio::test]
    async fn a_follower_gets_each_event_once_from_where_it_was() {
        let events = Events::new(7);
        ["one", "two"].iter().for_each(|what| events.note(happened(what)));
        let request = |run, after, follow| v1::EventsRequest { run, after, follow, since_unix_ms: 0 };
        let mut all = events.stream(&request(0, 0, false)).expect("room");
        assert_eq!(take(&mut all, 2).await, [(1, "one".to_owned()), (2, "two".to_owned())]);
        assert!(all.0.recv().await.is_none(), "it ends");
        let mut rest = events.stream(&request(7, 1, true)).expect("room");
        assert_eq!(take(&mut rest, 1).await, [(2, "two".to_owned())]);
        events.note(happened("three"));
        assert_eq!(take(&mut rest, 1).await, [(3, "three".to_owned())]);
        for run in [6, 8] {
            let mut another_run = events.stream(&request(run, 3, false)).expect("room");
            assert_eq!(take(&mut another_run, 3).await.len(), 3);
        }
    }

    #[tokio::test]
    async fn those_of_former_runs_come_first_and_from_a_time_on() {
        let folder = tempfile::tempdir().expect("a folder");
        let open = || StateDirectory::open(folder.path(), "a").expect("a state directory");
        let state = open();
        let events = Events::start(1, "a", &state);
        ["one", "two"].iter().for_each(|what| events.note(happened(what)));
        events.close().await;
        drop(state);
        let state = open();
        let events = Events::start(2, "a", &state);
        let later = request::unix_milliseconds() + 1000;
        events.note(happened("three"));
        let names = |taken: Vec<(u64, String)>| taken.into_iter().map(|(_, what)| what).collect::<Vec<_>>();
        let asked = |run, after| v1::EventsRequest { run, after, ..Default::default() };
        let mut all = events.stream(&asked(0, 0)).expect("room");
        assert_eq!(names(take(&mut all, 3).await), ["one", "two", "three"]);
        let mut rest = events.stream(&asked(1, 1)).expect("room");
        assert_eq!(names(take(&mut rest, 2).await), ["two", "three"]);
        assert!(rest.0.recv().await.is_none());
        let follow = v1::EventsRequest { follow: true, since_unix_ms: later, ..Default::default() };
        let mut since = events.stream(&follow).expect("room");
        while request::unix_milliseconds() < later {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        events.note(happened("four"));
        assert_eq!(take(&mut since, 1).await, [(2, "four".to_owned())]);
    }

    #[tokio::test]
    async fn a_torn_end_is_cut_and_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let state = StateDirectory::open(folder.path(), "a").expect("a state directory");
        let events = Events::start(1, "a", &state);
        ["one", "two"].iter().for_each(|what| events.note(happened(what)));
        events.close().await;
        let path = folder.path().join("events/1.log");
        let bytes = std::fs::read(&path).expect("readable");
        std::fs::write(&path, &bytes[..bytes.len() - 3]).expect("written");
        let events = Events::start(2, "a", &state);
        let mut all = events.stream(&v1::EventsRequest::default()).expect("room");
        let taken: Vec<_> = take(&mut all, 2).await.into_iter().map(|(_, what)| what).collect();
        assert_eq!(taken, ["one", "events lost"]);
    }

    #[tokio::test]
    async fn streams_end_with_the_daemon() {
        let events = Events::new(1);
        let mut stream = events.stream(&v1::EventsRequest { follow: true, ..Default::default() }).expect("room");
        events.note(happened("last"));
        events.end();
        assert_eq!(take(&mut stream, 1).await, [(1, "last".to_owned())]);
        assert!(stream.0.recv().await.is_none());
    }

    #[tokio::test]
    async fn only_the_last_ones_are_kept_and_numbers_say_what_is_missing() {
        let events = Events::new(1);
        (0..KEPT + 10).for_each(|n| events.note(happened(&n.to_string())));
        let mut stream = events.stream(&v1::EventsRequest { follow: false, ..Default::default() }).expect("room");
        let taken = take(&mut stream, KEPT).await;
        assert_eq!((taken[0].0, taken[KEPT - 1].0), (11, KEPT as u64 + 10));
    }

    #[tokio::test]
    async fn there_is_a_bound_of_followers_and_those_that_leave_make_room() {
        let events = Events::new(1);
        let follow = v1::EventsRequest { follow: true, ..Default::default() };
        let mut streams: Vec<_> = (0..MOST_STREAMS).map(|_| events.stream(&follow).expect("room")).collect();
        assert!(events.stream(&follow).is_err());
        streams.pop();
        while events.streams.available_permits() == 0 {
            tokio::task::yield_now().await;
        }
        assert!(events.stream(&follow).is_ok());
    }
}
