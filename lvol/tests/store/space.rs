//! Full stores, and space that comes back.

use std::rc::Rc;
use std::time::Duration;

use block_device::{ErrorKind, Request, execute};
use lvol::{LvolState, Role, Store, StoreError, StoreLimits};
use reactor::simulated::{DiskFault, DiskFaultKind};

use crate::rig::{
    DISK, Rig, check_space, disk, flush, format, id, kind, lvol, open, read, read_all, snapshot, stamped, unmap, write,
    write_zeroes,
};

const CLUSTER: u64 = 64 << 10;

/// A full store refuses what needs space, that write only; reads, overwrites, deletes and unmaps go on (I32).
#[test]
fn a_full_store_says_so_and_goes_on() {
    let rig = Rig::formatted(1);
    rig.run(async {
        let store = open().await;
        store.create(&lvol(1, 64 << 20)).await.expect("created");
        store.create(&lvol(2, 1 << 20)).await.expect("created");
        let (head, other) =
            (store.open_lvol(id(1)).await.expect("opened"), store.open_lvol(id(2)).await.expect("opened"));
        write(&other, 0, stamped(9, 4096)).await.expect("written");
        let mut written = 0;
        let full = loop {
            match write(&head, written * CLUSTER, stamped(written + 1, CLUSTER as usize)).await {
                Ok(()) => written += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), ErrorKind::NoSpace);
        assert_eq!(store.info().free, 0);
        assert_eq!(kind(write(&other, CLUSTER, stamped(1, 4096)).await), Some(ErrorKind::NoSpace));
        // A block of a cluster that is there needs no space; neither do overwrites and reads.
        write(&other, 4096, stamped(8, 4096)).await.expect("written");
        write(&head, 0, stamped(7, CLUSTER as usize)).await.expect("overwritten");
        assert!(read(&head, CLUSTER, CLUSTER).await.expect("read") == stamped(2, CLUSTER as usize)[..]);
        assert_eq!(read(&head, written * CLUSTER, 4096).await.expect("read"), vec![0; 4096]);
        store.snapshot(id(2), &snapshot(3)).await.expect("cut");
        store.set_attributes(id(2), &[("key".to_owned(), Some(vec![1]))]).await.expect("set");
        check_space(&store);

        // Freed clusters can be written at once, although they are not durable as free yet.
        unmap(&head, 0, 2 * CLUSTER).await.expect("unmapped");
        write(&other, CLUSTER, stamped(1, CLUSTER as usize)).await.expect("written");
        store.delete(id(1)).await.expect("deleted");
        write(&other, 2 * CLUSTER, stamped(1, 8 * CLUSTER as usize)).await.expect("written");
        check_space(&store);
    });
}

/// Many writes at once that share clusters, near the end of the space: each succeeds or says no space, and nothing is lost.
#[test]
fn running_full_from_many_sides_loses_no_cluster() {
    let rig = Rig::formatted(2);
    rig.run(async {
        let store = open().await;
        store.create(&lvol(1, 64 << 20)).await.expect("created");
        let free = store.info().free_clusters;
        let head = store.open_lvol(id(1)).await.expect("opened");
        let writers: Vec<_> = (0..(free + 20) * 4)
            .map(|piece| {
                let head = Rc::clone(&head);
                reactor::spawn(async move {
                    let result = write(&head, piece * CLUSTER / 4, stamped(piece + 1, CLUSTER as usize / 4)).await;
                    result.is_ok()
                })
            })
            .collect();
        let mut written = 0;
        for (piece, writer) in writers.into_iter().enumerate() {
            let found = read(&head, piece as u64 * CLUSTER / 4, 8).await;
            drop(found);
            if writer.await.expect("no writer panics") {
                let bytes = read(&head, piece as u64 * CLUSTER / 4, CLUSTER / 4).await.expect("read");
                assert!(bytes == stamped(piece as u64 + 1, CLUSTER as usize / 4)[..]);
                written += 1;
            }
        }
        assert!(written >= free * 4 - 80, "{written} of {}", free * 4);
        check_space(&store);
    });
}

