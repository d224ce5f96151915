//! The engine's copy of the membership record, looking at a replica without opening it, and how an engine hears that it lost one.

use std::rc::Rc;
use std::time::Duration;

use block_device::{ErrorKind, Request, execute};
use reactor::simulated::{NodeId, World};
use reactor::{now, sleep};
use replica::{MAX_ATTACHED, MAX_MEMBERSHIP, Membership, RemoteOptions, RemoteReplica, Replica};

use crate::node::{Server, address, boot, kind, open, read, spec, world, write};

fn with_replica(seed: u64) -> (World, NodeId, NodeId, Server) {
    let (world, node, engine) = world(seed);
    let shared = boot(&world, node);
    let server = shared.borrow().clone().expect("the node runs");
    world.block_on(node, async move { server.create(&spec()).await.expect("created") });
    (world, node, engine, shared)
}

async fn connect(epoch: u64, instance: u8) -> Rc<RemoteReplica> {
    RemoteReplica::connect(address(), &open(epoch, instance), &RemoteOptions::default()).await.expect("granted")
}

fn known(epoch: u64, content: Option<&[u8]>) -> Membership {
    Membership { epoch, content: content.map(<[u8]>::to_vec), attached: content.map(|_| Vec::new()) }
}

#[test]
fn a_copy_is_durable_when_it_is_answered_and_outlives_a_reset() {
    for seed in 0..10 {
        let (world, node, engine, _shared) = with_replica(seed);
        world.block_on(engine, async {
            let replica = connect(1, 1).await;
            assert_eq!(replica.membership().await.expect("told"), known(1, None));
            replica.set_membership(b"first", &[]).await.expect("kept");
            replica.set_membership(&[7; MAX_MEMBERSHIP as usize], &[]).await.expect("kept");
            let long = replica.set_membership(&[7; MAX_MEMBERSHIP as usize + 1], &[]).await;
            assert_eq!(kind(long), Some(ErrorKind::InvalidField));
            assert_eq!(kind(replica.set_membership(&[], &[]).await), Some(ErrorKind::InvalidField));
        });
        world.power_cut(node);
        let _shared = boot(&world, node);
        world.block_on(engine, async {
            let replica = connect(2, 1).await;
            let full = [7; MAX_MEMBERSHIP as usize];
            assert_eq!(replica.membership().await.expect("told"), known(2, Some(&full)));
            replica.set_membership(b"second", &[]).await.expect("kept");
            replica.reset().await.expect("emptied");
            let copy = Membership { attached: None, ..known(2, Some(b"second")) };
            assert_eq!(replica.membership().await.expect("told"), copy);
        });
        world.power_cut(node);
        let _shared = boot(&world, node);
        world.block_on(engine, async {
            let copy = Membership { attached: None, ..known(3, Some(b"second")) };
            assert_eq!(connect(3, 1).await.membership().await.expect("told"), copy);
        });
    }
}

/// What is attached in one of several sizes: few bytes, as many as go beside the copy, one more, and as many as there can be.
fn attached(number: u8) -> Vec<u8> {
    let lengths = [0, 5, 1024, 1025, 4096, 30_000, MAX_ATTACHED as usize];
    vec![number + 1; lengths[usize::from(number) % lengths.len()]]
}

#[test]
fn what_is_attached_changes_with_the_copy_and_is_durable() {
    // I38
    for seed in 0..10 {
        let (world, node, engine, _shared) = with_replica(seed);
        for (epoch, number) in (1..).zip([0u8, 1, 2, 3, 4, 5, 6, 3, 1, 6, 0]) {
            world.block_on(engine, async move {
                let replica = connect(epoch, 1).await;
                replica.set_membership(&[number; 890], &attached(number)).await.expect("kept");
                let too_much = vec![0; MAX_ATTACHED as usize + 1];
                assert_eq!(kind(replica.set_membership(b"x", &too_much).await), Some(ErrorKind::InvalidField));
            });
            world.power_cut(node);
            let _shared = boot(&world, node);
            world.block_on(engine, async move {
                let looked = connect(0, 2).await.membership().await.expect("told");
                let copy = known(epoch, Some(&[number; 890]));
                assert_eq!(looked, Membership { attached: Some(attached(number)), ..copy });
            });
        }
    }
}

