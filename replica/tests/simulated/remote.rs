//! A replica through the simulated network: the same trait, and connections that die.

use std::rc::Rc;
use std::time::Duration;

use block_device::{BlockDevice, ErrorKind, Range, Request, Slice, execute};
use reactor::simulated::{DiskLatency, NodeId, World};
use reactor::{now, sleep, spawn};
use replica::{ExtentKind, LvolKind, OpenError, OpenReplica, RemoteOptions, RemoteReplica, Replica, ReplicaState};
use uuid::Uuid;

use crate::node::{BLOCK, DISK, EVERYWHERE, SIZE, address, boot, kind, open, read, spec, world, write};

/// A world whose node has the replica.
fn with_replica(seed: u64) -> (World, NodeId, NodeId, crate::node::Server) {
    let (world, node, engine) = world(seed);
    let shared = boot(&world, node);
    let server = shared.borrow().clone().expect("the node runs");
    world.block_on(node, async move { server.create(&spec()).await.expect("created") });
    (world, node, engine, shared)
}

async fn connect(open: &OpenReplica) -> Result<Rc<RemoteReplica>, OpenError> {
    RemoteReplica::connect(address(), open, &RemoteOptions::default()).await
}

#[test]
fn everything_a_local_replica_does_a_remote_one_does() {
    let (world, _, engine, _) = with_replica(1);
    world.block_on(engine, async {
        let replica = connect(&open(1, 1)).await.expect("granted");
        let granted = replica.granted();
        assert_eq!((granted.epoch, granted.geometry.size(), granted.state), (1, SIZE, ReplicaState::Complete));
        write(&*replica, 0, 1).await.expect("written");
        write(&*replica, 1, 2).await.expect("written");
        let fua = Request::Write { offset: 2 * BLOCK, data: Slice::from(&[3; 4096][..]), fua: true };
        execute(&*replica, fua).await.expect("written");
        execute(&*replica, Request::Flush).await.expect("flushed");
        let snapshot = Uuid::from_bytes([0x51; 16]);
        replica.snapshot(snapshot, replica.granted().geometry.size(), "first").await.expect("cut");
        replica
            .snapshot(snapshot, replica.granted().geometry.size(), "first")
            .await
            .expect("the same again is no error");
        let ranges = [Range { offset: BLOCK, length: BLOCK }].into_iter().collect();
        execute(&*replica, Request::Unmap { ranges }).await.expect("unmapped");
        let zeroes =
            Request::WriteZeroes { range: Range { offset: 2 * BLOCK, length: BLOCK }, unmap: false, fua: false };
        execute(&*replica, zeroes).await.expect("zeroed");
        write(&*replica, 5, 6).await.expect("written");
        for (block, byte) in [(0, 1), (1, 0), (2, 0), (3, 0), (5, 6)] {
            assert_eq!(read(&*replica, block).await.expect("read"), byte);
        }
        let chain = replica.chain().await.expect("listed");
        assert_eq!(chain.iter().map(|entry| entry.kind).collect::<Vec<_>>(), [LvolKind::Snapshot, LvolKind::Head]);
        assert_eq!((chain[0].id, &chain[0].name[..]), (snapshot, "first"));
        let range = Range { offset: 0, length: 3 * BLOCK };
        let old = replica.read_lvol(snapshot, range).await.expect("read").to_vec();
        assert_eq!([old[0], old[4096], old[8192]], [1, 2, 3]);
        let own = replica.extents(chain[1].id, EVERYWHERE, 100).await.expect("listed");
        assert_eq!(own.next, None);
        let data: Vec<_> = own.list.iter().filter(|own| own.kind == ExtentKind::Data).collect();
        assert!(matches!(&data[..], [.., last] if last.range == Range { offset: 5 * BLOCK, length: BLOCK }), "{own:?}");
        // Zeroes over the snapshot's data are the head's own, as data or as such.
        assert!(own.list.iter().any(|own| own.range.offset <= BLOCK && own.range.end() >= 3 * BLOCK), "{own:?}");
        let unknown = replica.read_lvol(Uuid::from_bytes([7; 16]), range).await;
        assert_eq!(kind(unknown), Some(ErrorKind::InvalidField));
        replica.set_state(ReplicaState::Rebuilding).await.expect("stored");
        replica.reset().await.expect("reset");
        assert_eq!(read(&*replica, 5).await.expect("read"), 0);
    });
}

