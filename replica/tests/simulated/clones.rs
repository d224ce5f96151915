//! Replicas that begin as a snapshot of another one in the same store.

use block_device::{Range, Request, execute};
use replica::{LvolKind, OpenReplica, Origin, Replica, ReplicaError, ReplicaServer, ReplicaSpec};
use uuid::Uuid;

use crate::node::{BLOCK, EVERYWHERE, REPLICA, SIZE, boot, open, read, spec, world, write};

const CLONE: Uuid = Uuid::from_bytes([2; 16]);
const OTHER_CLONE: Uuid = Uuid::from_bytes([3; 16]);
const SNAPSHOT: Uuid = Uuid::from_bytes([7; 16]);
const ORIGIN: Origin = Origin { replica: REPLICA, snapshot: SNAPSHOT };

fn clone_spec(replica: Uuid) -> ReplicaSpec {
    ReplicaSpec { replica, volume: replica, name: "clone".to_owned(), ..spec() }
}

fn open_clone(replica: Uuid, epoch: u64) -> OpenReplica {
    OpenReplica { replica, volume: replica, ..open(epoch, 9) }
}

/// A replica with one snapshot, in which block 1 holds ones; its head says two there and in block 2.
async fn replica_with_snapshot(server: &ReplicaServer) {
    server.create(&spec()).await.expect("created");
    let replica = server.open_local(open(1, 1)).await.expect("granted");
    write(&*replica, 1, 1).await.expect("written");
    replica.snapshot(SNAPSHOT, replica.granted().geometry.size(), "base").await.expect("cut");
    write(&*replica, 1, 2).await.expect("written");
    write(&*replica, 2, 2).await.expect("written");
    execute(&*replica, Request::Flush).await.expect("flushed");
}

#[test]
fn a_clone_reads_like_the_snapshot_and_shows_engines_a_chain_of_its_own() {
    let (world, node, _) = world(31);
    let server = boot(&world, node).borrow().clone().expect("it runs");
    world.block_on(node, async move {
        replica_with_snapshot(&server).await;
        let made = server.create_clone(&clone_spec(CLONE), ORIGIN).await.expect("cloned");
        assert_eq!(server.create_clone(&clone_spec(CLONE), ORIGIN).await.expect("found"), made, "I30");
        assert_eq!((made.used_bytes, made.snapshots.len()), (0, 0), "what it shares is not its own");
        let clone = server.open_local(open_clone(CLONE, 1)).await.expect("granted");
        assert_eq!((read(&*clone, 1).await.expect("read"), read(&*clone, 2).await.expect("read")), (1, 0));
        // Whoever rebuilds from it must get what it shares: the oldest of its chain has that.
        let chain = clone.chain().await.expect("listed");
        assert_eq!(chain.iter().map(|entry| entry.kind).collect::<Vec<_>>(), [LvolKind::Head]);
        let block_one = [Range { offset: BLOCK, length: BLOCK }];
        assert_eq!(ranges(&*clone, chain[0].id).await, block_one);
        // After a snapshot of its own that one is the oldest, and the head has what was written since.
        let own = Uuid::from_bytes([8; 16]);
        clone.snapshot(own, SIZE, "own").await.expect("cut");
        write(&*clone, 3, 3).await.expect("written");
        assert_eq!(ranges(&*clone, own).await, block_one);
        let head = clone.chain().await.expect("listed").last().expect("a head").id;
        assert_eq!(ranges(&*clone, head).await, [Range { offset: 3 * BLOCK, length: BLOCK }]);
        assert!(clone.read_lvol(SNAPSHOT, block_one[0]).await.is_err(), "it is another replica's");
        assert!(clone.delete_snapshot(SNAPSHOT).await.is_err(), "it is another replica's");
    });
}

