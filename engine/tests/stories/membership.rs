//! Replicas that come and go while the volume is written.

use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use block_device::ErrorKind;
use engine::{Engine, EngineError, EngineState, MemberState};
use reactor::simulated::World;
use reactor::{now, sleep, spawn, timeout};

use crate::fakes::{BLOCK, Cluster, new_replica};
use crate::model::{Model, write};
use crate::rebuilding::snapshot_id;

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
fn a_session_that_ends_while_replicas_come_and_go_leaves_them_to_the_next() {
    // The registry has the change and its copies are on their way when another engine is granted the replicas.
    for adds in [true, false] {
        let met = Rc::new(Cell::new(0));
        for seed in crate::seeds(10) {
            let met = Rc::clone(&met);
            story(seed, async move {
                let cluster = Cluster::with_spares(2, 1, SIZE);
                let old = cluster.serve().await;
                write(&*old, 0, 5).await.expect("acknowledged");
                cluster.nodes.iter().for_each(|node| node.delay.set(Duration::from_millis(100)));
                let new = cluster.start().await;
                let changed = match adds {
                    true => old.add_replica(new_replica(2)).await,
                    false => old.remove_replica(new_replica(1).replica).await,
                };
                let has_ended = matches!(old.status().state, EngineState::Stopped { .. });
                met.set(met.get() + u32::from(changed.is_ok() && has_ended));
                cluster.nodes.iter().for_each(|node| node.delay.set(Duration::ZERO));
                new.ready().await.expect("it serves");
                let ending = timeout(Duration::from_secs(60), old.stop()).await;
                ending.expect("nobody is its member any more");
                in_sync(&cluster, cluster.registry.record().replicas.len()).await;
                write(&*new, 0, 6).await.expect("acknowledged");
            });
        }
        assert!(met.get() > 0, "adds: {adds}: no session has ended in between");
    }
}

