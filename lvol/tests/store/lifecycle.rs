//! Making, using and closing stores: what crashes, idle times and requests in between leave.

use std::rc::Rc;
use std::time::Duration;

use lvol::{FormatOptions, Store, StoreError};
use reactor::simulated::{DiskFault, DiskFaultKind, Survival};
use reactor::{sleep, spawn};

use crate::rig::{DISK, Rig, SIZE, check_space, disk, flush, id, lvol, open, options, read, read_all, stamped, write};

const CLUSTER: u64 = 64 << 10;

/// Long enough for maps that nobody uses to leave the memory.
const IDLE: Duration = Duration::from_secs(60);

fn slow_rig(seed: u64) -> Rig {
    let rig = Rig::formatted(seed);
    rig.world.add_disk_fault(rig.node, DISK, DiskFault::new(DiskFaultKind::Slow(Duration::from_millis(5))));
    rig
}

/// Formatting over a store by force: after a power cut the old store is there, whole, or none, or the new one.
#[test]
fn a_power_cut_while_a_store_is_formatted_over_leaves_no_half_of_either() {
    let rig = Rig::formatted(1);
    let content = stamped(1, 4 * CLUSTER as usize);
    let same = content.clone();
    rig.run(async move {
        let store = open().await;
        store.create(&lvol(1, 1 << 20)).await.expect("created");
        let head = store.open_lvol(id(1)).await.expect("opened");
        write(&head, 0, same).await.expect("written");
        drop(head);
        store.close().await.expect("closed");
    });
    let new = FormatOptions { force: true, name: "another".to_owned(), ..options() };
    rig.world.record_disk(rig.node, DISK);
    rig.run(async move {
        let unforced = FormatOptions { force: false, ..new.clone() };
        assert!(matches!(Store::format(&disk(), &unforced).await, Err(StoreError::Occupied { .. })));
        Store::format(&disk(), &new).await.expect("formatted");
    });
    let mut seen = [0; 3];
    for (at, cut) in rig.world.disk_history(rig.node, DISK).cuts().enumerate() {
        let random = (0..6).map(Survival::Random);
        for survival in random.chain([Survival::AllKept, Survival::AllLost]) {
            let (image, content) = (cut.image(survival), content.clone());
            let which = Rig::with_image(at as u64, image).run(async move {
                let store = match Store::open(disk()).await {
                    Ok(store) => store,
                    Err(StoreError::NotAStore { .. }) => return 1,
                    Err(error) => panic!("cut {at}, {survival:?}: {error}"),
                };
                assert!(!store.info().damaged, "cut {at}, {survival:?}");
                check_space(&store);
                if store.info().name == "another" {
                    assert!(store.lvols().is_empty());
                    return 2;
                }
                let head = store.open_lvol(id(1)).await.expect("the old store is whole");
                assert!(read(&head, 0, 4 * CLUSTER).await.expect("read") == content[..]);
                0
            });
            seen[which] += 1;
        }
    }
    assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
}

/// A store that is closed beside writes: each is there afterwards, or was answered with an error.
#[test]
fn a_close_beside_writes_loses_none_that_was_answered() {
    for delay in 0..12 {
        let rig = slow_rig(10 + delay);
        let answered = rig.run(async move {
            let store = open().await;
            store.create(&lvol(1, 1 << 20)).await.expect("created");
            let head = store.open_lvol(id(1)).await.expect("opened");
            let writer = |number: u64| {
                let head = Rc::clone(&head);
                spawn(async move {
                    sleep(Duration::from_millis(2 * number)).await;
                    write(&head, number * CLUSTER, stamped(number + 1, 8192)).await.is_ok()
                })
            };
            let writers: Vec<_> = (0..12).map(writer).collect();
            sleep(Duration::from_millis(2 * delay)).await;
            store.close().await.expect("closed");
            let mut answered = Vec::new();
            for writer in writers {
                answered.push(writer.await.expect("no panic"));
            }
            answered
        });
        rig.run(async move {
            let store = open().await;
            assert!(store.info().clean_open && !store.info().damaged);
            let head = store.open_lvol(id(1)).await.expect("opened");
            for (number, answered) in (0u64..).zip(answered) {
                let found = read(&head, number * CLUSTER, 8192).await.expect("read");
                assert!(!answered || found == stamped(number + 1, 8192)[..], "write {number}, closed after {delay}");
            }
            check_space(&store);
        });
    }
}

