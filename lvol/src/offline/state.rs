//! What a store holds, put together without changing anything on it, and what of it nobody knows any more.
//!
//! The same steps as opening: checkpoint, then journal. Where opening gives an lvol up as damaged, this goes on and keeps
//! account of which blocks of which map are unknown.

use std::collections::BTreeMap;
use std::ops::Range;

use uuid::Uuid;

use super::findings::Finding;
use super::ranges::Ranges;
use crate::catalog::MAX_CHAIN;
use crate::format::page::Segment;
use crate::format::record::{LvolRecord, Record};
use crate::format::superblock::Superblock;
use crate::map::{Inconsistent, LEAF, Map, Shape};
use crate::marks::Marks;

/// An lvol as far as it is known.
pub(super) struct Known {
    pub(super) record: LvolRecord,
    /// Where that was found, in bytes from the start of the disk.
    pub(super) offset: u64,
    /// Only the directory names it: its name and attributes are lost.
    pub(super) nameless: bool,
}

/// The map of an lvol as far as it is known.
pub(super) struct KnownMap {
    pub(super) map: Map,
    /// Blocks of the lvol, counted from its start, for which nobody knows what the map had.
    pub(super) unknown: Ranges,
    /// That was so when the store was opened before: which of its pages were lost is not on the disk any more.
    pub(super) damaged_before: bool,
}

/// A store as far as it is known.
pub(super) struct State {
    pub(super) superblock: Superblock,
    pub(super) shape: Shape,
    pub(super) lvols: BTreeMap<Uuid, Known>,
    pub(super) maps: BTreeMap<u32, KnownMap>,
    /// One bit a data cluster: in use by the checkpoint's bitmap, or not told of.
    pub(super) bitmap: Vec<u64>,
    /// Lvols that the checkpoint had and that nothing names any more.
    pub(super) lost_lvols: u32,
    /// Blocks that read as zeroes whatever the disk has there: cluster and block of it.
    pub(super) zeroes: std::collections::BTreeSet<(u64, u16)>,
    /// Blocks of the disk that are known to be damaged; those of clusters that are free by now do not count.
    pub(super) marks: Marks,
    /// Where the journal goes on: number of the next batch and its place.
    pub(super) end: (u64, u64),
    /// Some part of the metadata could not be read from the disk: nothing may be decided for good.
    pub(super) unreadable: bool,
    pub(super) findings: Vec<Finding>,
}

impl State {
    pub(super) fn new(superblock: Superblock) -> Self {
        let clusters = superblock.layout.clusters;
        Self {
            shape: Shape::new(superblock.layout.cluster_size),
            lvols: BTreeMap::new(),
            maps: BTreeMap::new(),
            bitmap: vec![u64::MAX; clusters.div_ceil(64) as usize],
            lost_lvols: 0,
            zeroes: std::collections::BTreeSet::new(),
            marks: Marks::default(),
            end: (superblock.checkpoint.start_batch, superblock.checkpoint.start_position),
            unreadable: false,
            findings: Vec::new(),
            superblock,
        }
    }

    /// The map of this id, made if there is none.
    pub(super) fn map(&mut self, id: u32) -> &mut KnownMap {
        let shape = self.shape;
        self.maps.entry(id).or_insert_with(|| KnownMap {
            map: Map::new(id, shape),
            unknown: Ranges::default(),
            damaged_before: false,
        })
    }

    /// Blocks of the entries from cluster `first` to before `end` of an lvol.
    pub(super) fn blocks_of(&self, entries: Range<u64>) -> Range<u64> {
        let blocks = u64::from(self.shape.blocks());
        entries.start * blocks..entries.end.saturating_mul(blocks)
    }

    /// Every block that a map can have.
    pub(super) fn all_blocks(&self) -> Range<u64> {
        self.blocks_of(0..1 << 32)
    }

    /// Makes the change of one record.
    pub(super) fn apply(&mut self, record: &Record, offset: u64) -> Result<(), Inconsistent> {
        match record {
            Record::MapSet { map, index, cluster, first, checksums } => {
                self.set(*map, *index, *cluster, u32::from(*first), checksums.len() as u32)
            }
            Record::MapSetZeroed { map, index, cluster, first, count } => {
                self.set(*map, *index, *cluster, u32::from(*first), u32::from(*count))
            }
            Record::MapClear { map, first, count } => self.change(*map, *first, *count, |map, freed| {
                map.clear(*first, *count, freed);
            }),
            Record::MapZero { map, first, count } => self.change(*map, *first, *count, |map, freed| {
                map.zero(*first, *count, freed);
            }),
            Record::MapDrop { map } => {
                self.maps.remove(map);
                Ok(())
            }
            Record::LvolPut(record) => self.put(record, offset),
            Record::LvolRemove { uuid } => {
                self.lvols.remove(uuid);
                Ok(())
            }
            Record::MapMerge { from, to, segment } => self.merge(*from, *to, segment),
            Record::BlocksMarked { run, bad } => {
                run.check(&self.superblock.layout)?;
                self.marks.set(*run, *bad);
                Ok(())
            }
        }
    }

