//! All lvols and their maps, and how a record changes them: the same code for a commit now and for a replay later, so that
//! memory cannot hold another truth than the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use block_device::Range;
use uuid::Uuid;

use crate::allocator::{Allocator, Clusters};
use crate::error::StoreError;
use crate::family::Family;
use crate::format::BLOCK;
use crate::format::layout::{Layout, with_page_headers};
use crate::format::page::Segment;
use crate::format::record::{Damage, LvolRecord, Record};
use crate::map::{Inconsistent, Map, Shape};
use crate::maps::Maps;
use crate::marks::{BlockRun, MAX_MARKS, Marks};
use crate::volume::Volume;

/// The most lvols that read through one another.
pub(crate) const MAX_CHAIN: usize = 1024;

/// An lvol.
pub(crate) struct Node {
    pub(crate) record: LvolRecord,
    /// What is wrong with its record, if so: name and attributes are unknown, but others can read through it.
    pub(crate) damage: Option<String>,
    /// Its side of the data path, once it was opened.
    pub(crate) volume: Option<Rc<Volume>>,
    /// Why its deletion did not go on, the last time.
    pub(crate) trouble: Option<String>,
}

/// All lvols of a store.
pub(crate) struct Catalog {
    layout: Layout,
    shape: Shape,
    pub(crate) lvols: BTreeMap<Uuid, Node>,
    /// What follows from their records.
    pub(crate) family: Family,
    pub(crate) maps: Maps,
    pub(crate) allocator: Allocator,
    /// Clusters that writes of hosts do not take.
    pub(crate) reserve: u64,
    /// Shared with the data path.
    pub(crate) marks: Rc<Marks>,
    pub(crate) next_map: u32,
}

impl Catalog {
    /// A store without any lvol.
    pub(crate) fn new(layout: Layout) -> Self {
        Self {
            shape: Shape::new(layout.cluster_size),
            lvols: BTreeMap::new(),
            family: Family::default(),
            maps: Maps::new(&layout),
            allocator: new_allocator(&layout),
            reserve: 0,
            marks: Rc::default(),
            next_map: 1,
            layout,
        }
    }

    pub(crate) const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The store is as large as this layout says from now on.
    pub(crate) fn grow(&mut self, layout: Layout) {
        self.allocator = self.grown_allocator(&layout);
        self.layout = layout;
    }

    /// Which clusters are in use, in a larger store.
    pub(crate) fn grown_allocator(&self, layout: &Layout) -> Allocator {
        let mut allocator = self.allocator.clone();
        self.layout.taken_clusters().for_each(|cluster| allocator.release(cluster));
        allocator.extend(layout.clusters);
        layout.taken_clusters().for_each(|cluster| _ = allocator.claim(cluster));
        allocator
    }

    /// Takes up to `want` free clusters in a row; `None` when there is none. Only internal lvols take from the reserve.
    pub(crate) fn take(&mut self, want: u64, internal: bool) -> Option<Clusters> {
        let reserve = if internal { 0 } else { self.reserve };
        match self.allocator.free().saturating_sub(reserve) {
            0 => None,
            free => self.allocator.take(want.min(free)),
        }
    }

    /// Makes the change of one record. Clusters that are free by it go to `freed`; the allocator is the caller's business.
    pub(crate) fn apply(&mut self, record: &Record, freed: &mut Vec<u64>) -> Result<(), Inconsistent> {
        let before = freed.len();
        self.change(record, freed)?;
        if self.marks.any() {
            let length = u64::from(self.layout.cluster_size);
            for cluster in &freed[before..] {
                self.marks.forget(Range { offset: self.layout.cluster_offset(*cluster), length });
            }
        }
        Ok(())
    }

