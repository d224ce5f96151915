//! Damage to the map of an lvol that nobody uses, while the store is open: found when the map is needed, or when a checkpoint carries
//! it over. It costs the lvols that read through this map, and nobody else anything (I28); what cannot be read now may be read later (I31).

use std::collections::{BTreeMap, BTreeSet};

use lvol::{LvolState, Store, StoreError};
use reactor::simulated::{DiskFault, DiskFaultKind, DiskImage};
use uuid::Uuid;

use super::{BLOCK, cool, map_pages};
use crate::rig::{DISK, Rig, check_space, id, lvol, open, read, read_all, snapshot, stamped, write};

const CLUSTER: u64 = 64 << 10;

/// An lvol so thinly written that its map needs several pages.
const WIDE: u128 = 3;

/// Clusters from one write of the wide one to the next.
const STRIDE: u64 = 64;

const WRITES: u64 = 250;

type Contents = BTreeMap<Uuid, Vec<u8>>;

/// Which lvols go with which: those that read through one map.
fn families() -> Vec<BTreeSet<Uuid>> {
    let family = |numbers: &[u128]| numbers.iter().map(|number| id(*number)).collect();
    vec![family(&[1]), family(&[2]), family(&[1, 2, 10]), family(&[WIDE]), family(&[4])]
}

/// A closed store: a snapshot with two children, a wide lvol and a small one.
fn prepared() -> DiskImage {
    let rig = Rig::formatted_with(71, 64 << 20);
    rig.run(async {
        let store = open().await;
        store.create(&lvol(1, 1 << 20)).await.expect("created");
        let head = store.open_lvol(id(1)).await.expect("opened");
        write(&head, 0, stamped(10, 300 << 10)).await.expect("written");
        store.snapshot(id(1), &snapshot(10)).await.expect("cut");
        store.clone_snapshot(id(10), &lvol(2, 1 << 20)).await.expect("cloned");
        write(&head, 0, stamped(1, 100 << 10)).await.expect("written");
        let copy = store.open_lvol(id(2)).await.expect("opened");
        write(&copy, 200 << 10, stamped(2, 100 << 10)).await.expect("written");
        store.create(&lvol(WIDE, WRITES * STRIDE * CLUSTER)).await.expect("created");
        let wide = store.open_lvol(id(WIDE)).await.expect("opened");
        for number in 0..WRITES {
            write(&wide, number * STRIDE * CLUSTER, stamped(3, 4096)).await.expect("written");
        }
        store.create(&lvol(4, 1 << 20)).await.expect("created");
        let small = store.open_lvol(id(4)).await.expect("opened");
        write(&small, 64 << 10, stamped(4, 64 << 10)).await.expect("written");
        drop((head, copy, wide, small));
        // Twice, so that older pages lie in the other area.
        cool(&store).await;
        store.close().await.expect("closed");
    });
    rig.image()
}

/// What an lvol holds: of the wide one the places that were written.
async fn content(store: &Store, uuid: Uuid) -> Result<Vec<u8>, StoreError> {
    let open = store.open_lvol(uuid).await?;
    if uuid != id(WIDE) {
        return Ok(read_all(&open).await);
    }
    let mut content = Vec::new();
    for number in 0..WRITES {
        content.extend(read(&open, number * STRIDE * CLUSTER, 8192).await.expect("read"));
    }
    Ok(content)
}

fn contents(image: &DiskImage) -> Contents {
    let rig = Rig::with_image(72, image.clone());
    rig.run(async {
        let store = open().await;
        let mut contents = Contents::new();
        for info in store.lvols() {
            contents.insert(info.uuid, content(&store, info.uuid).await.expect("whole"));
        }
        contents
    })
}

/// Opens every lvol: each is served with its content, or damaged. Returns those that are.
async fn serve(store: &Store, contents: &Contents, what: &str) -> BTreeSet<Uuid> {
    let mut damaged = BTreeSet::new();
    for (uuid, expected) in contents {
        match content(store, *uuid).await {
            Ok(content) => assert!(content == *expected, "{what}: {uuid} reads wrong"),
            Err(StoreError::LvolDamaged { .. }) => {
                let state = store.lvol_info(*uuid).expect("it is there").state;
                assert!(matches!(state, LvolState::Damaged { .. }), "{what}: {uuid} is {state:?}");
                damaged.insert(*uuid);
            }
            Err(other) => panic!("{what}: {uuid}: {other}"),
        }
    }
    assert!(damaged.is_empty() || store.info().damaged, "{what}");
    damaged
}

