//! How rebuilds go on beside other work: rates, pauses, places, and what is left to do after a restart of anyone.

use std::time::Duration;

use block_device::{Request, execute};
use engine::{CopyProgress, Engine, EngineConfig, MemberState, RebuildSettings, Rebuilds};
use reactor::simulated::World;
use reactor::{now, sleep};

use crate::fakes::{BLOCK, Cluster, config};
use crate::model::{Model, write};
use crate::rebuilding::{all_in_sync, assert_equal, snapshot_id, story, until};

const SIZE: u64 = 4 << 20;
const BLOCKS: u64 = SIZE / BLOCK;
const KIB: u64 = 1 << 10;

const PAUSED: RebuildSettings = RebuildSettings { paused: true, rate: 0 };

fn progress(engine: &Engine, node: usize) -> CopyProgress {
    engine.status().replicas[node].copy.clone().unwrap_or_default()
}

fn at_rate(rate: u64) -> RebuildSettings {
    RebuildSettings { paused: false, rate }
}

/// A replica that has to get every block: a half in a snapshot, all in the head.
async fn lacks_everything(cluster: &Cluster, engine: &Engine, node: usize) {
    for block in 0..BLOCKS / 2 {
        write(engine, block, 1).await.expect("acknowledged");
    }
    engine.snapshot(snapshot_id(1), "s1").await.expect("cut");
    for block in 0..BLOCKS {
        write(engine, block, 2).await.expect("acknowledged");
    }
    cluster.nodes[node].kill();
    write(engine, 0, 3).await.expect("acknowledged");
    cluster.nodes[node].disk.borrow_mut().forget();
    cluster.nodes[node].disk.borrow_mut().reset();
}

#[test]
fn a_rebuild_keeps_to_its_rate_which_can_be_changed_meanwhile() {
    for shared in [false, true] {
        story(1, async move {
            let cluster = Cluster::new(2, SIZE);
            let rebuilds = Rebuilds::new(4, if shared { 512 * KIB } else { 0 });
            let rebuild = at_rate(if shared { 0 } else { 512 * KIB });
            let engine = cluster.serve_with(EngineConfig { rebuilds: rebuilds.clone(), rebuild, ..config() }).await;
            lacks_everything(&cluster, &engine, 1).await;
            cluster.nodes[1].revive();
            until("it begins", || progress(&engine, 1).written > 0).await;
            let before = moved(&engine, 1);
            sleep(Duration::from_secs(5)).await;
            let (copy, moved) = (progress(&engine, 1), moved(&engine, 1) - before);
            assert!((2000 * KIB..=2900 * KIB).contains(&moved), "512 KiB/s and what is lent: {moved}");
            assert!((256 * KIB..1024 * KIB).contains(&copy.rate), "{copy:?}");
            let left = (copy.total - copy.done) / (512 * KIB);
            let remaining = copy.remaining.expect("it is measured by now").as_secs();
            assert!((left / 2..=left * 2 + 1).contains(&remaining), "{copy:?}");
            rebuilds.set_rate(0);
            engine.set_rebuild(RebuildSettings::default());
            let begun = now();
            all_in_sync(&cluster).await;
            assert!(now() - begun < Duration::from_secs(1), "{:?}", now() - begun);
            assert_equal(&cluster);
        });
    }
}

#[test]
fn a_paused_rebuild_stays_where_it_is_and_goes_on_from_there() {
    for seed in crate::seeds(6) {
        story(seed, async move {
            let cluster = Cluster::new(2, SIZE);
            let rebuild = at_rate(1024 * KIB);
            let engine = cluster.serve_with(EngineConfig { rebuild, ..config() }).await;
            lacks_everything(&cluster, &engine, 1).await;
            cluster.nodes[1].revive();
            // In the snapshot, or in the head.
            until("it is on its way", || progress(&engine, 1).written > (256 + seed * 768) * KIB).await;
            engine.set_rebuild(PAUSED);
            until("it says so", || progress(&engine, 1).waiting.as_deref() == Some("paused")).await;
            sleep(Duration::from_secs(1)).await;
            let (stopped, reads) = (progress(&engine, 1), cluster.nodes[0].reads_seen.get());
            sleep(Duration::from_secs(3600)).await;
            assert_eq!(progress(&engine, 1), stopped);
            assert_eq!(cluster.nodes[0].reads_seen.get(), reads, "nothing is read");
            assert_eq!(cluster.registry.state(1), MemberState::Rebuilding);
            if seed % 2 == 0 {
                // Hosts go on, and so do snapshots.
                write(&*engine, 5, 9).await.expect("acknowledged");
                engine.snapshot(snapshot_id(2), "s2").await.expect("cut");
                write(&*engine, BLOCKS - 1, 9).await.expect("acknowledged");
            }
            engine.set_rebuild(RebuildSettings::default());
            let mut written = 0;
            until("in sync", || {
                written = written.max(progress(&engine, 1).written);
                cluster.registry.is_in_sync(1)
            })
            .await;
            assert!(written <= SIZE / 2 + SIZE + 4 * BLOCK, "nothing was sent twice: {written}");
            assert_equal(&cluster);
        });
    }
}