#[test]
fn a_chain_changes_through_a_connection_as_it_does_without_one() {
    let (world, _, engine, _) = with_replica(11);
    world.block_on(engine, async {
        let replica = connect(&open(1, 1)).await.expect("granted");
        let snapshot = |number: u8| Uuid::from_bytes([0x50 + number; 16]);
        for number in 1..=3 {
            write(&*replica, 0, number).await.expect("written");
            write(&*replica, u64::from(number), number).await.expect("written");
            replica.snapshot(snapshot(number), replica.granted().geometry.size(), "s").await.expect("cut");
        }
        write(&*replica, 0, 9).await.expect("written");
        replica.delete_snapshot(snapshot(1)).await.expect("deleted");
        replica.delete_snapshot(snapshot(1)).await.expect("nothing to do (I42)");
        let own_head = spec().replica;
        assert_eq!(kind(replica.delete_snapshot(own_head).await), Some(ErrorKind::InvalidField), "no snapshot");
        assert_eq!(read(&*replica, 1).await.expect("read"), 1);
        assert_eq!(kind(replica.revert(snapshot(1)).await), Some(ErrorKind::InvalidField), "not in the chain");
        replica.revert(snapshot(2)).await.expect("done");
        let ids: Vec<_> = replica.chain().await.expect("listed").into_iter().map(|entry| entry.id).collect();
        assert_eq!(ids, [snapshot(2), own_head]);
        for (block, byte) in [(0, 2), (1, 1), (2, 2), (3, 0)] {
            assert_eq!(read(&*replica, block).await.expect("read"), byte);
        }
        replica.grow(2 * SIZE).await.expect("grown");
        replica.grow(SIZE).await.expect("it is larger already");
        assert_eq!(replica.granted().geometry.size(), 2 * SIZE);
        write(&*replica, SIZE / BLOCK, 5).await.expect("in the new part");
        assert_eq!(replica.chain().await.expect("listed")[1].size, 2 * SIZE);
        let again = connect(&open(2, 2)).await.expect("granted");
        assert_eq!(again.granted().geometry.size(), 2 * SIZE);
        // I12: what was granted before changes nothing any more.
        for late in [replica.revert(snapshot(2)).await, replica.grow(4 * SIZE).await] {
            assert!(late.is_err());
        }
        assert_eq!(again.chain().await.expect("listed")[1].size, 2 * SIZE);
    });
}

#[test]
fn a_request_the_device_cannot_do_does_not_cost_the_connection() {
    let (world, _, engine, _) = with_replica(2);
    world.block_on(engine, async {
        let replica = connect(&open(1, 1)).await.expect("granted");
        assert_eq!(kind(execute(&*replica, Request::read(SIZE, BLOCK)).await), Some(ErrorKind::InvalidRange));
        assert_eq!(kind(execute(&*replica, Request::read(1, BLOCK)).await), Some(ErrorKind::InvalidField));
        let many = (0..300).map(|block| Range { offset: block * BLOCK, length: BLOCK }).collect();
        assert_eq!(kind(execute(&*replica, Request::Unmap { ranges: many }).await), Some(ErrorKind::InvalidField));
        let whole = Request::read(0, SIZE);
        assert_eq!(execute(&*replica, whole).await.expect("the longest transfer").length() as u64, SIZE);
        assert!(replica.failure().is_none());
    });
}

