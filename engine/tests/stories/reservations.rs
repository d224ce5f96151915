//! Reservations of hosts are kept with the volume (I38).

use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use block_device::ErrorKind;
use engine::{EngineError, EngineState, MAX_RESERVATIONS, MemberState};
use reactor::simulated::World;
use reactor::{random, sleep, spawn};

use crate::fakes::Cluster;
use crate::model::write;
use crate::rebuilding::all_in_sync;

const SIZE: u64 = 2 << 20;

fn story<F: Future<Output = ()> + 'static>(seed: u64, story: F) {
    let world = World::new(seed);
    let node = world.add_node([10, 0, 0, 1].into());
    world.block_on(node, story);
}

/// More than fits beside a copy.
fn many(byte: u8) -> Vec<u8> {
    vec![byte; MAX_RESERVATIONS]
}

fn copy_of(cluster: &Cluster, node: usize) -> Option<Vec<u8>> {
    cluster.nodes[node].disk.borrow().attached.clone()
}

#[test]
fn they_are_with_the_registry_and_every_replica_in_sync_and_come_back() {
    story(1, async {
        let cluster = Cluster::new(3, SIZE);
        let engine = cluster.serve().await;
        assert!(engine.reservations().is_empty());
        for reservations in [b"one".to_vec(), many(2), b"three".to_vec(), Vec::new(), many(5)] {
            engine.set_reservations(reservations.clone()).await.expect("kept");
            assert_eq!(engine.reservations(), reservations);
            assert_eq!(cluster.registry.record().reservations, reservations);
            (0..3).for_each(|node| assert_eq!(copy_of(&cluster, node), Some(reservations.clone())));
        }
        let too_many = vec![0; MAX_RESERVATIONS + 1];
        assert!(matches!(engine.set_reservations(too_many).await, Err(EngineError::Config(_))));
        drop(engine);
        let engine = cluster.serve().await;
        assert_eq!(engine.reservations(), many(5));
        engine.stop().await;
        let refused = engine.set_reservations(Vec::new()).await;
        assert!(matches!(refused, Err(EngineError::Unavailable(_))), "{refused:?}");
        assert_eq!(cluster.registry.record().reservations, many(5));
    });
}

#[test]
fn a_replica_that_was_away_or_made_anew_gets_them_before_it_is_in_sync() {
    story(2, async {
        let cluster = Cluster::new(2, SIZE);
        let engine = cluster.serve().await;
        cluster.nodes[1].kill();
        write(&*engine, 0, 5).await.expect("acknowledged");
        engine.set_reservations(many(3)).await.expect("kept");
        cluster.nodes[1].disk.borrow_mut().make_anew();
        cluster.nodes[1].revive();
        all_in_sync(&cluster).await;
        while copy_of(&cluster, 1) != Some(many(3)) {
            // The copy follows the swap.
            sleep(Duration::from_millis(1)).await;
        }
    });
}

#[test]
fn an_engine_that_was_replaced_changes_none() {
    // I14
    story(3, async {
        let cluster = Cluster::new(2, SIZE);
        let old = cluster.serve().await;
        old.set_reservations(b"old".to_vec()).await.expect("kept");
        let new = cluster.serve().await;
        assert_eq!(new.reservations(), b"old");
        new.set_reservations(b"new".to_vec()).await.expect("kept");
        old.set_reservations(b"ghost".to_vec()).await.expect_err("it lost the volume");
        assert_eq!(cluster.registry.record().reservations, b"new");
        (0..2).for_each(|node| assert_eq!(copy_of(&cluster, node), Some(b"new".to_vec())));
    });
}

