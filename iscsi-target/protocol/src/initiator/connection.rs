//! One connection in its full feature phase, as the initiator sees it: commands in, bytes out; bytes in, completions out.
//!
//! # Call order
//! 1. Feed received bytes to [`Connection::receive`] until it returns `None`, always.
//! 2. [`Connection::submit`] a command. Queue so much of its data as it says and call [`Connection::write_data_end`]. Then, and at
//!    each [`Event::DataRequested`]: call [`Connection::write_data_header`] until it returns `None`, each time queueing the range it
//!    names and calling [`Connection::write_data_end`].
//! 3. [`Event::Completed`] ends a command; exactly one comes for each (I34), unless it is aborted.
//! 4. An error from `receive`: close.
//!
//! ```text
//!          submit                     answer
//!   free ──────────▶ InFlight ────────────────────▶ free
//!                     │   ▲  R2T: its range is sent, in parts that the target takes
//!                     └───┘
//! ```

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::ops::Range;

use crate::framing::{Piece, Reader, Writer};
use crate::negotiation::Parameters;
use crate::serial;
use crate::sink::HeaderSink;
use crate::slots::{SLOTS_MAX, Slots};
use crate::violation::Violation;
use crate::wire::pdu::{Header, Numbers, Opcode, RESERVED_TAG, RequestNumbers, additional_length, field};
use crate::wire::request::{
    CDB_SIZE, DataOut, LogoutReason, LogoutRequest, NopOut, ScsiCommand, TaskFunction, TaskManagementRequest,
    TextRequest,
};
use crate::wire::response::{
    AsyncEvent, AsyncMessage, DataIn, LogoutResponse, NopIn, ReadyToTransfer, Reject, Residual, ScsiResponse,
    TaskManagementResponse, TextResponse,
};

pub use crate::slots::Slot;

/// What connections of a session share: command numbers.
#[derive(Debug)]
pub struct Session {
    tsih: u16,
    parameters: Parameters,
    next: u32,
    last: u32,
}

impl Session {
    pub(super) fn new(tsih: u16, parameters: Parameters, next: u32, last: u32) -> Self {
        Self { tsih, parameters, next, last }
    }

    /// Target Session Identifying Handle (TSIH).
    pub fn tsih(&self) -> u16 {
        self.tsih
    }

    /// What its first connection agreed on.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// CmdSN of the next command.
    pub fn next_cmd_sn(&self) -> u32 {
        self.next
    }

    /// Whether the target takes one more command.
    pub fn is_open(&self) -> bool {
        !serial::before(self.last, self.next)
    }

    fn take(&mut self, immediate: bool) -> Option<u32> {
        let number = self.next;
        if immediate {
            return Some(number);
        }
        if !self.is_open() {
            return None;
        }
        self.next = number.wrapping_add(1);
        Some(number)
    }

    fn learn(&mut self, numbers: &Numbers) {
        // What connections bring may come out of order.
        if serial::before(self.last, numbers.max_cmd_sn) {
            self.last = numbers.max_cmd_sn;
        }
    }
}

/// A command's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// None.
    None,
    /// At most so many bytes come.
    Receive(u32),
    /// So many bytes go.
    Send(u32),
}

/// A command to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command {
    /// Logical Unit Number (LUN).
    pub lun: u64,
    /// Command Descriptor Block (CDB).
    pub cdb: [u8; CDB_SIZE],
    /// Its data.
    pub data: Data,
    /// To be delivered at once.
    pub immediate: bool,
}

/// A command on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Submitted {
    /// Its place until it completes.
    pub slot: Slot,
    /// Bytes of its data to queue now.
    pub immediate_data: u32,
}