#[test]
fn more_requests_than_credits_wait_their_turn() {
    let (world, _, engine, _) = with_replica(3);
    world.block_on(engine, async {
        let replica = connect(&open(1, 1)).await.expect("granted");
        let writes: Vec<_> = (0..1000u64)
            .map(|index| {
                let replica = Rc::clone(&replica);
                spawn(async move { write(&*replica, index % 1024, (index % 251) as u8).await })
            })
            .collect();
        for write in writes {
            write.await.expect("it ends").expect("written");
        }
        for index in (0..1000).step_by(37) {
            assert_eq!(read(&*replica, index).await.expect("read"), (index % 251) as u8);
        }
        // Large ones run out of bytes before they run out of requests.
        let reads: Vec<_> = (0..40)
            .map(|_| {
                let replica = Rc::clone(&replica);
                spawn(async move { execute(&*replica, Request::read(0, SIZE)).await.map(|data| data.length()) })
            })
            .collect();
        for read in reads {
            assert_eq!(read.await.expect("it ends").expect("read") as u64, SIZE);
        }
        assert_eq!(replica.oldest(), None);
    });
}

#[test]
fn a_dead_connection_ends_everything_in_flight_with_an_error_that_says_so() {
    // I16
    let (world, node, engine, _) = with_replica(4);
    let replica = world.block_on(engine, async { connect(&open(1, 1)).await.expect("granted") });
    world.set_disk_latency(node, DISK, slow());
    let writing = world.spawn(engine, async move {
        let error = write(&*replica, 0, 1).await.expect_err("the node dies");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert_eq!(replica.failed().await.kind(), ErrorKind::Unavailable);
        assert_eq!(kind(write(&*replica, 0, 1).await), Some(ErrorKind::Unavailable), "it stays failed");
        assert_eq!(kind(replica.chain().await.map(drop)), Some(ErrorKind::Unavailable));
        error.to_string()
    });
    world.run_for(Duration::from_millis(500));
    world.kill(node);
    assert!(world.run_until(|| writing.is_done(), Duration::from_secs(5)));
    let text = writing.take().expect("done");
    assert!(text.contains("connection"), "{text}");
}

fn slow() -> DiskLatency {
    let second = Duration::from_secs(1)..=Duration::from_secs(2);
    DiskLatency { write: second, ..DiskLatency::default() }
}

#[test]
fn a_peer_that_falls_silent_is_given_up() {
    let (world, node, engine, _) = with_replica(5);
    let waiting = world.spawn(engine, async {
        let replica = connect(&open(1, 1)).await.expect("granted");
        // Idle: pings keep it.
        sleep(Duration::from_secs(60)).await;
        assert!(replica.failure().is_none());
        let start = now();
        let error = replica.failed().await;
        (error.kind(), now() - start)
    });
    world.run_for(Duration::from_secs(70));
    world.partition(node, engine);
    assert!(world.run_until(|| waiting.is_done(), Duration::from_secs(30)));
    let (kind, _) = waiting.take().expect("done");
    assert_eq!(kind, ErrorKind::TimedOut);
}

#[test]
fn a_disk_that_hangs_behind_a_live_connection_shows_in_the_pongs() {
    // I41
    let (world, node, engine, _) = with_replica(6);
    let replica = world.block_on(engine, async { connect(&open(1, 1)).await.expect("granted") });
    world.set_disk_latency(
        node,
        DISK,
        DiskLatency { write: Duration::from_secs(30)..=Duration::from_secs(30), ..DiskLatency::default() },
    );
    world.block_on(engine, async move {
        let slow = Rc::clone(&replica);
        let writing = spawn(async move { write(&*slow, 0, 1).await });
        sleep(Duration::from_secs(10)).await;
        assert!(replica.reported_age() > Some(Duration::from_secs(7)), "{:?}", replica.reported_age());
        assert!(replica.failure().is_none(), "whether that is too old is the engine's to say");
        writing.await.expect("it ends").expect("written");
        sleep(Duration::from_secs(3)).await;
        assert_eq!(replica.reported_age(), Some(Duration::ZERO));
    });
}

