//! A command with its payload, ready to be sent.

use reactor::{Buffer, Slice};

use crate::cdb::Command;

/// One command and what it sends. Cloning shares the payload.
#[derive(Clone, Debug)]
pub struct Request {
    pub(crate) command: Command,
    /// Never changes while the command is in flight (I11).
    pub(crate) payload: Slice,
}

/// Most ranges of one UNMAP here.
pub(crate) const UNMAP_RANGES_MAX: usize = 256;

impl Request {
    /// A command that sends no data.
    ///
    /// # Panics
    /// When it does.
    pub fn new(command: Command) -> Self {
        Self::sending(command, Slice::default())
    }

    /// A command that sends `payload`.
    ///
    /// # Panics
    /// When the payload is not as long as the command says.
    #[inline]
    pub fn sending(command: Command, payload: Slice) -> Self {
        assert_eq!(payload.len(), command.sends() as usize, "payload of {:x?}", command.cdb);
        Self { command, payload }
    }

    /// UNMAP of ranges: pairs of first block and number of blocks.
    ///
    /// # Panics
    /// When there are not 1 to 256 ranges.
    pub fn unmap(ranges: &[(u64, u32)]) -> Self {
        const HEADER: usize = 8;
        const DESCRIPTOR: usize = 16;
        assert!((1..=UNMAP_RANGES_MAX).contains(&ranges.len()), "UNMAP of {} ranges", ranges.len());
        let length = HEADER + DESCRIPTOR * ranges.len();
        let mut list = Buffer::zeroed(length);
        list[..2].copy_from_slice(&(length as u16 - 2).to_be_bytes());
        list[2..4].copy_from_slice(&(length as u16 - HEADER as u16).to_be_bytes());
        for (bytes, (block, blocks)) in list[HEADER..].chunks_exact_mut(DESCRIPTOR).zip(ranges) {
            bytes[..8].copy_from_slice(&block.to_be_bytes());
            bytes[8..12].copy_from_slice(&blocks.to_be_bytes());
        }
        Self::sending(Command::unmap(length as u16), list.freeze())
    }
}

impl From<Command> for Request {
    /// As [`Request::new`].
    fn from(command: Command) -> Self {
        Self::new(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SBC tables 106 and 107.
    #[test]
    fn ranges_become_the_parameter_list() {
        let request = Request::unmap(&[(3, 16), (9, 1)]);
        assert_eq!(request.payload[..8], [0, 38, 0, 32, 0, 0, 0, 0]);
        assert_eq!(request.payload[8..24], [0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 16, 0, 0, 0, 0]);
        assert_eq!(request.payload.len(), 40);
    }

    #[test]
    #[should_panic(expected = "payload")]
    fn a_payload_of_another_length_is_our_mistake() {
        let _ = Request::sending(Command::flush(), Slice::zeroes(512));
    }
}
