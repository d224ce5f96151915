//! Lvols that belong to others: hidden, kept through everything, and gone with their owner.

use lvol::offline::{CheckOptions, Severity, check};
use lvol::{LvolState, Role, Store, StoreError};
use reactor::simulated::DiskImage;
use uuid::Uuid;

use crate::operations::settle;
use crate::rig::{DISK, Rig, check_space, disk, flush, id, lvol, open, read_all, snapshot, stamped, write};

const SIZE: u64 = 1 << 20;

const INTERNAL: u64 = 256 << 10;

/// A store with head 1, snapshot 10 under it, and an internal lvol with data for each.
async fn prepared() -> Store {
    let store = open().await;
    store.create(&lvol(1, SIZE)).await.expect("created");
    let head = store.open_lvol(id(1)).await.expect("opened");
    write(&head, 0, stamped(5, 128 << 10)).await.expect("written");
    store.snapshot(id(1), &snapshot(10)).await.expect("cut");
    write(&head, 0, stamped(6, 4096)).await.expect("written");
    for (owner, role) in [(1, Role::Activity), (10, Role::Hashes)] {
        store.create_internal(id(owner), role, INTERNAL, 4096).await.expect("created");
        let internal = store.open_internal(id(owner), role).await.expect("opened");
        write(&internal, 65536, stamped(100 + owner as u64, 65536)).await.expect("written");
        flush(&internal).await.expect("flushed");
    }
    store
}

async fn check_content(store: &Store, owner: u128, role: Role) {
    let content = read_all(&store.open_internal(id(owner), role).await.expect("opened")).await;
    assert_eq!(content[65536..131_072], stamped(100 + owner as u64, 65536)[..]);
    assert!(content[131_072..].iter().all(|&byte| byte == 0));
}

#[test]
fn an_internal_lvol_is_no_users_lvol() {
    let rig = Rig::formatted(1);
    rig.run(async {
        let store = prepared().await;
        let info = store.internal_lvols(id(10)).pop().expect("there");
        assert_eq!((info.owner, info.role, info.used_bytes), (id(10), Role::Hashes, 64 << 10));
        assert_eq!(store.lvols().iter().map(|lvol| lvol.uuid).collect::<Vec<_>>(), [id(1), id(10)]);
        assert!(store.lvol_info(info.uuid).is_none());
        let facts = store.info();
        assert_eq!((facts.lvols, facts.internal_lvols, facts.internal_bytes), (2, 2, 128 << 10));
        check_space(&store);
        let refused = |error: Option<StoreError>| assert!(matches!(error, Some(StoreError::NotFound { .. })));
        refused(store.open_lvol(info.uuid).await.err());
        refused(store.snapshot(info.uuid, &snapshot(11)).await.err());
        refused(store.grow(info.uuid, SIZE).await.err());
        refused(store.rename(info.uuid, "mine").await.err());
        refused(store.create_internal(info.uuid, Role::Hashes, INTERNAL, 4096).await.err());
        refused(store.open_internal(id(10), Role::Activity).await.err());
        let taken = lvol::CreateLvol { uuid: info.uuid, ..lvol(12, SIZE) };
        assert!(matches!(store.create(&taken).await.err(), Some(StoreError::Conflict { .. })));
        store.delete(info.uuid).await.expect("there is no such lvol");
        check_content(&store, 10, Role::Hashes).await;
    });
}

/// I30.
#[test]
fn the_same_request_again_finds_the_same_one() {
    let rig = Rig::formatted(2);
    rig.run(async {
        let store = prepared().await;
        let first = store.internal_lvols(id(10));
        store.create_internal(id(10), Role::Hashes, INTERNAL, 4096).await.expect("the same");
        assert_eq!(store.internal_lvols(id(10)), first);
        let other = store.create_internal(id(10), Role::Hashes, 2 * INTERNAL, 4096).await.err();
        assert!(matches!(other, Some(StoreError::Conflict { .. })));
        assert_eq!(store.internal_lvols(id(10)), first);
        store.close().await.expect("closed");
        let store = open().await;
        assert_eq!(store.internal_lvols(id(10)), first);
        check_content(&store, 10, Role::Hashes).await;
        check_content(&store, 1, Role::Activity).await;
        store.delete_internal(id(10), Role::Hashes).await.expect("deleted");
        store.delete_internal(id(10), Role::Hashes).await.expect("deleted already");
        assert!(store.internal_lvols(id(10)).is_empty());
        check_space(&store);
    });
}

/// I26: with a delete, and with a merge, at every step. Nothing else of the store has this pattern: two owners, each with one.
#[test]
fn a_power_cut_while_the_owner_is_deleted_leaves_both_or_none() {
    let rig = Rig::formatted(3);
    rig.run(async { prepared().await.close().await.expect("closed") });
    rig.world.record_disk(rig.node, DISK);
    rig.run(async {
        let store = open().await;
        store.delete(id(10)).await.expect("marked");
        settle(&store).await;
        store.delete(id(1)).await.expect("deleted");
        store.close().await.expect("closed");
    });
    let history = rig.world.disk_history(rig.node, DISK);
    let mut seen = [0; 3];
    for (at, cut) in history.cuts().enumerate() {
        for survival in cut.survivals(1, at as u64) {
            let owners = check_cut(at as u64, cut.image(survival));
            seen[owners] += 1;
        }
    }
    assert!(seen.iter().all(|&times| times > 0), "{seen:?}");
}

