//! TCP over loopback on real reactors.

mod support;

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::mpsc;
use std::time::Duration;

use reactor::{Buffer, Config, DetachedStream, Handle, Reactor, Slice, TcpListener, TcpStream, spawn, yield_now};

use support::{any_port, pair, pattern, patterned, poll_once, receive_exactly, run, run_with, until};

#[test]
fn bytes_arrive_in_order_and_then_the_end() {
    run(async {
        let (server, client) = pair().await;
        client.push_copy(b"head");
        client.push(Slice::from(&[7; 100_000][..]));
        client.push_copy(b"tail");
        client.flush();
        let bytes = receive_exactly(&server, 100_008).await;
        assert_eq!(&bytes[..4], b"head");
        assert!(bytes[4..100_004].iter().all(|&byte| byte == 7));
        assert_eq!(&bytes[100_004..], b"tail");
        client.shutdown().await.expect("sent");
        assert!(server.receive().await.expect("the end").is_empty());
        assert!(server.receive().await.expect("still the end").is_empty());
        server.push_copy(b"answer");
        server.flush();
        assert_eq!(receive_exactly(&client, 6).await, b"answer", "the other direction is open");
    });
}

#[test]
fn many_small_pieces_go_out_whole() {
    run(async {
        let (server, client) = pair().await;
        let sending = spawn(async move {
            for at in 0..40_000 {
                client.push_copy(&[pattern(at)]);
                if at % 7 == 0 {
                    client.push(patterned(0..1));
                }
            }
            client.flush();
            client.drained(0).await.expect("sent");
        });
        let bytes = receive_exactly(&server, 40_000 + 40_000_usize.div_ceil(7)).await;
        let mut expected = Vec::new();
        for at in 0..40_000 {
            expected.push(pattern(at));
            if at % 7 == 0 {
                expected.push(pattern(0));
            }
        }
        assert!(bytes == expected, "order kept");
        sending.await.expect("no panic");
    });
}

#[test]
fn a_timer_beats_a_silent_peer() {
    run(async {
        let (server, _client) = pair().await;
        let waited = reactor::timeout(Duration::from_millis(20), server.receive()).await;
        assert!(waited.is_err());
    });
}

#[test]
fn nobody_listens() {
    run(async {
        let address = TcpListener::bind(any_port()).expect("listening").local_address();
        yield_now().await;
        let error = TcpStream::connect(address).await.err().expect("refused");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    });
}

#[test]
fn an_address_in_use_is_named() {
    run(async {
        let listener = TcpListener::bind(any_port()).expect("listening");
        let address = listener.local_address();
        let error = TcpListener::bind(address).err().expect("in use");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    });
}

#[test]
fn a_restarted_listener_takes_its_address_again_at_once() {
    run(async {
        let mut listener = TcpListener::bind(any_port()).expect("listening");
        for _ in 0..5 {
            let address = listener.local_address();
            let client = spawn(TcpStream::connect(address));
            // Closed by this side first, so the connection stays in TIME_WAIT on the listener's address.
            drop(listener.accept().await.expect("accepted"));
            drop(client.await.expect("not aborted").expect("connected"));
            assert!(poll_once(&mut pin!(listener.accept())).await.is_pending());
            // An accept is in flight still.
            drop(listener);
            listener = TcpListener::bind(address).expect("the same address");
        }
    });
}

#[test]
fn congestion_control_is_set_or_refused_by_name() {
    let with = |name: &str| Config { congestion: Some(name.to_owned()), ..Config::default() };
    let pinged = run_with(&with("reno"), async {
        let (server, client) = pair().await;
        client.push_copy(b"ping");
        client.flush();
        receive_exactly(&server, 4).await
    });
    assert_eq!(pinged, b"ping");
    let refused = run_with(&with("no-such"), async { TcpListener::bind(any_port()).err() });
    let error = refused.expect("refused");
    assert!(error.to_string().contains("no-such"), "{error}");
}

#[test]
fn a_failed_stream_says_so_and_keeps_nothing() {
    run(async {
        let (server, client) = pair().await;
        drop(server);
        let error = loop {
            client.push(patterned(0..65_536));
            client.flush();
            if let Err(error) = client.drained(0).await {
                break error;
            }
        };
        assert!(matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset), "{error}");
        client.push(patterned(0..65_536));
        client.push_copy(b"more");
        assert_eq!(client.queued_bytes(), 0);
    });
}

#[test]
fn a_reactor_ends_with_everything_in_flight() {
    for _ in 0..50 {
        run(async {
            let listener = TcpListener::bind(any_port()).expect("listening");
            let (server, client) = pair().await;
            client.push(Buffer::try_new(8 << 20).expect("within the limit").freeze());
            client.flush();
            spawn(async move { listener.accept().await.map(drop) });
            spawn(async move { server.receive().await.map(drop) });
            spawn(async move { client.receive().await.map(drop) });
            yield_now().await;
        });
        assert_eq!(reactor::buffer::lent(), 0);
    }
}

