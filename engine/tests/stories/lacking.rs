//! What replicas lack: regions with writes in flight after an engine's crash, and what was written while one was away. Each story
//! counts what was compared and sent, and checks that the replicas end equal.

use std::rc::Rc;
use std::time::Duration;

use block_device::{ErrorKind, Request, execute};
use engine::{Engine, EngineState, MemberState};
use reactor::{sleep, spawn};

use crate::fakes::{BLOCK, Cluster};
use crate::model::{Model, write};
use crate::rebuilding::{all_in_sync, assert_equal, snapshot_id, story, until};

/// Sparse: regions without blocks cost nothing.
const SIZE: u64 = 64 << 20;
const BLOCKS: u64 = SIZE / BLOCK;
const REGION: u64 = 1 << 20;
/// Blocks of a region.
const REGION_BLOCKS: u64 = REGION / BLOCK;

/// What the copy to a replica has compared and sent when it is in sync.
pub(crate) async fn copied(cluster: &Cluster, engine: &Engine, node: usize) -> (u64, u64) {
    let (mut compared, mut written) = (0, 0);
    until("in sync", || {
        if let Some(copy) = &engine.status().replicas[node].copy {
            (compared, written) = (copy.compared.max(compared), copy.written.max(written));
        }
        cluster.registry.is_in_sync(node)
    })
    .await;
    (compared, written)
}

/// A block in each of some regions, written and flushed.
async fn fill(engine: &Engine, regions: std::ops::Range<u64>) {
    for region in regions {
        write(engine, region * REGION_BLOCKS, 1).await.expect("acknowledged");
    }
    execute(engine, Request::Flush).await.expect("flushed");
}

/// Copies take long enough to be seen.
fn slowly(cluster: &Cluster) {
    cluster.nodes.iter().for_each(|node| node.delay.set(Duration::from_millis(60)));
}

#[test]
fn after_a_crash_only_regions_with_writes_in_flight_are_compared() {
    // I7, I8
    for seed in crate::seeds(6) {
        story(seed, async move {
            let cluster = Cluster::new(3, SIZE);
            let engine = cluster.serve().await;
            fill(&engine, 0..64).await;
            engine.stop().await;
            let engine = cluster.serve().await;
            // On one replica only, or on two.
            cluster.nodes[2].delay.set(Duration::from_secs(2));
            let writing: Vec<_> = [5, 9, 9]
                .into_iter()
                .map(|region| {
                    let engine = Rc::clone(&engine);
                    spawn(async move { write(&*engine, region * REGION_BLOCKS + region, 7).await })
                })
                .collect();
            sleep(Duration::from_millis(500 * (1 + seed % 3))).await;
            let noted = engine.status().noted_regions as u64;
            writing.iter().for_each(reactor::JoinHandle::abort);
            drop(engine);
            slowly(&cluster);
            let engine = cluster.serve().await;
            assert!((1..3).all(|node| cluster.registry.state(node) == MemberState::Settling));
            let (compared, _) = copied(&cluster, &engine, 2).await;
            assert!(compared <= 4 * BLOCK, "the blocks of two regions, not of 64: {compared}");
            assert!(noted <= 2, "{noted}");
            all_in_sync(&cluster).await;
            assert_equal(&cluster);
        });
    }
}

