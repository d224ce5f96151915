//! What a peer can do wrong.

use core::fmt;

/// The peer broke the protocol: the connection ends, nothing else does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolError {
    /// The header does not begin with the magic.
    Magic([u8; 4]),
    /// A version that was not negotiated, or no common one.
    Version(u16),
    /// No such kind of frame.
    Kind(u8),
    /// Flags that do not exist or do not belong to the kind.
    Flags(u8),
    /// No such status.
    Status(u16),
    /// Reserved bytes, or fields the kind does not use, are not zero.
    Reserved,
    /// The header's checksum is wrong.
    HeaderChecksum,
    /// The payload's checksum is wrong.
    PayloadChecksum,
    /// The kind does not allow a payload of this many bytes.
    PayloadLength(u32),
    /// A payload whose content is no message.
    Malformed,
    /// A kind that does not belong to this direction or state.
    Unexpected(u8),
    /// More requests or bytes than granted, or a slot in use.
    CreditOverrun,
    /// An answer to a request that is not in flight.
    UnknownRequest(u64),
    /// Credits that cannot work: none, or less than one transfer.
    BadCredits,
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic(bytes) => write!(f, "a frame begins with {bytes:02x?}, not with the magic"),
            Self::Version(version) => write!(f, "version {version} is not spoken here"),
            Self::Kind(kind) => write!(f, "there is no frame kind {kind}"),
            Self::Flags(flags) => write!(f, "flags {flags:#04x} do not belong to the frame"),
            Self::Status(status) => write!(f, "there is no status {status}"),
            Self::Reserved => f.write_str("reserved bytes are not zero"),
            Self::HeaderChecksum => f.write_str("the checksum of a header is wrong"),
            Self::PayloadChecksum => f.write_str("the checksum of a payload is wrong"),
            Self::PayloadLength(length) => write!(f, "a payload of {length} bytes does not belong to the frame"),
            Self::Malformed => f.write_str("a payload is no message of its kind"),
            Self::Unexpected(kind) => write!(f, "frame kind {kind} does not belong here"),
            Self::CreditOverrun => f.write_str("more is in flight than was granted"),
            Self::UnknownRequest(id) => write!(f, "an answer to request {id:#x}, which is not in flight"),
            Self::BadCredits => f.write_str("the credits granted are too few or too many to work with"),
        }
    }
}

impl core::error::Error for ProtocolError {}