#[test]
fn a_record_that_lost_a_replica_behind_the_sessions_back_ends_the_session() {
    // Whoever let n0 go gave up when the registry had that, and nobody knew: in the record others have the places that they have in the
    // session. The next to change it records failures, or reservations.
    for reserves in [false, true] {
        story(6, async move {
            let cluster = Cluster::new(3, SIZE);
            let engine = cluster.serve().await;
            write(&*engine, 0, 5).await.expect("acknowledged");
            let stores = cluster.registry.stores.get();
            cluster.registry.lies.set(1);
            let removing = Rc::clone(&engine);
            let removing = spawn(async move { removing.remove_replica(new_replica(0).replica).await });
            while cluster.registry.stores.get() == stores {
                sleep(Duration::from_millis(1)).await;
            }
            let reserving = reserves.then(|| {
                let engine = Rc::clone(&engine);
                spawn(async move { engine.set_reservations(b"mine".to_vec()).await })
            });
            sleep(Duration::from_millis(1)).await;
            cluster.nodes[1].kill();
            cluster.nodes[2].kill();
            removing.await.expect("it ends").expect_err("no other was left when it was tried again");
            if let Some(reserving) = reserving {
                reserving.await.expect("it ends").expect_err("the session has ended");
            }
            sleep(Duration::from_secs(10)).await;
            assert!(matches!(engine.status().state, EngineState::Waiting { .. }), "{:?}", engine.status());
            let record = cluster.registry.record();
            let names: Vec<_> = record.replicas.iter().map(|replica| replica.node.as_str()).collect();
            assert_eq!(names, ["n1", "n2"]);
            assert!(cluster.registry.is_in_sync(0) && cluster.registry.is_in_sync(1), "{record:?}");
            cluster.nodes[1].revive();
            cluster.nodes[2].revive();
            engine.ready().await.expect("it serves");
            write(&*engine, 1, 6).await.expect("acknowledged");
            in_sync(&cluster, 2).await;
            assert_equal(&cluster, &[1, 2]);
            assert_eq!(cluster.nodes[1].disk.borrow().content()[0], 5);
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

#[test]
fn a_replica_in_the_middle_of_a_rebuild_is_never_the_one_that_counts() {
    // I5, I20: also when another one was recovered by force meanwhile.
    story(7, async {
        let cluster = Cluster::new(3, SIZE);
        let engine = cluster.serve().await;
        cluster.nodes[1].kill();
        cluster.nodes[2].kill();
        for block in 0..600 {
            write(&*engine, block, 5).await.expect("acknowledged");
        }
        cluster.nodes[2].delay.set(Duration::from_millis(20));
        cluster.nodes[2].revive();
        while cluster.registry.state(2) != MemberState::Rebuilding {
            sleep(Duration::from_millis(1)).await;
        }
        drop(engine);
        cluster.nodes[0].kill();
        cluster.nodes[2].kill();
        cluster.nodes[1].revive();
        let engine = cluster.start().await;
        engine.recover(new_replica(2).replica).await.expect_err("a mixture");
        engine.recover(new_replica(1).replica).await.expect("forced");
        engine.ready().await.expect("it serves");
        assert_eq!(cluster.registry.state(2), MemberState::Rebuilding);
        drop(engine);
        cluster.nodes[1].kill();
        let engine = cluster.start().await;
        engine.recover(new_replica(2).replica).await.expect_err("still a mixture");
        engine.recover(new_replica(0).replica).await.expect_err("it does not answer");
        cluster.nodes[0].revive();
        engine.recover(new_replica(0).replica).await.expect("forced");
        cluster.nodes.iter().for_each(|node| node.revive());
        in_sync(&cluster, 3).await;
        assert_equal(&cluster, &[0, 1, 2]);
        assert_eq!(cluster.nodes[1].disk.borrow().content()[0], 5, "what n0 had");
    });
}

#[test]
fn what_was_to_go_back_to_a_snapshot_opens_by_force_as_it_is() {
    // I5, I26: the one that is left never had that snapshot.
    story(8, async {
        let cluster = Cluster::new(2, SIZE);
        let engine = cluster.serve().await;
        write(&*engine, 0, 5).await.expect("acknowledged");
        cluster.nodes[1].kill();
        write(&*engine, 0, 6).await.expect("acknowledged without n1");
        engine.snapshot(snapshot_id(1), "s").await.expect("cut");
        cluster.nodes[0].snapshot_error.set(Some(ErrorKind::WriteFailed));
        engine.revert(snapshot_id(1), false).await.expect_err("its disk fails");
        assert!(cluster.registry.record().pending.is_some());
        drop(engine);
        cluster.nodes[0].kill();
        cluster.nodes[1].revive();
        let engine = cluster.start().await;
        engine.recover(new_replica(1).replica).await.expect("forced");
        engine.ready().await.expect("it serves");
        assert_eq!(cluster.registry.record().pending, None);
        let data = block_device::execute(&*engine, block_device::Request::read(0, BLOCK)).await.expect("readable");
        assert_eq!(data.to_vec()[0], 5, "what n1 had when it left");
        cluster.nodes[0].snapshot_error.set(None);
        cluster.nodes[0].revive();
        in_sync(&cluster, 2).await;
        assert_equal(&cluster, &[0, 1]);
    });
}

#[test]
fn an_engine_that_serves_stops_when_another_replica_was_made_to_count() {
    // I14: the person did not know of it.
    story(9, async {
        let cluster = Cluster::new(2, SIZE);
        let old = cluster.serve().await;
        cluster.nodes[1].kill();
        write(&*old, 0, 5).await.expect("acknowledged without n1");
        // It is left alone for a while from here on.
        sleep(Duration::from_millis(100)).await;
        cluster.nodes[1].revive();
        cluster.nodes[0].delay.set(Duration::from_secs(1));
        let new = cluster.start().await;
        new.recover(new_replica(1).replica).await.expect("forced");
        old.set_reservations(b"old".to_vec()).await.expect_err("the record is another engine's");
        assert!(matches!(old.status().state, EngineState::Stopped { .. }), "{:?}", old.status());
        cluster.nodes[0].delay.set(Duration::ZERO);
        new.ready().await.expect("it serves");
        in_sync(&cluster, 2).await;
        assert_equal(&cluster, &[0, 1]);
        assert_eq!(cluster.nodes[0].disk.borrow().content()[0], 0, "what n1 had when it left");
    });
}

#[test]
fn a_start_that_changes_nothing_but_the_epoch_writes_the_record_once() {
    story(31, async {
        let cluster = Cluster::new(3, SIZE);
        // The first start notes the tokens of the replicas.
        let engine = cluster.serve().await;
        engine.stop().await;
        let (before, epoch) = (cluster.registry.stores.get(), cluster.registry.record().epoch);
        let engine = cluster.serve().await;
        assert_eq!(cluster.registry.stores.get() - before, 1, "the one that raises the epoch");
        let record = cluster.registry.record();
        assert_eq!((record.epoch, record.clean), (epoch + 1, false));
        write(&*engine, 0, 1).await.expect("written");
        drop(engine);
        // Now the others may differ from the one that counts: they settle, and that is on record before the first request (I7, I8).
        let before = cluster.registry.stores.get();
        let engine = cluster.serve().await;
        assert!(cluster.registry.stores.get() - before >= 2);
        in_sync(&cluster, 3).await;
        engine.stop().await;
    });
}
