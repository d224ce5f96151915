//! Operations next to writes, and operations that nobody waits for any more.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use block_device::{Error, ErrorKind};
use lvol::{CreateLvol, Lvol, StoreError};
use reactor::simulated::{DiskFault, DiskFaultKind};
use reactor::{sleep, spawn, timeout, yield_now};
use uuid::Uuid;

use crate::rig::{DISK, Rig, check_space, id, kind, lvol, open, read, read_all, snapshot, stamped, unmap, write};

const CLUSTER: u64 = 64 << 10;

/// How long each operation of the disk takes at least.
const SLOW: Duration = Duration::from_millis(5);

/// How much longer each attempt of an operation is waited for than the one before.
const STEP: Duration = Duration::from_millis(2);

/// Attempts: the last ones see the whole operation.
const ATTEMPTS: u32 = 40;

fn slow_rig(seed: u64) -> Rig {
    let rig = Rig::formatted(seed);
    rig.world.add_disk_fault(rig.node, DISK, DiskFault::new(DiskFaultKind::Slow(SLOW)));
    rig
}

#[test]
fn clones_reverts_and_new_names() {
    let rig = Rig::formatted(16);
    rig.run(async {
        let store = open().await;
        store.create(&lvol(1, 1 << 20)).await.expect("created");
        let head = store.open_lvol(id(1)).await.expect("opened");
        for number in [2u64, 3] {
            write(&head, 0, stamped(number, 8192)).await.expect("written");
            store.snapshot(id(1), &snapshot(u128::from(number))).await.expect("cut");
        }
        write(&head, 4096, stamped(4, 4096)).await.expect("written");

        store.clone_snapshot(id(2), &lvol(5, 2 << 20)).await.expect("cloned");
        let copy = store.open_lvol(id(5)).await.expect("opened");
        write(&copy, 4096, stamped(5, 4096)).await.expect("written");
        let content = read_all(&copy).await;
        assert!(content[..4096] == stamped(2, 4096)[..] && content[4096..8192] == stamped(5, 4096)[..]);
        assert!(content[8192..] == vec![0; (2 << 20) - 8192]);
        assert_eq!(store.lvol_info(id(2)).expect("there").children, [id(3), id(5)]);
        for refused in [
            store.clone_snapshot(id(1), &lvol(6, 1 << 20)).await,
            store.clone_snapshot(id(2), &lvol(6, 1 << 19)).await,
            store.clone_snapshot(id(2), &CreateLvol { block_size: 512, ..lvol(6, 1 << 20) }).await,
            store.revert(id(5), id(3)).await,
        ] {
            assert!(matches!(refused, Err(StoreError::Invalid { .. })), "{refused:?}");
        }
        let conflict = store.clone_snapshot(id(3), &lvol(5, 2 << 20)).await;
        assert!(matches!(conflict, Err(StoreError::Conflict { .. })), "{conflict:?}");

        store.revert(id(1), id(2)).await.expect("reverted");
        assert!(read(&head, 0, 8192).await.expect("read") == stamped(2, 8192)[..]);
        store.delete(id(3)).await.expect("nobody reads through it any more");
        let renamed = store.rename(id(1), "new name").await.expect("renamed");
        assert_eq!((renamed.name.as_str(), renamed.parent), ("new name", Some(id(2))));
        check_space(&store);
    });
}

#[test]
fn a_snapshot_that_nobody_waits_for_does_not_hold_writes() {
    let rig = slow_rig(17);
    rig.run(async {
        let store = open().await;
        let mut dropped = 0;
        for attempt in 1..ATTEMPTS {
            store.create(&lvol(1, 1 << 20)).await.expect("created");
            let head = store.open_lvol(id(1)).await.expect("opened");
            write(&head, 0, stamped(1, 64 << 10)).await.expect("written");
            let (other, spec) = (head.clone(), snapshot(2));
            let writer = spawn(async move {
                for cluster in 1..8 {
                    write(&other, cluster * CLUSTER, stamped(9, 64 << 10)).await.expect("written");
                }
            });
            dropped += u32::from(timeout(STEP * attempt, store.snapshot(id(1), &spec)).await.is_err());
            write(&head, 0, stamped(2, 64 << 10)).await.expect("written");
            writer.await.expect("all written");

            store.snapshot(id(1), &spec).await.expect("it was cut meanwhile");
            let content = read(&store.open_lvol(spec.uuid).await.expect("opened"), 0, 64 << 10).await.expect("read");
            assert!([1, 2].map(|stamp| stamped(stamp, 64 << 10)).iter().any(|whole| content == whole[..]));
            assert!(read(&head, 0, 64 << 10).await.expect("read") == stamped(2, 64 << 10)[..]);
            store.delete(id(1)).await.expect("deleted");
            store.delete(spec.uuid).await.expect("deleted");
        }
        assert!((5..ATTEMPTS - 5).contains(&dropped), "{dropped} were dropped");
        check_space(&store);
    });
}

