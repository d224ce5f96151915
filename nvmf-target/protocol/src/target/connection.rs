//! One NVMe/TCP connection as the controller's end sees it: bytes in, events out; completions in, headers out.
//!
//! # Call order
//! Feed received bytes to [`Connection::receive`] until it returns `None`, and act on each event:
//!
//! 1. [`Event::Initialize`]: call [`Connection::accept`].
//! 2. [`Event::Command`]: answer it with [`Connection::respond`], now or later, exactly once (I34). Before that:
//!    - [`Transfer::ToHost`]: [`Connection::write_data_header`], queue the payload, [`Connection::write_data_digest`].
//!      If the header said it all (success optimisation) there is no response.
//!    - [`Transfer::InCapsule`]: the payload follows in [`Event::Payload`], its end in [`Event::PayloadEnd`].
//!    - [`Transfer::Solicited`]: call [`Connection::request_data`]; then the payload comes in the same events.
//! 3. The first command must be Connect; once it succeeded, call [`Connection::connected`].
//! 4. An error from `receive`: call [`Connection::terminate`], send what it wrote, close. The state machine is of no
//!    use afterwards. It concerns this connection only.
//!
//! # A command's life
//! ```text
//!                 respond, or the last data header with SUCCESS
//!        ┌───────────────────────────────────────────────────────────────▶ free
//!        │                                                                  ▲
//!   Executing ◀─ capsule ─ free ─ capsule with in-capsule data ─▶ InCapsule ─┤ respond (the rest is dropped)
//!    │     ▲                                                          │     │
//!    │     └───────────────── PayloadEnd ◀────────────────────────────┘     │
//!    │ request_data                ▲                                        │
//!    ▼                             │ last H2CData                           │
//!   Soliciting ────────────────────┘                                        │
//! ```
//! Responding to a command that is soliciting would leave the host sending data for a tag that names nothing: an
//! assertion forbids it.

use crate::framing::{Digests, Piece, Reader, Writer};
use crate::sink::HeaderSink;
use crate::slots::Slots;
use crate::wire::completion::{Completion, CompletionEntry};
use crate::wire::opcode::{self, Direction};
use crate::wire::pdu::{
    self, DataHeader, FLAG_LAST, FLAG_SUCCESS, FatalError, Initialize, PduType, TERMINATE_DATA_MAX, field,
};
use crate::wire::sgl::Sgl;
use crate::wire::{Status, Submission};

pub use crate::slots::{SLOTS_MAX, Slot};

/// What a connection accepts. The driver's memory for one connection follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most in-capsule data on the admin queue, and before Connect, in bytes. Fabrics requires at least 8192.
    pub admin_capsule_data: u32,
    /// Most in-capsule data on an I/O queue, in bytes; what Identify announces as IOCCSZ.
    pub io_capsule_data: u32,
    /// Most data in one H2CData (MAXH2CDATA), in bytes: a multiple of 4, at least 4096.
    pub host_data: u32,
    /// Most data of one command in bytes; what Identify announces as MDTS.
    pub transfer: u32,
    /// Whether digests are used if the host asks for them.
    pub digests: Digests,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            admin_capsule_data: 8 << 10,
            io_capsule_data: 16 << 10,
            host_data: 256 << 10,
            transfer: 1 << 20,
            digests: Digests { header: true, data: true },
        }
    }
}

/// The queue that a successful Connect made of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Queue ID (QID): 0 for the admin queue.
    pub id: u16,
    /// Entries, so commands in flight at most; at most [`SLOTS_MAX`].
    pub entries: u32,
    /// The host turned SQ flow control off: completions carry no SQ head, and the success optimisation is allowed.
    pub flow_control_disabled: bool,
}

/// How a command's data moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// No data.
    None,
    /// To the host, at most `length` bytes.
    ToHost {
        /// Bytes of the host's buffer.
        length: u32,
    },
    /// From the host, following in the capsule.
    InCapsule {
        /// Bytes.
        length: u32,
    },
    /// From the host, once asked for with [`Connection::request_data`].
    Solicited {
        /// Bytes.
        length: u32,
    },
}

impl Transfer {
    /// Bytes that move, or that the host has room for.
    pub fn length(self) -> u32 {
        match self {
            Self::None => 0,
            Self::ToHost { length } | Self::InCapsule { length } | Self::Solicited { length } => length,
        }
    }
}

