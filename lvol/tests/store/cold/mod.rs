//! Maps that are not in memory: read when they are needed, carried from checkpoint to checkpoint as they are.

mod contested;
mod crash;
mod damage;
mod memory;

use lvol::Store;
use reactor::simulated::DiskImage;

const BLOCK: u64 = 4096;

/// Lets go of all maps that nobody uses.
async fn cool(store: &Store) {
    store.trim().await.expect("a checkpoint");
}

/// The pages of maps of the last checkpoint: where each is, and the map it belongs to.
fn map_pages(image: &DiskImage) -> Vec<(u64, u32)> {
    let pages = (0..image.size() / BLOCK).map(|block| block * BLOCK).filter_map(|offset| {
        let header = image.bytes(offset, 72);
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
        let sequence = u64::from_le_bytes(header[24..32].try_into().expect("eight bytes"));
        // Kind 1 of the pages is a map's.
        (header.starts_with(b"ASHLPAGE") && header[10] == 1).then(|| (sequence, offset, word(64)))
    });
    let pages: Vec<(u64, u64, u32)> = pages.collect();
    let last = pages.iter().map(|page| page.0).max().expect("a checkpoint");
    pages.into_iter().filter(|page| page.0 == last).map(|(_, offset, map)| (offset, map)).collect()
}
