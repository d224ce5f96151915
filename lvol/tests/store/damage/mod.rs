//! Damage to every block of metadata: a clear error, a damaged lvol or full service; never a panic, never wrong data (I28).

mod exchange;
mod foreign;
mod repair_cuts;
mod sectors;
mod tools;

use std::collections::BTreeMap;

use lvol::{LvolState, Store, StoreError};
use reactor::simulated::DiskImage;
use uuid::Uuid;

use crate::rig::{Rig, disk, flush, format, id, lvol, open, read_all, snapshot, stamped, unmap, write, write_zeroes};

const BLOCK: u64 = 4096;
const LVOL: u64 = 1 << 20;
const LVOLS: u128 = 5;

/// Content of each lvol by UUID.
type Contents = BTreeMap<Uuid, Vec<u8>>;

/// A store with lvols, chains and attributes, closed in order or not, and what it holds.
fn prepared(closed: bool) -> (DiskImage, Contents) {
    prepared_from(1, closed)
}

/// The same, with another format id for each seed.
fn prepared_from(seed: u64, closed: bool) -> (DiskImage, Contents) {
    let rig = Rig::formatted(seed);
    rig.run(async {
        let store = open().await;
        fill(&store, 1..=3).await;
        store.close().await.expect("closed");
    });
    let contents = rig.run(async move {
        let store = open().await;
        fill(&store, 4..=LVOLS).await;
        change(store, closed).await
    });
    (rig.image(), contents)
}

async fn fill(store: &Store, numbers: std::ops::RangeInclusive<u128>) {
    for number in numbers {
        store.create(&lvol(number, LVOL)).await.expect("created");
        let head = store.open_lvol(id(number)).await.expect("opened");
        write(&head, 0, stamped(number as u64, 300 << 10)).await.expect("written");
    }
}

/// Snapshots, overwrites, holes: everything that a map can hold.
async fn change(store: Store, closed: bool) -> Contents {
    for number in [1, 4] {
        store.snapshot(id(number), &snapshot(100 + number)).await.expect("cut");
        let head = store.open_lvol(id(number)).await.expect("opened");
        write(&head, 64 << 10, stamped(50 + number as u64, 100 << 10)).await.expect("written");
        unmap(&head, 0, 40 << 10).await.expect("unmapped");
        write_zeroes(&head, 200 << 10, 64 << 10).await.expect("zeroed");
    }
    flush(&store.open_lvol(id(1)).await.expect("opened")).await.expect("flushed");
    let mut contents = Contents::new();
    for info in store.lvols() {
        contents.insert(info.uuid, read_all(&store.open_lvol(info.uuid).await.expect("opened")).await);
    }
    if closed {
        store.close().await.expect("closed");
    }
    contents
}

/// The blocks that hold metadata: each starts with a magic, or goes on from one that does.
fn metadata_blocks(image: &DiskImage) -> Vec<u64> {
    let is_metadata = |place: &u64| image.bytes(place * BLOCK, 4) == b"ASHL";
    let blocks: Vec<u64> = (0..image.size() / BLOCK).filter(is_metadata).collect();
    assert!(blocks.len() > 10, "{blocks:?}");
    blocks
}

/// Opens the store and compares what it serves. Returns how many lvols are damaged, or none when the store says that it is.
fn serve(image: DiskImage, contents: &Contents, what: &str) -> Option<usize> {
    tools::agree(&image, contents, what);
    let rig = Rig::with_image(2, image);
    let contents = contents.clone();
    let what = what.to_owned();
    rig.run(async move {
        let store = match Store::open(disk()).await {
            Ok(store) => store,
            Err(StoreError::Damaged { .. } | StoreError::NotAStore { .. }) => return None,
            Err(other) => panic!("{what}: {other}"),
        };
        let damaged = compare(&store, &contents, &what).await;
        // What was decided once stays so.
        store.close().await.unwrap_or_else(|error| panic!("{what}: {error}"));
        let store = open().await;
        assert_eq!(compare(&store, &contents, &what).await, damaged, "{what}");
        Some(damaged)
    })
}