    fn set(&mut self, map: u32, index: u32, cluster: u64, first: u32, count: u32) -> Result<(), Inconsistent> {
        let (layout, shape) = (self.superblock.layout, self.shape);
        let Some(known) = self.maps.get_mut(&map) else { return Ok(()) };
        if !layout.is_data(cluster) || count == 0 || first + count > shape.blocks() {
            return Err(Inconsistent("a map record names an impossible cluster or block"));
        }
        known.map.set(index, cluster, first, count, &mut Vec::new());
        self.marks.forget(layout.blocks(cluster, first, count));
        let start = u64::from(index) * u64::from(shape.blocks()) + u64::from(first);
        known.unknown.remove(start..start + u64::from(count));
        Ok(())
    }

    fn change(
        &mut self,
        map: u32,
        first: u64,
        count: u64,
        change: impl FnOnce(&Map, &mut Vec<u64>),
    ) -> Result<(), Inconsistent> {
        let end = first.checked_add(count).filter(|end| *end <= self.all_blocks().end);
        let end = end.ok_or(Inconsistent("a map record covers an impossible range"))?;
        if let Some(known) = self.maps.get_mut(&map) {
            change(&known.map, &mut Vec::new());
            known.unknown.remove(first..end);
        }
        Ok(())
    }

    fn merge(&mut self, from: u32, to: u32, segment: &Segment) -> Result<(), Inconsistent> {
        let layout = self.superblock.layout;
        let entries: Vec<Range<u64>> = (0..LEAF)
            .filter(|place| segment.present >> place & 1 == 1)
            .map(|place| u64::from(segment.leaf) * u64::from(LEAF) + u64::from(place))
            .map(|index| self.blocks_of(index..index + 1))
            .collect();
        if let Some(known) = self.maps.get_mut(&to) {
            known.map.check_merge(segment, |cluster| layout.is_data(cluster))?;
            known.map.merge(segment, &mut Vec::new(), &mut Vec::new());
            entries.iter().for_each(|blocks| known.unknown.remove(blocks.clone()));
        }
        if let Some(known) = self.maps.get_mut(&from) {
            if segment.leaf <= u32::MAX / LEAF {
                known.map.give_up(segment, &mut Vec::new());
            }
            entries.iter().for_each(|blocks| known.unknown.remove(blocks.clone()));
        }
        Ok(())
    }

    fn put(&mut self, record: &LvolRecord, offset: u64) -> Result<(), Inconsistent> {
        if !self.fits(record.size) {
            return Err(Inconsistent("an lvol is larger than a map can be"));
        }
        self.map(record.map);
        self.lvols.insert(record.uuid, Known { record: record.clone(), offset, nameless: false });
        Ok(())
    }

    /// Whether a map can be as long as an lvol of this size.
    pub(super) fn fits(&self, size: u64) -> bool {
        self.superblock.layout.fits_lvol(size)
    }

    /// The bytes of an lvol that its own map does not know any more.
    pub(super) fn unknown_bytes(&self, record: &LvolRecord) -> Vec<Range<u64>> {
        let Some(known) = self.maps.get(&record.map) else { return Vec::new() };
        let block = crate::format::BLOCK;
        let blocks = known.unknown.below(record.size.div_ceil(block));
        blocks.map(|blocks| blocks.start * block..(blocks.end * block).min(record.size)).collect()
    }

    /// An lvol and its ancestors, as far as they are there. Ends where one comes again.
    pub(super) fn chain(&self, uuid: Uuid) -> Vec<Uuid> {
        let mut chain: Vec<Uuid> = Vec::new();
        let mut next = Some(uuid);
        while let Some(at) = next.filter(|at| chain.len() < MAX_CHAIN && !chain.contains(at)) {
            let Some(known) = self.lvols.get(&at) else { break };
            chain.push(at);
            next = known.record.parent;
        }
        chain
    }

    /// Why nobody knows what no map of a chain holds, if so.
    pub(super) fn chain_end(&self, chain: &[Uuid]) -> Option<String> {
        let next = chain.last().and_then(|last| self.lvols[last].record.parent);
        next.map(|parent| format!("its ancestor {parent} is missing, or is its descendant too"))
    }

    /// The lvols that read through this one.
    pub(super) fn readers(&self, uuid: Uuid) -> Vec<Uuid> {
        let others = self.lvols.keys().filter(|other| **other != uuid);
        others.copied().filter(|other| self.chain(*other).contains(&uuid)).collect()
    }
}
