//! Hashes of what is read through an lvol: those that its store has already, and of the rest what is read.

use block_device::{BlockDevice, Error, Range, Request, execute};
use lvol::{Lvol, Store};
use uuid::Uuid;

use crate::hashes::hashes_of;

/// Bytes read for hashes at once: a multiple of each granule.
const HASHED_AT_ONCE: u64 = *replica_protocol::GRANULES.end() as u64;

/// One hash for each piece of `granule` bytes of a range. A snapshot does not change, so what its store has hashed once need not be read
/// again; whether its disk still has the same is for a scrub to find out.
pub(super) async fn hash_range(
    store: &Store,
    (lvol, device): (Uuid, &Lvol),
    range: Range,
    granule: u32,
) -> Result<Vec<u128>, Error> {
    let mut hashes = Vec::new();
    let mut unread: Option<Range> = None;
    for (piece, stored) in stored(store, lvol, range, granule).await {
        let Some(hash) = stored else {
            unread = Some(unread.map_or(piece, |before| Range { length: before.length + piece.length, ..before }));
            continue;
        };
        if let Some(unread) = unread.take() {
            read_and_hash(device, unread, granule, &mut hashes).await?;
        }
        hashes.push(hash);
    }
    if let Some(unread) = unread {
        read_and_hash(device, unread, granule, &mut hashes).await?;
    }
    Ok(hashes)
}

/// The pieces of a range, each with the hash that the store has of exactly that.
async fn stored(store: &Store, lvol: Uuid, range: Range, granule: u32) -> Vec<(Range, Option<u128>)> {
    let is_snapshot = store.lvol_info(lvol).is_some_and(|info| info.kind == lvol::LvolKind::Snapshot);
    if !is_snapshot || u64::from(granule) != lvol::REGION || !range.offset.is_multiple_of(lvol::REGION) {
        return vec![(range, None)];
    }
    let count = range.length.div_ceil(lvol::REGION);
    // Without them, all is read.
    let known = store.hashes(lvol, range.offset / lvol::REGION, count).await.unwrap_or_default();
    let piece = |index: u64| {
        let offset = range.offset + index * lvol::REGION;
        let piece = Range { offset, length: lvol::REGION.min(range.end() - offset) };
        let hash = known.iter().find(|(region, _)| region * lvol::REGION == offset).and_then(|(_, hash)| *hash);
        // The store's value is of a whole region.
        (piece, hash.filter(|_| piece.length == lvol::REGION).map(u128::from_be_bytes))
    };
    (0..count).map(piece).collect()
}

/// Reads and hashes, a little at a time: other work of the reactor goes on in between.
async fn read_and_hash(
    device: &dyn BlockDevice,
    range: Range,
    granule: u32,
    hashes: &mut Vec<u128>,
) -> Result<(), Error> {
    let mut offset = range.offset;
    while offset < range.end() {
        let length = (range.end() - offset).min(HASHED_AT_ONCE);
        let data = execute(device, Request::read(offset, length)).await?;
        hashes.extend(hashes_of(&data, granule as usize));
        offset += length;
    }
    Ok(())
}
