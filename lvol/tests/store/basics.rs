//! One operation at a time: what it does, what it refuses, what it answers the second time.

use std::rc::Rc;

use block_device::{BlockDevice, ErrorKind, Range, Request, execute};
use lvol::{CreateLvol, Extent, ExtentKind, FormatOptions, LvolKind, LvolState, SnapshotSpec, Store, StoreError};
use reactor::Disk;
use reactor::simulated::{DiskFault, DiskFaultKind};

use crate::rig::{
    DISK, Rig, SIZE, check_space, disk, flush, format, id, kind, lvol, open, options, read, read_all, snapshot,
    stamped, unmap, write, write_zeroes,
};

const CLUSTER: u64 = 64 << 10;
const EVERYWHERE: Range = Range { offset: 0, length: u64::MAX };

#[test]
fn a_disk_without_a_store_says_so() {
    let rig = Rig::new(1);
    rig.run(async {
        assert!(matches!(Store::open(disk()).await, Err(StoreError::NotAStore { .. })));
        let tiny = Disk::memory(1 << 20).expect("memory");
        assert!(matches!(format(&tiny).await, Err(StoreError::Invalid { .. })));
        assert!(matches!(Store::open(tiny).await, Err(StoreError::NotAStore { .. })));
    });
}

#[test]
fn formatting_again_keeps_the_store_unless_forced() {
    let rig = Rig::formatted(2);
    rig.run(async {
        let store = open().await;
        store.create(&lvol(1, 1 << 20)).await.expect("created");
        store.close().await.expect("closed");

        format(&disk()).await.expect("the same store is there already");
        let other = FormatOptions { uuid: id(77), ..options() };
        assert!(matches!(Store::format(&disk(), &other).await, Err(StoreError::Occupied { .. })));
        let larger = FormatOptions { cluster_size: 1 << 20, ..options() };
        assert!(matches!(Store::format(&disk(), &larger).await, Err(StoreError::Occupied { .. })));
        assert_eq!(open().await.lvols().len(), 1);

        Store::format(&disk(), &FormatOptions { force: true, ..other }).await.expect("forced");
        let store = open().await;
        assert_eq!((store.info().uuid, store.lvols().len()), (id(77), 0));
    });
}

/// A store formatted over another must not find the other's journal, although numbers and places are the same.
#[test]
fn nothing_of_a_former_store_comes_back() {
    let rig = Rig::formatted(3);
    rig.run(async {
        let store = open().await;
        store.create(&lvol(1, 1 << 20)).await.expect("created");
        drop(store);
        Store::format(&disk(), &FormatOptions { force: true, ..options() }).await.expect("forced");
        // Not closed: the journal is searched at the next open.
        drop(open().await);
        assert_eq!(open().await.lvols(), []);
    });
}

#[test]
fn a_second_open_of_the_disk_is_refused() {
    let rig = Rig::formatted(4);
    rig.run(async {
        let _store = open().await;
        let again = Disk::open(DISK.as_ref(), &reactor::DiskOptions::default());
        assert_eq!(again.err().map(|error| error.kind()), Some(std::io::ErrorKind::WouldBlock));
    });
}

#[test]
fn creating_again_is_the_same_lvol_or_a_conflict() {
    let rig = Rig::formatted(5);
    rig.run(async {
        let store = open().await;
        let spec = lvol(1, 1 << 20);
        let first = store.create(&spec).await.expect("created");
        assert_eq!((first.kind, first.used_bytes, first.state.clone()), (LvolKind::Head, 0, LvolState::Ready));
        assert_eq!(store.create(&spec).await.expect("found"), first);
        let smaller = CreateLvol { size: 1 << 19, name: "other".to_owned(), ..spec.clone() };
        match store.create(&smaller).await {
            Err(StoreError::Conflict { differences, .. }) => assert_eq!(differences.len(), 2),
            other => panic!("{other:?}"),
        }
        assert_eq!(store.lvols(), [first]);
        for bad in [
            CreateLvol { size: 0, ..lvol(2, 0) },
            CreateLvol { block_size: 1024, ..lvol(2, 1 << 20) },
            CreateLvol { name: String::new(), ..lvol(2, 1 << 20) },
            CreateLvol { name: "n".repeat(256), ..lvol(2, 1 << 20) },
            CreateLvol { size: !4095, ..lvol(2, 1 << 20) },
            CreateLvol { attributes: [("a".to_owned(), vec![0; 4096])].into(), ..lvol(2, 1 << 20) },
        ] {
            assert!(matches!(store.create(&bad).await, Err(StoreError::Invalid { .. })), "{bad:?}");
        }
    });
}

