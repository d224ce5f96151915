//! The registry loses a volume's record, or is put back to an old one; the replicas have copies.

use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use block_device::{ErrorKind, Request, execute};
use engine::{Engine, EngineError, EngineState, MemberState, VolumeRecord, restore};
use reactor::simulated::World;
use reactor::{now, random, sleep, spawn};

use crate::fakes::{BLOCK, Cluster, new_replica};
use crate::model::{Model, write};

const SIZE: u64 = 2 << 20;

fn story<F: Future<Output = ()> + 'static>(seed: u64, story: F) {
    let world = World::new(seed);
    let node = world.add_node([10, 0, 0, 1].into());
    world.block_on(node, story);
}

async fn read(engine: &Engine, block: u64) -> u8 {
    execute(engine, Request::read(block * BLOCK, BLOCK)).await.expect("readable").to_vec()[0]
}

async fn all_in_sync(cluster: &Cluster) {
    let start = now();
    while !(0..cluster.nodes.len()).all(|node| cluster.registry.is_in_sync(node)) {
        assert!(now() - start < Duration::from_secs(600), "{:?}", cluster.registry.record());
        sleep(Duration::from_millis(10)).await;
    }
}

/// Makes the record anew from what the replicas of all nodes know.
async fn made_anew(cluster: &Rc<Cluster>) -> Result<VolumeRecord, EngineError> {
    let record = cluster.survey(&[0]).await.record()?;
    restore(&*cluster.registry, None, &record).await.expect("stored");
    Ok(record)
}

fn waits_for(refused: Result<VolumeRecord, EngineError>, node: usize) {
    let error = refused.expect_err("one is missing");
    assert!(matches!(error, EngineError::Unavailable(_)), "{error}");
    let text = error.to_string();
    for other in 0..3 {
        assert_eq!(text.contains(&format!("on n{other}")), other == node, "{text}");
    }
}

#[test]
fn with_every_replica_there_the_volume_opens_with_all_that_was_acknowledged() {
    // I1, I5
    story(1, async {
        let cluster = Cluster::new(3, SIZE);
        let engine = cluster.serve().await;
        write(&*engine, 0, 5).await.expect("acknowledged");
        cluster.nodes[2].kill();
        write(&*engine, 0, 6).await.expect("acknowledged without n2");
        drop(engine);
        cluster.registry.lose();
        waits_for(made_anew(&cluster).await, 2);
        cluster.nodes[2].revive();
        let record = made_anew(&cluster).await.expect("all are there");
        assert!(matches!(record.replicas[2].state, MemberState::OutOfSync { .. }), "{record:?}");
        assert!(!record.clean, "nobody knows that");
        let engine = cluster.serve().await;
        assert_eq!(read(&engine, 0).await, 6);
        all_in_sync(&cluster).await;
        assert_eq!(cluster.nodes[2].disk.borrow().content()[0], 6);
    });
}

#[test]
fn two_of_three_cannot_know_that_the_third_went_on_without_them() {
    // I5, I6
    story(2, async {
        let cluster = Cluster::new(3, SIZE);
        let engine = cluster.serve().await;
        write(&*engine, 0, 5).await.expect("acknowledged");
        cluster.nodes[0].kill();
        write(&*engine, 0, 6).await.expect("acknowledged without n0");
        cluster.nodes[1].kill();
        write(&*engine, 0, 7).await.expect("acknowledged by n2 alone");
        drop(engine);
        cluster.nodes[2].kill();
        cluster.nodes[0].revive();
        cluster.nodes[1].revive();
        cluster.registry.lose();
        for _ in 0..10 {
            waits_for(made_anew(&cluster).await, 2);
            sleep(Duration::from_secs(60)).await;
        }
        cluster.nodes[2].revive();
        let record = made_anew(&cluster).await.expect("all are there");
        let states: Vec<_> = record.replicas.iter().map(|replica| replica.state == MemberState::InSync).collect();
        assert_eq!(states, [false, false, true]);
        let engine = cluster.serve().await;
        assert_eq!(read(&engine, 0).await, 7);
        all_in_sync(&cluster).await;
    });
}

#[test]
fn a_replica_made_anew_under_its_uuid_is_not_there() {
    // I5: n1 alone had the newest, and its disk is another one now.
    story(3, async {
        let cluster = Cluster::new(2, SIZE);
        let engine = cluster.serve().await;
        cluster.nodes[0].kill();
        write(&*engine, 0, 6).await.expect("acknowledged by n1 alone");
        drop(engine);
        cluster.nodes[0].revive();
        cluster.nodes[1].disk.borrow_mut().make_anew();
        cluster.registry.lose();
        let error = made_anew(&cluster).await.expect_err("n1 does not know what it was").to_string();
        assert!(error.contains("on n1 (it has no copy)") && !error.contains("on n0"), "{error}");
    });
}

