//! A replica on another node.

mod connect;
mod tasks;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use block_device::{BlockDevice, Buffer, Error, ErrorKind, Geometry, Outcome, Range, Reply, Request, Segments};
use reactor::{Instant, Slice};
use replica_protocol as wire;
use replica_protocol::{Answer, Client, ClientEvent, Command, MAX_RANGES, checksum};
use tokio::sync::{Notify, oneshot};
use uuid::Uuid;

use crate::server::check_copy;
use crate::status::{chain_from_wire, damage_from_wire, error_of, extents_from_wire, notes_from_wire};
use crate::stream::{Security, Stream};
use crate::{ChainEntry, DamagedRegion, Extents, Granted, LocalFuture, Membership, Note, Replica, ReplicaState};

/// Requests that may wait for credits; one more is answered with Busy (I33).
const BACKLOG: usize = 4096;

/// How a connection is made and watched.
#[derive(Clone, Debug)]
pub struct RemoteOptions {
    /// How long connecting and opening may take together.
    pub open_limit: Duration,
    /// How often the replica is asked how it is.
    pub ping_interval: Duration,
    /// After how long without a byte from it the peer is gone: more than the interval.
    pub silence_limit: Duration,
    /// This node's name, for people.
    pub node: String,
    /// How the connection is kept private; none for plaintext.
    pub security: Option<Arc<dyn Security>>,
}

impl Default for RemoteOptions {
    fn default() -> Self {
        Self {
            open_limit: Duration::from_secs(3),
            ping_interval: Duration::from_secs(1),
            silence_limit: Duration::from_secs(4),
            node: String::new(),
            security: None,
        }
    }
}

/// A replica on another node, through one connection. When the connection dies the replica has failed, and everything in
/// flight ends with an error that says so; nothing is sent twice (I15).
pub struct RemoteReplica {
    id: Uuid,
    granted: Cell<Granted>,
    stream: Stream,
    state: RefCell<State>,
    /// Notified when it fails.
    changed: Notify,
    /// Notified when it may have said something else of damage.
    news: Notify,
}

struct State {
    client: Client<Pending>,
    /// Requests that wait for credits, in order.
    backlog: VecDeque<Waiting>,
    failure: Option<Error>,
    closing: bool,
    last_heard: Instant,
    /// When the Pings were sent that were not answered yet; the watch ends a connection before there are many.
    pinged: VecDeque<Instant>,
    /// When the last Ping was sent that was answered, or the Open.
    confirmed: Instant,
    /// The age of the oldest request at the replica, as its last Pong said.
    reported_age: Option<Duration>,
    /// What it said last of damage that was found.
    findings: u32,
}

/// A request that was not sent yet.
struct Waiting {
    command: Command,
    data: Option<Slice>,
    pending: Pending,
}

/// What an answer is for.
struct Pending {
    answer_to: AnswerTo,
    /// Where the data of a read goes.
    buffer: Option<Buffer>,
    since: Instant,
}

enum AnswerTo {
    /// A request of the data path.
    Reply(Reply),
    /// A control call that waits for a message, or for nothing but the end.
    Message(oneshot::Sender<Result<Vec<u8>, Error>>),
    /// A control call that waits for data.
    Data(oneshot::Sender<Outcome>),
}

impl AnswerTo {
    fn fail(self, error: Error) {
        match self {
            Self::Reply(reply) => reply.fail(error),
            // An error of send means that nobody waits any more.
            Self::Message(sender) => drop(sender.send(Err(error))),
            Self::Data(sender) => drop(sender.send(Err(error))),
        }
    }
}

/// A request that ended, to be told outside of any borrow.
struct Ended {
    answer_to: AnswerTo,
    outcome: Result<(Vec<u8>, Option<Buffer>), Error>,
}

impl Ended {
    fn tell(self) {
        match (self.answer_to, self.outcome) {
            (answer_to, Err(error)) => answer_to.fail(error),
            (AnswerTo::Reply(reply), Ok((_, buffer))) => reply.complete(Ok(segments(buffer))),
            (AnswerTo::Message(sender), Ok((message, _))) => drop(sender.send(Ok(message))),
            (AnswerTo::Data(sender), Ok((_, buffer))) => drop(sender.send(Ok(segments(buffer)))),
        }
    }
}

fn segments(buffer: Option<Buffer>) -> Segments {
    buffer.map_or_else(Segments::none, |buffer| Segments::from(buffer.freeze()))
}

