//! What targets send (11.4 to 11.19), but for Login Response, which is in [`super::login`].

use super::bytes::{array_at, put, u16_at, u32_at, u64_at};
use super::pdu::{FLAG_CONTINUE, FLAG_FINAL, HEADER_SIZE, Header, Numbers, Opcode, RESERVED_TAG, header};

/// How far a command's data is from what the initiator expected (11.4.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Residual {
    /// As expected.
    #[default]
    None,
    /// So many bytes more would have moved (O).
    Overflow(u32),
    /// So many bytes fewer moved (U).
    Underflow(u32),
}

const OVERFLOW: u8 = 1 << 2;
const UNDERFLOW: u8 = 1 << 1;

impl Residual {
    /// The residual of a command that is about `length` bytes, where `expected` were.
    pub fn of(expected: u32, length: u32) -> Self {
        match length.cmp(&expected) {
            core::cmp::Ordering::Equal => Self::None,
            core::cmp::Ordering::Greater => Self::Overflow(length - expected),
            core::cmp::Ordering::Less => Self::Underflow(expected - length),
        }
    }

    fn parse(flags: u8, count: u32) -> Self {
        match flags & (OVERFLOW | UNDERFLOW) {
            OVERFLOW => Self::Overflow(count),
            UNDERFLOW => Self::Underflow(count),
            _ => Self::None,
        }
    }

    fn encode(self) -> (u8, u32) {
        match self {
            Self::None => (0, 0),
            Self::Overflow(count) => (OVERFLOW, count),
            Self::Underflow(count) => (UNDERFLOW, count),
        }
    }
}

/// SCSI Response (11.4). Sense data follows as data, two bytes of length first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScsiResponse {
    /// Byte 2: 0 completed at the target, 1 target failure.
    pub response: u8,
    /// Byte 3: SCSI status.
    pub status: u8,
    /// Initiator Task Tag.
    pub task_tag: u32,
    /// Bytes 24 to 35.
    pub numbers: Numbers,
    /// Data-In or R2T PDUs sent for the command (ExpDataSN), bytes 36 to 39.
    pub expected_data_sn: u32,
    /// Flags O and U, and bytes 44 to 47.
    pub residual: Residual,
}

impl ScsiResponse {
    /// The response of a header.
    pub fn parse(bytes: &Header) -> Self {
        Self {
            response: bytes[2],
            status: bytes[3],
            task_tag: u32_at(bytes, 16),
            numbers: Numbers::parse(bytes),
            expected_data_sn: u32_at(bytes, 36),
            residual: Residual::parse(bytes[1], u32_at(bytes, 44)),
        }
    }

    /// The header's bytes.
    pub fn encode(&self) -> Header {
        let (flags, residual) = self.residual.encode();
        let mut bytes = header(Opcode::ScsiResponse, FLAG_FINAL | flags);
        bytes[2] = self.response;
        bytes[3] = self.status;
        put(&mut bytes, 16, self.task_tag.to_be_bytes());
        self.numbers.write(&mut bytes);
        put(&mut bytes, 36, self.expected_data_sn.to_be_bytes());
        put(&mut bytes, 44, residual.to_be_bytes());
        bytes
    }
}

/// Response to a task management request (11.6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TaskManagementOutcome {
    /// Function complete.
    Complete = 0,
    /// Task does not exist.
    NoTask = 1,
    /// LUN does not exist.
    NoLogicalUnit = 2,
    /// Task still allegiant.
    StillAllegiant = 3,
    /// Task allegiance reassignment not supported.
    NoReassignment = 4,
    /// Task management function not supported.
    NotSupported = 5,
    /// Function authorization failed.
    NotAuthorized = 6,
    /// Function rejected.
    Rejected = 255,
}

/// Task Management Function Response (11.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskManagementResponse {
    /// Byte 2: see [`TaskManagementOutcome`].
    pub response: u8,
    /// Initiator Task Tag.
    pub task_tag: u32,
    /// Bytes 24 to 35.
    pub numbers: Numbers,
}

impl TaskManagementResponse {
    /// The response of a header.
    pub fn parse(bytes: &Header) -> Self {
        Self { response: bytes[2], task_tag: u32_at(bytes, 16), numbers: Numbers::parse(bytes) }
    }

    /// The header's bytes.
    pub fn encode(&self) -> Header {
        let mut bytes = header(Opcode::TaskManagementResponse, FLAG_FINAL);
        bytes[2] = self.response;
        put(&mut bytes, 16, self.task_tag.to_be_bytes());
        self.numbers.write(&mut bytes);
        bytes
    }
}

