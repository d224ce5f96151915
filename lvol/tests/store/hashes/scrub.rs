//! Damage under snapshots: found, never served, mended with the right bytes only.

use std::rc::Rc;

use block_device::ErrorKind;
use lvol::{BadRegion, Lvol, REGION, ScrubReport, Store, StoreError};
use reactor::simulated::{DiskFault, DiskFaultKind};

use super::{BLOCK, RATE, content, fill, layers, place, stamp};
use crate::operations::settle;
use crate::rig::{DISK, Rig, check_space, flush, id, kind, open, read, stamped, unmap, write, write_zeroes};

/// The layers on a disk where one byte of one block is another, and how the snapshots read before.
fn damaged(seed: u64, layer: u64, block: u64) -> (Rig, Vec<u8>, Vec<u8>) {
    let rig = Rig::formatted(seed);
    let (first, second) = rig.run(async {
        let store = layers().await;
        let contents = (content(&store, 10).await, content(&store, 11).await);
        store.close().await.expect("closed");
        contents
    });
    let mut image = rig.image();
    let at = place(&image, stamp(layer, block));
    image.flip(at + 77, 4);
    (Rig::with_image(seed, image), first, second)
}

fn bad(report: &ScrubReport) -> Vec<(u128, u64)> {
    report.bad.iter().map(|BadRegion { lvol, offset }| (lvol.as_u128(), offset / REGION)).collect()
}

async fn head(store: &Store) -> Rc<Lvol> {
    store.open_lvol(id(1)).await.expect("opened")
}

/// Which blocks of an lvol cannot be read.
async fn unreadable(store: &Store, number: u128) -> Vec<u64> {
    let lvol = store.open_lvol(id(number)).await.expect("opened");
    let mut found = Vec::new();
    for block in 0..100 {
        match kind(read(&lvol, block * BLOCK, BLOCK).await) {
            None => {}
            Some(ErrorKind::ReadFailed) => found.push(block),
            other => panic!("block {block}: {other:?}"),
        }
    }
    found
}

fn region(content: &[u8], region: u64) -> Vec<u8> {
    let start = (region * REGION) as usize;
    content[start..content.len().min(start + REGION as usize)].to_vec()
}

#[test]
fn a_scrub_finds_exactly_the_damaged_region_and_reads_of_it_fail() {
    let (rig, _, second) = damaged(10, 2, 84);
    rig.run(async move {
        let store = open().await;
        let report = store.scrub(RATE).await.expect("scrubbed");
        assert_eq!((report.snapshots, report.regions, report.unknown), (2, 8, 0));
        assert_eq!((report.bad_regions, bad(&report)), (1, vec![(11, 5)]));
        // Region 5 of snapshot 11 is blocks 80, 84, 88 and 92: nobody knows which of them.
        assert_eq!(store.info().bad_blocks, 4);
        for number in [1, 11] {
            assert_eq!(unreadable(&store, number).await, [80, 84, 88, 92]);
        }
        assert!(unreadable(&store, 10).await.is_empty());
        // It stays so.
        store.close().await.expect("closed");
        let store = open().await;
        assert_eq!(unreadable(&store, 1).await, [80, 84, 88, 92]);
        assert_eq!(bad(&store.scrub(RATE).await.expect("scrubbed")), [(11, 5)]);
        assert_eq!(store.info().bad_blocks, 4);

        let right = region(&second, 5);
        let mut wrong = right.clone();
        wrong[3 * BLOCK as usize] ^= 1;
        let refused = store.repair_region(id(11), 5 * REGION, &wrong).await;
        assert!(matches!(refused, Err(StoreError::Mismatch { .. })));
        let other = store.repair_region(id(11), 4 * REGION, &right).await;
        assert!(matches!(other, Err(StoreError::Mismatch { .. })));
        assert!(store.repair_region(id(11), 5 * REGION + 1, &right).await.is_err());
        assert!(store.repair_region(id(11), 5 * REGION, &right[1..]).await.is_err());
        assert!(store.repair_region(id(11), 9 * REGION, &right).await.is_err(), "no value there");
        assert_eq!(unreadable(&store, 11).await, [80, 84, 88, 92]);
        store.repair_region(id(11), 5 * REGION, &right).await.expect("repaired");
        assert_eq!(store.info().bad_blocks, 0);
        assert_eq!(content(&store, 11).await, second);
        store.close().await.expect("closed");
        let store = open().await;
        assert_eq!(store.scrub(RATE).await.expect("scrubbed").bad_regions, 0);
        assert_eq!((store.info().bad_blocks, content(&store, 11).await == second), (0, true));
        check_space(&store);
    });
}

