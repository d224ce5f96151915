//! Damage: what one replica cannot read, or a scrub found wrong, is mended with what another one has (I22).

use std::rc::Rc;
use std::time::Duration;

use block_device::{ErrorKind, Range, Request, execute};
use engine::Engine;
use reactor::{sleep, spawn};
use uuid::Uuid;

use crate::fakes::{BLOCK, Cluster};
use crate::model::{Model, write};
use crate::rebuilding::{all_in_sync, assert_equal, snapshot_id, story, until};

const SIZE: u64 = 4 << 20;

async fn read(engine: &Engine, block: u64) -> Result<u8, ErrorKind> {
    let outcome = execute(engine, Request::read(block * BLOCK, BLOCK)).await;
    outcome.map(|data| data.to_vec()[0]).map_err(|error| error.kind())
}

/// Mended and not mended of a replica.
fn counts(engine: &Engine, node: usize) -> (u64, u64) {
    let status = &engine.status().replicas[node];
    (status.repaired, status.unrepaired)
}

/// The lvol of a node's head.
fn head(cluster: &Cluster, node: usize) -> Uuid {
    cluster.nodes[node].disk.borrow().id
}

fn break_block(cluster: &Cluster, node: usize, lvol: Uuid, block: u64) {
    cluster.nodes[node].disk.borrow_mut().break_block(lvol, block);
}

fn is_bad(cluster: &Cluster, node: usize, lvol: Uuid, block: u64) -> bool {
    cluster.nodes[node].disk.borrow().is_bad(lvol, block)
}

#[test]
fn a_block_that_one_replica_cannot_read_is_answered_by_another_and_mended() {
    // I22
    story(1, async {
        let cluster = Cluster::new(2, SIZE);
        let engine = cluster.serve().await;
        for block in 0..8 {
            write(&*engine, block, 10 + block as u8).await.expect("acknowledged");
        }
        let lvol = head(&cluster, 0);
        break_block(&cluster, 0, lvol, 3);
        break_block(&cluster, 0, lvol, 5);
        let data = execute(&*engine, Request::read(0, 8 * BLOCK)).await.expect("another has it").to_vec();
        assert!((0..8).all(|block| data[block * BLOCK as usize] == 10 + block as u8));
        until("mended", || counts(&engine, 0) == (2, 0)).await;
        assert!(!is_bad(&cluster, 0, lvol, 3) && !is_bad(&cluster, 0, lvol, 5));
        assert!((0..2).all(|node| cluster.registry.is_in_sync(node)));
        assert_equal(&cluster);
    });
}

#[test]
fn what_is_written_while_a_block_is_mended_is_what_stays() {
    // I17, I22: slow replicas, so that each write meets the repair at another step.
    for seed in crate::seeds(20) {
        story(seed, async move {
            let cluster = Cluster::new(2, SIZE);
            let engine = cluster.serve().await;
            write(&*engine, 3, 1).await.expect("acknowledged");
            break_block(&cluster, 0, head(&cluster, 0), 3);
            cluster.nodes.iter().for_each(|node| node.delay.set(Duration::from_millis(40)));
            let writing = {
                let engine = Rc::clone(&engine);
                spawn(async move {
                    for byte in 2..6 {
                        sleep(Duration::from_millis(reactor::random() % 100)).await;
                        write(&*engine, 3, byte).await.expect("acknowledged");
                        assert_eq!(read(&engine, 3).await, Ok(byte));
                    }
                })
            };
            assert!((1..6).contains(&read(&engine, 3).await.expect("another has it")));
            writing.await.expect("it ends");
            cluster.nodes.iter().for_each(|node| node.delay.set(Duration::ZERO));
            sleep(Duration::from_secs(120)).await;
            assert_eq!(read(&engine, 3).await, Ok(5));
            engine.stop().await;
            assert_equal(&cluster);
        });
    }
}

