//! The journal and the superblocks where things go wrong at the same time: failed writes, lost batches, many at once.

use std::rc::Rc;
use std::time::Duration;

use block_device::{ErrorKind, Range, Request, execute};
use lvol::{Lvol, Store, StoreError, StoreLimits};
use reactor::simulated::{DiskFault, DiskFaultKind, DiskImage, Survival};
use reactor::{sleep, spawn};

use crate::rig::{DISK, Rig, check_space, flush, id, kind, lvol, open, read, snapshot, stamped, write};

const BLOCK: u64 = 4096;
const CLUSTER: u64 = 64 << 10;

/// Where journals start. That of the smallest disks is a MiB.
const JOURNAL: std::ops::Range<u64> = (4 << 20) + BLOCK..(5 << 20);

async fn with_head(size: u64) -> (Store, Rc<Lvol>) {
    let store = open().await;
    store.create(&lvol(1, size)).await.expect("created");
    let head = store.open_lvol(id(1)).await.expect("opened");
    (store, head)
}

async fn fill(head: &Rc<Lvol>, cluster: u64, stamp: u64) {
    write(head, cluster * CLUSTER, stamped(stamp, CLUSTER as usize)).await.expect("written");
}

async fn is_full_of(head: &Rc<Lvol>, cluster: u64, stamp: u64) -> bool {
    read(head, cluster * CLUSTER, CLUSTER).await.expect("read") == stamped(stamp, CLUSTER as usize)[..]
}

/// After a batch that failed nobody knows where the journal ends: what came after it could not be found again (I4).
#[test]
fn a_failed_write_of_the_journal_stops_the_store_until_it_is_opened_again() {
    let rig = Rig::formatted(1);
    let (store, head) = rig.run(async {
        let (store, head) = with_head(4 << 20).await;
        fill(&head, 0, 1).await;
        (store, head)
    });
    let fault = DiskFault::new(DiskFaultKind::FailWrites).within(JOURNAL);
    rig.world.add_disk_fault(rig.node, DISK, fault);
    let same = Rc::clone(&head);
    rig.run(async move {
        let outcome = write(&same, CLUSTER, stamped(2, 4096)).await;
        assert_eq!(kind(outcome), Some(ErrorKind::WriteFailed));
    });
    rig.world.clear_disk_faults(rig.node, DISK);
    rig.run(async move {
        assert!(write(&head, 2 * CLUSTER, stamped(3, 4096)).await.is_err(), "a first write");
        assert!(write(&head, 0, stamped(3, 4096)).await.is_err(), "an overwrite");
        assert!(flush(&head).await.is_err());
        assert!(matches!(store.snapshot(id(1), &snapshot(2)).await, Err(StoreError::Stopped { .. })));
        assert!(store.info().failure.is_some());
        assert!(is_full_of(&head, 0, 1).await);
    });
    rig.run(async {
        let store = open().await;
        let head = store.open_lvol(id(1)).await.expect("opened");
        assert!(is_full_of(&head, 0, 1).await, "what was answered is there");
        assert!(read(&head, 2 * CLUSTER, CLUSTER).await.expect("read") == vec![0; CLUSTER as usize]);
        fill(&head, 2, 4).await;
        check_space(&store);
    });
}

/// The batches of a journal: their places on disk and their numbers.
fn batches(image: &DiskImage) -> Vec<(u64, u64)> {
    let blocks = JOURNAL.step_by(BLOCK as usize).filter(|place| image.bytes(*place, 8) == *b"ASHLJRNL");
    let number = |place: u64| u64::from_le_bytes(image.bytes(place + 24, 8).try_into().expect("eight bytes"));
    blocks.map(|place| (place, number(place))).collect()
}