#[test]
fn after_a_restart_of_anyone_nothing_is_sent_again() {
    // I20: by what was copied the rebuild is shorter, whoever was killed.
    for seed in crate::seeds(9) {
        story(seed, async move {
            let cluster = Cluster::new(2, SIZE);
            let rebuild = at_rate(1024 * KIB);
            let mut engine = cluster.serve_with(EngineConfig { rebuild, ..config() }).await;
            lacks_everything(&cluster, &engine, 1).await;
            cluster.nodes[1].revive();
            until("it is on its way", || progress(&engine, 1).written > (512 + seed * 512) * KIB).await;
            engine.set_rebuild(PAUSED);
            sleep(Duration::from_secs(2)).await;
            let before = progress(&engine, 1).written;
            if seed % 3 == 0 {
                drop(engine);
                engine = cluster.serve_with(EngineConfig { rebuild: PAUSED, ..config() }).await;
            } else {
                cluster.nodes[(seed % 3 - 1) as usize].kill();
                sleep(Duration::from_secs(1)).await;
                cluster.nodes.iter().for_each(|node| node.revive());
                engine.ready().await.expect("it serves again");
            }
            until("it waits", || progress(&engine, 1).waiting.as_deref() == Some("paused")).await;
            assert_eq!(progress(&engine, 1).written, 0, "a pause outlives the job");
            engine.set_rebuild(at_rate(2048 * KIB));
            let mut after = 0;
            until("in sync", || {
                after = after.max(progress(&engine, 1).written);
                cluster.registry.is_in_sync(1)
            })
            .await;
            let needed = SIZE / 2 + SIZE;
            assert!(before + after <= needed + BLOCK, "{before} and {after} of {needed}");
            assert_eq!(cluster.nodes[1].disk.borrow().resets, 1, "the one of the test");
            assert_equal(&cluster);
        });
    }
}

#[test]
fn rebuilds_share_the_places_of_their_node() {
    for places in [1, 2] {
        story(1, async move {
            let cluster = Cluster::new(3, SIZE);
            let rebuilds = Rebuilds::new(places, 512 * KIB);
            let engine = cluster.serve_with(EngineConfig { rebuilds: rebuilds.clone(), ..config() }).await;
            lacks_everything(&cluster, &engine, 1).await;
            cluster.nodes[2].kill();
            write(&*engine, 1, 3).await.expect("acknowledged");
            cluster.nodes[2].disk.borrow_mut().forget();
            cluster.nodes[1].revive();
            cluster.nodes[2].revive();
            let begun = || (1..3).filter(|node| moved(&engine, *node) > 512 * KIB).count();
            until("they begin", || begun() == places).await;
            let waiting = |node| progress(&engine, node).waiting.is_some_and(|reason| reason.contains("its turn"));
            match places {
                1 => assert!((1..3).any(waiting) && (1..3).any(|node| moved(&engine, node) == 0)),
                _ => assert!(!(1..3).any(waiting) && (1..3).all(|node| moved(&engine, node) > 0)),
            }
            if places == 1 {
                // A pause gives the place away, and whoever waits for it stays.
                engine.set_rebuild(PAUSED);
                until("both wait", || (1..3).all(|node| progress(&engine, node).waiting.is_some())).await;
                assert_eq!(rebuilds.free(), 1);
            }
            rebuilds.set_rate(0);
            engine.set_rebuild(RebuildSettings::default());
            all_in_sync(&cluster).await;
            assert_equal(&cluster);
            until("all places are free", || rebuilds.free() == places).await;
        });
    }
}

fn moved(engine: &Engine, node: usize) -> u64 {
    let copy = progress(engine, node);
    copy.written + copy.compared
}

