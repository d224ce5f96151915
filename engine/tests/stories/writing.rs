//! The write path and membership, against replicas of memory with faults.

use std::rc::Rc;
use std::time::Duration;

use block_device::{Error, ErrorKind, Outcome, Request, Slice, execute};
use engine::{Engine, EngineState, MemberState};
use reactor::simulated::World;
use reactor::{now, sleep, spawn};

use crate::fakes::{BLOCK, Cluster};

const SIZE: u64 = 2 << 20;

/// Runs a test's story in a world.
fn story<F: Future<Output = ()> + 'static>(seed: u64, story: F) {
    let world = World::new(seed);
    let node = world.add_node([10, 0, 0, 1].into());
    world.block_on(node, story);
}

async fn write(engine: &Engine, block: u64, byte: u8) -> Outcome {
    let request = Request::write(block * BLOCK, Slice::from(&vec![byte; BLOCK as usize][..]));
    execute(engine, request).await
}

async fn read(engine: &Engine, block: u64) -> Result<u8, Error> {
    let data = execute(engine, Request::read(block * BLOCK, BLOCK)).await?.to_vec();
    assert!(data.iter().all(|byte| *byte == data[0]), "a block is one write");
    Ok(data[0])
}

fn kind<T>(outcome: Result<T, Error>) -> Option<ErrorKind> {
    outcome.err().map(|error| error.kind())
}

fn byte_on(cluster: &Cluster, node: usize, block: u64) -> u8 {
    cluster.nodes[node].disk.borrow().content()[(block * BLOCK) as usize]
}