/// What arrived.
#[derive(Debug, PartialEq)]
pub enum Event<'a> {
    /// The host's ICReq: call [`Connection::accept`].
    Initialize,
    /// A command. `transfer` is an error when its data cannot be moved as it says; respond with that status.
    Command {
        /// Its place until it is answered.
        slot: Slot,
        /// The submission queue entry.
        entry: Submission,
        /// How its data moves.
        transfer: Result<Transfer, Status>,
    },
    /// Data for a command: copy `bytes` to `offset` of its buffer. Offsets follow each other without a gap.
    Payload {
        /// The command.
        slot: Slot,
        /// Bytes from the start of its data.
        offset: u32,
        /// Part of the received chunk.
        bytes: &'a [u8],
    },
    /// All data for a command is here. With an error, respond with that status: the data is damaged.
    PayloadEnd {
        /// The command.
        slot: Slot,
        /// Whether every data digest matched.
        result: Result<(), Status>,
    },
}

/// Data that comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Awaited {
    /// The command it is for.
    pub slot: Slot,
    /// Where it belongs, in bytes from the start of the command's data.
    pub offset: u32,
    /// Bytes.
    pub length: u32,
}

/// Why a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The host broke the protocol: [`Connection::terminate`] tells it so.
    Protocol(FatalError),
    /// The host ends the connection (H2CTermReq) for this reason.
    TerminatedByHost(FatalError),
}

impl From<FatalError> for Fault {
    fn from(error: FatalError) -> Self {
        Self::Protocol(error)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing but ICReq may come.
    Initializing,
    /// ICReq has come, [`Connection::accept`] has not been called.
    Accepting(Initialize),
    /// Capsules and data.
    Open,
    /// A fault was reported.
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Executing,
    InCapsule,
    Soliciting,
}

/// A command in flight.
struct Command {
    command_id: u16,
    phase: Phase,
    /// Bytes that come from the host; [`Self::received`] of them are here.
    expected: u32,
    received: u32,
    damaged: bool,
}

/// Whose data the stream carries now.
#[derive(Clone, Copy)]
struct Incoming {
    slot: Slot,
    /// This PDU completes the command's data.
    last: bool,
}

/// The state machine. See the module for the order of calls.
pub struct Connection {
    limits: Limits,
    state: State,
    reader: Reader,
    writer: Writer,
    queue: Option<Queue>,
    commands: Slots<Command>,
    incoming: Option<Incoming>,
    /// Submission queue entries consumed, modulo the queue's size (SQHD).
    submission_head: u16,
}

impl Connection {
    /// A connection on which nothing has arrived yet.
    ///
    /// # Panics
    /// If `limits.host_data` is not a multiple of 4 of at least 4096.
    pub fn new(limits: Limits) -> Self {
        assert!(limits.host_data >= 4096 && limits.host_data.is_multiple_of(4), "MAXH2CDATA (TCP 3.6.2.3)");
        Self {
            limits,
            state: State::Initializing,
            reader: Reader::new(),
            writer: Writer::new(),
            queue: None,
            // Connect comes alone.
            commands: Slots::new(1),
            incoming: None,
            submission_head: 0,
        }
    }

    /// Consumes input up to the next event; `None` when all of it is used and more is needed.
    ///
    /// # Errors
    /// The connection has to end.
    ///
    /// # Panics
    /// If called again after an error, or before [`Self::accept`] answered [`Event::Initialize`].
    #[inline]
    pub fn receive<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, Fault> {
        let result = self.next_event(input);
        if result.is_err() {
            self.state = State::Ended;
        }
        result
    }

    /// What comes next in the stream, if it is data for a command: whoever receives it into its place tells so with
    /// [`Self::placed`], instead of feeding it to [`Self::receive`]. To be asked when `receive` has returned `None`.
    #[inline]
    pub fn awaited(&mut self) -> Option<Awaited> {
        let slot = self.incoming?.slot;
        let length = self.reader.missing_data();
        let offset = self.commands.get_mut(slot)?.received;
        (length > 0).then_some(Awaited { slot, offset, length })
    }

    /// Takes the first bytes of what is [`Self::awaited`], which are in their place already. Call [`Self::receive`] next, also
    /// without any input.
    ///
    /// # Panics
    /// If they are more than what is awaited.
    pub fn placed(&mut self, bytes: &[u8]) {
        self.reader.take_data(bytes);
        // An event of a payload says what is known already.
        let _ = self.payload(bytes);
    }

    /// Commands that are not answered yet.
    pub fn in_flight(&self) -> usize {
        self.commands.in_use()
    }

