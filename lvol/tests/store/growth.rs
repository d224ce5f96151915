//! A store whose disk became larger, and power cuts at every step of that.

use std::rc::Rc;

use block_device::ErrorKind;
use lvol::offline::CheckOptions;
use lvol::{Lvol, Store, StoreError};
use reactor::simulated::{Cut, DiskFault, DiskFaultKind, Random, Survival};
use reactor::{sleep, spawn};

use crate::rig::{
    DISK, Rig, SIZE, check_space, disk, flush, format, id, kind, lvol, open, read, read_all, snapshot, stamped, unmap,
    write,
};

const CLUSTER: u64 = 64 << 10;
const MIB: u64 = 1 << 20;

/// Writes whole clusters from `first` on until the store is full; returns the first that did not fit.
async fn fill(lvol: &Rc<Lvol>, first: u64) -> u64 {
    let mut cluster = first;
    loop {
        match write(lvol, cluster * CLUSTER, stamped(cluster + 1, CLUSTER as usize)).await {
            Ok(()) => cluster += 1,
            outcome => {
                assert_eq!(kind(outcome), Some(ErrorKind::NoSpace));
                return cluster;
            }
        }
    }
}

async fn check_filled(lvol: &Rc<Lvol>, end: u64) {
    for cluster in 0..end {
        let content = read(lvol, cluster * CLUSTER, CLUSTER).await.expect("read");
        assert!(content == stamped(cluster + 1, CLUSTER as usize)[..], "cluster {cluster}");
    }
}

/// Three times, each time full to the last cluster: what was a checkpoint area holds data in the end.
#[test]
fn a_full_store_grows_and_has_room_again() {
    let rig = Rig::formatted(1);
    rig.run(async {
        let disk = disk();
        let store = Store::open(disk.clone()).await.expect("opened");
        store.create(&lvol(1, 256 * MIB)).await.expect("created");
        let head = store.open_lvol(id(1)).await.expect("opened");
        let mut end = fill(&head, 0).await;
        for (round, size) in [20 * MIB, 28 * MIB + 12_345, 64 * MIB].into_iter().enumerate() {
            let before = store.info();
            disk.resize(size).expect("larger");
            let grown = store.grow_store(None).await.expect("grown");
            assert_eq!(grown.disk_size, size / 4096 * 4096);
            assert!(grown.size > before.size && grown.free == grown.size - before.size);
            assert_eq!(store.grow_store(None).await.expect("the same again"), grown, "I30");
            assert_eq!(store.grow_store(Some(size)).await.expect("the same again"), grown, "I30");
            // Of 8 MiB more, little is for metadata; the areas of the round before are data now.
            let metadata = size - before.disk_size - (grown.size - before.size);
            assert!(metadata < 2 * MIB && (round > 0 || metadata > MIB), "{metadata}");
            end = fill(&head, end).await;
            assert_eq!(store.info().free, 0);
            check_filled(&head, end).await;
            check_space(&store);
        }
        assert_eq!(end * CLUSTER, store.info().size);
        store.close().await.expect("closed");
        drop(head);
        let store = Store::open(disk).await.expect("opened");
        let head = store.open_lvol(id(1)).await.expect("opened");
        check_filled(&head, end).await;
        check_space(&store);
        store.delete(id(1)).await.expect("deleted");
        store.close().await.expect("closed");
        drop(head);
        let report = lvol::offline::check(&crate::rig::disk(), &CheckOptions::default()).await.expect("checked");
        assert!(report.findings.is_empty(), "{:?}", report.findings);
        assert_eq!(report.store.map(|store| (store.size, store.free)), Some((end * CLUSTER, end * CLUSTER)));
        let info = open().await.info();
        assert_eq!((info.free, info.damaged), (info.size, false));
    });
}

#[test]
fn sizes_that_make_no_sense_change_nothing() {
    let rig = Rig::formatted(2);
    rig.run(async {
        let disk = disk();
        let store = Store::open(disk.clone()).await.expect("opened");
        let before = store.info();
        disk.resize(SIZE + MIB).expect("larger");
        // Smaller, more than there is, and less than the new metadata takes.
        for size in [SIZE - MIB, SIZE + 2 * MIB, SIZE + MIB] {
            let refused = store.grow_store(Some(size)).await;
            assert!(matches!(refused, Err(StoreError::Invalid { .. })), "{refused:?}");
        }
        assert_eq!(store.info(), before);
        disk.resize(SIZE + 32 * MIB).expect("larger");
        let part = store.grow_store(Some(SIZE + 8 * MIB)).await.expect("grown");
        assert_eq!(part.disk_size, SIZE + 8 * MIB);
        assert_eq!(store.grow_store(None).await.expect("grown").disk_size, SIZE + 32 * MIB);
    });
}

