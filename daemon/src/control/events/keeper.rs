//! Events on the disk of the state directory, written by a thread of their own: nobody who notes one waits for a disk.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{io, iter};

use proto::v1::{Event, EventSubject};
use serde::{Deserialize, Serialize};

use crate::state::Log;

/// Events that wait to be written; more are not kept.
const WAITING: usize = 4096;
/// What is written at once.
const AT_ONCE: usize = 256;
/// What a power cut may take.
const SYNC_AFTER: Duration = Duration::from_secs(1);

/// An event as it is kept.
#[derive(Serialize, Deserialize)]
struct Record {
    run: u64,
    number: u64,
    at_unix_ms: i64,
    /// As the contract has it.
    subject: String,
    name: String,
    uuid: String,
    what: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    detail: String,
}

/// An event as a line of the log.
fn write(event: &Event) -> Option<String> {
    let record = Record {
        run: event.run,
        number: event.number,
        at_unix_ms: event.at_unix_ms,
        subject: event.subject().as_str_name().to_owned(),
        name: event.name.clone(),
        uuid: event.uuid.clone(),
        what: event.what.clone(),
        detail: event.detail.clone(),
    };
    serde_json::to_string(&record).ok()
}

/// What a line of the log says. A subject that a later version added is none here.
pub(super) fn read(text: &str) -> Option<Event> {
    let Record { run, number, at_unix_ms, subject, name, uuid, what, detail } = serde_json::from_str(text).ok()?;
    let subject = EventSubject::from_str_name(&subject).unwrap_or_default().into();
    Some(Event { run, number, at_unix_ms, subject, name, uuid, what, detail })
}

/// The thread, and the way to it.
pub(super) struct Keeper {
    events: Mutex<Option<SyncSender<Event>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Keeper {
    pub(super) fn start(log: Log) -> io::Result<Arc<Self>> {
        let (events, waiting) = sync_channel(WAITING);
        let thread = thread::Builder::new().name("events".to_owned()).spawn(move || work(log, &waiting))?;
        Ok(Arc::new(Self { events: Mutex::new(Some(events)), thread: Mutex::new(Some(thread)) }))
    }

    /// Has an event written soon. One that finds no room is in memory only; the log of the daemon has it, too.
    pub(super) fn keep(&self, event: &Event) {
        if let Some(events) = &*self.events.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = events.try_send(event.clone());
        }
    }

    /// Returns when all is on the disk. Nothing is kept from here on.
    pub(super) fn end(&self) {
        drop(self.events.lock().unwrap_or_else(PoisonError::into_inner).take());
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // An error is a panic, which is logged.
        thread.into_iter().for_each(|thread| drop(thread.join()));
    }
}

fn work(mut log: Log, waiting: &Receiver<Event>) {
    let mut trouble = Trouble::default();
    // Since when something is not synced.
    let mut unsynced: Option<Instant> = None;
    loop {
        let next = match unsynced {
            None => waiting.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(since) => waiting.recv_timeout(SYNC_AFTER.saturating_sub(since.elapsed())),
        };
        if let Ok(event) = &next {
            let more = waiting.try_iter().take(AT_ONCE - 1);
            let lines: Vec<_> = iter::once(event.clone()).chain(more).filter_map(|event| write(&event)).collect();
            trouble.note(log.append(lines.iter().map(String::as_str)));
            unsynced = unsynced.or_else(|| Some(Instant::now()));
        }
        let is_time = unsynced.is_some_and(|since| next.is_err() || since.elapsed() >= SYNC_AFTER);
        if is_time {
            trouble.note(log.sync());
            unsynced = None;
        }
        if next.is_err_and(|error| error == RecvTimeoutError::Disconnected) {
            return;
        }
    }
}

/// A disk that fails is told of once, not for each event.
#[derive(Default)]
struct Trouble(bool);

impl Trouble {
    fn note(&mut self, done: io::Result<()>) {
        match done {
            Ok(()) => self.0 = false,
            Err(error) if !std::mem::replace(&mut self.0, true) => {
                tracing::error!(%error, "events are not kept over a restart for now");
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_comes_back_and_an_unknown_subject_is_none() {
        let event = Event {
            run: 3,
            number: 7,
            at_unix_ms: 1_700_000_000_000,
            subject: EventSubject::Volume.into(),
            name: "v".to_owned(),
            uuid: "u".to_owned(),
            what: "degraded".to_owned(),
            detail: "one \"line\"\nand another".to_owned(),
        };
        let line = write(&event).expect("it can be written");
        let pinned = r#"{"run":3,"number":7,"at_unix_ms":1700000000000,"subject":"EVENT_SUBJECT_VOLUME","name":"v","uuid":"u","what":"degraded","detail":"one \"line\"\nand another"}"#;
        assert_eq!(line, pinned);
        assert_eq!(read(&line), Some(event.clone()));
        let later = line.replace("EVENT_SUBJECT_VOLUME", "EVENT_SUBJECT_LATER");
        assert_eq!(read(&later), Some(Event { subject: 0, ..event }));
        assert_eq!(read("{}"), None);
    }

    #[test]
    fn all_is_on_the_disk_when_the_thread_has_ended() {
        let folder = tempfile::tempdir().expect("a folder");
        let keeper = Keeper::start(Log::open(folder.path(), 100).expect("made").0).expect("a thread");
        (1..=50).for_each(|number| keeper.keep(&Event { number, ..Event::default() }));
        keeper.end();
        keeper.keep(&Event { number: 51, ..Event::default() });
        let kept = Log::open(folder.path(), 100).expect("opened").1;
        let numbers: Vec<_> = kept.texts.iter().filter_map(|text| Some(read(text)?.number)).collect();
        assert_eq!(numbers, (1..=50).collect::<Vec<_>>());
    }
}