#[test]
fn by_force_one_replica_counts_and_the_consequence_is_said_before() {
    // I5, I6
    story(4, async {
        let cluster = Cluster::new(3, SIZE);
        let engine = cluster.serve().await;
        write(&*engine, 0, 5).await.expect("acknowledged");
        cluster.nodes[1].kill();
        write(&*engine, 0, 6).await.expect("acknowledged without n1");
        cluster.nodes[2].kill();
        write(&*engine, 0, 7).await.expect("acknowledged by n0 alone");
        drop(engine);
        // Many starts that n1 and n2 never hear of.
        for _ in 0..5 {
            drop(cluster.serve().await);
        }
        cluster.nodes[0].kill();
        cluster.nodes[1].revive();
        cluster.nodes[2].revive();
        cluster.registry.lose();
        let survey = cluster.survey(&[0]).await;
        assert!(survey.record().is_err() && survey.forced(new_replica(0).replica).is_err(), "n0 is away");
        // n0 was all that was asked for, and nobody named the others.
        let survey = cluster.survey(&[0, 1]).await;
        let words = survey.consequence(new_replica(1).replica);
        for part in ["says in sync: on n0, n2", "on n0 (", "had left before", "is lost"] {
            assert!(words.contains(part), "{words}");
        }
        assert!(survey.consequence(new_replica(2).replica).contains("was in sync then"));
        let record = survey.forced(new_replica(2).replica).expect("it is there");
        restore(&*cluster.registry, None, &record).await.expect("stored");
        restore(&*cluster.registry, None, &survey.forced(new_replica(1).replica).expect("it is there"))
            .await
            .expect_err("it was done");
        let engine = cluster.serve().await;
        assert_eq!(read(&engine, 0).await, 6, "what n2 had");
        write(&*engine, 1, 9).await.expect("acknowledged");
        // What n0 knows of its own history counts no more, now or after another loss.
        cluster.nodes[0].revive();
        all_in_sync(&cluster).await;
        assert_eq!(cluster.nodes[0].disk.borrow().content()[0], 6);
        drop(engine);
        cluster.registry.lose();
        made_anew(&cluster).await.expect("all are there");
        let engine = cluster.serve().await;
        assert_eq!((read(&engine, 0).await, read(&engine, 1).await), (6, 9));
    });
}

#[test]
fn what_is_half_rebuilt_or_was_removed_cannot_be_forced() {
    story(5, async {
        let cluster = Cluster::new(3, SIZE);
        let engine = cluster.serve().await;
        engine.remove_replica(new_replica(2).replica).await.expect("removed");
        drop(engine);
        cluster.nodes[1].disk.borrow_mut().reset();
        cluster.registry.lose();
        let survey = cluster.survey(&[0, 2]).await;
        assert!(survey.forced(new_replica(1).replica).expect_err("a mixture").to_string().contains("mixture"));
        assert!(survey.forced(new_replica(2).replica).expect_err("removed").to_string().contains("removed"));
        // Who left the volume is not waited for.
        cluster.nodes[2].kill();
        assert_eq!(cluster.survey(&[0, 2]).await.record().expect("both are there").replicas.len(), 2);
    });
}

#[test]
fn an_engine_that_waits_makes_the_record_anew_and_one_that_serves_stops_at_its_next_change() {
    // I5, I14
    story(8, async {
        let cluster = Cluster::new(2, SIZE);
        let engine = cluster.serve().await;
        write(&*engine, 0, 5).await.expect("acknowledged");
        cluster.nodes[1].kill();
        write(&*engine, 0, 6).await.expect("acknowledged by n0 alone");
        cluster.nodes[0].kill();
        write(&*engine, 0, 7).await.expect_err("nobody is left");
        cluster.registry.lose();
        cluster.nodes[1].revive();
        sleep(Duration::from_secs(60)).await;
        assert!(matches!(engine.status().state, EngineState::Waiting { .. }), "n0 may know more");
        cluster.nodes[0].revive();
        engine.ready().await.expect("all are there");
        assert!(matches!(read(&engine, 0).await, 6 | 7));
        all_in_sync(&cluster).await;

        write(&*engine, 1, 8).await.expect("acknowledged");
        cluster.registry.lose();
        assert_eq!(read(&engine, 1).await, 8, "it needs no change of the record");
        cluster.nodes[1].kill();
        let error = write(&*engine, 1, 9).await.expect_err("n1 lacks it, and nothing says so");
        assert_eq!(error.kind(), ErrorKind::Fenced);
        assert!(error.to_string().contains("no record of the volume"), "{error}");
    });
}

