//! Replicas that come and go while the volume is written.

use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use engine::{Engine, EngineError, MemberState};
use reactor::simulated::World;
use reactor::{now, sleep, spawn};

use crate::fakes::{BLOCK, Cluster, new_replica};
use crate::model::{Model, write};

const SIZE: u64 = 4 << 20;
const BLOCKS: u64 = SIZE / BLOCK;

fn story<F: Future<Output = ()> + 'static>(seed: u64, story: F) {
    let world = World::new(seed);
    let node = world.add_node([10, 0, 0, 1].into());
    world.block_on(node, story);
}

async fn in_sync(cluster: &Cluster, count: usize) {
    let start = now();
    let done = || {
        let record = cluster.registry.record();
        record.replicas.len() == count && record.replicas.iter().all(|replica| replica.state == MemberState::InSync)
    };
    while !done() {
        assert!(now() - start < Duration::from_secs(3600), "{:?}", cluster.registry.record());
        sleep(Duration::from_millis(10)).await;
    }
}

fn assert_equal(cluster: &Cluster, nodes: &[usize]) {
    let content = |node: usize| cluster.nodes[node].disk.borrow().content();
    for node in &nodes[1..] {
        assert!(content(nodes[0]) == content(*node), "replicas in sync are equal");
    }
}

async fn under_load(engine: &Rc<Engine>, model: &Rc<Model>, work: impl Future<Output = ()>) {
    let load = {
        let (engine, model) = (Rc::clone(engine), Rc::clone(model));
        spawn(async move { model.run(&engine, 6, 3000).await })
    };
    work.await;
    load.await.expect("the load ends");
}

#[test]
fn one_replica_becomes_three_and_one_again_under_load() {
    // I3, I17
    for seed in crate::seeds(10) {
        story(seed, async move {
            let cluster = Cluster::with_spares(1, 2, SIZE);
            // What a replica held before it came does not matter (I18).
            cluster.nodes[1].disk.borrow_mut().spoil(3, 0xee);
            let engine = cluster.serve().await;
            let model = Model::new(BLOCKS);
            model.run(&engine, 6, 300).await;
            let grown = cluster.clone();
            let growing = Rc::clone(&engine);
            under_load(&engine, &model, async move {
                growing.add_replica(new_replica(1)).await.expect("added");
                growing.add_replica(new_replica(2)).await.expect("added");
                growing.add_replica(new_replica(2)).await.expect("the same again (I30)");
                in_sync(&grown, 3).await;
            })
            .await;
            assert_equal(&cluster, &[0, 1, 2]);
            let shrunk = cluster.clone();
            let shrinking = Rc::clone(&engine);
            under_load(&engine, &model, async move {
                shrinking.remove_replica(new_replica(0).replica).await.expect("removed");
                shrinking.remove_replica(new_replica(0).replica).await.expect("nothing to do (I42)");
                shrinking.remove_replica(new_replica(1).replica).await.expect("removed");
                let error = shrinking.remove_replica(new_replica(2).replica).await.expect_err("the last one");
                assert!(matches!(error, EngineError::Config(_)), "{error}");
                in_sync(&shrunk, 1).await;
            })
            .await;
            model.check_all(&engine).await;
            model.check_content(&cluster.nodes[2].disk.borrow().content());
        });
    }
}