#[test]
fn a_snapshot_keeps_what_was_there_and_the_head_goes_on() {
    let rig = Rig::formatted(6);
    rig.run(async {
        let store = open().await;
        store.create(&lvol(1, 1 << 20)).await.expect("created");
        let head = store.open_lvol(id(1)).await.expect("opened");
        write(&head, 0, stamped(1, 128 << 10)).await.expect("written");
        let found = store.snapshot(id(1), &snapshot(2)).await.expect("cut");
        assert_eq!((found.kind, found.parent, found.children), (LvolKind::Snapshot, None, vec![id(1)]));
        assert_eq!(store.lvol_info(id(1)).expect("there").parent, Some(id(2)));
        write(&head, 4096, stamped(2, 4096)).await.expect("written");
        unmap(&head, CLUSTER, CLUSTER).await.expect("unmapped");

        let old = store.open_lvol(id(2)).await.expect("opened");
        assert!(read(&old, 0, 128 << 10).await.expect("read") == stamped(1, 128 << 10)[..]);
        assert_eq!(kind(write(&old, 0, stamped(3, 4096)).await), Some(ErrorKind::ReadOnly));
        let now = read(&head, 0, 128 << 10).await.expect("read");
        assert!(now[..4096] == stamped(1, 4096)[..] && now[4096..8192] == stamped(2, 4096)[..]);
        assert!(now[CLUSTER as usize..] == vec![0; CLUSTER as usize]);

        let data = Extent { offset: 4096, length: 4096, kind: ExtentKind::Data };
        let zero = Extent { offset: CLUSTER, length: CLUSTER, kind: ExtentKind::Zero };
        assert_eq!(store.extents(id(1), EVERYWHERE, 10).await.expect("extents"), [data, zero]);
        let all = Extent { offset: 0, length: 2 * CLUSTER, kind: ExtentKind::Data };
        assert_eq!(store.extents(id(2), EVERYWHERE, 10).await.expect("extents"), [all]);

        // The head reads through it: it is only marked.
        store.delete(id(2)).await.expect("marked");
        store.cancel_delete(id(2)).await.expect("taken back");
        assert!(matches!(store.snapshot(id(2), &snapshot(3)).await, Err(StoreError::Invalid { .. })));
        assert!(matches!(store.snapshot(id(9), &snapshot(3)).await, Err(StoreError::NotFound { .. })));
        let renamed = SnapshotSpec { name: "other".to_owned(), ..snapshot(2) };
        assert!(matches!(store.snapshot(id(1), &renamed).await, Err(StoreError::Conflict { .. })));
        store.delete(id(1)).await.expect("deleted");
        assert_eq!(kind(read(&head, 0, 4096).await), Some(ErrorKind::Unavailable));
        store.delete(id(2)).await.expect("deleted");
        check_space(&store);
    });
}

