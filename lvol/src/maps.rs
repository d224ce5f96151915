//! All maps of a store: those in memory, and where the last checkpoint has the others.
//!
//! ```text
//!          new ──────────────▶ resident ◀──loaded── cold
//!                                 │                  ▲
//!                                 └──────────────────┘
//!               nobody uses it, and a checkpoint has all its changes
//! ```
//! A map is used as long as someone else holds it: an open lvol that reads through it, a merge, a checkpoint.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::format::layout::Layout;
use crate::format::page::Counts;
use crate::map::{Map, Shape};

/// All maps of a store.
pub(crate) struct Maps {
    shape: Shape,
    slots: BTreeMap<u32, Slot>,
    /// What is wrong with maps: no lvol that reads through one of them can be read.
    bad: BTreeMap<u32, String>,
    /// Clusters that several entries name, and how many do: the last of them frees it.
    contested: BTreeMap<u64, u32>,
    /// Bytes that the segments of all of them need in a checkpoint.
    checkpoint_bytes: u64,
    /// Bytes of memory that those in memory take.
    memory_bytes: u64,
    /// Counts the checkpoints that began.
    era: u64,
}

/// Where a checkpoint has a map, and how much of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The number of the checkpoint.
    pub(crate) checkpoint: u64,
    /// Of its first page, in bytes from the start of the disk.
    pub(crate) offset: u64,
    pub(crate) pages: u32,
    pub(crate) counts: Counts,
}

/// What a checkpoint takes a map from.
pub(crate) enum Origin {
    Memory(Rc<Map>),
    Disk(Place),
}

/// What is in memory and need not be.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Idle {
    /// Bytes of maps that can go the next time.
    pub(crate) clean: u64,
    /// Bytes of maps that can go after a checkpoint.
    pub(crate) dirty: u64,
    /// Bytes of maps that went now.
    pub(crate) gone: u64,
}

struct Slot {
    map: Option<Rc<Map>>,
    /// In the last checkpoint. A map has a place, or is in memory, or both.
    place: Option<Place>,
    /// The era of the last change.
    changed: u64,
    /// The era of the checkpoint that the place is in: what changed in it, or later, is not there.
    saved: u64,
    /// Nobody used it the last time that someone looked.
    idle: bool,
}

impl Maps {
    pub(crate) fn new(layout: &Layout) -> Self {
        let shape = Shape::new(layout.cluster_size);
        Self {
            shape,
            slots: BTreeMap::new(),
            bad: BTreeMap::new(),
            contested: BTreeMap::new(),
            checkpoint_bytes: 0,
            memory_bytes: 0,
            era: 1,
        }
    }

    /// A map that is in memory.
    pub(crate) fn get(&self, id: u32) -> Option<&Rc<Map>> {
        self.slots.get(&id)?.map.as_ref()
    }

    pub(crate) fn contains(&self, id: u32) -> bool {
        self.slots.contains_key(&id)
    }

    /// How much is in a map.
    pub(crate) fn counts(&self, id: u32) -> Counts {
        self.slots.get(&id).map_or(Counts::default(), Slot::counts)
    }

    /// Where to find a map that is not in memory.
    pub(crate) fn cold(&self, id: u32) -> Option<Place> {
        self.slots.get(&id).filter(|slot| slot.map.is_none())?.place
    }

    /// Bytes that the segments of all maps need in a checkpoint, at most.
    pub(crate) const fn checkpoint_bytes(&self) -> u64 {
        self.checkpoint_bytes
    }

    /// Bytes of memory that the maps take that are there.
    pub(crate) const fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// Those in memory.
    pub(crate) fn in_memory(&self) -> impl Iterator<Item = &Rc<Map>> {
        self.slots.values().filter_map(|slot| slot.map.as_ref())
    }

    /// An empty map of this id, if there is none.
    pub(crate) fn add(&mut self, id: u32) {
        let (shape, changed) = (self.shape, self.era);
        let bytes = &mut self.memory_bytes;
        self.slots.entry(id).or_insert_with(|| {
            let map = Map::new(id, shape);
            *bytes += map.heap_bytes();
            Slot { map: Some(Rc::new(map)), place: None, changed, saved: 0, idle: false }
        });
    }

    /// A map as the last checkpoint has it, in memory or not.
    pub(crate) fn add_saved(&mut self, id: u32, place: Place, map: Option<Map>) {
        let slot = Slot { map: map.map(Rc::new), place: Some(place), changed: 0, saved: self.era, idle: false };
        self.checkpoint_bytes += self.shape.checkpoint_bytes(slot.counts());
        self.memory_bytes += slot.memory_bytes();
        if let Some(before) = self.slots.insert(id, slot) {
            self.checkpoint_bytes -= self.shape.checkpoint_bytes(before.counts());
            self.memory_bytes -= before.memory_bytes();
        }
    }

