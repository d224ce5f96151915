//! What a fake replica keeps: a chain in memory.

use std::collections::{BTreeMap, BTreeSet};

use block_device::{ErrorKind, Geometry, Outcome, Range, Request, Segments, Slice};
use replica::{
    ChainEntry, DamagedRegion, Extent, ExtentKind, Extents, Granted, LvolKind, Note, OpenError, OpenReplica,
    REPAIR_REGION, ReplicaState,
};
use uuid::Uuid;

/// Bytes a block.
pub(crate) const BLOCK: u64 = 4096;

/// What one lvol has of its own: blocks of data, or none for zeroes.
type Own = BTreeMap<u64, Option<Vec<u8>>>;

struct Snapshot {
    id: Uuid,
    name: String,
    size: u64,
    own: Own,
}

pub(crate) struct FakeDisk {
    pub(crate) id: Uuid,
    pub(crate) state: ReplicaState,
    pub(crate) epoch: u64,
    pub(crate) instance: Uuid,
    pub(crate) resets: u32,
    /// The engine's copy of the record.
    pub(crate) membership: Option<Vec<u8>>,
    /// What is kept with it; a reset leaves it behind.
    pub(crate) attached: Option<Vec<u8>>,
    size: u64,
    snapshots: Vec<Snapshot>,
    head: Own,
    /// The head as it was made durable last.
    durable: Own,
    /// Blocks that the medium does not give back, by the lvol that has them.
    bad: BTreeSet<(Uuid, u64)>,
    /// Nothing that is written to a bad block makes it good.
    pub(crate) stubborn: bool,
    /// By place: the last note, and the last durable one.
    notes: BTreeMap<u8, (Note, Option<Vec<u8>>)>,
}

impl FakeDisk {
    pub(crate) fn new(id: Uuid, size: u64) -> Self {
        Self {
            id,
            state: ReplicaState::Complete,
            epoch: 0,
            instance: Uuid::nil(),
            resets: 0,
            membership: None,
            attached: None,
            size,
            snapshots: Vec::new(),
            head: Own::new(),
            durable: Own::new(),
            bad: BTreeSet::new(),
            stubborn: false,
            notes: BTreeMap::new(),
        }
    }

    pub(crate) fn grant(&mut self, open: &OpenReplica) -> Result<(), OpenError> {
        if open.epoch < self.epoch || (open.epoch == self.epoch && open.instance != self.instance) {
            return Err(OpenError::Fenced { stored: self.epoch });
        }
        (self.epoch, self.instance) = (open.epoch, open.instance);
        Ok(())
    }

    pub(crate) fn granted(&self, epoch: u64) -> Granted {
        let geometry = Geometry::new(self.size, BLOCK as u32).expect("a good size");
        Granted { epoch, geometry, state: self.state }
    }

    pub(crate) fn perform(&mut self, request: &Request) -> Outcome {
        match request {
            Request::Read { range } => return self.try_read(self.id, *range),
            Request::Write { offset, data, .. } => {
                for (index, bytes) in data.chunks(BLOCK as usize).enumerate() {
                    self.head.insert(offset / BLOCK + index as u64, Some(bytes.to_vec()));
                    if !self.stubborn {
                        self.bad.remove(&(self.id, offset / BLOCK + index as u64));
                    }
                }
            }
            Request::WriteZeroes { range, .. } => self.zero(*range),
            Request::Unmap { ranges } => ranges.iter().for_each(|range| self.zero(*range)),
            Request::Flush => self.flush(),
            Request::Compare { .. } => return Err(ErrorKind::Internal.into()),
        }
        if let Request::Write { fua: true, .. } | Request::WriteZeroes { fua: true, .. } = request {
            self.flush();
        }
        Ok(Segments::none())
    }

    fn flush(&mut self) {
        self.durable.clone_from(&self.head);
    }

    fn zero(&mut self, range: Range) {
        for block in range.offset / BLOCK..range.end() / BLOCK {
            match self.snapshots.is_empty() {
                true => drop(self.head.remove(&block)),
                false => drop(self.head.insert(block, None)),
            }
        }
    }

    /// The chain up to an lvol, newest first.
    fn layers(&self, lvol: Uuid) -> Vec<&Own> {
        let mut layers: Vec<_> = self.snapshots.iter().map(|snapshot| &snapshot.own).collect();
        match self.snapshots.iter().position(|snapshot| snapshot.id == lvol) {
            Some(place) => layers.truncate(place + 1),
            None => layers.push(&self.head),
        }
        layers.reverse();
        layers
    }

