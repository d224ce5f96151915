//! PDU headers of NVMe/TCP (TCP 3.6.2).
//!
//! A PDU is: header (HLEN bytes), header digest if agreed, padding up to PDO, data, data digest if
//! agreed. PLEN counts all of it.

use super::bytes::{array_at, put, u16_at, u32_at};
use super::completion::{COMPLETION_SIZE, CompletionEntry};
use super::submission::{SUBMISSION_SIZE, Submission};

/// Bytes of the common header that opens every PDU.
pub const COMMON_HEADER_SIZE: usize = 8;
/// HLEN of ICReq and ICResp.
pub const INITIALIZE_SIZE: usize = 128;
/// HLEN of H2CTermReq and C2HTermReq.
pub const TERMINATE_SIZE: usize = 24;
/// Most bytes of the offending PDU that follow a termination request's header.
pub const TERMINATE_DATA_MAX: usize = 128;
/// HLEN of CapsuleCmd.
pub const COMMAND_SIZE: usize = COMMON_HEADER_SIZE + SUBMISSION_SIZE;
/// HLEN of CapsuleResp.
pub const RESPONSE_SIZE: usize = COMMON_HEADER_SIZE + COMPLETION_SIZE;
/// HLEN of H2CData, C2HData and R2T.
pub const DATA_SIZE: usize = 24;

/// FLAGS bit: a header digest follows the header (HDGSTF).
pub const FLAG_HEADER_DIGEST: u8 = 1 << 0;
/// FLAGS bit: a data digest follows the data (DDGSTF).
pub const FLAG_DATA_DIGEST: u8 = 1 << 1;
/// FLAGS bit of H2CData and C2HData: the last PDU of this transfer (LAST_PDU).
pub const FLAG_LAST: u8 = 1 << 2;
/// FLAGS bit of C2HData: the command succeeded and no response capsule follows (SUCCESS).
pub const FLAG_SUCCESS: u8 = 1 << 3;

/// Byte offsets of header fields, as a termination request names them (FEI).
pub mod field {
    /// PDU-Type.
    pub const PDU_TYPE: u32 = 0;
    /// FLAGS.
    pub const FLAGS: u32 = 1;
    /// Header Length (HLEN).
    pub const HLEN: u32 = 2;
    /// PDU Data Offset (PDO).
    pub const PDO: u32 = 3;
    /// PDU Length (PLEN).
    pub const PLEN: u32 = 4;
    /// PDU Format Version (PFV) of ICReq and ICResp.
    pub const PFV: u32 = 8;
    /// Host PDU Data Alignment (HPDA) of ICReq, controller's (CPDA) of ICResp.
    pub const DATA_ALIGNMENT: u32 = 10;
    /// Digest bits (DGST) of ICReq and ICResp.
    pub const DGST: u32 = 11;
    /// Maximum Number of Outstanding R2T (MAXR2T) of ICReq; MAXH2CDATA of ICResp.
    pub const MAXIMUM: u32 = 12;
    /// Command Capsule CID (CCCID).
    pub const CCCID: u32 = 8;
    /// Transfer Tag (TTAG).
    pub const TTAG: u32 = 10;
    /// Data Offset (DATAO) or R2T Offset (R2TO).
    pub const DATAO: u32 = 12;
    /// Data Length (DATAL) or R2T Length (R2TL).
    pub const DATAL: u32 = 16;
}

/// PDU-Type, byte 0 of the common header (TCP 3.6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PduType {
    /// Initialize Connection Request (ICReq), host to controller.
    InitializeRequest = 0x00,
    /// Initialize Connection Response (ICResp), controller to host.
    InitializeResponse = 0x01,
    /// Host to Controller Terminate Connection Request (H2CTermReq).
    HostTerminate = 0x02,
    /// Controller to Host Terminate Connection Request (C2HTermReq).
    ControllerTerminate = 0x03,
    /// Command Capsule (CapsuleCmd), host to controller.
    Command = 0x04,
    /// Response Capsule (CapsuleResp), controller to host.
    Response = 0x05,
    /// Host to Controller Data Transfer (H2CData).
    HostData = 0x06,
    /// Controller to Host Data Transfer (C2HData).
    ControllerData = 0x07,
    /// Ready to Transfer (R2T), controller to host.
    ReadyToTransfer = 0x09,
}