/// Damage of an ancestor's block: whoever reads it through its own chain gets the error; what the ancestor vouches for is not
/// suspected, and what hides the damage is read.
#[test]
fn the_owner_of_the_damaged_block_is_told_from_its_descendants() {
    // Block 33 is layer 1's, hidden from the head by layer 3, not from snapshot 11.
    let (rig, first, second) = damaged(11, 1, 33);
    rig.run(async move {
        let store = open().await;
        let report = store.scrub(RATE).await.expect("scrubbed");
        assert_eq!(bad(&report), [(10, 2), (11, 2)]);
        let region_2: Vec<u64> = (32..48).collect();
        assert_eq!(unreadable(&store, 10).await, region_2);
        assert_eq!(unreadable(&store, 11).await, region_2, "nothing vouches for its own blocks");
        let visible: Vec<u64> = region_2.iter().copied().filter(|block| *block != 33).collect();
        assert_eq!(unreadable(&store, 1).await, visible);
        // The other one is right by its mended ancestor, which the next scrub finds.
        store.repair_region(id(10), 2 * REGION, &region(&first, 2)).await.expect("repaired");
        assert_eq!(unreadable(&store, 11).await, [32, 36, 40, 44]);
        assert_eq!(store.scrub(RATE).await.expect("scrubbed").bad_regions, 0);
        assert_eq!(store.info().bad_blocks, 0);
        assert_eq!((content(&store, 10).await == first, content(&store, 11).await == second), (true, true));
    });
}

/// Damage of the upper one: the lower one agrees with its value and keeps its blocks out of suspicion.
#[test]
fn blocks_that_an_ancestor_vouches_for_are_still_read() {
    let (rig, _, second) = damaged(12, 2, 36);
    rig.run(async move {
        let store = open().await;
        assert_eq!(bad(&store.scrub(RATE).await.expect("scrubbed")), [(11, 2)]);
        assert_eq!(unreadable(&store, 11).await, [32, 36, 40, 44]);
        assert!(unreadable(&store, 10).await.is_empty());
        // A repair of the upper one does not touch the lower one's blocks.
        store.repair_region(id(11), 2 * REGION, &region(&second, 2)).await.expect("repaired");
        assert_eq!(content(&store, 11).await, second);
    });
}

#[test]
fn blocks_that_the_medium_does_not_give_back_are_marked_one_by_one() {
    let rig = Rig::formatted(13);
    let second = rig.run(async {
        let store = layers().await;
        let second = content(&store, 11).await;
        store.close().await.expect("closed");
        second
    });
    let offset = place(&rig.image(), stamp(2, 84));
    rig.world.add_disk_fault(rig.node, DISK, DiskFault::new(DiskFaultKind::FailReads).within(offset..offset + 512));
    let store = rig.run(async {
        let store = open().await;
        assert_eq!(bad(&store.scrub(RATE).await.expect("scrubbed")), [(11, 5)]);
        assert_eq!(unreadable(&store, 11).await, [84]);
        store
    });
    rig.world.clear_disk_faults(rig.node, DISK);
    rig.run(async move {
        assert_eq!(unreadable(&store, 11).await, [84], "until it is known to be right");
        store.repair_region(id(11), 5 * REGION, &region(&second, 5)).await.expect("repaired");
        assert_eq!(content(&store, 11).await, second);
    });
}

/// Marks go where the blocks go, whether a merge moves entries or copies blocks.
#[test]
fn a_merge_takes_damage_along_and_a_write_ends_it() {
    for (layer, block, others) in [(2, 84, vec![80, 88, 92]), (2, 36, vec![32, 40, 44])] {
        let (rig, _, second) = damaged(14 + block, layer, block);
        rig.run(async move {
            let store = open().await;
            store.scrub(RATE).await.expect("scrubbed");
            let mut suspects: Vec<u64> = others.iter().copied().chain([block]).collect();
            suspects.sort_unstable();
            for gone in [11, 10] {
                store.delete(id(gone)).await.expect("marked");
                settle(&store).await;
                assert_eq!(unreadable(&store, 1).await, suspects);
            }
            assert_eq!(store.lvols().len(), 1);
            store.close().await.expect("closed");
            let store = open().await;
            assert_eq!(unreadable(&store, 1).await, suspects);
            check_ends(&store, block, &others, &second).await;
        });
    }
}