    /// Reads as the medium allows.
    pub(crate) fn try_read(&self, lvol: Uuid, range: Range) -> Outcome {
        let snapshot = self.snapshots.iter().find(|snapshot| snapshot.id == lvol);
        if range.end() > snapshot.map_or(self.size, |snapshot| snapshot.size) {
            return Err(ErrorKind::InvalidRange.into());
        }
        match (range.offset / BLOCK..range.end() / BLOCK).any(|block| self.is_bad(lvol, block)) {
            true => Err(ErrorKind::ReadFailed.into()),
            false => Ok(Segments::from(Slice::from(&self.read(lvol, range)[..]))),
        }
    }

    /// Makes a block unreadable where it is: in the newest lvol of the chain up to this one that has it.
    pub(crate) fn break_block(&mut self, lvol: Uuid, block: u64) {
        let owner = self.owner(lvol, block).expect("somebody has it");
        self.bad.insert((owner, block));
    }

    /// Whether somebody of the chain has a block.
    pub(crate) fn has(&self, lvol: Uuid, block: u64) -> bool {
        self.owner(lvol, block).is_some()
    }

    pub(crate) fn is_bad(&self, lvol: Uuid, block: u64) -> bool {
        self.owner(lvol, block).is_some_and(|owner| self.bad.contains(&(owner, block)))
    }

    fn owner(&self, lvol: Uuid, block: u64) -> Option<Uuid> {
        let chain = self.snapshots.iter().map(|snapshot| (snapshot.id, &snapshot.own)).chain([(self.id, &self.head)]);
        let upper = chain.clone().position(|(id, _)| id == lvol)?;
        let owners: Vec<_> = chain.take(upper + 1).filter(|(_, own)| own.contains_key(&block)).collect();
        owners.last().map(|(id, _)| *id)
    }

    /// What a scrub would find: the start of each region with a bad block, by the snapshot that has it.
    pub(crate) fn damage(&self) -> Vec<DamagedRegion> {
        let snapshots = self.bad.iter().filter(|(lvol, _)| *lvol != self.id);
        let regions: BTreeSet<_> =
            snapshots.map(|(lvol, block)| (*lvol, block * BLOCK / REPAIR_REGION * REPAIR_REGION)).collect();
        regions.into_iter().map(|(snapshot, offset)| DamagedRegion { snapshot, offset }).collect()
    }

    /// Takes only what is known to be right.
    pub(crate) fn repair(&mut self, snapshot: Uuid, offset: u64, data: &[u8]) -> Result<(), ErrorKind> {
        let range = Range { offset, length: data.len() as u64 };
        if self.snapshots.iter().all(|there| there.id != snapshot) {
            return Err(ErrorKind::InvalidField);
        }
        if self.read(snapshot, range) != data {
            return Err(ErrorKind::CompareMismatch);
        }
        if self.stubborn {
            return Err(ErrorKind::WriteFailed);
        }
        for block in offset / BLOCK..range.end() / BLOCK {
            if let Some(owner) = self.owner(snapshot, block) {
                self.bad.remove(&(owner, block));
            }
        }
        Ok(())
    }

    /// Puts garbage into a block of a snapshot.
    pub(crate) fn spoil_snapshot(&mut self, id: Uuid, block: u64, byte: u8) {
        let snapshot = self.snapshots.iter_mut().find(|snapshot| snapshot.id == id);
        snapshot.expect("it is there").own.insert(block, Some(vec![byte; BLOCK as usize]));
    }

    pub(crate) fn read(&self, lvol: Uuid, range: Range) -> Vec<u8> {
        let layers = self.layers(lvol);
        let mut bytes = Vec::new();
        for block in range.offset / BLOCK..range.end() / BLOCK {
            match layers.iter().find_map(|own| own.get(&block)) {
                Some(Some(data)) => bytes.extend_from_slice(data),
                Some(None) | None => bytes.resize(bytes.len() + BLOCK as usize, 0),
            }
        }
        bytes
    }

    /// Everything the head reads as.
    pub(crate) fn content(&self) -> Vec<u8> {
        self.read(self.id, Range { offset: 0, length: self.size })
    }

    /// Everything a snapshot reads as.
    pub(crate) fn snapshot_content(&self, id: Uuid) -> Option<Vec<u8>> {
        let snapshot = self.snapshots.iter().find(|snapshot| snapshot.id == id)?;
        Some(self.read(id, Range { offset: 0, length: snapshot.size }))
    }

    /// Puts garbage into a block of the head, as a stale replica has it.
    pub(crate) fn spoil(&mut self, block: u64, byte: u8) {
        self.head.insert(block, Some(vec![byte; BLOCK as usize]));
    }