async fn until(mut condition: impl FnMut() -> bool) {
    let start = now();
    while !condition() {
        assert!(now() - start < Duration::from_secs(600), "it never came to be");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until every replica is in sync, and checks that they are equal.
async fn all_equal(cluster: &Cluster) {
    until(|| (0..cluster.nodes.len()).all(|node| cluster.registry.is_in_sync(node))).await;
    let first = cluster.nodes[0].disk.borrow().content();
    for node in &cluster.nodes[1..] {
        assert!(node.disk.borrow().content() == first, "replicas in sync are equal");
    }
}

#[test]
fn an_acknowledged_write_is_on_every_replica_in_sync() {
    // I1
    story(1, async {
        let cluster = Cluster::new(3, SIZE);
        cluster.nodes[2].delay.set(Duration::from_millis(300));
        let engine = cluster.serve().await;
        for block in 0..20 {
            write(&engine, block, 7).await.expect("acknowledged");
            (0..3).for_each(|node| assert_eq!(byte_on(&cluster, node, block), 7));
        }
        assert_eq!(read(&engine, 3).await.expect("read"), 7);
        assert_eq!(cluster.nodes[1].reads_seen.get(), 0, "reads are local");
        engine.stop().await;
        assert!(cluster.registry.record().clean);
    });
}

#[test]
fn a_dead_replica_is_recorded_before_the_write_it_lacks_is_acknowledged() {
    // I1, I2
    story(2, async {
        let cluster = Cluster::new(3, SIZE);
        let engine = cluster.serve().await;
        cluster.nodes[1].delay.set(Duration::from_millis(500));
        let writing = {
            let (engine, cluster) = (Rc::clone(&engine), Rc::clone(&cluster));
            spawn(async move {
                write(&engine, 0, 9).await.expect("acknowledged");
                assert!(matches!(cluster.registry.state(1), MemberState::OutOfSync { .. }));
            })
        };
        sleep(Duration::from_millis(1)).await;
        cluster.nodes[1].kill();
        writing.await.expect("it ends");
        assert!(cluster.registry.is_in_sync(0) && cluster.registry.is_in_sync(2));
    });
}

#[test]
fn while_the_registry_refuses_no_degraded_write_is_acknowledged() {
    // I2
    story(3, async {
        let cluster = Cluster::new(2, SIZE);
        let engine = cluster.serve().await;
        cluster.registry.refuses.set(true);
        cluster.nodes[1].kill();
        let writing = {
            let engine = Rc::clone(&engine);
            spawn(async move { write(&engine, 0, 5).await })
        };
        sleep(Duration::from_secs(5)).await;
        assert_eq!(read(&engine, 1).await.expect("reads go on for as long as the lease"), 0);
        sleep(Duration::from_secs(15)).await;
        assert!(!writing.is_finished(), "it stalls");
        assert!(cluster.registry.is_in_sync(1));
        // Another engine may have the dead replica and the registry by now (I9).
        let reading = {
            let engine = Rc::clone(&engine);
            spawn(async move { read(&engine, 1).await })
        };
        sleep(Duration::from_secs(20)).await;
        assert!(!reading.is_finished(), "it waits too");
        cluster.registry.refuses.set(false);
        assert_eq!(reading.await.expect("it ends").expect("read"), 0);
        writing.await.expect("it ends").expect("acknowledged");
        assert!(!cluster.registry.is_in_sync(1));
    });
}

#[test]
fn a_swap_that_worked_but_said_it_failed_is_found_out() {
    // I2: an unknown outcome is looked up, not guessed.
    story(4, async {
        let cluster = Cluster::new(2, SIZE);
        let engine = cluster.serve().await;
        cluster.registry.lies.set(1);
        cluster.nodes[1].kill();
        write(&engine, 0, 5).await.expect("acknowledged");
        assert!(!cluster.registry.is_in_sync(1));
        assert_eq!(engine.status().state, EngineState::Serving);
    });
}

#[test]
fn a_replica_that_does_not_answer_is_out_of_sync_after_the_deadline() {
    story(5, async {
        let cluster = Cluster::new(2, SIZE);
        let engine = cluster.serve().await;
        cluster.nodes[1].set_stalled(true);
        let start = now();
        write(&engine, 0, 5).await.expect("acknowledged");
        let took = now() - start;
        assert!(took < crate::fakes::config().replica_deadline * 5 / 4, "{took:?}");
        assert!(
            matches!(cluster.registry.state(1), MemberState::OutOfSync { reason, .. } if reason.contains("no answer"))
        );
        // What stalled there lands later, on a replica that nobody reads (I15).
        write(&engine, 0, 6).await.expect("acknowledged");
        cluster.nodes[1].set_stalled(false);
        all_equal(&cluster).await;
        assert_eq!(byte_on(&cluster, 1, 0), 6);
    });
}

#[test]
fn the_last_replica_may_stall_but_is_never_recorded_failed() {
    // I3
    story(6, async {
        let cluster = Cluster::new(2, SIZE);
        let engine = cluster.serve().await;
        cluster.nodes[1].kill();
        write(&engine, 0, 5).await.expect("acknowledged");
        cluster.nodes[0].set_stalled(true);
        let writing = {
            let engine = Rc::clone(&engine);
            spawn(async move { write(&engine, 0, 6).await })
        };
        sleep(Duration::from_secs(60)).await;
        assert!(!writing.is_finished() && cluster.registry.is_in_sync(0));
        cluster.nodes[0].set_stalled(false);
        writing.await.expect("it ends").expect("acknowledged");
    });
}

#[test]
fn a_stale_replica_alone_does_not_open_the_volume() {
    // I5, I6: 1 fails, writes go on, 0 fails; 1 comes back alone, then 0.
    story(7, async {
        let cluster = Cluster::new(2, SIZE);
        let engine = cluster.serve().await;
        cluster.nodes[1].kill();
        write(&engine, 0, 5).await.expect("acknowledged");
        cluster.nodes[0].kill();
        assert_eq!(kind(write(&engine, 0, 6).await), Some(ErrorKind::Unavailable));
        cluster.nodes[1].revive();
        sleep(Duration::from_secs(30)).await;
        let status = engine.status();
        let EngineState::Waiting { reason } = status.state else { panic!("it opened: {status:?}") };
        assert!(reason.contains("n0"), "it says whom it waits for: {reason}");
        assert_eq!(kind(read(&engine, 0).await), Some(ErrorKind::Unavailable));
        assert!(cluster.registry.is_in_sync(0));
        cluster.nodes[0].revive();
        engine.ready().await.expect("it serves");
        // The write that failed may have landed (I10), the one acknowledged is there or under it.
        assert!([5, 6].contains(&read(&engine, 0).await.expect("read")));
        all_equal(&cluster).await;
    });
}

#[test]
fn after_all_replicas_failed_at_once_none_is_recorded_and_the_data_is_there() {
    // I3
    story(8, async {
        let cluster = Cluster::new(3, SIZE);
        let engine = cluster.serve().await;
        write(&engine, 4, 44).await.expect("acknowledged");
        cluster.nodes.iter().for_each(|node| node.kill());
        assert_eq!(kind(write(&engine, 0, 6).await), Some(ErrorKind::Unavailable));
        (0..3).for_each(|node| assert!(cluster.registry.is_in_sync(node)));
        cluster.nodes[2].revive();
        engine.ready().await.expect("any of them will do");
        assert_eq!(read(&engine, 4).await.expect("read"), 44);
        cluster.nodes[0].revive();
        cluster.nodes[1].revive();
        all_equal(&cluster).await;
    });
}

#[test]
fn of_two_engines_the_older_acknowledges_nothing_any_more() {
    // I14
    story(9, async {
        let cluster = Cluster::new(3, SIZE);
        let old = cluster.serve().await;
        write(&old, 0, 1).await.expect("acknowledged");
        let new = cluster.serve().await;
        assert_eq!(kind(write(&old, 0, 2).await), Some(ErrorKind::Fenced));
        assert_eq!(kind(read(&old, 0).await), Some(ErrorKind::Fenced));
        assert!(matches!(old.status().state, EngineState::Stopped { .. }));
        write(&new, 0, 3).await.expect("acknowledged");
        assert_eq!(kind(write(&old, 0, 4).await), Some(ErrorKind::Fenced));
        assert_eq!(read(&new, 0).await.expect("read"), 3);
        all_equal(&cluster).await;
    });
}

#[test]
fn an_engine_that_cannot_swap_any_more_stops() {
    // I2, I14: the old one reaches its replica, but the record is another engine's.
    story(10, async {
        let cluster = Cluster::new(2, SIZE);
        let old = cluster.serve().await;
        cluster.nodes[0].reachable.set(false);
        // The new one opens replica 1 only, and records 0 out of sync.
        let new = cluster.serve().await;
        assert!(!cluster.registry.is_in_sync(0));
        assert_eq!(kind(write(&old, 0, 2).await), Some(ErrorKind::Fenced));
        write(&new, 0, 3).await.expect("acknowledged");
    });
}

#[test]
fn no_space_on_one_replica_costs_that_replica_on_all_it_is_an_error() {
    // I32
    story(11, async {
        let cluster = Cluster::new(3, SIZE);
        let engine = cluster.serve().await;
        cluster.nodes[1].write_error.set(Some(ErrorKind::NoSpace));
        write(&engine, 0, 5).await.expect("acknowledged by the others");
        assert!(!cluster.registry.is_in_sync(1));
        cluster.nodes[0].write_error.set(Some(ErrorKind::NoSpace));
        cluster.nodes[2].write_error.set(Some(ErrorKind::NoSpace));
        assert_eq!(kind(write(&engine, 0, 6).await), Some(ErrorKind::NoSpace));
        assert_eq!(read(&engine, 0).await.expect("reads go on"), 5);
        assert!(cluster.registry.is_in_sync(0), "the last one stays (I3)");
        cluster.nodes.iter().for_each(|node| node.write_error.set(None));
        write(&engine, 0, 7).await.expect("space came back");
        all_equal(&cluster).await;
    });
}

#[test]
fn busy_is_tried_again_and_costs_nobody_anything() {
    // I33
    story(12, async {
        let cluster = Cluster::new(2, SIZE);
        let engine = cluster.serve().await;
        cluster.nodes[1].busy.set(50);
        write(&engine, 0, 5).await.expect("acknowledged");
        cluster.nodes[0].busy.set(50);
        assert_eq!(read(&engine, 0).await.expect("read"), 5);
        assert!(cluster.registry.is_in_sync(0) && cluster.registry.is_in_sync(1));
    });
}

#[test]
fn overlapping_writes_leave_all_replicas_equal() {
    for seed in crate::seeds(10) {
        story(seed, async {
            let cluster = Cluster::new(3, SIZE);
            cluster.nodes.iter().for_each(|node| node.delay.set(Duration::from_millis(20)));
            let engine = cluster.serve().await;
            let writes: Vec<_> = (1..=60)
                .map(|byte| {
                    let engine = Rc::clone(&engine);
                    spawn(async move {
                        let length = BLOCK * (1 + reactor::random() % 4);
                        let offset = BLOCK * (reactor::random() % 6);
                        let data = Slice::from(&vec![byte; length as usize][..]);
                        execute(&*engine, Request::write(offset, data)).await.expect("acknowledged");
                    })
                })
                .collect();
            for write in writes {
                write.await.expect("it ends");
            }
            all_equal(&cluster).await;
        });
    }
}

#[test]
fn a_failed_read_is_tried_on_another_replica() {
    story(13, async {
        let cluster = Cluster::new(3, SIZE);
        let engine = cluster.serve().await;
        write(&engine, 0, 5).await.expect("acknowledged");
        cluster.nodes[0].read_error.set(Some(ErrorKind::ReadFailed));
        assert_eq!(read(&engine, 0).await.expect("from another"), 5);
        cluster.nodes[1].read_error.set(Some(ErrorKind::ReadFailed));
        cluster.nodes[2].read_error.set(Some(ErrorKind::ReadFailed));
        assert_eq!(kind(read(&engine, 0).await), Some(ErrorKind::ReadFailed));
        assert!((0..3).all(|node| cluster.registry.is_in_sync(node)), "a bad block is no reason to drop a replica");
    });
}

#[test]
fn compare_looks_at_the_volume() {
    story(14, async {
        let cluster = Cluster::new(2, SIZE);
        let engine = cluster.serve().await;
        write(&engine, 0, 5).await.expect("acknowledged");
        let compare = |byte| Request::Compare { offset: 0, data: Slice::from(&vec![byte; BLOCK as usize][..]) };
        assert!(execute(&*engine, compare(5)).await.is_ok());
        assert_eq!(kind(execute(&*engine, compare(6)).await), Some(ErrorKind::CompareMismatch));
    });
}

#[test]
fn limits_that_do_not_fit_are_refused() {
    // I35
    story(15, async {
        let cluster = Cluster::new(1, SIZE);
        let config = engine::EngineConfig { replica_deadline: Duration::from_millis(499), ..crate::fakes::config() };
        let refused = Engine::start(config, Rc::clone(&cluster.registry) as Rc<_>).await;
        assert!(matches!(refused, Err(engine::EngineError::Config(_))));
        // Reads would stop whenever a replica is silent.
        let mut config = crate::fakes::config();
        config.remote.silence_limit = config.lease - config.remote.ping_interval;
        let refused = Engine::start(config, Rc::clone(&cluster.registry) as Rc<_>).await;
        assert!(matches!(refused, Err(engine::EngineError::Config(_))));
        let other = engine::EngineConfig::new(uuid::Uuid::from_bytes([1; 16]));
        let unknown = Engine::start(other, Rc::clone(&cluster.registry) as Rc<_>).await;
        assert!(matches!(unknown, Err(engine::EngineError::NoVolume(_))));
    });
}

#[test]
fn after_a_stop_in_order_nothing_is_settled_after_a_crash_everything_is() {
    // I7, I8
    story(16, async {
        let cluster = Cluster::new(3, SIZE);
        let engine = cluster.serve().await;
        write(&engine, 0, 5).await.expect("acknowledged");
        engine.stop().await;
        assert_eq!(kind(write(&engine, 0, 6).await), Some(ErrorKind::Unavailable));
        let engine = cluster.serve().await;
        assert!((0..3).all(|node| cluster.registry.is_in_sync(node)));
        drop(engine);
        let engine = cluster.serve().await;
        assert!(cluster.registry.is_in_sync(0), "the source");
        assert_eq!(read(&engine, 0).await.expect("read"), 5);
        all_equal(&cluster).await;
    });
}

#[test]
fn a_write_on_one_replica_only_reads_the_same_for_ever_after_a_crash() {
    // I7: the write landed on 1 and not on 0, or on 0 and not on 1.
    for seed in crate::seeds(10) {
        story(seed, async move {
            let cluster = Cluster::new(2, SIZE);
            let engine = cluster.serve().await;
            write(&engine, 0, 5).await.expect("acknowledged");
            let landed = (seed % 2) as usize;
            cluster.nodes[1 - landed].set_stalled(true);
            let writing = {
                let engine = Rc::clone(&engine);
                spawn(async move { write(&engine, 0, 6).await })
            };
            sleep(Duration::from_millis(10)).await;
            assert_eq!(byte_on(&cluster, landed, 0), 6);
            writing.abort();
            drop(engine);
            cluster.nodes[1 - landed].set_stalled(false);
            let engine = cluster.serve().await;
            let seen = read(&engine, 0).await.expect("read");
            // A second crash, before it may have settled; the first source may be away for a while.
            drop(engine);
            if seed % 3 == 0 {
                cluster.nodes[0].kill();
            }
            let engine = cluster.start().await;
            sleep(Duration::from_secs(3)).await;
            cluster.nodes[0].revive();
            engine.ready().await.expect("it serves");
            assert_eq!(read(&engine, 0).await.expect("read"), seen);
            all_equal(&cluster).await;
            assert_eq!(read(&engine, 0).await.expect("read"), seen);
            assert_eq!(byte_on(&cluster, 1, 0), seen);
        });
    }
}

#[test]
fn requests_beyond_the_bound_are_busy_and_all_are_answered_once() {
    // I34: exactly one completion each.
    story(17, async {
        let cluster = Cluster::new(2, SIZE);
        let engine = cluster.serve().await;
        cluster.nodes[1].set_stalled(true);
        let writes: Vec<_> = (0..5000u64)
            .map(|index| {
                let engine = Rc::clone(&engine);
                spawn(async move { kind(write(&engine, index % 512, 1).await) })
            })
            .collect();
        sleep(Duration::from_millis(100)).await;
        cluster.nodes[1].set_stalled(false);
        let mut busy = 0;
        for write in writes {
            match write.await.expect("it ends") {
                None => {}
                Some(ErrorKind::Busy) => busy += 1,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(busy, 5000 - 4096);
        assert_eq!(engine.status().in_flight, 0);
        all_equal(&cluster).await;
    });
}

#[test]
fn a_write_that_waited_ends_in_order_when_everything_is_lost_meanwhile() {
    // I34: its start finds that nobody is left, and that changes what the engine does.
    story(1, async {
        let cluster = Cluster::new(3, SIZE);
        let engine = cluster.serve().await;
        // Nothing can be recorded for a while, so the engine still serves when its last replica has failed.
        cluster.registry.refuses.set(true);
        cluster.nodes[2].kill();
        sleep(Duration::from_millis(20)).await;
        for node in &cluster.nodes[..2] {
            node.snapshot_error.set(Some(ErrorKind::Unavailable));
            node.delay.set(Duration::from_millis(50));
        }
        let cutting = Rc::clone(&engine);
        let cutting = spawn(async move { cutting.snapshot(uuid::Uuid::from_bytes([9; 16]), "s").await });
        sleep(Duration::from_micros(100)).await;
        let outcome = write(&engine, 0, 7).await;
        assert_eq!(kind(outcome), Some(ErrorKind::Unavailable));
        assert!(cutting.await.expect("it ends").is_err());
        cluster.registry.refuses.set(false);
        cluster.nodes[2].revive();
        cluster.nodes[..2].iter().for_each(|node| node.snapshot_error.set(None));
        until(|| engine.status().state == EngineState::Serving).await;
        write(&engine, 0, 8).await.expect("acknowledged");
        all_equal(&cluster).await;
    });
}
