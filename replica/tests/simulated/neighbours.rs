//! Two replicas of one volume in one store: one that was let go and is not deleted yet, and the one that takes its place.

use block_device::{ErrorKind, Request, execute};
use replica::{OpenReplica, Replica, ReplicaServer, ReplicaSpec, ReplicaState};
use uuid::Uuid;

use crate::node::{REPLICA, SIZE, boot, kind, open, read, spec, world, write};

const NEW: Uuid = Uuid::from_bytes([2; 16]);
const SNAPSHOT: Uuid = Uuid::from_bytes([7; 16]);

fn new_spec() -> ReplicaSpec {
    ReplicaSpec { replica: NEW, ..spec() }
}

fn open_new(epoch: u64) -> OpenReplica {
    OpenReplica { replica: NEW, ..open(epoch, 1) }
}

/// The first replica: a snapshot with ones in block 0, and a head that says two.
async fn old_replica(server: &ReplicaServer) {
    server.create(&spec()).await.expect("created");
    let old = server.open_local(open(1, 1)).await.expect("granted");
    write(&*old, 0, 1).await.expect("written");
    old.snapshot(SNAPSHOT, SIZE, "monday").await.expect("cut");
    write(&*old, 0, 2).await.expect("written");
}

/// What a rebuild does with the second one: its copy of the snapshot says three, and its head four.
async fn rebuilt(new: &dyn Replica) {
    new.set_state(ReplicaState::Rebuilding).await.expect("noted");
    write(new, 0, 3).await.expect("written");
    for _ in 0..2 {
        new.snapshot(SNAPSHOT, SIZE, "monday").await.expect("cut, and found the second time (I30)");
    }
    write(new, 0, 4).await.expect("written");
    new.set_state(ReplicaState::Complete).await.expect("noted");
    execute(new, Request::Flush).await.expect("flushed");
}

async fn snapshots(replica: &dyn Replica) -> Vec<Uuid> {
    let mut chain = replica.chain().await.expect("listed");
    chain.pop();
    chain.into_iter().map(|entry| entry.id).collect()
}

#[test]
fn each_has_the_snapshots_of_the_volume_to_itself() {
    // L2: whatever an earlier one left behind, a replica can be made and rebuilt.
    let (world, node, _) = world(51);
    let server = boot(&world, node).borrow().clone().expect("it runs");
    world.block_on(node, async move {
        old_replica(&server).await;
        server.create(&new_spec()).await.expect("created beside the old one");
        let new = server.open_local(open_new(1)).await.expect("granted");
        rebuilt(&*new).await;
        assert_eq!(snapshots(&*new).await, [SNAPSHOT]);
    });
    world.power_cut(node);
    let server = boot(&world, node).borrow().clone().expect("it runs");
    world.block_on(node, async move {
        let (old, new) = (server.open_local(open(2, 1)).await, server.open_local(open_new(2)).await);
        let (old, new) = (old.expect("granted"), new.expect("granted"));
        for (replica, head, snapshot) in [(&old, 2, 1), (&new, 4, 3)] {
            assert_eq!(snapshots(&**replica).await, [SNAPSHOT]);
            assert_eq!(read(&**replica, 0).await.expect("read"), head);
            replica.revert(SNAPSHOT).await.expect("reverted");
            assert_eq!(read(&**replica, 0).await.expect("read"), snapshot);
        }
        // I42: what is deleted of one stays with the other.
        new.delete_snapshot(SNAPSHOT).await.expect("deleted");
        assert_eq!((snapshots(&*new).await.len(), snapshots(&*old).await), (0, vec![SNAPSHOT]));
        new.delete_snapshot(SNAPSHOT).await.expect("nothing to do");
        old.close();
        server.delete(REPLICA, None).await.expect("deleted");
        assert_eq!(read(&*new, 0).await.expect("read"), 3);
        new.close();
        server.delete(NEW, None).await.expect("deleted");
        assert!(server.store().lvols().is_empty(), "{:?}", server.store().lvols());
    });
}

#[test]
fn what_a_deletion_has_not_come_to_yet_is_in_nobodys_way() {
    let (world, node, _) = world(52);
    let server = boot(&world, node).borrow().clone().expect("it runs");
    world.block_on(node, async move {
        old_replica(&server).await;
        // A process that ends while it deletes a replica leaves its snapshots: heads go first.
        server.store().delete(REPLICA).await.expect("deleted");
        server.create(&new_spec()).await.expect("created");
        let new = server.open_local(open_new(1)).await.expect("granted");
        new.delete_snapshot(SNAPSHOT).await.expect("it has none of that name");
        rebuilt(&*new).await;
        server.delete(REPLICA, None).await.expect("the rest is deleted");
        assert_eq!(server.store().lvols().len(), 2, "head and snapshot of the new one");
        new.revert(SNAPSHOT).await.expect("reverted");
        assert_eq!(read(&*new, 0).await.expect("read"), 3);
    });
}

#[test]
fn a_replica_is_no_snapshot_of_its_neighbour() {
    let (world, node, _) = world(53);
    let server = boot(&world, node).borrow().clone().expect("it runs");
    world.block_on(node, async move {
        old_replica(&server).await;
        server.create(&new_spec()).await.expect("created");
        let new = server.open_local(open_new(1)).await.expect("granted");
        assert_eq!(kind(new.delete_snapshot(REPLICA).await), Some(ErrorKind::InvalidField));
        assert!(server.info(REPLICA).is_some());
    });
}
