//! Values come to be, stay right, and survive restarts, damage and a full store.

use std::time::Duration;

use block_device::Range;
use lvol::{REGION, Role};
use reactor::simulated::Random;
use reactor::{sleep, task_count};

use super::{BLOCK, RATE, SIZE, check_values, content, fill, hashed, layers};
use crate::operations::settle;
use crate::reference::Reference;
use crate::rig::{Rig, check_space, id, lvol, open, snapshot, stamped, unmap, write};

#[test]
fn values_are_those_of_the_content() {
    Rig::formatted(1).run(async {
        let store = layers().await;
        for (snapshot, values) in [(10, 4), (11, 4)] {
            let content = content(&store, snapshot).await;
            assert_eq!(check_values(&store, id(snapshot), &content, true).await, values);
            // What two replicas would compare: the same for any region, stored or not.
            let lvol = store.open_lvol(id(snapshot)).await.expect("opened");
            for region in [0, 2, 5, SIZE / REGION] {
                assert_eq!(lvol.hash_region(region).await.expect("read"), super::expected(&content, region));
            }
            assert!(lvol.hash_region(SIZE / REGION + 1).await.is_err());
        }
        assert_eq!(store.info().internal_lvols, 2);
        check_space(&store);
    });
}

/// Random operations against a reference: after each pause all values are right and none is missing.
#[test]
fn values_stay_right_through_merges_clones_and_deletes() {
    for seed in 0..4 {
        let rig = Rig::formatted_with(seed, 64 << 20);
        rig.run(async move {
            let mut random = Random::new(seed);
            let mut reference = Reference::default();
            let store = open().await;
            store.set_hash_rate(RATE);
            store.create(&lvol(1, SIZE)).await.expect("created");
            reference.create(id(1), SIZE);
            let mut next = 100;
            for step in 0..80 {
                let heads = reference.heads();
                let head = heads[random.index(heads.len())];
                match random.below(10) {
                    0..=4 => {
                        let block = random.below(SIZE / BLOCK - 8);
                        let data = stamped(step + 1, ((1 + random.below(8)) * BLOCK) as usize);
                        let lvol = store.open_lvol(head).await.expect("opened");
                        write(&lvol, block * BLOCK, data.clone()).await.expect("written");
                        reference.write(head, block * BLOCK, &data);
                    }
                    5 => {
                        let range = Range { offset: random.below(10) * REGION, length: 3 * REGION };
                        let lvol = store.open_lvol(head).await.expect("opened");
                        unmap(&lvol, range.offset, range.length).await.expect("unmapped");
                        reference.zero(head, range);
                    }
                    6 | 7 => {
                        next += 1;
                        store.snapshot(head, &snapshot(next)).await.expect("cut");
                        reference.snapshot(head, id(next), snapshot(next).name);
                    }
                    8 => {
                        let snapshots = reference.snapshots();
                        if !snapshots.is_empty() {
                            let gone = snapshots[random.index(snapshots.len())];
                            store.delete(gone).await.expect("marked");
                            reference.delete(gone);
                        }
                    }
                    _ => {
                        let snapshots = reference.snapshots();
                        let open = snapshots.iter().copied().filter(|id| store.lvol_info(*id).is_some());
                        if let Some(parent) = open.max().filter(|_| heads.len() < 3) {
                            next += 1;
                            store.clone_snapshot(parent, &lvol(next, SIZE)).await.expect("cloned");
                            reference.clone_snapshot(parent, id(next), SIZE);
                        }
                    }
                }
                if step % 10 == 9 {
                    settle(&store).await;
                    hashed(&store).await;
                    for snapshot in reference.snapshots() {
                        check_values(&store, snapshot, &reference.lvols[&snapshot].content, true).await;
                    }
                    check_space(&store);
                }
            }
            let report = store.scrub(RATE).await.expect("scrubbed");
            assert_eq!((report.bad_regions, report.unknown), (0, 0));
        });
    }
}

