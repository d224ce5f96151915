//! Completion queue entries (Base 3.3.3.2).

use super::bytes::{put, u16_at, u64_at};
use super::status::Status;

/// Bytes of a completion queue entry.
pub const COMPLETION_SIZE: usize = 16;

/// What a command ends with: the part of a Completion Queue Entry (CQE) that the command decides.
/// The connection adds command identifier and submission queue head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// Command specific result, dwords 0 and 1.
    pub result: u64,
    /// Status field (SF).
    pub status: Status,
}

impl Completion {
    /// Successful Completion with a zero result.
    pub const SUCCESS: Self = Self { result: 0, status: Status::Success };

    /// Successful Completion with `result` in dwords 0 and 1.
    pub const fn with_result(result: u64) -> Self {
        Self { result, status: Status::Success }
    }

    /// Completion with `status` and a zero result.
    pub const fn error(status: Status) -> Self {
        Self { result: 0, status }
    }
}

impl From<Status> for Completion {
    fn from(status: Status) -> Self {
        Self::error(status)
    }
}

/// A Completion Queue Entry (CQE) as it stands in a response capsule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompletionEntry {
    /// Result and status.
    pub completion: Completion,
    /// SQ Head Pointer (SQHD), bytes 9:8. FFFFh in a Connect response: flow control is off.
    pub submission_head: u16,
    /// Command Identifier (CID), bytes 13:12.
    pub command_id: u16,
}

impl CompletionEntry {
    /// The entry's bytes. SQ Identifier and phase tag are reserved in Fabrics and zero.
    pub fn encode(&self) -> [u8; COMPLETION_SIZE] {
        let mut bytes = [0; COMPLETION_SIZE];
        put(&mut bytes, 0, self.completion.result.to_le_bytes());
        put(&mut bytes, 8, self.submission_head.to_le_bytes());
        put(&mut bytes, 12, self.command_id.to_le_bytes());
        put(&mut bytes, 14, self.completion.status.to_field().to_le_bytes());
        bytes
    }

    /// The entry in `bytes`.
    pub fn parse(bytes: &[u8; COMPLETION_SIZE]) -> Self {
        Self {
            completion: Completion { result: u64_at(bytes, 0), status: Status::from_field(u16_at(bytes, 14)) },
            submission_head: u16_at(bytes, 8),
            command_id: u16_at(bytes, 12),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Base 3.3.3.2.
    #[test]
    fn bytes_of_a_failed_read() {
        let entry = CompletionEntry {
            completion: Completion::error(Status::UnrecoveredReadError),
            submission_head: 0x0102,
            command_id: 0x0304,
        };
        let bytes = [0, 0, 0, 0, 0, 0, 0, 0, 0x02, 0x01, 0, 0, 0x04, 0x03, 0x02, 0x85];
        assert_eq!(entry.encode(), bytes);
        assert_eq!(CompletionEntry::parse(&bytes), entry);
    }

    #[test]
    fn a_property_value_fills_both_result_dwords() {
        let entry = CompletionEntry {
            completion: Completion::with_result(0x0123_4567_89ab_cdef),
            submission_head: 1,
            command_id: 2,
        };
        assert_eq!(entry.encode()[..8], [0xef, 0xcd, 0xab, 0x89, 0x67, 0x45, 0x23, 0x01]);
    }
}
