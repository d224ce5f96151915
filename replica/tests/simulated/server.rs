//! The replicas of a store: what is created stays, what is granted is fenced, what is deleted is gone.

use std::time::Duration;

use block_device::ErrorKind;
use reactor::simulated::{DiskFault, DiskFaultKind, DiskLatency, World};
use replica::{Directory, LvolKind, OpenError, Replica, ReplicaError, ReplicaServer, ReplicaSpec, ReplicaState};
use uuid::Uuid;

use crate::node::{
    BLOCK, DISK, EVERYWHERE, REPLICA, SIZE, VOLUME, boot, kind, open, open_store, read, spec, world, write,
};

fn server(shared: &crate::node::Server) -> ReplicaServer {
    shared.borrow().clone().expect("the node runs")
}

#[test]
fn creating_twice_is_fine_and_creating_another_is_an_error_that_changes_nothing() {
    // I30, L2
    let (world, node, _) = world(1);
    let server = server(&boot(&world, node));
    world.block_on(node, async move {
        let first = server.create(&spec()).await.expect("created");
        assert_eq!(server.create(&spec()).await.expect("found"), first);
        let other = ReplicaSpec { size: 1 << 20, volume: Uuid::from_bytes([3; 16]), ..spec() };
        let refused = server.create(&other).await;
        let Err(ReplicaError::Conflict { differences, .. }) = refused else { panic!("{refused:?}") };
        assert_eq!(differences.len(), 2, "{differences:?}");
        assert_eq!(server.list(), [first]);
    });
}

#[test]
fn a_replica_outlives_kills_and_power_cuts_and_is_created_again_as_the_same() {
    // L2: no "exists already", nothing deleted.
    let (world, node, _) = world(2);
    for round in 0..10 {
        let server = server(&boot(&world, node));
        world.block_on(node, async move {
            let info = server.create(&spec()).await.expect("created or found");
            assert_eq!(info.epoch, round);
            let replica = server.open_local(open(round + 1, 1)).await.expect("granted");
            if round > 0 {
                assert_eq!(read(&*replica, 0).await.expect("read"), round as u8);
            }
            write(&*replica, 0, round as u8 + 1).await.expect("written");
            block_device::execute(&*replica, block_device::Request::Flush).await.expect("flushed");
        });
        if round % 2 == 0 { world.kill(node) } else { world.power_cut(node) }
    }
}

#[test]
fn an_epoch_is_durable_before_it_is_granted_and_never_goes_back() {
    // I12
    let (world, node, _) = world(3);
    let first = server(&boot(&world, node));
    world.block_on(node, async move {
        first.create(&spec()).await.expect("created");
        first.open_local(open(5, 1)).await.expect("granted");
    });
    world.power_cut(node);
    let second = server(&boot(&world, node));
    world.block_on(node, async move {
        let refused = |result: Result<_, OpenError>| matches!(result, Err(OpenError::Fenced { stored: 5 }));
        assert!(refused(second.open_local(open(4, 1)).await), "a lower one");
        assert!(refused(second.open_local(open(5, 2)).await), "the same for another engine");
        second.open_local(open(5, 1)).await.expect("the same engine reconnects");
        second.open_local(open(6, 2)).await.expect("a higher one");
        assert!(matches!(second.open_local(open(5, 1)).await, Err(OpenError::Fenced { stored: 6 })));
    });
}

/// I12: a grant that failed may have left its epoch in memory; the engine that tries again must not be told that it is durable.
#[test]
fn an_epoch_that_could_not_be_made_durable_is_not_granted_to_the_next_try() {
    let (world, node, _) = world(3);
    let first = server(&boot(&world, node));
    let shared = first.clone();
    world.block_on(node, async move { first.create(&spec()).await.expect("created") });
    world.add_disk_fault(node, DISK, DiskFault::new(DiskFaultKind::FailSyncs));
    let tried = shared.clone();
    world.block_on(node, async move { assert!(tried.open_local(open(5, 1)).await.is_err(), "its sync failed") });
    world.clear_disk_faults(node, DISK);
    world.block_on(node, async move {
        assert!(shared.open_local(open(5, 1)).await.is_err(), "nobody knows what the disk has")
    });
    world.power_cut(node);
    let second = server(&boot(&world, node));
    world.block_on(node, async move {
        second.open_local(open(5, 2)).await.expect("no epoch was granted");
    });
}