#[test]
fn a_deletion_that_nobody_waits_for_ends_and_answers_writes() {
    let rig = slow_rig(18);
    rig.run(async {
        let store = open().await;
        let mut dropped = 0;
        for attempt in 1..ATTEMPTS {
            store.create(&lvol(1, 1 << 20)).await.expect("created");
            let head = store.open_lvol(id(1)).await.expect("opened");
            let other = head.clone();
            let writer = spawn(async move { write(&other, 0, stamped(9, 64 << 10)).await });
            yield_now().await;
            dropped += u32::from(timeout(STEP * attempt, store.delete(id(1))).await.is_err());
            assert_eq!(kind(write(&head, 0, stamped(2, 4096)).await), Some(ErrorKind::Unavailable));
            writer.await.expect("not ended").expect("it came before");
            store.delete(id(1)).await.expect("gone");
            assert_eq!(store.lvol_info(id(1)), None);
        }
        assert!((5..ATTEMPTS - 5).contains(&dropped), "{dropped} were dropped");
        check_space(&store);
    });
}

/// Erasing the end of an lvol erases the rest of its last cluster, where a larger lvol has data.
#[test]
fn growing_next_to_an_erase_of_the_end_keeps_what_is_written_there() {
    let rig = slow_rig(19);
    rig.run(async {
        let store = open().await;
        // Far enough for an erase in two steps, of which the second has the end.
        let (old, new) = (3000 * CLUSTER + 4096, 4000 * CLUSTER);
        store.create(&CreateLvol { block_size: 512, ..lvol(1, old) }).await.expect("created");
        let head = store.open_lvol(id(1)).await.expect("opened");
        write(&head, 0, stamped(1, 4096)).await.expect("written");
        write(&head, old - 4096, stamped(1, 4096)).await.expect("written");
        // Parts of blocks, which lock the first cluster one after the other.
        let mut others: Vec<_> = (1..16).map(|block| spawn(write_part(head.clone(), block * 4096))).collect();
        let eraser = head.clone();
        others.push(spawn(async move { unmap(&eraser, 0, old).await }));
        yield_now().await;

        assert_eq!(store.grow(id(1), new).await.expect("grown").size, new);
        write(&head, old, stamped(2, 4096)).await.expect("written");
        for other in others {
            other.await.expect("not ended").expect("done");
        }
        let end = read(&head, old - 4096, 12 << 10).await.expect("read");
        assert!(end == [0, 2, 0].map(|stamp| stamped(stamp, 4096).to_vec()).concat());
    });
}

async fn write_part(head: Rc<Lvol>, offset: u64) -> Result<(), Error> {
    write(&head, offset, stamped(3, 512)).await
}

/// The same name for a snapshot of another head is no repetition (I30).
#[test]
fn a_snapshot_of_another_head_is_not_the_same_again() {
    Rig::formatted(20).run(async {
        let store = open().await;
        for number in [1, 2] {
            store.create(&lvol(number, 1 << 20)).await.expect("created");
        }
        store.snapshot(id(1), &snapshot(3)).await.expect("cut");
        store.snapshot(id(1), &snapshot(3)).await.expect("the same again");
        let conflict = store.snapshot(id(2), &snapshot(3)).await;
        assert!(matches!(conflict, Err(StoreError::Conflict { .. })), "{conflict:?}");
        assert_eq!(store.lvol_info(id(2)).expect("there").parent, None);
    });
}

/// A deletion that waits for one of two to go goes on when that one goes back behind it.
#[test]
fn a_revert_lets_a_deletion_go_on() {
    Rig::formatted(21).run(async {
        let store = open().await;
        store.create(&lvol(1, 1 << 20)).await.expect("created");
        let head = store.open_lvol(id(1)).await.expect("opened");
        for number in [2u64, 3] {
            write(&head, 0, stamped(number, 8192)).await.expect("written");
            store.snapshot(id(1), &snapshot(u128::from(number))).await.expect("cut");
        }
        store.clone_snapshot(id(3), &lvol(4, 1 << 20)).await.expect("cloned");
        store.delete(id(3)).await.expect("marked");
        sleep(Duration::from_secs(5)).await;
        assert!(store.lvol_info(id(3)).is_some(), "two read through it");
        store.revert(id(1), id(2)).await.expect("reverted");
        timeout(Duration::from_secs(5), store.deleted(id(3))).await.expect("at once").expect("merged");
        let copy = store.open_lvol(id(4)).await.expect("opened");
        assert!(read(&copy, 0, 8192).await.expect("read") == stamped(3, 8192)[..]);
        assert!(read(&head, 0, 8192).await.expect("read") == stamped(2, 8192)[..]);
        check_space(&store);
    });
}

