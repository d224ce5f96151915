//! What all PDUs have in common (11.2).
//!
//! A PDU is: basic header (48 bytes), additional headers, header digest if agreed, data, padding to 4 bytes, data digest if
//! agreed. The header digest covers both headers, the data digest data and padding.

use super::bytes::{array_at, put, u24_at, u32_at};

/// Bytes of the Basic Header Segment (BHS).
pub const HEADER_SIZE: usize = 48;
/// Most bytes of additional headers: TotalAHSLength is 8 bits of 4-byte words.
pub const ADDITIONAL_MAX: usize = 255 * 4;
/// Most data of a PDU: DataSegmentLength has 24 bits.
pub const DATA_SEGMENT_MAX: u32 = (1 << 24) - 1;
/// The task or transfer tag that names none.
pub const RESERVED_TAG: u32 = u32::MAX;

/// A Basic Header Segment.
pub type Header = [u8; HEADER_SIZE];

/// Byte 1: the last PDU of its sequence (F).
pub const FLAG_FINAL: u8 = 1 << 7;
/// Byte 1 of text and login PDUs: the text goes on in the next one (C).
pub const FLAG_CONTINUE: u8 = 1 << 6;

/// Bit of byte 0: to be delivered at once, whatever its CmdSN (I).
const IMMEDIATE: u8 = 1 << 6;

/// Byte offsets of fields, as violations name them.
pub mod field {
    /// Opcode.
    pub const OPCODE: usize = 0;
    /// Flags.
    pub const FLAGS: usize = 1;
    /// TotalAHSLength.
    pub const ADDITIONAL_LENGTH: usize = 4;
    /// DataSegmentLength.
    pub const DATA_LENGTH: usize = 5;
    /// Initiator Task Tag.
    pub const TASK_TAG: usize = 16;
    /// Target Transfer Tag, and what else is at its place.
    pub const TRANSFER_TAG: usize = 20;
    /// CmdSN of requests, StatSN of responses.
    pub const SEQUENCE: usize = 24;
    /// ExpStatSN.
    pub const EXPECTED_STATUS: usize = 28;
    /// DataSN or R2TSN.
    pub const DATA_SEQUENCE: usize = 36;
    /// Buffer Offset.
    pub const BUFFER_OFFSET: usize = 40;
    /// Desired Data Transfer Length of an R2T.
    pub const DESIRED_LENGTH: usize = 44;
}

/// Opcode, bits 5 to 0 of byte 0 (11.2.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    /// NOP-Out.
    NopOut = 0x00,
    /// SCSI Command.
    ScsiCommand = 0x01,
    /// SCSI Task Management Function Request.
    TaskManagementRequest = 0x02,
    /// Login Request.
    LoginRequest = 0x03,
    /// Text Request.
    TextRequest = 0x04,
    /// SCSI Data-Out.
    DataOut = 0x05,
    /// Logout Request.
    LogoutRequest = 0x06,
    /// SNACK Request.
    SnackRequest = 0x10,
    /// NOP-In.
    NopIn = 0x20,
    /// SCSI Response.
    ScsiResponse = 0x21,
    /// SCSI Task Management Function Response.
    TaskManagementResponse = 0x22,
    /// Login Response.
    LoginResponse = 0x23,
    /// Text Response.
    TextResponse = 0x24,
    /// SCSI Data-In.
    DataIn = 0x25,
    /// Logout Response.
    LogoutResponse = 0x26,
    /// Ready To Transfer (R2T).
    ReadyToTransfer = 0x31,
    /// Asynchronous Message.
    AsyncMessage = 0x32,
    /// Reject.
    Reject = 0x3f,
}

impl Opcode {
    /// The opcode of a header, if it is one.
    pub fn of(header: &Header) -> Option<Self> {
        Some(match header[0] & 0x3f {
            0x00 => Self::NopOut,
            0x01 => Self::ScsiCommand,
            0x02 => Self::TaskManagementRequest,
            0x03 => Self::LoginRequest,
            0x04 => Self::TextRequest,
            0x05 => Self::DataOut,
            0x06 => Self::LogoutRequest,
            0x10 => Self::SnackRequest,
            0x20 => Self::NopIn,
            0x21 => Self::ScsiResponse,
            0x22 => Self::TaskManagementResponse,
            0x23 => Self::LoginResponse,
            0x24 => Self::TextResponse,
            0x25 => Self::DataIn,
            0x26 => Self::LogoutResponse,
            0x31 => Self::ReadyToTransfer,
            0x32 => Self::AsyncMessage,
            0x3f => Self::Reject,
            _ => return None,
        })
    }

    /// Whether a target sends it: bit 5.
    pub fn is_targets(self) -> bool {
        self as u8 & 0x20 != 0
    }
}

/// Whether a request is immediate: to be delivered at once, its CmdSN not used up.
pub fn is_immediate(header: &Header) -> bool {
    header[0] & IMMEDIATE != 0
}

/// Bytes of additional headers (TotalAHSLength, counted in words on the wire).
pub fn additional_length(header: &Header) -> usize {
    usize::from(header[field::ADDITIONAL_LENGTH]) * 4
}

/// Bytes of data (DataSegmentLength), padding not counted.
pub fn data_length(header: &Header) -> u32 {
    u24_at(header, field::DATA_LENGTH)
}

/// Initiator Task Tag.
pub fn task_tag(header: &Header) -> u32 {
    u32_at(header, field::TASK_TAG)
}

/// Sets DataSegmentLength, of at most [`DATA_SEGMENT_MAX`].
pub(crate) fn set_data_length(header: &mut Header, length: u32) {
    let [_, bytes @ ..] = length.to_be_bytes();
    put(header, field::DATA_LENGTH, bytes);
}