impl PduType {
    /// The type with this number, if there is one.
    pub fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0x00 => Self::InitializeRequest,
            0x01 => Self::InitializeResponse,
            0x02 => Self::HostTerminate,
            0x03 => Self::ControllerTerminate,
            0x04 => Self::Command,
            0x05 => Self::Response,
            0x06 => Self::HostData,
            0x07 => Self::ControllerData,
            0x09 => Self::ReadyToTransfer,
            _ => return None,
        })
    }

    /// The only valid HLEN of this type.
    pub fn header_size(self) -> usize {
        match self {
            Self::InitializeRequest | Self::InitializeResponse => INITIALIZE_SIZE,
            Self::HostTerminate | Self::ControllerTerminate => TERMINATE_SIZE,
            Self::Command => COMMAND_SIZE,
            Self::Response => RESPONSE_SIZE,
            Self::HostData | Self::ControllerData | Self::ReadyToTransfer => DATA_SIZE,
        }
    }
}

/// The first eight bytes of every PDU (CH, TCP 3.6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommonHeader {
    /// PDU-Type, byte 0, as received: it may name no type.
    pub pdu_type: u8,
    /// FLAGS, byte 1.
    pub flags: u8,
    /// Header Length (HLEN), byte 2: bytes of the header without its digest.
    pub header_length: u8,
    /// PDU Data Offset (PDO), byte 3: where the data starts; 0 without data.
    pub data_offset: u8,
    /// PDU Length (PLEN), bytes 7:4: everything, digests included.
    pub length: u32,
}

impl CommonHeader {
    /// The header at the start of `bytes`.
    pub fn parse(bytes: &[u8; COMMON_HEADER_SIZE]) -> Self {
        Self {
            pdu_type: bytes[0],
            flags: bytes[1],
            header_length: bytes[2],
            data_offset: bytes[3],
            length: u32_at(bytes, 4),
        }
    }

    /// The header's bytes.
    pub fn encode(&self) -> [u8; COMMON_HEADER_SIZE] {
        let length = self.length.to_le_bytes();
        [self.pdu_type, self.flags, self.header_length, self.data_offset, length[0], length[1], length[2], length[3]]
    }
}

/// What one end says about itself when a connection opens: ICReq or ICResp (TCP 3.6.2.2, 3.6.2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Initialize {
    /// PDU Format Version (PFV), bytes 9:8: 0 is the only one.
    pub format_version: u16,
    /// Host or Controller PDU Data Alignment (HPDA, CPDA), byte 10: in dwords, counted from 0 on the wire;
    /// here in bytes. What the *receiver* of this PDU must align its PDUs' data to.
    pub data_alignment: usize,
    /// Header digest (HDGST_ENABLE), bit 0 of byte 11.
    pub header_digest: bool,
    /// Data digest (DDGST_ENABLE), bit 1 of byte 11.
    pub data_digest: bool,
    /// Bytes 15:12. Of ICReq: R2Ts that may be outstanding for one command (MAXR2T), counted from 1 here.
    /// Of ICResp: most data bytes in one H2CData (MAXH2CDATA).
    pub maximum: u32,
}

/// Greatest HPDA or CPDA: 31, that is 128 bytes.
const ALIGNMENT_MAX: u8 = 31;

impl Initialize {
    /// Reads an ICReq.
    ///
    /// # Errors
    /// The offset of the field whose value this version of the protocol does not have.
    pub fn parse_request(header: &[u8; INITIALIZE_SIZE]) -> Result<Self, u32> {
        let initialize = Self::parse(header)?;
        Ok(Self {
            // 0's based on the wire; 2^32 R2Ts and one less are equally unlimited.
            maximum: initialize.maximum.saturating_add(1),
            ..initialize
        })
    }