    /// Answers the host's ICReq with ICResp.
    ///
    /// # Panics
    /// If no [`Event::Initialize`] is waiting for it.
    pub fn accept(&mut self, sink: &mut impl HeaderSink) {
        let State::Accepting(request) = self.state else { panic!("no ICReq to answer") };
        let digests = Digests {
            header: request.header_digest && self.limits.digests.header,
            data: request.data_digest && self.limits.digests.data,
        };
        let response = Initialize {
            format_version: 0,
            data_alignment: 4,
            header_digest: digests.header,
            data_digest: digests.data,
            maximum: self.limits.host_data,
        };
        sink.push(&response.encode_response());
        self.reader.set_digests(digests);
        self.writer = Writer { digests, data_alignment: request.data_alignment };
        self.state = State::Open;
    }

    /// Makes the connection a queue: a Connect succeeded. Call it before responding to the Connect.
    ///
    /// # Panics
    /// If the connection is a queue already, or `queue.entries` is not 1 to [`SLOTS_MAX`].
    pub fn connected(&mut self, queue: Queue) {
        assert!(self.queue.is_none(), "connected twice");
        assert!((1..=SLOTS_MAX as u32).contains(&queue.entries), "{} queue entries", queue.entries);
        self.commands.grow(queue.entries as usize);
        self.queue = Some(queue);
        // The Connect itself took the first entry.
        self.consume_entry();
    }

    /// Asks the host for all of a command's data (R2T).
    ///
    /// # Panics
    /// If the command's transfer is not [`Transfer::Solicited`], or its data was asked for already.
    pub fn request_data(&mut self, slot: Slot, sink: &mut impl HeaderSink) {
        let Some(command) = self.commands.get_mut(slot) else { panic!("{slot:?} is not in flight") };
        assert!(command.phase == Phase::Executing && command.expected > 0, "nothing to ask for");
        command.phase = Phase::Soliciting;
        let header = DataHeader {
            command_id: command.command_id,
            transfer_tag: slot.tag(),
            offset: 0,
            length: command.expected,
        };
        let common = self.writer.common(PduType::ReadyToTransfer, 0, 0);
        self.writer.write(header.encode(&common), sink);
    }

    /// Writes the header of one C2HData with all of a command's result, `length` bytes; queue them next, then call
    /// [`Self::write_data_digest`]. Returns whether this also completed the command successfully; if not, respond.
    ///
    /// # Panics
    /// If the command is not executing, or `length` is 0.
    #[inline]
    #[must_use = "when false, the command still wants its response"]
    pub fn write_data_header(&mut self, slot: Slot, length: u32, sink: &mut impl HeaderSink) -> bool {
        let Some(command) = self.commands.get_mut(slot) else { panic!("{slot:?} is not in flight") };
        assert!(command.phase == Phase::Executing && length > 0, "no data to send for this command");
        // Only without SQ flow control: otherwise the host needs the response's SQ head (TCP 3.3.2.2).
        let completes = self.queue.is_some_and(|queue| queue.flow_control_disabled);
        let flags = if completes { FLAG_LAST | FLAG_SUCCESS } else { FLAG_LAST };
        let header = DataHeader { command_id: command.command_id, transfer_tag: 0, offset: 0, length };
        let common = self.writer.common(PduType::ControllerData, flags, length);
        self.writer.write(header.encode(&common), sink);
        if completes {
            self.commands.remove(slot);
        }
        completes
    }

    /// Writes the digest of the payload queued after a data header; nothing if none is agreed on.
    #[inline]
    pub fn write_data_digest<'a>(&self, payload: impl IntoIterator<Item = &'a [u8]>, sink: &mut impl HeaderSink) {
        self.writer.write_data_digest(payload, sink);
    }

    /// Completes a command (CapsuleResp). Its slot is free afterwards.
    ///
    /// # Panics
    /// If the command is not in flight (it was answered before: I34), or its data was asked for and is not here yet.
    #[inline]
    pub fn respond(&mut self, slot: Slot, completion: Completion, sink: &mut impl HeaderSink) {
        let Some(command) = self.commands.remove(slot) else { panic!("{slot:?} is not in flight") };
        assert!(command.phase != Phase::Soliciting, "the host is still sending data for this command");
        let entry =
            CompletionEntry { completion, submission_head: self.submission_head, command_id: command.command_id };
        self.write_response(entry, sink);
    }

