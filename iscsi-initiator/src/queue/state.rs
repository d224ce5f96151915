//! What a queue is made of: its connection and the commands that are not answered yet.

use std::collections::VecDeque;
use std::rc::Rc;
use std::task::Waker;

use iscsi_target_protocol::HeaderSink;
use iscsi_target_protocol::initiator::connection::{Command, Connection, Event, Slot};
use iscsi_target_protocol::wire::request::LogoutReason;
use iscsi_target_protocol::wire::response::AsyncEvent;
use reactor::{Instant, JoinHandle, Slice, TcpStream};

use super::{CommandSink, Window};
use crate::error::{CommandError, ConnectionError, status};
use crate::request::Request;
use crate::sense::Sense;

/// Everything that changes while a queue works.
#[derive(Default)]
pub(super) struct State {
    pub(super) link: Option<Link>,
    /// Users' commands go out when the window allows; else they are held.
    pub(super) open: bool,
    /// Given up for good.
    pub(super) closed: bool,
    /// By index of the slot.
    pub(super) in_flight: Vec<Option<Pending>>,
    /// In order of submission; bounded with those in flight and resting by `depth`. While the queue is open, they wait for the window.
    pub(super) held: VecDeque<Pending>,
    /// Met a passing state; a task waits to send them again.
    pub(super) resting: Vec<Pending>,
    /// Commands of users in flight, held or resting.
    pub(super) users: usize,
    /// Woken at each change that someone may wait for: room, logged out, lost.
    pub(super) waiting: Vec<Waker>,
}

/// A connection.
pub(super) struct Link {
    pub(super) stream: TcpStream,
    connection: Connection,
    pub(super) window: Rc<Window>,
    pub(super) receiver: Option<JoinHandle<()>>,
    /// Heartbeats that the ping in flight has left.
    pub(super) ping: Option<u32>,
    /// Something came since the last look.
    heard: bool,
    pub(super) logged_out: bool,
}

/// A command that is not answered yet.
pub(super) struct Pending {
    request: Request,
    lun: u64,
    pub(super) sink: Rc<dyn CommandSink>,
    pub(super) token: u64,
    /// Heartbeats until it is too late.
    pub(super) heartbeats_left: u32,
    /// Ours, part of connecting: it does not outlive its connection.
    pub(super) internal: bool,
    /// How many unit attentions it met.
    pub(super) attentions: u8,
    /// When it is no longer sent again after it met a passing state.
    pub(super) give_up: Option<Instant>,
}

/// What a piece of input came to.
pub(super) enum Step<'a> {
    /// All of it is used.
    Starved,
    Done,
    Data {
        sink: Rc<dyn CommandSink>,
        token: u64,
        offset: u32,
        bytes: &'a [u8],
    },
    Completed {
        pending: Pending,
        outcome: Result<u32, CommandError>,
    },
    /// Someone may be waiting for it.
    Changed,
}

impl State {
    #[inline]
    pub(super) fn step<'a>(&mut self, input: &mut &'a [u8]) -> Result<Step<'a>, ConnectionError> {
        let Some(link) = &mut self.link else { return Err(ConnectionError::Disconnected) };
        let Link { stream, connection, window, .. } = link;
        let received = connection.receive(&mut window.numbers.borrow_mut(), input, &mut Output(stream));
        let Some(event) = received.map_err(ConnectionError::Protocol)? else { return Ok(Step::Starved) };
        link.heard = true;
        Ok(match event {
            Event::Data { slot, offset, bytes } => match self.at(slot) {
                Some(pending) => Step::Data { sink: Rc::clone(&pending.sink), token: pending.token, offset, bytes },
                None => Step::Done,
            },
            Event::Completed { slot, status, received, intact, sense, residual: _ } => match self.take(slot) {
                Some(pending) => {
                    let outcome = pending.outcome(status, received, intact, &sense);
                    Step::Completed { pending, outcome }
                }
                None => Step::Done,
            },
            Event::DataRequested { slot } => {
                let State { link: Some(link), in_flight, .. } = self else { return Ok(Step::Done) };
                if let Some(Some(pending)) = in_flight.get(slot.index()) {
                    link.send_data(slot, &pending.request.payload);
                }
                Step::Done
            }
            Event::Pong { .. } => {
                link.ping = None;
                Step::Done
            }
            Event::LoggedOut { .. } => {
                link.logged_out = true;
                Step::Changed
            }
            Event::Async(event) => return noted(event).map(|()| Step::Done),
            // The command whose data it was ends with ABORTED COMMAND.
            Event::Rejected { reason: DATA_DIGEST_ERROR, .. } => Step::Done,
            Event::Rejected { reason, .. } => return Err(ConnectionError::Rejected(reason)),
            // Never asked for.
            Event::TaskManaged { .. } | Event::Text { .. } => Step::Done,
        })
    }

    #[inline]
    fn at(&self, slot: Slot) -> Option<&Pending> {
        self.in_flight.get(slot.index())?.as_ref()
    }

    #[inline]
    fn take(&mut self, slot: Slot) -> Option<Pending> {
        self.in_flight.get_mut(slot.index())?.take()
    }

    /// Takes the place of a command that is over.
    #[inline]
    pub(super) fn leave(&mut self, pending: &Pending) {
        self.users -= usize::from(!pending.internal);
        if !self.waiting.is_empty() {
            self.waiting.drain(..).for_each(Waker::wake);
        }
    }

    /// Sends a command. There is a link; the command comes back if the window is closed.
    #[inline]
    #[must_use]
    pub(super) fn send(&mut self, pending: Pending) -> Option<Pending> {
        let Some(link) = &mut self.link else { unreachable!("commands are held while there is no connection") };
        let Link { stream, connection, window, .. } = link;
        let crate::cdb::Command { cdb, data, .. } = pending.request.command;
        let command = Command { lun: pending.lun, cdb, data, immediate: false };
        let Some(submitted) = connection.submit(&mut window.numbers.borrow_mut(), &command, &mut Output(stream)) else {
            return Some(pending);
        };
        let payload = &pending.request.payload;
        if submitted.immediate_data > 0 {
            let part = payload.slice(..submitted.immediate_data as usize);
            stream.push(part.clone());
            connection.write_data_end([&part[..]], &mut Output(stream));
        }
        if payload.len() > submitted.immediate_data as usize {
            link.send_data(submitted.slot, payload);
        }
        let index = submitted.slot.index();
        if index >= self.in_flight.len() {
            self.in_flight.resize_with(index + 1, || None);
        }
        self.in_flight[index] = Some(pending);
        None
    }
}