/// What arrived.
#[derive(Debug, PartialEq)]
pub enum Event<'a> {
    /// Data of a command: copy `bytes` to `offset` of its buffer.
    Data {
        /// The command.
        slot: Slot,
        /// Bytes from the start of its data.
        offset: u32,
        /// Part of the received chunk.
        bytes: &'a [u8],
    },
    /// The target is ready for data: see [`Connection::write_data_header`].
    DataRequested {
        /// The command.
        slot: Slot,
    },
    /// A command ended; its slot is free.
    Completed {
        /// The command.
        slot: Slot,
        /// SCSI status.
        status: u8,
        /// How far its data is from what was expected.
        residual: Residual,
        /// Bytes of data that came.
        received: u32,
        /// All of them intact.
        intact: bool,
        /// Sense data.
        sense: Vec<u8>,
    },
    /// A task management request ended.
    TaskManaged {
        /// The request.
        slot: Slot,
        /// The target's response.
        response: u8,
    },
    /// Text came; with `more`, ask for it with [`Connection::continue_text`].
    Text {
        /// The request; its slot is free unless there is more.
        slot: Slot,
        /// The text, or a part of it.
        text: Vec<u8>,
        /// The target's tag for the next request.
        more: Option<u32>,
    },
    /// A ping was answered.
    Pong {
        /// The ping.
        slot: Slot,
        /// Its data.
        data: Vec<u8>,
    },
    /// A logout was answered.
    LoggedOut {
        /// The target's response.
        response: u8,
    },
    /// The target has something to say.
    Async(Option<AsyncEvent>),
    /// The target rejected a PDU.
    Rejected {
        /// Why.
        reason: u8,
        /// Its header.
        header: Option<Header>,
    },
}

/// What is in flight.
struct InFlight {
    kind: Kind,
    lun: u64,
    cmd_sn: u32,
    received: u32,
    damaged: bool,
    /// DataSN of the next Data-In.
    data_sn: u32,
    /// R2TSN of the next R2T.
    r2t_sn: u32,
    /// What is to be sent, in order: ranges and their transfer tags.
    outgoing: VecDeque<Outgoing>,
}

struct Outgoing {
    range: Range<u32>,
    transfer_tag: u32,
    data_sn: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Command(Data),
    Management,
    Text,
    Ping,
    Logout,
}

enum Incoming {
    Data {
        slot: Slot,
        status: Option<(u8, Residual)>,
    },
    /// Data that is kept until it is complete, in `kept`.
    Kept(Header),
}

/// The state machine. See the module for the order of calls.
pub struct Connection {
    parameters: Parameters,
    cid: u16,
    reader: Reader,
    writer: Writer,
    /// StatSN of the next status (ExpStatSN).
    expected_status: u32,
    in_flight: Slots<InFlight>,
    incoming: Option<Incoming>,
    kept: Vec<u8>,
}

impl Connection {
    pub(super) fn new(mut reader: Reader, parameters: Parameters, expected_status: u32, cid: u16) -> Self {
        reader.set_digests(parameters.digests);
        Self {
            parameters,
            cid,
            reader,
            writer: Writer { digests: parameters.digests },
            expected_status,
            in_flight: Slots::new(SLOTS_MAX),
            incoming: None,
            kept: Vec::new(),
        }
    }

    /// What this connection agreed on.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Connection ID (CID).
    pub fn cid(&self) -> u16 {
        self.cid
    }

    /// What has not ended.
    pub fn in_flight(&self) -> usize {
        self.in_flight.in_use()
    }

    /// Writes a command; `None` if the target takes no more now.
    #[inline]
    pub fn submit(
        &mut self,
        session: &mut Session,
        command: &Command,
        sink: &mut impl HeaderSink,
    ) -> Option<Submitted> {
        let (slot, numbers) = self.begin(session, Kind::Command(command.data), command.lun, command.immediate)?;
        let Parameters { immediate_data, initial_r2t, first_burst, send_segment, .. } = self.parameters;
        let (length, sends) = match command.data {
            Data::None => (0, false),
            Data::Receive(length) => (length, false),
            Data::Send(length) => (length, true),
        };
        let first = if sends { length.min(first_burst) } else { 0 };
        let with_command = if immediate_data { first.min(send_segment) } else { 0 };
        let unsolicited = if initial_r2t { with_command } else { first };
        let header = ScsiCommand {
            last: unsolicited == with_command,
            read: matches!(command.data, Data::Receive(1..)),
            write: sends && length > 0,
            attribute: 1,
            lun: command.lun,
            task_tag: slot.tag(),
            expected_length: length,
            numbers,
            cdb: command.cdb,
        };
        self.writer.write(header.encode(), with_command, sink);
        if unsolicited > with_command
            && let Some(in_flight) = self.in_flight.get_mut(slot)
        {
            let range = with_command..unsolicited;
            in_flight.outgoing.push_back(Outgoing { range, transfer_tag: RESERVED_TAG, data_sn: 0 });
        }
        Some(Submitted { slot, immediate_data: with_command })
    }