async fn compare(store: &Store, contents: &Contents, what: &str) -> usize {
    let mut damaged = 0;
    for (uuid, content) in contents {
        let Some(info) = store.lvol_info(*uuid) else {
            assert!(store.info().damaged, "{what}: {uuid} is gone and nobody says so");
            damaged += 1;
            continue;
        };
        match (info.state, store.open_lvol(*uuid).await) {
            (LvolState::Ready, Ok(lvol)) => {
                assert!(read_all(&lvol).await == *content, "{what}: {uuid} reads wrong");
            }
            (LvolState::Damaged { .. }, Err(StoreError::LvolDamaged { .. })) => damaged += 1,
            (state, _) => panic!("{what}: {uuid} is {state:?} and not"),
        }
    }
    assert!(damaged == 0 || store.info().damaged, "{what}");
    damaged
}

/// Tries one kind of damage on each block of metadata. Returns how often the store refused, and the most lvols that were
/// damaged by one block.
fn damage_each(closed: bool, what: &str, damage: impl Fn(&mut DiskImage, u64)) -> (usize, usize) {
    let (image, contents) = prepared(closed);
    let (mut refused, mut most) = (0, 0);
    for block in metadata_blocks(&image) {
        let mut damaged = image.clone();
        damage(&mut damaged, block * BLOCK);
        match serve(damaged, &contents, &format!("{what} at block {block}, closed: {closed}")) {
            Some(count) => most = most.max(count),
            None => refused += 1,
        }
    }
    (refused, most)
}

fn check_damage(what: &str, damage: impl Fn(&mut DiskImage, u64)) {
    let (refused, most) = damage_each(true, what, &damage);
    // A closed store has two superblocks and a checkpoint whose pages stand alone: no single block takes it down, and none
    // takes more than one chain with it.
    assert_eq!(refused, 0, "{what}");
    assert!(most <= 2, "{what}: {most} lvols are damaged by one block");
    damage_each(false, what, &damage);
}

#[test]
fn a_flipped_bit_anywhere() {
    for bit in [100u64, 8 * 70 + 3, 8 * 200] {
        check_damage("a flipped bit", |image, offset| image.flip(offset + bit / 8, 1 << (bit % 8)));
    }
}

#[test]
fn a_zeroed_block_anywhere() {
    check_damage("zeroes", |image, offset| image.write(offset, &[0; BLOCK as usize]));
}

#[test]
fn a_half_written_block_anywhere() {
    check_damage("half a block", |image, offset| image.write(offset + 512, &[0xa5; 3584]));
}

#[test]
fn a_block_in_the_place_of_another() {
    let (image, contents) = prepared(true);
    let blocks = metadata_blocks(&image);
    for (place, other) in blocks.iter().zip(blocks.iter().skip(1)) {
        let mut swapped = image.clone();
        swapped.write(place * BLOCK, &image.bytes(other * BLOCK, BLOCK as usize));
        swapped.write(other * BLOCK, &image.bytes(place * BLOCK, BLOCK as usize));
        serve(swapped, &contents, &format!("blocks {place} and {other} swapped"));
    }
}

#[test]
fn a_disk_that_was_cut_off() {
    let (image, contents) = prepared(true);
    for size in [0, BLOCK, 4 << 20, 5 << 20, image.size() - BLOCK] {
        let mut cut = image.clone();
        cut.resize(size);
        assert_eq!(serve(cut, &contents, &format!("cut off at {size}")), None);
    }
    let mut grown = image.clone();
    grown.resize(image.size() + (1 << 20));
    assert_eq!(serve(grown, &contents, "grown"), Some(0));
}

