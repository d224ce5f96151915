//! Numbered places for commands in flight.
//!
//! A slot is an index and a generation, which changes each time the place is given out again. Both fit into
//! the 16 bits of a transfer tag or command identifier, so what arrives late for a command that has ended names
//! no command at all (I16).

use alloc::vec::Vec;

/// Most slots of one connection: an index takes `INDEX_BITS`.
pub const SLOTS_MAX: usize = 1 << INDEX_BITS;

const INDEX_BITS: u32 = 10;
const GENERATION_MASK: u16 = u16::MAX >> INDEX_BITS;

/// The place of one command in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    tag: u16,
}

impl Slot {
    /// Below the connection's number of slots: an index into the caller's own table.
    pub fn index(self) -> usize {
        usize::from(self.tag) & (SLOTS_MAX - 1)
    }

    /// The slot on the wire: a host's command identifier (CID), a target's transfer tag (TTAG).
    pub fn tag(self) -> u16 {
        self.tag
    }

    fn new(index: u16, generation: u16) -> Self {
        Self { tag: (generation & GENERATION_MASK) << INDEX_BITS | index }
    }

    /// The slot that a tag from the other end claims to be; it may never have been given out.
    pub(crate) fn from_tag(tag: u16) -> Self {
        Self { tag }
    }

    fn generation(self) -> u16 {
        self.tag >> INDEX_BITS
    }
}

struct Place<T> {
    generation: u16,
    content: Option<T>,
}

/// What is in flight, by slot.
pub(crate) struct Slots<T> {
    places: Vec<Place<T>>,
    /// Indexes of empty places. `free.len()` + places in use = `places.len()`.
    free: Vec<u16>,
}

impl<T> Slots<T> {
    /// Room for `count` commands, at most [`SLOTS_MAX`].
    pub(crate) fn new(count: usize) -> Self {
        let mut slots = Self { places: Vec::new(), free: Vec::new() };
        slots.grow(count);
        slots
    }

    /// Makes room for `count` commands; never takes any away.
    pub(crate) fn grow(&mut self, count: usize) {
        assert!(count <= SLOTS_MAX, "{count} slots do not fit in a tag");
        // Reversed, so that low indexes are given out first and stay in the cache.
        self.free.extend((self.places.len()..count).rev().map(|index| index as u16));
        self.places.resize_with(count.max(self.places.len()), || Place { generation: 0, content: None });
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

    pub(crate) fn get_mut(&mut self, slot: Slot) -> Option<&mut T> {
        let place = self.places.get_mut(slot.index())?;
        if place.generation == slot.generation() { place.content.as_mut() } else { None }
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
        for tag in 0..=u16::MAX {
            let known = slots.get_mut(Slot::from_tag(tag)).is_some();
            assert_eq!(known, tag == slot.tag(), "tag {tag}");
        }
    }

    #[test]
    fn growing_keeps_what_is_in_flight() {
        let mut slots = Slots::new(1);
        let first = slots.insert(1).unwrap();
        slots.grow(SLOTS_MAX);
        slots.grow(2);
        assert_eq!(slots.in_use(), 1);
        assert_eq!(slots.get_mut(first), Some(&mut 1));
        for count in 1..SLOTS_MAX {
            slots.insert(count as i32).unwrap();
        }
        assert_eq!(slots.insert(0), None);
    }
}
