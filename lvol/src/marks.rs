//! Blocks of the disk that are known to hold something else than was written there: what a scrub found, until it is mended.
//!
//! A mark belongs to the place on disk, not to an lvol: whoever reads the block, through whichever chain and after whichever
//! merge, gets an error and never the wrong bytes. Marks are records of the journal and pages of a checkpoint like all metadata, so
//! that they move in the same batch as what they speak of. They end when the block is written anew or its cluster is free.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use block_device::{Error, ErrorKind, Range};

use crate::chain::{Piece, Source};
use crate::format::BLOCK;
use crate::format::layout::Layout;
use crate::format::record::Record;
use crate::map::Inconsistent;
use crate::merge::{Batch, Copy};

/// The most blocks that are marked at once. A disk that is worse than that is to be replaced.
pub(crate) const MAX_MARKS: usize = 64 << 10;

/// A run of blocks of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockRun {
    /// The first: its offset on the disk is this many blocks.
    pub(crate) first: u64,
    pub(crate) count: u32,
}

impl BlockRun {
    /// An error if these are no blocks of data clusters.
    pub(crate) fn check(&self, layout: &Layout) -> Result<(), Inconsistent> {
        let per_cluster = u64::from(layout.blocks_per_cluster());
        let last = self.first.checked_add(u64::from(self.count)).and_then(|end| end.checked_sub(1));
        let is_data = |block: u64| layout.is_data(block / per_cluster);
        match self.count > 0 && last.is_some_and(|last| is_data(self.first) && is_data(last)) {
            true => Ok(()),
            false => Err(Inconsistent("a mark names blocks that hold no data")),
        }
    }
}

/// The marked blocks of a store.
#[derive(Default)]
pub(crate) struct Marks {
    blocks: RefCell<BTreeSet<u64>>,
    /// How many there are. All that a read looks at when there are none.
    count: Cell<usize>,
}

impl Marks {
    /// How many blocks are marked.
    pub(crate) fn count(&self) -> usize {
        self.count.get()
    }

    /// Whether any block is marked.
    pub(crate) fn any(&self) -> bool {
        self.count.get() > 0
    }

    /// Makes the change of a record.
    pub(crate) fn set(&self, run: BlockRun, bad: bool) {
        let mut blocks = self.blocks.borrow_mut();
        for block in run.first..run.first + u64::from(run.count) {
            match bad {
                true => blocks.insert(block),
                false => blocks.remove(&block),
            };
        }
        self.count.set(blocks.len());
    }

    /// What was written anew or given back is not what the marks spoke of.
    pub(crate) fn forget(&self, range: Range) {
        if self.any() {
            let end = range.end().div_ceil(BLOCK);
            let first = range.offset / BLOCK;
            self.set(BlockRun { first, count: (end - first) as u32 }, false);
        }
    }

    /// Keeps the marks of blocks for which `keep` is true.
    pub(crate) fn retain(&self, keep: impl Fn(u64) -> bool) {
        let mut blocks = self.blocks.borrow_mut();
        blocks.retain(|block| keep(*block));
        self.count.set(blocks.len());
    }

    /// All marks, as runs.
    pub(crate) fn runs(&self) -> Vec<BlockRun> {
        runs(self.blocks.borrow().iter().copied())
    }

    /// The marked blocks of a range of bytes of the disk, as runs.
    pub(crate) fn within(&self, range: Range) -> Vec<BlockRun> {
        if !self.any() {
            return Vec::new();
        }
        runs(self.blocks.borrow().range(range.offset / BLOCK..range.end().div_ceil(BLOCK)).copied())
    }

    /// The records that take the marks within ranges of the disk away.
    pub(crate) fn mended(&self, ranges: impl IntoIterator<Item = Range>) -> Vec<Record> {
        let runs = ranges.into_iter().flat_map(|range| self.within(range));
        runs.map(|run| Record::BlocksMarked { run, bad: false }).collect()
    }

