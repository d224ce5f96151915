//! Rebuild, settling and snapshots, against replicas of memory with faults; and random stories checked block by block.

use std::rc::Rc;
use std::time::Duration;

use block_device::{ErrorKind, Range, Request, execute};
use engine::{EngineError, MemberState};
use reactor::simulated::World;
use reactor::{now, sleep, spawn, timeout};
use replica::{ChainEntry, LvolKind};
use uuid::Uuid;

use crate::fakes::{BLOCK, Cluster};
use crate::model::{Model, write};

const SIZE: u64 = 4 << 20;
const BLOCKS: u64 = SIZE / BLOCK;

pub(crate) fn story<F: Future<Output = ()> + 'static>(seed: u64, story: F) {
    let world = World::new(seed);
    let node = world.add_node([10, 0, 0, 1].into());
    world.block_on(node, story);
}

pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = now();
    while !condition() {
        assert!(now() - start < Duration::from_secs(3600), "it never came to be: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) async fn all_in_sync(cluster: &Cluster) {
    until("all in sync", || (0..cluster.nodes.len()).all(|node| cluster.registry.is_in_sync(node))).await;
}

pub(crate) fn assert_equal(cluster: &Cluster) {
    let first = cluster.nodes[0].disk.borrow();
    for node in &cluster.nodes[1..] {
        let other = node.disk.borrow();
        assert!(first.content() == other.content(), "replicas in sync are equal");
        let entries = |disk: &crate::fakes::FakeDisk| {
            let snapshot_size = |entry: &ChainEntry| (entry.kind == LvolKind::Snapshot).then_some(entry.size);
            disk.chain().iter().map(|entry| (entry.name.clone(), snapshot_size(entry))).collect::<Vec<_>>()
        };
        assert_eq!(entries(&first), entries(&other));
        for entry in first.chain() {
            // I24
            assert!(first.snapshot_content(entry.id) == other.snapshot_content(entry.id), "{}", entry.name);
        }
    }
}

pub(crate) fn snapshot_id(number: u8) -> Uuid {
    Uuid::from_bytes([0x50 + number; 16])
}

#[test]
fn a_replica_with_garbage_comes_back_equal() {
    // I18
    story(1, async {
        let cluster = Cluster::new(2, SIZE);
        let engine = cluster.serve().await;
        for block in 0..10 {
            write(&*engine, block, 1).await.expect("acknowledged");
        }
        cluster.nodes[1].kill();
        write(&*engine, 3, 2).await.expect("acknowledged");
        let ranges = [Range { offset: 5 * BLOCK, length: BLOCK }].into_iter().collect();
        execute(&*engine, Request::Unmap { ranges }).await.expect("acknowledged");
        (0..BLOCKS).step_by(7).for_each(|block| cluster.nodes[1].disk.borrow_mut().spoil(block, 0xbd));
        cluster.nodes[1].disk.borrow_mut().forget();
        cluster.nodes[1].revive();
        all_in_sync(&cluster).await;
        assert_equal(&cluster);
        assert_eq!(cluster.nodes[1].disk.borrow().resets, 0, "what it has is compared");
    });
}

#[test]
fn a_rebuild_sends_only_what_differs() {
    story(2, async {
        let cluster = Cluster::new(2, SIZE);
        let engine = cluster.serve().await;
        for block in 0..BLOCKS {
            write(&*engine, block, 1).await.expect("acknowledged");
        }
        engine.snapshot(snapshot_id(1), "s1").await.expect("cut");
        for block in 0..BLOCKS / 2 {
            write(&*engine, block, 2).await.expect("acknowledged");
        }
        cluster.nodes[1].kill();
        for block in [3, 4, 100, BLOCKS - 1] {
            write(&*engine, block, 3).await.expect("acknowledged");
        }
        let ranges = [Range { offset: 5 * BLOCK, length: BLOCK }].into_iter().collect();
        execute(&*engine, Request::Unmap { ranges }).await.expect("acknowledged");
        cluster.nodes[1].disk.borrow_mut().forget();
        cluster.nodes.iter().for_each(|node| node.delay.set(Duration::from_millis(30)));
        cluster.nodes[1].revive();
        let (compared, written) = crate::lacking::copied(&cluster, &engine, 1).await;
        assert_equal(&cluster);
        assert_eq!(written, 4 * BLOCK, "zeroes are not sent as data");
        assert_eq!(compared, SIZE + SIZE / 2, "the snapshot, and what the target's head has");
        assert_eq!(cluster.nodes[1].disk.borrow().resets, 0);
    });
}

#[test]
fn a_snapshot_that_differs_is_copied_anew() {
    // What both call by one name is not taken for the same without a look.
    story(3, async {
        let cluster = Cluster::new(2, SIZE);
        let engine = cluster.serve().await;
        for block in 0..20 {
            write(&*engine, block, 1).await.expect("acknowledged");
        }
        cluster.nodes[1].disk.borrow_mut().spoil(7, 0xbd);
        engine.snapshot(snapshot_id(1), "s1").await.expect("cut");
        cluster.nodes[1].kill();
        write(&*engine, 3, 2).await.expect("acknowledged");
        cluster.nodes[1].disk.borrow_mut().forget();
        cluster.nodes[1].revive();
        all_in_sync(&cluster).await;
        assert_equal(&cluster);
        assert_eq!(cluster.nodes[1].disk.borrow().resets, 1);
    });
}

#[test]
fn writes_during_a_rebuild_reach_the_target_whatever_the_interleaving() {
    // I17
    for seed in crate::seeds(12) {
        story(seed, async move {
            let cluster = Cluster::new(2, SIZE);
            let engine = cluster.serve().await;
            let model = Model::new(BLOCKS);
            model.run(&engine, 4, 100).await;
            cluster.nodes[1].kill();
            model.run(&engine, 4, 50).await;
            let delay = Duration::from_millis(1 + seed % 5);
            cluster.nodes.iter().for_each(|node| node.delay.set(delay));
            cluster.nodes[1].revive();
            while !cluster.registry.is_in_sync(1) {
                model.run(&engine, 8, 20).await;
            }
            model.run(&engine, 4, 50).await;
            model.check_all(&engine).await;
            assert_equal(&cluster);
        });
    }
}

#[test]
fn a_write_that_fails_on_a_replica_on_its_way_is_not_forgotten() {
    // I17, I18: others have it, so it is acknowledged; the copy may have passed its place.
    for seed in crate::seeds(12) {
        story(seed, async move {
            let cluster = Cluster::new(2, SIZE);
            let engine = cluster.serve().await;
            let model = Model::new(BLOCKS);
            model.run(&engine, 4, 100).await;
            cluster.nodes[1].kill();
            model.run(&engine, 4, 50).await;
            cluster.nodes.iter().for_each(|node| node.delay.set(Duration::from_millis(1)));
            cluster.nodes[1].revive();
            until("it is being rebuilt", || cluster.registry.state(1) == MemberState::Rebuilding).await;
            sleep(Duration::from_millis(2 * seed)).await;
            cluster.nodes[1].refused.set(Some(0xee));
            write(&*engine, 0, 0xee).await.expect("the other one has it");
            assert_eq!(cluster.nodes[1].refused.get(), None, "it was asked to take it, and did not");
            all_in_sync(&cluster).await;
            let read = execute(&*engine, Request::read(0, BLOCK)).await.expect("readable").to_vec();
            assert_eq!(read, vec![0xee; BLOCK as usize]);
            assert_equal(&cluster);
        });
    }
}

#[test]
fn a_rebuild_copies_every_snapshot_and_those_taken_meanwhile() {
    // I24, I17
    for seed in crate::seeds(8) {
        story(seed, async move {
            let cluster = Cluster::new(3, SIZE);
            let engine = cluster.serve().await;
            let model = Model::new(BLOCKS);
            for number in 1..4 {
                model.run(&engine, 4, 60).await;
                engine.snapshot(snapshot_id(number), &format!("s{number}")).await.expect("cut");
            }
            cluster.nodes[2].kill();
            model.run(&engine, 4, 60).await;
            engine.snapshot(snapshot_id(4), "s4").await.expect("cut");
            model.run(&engine, 4, 60).await;
            cluster.nodes.iter().for_each(|node| node.delay.set(Duration::from_millis(2)));
            cluster.nodes[2].revive();
            for number in 5..8 {
                sleep(Duration::from_millis(300 + seed * 40)).await;
                model.run(&engine, 4, 30).await;
                engine.snapshot(snapshot_id(number), &format!("s{number}")).await.expect("cut");
            }
            all_in_sync(&cluster).await;
            model.check_all(&engine).await;
            assert_equal(&cluster);
        });
    }
}

#[test]
fn killed_at_any_moment_a_rebuild_leaves_the_target_out_of_sync_and_begins_anew() {
    // I20, I21
    for step in crate::seeds(20) {
        story(step, async move {
            let cluster = Cluster::new(2, SIZE);
            let engine = cluster.serve().await;
            let model = Model::new(BLOCKS);
            model.run(&engine, 4, 150).await;
            engine.snapshot(snapshot_id(1), "s1").await.expect("cut");
            cluster.nodes[1].kill();
            model.run(&engine, 4, 100).await;
            cluster.nodes.iter().for_each(|node| node.delay.set(Duration::from_millis(1)));
            cluster.nodes[1].revive();
            until("the rebuild begins", || cluster.registry.state(1) == MemberState::Rebuilding).await;
            sleep(Duration::from_millis(step * 5)).await;
            if cluster.registry.is_in_sync(1) {
                return;
            }
            match step % 3 {
                0 => cluster.nodes[1].kill(),
                // The engine dies.
                1 => drop(engine),
                _ => cluster.nodes[0].kill(),
            }
            sleep(Duration::from_secs(1)).await;
            assert!(step % 3 != 0 || !cluster.registry.is_in_sync(1), "a dead target is not in sync");
            cluster.nodes.iter().for_each(|node| node.revive());
            let engine = cluster.serve().await;
            all_in_sync(&cluster).await;
            model.check_all(&engine).await;
            assert_equal(&cluster);
        });
    }
}

#[test]
fn a_replica_that_says_it_is_being_rebuilt_is_no_source() {
    story(5, async {
        let cluster = Cluster::new(2, SIZE);
        cluster.nodes[0].disk.borrow_mut().state = replica::ReplicaState::Rebuilding;
        let engine = cluster.serve().await;
        assert!(!cluster.registry.is_in_sync(0), "it counts as missing");
        assert!(cluster.registry.is_in_sync(1));
        write(&*engine, 0, 1).await.expect("acknowledged");
        all_in_sync(&cluster).await;
        assert_equal(&cluster);
    });
}

#[test]
fn a_snapshot_that_fails_on_one_replica_costs_that_replica() {
    // I25
    story(6, async {
        let cluster = Cluster::new(3, SIZE);
        let engine = cluster.serve().await;
        cluster.nodes[1].snapshot_error.set(Some(ErrorKind::NoSpace));
        engine.snapshot(snapshot_id(1), "s1").await.expect("the others have it");
        assert!(!cluster.registry.is_in_sync(1));
        cluster.nodes[1].snapshot_error.set(None);
        all_in_sync(&cluster).await;
        assert_equal(&cluster);
    });
}

#[test]
fn a_snapshot_that_fails_everywhere_is_an_error_and_nobody_is_dropped() {
    // I25, I33
    story(7, async {
        let cluster = Cluster::new(2, SIZE);
        let engine = cluster.serve().await;
        cluster.nodes.iter().for_each(|node| node.snapshot_error.set(Some(ErrorKind::NoSpace)));
        let failed = engine.snapshot(snapshot_id(1), "s1").await;
        assert!(matches!(&failed, Err(EngineError::Failed(error)) if error.kind() == ErrorKind::NoSpace), "{failed:?}");
        assert!(cluster.registry.is_in_sync(0) && cluster.registry.is_in_sync(1));
        cluster.nodes.iter().for_each(|node| node.snapshot_error.set(None));
        engine.snapshot(snapshot_id(1), "s1").await.expect("cut");
        engine.snapshot(snapshot_id(1), "s1").await.expect("the same again is no error");
        write(&*engine, 0, 1).await.expect("acknowledged: nothing is held any more");
        assert_equal(&cluster);
    });
}

#[test]
fn a_snapshot_has_what_was_acknowledged_before_it_and_nothing_after() {
    // I24
    for seed in crate::seeds(10) {
        story(seed, async {
            let cluster = Cluster::new(3, SIZE);
            cluster.nodes.iter().for_each(|node| node.delay.set(Duration::from_millis(5)));
            let engine = cluster.serve().await;
            let busy = {
                let engine = Rc::clone(&engine);
                spawn(async move { Model::new(BLOCKS).run(&engine, 8, 400).await })
            };
            for number in 1..6 {
                sleep(Duration::from_millis(30)).await;
                engine.snapshot(snapshot_id(number), "s").await.expect("cut");
            }
            busy.await.expect("it ends");
            assert_equal(&cluster);
        });
    }
}

#[test]
fn random_faults_never_lose_what_was_acknowledged() {
    for seed in crate::seeds(20) {
        story(seed, random_story(seed));
    }
}

/// Writers run all the time; replicas come and go, stall and run out of space; engines crash and start again; snapshots are
/// taken. At least one replica that has everything is always left or comes back.
async fn random_story(seed: u64) {
    let cluster = Cluster::new(3, SIZE);
    let model = Model::new(BLOCKS);
    let mut engine = cluster.serve().await;
    for round in 0..12 {
        cluster.nodes.iter().for_each(|node| node.delay.set(Duration::from_millis(reactor::random() % 4)));
        let writers = {
            let (engine, model) = (Rc::clone(&engine), Rc::clone(&model));
            spawn(async move { model.run(&engine, 6, 60).await })
        };
        sleep(Duration::from_millis(reactor::random() % 40)).await;
        let victim = &cluster.nodes[(reactor::random() % 3) as usize];
        match reactor::random() % 9 {
            0 => victim.kill(),
            1 => victim.cut(),
            2 => {
                victim.set_stalled(true);
                sleep(Duration::from_millis(reactor::random() % 9000)).await;
                victim.set_stalled(false);
            }
            3 => victim.write_error.set(Some(ErrorKind::NoSpace)),
            4 => drop(engine.snapshot(snapshot_id(round + 1), "s").await),
            5 => cluster.registry.lies.set(1),
            // Only where others have what was not flushed.
            6 if (0..3).all(|node| cluster.registry.is_in_sync(node)) => victim.lose_power(),
            7 if (0..3).all(|node| cluster.registry.is_in_sync(node)) => {
                victim.kill();
                let other = &cluster.nodes[(reactor::random() % 3) as usize];
                other.lose_power();
            }
            _ => {
                // The engine crashes with its writers.
                writers.abort();
                model.crashed();
                engine = cluster.start().await;
            }
        }
        sleep(Duration::from_millis(reactor::random() % 3000)).await;
        cluster.nodes.iter().for_each(|node| {
            node.write_error.set(None);
            node.revive();
        });
        engine.ready().await.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        if !writers.is_finished() {
            until("the writers end", || writers.is_finished()).await;
        }
        model.check_some(&engine, 40).await;
    }
    all_in_sync(&cluster).await;
    model.check_all(&engine).await;
    assert_equal(&cluster);
    let content = cluster.nodes[1].disk.borrow().content();
    model.check_content(&content);
}

#[test]
fn who_has_just_joined_serves_when_the_source_is_gone_before_the_session_hears_of_it() {
    // I3: the registry says that n1 is in sync, its copies are on their way, and n0 dies.
    let met = Rc::new(std::cell::Cell::new(0));
    for seed in crate::seeds(10) {
        let met = Rc::clone(&met);
        story(seed, async move {
            let cluster = Cluster::new(2, SIZE);
            let engine = cluster.serve().await;
            cluster.nodes[1].kill();
            write(&*engine, 0, 5).await.expect("acknowledged without n1");
            cluster.nodes.iter().for_each(|node| node.delay.set(Duration::from_millis(50)));
            cluster.nodes[1].revive();
            while !cluster.registry.is_in_sync(1) {
                sleep(Duration::from_millis(1)).await;
            }
            let lost = Rc::clone(&engine);
            let lost = spawn(async move { write(&*lost, 1, 6).await });
            sleep(Duration::from_millis(1)).await;
            cluster.nodes[0].kill();
            met.set(met.get() + u32::from(lost.await.expect("it ends").is_err()));
            let serving = timeout(Duration::from_secs(60), engine.ready()).await;
            serving.expect("n1 has all that was acknowledged").expect("it serves");
            until("written", || cluster.registry.is_in_sync(1)).await;
            write(&*engine, 2, 7).await.expect("acknowledged without n0");
            assert_eq!(cluster.nodes[1].disk.borrow().content()[0], 5);
        });
    }
    assert!(met.get() > 0, "no session has ended in between");
}
