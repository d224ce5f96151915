//! What an engine notes with its replicas: where writes may be in flight, and what an absent replica lacks. Bytes only;
//! `docs/replication.md` has the tables.

use reactor::bug;
use replica::{MAX_NOTE, Note};
use uuid::Uuid;

use crate::regions::{REGION, Regions};

/// The place of the intent; behind it come the members, each in the place of its own.
pub(crate) const INTENT: u8 = 0;

/// Regions that one intent lists at most.
pub(crate) const CAPACITY: usize = 1000;

const VERSION: u16 = 1;
const KIND_INTENT: u8 = 1;
const KIND_CHANGES: u8 = 2;
const KIND_TOKEN: u8 = 3;
const FLAG_CLOSED: u8 = 1;
const FLAG_EVERYTHING: u8 = 2;
const INTENT_HEADER: usize = 24;
const CHANGES_HEADER: usize = 40;

/// Bits of a map: one for each region, or for a few of them in a large volume.
const BITS: u64 = 8 * (MAX_NOTE as u64 - CHANGES_HEADER as u64);

const _: () = assert!(INTENT_HEADER + 4 * CAPACITY <= MAX_NOTE as usize);

/// The place of the note about a member; with the member itself, that of its token.
pub(crate) fn place_of(member: usize) -> u8 {
    // There are at most MAX_REPLICAS.
    1 + member as u8
}

/// Where writes may be in flight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Intent {
    /// The engine that noted it.
    pub(crate) instance: Uuid,
    /// That engine has ended in order: nothing is in flight, everything is durable.
    pub(crate) closed: bool,
    /// Anywhere: a write that touches too many regions to list them.
    pub(crate) everything: bool,
    pub(crate) regions: Vec<u32>,
}

impl Intent {
    pub(crate) fn encode(&self) -> Vec<u8> {
        debug_assert!(self.regions.len() <= CAPACITY);
        let flags = (u8::from(self.closed) * FLAG_CLOSED) | (u8::from(self.everything) * FLAG_EVERYTHING);
        let mut bytes = VERSION.to_le_bytes().to_vec();
        bytes.extend([KIND_INTENT, flags]);
        bytes.extend((self.regions.len() as u32).to_le_bytes());
        bytes.extend(self.instance.as_bytes());
        self.regions.iter().for_each(|region| bytes.extend(region.to_le_bytes()));
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (header, list) = bytes.split_at_checked(INTENT_HEADER)?;
        let (regions, rest) = list.as_chunks::<4>();
        let count = u32::from_le_bytes(part(header, 4)?) as usize;
        let known = is_kind(header, KIND_INTENT) && header[3] & !(FLAG_CLOSED | FLAG_EVERYTHING) == 0;
        (known && rest.is_empty() && count == regions.len()).then_some(())?;
        Some(Self {
            instance: Uuid::from_bytes(part(header, 8)?),
            closed: header[3] & FLAG_CLOSED != 0,
            everything: header[3] & FLAG_EVERYTHING != 0,
            regions: regions.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect(),
        })
    }
}

/// What a member lacks since it is not in sync.
#[derive(Clone, Debug)]
pub(crate) struct ChangesNote {
    pub(crate) replica: Uuid,
    pub(crate) generation: Uuid,
    pub(crate) regions: Regions,
}

impl ChangesNote {
    /// In a volume of so many bytes.
    pub(crate) fn encode(&self, size: u64) -> Vec<u8> {
        let shift = shift_for(size);
        let mut bits = vec![0; (size.div_ceil(REGION << shift) as usize).div_ceil(8)];
        for bit in self.regions.iter().map(|region| region >> shift) {
            if let Some(byte) = bits.get_mut((bit / 8) as usize) {
                *byte |= 1 << (bit % 8);
            }
        }
        let mut bytes = VERSION.to_le_bytes().to_vec();
        bytes.extend([KIND_CHANGES, shift as u8]);
        bytes.extend((bits.len() as u32).to_le_bytes());
        bytes.extend(self.replica.as_bytes());
        bytes.extend(self.generation.as_bytes());
        bytes.extend(bits);
        bytes
    }