    /// Whether a range of the disk has a marked block.
    pub(crate) fn touches(&self, range: Range) -> bool {
        self.any() && self.blocks.borrow().range(range.offset / BLOCK..range.end().div_ceil(BLOCK)).next().is_some()
    }

    /// An error if one of the pieces is on a marked block.
    pub(crate) fn check(&self, pieces: &[Piece]) -> Result<(), Error> {
        if !self.any() {
            return Ok(());
        }
        for piece in pieces {
            if let Source::Disk(offset) = piece.source
                && self.touches(Range { offset, length: piece.length })
            {
                let text = format_args!("a scrub found the data at {offset} on the disk damaged");
                return Err(Error::with_detail(ErrorKind::ReadFailed, text));
            }
        }
        Ok(())
    }

    /// What a merge is going to copy is wrong where it is marked: it need not be read, and its new place is marked instead.
    pub(crate) fn carry(&self, batch: &mut Batch) {
        if !self.any() {
            return;
        }
        for copy in std::mem::take(&mut batch.copies) {
            let mut at = 0;
            while at < copy.length {
                let length = BLOCK.min(copy.length - at);
                let bad = self.touches(Range { offset: copy.from + at, length });
                let was = self.touches(Range { offset: copy.to + at, length });
                if bad || was {
                    let run = BlockRun { first: (copy.to + at) / BLOCK, count: 1 };
                    batch.records.push(Record::BlocksMarked { run, bad });
                }
                if !bad {
                    push_copy(&mut batch.copies, Copy { from: copy.from + at, to: copy.to + at, length });
                }
                at += length;
            }
        }
        let zeroed = self.mended(batch.zeroes.iter().copied());
        batch.records.extend(zeroed);
    }
}

fn push_copy(copies: &mut Vec<Copy>, copy: Copy) {
    match copies.last_mut() {
        Some(last) if last.from + last.length == copy.from && last.to + last.length == copy.to => {
            last.length += copy.length;
        }
        _ => copies.push(copy),
    }
}

fn runs(blocks: impl Iterator<Item = u64>) -> Vec<BlockRun> {
    let mut runs: Vec<BlockRun> = Vec::new();
    for block in blocks {
        match runs.last_mut() {
            Some(last) if last.first + u64::from(last.count) == block => last.count += 1,
            _ => runs.push(BlockRun { first: block, count: 1 }),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_come_and_go_as_runs() {
        let marks = Marks::default();
        marks.set(BlockRun { first: 10, count: 5 }, true);
        marks.set(BlockRun { first: 12, count: 1 }, false);
        assert_eq!(marks.runs(), [BlockRun { first: 10, count: 2 }, BlockRun { first: 13, count: 2 }]);
        assert_eq!(marks.within(Range { offset: 11 * BLOCK, length: 2 * BLOCK }), [BlockRun { first: 11, count: 1 }]);
        assert!(marks.touches(Range { offset: 14 * BLOCK + 512, length: 512 }));
        assert!(!marks.touches(Range { offset: 12 * BLOCK, length: BLOCK }));
        marks.forget(Range { offset: 0, length: 14 * BLOCK });
        assert_eq!((marks.count(), marks.any()), (1, true));
        marks.retain(|block| block != 14);
        assert!(!marks.any());
    }

    #[test]
    fn a_merge_takes_marks_along_instead_of_bytes() {
        let marks = Marks::default();
        marks.set(BlockRun { first: 101, count: 1 }, true);
        // What was there before the copy is overwritten.
        marks.set(BlockRun { first: 200, count: 1 }, true);
        let mut batch = Batch::default();
        batch.copies.push(Copy { from: 100 * BLOCK, to: 200 * BLOCK, length: 4 * BLOCK });
        marks.carry(&mut batch);
        let copy = |from, to, blocks| Copy { from: from * BLOCK, to: to * BLOCK, length: blocks * BLOCK };
        assert_eq!(batch.copies, [copy(100, 200, 1), copy(102, 202, 2)]);
        let mark = |first, bad| Record::BlocksMarked { run: BlockRun { first, count: 1 }, bad };
        assert_eq!(batch.records, [mark(200, false), mark(201, true)]);
    }
}