#[test]
fn a_write_that_meets_the_repair_between_its_read_and_its_write_is_what_stays() {
    // I17, I22: the repair has asked the other replica for what was there before, and not written that yet.
    for seed in crate::seeds(20) {
        story(seed, async move {
            let cluster = Cluster::new(2, SIZE);
            let engine = cluster.serve().await;
            write(&*engine, 3, 1).await.expect("acknowledged");
            break_block(&cluster, 0, head(&cluster, 0), 3);
            cluster.nodes.iter().for_each(|node| node.delay.set(Duration::from_millis(40)));
            assert_eq!(read(&engine, 3).await, Ok(1));
            let asked = cluster.nodes[1].reads_seen.get();
            while cluster.nodes[1].reads_seen.get() == asked {
                sleep(Duration::from_millis(1)).await;
            }
            write(&*engine, 3, 2).await.expect("acknowledged");
            until("mended", || counts(&engine, 0) == (1, 0)).await;
            cluster.nodes.iter().for_each(|node| node.delay.set(Duration::ZERO));
            assert_eq!(read(&engine, 3).await, Ok(2));
            engine.stop().await;
            assert_equal(&cluster);
        });
    }
}

#[test]
fn a_repair_that_hangs_never_lands_on_a_newer_write() {
    // I15, I17
    for seed in crate::seeds(20) {
        story(seed, async move {
            let cluster = Cluster::new(2, SIZE);
            let engine = cluster.serve().await;
            write(&*engine, 3, 1).await.expect("acknowledged");
            break_block(&cluster, 0, head(&cluster, 0), 3);
            cluster.nodes[0].delay.set(Duration::from_millis(40));
            assert_eq!(read(&engine, 3).await, Ok(1));
            sleep(Duration::from_millis(reactor::random() % 150)).await;
            cluster.nodes[0].set_stalled(true);
            write(&*engine, 3, 2).await.expect("acknowledged without the one that hangs");
            assert!(!cluster.registry.is_in_sync(0));
            cluster.nodes[0].set_stalled(false);
            cluster.nodes[0].delay.set(Duration::ZERO);
            all_in_sync(&cluster).await;
            sleep(Duration::from_secs(10)).await;
            assert_eq!(read(&engine, 3).await, Ok(2));
            assert_equal(&cluster);
        });
    }
}

#[test]
fn what_the_source_of_a_copy_cannot_read_is_mended_without_a_host() {
    // I22: the copy comes to its end although nobody reads that block.
    story(9, async {
        let cluster = Cluster::new(3, SIZE);
        let engine = cluster.serve().await;
        for known in [true, false] {
            cluster.nodes[2].kill();
            for block in 0..8 {
                write(&*engine, block, 20 + block as u8).await.expect("acknowledged");
            }
            let lvol = head(&cluster, 0);
            break_block(&cluster, 0, lvol, 5);
            if !known {
                cluster.nodes[2].disk.borrow_mut().make_anew();
            }
            cluster.nodes[2].revive();
            all_in_sync(&cluster).await;
            assert!(!is_bad(&cluster, 0, lvol, 5));
            assert_equal(&cluster);
        }
        assert_eq!(counts(&engine, 0), (2, 0));
    });
}

#[test]
fn damage_that_no_other_copy_can_mend_is_an_error_and_counted() {
    story(3, async {
        let cluster = Cluster::new(2, SIZE);
        let engine = cluster.serve().await;
        write(&*engine, 3, 7).await.expect("acknowledged");
        (0..2).for_each(|node| break_block(&cluster, node, head(&cluster, node), 3));
        assert_eq!(read(&engine, 3).await, Err(ErrorKind::ReadFailed), "never served as good");
        until("counted", || counts(&engine, 0) == (0, 1) && counts(&engine, 1) == (0, 1)).await;
        assert!((0..2).all(|node| cluster.registry.is_in_sync(node)), "what the others have is as good as it was");
        assert_eq!(read(&engine, 4).await, Ok(0));
        // The host writes it anew: nothing is left to be mended.
        write(&*engine, 3, 8).await.expect("acknowledged");
        until("counted no more", || counts(&engine, 0) == (0, 0) && counts(&engine, 1) == (0, 0)).await;
        assert_eq!(read(&engine, 3).await, Ok(8));
    });
}

#[test]
fn with_one_replica_damage_is_an_error_and_counted() {
    story(4, async {
        let cluster = Cluster::new(1, SIZE);
        let engine = cluster.serve().await;
        write(&*engine, 3, 7).await.expect("acknowledged");
        break_block(&cluster, 0, head(&cluster, 0), 3);
        assert_eq!(read(&engine, 3).await, Err(ErrorKind::ReadFailed));
        until("counted", || counts(&engine, 0) == (0, 1)).await;
        assert!(cluster.registry.is_in_sync(0));
    });
}