    /// Reads an ICResp.
    ///
    /// # Errors
    /// The offset of the field whose value is not valid: MAXH2CDATA is a multiple of 4 of at least 4096.
    pub fn parse_response(header: &[u8; INITIALIZE_SIZE]) -> Result<Self, u32> {
        let initialize = Self::parse(header)?;
        if initialize.maximum < 4096 || !initialize.maximum.is_multiple_of(4) {
            return Err(field::MAXIMUM);
        }
        Ok(initialize)
    }

    /// The bytes of an ICReq with these values.
    pub fn encode_request(&self) -> [u8; INITIALIZE_SIZE] {
        self.encode(PduType::InitializeRequest, self.maximum.saturating_sub(1))
    }

    /// The bytes of an ICResp with these values.
    pub fn encode_response(&self) -> [u8; INITIALIZE_SIZE] {
        self.encode(PduType::InitializeResponse, self.maximum)
    }

    fn parse(header: &[u8; INITIALIZE_SIZE]) -> Result<Self, u32> {
        let format_version = u16_at(header, 8);
        if format_version != 0 {
            return Err(field::PFV);
        }
        if header[10] > ALIGNMENT_MAX {
            return Err(field::DATA_ALIGNMENT);
        }
        Ok(Self {
            format_version,
            data_alignment: (usize::from(header[10]) + 1) * 4,
            header_digest: header[11] & 0b01 != 0,
            data_digest: header[11] & 0b10 != 0,
            maximum: u32_at(header, 12),
        })
    }

    fn encode(&self, pdu_type: PduType, maximum: u32) -> [u8; INITIALIZE_SIZE] {
        let mut bytes = [0; INITIALIZE_SIZE];
        let common = CommonHeader {
            pdu_type: pdu_type as u8,
            flags: 0,
            header_length: INITIALIZE_SIZE as u8,
            data_offset: 0,
            length: INITIALIZE_SIZE as u32,
        };
        put(&mut bytes, 0, common.encode());
        put(&mut bytes, 8, self.format_version.to_le_bytes());
        bytes[10] = (self.data_alignment / 4).saturating_sub(1) as u8;
        bytes[11] = u8::from(self.header_digest) | u8::from(self.data_digest) << 1;
        put(&mut bytes, 12, maximum.to_le_bytes());
        bytes
    }
}

/// Why a connection ends: Fatal Error Status (FES) and Information (FEI) of H2CTermReq and C2HTermReq
/// (TCP 3.6.2.4, 3.6.2.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FatalError {
    /// 01h Invalid PDU Header Field, with the field's byte offset.
    InvalidHeaderField(u32),
    /// 02h PDU Sequence Error: a PDU that this state does not allow.
    SequenceError,
    /// 03h Header Digest Error, with the digest that was received.
    HeaderDigestError(u32),
    /// 04h Data Transfer Out of Range: data outside what was asked for.
    DataOutOfRange,
    /// 05h Data Transfer Limit Exceeded: more data in a PDU, or more R2Ts, than agreed.
    LimitExceeded,
    /// 06h Unsupported Parameter, with the field's byte offset.
    UnsupportedParameter(u32),
    /// A status that this version does not name, from the other end.
    Other(u16),
}

impl FatalError {
    /// FES and FEI.
    pub fn codes(self) -> (u16, u32) {
        match self {
            Self::InvalidHeaderField(offset) => (0x01, offset),
            Self::SequenceError => (0x02, 0),
            Self::HeaderDigestError(digest) => (0x03, digest),
            Self::DataOutOfRange => (0x04, 0),
            Self::LimitExceeded => (0x05, 0),
            Self::UnsupportedParameter(offset) => (0x06, offset),
            Self::Other(status) => (status, 0),
        }
    }

    /// Reads FES (bytes 9:8) and FEI (bytes 13:10) of a termination request's header.
    pub fn parse(header: &[u8; TERMINATE_SIZE]) -> Self {
        let information = u32_at(header, 10);
        match u16_at(header, 8) {
            0x01 => Self::InvalidHeaderField(information),
            0x02 => Self::SequenceError,
            0x03 => Self::HeaderDigestError(information),
            0x04 => Self::DataOutOfRange,
            0x05 => Self::LimitExceeded,
            0x06 => Self::UnsupportedParameter(information),
            other => Self::Other(other),
        }
    }