/// What changed since the last checkpoint is in memory only: its map stays, however long nobody uses it.
#[test]
fn what_was_written_after_a_checkpoint_is_there_when_the_lvol_was_idle_for_long() {
    let rig = Rig::formatted(30);
    rig.run(async {
        let store = open().await;
        store.create(&lvol(1, 1 << 20)).await.expect("created");
        let head = store.open_lvol(id(1)).await.expect("opened");
        write(&head, 0, stamped(1, 8192)).await.expect("written");
        store.trim().await.expect("trimmed");
        write(&head, 4096, stamped(2, 8192)).await.expect("written");
        let content = read_all(&head).await;
        drop(head);
        sleep(IDLE).await;
        assert!(read_all(&store.open_lvol(id(1)).await.expect("opened")).await == content);
        check_space(&store);
    });
}

/// The same for what is written while a checkpoint is: it may have come too late for the pages of its map.
#[test]
fn what_was_written_beside_a_checkpoint_is_there_when_the_lvol_was_idle_for_long() {
    for delay in 0..15 {
        let rig = slow_rig(31 + delay);
        rig.run(async move {
            let store = open().await;
            store.create(&lvol(1, 1 << 20)).await.expect("created");
            let head = store.open_lvol(id(1)).await.expect("opened");
            write(&head, 0, stamped(1, 8192)).await.expect("written");
            let other = store.clone();
            let trim = spawn(async move { other.trim().await });
            sleep(Duration::from_millis(3 * delay)).await;
            write(&head, 4096, stamped(2, 8192)).await.expect("written");
            trim.await.expect("no panic").expect("trimmed");
            let content = read_all(&head).await;
            drop(head);
            sleep(IDLE).await;
            assert!(read_all(&store.open_lvol(id(1)).await.expect("opened")).await == content, "after {delay}");
            check_space(&store);
        });
    }
}

/// A checkpoint vouches for the blocks that became valid beside it: an overwrite of them is believed after a power cut, although no
/// marker speaks of them (I4).
#[test]
fn what_was_overwritten_after_a_checkpoint_and_flushed_is_there_after_a_power_cut() {
    for delay in 0..15 {
        let rig = slow_rig(50 + delay);
        let _store = rig.run(async move {
            let store = open().await;
            store.create(&lvol(1, 1 << 20)).await.expect("created");
            let head = store.open_lvol(id(1)).await.expect("opened");
            let other = Rc::clone(&head);
            let writer = spawn(async move { write(&other, 0, stamped(1, 8192)).await });
            sleep(Duration::from_millis(delay)).await;
            store.trim().await.expect("trimmed");
            writer.await.expect("no panic").expect("written");
            write(&head, 0, stamped(2, 8192)).await.expect("overwritten");
            flush(&head).await.expect("flushed");
            store
        });
        let durable = rig.world.durable_image(rig.node, DISK);
        Rig::with_image(50 + delay, durable).run(async move {
            let store = open().await;
            let head = store.open_lvol(id(1)).await.expect("opened");
            assert!(read(&head, 0, 8192).await.expect("read") == stamped(2, 8192)[..], "after {delay}");
        });
    }
}

/// Two lvols whose maps are not in memory.
async fn with_two_cold_maps() -> Store {
    let store = open().await;
    for number in [1u8, 2] {
        store.create(&lvol(number.into(), 1 << 20)).await.expect("created");
        let head = store.open_lvol(id(number.into())).await.expect("opened");
        write(&head, 0, stamped(number.into(), 8192)).await.expect("written");
    }
    store.trim().await.expect("trimmed");
    assert_eq!(store.info().maps_in_memory, 0);
    store
}