#[test]
fn a_replica_that_is_being_rebuilt_can_be_removed_and_the_others_go_on() {
    story(3, async {
        let cluster = Cluster::with_spares(2, 2, SIZE);
        let engine = cluster.serve().await;
        for block in 0..600 {
            write(&*engine, block, 5).await.expect("acknowledged");
        }
        cluster.nodes[2].delay.set(Duration::from_millis(5));
        cluster.nodes[3].delay.set(Duration::from_millis(5));
        engine.add_replica(new_replica(2)).await.expect("added");
        engine.add_replica(new_replica(3)).await.expect("added");
        while cluster.registry.record().replicas[2].state != MemberState::Rebuilding {
            sleep(Duration::from_millis(1)).await;
        }
        engine.remove_replica(new_replica(2).replica).await.expect("removed");
        write(&*engine, 0, 6).await.expect("it goes on");
        in_sync(&cluster, 3).await;
        assert_equal(&cluster, &[0, 1, 3]);
        // After a restart it is not missed.
        engine.stop().await;
        cluster.nodes[2].kill();
        let engine = cluster.serve().await;
        assert_eq!(engine.status().replicas.len(), 3);
    });
}

#[test]
fn the_only_replica_in_reach_stays() {
    // I3
    story(4, async {
        let cluster = Cluster::new(2, SIZE);
        let engine = cluster.serve().await;
        cluster.nodes[1].kill();
        write(&*engine, 0, 6).await.expect("acknowledged");
        engine.remove_replica(new_replica(0).replica).await.expect_err("the other one lacks a write");
        engine.remove_replica(new_replica(1).replica).await.expect("it is not needed");
        write(&*engine, 0, 7).await.expect("it goes on");
        in_sync(&cluster, 1).await;
    });
}

#[test]
fn an_engine_that_dies_while_members_change_leaves_a_volume_that_opens() {
    for seed in crate::seeds(20) {
        story(seed, async move {
            let cluster = Cluster::with_spares(2, 1, SIZE);
            let engine = cluster.serve().await;
            write(&*engine, 0, 5).await.expect("acknowledged");
            let change = {
                let engine = Rc::clone(&engine);
                spawn(async move {
                    // An error means that the engine is gone.
                    let _ = engine.add_replica(new_replica(2)).await;
                    let _ = engine.remove_replica(new_replica(0).replica).await;
                })
            };
            sleep(Duration::from_micros(400 * seed)).await;
            change.abort();
            drop(change);
            drop(engine);
            let engine = cluster.serve().await;
            let count = cluster.registry.record().replicas.len();
            in_sync(&cluster, count).await;
            let data = block_device::execute(&*engine, block_device::Request::read(0, BLOCK)).await.expect("readable");
            assert_eq!(data.to_vec()[0], 5);
        });
    }
}

#[test]
fn a_volume_whose_last_replica_in_sync_is_gone_opens_by_force_only() {
    // I5, I6
    story(5, async {
        let cluster = Cluster::new(3, SIZE);
        let engine = cluster.serve().await;
        write(&*engine, 0, 5).await.expect("acknowledged");
        cluster.nodes[1].kill();
        write(&*engine, 0, 6).await.expect("acknowledged without n1");
        cluster.nodes[2].kill();
        write(&*engine, 0, 7).await.expect("acknowledged without both");
        engine.recover(new_replica(1).replica).await.expect_err("it is served");
        drop(engine);
        cluster.nodes[0].kill();
        cluster.nodes[1].revive();
        cluster.nodes[2].revive();
        let engine = cluster.start().await;
        sleep(Duration::from_secs(60)).await;
        assert!(!matches!(engine.status().state, engine::EngineState::Serving), "n0 alone has the newest");
        engine.recover(new_replica(0).replica).await.expect_err("it counts already");
        engine.recover(uuid::Uuid::from_bytes([9; 16])).await.expect_err("no replica of the volume");
        engine.recover(new_replica(2).replica).await.expect("forced");
        engine.ready().await.expect("it serves");
        let data = block_device::execute(&*engine, block_device::Request::read(0, BLOCK)).await.expect("readable");
        assert_eq!(data.to_vec()[0], 6, "what n2 had when it left");
        write(&*engine, 1, 8).await.expect("acknowledged");
        // The one that was given up follows, newer writes or not.
        cluster.nodes[0].revive();
        in_sync(&cluster, 3).await;
        assert_equal(&cluster, &[0, 1, 2]);
    });
}