    fn change(&mut self, record: &Record, freed: &mut Vec<u64>) -> Result<(), Inconsistent> {
        match record {
            Record::MapSet { map, index, cluster, first, checksums } => {
                self.set(*map, *index, *cluster, u32::from(*first), checksums.len() as u32, freed)
            }
            Record::MapSetZeroed { map, index, cluster, first, count } => {
                self.set(*map, *index, *cluster, u32::from(*first), u32::from(*count), freed)
            }
            Record::MapClear { map, first, count } => {
                self.check_range(*first, *count)?;
                self.change_map(*map, |map| map.clear(*first, *count, freed))
            }
            Record::MapZero { map, first, count } => {
                self.check_range(*first, *count)?;
                self.change_map(*map, |map| map.zero(*first, *count, freed))
            }
            Record::MapDrop { map } => {
                self.maps.remove(*map, freed);
                Ok(())
            }
            Record::LvolPut(record) => self.put(record),
            Record::LvolRemove { uuid } => {
                if let Some(node) = self.lvols.remove(uuid) {
                    self.family.remove(&node.record);
                    node.volume.iter().for_each(|volume| volume.retire());
                }
                Ok(())
            }
            Record::MapMerge { from, to, segment } => self.merge(*from, *to, segment, freed),
            Record::BlocksMarked { run, bad } => self.mark(*run, *bad),
        }
    }

    /// Marks blocks of the disk as bad, or as good again.
    pub(crate) fn mark(&mut self, run: BlockRun, bad: bool) -> Result<(), Inconsistent> {
        run.check(&self.layout)?;
        self.marks.set(run, bad);
        Ok(())
    }

    /// Whether so many more blocks can be marked.
    pub(crate) fn has_room_for_marks(&self, more: usize) -> bool {
        self.marks.count() + more <= MAX_MARKS && self.has_metadata_room(17 * more as u64)
    }

    /// Replay can bring back a mark whose cluster was freed later, when the map's pages are newer than the record.
    pub(crate) fn drop_old_marks(&self) {
        let per_cluster = u64::from(self.layout.blocks_per_cluster());
        self.marks.retain(|block| self.allocator.is_used(block / per_cluster));
    }

    /// What moved has an owner before and after; what is free by it was in one of the two maps and is in neither now.
    fn merge(&mut self, from: u32, to: u32, segment: &Segment, freed: &mut Vec<u64>) -> Result<(), Inconsistent> {
        let (mut before, mut after) = (Vec::new(), Vec::new());
        let layout = self.layout;
        self.maps.get(to).map_or(Ok(()), |to| to.check_merge(segment, |cluster| layout.is_data(cluster)))?;
        self.change_map(to, |to| to.merge(segment, &mut before, &mut after))?;
        self.change_map(from, |from| from.give_up(segment, &mut before))?;
        after.sort_unstable();
        freed.extend(before.into_iter().filter(|cluster| after.binary_search(cluster).is_err()));
        Ok(())
    }

    /// A map may be unknown only when replay meets records of one that was dropped before the checkpoint was done:
    /// they change nothing. One that is known is in memory: who changes it holds it, and replay has loaded it.
    fn change_map(&mut self, map: u32, change: impl FnOnce(&Map)) -> Result<(), Inconsistent> {
        match self.maps.change(map, change) {
            None if self.maps.contains(map) => Err(Inconsistent("a map changes that is not in memory")),
            _ => Ok(()),
        }
    }

    fn set(
        &mut self,
        map: u32,
        index: u32,
        cluster: u64,
        first: u32,
        count: u32,
        freed: &mut Vec<u64>,
    ) -> Result<(), Inconsistent> {
        if !self.layout.is_data(cluster) || count == 0 || first + count > self.shape.blocks() {
            return Err(Inconsistent("a map record names an impossible cluster or block"));
        }
        if !self.maps.contains(map) {
            // Its cluster is somebody else's by now, and so are the marks.
            return Ok(());
        }
        self.change_map(map, |map| map.set(index, cluster, first, count, freed))?;
        self.marks.forget(self.layout.blocks(cluster, first, count));
        Ok(())
    }

    fn check_range(&self, first: u64, count: u64) -> Result<(), Inconsistent> {
        let end = u64::from(self.shape.blocks()) << 32;
        match first.checked_add(count) {
            Some(last) if last <= end => Ok(()),
            _ => Err(Inconsistent("a map record covers an impossible range")),
        }
    }