/// As if the head had grown after it was cut.
#[test]
fn a_snapshot_can_be_smaller_than_its_head_where_that_has_nothing() {
    let rig = Rig::formatted(6);
    rig.run(async {
        let store = open().await;
        store.create(&lvol(1, 1 << 20)).await.expect("created");
        let head = store.open_lvol(id(1)).await.expect("opened");
        write(&head, 256 << 10, stamped(1, 8192)).await.expect("written");
        for size in [2 << 20, 256 << 10, (256 << 10) + 4096, 4095] {
            let refused = store.snapshot_of_size(id(1), size, &snapshot(2)).await;
            assert!(matches!(refused, Err(StoreError::Invalid { .. })), "{size}: {refused:?}");
        }
        let size = (256 << 10) + 8192;
        let cut = store.snapshot_of_size(id(1), size, &snapshot(2)).await.expect("all is within");
        assert_eq!((cut.size, store.lvol_info(id(1)).expect("there").size), (size, 1 << 20));
        assert_eq!(store.snapshot_of_size(id(1), size, &snapshot(2)).await.expect("again"), cut);
        write(&head, 512 << 10, stamped(2, 4096)).await.expect("written");
        let content = read(&head, 0, 1 << 20).await.expect("read");
        assert!(content[256 << 10..][..8192] == stamped(1, 8192)[..]);
        let old = store.open_lvol(id(2)).await.expect("opened");
        assert!(read(&old, 256 << 10, 8192).await.expect("read") == stamped(1, 8192)[..]);
        assert!(read(&old, size, 4096).await.is_err(), "it ends there");
    });
}

/// Each write that was answered before the snapshot is in it, also those that are in flight next to it; none
/// that begins after it is (I24).
#[test]
fn a_snapshot_among_writes_in_flight_is_a_clean_cut() {
    let rig = Rig::formatted(7);
    rig.run(async {
        let store = open().await;
        store.create(&lvol(1, 4 << 20)).await.expect("created");
        let head = store.open_lvol(id(1)).await.expect("opened");
        let writers: Vec<_> = (0..8u64)
            .map(|writer| {
                let head = Rc::clone(&head);
                reactor::spawn(async move {
                    for count in 1..60u64 {
                        write(&head, writer * 4096, stamped(count, 4096)).await.expect("written");
                    }
                })
            })
            .collect();
        for number in 2..6 {
            reactor::sleep(std::time::Duration::from_millis(1)).await;
            let head = store.open_lvol(id(1)).await.expect("opened");
            let before = read(&head, 0, 8 * 4096).await.expect("read");
            store.snapshot(id(1), &snapshot(number)).await.expect("cut");
            let cut = read_all(&store.open_lvol(id(number)).await.expect("opened")).await;
            reactor::sleep(std::time::Duration::from_millis(1)).await;
            let later = read_all(&store.open_lvol(id(number)).await.expect("opened")).await;
            assert!(cut == later, "a snapshot changed");
            for block in 0..8 {
                let count =
                    |bytes: &[u8]| u64::from_le_bytes(bytes[block * 4096..][..8].try_into().expect("eight bytes"));
                assert!(count(&cut) >= count(&before), "a write answered before the snapshot is not in it");
            }
        }
        for writer in writers {
            writer.await.expect("no writer panics");
        }
    });
}

#[test]
fn attributes_are_durable_and_bounded() {
    let rig = Rig::formatted(8);
    rig.run(async {
        let store = open().await;
        store.create(&lvol(1, 1 << 20)).await.expect("created");
        let set = |key: &str, value: &[u8]| (key.to_owned(), Some(value.to_vec()));
        store.set_attributes(id(1), &[set("epoch", b"7"), set("volume", b"v")]).await.expect("set");
        store.set_attributes(id(1), &[set("epoch", b"8"), ("volume".to_owned(), None)]).await.expect("set");
        let big = store.set_attributes(id(1), &[set("big", &[0; 5000])]).await;
        assert!(matches!(big, Err(StoreError::Invalid { .. })));
        assert!(matches!(store.set_attributes(id(2), &[]).await, Err(StoreError::NotFound { .. })));
    });
    // A power cut right after it returned.
    let durable = rig.world.durable_image(rig.node, DISK);
    let rig = Rig::with_image(9, durable);
    rig.run(async {
        let attributes = open().await.lvol_info(id(1)).expect("there").attributes;
        assert_eq!(attributes, [("epoch".to_owned(), b"8".to_vec())].into());
    });
}

