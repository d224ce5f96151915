//! What a queue is made of: its connection and the commands that are not answered yet.

use std::collections::VecDeque;
use std::rc::Rc;
use std::task::Waker;

use nvmf_target_protocol::HeaderSink;
use nvmf_target_protocol::host::connection::{Connection, Event, Fault, Slot};
use nvmf_target_protocol::wire::{Completion, Status};
use reactor::{Instant, JoinHandle, Slice, TcpStream};

use super::CommandSink;
use crate::error::{CommandError, ConnectionError};
use crate::request::Request;

/// Everything that changes while a queue works.
#[derive(Default)]
pub(super) struct State {
    pub(super) link: Option<Link>,
    /// Users' commands go out at once; else they are held.
    pub(super) open: bool,
    /// Given up for good.
    pub(super) closed: bool,
    /// By index of the slot.
    pub(super) in_flight: Vec<Option<Pending>>,
    /// In order of submission; bounded with those in flight and resting by `depth`.
    pub(super) held: VecDeque<Pending>,
    /// Met a passing state; a task waits to send them again.
    pub(super) resting: Vec<Pending>,
    /// Commands of users in flight, held or resting.
    pub(super) users: usize,
    /// Woken at each change that someone may wait for: room, initialised, lost.
    pub(super) waiting: Vec<Waker>,
}

/// A connection.
pub(super) struct Link {
    pub(super) stream: TcpStream,
    pub(super) connection: Connection,
    pub(super) initialized: bool,
    pub(super) receiver: Option<JoinHandle<()>>,
}

/// A command that is not answered yet.
pub(super) struct Pending {
    pub(super) request: Request,
    pub(super) sink: Rc<dyn CommandSink>,
    pub(super) token: u64,
    /// Heartbeats until it is too late; none for ever.
    pub(super) heartbeats_left: Option<u32>,
    /// Ours, part of connecting: it does not outlive its connection.
    pub(super) internal: bool,
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
        completion: Completion,
        received: u32,
    },
    /// Someone may be waiting for it.
    Changed,
}

impl State {
    #[inline]
    pub(super) fn step<'a>(&mut self, input: &mut &'a [u8]) -> Result<Step<'a>, ConnectionError> {
        let Some(link) = &mut self.link else { return Err(ConnectionError::Disconnected) };
        let event = match link.connection.receive(input) {
            Ok(Some(event)) => event,
            Ok(None) => return Ok(Step::Starved),
            Err(fault) => return Err(link.ended(fault)),
        };
        Ok(match event {
            Event::Data { slot, offset, bytes } => match &self.in_flight[slot.index()] {
                Some(pending) => Step::Data { sink: Rc::clone(&pending.sink), token: pending.token, offset, bytes },
                None => Step::Done,
            },
            Event::Completed { slot, completion, received, submission_head: _ } => {
                match self.in_flight[slot.index()].take() {
                    Some(pending) => Step::Completed { pending, completion, received },
                    None => Step::Done,
                }
            }
            Event::DataRequested { slot } => {
                if let Some(pending) = &self.in_flight[slot.index()] {
                    link.send_data(slot, &pending.request.payload);
                }
                Step::Done
            }
            Event::Initialized => {
                link.initialized = true;
                // Room for the Connect.
                self.in_flight.resize_with(1, || None);
                Step::Changed
            }
        })
    }

    /// Takes the place of a command that is over.
    #[inline]
    pub(super) fn leave(&mut self, pending: &Pending) {
        self.users -= usize::from(!pending.internal);
        if !self.waiting.is_empty() {
            self.waiting.drain(..).for_each(Waker::wake);
        }
    }

    /// Sends a command. There is a link, and room on it: its commands are as many as users and we can have in flight.
    #[inline]
    pub(super) fn send(&mut self, pending: Pending) {
        let Some(link) = &mut self.link else { unreachable!("commands are held while there is no connection") };
        let Link { stream, connection, .. } = link;
        let Some(submitted) = connection.submit(&pending.request.command, &mut Output(stream)) else {
            unreachable!("the connection takes as many commands as the queue")
        };
        if submitted.with_data {
            stream.push(pending.request.payload.clone());
            connection.write_data_digest([&pending.request.payload[..]], &mut Output(stream));
        }
        self.in_flight[submitted.slot.index()] = Some(pending);
    }
}

impl Link {
    /// Sends the data that the controller asked for.
    fn send_data(&mut self, slot: Slot, payload: &Slice) {
        while let Some(range) = self.connection.write_data_header(slot, &mut Output(&self.stream)) {
            let part = payload.slice(range.start as usize..range.end as usize);
            self.stream.push(part.clone());
            self.connection.write_data_digest([&part[..]], &mut Output(&self.stream));
        }
    }

    /// Tells the controller about its fault, if it is one.
    fn ended(&mut self, fault: Fault) -> ConnectionError {
        match fault {
            Fault::Protocol(error) => {
                self.connection.terminate(error, &mut Output(&self.stream));
                self.stream.flush();
                ConnectionError::Protocol(error)
            }
            Fault::TerminatedByController(error) => ConnectionError::Terminated(error),
        }
    }
}

impl Pending {
    #[inline]
    pub(super) fn completed(self, completion: Completion, received: u32) {
        let outcome = match completion.status {
            Status::Success if received < self.request.receives() => Err(CommandError::ShortData),
            Status::Success => Ok(completion.result),
            status => Err(CommandError::Status { status, result: completion.result }),
        };
        self.sink.complete(self.token, outcome);
    }

    pub(super) fn lost(self) {
        self.sink.complete(self.token, Err(CommandError::Lost));
    }
}

/// Whether the state that a command met passes by itself, so that a Linux host sends it again.
#[inline]
pub(super) fn is_passing(status: Status) -> bool {
    matches!(status, Status::NamespaceNotReady | Status::CommandInterrupted | Status::TransientTransportError)
        || status.code_type() == PATH_RELATED && status.is_retryable()
}

/// Status Code Type of Path Related Status (Base 3.3.3.2.1).
const PATH_RELATED: u8 = 3;

/// Headers go to the stream's output.
pub(super) struct Output<'a>(pub(super) &'a TcpStream);

impl HeaderSink for Output<'_> {
    #[inline]
    fn push(&mut self, bytes: &[u8]) {
        self.0.push_copy(bytes);
    }
}