#[test]
fn however_many_regions_are_written_a_crash_leaves_few_to_compare() {
    // The log is full several times over.
    story(1, async {
        let cluster = Cluster::new(2, 3000 * REGION);
        let engine = cluster.serve().await;
        let workers: Vec<_> = (0..8u64)
            .map(|worker| {
                let engine = Rc::clone(&engine);
                spawn(async move {
                    for step in 0..300u64 {
                        let region = (step * 8 + worker) * 7 % 2400;
                        write(&*engine, region * REGION_BLOCKS, 1).await.expect("acknowledged");
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.await.expect("it ends");
        }
        let noted = engine.status().noted_regions;
        assert!(noted <= 1000, "{noted}");
        drop(engine);
        slowly(&cluster);
        let engine = cluster.serve().await;
        assert!(engine.status().replicas[1].changed.is_some_and(|bytes| bytes <= 1000 * REGION));
        assert_eq!(cluster.registry.state(1), MemberState::Settling);
        all_in_sync(&cluster).await;
    });
}

#[test]
fn what_leaves_the_note_of_writes_in_flight_is_noted_for_who_is_away() {
    // I23: the engine crashes long after the first of these writes.
    story(1, async {
        let cluster = Cluster::new(2, 3000 * REGION);
        let engine = cluster.serve().await;
        execute(&*engine, Request::Flush).await.expect("flushed");
        cluster.nodes[1].kill();
        for region in 0..1500 {
            write(&*engine, region * REGION_BLOCKS, 1).await.expect("acknowledged");
        }
        drop(engine);
        let engine = cluster.serve().await;
        let changed = engine.status().replicas[1].changed.expect("it is known");
        assert!((1500 * REGION..1600 * REGION).contains(&changed), "{changed}");
        cluster.nodes[1].revive();
        all_in_sync(&cluster).await;
        for region in 0..1500 {
            let block = block_device::Range { offset: region * REGION, length: BLOCK };
            let disk = cluster.nodes[1].disk.borrow();
            assert!(disk.read(disk.id, block).iter().all(|byte| *byte == 1), "region {region}");
        }
    });
}

#[test]
fn no_write_goes_where_a_replica_recorded_in_sync_has_not_noted_it() {
    // It may be whom the next engine asks what was in flight (I7).
    story(5, async {
        let cluster = Cluster::new(3, SIZE);
        let engine = cluster.serve().await;
        write(&*engine, 0, 1).await.expect("acknowledged");
        cluster.registry.refuses.set(true);
        cluster.nodes[1].kill();
        let writing = {
            let engine = Rc::clone(&engine);
            spawn(async move { write(&*engine, 5 * REGION_BLOCKS, 2).await })
        };
        sleep(Duration::from_secs(20)).await;
        let there = |node: usize| cluster.nodes[node].disk.borrow().content()[(5 * REGION) as usize] == 2;
        assert!(!there(0) && !there(2), "replica 1 is in sync in the record, and does not know");
        cluster.registry.refuses.set(false);
        writing.await.expect("it ends").expect("acknowledged");
        cluster.nodes[1].revive();
        all_in_sync(&cluster).await;
        assert_equal(&cluster);
    });
}

#[test]
fn a_snapshot_deleted_while_a_replica_was_away_is_deleted_there_too() {
    story(6, async {
        let cluster = Cluster::new(2, SIZE);
        let engine = cluster.serve().await;
        for number in 1..4 {
            fill(&engine, 0..u64::from(number) * 5).await;
            engine.snapshot(snapshot_id(number), "s").await.expect("cut");
        }
        cluster.nodes[1].kill();
        write(&*engine, 3 * REGION_BLOCKS, 4).await.expect("acknowledged");
        engine.delete_snapshot(snapshot_id(2)).await.expect("deleted");
        slowly(&cluster);
        cluster.nodes[1].revive();
        let (_, written) = copied(&cluster, &engine, 1).await;
        assert!(written <= BLOCK, "{written}");
        assert_eq!(cluster.nodes[1].disk.borrow().resets, 0);
        assert_equal(&cluster);
    });
}

#[test]
fn a_replica_that_was_away_gets_what_was_written_meanwhile() {
    for seed in crate::seeds(6) {
        story(seed, async move {
            let cluster = Cluster::new(3, SIZE);
            let engine = cluster.serve().await;
            fill(&engine, 0..64).await;
            // With or without its unflushed writes (I4).
            write(&*engine, 40 * REGION_BLOCKS + 1, 3).await.expect("acknowledged");
            let node = &cluster.nodes[1 + (seed % 2) as usize];
            if seed < 3 {
                node.kill()
            } else {
                node.lose_power()
            }
            for region in [7, 8, 30] {
                write(&*engine, region * REGION_BLOCKS + 2, 9).await.expect("acknowledged");
            }
            slowly(&cluster);
            node.revive();
            let (compared, written) = copied(&cluster, &engine, 1 + (seed % 2) as usize).await;
            assert!(written <= 4 * BLOCK, "{written} sent for four blocks");
            assert!(compared <= 8 * BLOCK, "{compared} compared");
            assert_eq!(node.disk.borrow().resets, 0);
            all_in_sync(&cluster).await;
            assert_equal(&cluster);
        });
    }
}

#[test]
fn snapshots_taken_while_a_replica_was_away_are_made_from_what_it_has() {
    for seed in crate::seeds(8) {
        story(seed, async move {
            let cluster = Cluster::new(3, SIZE);
            let engine = cluster.serve().await;
            let model = Model::new(BLOCKS / 4);
            model.run(&engine, 4, 40).await;
            engine.snapshot(snapshot_id(1), "s1").await.expect("cut");
            model.run(&engine, 4, 40).await;
            match seed % 2 {
                0 => cluster.nodes[1].kill(),
                _ => cluster.nodes[1].lose_power(),
            }
            for number in 2..4 {
                model.run(&engine, 4, 40).await;
                engine.snapshot(snapshot_id(number), "s").await.expect("cut");
            }
            model.run(&engine, 4, 40).await;
            cluster.nodes[1].revive();
            sleep(Duration::from_millis(100 * seed)).await;
            engine.snapshot(snapshot_id(5), "s").await.expect("cut");
            model.run(&engine, 4, 40).await;
            all_in_sync(&cluster).await;
            assert_eq!(cluster.nodes[1].disk.borrow().resets, 0);
            model.check_all(&engine).await;
            assert_equal(&cluster);
        });
    }
}

#[test]
fn one_that_leaves_again_while_it_comes_back_still_gets_everything() {
    // Two are away at once, the engine crashes meanwhile, and one of the two goes again in the middle of its copy.
    for seed in crate::seeds(12) {
        story(seed, async move {
            let cluster = Cluster::new(3, SIZE);
            let mut engine = cluster.serve().await;
            let model = Model::new(BLOCKS / 4);
            model.run(&engine, 4, 60).await;
            execute(&*engine, Request::Flush).await.expect("flushed");
            cluster.nodes[1].kill();
            model.run(&engine, 4, 60).await;
            cluster.nodes[2].lose_power();
            model.run(&engine, 4, 60).await;
            if seed % 3 == 0 {
                drop(engine);
                engine = cluster.serve().await;
            }
            cluster.nodes[1].delay.set(Duration::from_millis(20));
            cluster.nodes[1].revive();
            cluster.nodes[2].revive();
            model.run(&engine, 4, 20 + seed * 2).await;
            if seed % 2 == 0 {
                cluster.nodes[1].kill()
            } else {
                cluster.nodes[1].lose_power()
            }
            model.run(&engine, 4, 60).await;
            cluster.nodes[1].revive();
            all_in_sync(&cluster).await;
            assert!((1..3).all(|node| cluster.nodes[node].disk.borrow().resets == 0));
            model.check_all(&engine).await;
            assert_equal(&cluster);
        });
    }
}

#[test]
fn what_is_not_known_to_be_all_is_compared_in_full() {
    // I23: each of these leaves something out, and a block that no note speaks of differs.
    for case in 0..5 {
        story(case, async move {
            let cluster = Cluster::new(2, SIZE);
            let mut engine = cluster.serve().await;
            fill(&engine, 0..8).await;
            cluster.nodes[1].kill();
            write(&*engine, 9 * REGION_BLOCKS, 4).await.expect("acknowledged");
            cluster.nodes[1].disk.borrow_mut().spoil(3 * REGION_BLOCKS, 0xbd);
            match case {
                // The map was lost with the power of who kept it.
                0 => {
                    drop(engine);
                    cluster.nodes[0].lose_power();
                    cluster.nodes[0].revive();
                    engine = cluster.serve().await;
                }
                // It was made anew under its uuid.
                1 => cluster.nodes[1].disk.borrow_mut().make_anew(),
                // Its notes are gone.
                2 => cluster.nodes[1].disk.borrow_mut().forget(),
                // The map is gone.
                3 => {
                    drop(engine);
                    cluster.nodes[0].disk.borrow_mut().forget();
                    engine = cluster.serve().await;
                }
                // The volume went back to a snapshot.
                _ => {
                    engine.snapshot(snapshot_id(1), "s1").await.expect("cut");
                    engine.revert(snapshot_id(1), false).await.expect("back");
                }
            }
            assert!(case == 1 || case == 2 || engine.status().replicas[1].changed.is_none(), "case {case}");
            cluster.nodes[1].revive();
            all_in_sync(&cluster).await;
            assert_equal(&cluster);
        });
    }
}

#[test]
fn after_a_stop_in_order_what_an_absent_replica_lacks_is_known_also_without_power() {
    story(1, async {
        let cluster = Cluster::new(2, SIZE);
        let engine = cluster.serve().await;
        fill(&engine, 0..32).await;
        cluster.nodes[1].kill();
        write(&*engine, 9 * REGION_BLOCKS, 4).await.expect("acknowledged");
        engine.stop().await;
        cluster.nodes[0].lose_power();
        cluster.nodes[0].revive();
        let engine = cluster.serve().await;
        assert!(engine.status().replicas[1].changed.is_some_and(|bytes| (REGION..=34 * REGION).contains(&bytes)));
        write(&*engine, 10 * REGION_BLOCKS, 5).await.expect("acknowledged");
        // A note that says "closed" is not the last one any more.
        drop(engine);
        cluster.nodes[0].lose_power();
        cluster.nodes[0].revive();
        let engine = cluster.serve().await;
        assert_eq!(engine.status().replicas[1].changed, None);
        cluster.nodes[1].revive();
        all_in_sync(&cluster).await;
        assert_equal(&cluster);
    });
}

#[test]
fn after_a_power_cut_of_all_copies_come_from_one_that_the_record_calls_in_sync() {
    // I4, I5, I6: 2 was away. It is the first that comes back, and then one of the others.
    for seed in crate::seeds(8) {
        story(seed, async move {
            let cluster = Cluster::new(3, SIZE);
            let engine = cluster.serve().await;
            fill(&engine, 0..8).await;
            cluster.nodes[2].kill();
            for region in 0..8 {
                write(&*engine, region * REGION_BLOCKS, 2).await.expect("acknowledged");
            }
            execute(&*engine, Request::Flush).await.expect("flushed");
            write(&*engine, 9 * REGION_BLOCKS, 3).await.expect("acknowledged, not flushed");
            drop(engine);
            cluster.nodes.iter().for_each(|node| node.lose_power());
            let engine = cluster.start().await;
            cluster.nodes[2].revive();
            sleep(Duration::from_secs(30)).await;
            assert!(matches!(engine.status().state, EngineState::Waiting { .. }), "it is no source");
            let source = (seed % 2) as usize;
            cluster.nodes[source].revive();
            engine.ready().await.expect("it serves");
            let reads = cluster.nodes[2].reads_seen.get();
            for region in 0..8 {
                let read = Request::read(region * REGION_BLOCKS * BLOCK, BLOCK);
                assert_eq!(execute(&*engine, read).await.expect("read").to_vec(), [2; BLOCK as usize]);
            }
            assert_eq!(cluster.nodes[2].reads_seen.get(), reads, "nothing is read from it");
            cluster.nodes.iter().for_each(|node| node.revive());
            all_in_sync(&cluster).await;
            assert_equal(&cluster);
            let content = cluster.nodes[2].disk.borrow().content();
            assert!((0..8).all(|region| content[(region * REGION) as usize] == 2), "it got what it lacked");
        });
    }
}

#[test]
fn one_that_fails_lacks_the_writes_that_it_had_not_answered_whatever_was_flushed_meanwhile() {
    // I23: a flush that passed a write says nothing about it.
    for seed in crate::seeds(4) {
        story(seed, async {
            let cluster = Cluster::new(3, SIZE);
            let engine = cluster.serve().await;
            fill(&engine, 0..4).await;
            cluster.nodes[2].delay.set(Duration::from_secs(3));
            let late = Rc::clone(&engine);
            let writing = spawn(async move { write(&*late, 2 * REGION_BLOCKS, 7).await });
            sleep(Duration::from_millis(5)).await;
            cluster.nodes[2].delay.set(Duration::ZERO);
            execute(&*engine, Request::Flush).await.expect("flushed");
            cluster.nodes[2].lose_power();
            writing.await.expect("it ran").expect("acknowledged by the others");
            cluster.nodes[2].revive();
            all_in_sync(&cluster).await;
            assert_equal(&cluster);
            drop(engine);
        });
    }
}

#[test]
fn one_that_kept_its_power_is_the_source_for_one_that_lost_it() {
    // I3: the local one would be preferred otherwise.
    story(1, async {
        let cluster = Cluster::new(2, SIZE);
        let engine = cluster.serve().await;
        fill(&engine, 0..4).await;
        for region in 0..4 {
            write(&*engine, region * REGION_BLOCKS, 2).await.expect("acknowledged, not flushed");
        }
        drop(engine);
        cluster.nodes[0].lose_power();
        cluster.nodes[0].revive();
        let engine = cluster.serve().await;
        assert_eq!(cluster.registry.state(0), MemberState::Settling);
        assert!(cluster.registry.is_in_sync(1));
        all_in_sync(&cluster).await;
        assert_equal(&cluster);
        let content = cluster.nodes[0].disk.borrow().content();
        assert!((0..4).all(|region| content[(region * REGION) as usize] == 2), "what was acknowledged is there");
        drop(engine);
    });
}

#[test]
fn a_replica_that_cannot_note_is_out_of_sync_before_a_write_goes_out() {
    story(2, async {
        let cluster = Cluster::new(3, SIZE);
        let engine = cluster.serve().await;
        cluster.nodes[2].note_error.set(Some(ErrorKind::WriteFailed));
        write(&*engine, 0, 5).await.expect("acknowledged by the others");
        assert!(!cluster.registry.is_in_sync(2));
        let noted = cluster.nodes[0].notes_seen.get();
        for _ in 0..20 {
            write(&*engine, 1, 5).await.expect("acknowledged");
        }
        assert_eq!(cluster.nodes[0].notes_seen.get(), noted, "a region in use costs nothing");
        cluster.nodes[2].note_error.set(None);
        all_in_sync(&cluster).await;
        assert_equal(&cluster);
    });
}

#[test]
fn replicas_without_space_for_notes_serve_and_are_compared_in_full() {
    story(3, async {
        let cluster = Cluster::new(2, SIZE);
        cluster.nodes.iter().for_each(|node| node.note_error.set(Some(ErrorKind::NoSpace)));
        let engine = cluster.serve().await;
        fill(&engine, 0..8).await;
        drop(engine);
        slowly(&cluster);
        let engine = cluster.serve().await;
        assert_eq!(cluster.registry.state(1), MemberState::Settling);
        assert_eq!(engine.status().replicas[1].changed, None);
        let (compared, _) = copied(&cluster, &engine, 1).await;
        assert_eq!(compared, 8 * BLOCK, "all that is there");
        assert_equal(&cluster);
    });
}

#[test]
fn a_wide_unmap_cut_off_by_a_crash_is_settled_wherever_it_reached() {
    // I10
    story(4, async {
        let cluster = Cluster::new(2, 200 * REGION);
        let engine = cluster.serve().await;
        fill(&engine, 0..150).await;
        cluster.nodes[1].delay.set(Duration::from_secs(3));
        let range = block_device::Range { offset: 0, length: 120 * REGION };
        let unmapping = {
            let engine = Rc::clone(&engine);
            spawn(async move { execute(&*engine, Request::WriteZeroes { range, unmap: true, fua: false }).await })
        };
        let zeroed = || cluster.nodes[0].disk.borrow().content()[..BLOCK as usize].iter().all(|byte| *byte == 0);
        until("it reached one of them", zeroed).await;
        unmapping.abort();
        drop(engine);
        cluster.nodes[1].delay.set(Duration::ZERO);
        let engine = cluster.serve().await;
        all_in_sync(&cluster).await;
        assert_equal(&cluster);
        engine.stop().await;
    });
}
