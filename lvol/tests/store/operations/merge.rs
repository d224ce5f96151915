//! Deletes of snapshots in the middle of chains: what moves, what is copied, who has to wait.

use std::rc::Rc;
use std::time::Duration;

use lvol::{StoreError, WaitsFor};
use reactor::simulated::{DiskFault, DiskFaultKind};
use reactor::{sleep, spawn};

use super::{BLOCK, CLUSTER, PER_CLUSTER, content, expected, fill, settle, with_head};
use crate::rig::{DISK, Rig, check_space, flush, id, lvol, open, read_all, snapshot, unmap, write_zeroes};

/// Blocks of the lvol.
const BLOCKS: u64 = super::SIZE / BLOCK;

/// Where data clusters start on the disks here.
const DATA: u64 = 97 * CLUSTER;

#[test]
fn what_the_child_did_not_overwrite_is_not_copied() {
    let rig = Rig::formatted(1);
    let store = rig.run(async {
        let (store, head) = with_head().await;
        fill(&head, 0, BLOCKS, 7).await;
        // One child has nothing at all, the other one something elsewhere.
        store.snapshot(id(1), &snapshot(10)).await.expect("cut");
        store.snapshot(id(1), &snapshot(11)).await.expect("cut");
        unmap(&head, 0, CLUSTER).await.expect("unmapped");
        flush(&head).await.expect("flushed");
        store
    });
    // Whoever touches data fails.
    for kind in [DiskFaultKind::FailReads, DiskFaultKind::FailWrites] {
        rig.world.add_disk_fault(rig.node, DISK, DiskFault::new(kind).within(DATA..u64::MAX));
    }
    let store = rig.run(async {
        store.delete(id(10)).await.expect("marked");
        store.delete(id(11)).await.expect("marked");
        settle(&store).await;
        assert_eq!(store.lvols().len(), 1);
        store
    });
    rig.world.clear_disk_faults(rig.node, DISK);
    rig.run(async move {
        assert!(content(&store, id(1)).await == expected(&[(PER_CLUSTER, BLOCKS, 7)]));
        check_space(&store);
    });
}

#[test]
fn where_both_have_blocks_of_a_cluster_the_child_wins() {
    let rig = Rig::formatted(2);
    rig.run(async {
        let (store, head) = with_head().await;
        fill(&head, 0, 2, 1).await;
        fill(&head, PER_CLUSTER, 4 * PER_CLUSTER, 2).await;
        store.snapshot(id(1), &snapshot(10)).await.expect("cut");
        fill(&head, 1, 3, 3).await;
        fill(&head, PER_CLUSTER + 1, PER_CLUSTER + 2, 4).await;
        fill(&head, 2 * PER_CLUSTER, 3 * PER_CLUSTER, 5).await;
        write_zeroes(&head, (3 * PER_CLUSTER + 4) * BLOCK, 2 * BLOCK).await.expect("zeroed");
        let runs = [
            (0, 1, 1),
            (1, 3, 3),
            (PER_CLUSTER, 4 * PER_CLUSTER, 2),
            (PER_CLUSTER + 1, PER_CLUSTER + 2, 4),
            (2 * PER_CLUSTER, 3 * PER_CLUSTER, 5),
            (3 * PER_CLUSTER + 4, 3 * PER_CLUSTER + 6, 0),
        ];
        assert!(content(&store, id(1)).await == expected(&runs));
        store.delete(id(10)).await.expect("marked");
        settle(&store).await;
        assert!(content(&store, id(1)).await == expected(&runs));
        flush(&head).await.expect("flushed");
        sleep(Duration::from_secs(2)).await;
        // Each cluster is there once.
        assert_eq!(store.lvol_info(id(1)).expect("there").used_bytes, 4 * CLUSTER);
        check_space(&store);
    });
}