#[test]
fn small_writes_into_one_block_at_once_all_land() {
    // I19
    for alignment in [512, 4096] {
        let rig = Rig::with_disk(10, SIZE, alignment);
        rig.run(async {
            format(&disk()).await.expect("formatted");
            let store = open().await;
            store.create(&CreateLvol { block_size: 512, ..lvol(1, 1 << 20) }).await.expect("created");
            for round in 1..4u64 {
                let head = store.open_lvol(id(1)).await.expect("opened");
                let writers: Vec<_> = (0..64u64)
                    .map(|sector| {
                        let head = Rc::clone(&head);
                        reactor::spawn(async move {
                            write(&head, sector * 512, stamped(round * 100 + sector, 512)).await.expect("written");
                        })
                    })
                    .collect();
                for writer in writers {
                    writer.await.expect("no writer panics");
                }
                let content = read_all(&store.open_lvol(id(1)).await.expect("opened")).await;
                for sector in 0..64u64 {
                    let bytes = &content[sector as usize * 512..][..512];
                    assert!(bytes == &stamped(round * 100 + sector, 512)[..], "sector {sector} of round {round}");
                }
            }
            check_space(&store);
        });
    }
}

/// The last block of an lvol may be cut short: erasing its end leaves its start (I18).
#[test]
fn erasing_the_end_of_a_block_leaves_its_start() {
    let rig = Rig::formatted(19);
    rig.run(async {
        let store = open().await;
        let blocks = 23;
        store.create(&CreateLvol { block_size: 512, ..lvol(1, blocks * 512) }).await.expect("created");
        let head = store.open_lvol(id(1)).await.expect("opened");
        for (first, last) in [(20, 23), (17, 19), (3, 7), (22, 23)] {
            let data = stamped(7, (blocks * 512) as usize);
            write(&head, 0, data.clone()).await.expect("written");
            let (offset, length) = (first * 512, (last - first) * 512);
            let mut expected = data.to_vec();
            expected[offset as usize..(offset + length) as usize].fill(0);
            unmap(&head, offset, length).await.expect("unmapped");
            assert!(read_all(&head).await == expected, "unmapping {first} to {last}");
            write(&head, 0, data).await.expect("written");
            write_zeroes(&head, offset, length).await.expect("zeroed");
            assert!(read_all(&head).await == expected, "zeroing {first} to {last}");
        }
    });
}

#[test]
fn requests_beyond_the_end_are_refused_and_change_nothing() {
    let rig = Rig::formatted(11);
    rig.run(async {
        let store = open().await;
        store.create(&lvol(1, (1 << 20) + 4096)).await.expect("created");
        let head = store.open_lvol(id(1)).await.expect("opened");
        assert_eq!(head.geometry().size(), (1 << 20) + 4096);
        assert_eq!(kind(write(&head, 1 << 20, stamped(1, 8192)).await), Some(ErrorKind::InvalidRange));
        assert_eq!(kind(write(&head, 512, stamped(1, 4096)).await), Some(ErrorKind::InvalidField));
        assert_eq!(kind(write_zeroes(&head, 0, 2 << 20).await), Some(ErrorKind::InvalidRange));
        assert!(execute(&*head, Request::read(0, 0)).await.expect("nothing to read").length() == 0);
        assert_eq!(store.lvol_info(id(1)).expect("there").used_bytes, 0);
    });
}

