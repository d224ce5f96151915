//! Numbered places for tasks in flight.
//!
//! A slot is an index and a generation, which changes each time the place is given out again. Both fit into
//! a transfer or task tag beside [`SPARE_BITS`] bits for its user, so what arrives late for a task that has ended names
//! no task at all (I16).

use alloc::vec::Vec;

/// Most slots of one connection. An index takes `INDEX_BITS`, and the highest is left out: so no tag is the reserved one.
pub(crate) const SLOTS_MAX: usize = (1 << INDEX_BITS) - 1;

const INDEX_BITS: u32 = 10;
const GENERATION_MASK: u32 = (1 << (32 - SPARE_BITS - INDEX_BITS)) - 1;
/// Upper bits of a tag that a slot leaves alone.
pub(crate) const SPARE_BITS: u32 = 6;

/// The place of one task in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    tag: u32,
}

impl Slot {
    /// Below the connection's number of slots: an index into the caller's own table.
    pub fn index(self) -> usize {
        self.tag as usize & ((1 << INDEX_BITS) - 1)
    }

    /// The slot on the wire, in the lower bits of a tag.
    pub(crate) fn tag(self) -> u32 {
        self.tag
    }

    fn new(index: u16, generation: u32) -> Self {
        Self { tag: (generation & GENERATION_MASK) << INDEX_BITS | u32::from(index) }
    }

    /// The slot that a tag from the other end claims to be; it may never have been given out.
    pub(crate) fn from_tag(tag: u32) -> Self {
        Self { tag: tag & (u32::MAX >> SPARE_BITS) }
    }

    fn generation(self) -> u32 {
        self.tag >> INDEX_BITS
    }
}

struct Place<T> {
    generation: u32,
    content: Option<T>,
}

/// What is in flight, by slot.
pub(crate) struct Slots<T> {
    places: Vec<Place<T>>,
    /// Indexes of empty places. `free.len()` + places in use = `places.len()`.
    free: Vec<u16>,
}

impl<T> Slots<T> {
    /// Room for `count` tasks, at most [`SLOTS_MAX`].
    pub(crate) fn new(count: usize) -> Self {
        assert!(count <= SLOTS_MAX, "{count} slots do not fit in a tag");
        // Reversed, so that low indexes are given out first and stay in the cache.
        let free = (0..count).rev().map(|index| index as u16).collect();
        let places = (0..count).map(|_| Place { generation: 0, content: None }).collect();
        Self { places, free }
    }

    pub(crate) fn in_use(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Fills a free place, if there is one.
    pub(crate) fn insert(&mut self, content: T) -> Option<Slot> {
        let index = self.free.pop()?;
        let place = &mut self.places[usize::from(index)];
        place.content = Some(content);
        Some(Slot::new(index, place.generation))
    }

    pub(crate) fn get(&self, slot: Slot) -> Option<&T> {
        let place = self.places.get(slot.index())?;
        if place.generation == slot.generation() { place.content.as_ref() } else { None }
    }

    pub(crate) fn get_mut(&mut self, slot: Slot) -> Option<&mut T> {
        let place = self.places.get_mut(slot.index())?;
        if place.generation == slot.generation() { place.content.as_mut() } else { None }
    }

    /// What is in flight at this index.
    pub(crate) fn at(&self, index: usize) -> Option<Slot> {
        let place = self.places.get(index)?;
        place.content.as_ref().map(|_| Slot::new(index as u16, place.generation))
    }

    /// All that is in flight.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (Slot, &mut T)> {
        (0..).zip(&mut self.places).filter_map(|(index, place)| {
            let slot = Slot::new(index, place.generation);
            Some((slot, place.content.as_mut()?))
        })
    }

    /// Empties a place; its slot names nothing from here on.
    pub(crate) fn remove(&mut self, slot: Slot) -> Option<T> {
        let place = self.places.get_mut(slot.index())?;
        if place.generation != slot.generation() {
            return None;
        }
        let content = place.content.take()?;
        place.generation = place.generation.wrapping_add(1) & GENERATION_MASK;
        self.free.push(slot.index() as u16);
        Some(content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_slot_names_nothing_even_when_its_place_is_used_again() {
        let mut slots = Slots::new(1);
        let first = slots.insert("first").unwrap();
        assert_eq!(slots.insert("no room"), None);
        assert_eq!(slots.remove(first), Some("first"));
        let second = slots.insert("second").unwrap();
        assert_eq!(first.index(), second.index());
        assert_eq!(slots.get_mut(first), None);
        assert_eq!(slots.remove(first), None);
        assert_eq!(slots.get_mut(second), Some(&mut "second"));
    }

    #[test]
    fn tags_never_given_out_name_nothing() {
        let mut slots = Slots::new(4);
        let slot = slots.insert(()).unwrap();
        for tag in 0..1 << 12 {
            let known = slots.get_mut(Slot::from_tag(tag)).is_some();
            assert_eq!(known, tag == slot.tag(), "tag {tag}");
        }
        let spare = slot.tag() | 0x2a << (32 - SPARE_BITS);
        assert_eq!(Slot::from_tag(spare), slot, "the upper bits are the user's");
    }

    #[test]
    #[cfg_attr(miri, ignore = "takes a minute there")]
    fn no_tag_is_the_reserved_one_and_generations_start_over() {
        let mut slots = Slots::new(SLOTS_MAX);
        let first = slots.insert(0).unwrap();
        let mut slot = first;
        for round in 0..=GENERATION_MASK {
            assert_ne!(slot.tag() | 0x3f << (32 - SPARE_BITS), u32::MAX);
            slots.remove(slot);
            slot = slots.insert(round).unwrap();
        }
        assert_eq!(slot, first);
        assert_eq!(
            slots.iter_mut().map(|(slot, content)| (slot, *content)).collect::<Vec<_>>(),
            [(first, GENERATION_MASK)]
        );
    }
}
