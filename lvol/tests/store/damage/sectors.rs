//! Sectors that cannot be read any more, while the store is in use.

use lvol::{LvolState, Store, StoreError};
use reactor::simulated::{DiskFault, DiskFaultKind, DiskImage};

use crate::rig::{DISK, Rig, disk, id, lvol, open, read, read_all, stamped, write};

const BLOCK: u64 = 4096;
const LVOL: u64 = 1 << 20;

/// Each fourth block of lvols 1 to 3, on disk in one checkpoint, and the store open: no map is in memory.
fn prepared(seed: u64) -> (Rig, Store) {
    let rig = Rig::formatted(seed);
    rig.run(async {
        let store = open().await;
        for number in 1..=3 {
            store.create(&lvol(number, LVOL)).await.expect("created");
            let head = store.open_lvol(id(number)).await.expect("opened");
            for offset in (0..LVOL).step_by(4 * BLOCK as usize) {
                write(&head, offset, stamped(number as u64, BLOCK as usize)).await.expect("written");
            }
        }
        store.close().await.expect("closed");
    });
    let store = rig.run(open());
    assert_eq!(store.info().maps_in_memory, 0);
    (rig, store)
}

/// Where the last checkpoint has the page of a map. Maps are numbered as lvols are made.
fn map_page(image: &DiskImage, map: u32) -> u64 {
    let number = |at: u64| u64::from_le_bytes(image.bytes(at, 8).try_into().expect("eight bytes"));
    let is_page = |at: &u64| {
        image.bytes(*at, 8) == *b"ASHLPAGE"
            && image.bytes(at + 10, 2) == [1, 0]
            && image.bytes(at + 64, 4) == map.to_le_bytes()
    };
    let pages = (0..image.size()).step_by(BLOCK as usize).filter(is_page);
    pages.max_by_key(|at| number(at + 24)).expect("it is somewhere")
}

async fn check(store: &Store, number: u128) {
    let content = read_all(&store.open_lvol(id(number)).await.expect("opened")).await;
    for (offset, block) in (0u64..).step_by(BLOCK as usize).zip(content.chunks(BLOCK as usize)) {
        let expected =
            if offset % (4 * BLOCK) == 0 { stamped(number as u64, BLOCK as usize) } else { stamped(0, BLOCK as usize) };
        // The first block is overwritten by some.
        assert!(block == &expected[..] || offset == 0, "lvol {number} at {offset}");
    }
}

/// Writes to lvols 1 and 3, and has them saved.
async fn save(store: &Store, round: u64) {
    for number in [1, 3] {
        let head = store.open_lvol(id(number)).await.expect("opened");
        write(&head, 0, stamped(round, BLOCK as usize)).await.expect("written");
    }
    store.trim().await.expect("the others are saved");
    assert!(store.info().failure.is_none());
}

/// I28: a bad sector under a map that nobody uses costs that one lvol. The others are saved, again and again.
#[test]
fn an_unreadable_page_of_a_cold_map_keeps_no_others_from_being_saved() {
    let (rig, store) = prepared(41);
    let page = map_page(&rig.image(), 2);
    rig.world.add_disk_fault(rig.node, DISK, DiskFault::new(DiskFaultKind::FailReads).within(page..page + 512));
    let same = store.clone();
    rig.run(async move { save(&same, 1).await });
    // A disk puts another sector in the place of a bad one when that is written, as the next checkpoint but one does.
    rig.world.clear_disk_faults(rig.node, DISK);
    let same = store.clone();
    rig.run(async move {
        save(&same, 2).await;
        save(&same, 3).await;
        let state = same.lvol_info(id(2)).expect("there").state;
        let LvolState::Damaged { reason } = state else { panic!("{state:?}") };
        assert!(reason.contains("cannot be read"), "{reason}");
        assert!(same.info().damaged);
        assert!(matches!(same.open_lvol(id(2)).await, Err(StoreError::LvolDamaged { .. })));
        check(&same, 1).await;
        check(&same, 3).await;
        same.close().await.expect("closed");
    });
    drop(store);
    // The sector is not needed any more.
    rig.run(async {
        let store = open().await;
        assert!(store.info().clean_open && store.info().damaged);
        assert!(matches!(store.open_lvol(id(2)).await, Err(StoreError::LvolDamaged { .. })));
        for number in [1, 3] {
            check(&store, number).await;
            let head = store.open_lvol(id(number)).await.expect("opened");
            assert_eq!(read(&head, 0, BLOCK).await.expect("read"), stamped(3, BLOCK as usize)[..]);
        }
    });
}

/// I31: a disk that gives nothing back says nothing about a map.
#[test]
fn a_disk_that_gives_nothing_back_condemns_no_lvol() {
    let (rig, store) = prepared(42);
    rig.world.add_disk_fault(rig.node, DISK, DiskFault::new(DiskFaultKind::FailReads));
    let same = store.clone();
    rig.run(async move { assert!(same.trim().await.is_err()) });
    rig.world.clear_disk_faults(rig.node, DISK);
    rig.run(async move {
        store.trim().await.expect("saved");
        for number in 1..=3 {
            check(&store, number).await;
        }
        assert!(!store.info().damaged);
    });
}

/// I28, at the start. What the disk gives back later is not lost, as long as nothing was decided for good.
#[test]
fn an_unreadable_page_of_a_map_keeps_no_store_from_being_opened() {
    let (rig, store) = prepared(43);
    rig.run(async move { store.close().await.expect("closed") });
    let page = map_page(&rig.image(), 2);
    rig.world.add_disk_fault(rig.node, DISK, DiskFault::new(DiskFaultKind::FailReads).within(page..page + 512));
    rig.run(async {
        let store = open().await;
        assert!(store.info().damaged);
        assert!(matches!(store.open_lvol(id(2)).await, Err(StoreError::LvolDamaged { .. })));
        check(&store, 1).await;
        check(&store, 3).await;
    });
    rig.world.clear_disk_faults(rig.node, DISK);
    rig.run(async {
        let store = open().await;
        for number in 1..=3 {
            check(&store, number).await;
        }
    });
}

/// I31: with so many it is the disk that fails, and it may be its cable.
#[test]
fn many_unreadable_pages_condemn_no_lvol() {
    let rig = Rig::formatted(44);
    let lvols = 40;
    rig.run(async move {
        let store = open().await;
        for number in 1..=lvols {
            store.create(&lvol(number, LVOL)).await.expect("created");
            let head = store.open_lvol(id(number)).await.expect("opened");
            write(&head, 0, stamped(number as u64, BLOCK as usize)).await.expect("written");
        }
        store.close().await.expect("closed");
    });
    let image = rig.image();
    let pages = map_page(&image, 1)..map_page(&image, lvols as u32) + BLOCK;
    rig.world.add_disk_fault(rig.node, DISK, DiskFault::new(DiskFaultKind::FailReads).within(pages));
    rig.run(async { assert!(matches!(Store::open(disk()).await, Err(StoreError::Io { .. }))) });
    rig.world.clear_disk_faults(rig.node, DISK);
    rig.run(async move {
        let store = open().await;
        assert!(!store.info().damaged && store.lvols().len() == lvols as usize);
    });
}