impl RemoteReplica {
    /// Starts a request, or queues it until there is credit.
    fn start(&self, command: Command, data: Option<Slice>, pending: Pending) {
        let mut state = self.state.borrow_mut();
        let refused = match &state.failure {
            Some(error) => Some(error.clone()),
            None if state.closing => Some(Error::with_detail(ErrorKind::Aborted, "the replica was closed")),
            None if state.backlog.len() >= BACKLOG => Some(Error::new(ErrorKind::Busy)),
            None => None,
        };
        if let Some(error) = refused {
            drop(state);
            return pending.answer_to.fail(error);
        }
        state.backlog.push_back(Waiting { command, data, pending });
        self.send_backlog(&mut state);
    }

    /// Sends what waits, as far as credits reach.
    fn send_backlog(&self, state: &mut State) {
        while let Some(Waiting { command, data, pending }) = state.backlog.pop_front() {
            match state.client.start(&command, pending) {
                Ok((header, payload)) => {
                    self.stream.push_copy(&header);
                    self.stream.push_copy(&payload);
                    data.into_iter().for_each(|data| self.stream.push(data));
                    self.stream.flush_at_turn_end();
                }
                Err(wire::NoCredit(pending)) => {
                    state.backlog.push_front(Waiting { command, data, pending });
                    return;
                }
            }
        }
    }

    /// Takes in what the replica sent. Says whether it has granted a newer epoch.
    fn receive(&self, mut input: &[u8], ended: &mut Vec<Ended>) -> Result<bool, wire::ProtocolError> {
        let mut state = self.state.borrow_mut();
        let (state, mut fenced) = (&mut *state, false);
        state.last_heard = reactor::now();
        while let Some(event) = state.client.handle(&mut input)? {
            match event {
                ClientEvent::Data { request, at, bytes } => {
                    // The buffer has the length asked for, and the session lets no more through.
                    if let Some(buffer) = &mut request.buffer {
                        buffer[at..at + bytes.len()].copy_from_slice(bytes);
                    }
                }
                ClientEvent::Answer(answer) => ended.push(ended_by(answer)),
                ClientEvent::Pong(pong) => {
                    let sent =
                        state.pinged.pop_front().ok_or(wire::ProtocolError::Unexpected(wire::Kind::Pong as u8))?;
                    state.reported_age = Some(Duration::from_millis(pong.oldest_ms));
                    state.findings = pong.findings;
                    self.news.notify_waiters();
                    match pong.fenced {
                        true => fenced = true,
                        // The replica may have granted a newer epoch since it answered, but not when it was asked.
                        false => state.confirmed = sent,
                    }
                }
                // The session allows none of these after the grant.
                ClientEvent::Welcome(_) | ClientEvent::Granted(_) | ClientEvent::Refused(_) => {
                    return Err(wire::ProtocolError::Malformed);
                }
            }
        }
        self.send_backlog(state);
        Ok(fenced)
    }

    /// Ends everything in flight and everything to come. The first failure counts.
    fn end(&self, error: &Error) {
        let (pending, waiting) = {
            let mut state = self.state.borrow_mut();
            if state.failure.is_some() {
                return;
            }
            state.failure = Some(error.clone());
            (state.client.end(), std::mem::take(&mut state.backlog))
        };
        // No late answer can come: nobody reads the stream any more (I15, I16).
        self.stream.close();
        self.changed.notify_waiters();
        for pending in pending {
            pending.answer_to.fail(error.clone());
        }
        for waiting in waiting {
            waiting.pending.answer_to.fail(error.clone());
        }
    }

    async fn message(&self, command: Command) -> Result<Vec<u8>, Error> {
        let (sender, receiver) = oneshot::channel();
        self.start(command, None, pending(AnswerTo::Message(sender), None));
        receiver.await.map_err(|_| dropped())?
    }

    async fn done(&self, command: Command) -> Result<(), Error> {
        self.message(command).await.map(drop)
    }
}

fn pending(answer_to: AnswerTo, buffer: Option<Buffer>) -> Pending {
    Pending { answer_to, buffer, since: reactor::now() }
}

fn dropped() -> Error {
    Error::with_detail(ErrorKind::Internal, "a call on a replica was dropped")
}

fn malformed(error: wire::ProtocolError) -> Error {
    Error::with_detail(ErrorKind::Internal, error)
}

fn ended_by(answer: Answer<'_, Pending>) -> Ended {
    let Pending { answer_to, buffer, .. } = answer.request;
    let outcome = match error_of(answer.status, answer.text) {
        Some(error) => Err(error),
        None => Ok((answer.control.to_vec(), buffer)),
    };
    Ended { answer_to, outcome }
}

