//! Hashes of snapshots: what a scrub compares with, and later what replicas compare with each other.
//!
//! `docs/scrub.md` has the whole story. A value is the XXH3-128 of one region of a snapshot as it is read through it. It
//! never changes: merges and deletions of ancestors leave the content of a snapshot as it is. Values are in an internal lvol
//! of the snapshot (`format`, `table`), are computed in the background (`background`), compared by a scrub (`scrub`), which
//! leaves the verdict to `judge`; `ranges` tells what of an lvol is marked; `repair` takes bytes that hash to the stored value.

mod background;
mod damage;
mod format;
mod judge;
mod pace;
mod ranges;
mod repair;
mod scrub;
mod table;

use std::rc::Rc;

use block_device::{BlockDevice, Error, ErrorKind, Request, execute};
use uuid::Uuid;
use xxhash_rust::xxh3::Xxh3;

pub(crate) use self::background::Hashing;
use self::format::{PER_BLOCK, Values};
pub(crate) use self::scrub::Scrubs;
pub use self::scrub::{BadRegion, ScrubPosition, ScrubReport, ScrubStatus};
use self::table::Table;
use crate::chain::find;
use crate::core::Core;
use crate::error::StoreError;
use crate::format::BLOCK;
use crate::format::record::LvolRecord;
use crate::lvol::Lvol;
use crate::map::Held;
use crate::store::Store;

/// Bytes of a region, the same for every store: replicas with other cluster sizes can compare.
pub const REGION: u64 = 64 << 10;

/// The most values that are read at once.
const MOST_VALUES: u64 = 64 * PER_BLOCK;

/// XXH3-128 of a region, as big-endian bytes.
///
/// Not a cryptographic hash, on purpose: it finds what disks do to data, at the speed of memory, and whoever could forge
/// content to a hash can write the hash as well.
pub type Hash = [u8; 16];

impl Store {
    /// The stored values of up to `max` regions of a snapshot from `from` on; `None` where there is none: not computed yet, or
    /// the snapshot has nothing of its own there. A damaged block of values counts as none.
    pub async fn hashes(&self, id: Uuid, from: u64, max: u64) -> Result<Vec<(u64, Option<Hash>)>, StoreError> {
        let size = self.lvol_info(id).ok_or(StoreError::NotFound { uuid: id })?.size;
        let end = from.saturating_add(max.min(MOST_VALUES)).min(size.div_ceil(REGION));
        let table = Table::open(&self.core, id).await?;
        let mut found = Vec::new();
        let mut block = None;
        for region in from..end {
            if let Some(table) = &table
                && block.as_ref().is_none_or(|(index, _)| *index != region / PER_BLOCK)
            {
                block = Some((region / PER_BLOCK, table.values(region / PER_BLOCK).await?));
            }
            found.push((region, block.as_ref().and_then(|(_, values)| values.get(region % PER_BLOCK))));
        }
        Ok(found)
    }
}

impl Lvol {
    /// The hash of a region as it reads now, whatever is stored: what the lvol does not have up to the end of the region
    /// counts as zeroes.
    pub async fn hash_region(&self, region: u64) -> Result<Hash, Error> {
        let size = self.geometry().size();
        let offset = region.checked_mul(REGION).filter(|&offset| offset < size).ok_or(ErrorKind::InvalidRange)?;
        let segments = execute(self, Request::read(offset, REGION.min(size - offset))).await?;
        let mut hasher = Xxh3::new();
        let mut missing = REGION as usize;
        for segment in segments.iter() {
            hasher.update(segment);
            missing -= segment.len();
        }
        hasher.update(&ZEROES[..missing]);
        Ok(hasher.digest128().to_be_bytes())
    }
}

static ZEROES: [u8; REGION as usize] = [0; REGION as usize];

/// The hash of a region's bytes; what is missing counts as zeroes.
pub(crate) fn hash(bytes: &[u8]) -> Hash {
    let mut hasher = Xxh3::new();
    hasher.update(bytes);
    hasher.update(&ZEROES[bytes.len()..]);
    hasher.digest128().to_be_bytes()
}

/// The values in a block of a hash lvol, with their regions; a damaged block, or another kind, has none.
pub(crate) fn values_of(block: &[u8], snapshot: Uuid, address: u64) -> Vec<(u64, Hash)> {
    let first = (address / BLOCK).saturating_sub(1) * PER_BLOCK;
    let Ok(values) = Values::decode(block, snapshot, address) else { return Vec::new() };
    (0..PER_BLOCK).filter_map(|place| Some((first + place, values.get(place)?))).collect()
}

impl Core {
    /// The first region from `from` on in which an lvol has blocks of its own, or some are on their way into it.
    fn next_own_region(&self, id: Uuid, lvol: &Lvol, from: u64) -> Option<u64> {
        let own = 1 + self.catalog.borrow().doomed_parents(id);
        let end = lvol.volume().size().div_ceil(BLOCK);
        lvol.volume().with_chain(|chain| {
            let maps = &chain[..own.min(chain.len())];
            let blocks = u64::from(maps[0].shape().blocks());
            let mut at = from.saturating_mul(REGION / BLOCK);
            while at < end {
                // An lvol has at most 2^32 clusters.
                let index = (at / blocks) as u32;
                let used = maps.iter().filter_map(|map| map.next_used(index)).min()?;
                at = at.max(u64::from(used) * blocks);
                let first = (at % blocks) as u32;
                let (held, count) = find(maps, used, first, blocks as u32 - first);
                if held != Held::Nothing {
                    break;
                }
                at += u64::from(count);
            }
            (at < end).then_some(at * BLOCK / REGION)
        })
    }

    /// A snapshot that can be hashed and scrubbed, opened.
    async fn open_snapshot(self: &Rc<Self>, id: Uuid) -> Result<Rc<Lvol>, StoreError> {
        if !self.is_immutable(id) {
            return Err(StoreError::NotFound { uuid: id });
        }
        self.open_lvol(id).await.map(Rc::new)
    }

    /// Whether it is a snapshot that stays.
    fn is_immutable(&self, id: Uuid) -> bool {
        let catalog = self.catalog.borrow();
        catalog.users_lvol(id).is_some_and(|node| is_immutable(&node.record))
    }
}

/// Whether it is a snapshot that stays.
pub(crate) fn is_immutable(record: &LvolRecord) -> bool {
    record.snapshot && record.deletion.is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vector of no bytes is from the specification of xxHash: it fixes the order of the bytes.
    #[test]
    fn hashes_are_those_of_the_specification() {
        let empty = Xxh3::new().digest128().to_be_bytes();
        assert_eq!(u128::from_be_bytes(empty), 0x99aa_06d3_0147_98d8_6001_c324_468d_497f);
        assert_eq!(hash(&[]), hash(&[0; 512]));
        assert_ne!(hash(&[1]), hash(&[0, 1]));
    }
}
