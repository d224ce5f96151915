//! The header of a frame, and what each kind allows in it.

use crate::{
    MAX_ATTACHED, MAX_CONTROL, MAX_MEMBERSHIP, MAX_NOTE, MAX_RANGES, MAX_REPAIR, MAX_TRANSFER, ProtocolError, Status,
};

/// Bytes of a header.
pub const HEADER_SIZE: usize = 64;

const MAGIC: [u8; 4] = *b"ASHR";

/// CRC32C (Castagnoli).
pub fn checksum(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs, reason = "docs/replica-protocol.md has the table")]
pub enum Kind {
    Hello = 1,
    Welcome = 2,
    Open = 3,
    Grant = 4,
    Refuse = 5,
    Close = 6,
    Ping = 7,
    Pong = 8,
    Read = 16,
    Write = 17,
    Flush = 18,
    Unmap = 19,
    WriteZeroes = 20,
    Snapshot = 32,
    Chain = 33,
    Extents = 34,
    ReadLvol = 35,
    Reset = 36,
    SetState = 37,
    Hashes = 38,
    SetNote = 39,
    Notes = 40,
    SetMembership = 41,
    Membership = 42,
    DeleteSnapshot = 48,
    Revert = 49,
    Grow = 50,
    Damage = 51,
    Repair = 52,
    Answer = 64,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 30] = [
        Self::Hello,
        Self::Welcome,
        Self::Open,
        Self::Grant,
        Self::Refuse,
        Self::Close,
        Self::Ping,
        Self::Pong,
        Self::Read,
        Self::Write,
        Self::Flush,
        Self::Unmap,
        Self::WriteZeroes,
        Self::Snapshot,
        Self::Chain,
        Self::Extents,
        Self::ReadLvol,
        Self::Reset,
        Self::SetState,
        Self::Hashes,
        Self::SetNote,
        Self::Notes,
        Self::SetMembership,
        Self::Membership,
        Self::DeleteSnapshot,
        Self::Revert,
        Self::Grow,
        Self::Damage,
        Self::Repair,
        Self::Answer,
    ];

    fn from_code(code: u8) -> Result<Self, ProtocolError> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == code).ok_or(ProtocolError::Kind(code))
    }

    /// Whether it is a request: it has an id and takes credits until its answer.
    pub const fn is_request(self) -> bool {
        let code = self as u8;
        code >= Self::Read as u8 && code < Self::Answer as u8
    }

    /// Whether its payload is data of the volume rather than a message.
    pub const fn carries_data(self) -> bool {
        matches!(self, Self::Write)
    }

    const fn allowed_flags(self) -> u8 {
        match self {
            Self::Write | Self::SetNote => Flags::FUA,
            Self::WriteZeroes => Flags::FUA | Flags::UNMAP,
            _ => 0,
        }
    }

    /// The longest payload, before the state machines look closer.
    const fn max_payload(self) -> u32 {
        match self {
            Self::Write | Self::Answer => MAX_TRANSFER,
            Self::Unmap => 16 * MAX_RANGES as u32,
            Self::Hello | Self::Welcome | Self::Open | Self::Grant | Self::Pong | Self::Snapshot => 512,
            Self::Refuse => crate::MAX_TEXT as u32,
            Self::ReadLvol | Self::DeleteSnapshot | Self::Revert => 16,
            Self::Extents | Self::Hashes => 24,
            Self::SetNote => MAX_NOTE,
            Self::SetMembership => MAX_MEMBERSHIP + MAX_ATTACHED,
            Self::Repair => 16 + MAX_REPAIR,
            Self::Close | Self::Ping | Self::Read | Self::Flush | Self::WriteZeroes => 0,
            Self::Chain | Self::Reset | Self::SetState | Self::Grow => 0,
            Self::Notes | Self::Membership | Self::Damage => 0,
        }
    }
}

/// The flags of a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// Force Unit Access: durable before the answer.
    pub fua: bool,
    /// The space may be given back.
    pub unmap: bool,
}

impl Flags {
    const FUA: u8 = 1;
    const UNMAP: u8 = 2;

    const fn bits(self) -> u8 {
        (self.fua as u8) | (self.unmap as u8) << 1
    }
}