/// A map that is still on its way from the disk when checkpoints have moved it, and overwritten its place, is read again.
#[test]
fn a_map_that_checkpoints_move_while_it_is_read_is_read_again() {
    let rig = Rig::formatted(70);
    let store = rig.run(with_two_cold_maps());
    rig.world.add_disk_fault(rig.node, DISK, DiskFault::new(DiskFaultKind::Slow(Duration::from_secs(5))));
    let same = store.clone();
    let reading = rig.world.spawn(rig.node, async move { same.open_lvol(id(1)).await.expect("opened") });
    rig.world.run_for(Duration::from_millis(1));
    rig.world.clear_disk_faults(rig.node, DISK);
    let same = store.clone();
    rig.run(async move {
        for number in 0..3 {
            same.rename(id(2), &format!("name-{number}")).await.expect("renamed");
            same.trim().await.expect("trimmed");
        }
    });
    rig.world.run_for(Duration::from_secs(10));
    let head = reading.take().expect("opened by now");
    rig.run(async move {
        assert!(read(&head, 0, 8192).await.expect("read") == stamped(1, 8192)[..]);
        assert!(!store.info().damaged);
    });
}

/// Damage that comes later than the open is found when the map is needed, and fails the lvols that read through it only (I28).
#[test]
fn a_map_that_is_damaged_when_it_is_needed_fails_its_lvol_only() {
    let rig = Rig::formatted(71);
    let store = rig.run(with_two_cold_maps());
    let image = rig.image();
    let pages = (0..image.size() / 4096).map(|block| block * 4096);
    let is_map = |place: &u64| image.bytes(*place, 8) == *b"ASHLPAGE" && image.bytes(place + 10, 2) == [1, 0];
    let number = |place: &u64| u64::from_le_bytes(image.bytes(place + 24, 8).try_into().expect("eight bytes"));
    let maps: Vec<u64> = pages.filter(is_map).collect();
    let last = maps.iter().map(number).max().expect("a checkpoint");
    // In the order of the maps.
    let first = maps.into_iter().find(|place| number(place) == last).expect("the map of lvol 1");
    rig.world.flip_bits(rig.node, DISK, first + 80, 1);
    rig.run(async move {
        for _ in 0..2 {
            assert!(matches!(store.open_lvol(id(1)).await, Err(StoreError::LvolDamaged { .. })));
        }
        let other = store.open_lvol(id(2)).await.expect("opened");
        assert!(read(&other, 0, 8192).await.expect("read") == stamped(2, 8192)[..]);
        assert!(store.info().damaged);
    });
}

/// A store that has grown has taken room for its metadata, too, whoever fills the file system below it (I32), and says that programs
/// that know nothing of that must not open it.
#[test]
fn a_store_that_grew_has_room_for_its_metadata_and_says_what_it_became() {
    let rig = Rig::formatted(80);
    let store = rig.run(async {
        let disk = disk();
        let store = Store::open(disk.clone()).await.expect("opened");
        store.create(&lvol(1, 1 << 20)).await.expect("created");
        disk.resize(2 * SIZE).expect("larger");
        store.grow_store(None).await.expect("grown");
        store
    });
    let features = rig.image().bytes(96, 8);
    assert_eq!(features, [1, 0, 0, 0, 0, 0, 0, 0], "the incompatible features of its superblock");
    rig.world.limit_disk_space(rig.node, DISK, Some(rig.image().allocated()));
    rig.run(async move {
        // More than the journal holds at once: checkpoints into both areas.
        for round in 0..1000 {
            store.rename(id(1), &format!("round-{round}")).await.expect("renamed");
        }
        store.close().await.expect("with a checkpoint");
        assert_eq!(open().await.lvol_info(id(1)).expect("there").name, "round-999");
    });
}
