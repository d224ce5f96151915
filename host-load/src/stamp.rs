//! What a verified load writes into each block, and what a block read back tells.
//!
//! ```text
//! 0      8     16            24           32                  n-16         n-8      n
//! | magic | run | block number | generation | pattern ........ | generation | CRC-32C |
//! ```
//! All little-endian. The CRC covers everything before it. The generation stands at both ends, so that a block whose
//! halves come from two writes is told apart from a damaged one.

use crc_fast::crc32_iscsi;

use super::random::mix;

const MAGIC: u64 = u64::from_le_bytes(*b"ASHLOAD\x01");
const HEADER: usize = 32;
const TRAILER: usize = 16;

/// Whose block this is, where it belongs, and how often it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Which run of the load wrote it.
    pub(crate) run: u64,
    /// Number of the block on the device.
    pub(crate) block: u64,
    /// 1 for the first write of this run.
    pub(crate) generation: u64,
}

/// What a block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// One whole write of a load.
    Stamped(Stamp),
    /// Zeroes only.
    Zero,
    /// Not written by a load.
    Foreign,
    /// Beginning and end are of different writes.
    Torn,
    /// A stamped block with wrong bytes.
    Damaged,
}

impl Stamp {
    /// Fills one block.
    pub(crate) fn fill(&self, block: &mut [u8]) {
        let body = block.len() - TRAILER;
        for (at, value) in [MAGIC, self.run, self.block, self.generation].into_iter().enumerate() {
            put(block, at * 8, value);
        }
        fill_pattern(&mut block[HEADER..body], self.run ^ mix(self.block) ^ mix(!self.generation));
        put(block, body, self.generation);
        let crc = crc32_iscsi(&block[..body + 8]);
        put(block, body + 8, u64::from(crc));
    }

    /// Looks at one block.
    pub(crate) fn read(block: &[u8]) -> Content {
        let body = block.len() - TRAILER;
        if get(block, 0) != MAGIC {
            let zero = block.iter().all(|&byte| byte == 0);
            return if zero { Content::Zero } else { Content::Foreign };
        }
        let stamp = Self { run: get(block, 8), block: get(block, 16), generation: get(block, 24) };
        if get(block, body) != stamp.generation {
            return Content::Torn;
        }
        if get(block, body + 8) != u64::from(crc32_iscsi(&block[..body + 8])) {
            return Content::Damaged;
        }
        Content::Stamped(stamp)
    }
}

/// Bytes that differ nearly everywhere for different seeds and cost little to make.
pub(crate) fn fill_pattern(bytes: &mut [u8], seed: u64) {
    let mut counter = mix(seed);
    for word in bytes.chunks_mut(8) {
        counter = counter.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let value = counter ^ (counter >> 29);
        word.copy_from_slice(&value.to_le_bytes()[..word.len()]);
    }
}

fn put(block: &mut [u8], at: usize, value: u64) {
    block[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

fn get(block: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&block[at..at + 8]);
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(generation: u64) -> Vec<u8> {
        let mut block = vec![0xee; 4096];
        Stamp { run: 7, block: 12, generation }.fill(&mut block);
        block
    }

    #[test]
    fn a_stamp_reads_back_from_each_block_size() {
        for size in [512, 4096] {
            let stamp = Stamp { run: u64::MAX, block: 1 << 40, generation: 3 };
            let mut block = vec![0; size];
            stamp.fill(&mut block);
            assert_eq!(Stamp::read(&block), Content::Stamped(stamp));
        }
    }

    #[test]
    fn blocks_that_no_load_wrote() {
        assert_eq!(Stamp::read(&[0; 512]), Content::Zero);
        assert_eq!(Stamp::read(&[1; 512]), Content::Foreign);
        let mut almost = [0; 512];
        almost[511] = 1;
        assert_eq!(Stamp::read(&almost), Content::Foreign);
    }

    #[test]
    fn halves_of_two_writes_are_torn_wherever_the_border_is() {
        let (old, new) = (filled(1), filled(2));
        for border in (512..4096).step_by(512) {
            let mixed = [&new[..border], &old[border..]].concat();
            assert_eq!(Stamp::read(&mixed), Content::Torn, "{border}");
        }
    }

    #[test]
    fn an_old_piece_in_the_middle_or_a_flipped_bit_is_damage() {
        let (old, new) = (filled(1), filled(2));
        let mixed = [&new[..1024], &old[1024..1536], &new[1536..]].concat();
        assert_eq!(Stamp::read(&mixed), Content::Damaged);
        for at in [8, 17, 40, 2000, 4079, 4088] {
            let mut flipped = new.clone();
            flipped[at] ^= 0x10;
            assert_ne!(Stamp::read(&flipped), Stamp::read(&new), "{at}");
        }
    }
}