/// Bytes that round `length` up to whole words.
pub fn padding(length: u32) -> usize {
    (length.wrapping_neg() & 3) as usize
}

/// What one end of a session tells the other in each PDU of a target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Status Sequence Number (StatSN): of this PDU, or of the next one with a status.
    pub stat_sn: u32,
    /// Next expected command (ExpCmdSN).
    pub expected_cmd_sn: u32,
    /// Last command that the window takes (MaxCmdSN).
    pub max_cmd_sn: u32,
}

impl Numbers {
    pub(super) fn parse(header: &Header) -> Self {
        Self { stat_sn: u32_at(header, 24), expected_cmd_sn: u32_at(header, 28), max_cmd_sn: u32_at(header, 32) }
    }

    pub(super) fn write(&self, header: &mut Header) {
        put(header, 24, self.stat_sn.to_be_bytes());
        put(header, 28, self.expected_cmd_sn.to_be_bytes());
        put(header, 32, self.max_cmd_sn.to_be_bytes());
    }
}

/// What each request of an initiator carries besides its own fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestNumbers {
    /// To be delivered at once (I).
    pub immediate: bool,
    /// Command Sequence Number (CmdSN).
    pub cmd_sn: u32,
    /// Next expected status (ExpStatSN): acknowledges all before it.
    pub expected_stat_sn: u32,
}

impl RequestNumbers {
    /// Those of a request's header.
    pub fn parse(header: &Header) -> Self {
        Self {
            immediate: is_immediate(header),
            cmd_sn: u32_at(header, 24),
            expected_stat_sn: u32_at(header, field::EXPECTED_STATUS),
        }
    }

    pub(super) fn write(&self, header: &mut Header) {
        header[0] |= if self.immediate { IMMEDIATE } else { 0 };
        put(header, 24, self.cmd_sn.to_be_bytes());
        put(header, field::EXPECTED_STATUS, self.expected_stat_sn.to_be_bytes());
    }
}

/// A header of this opcode with these flags, all else zero.
pub(super) fn header(opcode: Opcode, flags: u8) -> Header {
    let mut header = [0; HEADER_SIZE];
    header[0] = opcode as u8;
    header[1] = flags;
    header
}

/// An additional header's type (AHSType, 11.2.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Additional {
    /// Extended CDB: what follows the first 16 bytes.
    ExtendedCdb,
    /// Bidirectional Read Expected Data Transfer Length.
    BidirectionalLength,
}

/// The additional headers of a PDU; an error where they do not fit in their own lengths, or are of no known type.
pub fn additional_headers(mut bytes: &[u8]) -> impl Iterator<Item = Result<Additional, ()>> {
    core::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        // AHSLength counts what follows the type, which is the third byte.
        let length = bytes.first_chunk::<3>().map(|start| 3 + usize::from(u16::from_be_bytes(array_at(start, 0))));
        let whole = length.map(|length| length.next_multiple_of(4)).filter(|whole| *whole <= bytes.len());
        let Some(whole) = whole else {
            bytes = &[];
            return Some(Err(()));
        };
        let kind = match bytes[2] & 0x3f {
            1 => Ok(Additional::ExtendedCdb),
            2 => Ok(Additional::BidirectionalLength),
            _ => Err(()),
        };
        bytes = &bytes[whole..];
        Some(kind)
    })
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    #[test]
    fn opcodes_are_those_of_the_rfc() {
        let opcodes: Vec<u8> =
            (0..=0xffu8).filter(|byte| *byte < 0x40 && Opcode::of(&[*byte; HEADER_SIZE]).is_some()).collect();
        let expected = [0, 1, 2, 3, 4, 5, 6, 0x10, 0x20, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x31, 0x32, 0x3f];
        assert_eq!(opcodes, expected);
        for byte in expected {
            assert_eq!(Opcode::of(&[byte; HEADER_SIZE]).map(|opcode| opcode as u8), Some(byte));
            assert_eq!(Opcode::of(&[byte | 0x40; HEADER_SIZE]).map(|opcode| opcode as u8), Some(byte), "immediate");
        }
    }

    #[test]
    fn lengths_are_in_bytes_and_padded_to_words() {
        let mut header = [0; HEADER_SIZE];
        header[4] = 2;
        set_data_length(&mut header, 0x01_02_03);
        assert_eq!(header[4..8], [2, 1, 2, 3]);
        assert_eq!((additional_length(&header), data_length(&header)), (8, 0x01_02_03));
        assert_eq!([0, 1, 2, 3, 4, 5].map(padding), [0, 3, 2, 1, 0, 3]);
    }

    #[test]
    fn additional_headers_end_where_they_say() {
        let all = |bytes: &[u8]| additional_headers(bytes).collect::<Vec<_>>();
        // A 32-byte CDB: 16 bytes follow, and one is reserved. Then a bidirectional length of 5 bytes.
        let mut bytes = Vec::from([0, 17, 1, 0]);
        bytes.resize(20, 0);
        bytes.extend([0, 5, 2, 0, 0, 0, 16, 0]);
        assert_eq!(all(&bytes), [Ok(Additional::ExtendedCdb), Ok(Additional::BidirectionalLength)]);
        assert_eq!(all(&bytes[..24]), [Ok(Additional::ExtendedCdb), Err(())], "cut short");
        assert_eq!(all(&[0, 1, 9, 0]), [Err(())], "no such type");
        assert_eq!(all(&[0xff, 0xff, 1, 0]), [Err(())], "longer than there is");
        assert_eq!(all(&[]), []);
    }
}