/// Blocks of a head that are marked: whole new content ends that, a part does not.
async fn check_ends(store: &Store, block: u64, others: &[u64], content: &[u8]) {
    let head = head(store).await;
    write(&head, block * BLOCK, stamped(5, BLOCK as usize)).await.expect("written");
    assert_eq!(unreadable(store, 1).await, others);
    assert_eq!(read(&head, block * BLOCK, BLOCK).await.expect("read"), stamped(5, BLOCK as usize)[..]);
    unmap(&head, others[0] * BLOCK, BLOCK).await.expect("unmapped");
    write_zeroes(&head, others[1] * BLOCK, BLOCK).await.expect("zeroed");
    assert_eq!(unreadable(store, 1).await, [others[2]]);
    fill(&head, 9, [others[0], others[2]]).await;
    assert!(unreadable(store, 1).await.is_empty());
    assert_eq!(store.info().bad_blocks, 0);
    flush(&head).await.expect("flushed");
    // The neighbours are as they were.
    let next = (block + 1) * BLOCK;
    assert_eq!(read(&head, next, BLOCK).await.expect("read"), content[next as usize..(next + BLOCK) as usize]);
}

/// On a volume of 512-byte blocks a part of a damaged block is no more to be written than to be read.
#[test]
fn a_part_of_a_damaged_block_is_not_written() {
    let rig = Rig::formatted(15);
    rig.run(async {
        let store = open().await;
        let spec = lvol::CreateLvol { block_size: 512, ..crate::rig::lvol(1, super::SIZE) };
        store.create(&spec).await.expect("created");
        let head = head(&store).await;
        fill(&head, 1, 0..16).await;
        store.snapshot(id(1), &crate::rig::snapshot(10)).await.expect("cut");
        store.set_hash_rate(RATE);
        super::hashed(&store).await;
        store.close().await.expect("closed");
    });
    let mut image = rig.image();
    let at = place(&image, stamp(1, 3));
    image.flip(at, 1);
    Rig::with_image(15, image).run(async {
        let store = open().await;
        store.scrub(RATE).await.expect("scrubbed");
        let head = head(&store).await;
        // Through the chain, and when the block is the head's own.
        assert_eq!(kind(write(&head, 3 * BLOCK, stamped(6, 512)).await), Some(ErrorKind::ReadFailed));
        store.delete(id(10)).await.expect("marked");
        settle(&store).await;
        assert_eq!(kind(write(&head, 3 * BLOCK, stamped(6, 512)).await), Some(ErrorKind::ReadFailed));
        write(&head, 3 * BLOCK, stamped(6, BLOCK as usize)).await.expect("written");
        write(&head, 3 * BLOCK, stamped(7, 512)).await.expect("written");
        assert_eq!(read(&head, 3 * BLOCK, 512).await.expect("read"), stamped(7, 512)[..]);
    });
}

#[test]
fn a_scrub_can_be_stopped_and_there_is_one_at_a_time() {
    Rig::formatted(16).run(async {
        let store = layers().await;
        let all: u64 = [10, 11].map(|snapshot| store.lvol_info(id(snapshot)).expect("there").used_bytes).iter().sum();
        assert_eq!(store.scrub_status().left, 0, "none is under way");
        let slow = reactor::spawn({
            let store = store.clone();
            async move { store.scrub(REGION).await }
        });
        reactor::yield_now().await;
        let mut left = all;
        for _ in 0..3 {
            reactor::sleep(std::time::Duration::from_millis(500)).await;
            let now = store.scrub_status().left;
            assert!((1..=left).contains(&now), "{now} of {left}");
            left = now;
        }
        assert!(left < all, "{left} of {all}");
        let running = store.scrub_status().running.expect("under way");
        assert!((1..8).contains(&running.regions), "{running:?}");
        assert!(matches!(store.scrub(RATE).await, Err(StoreError::Invalid { .. })));
        store.stop_scrub();
        assert!(slow.await.expect("no panic").is_err());
        // What it found by then is not lost.
        assert_eq!((store.scrub_status().running, store.scrub_status().left), (None, 0));
        assert!(store.scrub_status().last.is_some_and(|report| report.regions < 8));
        let report = store.scrub(RATE).await.expect("scrubbed");
        assert_eq!((report.regions, store.scrub_status().last), (8, Some(report)));
    });
}

