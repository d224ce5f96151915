//! The bytes of a hash lvol: a head, and blocks of values. Each block stands alone, with the header of every structure: its own
//! place, its snapshot, its checksum. One that does not fit is not there, so damage makes values unknown, never wrong.

use uuid::Uuid;

use super::{Hash, REGION};
use crate::catalog::Catalog;
use crate::format::fields::{Reader, put_u32, put_u64};
use crate::format::record::LvolRecord;
use crate::format::{BLOCK, Flaw, HEADER, Header};

const MAGIC: [u8; 8] = *b"ASHLHASH";
const HEAD: u16 = 1;
const VALUES: u16 = 2;

/// XXH3 of 128 bits without a seed, its value as big-endian bytes.
const XXH3_128: u32 = 1;

/// Values a block.
pub(super) const PER_BLOCK: u64 = 248;

const PRESENT_BYTES: usize = PER_BLOCK as usize / 8;
const VALUES_AT: usize = 128;

/// The head: how far the values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// Bytes of the snapshot.
    pub(super) size: u64,
    /// Own regions before this one have their values.
    pub(super) next: u64,
    pub(super) basis: Basis,
    /// When a scrub last came to its end, in milliseconds since the Unix epoch; 0 for never.
    pub(super) scrubbed_at: u64,
}

/// What the snapshot's own regions depend on. They are more when its parent is to be deleted: what that one holds counts as its
/// own from then on. Then one of the two is another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Basis {
    pub(super) map: u32,
    /// The nearest ancestor that is not to be deleted.
    pub(super) parent: Option<Uuid>,
}

impl Basis {
    pub(super) fn of(catalog: &Catalog, record: &LvolRecord) -> Self {
        Self { map: record.map, parent: catalog.staying_parent(record) }
    }
}

/// The values of [`PER_BLOCK`] regions in a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Values {
    present: [u8; PRESENT_BYTES],
    values: Vec<Hash>,
}

impl Head {
    pub(super) fn encode(&self, snapshot: Uuid) -> Vec<u8> {
        let mut bytes = vec![0; BLOCK as usize];
        put_u32(&mut bytes, HEADER, XXH3_128);
        put_u32(&mut bytes, HEADER + 4, REGION as u32);
        put_u64(&mut bytes, HEADER + 8, self.size);
        put_u64(&mut bytes, HEADER + 16, self.next);
        bytes[HEADER + 24..HEADER + 40].copy_from_slice(self.basis.parent.unwrap_or_default().as_bytes());
        put_u32(&mut bytes, HEADER + 40, self.basis.map);
        put_u64(&mut bytes, HEADER + 48, self.scrubbed_at);
        seal(HEAD, snapshot, 0, &mut bytes);
        bytes
    }

    pub(super) fn decode(bytes: &[u8], snapshot: Uuid) -> Result<Self, Flaw> {
        let mut body = open(HEAD, snapshot, 0, bytes)?;
        if (body.u32()?, body.u32()?) != (XXH3_128, REGION as u32) {
            return Err(Flaw::Content("hashes of an unknown kind"));
        }
        let (size, next) = (body.u64()?, body.u64()?);
        let parent = Some(Uuid::from_bytes(body.array()?)).filter(|parent| !parent.is_nil());
        let (map, _reserved, scrubbed_at) = (body.u32()?, body.u32()?, body.u64()?);
        Ok(Self { size, next, basis: Basis { map, parent }, scrubbed_at })
    }
}

impl Values {
    pub(super) fn none() -> Self {
        Self { present: [0; PRESENT_BYTES], values: vec![[0; 16]; PER_BLOCK as usize] }
    }

    /// The value at a place in the block.
    pub(super) fn get(&self, place: u64) -> Option<Hash> {
        let place = place as usize;
        (self.present[place / 8] >> (place % 8) & 1 == 1).then(|| self.values[place])
    }

    pub(super) fn set(&mut self, place: u64, value: Hash) {
        let place = place as usize;
        self.present[place / 8] |= 1 << (place % 8);
        self.values[place] = value;
    }

