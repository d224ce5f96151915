//! Changes of a whole volume: deleting snapshots, going back to one, growing; with replicas that do not follow and engines
//! that die half way.

use std::rc::Rc;
use std::time::Duration;

use block_device::{BlockDevice, ErrorKind, Request, execute};
use engine::{Engine, EngineError, MemberState, PendingChange};
use reactor::simulated::World;
use reactor::{now, sleep, spawn};
use uuid::Uuid;

use crate::fakes::{BLOCK, Cluster};
use crate::model::write;

const SIZE: u64 = 4 << 20;

fn story<F: Future<Output = ()> + 'static>(seed: u64, story: F) {
    let world = World::new(seed);
    let node = world.add_node([10, 0, 0, 1].into());
    world.block_on(node, story);
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = now();
    while !condition() {
        assert!(now() - start < Duration::from_secs(3600), "it never came to be: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

async fn all_in_sync(cluster: &Cluster) {
    until("all in sync", || (0..cluster.nodes.len()).all(|node| cluster.registry.is_in_sync(node))).await;
}

fn snapshot_id(number: u8) -> Uuid {
    Uuid::from_bytes([0x50 + number; 16])
}

async fn byte(engine: &Engine, block: u64) -> u8 {
    let data = execute(engine, Request::read(block * BLOCK, BLOCK)).await.expect("readable").to_vec();
    assert!(data.iter().all(|byte| *byte == data[0]));
    data[0]
}

/// A volume with block 0 written as 1, 2, 3, … and a snapshot after each.
async fn with_snapshots(engine: &Engine, count: u8) {
    for number in 1..=count {
        write(engine, 0, number).await.expect("acknowledged");
        write(engine, u64::from(number), 100 + number).await.expect("acknowledged");
        engine.snapshot(snapshot_id(number), &format!("s{number}")).await.expect("cut");
    }
}

/// The names of a node's chain, and what its head reads as.
fn seen(cluster: &Cluster, node: usize) -> (Vec<String>, Vec<u8>) {
    let disk = cluster.nodes[node].disk.borrow();
    (disk.chain().into_iter().map(|entry| entry.name).collect(), disk.content())
}

fn assert_equal(cluster: &Cluster) {
    for node in 1..cluster.nodes.len() {
        assert!(seen(cluster, 0) == seen(cluster, node), "replicas in sync are equal");
    }
}

#[test]
fn a_deleted_snapshot_is_gone_everywhere_and_nothing_else_is() {
    story(1, async {
        let cluster = Cluster::new(3, SIZE);
        let engine = cluster.serve().await;
        with_snapshots(&engine, 3).await;
        engine.delete_snapshot(snapshot_id(2)).await.expect("deleted");
        engine.delete_snapshot(snapshot_id(2)).await.expect("nothing to do (I42)");
        let names: Vec<_> = engine.snapshots().await.expect("listed").into_iter().map(|entry| entry.name).collect();
        assert_eq!(names, ["s1", "s3"]);
        assert_eq!((byte(&engine, 0).await, byte(&engine, 2).await), (3, 102));
        assert_equal(&cluster);
        let old = cluster.nodes[0].disk.borrow().snapshot_content(snapshot_id(1)).expect("there");
        assert_eq!((old[0], old[2 * BLOCK as usize]), (1, 0));
    });
}

#[test]
fn a_replica_that_keeps_a_deleted_snapshot_is_out_of_sync_until_it_is_equal_again() {
    // I25
    story(2, async {
        let cluster = Cluster::new(3, SIZE);
        let engine = cluster.serve().await;
        with_snapshots(&engine, 2).await;
        cluster.nodes[2].snapshot_error.set(Some(ErrorKind::WriteFailed));
        engine.delete_snapshot(snapshot_id(1)).await.expect("deleted on the others");
        assert!(matches!(cluster.registry.state(2), MemberState::OutOfSync { .. } | MemberState::Rebuilding));
        cluster.nodes[2].snapshot_error.set(None);
        all_in_sync(&cluster).await;
        assert_equal(&cluster);
        (0..3).for_each(|node| cluster.nodes[node].snapshot_error.set(Some(ErrorKind::WriteFailed)));
        let error = engine.delete_snapshot(snapshot_id(2)).await.expect_err("nobody did it");
        assert!(matches!(error, EngineError::Failed(_)), "{error}");
        assert!((0..3).all(|node| cluster.registry.is_in_sync(node)), "and all stay as they were");
    });
}

#[test]
fn a_volume_goes_back_to_a_snapshot_on_all_replicas() {
    // I24
    story(3, async {
        let cluster = Cluster::new(3, SIZE);
        let engine = cluster.serve().await;
        with_snapshots(&engine, 3).await;
        write(&*engine, 0, 9).await.expect("acknowledged");
        let refused = engine.revert(snapshot_id(2), false).await.expect_err("s3 would be lost");
        assert!(refused.to_string().contains("s3"), "{refused}");
        assert_eq!(byte(&engine, 0).await, 9, "nothing was changed");
        engine.revert(snapshot_id(7), true).await.expect_err("no such snapshot");
        engine.revert(snapshot_id(2), true).await.expect("done");
        assert_eq!((byte(&engine, 0).await, byte(&engine, 3).await), (2, 0));
        assert_eq!(seen(&cluster, 1).0, ["s1", "s2", "head"]);
        write(&*engine, 0, 10).await.expect("it goes on");
        assert_equal(&cluster);
        assert_eq!(cluster.registry.record().pending, None);
    });
}

#[test]
fn requests_wait_while_a_volume_goes_back() {
    // I9: one replica has gone back, another has not.
    story(4, async {
        let cluster = Cluster::new(3, SIZE);
        let engine = cluster.serve().await;
        with_snapshots(&engine, 1).await;
        write(&*engine, 0, 9).await.expect("acknowledged");
        cluster.nodes[2].delay.set(Duration::from_millis(500));
        let reader = {
            let engine = Rc::clone(&engine);
            spawn(async move {
                let mut before = 9;
                for _ in 0..2000 {
                    let now = byte(&engine, 0).await;
                    assert!(now == before || (before, now) == (9, 1), "{before} then {now}");
                    before = now;
                    sleep(Duration::from_micros(300)).await;
                }
                before
            })
        };
        engine.revert(snapshot_id(1), false).await.expect("done");
        assert_eq!(byte(&engine, 0).await, 1);
        assert_eq!(reader.await.expect("it saw nothing wrong"), 1);
    });
}

#[test]
fn a_replica_that_does_not_go_back_is_out_of_sync() {
    // I25
    story(5, async {
        let cluster = Cluster::new(3, SIZE);
        let engine = cluster.serve().await;
        with_snapshots(&engine, 1).await;
        write(&*engine, 0, 9).await.expect("acknowledged");
        cluster.nodes[1].snapshot_error.set(Some(ErrorKind::WriteFailed));
        engine.revert(snapshot_id(1), false).await.expect("done on the others");
        assert!(!cluster.registry.is_in_sync(1));
        assert_eq!(byte(&engine, 0).await, 1);
        cluster.nodes[1].snapshot_error.set(None);
        all_in_sync(&cluster).await;
        assert_equal(&cluster);
    });
}

#[test]
fn an_engine_that_dies_half_way_back_leaves_it_to_the_next() {
    // I7, I26
    for seed in crate::seeds(40) {
        story(seed, async move {
            let cluster = Cluster::new(3, SIZE);
            let engine = cluster.serve().await;
            with_snapshots(&engine, 2).await;
            write(&*engine, 0, 9).await.expect("acknowledged");
            cluster.nodes[(seed % 3) as usize].delay.set(Duration::from_millis(40));
            let task = {
                let engine = Rc::clone(&engine);
                spawn(async move { engine.revert(snapshot_id(1), true).await.map_err(|error| error.to_string()) })
            };
            sleep(Duration::from_micros(500 * seed)).await;
            let done = task.is_finished();
            task.abort();
            drop(task);
            drop(engine);
            let begun = cluster.registry.record().pending == Some(PendingChange::Revert { snapshot: snapshot_id(1) });
            // The first source may be away for a while.
            if seed % 4 == 1 {
                cluster.nodes[0].kill();
            }
            let engine = cluster.serve().await;
            let now = byte(&engine, 0).await;
            assert!(now == 1 || (now == 9 && !done && !begun), "{now}, done: {done}, begun: {begun}");
            assert_eq!(cluster.registry.record().pending, None);
            cluster.nodes[0].revive();
            all_in_sync(&cluster).await;
            assert_eq!(byte(&engine, 0).await, now);
            assert_equal(&cluster);
        });
    }
}

#[test]
fn going_back_ends_what_is_being_copied() {
    // I17, I18: blocks that the source lost by it must not stay on the target.
    for seed in crate::seeds(20) {
        story(seed, async move {
            let cluster = Cluster::new(3, SIZE);
            let engine = cluster.serve().await;
            with_snapshots(&engine, 1).await;
            cluster.nodes[2].kill();
            for block in 10..600 {
                write(&*engine, block, 50).await.expect("acknowledged");
            }
            cluster.nodes[2].delay.set(Duration::from_millis(2));
            cluster.nodes[2].revive();
            until("copying", || cluster.registry.state(2) == MemberState::Rebuilding).await;
            sleep(Duration::from_millis(5 * seed)).await;
            engine.revert(snapshot_id(1), false).await.expect("done");
            write(&*engine, 11, 51).await.expect("acknowledged");
            all_in_sync(&cluster).await;
            assert_equal(&cluster);
            assert_eq!((byte(&engine, 10).await, byte(&engine, 11).await), (0, 51));
        });
    }
}

#[test]
fn a_grown_volume_is_large_on_every_replica_before_anyone_hears_of_it() {
    // I39
    story(6, async {
        let cluster = Cluster::new(3, SIZE);
        let engine = cluster.serve().await;
        write(&*engine, 0, 9).await.expect("acknowledged");
        engine.grow(SIZE / 2).await.expect_err("nothing is ever cut off");
        engine.grow(SIZE + 1).await.expect_err("no whole blocks");
        engine.grow(2 * SIZE).await.expect("grown");
        engine.grow(2 * SIZE).await.expect("nothing to do (I30)");
        assert_eq!((engine.geometry().size(), cluster.registry.record().size), (2 * SIZE, 2 * SIZE));
        write(&*engine, SIZE / BLOCK, 7).await.expect("in the new part");
        assert!((0..3).all(|node| seen(&cluster, node).1.len() as u64 == 2 * SIZE));
        assert_equal(&cluster);
    });
}

#[test]
fn a_replica_that_cannot_grow_keeps_the_volume_as_it_is_and_stays() {
    // I33
    story(7, async {
        let cluster = Cluster::new(3, SIZE);
        let engine = cluster.serve().await;
        cluster.nodes[2].snapshot_error.set(Some(ErrorKind::NoSpace));
        let error = engine.grow(2 * SIZE).await.expect_err("one has no space");
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert_eq!((engine.geometry().size(), cluster.registry.record().size), (SIZE, SIZE));
        assert!((0..3).all(|node| cluster.registry.is_in_sync(node)));
        // The others have grown already, which the next engine can live with.
        engine.stop().await;
        let engine = cluster.serve().await;
        assert_eq!(engine.geometry().size(), SIZE);
        cluster.nodes[2].snapshot_error.set(None);
        engine.grow(2 * SIZE).await.expect("now it can");
        assert_eq!(engine.geometry().size(), 2 * SIZE);
    });
}

#[test]
fn a_replica_that_was_away_grows_before_it_is_in_sync() {
    // I39
    story(8, async {
        let cluster = Cluster::new(3, SIZE);
        let engine = cluster.serve().await;
        cluster.nodes[2].kill();
        write(&*engine, 0, 9).await.expect("acknowledged");
        engine.grow(2 * SIZE).await.expect("grown on the others");
        write(&*engine, SIZE / BLOCK + 5, 8).await.expect("in the new part");
        cluster.nodes[2].revive();
        all_in_sync(&cluster).await;
        assert_equal(&cluster);
        assert_eq!(seen(&cluster, 2).1.len() as u64, 2 * SIZE);
    });
}

#[test]
fn a_snapshot_has_the_size_that_the_volume_had_on_replicas_that_get_it_later_too() {
    // I24: each replica is away while the volume is snapshotted and grows; one has grown for a volume that has not.
    story(14, async {
        let cluster = Cluster::new(3, SIZE);
        let engine = cluster.serve().await;
        cluster.nodes[2].disk.borrow_mut().grow(8 * SIZE);
        for (away, number) in [(1, 1), (0, 2), (2, 3)] {
            let blocks = cluster.registry.record().size / BLOCK;
            cluster.nodes[away].kill();
            write(&*engine, blocks - 1, number).await.expect("acknowledged");
            engine.snapshot(snapshot_id(number), "s").await.expect("cut");
            engine.grow(SIZE * u64::from(number + 1)).await.expect("grown");
            cluster.nodes[away].revive();
            all_in_sync(&cluster).await;
        }
        engine.snapshot(snapshot_id(4), "with all").await.expect("cut");
        let sizes: Vec<u64> = cluster.nodes[2].disk.borrow().chain().iter().map(|entry| entry.size / SIZE).collect();
        assert_eq!(sizes, [1, 2, 3, 4, 8]);
        (0..2).for_each(|node| cluster.nodes[node].disk.borrow_mut().grow(8 * SIZE));
        assert_equal(&cluster);
    });
}

#[test]
fn a_replica_written_to_beyond_a_snapshot_that_it_lacks_comes_back() {
    // I18, I24: an earlier rebuild, which did not come to its end, brought what was written when the volume had grown.
    story(15, async {
        let cluster = Cluster::new(2, SIZE);
        let engine = cluster.serve().await;
        write(&*engine, 3, 1).await.expect("acknowledged");
        cluster.nodes[1].kill();
        engine.snapshot(snapshot_id(1), "s").await.expect("cut");
        engine.grow(2 * SIZE).await.expect("grown");
        let beyond = SIZE / BLOCK + 5;
        write(&*engine, beyond, 2).await.expect("acknowledged");
        {
            let mut disk = cluster.nodes[1].disk.borrow_mut();
            disk.grow(2 * SIZE);
            disk.spoil(beyond + 1, 0xbd);
        }
        cluster.nodes[1].revive();
        all_in_sync(&cluster).await;
        assert_equal(&cluster);
        assert_eq!(cluster.nodes[1].disk.borrow().resets, 1, "nothing of it can be cut off");
    });
}

#[test]
fn a_snapshot_that_ends_within_a_coarse_piece_is_compared_up_to_its_end() {
    // I24: the volume has grown since; what is compared ends with the snapshot.
    story(16, async {
        let cluster = Cluster::new(2, SIZE + BLOCK);
        let engine = cluster.serve().await;
        write(&*engine, SIZE / BLOCK, 1).await.expect("the last block");
        engine.snapshot(snapshot_id(1), "s").await.expect("cut");
        engine.grow(2 * SIZE).await.expect("grown");
        cluster.nodes[1].kill();
        write(&*engine, 3, 2).await.expect("acknowledged");
        cluster.nodes[1].disk.borrow_mut().forget();
        cluster.nodes[1].revive();
        all_in_sync(&cluster).await;
        assert_equal(&cluster);
        assert_eq!(cluster.nodes[1].disk.borrow().resets, 0, "it had all of the snapshot");
    });
}