/// Whoever made it larger need not be the store.
#[test]
fn a_disk_that_grew_behind_the_store_is_noticed() {
    let rig = Rig::formatted(3);
    let store = rig.run(async { open().await });
    let mut image = rig.image();
    image.resize(2 * SIZE);
    rig.world.set_disk_image(rig.node, DISK, image);
    rig.run(async move {
        assert_eq!(store.grow_store(None).await.expect("grown").disk_size, 2 * SIZE);
        // A format that asks for what is there finds it, however large it has become.
        drop(store);
        format(&disk()).await.expect("the same again");
        assert_eq!(open().await.info().disk_size, 2 * SIZE);
    });
}

/// No room for the metadata, or a broken disk: the store stays as it was, goes on, and grows when that is over.
#[test]
fn growing_that_fails_changes_nothing() {
    let rig = Rig::formatted(4);
    let store = rig.run(async {
        let disk = disk();
        let store = Store::open(disk.clone()).await.expect("opened");
        store.create(&lvol(1, 64 * MIB)).await.expect("created");
        write(&store.open_lvol(id(1)).await.expect("opened"), 0, stamped(1, 4096)).await.expect("written");
        disk.resize(2 * SIZE).expect("larger");
        store
    });
    rig.world.add_disk_fault(rig.node, DISK, DiskFault::new(DiskFaultKind::FailWrites).within(SIZE..u64::MAX));
    let same = store.clone();
    rig.run(async move {
        let before = same.info();
        same.grow_store(None).await.expect_err("it cannot be written");
        assert_eq!((same.info().size, same.info().failure), (before.size, None));
        let head = same.open_lvol(id(1)).await.expect("opened");
        write(&head, 0, stamped(2, 4096)).await.expect("overwritten");
        flush(&head).await.expect("flushed");
    });
    rig.world.clear_disk_faults(rig.node, DISK);
    rig.run(async move {
        assert_eq!(store.grow_store(None).await.expect("grown").disk_size, 2 * SIZE);
        let head = store.open_lvol(id(1)).await.expect("opened");
        assert!(read(&head, 0, 4096).await.expect("read") == stamped(2, 4096)[..]);
        store.close().await.expect("closed");
    });
}

/// Blocks that are written while the store grows, one after the other.
const BLOCKS: u64 = 12;

struct Run {
    rig: Rig,
    /// The steps of the disk at which each block's write was answered, and at which growing was.
    answered: Vec<usize>,
    grown: usize,
    before: u64,
    after: u64,
}

/// A store with a chain that is used while it grows, twice; recorded from the second growth on.
fn record(seed: u64) -> Run {
    let rig = Rig::formatted(seed);
    rig.run(async {
        let disk = disk();
        let store = Store::open(disk.clone()).await.expect("opened");
        store.create(&lvol(1, 2 * MIB)).await.expect("created");
        let head = store.open_lvol(id(1)).await.expect("opened");
        write(&head, 0, stamped(1, MIB as usize)).await.expect("written");
        store.snapshot(id(1), &snapshot(2)).await.expect("cut");
        disk.resize(SIZE + 4 * MIB).expect("larger");
        store.grow_store(None).await.expect("grown");
        write(&head, 0, stamped(2, 2 * CLUSTER as usize)).await.expect("written");
        unmap(&head, MIB / 2, CLUSTER).await.expect("unmapped");
        store.close().await.expect("closed");
    });
    rig.world.record_disk(rig.node, DISK);
    let (observer, node) = (rig.world.observer(), rig.node);
    let (answered, grown, before, after) = rig.run(async move {
        let steps = move || observer.disk_steps(node, DISK);
        let disk = disk();
        let store = Store::open(disk.clone()).await.expect("opened");
        let before = store.info().size;
        let head = store.open_lvol(id(1)).await.expect("opened");
        let writer = spawn({
            let steps = steps.clone();
            async move {
                let mut answered = Vec::new();
                for block in 0..BLOCKS {
                    write(&head, MIB + block * 4096, stamped(100 + block, 4096)).await.expect("written");
                    if block % 4 == 3 {
                        flush(&head).await.expect("flushed");
                    }
                    answered.push(steps());
                }
                answered
            }
        });
        disk.resize(SIZE + 12 * MIB).expect("larger");
        let after = store.grow_store(None).await.expect("grown").size;
        let grown = steps();
        let answered = writer.await.expect("no panic");
        store.close().await.expect("closed");
        (answered, grown, before, after)
    });
    Run { rig, answered, grown, before, after }
}

