//! One NVMe/TCP connection as the host's end sees it: commands in, bytes out; bytes in, completions out.
//!
//! # Call order
//! 1. [`Connection::initialize`], then feed received bytes to [`Connection::receive`] until it returns `None`, always.
//! 2. After [`Event::Initialized`]: [`Connection::submit`] a Connect. When it completed: [`Connection::connected`].
//! 3. [`Connection::submit`] commands. If it says [`Submitted::with_data`], queue the payload next and call
//!    [`Connection::write_data_digest`].
//! 4. [`Event::DataRequested`]: call [`Connection::write_data_header`] until it returns `None`, each time queueing the
//!    range it names and calling [`Connection::write_data_digest`].
//! 5. [`Event::Completed`] ends a command; exactly one comes for each (I34).
//! 6. An error from `receive`: call [`Connection::terminate`], send what it wrote, close.
//!
//! ```text
//!          submit                    R2T                  all data sent
//!   free ──────────▶ Waiting ─────────────────▶ Sending ────────────────▶ Waiting
//!    ▲                  │ response, or C2HData with SUCCESS
//!    └──────────────────┘
//! ```

use core::ops::Range;

use super::command::{Command, Data};
use crate::framing::{Digests, Piece, Reader, Writer};
use crate::sink::HeaderSink;
use crate::slots::Slots;
use crate::wire::pdu::{
    self, DataHeader, FLAG_LAST, FLAG_SUCCESS, FatalError, Initialize, PduType, TERMINATE_DATA_MAX, field,
};
use crate::wire::sgl::Sgl;
use crate::wire::{Completion, Status};

pub use crate::slots::{SLOTS_MAX, Slot};

/// What a host asks for when it opens a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Digests to use if the controller agrees.
    pub digests: Digests,
    /// Alignment of data in the controller's PDUs, in bytes: a multiple of 4 of at most 128; 0 for none (HPDA).
    pub data_alignment: usize,
}

/// R2Ts that may be outstanding for one command (MAXR2T).
const MAX_R2T: u32 = 1;

/// In-capsule data that every controller takes on its admin queue (Base 3.3.2.2, Fabrics).
const ADMIN_CAPSULE_DATA: u32 = 8192;

/// What arrived.
#[derive(Debug, PartialEq)]
pub enum Event<'a> {
    /// The controller's ICResp: commands may be submitted.
    Initialized,
    /// Data of a command: copy `bytes` to `offset` of its buffer.
    Data {
        /// The command.
        slot: Slot,
        /// Bytes from the start of its data.
        offset: u32,
        /// Part of the received chunk.
        bytes: &'a [u8],
    },
    /// The controller is ready for data of this command: see [`Connection::write_data_header`].
    DataRequested {
        /// The command.
        slot: Slot,
    },
    /// A command ended; its slot is free.
    Completed {
        /// The command.
        slot: Slot,
        /// How. Data that came damaged makes it [`Status::TransientTransportError`].
        completion: Completion,
        /// Bytes of data that came.
        received: u32,
        /// SQ Head Pointer (SQHD); FFFFh in the response to a Connect that turned flow control off.
        submission_head: u16,
    },
}

/// Why a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The controller broke the protocol: [`Connection::terminate`] tells it so.
    Protocol(FatalError),
    /// The controller ends the connection (C2HTermReq) for this reason.
    TerminatedByController(FatalError),
}

impl From<FatalError> for Fault {
    fn from(error: FatalError) -> Self {
        Self::Protocol(error)
    }
}

/// A command on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Submitted {
    /// Its place until it completes.
    pub slot: Slot,
    /// Its data goes out with it: queue all of it now.
    pub with_data: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// [`Connection::initialize`] has not been called.
    New,
    /// ICReq is out.
    Initializing,
    /// Capsules and data.
    Open,
    /// A fault was reported.
    Ended,
}

struct InFlight {
    data: Data,
    /// Bytes of data that came.
    received: u32,
    damaged: bool,
    /// What the last R2T asked for and is not sent yet.
    requested: Range<u32>,
    transfer_tag: u16,
    /// Bytes sent for R2Ts.
    sent: u32,
}