    /// Writes the header of the next Data-Out that a command has to send and returns which range of its data to queue after it;
    /// `None` when all of it is written.
    pub fn write_data_header(&mut self, slot: Slot, sink: &mut impl HeaderSink) -> Option<Range<u32>> {
        let in_flight = self.in_flight.get_mut(slot)?;
        let outgoing = in_flight.outgoing.front_mut()?;
        let start = outgoing.range.start;
        let end = outgoing.range.end.min(start.saturating_add(self.parameters.send_segment));
        let last = end == outgoing.range.end;
        let header = DataOut {
            last,
            lun: in_flight.lun,
            task_tag: slot.tag(),
            transfer_tag: outgoing.transfer_tag,
            expected_stat_sn: self.expected_status,
            data_sn: outgoing.data_sn,
            offset: start,
        };
        outgoing.range.start = end;
        outgoing.data_sn += 1;
        if last {
            in_flight.outgoing.pop_front();
        }
        self.writer.write(header.encode(), end - start, sink);
        Some(start..end)
    }

    /// Writes what follows the payload queued after a header: padding, and a digest if one is agreed on.
    #[inline]
    pub fn write_data_end<'a>(&self, payload: impl IntoIterator<Item = &'a [u8]>, sink: &mut impl HeaderSink) {
        self.writer.write_data_end(payload, sink);
    }

    /// Writes an immediate task management request; `task` is the one to abort.
    pub fn manage(
        &mut self,
        session: &mut Session,
        function: TaskFunction,
        lun: u64,
        task: Option<Slot>,
        sink: &mut impl HeaderSink,
    ) -> Option<Slot> {
        let (slot, numbers) = self.begin(session, Kind::Management, lun, true)?;
        let referenced = task.and_then(|task| self.in_flight.get_mut(task));
        let request = TaskManagementRequest {
            function: function as u8,
            lun,
            task_tag: slot.tag(),
            referenced_tag: task.map_or(RESERVED_TAG, Slot::tag),
            numbers,
            referenced_cmd_sn: referenced.map_or(0, |task| task.cmd_sn),
        };
        self.writer.write(request.encode(), 0, sink);
        Some(slot)
    }

    /// Forgets a command that was aborted: nothing more comes for it.
    pub fn forget(&mut self, slot: Slot) {
        self.in_flight.remove(slot);
    }

    /// Writes a text request.
    pub fn send_text(&mut self, session: &mut Session, text: &[u8], sink: &mut impl HeaderSink) -> Option<Slot> {
        let (slot, numbers) = self.begin(session, Kind::Text, 0, true)?;
        let request =
            TextRequest { last: true, continues: false, task_tag: slot.tag(), transfer_tag: RESERVED_TAG, numbers };
        self.writer.write_with_data(request.encode(), text, sink);
        Some(slot)
    }

    /// Asks for the rest of a text.
    pub fn continue_text(&mut self, session: &Session, slot: Slot, transfer_tag: u32, sink: &mut impl HeaderSink) {
        let numbers = self.request_numbers(session.next, true);
        let request = TextRequest { last: true, continues: false, task_tag: slot.tag(), transfer_tag, numbers };
        self.writer.write(request.encode(), 0, sink);
    }

    /// Writes a ping with this data.
    pub fn ping(&mut self, session: &mut Session, data: &[u8], sink: &mut impl HeaderSink) -> Option<Slot> {
        let (slot, numbers) = self.begin(session, Kind::Ping, 0, true)?;
        let ping = NopOut { lun: 0, task_tag: slot.tag(), transfer_tag: RESERVED_TAG, numbers };
        self.writer.write_with_data(ping.encode(), data, sink);
        Some(slot)
    }

    /// Writes a logout.
    pub fn logout(
        &mut self,
        session: &mut Session,
        reason: LogoutReason,
        cid: u16,
        sink: &mut impl HeaderSink,
    ) -> Option<Slot> {
        let (slot, numbers) = self.begin(session, Kind::Logout, 0, true)?;
        let request = LogoutRequest { reason: reason as u8, task_tag: slot.tag(), cid, numbers };
        self.writer.write(request.encode(), 0, sink);
        Some(slot)
    }

    /// Consumes input up to the next event; `None` when all of it is used and more is needed. Answers the target's pings.
    ///
    /// # Errors
    /// The connection has to end.
    #[inline]
    pub fn receive<'a>(
        &mut self,
        session: &mut Session,
        input: &mut &'a [u8],
        sink: &mut impl HeaderSink,
    ) -> Result<Option<Event<'a>>, Violation> {
        loop {
            let segment = self.parameters.receive_segment;
            let Some(piece) = self.reader.next(input, |header| limit(header, segment))? else {
                return Ok(None);
            };
            let event = match piece {
                Piece::Header { data_length } => self.header(session, data_length, sink)?,
                Piece::Data(bytes) => self.data(bytes),
                Piece::DataEnd { intact } => self.data_end(session, intact, sink)?,
            };
            if event.is_some() {
                return Ok(event);
            }
        }
    }

    fn begin(
        &mut self,
        session: &mut Session,
        kind: Kind,
        lun: u64,
        immediate: bool,
    ) -> Option<(Slot, RequestNumbers)> {
        if self.in_flight.in_use() == SLOTS_MAX {
            return None;
        }
        let cmd_sn = session.take(immediate)?;
        let slot = self.in_flight.insert(InFlight {
            kind,
            lun,
            cmd_sn,
            received: 0,
            damaged: false,
            data_sn: 0,
            r2t_sn: 0,
            outgoing: VecDeque::new(),
        })?;
        Some((slot, self.request_numbers(cmd_sn, immediate)))
    }

    fn request_numbers(&self, cmd_sn: u32, immediate: bool) -> RequestNumbers {
        RequestNumbers { immediate, cmd_sn, expected_stat_sn: self.expected_status }
    }

    fn header<'a>(
        &mut self,
        session: &mut Session,
        data_length: u32,
        sink: &mut impl HeaderSink,
    ) -> Result<Option<Event<'a>>, Violation> {
        let header = self.reader.header();
        match Opcode::of(&header) {
            Some(Opcode::DataIn) => self.data_in(session, &header, data_length),
            Some(Opcode::ReadyToTransfer) => self.ready_to_transfer(session, &header).map(Some),
            _ if data_length > 0 => {
                self.incoming = Some(Incoming::Kept(header));
                self.kept.clear();
                Ok(None)
            }
            _ => self.complete(session, &header, sink),
        }
    }

    /// Checks that a status is the next one.
    fn take_status(&mut self, session: &mut Session, numbers: &Numbers) -> Result<(), Violation> {
        if numbers.stat_sn != self.expected_status {
            return Err(Violation::Sequence(field::SEQUENCE));
        }
        self.expected_status = self.expected_status.wrapping_add(1);
        session.learn(numbers);
        Ok(())
    }

    /// Checks that Data-In is for a command that receives, in order and within its buffer.
    fn data_in<'a>(
        &mut self,
        session: &mut Session,
        header: &Header,
        data_length: u32,
    ) -> Result<Option<Event<'a>>, Violation> {
        let data = DataIn::parse(header);
        let slot = Slot::from_tag(data.task_tag);
        let in_flight = self.in_flight.get_mut(slot).ok_or(Violation::Field(field::TASK_TAG))?;
        let Kind::Command(Data::Receive(room)) = in_flight.kind else { return Err(Violation::Field(field::TASK_TAG)) };
        if data.data_sn != in_flight.data_sn {
            return Err(Violation::Sequence(field::DATA_SEQUENCE));
        }
        if data.offset != in_flight.received {
            return Err(Violation::Sequence(field::BUFFER_OFFSET));
        }
        if data_length == 0 || data_length > room - in_flight.received {
            return Err(Violation::DataTooLong);
        }
        in_flight.data_sn += 1;
        if data.status.is_some() {
            self.take_status(session, &data.numbers)?;
        } else {
            session.learn(&data.numbers);
        }
        self.incoming = Some(Incoming::Data { slot, status: data.status });
        Ok(None)
    }

    /// Checks that an R2T is for a command that sends, and within its data.
    fn ready_to_transfer<'a>(&mut self, session: &mut Session, header: &Header) -> Result<Event<'a>, Violation> {
        let r2t = ReadyToTransfer::parse(header);
        session.learn(&r2t.numbers);
        let slot = Slot::from_tag(r2t.task_tag);
        let Parameters { outstanding_r2t, max_burst, .. } = self.parameters;
        let in_flight = self.in_flight.get_mut(slot).ok_or(Violation::Field(field::TASK_TAG))?;
        let Kind::Command(Data::Send(length)) = in_flight.kind else { return Err(Violation::Field(field::TASK_TAG)) };
        if r2t.r2t_sn != in_flight.r2t_sn {
            return Err(Violation::Sequence(field::DATA_SEQUENCE));
        }
        let end = r2t.offset.checked_add(r2t.length).filter(|end| *end <= length && r2t.length > 0);
        let Some(end) = end.filter(|_| r2t.length <= max_burst && in_flight.outgoing.len() < outstanding_r2t as usize)
        else {
            return Err(Violation::Field(field::DESIRED_LENGTH));
        };
        in_flight.r2t_sn += 1;
        in_flight.outgoing.push_back(Outgoing { range: r2t.offset..end, transfer_tag: r2t.transfer_tag, data_sn: 0 });
        Ok(Event::DataRequested { slot })
    }

    fn data<'a>(&mut self, bytes: &'a [u8]) -> Option<Event<'a>> {
        match self.incoming {
            Some(Incoming::Data { slot, .. }) => {
                let in_flight = self.in_flight.get_mut(slot)?;
                let offset = in_flight.received;
                // Not beyond the buffer, whose length is 32 bits wide.
                in_flight.received += bytes.len() as u32;
                Some(Event::Data { slot, offset, bytes })
            }
            _ => {
                // At most a segment.
                self.kept.extend_from_slice(bytes);
                None
            }
        }
    }

    fn data_end<'a>(
        &mut self,
        session: &mut Session,
        intact: bool,
        sink: &mut impl HeaderSink,
    ) -> Result<Option<Event<'a>>, Violation> {
        match self.incoming.take() {
            Some(Incoming::Data { slot, status }) => {
                let Some(in_flight) = self.in_flight.get_mut(slot) else { return Ok(None) };
                in_flight.damaged |= !intact;
                Ok(status.and_then(|(status, residual)| self.completed(slot, status, residual, Vec::new())))
            }
            // What a damaged answer would have said is lost, and cannot be had again at this error recovery level.
            Some(Incoming::Kept(_)) if !intact => Err(Violation::Field(field::DATA_LENGTH)),
            Some(Incoming::Kept(header)) => self.complete(session, &header, sink),
            None => Ok(None),
        }
    }

    fn completed<'a>(&mut self, slot: Slot, status: u8, residual: Residual, sense: Vec<u8>) -> Option<Event<'a>> {
        let in_flight = self.in_flight.remove(slot)?;
        let (received, intact) = (in_flight.received, !in_flight.damaged);
        Some(Event::Completed { slot, status, residual, received, intact, sense })
    }

    /// A PDU that is no data is here, with what follows it.
    fn complete<'a>(
        &mut self,
        session: &mut Session,
        header: &Header,
        sink: &mut impl HeaderSink,
    ) -> Result<Option<Event<'a>>, Violation> {
        let kept = core::mem::take(&mut self.kept);
        let event = match Opcode::of(header) {
            Some(Opcode::ScsiResponse) => {
                let response = ScsiResponse::parse(header);
                self.take_status(session, &response.numbers)?;
                let slot = self.expect(response.task_tag, |kind| matches!(kind, Kind::Command(_)))?;
                let sense = kept.get(2..).unwrap_or_default().to_vec();
                self.completed(slot, response.status, response.residual, sense)
            }
            Some(Opcode::TaskManagementResponse) => {
                let response = TaskManagementResponse::parse(header);
                self.take_status(session, &response.numbers)?;
                let slot = self.expect(response.task_tag, |kind| kind == Kind::Management)?;
                self.in_flight.remove(slot);
                Some(Event::TaskManaged { slot, response: response.response })
            }
            Some(Opcode::TextResponse) => {
                let response = TextResponse::parse(header);
                self.take_status(session, &response.numbers)?;
                let slot = self.expect(response.task_tag, |kind| kind == Kind::Text)?;
                if response.last {
                    self.in_flight.remove(slot);
                }
                let more = (!response.last).then_some(response.transfer_tag);
                Some(Event::Text { slot, text: kept, more })
            }
            Some(Opcode::LogoutResponse) => {
                let response = LogoutResponse::parse(header);
                self.take_status(session, &response.numbers)?;
                let slot = self.expect(response.task_tag, |kind| kind == Kind::Logout)?;
                self.in_flight.remove(slot);
                Some(Event::LoggedOut { response: response.response })
            }
            Some(Opcode::NopIn) => self.pinged(session, header, kept, sink)?,
            Some(Opcode::AsyncMessage) => {
                let message = AsyncMessage::parse(header);
                self.take_status(session, &message.numbers)?;
                Some(Event::Async(message.event))
            }
            Some(Opcode::Reject) => {
                let reject = Reject::parse(header);
                self.take_status(session, &reject.numbers)?;
                Some(Event::Rejected { reason: reject.reason, header: Reject::quoted(&kept) })
            }
            _ => return Err(Violation::UnexpectedPdu),
        };
        Ok(event)
    }

    /// An answer to one of our pings, or a ping of the target.
    fn pinged<'a>(
        &mut self,
        session: &mut Session,
        header: &Header,
        data: Vec<u8>,
        sink: &mut impl HeaderSink,
    ) -> Result<Option<Event<'a>>, Violation> {
        let ping = NopIn::parse(header);
        if ping.task_tag != RESERVED_TAG {
            self.take_status(session, &ping.numbers)?;
            let slot = self.expect(ping.task_tag, |kind| kind == Kind::Ping)?;
            self.in_flight.remove(slot);
            return Ok(Some(Event::Pong { slot, data }));
        }
        session.learn(&ping.numbers);
        if ping.transfer_tag != RESERVED_TAG {
            let numbers = self.request_numbers(session.next, true);
            let answer = NopOut { lun: 0, task_tag: RESERVED_TAG, transfer_tag: ping.transfer_tag, numbers };
            self.writer.write(answer.encode(), 0, sink);
        }
        Ok(None)
    }

    /// The slot of a task tag that an answer brings.
    fn expect(&mut self, task_tag: u32, is_right: impl Fn(Kind) -> bool) -> Result<Slot, Violation> {
        let slot = Slot::from_tag(task_tag);
        let known = slot.tag() == task_tag && self.in_flight.get_mut(slot).is_some_and(|found| is_right(found.kind));
        if known { Ok(slot) } else { Err(Violation::Field(field::TASK_TAG)) }
    }
}

/// How much data a PDU may carry, or why it may not come.
fn limit(header: &Header, segment: u32) -> Result<u32, Violation> {
    match Opcode::of(header) {
        Some(opcode) if opcode.is_targets() && opcode != Opcode::LoginResponse => {}
        _ => return Err(Violation::UnexpectedPdu),
    }
    if additional_length(header) > 0 {
        return Err(Violation::AdditionalHeader);
    }
    Ok(segment)
}