/// Batches behind one that failed are where nobody looks for them.
#[test]
fn what_waits_behind_a_failed_write_of_the_journal_fails_too() {
    let rig = Rig::formatted(7);
    let (_store, head) = rig.run(async {
        let (store, head) = with_head(4 << 20).await;
        fill(&head, 0, 1).await;
        (store, head)
    });
    let last = batches(&rig.image()).into_iter().max_by_key(|(_, number)| *number).expect("there are some").0;
    let next = last + BLOCK..last + 2 * BLOCK;
    rig.world.add_disk_fault(rig.node, DISK, DiskFault::new(DiskFaultKind::FailWrites).within(next));
    let slow = DiskFault::new(DiskFaultKind::Slow(Duration::from_millis(100)));
    rig.world.add_disk_fault(rig.node, DISK, slow.within(JOURNAL));
    rig.run(async move {
        let other = Rc::clone(&head);
        let first = spawn(async move { write(&other, CLUSTER, stamped(2, 4096)).await });
        sleep(Duration::from_millis(50)).await;
        assert!(write(&head, 2 * CLUSTER, stamped(3, 4096)).await.is_err());
        assert!(first.await.expect("no panic").is_err());
    });
}

/// A power cut may lose a batch and keep the one after it, which is never true then: not when the next session has
/// written another batch of the lost one's number and length in its place, either.
#[test]
fn a_batch_that_a_former_session_left_behind_is_never_replayed() {
    let rig = Rig::formatted(2);
    rig.run(async {
        let (_store, head) = with_head(4 << 20).await;
        fill(&head, 0, 1).await;
        flush(&head).await.expect("flushed");
        fill(&head, 1, 2).await;
        fill(&head, 2, 3).await;
    });
    let mut image = rig.image();
    let mut found = batches(&image);
    found.sort_by_key(|(_, number)| *number);
    let lost = found[found.len() - 2].0;
    let session = image.bytes(lost + 64, 8);
    image.flip(lost + 100, 1);
    let rig = Rig::with_image(2, image);
    rig.run(async {
        let store = open().await;
        let head = store.open_lvol(id(1)).await.expect("opened");
        assert!(is_full_of(&head, 0, 1).await, "what was flushed is there");
        assert!(read(&head, CLUSTER, 2 * CLUSTER).await.expect("read") == vec![0; 2 * CLUSTER as usize]);
        fill(&head, 5, 4).await;
    });
    assert_ne!(rig.image().bytes(lost + 64, 8), session, "a batch of the new session is in the lost one's place");
    rig.run(async {
        let store = open().await;
        assert!(!store.info().damaged);
        let head = store.open_lvol(id(1)).await.expect("opened");
        assert!(is_full_of(&head, 5, 4).await, "what was answered is there");
        assert!(read(&head, CLUSTER, 2 * CLUSTER).await.expect("read") == vec![0; 2 * CLUSTER as usize]);
        check_space(&store);
    });
}

/// A batch that does not fit before the end of the ring is at its start, and is found there.
#[test]
fn batches_are_found_wherever_the_ring_goes_round() {
    const LIVES: u32 = 60;
    let rig = Rig::formatted(8);
    rig.run(async {
        let store = open().await;
        store.create(&lvol(1, 1 << 20)).await.expect("created");
        let mut long = lvol(2, 1 << 20);
        // A batch with this record takes two blocks, others one.
        long.attributes.insert("long".to_owned(), vec![7; 4000]);
        store.create(&long).await.expect("created");
    });
    for life in 0..LIVES {
        rig.run(async move {
            let store = open().await;
            for number in [1, 2] {
                let name = store.lvol_info(id(number)).expect("there").name;
                assert!(life == 0 || name == format!("name-{}-6", life - 1), "{name} in life {life}");
            }
            for step in 0..7 {
                for number in [1, 2] {
                    store.rename(id(number), &format!("name-{life}-{step}")).await.expect("renamed");
                }
            }
        });
    }
}

/// Bytes of one write of many, and how many there are: more than a batch holds, and more than stays unflushed.
const PART: u64 = 4 << 20;
const PARTS: u64 = 34;

