//! One connection in its full feature phase, as the target sees it: bytes in, events out; completions in, headers out.
//!
//! # Call order
//! Feed received bytes to [`Connection::receive`] until it returns `None`, and act on each event. `None` with input left means
//! that the connection waits for its turn ([`Connection::is_waiting`]): call again with the same input when
//! [`Session::expected`] has moved, and read nothing meanwhile.
//!
//! 1. [`Event::Command`]: answer it exactly once (I34), now or later: with [`Connection::write_data_header`] and the payload, or
//!    with [`Connection::respond`]. Before that, for [`Transfer::FromInitiator`]:
//!    - with `unsolicited` data, wait for [`Event::PayloadEnd`];
//!    - if more is wanted, [`Connection::request_data`] and wait for [`Event::PayloadEnd`] again. With an error in it, respond with
//!      that sense.
//! 2. [`Event::TaskManagement`]: [`Connection::abort`] on all connections that it concerns, wait until what is at the device has
//!    returned (answer it as ever: nothing goes out), then [`Connection::respond_task_management`].
//! 3. [`Event::SendTargets`]: [`Connection::answer_targets`]. [`Event::Logout`]: let what it closes end, then
//!    [`Connection::respond_logout`], send, close.
//! 4. [`Connection::tick`] when it said so.
//! 5. An error from `receive`: [`Connection::reject`], send what it wrote, close. At error recovery level 0 the session ends.
//!    [`Connection::abandon`] gives back what the connection holds of the session.

use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use super::receiving::limit;
use super::session::Session;
use super::task::{Phase, Task};
use super::text::TextExchange;
use crate::framing::{Piece, Reader, Writer};
use crate::negotiation::Parameters;
use crate::serial;
use crate::sink::HeaderSink;
use crate::slots::{SPARE_BITS, Slots};
use crate::violation::Violation;
use crate::wire::pdu::{Numbers, RESERVED_TAG};
use crate::wire::response::{
    AsyncEvent, AsyncMessage, DataIn, NopIn, ReadyToTransfer, Reject, RejectReason, Residual, ScsiResponse,
    TaskManagementOutcome, TaskManagementResponse,
};
use crate::wire::sense::GOOD;

pub use super::event::{Aborted, Command, Event, Limits, Response, Scope, Silent, Transfer, Wanted};
pub use super::session::COMMANDS_MAX;
pub use crate::slots::Slot;

/// Immediate commands of a connection at a time.
pub const IMMEDIATE_MAX: usize = 8;
/// Tasks that ended before their data had come, whose late data is dropped.
const FORGOTTEN_MAX: usize = 64;
/// Most bytes of sense data, its length included: an initiator need not take more (11.4.7).
const SENSE_MAX: usize = 254;

/// Whose data the stream carries now.
#[derive(Clone, Copy)]
pub(super) enum Incoming {
    /// Of a task; `last`: this PDU ends its sequence.
    Task { slot: Slot, last: bool },
    /// Of a ping to be answered.
    Ping { task_tag: u32 },
    /// Of a text request.
    Text,
    /// Nobody's.
    Nobody,
}

/// The state machine. See the module for the order of calls.
pub struct Connection {
    pub(super) parameters: Parameters,
    pub(super) cid: u16,
    pub(super) writer: Writer,
    pub(super) reader: Reader,
    /// StatSN of the next status.
    pub(super) stat_sn: u32,
    pub(super) tasks: Slots<Task>,
    /// The task tag at each index of `tasks`, or the reserved one: close together, as every command looks through them.
    pub(super) tags: Vec<u32>,
    /// Places taken by immediate commands, at most [`IMMEDIATE_MAX`].
    pub(super) immediate: usize,
    pub(super) incoming: Incoming,
    /// Data of a ping, at most the MaxRecvDataSegmentLength of both ends.
    pub(super) ping_data: Vec<u8>,
    pub(super) text: TextExchange,
    /// The logout that is to be answered.
    pub(super) logout: Option<u32>,
    /// Task tags whose late data is dropped, the oldest first.
    pub(super) forgotten: VecDeque<u32>,
    /// Bytes of data of the request that waits for its turn.
    pub(super) waiting: Option<u32>,
    pub(super) ping_after_ns: u64,
    pub(super) ping_timeout_ns: u64,
    pub(super) heard_ns: u64,
    /// When the ping that is not answered was sent.
    pub(super) pinged_ns: Option<u64>,
}