/// Reason of a Reject for a data digest (11.17.1).
const DATA_DIGEST_ERROR: u8 = 0x02;

/// What the target says of its own accord.
fn noted(event: Option<AsyncEvent>) -> Result<(), ConnectionError> {
    match event {
        Some(
            AsyncEvent::LogoutWanted { .. }
            | AsyncEvent::ConnectionDropped { .. }
            | AsyncEvent::SessionDropped { .. }
            // Logging in again is the only negotiation that this host does.
            | AsyncEvent::NegotiationWanted { .. },
        ) => Err(ConnectionError::AskedToLeave),
        Some(AsyncEvent::Scsi { .. }) | None => Ok(()),
    }
}

impl Link {
    pub(super) fn new(stream: TcpStream, connection: Connection, window: Rc<Window>) -> Self {
        Self { stream, connection, window, receiver: None, ping: None, heard: true, logged_out: false }
    }

    /// Sends data that the target asked for, or takes unasked.
    fn send_data(&mut self, slot: Slot, payload: &Slice) {
        while let Some(range) = self.connection.write_data_header(slot, &mut Output(&self.stream)) {
            let part = payload.slice(range.start as usize..range.end as usize);
            self.stream.push(part.clone());
            self.connection.write_data_end([&part[..]], &mut Output(&self.stream));
        }
    }

    pub(super) fn log_out(&mut self) {
        let (session, cid) = (&mut self.window.numbers.borrow_mut(), self.connection.cid());
        // Each connection for itself: a session ends with its last one. Without room for it the connection just ends.
        let sent = self.connection.logout(session, LogoutReason::CloseConnection, cid, &mut Output(&self.stream));
        self.logged_out = sent.is_none();
        self.stream.flush();
    }

    /// At most one ping is in flight.
    pub(super) fn ping_if_silent(&mut self, time_limit: u32) {
        if !std::mem::take(&mut self.heard) && self.ping.is_none() {
            let session = &mut self.window.numbers.borrow_mut();
            let sent = self.connection.ping(session, &[], &mut Output(&self.stream));
            self.ping = sent.map(|_| time_limit);
            self.stream.flush();
        }
    }
}

impl Pending {
    #[inline]
    pub(super) fn new(request: Request, lun: u64, sink: Rc<dyn CommandSink>, token: u64, time_limit: u32) -> Self {
        Self { request, lun, sink, token, heartbeats_left: time_limit, internal: false, attentions: 0, give_up: None }
    }

    #[inline]
    fn outcome(&self, status: u8, received: u32, intact: bool, sense: &[u8]) -> Result<u32, CommandError> {
        let command = &self.request.command;
        match status {
            status::GOOD | status::CONDITION_MET if !intact => Err(CommandError::Damaged),
            status::GOOD | status::CONDITION_MET if received < command.receives() && !command.may_be_short => {
                Err(CommandError::ShortData)
            }
            status::GOOD | status::CONDITION_MET => Ok(received),
            status::CHECK_CONDITION => {
                Err(Sense::parse(sense).map_or(CommandError::Status(status), CommandError::Check))
            }
            other => Err(CommandError::Status(other)),
        }
    }

    pub(super) fn lost(self) {
        self.sink.complete(self.token, Err(CommandError::Lost));
    }
}

/// Headers go to the stream's output.
pub(crate) struct Output<'a>(pub(crate) &'a TcpStream);

impl HeaderSink for Output<'_> {
    #[inline]
    fn push(&mut self, bytes: &[u8]) {
        self.0.push_copy(bytes);
    }
}
