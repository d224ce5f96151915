//! Reads: which replica is asked, and what happens when it is slow, silent or cannot read.

use std::rc::Rc;
use std::time::Duration;

use block_device::{ErrorKind, Request, execute};
use engine::{Engine, MemberState};
use reactor::{now, sleep, spawn};

use crate::fakes::{BLOCK, Cluster, config};
use crate::model::{Model, write};
use crate::rebuilding::{all_in_sync, assert_equal, snapshot_id, story, until};

const SIZE: u64 = 4 << 20;
const BLOCKS: u64 = SIZE / BLOCK;

/// What a read of a block gives, and how long it takes.
async fn read(engine: &Engine, block: u64) -> (Result<u8, ErrorKind>, Duration) {
    let start = now();
    let outcome = execute(engine, Request::read(block * BLOCK, BLOCK)).await;
    let byte = outcome.map(|data| data.to_vec()[0]).map_err(|error| error.kind());
    (byte, now() - start)
}

async fn read_many(engine: &Engine, count: u64) {
    for block in 0..count {
        read(engine, block % BLOCKS).await.0.expect("readable");
    }
}

/// How many reads each node has seen since the last call.
fn reads_seen(cluster: &Cluster) -> Vec<u32> {
    cluster.nodes.iter().map(|node| node.reads_seen.replace(0)).collect()
}

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn a_silent_replica_holds_up_one_read_for_a_moment_and_the_next_ones_not_at_all() {
    story(1, async {
        let cluster = Cluster::new(3, SIZE);
        let engine = cluster.serve().await;
        write(&*engine, 3, 7).await.expect("acknowledged");
        cluster.nodes[0].set_stalled(true);
        let (byte, took) = read(&engine, 3).await;
        assert_eq!(byte, Ok(7));
        assert!(took <= ms(100), "{took:?}");
        for _ in 0..20 {
            let (byte, took) = read(&engine, 3).await;
            assert_eq!(byte, Ok(7));
            assert!(took <= ms(1), "others are asked first now: {took:?}");
        }
        assert!(cluster.registry.is_in_sync(0), "it has until the deadline");
        assert!(engine.status().in_flight > 0, "what it was asked keeps its place");
        sleep(config().replica_deadline * 5 / 4).await;
        assert!(matches!(cluster.registry.state(0), MemberState::OutOfSync { .. }), "reads alone show that it hangs");
        assert_eq!(engine.status().in_flight, 0);
        cluster.nodes[0].set_stalled(false);
        all_in_sync(&cluster).await;
        assert_equal(&cluster);
    });
}

#[test]
fn several_silent_replicas_are_asked_one_after_the_other() {
    story(2, async {
        let cluster = Cluster::new(3, SIZE);
        let engine = cluster.serve().await;
        write(&*engine, 3, 7).await.expect("acknowledged");
        cluster.nodes[0].set_stalled(true);
        cluster.nodes[1].set_stalled(true);
        let (byte, took) = read(&engine, 3).await;
        assert_eq!(byte, Ok(7));
        assert!(took <= ms(200), "{took:?}");
    });
}

#[test]
fn a_read_that_may_have_met_a_write_waits_for_its_end() {
    // I9: should the engine end before it, the next one may settle on what was there before.
    story(21, async {
        for fails in [false, true] {
            let cluster = Cluster::new(2, SIZE);
            let engine = cluster.serve().await;
            write(&*engine, 3, 7).await.expect("acknowledged");
            cluster.nodes[0].set_stalled(true);
            let reader = Rc::clone(&engine);
            let reading = spawn(async move { read(&reader, 3).await.0 });
            sleep(ms(5)).await;
            let writer = Rc::clone(&engine);
            let writing = spawn(async move { write(&*writer, 3, 8).await });
            // The other replica is asked, and has the new.
            sleep(ms(200)).await;
            assert!(reads_seen(&cluster)[1] > 0);
            assert!(!reading.is_finished() && !writing.is_finished());
            match fails {
                true => cluster.nodes.iter().for_each(|node| node.kill()),
                false => cluster.nodes[0].set_stalled(false),
            }
            let written = writing.await.expect("it ends").is_ok();
            assert_eq!(written, !fails);
            let found = reading.await.expect("it ends");
            assert_eq!(found, if fails { Err(ErrorKind::Unavailable) } else { Ok(8) });
        }
    });
}

#[test]
fn the_last_replica_is_waited_for_and_asked_once() {
    // I3, I34
    story(3, async {
        let cluster = Cluster::new(1, SIZE);
        let engine = cluster.serve().await;
        cluster.nodes[0].set_stalled(true);
        let reading = {
            let engine = Rc::clone(&engine);
            spawn(async move { read(&engine, 3).await.0 })
        };
        sleep(Duration::from_secs(60)).await;
        assert!(!reading.is_finished());
        cluster.nodes[0].set_stalled(false);
        assert_eq!(reading.await.expect("it ends"), Ok(0));
        assert_eq!(reads_seen(&cluster), [1]);
    });
}

