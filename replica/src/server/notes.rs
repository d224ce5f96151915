//! What an engine keeps with a replica: small notes that change as a whole, in an internal lvol of the head.
//!
//! Each place has two slots; a note is written over the older one. So a write that a kill cuts off leaves the note of before.
//! Every slot is written once when the lvol is made: a note later costs one write in place, and never lacks space.
//! `docs/replication.md` has the bytes.

use std::cell::RefCell;
use std::rc::Rc;

use block_device::{BlockDevice, Error, ErrorKind, Request, Slice, execute};
use lvol::{Role, Store, StoreError};
use replica_protocol::{MAX_NOTE, NOTES, checksum};
use uuid::Uuid;

use crate::Note;

/// Bytes of a slot: a header and the note.
const SLOT: u64 = 4096;
const HEADER: usize = 64;
const SIZE: u64 = NOTES as u64 * 2 * SLOT;

const MAGIC: [u8; 4] = *b"ASHN";
const VERSION: u16 = 1;

const _: () = assert!(HEADER + MAX_NOTE as usize == SLOT as usize);

/// One version of a note.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Kept {
    place: u8,
    /// Counts the versions of a place. The higher one counts, and tells the slot of the next.
    sequence: u64,
    boot: [u8; 16],
    content: Vec<u8>,
}

/// The notes of one head.
pub(super) struct Notes {
    pub(super) head: Uuid,
    device: Rc<dyn BlockDevice>,
    /// By place.
    kept: RefCell<Vec<Option<Kept>>>,
}

impl Notes {
    /// Opens the notes of a head; makes them if there are none.
    pub(super) async fn open(store: &Store, head: Uuid) -> Result<Self, Error> {
        match store.create_internal(head, Role::Activity, SIZE, SLOT as u32).await {
            Err(StoreError::LvolDamaged { .. }) => {
                // What it said is lost; without notes nothing is taken for known.
                store.delete_internal(head, Role::Activity).await?;
                store.create_internal(head, Role::Activity, SIZE, SLOT as u32).await?;
            }
            made => drop(made?),
        }
        let device = store.open_internal(head, Role::Activity).await? as Rc<dyn BlockDevice>;
        let slots = execute(&*device, Request::read(0, SIZE)).await?.to_vec();
        let slots: Vec<_> = slots.chunks(SLOT as usize).map(Kept::decode).collect();
        let kept = slots.chunks(2).zip(0..).map(|(pair, place)| newest(pair, place)).collect();
        let notes = Self { head, device, kept: RefCell::new(kept) };
        if slots.iter().all(Option::is_none) {
            notes.prepare().await?;
        }
        Ok(notes)
    }

    /// Writes every slot, so that all of them have their place on the disk.
    async fn prepare(&self) -> Result<(), Error> {
        let empty = |slot: u64| Kept { place: (slot / 2) as u8, sequence: 0, boot: [0; 16], content: Vec::new() };
        let bytes: Vec<u8> = (0..u64::from(NOTES) * 2).flat_map(|slot| empty(slot).encode()).collect();
        execute(&*self.device, Request::Write { offset: 0, data: Slice::from(&bytes[..]), fua: true }).await?;
        Ok(())
    }

    /// Puts a note in the place of the one before. One at a time.
    pub(super) async fn set(&self, place: u8, content: &[u8], durable: bool) -> Result<(), Error> {
        if place >= NOTES || content.len() > MAX_NOTE as usize {
            return Err(ErrorKind::InvalidField.into());
        }
        let before = self.kept.borrow()[usize::from(place)].as_ref().map_or(0, |kept| kept.sequence);
        let kept = Kept { place, sequence: before + 1, boot: reactor::boot_id(), content: content.to_vec() };
        let data = Slice::from(&kept.encode()[..]);
        execute(&*self.device, Request::Write { offset: kept.offset(), data, fua: durable }).await?;
        self.kept.borrow_mut()[usize::from(place)] = Some(kept);
        Ok(())
    }

    /// All notes, in the order of their places.
    pub(super) fn list(&self) -> Vec<Note> {
        let note = |kept: &Kept| Note {
            place: kept.place,
            current: kept.boot == reactor::boot_id(),
            content: kept.content.clone(),
        };
        self.kept.borrow().iter().flatten().filter(|kept| kept.sequence > 0).map(note).collect()
    }
}

/// The note that counts of the two slots of a place.
fn newest(pair: &[Option<Kept>], place: u8) -> Option<Kept> {
    pair.iter().flatten().filter(|kept| kept.place == place).max_by_key(|kept| kept.sequence).cloned()
}

impl Kept {
    fn offset(&self) -> u64 {
        (u64::from(self.place) * 2 + self.sequence % 2) * SLOT
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; SLOT as usize];
        bytes[0..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&VERSION.to_le_bytes());
        bytes[6] = self.place;
        bytes[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.boot);
        // At most MAX_NOTE.
        bytes[32..36].copy_from_slice(&(self.content.len() as u32).to_le_bytes());
        bytes[HEADER..HEADER + self.content.len()].copy_from_slice(&self.content);
        let sum = checksum(&bytes);
        bytes[60..64].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// None for what is torn, damaged or of another version.
    fn decode(slot: &[u8]) -> Option<Self> {
        let (mut bytes, sum) = (slot.to_vec(), u32::from_le_bytes(part(slot, 60)));
        bytes[60..64].fill(0);
        let known = bytes[0..4] == MAGIC && bytes[4..6] == VERSION.to_le_bytes() && checksum(&bytes) == sum;
        let length = u32::from_le_bytes(part(slot, 32)) as usize;
        let content = slot.get(HEADER..HEADER.checked_add(length)?)?;
        let sequence = u64::from_le_bytes(part(slot, 8));
        known.then(|| Self { place: slot[6], sequence, boot: part(slot, 16), content: content.to_vec() })
    }
}

fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(sequence: u64) -> Kept {
        Kept { place: 3, sequence, boot: [7; 16], content: b"where".to_vec() }
    }

    #[test]
    fn the_bytes_are_pinned() {
        let bytes = kept(0x0102).encode();
        let mut expected = b"ASHN\x01\x00\x03\x00\x02\x01\x00\x00\x00\x00\x00\x00".to_vec();
        expected.extend([7; 16]);
        expected.extend([5, 0, 0, 0]);
        expected.resize(60, 0);
        assert_eq!(bytes[..60], expected);
        assert_eq!(bytes[64..69], *b"where");
        assert_eq!(Kept::decode(&bytes), Some(kept(0x0102)));
    }

    #[test]
    fn a_slot_with_any_flipped_bit_is_not_there() {
        let bytes = kept(9).encode();
        for bit in (0..69 * 8).chain([4095 * 8]) {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Kept::decode(&flipped), None, "bit {bit}");
        }
        assert_eq!(Kept::decode(&[0; 4096]), None);
    }

    #[test]
    fn of_two_slots_the_newer_one_counts_and_a_torn_one_does_not() {
        assert_eq!(newest(&[Some(kept(4)), Some(kept(5))], 3), Some(kept(5)));
        assert_eq!(newest(&[Some(kept(4)), None], 3), Some(kept(4)));
        assert_eq!(newest(&[Some(kept(4)), Some(kept(5))], 2), None, "a slot of another place");
        assert_ne!(kept(4).offset(), kept(5).offset());
    }
}