/// Whose data the stream carries now.
#[derive(Clone, Copy)]
struct Incoming {
    slot: Slot,
    /// This PDU completes the command as well.
    completes: bool,
}

/// The state machine. See the module for the order of calls.
pub struct Connection {
    options: Options,
    state: State,
    reader: Reader,
    writer: Writer,
    commands: Slots<InFlight>,
    incoming: Option<Incoming>,
    /// Most data in one H2CData (MAXH2CDATA).
    host_data_max: u32,
    /// Most data that may go with a command.
    capsule_data_max: u32,
}

impl Connection {
    /// A connection on which nothing has been sent yet.
    pub fn new(options: Options) -> Self {
        Self {
            options,
            state: State::New,
            reader: Reader::new(),
            writer: Writer::new(),
            // Connect goes alone.
            commands: Slots::new(1),
            incoming: None,
            host_data_max: 0,
            capsule_data_max: ADMIN_CAPSULE_DATA,
        }
    }

    /// Writes the ICReq that opens the connection.
    ///
    /// # Panics
    /// If called twice.
    pub fn initialize(&mut self, sink: &mut impl HeaderSink) {
        assert_eq!(self.state, State::New, "a connection opens once");
        let request = Initialize {
            format_version: 0,
            data_alignment: self.options.data_alignment,
            header_digest: self.options.digests.header,
            data_digest: self.options.digests.data,
            maximum: MAX_R2T,
        };
        sink.push(&request.encode_request());
        self.state = State::Initializing;
    }

    /// A Connect succeeded: `commands` may be in flight from here on, with up to `capsule_data` bytes of data in their
    /// capsules (IOCCSZ; 8192 on an admin queue). With SQ flow control one less than the queue has entries.
    ///
    /// # Panics
    /// If `commands` exceeds [`SLOTS_MAX`].
    pub fn connected(&mut self, commands: usize, capsule_data: u32) {
        self.commands.grow(commands);
        self.capsule_data_max = capsule_data;
    }

    /// Commands that have not completed.
    pub fn in_flight(&self) -> usize {
        self.commands.in_use()
    }

    /// Writes a command; `None` if as many as allowed are in flight.
    ///
    /// # Panics
    /// If the connection is not open.
    #[inline]
    pub fn submit(&mut self, command: &Command, sink: &mut impl HeaderSink) -> Option<Submitted> {
        assert_eq!(self.state, State::Open, "no commands now");
        let slot = self.commands.insert(InFlight {
            data: command.data,
            received: 0,
            damaged: false,
            requested: 0..0,
            transfer_tag: 0,
            sent: 0,
        })?;
        let (sgl, in_capsule) = match command.data {
            Data::None => (Sgl::Transport { length: 0 }, 0),
            Data::Receive(length) => (Sgl::Transport { length }, 0),
            Data::Send(length) if length <= self.capsule_data_max => (Sgl::InCapsule { offset: 0, length }, length),
            Data::Send(length) => (Sgl::Transport { length }, 0),
        };
        let mut entry = command.entry;
        entry.set_command_id(slot.tag());
        entry.set_sgl(sgl);
        let common = self.writer.common(PduType::Command, 0, in_capsule);
        self.writer.write(pdu::encode_command(&common, &entry), sink);
        Some(Submitted { slot, with_data: in_capsule > 0 })
    }

    /// Writes the header of the next H2CData that the controller asked for and returns which range of the command's data
    /// to queue after it; `None` when all of it is written.
    ///
    /// # Panics
    /// If the command is not in flight.
    pub fn write_data_header(&mut self, slot: Slot, sink: &mut impl HeaderSink) -> Option<Range<u32>> {
        let Some(command) = self.commands.get_mut(slot) else { panic!("{slot:?} is not in flight") };
        if command.requested.is_empty() {
            return None;
        }
        let start = command.requested.start;
        let end = command.requested.end.min(start.saturating_add(self.host_data_max));
        command.requested.start = end;
        command.sent = end;
        let flags = if command.requested.is_empty() { FLAG_LAST } else { 0 };
        let header = DataHeader {
            command_id: slot.tag(),
            transfer_tag: command.transfer_tag,
            offset: start,
            length: end - start,
        };
        let common = self.writer.common(PduType::HostData, flags, end - start);
        self.writer.write(header.encode(&common), sink);
        Some(start..end)
    }