/// SCSI Data-In (11.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataIn {
    /// Byte 1 bit 7: the last PDU of its sequence (F).
    pub last: bool,
    /// Byte 1 bit 0 and byte 3: the command's status, if this PDU brings it (S), and its residual.
    pub status: Option<(u8, Residual)>,
    /// Initiator Task Tag.
    pub task_tag: u32,
    /// Bytes 24 to 35; StatSN is reserved without a status.
    pub numbers: Numbers,
    /// DataSN, bytes 36 to 39.
    pub data_sn: u32,
    /// Buffer Offset, bytes 40 to 43.
    pub offset: u32,
}

const HAS_STATUS: u8 = 1;

impl DataIn {
    /// The header of data.
    pub fn parse(bytes: &Header) -> Self {
        let status = (bytes[3], Residual::parse(bytes[1], u32_at(bytes, 44)));
        Self {
            last: bytes[1] & FLAG_FINAL != 0,
            status: (bytes[1] & HAS_STATUS != 0).then_some(status),
            task_tag: u32_at(bytes, 16),
            numbers: Numbers::parse(bytes),
            data_sn: u32_at(bytes, 36),
            offset: u32_at(bytes, 40),
        }
    }

    /// The header's bytes.
    pub fn encode(&self) -> Header {
        let mut bytes = header(Opcode::DataIn, if self.last { FLAG_FINAL } else { 0 });
        let mut numbers = self.numbers;
        if let Some((status, residual)) = self.status {
            let (flags, residual) = residual.encode();
            bytes[1] |= HAS_STATUS | flags;
            bytes[3] = status;
            put(&mut bytes, 44, residual.to_be_bytes());
        } else {
            numbers.stat_sn = 0;
        }
        put(&mut bytes, 16, self.task_tag.to_be_bytes());
        put(&mut bytes, 20, RESERVED_TAG.to_be_bytes());
        numbers.write(&mut bytes);
        put(&mut bytes, 36, self.data_sn.to_be_bytes());
        put(&mut bytes, 40, self.offset.to_be_bytes());
        bytes
    }
}

/// Ready To Transfer (11.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadyToTransfer {
    /// Logical Unit Number.
    pub lun: u64,
    /// Initiator Task Tag.
    pub task_tag: u32,
    /// Target Transfer Tag.
    pub transfer_tag: u32,
    /// Bytes 24 to 35; StatSN is the next one.
    pub numbers: Numbers,
    /// R2TSN, from 0 for each command.
    pub r2t_sn: u32,
    /// Buffer Offset.
    pub offset: u32,
    /// Desired Data Transfer Length.
    pub length: u32,
}

impl ReadyToTransfer {
    /// The request of a header.
    pub fn parse(bytes: &Header) -> Self {
        Self {
            lun: u64_at(bytes, 8),
            task_tag: u32_at(bytes, 16),
            transfer_tag: u32_at(bytes, 20),
            numbers: Numbers::parse(bytes),
            r2t_sn: u32_at(bytes, 36),
            offset: u32_at(bytes, 40),
            length: u32_at(bytes, 44),
        }
    }

    /// The header's bytes.
    pub fn encode(&self) -> Header {
        let mut bytes = header(Opcode::ReadyToTransfer, FLAG_FINAL);
        put(&mut bytes, 8, self.lun.to_be_bytes());
        put(&mut bytes, 16, self.task_tag.to_be_bytes());
        put(&mut bytes, 20, self.transfer_tag.to_be_bytes());
        self.numbers.write(&mut bytes);
        put(&mut bytes, 36, self.r2t_sn.to_be_bytes());
        put(&mut bytes, 40, self.offset.to_be_bytes());
        put(&mut bytes, 44, self.length.to_be_bytes());
        bytes
    }
}

/// What an asynchronous message tells (11.9.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AsyncEvent {
    /// A SCSI event of a logical unit; sense data follows.
    Scsi {
        /// The logical unit.
        lun: u64,
    },
    /// The target asks for a logout within so many seconds.
    LogoutWanted {
        /// Parameter 3.
        within_seconds: u16,
    },
    /// The target will drop, or has dropped, a connection.
    ConnectionDropped {
        /// Parameter 1.
        cid: u16,
        /// Time2Wait, parameter 2.
        wait_seconds: u16,
        /// Time2Retain, parameter 3.
        retain_seconds: u16,
    },
    /// The target will drop all connections of this session.
    SessionDropped {
        /// Time2Wait, parameter 2.
        wait_seconds: u16,
        /// Time2Retain, parameter 3.
        retain_seconds: u16,
    },
    /// The target asks for a negotiation within so many seconds.
    NegotiationWanted {
        /// Parameter 3.
        within_seconds: u16,
    },
}