/// A header, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The version it is written in.
    pub version: u16,
    /// What it is.
    pub kind: Kind,
    /// Its flags.
    pub flags: Flags,
    /// Which request; zero outside requests and answers.
    pub request: u64,
    /// The epoch.
    pub epoch: u64,
    /// Bytes from the start of the volume, or what the kind says.
    pub offset: u64,
    /// Bytes, or what the kind says.
    pub length: u64,
    /// Bytes of payload after the header.
    pub payload_length: u32,
    /// CRC32C of the payload, zero without one.
    pub payload_checksum: u32,
    /// What became of a request.
    pub status: Status,
}

impl Frame {
    /// A frame of this kind with everything else zero.
    pub const fn new(kind: Kind) -> Self {
        Self {
            version: crate::VERSION,
            kind,
            flags: Flags { fua: false, unmap: false },
            request: 0,
            epoch: 0,
            offset: 0,
            length: 0,
            payload_length: 0,
            payload_checksum: 0,
            status: Status::Good,
        }
    }

    /// The header's bytes.
    pub fn encode(&self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        bytes[0..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&self.version.to_le_bytes());
        bytes[6] = self.kind as u8;
        bytes[7] = self.flags.bits();
        bytes[8..16].copy_from_slice(&self.request.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.offset.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.length.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.payload_length.to_le_bytes());
        bytes[44..48].copy_from_slice(&self.payload_checksum.to_le_bytes());
        bytes[48..50].copy_from_slice(&self.status.code().to_le_bytes());
        let sum = checksum(&bytes[..60]);
        bytes[60..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Parses and checks a header. The checksum comes after the magic, so that a peer that speaks something else is
    /// told so.
    pub fn decode(bytes: &[u8; HEADER_SIZE]) -> Result<Self, ProtocolError> {
        let magic = array::<4>(bytes, 0);
        if magic != MAGIC {
            return Err(ProtocolError::Magic(magic));
        }
        if checksum(&bytes[..60]) != u32::from_le_bytes(array(bytes, 60)) {
            return Err(ProtocolError::HeaderChecksum);
        }
        let version = u16::from_le_bytes(array(bytes, 4));
        if version != crate::VERSION {
            return Err(ProtocolError::Version(version));
        }
        let kind = Kind::from_code(bytes[6])?;
        if bytes[7] & !kind.allowed_flags() != 0 {
            return Err(ProtocolError::Flags(bytes[7]));
        }
        let frame = Self {
            version,
            kind,
            flags: Flags { fua: bytes[7] & Flags::FUA != 0, unmap: bytes[7] & Flags::UNMAP != 0 },
            request: u64::from_le_bytes(array(bytes, 8)),
            epoch: u64::from_le_bytes(array(bytes, 16)),
            offset: u64::from_le_bytes(array(bytes, 24)),
            length: u64::from_le_bytes(array(bytes, 32)),
            payload_length: u32::from_le_bytes(array(bytes, 40)),
            payload_checksum: u32::from_le_bytes(array(bytes, 44)),
            status: Status::from_code(u16::from_le_bytes(array(bytes, 48)))?,
        };
        frame.check(&bytes[50..60])?;
        Ok(frame)
    }

    fn check(&self, reserved: &[u8]) -> Result<(), ProtocolError> {
        let has_status = matches!(self.kind, Kind::Answer | Kind::Refuse | Kind::Pong);
        let has_id = self.kind.is_request() || self.kind == Kind::Answer;
        if reserved.iter().any(|&byte| byte != 0)
            || (!has_status && self.status != Status::Good)
            || (!has_id && self.request != 0)
        {
            return Err(ProtocolError::Reserved);
        }
        if self.payload_length > self.kind.max_payload() {
            return Err(ProtocolError::PayloadLength(self.payload_length));
        }
        self.check_transfer()
    }

    /// Reads and writes move what they say, and never more than the longest transfer.
    fn check_transfer(&self) -> Result<(), ProtocolError> {
        let too_long = self.length > u64::from(MAX_TRANSFER);
        match self.kind {
            Kind::Write if u64::from(self.payload_length) != self.length || self.length == 0 => {
                Err(ProtocolError::PayloadLength(self.payload_length))
            }
            Kind::Read | Kind::ReadLvol | Kind::Hashes if too_long => Err(ProtocolError::PayloadLength(u32::MAX)),
            _ => Ok(()),
        }
    }

    /// Bytes of credit the request takes: of hashes those that are read for them.
    pub const fn cost(&self) -> u64 {
        match self.kind {
            Kind::Read | Kind::Write | Kind::ReadLvol | Kind::Hashes => self.length,
            Kind::Repair => self.payload_length as u64,
            _ => 0,
        }
    }
}

fn array<const N: usize>(bytes: &[u8; HEADER_SIZE], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

// What is not data must fit the bound of control payloads.
const _: () = assert!(16 * MAX_RANGES as u32 <= MAX_CONTROL);
const _: () = assert!(16 + MAX_MEMBERSHIP + MAX_ATTACHED <= MAX_CONTROL);

#[cfg(test)]
mod tests {
    use super::*;

    fn write() -> Frame {
        Frame {
            flags: Flags { fua: true, unmap: false },
            request: 0x0000_0000_0001_0003,
            epoch: 7,
            offset: 0x1000,
            length: 9,
            payload_length: 9,
            payload_checksum: checksum(b"123456789"),
            ..Frame::new(Kind::Write)
        }
    }

    #[test]
    fn the_checksum_is_the_published_one() {
        // The check value of CRC-32/ISCSI in the catalogue of CRC algorithms.
        assert_eq!(checksum(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn the_bytes_of_a_write_are_pinned() {
        #[rustfmt::skip]
        let head: [u8; 60] = [
            0x41, 0x53, 0x48, 0x52, 0x01, 0x00, 0x11, 0x01,
            0x03, 0x00, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00,
            0x07, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
            0x00, 0x10, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
            0x09, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
            0x09, 0x00, 0x00, 0x00, 0x83, 0x92, 0x06, 0xe3,
            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
        ];
        let bytes = write().encode();
        assert_eq!(bytes[..60], head);
        assert_eq!(Frame::decode(&bytes), Ok(write()));
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        for bit in 0..HEADER_SIZE * 8 {
            let mut bytes = write().encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Frame::decode(&bytes).is_err(), "bit {bit}");
        }
    }

    /// A header with a field changed and the checksum made right again.
    fn forged(change: impl FnOnce(&mut [u8; HEADER_SIZE])) -> Result<Frame, ProtocolError> {
        let mut bytes = write().encode();
        change(&mut bytes);
        let sum = checksum(&bytes[..60]);
        bytes[60..].copy_from_slice(&sum.to_le_bytes());
        Frame::decode(&bytes)
    }

    #[test]
    fn what_does_not_belong_is_named() {
        assert_eq!(forged(|bytes| bytes[0] = b'X'), Err(ProtocolError::Magic(*b"XSHR")));
        assert_eq!(forged(|bytes| bytes[4] = 2), Err(ProtocolError::Version(2)));
        assert_eq!(forged(|bytes| bytes[6] = 99), Err(ProtocolError::Kind(99)));
        assert_eq!(forged(|bytes| bytes[7] = 2), Err(ProtocolError::Flags(2)));
        assert_eq!(forged(|bytes| bytes[48] = 16), Err(ProtocolError::Status(16)));
        assert_eq!(forged(|bytes| bytes[48] = 1), Err(ProtocolError::Reserved));
        assert_eq!(forged(|bytes| bytes[55] = 1), Err(ProtocolError::Reserved));
        assert_eq!(forged(|bytes| bytes[40] = 8), Err(ProtocolError::PayloadLength(8)));
        let huge = |bytes: &mut [u8; HEADER_SIZE]| bytes[40..44].copy_from_slice(&(MAX_TRANSFER + 1).to_le_bytes());
        assert_eq!(forged(huge), Err(ProtocolError::PayloadLength(MAX_TRANSFER + 1)));
    }

    #[test]
    fn a_read_cannot_ask_for_more_than_one_transfer() {
        let frame = Frame { length: u64::from(MAX_TRANSFER) + 1, ..Frame::new(Kind::Read) };
        assert_eq!(Frame::decode(&frame.encode()), Err(ProtocolError::PayloadLength(u32::MAX)));
    }

    #[test]
    fn every_kind_survives_the_wire() {
        for kind in Kind::ALL {
            let length = u32::from(kind == Kind::Write);
            let frame = Frame { length: length.into(), payload_length: length, ..Frame::new(kind) };
            assert_eq!(Frame::decode(&frame.encode()), Ok(frame));
        }
    }
}