#[test]
fn a_newer_grant_ends_the_older_one_and_waits_for_what_it_has_at_the_disk() {
    // I13
    let (world, node, _) = world(4);
    let server = server(&boot(&world, node));
    let slow = server.clone();
    let old = world.block_on(node, async move {
        slow.create(&spec()).await.expect("created");
        slow.open_local(open(1, 1)).await.expect("granted")
    });
    world.set_disk_latency(node, DISK, slow_disk());
    world.block_on(node, async move {
        let writing = {
            let old = old.clone();
            reactor::spawn(async move { write(&*old, 0, 7).await })
        };
        reactor::sleep(Duration::from_millis(1)).await;
        assert!(!writing.is_finished());
        let new = server.open_local(open(2, 2)).await.expect("granted");
        assert!(writing.is_finished(), "it was at the disk: the grant waited for it");
        writing.await.expect("it ends").expect("it took effect, before the grant");
        assert_eq!(kind(write(&*old, 0, 8).await), Some(ErrorKind::Fenced));
        assert_eq!(kind(read(&*old, 0).await), Some(ErrorKind::Fenced));
        assert_eq!(kind(old.snapshot(Uuid::from_bytes([9; 16]), SIZE, "late").await), Some(ErrorKind::Fenced));
        assert_eq!(kind(old.reset().await), Some(ErrorKind::Fenced));
        assert_eq!(old.failed().await.kind(), ErrorKind::Fenced);
        assert_eq!(read(&*new, 0).await.expect("read"), 7);
        let again = server.open_local(open(2, 2)).await.expect("the same engine reconnects");
        assert_eq!(kind(write(&*new, 0, 9).await), Some(ErrorKind::Aborted), "no reason for the engine to stop");
        assert_eq!(read(&*again, 0).await.expect("read"), 7);
    });
}