    /// What was cold is in memory.
    pub(crate) fn attach(&mut self, id: u32, map: Map) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        debug_assert!(slot.map.is_none());
        self.checkpoint_bytes -= self.shape.checkpoint_bytes(slot.counts());
        slot.map = Some(Rc::new(map));
        slot.idle = false;
        self.checkpoint_bytes += self.shape.checkpoint_bytes(slot.counts());
        self.memory_bytes += slot.memory_bytes();
    }

    /// Someone is going to use a map.
    pub(crate) fn hold(&mut self, id: u32) -> Option<Rc<Map>> {
        let slot = self.slots.get_mut(&id)?;
        slot.idle = false;
        slot.map.clone()
    }

    /// Changes a map that is in memory; `None` if it is not.
    pub(crate) fn change<T>(&mut self, id: u32, change: impl FnOnce(&Map) -> T) -> Option<T> {
        let slot = self.slots.get_mut(&id)?;
        let map = slot.map.as_ref()?;
        let before = (self.shape.checkpoint_bytes(map.counts()), map.heap_bytes());
        let result = change(map);
        self.checkpoint_bytes = self.checkpoint_bytes + self.shape.checkpoint_bytes(map.counts()) - before.0;
        self.memory_bytes = self.memory_bytes + map.heap_bytes() - before.1;
        slot.changed = self.era;
        Some(result)
    }

    /// Takes a map out. Its clusters go to `freed`, as far as they are known and nobody else names them.
    pub(crate) fn remove(&mut self, id: u32, freed: &mut Vec<u64>) {
        self.bad.remove(&id);
        let Some(slot) = self.slots.remove(&id) else { return };
        self.checkpoint_bytes -= self.shape.checkpoint_bytes(slot.counts());
        self.memory_bytes -= slot.memory_bytes();
        let Some(map) = slot.map else { return };
        map.each_cluster(|cluster| match self.contested.get_mut(&cluster) {
            Some(others @ 2..) => *others -= 1,
            _ => {
                self.contested.remove(&cluster);
                freed.push(cluster);
            }
        });
    }

    /// Marks a map as damaged. That stays with the map, whichever lvol it belongs to later.
    pub(crate) fn damage(&mut self, id: u32, reason: &str) {
        tracing::error!(map = id, reason, "the map of an lvol is damaged");
        self.bad.entry(id).or_insert_with(|| reason.to_owned());
    }

    /// Marks a map of which some entries name clusters that others name as well.
    pub(crate) fn contest(&mut self, id: u32, clusters: &[u64]) {
        self.damage(id, "another lvol claims one of its clusters");
        for cluster in clusters {
            *self.contested.entry(*cluster).or_default() += 1;
        }
    }

    /// What is wrong with a map.
    pub(crate) fn damage_of(&self, id: u32) -> Option<&str> {
        self.bad.get(&id).map(String::as_str)
    }

    pub(crate) fn is_damaged(&self) -> bool {
        !self.bad.is_empty()
    }

    /// A checkpoint begins: what it takes the maps from, as they are now or will be. Those in memory stay there until it is done.
    pub(crate) fn begin_checkpoint(&mut self) -> (u64, Vec<(u32, Origin)>) {
        self.era += 1;
        let origin = |slot: &Slot| match (&slot.map, slot.place) {
            (Some(map), _) => Some(Origin::Memory(Rc::clone(map))),
            (None, place) => place.map(Origin::Disk),
        };
        (self.era, self.slots.iter().filter_map(|(id, slot)| Some((*id, origin(slot)?))).collect())
    }

    /// The checkpoint of this era counts: maps are where it says.
    pub(crate) fn finish_checkpoint(&mut self, era: u64, places: &[(u32, Place)]) {
        for (id, place) in places {
            if let Some(slot) = self.slots.get_mut(id) {
                (slot.place, slot.saved) = (Some(*place), era);
            }
        }
    }

    /// Lets go of maps that nobody uses and that a checkpoint has: at once, or the second time that nobody does.
    pub(crate) fn release(&mut self, at_once: bool) -> Idle {
        let mut idle = Idle::default();
        for slot in self.slots.values_mut() {
            let Some(map) = slot.map.as_ref().filter(|map| Rc::strong_count(map) == 1) else { continue };
            let bytes = map.heap_bytes();
            if slot.place.is_none() || slot.changed >= slot.saved {
                idle.dirty += bytes;
            } else if at_once || slot.idle {
                slot.map = None;
                idle.gone += bytes;
            } else {
                slot.idle = true;
                idle.clean += bytes;
            }
        }
        self.memory_bytes -= idle.gone;
        idle
    }
}

impl Slot {
    fn memory_bytes(&self) -> u64 {
        self.map.as_ref().map_or(0, |map| map.heap_bytes())
    }

    fn counts(&self) -> Counts {
        match (&self.map, self.place) {
            (Some(map), _) => map.counts(),
            (None, place) => place.map_or(Counts::default(), |place| place.counts),
        }
    }
}