/// Could not read is not the same as is not there, or is damaged (I31): it heals by itself.
#[test]
fn a_disk_that_does_not_read_is_an_error_that_passes() {
    let rig = Rig::formatted(12);
    rig.run(async {
        let store = open().await;
        store.create(&lvol(1, 1 << 20)).await.expect("created");
        write(&store.open_lvol(id(1)).await.expect("opened"), 0, stamped(1, 1 << 20)).await.expect("written");
    });
    for range in [0..u64::MAX, 4096..u64::MAX] {
        rig.world.add_disk_fault(rig.node, DISK, DiskFault::new(DiskFaultKind::FailReads).within(range));
        rig.run(async { assert!(matches!(Store::open(disk()).await, Err(StoreError::Io { .. }))) });
        rig.world.clear_disk_faults(rig.node, DISK);
    }
    rig.run(async {
        let store = open().await;
        let head = store.open_lvol(id(1)).await.expect("opened");
        assert!(read(&head, 0, 1 << 20).await.expect("read") == stamped(1, 1 << 20)[..]);
    });
}

/// After a failed sync nobody knows what is stable: no later flush may succeed (I4).
#[test]
fn a_failed_sync_stops_the_store_until_it_is_opened_again() {
    let rig = Rig::formatted(13);
    let (world, node) = (&rig.world, rig.node);
    let store = rig.run(async {
        let store = open().await;
        store.create(&lvol(1, 1 << 20)).await.expect("created");
        store
    });
    world.add_disk_fault(node, DISK, DiskFault::new(DiskFaultKind::FailSyncs));
    let same = store.clone();
    rig.run(async move {
        let head = same.open_lvol(id(1)).await.expect("opened");
        write(&head, 0, stamped(1, 4096)).await.expect("written");
        assert_eq!(kind(flush(&head).await), Some(ErrorKind::WriteFailed));
    });
    world.clear_disk_faults(node, DISK);
    rig.run(async move {
        let head = store.open_lvol(id(1)).await.expect("opened");
        assert_eq!(kind(flush(&head).await), Some(ErrorKind::WriteFailed));
        assert_eq!(kind(write(&head, 8192, stamped(1, 4096)).await), Some(ErrorKind::WriteFailed));
        // What is held can be read and overwritten.
        assert!(read(&head, 0, 4096).await.expect("read") == stamped(1, 4096)[..]);
        assert!(store.info().failure.is_some());
    });
    rig.run(async {
        let store = open().await;
        flush(&store.open_lvol(id(1)).await.expect("opened")).await.expect("flushed");
    });
}

#[test]
fn a_closed_store_refuses_everything() {
    let rig = Rig::formatted(14);
    rig.run(async {
        let store = open().await;
        store.create(&lvol(1, 1 << 20)).await.expect("created");
        let head = store.open_lvol(id(1)).await.expect("opened");
        let same = store.clone();
        store.close().await.expect("closed");
        assert_eq!(kind(read(&head, 0, 4096).await), Some(ErrorKind::Unavailable));
        assert_eq!(kind(write(&head, 0, stamped(1, 4096)).await), Some(ErrorKind::Unavailable));
        assert!(matches!(same.create(&lvol(2, 1 << 20)).await, Err(StoreError::Closed)));
        assert!(matches!(same.open_lvol(id(1)).await, Err(StoreError::Closed)));
    });
}

/// No task is left behind by requests, whatever becomes of them (I40).
#[test]
fn nothing_is_left_behind() {
    let rig = Rig::formatted(15);
    rig.run(async {
        let store = open().await;
        store.create(&lvol(1, 1 << 20)).await.expect("created");
        let head = store.open_lvol(id(1)).await.expect("opened");
        let before = (reactor::task_count(), reactor::buffer::lent());
        for round in 0..1000 {
            write(&head, 0, stamped(round, 8192)).await.expect("written");
            assert!(write(&head, 1 << 20, stamped(1, 4096)).await.is_err());
            assert!(store.delete(id(99)).await.is_ok());
            unmap(&head, 0, 8192).await.expect("unmapped");
        }
        flush(&head).await.expect("flushed");
        reactor::sleep(std::time::Duration::from_secs(2)).await;
        assert_eq!((reactor::task_count(), reactor::buffer::lent()), before);
    });
}