#[test]
fn a_block_of_a_snapshot_is_mended_in_the_snapshot() {
    // I22, I24
    story(5, async {
        let cluster = Cluster::new(2, SIZE);
        let engine = cluster.serve().await;
        write(&*engine, 3, 7).await.expect("acknowledged");
        engine.snapshot(snapshot_id(1), "s").await.expect("cut");
        write(&*engine, 4, 8).await.expect("acknowledged");
        break_block(&cluster, 0, head(&cluster, 0), 3);
        assert_eq!(read(&engine, 3).await, Ok(7));
        until("mended", || counts(&engine, 0) == (1, 0)).await;
        assert!(!is_bad(&cluster, 0, snapshot_id(1), 3));
        let own = cluster.nodes[0]
            .disk
            .borrow()
            .extents(head(&cluster, 0), Range { offset: 0, length: SIZE }, 100)
            .list
            .len();
        assert_eq!(own, 1, "the head has what was written to it, nothing more");
        assert_equal(&cluster);
    });
}

#[test]
fn what_a_scrub_finds_is_mended_without_a_read() {
    // I22: on one replica, on another one, and on both in different places.
    story(6, async {
        let cluster = Cluster::new(3, SIZE);
        let engine = cluster.serve().await;
        for block in 0..64 {
            write(&*engine, block, 7).await.expect("acknowledged");
        }
        engine.snapshot(snapshot_id(1), "s").await.expect("cut");
        for (node, block) in [(0, 3), (1, 20), (2, 40), (2, 41)] {
            break_block(&cluster, node, snapshot_id(1), block);
            cluster.nodes[node].find();
        }
        until("mended", || (0..3).all(|node| counts(&engine, node) == (1, 0))).await;
        assert!((0..3).all(|node| cluster.nodes[node].disk.borrow().damage().is_empty()));
    });
}

#[test]
fn only_bytes_that_are_known_to_be_right_mend_a_snapshot() {
    // I22: the first other copy is wrong, and says nothing.
    story(7, async {
        let cluster = Cluster::new(3, SIZE);
        let engine = cluster.serve().await;
        write(&*engine, 3, 7).await.expect("acknowledged");
        engine.snapshot(snapshot_id(1), "s").await.expect("cut");
        cluster.nodes[1].disk.borrow_mut().spoil_snapshot(snapshot_id(1), 3, 66);
        cluster.nodes[2].kill();
        write(&*engine, 9, 1).await.expect("acknowledged");
        break_block(&cluster, 0, snapshot_id(1), 3);
        cluster.nodes[0].find();
        until("seen", || counts(&engine, 0) == (0, 1)).await;
        assert!(is_bad(&cluster, 0, snapshot_id(1), 3), "an error is better than wrong bytes");
        // A good copy comes back, and is used without anybody asking.
        cluster.nodes[2].revive();
        until("mended", || counts(&engine, 0) == (1, 0)).await;
        assert_eq!(cluster.nodes[0].disk.borrow().snapshot_content(snapshot_id(1)).expect("there")[3 * 4096], 7);
    });
}

#[test]
fn a_replica_that_takes_no_repairs_leaves_and_says_why() {
    story(8, async {
        let cluster = Cluster::new(2, SIZE);
        let engine = cluster.serve().await;
        for block in 0..8 {
            write(&*engine, block, 7).await.expect("acknowledged");
        }
        cluster.nodes[0].disk.borrow_mut().stubborn = true;
        // Slow, so that each step of what follows can be seen.
        cluster.nodes[0].delay.set(Duration::from_millis(300));
        for block in 0..4 {
            break_block(&cluster, 0, head(&cluster, 0), block);
            assert_eq!(read(&engine, block).await, Ok(7));
        }
        let says_why = || {
            engine.status().replicas[0]
                .trouble
                .as_ref()
                .is_some_and(|text| text.contains("could not be mended 3 times"))
        };
        until("it left", says_why).await;
        until("recorded", || !cluster.registry.is_in_sync(0)).await;
        sleep(Duration::from_secs(300)).await;
        assert!(!cluster.registry.is_in_sync(0), "what cannot be read does not come back");
        assert_eq!(read(&engine, 2).await, Ok(7));
        cluster.nodes[0].delay.set(Duration::ZERO);
        // The disk was exchanged.
        cluster.nodes[0].disk.borrow_mut().stubborn = false;
        cluster.nodes[0].disk.borrow_mut().make_anew();
        cluster.nodes[0].cut();
        all_in_sync(&cluster).await;
        assert_equal(&cluster);
    });
}