#[test]
fn a_power_cut_while_a_copy_changes_leaves_one_with_what_belongs_to_it() {
    for seed in 0..60 {
        let (world, node, engine, _shared) = with_replica(seed);
        world.block_on(engine, async {
            connect(1, 1).await.set_membership(&[0; 890], &attached(6)).await.expect("kept");
        });
        world.spawn(engine, async {
            // It fails when the power does.
            let replica = RemoteReplica::connect(address(), &open(2, 1), &RemoteOptions::default()).await;
            let Ok(replica) = replica else { return };
            for number in [5, 4, 1, 6] {
                let _ = replica.set_membership(&[number; 890], &attached(number)).await;
            }
        });
        world.run_for(Duration::from_micros(seed * 150));
        world.power_cut(node);
        let _shared = boot(&world, node);
        world.block_on(engine, async {
            let looked = connect(0, 2).await.membership().await.expect("told");
            let (content, told) = (looked.content.expect("a copy"), looked.attached.expect("known"));
            let number = if content[0] == 0 { 6 } else { content[0] };
            assert_eq!(told, attached(number), "of copy {number}");
        });
    }
}

#[test]
fn whoever_looks_changes_nothing_and_can_do_nothing_else() {
    let (world, _, engine, shared) = with_replica(1);
    let server = shared.borrow().clone().expect("the node runs");
    world.block_on(engine, async move {
        let looked = connect(0, 2).await;
        assert_eq!(looked.membership().await.expect("told"), known(0, None));
        let serving = connect(4, 1).await;
        serving.set_membership(b"who", &[]).await.expect("kept");
        write(&*serving, 0, 7).await.expect("written");
        for looked in [connect(0, 2).await as Rc<dyn Replica>, server.open_local(open(0, 2)).await.expect("granted")] {
            assert_eq!(looked.membership().await.expect("told"), known(4, Some(b"who")));
            assert_eq!(kind(write(&*looked, 0, 9).await), Some(ErrorKind::InvalidField));
            assert_eq!(kind(execute(&*looked, Request::Flush).await), Some(ErrorKind::InvalidField));
            assert_eq!(kind(looked.set_membership(b"me", &[]).await), Some(ErrorKind::InvalidField));
            assert_eq!(kind(looked.set_note(0, b"me", false).await), Some(ErrorKind::InvalidField));
            assert_eq!(kind(looked.reset().await), Some(ErrorKind::InvalidField));
            assert_eq!(kind(looked.chain().await), Some(ErrorKind::InvalidField));
        }
        assert_eq!(read(&*serving, 0).await.expect("it goes on"), 7);
        assert_eq!(serving.membership().await.expect("told"), known(4, Some(b"who")));
    });
}

#[test]
fn an_engine_without_anything_to_do_hears_that_it_lost_the_replica() {
    // I14
    let (world, _, engine, _shared) = with_replica(2);
    world.block_on(engine, async {
        let older = connect(1, 1).await;
        let newer = connect(2, 2).await;
        let granted = now();
        assert_eq!(older.failed().await.kind(), ErrorKind::Fenced);
        assert!(now() - granted <= 2 * RemoteOptions::default().ping_interval);
        assert!(older.confirmed() < granted, "nobody confirmed the older epoch after the newer one was granted");
        let refused = older.set_membership(b"mine", &[]).await;
        assert_eq!(kind(refused), Some(ErrorKind::Fenced));
        assert_eq!(newer.membership().await.expect("told"), known(2, None));
    });
}

#[test]
fn an_epoch_is_confirmed_for_as_long_as_the_node_answers() {
    let (world, node, engine, shared) = with_replica(3);
    let server = shared.borrow().clone().expect("the node runs");
    let replica = world.block_on(engine, async {
        let replica = connect(1, 1).await;
        sleep(Duration::from_secs(60)).await;
        assert!(now() - replica.confirmed() <= 2 * RemoteOptions::default().ping_interval);
        replica
    });
    world.partition(engine, node);
    let cut = world.block_on(engine, async { now() });
    world.block_on(engine, async move {
        replica.failed().await;
        assert!(replica.confirmed() <= cut);
    });
    world.block_on(node, async move {
        let local = server.open_local(open(2, 1)).await.expect("granted");
        sleep(Duration::from_secs(60)).await;
        assert_eq!(local.confirmed(), now(), "on the same reactor a newer grant is known at once");
        server.open_local(open(3, 2)).await.expect("granted");
        let ended = now();
        sleep(Duration::from_secs(1)).await;
        assert!(local.confirmed() <= ended);
    });
}