/// A page of a map, as damage makes it.
type Damage = fn(&DiskImage, u64) -> Vec<u8>;

/// The ways in which a page is damaged: a bit, all of it, or exchanged for another that is whole in itself.
fn damages() -> [(&'static str, Damage); 4] {
    [
        ("a flipped bit", |image, offset| {
            let mut page = image.bytes(offset, BLOCK as usize);
            // Of the smallest pages only the first hundred bytes count.
            page[80] ^= 1;
            page
        }),
        ("zeroes", |_, _| vec![0; BLOCK as usize]),
        ("the page of another map", |image, offset| {
            let pages = map_pages(image);
            let map = pages.iter().find(|page| page.0 == offset).expect("a page of a map").1;
            let other = pages.iter().find(|page| page.1 != map).expect("several maps");
            image.bytes(other.0, BLOCK as usize)
        }),
        ("the page of the same place of an older checkpoint", |image, offset| {
            let mut page = image.bytes(offset, BLOCK as usize);
            // What a lost write leaves is sealed as well as this one, with another number.
            page[24] -= 1;
            seal(&mut page);
            page
        }),
    ]
}

/// Makes the checksum of a structure right.
pub(super) fn seal(structure: &mut [u8]) {
    let length = u32::from_le_bytes(structure[48..52].try_into().expect("four bytes")) as usize;
    structure[12..16].fill(0);
    let checksum = crc_fast::crc32_iscsi(&structure[..length]);
    structure[12..16].copy_from_slice(&checksum.to_le_bytes());
}

/// Opens the store, changes a page of a map that is not in memory, and does `first` with it.
fn damage_while_open<F: Future<Output = ()> + 'static>(
    image: &DiskImage,
    offset: u64,
    bytes: &[u8],
    first: impl FnOnce(Store) -> F + 'static,
) -> (Rig, Store) {
    let rig = Rig::with_image(73, image.clone());
    let store = rig.run(async { open().await });
    let mut changed = rig.image();
    changed.write(offset, bytes);
    rig.world.set_disk_image(rig.node, DISK, changed);
    let store = rig.run(async move {
        assert_eq!((store.info().maps_in_memory, store.info().damaged), (0, false));
        first(store.clone()).await;
        store
    });
    (rig, store)
}

/// Tries each damage on each page of a map. Returns the families that were damaged.
fn damage_each<F: Future<Output = ()> + 'static>(
    closed: bool,
    first: impl FnOnce(Store) -> F + Clone + 'static,
) -> BTreeSet<BTreeSet<Uuid>> {
    let image = prepared();
    let contents = contents(&image);
    let mut found = BTreeSet::new();
    for (offset, map) in map_pages(&image) {
        for (damage, make) in damages() {
            let what = format!("{damage} at {offset}, of map {map}");
            let (rig, store) = damage_while_open(&image, offset, &make(&image, offset), first.clone());
            let (all, text) = (contents.clone(), what.clone());
            let (store, damaged) = rig.run(async move {
                let damaged = serve(&store, &all, &text).await;
                assert!(families().contains(&damaged), "{text}: {damaged:?}");
                go_on(&store, &damaged).await;
                (store, damaged)
            });
            let now = rig.image();
            for number in damaged.iter().map(|uuid| uuid.as_u128() as u64) {
                assert!(blocks_of(&now, number) >= blocks_of(&image, number), "{what}: {number} was written over");
            }
            let (all, text, same) = (contents.clone(), what.clone(), damaged.clone());
            rig.run(async move {
                // What was found is in the checkpoint, with what is left of the map.
                cool(&store).await;
                assert_eq!(serve(&store, &all, &text).await, same);
                if closed {
                    store.close().await.expect("closed");
                }
            });
            let rig = Rig::with_image(75, rig.image());
            let all = contents.clone();
            let damaged = rig.run(async move {
                let store = open().await;
                assert_eq!(serve(&store, &all, &what).await, damaged, "{what}, opened again");
                check_space_kept(&store, &damaged);
                delete(&store, &damaged).await;
                let rest: Contents = all.into_iter().filter(|(uuid, _)| !damaged.contains(uuid)).collect();
                assert!(serve(&store, &rest, &what).await.is_empty());
                store.close().await.expect("closed");
                damaged
            });
            found.insert(damaged);
        }
    }
    found
}