/// Asynchronous Message (11.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AsyncMessage {
    /// Byte 36 and parameters; `None` if the event has no number of the standard.
    pub event: Option<AsyncEvent>,
    /// Bytes 24 to 35.
    pub numbers: Numbers,
}

impl AsyncMessage {
    /// The message of a header.
    pub fn parse(bytes: &Header) -> Self {
        let [p1, p2, p3] = [38, 40, 42].map(|offset| u16_at(bytes, offset));
        let event = match bytes[36] {
            0 => Some(AsyncEvent::Scsi { lun: u64_at(bytes, 8) }),
            1 => Some(AsyncEvent::LogoutWanted { within_seconds: p3 }),
            2 => Some(AsyncEvent::ConnectionDropped { cid: p1, wait_seconds: p2, retain_seconds: p3 }),
            3 => Some(AsyncEvent::SessionDropped { wait_seconds: p2, retain_seconds: p3 }),
            4 => Some(AsyncEvent::NegotiationWanted { within_seconds: p3 }),
            _ => None,
        };
        Self { event, numbers: Numbers::parse(bytes) }
    }

    /// The header's bytes.
    pub fn encode(&self) -> Header {
        let mut bytes = header(Opcode::AsyncMessage, FLAG_FINAL);
        put(&mut bytes, 16, RESERVED_TAG.to_be_bytes());
        self.numbers.write(&mut bytes);
        let (number, parameters) = match self.event {
            Some(AsyncEvent::Scsi { lun }) => {
                put(&mut bytes, 8, lun.to_be_bytes());
                (0, [0; 3])
            }
            Some(AsyncEvent::LogoutWanted { within_seconds }) => (1, [0, 0, within_seconds]),
            Some(AsyncEvent::ConnectionDropped { cid, wait_seconds, retain_seconds }) => {
                (2, [cid, wait_seconds, retain_seconds])
            }
            Some(AsyncEvent::SessionDropped { wait_seconds, retain_seconds }) => (3, [0, wait_seconds, retain_seconds]),
            Some(AsyncEvent::NegotiationWanted { within_seconds }) => (4, [0, 0, within_seconds]),
            None => (255, [0; 3]),
        };
        bytes[36] = number;
        for (parameter, offset) in parameters.into_iter().zip([38, 40, 42]) {
            put(&mut bytes, offset, parameter.to_be_bytes());
        }
        bytes
    }
}

/// Text Response (11.11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextResponse {
    /// Byte 1 bit 7: the last response (F).
    pub last: bool,
    /// Byte 1 bit 6: the text goes on in the next response (C).
    pub continues: bool,
    /// Initiator Task Tag.
    pub task_tag: u32,
    /// Target Transfer Tag for the next request; reserved in the last response.
    pub transfer_tag: u32,
    /// Bytes 24 to 35.
    pub numbers: Numbers,
}

impl TextResponse {
    /// The response of a header.
    pub fn parse(bytes: &Header) -> Self {
        Self {
            last: bytes[1] & FLAG_FINAL != 0,
            continues: bytes[1] & FLAG_CONTINUE != 0,
            task_tag: u32_at(bytes, 16),
            transfer_tag: u32_at(bytes, 20),
            numbers: Numbers::parse(bytes),
        }
    }

    /// The header's bytes.
    pub fn encode(&self) -> Header {
        let flags = if self.last { FLAG_FINAL } else { 0 } | if self.continues { FLAG_CONTINUE } else { 0 };
        let mut bytes = header(Opcode::TextResponse, flags);
        put(&mut bytes, 16, self.task_tag.to_be_bytes());
        put(&mut bytes, 20, self.transfer_tag.to_be_bytes());
        self.numbers.write(&mut bytes);
        bytes
    }
}

/// Response to a logout (11.15.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum LogoutOutcome {
    /// Connection or session closed.
    Closed = 0,
    /// CID not found.
    NoConnection = 1,
    /// Connection recovery is not supported.
    NoRecovery = 2,
    /// Cleanup failed.
    Failed = 3,
}

