//! What becomes of two maps when one lvol takes over what the lvol below it has: planned here, done by `deletion`.

use std::rc::Rc;

use block_device::Range;

use crate::chain::find;
use crate::format::BLOCK;
use crate::format::layout::Layout;
use crate::format::page::Segment;
use crate::format::record::Record;
use crate::map::{Blocks, Held, LEAF, Map, MapEntry};

/// How many clusters of the lvol one batch looks at, at most.
pub(crate) const SPAN: u64 = 64 * LEAF as u64;

/// Bytes of data that one batch copies or zeroes before it ends.
const MOST_DATA: u64 = 1 << 20;

/// Bytes of records that one batch has before it ends: half of what the journal takes at once.
const MOST_RECORDS: usize = 64 << 10;

/// Bytes that go from one cluster into another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Copy {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) length: u64,
}

/// The two maps of a merge.
pub(crate) struct Pair<'a> {
    /// Of the snapshot that goes.
    pub(crate) from: &'a Map,
    /// Of its child.
    pub(crate) to: &'a Map,
    /// What the snapshot reads through.
    pub(crate) below: &'a [Rc<Map>],
}

/// One batch of a merge: first the copies and zeroes, durably, then the records, in one piece.
#[derive(Default, Debug)]
pub(crate) struct Batch {
    pub(crate) copies: Vec<Copy>,
    pub(crate) zeroes: Vec<Range>,
    pub(crate) records: Vec<Record>,
    /// Data of the child goes into clusters of the snapshot: the child must not be overwritten meanwhile.
    pub(crate) moves_child: bool,
    /// Some entry of the child that was not empty becomes part of a record. Its blocks must be durable before: a record of
    /// whole entries is not verified block by block as first writes are.
    pub(crate) has_child_blocks: bool,
    /// Some cluster of the snapshot moves without all of its blocks: they can be written there again.
    pub(crate) vacates: bool,
    data: u64,
}

impl Pair<'_> {
    /// Plans the next entries of `from`, from cluster `start` to before `start` + [`SPAN`].
    pub(crate) fn plan(&self, start: u32, layout: &Layout) -> Batch {
        let mut batch = Batch::default();
        let mut bytes = 0;
        let end = (u64::from(start) + SPAN).min(1 << 32);
        let mut at = u64::from(start);
        while at < end && bytes < MOST_RECORDS && batch.data < MOST_DATA {
            // Below 2^32.
            let Some(used) = self.from.next_used(at as u32) else { break };
            at = u64::from(used);
            let leaf_end = (u64::from(used / LEAF) + 1) * u64::from(LEAF);
            if at < end
                && let Some(record) = self.plan_leaf(&mut at, leaf_end.min(end), layout, &mut batch)
            {
                bytes += record.length();
                batch.records.push(record);
            }
        }
        batch
    }

    /// Plans entries of one leaf, `at` to before `end`, until there is enough data to copy.
    fn plan_leaf(&self, at: &mut u64, end: u64, layout: &Layout, batch: &mut Batch) -> Option<Record> {
        let leaf = (*at / u64::from(LEAF)) as u32;
        let mut segment = Segment { leaf, zero: false, present: 0, words: Vec::new() };
        while *at < end && batch.data < MOST_DATA {
            let index = *at as u32;
            let entry = self.from.entry(index);
            if !entry.is_empty() {
                let merged = self.plan_entry(index, &entry, layout, batch);
                segment.present |= 1 << (index % LEAF);
                merged.put_words(self.from.shape(), &mut segment.words);
            }
            *at += 1;
        }
        let record = Record::MapMerge { from: self.from.id(), to: self.to.id(), segment };
        matches!(&record, Record::MapMerge { segment, .. } if segment.present != 0).then_some(record)
    }

    /// What the child's entry becomes. Its blocks hide those of the snapshot, zeroes too.
    fn plan_entry(&self, index: u32, parent: &MapEntry, layout: &Layout, batch: &mut Batch) -> MapEntry {
        let child = self.to.entry(index);
        if child.is_empty() {
            return parent.clone();
        }
        batch.has_child_blocks = true;
        let visible = parent.blocks.without(&child.blocks);
        let union = parent.blocks.union(&child.blocks);
        match (parent.cluster, child.cluster) {
            (None, None) => MapEntry { cluster: None, blocks: union },
            _ if visible.is_empty() => child,
            (None, Some(cluster)) => {
                let zeroes = self.hiding(index, &visible);
                batch.zero(layout, cluster, &zeroes);
                MapEntry { cluster: Some(cluster), blocks: child.blocks.union(&zeroes) }
            }
            (Some(cluster), None) => {
                let zeroes = self.hiding(index, &child.blocks);
                batch.zero(layout, cluster, &zeroes);
                batch.vacates |= !parent.blocks.without(&visible.union(&zeroes)).is_empty();
                MapEntry { cluster: Some(cluster), blocks: visible.union(&zeroes) }
            }
            (Some(from), Some(to)) if visible.count() <= child.blocks.count() => {
                batch.copy(layout, from, to, &visible);
                MapEntry { cluster: Some(to), blocks: union }
            }
            (Some(to), Some(from)) => {
                batch.moves_child = true;
                batch.copy(layout, from, to, &child.blocks);
                MapEntry { cluster: Some(to), blocks: union }
            }
        }
    }

    /// Those of the blocks under which there is data: zeroes elsewhere need not be kept.
    fn hiding(&self, index: u32, blocks: &Blocks) -> Blocks {
        blocks.filter(|block| matches!(find(self.below, index, block, 1).0, Held::Data(_)))
    }
}