#[test]
fn a_reader_that_stops_stops_the_sender_and_nobody_else() {
    run(async {
        let (server, client) = pair().await;
        const TOTAL: usize = 64 << 20;
        let sending = spawn(async move {
            for at in (0..TOTAL).step_by(1 << 20) {
                client.push(patterned(at..at + (1 << 20)));
                client.flush();
                client.drained(0).await.expect("sent");
            }
            client.shutdown().await.expect("ended");
        });
        // The first chunk starts the receive; then the reader sleeps.
        let mut at = server.receive().await.expect("bytes").len();
        let (other_server, other_client) = pair().await;
        for _ in 0..100 {
            other_client.push_copy(b"ping");
            other_client.flush();
            assert_eq!(receive_exactly(&other_server, 4).await, b"ping");
        }
        reactor::sleep(Duration::from_millis(50)).await;
        assert!(!sending.is_finished(), "{TOTAL} bytes fit in no window");
        loop {
            let chunk = server.receive().await.expect("bytes");
            if chunk.is_empty() {
                break;
            }
            assert!(chunk.iter().enumerate().all(|(place, &byte)| byte == pattern(at + place)), "chunk at {at}");
            at += chunk.len();
        }
        assert_eq!(at, TOTAL);
    });
}

/// Readers that keep every chunk must not take the receive ring from the others.
#[test]
fn kept_chunks_starve_nobody() {
    let config = Config { receive_buffers: 4, receive_buffer_size: 4096, ..Config::default() };
    run_with(&config, async {
        let mut kept = Vec::new();
        for _ in 0..8 {
            let (server, client) = pair().await;
            client.push(patterned(0..65_536));
            client.flush();
            let mut chunks = Vec::new();
            let mut length = 0;
            while length < 65_536 {
                let chunk = server.receive().await.expect("bytes");
                length += chunk.len();
                chunks.push(chunk);
            }
            kept.push((server, client, chunks));
        }
        for (_, _, chunks) in &kept {
            let bytes: Vec<u8> = chunks.iter().flat_map(|chunk| chunk.iter().copied()).collect();
            assert!(bytes[..] == patterned(0..65_536)[..], "kept bytes stay as they are");
        }
    });
}

/// More streams than buffers, all flooded at once: the kernel runs out of buffers again and again.
#[test]
fn a_dry_receive_ring_recovers() {
    let config = Config { receive_buffers: 2, receive_buffer_size: 1024, ring_entries: 4, ..Config::default() };
    run_with(&config, async {
        const LENGTH: usize = 300_000;
        let mut readers = Vec::new();
        for _ in 0..20 {
            let (server, client) = pair().await;
            client.push(patterned(0..LENGTH));
            client.flush();
            readers.push(spawn(async move {
                let bytes = receive_exactly(&server, LENGTH).await;
                drop(client);
                assert!(bytes.iter().enumerate().all(|(at, &byte)| byte == pattern(at)));
            }));
        }
        for reader in readers {
            reader.await.expect("whole and in order");
        }
    });
}

/// Streams that are flushed and dropped in one turn while the ring is full: what waited for room goes out on its own
/// stream, never on one that was opened since under the same identifier.
#[test]
fn a_stream_dropped_after_a_flush_still_sends() {
    let config = Config { ring_entries: 2, ..Config::default() };
    run_with(&config, async {
        for _ in 0..20 {
            let mut pairs = Vec::new();
            for number in 0..30_u8 {
                let (server, client) = pair().await;
                pairs.push((number, server, client));
            }
            let mut readers = Vec::new();
            for (number, server, client) in pairs {
                client.push_copy(&[number; 1000]);
                client.flush();
                drop(client);
                readers.push(spawn(async move {
                    let bytes = receive_exactly(&server, 1000).await;
                    assert!(bytes.iter().all(|&byte| byte == number), "bytes of another stream");
                    assert!(server.receive().await.expect("the end").is_empty());
                }));
            }
            for reader in readers {
                reader.await.expect("whole");
            }
        }
    });
}

#[test]
fn a_busy_stream_leaves_turns_for_others() {
    run(async {
        let (busy_server, busy_client) = pair().await;
        let received = Rc::new(Cell::new(0_usize));
        let count = Rc::clone(&received);
        let flood = patterned(0..1 << 20);
        spawn(async move {
            loop {
                busy_client.push(flood.clone());
                busy_client.flush();
                busy_client.drained(4 << 20).await.expect("sent");
            }
        });
        spawn(async move {
            loop {
                count.set(count.get() + busy_server.receive().await.expect("bytes").len());
            }
        });
        until(|| received.get() > 1 << 20).await;
        let (server, client) = pair().await;
        let before = received.get();
        for _ in 0..200 {
            client.push_copy(b"ping");
            client.flush();
            assert_eq!(receive_exactly(&server, 4).await, b"ping");
        }
        assert!(received.get() > before, "both went on");
    });
}

