//! What a connection does with the PDUs that arrive.

use super::connection::{Connection, IMMEDIATE_MAX, Incoming, transfer_tag};
use super::event::{Event, Response};
use super::session::{Session, Turn};
use super::task::{Phase, Task, command_of, transfer_of};
use crate::negotiation::Parameters;
use crate::sink::HeaderSink;
use crate::slots::Slot;
use crate::violation::Violation;
use crate::wire::Sense;
use crate::wire::pdu::{
    Additional, Header, Opcode, RESERVED_TAG, RequestNumbers, additional_headers, additional_length, field,
};
use crate::wire::request::{DataOut, NopOut, ScsiCommand, TaskFunction, TaskManagementRequest};
use crate::wire::response::{NopIn, RejectReason, TaskManagementOutcome};
use crate::wire::sense::CHECK_CONDITION;

impl Connection {
    #[inline]
    pub(super) fn header<'a>(
        &mut self,
        session: &mut Session,
        data_length: u32,
        sink: &mut impl HeaderSink,
    ) -> Result<Option<Event<'a>>, Violation> {
        let header = self.reader.header();
        let numbers = RequestNumbers::parse(&header);
        self.incoming = Incoming::Nobody;
        let opcode = match Opcode::of(&header) {
            Some(Opcode::DataOut) => return self.data_out(&header, data_length).map(|()| None),
            Some(Opcode::SnackRequest) => {
                self.write_reject(session, RejectReason::Snack, sink);
                return Ok(None);
            }
            None => {
                self.write_reject(session, RejectReason::NotSupported, sink);
                return Ok(None);
            }
            Some(opcode) => opcode,
        };
        self.waiting = None;
        if !numbers.immediate {
            match session.turn(numbers.cmd_sn) {
                Turn::Now => session.take(),
                Turn::Later => {
                    self.waiting = Some(data_length);
                    return Ok(None);
                }
                Turn::Never => return Ok(None),
            }
        }
        // Only tasks keep their place of the window until they are answered; answers to others tell the window without them.
        let is_task = matches!(opcode, Opcode::ScsiCommand | Opcode::TaskManagementRequest);
        if !numbers.immediate && !is_task {
            session.release();
        }
        let event = match opcode {
            Opcode::ScsiCommand => self.command(session, &header, data_length, sink),
            Opcode::TaskManagementRequest => self.task_management(session, &header, sink),
            Opcode::NopOut => self.ping(session, &header, data_length, sink).map(|()| None),
            Opcode::TextRequest => {
                self.incoming = Incoming::Text;
                self.text_request(session, &header, data_length == 0, sink)
            }
            Opcode::LogoutRequest => self.logout_request(session, &header, sink),
            _ => Err(Violation::UnexpectedPdu),
        };
        if !numbers.immediate && is_task && event.is_err() {
            session.release();
        }
        event
    }

    #[inline]
    fn command<'a>(
        &mut self,
        session: &mut Session,
        header: &Header,
        data_length: u32,
        sink: &mut impl HeaderSink,
    ) -> Result<Option<Event<'a>>, Violation> {
        let command = ScsiCommand::parse(header);
        if session.is_discovery() {
            return Err(Violation::UnexpectedPdu);
        }
        if command.task_tag == RESERVED_TAG || self.find(command.task_tag).is_some() {
            return Err(Violation::Field(field::TASK_TAG));
        }
        // The tag is that of a new task now.
        self.forgotten.retain(|tag| *tag != command.task_tag);
        let extended = self.has_extended_cdb()?;
        let unsolicited = self.unsolicited(&command, data_length)?;
        let comes = data_length > 0 || !command.last;
        let bidirectional = command.read && command.write;
        if bidirectional || command.numbers.immediate && self.immediate >= IMMEDIATE_MAX {
            let reason = if bidirectional { RejectReason::NotSupported } else { RejectReason::TooManyImmediate };
            if !command.numbers.immediate {
                session.release();
            }
            self.forget(command.task_tag);
            self.write_reject(session, reason, sink);
            return Ok(None);
        }
        let phase = if comes { Phase::Unsolicited } else { Phase::Executing };
        let mut task = Task::new(&command, phase, unsolicited);
        task.refusal = extended.then_some(Sense::INVALID_OPERATION);
        let slot = self.insert(task);
        if data_length > 0 {
            self.incoming = Incoming::Task { slot, last: command.last };
        }
        if extended {
            if !comes {
                self.refuse(session, slot, Sense::INVALID_OPERATION, sink);
            }
            return Ok(None);
        }
        let unsolicited = if comes { unsolicited } else { 0 };
        let transfer = transfer_of(&command, unsolicited);
        Ok(Some(Event::Command { slot, command: command_of(&command), transfer }))
    }

    fn insert(&mut self, task: Task) -> Slot {
        let (task_tag, immediate) = (task.task_tag, task.immediate);
        // As many places as the window and immediate commands have.
        let Some(slot) = self.tasks.insert(task) else { panic!("more tasks than places") };
        self.immediate += usize::from(immediate);
        self.tags[slot.index()] = task_tag;
        slot
    }

    /// Bytes that may come unasked with or after this command.
    fn unsolicited(&self, command: &ScsiCommand, data_length: u32) -> Result<u32, Violation> {
        let Parameters { immediate_data, initial_r2t, first_burst, .. } = self.parameters;
        let most = if command.write { first_burst.min(command.expected_length) } else { 0 };
        let with_command = if immediate_data { most } else { 0 };
        if data_length > with_command {
            return Err(Violation::DataTooLong);
        }
        if command.last {
            return Ok(data_length);
        }
        // Data-Out follows.
        if initial_r2t || data_length >= most {
            return Err(Violation::Sequence(field::FLAGS));
        }
        Ok(most)
    }

    fn has_extended_cdb(&self) -> Result<bool, Violation> {
        let mut extended = false;
        for header in additional_headers(self.reader.additional()) {
            extended |= header.map_err(|()| Violation::AdditionalHeader)? == Additional::ExtendedCdb;
        }
        Ok(extended)
    }

    /// Ends a task that the SCSI layer never sees.
    fn refuse(&mut self, session: &mut Session, slot: Slot, sense: Sense, sink: &mut impl HeaderSink) {
        let response = Response { status: CHECK_CONDITION, sense: &sense.fixed(), length: 0 };
        self.respond(session, slot, response, sink);
    }

    /// Checks that Data-Out is the next of what may come or was asked for.
    fn data_out(&mut self, header: &Header, data_length: u32) -> Result<(), Violation> {
        let data = DataOut::parse(header);
        let (found, offset) = if data.transfer_tag == RESERVED_TAG {
            (self.find(data.task_tag), field::TASK_TAG)
        } else {
            (Some(Slot::from_tag(data.transfer_tag)), field::TRANSFER_TAG)
        };
        let task =
            found.and_then(|slot| Some((slot, self.tasks.get_mut(slot)?))).filter(|(slot, task)| match task.phase {
                Phase::Unsolicited => data.transfer_tag == RESERVED_TAG,
                Phase::Soliciting => {
                    data.transfer_tag == transfer_tag(*slot, task.r2t_done)
                        && task.r2t_done < task.r2t_sent
                        && task.task_tag == data.task_tag
                }
                Phase::Executing | Phase::Management => false,
            });
        let Some((slot, task)) = task else {
            // Late, for a task that has ended (I16).
            return if self.forgotten.contains(&data.task_tag) { Ok(()) } else { Err(Violation::Field(offset)) };
        };
        // PDUs are missing, or came in the wrong order: the task ends as one whose data is damaged (7.8).
        task.damaged |= data.data_sn != task.data_sn;
        if data.offset != task.received {
            return Err(Violation::Sequence(field::BUFFER_OFFSET));
        }
        if data_length == 0 {
            return Err(Violation::Sequence(field::DATA_LENGTH));
        }
        if data_length > task.sequence_end - task.received {
            return Err(Violation::DataTooLong);
        }
        let fills = data_length == task.sequence_end - task.received;
        let ends_right = match task.phase {
            // Less than may come is fine, more is not.
            Phase::Unsolicited => data.last || !fills,
            _ => data.last == fills,
        };
        if !ends_right {
            return Err(Violation::Sequence(field::FLAGS));
        }
        task.data_sn += 1;
        self.incoming = Incoming::Task { slot, last: data.last };
        Ok(())
    }

    #[inline]
    pub(super) fn data<'a>(&mut self, bytes: &'a [u8]) -> Result<Option<Event<'a>>, Violation> {
        match self.incoming {
            Incoming::Task { slot, .. } => {
                let Some(task) = self.tasks.get_mut(slot) else { return Ok(None) };
                let offset = task.received;
                // Not beyond the end of the sequence, which is 32 bits wide.
                task.received += bytes.len() as u32;
                Ok(task.refusal.is_none().then_some(Event::Payload { slot, offset, bytes }))
            }
            Incoming::Ping { .. } => {
                let room = (self.parameters.send_segment as usize).saturating_sub(self.ping_data.len());
                self.ping_data.extend_from_slice(&bytes[..bytes.len().min(room)]);
                Ok(None)
            }
            Incoming::Text => self.text.append(bytes).map(|()| None),
            Incoming::Nobody => Ok(None),
        }
    }

    #[inline]
    pub(super) fn data_end<'a>(
        &mut self,
        session: &mut Session,
        intact: bool,
        sink: &mut impl HeaderSink,
    ) -> Result<Option<Event<'a>>, Violation> {
        let incoming = core::mem::replace(&mut self.incoming, Incoming::Nobody);
        if !intact {
            self.write_reject(session, RejectReason::DataDigest, sink);
        }
        match incoming {
            Incoming::Task { slot, last } => Ok(self.payload_end(session, slot, last, intact, sink)),
            Incoming::Ping { task_tag } => {
                let data = core::mem::take(&mut self.ping_data);
                if intact {
                    self.answer_ping(session, task_tag, &data, sink);
                }
                Ok(None)
            }
            Incoming::Text => {
                if intact {
                    self.text_received(session, sink)
                } else {
                    self.text.drop_latest();
                    Ok(None)
                }
            }
            Incoming::Nobody => Ok(None),
        }
    }

    #[inline]
    fn payload_end<'a>(
        &mut self,
        session: &mut Session,
        slot: Slot,
        last: bool,
        intact: bool,
        sink: &mut impl HeaderSink,
    ) -> Option<Event<'a>> {
        let task = self.tasks.get_mut(slot)?;
        task.damaged |= !intact;
        if !last {
            return None;
        }
        if !task.end_sequence(self.parameters.max_burst) {
            self.write_r2ts(session, slot, sink);
            return None;
        }
        if let Some(sense) = task.refusal {
            self.refuse(session, slot, sense, sink);
            return None;
        }
        let result = if task.damaged { Err(Sense::CRC_ERROR) } else { Ok(()) };
        Some(Event::PayloadEnd { slot, received: task.received, result })
    }

    fn task_management<'a>(
        &mut self,
        session: &mut Session,
        header: &Header,
        sink: &mut impl HeaderSink,
    ) -> Result<Option<Event<'a>>, Violation> {
        let request = TaskManagementRequest::parse(header);
        let immediate = request.numbers.immediate;
        if request.task_tag == RESERVED_TAG || self.find(request.task_tag).is_some() || session.is_discovery() {
            return Err(Violation::Field(field::TASK_TAG));
        }
        let task = self.find(request.referenced_tag);
        let function = TaskFunction::from_byte(request.function);
        let refusal = match function {
            None => Some(TaskManagementOutcome::NotSupported),
            Some(TaskFunction::TaskReassign) => Some(TaskManagementOutcome::NoReassignment),
            Some(TaskFunction::AbortTask) if task.is_none() => Some(TaskManagementOutcome::NoTask),
            Some(_) => None,
        };
        let (Some(function), None) = (function, refusal) else {
            if !immediate {
                session.release();
            }
            let outcome = refusal.unwrap_or(TaskManagementOutcome::NotSupported);
            self.write_task_management(session, request.task_tag, outcome, sink);
            return Ok(None);
        };
        if immediate && self.immediate >= IMMEDIATE_MAX {
            self.write_reject(session, RejectReason::TooManyImmediate, sink);
            return Ok(None);
        }
        let (lun, before) = (request.lun, request.numbers.cmd_sn);
        let slot = self.insert(Task::management(request.task_tag, lun, before, immediate));
        let task = task.filter(|_| function == TaskFunction::AbortTask);
        Ok(Some(Event::TaskManagement { slot, function, lun, task, before }))
    }

    fn ping(
        &mut self,
        session: &Session,
        header: &Header,
        data_length: u32,
        sink: &mut impl HeaderSink,
    ) -> Result<(), Violation> {
        let ping = NopOut::parse(header);
        // Reserved: it answers ours, or wants no answer.
        if ping.task_tag == RESERVED_TAG {
            return Ok(());
        }
        if ping.transfer_tag != RESERVED_TAG {
            return Err(Violation::Field(field::TRANSFER_TAG));
        }
        if data_length == 0 {
            self.answer_ping(session, ping.task_tag, &[], sink);
        } else {
            self.incoming = Incoming::Ping { task_tag: ping.task_tag };
        }
        Ok(())
    }

    fn answer_ping(&mut self, session: &Session, task_tag: u32, data: &[u8], sink: &mut impl HeaderSink) {
        let numbers = self.take_status(session);
        let answer = NopIn { task_tag, transfer_tag: RESERVED_TAG, numbers };
        self.writer.write_with_data(answer.encode(), data, sink);
    }
}

/// How much data a PDU may carry, or why it may not come.
#[inline]
pub(super) fn limit(header: &Header, segment: u32) -> Result<u32, Violation> {
    let opcode = Opcode::of(header);
    if opcode.is_some_and(Opcode::is_targets) || opcode == Some(Opcode::LoginRequest) {
        return Err(Violation::UnexpectedPdu);
    }
    if additional_length(header) > 0 && !matches!(opcode, Some(Opcode::ScsiCommand) | None) {
        return Err(Violation::AdditionalHeader);
    }
    match opcode {
        Some(Opcode::TaskManagementRequest | Opcode::LogoutRequest | Opcode::SnackRequest) => Ok(0),
        _ => Ok(segment),
    }
}