impl BlockDevice for RemoteReplica {
    fn geometry(&self) -> Geometry {
        self.granted.get().geometry
    }

    fn submit(&self, request: Request, reply: Reply) {
        // Also what keeps a frame within the protocol's limits.
        if let Err(error) = self.granted.get().geometry.check(&request) {
            return reply.fail(error);
        }
        let mut buffer = None;
        let (command, data) = match request {
            Request::Read { range } => {
                buffer = Buffer::try_new(range.length as usize);
                if buffer.is_none() {
                    return reply.fail(ErrorKind::Busy);
                }
                (Command::Read { offset: range.offset, length: range.length as u32 }, None)
            }
            Request::Write { offset, data, fua } => {
                let command = Command::Write { offset, length: data.len() as u32, fua, checksum: checksum(&data) };
                (command, Some(data))
            }
            Request::Flush => (Command::Flush, None),
            Request::Unmap { ranges } if ranges.is_empty() => return reply.complete(Ok(Segments::none())),
            Request::Unmap { ranges } if ranges.len() > MAX_RANGES => return reply.fail(ErrorKind::InvalidField),
            Request::Unmap { ranges } => {
                (Command::Unmap(ranges.iter().map(|range| (range.offset, range.length)).collect()), None)
            }
            Request::WriteZeroes { range, unmap, fua } => {
                (Command::WriteZeroes { offset: range.offset, length: range.length, unmap, fua }, None)
            }
            Request::Compare { .. } => {
                let detail = "compare is done by the engine";
                return reply.fail(Error::with_detail(ErrorKind::InvalidField, detail));
            }
        };
        self.start(command, data, pending(AnswerTo::Reply(reply), buffer));
    }
}

impl Replica for RemoteReplica {
    fn id(&self) -> Uuid {
        self.id
    }

    fn granted(&self) -> Granted {
        self.granted.get()
    }

    fn is_local(&self) -> bool {
        false
    }

    fn failure(&self) -> Option<Error> {
        self.state.borrow().failure.clone()
    }

