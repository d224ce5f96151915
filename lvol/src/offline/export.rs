//! An lvol's content as far as it can be read, also of one that is damaged.

use std::ops::Range;

use reactor::{Buffer, Disk};
use uuid::Uuid;

use super::findings::Severity;
use super::state::State;
use super::{load, rules, superblocks};
use crate::error::StoreError;
use crate::format::BLOCK;
use crate::format::record::Stage;
use crate::map::Held;

/// The most bytes of data that are read at once.
const PIECE: u64 = 1 << 20;

/// Bytes of an lvol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// This.
    Data(Buffered),
    /// Zeroes.
    Zeroes(Range<u64>),
    /// Nobody knows what: why.
    Unknown(Range<u64>, String),
}

/// Data of an lvol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buffered {
    /// Bytes from the start of the lvol.
    pub offset: u64,
    /// What is there.
    pub bytes: Vec<u8>,
}

/// An lvol of a store that is not open, to be read from front to back.
pub struct Export<'a> {
    disk: &'a Disk,
    state: State,
    /// The lvol and its ancestors.
    chain: Vec<Uuid>,
    size: u64,
    at: u64,
    /// Why nobody knows what no map of the chain holds, if so.
    end_reason: Option<String>,
    outdated: Option<String>,
}

/// What holds a block.
enum Source {
    Zeroes,
    Disk(u64),
    Unknown(String),
}

impl<'a> Export<'a> {
    /// Finds an lvol.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when no record, no directory and no batch names it; [`StoreError::Invalid`] when its blocks are
    /// on their way into its child.
    pub async fn open(disk: &'a Disk, uuid: Uuid) -> Result<Self, StoreError> {
        let found = superblocks::find(disk).await?;
        let superblock =
            found.superblock.ok_or_else(|| StoreError::damaged("no superblock is left that tells where things are"))?;
        let mut state = load::load(disk, superblock).await?;
        rules::check(&mut state);
        let record = &state.lvols.get(&uuid).ok_or(StoreError::NotFound { uuid })?.record;
        let size = record.size;
        if record.deletion == Some(Stage::Merging) {
            let text = format!("{uuid} is half merged into its child, which has all that it had: export the child");
            return Err(StoreError::invalid(text));
        }
        let chain = state.chain(uuid);
        let next = chain.last().and_then(|last| state.lvols[last].record.parent);
        let end_reason = next.map(|parent| format!("its ancestor {parent} is missing, or is its descendant too"));
        let fatal = state.findings.iter().find(|finding| finding.severity == Severity::Fatal);
        let outdated = fatal.map(|finding| finding.text.clone());
        Ok(Self { disk, state, chain, size, at: 0, end_reason, outdated })
    }

    /// Bytes of the lvol.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Why its content may be that of an earlier moment, if so: part of the journal is lost.
    pub fn outdated(&self) -> Option<&str> {
        self.outdated.as_deref()
    }

    /// What comes next; `None` at the end. Bytes that the disk does not give back are unknown.
    pub async fn next(&mut self) -> Option<Part> {
        if self.at >= self.size {
            return None;
        }
        let start = self.at;
        let (source, mut end) = self.find(start);
        // What goes on in the same way is one part, data up to a limit.
        while end < self.size && (end - start < PIECE || !matches!(source, Source::Disk(_))) {
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
        self.at = end;
        Some(match source {
            Source::Zeroes => Part::Zeroes(start..end),
            Source::Unknown(why) => Part::Unknown(start..end, why),
            Source::Disk(offset) => self.read(offset, start..end).await,
        })
    }

    async fn read(&mut self, offset: u64, range: Range<u64>) -> Part {
        let length = (range.end - range.start).next_multiple_of(BLOCK);
        match self.disk.read(offset, Buffer::new(length as usize)).await {
            (Ok(()), buffer) => {
                let bytes = buffer[..(range.end - range.start) as usize].to_vec();
                Part::Data(Buffered { offset: range.start, bytes })
            }
            (Err(error), _) if length == BLOCK => Part::Unknown(range, format!("the disk: {error}")),
            (Err(_), _) => {
                // Block by block, to lose no more than must be.
                let end = range.start + BLOCK;
                self.at = end;
                Box::pin(self.read(offset, range.start..end)).await
            }
        }
    }

    /// What holds the byte `at`, and up to where that is so: at most to the end of its cluster.
    fn find(&self, at: u64) -> (Source, u64) {
        let blocks = u64::from(self.state.shape.blocks());
        let block = at / BLOCK;
        let (index, first) = ((block / blocks) as u32, (block % blocks) as u32);
        let mut end = (u64::from(index) + 1) * blocks;
        let bytes = |end: u64| (end * BLOCK).min(self.size);
        for uuid in &self.chain {
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
        let source = match &self.end_reason {
            Some(reason) => Source::Unknown(reason.clone()),
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
