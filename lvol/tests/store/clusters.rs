//! Clusters that several requests want at once, or that come back: none is lost, and none shows what it held.

use std::rc::Rc;
use std::time::Duration;

use block_device::ErrorKind;
use lvol::{CreateLvol, Lvol, Store};
use reactor::simulated::{DiskFault, DiskFaultKind, Survival};
use reactor::{sleep, spawn, yield_now};

use crate::rig::{
    DISK, Rig, SIZE, check_space, flush, id, kind, lvol, open, read, read_all, snapshot, stamped, unmap, write,
    write_zeroes,
};

const BLOCK: u64 = 4096;
const CLUSTER: u64 = 64 << 10;

fn slow_rig(seed: u64) -> Rig {
    let rig = Rig::formatted(seed);
    rig.world.add_disk_fault(rig.node, DISK, DiskFault::new(DiskFaultKind::Slow(Duration::from_millis(5))));
    rig
}

/// A head over a snapshot that is full of 1.
async fn over_a_snapshot(clusters: u64) -> (Store, Rc<Lvol>) {
    let store = open().await;
    store.create(&lvol(1, clusters * CLUSTER)).await.expect("created");
    let head = store.open_lvol(id(1)).await.expect("opened");
    write(&head, 0, stamped(1, (clusters * CLUSTER) as usize)).await.expect("written");
    store.snapshot(id(1), &snapshot(2)).await.expect("cut");
    (store, head)
}

/// A head of zeroes without a cluster, 8 clusters of them, in a store with 8 free clusters whose discard failed: they are full of 9.
fn with_zeroes_and_stale_clusters(seed: u64) -> (Rig, Store, Rc<Lvol>) {
    let rig = Rig::formatted(seed);
    let (store, head, other) = rig.run(async {
        let (store, head) = over_a_snapshot(8).await;
        write_zeroes(&head, 0, 8 * CLUSTER).await.expect("zeroed");
        store.create(&lvol(3, 64 << 20)).await.expect("created");
        let other = store.open_lvol(id(3)).await.expect("opened");
        for cluster in 0..store.info().free_clusters {
            write(&other, cluster * CLUSTER, stamped(9, CLUSTER as usize)).await.expect("written");
        }
        (store, head, other)
    });
    let data = SIZE - store.info().size..SIZE;
    rig.world.add_disk_fault(rig.node, DISK, DiskFault::new(DiskFaultKind::FailWrites).within(data));
    let same = store.clone();
    rig.run(async move {
        // One by one: a discard that fails may have happened all the same. Whole clusters are discarded later.
        for cluster in 0..8 {
            unmap(&other, 2 * cluster * CLUSTER, CLUSTER).await.expect("unmapped");
        }
        flush(&other).await.expect("flushed");
        sleep(Duration::from_secs(2)).await;
        assert_eq!((same.info().free_clusters, same.info().pending_clusters), (8, 0));
    });
    rig.world.clear_disk_faults(rig.node, DISK);
    (rig, store, head)
}

#[test]
fn zeroes_that_get_a_cluster_stay_zeroes_whatever_it_held() {
    let (rig, store, head) = with_zeroes_and_stale_clusters(1);
    rig.run(async move {
        for cluster in 0..8 {
            write(&head, cluster * CLUSTER + BLOCK, stamped(5, 4096)).await.expect("written");
        }
        let mut expected = vec![0; CLUSTER as usize];
        expected[4096..8192].copy_from_slice(&stamped(5, 4096));
        assert!(read_all(&head).await == expected.repeat(8));
        check_space(&store);
    });
}