    /// The header of a termination request of type `pdu_type`, followed by `data_length` bytes of the
    /// PDU it complains of.
    pub fn encode(self, pdu_type: PduType, data_length: usize) -> [u8; TERMINATE_SIZE] {
        let mut bytes = [0; TERMINATE_SIZE];
        let common = CommonHeader {
            pdu_type: pdu_type as u8,
            flags: 0,
            header_length: TERMINATE_SIZE as u8,
            data_offset: 0,
            length: (TERMINATE_SIZE + data_length) as u32,
        };
        let (status, information) = self.codes();
        put(&mut bytes, 0, common.encode());
        put(&mut bytes, 8, status.to_le_bytes());
        put(&mut bytes, 10, information.to_le_bytes());
        bytes
    }
}

/// Header of H2CData, C2HData and R2T, which share their layout (TCP 3.6.2.8 to 3.6.2.10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataHeader {
    /// Command Capsule CID (CCCID), bytes 9:8: the command that the data belongs to.
    pub command_id: u16,
    /// Transfer Tag (TTAG), bytes 11:10: names the R2T; reserved in C2HData.
    pub transfer_tag: u16,
    /// Data Offset (DATAO) or R2T Offset (R2TO), bytes 15:12: from the start of the command's data.
    pub offset: u32,
    /// Data Length (DATAL) or R2T Length (R2TL), bytes 19:16.
    pub length: u32,
}

impl DataHeader {
    /// The part of `header` after the common header.
    pub fn parse(header: &[u8; DATA_SIZE]) -> Self {
        Self {
            command_id: u16_at(header, 8),
            transfer_tag: u16_at(header, 10),
            offset: u32_at(header, 12),
            length: u32_at(header, 16),
        }
    }

    /// The whole header, common part included.
    pub fn encode(&self, common: &CommonHeader) -> [u8; DATA_SIZE] {
        let mut bytes = [0; DATA_SIZE];
        put(&mut bytes, 0, common.encode());
        put(&mut bytes, 8, self.command_id.to_le_bytes());
        put(&mut bytes, 10, self.transfer_tag.to_le_bytes());
        put(&mut bytes, 12, self.offset.to_le_bytes());
        put(&mut bytes, 16, self.length.to_le_bytes());
        bytes
    }
}

/// The submission queue entry of a CapsuleCmd header (CCSQE, TCP 3.6.2.6).
pub fn parse_command(header: &[u8; COMMAND_SIZE]) -> Submission {
    Submission::from_bytes(array_at(header, COMMON_HEADER_SIZE))
}

/// A CapsuleCmd header.
pub fn encode_command(common: &CommonHeader, entry: &Submission) -> [u8; COMMAND_SIZE] {
    let mut bytes = [0; COMMAND_SIZE];
    put(&mut bytes, 0, common.encode());
    put(&mut bytes, COMMON_HEADER_SIZE, *entry.as_bytes());
    bytes
}

/// The completion queue entry of a CapsuleResp header (RCCQE, TCP 3.6.2.7).
pub fn parse_response(header: &[u8; RESPONSE_SIZE]) -> CompletionEntry {
    CompletionEntry::parse(&array_at(header, COMMON_HEADER_SIZE))
}