#[test]
fn a_slow_local_replica_is_left_alone_until_it_is_fast_again() {
    story(4, async {
        let cluster = Cluster::new(3, SIZE);
        let engine = cluster.serve().await;
        read_many(&engine, 100).await;
        assert_eq!(reads_seen(&cluster), [100, 0, 0], "the one at hand, and no other is measured");
        cluster.nodes[0].delay.set(ms(400));
        read_many(&engine, 100).await;
        let seen = reads_seen(&cluster);
        assert!(seen[0] <= 10 && seen[1] + seen[2] >= 90, "{seen:?}");
        cluster.nodes[0].delay.set(Duration::ZERO);
        let mut rounds = 0;
        loop {
            sleep(ms(500)).await;
            reads_seen(&cluster);
            read_many(&engine, 10).await;
            rounds += 1;
            if reads_seen(&cluster)[0] == 10 {
                break;
            }
            assert!(rounds < 60, "it was never asked again");
        }
    });
}

#[test]
fn without_a_local_replica_the_fastest_is_asked_also_when_that_changes() {
    story(5, async {
        let cluster = Cluster::new(3, SIZE);
        cluster.nodes[0].is_local.set(false);
        let engine = cluster.serve().await;
        for fastest in [2, 0, 1] {
            (0..3).for_each(|node| cluster.nodes[node].delay.set(ms(if node == fastest { 1 } else { 8 })));
            // What was true before is measured again meanwhile.
            for _ in 0..20 {
                sleep(ms(1000)).await;
                read_many(&engine, 2).await;
            }
            reads_seen(&cluster);
            read_many(&engine, 200).await;
            let seen = reads_seen(&cluster);
            assert!(seen[fastest] >= 180, "{fastest} is fastest: {seen:?}");
        }
    });
}

#[test]
fn the_host_sees_an_error_only_when_no_replica_in_sync_can_read() {
    // I34
    story(6, async {
        let cluster = Cluster::new(3, SIZE);
        let engine = cluster.serve().await;
        write(&*engine, 3, 7).await.expect("acknowledged");
        for failing in 0..7 {
            for node in 0..3 {
                let fails = failing >> node & 1 == 1;
                cluster.nodes[node].read_error.set(fails.then_some(ErrorKind::Aborted));
            }
            assert_eq!(read(&engine, 3).await.0, Ok(7), "replicas {failing:03b} cannot read");
        }
        cluster.nodes.iter().for_each(|node| node.read_error.set(Some(ErrorKind::Aborted)));
        assert_eq!(read(&engine, 3).await.0, Err(ErrorKind::Aborted));
        assert_eq!(engine.status().in_flight, 0);
        assert!((0..3).all(|node| cluster.registry.is_in_sync(node)), "a read that fails is no reason to go");
    });
}

#[test]
fn a_replica_that_fails_while_another_is_asked_too_takes_nothing_along() {
    story(7, async {
        let cluster = Cluster::new(2, SIZE);
        let engine = cluster.serve().await;
        write(&*engine, 3, 7).await.expect("acknowledged");
        // Asked too after a while, and dies before it has answered; the first one answers in the end.
        cluster.nodes[0].set_stalled(true);
        cluster.nodes[1].set_stalled(true);
        let reading = {
            let engine = Rc::clone(&engine);
            spawn(async move { read(&engine, 3).await.0 })
        };
        sleep(ms(200)).await;
        assert_eq!(reads_seen(&cluster), [1, 1]);
        cluster.nodes[1].kill();
        sleep(ms(200)).await;
        assert!(!reading.is_finished());
        cluster.nodes[0].set_stalled(false);
        assert_eq!(reading.await.expect("it ends"), Ok(7));
        assert_eq!(engine.status().in_flight, 0);
    });
}

#[test]
fn late_answers_never_reach_another_request() {
    // I7, I9, I34: replicas are slow and silent at random; reads are answered by others while writes, snapshots and changes of members go on.
    for seed in crate::seeds(12) {
        story(seed, async move {
            let cluster = Cluster::new(3, SIZE);
            cluster.nodes[0].is_local.set(seed % 2 == 0);
            let engine = cluster.serve().await;
            let model = Model::new(64);
            let trouble = {
                let cluster = Rc::clone(&cluster);
                spawn(async move {
                    loop {
                        let node = &cluster.nodes[reactor::random() as usize % 3];
                        match reactor::random() % 3 {
                            0 => node.delay.set(ms(reactor::random() % 300)),
                            1 => node.delay.set(Duration::ZERO),
                            _ => {
                                node.set_stalled(true);
                                sleep(ms(reactor::random() % 600)).await;
                                node.set_stalled(false);
                            }
                        }
                        sleep(ms(reactor::random() % 200)).await;
                    }
                })
            };
            for number in 0..4 {
                model.run(&engine, 6, 150).await;
                engine.snapshot(snapshot_id(number), "s").await.expect("cut");
            }
            trouble.abort();
            for node in &cluster.nodes {
                node.set_stalled(false);
                node.delay.set(Duration::ZERO);
            }
            until("quiet", || engine.status().in_flight == 0).await;
            all_in_sync(&cluster).await;
            model.check_all(&engine).await;
            engine.stop().await;
            assert_equal(&cluster);
        });
    }
}