#[test]
fn without_space_for_many_nothing_changes_and_nobody_is_dropped() {
    // I32
    story(4, async {
        let cluster = Cluster::new(3, SIZE);
        let engine = cluster.serve().await;
        engine.set_reservations(b"few".to_vec()).await.expect("kept");
        cluster.nodes[1].full_copies.set(true);
        let refused = engine.set_reservations(many(4)).await.expect_err("n1 has no space");
        assert_eq!(refused.kind(), ErrorKind::NoSpace);
        assert_eq!((engine.reservations(), cluster.registry.record().reservations), (b"few".to_vec(), b"few".to_vec()));
        for node in 0..3 {
            assert_eq!(copy_of(&cluster, node), Some(b"few".to_vec()));
            assert!(cluster.registry.is_in_sync(node));
        }
        engine.set_reservations(b"a few more".to_vec()).await.expect("that needs no space");
        cluster.nodes[1].full_copies.set(false);
        engine.set_reservations(many(4)).await.expect("kept");
    });
}

#[test]
fn one_that_does_not_take_them_is_out_of_sync_before_anyone_hears_of_it() {
    story(5, async {
        let cluster = Cluster::new(3, SIZE);
        let engine = cluster.serve().await;
        cluster.nodes[2].copy_error.set(Some(ErrorKind::WriteFailed));
        engine.set_reservations(b"these".to_vec()).await.expect("two have them");
        assert!(matches!(cluster.registry.state(2), MemberState::OutOfSync { .. }));
        cluster.registry.refuses.set(true);
        let asked = {
            let engine = Rc::clone(&engine);
            spawn(async move { engine.set_reservations(b"those".to_vec()).await })
        };
        sleep(Duration::from_secs(60)).await;
        assert!(!asked.is_finished(), "I2: the registry has them first");
        assert_eq!(engine.status().state, EngineState::Serving);
        cluster.registry.refuses.set(false);
        asked.await.expect("it goes on").expect("kept");
        assert_eq!(cluster.registry.record().reservations, b"those");
    });
}

/// Reservations change, replicas come and go, the engine is killed at any moment and the registry loses its record.
async fn lost_at_any_moment(seed: u64) {
    let cluster = Cluster::new(3, SIZE);
    let mut possible = vec![0u8];
    let reservations =
        |number: u8| if number.is_multiple_of(3) { many(number) } else { vec![number; 1 + usize::from(number)] };
    let mut next = 1;
    for _ in 0..4 {
        let engine = cluster.serve().await;
        let answered = Rc::new(std::cell::Cell::new(possible[0]));
        let (first, told, shared) = (next, Rc::clone(&answered), Rc::clone(&engine));
        let changing = spawn(async move {
            for number in first..first + 6 {
                if shared.set_reservations(reservations(number)).await.is_ok() {
                    told.set(number);
                }
                sleep(Duration::from_micros(random() % 20_000)).await;
            }
        });
        for _ in 0..random() % 3 {
            let node = (random() % 3) as usize;
            match cluster.nodes[node].reachable.get() {
                true => cluster.nodes[node].kill(),
                false => cluster.nodes[node].revive(),
            }
            sleep(Duration::from_micros(random() % 40_000)).await;
        }
        sleep(Duration::from_micros(random() % 60_000)).await;
        changing.abort();
        drop((changing, engine));
        // The last that was answered, or one that was not.
        possible = (answered.get()..first + 6).collect();
        next = first + 6;
        cluster.nodes.iter().for_each(|node| node.revive());
        if random().is_multiple_of(2) {
            cluster.registry.lose();
            let record = cluster.survey(&[0, 1, 2]).await.record().expect("all are there");
            engine::restore(&*cluster.registry, None, &record).await.expect("stored");
        }
        let engine = cluster.serve().await;
        let found = engine.reservations();
        let number = found.first().copied().unwrap_or(0);
        assert!(possible.contains(&number), "seed {seed}: {number}, not one of {possible:?}");
        assert!(number == 0 || found == reservations(number), "seed {seed}: whole");
        possible = vec![number];
        all_in_sync(&cluster).await;
        engine.stop().await;
    }
}

#[test]
fn whatever_the_moment_the_last_that_was_answered_is_there() {
    for seed in crate::seeds(20) {
        story(seed, lost_at_any_moment(seed));
    }
}