/// Unmapped space comes back to the store, and to the disk below (4 KiB precision).
#[test]
fn unmapped_space_comes_back_to_the_disk() {
    let rig = Rig::formatted(3);
    let size = 4 << 20;
    let store = rig.run(async move {
        let store = open().await;
        store.create(&lvol(1, size)).await.expect("created");
        write(&store.open_lvol(id(1)).await.expect("opened"), 0, stamped(1, size as usize)).await.expect("written");
        store
    });
    let full = rig.image().allocated();
    let same = store.clone();
    rig.run(async move {
        let head = same.open_lvol(id(1)).await.expect("opened");
        // 15 of 16 blocks of one cluster, and a whole one.
        unmap(&head, 4096, CLUSTER - 4096).await.expect("unmapped");
        unmap(&head, 2 * CLUSTER, CLUSTER).await.expect("unmapped");
        flush(&head).await.expect("flushed");
        reactor::sleep(std::time::Duration::from_secs(1)).await;
        assert_eq!(same.lvol_info(id(1)).expect("there").used_bytes, size - CLUSTER);
    });
    // What was given back, but for the one block and some of the journal.
    assert!(rig.image().allocated() <= full - 2 * CLUSTER + 8 * 4096, "{} of {full}", rig.image().allocated());
    rig.run(async move {
        store.delete(id(1)).await.expect("deleted");
        reactor::sleep(std::time::Duration::from_secs(1)).await;
        assert_eq!((store.info().free, store.info().pending_clusters), (store.info().size, 0));
    });
    assert!(rig.image().allocated() <= full - size + 16 * 4096);
}

/// Zeroes over a parent's data cost metadata, not clusters; a write into them keeps the rest zero.
#[test]
fn zeroes_over_a_snapshot_take_no_space() {
    let rig = Rig::formatted(4);
    rig.run(async {
        let store = open().await;
        store.create(&lvol(1, 2 << 20)).await.expect("created");
        let head = store.open_lvol(id(1)).await.expect("opened");
        write(&head, 0, stamped(1, 2 << 20)).await.expect("written");
        store.snapshot(id(1), &snapshot(2)).await.expect("cut");
        write_zeroes(&head, 0, 2 << 20).await.expect("zeroed");
        assert!(read_all(&head).await == vec![0; 2 << 20]);
        assert_eq!(store.lvol_info(id(1)).expect("there").used_bytes, 0);
        write(&head, 8192, stamped(3, 4096)).await.expect("written");
        let content = read(&head, 0, CLUSTER).await.expect("read");
        assert!(content[8192..12288] == stamped(3, 4096)[..]);
        assert!(content[..8192] == vec![0; 8192] && content[12288..] == vec![0; CLUSTER as usize - 12288]);
        assert!(read_all(&store.open_lvol(id(2)).await.expect("opened")).await == stamped(1, 2 << 20)[..]);
        // Now with a cluster: unmapping part of it hides the parent still.
        unmap(&head, 8192, 4096).await.expect("unmapped");
        assert!(read(&head, 0, CLUSTER).await.expect("read") == vec![0; CLUSTER as usize]);
    });
}

/// A cluster that one lvol freed and another got never shows the one's data to the other.
#[test]
fn a_reused_cluster_shows_nothing_of_its_past() {
    let rig = Rig::formatted(5);
    rig.run(async {
        let store = open().await;
        store.create(&lvol(1, 64 << 20)).await.expect("created");
        store.create(&lvol(2, 64 << 20)).await.expect("created");
        let (first, second) =
            (store.open_lvol(id(1)).await.expect("opened"), store.open_lvol(id(2)).await.expect("opened"));
        let all = store.info().free_clusters;
        for round in 0..3u64 {
            for index in 0..all {
                write(&first, index * CLUSTER, stamped(1 + round, CLUSTER as usize)).await.expect("written");
            }
            unmap(&first, 0, 64 << 20).await.expect("unmapped");
            for index in 0..all {
                write(&second, index * CLUSTER + 4096, stamped(100 + round, 4096)).await.expect("written");
            }
            let mut expected = vec![0; CLUSTER as usize];
            expected[4096..8192].copy_from_slice(&stamped(100 + round, 4096));
            for index in 0..all {
                assert!(read(&second, index * CLUSTER, CLUSTER).await.expect("read") == expected);
            }
            unmap(&second, 0, 64 << 20).await.expect("unmapped");
        }
        check_space(&store);
    });
}

