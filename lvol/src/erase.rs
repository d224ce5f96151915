//! Unmap and write zeroes: the same, since both must read as zeroes and both give space back.

use std::ops::Range as Span;

use block_device::{Error, Range};

use crate::chain::find;
use crate::error::StoreError;
use crate::format::BLOCK;
use crate::format::record::Record;
use crate::locks::Mode;
use crate::lvol::{Lvol, push_zeroes};
use crate::map::Held;

/// Clusters that are erased in one step: bounds the time a lock is held, and the records of one commit.
const STEP: u64 = 2048;

/// What erasing a range comes to.
#[derive(Default)]
struct Plan {
    /// Bytes of the disk to give back; they read as zeroes afterwards.
    discards: Vec<Range>,
    records: Vec<Record>,
    /// Map entries that may come to be, for zeroes that hide the parent.
    new_entries: u64,
    /// Some cluster loses blocks and stays in its entry: they can be written there again.
    vacates: bool,
}

/// What one cluster's erased part is made of.
#[derive(Clone, Copy)]
struct Part {
    index: u32,
    first: u32,
    count: u32,
}

impl Lvol {
    /// Makes a range read as zeroes, and gives back the space of every 4 KiB block in it.
    pub(crate) async fn erase(&self, range: Range) -> Result<(), Error> {
        let end = range.end();
        let head = range.offset.next_multiple_of(BLOCK).min(end);
        let tail = (end - end % BLOCK).max(head);
        self.write_zeroes(range.offset, head).await?;
        // Nothing when all of it lies within one block: the rest of that block stays.
        let mut blocks = head.div_ceil(BLOCK)..tail / BLOCK;
        if end == self.volume().size() {
            // The rest of the last cluster belongs to nobody else: it goes with the last block.
            let per_cluster = u64::from(self.core().layout().blocks_per_cluster());
            blocks.end = end.div_ceil(BLOCK).next_multiple_of(per_cluster).max(blocks.start);
        } else {
            self.write_zeroes(tail, end).await?;
        }
        while let Some(step) = self.next_step(&mut blocks) {
            self.erase_step(step).await?;
        }
        Ok(())
    }

    /// Parts of blocks are merged with the rest like any other write.
    async fn write_zeroes(&self, from: u64, to: u64) -> Result<(), Error> {
        let mut zeroes = Vec::new();
        push_zeroes((to - from) as usize, |slice| zeroes.push(slice));
        match zeroes.pop() {
            // Less than a block.
            Some(slice) => self.first_write(from, slice).await,
            None => Ok(()),
        }
    }

    /// Cuts the next step off the front, passing over what nobody holds.
    fn next_step(&self, blocks: &mut Span<u64>) -> Option<Span<u64>> {
        let per_cluster = u64::from(self.core().layout().blocks_per_cluster());
        if blocks.is_empty() {
            return None;
        }
        let index = (blocks.start / per_cluster) as u32;
        let used = self.volume().with_chain(|chain| chain.iter().filter_map(|map| map.next_used(index)).min())?;
        blocks.start = blocks.start.max(u64::from(used) * per_cluster);
        let end = ((u64::from(used) + STEP) * per_cluster).min(blocks.end);
        let step = blocks.start..end;
        blocks.start = end;
        (!step.is_empty()).then_some(step)
    }

