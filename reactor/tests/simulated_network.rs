//! The network of a simulated world: streams, partitions, resets, and the end of peers.

mod support;

use std::cell::{Cell, RefCell};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use reactor::simulated::{Link, NodeId, World};
use reactor::{TcpListener, TcpStream, sleep, spawn, timeout};

use support::{SERVER, address, world};

/// What a [`sink`] has seen of one connection.
#[derive(Default)]
struct Seen {
    bytes: RefCell<Vec<u8>>,
    /// How many chunks had fewer than eight bytes.
    tiny_chunks: Cell<usize>,
    end: Cell<Option<Result<(), ErrorKind>>>,
}

/// Accepts one connection on the server and reads it to its end.
fn sink(world: &World, server: NodeId) -> Rc<Seen> {
    let seen = Rc::new(Seen::default());
    let record = Rc::clone(&seen);
    world.boot(server, || async move {
        let listener = TcpListener::bind(address()).unwrap();
        let stream = listener.accept().await.unwrap();
        let end = loop {
            match stream.receive().await {
                Ok(chunk) if chunk.is_empty() => break Ok(()),
                Ok(chunk) => {
                    record.tiny_chunks.set(record.tiny_chunks.get() + usize::from(chunk.len() < 8));
                    record.bytes.borrow_mut().extend_from_slice(&chunk);
                }
                Err(error) => break Err(error.kind()),
            }
        };
        record.end.set(Some(end));
        std::future::pending::<()>().await;
    });
    world.run_for(Duration::from_millis(1));
    seen
}

/// Sends back all that comes, to any number of clients.
async fn echo() {
    let listener = TcpListener::bind(address()).unwrap();
    loop {
        let stream = listener.accept().await.unwrap();
        spawn(async move {
            while let Ok(chunk) = stream.receive().await {
                if chunk.is_empty() {
                    break;
                }
                stream.push_copy(&chunk);
                stream.flush();
            }
        });
    }
}