/// Blocks of the disk that were written by this lvol.
fn blocks_of(image: &DiskImage, stamp: u64) -> usize {
    let block = stamped(stamp, 512);
    (0..image.size() / BLOCK).filter(|at| image.bytes(at * BLOCK, 512) == block[..]).count()
}

/// Everybody else goes on writing, until the store is full.
async fn go_on(store: &Store, damaged: &BTreeSet<Uuid>) {
    store.create(&lvol(20, 64 << 20)).await.expect("created");
    let other = store.open_lvol(id(20)).await.expect("opened");
    let mut at = 0;
    while write(&other, at, stamped(20, 16 * CLUSTER as usize)).await.is_ok() {
        at += 16 * CLUSTER;
    }
    assert!(at > 0);
    for uuid in [1, 2, 4].map(id).into_iter().filter(|uuid| !damaged.contains(uuid)) {
        let open = store.open_lvol(uuid).await.expect("opened");
        let same = read(&open, 256 << 10, 4096).await.expect("read");
        // With no free cluster only what is mapped can be written.
        let _ = write(&open, 256 << 10, block_device::Slice::from(&same[..])).await;
    }
    drop(other);
    store.delete(id(20)).await.expect("deleted");
}

/// No cluster is lost as long as nothing is damaged; with damage none is given away that may be somebody's.
fn check_space_kept(store: &Store, damaged: &BTreeSet<Uuid>) {
    if damaged.is_empty() {
        return check_space(store);
    }
    let info = store.info();
    let used: u64 = store.lvols().iter().map(|lvol| lvol.used_bytes).sum();
    assert!(used + info.free <= info.size);
}

/// Damaged lvols can be deleted: children first.
async fn delete(store: &Store, damaged: &BTreeSet<Uuid>) {
    for uuid in damaged {
        store.delete(*uuid).await.expect("gone, or marked");
        let info = store.lvol_info(*uuid);
        assert!(info.is_none_or(|info| info.deletion.is_some()));
    }
}

#[test]
fn damage_is_found_when_the_map_is_needed() {
    for closed in [true, false] {
        let found = damage_each(closed, |_| async {});
        assert_eq!(found, families().into_iter().collect());
    }
}

#[test]
fn damage_is_found_when_a_checkpoint_carries_the_map_over() {
    let found = damage_each(true, |store| async move {
        cool(&store).await;
        assert!(store.info().damaged, "the checkpoint noticed nothing");
    });
    assert_eq!(found, families().into_iter().collect());
}

/// A page that cannot be read is not a damaged page (I31); what a checkpoint makes of one that stays so is in `damage/sectors.rs`.
#[test]
fn a_map_that_cannot_be_read_now_can_be_read_later() {
    let image = prepared();
    let contents = contents(&image);
    for (offset, _) in map_pages(&image) {
        let rig = Rig::with_image(74, image.clone());
        let store = rig.run(async { open().await });
        let fault = DiskFault::new(DiskFaultKind::FailReads).within(offset..offset + BLOCK);
        rig.world.add_disk_fault(rig.node, DISK, fault);
        let all = contents.clone();
        let store = rig.run(async move {
            let mut failed = BTreeSet::new();
            for (uuid, expected) in &all {
                match content(&store, *uuid).await {
                    Ok(content) => assert!(content == *expected),
                    Err(StoreError::Io { .. }) => _ = failed.insert(*uuid),
                    Err(other) => panic!("{uuid}: {other}"),
                }
            }
            assert!(families().contains(&failed), "{failed:?}");
            assert!(!store.info().damaged && store.info().failure.is_none());
            assert!(store.lvols().iter().all(|info| info.state == LvolState::Ready));
            store
        });
        rig.world.clear_disk_faults(rig.node, DISK);
        let all = contents.clone();
        rig.run(async move {
            cool(&store).await;
            assert!(serve(&store, &all, "read later").await.is_empty());
            check_space(&store);
            store.close().await.expect("closed");
        });
    }
}