#[test]
fn several_rebuilds_of_a_volume_at_once_end_with_equal_replicas() {
    // I17, with copies that lock the same regions.
    for seed in crate::seeds(8) {
        story(seed, async move {
            let cluster = Cluster::new(4, SIZE);
            let engine = cluster.serve().await;
            let model = Model::new(BLOCKS);
            model.run(&engine, 4, 100).await;
            engine.snapshot(snapshot_id(1), "s1").await.expect("cut");
            for node in 1..4 {
                cluster.nodes[node].kill();
                model.run(&engine, 4, 40).await;
            }
            cluster.nodes.iter().for_each(|node| node.delay.set(Duration::from_millis(1 + seed % 4)));
            cluster.nodes.iter().for_each(|node| node.revive());
            while !(1..4).all(|node| cluster.registry.is_in_sync(node)) {
                model.run(&engine, 8, 20).await;
            }
            model.check_all(&engine).await;
            assert_equal(&cluster);
        });
    }
}

#[test]
fn one_that_comes_and_goes_is_left_alone_for_longer_each_time_until_it_stays() {
    story(1, async {
        let cluster = Cluster::new(2, SIZE);
        let engine = cluster.serve().await;
        let mut away = Vec::new();
        for round in 0..12u8 {
            sleep(Duration::from_secs(1)).await;
            cluster.nodes[1].cut();
            write(&*engine, 0, round).await.expect("acknowledged");
            let (left, mut told) = (now(), None);
            until("in sync again", || {
                told = told.or(engine.status().replicas[1].next_try);
                cluster.registry.is_in_sync(1)
            })
            .await;
            away.push(now() - left);
            assert_eq!(engine.status().replicas[1].departures, u32::from(round) + 1);
            assert_eq!(told.is_some(), round > 0, "people are told when it is tried again");
            assert!(told.is_none_or(|told| told <= now() - left), "{told:?}");
        }
        assert!(away[0] < Duration::from_millis(200), "the first time it is back at once: {away:?}");
        assert!(away[1] > Duration::from_millis(200) && away[6] > Duration::from_secs(5), "{away:?}");
        assert!(away.iter().all(|away| *away < Duration::from_secs(31)), "{away:?}");
        sleep(Duration::from_secs(61)).await;
        cluster.nodes[1].cut();
        write(&*engine, 0, 77).await.expect("acknowledged");
        let left = now();
        all_in_sync(&cluster).await;
        assert!(now() - left < Duration::from_millis(200), "it had stayed");
        assert_equal(&cluster);
    });
}

/// Deadlines, copies and repairs cost nothing while there is nothing to watch.
#[test]
fn an_idle_volume_sleeps() {
    let world = World::new(1);
    let node = world.add_node([10, 0, 0, 1].into());
    let engine = world.block_on(node, async {
        let engine = Cluster::new(3, SIZE).serve().await;
        write(&*engine, 0, 1).await.expect("acknowledged");
        engine
    });
    world.run_for(Duration::from_secs(60));
    let before = world.events();
    world.run_for(Duration::from_secs(3600));
    assert_eq!(world.events() - before, 0, "events");
    drop(engine);
}

#[test]
fn after_any_idle_time_the_shortest_deadline_is_kept() {
    story(1, async {
        let cluster = Cluster::new(3, SIZE);
        let replica_deadline = engine::MIN_DEADLINE;
        let engine = cluster.serve_with(EngineConfig { replica_deadline, ..config() }).await;
        for node in [1, 2] {
            sleep(Duration::from_millis(12_345)).await;
            cluster.nodes[node].set_stalled(true);
            let begun = now();
            write(&*engine, 0, 1).await.expect("acknowledged");
            let took = now() - begun;
            assert!(took >= replica_deadline && took < replica_deadline + Duration::from_millis(100), "{took:?}");
            cluster.nodes[node].set_stalled(false);
            all_in_sync(&cluster).await;
        }
        assert_equal(&cluster);
    });
}

#[test]
fn a_target_that_hangs_while_it_gets_no_writes_of_hosts_gives_its_place_back() {
    story(1, async {
        let cluster = Cluster::new(2, SIZE);
        let rebuilds = Rebuilds::new(1, 1024 * KIB);
        let engine = cluster.serve_with(EngineConfig { rebuilds: rebuilds.clone(), ..config() }).await;
        lacks_everything(&cluster, &engine, 1).await;
        cluster.nodes[1].revive();
        until("it copies the snapshot", || progress(&engine, 1).step.starts_with("copying snapshot")).await;
        cluster.nodes[1].set_stalled(true);
        until("it gives up", || rebuilds.free() == 1).await;
        execute(&*engine, Request::Flush).await.expect("hosts do not notice");
        cluster.nodes[1].set_stalled(false);
        all_in_sync(&cluster).await;
        assert_equal(&cluster);
    });
}