async fn receive_exactly(stream: &TcpStream, count: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while bytes.len() < count {
        let chunk = stream.receive().await?;
        if chunk.is_empty() {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

#[test]
fn bytes_arrive_whole_and_in_order_in_chunks_of_every_size() {
    let mut tiny_chunks = 0;
    for seed in 0..20 {
        let (world, server, client) = world(seed);
        let seen = sink(&world, server);
        let sent: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        let bytes = sent.clone();
        world.block_on(client, async move {
            let stream = TcpStream::connect(address()).await.unwrap();
            assert_eq!(stream.peer_address(), address());
            for part in bytes.chunks(7919) {
                stream.push_copy(part);
                stream.flush();
                stream.drained(64 << 10).await.unwrap();
            }
            stream.shutdown().await.unwrap();
            sleep(Duration::from_secs(1)).await;
        });
        assert_eq!(seen.end.get(), Some(Ok(())));
        assert!(*seen.bytes.borrow() == sent);
        tiny_chunks += seen.tiny_chunks.get();
    }
    assert!(tiny_chunks > 0, "chunks are split anywhere");
}

#[test]
fn a_half_closed_stream_still_receives() {
    let (world, server, client) = world(1);
    world.boot(server, || async {
        let listener = TcpListener::bind(address()).unwrap();
        let stream = listener.accept().await.unwrap();
        while !stream.receive().await.unwrap().is_empty() {}
        stream.push_copy(b"after your end");
        stream.flush();
        std::future::pending::<()>().await;
    });
    let answer = world.block_on(client, async {
        let stream = TcpStream::connect(address()).await.unwrap();
        stream.push_copy(b"question");
        stream.flush();
        stream.shutdown().await.unwrap();
        receive_exactly(&stream, 14).await.unwrap()
    });
    assert_eq!(answer, b"after your end");
}

#[test]
fn connects_are_refused_without_a_listener_and_time_out_without_a_machine() {
    let (world, server, client) = world(2);
    let connect = || world.block_on(client, async { TcpStream::connect(address()).await.err().map(|e| e.kind()) });
    assert_eq!(connect(), Some(ErrorKind::ConnectionRefused));
    world.power_cut(server);
    let before = world.now();
    assert_eq!(connect(), Some(ErrorKind::TimedOut));
    assert!(world.now() - before > Duration::from_secs(100));
    let nowhere = world.block_on(client, async { TcpStream::connect(([10, 9, 9, 9], 1).into()).await.err() });
    assert_eq!(nowhere.unwrap().kind(), ErrorKind::TimedOut);
}

#[test]
fn listeners_take_free_ports_and_own_addresses_only() {
    let (world, server, _) = world(3);
    world.block_on(server, async {
        let first = TcpListener::bind((SERVER, 0).into()).unwrap();
        let second = TcpListener::bind((SERVER, 0).into()).unwrap();
        assert_ne!(first.local_address(), second.local_address());
        let taken = TcpListener::bind(first.local_address()).err().unwrap();
        assert_eq!(taken.kind(), ErrorKind::AddrInUse);
        let foreign = TcpListener::bind(([10, 0, 0, 2], 1).into()).err().unwrap();
        assert_eq!(foreign.kind(), ErrorKind::AddrNotAvailable);
        let again = first.local_address();
        drop(first);
        TcpListener::bind(again).unwrap();
        drop(second);
    });
    assert_eq!(world.open_sockets(server), 0);
}

#[test]
fn loopback_stays_within_its_machine() {
    let (world, server, client) = world(4);
    let here: SocketAddr = ([127, 0, 0, 1], 5000).into();
    world.block_on(server, async move {
        let listener = TcpListener::bind(here).unwrap();
        let accept =
            spawn(async move { listener.accept().await.map(|stream| stream.peer_address().ip().is_loopback()) });
        let _stream = TcpStream::connect(here).await.unwrap();
        assert!(accept.await.unwrap().unwrap());
    });
    let refused = world.block_on(client, async move { TcpStream::connect(here).await.err() });
    assert_eq!(refused.unwrap().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn a_killed_peer_ends_the_stream_or_resets_it() {
    let mut ends = [0, 0];
    for seed in 0..30 {
        let (world, server, client) = world(seed);
        world.boot(server, echo);
        let end = world.spawn(client, async {
            let stream = TcpStream::connect(address()).await.unwrap();
            stream.push_copy(b"hello");
            stream.flush();
            receive_exactly(&stream, 5).await.unwrap();
            stream.receive().await.map(|chunk| chunk.len()).map_err(|error| error.kind())
        });
        world.run_for(Duration::from_secs(1));
        assert!(!end.is_done());
        world.kill(server);
        world.run_for(Duration::from_secs(1));
        match end.take() {
            Some(Ok(0)) => ends[0] += 1,
            Some(Err(ErrorKind::ConnectionReset)) => ends[1] += 1,
            other => panic!("{other:?}"),
        }
        assert_eq!(world.open_sockets(server), 0);
        world.kill(client);
        assert_eq!(world.open_sockets(client), 0);
    }
    assert!(ends.iter().all(|&count| count > 0), "{ends:?}");
}

#[test]
fn a_peer_without_power_is_silent_until_it_is_back_and_spoken_to() {
    let (world, server, client) = world(5);
    world.boot(server, echo);
    let stream = Rc::new(RefCell::new(None));
    let keep = Rc::clone(&stream);
    world.block_on(client, async move {
        *keep.borrow_mut() = Some(TcpStream::connect(address()).await.unwrap());
        sleep(Duration::from_secs(1)).await;
    });
    world.power_cut(server);
    let stream: TcpStream = stream.borrow_mut().take().unwrap();
    let receive = stream.clone();
    let end = world.spawn(client, async move { receive.receive().await.map(drop).map_err(|error| error.kind()) });
    world.run_for(Duration::from_secs(7200));
    assert!(!end.is_done(), "no packet, no news");
    world.boot(server, echo);
    world.run_for(Duration::from_secs(60));
    assert!(!end.is_done());
    world.block_on(client, async move {
        stream.push_copy(b"are you there?");
        stream.flush();
        sleep(Duration::from_secs(1)).await;
    });
    assert_eq!(end.take(), Some(Err(ErrorKind::ConnectionReset)));
}

#[test]
fn a_partition_delays_and_a_heal_delivers() {
    let (world, server, client) = world(6);
    world.boot(server, echo);
    let echoed = world.spawn(client, async {
        let stream = TcpStream::connect(address()).await.unwrap();
        sleep(Duration::from_secs(1)).await;
        stream.push_copy(b"through");
        stream.flush();
        receive_exactly(&stream, 7).await.unwrap()
    });
    world.run_for(Duration::from_millis(500));
    world.partition(server, client);
    world.run_for(Duration::from_secs(300));
    assert!(!echoed.is_done());
    world.heal(server, client);
    world.run_for(Duration::from_secs(2));
    assert_eq!(echoed.take(), Some(b"through".to_vec()));
}

#[test]
fn a_long_partition_ends_streams_with_unacknowledged_bytes_only() {
    let (world, server, client) = world(7);
    world.boot(server, echo);
    let ends = world.spawn(client, async {
        let (busy, idle) = (TcpStream::connect(address()).await.unwrap(), TcpStream::connect(address()).await.unwrap());
        sleep(Duration::from_secs(1)).await;
        busy.push_copy(b"lost");
        busy.flush();
        let busy = busy.receive().await.map(drop).map_err(|error| error.kind());
        let idle = timeout(Duration::from_secs(1000), idle.receive()).await.is_err();
        (busy, idle)
    });
    world.run_for(Duration::from_millis(500));
    world.partition(server, client);
    world.run_for(Duration::from_secs(4000));
    assert_eq!(ends.take(), Some((Err(ErrorKind::TimedOut), true)));
}

#[test]
fn a_one_way_partition_stops_one_direction_and_then_the_other_for_want_of_acknowledgements() {
    let (world, server, client) = world(8);
    let seen = sink(&world, server);
    let sent = Rc::new(Cell::new(0));
    let counter = Rc::clone(&sent);
    world.spawn(client, async move {
        let stream = TcpStream::connect(address()).await.unwrap();
        sleep(Duration::from_secs(1)).await;
        loop {
            stream.push_copy(&[1; 4096]);
            stream.flush();
            stream.drained(0).await.unwrap();
            counter.set(counter.get() + 4096);
            sleep(Duration::from_micros(500)).await;
        }
    });
    world.run_for(Duration::from_millis(500));
    // The server's packets are lost: bytes to it still arrive.
    world.partition_one_way(server, client);
    world.run_for(Duration::from_secs(100));
    let window = seen.bytes.borrow().len();
    assert!(window >= 64 << 10, "bytes arrive against the partition");
    world.run_for(Duration::from_secs(100));
    assert_eq!(seen.bytes.borrow().len(), window, "the window is full");
    assert!(sent.get() <= window);
    world.heal(server, client);
    world.run_for(Duration::from_millis(600));
    assert!(seen.bytes.borrow().len() > 2 * window);
    // The client's packets are lost: nothing arrives.
    world.partition_one_way(client, server);
    let before = seen.bytes.borrow().len();
    world.run_for(Duration::from_secs(100));
    assert_eq!(seen.bytes.borrow().len(), before);
}

#[test]
fn connects_wait_for_a_partition_to_heal() {
    let (world, server, client) = world(9);
    world.boot(server, echo);
    for blocked in [(server, client), (client, server)] {
        world.partition_one_way(blocked.0, blocked.1);
        let connect = world.spawn(client, async { TcpStream::connect(address()).await.is_ok() });
        world.run_for(Duration::from_secs(20));
        assert!(!connect.is_done());
        world.heal(server, client);
        world.run_for(Duration::from_secs(60));
        assert_eq!(connect.take(), Some(true));
    }
}

#[test]
fn a_full_window_pushes_back_on_the_sender() {
    let (world, server, client) = world(10);
    world.boot(server, || async {
        let listener = TcpListener::bind(address()).unwrap();
        let _stream = listener.accept().await.unwrap();
        std::future::pending::<()>().await;
    });
    let sent = world.spawn(client, async {
        let stream = TcpStream::connect(address()).await.unwrap();
        stream.push_copy(&vec![1; 4 << 20]);
        stream.flush();
        timeout(Duration::from_secs(10), stream.drained(0)).await.is_ok()
    });
    world.run_for(Duration::from_secs(20));
    assert_eq!(sent.take(), Some(false));
}

#[test]
fn resets_happen_on_demand_and_by_chance() {
    let (world, server, client) = world(11);
    world.boot(server, echo);
    let end = world.spawn(client, async {
        let stream = TcpStream::connect(address()).await.unwrap();
        stream.receive().await.map(drop).map_err(|error| error.kind())
    });
    world.run_for(Duration::from_secs(1));
    world.reset_connections(server, client);
    world.run_for(Duration::from_secs(1));
    assert_eq!(end.take(), Some(Err(ErrorKind::ConnectionReset)));
    world.set_link(client, server, Link { reset_probability: 0.2, ..Link::default() });
    let rounds = world.block_on(client, async {
        let stream = TcpStream::connect(address()).await.unwrap();
        for round in 0..1000 {
            stream.push_copy(b"?");
            stream.flush();
            if receive_exactly(&stream, 1).await.is_err() {
                return round;
            }
        }
        1000
    });
    assert!(rounds < 100);
}

#[test]
fn delay_and_bandwidth_are_kept() {
    let (world, server, client) = world(12);
    let second = Duration::from_secs(1);
    for (from, to) in [(server, client), (client, server)] {
        let delay = second..=second;
        world.set_link(from, to, Link { delay, bytes_per_second: Some(1 << 20), ..Link::default() });
    }
    world.boot(server, echo);
    // The machines' own clocks run a little fast or slow.
    let observer = world.observer();
    world.block_on(client, async move {
        let start = observer.now();
        let stream = TcpStream::connect(address()).await.unwrap();
        assert!(observer.now() - start >= 2 * second);
        let start = observer.now();
        stream.push_copy(&[0; 1 << 17]);
        stream.flush();
        receive_exactly(&stream, 1 << 17).await.unwrap();
        assert!(observer.now() - start >= 2 * second + second / 8);
    });
}

#[test]
fn a_stream_moves_between_reactors_with_what_it_has_not_read() {
    for seed in 0..20 {
        let (world, server, client) = world(seed);
        world.boot(server, || async {});
        let second = world.start_reactor(server);
        world.spawn(server, async move {
            let listener = TcpListener::bind(address()).unwrap();
            let stream = listener.accept().await.unwrap();
            let first = receive_exactly(&stream, 1).await.unwrap();
            sleep(Duration::from_millis(u64::from(first[0]))).await;
            let detached = stream.detach().await.unwrap();
            let rest = first.len();
            let moved = second.call(move || async move {
                let stream = detached.attach().unwrap();
                let bytes = receive_exactly(&stream, 3000 - rest).await.unwrap();
                stream.push_copy(&bytes[bytes.len() - 1..]);
                stream.flush();
                stream.shutdown().await.unwrap();
                sleep(Duration::from_secs(1)).await;
            });
            moved.await.unwrap();
        });
        world.run_for(Duration::from_millis(1));
        let answer = world.block_on(client, async {
            let stream = TcpStream::connect(address()).await.unwrap();
            for part in [0_u8, 1, 2] {
                stream.push_copy(&[part; 1000]);
                stream.flush();
                sleep(Duration::from_micros(100)).await;
            }
            receive_exactly(&stream, 1).await.unwrap()
        });
        assert_eq!(answer, [2], "seed {seed}");
    }
}

#[test]
fn a_detached_stream_that_is_dropped_closes() {
    let (world, server, client) = world(13);
    world.boot(server, || async {
        let listener = TcpListener::bind(address()).unwrap();
        let stream = listener.accept().await.unwrap();
        drop(stream.detach().await.unwrap());
        drop(listener);
        std::future::pending::<()>().await;
    });
    let end = world.block_on(client, async {
        let stream = TcpStream::connect(address()).await.unwrap();
        stream.receive().await.unwrap().len()
    });
    assert_eq!(end, 0);
    assert_eq!(world.open_sockets(server), 0);
    world.run_for(Duration::from_secs(1));
    assert_eq!(world.open_sockets(client), 0);
}

/// I40: whoever stops waiting for a connection leaves no socket behind, however the race ends.
#[test]
fn abandoned_connects_and_accepts_leave_nothing_open() {
    for seed in 0..50 {
        let (world, server, client) = world(seed);
        world.boot(server, || async {
            let listener = TcpListener::bind(address()).unwrap();
            for _ in 0..200 {
                drop(timeout(Duration::from_micros(100), listener.accept()).await);
            }
            drop(listener);
            std::future::pending::<()>().await;
        });
        world.block_on(client, async {
            for wait in 0..50 {
                let limit = Duration::from_micros(20 * wait);
                drop(timeout(limit, TcpStream::connect(address())).await);
            }
        });
        world.run_for(Duration::from_secs(10));
        assert_eq!((world.open_sockets(server), world.open_sockets(client)), (0, 0), "seed {seed}");
    }
}

#[test]
fn a_paused_process_still_has_its_connections_accepted_by_the_kernel() {
    let (world, server, client) = world(14);
    world.boot(server, echo);
    world.run_for(Duration::from_millis(1));
    world.pause(server);
    let echoed = world.spawn(client, async {
        let stream = TcpStream::connect(address()).await.unwrap();
        stream.push_copy(b"wait for me");
        stream.flush();
        stream.drained(0).await.unwrap();
        receive_exactly(&stream, 11).await.unwrap()
    });
    world.run_for(Duration::from_secs(30));
    assert!(!echoed.is_done());
    world.resume(server);
    world.run_for(Duration::from_secs(1));
    assert_eq!(echoed.take().as_deref(), Some(&b"wait for me"[..]));
}