#[test]
fn a_clone_outlives_what_it_was_cloned_from() {
    // I42: the space of the snapshot comes back when nothing needs it.
    let (world, node, _) = world(32);
    let server = boot(&world, node).borrow().clone().expect("it runs");
    world.block_on(node, async move {
        replica_with_snapshot(&server).await;
        for id in [CLONE, OTHER_CLONE] {
            server.create_clone(&clone_spec(id), ORIGIN).await.expect("cloned");
        }
        server.delete(REPLICA, None).await.expect("deleted");
        assert_eq!(server.list().len(), 2, "the clones");
        let clone = server.open_local(open_clone(CLONE, 1)).await.expect("granted");
        assert_eq!(read(&*clone, 1).await.expect("read"), 1);
        // With one clone left, the snapshot becomes part of it.
        server.delete(OTHER_CLONE, None).await.expect("deleted");
        server.store().deleted(SNAPSHOT).await.expect("merged");
        assert_eq!(read(&*clone, 1).await.expect("read"), 1);
        clone.close();
        server.delete(CLONE, None).await.expect("deleted");
        assert!(server.store().lvols().is_empty(), "{:?}", server.store().lvols());
    });
}

#[test]
fn a_replica_whose_snapshot_a_clone_needs_is_rebuilt_with_that_snapshot() {
    let (world, node, _) = world(33);
    let server = boot(&world, node).borrow().clone().expect("it runs");
    world.block_on(node, async move {
        replica_with_snapshot(&server).await;
        for id in [CLONE, OTHER_CLONE] {
            server.create_clone(&clone_spec(id), ORIGIN).await.expect("cloned");
        }
        let replica = server.open_local(open(2, 2)).await.expect("granted");
        replica.reset().await.expect("reset");
        write(&*replica, 1, 5).await.expect("written");
        for _ in 0..2 {
            replica
                .snapshot(SNAPSHOT, replica.granted().geometry.size(), "base")
                .await
                .expect("cut, and found the second time (I30)");
        }
        write(&*replica, 1, 6).await.expect("written");
        let chain = replica.chain().await.expect("listed");
        assert_eq!(chain.iter().map(|entry| entry.id).collect::<Vec<_>>()[0], SNAPSHOT);
        let read_snapshot = replica.read_lvol(SNAPSHOT, Range { offset: BLOCK, length: BLOCK }).await;
        assert_eq!(read_snapshot.expect("read").to_vec(), vec![5; BLOCK as usize]);
        assert_eq!(ranges(&*replica, SNAPSHOT).await, [Range { offset: BLOCK, length: BLOCK }]);
        for id in [CLONE, OTHER_CLONE] {
            let clone = server.open_local(open_clone(id, 1)).await.expect("granted");
            assert_eq!(read(&*clone, 1).await.expect("read"), 1, "the clones have the old one");
        }
        replica.revert(SNAPSHOT).await.expect("reverted");
        assert_eq!(read(&*replica, 1).await.expect("read"), 5);
        replica.delete_snapshot(SNAPSHOT).await.expect("deleted");
        replica.delete_snapshot(SNAPSHOT).await.expect("nothing to do (I42)");
        assert_eq!(replica.chain().await.expect("listed").len(), 1);
        assert_eq!(read(&*replica, 1).await.expect("read"), 5);
    });
}

#[test]
fn what_is_not_there_cannot_be_cloned() {
    let (world, node, _) = world(34);
    let server = boot(&world, node).borrow().clone().expect("it runs");
    world.block_on(node, async move {
        replica_with_snapshot(&server).await;
        for origin in [
            Origin { replica: CLONE, ..ORIGIN },
            Origin { snapshot: CLONE, ..ORIGIN },
            Origin { snapshot: REPLICA, ..ORIGIN },
        ] {
            let refused = server.create_clone(&clone_spec(CLONE), origin).await;
            assert!(matches!(refused, Err(ReplicaError::NoOrigin(named)) if named == origin), "{refused:?}");
        }
        let smaller = ReplicaSpec { size: SIZE / 2, ..clone_spec(CLONE) };
        assert!(matches!(server.create_clone(&smaller, ORIGIN).await, Err(ReplicaError::Store(_))));
        assert_eq!(server.list().len(), 1, "nothing was made");
    });
}

async fn ranges(replica: &dyn Replica, lvol: Uuid) -> Vec<Range> {
    let extents = replica.extents(lvol, EVERYWHERE, 100).await.expect("listed");
    extents.list.into_iter().map(|extent| extent.range).collect()
}
