//! Reading an lvol through its chain, as far as its state is known.

use std::ops::Range;

use reactor::{Buffer, Disk};
use uuid::Uuid;

use super::export::{Buffered, Part};
use super::state::State;
use crate::format::BLOCK;
use crate::map::Held;

/// The most bytes of data that are read at once.
const PIECE: u64 = 1 << 20;

/// An lvol to be read.
pub(super) struct Reader<'a> {
    pub(super) disk: &'a Disk,
    pub(super) state: &'a State,
    /// The lvol and its ancestors.
    pub(super) chain: &'a [Uuid],
    /// Bytes of the lvol.
    pub(super) size: u64,
    /// Why nobody knows what no map of the chain holds, if so.
    pub(super) end_reason: Option<&'a str>,
}

/// What holds a block.
enum Source {
    Zeroes,
    Disk(u64),
    Unknown(String),
}

impl Reader<'_> {
    /// What is at byte `start`, the first of a block, and up to where: at most to `most`. Bytes that the disk does not give back
    /// are unknown.
    pub(super) async fn part(&self, start: u64, most: u64) -> (Part, u64) {
        let (source, mut end) = self.find(start);
        // What goes on in the same way is one part, data up to a limit.
        while end < most && (end - start < PIECE || !matches!(source, Source::Disk(_))) {
            let (next, next_end) = self.find(end);
            let joins = match (&source, &next) {
                (Source::Zeroes, Source::Zeroes) => true,
                (Source::Disk(from), Source::Disk(to)) => *to == from + (end - start),
                (Source::Unknown(a), Source::Unknown(b)) => a == b,
                _ => false,
            };
            if !joins {
                break;
            }
            end = next_end;
        }
        let end = end.min(most);
        match source {
            Source::Zeroes => (Part::Zeroes(start..end), end),
            Source::Unknown(why) => (Part::Unknown(start..end, why), end),
            Source::Disk(offset) => self.read(offset, start..end).await,
        }
    }

    async fn read(&self, offset: u64, range: Range<u64>) -> (Part, u64) {
        // Block by block where the disk fails, to lose no more than must be.
        for end in [range.end, range.end.min(range.start + BLOCK)] {
            let length = (end - range.start).next_multiple_of(BLOCK);
            match self.disk.read(offset, Buffer::new(length as usize)).await {
                (Ok(()), buffer) => {
                    let bytes = buffer[..(end - range.start) as usize].to_vec();
                    return (Part::Data(Buffered { offset: range.start, bytes }), end);
                }
                (Err(error), _) if length == BLOCK => {
                    return (Part::Unknown(range.start..end, format!("the disk: {error}")), end);
                }
                (Err(_), _) => {}
            }
        }
        unreachable!("the second read is of one block")
    }

    /// What holds the byte `at`, and up to where that is so: at most to the end of its cluster.
    fn find(&self, at: u64) -> (Source, u64) {
        let blocks = u64::from(self.state.shape.blocks());
        let block = at / BLOCK;
        let (index, first) = ((block / blocks) as u32, (block % blocks) as u32);
        let mut end = (u64::from(index) + 1) * blocks;
        let bytes = |end: u64| (end * BLOCK).min(self.size);
        for uuid in self.chain {
            let Some(known) = self.state.maps.get(&self.state.lvols[uuid].record.map) else { continue };
            let (unknown, same) = known.unknown.run(block, end);
            end = same;
            if unknown {
                return (Source::Unknown(format!("the map of {uuid} lost its entries here")), bytes(end));
            }
            let run = known.map.run(index, first, (end - block) as u32);
            end = block + u64::from(run.count);
            match run.held {
                Held::Nothing => {}
                Held::Zero => return (Source::Zeroes, bytes(end)),
                Held::Data(cluster) => return self.data(cluster, first, block, end),
            }
        }
        let source = match self.end_reason {
            Some(reason) => Source::Unknown(reason.to_owned()),
            None => Source::Zeroes,
        };
        (source, bytes(end.max(self.next_held(block))))
    }

    /// The first block from `block` on that some map of the chain may hold, or does not know: what is before is like it. That
    /// makes an lvol that is mostly empty short.
    fn next_held(&self, block: u64) -> u64 {
        let blocks = u64::from(self.state.shape.blocks());
        let end = self.size.div_ceil(BLOCK);
        let maps = self.chain.iter().filter_map(|uuid| self.state.maps.get(&self.state.lvols[uuid].record.map));
        let next = maps.map(|known| {
            let (unknown, next) = known.unknown.run(block, end);
            let used = known.map.next_used((block / blocks) as u32).map_or(end, |used| u64::from(used) * blocks);
            if unknown { block } else { next.min(used) }
        });
        next.min().unwrap_or(end)
    }

    /// Data, but for blocks whose zeroes did not reach the disk before a power cut.
    fn data(&self, cluster: u64, first: u32, block: u64, end: u64) -> (Source, u64) {
        let bytes = |end: u64| (end * BLOCK).min(self.size);
        // Clusters have at most 1024 blocks.
        let is_zero = |at: u64| self.state.zeroes.contains(&(cluster, (u64::from(first) + at - block) as u16));
        let zero = is_zero(block);
        let same = (block..end).take_while(|at| is_zero(*at) == zero).count() as u64;
        let offset = self.state.superblock.layout.cluster_offset(cluster) + u64::from(first) * BLOCK;
        (if zero { Source::Zeroes } else { Source::Disk(offset) }, bytes(block + same))
    }
}
