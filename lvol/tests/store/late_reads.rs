//! Reads that are still at the disk while what they look at is cleared and written again: they see what was there when they
//! began or what was acknowledged since, never a write that fails afterwards (I9, I10).

use std::rc::Rc;
use std::time::Duration;

use block_device::ErrorKind;
use lvol::{Lvol, Store};
use reactor::simulated::{DiskFault, DiskFaultKind, Outcome};
use reactor::sleep;

use crate::rig::{DISK, Rig, disk, format, id, kind, lvol, open, read, snapshot, stamped, unmap, write, write_zeroes};

const BLOCK: u64 = 4096;
const CLUSTER: u64 = 64 << 10;

/// How long a late read is at the disk.
const LATE: Duration = Duration::from_secs(5);

/// Where the journal of the disks here is.
const JOURNAL: std::ops::Range<u64> = (4 << 20) + BLOCK..(5 << 20);

/// A machine with an open store and its lvol 1.
fn rig(seed: u64) -> (Rig, Store, Rc<Lvol>) {
    let rig = Rig::new(seed);
    let (store, head) = rig.run(async {
        format(&disk()).await.expect("formatted");
        let store = open().await;
        store.create(&lvol(1, 1 << 20)).await.expect("created");
        let head = store.open_lvol(id(1)).await.expect("opened");
        (store, head)
    });
    (rig, store, head)
}

/// Starts to read the second block; the disk takes its time with this read only.
fn read_late(rig: &Rig, head: &Rc<Lvol>) -> Outcome<Vec<u8>> {
    let head = Rc::clone(head);
    rig.world.add_disk_fault(rig.node, DISK, DiskFault::new(DiskFaultKind::Slow(LATE)));
    let reading = rig.world.spawn(rig.node, async move { read(&head, BLOCK, BLOCK).await.expect("read") });
    rig.world.run_for(Duration::from_millis(1));
    rig.world.clear_disk_faults(rig.node, DISK);
    reading
}

/// Writes the second block again; the journal fails.
fn fail_to_write(rig: &Rig, head: &Rc<Lvol>) {
    let fault = DiskFault::new(DiskFaultKind::FailWrites);
    rig.world.add_disk_fault(rig.node, DISK, fault.within(JOURNAL));
    let head = Rc::clone(head);
    rig.run(async move {
        assert_eq!(kind(write(&head, BLOCK, stamped(9, 4096)).await), Some(ErrorKind::WriteFailed));
        assert!(read(&head, BLOCK, BLOCK).await.expect("read") == vec![0; 4096]);
    });
}

fn expect_old_or_zeroes(rig: &Rig, reading: Outcome<Vec<u8>>) {
    rig.world.run_for(2 * LATE);
    let seen = reading.take().expect("done");
    assert!(seen == stamped(1, 4096)[..] || seen == vec![0; 4096], "the read saw the write that failed");
}

#[test]
fn a_place_that_was_cleared_is_written_when_its_readers_are_gone() {
    let (rig, _store, head) = rig(1);
    let same = Rc::clone(&head);
    rig.run(async move { write(&same, 0, stamped(1, 4 * 4096)).await.expect("written") });
    let reading = read_late(&rig, &head);
    let same = Rc::clone(&head);
    rig.run(async move { unmap(&same, BLOCK, BLOCK).await.expect("unmapped") });
    fail_to_write(&rig, &head);
    expect_old_or_zeroes(&rig, reading);
}

/// The head's zeroes hide nothing but the snapshot's block: when the snapshot's cluster becomes the head's, that block is in no
/// map any more.
#[test]
fn a_place_that_a_merge_leaves_out_is_written_when_its_readers_are_gone() {
    let (rig, store, head) = rig(2);
    let (same, of) = (Rc::clone(&head), store.clone());
    rig.run(async move {
        write(&same, 0, stamped(1, 4 * 4096)).await.expect("written");
        write(&same, CLUSTER, stamped(1, 2 * 4096)).await.expect("written");
        of.snapshot(id(1), &snapshot(2)).await.expect("cut");
        write(&same, CLUSTER + BLOCK, stamped(2, 4 * 4096)).await.expect("written");
    });
    // The merge begins, and fails at the block that it has to copy: the read comes after its beginning.
    rig.world.add_disk_fault(rig.node, DISK, DiskFault::new(DiskFaultKind::FailReads));
    let same = store.clone();
    rig.run(async move {
        same.delete(id(2)).await.expect("marked");
        sleep(Duration::from_millis(500)).await;
        assert!(same.lvol_info(id(2)).and_then(|info| info.deletion).expect("marked").merging);
    });
    rig.world.clear_disk_faults(rig.node, DISK);
    let reading = read_late(&rig, &head);
    let same = Rc::clone(&head);
    rig.run(async move {
        write_zeroes(&same, BLOCK, BLOCK).await.expect("zeroed");
        store.deleted(id(2)).await.expect("merged");
    });
    fail_to_write(&rig, &head);
    expect_old_or_zeroes(&rig, reading);
}