impl Connection {
    pub(super) fn new(
        limits: &Limits,
        mut reader: Reader,
        parameters: Parameters,
        stat_sn: u32,
        cid: u16,
        session: &Session,
        now_ns: u64,
    ) -> Self {
        reader.set_digests(parameters.digests);
        let places = session.commands() as usize + IMMEDIATE_MAX;
        Self {
            parameters,
            cid,
            writer: Writer { digests: parameters.digests },
            reader,
            stat_sn,
            tasks: Slots::new(places),
            tags: vec![RESERVED_TAG; places],
            immediate: 0,
            incoming: Incoming::Nobody,
            ping_data: Vec::new(),
            text: TextExchange::default(),
            logout: None,
            forgotten: VecDeque::new(),
            waiting: None,
            ping_after_ns: limits.ping_after_ns,
            ping_timeout_ns: limits.ping_timeout_ns,
            heard_ns: now_ns,
            pinged_ns: None,
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

    /// Tasks that are not answered yet, task management requests among them.
    pub fn in_flight(&self) -> usize {
        self.tasks.in_use()
    }

    /// Whether a command is not answered yet. One that was aborted is until it is answered, too.
    pub fn is_in_flight(&self, slot: Slot) -> bool {
        self.tasks.get(slot).is_some()
    }

    /// Whether nobody wants the answer to a command any more.
    pub fn is_aborted(&self, slot: Slot) -> bool {
        self.tasks.get(slot).is_none_or(|task| task.aborted)
    }

    /// Whether the next request is not in turn yet: one before it has to come on another connection.
    pub fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// Consumes input up to the next event; `None` when all of it is used and more is needed, or [`Self::is_waiting`].
    ///
    /// # Errors
    /// The connection has to end: it is of no use afterwards.
    #[inline]
    pub fn receive<'a>(
        &mut self,
        session: &mut Session,
        now_ns: u64,
        input: &mut &'a [u8],
        sink: &mut impl HeaderSink,
    ) -> Result<Option<Event<'a>>, Violation> {
        if let Some(data_length) = self.waiting {
            if let Some(event) = self.header(session, data_length, sink)? {
                return Ok(Some(event));
            }
            if self.waiting.is_some() {
                return Ok(None);
            }
        }
        if !input.is_empty() {
            self.heard_ns = now_ns;
            self.pinged_ns = None;
        }
        loop {
            let segment = self.parameters.receive_segment;
            let Some(piece) = self.reader.next(input, |header| limit(header, segment))? else {
                return Ok(None);
            };
            let event = match piece {
                Piece::Header { data_length } => self.header(session, data_length, sink)?,
                Piece::Data(bytes) => self.data(bytes)?,
                Piece::DataEnd { intact } => self.data_end(session, intact, sink)?,
            };
            if event.is_some() || self.waiting.is_some() {
                return Ok(event);
            }
        }
    }

    /// Asks the initiator for a command's data up to `length` bytes, with as many R2Ts as it takes. Nothing is asked, and
    /// nothing comes, for an aborted command: answer it.
    ///
    /// # Panics
    /// If the command is not executing, or it has no data there.
    pub fn request_data(&mut self, session: &Session, slot: Slot, length: u32, sink: &mut impl HeaderSink) {
        let Some(task) = self.tasks.get_mut(slot) else { panic!("{slot:?} is not in flight") };
        if task.aborted {
            return;
        }
        let wanted = task.received + 1..=task.expected;
        assert!(task.phase == Phase::Executing && task.write && wanted.contains(&length), "no such data");
        task.solicit(length, self.parameters.max_burst);
        self.write_r2ts(session, slot, sink);
    }

    /// Writes the header of the next Data-In of a command that has `length` bytes for the initiator and is otherwise GOOD, and
    /// returns which of them to queue after it; then call [`Self::write_data_end`]. `None`: all is written, and the command is
    /// answered.
    ///
    /// # Panics
    /// If data for the command is still coming.
    #[inline]
    pub fn write_data_header(
        &mut self,
        session: &mut Session,
        slot: Slot,
        length: u32,
        sink: &mut impl HeaderSink,
    ) -> Option<Range<u32>> {
        let numbers = self.numbers(session);
        let task = self.tasks.get_mut(slot)?;
        let total = length.min(task.expected);
        if task.aborted || total == 0 {
            self.respond(session, slot, Response { status: GOOD, sense: &[], length }, sink);
            return None;
        }
        assert_eq!(task.phase, Phase::Executing, "answered before its data has come");
        let start = task.sent;
        let burst_end = (start - start % self.parameters.max_burst).saturating_add(self.parameters.max_burst);
        let end = total.min(burst_end).min(start.saturating_add(self.parameters.send_segment));
        let last = end == total;
        let header = DataIn {
            last: last || end == burst_end,
            status: last.then(|| (GOOD, Residual::of(task.expected, length))),
            task_tag: task.task_tag,
            numbers,
            data_sn: task.data_sn,
            offset: start,
        };
        task.sent = end;
        task.data_sn += 1;
        if last {
            self.end_task(session, slot);
            // Of the window that the end of this command opens.
            let header = DataIn { numbers: self.take_status(session), ..header };
            self.writer.write(header.encode(), end - start, sink);
        } else {
            self.writer.write(header.encode(), end - start, sink);
        }
        Some(start..end)
    }