fn slow_disk() -> DiskLatency {
    DiskLatency { read: ms(1)..=ms(2), write: ms(100)..=ms(200), sync: ms(1)..=ms(2) }
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

#[test]
fn a_failed_grant_answers_at_once_and_drains_before_the_next() {
    // I15
    let (world, node, _) = world(5);
    let server = server(&boot(&world, node));
    let slow = server.clone();
    let old = world.block_on(node, async move {
        slow.create(&spec()).await.expect("created");
        slow.open_local(open(1, 1)).await.expect("granted")
    });
    world.set_disk_latency(node, DISK, slow_disk());
    world.block_on(node, async move {
        let writing = {
            let old = old.clone();
            reactor::spawn(async move { write(&*old, 0, 7).await })
        };
        reactor::sleep(ms(1)).await;
        assert!(old.oldest().is_some());
        let start = reactor::now();
        old.fail(ErrorKind::TimedOut.into());
        assert_eq!(kind(writing.await.expect("it ends")), Some(ErrorKind::TimedOut));
        assert!(reactor::now() - start < ms(10), "nobody waits for the disk");
        let new = server.open_local(open(1, 1)).await.expect("granted");
        assert!(reactor::now() - start > ms(50), "but the next grant does");
        write(&*new, 0, 8).await.expect("written");
        reactor::sleep(ms(1000)).await;
        assert_eq!(read(&*new, 0).await.expect("read"), 8, "the first copy took no effect later");
    });
}

#[test]
fn a_reset_leaves_an_empty_head_and_nothing_else() {
    let (world, node, _) = world(6);
    let server = server(&boot(&world, node));
    world.block_on(node, async move {
        server.create(&spec()).await.expect("created");
        let replica = server.open_local(open(1, 1)).await.expect("granted");
        for number in 1..4 {
            write(&*replica, number, 0xbd).await.expect("written");
            replica
                .snapshot(Uuid::from_bytes([0x50 + number as u8; 16]), replica.granted().geometry.size(), "s")
                .await
                .expect("cut");
        }
        assert_eq!(replica.chain().await.expect("listed").len(), 4);
        replica.reset().await.expect("reset");
        let chain = replica.chain().await.expect("listed");
        assert!(matches!(&chain[..], [head] if head.kind == LvolKind::Head && head.id != REPLICA));
        for block in 0..4 {
            assert_eq!(read(&*replica, block).await.expect("read"), 0);
        }
        let info = server.info(REPLICA).expect("it is there");
        assert_eq!((info.state, info.epoch, info.snapshots.len()), (ReplicaState::Rebuilding, 1, 0));
        assert_eq!(server.store().lvols().len(), 1);
        replica.set_state(ReplicaState::Complete).await.expect("stored");
        assert_eq!(server.info(REPLICA).expect("it is there").state, ReplicaState::Complete);
        assert_eq!(server.create(&spec()).await.expect("found").spec, spec());
    });
}

/// Prepares a replica with snapshots, resets it, kills the node after `steps` steps of the disk, and looks.
fn killed_while_resetting(milliseconds: u64) {
    let (world, node, _) = world(milliseconds);
    let first = server(&boot(&world, node));
    world.block_on(node, async move {
        first.create(&spec()).await.expect("created");
        let replica = first.open_local(open(1, 1)).await.expect("granted");
        for number in 1..5 {
            write(&*replica, number, number as u8).await.expect("written");
            replica
                .snapshot(Uuid::from_bytes([0x50 + number as u8; 16]), replica.granted().geometry.size(), "s")
                .await
                .expect("cut");
        }
        reactor::spawn(async move { replica.reset().await });
    });
    world.run_for(Duration::from_micros(milliseconds * 200));
    if milliseconds.is_multiple_of(2) {
        world.kill(node)
    } else {
        world.power_cut(node)
    }
    let second = server(&boot(&world, node));
    world.block_on(node, async move {
        let replica = second.open_local(open(1, 1)).await.expect("granted: there is always one head");
        let chain = replica.chain().await.expect("listed");
        match replica.granted().state {
            // The reset did not happen: all of the old chain is there.
            ReplicaState::Complete => assert_eq!(chain.len(), 5),
            // It did: all of it is gone, also what it had not deleted yet.
            ReplicaState::Rebuilding => {
                assert_eq!(chain.len(), 1);
                assert_eq!(second.store().lvols().len(), 1, "nothing is left behind");
            }
        }
        for block in 1..5 {
            let expected = if chain.len() == 5 { block as u8 } else { 0 };
            assert_eq!(read(&*replica, block).await.expect("read"), expected);
        }
    });
}

#[test]
fn a_reset_that_is_killed_at_any_moment_did_happen_or_did_not() {
    // I20, I26
    for milliseconds in 0..40 {
        killed_while_resetting(milliseconds);
    }
}

#[test]
fn a_delete_takes_everything_of_the_replica_and_finds_success_when_nothing_is_left() {
    // I42
    let (world, node, _) = world(8);
    let server = server(&boot(&world, node));
    world.block_on(node, async move {
        server.create(&spec()).await.expect("created");
        let other = ReplicaSpec { replica: Uuid::from_bytes([2; 16]), ..spec() };
        server.create(&other).await.expect("created");
        let replica = server.open_local(open(1, 1)).await.expect("granted");
        replica.snapshot(Uuid::from_bytes([0x51; 16]), replica.granted().geometry.size(), "s").await.expect("cut");
        let wrong = server.delete(REPLICA, Some(Uuid::from_bytes([9; 16]))).await;
        assert!(matches!(wrong, Err(ReplicaError::OtherVolume { volume: VOLUME, .. })), "{wrong:?}");
        server.delete(REPLICA, Some(VOLUME)).await.expect("deleted");
        assert_eq!(kind(write(&*replica, 0, 1).await), Some(ErrorKind::Unavailable), "its engine is cut off");
        server.delete(REPLICA, Some(VOLUME)).await.expect("nothing to do");
        assert!(matches!(server.open_local(open(2, 1)).await, Err(OpenError::NotFound)));
        assert_eq!(server.list().len(), 1);
        assert_eq!(server.store().lvols().len(), 1);
    });
}

#[test]
fn what_nobody_owns_is_deleted_but_not_from_under_an_engine() {
    // I42
    let (world, node, _) = world(10);
    let server = server(&boot(&world, node));
    world.block_on(node, async move {
        server.create(&spec()).await.expect("created");
        assert!(!server.is_open(REPLICA) && server.membership_copy(REPLICA).is_none());
        let replica = server.open_local(open(1, 1)).await.expect("granted");
        replica.snapshot(Uuid::from_bytes([0x51; 16]), replica.granted().geometry.size(), "s").await.expect("cut");
        replica.set_membership(b"who is in sync", &[]).await.expect("kept");
        server.set_owner_node(REPLICA, "a").await.expect("noted");
        replica.reset().await.expect("made anew");
        assert_eq!(server.owner_node(REPLICA).as_deref(), Some("a"), "whatever it holds");
        replica.snapshot(Uuid::from_bytes([0x52; 16]), replica.granted().geometry.size(), "s").await.expect("cut");
        assert!(server.is_open(REPLICA));
        assert_eq!(server.membership_copy(REPLICA).as_deref(), Some(&b"who is in sync"[..]));
        for epoch in [0, 1] {
            let refused = server.delete_unused(REPLICA, VOLUME, epoch).await;
            assert!(matches!(refused, Err(ReplicaError::InUse { .. })), "{refused:?}");
        }
        let refused = server.delete_remains(REPLICA).await;
        assert!(matches!(refused, Err(ReplicaError::InUse { .. })), "it has a head: {refused:?}");
        drop(replica);
        assert!(!server.is_open(REPLICA));
        let refused = server.delete_unused(REPLICA, VOLUME, 0).await;
        assert!(matches!(refused, Err(ReplicaError::InUse { .. })), "an engine came since: {refused:?}");
        let refused = server.delete_unused(REPLICA, Uuid::from_bytes([9; 16]), 1).await;
        assert!(matches!(refused, Err(ReplicaError::OtherVolume { volume: VOLUME, .. })), "{refused:?}");
        // Heads go first: a kill after that leaves snapshots.
        let head =
            server.store().lvols().into_iter().find(|lvol| lvol.kind == lvol::LvolKind::Head).expect("a head").uuid;
        server.store().delete(head).await.expect("deleted");
        assert_eq!(server.store().lvols().len(), 1);
        server.delete_remains(REPLICA).await.expect("deleted");
        server.delete_unused(REPLICA, VOLUME, 1).await.expect("nothing to do");
        assert_eq!(server.store().lvols().len(), 0);
        server.create(&spec()).await.expect("created again");
        server.delete_unused(REPLICA, VOLUME, 0).await.expect("deleted");
        assert_eq!(server.store().lvols().len(), 0);
    });
}

/// What a snapshot that is to be deleted holds counts as its child's, before its blocks have moved and after.
#[test]
fn a_snapshot_that_is_to_be_deleted_is_not_in_the_chain() {
    let (world, node, _) = world(9);
    world.block_on(node, async move {
        let store = open_store().await;
        let server = ReplicaServer::new(store.clone(), &Directory::new());
        server.create(&spec()).await.expect("created");
        let replica = server.open_local(open(1, 1)).await.expect("granted");
        let [oldest, middle, newest] = [0x50, 0x51, 0x52].map(|byte| Uuid::from_bytes([byte; 16]));
        for (block, id) in [oldest, middle, newest].into_iter().enumerate() {
            write(&*replica, block as u64, 7).await.expect("written");
            replica.snapshot(id, replica.granted().geometry.size(), "s").await.expect("cut");
        }
        // It stays as long as someone reads it.
        let mut reader = Some(store.open_lvol(middle).await.expect("opened"));
        store.delete(middle).await.expect("marked");
        for moved in [false, true] {
            if moved {
                reader = None;
                store.deleted(middle).await.expect("deleted");
            }
            assert_eq!(store.lvol_info(middle).is_none(), reader.is_none());
            let chain: Vec<Uuid> = replica.chain().await.expect("a chain").iter().map(|entry| entry.id).collect();
            assert_eq!(chain, [oldest, newest, REPLICA]);
            let held = replica.extents(newest, EVERYWHERE, 10).await.expect("extents").list;
            assert_eq!(held.len(), 1);
            assert_eq!((held[0].range.offset, held[0].range.length), (BLOCK, 2 * BLOCK));
            assert_eq!(kind(replica.extents(middle, EVERYWHERE, 10).await.map(drop)), Some(ErrorKind::InvalidField));
            assert_eq!(read(&*replica, 1).await.expect("read"), 7);
        }

        let _reader = store.open_lvol(newest).await.expect("opened");
        store.delete(newest).await.expect("marked");
        server.delete(REPLICA, Some(VOLUME)).await.expect("deleted");
        store.deleted(newest).await.expect("nobody reads through it any more");
        store.deleted(oldest).await.expect("nor through this");
        assert_eq!(store.lvols(), []);
    });
}

#[test]
fn a_replica_opens_only_for_its_volume() {
    let (world, node, _) = world(9);
    let server = server(&boot(&world, node));
    world.block_on(node, async move {
        server.create(&spec()).await.expect("created");
        let wrong = replica::OpenReplica { volume: Uuid::from_bytes([9; 16]), ..open(1, 1) };
        assert!(matches!(server.open_local(wrong).await, Err(OpenError::Mismatch(_))));
        assert_eq!(server.info(REPLICA).expect("it is there").epoch, 0, "a refusal changes nothing");
    });
}

#[test]
fn failing_calls_leave_nothing_behind() {
    // I40
    let world: World;
    let (node, shared);
    {
        let parts = crate::node::world(10);
        (world, node) = (parts.0, parts.1);
        shared = boot(&world, node);
    }
    let server = server(&shared);
    world.block_on(node, async move {
        server.create(&spec()).await.expect("created");
        server.open_local(open(9, 1)).await.expect("granted");
        reactor::sleep(ms(100)).await;
        let (tasks, lent) = (reactor::task_count(), reactor::buffer::lent());
        for number in 0..1000u16 {
            let nobody = Uuid::from_u128(u128::from(number) + 77);
            let absent = replica::OpenReplica { replica: nobody, ..open(1, 1) };
            assert!(matches!(server.open_local(absent).await, Err(OpenError::NotFound)));
            assert!(server.open_local(open(1, 1)).await.is_err());
            let refused = ReplicaSpec { size: 7, replica: nobody, ..spec() };
            assert!(server.create(&refused).await.is_err());
            server.delete(nobody, None).await.expect("nothing to do");
        }
        reactor::sleep(ms(100)).await;
        assert_eq!((reactor::task_count(), reactor::buffer::lent()), (tasks, lent));
    });
}