    /// Completes a Connect that turned SQ flow control off: SQHD FFFFh agrees to it (Base 6.3).
    ///
    /// # Panics
    /// As [`Self::respond`].
    pub fn respond_to_connect(&mut self, slot: Slot, completion: Completion, sink: &mut impl HeaderSink) {
        let Some(command) = self.commands.remove(slot) else { panic!("{slot:?} is not in flight") };
        let disabled = self.queue.is_some_and(|queue| queue.flow_control_disabled);
        let submission_head = if disabled { u16::MAX } else { self.submission_head };
        self.write_response(CompletionEntry { completion, submission_head, command_id: command.command_id }, sink);
    }

    /// Tells the host why its connection ends (C2HTermReq), quoting the header at fault.
    pub fn terminate(&self, error: FatalError, sink: &mut impl HeaderSink) {
        let quote = self.reader.quote();
        sink.push(&error.encode(PduType::ControllerTerminate, quote.len()));
        sink.push(quote);
    }

    fn write_response(&self, entry: CompletionEntry, sink: &mut impl HeaderSink) {
        let common = self.writer.common(PduType::Response, 0, 0);
        self.writer.write(pdu::encode_response(&common, &entry), sink);
    }

    fn next_event<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, Fault> {
        assert!(matches!(self.state, State::Initializing | State::Open), "not receiving now: {:?}", self.state);
        loop {
            let (state, limits, queue) = (self.state, &self.limits, &self.queue);
            let Some(piece) = self.reader.next(input, |pdu_type| data_limit(pdu_type, state, limits, queue))? else {
                return Ok(None);
            };
            let event = match piece {
                Piece::Header { pdu_type, flags, data_length } => self.header(pdu_type, flags, data_length)?,
                Piece::Data(bytes) => self.payload(bytes),
                Piece::DataEnd { intact } => self.payload_end(intact),
            };
            // None: data for a command that is answered already, or not the last H2CData of a command.
            if event.is_some() {
                return Ok(event);
            }
        }
    }

    /// A whole header; `None` if nothing is to be done for it yet.
    fn header<'a>(&mut self, pdu_type: PduType, flags: u8, data_length: u32) -> Result<Option<Event<'a>>, Fault> {
        match pdu_type {
            PduType::InitializeRequest => {
                let request =
                    Initialize::parse_request(&self.reader.header()).map_err(FatalError::UnsupportedParameter)?;
                self.state = State::Accepting(request);
                Ok(Some(Event::Initialize))
            }
            PduType::HostTerminate => Err(Fault::TerminatedByHost(FatalError::parse(&self.reader.header()))),
            PduType::Command => self.command(data_length).map(Some),
            PduType::HostData => {
                self.host_data(flags, data_length)?;
                Ok(None)
            }
            PduType::InitializeResponse
            | PduType::ControllerTerminate
            | PduType::Response
            | PduType::ControllerData
            | PduType::ReadyToTransfer => Err(Fault::Protocol(FatalError::InvalidHeaderField(field::PDU_TYPE))),
        }
    }

    #[inline]
    fn command<'a>(&mut self, data_length: u32) -> Result<Event<'a>, Fault> {
        let entry = pdu::parse_command(&self.reader.header());
        let transfer = self.transfer(&entry, data_length);
        let (phase, expected) = match transfer {
            Ok(Transfer::InCapsule { length }) => (Phase::InCapsule, length),
            Ok(Transfer::Solicited { length }) => (Phase::Executing, length),
            Ok(Transfer::None | Transfer::ToHost { .. }) | Err(_) => (Phase::Executing, 0),
        };
        let command = Command { command_id: entry.command_id(), phase, expected, received: 0, damaged: false };
        // More commands than the queue has entries.
        let slot = self.commands.insert(command).ok_or(FatalError::SequenceError)?;
        self.incoming = (phase == Phase::InCapsule).then_some(Incoming { slot, last: true });
        self.consume_entry();
        Ok(Event::Command { slot, entry, transfer })
    }

    fn consume_entry(&mut self) {
        if let Some(queue) = self.queue {
            let next = u32::from(self.submission_head) + 1;
            self.submission_head = if next == queue.entries { 0 } else { next as u16 };
        }
    }