/// A cluster that is free has no damage any more, whoever gets it.
#[test]
fn damage_ends_with_the_last_who_has_it() {
    let (rig, ..) = damaged(9, 2, 84);
    rig.run(async {
        let store = open().await;
        store.scrub(RATE).await.expect("scrubbed");
        assert!(store.info().bad_blocks > 0);
        for number in [1, 11, 10] {
            store.delete(id(number)).await.expect("deleted");
        }
        settle(&store).await;
        assert_eq!((store.info().bad_blocks, store.lvols().len()), (0, 0));
    });
}

/// What a report was at some time before is enough to go on: nothing is left out, and what was found before stays found.
#[test]
fn a_scrub_goes_on_after_a_restart_from_where_it_was_cut_off() {
    let rig = Rig::formatted(17);
    rig.run(async { layers().await.close().await.expect("closed") });
    // Regions 0 to 3 are those of snapshot 10, 2 to 5 those of snapshot 11: one bad one each.
    let image = rig.image();
    rig.world.flip_bits(rig.node, DISK, place(&image, stamp(1, 3)) + 100, 4);
    rig.world.flip_bits(rig.node, DISK, place(&image, stamp(2, 92)) + 100, 4);
    let cut_off = rig.run(async {
        let store = open().await;
        let slow = reactor::spawn({
            let store = store.clone();
            async move { store.scrub(REGION).await }
        });
        reactor::sleep(std::time::Duration::from_millis(2500)).await;
        let report = store.scrub_status().running.expect("under way");
        store.close().await.expect("closed");
        assert!(slow.await.expect("no panic").is_err());
        report
    });
    assert!((1..8).contains(&cut_off.regions) && cut_off.position.is_some(), "{cut_off:?}");
    assert_eq!((cut_off.snapshots, cut_off.bad_regions), (0, 1));
    rig.run(async move {
        let store = open().await;
        store.recall_scrub(cut_off.clone());
        assert_eq!(store.bad_regions(), [(id(10), 1)].into());
        let report = store.resume_scrub(RATE, cut_off.clone()).await.expect("scrubbed");
        assert_eq!((report.regions, report.bytes, report.snapshots), (8, 8 * REGION, 2));
        assert_eq!((report.bad_regions, report.position), (2, None));
        assert!(report.duration >= cut_off.duration);
        assert_eq!(store.bad_regions(), [(id(10), 1), (id(11), 1)].into());
        // A scrub that is done is not begun again by its own report, and a new one looks at everything.
        let again = store.scrub(RATE).await.expect("scrubbed");
        assert_eq!((again.regions, again.bad_regions), (8, 2));
        assert_eq!(again.bad_lvols, report.bad_lvols);
    });
}

#[test]
fn damage_is_told_of_by_lvol_and_place() {
    let rig = Rig::formatted(18);
    rig.run(async { layers().await.close().await.expect("closed") });
    rig.world.flip_bits(rig.node, DISK, place(&rig.image(), stamp(2, 36)), 1);
    rig.run(async {
        let store = open().await;
        let damaged = async |number| store.damaged_ranges(id(number), 10).await.expect("looked at");
        assert_eq!(damaged(11).await, []);
        store.scrub(RATE).await.expect("scrubbed");
        // Where the region has blocks of layer 2: those of layer 1 are vouched for.
        let (snapshot, head) = (damaged(11).await, damaged(1).await);
        let blocks: Vec<u64> = snapshot.iter().map(|range| range.offset / BLOCK).collect();
        assert_eq!(blocks, [32, 36, 40, 44]);
        assert!(snapshot.iter().all(|range| range.length == BLOCK));
        assert_eq!(head, snapshot, "the head reads through it");
        assert_eq!(damaged(10).await, [], "it is below");
        assert_eq!(store.damaged_ranges(id(11), 2).await.expect("looked at"), snapshot[..2]);
        let lvol = store.open_lvol(id(1)).await.expect("opened");
        for range in &head {
            assert_eq!(kind(read(&lvol, range.offset, BLOCK).await), Some(ErrorKind::ReadFailed));
        }
    });
}