impl Batch {
    fn copy(&mut self, layout: &Layout, from: u64, to: u64, blocks: &Blocks) {
        let (from, to) = (layout.cluster_offset(from), layout.cluster_offset(to));
        for run in blocks.runs() {
            let (offset, length) = (u64::from(run.start) * BLOCK, u64::from(run.end - run.start) * BLOCK);
            self.copies.push(Copy { from: from + offset, to: to + offset, length });
            self.data += length;
        }
    }

    fn zero(&mut self, layout: &Layout, cluster: u64, blocks: &Blocks) {
        let base = layout.cluster_offset(cluster);
        for run in blocks.runs() {
            let range =
                Range { offset: base + u64::from(run.start) * BLOCK, length: u64::from(run.end - run.start) * BLOCK };
            self.data += range.length;
            self.zeroes.push(range);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::Shape;

    const CLUSTER: u32 = 64 << 10;

    fn layout() -> Layout {
        Layout::plan(1 << 30, CLUSTER).expect("large enough")
    }

    fn map(id: u32, sets: &[(u32, u64, u32, u32)]) -> Rc<Map> {
        let map = Map::new(id, Shape::new(CLUSTER));
        sets.iter().for_each(|&(index, cluster, first, count)| map.set(index, cluster, first, count, &mut Vec::new()));
        Rc::new(map)
    }

    fn place(cluster: u64, block: u64) -> u64 {
        cluster * u64::from(CLUSTER) + block * BLOCK
    }

    /// Plans and applies; returns the batch and the child's entry 0 as its runs.
    fn merge(from: &Map, to: &Map, below: &[Rc<Map>]) -> (Batch, Vec<(Held, u32)>, Vec<u64>) {
        let batch = Pair { from, to, below }.plan(0, &layout());
        let (mut before, mut after) = (Vec::new(), Vec::new());
        for record in &batch.records {
            let Record::MapMerge { segment, .. } = record else { panic!("another record") };
            to.check_merge(segment, |_| true).expect("planned");
            to.merge(segment, &mut before, &mut after);
            from.give_up(segment, &mut before);
        }
        before.retain(|cluster| !after.contains(cluster));
        assert!(from.is_empty());
        let mut runs = Vec::new();
        let mut at = 0;
        while at < 16 {
            let run = to.run(0, at, 16 - at);
            runs.push((run.held, run.count));
            at += run.count;
        }
        (batch, runs, before)
    }

    #[test]
    fn where_the_child_has_nothing_only_a_pointer_moves() {
        let (from, to) = (map(1, &[(0, 5000, 3, 2), (100, 5001, 0, 16)]), map(2, &[(1, 6000, 0, 1)]));
        let (batch, runs, freed) = merge(&from, &to, &[]);
        assert_eq!((batch.copies.len(), batch.zeroes.len(), batch.records.len()), (0, 0, 2));
        assert!(!batch.has_child_blocks && !batch.moves_child);
        assert_eq!(runs, [(Held::Nothing, 3), (Held::Data(5000), 2), (Held::Nothing, 11)]);
        assert_eq!((freed, to.counts().clusters), (vec![], 3));
    }

    #[test]
    fn of_two_clusters_the_fewer_blocks_are_copied() {
        let (from, to) = (map(1, &[(0, 5000, 0, 6)]), map(2, &[(0, 6000, 4, 12)]));
        let (batch, runs, freed) = merge(&from, &to, &[]);
        assert_eq!(batch.copies, [Copy { from: place(5000, 0), to: place(6000, 0), length: 4 * BLOCK }]);
        assert!(batch.has_child_blocks && !batch.moves_child);
        assert_eq!((runs, freed), (vec![(Held::Data(6000), 16)], vec![5000]));

        let (from, to) = (map(1, &[(0, 5000, 0, 16)]), map(2, &[(0, 6000, 4, 2)]));
        let (batch, runs, freed) = merge(&from, &to, &[]);
        assert_eq!(batch.copies, [Copy { from: place(6000, 4), to: place(5000, 4), length: 2 * BLOCK }]);
        assert!(batch.moves_child);
        assert_eq!((runs, freed), (vec![(Held::Data(5000), 16)], vec![6000]));
    }

    #[test]
    fn what_the_child_hides_altogether_goes_without_a_copy() {
        let (from, to) = (map(1, &[(0, 5000, 4, 2)]), map(2, &[(0, 6000, 3, 4)]));
        let (batch, runs, freed) = merge(&from, &to, &[]);
        assert!(batch.copies.is_empty() && batch.has_child_blocks);
        assert_eq!(runs, [(Held::Nothing, 3), (Held::Data(6000), 4), (Held::Nothing, 9)]);
        assert_eq!(freed, [5000]);
    }

    #[test]
    fn zeroes_are_kept_only_where_they_hide_data() {
        let below = [map(9, &[(0, 4000, 0, 2)])];
        let (from, to) = (map(1, &[(0, 5000, 0, 16)]), map(2, &[]));
        to.zero(1, 4, &mut Vec::new());
        let (batch, runs, _) = merge(&from, &to, &below);
        assert_eq!(batch.zeroes, [Range { offset: place(5000, 1), length: BLOCK }]);
        assert_eq!(runs, [(Held::Data(5000), 2), (Held::Nothing, 3), (Held::Data(5000), 11)]);

        let (from, to) = (map(1, &[]), map(2, &[(0, 6000, 8, 8)]));
        from.zero(0, 16, &mut Vec::new());
        let (batch, runs, _) = merge(&from, &to, &below);
        assert_eq!(batch.zeroes, [Range { offset: place(6000, 0), length: 2 * BLOCK }]);
        assert_eq!(runs, [(Held::Data(6000), 2), (Held::Nothing, 6), (Held::Data(6000), 8)]);
    }
}