/// Logout Response (11.15).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogoutResponse {
    /// Byte 2: see [`LogoutOutcome`].
    pub response: u8,
    /// Initiator Task Tag.
    pub task_tag: u32,
    /// Bytes 24 to 35.
    pub numbers: Numbers,
    /// Seconds to wait before connecting again (Time2Wait).
    pub wait_seconds: u16,
    /// Seconds that tasks are kept (Time2Retain).
    pub retain_seconds: u16,
}

impl LogoutResponse {
    /// The response of a header.
    pub fn parse(bytes: &Header) -> Self {
        Self {
            response: bytes[2],
            task_tag: u32_at(bytes, 16),
            numbers: Numbers::parse(bytes),
            wait_seconds: u16_at(bytes, 40),
            retain_seconds: u16_at(bytes, 42),
        }
    }

    /// The header's bytes.
    pub fn encode(&self) -> Header {
        let mut bytes = header(Opcode::LogoutResponse, FLAG_FINAL);
        bytes[2] = self.response;
        put(&mut bytes, 16, self.task_tag.to_be_bytes());
        self.numbers.write(&mut bytes);
        put(&mut bytes, 40, self.wait_seconds.to_be_bytes());
        put(&mut bytes, 42, self.retain_seconds.to_be_bytes());
        bytes
    }
}

/// Reason of a Reject (11.17.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RejectReason {
    /// Data (payload) digest error.
    DataDigest = 0x02,
    /// SNACK Reject.
    Snack = 0x03,
    /// Protocol Error.
    Protocol = 0x04,
    /// Command not supported.
    NotSupported = 0x05,
    /// Too many immediate commands.
    TooManyImmediate = 0x06,
    /// Task in progress.
    TaskInProgress = 0x07,
    /// Invalid PDU field.
    InvalidField = 0x09,
    /// Long operation: no transfer tags are left.
    OutOfTransferTags = 0x0a,
    /// Waiting for Logout.
    WaitingForLogout = 0x0c,
}

/// Reject (11.17). The header at fault follows as data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reject {
    /// Byte 2: see [`RejectReason`].
    pub reason: u8,
    /// Bytes 24 to 35.
    pub numbers: Numbers,
}

impl Reject {
    /// The message of a header.
    pub fn parse(bytes: &Header) -> Self {
        Self { reason: bytes[2], numbers: Numbers::parse(bytes) }
    }

    /// The header's bytes.
    pub fn encode(&self) -> Header {
        let mut bytes = header(Opcode::Reject, FLAG_FINAL);
        bytes[2] = self.reason;
        put(&mut bytes, 16, RESERVED_TAG.to_be_bytes());
        self.numbers.write(&mut bytes);
        bytes
    }

    /// The header that the data of a Reject quotes.
    pub fn quoted(data: &[u8]) -> Option<Header> {
        (data.len() >= HEADER_SIZE).then(|| array_at(data, 0))
    }
}

/// NOP-In (11.19): a ping, or the answer to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NopIn {
    /// Initiator Task Tag of the NOP-Out that this answers, or reserved.
    pub task_tag: u32,
    /// Target Transfer Tag if an answer is wanted, or reserved.
    pub transfer_tag: u32,
    /// Bytes 24 to 35; StatSN is the next one if this answers nothing.
    pub numbers: Numbers,
}

impl NopIn {
    /// The ping of a header.
    pub fn parse(bytes: &Header) -> Self {
        Self { task_tag: u32_at(bytes, 16), transfer_tag: u32_at(bytes, 20), numbers: Numbers::parse(bytes) }
    }