#[test]
fn a_snapshot_with_several_children_or_open_waits() {
    let rig = Rig::formatted(3);
    rig.run(async {
        let (store, head) = with_head().await;
        fill(&head, 0, 8, 1).await;
        store.snapshot(id(1), &snapshot(10)).await.expect("cut");
        fill(&head, 4, 8, 2).await;
        store.snapshot(id(1), &snapshot(11)).await.expect("cut");
        let reader = store.open_lvol(id(10)).await.expect("opened");
        store.delete(id(10)).await.expect("marked");
        store.delete(id(10)).await.expect("the same again");
        sleep(Duration::from_secs(2)).await;
        let deletion = store.lvol_info(id(10)).expect("there").deletion.expect("marked");
        assert_eq!((deletion.merging, deletion.waits_for), (false, Some(WaitsFor::Users)));
        assert!(matches!(store.open_lvol(id(10)).await, Err(StoreError::Deleting { .. })));
        assert!(matches!(store.snapshot(id(1), &snapshot(10)).await, Err(StoreError::Conflict { .. })));
        assert!(read_all(&reader).await == expected(&[(0, 8, 1)]));
        drop(reader);
        store.deleted(id(10)).await.expect("deleted");
        assert!(content(&store, id(11)).await == expected(&[(0, 4, 1), (4, 8, 2)]));
        store.delete(id(10)).await.expect("absent is deleted (I42)");
    });
}

#[test]
fn a_mark_can_be_taken_back_until_blocks_move() {
    let rig = Rig::formatted(4);
    rig.run(async {
        let (store, head) = with_head().await;
        fill(&head, 0, 8, 1).await;
        store.snapshot(id(1), &snapshot(10)).await.expect("cut");
        let reader = store.open_lvol(id(10)).await.expect("opened");
        store.delete(id(10)).await.expect("marked");
        store.cancel_delete(id(10)).await.expect("taken back");
        store.cancel_delete(id(10)).await.expect("nothing to take back");
        drop(reader);
        sleep(Duration::from_secs(2)).await;
        assert!(content(&store, id(10)).await == expected(&[(0, 8, 1)]));
        assert!(matches!(store.deleted(id(10)).await, Err(StoreError::Invalid { .. })));
    });
}

#[test]
fn a_failing_disk_stops_a_merge_that_goes_on_later() {
    let rig = Rig::formatted(5);
    let (store, head) = rig.run(async {
        let (store, head) = with_head().await;
        fill(&head, 0, 8, 1).await;
        store.snapshot(id(1), &snapshot(10)).await.expect("cut");
        fill(&head, 4, 5, 2).await;
        (store, head)
    });
    rig.world.add_disk_fault(rig.node, DISK, DiskFault::new(DiskFaultKind::FailReads).within(DATA..u64::MAX));
    let store = rig.run(async move {
        store.delete(id(10)).await.expect("marked");
        sleep(Duration::from_secs(3)).await;
        let deletion = store.lvol_info(id(10)).expect("there").deletion.expect("marked");
        assert!(deletion.merging && deletion.error.is_some(), "{deletion:?}");
        assert!(matches!(store.cancel_delete(id(10)).await, Err(StoreError::Invalid { .. })));
        store
    });
    rig.world.clear_disk_faults(rig.node, DISK);
    rig.run(async move {
        store.deleted(id(10)).await.expect("deleted");
        assert!(read_all(&head).await == expected(&[(0, 4, 1), (4, 5, 2), (5, 8, 1)]));
    });
}

/// A chain of 250, all of which go while the head is written.
#[test]
fn a_chain_of_250_is_merged_away_under_writes() {
    let rig = Rig::formatted_with(6, 256 << 20);
    rig.run(async {
        let store = open().await;
        let size = 64 * BLOCK;
        store.create(&lvol(1, size)).await.expect("created");
        let head = store.open_lvol(id(1)).await.expect("opened");
        let mut stamps = vec![0; 64];
        for number in 0..250u64 {
            let block = number * 7 % 64;
            fill(&head, block, block + 1, 1 + number).await;
            stamps[block as usize] = 1 + number;
            store.snapshot(id(1), &snapshot(1000 + u128::from(number))).await.expect("cut");
        }
        assert_eq!(store.lvols().len(), 251);
        let writer = spawn({
            let head = Rc::clone(&head);
            async move {
                for number in 0..200u64 {
                    fill(&head, number * 3 % 64, number * 3 % 64 + 1, 1000 + number).await;
                    sleep(Duration::from_micros(300)).await;
                }
            }
        });
        for number in 0..250 {
            store.delete(id(1000 + number)).await.expect("marked");
        }
        writer.await.expect("no panic");
        settle(&store).await;
        (0..200).for_each(|number| stamps[number * 3 % 64] = 1000 + number as u64);
        let bytes: Vec<u8> = stamps.iter().flat_map(|stamp| stamp.to_le_bytes().repeat(512)).collect();
        assert!(read_all(&head).await == bytes);
        assert_eq!(store.lvols().len(), 1);
        check_space(&store);
    });
}
