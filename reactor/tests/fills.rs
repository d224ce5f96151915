//! Receiving long data straight into buffers, in a simulated world and over loopback.

mod support;

use std::io::ErrorKind;
use std::time::Duration;

use reactor::{Buffer, TcpListener, TcpStream, spawn};

use support::{address, pair, pattern, patterned, run, world};

/// A sequence of small numbers that differs by seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }

    /// From a few bytes to a quarter of a MiB.
    fn length(&mut self) -> usize {
        let scale = self.below(19);
        1 + self.below(1 << scale)
    }
}

/// Reads `length` bytes of the pattern, now by chunks, now into buffers of every size. How many of the bytes were filled in.
async fn read_mixed(stream: &TcpStream, length: usize, seed: u64) -> usize {
    let mut dice = Dice(seed);
    let (mut read, mut filled) = (0, 0);
    let is_pattern = |bytes: &[u8], at: usize| bytes.iter().zip(at..).all(|(byte, at)| *byte == pattern(at));
    while read < length {
        if dice.below(3) == 0 {
            let chunk = stream.receive().await.expect("bytes");
            assert!(!chunk.is_empty() && is_pattern(&chunk, read), "a chunk at {read}");
            read += chunk.len();
            continue;
        }
        let wanted = dice.length().min(length - read);
        let start = dice.below(5000);
        let mut buffer = Buffer::zeroed(start + wanted + 100);
        buffer.fill(0xee);
        stream.fill(buffer, start..start + wanted);
        let buffer = stream.filled().await.expect("bytes");
        assert!(is_pattern(&buffer[start..start + wanted], read), "a buffer at {read}");
        let beside = buffer[..start].iter().chain(&buffer[start + wanted..]);
        assert!(beside.into_iter().all(|&byte| byte == 0xee), "nothing beside its range");
        read += wanted;
        filled += wanted;
    }
    assert_eq!(read, length);
    filled
}

const LENGTH: usize = 2_000_000;

async fn send_pattern(stream: TcpStream, seed: u64) {
    let mut dice = Dice(seed ^ 0x5555);
    let mut sent = 0;
    while sent < LENGTH {
        let length = dice.length().min(LENGTH - sent);
        stream.push(patterned(sent..sent + length));
        stream.flush();
        stream.drained(64 << 10).await.expect("sent");
        sent += length;
        if dice.below(20) == 0 {
            reactor::sleep(Duration::from_millis(1)).await;
        }
    }
    stream.shutdown().await.expect("sent");
}

#[test]
fn buffers_and_chunks_take_turns_without_losing_a_byte() {
    for seed in 0..30 {
        let (world, server, client) = world(seed);
        let reader = world.spawn(server, async move {
            let stream = TcpListener::bind(address()).unwrap().accept().await.unwrap();
            let filled = read_mixed(&stream, LENGTH, seed).await;
            assert!(stream.receive().await.unwrap().is_empty(), "then the end");
            filled
        });
        world.run_for(Duration::from_millis(1));
        world.spawn(client, async move { send_pattern(TcpStream::connect(address()).await.unwrap(), seed).await });
        assert!(world.run_until(|| reader.is_done(), Duration::from_secs(600)), "seed {seed}");
    }
}

#[test]
fn buffers_and_chunks_take_turns_over_a_real_socket() {
    for seed in 0..10 {
        run(async move {
            let (server, client) = pair().await;
            let sending = spawn(send_pattern(client, seed));
            assert!(read_mixed(&server, LENGTH, seed).await > LENGTH / 4);
            assert!(server.receive().await.expect("the end").is_empty());
            sending.await.expect("no panic");
        });
    }
}

#[test]
fn a_buffer_waits_for_what_comes_late() {
    run(async {
        let (server, client) = pair().await;
        for round in 0..20 {
            server.fill(Buffer::zeroed(100_000), 0..100_000);
            let filling = spawn({
                let server = server.clone();
                async move { server.filled().await }
            });
            for at in (0..100_000).step_by(20_000) {
                client.push(patterned(at..at + 20_000));
                client.flush();
                reactor::yield_now().await;
            }
            let buffer = filling.await.expect("no panic").expect("bytes");
            assert!(buffer.iter().enumerate().all(|(at, byte)| *byte == pattern(at)), "round {round}");
            // More short messages than are received one by one after a fill.
            for message in 0..8_u8 {
                client.push_copy(&[message; 10]);
                client.flush();
                assert_eq!(support::receive_exactly(&server, 10).await, [message; 10]);
            }
        }
    });
}

#[test]
fn the_end_of_the_stream_ends_a_fill_and_gives_its_memory_back() {
    run(async {
        let before = reactor::buffer::lent();
        for part in [0, 10, 30_000, 99_999] {
            let (server, client) = pair().await;
            client.push(patterned(0..part));
            client.shutdown().await.expect("sent");
            server.fill(Buffer::try_new(100_000).expect("memory"), 0..100_000);
            let error = server.filled().await.expect_err("too few bytes");
            assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "after {part} bytes");
            assert!(server.receive().await.expect("still the end").is_empty());
        }
        support::until(|| reactor::buffer::lent() == before).await;
    });
}

#[test]
fn a_closed_stream_ends_a_fill_and_the_kernel_lets_go_of_its_memory() {
    run(async {
        let before = reactor::buffer::lent();
        for began in [false, true] {
            let (server, _client) = pair().await;
            server.fill(Buffer::try_new(100_000).expect("memory"), 0..100_000);
            if began {
                reactor::sleep(Duration::from_millis(1)).await;
            }
            server.close();
            assert_eq!(server.filled().await.expect_err("closed").kind(), ErrorKind::NotConnected);
        }
        support::until(|| reactor::buffer::lent() == before).await;
    });
}

#[test]
fn a_peer_that_resets_fails_a_fill() {
    for seed in 0..20 {
        let (world, server, client) = world(seed);
        let reader = world.spawn(server, async move {
            let stream = TcpListener::bind(address()).unwrap().accept().await.unwrap();
            stream.fill(Buffer::zeroed(1 << 20), 0..1 << 20);
            stream.filled().await.map(drop).map_err(|error| error.kind())
        });
        world.run_for(Duration::from_millis(1));
        world.block_on(client, async {
            let stream = TcpStream::connect(address()).await.unwrap();
            stream.push(patterned(0..50_000));
            stream.flush();
            stream.drained(0).await.unwrap();
        });
        world.kill(client);
        assert!(world.run_until(|| reader.is_done(), Duration::from_secs(10)), "seed {seed}");
        let end = reader.take().expect("done");
        assert!(matches!(end, Err(ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset)), "{end:?}");
    }
}

#[test]
#[should_panic(expected = "two buffers to fill at a time")]
fn one_buffer_at_a_time() {
    run(async {
        let (server, _client) = pair().await;
        server.fill(Buffer::zeroed(10), 0..10);
        server.fill(Buffer::zeroed(10), 0..10);
    });
}
