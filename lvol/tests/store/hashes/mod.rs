//! Hashes of snapshots: computed, compared, and what becomes of what differs.

mod background;
mod crash;
mod offline;
mod scrub;

use std::rc::Rc;
use std::time::Duration;

use block_device::Range;
use lvol::{Lvol, REGION, Store};
use reactor::simulated::DiskImage;
use reactor::sleep;
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_128;

use crate::rig::{id, lvol, open, read_all, snapshot, stamped, write};

const BLOCK: u64 = 4096;

/// Fast enough never to wait.
const RATE: u64 = 1 << 40;

/// Bytes of the lvols here: the last region is not whole.
const SIZE: u64 = 20 * REGION + 3 * BLOCK;

/// Waits until all snapshots have their values.
async fn hashed(store: &Store) {
    loop {
        let status = store.scrub_status();
        if status.hashed == status.snapshots {
            return;
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// The value that a region of such content should have.
fn expected(content: &[u8], region: u64) -> [u8; 16] {
    let start = (region * REGION) as usize;
    let mut bytes = content[start..content.len().min(start + REGION as usize)].to_vec();
    bytes.resize(REGION as usize, 0);
    xxh3_128(&bytes).to_be_bytes()
}

/// Every value of a snapshot is that of its content. If all are there (`complete`), each region with blocks of its own has one.
async fn check_values(store: &Store, snapshot: Uuid, content: &[u8], complete: bool) -> usize {
    let everywhere = Range { offset: 0, length: u64::MAX };
    let extents = store.extents(snapshot, everywhere, usize::MAX).await.expect("extents");
    let values = store.hashes(snapshot, 0, u64::MAX).await.expect("values");
    assert_eq!(values.len() as u64, (content.len() as u64).div_ceil(REGION));
    for (region, value) in &values {
        let (start, end) = (region * REGION, (region + 1) * REGION);
        let own = extents.iter().any(|extent| extent.offset < end && start < extent.offset + extent.length);
        assert!(!complete || !own || value.is_some(), "region {region} of {snapshot} has no value");
        assert!(value.is_none_or(|value| value == expected(content, *region)), "region {region} of {snapshot}");
    }
    values.iter().filter(|(_, value)| value.is_some()).count()
}

/// A stamp for each block of each layer.
const fn stamp(layer: u64, block: u64) -> u64 {
    layer * 1_000_000 + block + 1
}

async fn fill(lvol: &Rc<Lvol>, layer: u64, blocks: impl IntoIterator<Item = u64>) {
    for block in blocks {
        write(lvol, block * BLOCK, stamped(stamp(layer, block), BLOCK as usize)).await.expect("written");
    }
}

/// Head 1 over snapshot 11 over snapshot 10, hashed. Layer 1 has regions 0 to 3, layer 2 each fourth block of 2 to 5, layer 3,
/// the head's, block 33.
async fn layers() -> Store {
    let store = open().await;
    store.create(&lvol(1, SIZE)).await.expect("created");
    let head = store.open_lvol(id(1)).await.expect("opened");
    fill(&head, 1, 0..64).await;
    store.snapshot(id(1), &snapshot(10)).await.expect("cut");
    fill(&head, 2, (32..96).step_by(4)).await;
    store.snapshot(id(1), &snapshot(11)).await.expect("cut");
    fill(&head, 3, [33]).await;
    store.set_hash_rate(RATE);
    hashed(&store).await;
    store
}

/// Where the one block with this stamp is on the disk.
fn place(image: &DiskImage, stamp: u64) -> u64 {
    let data = stamped(stamp, BLOCK as usize);
    let mut found = (0..image.size() / BLOCK).filter(|block| image.bytes(block * BLOCK, BLOCK as usize) == data[..]);
    let place = found.next().expect("it is somewhere") * BLOCK;
    assert_eq!(found.next(), None, "it is there once");
    place
}

async fn content(store: &Store, number: u128) -> Vec<u8> {
    read_all(&store.open_lvol(id(number)).await.expect("opened")).await
}