    pub(crate) fn chain(&self) -> Vec<ChainEntry> {
        let entry = |snapshot: &Snapshot| {
            let Snapshot { id, size, ref name, .. } = *snapshot;
            ChainEntry { id, created: 0, size, kind: LvolKind::Snapshot, name: name.clone() }
        };
        let (id, size, name) = (self.id, self.size, "head".to_owned());
        let head = ChainEntry { id, created: 0, size, kind: LvolKind::Head, name };
        self.snapshots.iter().map(entry).chain([head]).collect()
    }

    pub(crate) fn snapshot(&mut self, id: Uuid, size: u64, name: String) {
        if self.snapshots.iter().all(|snapshot| snapshot.id != id) {
            assert!(size <= self.size && self.head.keys().all(|block| block * BLOCK < size), "nothing is cut off");
            self.snapshots.push(Snapshot { id, name, size, own: std::mem::take(&mut self.head) });
            let own = self.id;
            self.bad = self.bad.iter().map(|(lvol, block)| (if *lvol == own { id } else { *lvol }, *block)).collect();
            self.flush();
        }
    }

    /// Its blocks go to the next of the chain, unless that has its own.
    pub(crate) fn delete_snapshot(&mut self, id: Uuid) {
        let Some(place) = self.snapshots.iter().position(|snapshot| snapshot.id == id) else { return };
        let Snapshot { own, .. } = self.snapshots.remove(place);
        let child = self.snapshots.get_mut(place).map_or(&mut self.head, |child| &mut child.own);
        for (block, data) in own {
            child.entry(block).or_insert(data);
        }
        self.flush();
    }

    pub(crate) fn revert(&mut self, id: Uuid) -> Result<(), ErrorKind> {
        let place = self.snapshots.iter().position(|snapshot| snapshot.id == id);
        self.snapshots.truncate(place.ok_or(ErrorKind::InvalidField)? + 1);
        self.head.clear();
        self.flush();
        Ok(())
    }

    pub(crate) fn grow(&mut self, size: u64) {
        self.size = self.size.max(size);
    }

    pub(crate) fn extents(&self, lvol: Uuid, range: Range, max: u32) -> Extents {
        let own = match self.snapshots.iter().find(|snapshot| snapshot.id == lvol) {
            Some(snapshot) => &snapshot.own,
            None => &self.head,
        };
        // From the block that the range begins in, as a store would.
        let first = range.offset / BLOCK;
        let end = range.end().min(self.size).div_ceil(BLOCK).max(first);
        let blocks = own.range(first..end).take(max as usize).map(|(block, data)| Extent {
            range: Range { offset: block * BLOCK, length: BLOCK },
            kind: if data.is_some() { ExtentKind::Data } else { ExtentKind::Zero },
        });
        let list: Vec<_> = blocks.collect();
        let next = list.last().filter(|_| list.len() == max as usize).map(|last| last.range.end());
        Extents { list, next }
    }

    pub(crate) fn set_note(&mut self, place: u8, content: Vec<u8>, durable: bool) {
        let before = self.notes.remove(&place).and_then(|(_, durable)| durable);
        let kept = if durable { Some(content.clone()) } else { before };
        self.notes.insert(place, (Note { place, current: true, content }, kept));
    }

    pub(crate) fn notes(&self) -> Vec<Note> {
        self.notes.values().map(|(note, _)| note.clone()).collect()
    }

    /// The node's machine starts anew: of its notes only durable ones are left, and nobody knows whether there were later
    /// ones.
    pub(crate) fn reboot(&mut self) {
        let notes = std::mem::take(&mut self.notes);
        // Of what was not flushed any part may be there.
        let blocks: Vec<u64> = self.head.keys().chain(self.durable.keys()).copied().collect();
        for block in blocks.into_iter().filter(|_| reactor::random().is_multiple_of(2)) {
            match self.durable.get(&block) {
                Some(data) => drop(self.head.insert(block, data.clone())),
                None => drop(self.head.remove(&block)),
            }
        }
        self.flush();
        let left = notes.into_iter().filter_map(|(place, (_, kept))| Some((place, kept?)));
        let note = |(place, content): (u8, Vec<u8>)| {
            (place, (Note { place, current: false, content: content.clone() }, Some(content)))
        };
        self.notes = left.map(note).collect();
    }

    /// Its notes are gone: nobody knows what it lacks.
    pub(crate) fn forget(&mut self) {
        self.notes.clear();
    }

    /// As if it had been made anew under its uuid.
    pub(crate) fn make_anew(&mut self) {
        *self = Self::new(self.id, self.size);
    }

    pub(crate) fn reset(&mut self) {
        self.resets += 1;
        self.state = ReplicaState::Rebuilding;
        self.snapshots.clear();
        self.head.clear();
        self.flush();
        self.notes.clear();
        self.attached = None;
    }
}
