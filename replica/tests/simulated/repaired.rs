//! Replicas in a store of which a repair gave something up.

use lvol::offline::{CheckOptions, Remedy, Report, check};
use reactor::simulated::{NodeId, World};
use reactor::{Disk, DiskOptions};
use replica::{Directory, OpenError, Origin, Replica, ReplicaError, ReplicaServer, ReplicaSpec};
use uuid::Uuid;

use crate::node::{DISK, REPLICA, VOLUME, open, open_store, read, spec, world, write};

const SNAPSHOT: Uuid = Uuid::from_bytes([9; 16]);

/// A replica with a snapshot and a head, in a store that is closed and whose map of the snapshot is damaged.
fn prepared(seed: u64) -> (World, NodeId) {
    let (world, node, _) = world(seed);
    world.block_on(node, async {
        let server = ReplicaServer::new(open_store().await, &Directory::new());
        server.create(&spec()).await.expect("created");
        let replica = server.open_local(open(1, 7)).await.expect("granted");
        for block in 0..8 {
            write(&*replica, block, 5).await.expect("written");
        }
        replica.snapshot(SNAPSHOT, replica.granted().geometry.size(), "s").await.expect("cut");
        write(&*replica, 40, 6).await.expect("written");
        drop(replica);
        let store = server.store().clone();
        drop(server);
        store.close().await.expect("closed");
    });
    let image = world.disk_image(node, DISK);
    let is_map = |at: &u64| image.bytes(*at, 8) == *b"ASHLPAGE" && image.bytes(at + 10, 2) == [1, 0];
    // The snapshot has the head's first map.
    let is_first = |at: &u64| image.bytes(at + 64, 4) == 1u32.to_le_bytes();
    let pages: Vec<u64> = (0..image.size()).step_by(4096).filter(|at| is_map(at) && is_first(at)).collect();
    assert!(!pages.is_empty());
    pages.iter().for_each(|at| world.flip_bits(node, DISK, at + 80, 1));
    (world, node)
}

fn repair(world: &World, node: NodeId, accept_loss: Vec<Uuid>, serve_zeroes: bool) -> Report {
    let options = CheckOptions { repair: true, accept_loss, serve_zeroes, ..CheckOptions::default() };
    world.block_on(node, async move {
        let disk = Disk::open(DISK.as_ref(), &DiskOptions::default()).expect("the disk is there");
        check(&disk, &options).await.expect("checked")
    })
}

fn lost(report: &Report) -> Vec<Uuid> {
    let accept = report.findings.iter().filter_map(|finding| match &finding.remedy {
        Remedy::AcceptLoss { lvols, .. } => Some(lvols.clone()),
        _ => None,
    });
    accept.flatten().collect()
}

/// I21, I22: it is known for what it is, and zeroes in the place of data are not served as data.
#[test]
fn a_replica_that_lost_something_is_known_and_not_opened() {
    let (world, node) = prepared(71);
    let asked = lost(&repair(&world, node, Vec::new(), false));
    assert_eq!(asked, [SNAPSHOT]);
    let report = repair(&world, node, asked, false);
    assert!(!report.repaired.is_empty(), "{report:#?}");
    world.block_on(node, async {
        let server = ReplicaServer::new(open_store().await, &Directory::new());
        assert!(!server.store().info().damaged, "nothing else is wrong with the store");
        let info = server.info(REPLICA).expect("it has its attributes");
        assert_eq!((info.spec, info.epoch, info.snapshots.len()), (spec(), 1, 1));
        let damage = info.damage.expect("told");
        assert!(damage.contains("gave up"), "{damage}");
        for (epoch, instance) in [(1, 7), (2, 8)] {
            let refused = server.open_local(open(epoch, instance)).await;
            assert!(matches!(refused, Err(OpenError::Failed(_))), "{:?}", refused.err());
        }
        let clone = ReplicaSpec { replica: Uuid::from_bytes([2; 16]), volume: Uuid::from_bytes([3; 16]), ..spec() };
        let cloned = server.create_clone(&clone, Origin { replica: REPLICA, snapshot: SNAPSHOT }).await;
        assert!(matches!(cloned, Err(ReplicaError::Store(_))), "{cloned:?}");
        // The snapshot goes into the head: that reads the zeroes still.
        server.store().delete(SNAPSHOT).await.expect("deleted");
        while server.store().lvols().len() > 1 {
            reactor::sleep(std::time::Duration::from_millis(100)).await;
        }
        assert!(server.open_local(open(3, 9)).await.is_err());
        server.delete(REPLICA, Some(VOLUME)).await.expect("it can be deleted");
        server.create(&spec()).await.expect("and made again");
        server.open_local(open(1, 7)).await.expect("the new one has lost nothing");
    });
}

/// There is no other copy, and a person says that zeroes are better than nothing; at once or later.
#[test]
fn zeroes_are_served_when_a_person_says_so() {
    for later in [false, true] {
        let (world, node) = prepared(72);
        if later {
            repair(&world, node, vec![SNAPSHOT], false);
            let report = repair(&world, node, vec![SNAPSHOT, REPLICA], true);
            assert!(report.repaired.iter().any(|step| step.contains("served as zeroes")), "{report:#?}");
        } else {
            repair(&world, node, vec![SNAPSHOT], true);
        }
        world.block_on(node, async {
            let server = ReplicaServer::new(open_store().await, &Directory::new());
            assert_eq!(server.info(REPLICA).expect("there").damage, None);
            let replica = server.open_local(open(2, 8)).await.expect("granted");
            assert_eq!(read(&*replica, 0).await.expect("read"), 0);
            assert_eq!(read(&*replica, 40).await.expect("read"), 6);
        });
    }
}