    /// Writes the digest of the payload queued after a capsule or data header; nothing if none is agreed on.
    #[inline]
    pub fn write_data_digest<'a>(&self, payload: impl IntoIterator<Item = &'a [u8]>, sink: &mut impl HeaderSink) {
        self.writer.write_data_digest(payload, sink);
    }

    /// Tells the controller why its connection ends (H2CTermReq), quoting the header at fault.
    pub fn terminate(&self, error: FatalError, sink: &mut impl HeaderSink) {
        let quote = self.reader.quote();
        sink.push(&error.encode(PduType::HostTerminate, quote.len()));
        sink.push(quote);
    }

    /// Consumes input up to the next event; `None` when all of it is used and more is needed.
    ///
    /// # Errors
    /// The connection has to end.
    ///
    /// # Panics
    /// If called again after an error, or before [`Self::initialize`].
    #[inline]
    pub fn receive<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, Fault> {
        let result = self.next_event(input);
        if result.is_err() {
            self.state = State::Ended;
        }
        result
    }

    fn next_event<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, Fault> {
        assert!(matches!(self.state, State::Initializing | State::Open), "not receiving now: {:?}", self.state);
        loop {
            let state = self.state;
            let Some(piece) = self.reader.next(input, |pdu_type| data_limit(pdu_type, state))? else {
                return Ok(None);
            };
            let event = match piece {
                Piece::Header { pdu_type, flags, data_length } => self.header(pdu_type, flags, data_length)?,
                Piece::Data(bytes) => self.data(bytes),
                Piece::DataEnd { intact } => self.data_end(intact),
            };
            // None: the end of data whose command goes on.
            if event.is_some() {
                return Ok(event);
            }
        }
    }

    fn header<'a>(&mut self, pdu_type: PduType, flags: u8, data_length: u32) -> Result<Option<Event<'a>>, Fault> {
        match pdu_type {
            PduType::InitializeResponse => self.initialized().map(Some).map_err(Fault::from),
            PduType::ControllerTerminate => {
                Err(Fault::TerminatedByController(FatalError::parse(&self.reader.header())))
            }
            PduType::Response => self.response().map(Some).map_err(Fault::from),
            PduType::ControllerData => {
                self.controller_data(flags, data_length)?;
                Ok(None)
            }
            PduType::ReadyToTransfer => self.ready_to_transfer().map(Some).map_err(Fault::from),
            PduType::InitializeRequest | PduType::HostTerminate | PduType::Command | PduType::HostData => {
                Err(Fault::Protocol(FatalError::InvalidHeaderField(field::PDU_TYPE)))
            }
        }
    }

    fn initialized<'a>(&mut self) -> Result<Event<'a>, FatalError> {
        let response = Initialize::parse_response(&self.reader.header()).map_err(FatalError::UnsupportedParameter)?;
        // A controller may turn digests down, not on.
        let asked = self.options.digests;
        if response.header_digest && !asked.header || response.data_digest && !asked.data {
            return Err(FatalError::InvalidHeaderField(field::DGST));
        }
        let digests = Digests { header: response.header_digest, data: response.data_digest };
        self.reader.set_digests(digests);
        self.writer = Writer { digests, data_alignment: response.data_alignment };
        self.host_data_max = response.maximum;
        self.state = State::Open;
        Ok(Event::Initialized)
    }

    #[inline]
    fn response<'a>(&mut self) -> Result<Event<'a>, FatalError> {
        let entry = pdu::parse_response(&self.reader.header());
        let slot = Slot::from_tag(entry.command_id);
        // A command identifier that is not in flight: byte 12 of the entry (CID).
        let command = self.commands.remove(slot).ok_or(FatalError::InvalidHeaderField(20))?;
        let mut completion = entry.completion;
        if command.damaged && completion.status == Status::Success {
            completion.status = Status::TransientTransportError;
        }
        let submission_head = entry.submission_head;
        Ok(Event::Completed { slot, completion, received: command.received, submission_head })
    }

    /// Checks that C2HData is for a command that receives, in order and within its buffer.
    #[inline]
    fn controller_data(&mut self, flags: u8, data_length: u32) -> Result<(), FatalError> {
        let header = DataHeader::parse(&self.reader.header());
        let slot = Slot::from_tag(header.command_id);
        let invalid = FatalError::InvalidHeaderField;
        let command = self.commands.get_mut(slot).ok_or(invalid(field::CCCID))?;
        let Data::Receive(room) = command.data else { return Err(invalid(field::CCCID)) };
        if header.length != data_length || data_length == 0 {
            return Err(invalid(field::DATAL));
        }
        let end = header.offset.checked_add(header.length).ok_or(FatalError::DataOutOfRange)?;
        if header.offset != command.received || end > room {
            return Err(FatalError::DataOutOfRange);
        }
        let completes = flags & FLAG_SUCCESS != 0;
        if completes && flags & FLAG_LAST == 0 {
            return Err(invalid(field::FLAGS));
        }
        self.incoming = Some(Incoming { slot, completes });
        Ok(())
    }

    /// Checks that an R2T asks for the next part of data that a command sends.
    fn ready_to_transfer<'a>(&mut self) -> Result<Event<'a>, FatalError> {
        let header = DataHeader::parse(&self.reader.header());
        let slot = Slot::from_tag(header.command_id);
        let command = self.commands.get_mut(slot).ok_or(FatalError::InvalidHeaderField(field::CCCID))?;
        let Data::Send(length) = command.data else { return Err(FatalError::InvalidHeaderField(field::CCCID)) };
        if length <= self.capsule_data_max {
            // All of it went with the command.
            return Err(FatalError::DataOutOfRange);
        }
        if !command.requested.is_empty() {
            return Err(FatalError::LimitExceeded);
        }
        let end = header.offset.checked_add(header.length).ok_or(FatalError::DataOutOfRange)?;
        if header.length == 0 || header.offset != command.sent || end > length {
            return Err(FatalError::DataOutOfRange);
        }
        command.requested = header.offset..end;
        command.transfer_tag = header.transfer_tag;
        Ok(Event::DataRequested { slot })
    }

    #[inline]
    fn data<'a>(&mut self, bytes: &'a [u8]) -> Option<Event<'a>> {
        let slot = self.incoming?.slot;
        let command = self.commands.get_mut(slot)?;
        let offset = command.received;
        // Not beyond the buffer, whose length is 32 bits wide.
        command.received += bytes.len() as u32;
        Some(Event::Data { slot, offset, bytes })
    }

    #[inline]
    fn data_end<'a>(&mut self, intact: bool) -> Option<Event<'a>> {
        let Incoming { slot, completes } = self.incoming.take()?;
        let command = self.commands.get_mut(slot)?;
        command.damaged |= !intact;
        if !completes {
            return None;
        }
        let command = self.commands.remove(slot)?;
        let status = if command.damaged { Status::TransientTransportError } else { Status::Success };
        let completion = Completion::error(status);
        Some(Event::Completed { slot, completion, received: command.received, submission_head: 0 })
    }
}

/// How much data a PDU of this type may carry in this state, or why it may not come.
#[inline]
fn data_limit(pdu_type: PduType, state: State) -> Result<u32, FatalError> {
    match (pdu_type, state) {
        (PduType::ControllerTerminate, _) => Ok(TERMINATE_DATA_MAX as u32),
        (PduType::InitializeResponse, State::Initializing) => Ok(0),
        (PduType::Response | PduType::ReadyToTransfer, State::Open) => Ok(0),
        // Bounded by the command's own buffer, checked once the header is whole.
        (PduType::ControllerData, State::Open) => Ok(u32::MAX),
        (PduType::InitializeResponse | PduType::Response | PduType::ReadyToTransfer | PduType::ControllerData, _) => {
            Err(FatalError::SequenceError)
        }
        // What only a host sends.
        (_, _) => Err(FatalError::InvalidHeaderField(field::PDU_TYPE)),
    }
}
