//! What initiators send (11.3 to 11.18), but for Login Request, which is in [`super::login`].

use super::bytes::{array_at, put, u16_at, u32_at, u64_at};
use super::pdu::{FLAG_CONTINUE, FLAG_FINAL, Header, Opcode, RequestNumbers, header};

/// Bytes of a CDB in the basic header.
pub const CDB_SIZE: usize = 16;

/// SCSI Command (11.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScsiCommand {
    /// Byte 1 bit 7: no unsolicited Data-Out follows (F).
    pub last: bool,
    /// Byte 1 bit 6: data for the initiator is expected (R).
    pub read: bool,
    /// Byte 1 bit 5: data from the initiator is expected (W).
    pub write: bool,
    /// Byte 1 bits 2 to 0: task attribute (ATTR).
    pub attribute: u8,
    /// Logical Unit Number, bytes 8 to 15.
    pub lun: u64,
    /// Initiator Task Tag, bytes 16 to 19.
    pub task_tag: u32,
    /// Expected Data Transfer Length, bytes 20 to 23.
    pub expected_length: u32,
    /// Bytes 24 to 31.
    pub numbers: RequestNumbers,
    /// SCSI Command Descriptor Block (CDB), bytes 32 to 47.
    pub cdb: [u8; CDB_SIZE],
}

const READ: u8 = 1 << 6;
const WRITE: u8 = 1 << 5;

impl ScsiCommand {
    /// The command of a header.
    pub fn parse(bytes: &Header) -> Self {
        Self {
            last: bytes[1] & FLAG_FINAL != 0,
            read: bytes[1] & READ != 0,
            write: bytes[1] & WRITE != 0,
            attribute: bytes[1] & 7,
            lun: u64_at(bytes, 8),
            task_tag: u32_at(bytes, 16),
            expected_length: u32_at(bytes, 20),
            numbers: RequestNumbers::parse(bytes),
            cdb: array_at(bytes, 32),
        }
    }

    /// The header's bytes.
    pub fn encode(&self) -> Header {
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        let flags = flag(self.last, FLAG_FINAL) | flag(self.read, READ) | flag(self.write, WRITE);
        let mut bytes = header(Opcode::ScsiCommand, flags | self.attribute & 7);
        put(&mut bytes, 8, self.lun.to_be_bytes());
        put(&mut bytes, 16, self.task_tag.to_be_bytes());
        put(&mut bytes, 20, self.expected_length.to_be_bytes());
        self.numbers.write(&mut bytes);
        put(&mut bytes, 32, self.cdb);
        bytes
    }
}

/// Function of a task management request (11.5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TaskFunction {
    /// ABORT TASK: the one named by the referenced task tag.
    AbortTask = 1,
    /// ABORT TASK SET: all tasks of this session on the logical unit.
    AbortTaskSet = 2,
    /// CLEAR ACA.
    ClearAca = 3,
    /// CLEAR TASK SET: all tasks of all sessions on the logical unit.
    ClearTaskSet = 4,
    /// LOGICAL UNIT RESET.
    LogicalUnitReset = 5,
    /// TARGET WARM RESET.
    TargetWarmReset = 6,
    /// TARGET COLD RESET: all sessions are dropped as well.
    TargetColdReset = 7,
    /// TASK REASSIGN, of error recovery level 2.
    TaskReassign = 8,
}

impl TaskFunction {
    /// The function with this number, if there is one.
    pub fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::AbortTask,
            2 => Self::AbortTaskSet,
            3 => Self::ClearAca,
            4 => Self::ClearTaskSet,
            5 => Self::LogicalUnitReset,
            6 => Self::TargetWarmReset,
            7 => Self::TargetColdReset,
            8 => Self::TaskReassign,
            _ => return None,
        })
    }
}

/// Task Management Function Request (11.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskManagementRequest {
    /// Byte 1 bits 6 to 0: the function, as received.
    pub function: u8,
    /// Logical Unit Number.
    pub lun: u64,
    /// Initiator Task Tag of this request.
    pub task_tag: u32,
    /// Referenced Task Tag, bytes 20 to 23.
    pub referenced_tag: u32,
    /// Bytes 24 to 31.
    pub numbers: RequestNumbers,
    /// CmdSN of the referenced task (RefCmdSN), bytes 32 to 35.
    pub referenced_cmd_sn: u32,
}

impl TaskManagementRequest {
    /// The request of a header.
    pub fn parse(bytes: &Header) -> Self {
        Self {
            function: bytes[1] & 0x7f,
            lun: u64_at(bytes, 8),
            task_tag: u32_at(bytes, 16),
            referenced_tag: u32_at(bytes, 20),
            numbers: RequestNumbers::parse(bytes),
            referenced_cmd_sn: u32_at(bytes, 32),
        }
    }