#[test]
fn opening_fails_with_what_is_the_matter() {
    let (world, node, engine, _) = with_replica(7);
    world.block_on(engine, async {
        let absent = OpenReplica { replica: Uuid::from_bytes([9; 16]), ..open(1, 1) };
        assert!(matches!(connect(&absent).await, Err(OpenError::NotFound)));
        let other = OpenReplica { volume: Uuid::from_bytes([9; 16]), ..open(1, 1) };
        assert!(matches!(connect(&other).await, Err(OpenError::Mismatch(_))));
        let current = connect(&open(5, 1)).await.expect("granted");
        assert!(matches!(connect(&open(4, 2)).await, Err(OpenError::Fenced { stored: 5 })));
        write(&*current, 0, 1).await.expect("the refused one changed nothing");
        let newer = connect(&open(6, 2)).await.expect("granted");
        assert_eq!(kind(write(&*current, 0, 2).await), Some(ErrorKind::Fenced));
        assert_eq!(read(&*newer, 0).await.expect("read"), 1);
    });
    world.kill(node);
    world.block_on(engine, async {
        let start = now();
        assert!(matches!(connect(&open(7, 1)).await, Err(OpenError::Unreachable(_))));
        assert!(now() - start <= RemoteOptions::default().open_limit * 2);
    });
}

#[test]
fn the_old_connection_of_a_reconnected_engine_has_no_effect() {
    // I16: the node keeps what it received, while the engine opens again over a new connection.
    let (world, node, engine, _) = with_replica(8);
    let old = world.block_on(engine, async { connect(&open(1, 1)).await.expect("granted") });
    world.set_disk_latency(node, DISK, slow());
    world.block_on(engine, async move {
        let writing = {
            let old = Rc::clone(&old);
            spawn(async move { write(&*old, 0, 1).await })
        };
        sleep(Duration::from_millis(100)).await;
        old.fail(ErrorKind::TimedOut.into());
        assert_eq!(kind(writing.await.expect("it ends")), Some(ErrorKind::TimedOut));
        let new = loop {
            match connect(&open(1, 1)).await {
                Ok(new) => break new,
                Err(error) => assert!(matches!(error, OpenError::Unreachable(_)), "{error}"),
            }
        };
        write(&*new, 0, 2).await.expect("written");
        sleep(Duration::from_secs(10)).await;
        assert_eq!(read(&*new, 0).await.expect("read"), 2);
    });
}

#[test]
fn connections_that_come_and_go_leave_nothing_behind() {
    // I40
    let (world, node, engine, _) = with_replica(9);
    let before = world.open_sockets(node);
    let counts = world.block_on(engine, async {
        let mut counts = Vec::new();
        for round in 0..50 {
            let replica = connect(&open(1, 1)).await.expect("granted");
            let slow = Rc::clone(&replica);
            spawn(async move { write(&*slow, 0, 1).await });
            match round % 3 {
                0 => replica.close(),
                1 => replica.fail(ErrorKind::Aborted.into()),
                _ => {}
            }
            drop(replica);
            let absent = OpenReplica { replica: Uuid::from_bytes([9; 16]), ..open(1, 1) };
            assert!(connect(&absent).await.is_err());
            sleep(Duration::from_secs(10)).await;
            counts.push((reactor::task_count(), reactor::buffer::lent()));
        }
        counts
    });
    assert!(counts.windows(2).all(|pair| pair[0] == pair[1]), "{counts:?}");
    assert_eq!((world.open_sockets(node), world.open_sockets(engine)), (before, 0));
}

#[test]
fn noise_on_the_port_closes_that_connection_only() {
    let (world, _, engine, _) = with_replica(10);
    world.block_on(engine, async {
        let replica = connect(&open(1, 1)).await.expect("granted");
        for length in [1, 63, 64, 1000] {
            let stream = reactor::TcpStream::connect(address()).await.expect("it listens");
            stream.push_copy(&vec![0x5a; length]);
            stream.flush();
            if length >= 64 {
                let end = stream.receive().await.map_or(0, |chunk| chunk.len());
                assert_eq!(end, 0, "closed, without a word");
            }
        }
        write(&*replica, 0, 1).await.expect("nobody else noticed");
        assert_eq!(replica.geometry().size(), SIZE);
    });
}
