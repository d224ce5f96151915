//! One task of a connection: what data it has, wants and gave.
//!
//! ```text
//!            command, with data or more to come          the last of it
//!  free ─────────────────────────────▶ Unsolicited ─────────────────────▶ Executing
//!    │    command                                                          │  ▲   │
//!    ├────────────────────────────────────────────────────────────────────▶│  │   │ answered, or aborted
//!    │    task management request                             request_data ▼  │   ▼
//!    └─────────────────────────────▶ Management ─▶ free      Soliciting ──────┘  free
//! ```

use super::connection::{Command, Transfer};
use crate::wire::Sense;
use crate::wire::pdu::RequestNumbers;
use crate::wire::request::ScsiCommand;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The SCSI layer has it, or may ask for its data.
    Executing,
    /// Data comes unasked.
    Unsolicited,
    /// Data comes that R2Ts asked for.
    Soliciting,
    /// A task management request.
    Management,
}

pub(super) struct Task {
    pub(super) task_tag: u32,
    pub(super) lun: u64,
    pub(super) cmd_sn: u32,
    /// It takes no place of the session's window.
    pub(super) immediate: bool,
    pub(super) phase: Phase,
    /// Expected Data Transfer Length.
    pub(super) expected: u32,
    pub(super) write: bool,
    /// Bytes of its data that are here.
    pub(super) received: u32,
    /// Bytes of its data that the SCSI layer wants. At most `expected`.
    pub(super) requested: u32,
    /// Where the current sequence of Data-Out ends at the latest.
    pub(super) sequence_end: u32,
    /// DataSN of the next Data-Out of the sequence, or of the next Data-In.
    pub(super) data_sn: u32,
    /// R2Ts sent (R2TSN of the next).
    pub(super) r2t_sent: u32,
    /// Of those, answered.
    pub(super) r2t_done: u32,
    /// Where the next R2T begins.
    pub(super) r2t_offset: u32,
    /// Bytes of Data-In sent.
    pub(super) sent: u32,
    /// A data digest did not match.
    pub(super) damaged: bool,
    /// Nobody answers it when it returns from the SCSI layer.
    pub(super) aborted: bool,
    /// The SCSI layer never sees it; it ends with this once its data has come.
    pub(super) refusal: Option<Sense>,
}

impl Task {
    pub(super) fn new(command: &ScsiCommand, phase: Phase, unsolicited: u32) -> Self {
        Self {
            task_tag: command.task_tag,
            lun: command.lun,
            cmd_sn: command.numbers.cmd_sn,
            immediate: command.numbers.immediate,
            phase,
            expected: command.expected_length,
            write: command.write,
            received: 0,
            requested: 0,
            sequence_end: unsolicited,
            data_sn: 0,
            r2t_sent: 0,
            r2t_done: 0,
            r2t_offset: 0,
            sent: 0,
            damaged: false,
            aborted: false,
            refusal: None,
        }
    }

    /// A task management request.
    pub(super) fn management(task_tag: u32, lun: u64, cmd_sn: u32, immediate: bool) -> Self {
        let command = ScsiCommand {
            last: true,
            read: false,
            write: false,
            attribute: 0,
            lun,
            task_tag,
            expected_length: 0,
            numbers: RequestNumbers { immediate, cmd_sn, expected_stat_sn: 0 },
            cdb: [0; 16],
        };
        Self::new(&command, Phase::Management, 0)
    }

    /// Asks for data up to `length`, from what is here on.
    pub(super) fn solicit(&mut self, length: u32, burst: u32) {
        self.phase = Phase::Soliciting;
        self.requested = length;
        self.r2t_offset = self.received;
        self.sequence_end = length.min(self.received.saturating_add(burst));
        self.data_sn = 0;
    }

    /// The next range to send an R2T for, if so many may be outstanding.
    pub(super) fn next_r2t(&mut self, burst: u32, outstanding: u32) -> Option<(u32, u32)> {
        if self.damaged
            || self.aborted
            || self.r2t_offset == self.requested
            || self.r2t_sent - self.r2t_done >= outstanding
        {
            return None;
        }
        let (start, end) = (self.r2t_offset, self.requested.min(self.r2t_offset.saturating_add(burst)));
        self.r2t_offset = end;
        self.r2t_sent += 1;
        Some((start, end - start))
    }

    /// A sequence of Data-Out is complete. Whether no more of its kind comes.
    pub(super) fn end_sequence(&mut self, burst: u32) -> bool {
        self.data_sn = 0;
        if self.phase == Phase::Unsolicited {
            self.phase = Phase::Executing;
            return true;
        }
        self.r2t_done += 1;
        self.sequence_end = self.requested.min(self.sequence_end.saturating_add(burst));
        let given_up = self.damaged && self.r2t_done == self.r2t_sent;
        if self.received == self.requested || given_up {
            self.phase = Phase::Executing;
            return true;
        }
        false
    }
}

/// How a command's data moves.
pub(super) fn transfer_of(command: &ScsiCommand, unsolicited: u32) -> Transfer {
    match (command.expected_length, command.write, command.read) {
        (1.., true, _) => Transfer::FromInitiator { length: command.expected_length, unsolicited },
        (1.., false, true) => Transfer::ToInitiator { length: command.expected_length },
        _ => Transfer::None,
    }
}

/// What the SCSI layer gets.
pub(super) fn command_of(command: &ScsiCommand) -> Command {
    Command { cdb: command.cdb, lun: command.lun, attribute: command.attribute }
}
