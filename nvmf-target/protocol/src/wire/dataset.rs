//! Dataset Management ranges (NVM 3.2.3).

use super::bytes::{put, u32_at, u64_at};

/// Bytes of a range.
pub const RANGE_SIZE: usize = 16;
/// Most ranges of one command: NR is 8 bits and 0's based.
pub const RANGES_MAX: usize = 256;
/// CDW11 bit 2: Attribute - Deallocate (AD).
pub const ATTRIBUTE_DEALLOCATE: u32 = 1 << 2;

/// One range of logical blocks (NVM 3.2.3). Context attributes (bytes 3:0) are hints and ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Length in logical blocks, bytes 7:4; not 0's based.
    pub blocks: u32,
    /// Starting LBA, bytes 15:8.
    pub start: u64,
}

impl Range {
    /// The range in `bytes`.
    pub fn parse(bytes: &[u8; RANGE_SIZE]) -> Self {
        Self { blocks: u32_at(bytes, 4), start: u64_at(bytes, 8) }
    }

    /// The range's bytes.
    pub fn encode(&self) -> [u8; RANGE_SIZE] {
        let mut bytes = [0; RANGE_SIZE];
        put(&mut bytes, 4, self.blocks.to_le_bytes());
        put(&mut bytes, 8, self.start.to_le_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// NVM 3.2.3.
    #[test]
    fn bytes_of_a_range() {
        let range = Range { blocks: 0x0102_0304, start: 0x1112_1314_1516_1718 };
        let bytes = [0, 0, 0, 0, 0x04, 0x03, 0x02, 0x01, 0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11];
        assert_eq!(range.encode(), bytes);
        assert_eq!(Range::parse(&bytes), range);
    }
}