/// A chain that were longer than the longest could not be opened again.
#[test]
fn a_chain_at_its_longest_gets_no_snapshot_and_no_clone() {
    // Large enough for the metadata of so many.
    Rig::formatted_with(22, 1 << 30).run(async {
        let store = open().await;
        store.create(&lvol(1, 1 << 20)).await.expect("created");
        let head = store.open_lvol(id(1)).await.expect("opened");
        write(&head, 0, stamped(7, 4096)).await.expect("written");
        let mut last = 1;
        let refused = loop {
            match store.snapshot(id(1), &snapshot(last + 1)).await {
                Ok(_) => last += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(refused, StoreError::Invalid { .. }), "{refused}");
        assert_eq!(store.lvols().len(), 1024);
        store.clone_snapshot(id(last), &lvol(5000, 1 << 20)).await.expect("as long as the head's");
        drop(head);
        store.close().await.expect("closed");
        let store = open().await;
        let head = store.open_lvol(id(1)).await.expect("opened");
        assert!(read(&head, 0, 4096).await.expect("read") == stamped(7, 4096)[..]);
    });
}

/// I30: what a failed sync left in memory may not be durable, so that the next try is not told that it is there already.
#[test]
fn a_store_that_has_stopped_says_of_nothing_that_it_is_there_already() {
    let rig = Rig::formatted(19);
    let store = rig.run(async {
        let store = open().await;
        store.create(&lvol(1, 1 << 20)).await.expect("created");
        store
    });
    rig.world.add_disk_fault(rig.node, DISK, DiskFault::new(DiskFaultKind::FailSyncs));
    let failing = store.clone();
    rig.run(async move { failing.create(&lvol(2, 1 << 20)).await.expect_err("its sync failed") });
    rig.world.clear_disk_faults(rig.node, DISK);
    rig.run(async move {
        for refused in [
            store.create(&lvol(2, 1 << 20)).await.map(drop),
            store.snapshot(id(1), &snapshot(3)).await.map(drop),
            store.delete(id(9)).await,
            store.rename(id(1), "other").await.map(drop),
            store.set_attributes(id(1), &[]).await,
        ] {
            assert!(matches!(refused, Err(StoreError::Stopped { .. })), "{refused:?}");
        }
    });
}

/// By what an attribute says.
fn team(attributes: &BTreeMap<String, Vec<u8>>) -> Option<Uuid> {
    Uuid::from_slice(attributes.get("team")?).ok()
}

/// A group has what attributes say now, however they came to say it.
#[test]
fn groups_follow_the_attributes() {
    let rig = Rig::formatted(40);
    rig.run(async {
        let store = open().await;
        let of = |number: u128, group: u128| CreateLvol {
            attributes: BTreeMap::from([("team".to_owned(), id(group).as_bytes().to_vec())]),
            ..lvol(number, 1 << 20)
        };
        store.create(&of(1, 100)).await.expect("created");
        store.create(&of(2, 200)).await.expect("created");
        store.create(&lvol(3, 1 << 20)).await.expect("created");
        assert!(store.group(id(100)).is_empty(), "nobody has said what a group is");
        store.group_by(team);
        let group = |number: u128| {
            let members: Vec<_> = store.group(id(number)).into_iter().map(|lvol| lvol.uuid).collect();
            let all = store.lvols().into_iter().filter(|lvol| team(&lvol.attributes) == Some(id(number)));
            assert_eq!(members, all.map(|lvol| lvol.uuid).collect::<Vec<_>>(), "as a look at all lvols finds them");
            members
        };
        assert_eq!((group(100), group(200)), (vec![id(1)], vec![id(2)]));

        // One comes, by its making and by its attribute; a snapshot has attributes of its own.
        store.create(&of(4, 100)).await.expect("created");
        let join = |group: u128| ("team".to_owned(), Some(id(group).as_bytes().to_vec()));
        store.set_attributes(id(3), &[join(100)]).await.expect("set");
        store.snapshot(id(1), &snapshot(5)).await.expect("cut");
        assert_eq!(group(100), [id(1), id(3), id(4)]);
        store.set_attributes(id(5), &[join(100)]).await.expect("set");
        assert_eq!(group(100), [id(1), id(3), id(4), id(5)]);
        // One moves, one leaves, one goes.
        store.set_attributes(id(4), &[join(200)]).await.expect("set");
        store.set_attributes(id(3), &[("team".to_owned(), None)]).await.expect("set");
        store.delete(id(2)).await.expect("deleted");
        assert_eq!((group(100), group(200)), (vec![id(1), id(5)], vec![id(4)]));

        drop(store);
        let store = open().await;
        store.group_by(team);
        let members: Vec<_> = store.group(id(100)).into_iter().map(|lvol| lvol.uuid).collect();
        assert_eq!(members, [id(1), id(5)], "derived anew from what the disk has");
    });
}