    /// The header's bytes.
    pub fn encode(&self) -> Header {
        let mut bytes = header(Opcode::TaskManagementRequest, FLAG_FINAL | self.function);
        put(&mut bytes, 8, self.lun.to_be_bytes());
        put(&mut bytes, 16, self.task_tag.to_be_bytes());
        put(&mut bytes, 20, self.referenced_tag.to_be_bytes());
        self.numbers.write(&mut bytes);
        put(&mut bytes, 32, self.referenced_cmd_sn.to_be_bytes());
        bytes
    }
}

/// SCSI Data-Out (11.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataOut {
    /// Byte 1 bit 7: the last PDU of its sequence (F).
    pub last: bool,
    /// Logical Unit Number, if there is a transfer tag.
    pub lun: u64,
    /// Initiator Task Tag of the command.
    pub task_tag: u32,
    /// Target Transfer Tag of the R2T; reserved for unsolicited data.
    pub transfer_tag: u32,
    /// ExpStatSN.
    pub expected_stat_sn: u32,
    /// DataSN, from 0 in each sequence, bytes 36 to 39.
    pub data_sn: u32,
    /// Buffer Offset, bytes 40 to 43.
    pub offset: u32,
}

impl DataOut {
    /// The header of data.
    pub fn parse(bytes: &Header) -> Self {
        Self {
            last: bytes[1] & FLAG_FINAL != 0,
            lun: u64_at(bytes, 8),
            task_tag: u32_at(bytes, 16),
            transfer_tag: u32_at(bytes, 20),
            expected_stat_sn: u32_at(bytes, 28),
            data_sn: u32_at(bytes, 36),
            offset: u32_at(bytes, 40),
        }
    }

    /// The header's bytes.
    pub fn encode(&self) -> Header {
        let mut bytes = header(Opcode::DataOut, if self.last { FLAG_FINAL } else { 0 });
        put(&mut bytes, 8, self.lun.to_be_bytes());
        put(&mut bytes, 16, self.task_tag.to_be_bytes());
        put(&mut bytes, 20, self.transfer_tag.to_be_bytes());
        put(&mut bytes, 28, self.expected_stat_sn.to_be_bytes());
        put(&mut bytes, 36, self.data_sn.to_be_bytes());
        put(&mut bytes, 40, self.offset.to_be_bytes());
        bytes
    }
}

/// Text Request (11.10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextRequest {
    /// Byte 1 bit 7: the initiator has no more to negotiate (F).
    pub last: bool,
    /// Byte 1 bit 6: the text goes on in the next request (C).
    pub continues: bool,
    /// Initiator Task Tag.
    pub task_tag: u32,
    /// Target Transfer Tag of the response that this request follows; reserved in the first.
    pub transfer_tag: u32,
    /// Bytes 24 to 31.
    pub numbers: RequestNumbers,
}

impl TextRequest {
    /// The request of a header.
    pub fn parse(bytes: &Header) -> Self {
        Self {
            last: bytes[1] & FLAG_FINAL != 0,
            continues: bytes[1] & FLAG_CONTINUE != 0,
            task_tag: u32_at(bytes, 16),
            transfer_tag: u32_at(bytes, 20),
            numbers: RequestNumbers::parse(bytes),
        }
    }

    /// The header's bytes.
    pub fn encode(&self) -> Header {
        let flags = if self.last { FLAG_FINAL } else { 0 } | if self.continues { FLAG_CONTINUE } else { 0 };
        let mut bytes = header(Opcode::TextRequest, flags);
        put(&mut bytes, 16, self.task_tag.to_be_bytes());
        put(&mut bytes, 20, self.transfer_tag.to_be_bytes());
        self.numbers.write(&mut bytes);
        bytes
    }
}

/// Why an initiator logs out (11.14.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum LogoutReason {
    /// Close the session.
    CloseSession = 0,
    /// Close the connection named by the CID.
    CloseConnection = 1,
    /// Remove the connection for recovery, of error recovery level 2.
    Recovery = 2,
}

/// Logout Request (11.14).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogoutRequest {
    /// Byte 1 bits 6 to 0: the reason, as received.
    pub reason: u8,
    /// Initiator Task Tag.
    pub task_tag: u32,
    /// Connection ID (CID), bytes 20 and 21.
    pub cid: u16,
    /// Bytes 24 to 31.
    pub numbers: RequestNumbers,
}

impl LogoutRequest {
    /// The request of a header.
    pub fn parse(bytes: &Header) -> Self {
        Self {
            reason: bytes[1] & 0x7f,
            task_tag: u32_at(bytes, 16),
            cid: u16_at(bytes, 20),
            numbers: RequestNumbers::parse(bytes),
        }
    }

    /// The header's bytes.
    pub fn encode(&self) -> Header {
        let mut bytes = header(Opcode::LogoutRequest, FLAG_FINAL | self.reason);
        put(&mut bytes, 16, self.task_tag.to_be_bytes());
        put(&mut bytes, 20, self.cid.to_be_bytes());
        self.numbers.write(&mut bytes);
        bytes
    }
}