/// Reads that are on their way to a cluster while it is unmapped, freed and written by another lvol.
#[test]
fn a_slow_read_never_sees_the_next_owner_of_its_cluster() {
    let rig = Rig::formatted(8);
    let slow = DiskFault::new(DiskFaultKind::Slow(Duration::from_millis(30)));
    rig.run(async {
        let store = open().await;
        for number in [1, 2] {
            store.create(&lvol(number, 64 << 20)).await.expect("created");
        }
        let first = store.open_lvol(id(1)).await.expect("opened");
        for index in 0..store.info().free_clusters {
            write(&first, index * CLUSTER, stamped(1, CLUSTER as usize)).await.expect("written");
        }
    });
    // A checkpoint may still be on its way and hold the disk.
    rig.world.kill(rig.node);
    let (same, first) = rig.run(async {
        let store = open().await;
        let first = store.open_lvol(id(1)).await.expect("opened");
        (store, first)
    });
    rig.world.add_disk_fault(rig.node, DISK, slow);
    let reads: Vec<_> = (0..8)
        .map(|index| {
            let first = Rc::clone(&first);
            rig.world.spawn(rig.node, async move { read(&first, index * CLUSTER, CLUSTER).await.expect("read") })
        })
        .collect();
    rig.world.run_for(Duration::from_millis(1));
    rig.world.clear_disk_faults(rig.node, DISK);
    rig.run(async move {
        let (first, second) =
            (same.open_lvol(id(1)).await.expect("opened"), same.open_lvol(id(2)).await.expect("opened"));
        unmap(&first, 0, 8 * CLUSTER).await.expect("unmapped");
        for index in 0..8 {
            write(&second, index * CLUSTER, stamped(2, CLUSTER as usize)).await.expect("written");
        }
    });
    rig.world.run_for(Duration::from_millis(100));
    for read in reads {
        assert!(read.take().expect("done") == stamped(1, CLUSTER as usize)[..]);
    }
}