/// Opens what a cut left: the store is as large as before or after, with all that it held; and grows again.
fn check(run: &Run, at: usize, cut: &Cut, survival: Survival, fills: bool) {
    let rig = Rig::with_image(at as u64, cut.image(survival));
    // A flush is part of every fourth answer, and covers all blocks before.
    let flushed = run.answered.iter().skip(3).step_by(4).filter(|answered| **answered <= at).count() as u64 * 4;
    let (grown, before, after) = (at >= run.grown, run.before, run.after);
    rig.run(async move {
        let disk = disk();
        let store = Store::open(disk.clone()).await.expect("opened");
        let size = store.info().size;
        assert!(!store.info().damaged && (size == after || size == before && !grown), "{size}");
        check_content(&store, flushed).await;
        check_space(&store);
        if disk.size() < SIZE + 12 * MIB {
            disk.resize(SIZE + 12 * MIB).expect("larger");
        }
        assert_eq!(store.grow_store(None).await.expect("grown").size, after);
        check_space(&store);
        if fills {
            // All of the new space can be used, and nothing that is there lies in it.
            store.create(&lvol(9, 64 * MIB)).await.expect("created");
            fill(&store.open_lvol(id(9)).await.expect("opened"), 0).await;
            check_content(&store, flushed).await;
            store.close().await.expect("closed");
            drop(disk);
            let store = open().await;
            assert_eq!((store.info().size, store.info().free), (after, 0));
            check_content(&store, flushed).await;
        }
    });
}

async fn check_content(store: &Store, flushed: u64) {
    let old = read_all(&store.open_lvol(id(2)).await.expect("opened")).await;
    assert!(old[..MIB as usize] == stamped(1, MIB as usize)[..]);
    let mut expected = old;
    expected[..2 * CLUSTER as usize].copy_from_slice(&stamped(2, 2 * CLUSTER as usize));
    expected[(MIB / 2) as usize..(MIB / 2 + CLUSTER) as usize].fill(0);
    let found = read_all(&store.open_lvol(id(1)).await.expect("opened")).await;
    assert!(found[..MIB as usize] == expected[..MIB as usize]);
    for block in 0..BLOCKS {
        let content = &found[(MIB + block * 4096) as usize..][..4096];
        let written = *content == stamped(100 + block, 4096)[..];
        assert!(written || block >= flushed && content.chunks_exact(512).all(is_whole(block)), "block {block}");
    }
}

/// Each 512 bytes are the old ones or the new ones.
fn is_whole(block: u64) -> impl Fn(&[u8]) -> bool {
    move |sector| *sector == stamped(100 + block, 512)[..] || *sector == [0; 512]
}

#[test]
fn a_power_cut_at_every_step_of_growing_leaves_the_old_or_the_new_store() {
    let run = record(5);
    let history = run.rig.world.disk_history(run.rig.node, DISK);
    for (at, cut) in history.cuts().enumerate() {
        for (number, survival) in cut.survivals(1, at as u64).into_iter().enumerate() {
            check(&run, at, &cut, survival, number == at % 64);
        }
    }
}

#[test]
fn a_second_power_cut_while_growing_again_does_no_harm() {
    let run = record(6);
    let history = run.rig.world.disk_history(run.rig.node, DISK);
    let mut random = Random::new(6);
    for _ in 0..4 {
        let at = random.index(history.len());
        let rig = Rig::with_image(at as u64, history.cut(at).image(Survival::Random(random.next_u64())));
        rig.world.record_disk(rig.node, DISK);
        rig.run(async {
            let disk = disk();
            let store = Store::open(disk.clone()).await.expect("opened");
            disk.resize(SIZE + 12 * MIB).expect("larger");
            store.grow_store(None).await.expect("grown");
        });
        let again = rig.world.disk_history(rig.node, DISK);
        for (step, cut) in again.cuts().enumerate() {
            check(&run, at, &cut, Survival::Random(step as u64), false);
        }
    }
}

/// Clusters that were freed just before the store grew come back as they do otherwise.
#[test]
fn space_on_its_way_back_is_not_lost_by_growing() {
    let rig = Rig::formatted(7);
    rig.run(async {
        let disk = disk();
        let store = Store::open(disk.clone()).await.expect("opened");
        store.create(&lvol(1, 64 * MIB)).await.expect("created");
        let head = store.open_lvol(id(1)).await.expect("opened");
        let end = fill(&head, 0).await;
        unmap(&head, 0, 4 * CLUSTER).await.expect("unmapped");
        disk.resize(SIZE + 8 * MIB).expect("larger");
        store.grow_store(None).await.expect("grown");
        fill(&head, end).await;
        sleep(std::time::Duration::from_secs(2)).await;
        assert_eq!(store.info().pending_clusters, 0);
        check_space(&store);
    });
}