/// NOP-Out (11.18): a ping, or the answer to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NopOut {
    /// Logical Unit Number, copied from the NOP-In that this answers.
    pub lun: u64,
    /// Initiator Task Tag; reserved if no answer is wanted.
    pub task_tag: u32,
    /// Target Transfer Tag of the NOP-In that this answers, or reserved.
    pub transfer_tag: u32,
    /// Bytes 24 to 31.
    pub numbers: RequestNumbers,
}

impl NopOut {
    /// The ping of a header.
    pub fn parse(bytes: &Header) -> Self {
        Self {
            lun: u64_at(bytes, 8),
            task_tag: u32_at(bytes, 16),
            transfer_tag: u32_at(bytes, 20),
            numbers: RequestNumbers::parse(bytes),
        }
    }

    /// The header's bytes.
    pub fn encode(&self) -> Header {
        let mut bytes = header(Opcode::NopOut, FLAG_FINAL);
        put(&mut bytes, 8, self.lun.to_be_bytes());
        put(&mut bytes, 16, self.task_tag.to_be_bytes());
        put(&mut bytes, 20, self.transfer_tag.to_be_bytes());
        self.numbers.write(&mut bytes);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::pdu::RESERVED_TAG;

    const NUMBERS: RequestNumbers =
        RequestNumbers { immediate: false, cmd_sn: 0x1122_3344, expected_stat_sn: 0x5566_7788 };

    /// 11.3: F, W, simple queue; LUN 1; tag 5; 4096 bytes; WRITE (10).
    #[test]
    fn a_scsi_command_is_where_the_rfc_puts_it() {
        let mut bytes = [0; 48];
        bytes[..2].copy_from_slice(&[0x01, 0xa1]);
        bytes[9] = 1;
        bytes[19] = 5;
        bytes[22] = 0x10;
        bytes[24..32].copy_from_slice(&[0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88]);
        bytes[32] = 0x2a;
        bytes[40] = 8;
        let mut cdb = [0; 16];
        (cdb[0], cdb[8]) = (0x2a, 8);
        let command = ScsiCommand {
            last: true,
            read: false,
            write: true,
            attribute: 1,
            lun: 0x0001_0000_0000_0000,
            task_tag: 5,
            expected_length: 4096,
            numbers: NUMBERS,
            cdb,
        };
        assert_eq!(ScsiCommand::parse(&bytes), command);
        assert_eq!(command.encode(), bytes);
    }

    #[test]
    fn an_immediate_abort_names_its_task() {
        let numbers = RequestNumbers { immediate: true, ..NUMBERS };
        let request = TaskManagementRequest {
            function: TaskFunction::AbortTask as u8,
            lun: 0,
            task_tag: 9,
            referenced_tag: 0xa1a2_a3a4,
            numbers,
            referenced_cmd_sn: 0xb1b2_b3b4,
        };
        let bytes = request.encode();
        assert_eq!(bytes[..2], [0x42, 0x81]);
        assert_eq!(bytes[20..24], [0xa1, 0xa2, 0xa3, 0xa4]);
        assert_eq!(bytes[32..36], [0xb1, 0xb2, 0xb3, 0xb4]);
        assert_eq!(TaskManagementRequest::parse(&bytes), request);
        for byte in 0..=255 {
            let function = TaskFunction::from_byte(byte);
            assert_eq!(function.map(|function| function as u8), (1..=8).contains(&byte).then_some(byte));
        }
    }

    #[test]
    fn data_out_says_where_its_data_goes() {
        let data = DataOut {
            last: true,
            lun: 7,
            task_tag: 1,
            transfer_tag: 0xc1c2_c3c4,
            expected_stat_sn: 2,
            data_sn: 3,
            offset: 0x0004_0000,
        };
        let bytes = data.encode();
        assert_eq!(bytes[..2], [0x05, 0x80]);
        assert_eq!(bytes[20..24], [0xc1, 0xc2, 0xc3, 0xc4]);
        assert_eq!(bytes[24..28], [0; 4], "reserved: no CmdSN");
        assert_eq!(bytes[36..44], [0, 0, 0, 3, 0, 4, 0, 0]);
        assert_eq!(DataOut::parse(&bytes), data);
    }

    #[test]
    fn text_logout_and_pings_are_read_as_they_are_written() {
        let text =
            TextRequest { last: false, continues: true, task_tag: 1, transfer_tag: RESERVED_TAG, numbers: NUMBERS };
        assert_eq!(text.encode()[..2], [0x04, 0x40]);
        assert_eq!(TextRequest::parse(&text.encode()), text);
        let logout =
            LogoutRequest { reason: LogoutReason::CloseConnection as u8, task_tag: 3, cid: 0x0102, numbers: NUMBERS };
        assert_eq!(logout.encode()[..2], [0x06, 0x81]);
        assert_eq!(logout.encode()[20..22], [1, 2]);
        assert_eq!(LogoutRequest::parse(&logout.encode()), logout);
        let ping = NopOut { lun: 0, task_tag: 4, transfer_tag: RESERVED_TAG, numbers: NUMBERS };
        assert_eq!(ping.encode()[..2], [0x00, 0x80]);
        assert_eq!(NopOut::parse(&ping.encode()), ping);
    }
}