/// A CapsuleResp header.
pub fn encode_response(common: &CommonHeader, entry: &CompletionEntry) -> [u8; RESPONSE_SIZE] {
    let mut bytes = [0; RESPONSE_SIZE];
    put(&mut bytes, 0, common.encode());
    put(&mut bytes, COMMON_HEADER_SIZE, entry.encode());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Completion, Status};

    /// TCP 3.6.2.2 (ICReq): HPDA 3 (16 bytes), both digests, MAXR2T 15 (16).
    #[test]
    fn initialize_request_bytes() {
        let mut bytes = [0u8; 128];
        bytes[..16].copy_from_slice(&[0x00, 0, 0x80, 0, 0x80, 0, 0, 0, 0, 0, 3, 3, 15, 0, 0, 0]);
        let request = Initialize::parse_request(&bytes).unwrap();
        assert_eq!(
            request,
            Initialize { format_version: 0, data_alignment: 16, header_digest: true, data_digest: true, maximum: 16 }
        );
        assert_eq!(request.encode_request(), bytes);
    }

    /// TCP 3.6.2.3 (ICResp): no alignment, data digest, MAXH2CDATA 128 KiB.
    #[test]
    fn initialize_response_bytes() {
        let mut bytes = [0u8; 128];
        bytes[..16].copy_from_slice(&[0x01, 0, 0x80, 0, 0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 2, 0]);
        let response = Initialize::parse_response(&bytes).unwrap();
        assert_eq!(response.data_alignment, 4);
        assert!(!response.header_digest && response.data_digest);
        assert_eq!(response.maximum, 131_072);
        assert_eq!(response.encode_response(), bytes);
    }

    #[test]
    fn initialize_with_values_outside_the_specification() {
        let mut bytes = [0u8; 128];
        bytes[8] = 1;
        assert_eq!(Initialize::parse_request(&bytes), Err(8));
        bytes[8] = 0;
        bytes[10] = 32;
        assert_eq!(Initialize::parse_request(&bytes), Err(10));
        bytes[10] = 0;
        bytes[12] = 0xfc;
        assert_eq!(Initialize::parse_response(&bytes), Err(12));
        bytes[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(Initialize::parse_request(&bytes).unwrap().maximum, u32::MAX);
    }

    /// TCP 3.6.2.5: C2HTermReq that blames byte 10 of a 24-byte header.
    #[test]
    fn terminate_request_bytes() {
        let bytes = FatalError::InvalidHeaderField(10).encode(PduType::ControllerTerminate, 24);
        let expected = [0x03, 0, 0x18, 0, 0x30, 0, 0, 0, 0x01, 0, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(bytes, expected);
        assert_eq!(FatalError::parse(&bytes), FatalError::InvalidHeaderField(10));
    }

    /// TCP 3.6.2.10: R2T for 1 MiB of command 0x0201 with tag 0x0403.
    #[test]
    fn ready_to_transfer_bytes() {
        let expected =
            [0x09, 0, 0x18, 0, 0x18, 0, 0, 0, 0x01, 0x02, 0x03, 0x04, 0, 0x10, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0];
        let header = DataHeader::parse(&expected);
        assert_eq!(header, DataHeader { command_id: 0x0201, transfer_tag: 0x0403, offset: 4096, length: 1 << 20 });
        let common = CommonHeader::parse(&array_at(&expected, 0));
        assert_eq!(PduType::from_byte(common.pdu_type), Some(PduType::ReadyToTransfer));
        assert_eq!(header.encode(&common), expected);
    }

    /// TCP 3.6.2.6, 3.6.2.7: the entries follow the common header directly.
    #[test]
    fn capsules_carry_their_entry_at_byte_8() {
        let common =
            CommonHeader { pdu_type: 0x05, flags: FLAG_HEADER_DIGEST, header_length: 24, data_offset: 0, length: 28 };
        let entry =
            CompletionEntry { completion: Completion::error(Status::InvalidOpcode), submission_head: 3, command_id: 7 };
        let bytes = encode_response(&common, &entry);
        let expected = [0x05, 0x01, 0x18, 0, 0x1c, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x03, 0, 0, 0, 0x07, 0, 0x02, 0x80];
        assert_eq!(bytes, expected);
        assert_eq!(parse_response(&bytes), entry);
        assert_eq!(PduType::Command.header_size(), 72);
    }

    #[test]
    fn unknown_types_have_no_name() {
        assert_eq!(PduType::from_byte(0x08), None);
        assert_eq!(PduType::from_byte(0x0a), None);
        assert_eq!(PduType::from_byte(0xff), None);
    }
}