    /// Writes what follows the payload queued after a header: padding, and a digest if one is agreed on.
    #[inline]
    pub fn write_data_end<'a>(&self, payload: impl IntoIterator<Item = &'a [u8]>, sink: &mut impl HeaderSink) {
        self.writer.write_data_end(payload, sink);
    }

    /// Answers a command that has no data for the initiator. An aborted one is only forgotten.
    ///
    /// # Panics
    /// If the command is not in flight, or data for it is still coming.
    pub fn respond(&mut self, session: &mut Session, slot: Slot, response: Response<'_>, sink: &mut impl HeaderSink) {
        let Some(task) = self.end_task(session, slot) else { panic!("{slot:?} is not in flight") };
        if task.aborted {
            return;
        }
        assert_eq!(task.phase, Phase::Executing, "answered before its data has come");
        let header = ScsiResponse {
            response: 0,
            status: response.status,
            task_tag: task.task_tag,
            numbers: self.take_status(session),
            expected_data_sn: if task.write { task.r2t_sent } else { task.data_sn },
            residual: Residual::of(task.expected, response.length),
        };
        self.writer.write_with_data(header.encode(), &with_length(response.sense), sink);
    }

    /// Answers a task management request.
    ///
    /// # Panics
    /// If `slot` is not that of one.
    pub fn respond_task_management(
        &mut self,
        session: &mut Session,
        slot: Slot,
        outcome: TaskManagementOutcome,
        sink: &mut impl HeaderSink,
    ) {
        let Some(task) = self.end_task(session, slot) else { panic!("{slot:?} is not in flight") };
        assert_eq!(task.phase, Phase::Management, "no task management request");
        self.write_task_management(session, task.task_tag, outcome, sink);
    }

    /// Aborts the tasks of this connection within `scope`; with `before`, only those whose CmdSN is before it. Their data may
    /// still come and is dropped.
    pub fn abort(&mut self, session: &mut Session, scope: Scope, before: Option<u32>) -> Vec<Aborted> {
        let mut aborted = Vec::new();
        for (slot, task) in self.tasks.iter_mut() {
            let within = match scope {
                Scope::Task(one) => one == slot,
                Scope::LogicalUnit(lun) => task.lun == lun,
                Scope::Everything => true,
            };
            let in_time = before.is_none_or(|before| serial::before(task.cmd_sn, before));
            if within && in_time && task.phase != Phase::Management && !task.aborted {
                task.aborted = true;
                aborted.push(Aborted { slot, executing: task.phase == Phase::Executing && task.refusal.is_none() });
            }
        }
        for Aborted { slot, executing } in &aborted {
            if !executing && let Some(task) = self.end_task(session, *slot) {
                self.forget(task.task_tag);
            }
        }
        aborted
    }

    /// Tells the initiator something that it did not ask for. `sense` is for [`AsyncEvent::Scsi`].
    pub fn write_async(&mut self, session: &Session, event: AsyncEvent, sense: &[u8], sink: &mut impl HeaderSink) {
        let message = AsyncMessage { event: Some(event), numbers: self.take_status(session) };
        self.writer.write_with_data(message.encode(), &with_length(sense), sink);
    }

    /// Tells the initiator why its connection ends, quoting the header at fault.
    pub fn reject(&mut self, session: &Session, violation: Violation, sink: &mut impl HeaderSink) {
        if let Some(reason) = violation.reason() {
            self.write_reject(session, reason, sink);
        }
    }

    /// The connection is gone: gives back the places that it holds of the session's window. The slots that the SCSI layer still
    /// has are for it to wait for (I16).
    pub fn abandon(mut self, session: &mut Session) -> Vec<Aborted> {
        let aborted = self.abort(session, Scope::Everything, None);
        let left: Vec<Slot> = self.tasks.iter_mut().map(|(slot, _)| slot).collect();
        for slot in left {
            self.end_task(session, slot);
        }
        aborted
    }

    /// Pings an initiator that has been silent. When to call again.
    ///
    /// # Errors
    /// It does not answer: the connection has to end.
    pub fn tick(&mut self, session: &Session, now_ns: u64, sink: &mut impl HeaderSink) -> Result<u64, Silent> {
        match self.pinged_ns {
            Some(pinged) if now_ns >= pinged.saturating_add(self.ping_timeout_ns) => Err(Silent),
            Some(pinged) => Ok(pinged.saturating_add(self.ping_timeout_ns)),
            None if now_ns >= self.heard_ns.saturating_add(self.ping_after_ns) => {
                // Any tag but the reserved one: there is one ping at a time.
                let ping = NopIn { task_tag: RESERVED_TAG, transfer_tag: 0, numbers: self.numbers(session) };
                self.writer.write(ping.encode(), 0, sink);
                self.pinged_ns = Some(now_ns);
                Ok(now_ns.saturating_add(self.ping_timeout_ns))
            }
            None => Ok(self.heard_ns.saturating_add(self.ping_after_ns)),
        }
    }

    /// Numbers for a PDU without a status.
    pub(super) fn numbers(&self, session: &Session) -> Numbers {
        Numbers { stat_sn: self.stat_sn, expected_cmd_sn: session.expected(), max_cmd_sn: session.last() }
    }

    /// Numbers for a PDU with a status.
    pub(super) fn take_status(&mut self, session: &Session) -> Numbers {
        let numbers = self.numbers(session);
        self.stat_sn = self.stat_sn.wrapping_add(1);
        numbers
    }

    pub(super) fn write_reject(&mut self, session: &Session, reason: RejectReason, sink: &mut impl HeaderSink) {
        let quote = self.reader.header();
        let reject = Reject { reason: reason as u8, numbers: self.take_status(session) };
        self.writer.write_with_data(reject.encode(), &quote, sink);
    }

    pub(super) fn write_task_management(
        &mut self,
        session: &Session,
        task_tag: u32,
        outcome: TaskManagementOutcome,
        sink: &mut impl HeaderSink,
    ) {
        let numbers = self.take_status(session);
        let response = TaskManagementResponse { response: outcome as u8, task_tag, numbers };
        self.writer.write(response.encode(), 0, sink);
    }

    pub(super) fn write_r2ts(&mut self, session: &Session, slot: Slot, sink: &mut impl HeaderSink) {
        let numbers = self.numbers(session);
        let Parameters { max_burst, outstanding_r2t, .. } = self.parameters;
        let Some(task) = self.tasks.get_mut(slot) else { return };
        while let Some((offset, length)) = task.next_r2t(max_burst, outstanding_r2t) {
            let r2t_sn = task.r2t_sent - 1;
            let header = ReadyToTransfer {
                lun: task.lun,
                task_tag: task.task_tag,
                transfer_tag: transfer_tag(slot, r2t_sn),
                numbers,
                r2t_sn,
                offset,
                length,
            };
            self.writer.write(header.encode(), 0, sink);
        }
    }

    /// Empties a task's place, and gives its place in the window back.
    pub(super) fn end_task(&mut self, session: &mut Session, slot: Slot) -> Option<Task> {
        let task = self.tasks.remove(slot)?;
        self.tags[slot.index()] = RESERVED_TAG;
        if task.immediate {
            self.immediate -= 1;
        } else {
            session.release();
        }
        Some(task)
    }

    /// Data for this task may still come.
    pub(super) fn forget(&mut self, task_tag: u32) {
        if self.forgotten.len() == FORGOTTEN_MAX {
            self.forgotten.pop_front();
        }
        self.forgotten.push_back(task_tag);
    }

    /// The task with this tag; there is none with the reserved one.
    pub(super) fn find(&self, task_tag: u32) -> Option<Slot> {
        let index = self.tags.iter().position(|tag| *tag == task_tag)?;
        self.tasks.at(index)
    }
}

/// The transfer tag of an R2T.
pub(super) fn transfer_tag(slot: Slot, r2t_sn: u32) -> u32 {
    slot.tag() | r2t_sn << (32 - SPARE_BITS)
}

/// Sense data as it follows a header: its length first, nothing if there is none.
fn with_length(sense: &[u8]) -> Vec<u8> {
    let sense = &sense[..sense.len().min(SENSE_MAX - 2)];
    if sense.is_empty() {
        return Vec::new();
    }
    // At most `SENSE_MAX`.
    let length = (sense.len() as u16).to_be_bytes();
    [&length[..], sense].concat()
}