/// Many writes that are done with their data while the journal is slow.
fn write_many(seed: u64) -> Rig {
    let rig = Rig::formatted_with(seed, 256 << 20);
    let slow = DiskFault::new(DiskFaultKind::Slow(Duration::from_millis(100))).within(JOURNAL);
    rig.world.add_disk_fault(rig.node, DISK, slow);
    rig.run(async {
        let (_store, head) = with_head(PART * PARTS).await;
        let part = |number: u64| {
            let head = Rc::clone(&head);
            spawn(async move { write(&head, number * PART, stamped(number + 1, PART as usize)).await })
        };
        let parts: Vec<_> = (0..PARTS).map(part).collect();
        for part in parts {
            part.await.expect("no panic").expect("written");
        }
        sleep(Duration::from_secs(1)).await;
    });
    rig.world.clear_disk_faults(rig.node, DISK);
    rig
}

async fn has_parts(parts: std::ops::Range<u64>) {
    let store = open().await;
    let head = store.open_lvol(id(1)).await.expect("opened");
    for number in parts {
        let content = read(&head, number * PART, PART).await.expect("read");
        assert!(content == stamped(number + 1, PART as usize)[..], "part {number}");
    }
    check_space(&store);
}

#[test]
fn more_than_a_batch_holds_is_found_again_after_a_kill() {
    write_many(3).run(has_parts(0..PARTS));
}

/// What recovery has to verify is bounded: the store flushes when much became valid, although nobody asks for it.
#[test]
fn much_that_nobody_flushes_is_flushed_all_the_same() {
    let rig = write_many(4);
    let durable = rig.world.durable_image(rig.node, DISK);
    Rig::with_image(4, durable).run(has_parts(0..1));
}

/// Limits reach over two sectors of the superblock, which a power cut may separate: of one copy, never of both (I27).
#[test]
fn a_power_cut_while_limits_change_leaves_the_old_or_the_new_ones() {
    let rig = Rig::formatted(5);
    rig.run(async { open().await.close().await.expect("closed") });
    let old = StoreLimits::default();
    let new = StoreLimits { reserve: 3 * CLUSTER, overcommit_percent: 150 };
    rig.world.record_disk(rig.node, DISK);
    rig.run(async move {
        let store = open().await;
        store.set_limits(new).await.expect("set");
    });
    let history = rig.world.disk_history(rig.node, DISK);
    let mut seen = Vec::new();
    for (at, cut) in history.cuts().enumerate() {
        let random = (0..12).map(Survival::Random);
        for survival in random.chain([Survival::AllKept, Survival::AllLost]) {
            let limits = Rig::with_image(at as u64, cut.image(survival)).run(async { open().await.info().limits });
            assert!([old, new].contains(&limits), "cut {at}, {survival:?}: {limits:?}");
            seen.push(limits);
        }
    }
    assert!(seen.contains(&old) && seen.last() == Some(&new));
}

/// A first write, an overwrite and zeroes, each with FUA and without any flush: a power cut right after the answer loses none.
#[test]
fn what_was_written_with_fua_is_there_after_a_power_cut() {
    let rig = Rig::formatted(6);
    let (_store, head) = rig.run(with_head(1 << 20));
    let range = Range { offset: BLOCK, length: BLOCK };
    let requests = [
        (Request::Write { offset: 0, data: stamped(1, 8192), fua: true }, [1, 1]),
        (Request::Write { offset: 0, data: stamped(2, 8192), fua: true }, [2, 2]),
        (Request::WriteZeroes { range, unmap: true, fua: true }, [2, 0]),
        (Request::Write { offset: BLOCK, data: stamped(3, 4096), fua: true }, [2, 3]),
        (Request::WriteZeroes { range, unmap: false, fua: true }, [2, 0]),
    ];
    for (place, (request, expected)) in requests.into_iter().enumerate() {
        let head = Rc::clone(&head);
        rig.run(async move { execute(&*head, request).await.expect("answered") });
        let durable = rig.world.durable_image(rig.node, DISK);
        Rig::with_image(6, durable).run(async move {
            let store = open().await;
            let head = store.open_lvol(id(1)).await.expect("opened");
            let found = read(&head, 0, 8192).await.expect("read");
            let stamps = expected.map(|stamp| stamped(stamp, 4096).to_vec()).concat();
            assert!(found == stamps, "request {place}");
        });
    }
}
