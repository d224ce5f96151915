//! Sets of blocks of one cluster, and entries as values: what a merge computes with.

use std::ops::Range;

use smallvec::SmallVec;

use super::entry::{Entry, EntryMut, Shape};

/// Blocks of one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Blocks(SmallVec<[u64; 1]>);

impl Blocks {
    pub(super) fn none(shape: Shape) -> Self {
        Self(SmallVec::from_elem(0, shape.blocks().div_ceil(64) as usize))
    }

    pub(super) fn insert(&mut self, first: u32, count: u32) {
        (first..first + count).for_each(|block| self.0[block as usize / 64] |= 1 << (block % 64));
    }

    /// Blocks of either.
    pub(crate) fn union(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(a, b)| a | b).collect())
    }

    /// Blocks of this set that are not in the other.
    pub(crate) fn without(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(a, b)| a & !b).collect())
    }

    /// Those of the blocks that `keep` wants.
    pub(crate) fn filter(&self, keep: impl Fn(u32) -> bool) -> Self {
        let bit = |word: usize, at: u32| keep(word as u32 * 64 + at);
        let kept = |(word, &bits): (usize, &u64)| {
            (0..64).filter(|&at| bits >> at & 1 == 1 && bit(word, at)).map(|at| 1 << at).sum::<u64>()
        };
        Self(self.0.iter().enumerate().map(kept).collect())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.iter().all(|&word| word == 0)
    }

    pub(crate) fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// The blocks in order, as runs.
    pub(crate) fn runs(&self) -> Vec<Range<u32>> {
        let mut runs: Vec<Range<u32>> = Vec::new();
        let blocks = 0..64 * self.0.len() as u32;
        for block in blocks.filter(|block| self.0[*block as usize / 64] >> (block % 64) & 1 == 1) {
            match runs.last_mut() {
                Some(run) if run.end == block => run.end += 1,
                _ => runs.push(block..block + 1),
            }
        }
        runs
    }
}

/// A map entry as a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MapEntry {
    /// Where the blocks' data is; without a cluster they are zeroes.
    pub(crate) cluster: Option<u64>,
    /// The blocks that the entry holds.
    pub(crate) blocks: Blocks,
}

impl MapEntry {
    pub(crate) fn from_words(words: &[u64], shape: Shape) -> Self {
        let entry = Entry(words);
        let mut blocks = Blocks::none(shape);
        let mut at = 0;
        while at < shape.blocks() {
            let run = entry.run(at, shape.blocks() - at);
            if entry.holds(at) {
                blocks.insert(at, run.count);
            }
            at += run.count;
        }
        Self { cluster: entry.data_cluster(), blocks }
    }

    /// Appends the words of the entry.
    pub(crate) fn put_words(&self, shape: Shape, into: &mut Vec<u64>) {
        let start = into.len();
        into.resize(start + shape.words(), 0);
        let mut entry = EntryMut(&mut into[start..]);
        if let Some(cluster) = self.cluster {
            entry.start_cluster(cluster);
        }
        for run in self.blocks.runs() {
            entry.fill(run.start, run.end - run.start, true);
        }
    }

    /// Whether it holds nothing and has no cluster.
    pub(crate) fn is_empty(&self) -> bool {
        self.cluster.is_none() && self.blocks.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_every_width_come_back_as_they_were() {
        for cluster_size in [16 << 10, 64 << 10, 128 << 10, 4 << 20] {
            let shape = Shape::new(cluster_size);
            for cluster in [None, Some(77)] {
                let mut blocks = Blocks::none(shape);
                blocks.insert(0, 1);
                blocks.insert(2, shape.blocks() - 3);
                let entry = MapEntry { cluster, blocks };
                let mut words = Vec::new();
                entry.put_words(shape, &mut words);
                assert_eq!(words.len(), shape.words());
                assert_eq!(MapEntry::from_words(&words, shape), entry);
                assert_eq!(entry.blocks.runs(), [0..1, 2..shape.blocks() - 1]);
                assert_eq!(entry.blocks.count(), shape.blocks() - 2);
            }
        }
    }

    #[test]
    fn sets_are_joined_and_taken_apart() {
        let shape = Shape::new(1 << 20);
        let set = |first, count| {
            let mut blocks = Blocks::none(shape);
            blocks.insert(first, count);
            blocks
        };
        assert_eq!(set(10, 100).without(&set(50, 100)), set(10, 40));
        assert_eq!(set(10, 40).union(&set(50, 60)), set(10, 100));
        assert!(set(10, 5).without(&set(0, 256)).is_empty());
    }
}