/// Opens the store on what a cut left. Returns how many lvols there are.
fn check_cut(seed: u64, image: reactor::simulated::DiskImage) -> usize {
    Rig::with_image(seed, image).run(async {
        let store = open().await;
        let lvols = store.lvols();
        assert_eq!(store.info().internal_lvols, lvols.len(), "an owner without its lvol, or the other way round");
        for (owner, role) in [(1, Role::Activity), (10, Role::Hashes)] {
            if store.lvol_info(id(owner)).is_some() {
                check_content(&store, owner, role).await;
            }
        }
        check_space(&store);
        settle(&store).await;
        assert_eq!(store.info().internal_lvols, store.lvols().len());
        check_space(&store);
        store.close().await.expect("closed");
        lvols.len()
    })
}

/// I28: a damaged one is told of, harms nobody else, and can be made again.
#[test]
fn a_damaged_internal_lvol_is_replaced() {
    let rig = Rig::formatted(4);
    rig.run(async { prepared().await.close().await.expect("closed") });
    let image = rig.image();
    let mut damaged = 0;
    for block in (4 << 20) / 4096..image.size() / 4096 {
        // Where checkpoints are: a page is recognised by its magic.
        if image.bytes(block * 4096, 8) != *b"ASHLPAGE" {
            continue;
        }
        let mut broken = image.clone();
        broken.flip(block * 4096 + 70, 1);
        damaged += Rig::with_image(block, broken).run(async {
            let store = open().await;
            let Some(info) = store.internal_lvols(id(10)).pop() else { return 0 };
            if info.state == LvolState::Ready {
                check_content(&store, 10, Role::Hashes).await;
                return 0;
            }
            assert!(store.open_lvol(id(1)).await.is_ok(), "the owner and its chain are whole");
            assert!(matches!(store.open_internal(id(10), Role::Hashes).await, Err(StoreError::LvolDamaged { .. })));
            store.delete_internal(id(10), Role::Hashes).await.expect("deleted");
            store.create_internal(id(10), Role::Hashes, INTERNAL, 4096).await.expect("made again");
            1
        });
    }
    assert!(damaged >= 2, "neither its record nor its map was hit");
}

fn put(image: &mut DiskImage, at: u64, bytes: &[u8]) {
    for (offset, (new, old)) in (at..).zip(bytes.iter().zip(image.bytes(at, bytes.len()))) {
        image.flip(offset, new ^ old);
    }
}

/// Gives an internal lvol another owner, wherever the checkpoint names it.
fn give_away(image: &mut DiskImage, lvol: Uuid, owner: Uuid) {
    let mut given = 0;
    for page in (0..image.size()).step_by(4096).filter(|at| image.bytes(*at, 8) == *b"ASHLPAGE").collect::<Vec<_>>() {
        let bytes = image.bytes(page, 4096);
        let places: Vec<usize> = (64..4096 - 32).filter(|at| bytes[*at..at + 16] == *lvol.as_bytes()).collect();
        for at in &places {
            put(image, page + *at as u64 + 16, owner.as_bytes());
        }
        if !places.is_empty() {
            given += 1;
            let length = u32::from_le_bytes(bytes[48..52].try_into().expect("four bytes")) as usize;
            let mut sealed = image.bytes(page, length);
            sealed[12..16].fill(0);
            put(image, page + 12, &crc_fast::crc32_iscsi(&sealed).to_le_bytes());
        }
    }
    assert!(given >= 2, "its record and the directory");
}

/// What belongs to nobody is found by a check, and goes when the store is opened; not while the owner may be among what is lost.
#[test]
fn what_belongs_to_nobody_is_found_and_removed() {
    let rig = Rig::formatted(5);
    let lvol = rig.run(async {
        let store = prepared().await;
        let lvol = store.internal_lvols(id(10)).pop().expect("there").uuid;
        store.close().await.expect("closed");
        lvol
    });
    let mut image = rig.image();
    give_away(&mut image, lvol, id(77));
    let found = Rig::with_image(6, image.clone()).run(async { check(&disk(), &CheckOptions::default()).await });
    let found = found.expect("checked").findings;
    let [finding] = &found[..] else { panic!("{found:?}") };
    assert_eq!((finding.severity, finding.lvol), (Severity::Warning, Some(lvol)));
    assert!(finding.text.contains("which is not there"), "{finding:?}");

    let rig = Rig::with_image(7, image.clone());
    rig.run(async move {
        let store = open().await;
        assert!(store.internal_info(lvol).is_none());
        assert_eq!((store.info().internal_lvols, store.info().internal_bytes), (1, 64 << 10));
        check_content(&store, 1, Role::Activity).await;
        settle(&store).await;
        check_space(&store);
        store.close().await.expect("closed");
        let left = check(&disk(), &CheckOptions::default()).await.expect("checked").findings;
        assert_eq!(left, []);
    });

    // Of lvol 1 only the directory tells.
    let is_record = |image: &DiskImage, at: u64| {
        let header = image.bytes(at, 8) == *b"ASHLPAGE" && image.bytes(at + 10, 2) == [2, 0];
        header && image.bytes(at + 64, 16) == *id(1).as_bytes()
    };
    for at in (0..image.size()).step_by(4096) {
        if is_record(&image, at) {
            image.flip(at + 100, 1);
        }
    }
    Rig::with_image(8, image).run(async move {
        let store = open().await;
        assert!(store.info().damaged);
        assert!(store.internal_info(lvol).is_some(), "its owner may be among what is lost");
    });
}