/// A stream hops between two reactors while its peer goes on sending: no byte is lost, doubled or swapped.
#[test]
fn a_stream_moves_between_reactors_under_load() {
    const TOTAL: usize = 48 << 20;
    let reactors = [0, 1].map(|_| Reactor::start(Config::default()).expect("a reactor"));
    let (sender, receiver) = mpsc::channel();
    let others = [reactors[1].handle(), reactors[0].handle()];
    let serve = move || {
        spawn(async move {
            let listener = TcpListener::bind(any_port()).expect("listening");
            sender.send(listener.local_address()).expect("the test waits");
            let stream = listener.accept().await.expect("accepted");
            hop(stream, 0, 0, others).await;
        });
    };
    reactors[0].handle().post(serve).expect("posted");
    let address = receiver.recv().expect("an address");
    let answer = run(async move {
        let client = TcpStream::connect(address).await.expect("connected");
        for at in (0..TOTAL).step_by(1 << 20) {
            client.push(patterned(at..at + (1 << 20)));
            client.flush();
            client.drained(1 << 20).await.expect("sent");
        }
        receive_exactly(&client, 8).await
    });
    let hops = u64::from_le_bytes(answer.try_into().expect("eight bytes"));
    assert!(hops > 20, "it hopped {hops} times");

    /// Reads for a while, then hands the stream to the other reactor; answers with the number of hops at the end.
    fn hop(
        stream: TcpStream,
        mut at: usize,
        hops: u64,
        next: [Handle; 2],
    ) -> std::pin::Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(async move {
            let until = (at + (1 << 20)).min(TOTAL);
            while at < until {
                let chunk = stream.receive().await.expect("bytes");
                assert!(!chunk.is_empty(), "the stream ended at {at}");
                assert!(chunk.iter().enumerate().all(|(place, &byte)| byte == pattern(at + place)), "chunk at {at}");
                at += chunk.len();
            }
            if at >= TOTAL {
                stream.push_copy(&hops.to_le_bytes());
                stream.flush();
                stream.drained(0).await.expect("sent");
                return;
            }
            let clone = stream.clone();
            let detached: DetachedStream = stream.detach().await.expect("detached");
            assert!(clone.receive().await.is_err(), "other clones find it closed");
            let [other, own] = next;
            let target = other.clone();
            let go_on = move || {
                spawn(async move {
                    let stream = detached.attach().expect("attached");
                    hop(stream, at, hops + 1, [own, other]).await;
                });
            };
            target.post(go_on).expect("posted");
        })
    }
}

#[test]
fn detaching_sends_what_was_queued_first() {
    run(async {
        let (server, client) = pair().await;
        client.push(patterned(0..1 << 20));
        let reading = spawn(async move { receive_exactly(&server, 1 << 20).await });
        let _detached = client.detach().await.expect("detached");
        let bytes = reading.await.expect("no panic");
        assert!(bytes[..] == patterned(0..1 << 20)[..]);
    });
}

#[test]
fn a_stream_that_ended_cannot_be_detached() {
    run(async {
        let (server, client) = pair().await;
        drop(client);
        assert!(server.receive().await.expect("the end").is_empty());
        assert_eq!(server.detach().await.err().map(|error| error.kind()), Some(io::ErrorKind::UnexpectedEof));
    });
}

#[test]
fn an_idle_reactor_makes_no_turns() {
    let reactor = Reactor::start(Config::default()).expect("a reactor");
    let (sender, receiver) = mpsc::channel();
    let serve = move || {
        spawn(async move {
            let listener = TcpListener::bind(any_port()).expect("listening");
            sender.send(listener.local_address()).expect("the test waits");
            let stream = listener.accept().await.expect("accepted");
            let never = async { stream.receive().await.map(drop) };
            let _timed_out = reactor::timeout(Duration::from_secs(3600), never).await;
        });
    };
    reactor.handle().post(serve).expect("posted");
    let _client = std::net::TcpStream::connect(receiver.recv().expect("an address")).expect("connected");
    // However slow the machine, it comes to rest: with an open listener, connection and timer.
    let comes_to_rest = (0..100).any(|_| {
        let turns = reactor.stats().turns();
        std::thread::sleep(Duration::from_millis(100));
        reactor.stats().turns() == turns
    });
    assert!(comes_to_rest, "{:?}", reactor.stats());
    reactor.stop().expect("a clean end");
}

#[test]
fn a_stream_outlives_its_reactor_harmlessly() {
    let kept: Rc<RefCell<Option<(TcpStream, Slice)>>> = Rc::default();
    let keep = Rc::clone(&kept);
    run(async move {
        let (server, client) = pair().await;
        client.push_copy(b"ping");
        client.flush();
        let chunk = server.receive().await.expect("bytes");
        *keep.borrow_mut() = Some((client, Slice::from(&chunk[..])));
    });
    let (stream, slice) = kept.take().expect("kept");
    assert_eq!(&slice[..], b"ping");
    drop(stream);
}