#[test]
fn an_old_record_that_was_put_back_is_noticed_before_anything_is_opened() {
    // I5, I14
    story(6, async {
        let cluster = Cluster::new(2, SIZE);
        let engine = cluster.serve().await;
        let old = cluster.registry.record();
        write(&*engine, 0, 5).await.expect("acknowledged");
        cluster.nodes[0].kill();
        write(&*engine, 0, 6).await.expect("acknowledged by n1 alone");
        engine.stop().await;
        cluster.nodes[0].revive();
        cluster.registry.put_back(old.clone());
        // n0 knows no more than the old record; n1 does.
        let engine = cluster.start().await;
        let error = engine.stopped().await;
        assert_eq!(error.kind(), ErrorKind::Fenced);
        assert!(error.to_string().contains("out of date"), "{error}");
        assert_eq!(cluster.registry.record(), old, "nothing was changed");
        let survey = cluster.survey(&[0]).await;
        assert!(survey.knows_more_than(&old));
        restore(&*cluster.registry, Some(old.version), &survey.record().expect("all are there")).await.expect("stored");
        let engine = cluster.serve().await;
        assert_eq!(read(&engine, 0).await, 6);
    });
}

#[test]
fn a_replica_that_cannot_keep_a_copy_is_out_of_sync_and_without_any_nothing_is_acknowledged() {
    story(7, async {
        let cluster = Cluster::new(3, SIZE);
        let engine = cluster.serve().await;
        cluster.nodes[1].copy_error.set(Some(ErrorKind::NoSpace));
        cluster.nodes[2].kill();
        write(&*engine, 0, 6).await.expect("acknowledged by n0");
        while cluster.registry.is_in_sync(1) {
            sleep(Duration::from_millis(1)).await;
        }
        cluster.nodes[1].copy_error.set(None);
        cluster.nodes[2].revive();
        all_in_sync(&cluster).await;
        // The record can say that n2 left, but no replica would know.
        for node in [0, 1] {
            cluster.nodes[node].copy_error.set(Some(ErrorKind::WriteFailed));
        }
        cluster.nodes[2].kill();
        write(&*engine, 0, 7).await.expect_err("nobody but the registry knows that n2 lacks it");
        assert!(matches!(engine.status().state, EngineState::Waiting { .. }));
        sleep(Duration::from_secs(60)).await;
        assert!(matches!(engine.status().state, EngineState::Waiting { .. }));
        for node in [0, 1] {
            cluster.nodes[node].copy_error.set(None);
        }
        engine.ready().await.expect("it serves");
        write(&*engine, 0, 8).await.expect("acknowledged");
    });
}

/// Replicas come and go under load until the engine is killed at any moment, and the registry is lost with it.
async fn lost_at_any_moment(seed: u64) {
    let cluster = Cluster::new(3, SIZE);
    let model = Model::new(SIZE / BLOCK);
    for _ in 0..3 {
        let engine = cluster.serve().await;
        let load = {
            let (engine, model) = (Rc::clone(&engine), Rc::clone(&model));
            spawn(async move { model.run(&engine, 6, 1500).await })
        };
        for _ in 0..random() % 6 {
            let node = (random() % 3) as usize;
            cluster.nodes[node].delay.set(Duration::from_micros(random() % 2000));
            match cluster.nodes[node].reachable.get() {
                true => cluster.nodes[node].kill(),
                false => cluster.nodes[node].revive(),
            }
            sleep(Duration::from_micros(random() % 3_000_000)).await;
        }
        sleep(Duration::from_micros(random() % 5000)).await;
        load.abort();
        drop(load);
        drop(engine);
        model.crashed();
        cluster.registry.lose();
        let away = (random() % 3) as usize;
        for (index, node) in cluster.nodes.iter().enumerate() {
            if index == away { node.kill() } else { node.revive() }
        }
        cluster.survey(&[0, 1, 2]).await.record().expect_err("one is away");
        cluster.nodes[away].revive();
        made_anew(&cluster).await.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        let engine = cluster.serve().await;
        model.check_all(&engine).await;
        all_in_sync(&cluster).await;
        model.check_all(&engine).await;
        engine.stop().await;
    }
}

#[test]
fn whatever_the_moment_nothing_acknowledged_is_lost_with_the_registry() {
    // I1, I5, I7
    for seed in crate::seeds(10) {
        story(seed, lost_at_any_moment(seed));
    }
}

#[test]
fn a_survey_is_no_reason_to_replace_what_came_into_the_registry_since_it_began() {
    // I14: two ask the replicas at once, and the first puts the record there. The second met its engine's copies, which are newer.
    story(9, async {
        let cluster = Cluster::new(3, SIZE);
        let engine = cluster.serve().await;
        write(&*engine, 0, 5).await.expect("acknowledged");
        drop(engine);
        cluster.registry.lose();
        made_anew(&cluster).await.expect("all are there");
        let engine = cluster.serve().await;
        all_in_sync(&cluster).await;
        let record = cluster.registry.record();
        let late = cluster.survey(&[0]).await.record().expect("all are there");
        assert!(late.epoch > record.epoch);
        restore(&*cluster.registry, None, &late).await.expect_err("there is one");
        assert_eq!(cluster.registry.record(), record);
        write(&*engine, 0, 6).await.expect("acknowledged");
        engine.stop().await;
        assert!(cluster.registry.record().clean);
    });
}