    /// The header's bytes.
    pub fn encode(&self) -> Header {
        let mut bytes = header(Opcode::NopIn, FLAG_FINAL);
        put(&mut bytes, 16, self.task_tag.to_be_bytes());
        put(&mut bytes, 20, self.transfer_tag.to_be_bytes());
        self.numbers.write(&mut bytes);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NUMBERS: Numbers = Numbers { stat_sn: 0x1122_3344, expected_cmd_sn: 0x5566_7788, max_cmd_sn: 0x99aa_bbcc };
    const NUMBER_BYTES: [u8; 12] = [0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc];

    #[test]
    fn a_scsi_response_tells_status_and_residual() {
        let response = ScsiResponse {
            response: 0,
            status: 2,
            task_tag: 0xa0a1_a2a3,
            numbers: NUMBERS,
            expected_data_sn: 1,
            residual: Residual::of(4096, 512),
        };
        let bytes = response.encode();
        assert_eq!(bytes[..4], [0x21, 0x82, 0, 2]);
        assert_eq!(bytes[16..20], [0xa0, 0xa1, 0xa2, 0xa3]);
        assert_eq!(bytes[24..36], NUMBER_BYTES);
        assert_eq!(bytes[36..48], [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0x0e, 0]);
        assert_eq!(ScsiResponse::parse(&bytes), response);
        let more = ScsiResponse { residual: Residual::of(1, 3), ..response };
        assert_eq!((more.encode()[1], more.encode()[47]), (0x84, 2));
        assert_eq!(Residual::of(7, 7), Residual::None);
    }

    #[test]
    fn data_in_brings_a_status_or_none() {
        let data = DataIn { last: true, status: None, task_tag: 1, numbers: NUMBERS, data_sn: 2, offset: 8192 };
        let bytes = data.encode();
        assert_eq!(bytes[..4], [0x25, 0x80, 0, 0]);
        assert_eq!(bytes[20..28], [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0], "no transfer tag, no StatSN");
        assert_eq!(bytes[36..44], [0, 0, 0, 2, 0, 0, 0x20, 0]);
        let with = DataIn { status: Some((0, Residual::Underflow(5))), ..data };
        assert_eq!(with.encode()[1], 0x83);
        assert_eq!(with.encode()[24..36], NUMBER_BYTES);
        assert_eq!(DataIn::parse(&with.encode()), with);
    }

    #[test]
    fn an_r2t_asks_for_a_range() {
        let r2t = ReadyToTransfer {
            lun: 0,
            task_tag: 1,
            transfer_tag: 0xd0d1_d2d3,
            numbers: NUMBERS,
            r2t_sn: 2,
            offset: 0x0001_0000,
            length: 0x0004_0000,
        };
        let bytes = r2t.encode();
        assert_eq!(bytes[..2], [0x31, 0x80]);
        assert_eq!(bytes[20..24], [0xd0, 0xd1, 0xd2, 0xd3]);
        assert_eq!(bytes[36..48], [0, 0, 0, 2, 0, 1, 0, 0, 0, 4, 0, 0]);
        assert_eq!(ReadyToTransfer::parse(&bytes), r2t);
    }

    #[test]
    fn every_async_event_is_read_as_it_is_written() {
        let events = [
            AsyncEvent::Scsi { lun: 0x0007_0000_0000_0000 },
            AsyncEvent::LogoutWanted { within_seconds: 3 },
            AsyncEvent::ConnectionDropped { cid: 1, wait_seconds: 2, retain_seconds: 3 },
            AsyncEvent::SessionDropped { wait_seconds: 4, retain_seconds: 5 },
            AsyncEvent::NegotiationWanted { within_seconds: 6 },
        ];
        for (number, event) in (0..).zip(events) {
            let message = AsyncMessage { event: Some(event), numbers: NUMBERS };
            let bytes = message.encode();
            assert_eq!((bytes[0], bytes[36]), (0x32, number));
            assert_eq!(AsyncMessage::parse(&bytes), message);
        }
    }

    #[test]
    fn the_other_responses_are_read_as_they_are_written() {
        let task =
            TaskManagementResponse { response: TaskManagementOutcome::Rejected as u8, task_tag: 1, numbers: NUMBERS };
        assert_eq!(task.encode()[..3], [0x22, 0x80, 255]);
        assert_eq!(TaskManagementResponse::parse(&task.encode()), task);
        let text = TextResponse { last: false, continues: true, task_tag: 1, transfer_tag: 2, numbers: NUMBERS };
        assert_eq!(text.encode()[..2], [0x24, 0x40]);
        assert_eq!(TextResponse::parse(&text.encode()), text);
        let logout = LogoutResponse { response: 0, task_tag: 1, numbers: NUMBERS, wait_seconds: 2, retain_seconds: 20 };
        assert_eq!(logout.encode()[40..44], [0, 2, 0, 20]);
        assert_eq!(LogoutResponse::parse(&logout.encode()), logout);
        let reject = Reject { reason: RejectReason::Protocol as u8, numbers: NUMBERS };
        assert_eq!(reject.encode()[..3], [0x3f, 0x80, 4]);
        assert_eq!(reject.encode()[16..20], [0xff; 4]);
        assert_eq!(Reject::parse(&reject.encode()), reject);
        let ping = NopIn { task_tag: RESERVED_TAG, transfer_tag: 7, numbers: NUMBERS };
        assert_eq!(NopIn::parse(&ping.encode()), ping);
    }
}