    fn put(&mut self, record: &LvolRecord) -> Result<(), Inconsistent> {
        if record.size.div_ceil(u64::from(self.layout.cluster_size)) > u64::from(u32::MAX) {
            return Err(Inconsistent("an lvol is larger than a map can be"));
        }
        self.add_map(record.map);
        let mut moved = false;
        match self.lvols.get_mut(&record.uuid) {
            Some(node) => {
                moved = node.record.parent != record.parent || node.record.map != record.map;
                self.family.remove(&node.record);
                self.family.add(record);
                node.record = record.clone();
                node.damage = None;
            }
            None => self.insert(record.clone(), None),
        }
        let node = self.lvols.get(&record.uuid);
        if let Some(volume) = node.and_then(|node| node.volume.as_ref()) {
            volume.set_size(record.size);
            volume.set_deleted(record.deletion.is_some());
        }
        if moved {
            self.renew_chains(record.uuid);
        }
        Ok(())
    }

    /// After a snapshot, a merge or a revert: what is open and reads through this lvol has a new chain from here on.
    fn renew_chains(&self, changed: Uuid) {
        let mut seen = BTreeSet::new();
        let mut left = vec![changed];
        while let Some(uuid) = left.pop() {
            if !seen.insert(uuid) {
                continue;
            }
            left.extend(self.family.children(uuid));
            let Some(volume) = self.lvols.get(&uuid).and_then(|node| node.volume.as_ref()) else { continue };
            match self.chain(uuid) {
                Ok(chain) => volume.set_chain(chain),
                // It held them all before; nothing is better than what is not its content.
                Err(_) if self.lineage(uuid).is_ok() => volume.retire(),
                Err(_) => {}
            }
        }
    }

    /// An lvol that is not an internal one.
    pub(crate) fn users_lvol(&self, uuid: Uuid) -> Option<&Node> {
        self.lvols.get(&uuid).filter(|node| node.record.internal.is_none())
    }

    /// Bytes of an lvol's own clusters.
    pub(crate) fn used_bytes(&self, node: &Node) -> u64 {
        let clusters = u64::from(self.maps.counts(node.record.map).clusters);
        clusters * u64::from(self.layout.cluster_size)
    }

    /// Whether an lvol reads through `ancestor`.
    pub(crate) fn descends(&self, uuid: Uuid, ancestor: Uuid) -> bool {
        let parent = |uuid: &Uuid| self.lvols.get(uuid).and_then(|node| node.record.parent);
        std::iter::successors(parent(&uuid), parent).take(MAX_CHAIN).any(|at| at == ancestor)
    }

    /// The nearest ancestor that is not to be deleted.
    pub(crate) fn staying_parent(&self, record: &LvolRecord) -> Option<Uuid> {
        let node = |uuid: Uuid| self.lvols.get(&uuid);
        let next = |uuid: &Uuid| node(*uuid).and_then(|node| node.record.parent);
        let mut ancestors = std::iter::successors(record.parent, next).take(MAX_CHAIN);
        ancestors.find(|uuid| node(*uuid).is_none_or(|node| node.record.deletion.is_none()))
    }

    /// How many ancestors, from the parent on, are to be deleted.
    pub(crate) fn doomed_parents(&self, uuid: Uuid) -> usize {
        let parent = |node: &&Node| node.record.parent.and_then(|parent| self.lvols.get(&parent));
        let node = self.lvols.get(&uuid);
        let ancestors = std::iter::successors(node.and_then(|node| parent(&node)), parent);
        ancestors.take(MAX_CHAIN - 1).take_while(|node| node.record.deletion.is_some()).count()
    }

    pub(crate) fn insert(&mut self, record: LvolRecord, damage: Option<String>) {
        if let Some(before) = self.lvols.get(&record.uuid) {
            // Told of twice, by pages that disagree.
            self.family.remove(&before.record);
        }
        self.family.add(&record);
        self.lvols.insert(record.uuid, Node { record, damage, volume: None, trouble: None });
    }

    /// The map of this id, made if there is none.
    pub(crate) fn add_map(&mut self, id: u32) {
        self.see_map(id);
        self.maps.add(id);
    }

    /// Map ids are never used twice.
    pub(crate) fn see_map(&mut self, id: u32) {
        self.next_map = self.next_map.max(id.saturating_add(1));
    }