#[test]
fn both_superblocks_gone_is_an_error_that_tells() {
    let (image, _) = prepared(true);
    let mut damaged = image.clone();
    damaged.flip(100, 1);
    damaged.flip((4 << 20) + 100, 1);
    let rig = Rig::with_image(3, damaged);
    rig.run(async {
        let error = Store::open(disk()).await.err().expect("damaged");
        assert!(matches!(&error, StoreError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains("checksum"), "{error}");
    });
}

/// What a damaged lvol owned is not given to others, also not after more sessions.
#[test]
fn the_space_of_a_damaged_lvol_is_not_given_away() {
    let (image, contents) = prepared(true);
    let stamp = stamped(2, 512);
    let copies =
        |image: &DiskImage| (0..image.size() / 512).filter(|at| image.bytes(at * 512, 512) == stamp[..]).count();
    let mut tried = 0;
    for block in metadata_blocks(&image) {
        let mut damaged = image.clone();
        damaged.flip(block * BLOCK + 100, 1);
        let rig = Rig::with_image(4, damaged);
        let lost = rig.run(async {
            let store = open().await;
            let lost = store.lvol_info(id(2)).is_some_and(|info| info.state != LvolState::Ready);
            store.close().await.expect("closed");
            let store = open().await;
            store.create(&lvol(9, 64 << 20)).await.expect("created");
            let other = store.open_lvol(id(9)).await.expect("opened");
            let mut at = 0;
            while write(&other, at, stamped(77, 64 << 10)).await.is_ok() {
                at += 64 << 10;
            }
            store.close().await.expect("closed");
            lost
        });
        if lost {
            tried += 1;
            assert_eq!(
                copies(&rig.image()),
                contents[&id(2)].chunks(512).filter(|sector| **sector == stamp[..]).count()
            );
        }
    }
    assert!(tried > 0, "no block damages this lvol");
}

/// A record found damaged stays so until a repair, but the lvol can be deleted and the others go on.
#[test]
fn a_damaged_lvol_can_be_deleted() {
    let (image, contents) = prepared(true);
    for block in metadata_blocks(&image) {
        let mut damaged = image.clone();
        damaged.flip(block * BLOCK + 100, 1);
        let rig = Rig::with_image(5, damaged);
        let contents = contents.clone();
        rig.run(async move {
            let store = open().await;
            let lost: Vec<Uuid> =
                store.lvols().iter().filter(|info| info.state != LvolState::Ready).map(|info| info.uuid).collect();
            for uuid in &lost {
                store.delete(*uuid).await.expect("gone, or marked");
                assert!(store.lvol_info(*uuid).is_none_or(|info| info.deletion.is_some()));
            }
            let rest: Contents = contents.into_iter().filter(|(uuid, _)| !lost.contains(uuid)).collect();
            compare(&store, &rest, "after deleting").await;
        });
    }
}

/// Random bytes are no store, whatever they look like.
#[test]
fn noise_is_not_a_store() {
    let mut random = reactor::simulated::Random::new(6);
    let (image, contents) = prepared(false);
    for _ in 0..200 {
        let mut noisy = image.clone();
        for _ in 0..1 + random.index(40) {
            // Where metadata is: the superblocks, the journal and the checkpoints.
            let offset = random.below(7 << 20) & !511;
            let noise: Vec<u8> = (0..64).flat_map(|_| random.next_u64().to_le_bytes()).collect();
            noisy.write(offset, &noise);
        }
        serve_or_lose_data(noisy, &contents);
    }
    let tiny = Rig::new(7);
    tiny.run(async { format(&disk()).await.expect("formatted") });
}

/// Noise may hit data too: then only errors and panics count.
fn serve_or_lose_data(image: DiskImage, contents: &Contents) {
    let rig = Rig::with_image(8, image);
    let contents = contents.clone();
    rig.run(async move {
        let Ok(store) = Store::open(disk()).await else { return };
        for uuid in contents.keys() {
            if let Ok(lvol) = store.open_lvol(*uuid).await {
                read_all(&lvol).await;
            }
        }
        store.close().await.expect("closed");
    });
}