#[test]
fn a_replica_that_took_no_repairs_is_compared_in_full_when_it_is_back() {
    // I22, I23: what it lacks is known, but not what else its disk has lost.
    story(10, async {
        let cluster = Cluster::new(2, SIZE);
        let engine = cluster.serve().await;
        for block in 0..8 {
            write(&*engine, block, 7).await.expect("acknowledged");
        }
        // From here on nothing of these blocks is among what it may lack.
        execute(&*engine, Request::Flush).await.expect("durable");
        let lvol = head(&cluster, 0);
        (0..8).for_each(|block| break_block(&cluster, 0, lvol, block));
        cluster.nodes[0].disk.borrow_mut().stubborn = true;
        for block in 0..4 {
            assert_eq!(read(&engine, block).await, Ok(7));
        }
        until("it left", || !cluster.registry.is_in_sync(0)).await;
        cluster.nodes[0].disk.borrow_mut().stubborn = false;
        all_in_sync(&cluster).await;
        assert!((0..8).all(|block| !is_bad(&cluster, 0, lvol, block)), "also those that nobody read");
        assert_equal(&cluster);
    });
}

#[test]
fn the_last_replica_stays_however_many_repairs_fail() {
    // I3
    story(9, async {
        let cluster = Cluster::new(2, SIZE);
        let engine = cluster.serve().await;
        for block in 0..8 {
            write(&*engine, block, 7).await.expect("acknowledged");
        }
        cluster.nodes[1].kill();
        write(&*engine, 9, 1).await.expect("acknowledged");
        cluster.nodes[0].disk.borrow_mut().stubborn = true;
        for block in 0..8 {
            break_block(&cluster, 0, head(&cluster, 0), block);
            assert_eq!(read(&engine, block).await, Err(ErrorKind::ReadFailed));
        }
        sleep(Duration::from_secs(50)).await;
        assert!(cluster.registry.is_in_sync(0));
        assert_eq!(counts(&engine, 0), (0, 8));
    });
}

#[test]
fn a_crash_at_any_moment_of_a_repair_leaves_what_was_acknowledged() {
    // I7, I22: blocks break at random under load; replicas and the engine die meanwhile.
    for seed in crate::seeds(12) {
        story(seed, async move {
            let cluster = Cluster::new(3, SIZE);
            // Reads go anywhere; copies come from the first. The fault atlas: blocks break on one of the others only.
            cluster.nodes[0].is_local.set(false);
            let (broken, killed) = (1 + seed as usize % 2, 2 - seed as usize % 2);
            let model = Model::new(64);
            for round in 0..4 {
                let engine = cluster.serve().await;
                cluster.nodes.iter().for_each(|node| node.delay.set(Duration::from_millis(5)));
                let running = {
                    let (engine, model) = (Rc::clone(&engine), Rc::clone(&model));
                    spawn(async move { model.run(&engine, 6, 240).await })
                };
                for _ in 0..6 {
                    sleep(Duration::from_millis(reactor::random() % 60)).await;
                    let block = reactor::random() % 64;
                    let lvol = head(&cluster, broken);
                    let there = cluster.nodes[broken].disk.borrow().has(lvol, block);
                    if there {
                        break_block(&cluster, broken, lvol, block);
                    }
                }
                if round % 2 == 0 {
                    engine.snapshot(snapshot_id(round), "s").await.expect("cut");
                    cluster.nodes[broken].find();
                }
                match reactor::random() % 3 {
                    0 => {
                        cluster.nodes[killed].kill();
                        sleep(Duration::from_millis(reactor::random() % 300)).await;
                        cluster.nodes[killed].revive();
                        while !running.is_finished() {
                            sleep(Duration::from_millis(1)).await;
                        }
                        engine.stop().await;
                    }
                    _ => {
                        model.crashed();
                        running.abort();
                        drop(engine);
                    }
                }
                cluster.nodes.iter().for_each(|node| node.delay.set(Duration::ZERO));
            }
            let engine = cluster.serve().await;
            model.check_all(&engine).await;
            all_in_sync(&cluster).await;
            model.check_all(&engine).await;
            engine.stop().await;
            assert_equal(&cluster);
        });
    }
}