/// The same when a power cut keeps the record and loses the zeroes, or the data, or both.
#[test]
fn a_power_cut_while_zeroes_get_a_cluster_shows_nothing_of_its_past() {
    let (rig, store, head) = with_zeroes_and_stale_clusters(7);
    rig.world.record_disk(rig.node, DISK);
    rig.run(async move {
        for cluster in 0..8 {
            write(&head, cluster * CLUSTER + BLOCK, stamped(5, 4096)).await.expect("written");
        }
        drop(store);
    });
    for (at, cut) in rig.world.disk_history(rig.node, DISK).cuts().enumerate() {
        for survival in (0..4).map(Survival::Random) {
            Rig::with_image(at as u64, cut.image(survival)).run(async move {
                let store = open().await;
                let content = read_all(&store.open_lvol(id(1)).await.expect("opened")).await;
                for (block, bytes) in content.chunks(4096).enumerate() {
                    let new = block % 16 == 1 && bytes == &stamped(5, 4096)[..];
                    assert!(new || bytes == [0; 4096], "cut {at}, {survival:?}: block {block} holds {}", bytes[0]);
                }
                check_space(&store);
            });
        }
    }
}

/// Clusters are freed one after the other while another lvol waits for each: whatever a power cut leaves of the records, neither
/// reads what is the other's.
#[test]
fn a_power_cut_while_clusters_go_from_one_to_the_other_mixes_nothing_up() {
    const CLUSTERS: u64 = 10;
    let rig = Rig::formatted(8);
    rig.run(async {
        let store = open().await;
        for number in [1, 2] {
            store.create(&lvol(number, 64 << 20)).await.expect("created");
        }
        let first = store.open_lvol(id(1)).await.expect("opened");
        for cluster in 0..store.info().free_clusters {
            write(&first, cluster * CLUSTER, stamped(1, CLUSTER as usize)).await.expect("written");
        }
        drop(first);
        store.close().await.expect("closed");
    });
    let slow = DiskFault::new(DiskFaultKind::Slow(Duration::from_millis(5)));
    rig.world.add_disk_fault(rig.node, DISK, slow);
    rig.world.record_disk(rig.node, DISK);
    rig.run(async {
        let store = open().await;
        let first = store.open_lvol(id(1)).await.expect("opened");
        let second = store.open_lvol(id(2)).await.expect("opened");
        let giver = spawn(async move {
            for cluster in 0..CLUSTERS {
                unmap(&first, cluster * CLUSTER, CLUSTER).await.expect("unmapped");
            }
        });
        sleep(Duration::from_millis(12)).await;
        for cluster in 0..CLUSTERS {
            write(&second, cluster * CLUSTER, stamped(2, CLUSTER as usize)).await.expect("written");
        }
        giver.await.expect("no panic");
    });
    for (at, cut) in rig.world.disk_history(rig.node, DISK).cuts().enumerate() {
        for survival in [Survival::AllLost, Survival::AllKept, Survival::Random(1), Survival::Random(2)] {
            Rig::with_image(at as u64, cut.image(survival)).run(async move {
                let store = open().await;
                for number in [1, 2] {
                    let lvol = store.open_lvol(id(number)).await.expect("opened");
                    let content = read(&lvol, 0, CLUSTERS * CLUSTER).await.expect("read");
                    let wrong = content.chunks(512).position(|sector| ![0, number as u8].contains(&sector[0]));
                    assert_eq!(wrong, None, "cut {at}, {survival:?}: lvol {number} has what is not its own");
                }
                check_space(&store);
            });
        }
    }
}

/// Writes that wait for an erase find zeroes without a cluster where they had seen nothing: one after the other turns
/// them into a cluster, or one would zero what the other has written.
#[test]
fn writes_that_wait_for_an_erase_of_their_cluster_all_land() {
    const BLOCKS: [u64; 3] = [15, 5, 0];
    for seed in 20..30 {
        slow_rig(seed).run(async move {
            let (store, head) = over_a_snapshot(1).await;
            let eraser = Rc::clone(&head);
            let mut all = vec![spawn(async move { write_zeroes(&eraser, 0, CLUSTER).await })];
            yield_now().await;
            for block in BLOCKS {
                let head = Rc::clone(&head);
                all.push(spawn(async move { write(&head, block * BLOCK, stamped(10 + block, 4096)).await }));
            }
            for one in all {
                one.await.expect("no panic").expect("done");
            }
            let mut expected = vec![0; CLUSTER as usize];
            for block in BLOCKS {
                let at = (block * BLOCK) as usize;
                expected[at..at + 4096].copy_from_slice(&stamped(10 + block, 4096));
            }
            assert!(read_all(&head).await == expected, "seed {seed}");
            check_space(&store);
        });
    }
}