    fn decode(bytes: &[u8], size: u64) -> Option<Self> {
        let (header, bits) = bytes.split_at_checked(CHANGES_HEADER)?;
        let count = u32::from_le_bytes(part(header, 4)?) as usize;
        let shift = u32::from(header[3]);
        (is_kind(header, KIND_CHANGES) && shift < 32 && count == bits.len()).then_some(())?;
        let mut regions = Regions::default();
        for bit in (0..8 * count as u64).filter(|bit| bits[(bit / 8) as usize] >> (bit % 8) & 1 == 1) {
            // A bit is below 2^15.
            let shared = bit << shift..((bit + 1) << shift).min(size.div_ceil(REGION));
            for region in shared {
                regions.insert(region);
            }
        }
        let (replica, generation) = (Uuid::from_bytes(part(header, 8)?), Uuid::from_bytes(part(header, 24)?));
        Some(Self { replica, generation, regions })
    }
}

/// How many regions share a bit, as a power of two.
fn shift_for(size: u64) -> u32 {
    (0..32).find(|shift| size.div_ceil(REGION << shift) <= BITS).unwrap_or(31)
}

/// The note with a replica that names it: a replica made anew under the same uuid has none.
pub(crate) fn encode_token(token: Uuid) -> Vec<u8> {
    let mut bytes = VERSION.to_le_bytes().to_vec();
    bytes.extend([KIND_TOKEN, 0, 0, 0, 0, 0]);
    bytes.extend(token.as_bytes());
    bytes
}

fn decode_token(bytes: &[u8]) -> Option<Uuid> {
    (bytes.len() == 24 && is_kind(bytes, KIND_TOKEN)).then(|| part(bytes, 8).map(Uuid::from_bytes))?
}

/// Whether nothing can have been noted after it and lost: the machine has not started anew since.
fn is_last(note: &Note) -> bool {
    note.current || bug!("trust-notes-after-a-power-cut")
}

fn is_kind(bytes: &[u8], kind: u8) -> bool {
    bytes[0..2] == VERSION.to_le_bytes() && bytes[2] == kind
}

fn part<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

/// The notes that one replica has.
#[derive(Clone, Debug, Default)]
pub(crate) struct Noted(Vec<Note>);

impl Noted {
    pub(crate) const fn new(notes: Vec<Note>) -> Self {
        Self(notes)
    }

    fn at(&self, place: u8) -> Option<&Note> {
        self.0.iter().find(|note| note.place == place)
    }

    /// The intent, if it is known to be the last one that was noted: the machine has not started anew since, or the last engine
    /// ended in order, which it noted durably, as the next one does before its first write (I23).
    pub(crate) fn intent(&self) -> Option<Intent> {
        let note = self.at(INTENT)?;
        Intent::decode(&note.content).filter(|intent| is_last(note) || intent.closed)
    }

    /// What a member lacks, if that is known to be all it lacks: its changes were followed under this name, and what was in flight when
    /// the last engine ended is added.
    pub(crate) fn changes(&self, member: usize, replica: Uuid, generation: Uuid, size: u64) -> Option<Regions> {
        let intent = self.intent().filter(|intent| !intent.everything)?;
        let note = self.at(place_of(member)).filter(|note| is_last(note) || intent.closed)?;
        let changes = ChangesNote::decode(&note.content, size)?;
        (changes.replica == replica && changes.generation == generation).then_some(())?;
        let mut regions = changes.regions;
        for region in intent.regions {
            regions.insert(u64::from(region));
        }
        Some(regions)
    }

