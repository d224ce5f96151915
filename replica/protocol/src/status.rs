//! What became of a request.

use crate::ProtocolError;

/// The end of a request; the codes are those on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Status {
    /// Done.
    Good = 0,
    /// Beyond the end.
    InvalidRange = 1,
    /// Makes no sense.
    InvalidField = 2,
    /// The store has no space.
    NoSpace = 3,
    /// The medium could not be read.
    ReadFailed = 4,
    /// The medium could not be written.
    WriteFailed = 5,
    /// Content differs.
    CompareMismatch = 6,
    /// Writes are refused.
    ReadOnly = 7,
    /// A newer epoch was granted: the request had no effect (I12).
    Fenced = 8,
    /// Not now.
    Unavailable = 9,
    /// Out of buffers or slots: try again (I33).
    Busy = 10,
    /// Something below did not answer in time.
    TimedOut = 11,
    /// Ended because its connection or grant did.
    Aborted = 12,
    /// A bug.
    Internal = 13,
    /// No such replica or snapshot.
    NotFound = 14,
    /// There is one, with other properties.
    Conflict = 15,
}

impl Status {
    /// Every status, in the order of the codes.
    pub const ALL: [Self; 16] = [
        Self::Good,
        Self::InvalidRange,
        Self::InvalidField,
        Self::NoSpace,
        Self::ReadFailed,
        Self::WriteFailed,
        Self::CompareMismatch,
        Self::ReadOnly,
        Self::Fenced,
        Self::Unavailable,
        Self::Busy,
        Self::TimedOut,
        Self::Aborted,
        Self::Internal,
        Self::NotFound,
        Self::Conflict,
    ];

    /// The code on the wire.
    pub const fn code(self) -> u16 {
        self as u16
    }

    /// The status of a code.
    pub fn from_code(code: u16) -> Result<Self, ProtocolError> {
        Self::ALL.get(usize::from(code)).copied().ok_or(ProtocolError::Status(code))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_statuses_agree_and_end_where_the_list_does() {
        for (code, status) in (0..).zip(Status::ALL) {
            assert_eq!(status.code(), code);
            assert_eq!(Status::from_code(code), Ok(status));
        }
        assert_eq!(Status::from_code(16), Err(ProtocolError::Status(16)));
        assert_eq!(Status::Fenced.code(), 8);
    }
}