/// The reserve for metadata ends new lvols before it ends deletes.
#[test]
fn metadata_runs_out_with_an_error_and_deletes_still_work() {
    let rig = Rig::formatted(6);
    rig.run(async {
        let store = open().await;
        let mut count = 0;
        let error = loop {
            let mut spec = lvol(1000 + count, 1 << 20);
            spec.attributes.insert("big".to_owned(), vec![7; 4000]);
            match store.create(&spec).await {
                Ok(_) => count += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(error, StoreError::NoSpace { .. }), "{error:?}");
        assert!(count >= 20, "{count}");
        // All of it fits a checkpoint.
        store.close().await.expect("closed");
        let store = open().await;
        assert!(store.lvols().iter().all(|lvol| lvol.state == LvolState::Ready));
        for number in 0..count {
            store.delete(id(1000 + number)).await.expect("deleted");
        }
        store.create(&lvol(1, 1 << 20)).await.expect("created");
    });
}

/// The backing runs full below the store, as a sparse file on a full file system does: no space for the host, not a
/// broken medium.
#[test]
fn a_full_backing_is_no_space_too() {
    let rig = Rig::formatted(7);
    let store = rig.run(async {
        let store = open().await;
        store.create(&lvol(1, 64 << 20)).await.expect("created");
        write(&store.open_lvol(id(1)).await.expect("opened"), 0, stamped(1, 4096)).await.expect("written");
        store
    });
    rig.world.limit_disk_space(rig.node, DISK, Some(rig.image().allocated() + CLUSTER));
    rig.run(async move {
        let head = store.open_lvol(id(1)).await.expect("opened");
        let outcome = write(&head, CLUSTER, stamped(2, 4 << 20)).await;
        assert_eq!(kind(outcome), Some(ErrorKind::NoSpace));
        assert!(read(&head, 0, 4096).await.expect("read") == stamped(1, 4096)[..]);
        execute(&*head, Request::write(0, stamped(5, 4096))).await.expect("overwritten");
        check_space(&store);
    });
}

/// The room for metadata is taken when the store is made: a file system that others have filled stops no store (I32).
#[test]
fn a_full_backing_does_not_stop_the_journal_or_checkpoints() {
    let rig = Rig::formatted(11);
    let store = rig.run(async {
        let store = open().await;
        store.create(&lvol(1, 64 << 20)).await.expect("created");
        write(&store.open_lvol(id(1)).await.expect("opened"), 0, stamped(1, 4096)).await.expect("written");
        store.flush().await.expect("flushed");
        store
    });
    rig.world.limit_disk_space(rig.node, DISK, Some(rig.image().allocated()));
    rig.run(async move {
        // More than the journal holds at once.
        for round in 0..2000 {
            store.rename(id(1), &format!("round-{round}")).await.expect("renamed");
        }
        store.snapshot(id(1), &snapshot(2)).await.expect("cut");
        let head = store.open_lvol(id(1)).await.expect("opened");
        assert_eq!(kind(write(&head, 0, stamped(2, 4096)).await), Some(ErrorKind::NoSpace));
        store.delete(id(2)).await.expect("marked");
        store.deleted(id(2)).await.expect("merged");
        write(&head, 0, stamped(3, 4096)).await.expect("overwritten where it is");
        drop(head);
        store.close().await.expect("with a checkpoint");
        assert_eq!(open().await.lvol_info(id(1)).expect("there").name, "round-1999");
    });
}

#[test]
fn a_backing_without_room_for_the_metadata_is_refused() {
    let rig = Rig::new(12);
    rig.world.limit_disk_space(rig.node, DISK, Some(64 << 10));
    rig.run(async {
        let refused = format(&disk()).await.expect_err("no room");
        assert!(matches!(refused, StoreError::NoSpace { .. }), "{refused}");
        assert!(matches!(Store::open(disk()).await.err(), Some(StoreError::NotAStore { .. })), "nothing was made");
    });
}

/// Writes of hosts leave the reserve; what goes on in the store works on a store that is full to the last cluster (I32).
#[test]
fn a_store_full_to_its_reserve_still_deletes_merges_and_writes_checkpoints() {
    for reserve in [0, 8 * CLUSTER] {
        let rig = Rig::formatted(9);
        rig.run(async move {
            let store = open().await;
            let limits = StoreLimits { reserve: reserve.saturating_sub(1), overcommit_percent: 0 };
            assert_eq!(store.set_limits(limits).await.expect("set").limits.reserve, reserve);
            store.create(&lvol(1, 64 << 20)).await.expect("created");
            let head = store.open_lvol(id(1)).await.expect("opened");
            write(&head, 0, stamped(1, 16 * CLUSTER as usize)).await.expect("written");
            store.snapshot(id(1), &snapshot(2)).await.expect("cut");
            // Parts of clusters that the snapshot has too: merging has to copy.
            for cluster in 0..8 {
                write(&head, cluster * CLUSTER, stamped(2, 8192)).await.expect("written");
            }
            let mut at = 16;
            while let Ok(()) = write(&head, at * CLUSTER, stamped(3, CLUSTER as usize)).await {
                at += 1;
            }
            assert_eq!(kind(write(&head, at * CLUSTER, stamped(3, 4096)).await), Some(ErrorKind::NoSpace));
            assert_eq!(store.info().free, reserve);
            store.create_internal(id(1), Role::Hashes, 1 << 20, 4096).await.expect("created");
            let internal = store.open_internal(id(1), Role::Hashes).await.expect("opened");
            let outcome = write(&internal, 0, stamped(5, 4096)).await;
            assert_eq!(kind(outcome), (reserve == 0).then_some(ErrorKind::NoSpace), "what the reserve is for");
            drop(internal);
            store.delete_internal(id(1), Role::Hashes).await.expect("deleted");
            unmap(&head, 16 * CLUSTER + 4096, 8192).await.expect("unmapped");
            write_zeroes(&head, 9 * CLUSTER, 4096).await.expect("zeroed");
            store.snapshot(id(1), &snapshot(3)).await.expect("cut");
            store.delete(id(2)).await.expect("marked");
            store.deleted(id(2)).await.expect("merged");
            store.delete(id(3)).await.expect("marked");
            store.deleted(id(3)).await.expect("merged");
            assert_eq!(store.info().limits.reserve, reserve);
            let content = read(&head, 0, CLUSTER).await.expect("read");
            assert!(content[..8192] == stamped(2, 8192)[..]);
            assert!(content[8192..] == stamped(1, CLUSTER as usize - 8192)[..]);
            // Eight clusters were there twice.
            flush(&head).await.expect("flushed");
            reactor::sleep(Duration::from_secs(2)).await;
            assert_eq!(store.info().free, reserve + 8 * CLUSTER);
            check_space(&store);
            store.close().await.expect("with a checkpoint");
            drop(head);
            let store = open().await;
            assert_eq!(store.info().limits.reserve, reserve, "kept in the superblock");
            let head = store.open_lvol(id(1)).await.expect("opened");
            for cluster in at..at + 8 {
                write(&head, cluster * CLUSTER, stamped(4, 4096)).await.expect("written");
            }
            assert_eq!(kind(write(&head, (at + 8) * CLUSTER, stamped(4, 4096)).await), Some(ErrorKind::NoSpace));
            store.set_limits(StoreLimits::default()).await.expect("set");
            let outcome = write(&head, (at + 8) * CLUSTER, stamped(4, 4096)).await;
            assert_eq!(kind(outcome), (reserve == 0).then_some(ErrorKind::NoSpace), "the reserve is given up");
            let too_much = StoreLimits { reserve: store.info().size, overcommit_percent: 0 };
            assert!(matches!(store.set_limits(too_much).await, Err(StoreError::Invalid { .. })));
            store.delete(id(1)).await.expect("deleted");
        });
    }
}

/// Heads are made and grown up to the limit and not beyond; what exists is not touched, whatever the limit becomes.
#[test]
fn heads_beyond_the_overcommit_limit_are_refused_with_the_figures() {
    let rig = Rig::formatted(10);
    rig.run(async {
        let limited = |overcommit_percent| StoreLimits { overcommit_percent, reserve: 0 };
        let store = open().await;
        store.set_limits(limited(200)).await.expect("set");
        let (size, half) = (store.info().size, store.info().size / 2);
        store.create(&lvol(1, size)).await.expect("created");
        store.create(&lvol(2, half)).await.expect("created");
        let figures = |error: StoreError| match error {
            StoreError::Overcommitted { provisioned, more, allowed, percent } => (provisioned, more, allowed, percent),
            other => panic!("another error: {other}"),
        };
        let refused = store.create(&lvol(3, half + 4096)).await.expect_err("beyond the limit");
        assert_eq!(figures(refused), (size + half, half + 4096, 2 * size, 200));
        // Snapshots have no size of their own; clones and growth do.
        store.snapshot(id(1), &snapshot(4)).await.expect("cut");
        let refused = store.clone_snapshot(id(4), &lvol(5, size)).await.expect_err("beyond the limit");
        assert_eq!(figures(refused), (size + half, size, 2 * size, 200));
        let refused = store.grow(id(2), size + 4096).await.expect_err("beyond the limit");
        assert_eq!(figures(refused), (size + half, half + 4096, 2 * size, 200));
        store.grow(id(2), size).await.expect("exactly the limit");
        assert_eq!(store.info().provisioned, 2 * size);
        // What takes another's place only counts for what it is larger.
        store.create_in_place_of(id(2), &lvol(6, size)).await.expect("created");
        assert_eq!(store.info().provisioned, 3 * size);
        store.delete(id(6)).await.expect("deleted");

        store.set_limits(limited(100)).await.expect("set");
        store.create(&lvol(1, size)).await.expect("the same again");
        store.grow(id(2), size).await.expect("the same again");
        store.rename(id(2), "other").await.expect("renamed");
        let refused = store.create(&lvol(7, 4096)).await.expect_err("beyond the limit");
        assert_eq!(figures(refused), (2 * size, 4096, size, 100));
        store.close().await.expect("closed");
        let store = open().await;
        assert_eq!(store.info().limits, limited(100), "kept in the superblock");
        store.set_limits(limited(0)).await.expect("set");
        store.create(&lvol(7, 1 << 40)).await.expect("no limit");
    });
}