#[test]
fn a_write_around_a_cluster_that_another_one_fills_takes_no_cluster_too_many() {
    slow_rig(3).run(async {
        let store = open().await;
        store.create(&lvol(1, 1 << 20)).await.expect("created");
        let head = store.open_lvol(id(1)).await.expect("opened");
        let other = Rc::clone(&head);
        let one = spawn(async move { write(&other, 5 * CLUSTER, stamped(1, 4096)).await });
        yield_now().await;
        write(&head, 4 * CLUSTER, stamped(2, 4 * CLUSTER as usize)).await.expect("written");
        one.await.expect("no panic").expect("written");
        assert_eq!(store.lvol_info(id(1)).expect("there").used_bytes, 4 * CLUSTER);
        check_space(&store);
    });
}

/// The last cluster, and the last block in it, may be cut short: they go with the rest.
#[test]
fn erasing_all_of_an_lvol_of_an_odd_size_gives_all_of_it_back() {
    let size = 3 * CLUSTER + 1536;
    Rig::formatted(4).run(async move {
        let store = open().await;
        store.create(&CreateLvol { block_size: 512, ..lvol(1, size) }).await.expect("created");
        let head = store.open_lvol(id(1)).await.expect("opened");
        for round in 0..2 {
            write(&head, 0, stamped(1, size as usize)).await.expect("written");
            unmap(&head, 0, size).await.expect("unmapped");
            assert_eq!(store.lvol_info(id(1)).expect("there").used_bytes, 0, "round {round}");
            assert!(read_all(&head).await == vec![0; size as usize]);
            // The next round has a parent whose data must not show.
            write(&head, 0, stamped(2, size as usize)).await.expect("written");
            store.snapshot(id(1), &snapshot(10 + round)).await.expect("cut");
        }
    });
}

/// Zeroes that hide a parent need room in the maps: where there is none they are refused, and nothing is changed (I32).
#[test]
fn zeroes_that_have_no_room_in_the_maps_are_refused() {
    Rig::formatted(5).run(async {
        let (store, head) = over_a_snapshot(2).await;
        let big = |number| {
            let mut spec = lvol(number, 1 << 20);
            spec.attributes.insert("big".to_owned(), vec![7; 4000]);
            spec
        };
        let mut count = 0;
        while store.create(&big(1000 + count)).await.is_ok() {
            count += 1;
        }
        assert_eq!(kind(write_zeroes(&head, 0, 2 * CLUSTER).await), Some(ErrorKind::NoSpace));
        assert!(read_all(&head).await == stamped(1, 2 * CLUSTER as usize)[..]);
        for number in 0..3 {
            store.delete(id(1000 + number)).await.expect("deleted");
        }
        write_zeroes(&head, 0, 2 * CLUSTER).await.expect("zeroed");
        assert!(read(&head, 0, CLUSTER).await.expect("read") == vec![0; CLUSTER as usize]);
        drop(head);
        store.close().await.expect("it all fits a checkpoint");
    });
}

/// Of an lvol that nobody has open the map is not in memory, and its clusters come back all the same.
#[test]
fn an_lvol_that_is_not_in_memory_gives_its_clusters_back() {
    Rig::formatted(6).run(async {
        let (store, head) = over_a_snapshot(4).await;
        write(&head, 0, stamped(2, 2 * CLUSTER as usize)).await.expect("written");
        drop(head);
        store.trim().await.expect("trimmed");
        assert_eq!(store.info().maps_in_memory, 0);
        store.delete(id(1)).await.expect("deleted");
        check_space(&store);
        store.trim().await.expect("trimmed");
        store.delete(id(2)).await.expect("deleted");
        check_space(&store);
        sleep(Duration::from_secs(2)).await;
        assert_eq!(store.info().free, store.info().size);
    });
}