    fn failed(&self) -> LocalFuture<'_, Error> {
        Box::pin(async move {
            loop {
                let changed = self.changed.notified();
                if let Some(error) = self.failure() {
                    return error;
                }
                changed.await;
            }
        })
    }

    fn fail(&self, error: Error) {
        self.end(&error);
    }

    fn oldest(&self) -> Option<Instant> {
        let state = self.state.borrow();
        let waiting = state.backlog.iter().map(|waiting| &waiting.pending);
        state.client.requests().chain(waiting).filter(|pending| pending.is_io()).map(|pending| pending.since).min()
    }

    fn reported_age(&self) -> Option<Duration> {
        self.state.borrow().reported_age
    }

    fn chain(&self) -> LocalFuture<'_, Result<Vec<ChainEntry>, Error>> {
        Box::pin(async move {
            let message = self.message(Command::Chain).await?;
            wire::Chain::parse(&message).map(chain_from_wire).map_err(malformed)
        })
    }

    fn snapshot(&self, id: Uuid, size: u64, name: &str) -> LocalFuture<'_, Result<(), Error>> {
        let command = Command::Snapshot { id: id.into_bytes(), size, name: name.to_owned() };
        Box::pin(self.done(command))
    }

    fn extents(&self, lvol: Uuid, range: Range, max: u32) -> LocalFuture<'_, Result<Extents, Error>> {
        Box::pin(async move {
            let (Range { offset, length }, max) = (range, max.clamp(1, wire::MAX_EXTENTS));
            let message = self.message(Command::Extents { lvol: lvol.into_bytes(), offset, length, max }).await?;
            wire::Extents::parse(&message).map(extents_from_wire).map_err(malformed)
        })
    }

    fn read_lvol(&self, lvol: Uuid, range: Range) -> LocalFuture<'_, Outcome> {
        Box::pin(async move {
            let length = u32::try_from(range.length).ok().filter(|&length| length <= wire::MAX_TRANSFER);
            let length = length.ok_or(ErrorKind::InvalidField)?;
            let buffer = Buffer::try_new(length as usize).ok_or(ErrorKind::Busy)?;
            let (sender, receiver) = oneshot::channel();
            let command = Command::ReadLvol { lvol: lvol.into_bytes(), offset: range.offset, length };
            self.start(command, None, pending(AnswerTo::Data(sender), Some(buffer)));
            receiver.await.map_err(|_| dropped())?
        })
    }

    fn hashes(&self, lvol: Uuid, range: Range, granule: u32) -> LocalFuture<'_, Result<Vec<u128>, Error>> {
        Box::pin(async move {
            let length = u32::try_from(range.length).ok().filter(|&length| length <= wire::MAX_TRANSFER);
            let length = length.ok_or(ErrorKind::InvalidField)?;
            let command = Command::Hashes { lvol: lvol.into_bytes(), offset: range.offset, length, granule };
            let hashes = wire::Hashes::parse(&self.message(command).await?).map_err(malformed)?.0;
            match hashes.len() == length.div_ceil(granule) as usize {
                true => Ok(hashes),
                false => Err(malformed(wire::ProtocolError::Malformed)),
            }
        })
    }

    fn findings(&self) -> u32 {
        self.state.borrow().findings
    }

    fn more_findings(&self, seen: u32) -> LocalFuture<'_, ()> {
        Box::pin(async move {
            loop {
                let news = self.news.notified();
                if self.findings() != seen {
                    return;
                }
                news.await;
            }
        })
    }

    fn damage(&self) -> LocalFuture<'_, Result<Vec<DamagedRegion>, Error>> {
        Box::pin(async move {
            let message = self.message(Command::Damage).await?;
            wire::Damage::parse(&message).map(damage_from_wire).map_err(malformed)
        })
    }

    fn repair(&self, snapshot: Uuid, offset: u64, data: Vec<u8>) -> LocalFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            if data.len() > wire::MAX_REPAIR as usize {
                return Err(ErrorKind::InvalidField.into());
            }
            self.done(Command::Repair { id: snapshot.into_bytes(), offset, data }).await
        })
    }

    fn reset(&self) -> LocalFuture<'_, Result<(), Error>> {
        Box::pin(self.done(Command::Reset))
    }

    fn set_state(&self, state: ReplicaState) -> LocalFuture<'_, Result<(), Error>> {
        Box::pin(self.done(Command::SetState(state.into())))
    }

    fn delete_snapshot(&self, id: Uuid) -> LocalFuture<'_, Result<(), Error>> {
        Box::pin(self.done(Command::DeleteSnapshot { id: id.into_bytes() }))
    }

    fn revert(&self, snapshot: Uuid) -> LocalFuture<'_, Result<(), Error>> {
        Box::pin(self.done(Command::Revert { id: snapshot.into_bytes() }))
    }

    fn grow(&self, size: u64) -> LocalFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            self.done(Command::Grow { size }).await?;
            let granted = self.granted.get();
            if granted.geometry.size() < size {
                let geometry = granted.geometry.with_size(size);
                let geometry = geometry.map_err(|error| Error::with_detail(ErrorKind::InvalidField, error))?;
                self.granted.set(Granted { geometry, ..granted });
            }
            Ok(())
        })
    }

    fn set_note(&self, place: u8, content: &[u8], durable: bool) -> LocalFuture<'_, Result<(), Error>> {
        let content = content.to_vec();
        Box::pin(async move {
            if place >= wire::NOTES || content.len() > wire::MAX_NOTE as usize {
                return Err(ErrorKind::InvalidField.into());
            }
            self.done(Command::SetNote { place, durable, content }).await
        })
    }

    fn notes(&self) -> LocalFuture<'_, Result<Vec<Note>, Error>> {
        Box::pin(async move {
            let message = self.message(Command::Notes).await?;
            wire::Notes::parse(&message).map(notes_from_wire).map_err(malformed)
        })
    }

    fn set_membership(&self, content: &[u8], attached: &[u8]) -> LocalFuture<'_, Result<(), Error>> {
        let (content, attached) = (content.to_vec(), attached.to_vec());
        Box::pin(async move {
            check_copy(&content, &attached)?;
            self.done(Command::SetMembership { content, attached }).await
        })
    }

    fn membership(&self) -> LocalFuture<'_, Result<Membership, Error>> {
        Box::pin(async move {
            let message = self.message(Command::Membership).await?;
            Membership::parse(&message).map_err(malformed)
        })
    }

    fn confirmed(&self) -> Instant {
        self.state.borrow().confirmed
    }

    fn close(&self) {
        let mut state = self.state.borrow_mut();
        if std::mem::replace(&mut state.closing, true) || state.failure.is_some() {
            return;
        }
        self.stream.push_copy(&state.client.close());
        self.stream.flush_at_turn_end();
    }
}

impl Pending {
    /// Whether a deadline of the data path applies to it.
    fn is_io(&self) -> bool {
        matches!(self.answer_to, AnswerTo::Reply(_))
    }
}

impl Drop for RemoteReplica {
    fn drop(&mut self) {
        self.end(&Error::with_detail(ErrorKind::Aborted, "the replica was closed"));
    }
}