    /// The token of the replica, which is this member.
    pub(crate) fn token(&self, member: usize) -> Option<Uuid> {
        decode_token(&self.at(place_of(member))?.content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INSTANCE: Uuid = Uuid::from_bytes([5; 16]);
    const REPLICA: Uuid = Uuid::from_bytes([6; 16]);
    const GENERATION: Uuid = Uuid::from_bytes([7; 16]);

    fn intent(closed: bool) -> Intent {
        Intent { instance: INSTANCE, closed, everything: false, regions: vec![3, 0x0102] }
    }

    fn changes(regions: &[u64]) -> ChangesNote {
        ChangesNote { replica: REPLICA, generation: GENERATION, regions: regions.iter().copied().collect() }
    }

    fn noted(notes: &[(u8, bool, Vec<u8>)]) -> Noted {
        let note = |(place, current, content): &(u8, bool, Vec<u8>)| Note {
            place: *place,
            current: *current,
            content: content.clone(),
        };
        Noted::new(notes.iter().map(note).collect())
    }

    #[test]
    fn the_bytes_are_pinned() {
        let mut expected = vec![1, 0, 1, 1, 2, 0, 0, 0];
        expected.extend([5; 16]);
        expected.extend([3, 0, 0, 0, 2, 1, 0, 0]);
        assert_eq!(intent(true).encode(), expected);
        assert_eq!(Intent::decode(&expected), Some(intent(true)));
        let mut expected = vec![1, 0, 2, 0, 2, 0, 0, 0];
        expected.extend([6; 16]);
        expected.extend([7; 16]);
        expected.extend([0b1000, 0b10]);
        assert_eq!(changes(&[3, 9]).encode(10 * REGION), expected);
        let mut expected = vec![1, 0, 3, 0, 0, 0, 0, 0];
        expected.extend([6; 16]);
        assert_eq!(encode_token(REPLICA), expected);
    }

    #[test]
    fn a_full_intent_and_the_map_of_any_volume_fit_a_note() {
        let full = Intent { regions: (0..CAPACITY as u32).collect(), ..intent(false) };
        assert!(full.encode().len() <= MAX_NOTE as usize);
        for size in [512, 10 << 30, 31 << 30, 100 << 30, 64 << 40] {
            let last = (size - 1) / REGION;
            let bytes = changes(&[last]).encode(size);
            assert!(bytes.len() <= MAX_NOTE as usize, "{size}");
            let found = ChangesNote::decode(&bytes, size).expect("our own").regions;
            assert!(found.contains(last) && found.count() <= 1 << shift_for(size), "{size}");
        }
        assert_eq!((shift_for(31 << 30), shift_for(100 << 30)), (0, 2));
    }

    #[test]
    fn what_may_not_be_the_last_is_not_known() {
        // I23
        let (open, closed) = (intent(false).encode(), intent(true).encode());
        let map = changes(&[8]).encode(100 * REGION);
        let known = |notes: &[(u8, bool, Vec<u8>)]| {
            let regions = noted(notes).changes(2, REPLICA, GENERATION, 1000 * REGION);
            regions.map(|regions| regions.iter().collect::<Vec<_>>())
        };
        assert_eq!(known(&[(0, true, open.clone()), (3, true, map.clone())]), Some(vec![3, 8, 0x0102]));
        assert_eq!(known(&[(0, false, closed.clone()), (3, false, map.clone())]), Some(vec![3, 8, 0x0102]));
        assert_eq!(known(&[(0, false, open.clone()), (3, true, map.clone())]), None, "the intent may be older");
        assert_eq!(known(&[(0, true, open.clone()), (3, false, map.clone())]), None, "the map may be older");
        assert_eq!(known(&[(0, true, open.clone()), (2, true, map.clone())]), None, "another member's");
        assert_eq!(known(&[(3, true, map.clone())]), None);
        let everything = Intent { everything: true, ..intent(false) }.encode();
        assert_eq!(known(&[(0, true, everything), (3, true, map.clone())]), None);
        let other = ChangesNote { generation: INSTANCE, ..changes(&[8]) }.encode(100 * REGION);
        assert_eq!(known(&[(0, true, open), (3, true, other)]), None, "followed at another time");
    }

    #[test]
    fn what_another_version_wrote_is_not_guessed_at() {
        for (at, value) in [(0, 2), (2, 2), (3, 4), (4, 3)] {
            let mut bytes = intent(false).encode();
            bytes[at] = value;
            assert_eq!(Intent::decode(&bytes), None, "byte {at}");
        }
        let bytes = changes(&[1]).encode(10 * REGION);
        assert!(ChangesNote::decode(&bytes[..bytes.len() - 1], REGION).is_none());
        assert!(ChangesNote::decode(&bytes[..20], REGION).is_none());
        assert_eq!(decode_token(&bytes), None);
        assert_eq!(noted(&[(3, false, encode_token(REPLICA))]).token(2), Some(REPLICA));
        assert_eq!(noted(&[(3, false, encode_token(REPLICA))]).token(1), None);
    }
}
