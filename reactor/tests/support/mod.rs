//! What several tests need.

#![allow(dead_code, reason = "each test file uses a part")]

use std::future::poll_fn;
use std::io::Write;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::task::Poll;
use std::thread;
use std::time::Duration;

use reactor::simulated::{NodeId, World};
use reactor::{Config, Reactor, Slice, TcpListener, TcpStream, spawn};

/// No test here takes longer, on however busy a machine.
const LIMIT: Duration = Duration::from_secs(120);

/// Runs a future on a reactor with default settings.
pub(crate) fn run<F: Future<Output: 'static> + 'static>(future: F) -> F::Output {
    run_with(&Config::default(), future)
}

/// Runs a future on a reactor. One that never ends ends the whole program of tests, with the test's name: neither a timer nor
/// a panic could end a reactor that hangs.
pub(crate) fn run_with<F: Future<Output: 'static> + 'static>(config: &Config, future: F) -> F::Output {
    let (running, ended) = mpsc::channel::<()>();
    let name = thread::current().name().unwrap_or("a test").to_owned();
    let watch = thread::spawn(move || {
        if ended.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout) {
            // Not `eprintln`: what that says is kept for the end of the test.
            let _ = writeln!(std::io::stderr(), "{name} has not ended after {} s", LIMIT.as_secs());
            std::process::abort();
        }
    });
    let output = Reactor::run(config, future).expect("a reactor");
    drop(running);
    watch.join().expect("a watch does not panic");
    output
}

/// The address of the server in a [`world`].
pub(crate) const SERVER: [u8; 4] = [10, 0, 0, 1];

/// Where it listens.
pub(crate) fn address() -> SocketAddr {
    (SERVER, 7000).into()
}

/// A simulated world with a server node and a client node.
pub(crate) fn world(seed: u64) -> (World, NodeId, NodeId) {
    let world = World::new(seed);
    let server = world.add_node(SERVER.into());
    let client = world.add_node([10, 0, 0, 2].into());
    (world, server, client)
}

pub(crate) fn any_port() -> SocketAddr {
    "127.0.0.1:0".parse().expect("an address")
}

/// Both ends of a connection, the accepted one first.
pub(crate) async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(any_port()).expect("listening");
    let client = spawn(TcpStream::connect(listener.local_address()));
    let server = listener.accept().await.expect("accepted");
    (server, client.await.expect("not aborted").expect("connected"))
}

pub(crate) async fn receive_exactly(stream: &TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < length {
        let chunk = stream.receive().await.expect("bytes");
        assert!(!chunk.is_empty(), "the stream ended after {} of {length} bytes", bytes.len());
        bytes.extend_from_slice(&chunk);
    }
    assert_eq!(bytes.len(), length);
    bytes
}

/// The byte at a place of an endless stream that never repeats within a chunk's length.
pub(crate) fn pattern(at: usize) -> u8 {
    (at ^ at >> 8 ^ at >> 16) as u8
}

pub(crate) fn patterned(range: std::ops::Range<usize>) -> Slice {
    Slice::from(&range.map(pattern).collect::<Vec<u8>>()[..])
}

/// Polls a future once.
pub(crate) async fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    poll_fn(|context| Poll::Ready(Pin::new(&mut *future).poll(context))).await
}

/// Descriptors that this process has open.
pub(crate) fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("the list of descriptors").count()
}

/// Gives other tasks and the kernel time until `condition` holds: ample time, as the machine may be busy.
pub(crate) async fn until(condition: impl Fn() -> bool) {
    for _ in 0..60_000 {
        if condition() {
            return;
        }
        reactor::sleep(std::time::Duration::from_millis(1)).await;
    }
    panic!("what the test waits for never happens");
}
