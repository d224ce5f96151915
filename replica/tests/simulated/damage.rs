//! Damage of snapshots: found by a scrub, told to the engine, and mended only with the right bytes (I22).

use std::rc::Rc;
use std::time::Duration;

use block_device::{ErrorKind, Range};
use reactor::simulated::{NodeId, World};
use reactor::sleep;
use replica::{REPAIR_REGION, RemoteOptions, RemoteReplica, Replica};
use uuid::Uuid;

use crate::node::{BLOCK, DISK, Server, address, boot, kind, open, spec, world, write};

const SNAPSHOT: Uuid = Uuid::from_bytes([7; 16]);
const VALUE: u8 = 0x5a;

/// A node whose replica has a snapshot, hashed, with one block of [`VALUE`]s, which the disk has changed since.
fn damaged(seed: u64) -> (World, NodeId, NodeId, Server) {
    let (world, node, engine) = world(seed);
    let shared = boot(&world, node);
    let server = shared.borrow().clone().expect("the node runs");
    world.block_on(node, async move {
        server.create(&spec()).await.expect("created");
        let replica = server.open_local(open(1, 1)).await.expect("granted");
        write(&*replica, 3, VALUE).await.expect("written");
        replica.snapshot(SNAPSHOT, replica.granted().geometry.size(), "s").await.expect("cut");
        let store = server.store();
        store.set_hash_rate(1 << 40);
        while store.scrub_status().hashed == 0 {
            sleep(Duration::from_millis(50)).await;
        }
    });
    let image = world.disk_image(node, DISK);
    let place =
        (0..64 << 20).step_by(BLOCK as usize).find(|place| image.bytes(*place, BLOCK as usize) == [VALUE; 4096]);
    world.flip_bits(node, DISK, place.expect("it is on disk") + 77, 0x10);
    (world, node, engine, shared)
}

fn scrub(world: &World, node: NodeId, server: &Server) -> u64 {
    let server = server.borrow().clone().expect("the node runs");
    world.block_on(node, async move { server.store().scrub(1 << 40).await.expect("through").bad_regions })
}

/// The region as it was.
fn right() -> Vec<u8> {
    let mut region = vec![0; REPAIR_REGION as usize];
    region[3 * BLOCK as usize..4 * BLOCK as usize].fill(VALUE);
    region
}

async fn connect(epoch: u64) -> Rc<RemoteReplica> {
    RemoteReplica::connect(address(), &open(epoch, epoch as u8), &RemoteOptions::default()).await.expect("granted")
}

#[test]
fn an_engine_on_another_node_hears_of_damage_and_mends_it_with_the_right_bytes_only() {
    let (world, node, engine, shared) = damaged(1);
    let before = world.block_on(engine, async { connect(2).await.findings() });
    assert_eq!((before, scrub(&world, node, &shared)), (0, 1));
    world.block_on(engine, async {
        let replica = connect(2).await;
        while replica.findings() == 0 {
            sleep(Duration::from_millis(100)).await;
        }
        let found = replica.damage().await.expect("listed");
        assert_eq!(found.iter().map(|region| (region.snapshot, region.offset)).collect::<Vec<_>>(), [(SNAPSHOT, 0)]);
        let range = Range { offset: 0, length: REPAIR_REGION };
        assert_eq!(kind(replica.read_lvol(SNAPSHOT, range).await), Some(ErrorKind::ReadFailed));

        let mut wrong = right();
        wrong[0] = 1;
        assert_eq!(kind(replica.repair(SNAPSHOT, 0, wrong).await), Some(ErrorKind::CompareMismatch));
        assert_eq!(kind(replica.repair(SNAPSHOT, 4096, right()).await), Some(ErrorKind::InvalidField), "no region");
        assert_eq!(kind(replica.repair(SNAPSHOT, 0, right()[1..].to_vec()).await), Some(ErrorKind::InvalidField));
        let elsewhere = replica.repair(SNAPSHOT, REPAIR_REGION, vec![0; REPAIR_REGION as usize]).await;
        assert_eq!(kind(elsewhere), Some(ErrorKind::InvalidField), "nothing was hashed there");
        let stranger = Uuid::from_bytes([8; 16]);
        assert_eq!(kind(replica.repair(stranger, 0, right()).await), Some(ErrorKind::InvalidField));
        let too_long = vec![0; REPAIR_REGION as usize + 1];
        assert_eq!(kind(replica.repair(SNAPSHOT, 0, too_long).await), Some(ErrorKind::InvalidField));
        assert_eq!(replica.damage().await.expect("listed").len(), 1, "nothing was changed");

        replica.repair(SNAPSHOT, 0, right()).await.expect("mended");
        replica.repair(SNAPSHOT, 0, right()).await.expect("again is fine");
        assert_eq!(replica.read_lvol(SNAPSHOT, range).await.expect("readable").to_vec(), right());
        assert_eq!(replica.damage().await.expect("listed"), []);
    });
    assert_eq!(scrub(&world, node, &shared), 0);
}

#[test]
fn an_engine_that_was_replaced_mends_nothing() {
    // I12, I14
    let (world, node, engine, shared) = damaged(2);
    assert_eq!(scrub(&world, node, &shared), 1);
    world.block_on(engine, async {
        let old = connect(2).await;
        let new = connect(3).await;
        assert!(old.repair(SNAPSHOT, 0, right()).await.is_err());
        assert_eq!(new.damage().await.expect("listed").len(), 1);
        new.repair(SNAPSHOT, 0, right()).await.expect("mended");
    });
}

#[test]
fn a_repair_that_is_cut_off_is_done_or_not() {
    // I26: the node is killed or loses power at some moment of it.
    for milliseconds in 0..12 {
        let (world, node, engine, shared) = damaged(10 + milliseconds);
        assert_eq!(scrub(&world, node, &shared), 1);
        let mending = world.spawn(engine, async {
            let connected = RemoteReplica::connect(address(), &open(2, 2), &RemoteOptions::default()).await;
            if let Ok(replica) = connected {
                // Nobody knows whether it is done when the node goes.
                let _done_or_not = replica.repair(SNAPSHOT, 0, right()).await;
            }
        });
        world.run_for(Duration::from_micros(300 * milliseconds));
        match milliseconds % 2 {
            0 => world.kill(node),
            _ => world.power_cut(node),
        }
        assert!(world.run_until(|| mending.is_done(), Duration::from_secs(60)), "nobody waits for ever");
        let shared = boot(&world, node);
        let left = scrub(&world, node, &shared);
        world.block_on(engine, async move {
            let replica = connect(3).await;
            let read = replica.read_lvol(SNAPSHOT, Range { offset: 0, length: REPAIR_REGION }).await;
            match left {
                0 => assert_eq!(read.expect("it was mended").to_vec(), right()),
                _ => {
                    assert_eq!(kind(read), Some(ErrorKind::ReadFailed), "never the wrong bytes");
                    replica.repair(SNAPSHOT, 0, right()).await.expect("mended");
                }
            }
        });
        assert_eq!(scrub(&world, node, &shared), 0);
    }
}