#[test]
fn hashing_that_is_off_or_done_is_no_task() {
    Rig::formatted(2).run(async {
        let store = open().await;
        store.create(&lvol(1, SIZE)).await.expect("created");
        let head = store.open_lvol(id(1)).await.expect("opened");
        fill(&head, 1, 0..4).await;
        let idle = task_count();
        store.snapshot(id(1), &snapshot(10)).await.expect("cut");
        sleep(Duration::from_secs(100)).await;
        assert_eq!((task_count(), store.info().internal_lvols), (idle, 0));
        store.set_hash_rate(RATE);
        hashed(&store).await;
        sleep(Duration::from_secs(1)).await;
        assert_eq!(task_count(), idle);
        // The snapshot of an empty head needs no values, and no space.
        store.snapshot(id(1), &snapshot(11)).await.expect("cut");
        hashed(&store).await;
        assert_eq!(store.info().internal_lvols, 1);
    });
}

#[test]
fn a_restart_goes_on_where_it_was() {
    let rig = Rig::formatted(3);
    rig.run(async {
        let store = open().await;
        store.create(&lvol(1, SIZE)).await.expect("created");
        let head = store.open_lvol(id(1)).await.expect("opened");
        fill(&head, 1, 0..SIZE / BLOCK).await;
        store.snapshot(id(1), &snapshot(10)).await.expect("cut");
        // Four regions a second.
        store.set_hash_rate(4 * REGION);
        sleep(Duration::from_millis(2500)).await;
        let content = content(&store, 10).await;
        let done = check_values(&store, id(10), &content, false).await;
        assert!((4..=12).contains(&done), "{done}");
        drop(head);
        store.close().await.expect("closed");
        let store = open().await;
        assert!(check_values(&store, id(10), &content, false).await >= done);
        store.set_hash_rate(RATE);
        hashed(&store).await;
        check_values(&store, id(10), &content, true).await;
        store.close().await.expect("closed");
        // And once more, with all of it there: nothing is computed again.
        let store = open().await;
        store.set_hash_rate(1);
        hashed(&store).await;
    });
}

/// A damaged block of values, or head, is unknown, never a mismatch, and computed again.
#[test]
fn damaged_hashes_are_computed_again() {
    let rig = Rig::formatted(4);
    rig.run(async { layers().await.close().await.expect("closed") });
    let image = rig.image();
    let blocks: Vec<u64> =
        (0..image.size() / BLOCK).filter(|block| image.bytes(block * BLOCK, 8) == *b"ASHLHASH").collect();
    assert_eq!(blocks.len(), 4, "a head and a block of values for each of two snapshots");
    for block in blocks {
        for at in [20, 70, 130, 4095] {
            let mut damaged = image.clone();
            damaged.flip(block * BLOCK + at, 1);
            Rig::with_image(block + at, damaged).run(async move {
                let store = open().await;
                let before = content(&store, 11).await;
                let report = store.scrub(RATE).await.expect("scrubbed");
                assert_eq!(report.bad_regions, 0);
                assert_eq!(report.regions + report.unknown, 8);
                check_values(&store, id(11), &before, false).await;
                store.delete_internal(id(11), Role::Hashes).await.expect("gone, all of it");
                store.set_hash_rate(RATE);
                hashed(&store).await;
                check_values(&store, id(11), &before, true).await;
            });
        }
    }
}

#[test]
fn a_full_store_has_no_values_and_is_not_hurt() {
    Rig::formatted(5).run(async {
        let store = open().await;
        store.create(&lvol(1, SIZE)).await.expect("created");
        store.create(&lvol(2, 64 << 20)).await.expect("created");
        let head = store.open_lvol(id(1)).await.expect("opened");
        fill(&head, 1, 0..64).await;
        let other = store.open_lvol(id(2)).await.expect("opened");
        let mut at = 0;
        while write(&other, at, stamped(7, REGION as usize)).await.is_ok() {
            at += REGION;
        }
        store.snapshot(id(1), &snapshot(10)).await.expect("cut: that takes no space");
        store.set_hash_rate(RATE);
        sleep(Duration::from_secs(10)).await;
        let before = content(&store, 10).await;
        assert_eq!(check_values(&store, id(10), &before, false).await, 0);
        fill(&head, 1, 0..0).await;
        check_space(&store);
        drop(other);
        store.delete(id(2)).await.expect("deleted");
        hashed(&store).await;
        check_values(&store, id(10), &before, true).await;
        check_space(&store);
    });
}