    /// The block at `address` of the hash lvol.
    pub(super) fn encode(&self, snapshot: Uuid, address: u64) -> Vec<u8> {
        let mut bytes = vec![0; VALUES_AT];
        bytes[HEADER..HEADER + PRESENT_BYTES].copy_from_slice(&self.present);
        bytes.extend(self.values.iter().flatten());
        seal(VALUES, snapshot, address, &mut bytes);
        bytes
    }

    pub(super) fn decode(bytes: &[u8], snapshot: Uuid, address: u64) -> Result<Self, Flaw> {
        let mut body = open(VALUES, snapshot, address, bytes)?;
        let present = body.array()?;
        body.bytes(VALUES_AT - HEADER - PRESENT_BYTES)?;
        let values = (0..PER_BLOCK).map(|_| body.array()).collect::<Result<_, _>>()?;
        Ok(Self { present, values })
    }
}

fn seal(kind: u16, snapshot: Uuid, address: u64, bytes: &mut [u8]) {
    Header { magic: MAGIC, kind, address, sequence: 0, format_id: snapshot.into_bytes() }.seal(bytes);
}

fn open(kind: u16, snapshot: Uuid, address: u64, bytes: &[u8]) -> Result<Reader<'_>, Flaw> {
    let (header, length) = Header::open(bytes, MAGIC, address)?;
    if header.format_id != snapshot.into_bytes() {
        return Err(Flaw::FormatId);
    }
    if header.kind != kind || length != BLOCK as usize {
        return Err(Flaw::Content("another kind of block"));
    }
    Ok(Reader::new(&bytes[HEADER..length]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SNAPSHOT: Uuid = Uuid::from_u128(7);

    fn head() -> Head {
        let basis = Basis { map: 3, parent: Some(Uuid::from_u128(4)) };
        Head { size: 1 << 30, next: 9, basis, scrubbed_at: 5 }
    }

    #[test]
    fn blocks_come_back_as_they_were() {
        assert_eq!(Head::decode(&head().encode(SNAPSHOT), SNAPSHOT), Ok(head()));
        let mut values = Values::none();
        values.set(0, [1; 16]);
        values.set(247, [2; 16]);
        let bytes = values.encode(SNAPSHOT, 8192);
        assert_eq!(bytes.len(), 4096);
        let found = Values::decode(&bytes, SNAPSHOT, 8192).expect("whole");
        assert_eq!(found, values);
        assert_eq!((found.get(0), found.get(1), found.get(247)), (Some([1; 16]), None, Some([2; 16])));
    }

    /// Two versions must agree on these bytes.
    #[test]
    fn blocks_have_their_documented_bytes() {
        let bytes = head().encode(SNAPSHOT);
        assert_eq!(&bytes[..8], b"ASHLHASH");
        assert_eq!(bytes[64..72], [1, 0, 0, 0, 0, 0, 1, 0]);
        assert_eq!((bytes[75], bytes[80], bytes[103], bytes[104], bytes[112]), (64, 9, 4, 3, 5));
        let mut values = Values::none();
        values.set(9, [0xab; 16]);
        let bytes = values.encode(SNAPSHOT, 4096);
        assert_eq!((bytes[65], bytes[128 + 9 * 16], bytes[128 + 10 * 16]), (2, 0xab, 0));
    }

    #[test]
    fn damaged_and_foreign_blocks_are_not_there() {
        let bytes = Values::none().encode(SNAPSHOT, 4096);
        assert!(Values::decode(&bytes, SNAPSHOT, 8192).is_err());
        assert!(Values::decode(&bytes, Uuid::from_u128(8), 4096).is_err());
        assert!(Head::decode(&bytes, SNAPSHOT).is_err());
        // All of them takes minutes under Miri.
        for at in (0..4096).step_by(if cfg!(miri) { 1031 } else { 1 }) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            // Twelve bytes of the header are in no field, but in the checksum.
            assert!(Values::decode(&flipped, SNAPSHOT, 4096).is_err());
        }
        assert!(Values::decode(&[0; 4096], SNAPSHOT, 4096).is_err());
        assert!(Values::decode(&bytes[..100], SNAPSHOT, 4096).is_err());
    }
}