    /// The maps that an lvol reads through, its own first, all of them in memory; or why not.
    pub(crate) fn chain(&self, uuid: Uuid) -> Result<Vec<Rc<Map>>, String> {
        let in_memory = |id| self.maps.get(id).cloned().ok_or_else(|| "a map is not in memory".to_owned());
        self.lineage(uuid)?.into_iter().map(in_memory).collect()
    }

    /// The ids of the maps that an lvol reads through, its own first; or what is wrong with one of them.
    pub(crate) fn lineage(&self, uuid: Uuid) -> Result<Vec<u32>, String> {
        let mut chain = Vec::new();
        let mut next = Some(uuid);
        while let Some(at) = next {
            let Some(node) = self.lvols.get(&at) else { return Err(format!("its ancestor {at} is missing")) };
            if let Some(reason) = self.maps.damage_of(node.record.map) {
                let whose = if at == uuid { String::new() } else { format!("its ancestor {at} is damaged: ") };
                return Err(format!("{whose}{reason}"));
            }
            if !self.maps.contains(node.record.map) {
                return Err(format!("{at} has no map"));
            }
            if chain.len() == MAX_CHAIN {
                return Err("its chain is too long or has no end".to_owned());
            }
            chain.push(node.record.map);
            next = node.record.parent;
        }
        Ok(chain)
    }

    /// Why an lvol cannot be used, if so.
    pub(crate) fn damage(&self, uuid: Uuid) -> Option<String> {
        self.lvols.get(&uuid)?.damage.clone().or_else(|| self.lineage(uuid).err())
    }

    /// The ids of the maps that an lvol reads through; an error if it cannot be used.
    pub(crate) fn usable_lineage(&self, uuid: Uuid) -> Result<Vec<u32>, StoreError> {
        let node = self.lvols.get(&uuid).ok_or(StoreError::NotFound { uuid })?;
        let damaged = |reason| StoreError::LvolDamaged { uuid, reason };
        node.damage.clone().map_or(Ok(()), |reason| Err(damaged(reason)))?;
        self.lineage(uuid).map_err(damaged)
    }

    /// Whether anything is damaged: then the clusters in use cannot be derived from the maps alone.
    pub(crate) fn is_damaged(&self) -> bool {
        self.maps.is_damaged() || self.lvols.values().any(|node| node.damage.is_some())
    }

    /// The records as a checkpoint keeps them: damage stays until a repair, since what is lost does not come back by writing
    /// the rest.
    pub(crate) fn checkpointed_records(&self) -> Vec<LvolRecord> {
        let record = |node: &Node| {
            let damage = Damage { record: node.damage.is_some(), map: self.maps.damage_of(node.record.map).is_some() };
            LvolRecord { damage, ..node.record.clone() }
        };
        self.lvols.values().map(record).collect()
    }

    /// Whether a checkpoint still fits its area when `more` bytes are added to the metadata, whatever is done with the
    /// free clusters: this is the reserve that keeps deletes and unmaps from ever running out of space.
    pub(crate) fn has_metadata_room(&self, more: u64) -> bool {
        self.metadata_bytes(more) <= self.metadata_room()
    }

    /// Bytes that a checkpoint may take.
    pub(crate) fn metadata_room(&self) -> u64 {
        self.layout.areas[0].length.min(self.layout.areas[1].length)
    }

    /// Bytes of a checkpoint with `more` bytes of segments besides and all free clusters mapped in the worst way.
    pub(crate) fn metadata_bytes(&self, more: u64) -> u64 {
        let maps = self.maps.checkpoint_bytes();
        let clusters = self.allocator.free() * self.layout.worst_cluster_bytes();
        // Each lvol: its record in two blocks, an unfilled map page, its place in the directory.
        let lvols = (self.lvols.len() as u64 + 2) * (3 * BLOCK + 128);
        let bitmap = 2 * BLOCK + self.layout.clusters.div_ceil(7);
        let marks = 2 * BLOCK + 17 * self.marks.count() as u64;
        with_page_headers(maps + clusters + more) + lvols + bitmap + marks
    }
}

/// All data clusters free, those under checkpoint areas in use.
fn new_allocator(layout: &Layout) -> Allocator {
    let mut allocator = Allocator::new(layout.first_cluster, layout.clusters);
    layout.taken_clusters().for_each(|cluster| _ = allocator.claim(cluster));
    allocator
}
