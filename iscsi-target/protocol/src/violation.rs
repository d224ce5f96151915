//! How the other end can break the protocol.

use core::fmt;

use crate::wire::response::RejectReason;

/// What was wrong with a PDU, so wrong that its connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// The header's digest does not match: nothing in the stream can be trusted any more.
    HeaderDigest,
    /// A PDU that may not come in this state, or never from this end.
    UnexpectedPdu,
    /// Additional headers where none may be, or that do not fit in their lengths.
    AdditionalHeader,
    /// More data than may come with this PDU.
    DataTooLong,
    /// A field, by its offset in the header, does not have the one value that it must have now.
    Sequence(usize),
    /// A field, by its offset in the header, has no valid value.
    Field(usize),
    /// Text that is malformed, too long, or of too many pieces.
    Text,
}

impl Violation {
    /// What a Reject says about it; nothing is said when the header itself is in doubt.
    pub fn reason(self) -> Option<RejectReason> {
        match self {
            Self::HeaderDigest => None,
            Self::Field(_) => Some(RejectReason::InvalidField),
            Self::UnexpectedPdu | Self::AdditionalHeader | Self::DataTooLong | Self::Sequence(_) | Self::Text => {
                Some(RejectReason::Protocol)
            }
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HeaderDigest => formatter.write_str("header digest does not match"),
            Self::UnexpectedPdu => formatter.write_str("PDU not allowed now"),
            Self::AdditionalHeader => formatter.write_str("additional header not allowed or malformed"),
            Self::DataTooLong => formatter.write_str("more data than allowed"),
            Self::Sequence(offset) => write!(formatter, "field at byte {offset} out of sequence"),
            Self::Field(offset) => write!(formatter, "field at byte {offset} not valid"),
            Self::Text => formatter.write_str("text malformed or too long"),
        }
    }
}
