//! What a connection in its full feature phase takes and tells.

use crate::negotiation::Parameters;
use crate::slots::Slot;
use crate::wire::request::{CDB_SIZE, LogoutReason, TaskFunction};
use crate::wire::{Name, Sense};

/// What a target offers, and what it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The operational keys.
    pub offer: Parameters,
    /// Commands of a session at a time, 1 to [`COMMANDS_MAX`](super::session::COMMANDS_MAX).
    pub commands: u32,
    /// A connection that is silent for so long gets a ping.
    pub ping_after_ns: u64,
    /// A connection that is silent for so long after it has ended.
    pub ping_timeout_ns: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            offer: Parameters::target(),
            commands: 128,
            ping_after_ns: 15_000_000_000,
            ping_timeout_ns: 15_000_000_000,
        }
    }
}

/// What the SCSI layer gets of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command {
    /// Command Descriptor Block (CDB).
    pub cdb: [u8; CDB_SIZE],
    /// Logical Unit Number (LUN).
    pub lun: u64,
    /// Task attribute (ATTR): 0 untagged, 1 simple, 2 ordered, 3 head of queue, 4 ACA.
    pub attribute: u8,
}

/// How a command's data moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// No data.
    None,
    /// To the initiator, which expects so much.
    ToInitiator {
        /// Bytes.
        length: u32,
    },
    /// From the initiator.
    FromInitiator {
        /// Bytes it expects to send.
        length: u32,
        /// At most so many of them come unasked; an [`Event::PayloadEnd`] follows unless it is 0.
        unsolicited: u32,
    },
}

/// How the SCSI layer ends a command without data for the initiator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Response<'a> {
    /// SCSI status.
    pub status: u8,
    /// Sense data.
    pub sense: &'a [u8],
    /// Bytes that the command is about; what differs from those expected is the residual.
    pub length: u32,
}

/// Which targets an initiator asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// All that it may see.
    All,
    /// The one of this session.
    Own,
    /// The one of this name.
    Named(Name),
}

/// Which tasks are to be aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One.
    Task(Slot),
    /// Those of a logical unit.
    LogicalUnit(u64),
    /// All.
    Everything,
}

/// What became of a task that was aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aborted {
    /// Its place.
    pub slot: Slot,
    /// The SCSI layer still has it: it must be answered. Otherwise it is gone.
    pub executing: bool,
}

/// What arrived.
#[derive(Debug, PartialEq)]
pub enum Event<'a> {
    /// A SCSI command.
    Command {
        /// Its place until it is answered.
        slot: Slot,
        /// What it is.
        command: Command,
        /// How its data moves.
        transfer: Transfer,
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
    /// All data that was on its way is here.
    PayloadEnd {
        /// The command.
        slot: Slot,
        /// Bytes of its data that are here.
        received: u32,
        /// With an error, respond with that sense: the data is damaged.
        result: Result<(), Sense>,
    },
    /// A task management request.
    TaskManagement {
        /// Its place until it is answered.
        slot: Slot,
        /// What it asks for. Never TASK REASSIGN.
        function: TaskFunction,
        /// The logical unit.
        lun: u64,
        /// The task of an ABORT TASK.
        task: Option<Slot>,
        /// Tasks of this session with this CmdSN or a later one are not concerned.
        before: u32,
    },
    /// The initiator wants to know targets.
    SendTargets(Wanted),
    /// The initiator closes the session, or the connection with this CID. Never for recovery.
    Logout {
        /// What is closed.
        reason: LogoutReason,
        /// The connection, if one is closed.
        cid: u16,
    },
}

/// The initiator does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Silent;
