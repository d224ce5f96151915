//! Power cuts at every step while values are computed, snapshots merged, and damage marked, moved and mended.

use block_device::ErrorKind;
use lvol::REGION;
use reactor::simulated::Survival;

use super::{BLOCK, RATE, check_values, content, fill, hashed, layers, place, stamp};
use crate::operations::settle;
use crate::rig::{DISK, Rig, check_space, flush, id, kind, open, read, snapshot, stamped, unmap, write};

/// I26, I27: whatever the cut left, a value is right or missing, nothing is lost, and hashing goes on to its end.
#[test]
fn a_power_cut_at_every_step_of_hashing_leaves_right_values_or_none() {
    let rig = Rig::formatted(20);
    rig.run(async { layers().await.close().await.expect("closed") });
    rig.world.record_disk(rig.node, DISK);
    let contents = rig.run(async {
        let store = open().await;
        store.set_hash_rate(RATE);
        let head = store.open_lvol(id(1)).await.expect("opened");
        fill(&head, 4, 0..20).await;
        store.snapshot(id(1), &snapshot(12)).await.expect("cut");
        store.delete(id(11)).await.expect("marked");
        let contents = [content(&store, 10).await, content(&store, 12).await];
        settle(&store).await;
        hashed(&store).await;
        store.delete(id(10)).await.expect("marked");
        settle(&store).await;
        hashed(&store).await;
        store.close().await.expect("closed");
        contents
    });
    let history = rig.world.disk_history(rig.node, DISK);
    for (at, cut) in history.cuts().enumerate() {
        for survival in cut.survivals(1, at as u64) {
            let contents = contents.clone();
            Rig::with_image(at as u64, cut.image(survival)).run(async move {
                let store = open().await;
                assert!(!store.info().damaged);
                check_space(&store);
                check(&store, &contents, false).await;
                settle(&store).await;
                store.set_hash_rate(RATE);
                hashed(&store).await;
                check(&store, &contents, true).await;
                assert_eq!(store.scrub(RATE).await.expect("scrubbed").bad_regions, 0);
                check_space(&store);
                store.close().await.expect("closed");
            });
        }
    }
}

async fn check(store: &lvol::Store, contents: &[Vec<u8>; 2], complete: bool) {
    for (number, content) in [10, 12].into_iter().zip(contents) {
        if store.lvol_info(id(number)).is_some_and(|info| info.deletion.is_none()) {
            check_values(store, id(number), content, complete).await;
        }
    }
}

/// What a scrub found damaged is not served after any cut: not while it moves in a merge, not while it is mended.
#[test]
fn a_power_cut_at_any_step_does_not_bring_damaged_data_back() {
    let rig = Rig::formatted(21);
    rig.run(async { layers().await.close().await.expect("closed") });
    let mut image = rig.image();
    let at = place(&image, stamp(2, 84));
    image.flip(at, 1);
    let rig = Rig::with_image(21, image);
    rig.world.record_disk(rig.node, DISK);
    let (observer, node) = (rig.world.observer(), rig.node);
    let (marked, mended) = rig.run(async move {
        let steps = || observer.disk_steps(node, DISK);
        let store = open().await;
        store.scrub(RATE).await.expect("scrubbed");
        let marked = steps();
        store.delete(id(11)).await.expect("marked");
        settle(&store).await;
        store.delete(id(10)).await.expect("marked");
        settle(&store).await;
        let head = store.open_lvol(id(1)).await.expect("opened");
        write(&head, 84 * BLOCK, stamped(5, BLOCK as usize)).await.expect("written");
        flush(&head).await.expect("flushed");
        let mended = steps();
        store.close().await.expect("closed");
        (marked, mended)
    });
    let history = rig.world.disk_history(rig.node, DISK);
    let (mut failed, mut new) = (0, 0);
    for (at, cut) in history.cuts().enumerate().skip(marked) {
        for survival in cut.survivals(1, at as u64) {
            match after_cut(at as u64, cut.image(survival)) {
                false if at >= mended => panic!("cut {at}: what was flushed is not there"),
                false => failed += 1,
                true => new += 1,
            }
        }
    }
    assert!(failed > 0 && new > 0);
    assert!(!after_cut(1 << 20, history.cut(marked).image(Survival::Random(1))));
}

/// Whether the new content is there; the alternative is an error.
fn after_cut(seed: u64, image: reactor::simulated::DiskImage) -> bool {
    Rig::with_image(seed, image).run(async {
        let store = open().await;
        settle(&store).await;
        check_space(&store);
        let head = store.open_lvol(id(1)).await.expect("opened");
        match read(&head, 84 * BLOCK, BLOCK).await {
            Ok(bytes) => {
                assert!(bytes == stamped(5, BLOCK as usize)[..], "damaged data was served");
                true
            }
            error => {
                assert_eq!(kind(error), Some(ErrorKind::ReadFailed));
                false
            }
        }
    })
}

/// The same where zeroes hide a parent's data in the place of the damage, and where a repair brings the right bytes.
#[test]
fn a_power_cut_while_damage_is_erased_or_repaired_does_not_bring_it_back() {
    for repaired in [false, true] {
        let rig = Rig::formatted(22);
        let content = rig.run(async {
            let store = layers().await;
            let content = content(&store, 11).await;
            store.close().await.expect("closed");
            content
        });
        let mut image = rig.image();
        let at = place(&image, stamp(2, 36));
        image.flip(at, 1);
        let rig = Rig::with_image(22, image);
        rig.world.record_disk(rig.node, DISK);
        let (observer, node) = (rig.world.observer(), rig.node);
        let (marked, mended) = rig.run(async move {
            let steps = || observer.disk_steps(node, DISK);
            let store = open().await;
            store.scrub(RATE).await.expect("scrubbed");
            if repaired {
                let marked = steps();
                let region = 2 * REGION as usize..3 * REGION as usize;
                store.repair_region(id(11), 2 * REGION, &content[region]).await.expect("repaired");
                return (marked, steps());
            }
            store.delete(id(11)).await.expect("marked");
            settle(&store).await;
            let marked = steps();
            let head = store.open_lvol(id(1)).await.expect("opened");
            unmap(&head, 36 * BLOCK, BLOCK).await.expect("unmapped");
            flush(&head).await.expect("flushed");
            (marked, steps())
        });
        let right = if repaired { stamped(stamp(2, 36), BLOCK as usize) } else { stamped(0, BLOCK as usize) };
        let history = rig.world.disk_history(rig.node, DISK);
        for (at, cut) in history.cuts().enumerate().skip(marked) {
            for survival in cut.survivals(2, at as u64) {
                let (image, right) = (cut.image(survival), right.clone());
                Rig::with_image(at as u64, image).run(async move {
                    let store = open().await;
                    let lvol = store.open_lvol(id(if repaired { 11 } else { 1 })).await.expect("opened");
                    match read(&lvol, 36 * BLOCK, BLOCK).await {
                        Ok(bytes) => assert!(bytes == right[..], "cut {at}: damaged data was served"),
                        Err(error) => {
                            assert!(error.kind() == ErrorKind::ReadFailed && at < mended, "cut {at}: {error}")
                        }
                    }
                });
            }
        }
    }
}
