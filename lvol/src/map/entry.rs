//! One map entry: a cluster number and a bitmap of its blocks, in one word or several.
//!
//! ```text
//! clusters up to 64 KiB (at most 16 blocks):  word 0 = cluster << 16 | bitmap
//! larger ones:                                word 0 = cluster << 16,  words 1.. = bitmap
//! ```
//! Cluster 0 is never a data cluster (the superblock is there): with a bitmap it means zeroes without a cluster.

use crate::format::BLOCK;
use crate::format::layout::SEGMENT_BYTES;
use crate::format::page::Counts;

/// Bits of word 0 below the cluster number.
pub(super) const LOW: u32 = 16;

/// How entries look for a cluster size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    blocks: u32,
    words: usize,
}

impl Shape {
    pub(crate) const fn new(cluster_size: u32) -> Self {
        let blocks = cluster_size / BLOCK as u32;
        let words = if blocks <= LOW { 1 } else { 1 + blocks.div_ceil(64) as usize };
        Self { blocks, words }
    }

    /// 4 KiB blocks a cluster, 4 to 1024.
    pub(crate) const fn blocks(self) -> u32 {
        self.blocks
    }

    /// The most bytes of segments that a checkpoint needs for a map.
    pub(crate) fn checkpoint_bytes(self, counts: Counts) -> u64 {
        u64::from(counts.leaves) * SEGMENT_BYTES + u64::from(counts.entries) * self.words as u64 * 8
    }

    /// 64-bit words an entry, 1 to 17.
    pub(crate) const fn words(self) -> usize {
        self.words
    }
}

/// What a map has for a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    /// Nothing: the parent decides.
    Nothing,
    /// Zeroes.
    Zero,
    /// Data in this cluster.
    Data(u64),
}

/// Blocks in a row that are held in the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) held: Held,
    /// How many blocks, at least 1.
    pub(crate) count: u32,
}

/// An entry to look at.
#[derive(Clone, Copy)]
pub(super) struct Entry<'a>(pub(super) &'a [u64]);

impl Entry<'_> {
    fn cluster(self) -> u64 {
        self.0[0] >> LOW
    }

    /// 64 bits of the bitmap.
    fn bits(self, word: usize) -> u64 {
        match self.0 {
            [only] => only & ((1 << LOW) - 1),
            words => words[1 + word],
        }
    }

    /// Its cluster, if it has one.
    pub(super) fn data_cluster(self) -> Option<u64> {
        Some(self.cluster()).filter(|&cluster| cluster != 0)
    }

    /// Whether it holds a block.
    pub(super) fn holds(self, block: u32) -> bool {
        self.bits(block as usize / 64) >> (block % 64) & 1 == 1
    }

    pub(super) fn kind(self) -> Held {
        match self.cluster() {
            0 if self.0.iter().all(|&word| word == 0) => Held::Nothing,
            0 => Held::Zero,
            cluster => Held::Data(cluster),
        }
    }

    pub(super) fn run(self, first: u32, limit: u32) -> Run {
        let set = self.holds(first);
        let mut count = 0;
        while count < limit {
            let at = first + count;
            let bits = self.bits(at as usize / 64) >> (at % 64);
            let same = if set { (!bits).trailing_zeros() } else { bits.trailing_zeros() };
            let left_in_word = 64 - at % 64;
            count += same.min(left_in_word);
            if same < left_in_word {
                break;
            }
        }
        let held = match (set, self.cluster()) {
            (false, _) => Held::Nothing,
            (true, 0) => Held::Zero,
            (true, cluster) => Held::Data(cluster),
        };
        Run { held, count: count.min(limit) }
    }

    /// Whether it holds all its blocks.
    pub(super) fn is_whole(self, shape: Shape) -> bool {
        match self.0 {
            [only] => only & ((1 << LOW) - 1) == (1 << shape.blocks()) - 1,
            _ => self.holds(0) && self.run(0, shape.blocks()).count == shape.blocks(),
        }
    }

    /// Whether an entry read from disk can be: protects everything after from clusters that are none.
    pub(super) fn is_valid(self, shape: Shape, is_data: impl Fn(u64) -> bool) -> bool {
        let cluster = self.cluster();
        let no_bits_beyond = match self.0 {
            [only] => only & ((1 << LOW) - 1) >> shape.blocks() << shape.blocks() == 0,
            [first, bits @ ..] => {
                let beyond = shape.blocks() % 64;
                first & ((1 << LOW) - 1) == 0 && (beyond == 0 || bits.last().is_none_or(|last| last >> beyond == 0))
            }
            [] => false,
        };
        no_bits_beyond && self.0.iter().any(|&word| word != 0) && (cluster == 0 || is_data(cluster))
    }
}

/// An entry to change.
pub(super) struct EntryMut<'a>(pub(super) &'a mut [u64]);

impl EntryMut<'_> {
    pub(super) fn kind(&self) -> Held {
        Entry(self.0).kind()
    }

    /// Whether no block is held, though there may be a cluster.
    pub(super) fn is_blank(&self) -> bool {
        match &*self.0 {
            [only] => only & ((1 << LOW) - 1) == 0,
            words => words[1..].iter().all(|&word| word == 0),
        }
    }

    /// Empties the entry; its cluster, if it has one, goes to `freed`.
    pub(super) fn free_into(&mut self, freed: &mut Vec<u64>) {
        if let Held::Data(cluster) = self.kind() {
            freed.push(cluster);
        }
        self.0.fill(0);
    }

    /// Gives the entry a cluster without any block yet.
    pub(super) fn start_cluster(&mut self, cluster: u64) {
        self.0.fill(0);
        self.0[0] = cluster << LOW;
    }

    /// Marks blocks as held or not.
    pub(super) fn fill(&mut self, first: u32, count: u32, held: bool) {
        let mut at = first;
        while at < first + count {
            let now = (first + count - at).min(64 - at % 64);
            let mask = (u64::MAX >> (64 - now)) << (at % 64);
            let word = match &mut *self.0 {
                [only] => only,
                words => &mut words[1 + at as usize / 64],
            };
            if held {
                *word |= mask;
            } else {
                *word &= !mask;
            }
            at += now;
        }
    }

    pub(super) fn copy_from(&mut self, words: &[u64]) {
        self.0.copy_from_slice(words);
    }
}