    async fn erase_step(&self, blocks: Span<u64>) -> Result<(), Error> {
        let per_cluster = u64::from(self.core().layout().blocks_per_cluster());
        let clusters = blocks.start / per_cluster..blocks.end.div_ceil(per_cluster);
        let _held = self.volume().locks.lock(clusters.clone(), Mode::Exclusive).await;
        let mut plan = Plan::default();
        for index in clusters {
            let start = (index * per_cluster).max(blocks.start);
            let end = ((index + 1) * per_cluster).min(blocks.end);
            let (first, count) = ((start % per_cluster) as u32, (end - start) as u32);
            self.plan_erase(Part { index: index as u32, first, count }, &mut plan);
        }
        let entry_bytes = self.core().layout().worst_cluster_bytes();
        if plan.new_entries > 0 && !self.core().catalog.borrow().has_metadata_room(plan.new_entries * entry_bytes) {
            return Err(StoreError::NoSpace { detail: "the maps are full" }.into());
        }
        let mended = self.core().marks.mended(plan.discards.iter().copied());
        // While the blocks are still this lvol's, and before their cluster can become another's.
        for range in plan.discards {
            let result = self.core().disk.discard(range.offset, range.length).await;
            result.map_err(|error| Error::write_failed(&error))?;
        }
        if !mended.is_empty() {
            // Zeroes are there instead of the damage, for good.
            self.core().flush().await?;
            plan.records.extend(mended);
        }
        if !plan.records.is_empty() {
            // What a cluster keeps comes before what it loses: with nothing left in between it would be freed.
            plan.records.sort_by_key(|record| matches!(record, Record::MapClear { .. }));
            self.core().commit(plan.records).await?;
        }
        if plan.vacates {
            // A read that still looks at such a place must not see the next first write there before it is acknowledged:
            // that one may fail (I9). Clusters that go as a whole wait in `reclaim`.
            self.core().io.grace.pass().await;
        }
        Ok(())
    }

    fn plan_erase(&self, part: Part, plan: &mut Plan) {
        self.volume().with_chain(|chain| {
            let (own, parents) = (&chain[0], &chain[1..]);
            let kind = own.kind(part.index);
            let blocks = own.shape().blocks();
            let id = own.id();
            let parent_has_data = |first, count| {
                let mut at = first;
                while at < first + count {
                    let (held, run) = find(parents, part.index, at, first + count - at);
                    if matches!(held, Held::Data(_)) {
                        return true;
                    }
                    at += run;
                }
                false
            };
            if matches!(kind, Held::Data(_)) && part.count == blocks {
                // All of it goes, with its cluster.
                return plan.change(id, blocks, part, parent_has_data(0, blocks));
            }
            let mut at = part.first;
            let end = part.first + part.count;
            while at < end {
                let run = own.run(part.index, at, end - at);
                let (below, count) = find(parents, part.index, at, run.count);
                let piece = Part { first: at, count, ..part };
                let hides = matches!(below, Held::Data(_));
                match (kind, run.held) {
                    (Held::Data(cluster), _) => {
                        self.plan_part(id, cluster, piece, run.held != Held::Nothing, hides, plan)
                    }
                    (_, Held::Nothing) if hides => plan.change(id, blocks, piece, true),
                    _ => {}
                }
                at += count;
            }
        });
    }

    /// Part of a cluster goes, the rest stays.
    fn plan_part(&self, map: u32, cluster: u64, part: Part, held: bool, hides: bool, plan: &mut Plan) {
        if !held && !hides {
            return;
        }
        let base = self.core().layout().cluster_offset(cluster);
        plan.discards
            .push(Range { offset: base + u64::from(part.first) * BLOCK, length: u64::from(part.count) * BLOCK });
        match (held, hides) {
            // Discarded blocks read as zeroes: they stay this lvol's, and hide the parent.
            (true, true) => {}
            (true, false) => {
                plan.vacates = true;
                plan.change(map, self.core().layout().blocks_per_cluster(), part, false);
            }
            (false, _) => {
                // A cluster has at most 1024 blocks.
                let (first, count) = (part.first as u16, part.count as u16);
                plan.records.push(Record::MapSetZeroed { map, index: part.index, cluster, first, count });
            }
        }
    }
}

impl Plan {
    /// Adds a change of the map for a part; neighbours that change in the same way become one record.
    fn change(&mut self, map: u32, blocks_per_cluster: u32, part: Part, to_zero: bool) {
        let start = u64::from(part.index) * u64::from(blocks_per_cluster) + u64::from(part.first);
        self.new_entries += u64::from(to_zero);
        let last_count = match self.records.last_mut() {
            Some(Record::MapZero { first, count, .. }) if to_zero && *first + *count == start => Some(count),
            Some(Record::MapClear { first, count, .. }) if !to_zero && *first + *count == start => Some(count),
            _ => None,
        };
        if let Some(count) = last_count {
            *count += u64::from(part.count);
            return;
        }
        let (first, count) = (start, u64::from(part.count));
        self.records.push(match to_zero {
            true => Record::MapZero { map, first, count },
            false => Record::MapClear { map, first, count },
        });
    }
}