    /// How a command's data moves, from its opcode, its SGL and the data in its capsule.
    fn transfer(&self, entry: &Submission, in_capsule: u32) -> Result<Transfer, Status> {
        let direction = match entry.opcode() {
            opcode::FABRICS => Direction::of(entry.fabrics_type()),
            opcode => Direction::of(opcode),
        };
        let transfer = match (direction, entry.sgl()) {
            (Direction::None, _) => Transfer::None,
            (Direction::Both, _) => return Err(Status::InvalidOpcode),
            (_, _) if entry.psdt() != 0b01 => return Err(Status::InvalidField),
            (Direction::ToHost, Sgl::Transport { length }) => Transfer::ToHost { length },
            (Direction::ToController, Sgl::Transport { length: 0 } | Sgl::InCapsule { length: 0, .. }) => {
                Transfer::None
            }
            (Direction::ToController, Sgl::Transport { length }) => Transfer::Solicited { length },
            (Direction::ToController, Sgl::InCapsule { offset, .. }) if offset != 0 => {
                return Err(Status::SglOffsetInvalid);
            }
            (Direction::ToController, Sgl::InCapsule { length, .. }) => Transfer::InCapsule { length },
            (_, _) => return Err(Status::SglDescriptorTypeInvalid),
        };
        let announced = if let Transfer::InCapsule { length } = transfer { length } else { 0 };
        if announced != in_capsule {
            return Err(Status::DataSglLengthInvalid);
        }
        // More than MDTS (Base 5.17.2.1).
        if transfer.length() > self.limits.transfer && !matches!(transfer, Transfer::ToHost { .. }) {
            return Err(Status::InvalidField);
        }
        Ok(transfer)
    }

    /// Checks that H2CData is what an R2T asked for, in order.
    fn host_data(&mut self, flags: u8, data_length: u32) -> Result<(), FatalError> {
        let header = DataHeader::parse(&self.reader.header());
        let slot = Slot::from_tag(header.transfer_tag);
        let invalid = FatalError::InvalidHeaderField;
        let command = self
            .commands
            .get_mut(slot)
            .filter(|command| command.phase == Phase::Soliciting)
            .ok_or(invalid(field::TTAG))?;
        if header.command_id != command.command_id {
            return Err(invalid(field::CCCID));
        }
        if header.length > self.limits.host_data {
            return Err(FatalError::LimitExceeded);
        }
        if header.length != data_length || data_length == 0 {
            return Err(invalid(field::DATAL));
        }
        let end = header.offset.checked_add(header.length).ok_or(FatalError::DataOutOfRange)?;
        if header.offset != command.received || end > command.expected {
            return Err(FatalError::DataOutOfRange);
        }
        let last = end == command.expected;
        if (flags & FLAG_LAST != 0) != last {
            return Err(invalid(field::FLAGS));
        }
        self.incoming = Some(Incoming { slot, last });
        Ok(())
    }

    #[inline]
    fn payload<'a>(&mut self, bytes: &'a [u8]) -> Option<Event<'a>> {
        let slot = self.incoming?.slot;
        let command = self.commands.get_mut(slot)?;
        let offset = command.received;
        // Not beyond `expected`, which is 32 bits wide.
        command.received += bytes.len() as u32;
        Some(Event::Payload { slot, offset, bytes })
    }

    #[inline]
    fn payload_end<'a>(&mut self, intact: bool) -> Option<Event<'a>> {
        let Incoming { slot, last } = self.incoming.take()?;
        let command = self.commands.get_mut(slot)?;
        command.damaged |= !intact;
        if !last {
            return None;
        }
        command.phase = Phase::Executing;
        // Answered with this status, not retried by the host on another command's account (TCP 3.3.2.1).
        let result = if command.damaged { Err(Status::TransientTransportError) } else { Ok(()) };
        Some(Event::PayloadEnd { slot, result })
    }
}

/// How much data a PDU of this type may carry in this state, or why it may not come.
#[inline]
fn data_limit(pdu_type: PduType, state: State, limits: &Limits, queue: &Option<Queue>) -> Result<u32, FatalError> {
    match (pdu_type, state) {
        (PduType::HostTerminate, _) => Ok(TERMINATE_DATA_MAX as u32),
        (PduType::InitializeRequest, State::Initializing) => Ok(0),
        (PduType::Command, State::Open) => match queue {
            Some(queue) if queue.id != 0 => Ok(limits.io_capsule_data),
            _ => Ok(limits.admin_capsule_data),
        },
        (PduType::HostData, State::Open) => Ok(limits.host_data),
        (PduType::InitializeRequest | PduType::Command | PduType::HostData, _) => Err(FatalError::SequenceError),
        // What only a controller sends.
        (_, _) => Err(FatalError::InvalidHeaderField(field::PDU_TYPE)),
    }
}
