//! TCP over loopback on real reactors.

use std::net::SocketAddr;
use std::time::Duration;

use reactor::{Config, Reactor, Slice, TcpListener, TcpStream, spawn};

fn run<F: Future<Output: 'static> + 'static>(future: F) -> F::Output {
    Reactor::run(&Config::default(), future).expect("a reactor")
}

fn any_port() -> SocketAddr {
    "127.0.0.1:0".parse().expect("an address")
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(any_port()).expect("listening");
    let client = spawn(TcpStream::connect(listener.local_address()));
    let server = listener.accept().await.expect("accepted");
    (server, client.await.expect("not aborted").expect("connected"))
}

async fn receive_exactly(stream: &TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < length {
        let chunk = stream.receive().await.expect("bytes");
        assert!(!chunk.is_empty(), "the stream ended after {} of {length} bytes", bytes.len());
        bytes.extend_from_slice(&chunk);
    }
    assert_eq!(bytes.len(), length);
    bytes
}

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
        client.drained(0).await.expect("sent");
        drop(client);
        assert!(server.receive().await.expect("the end").is_empty());
        assert!(server.receive().await.expect("still the end").is_empty());
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
fn an_idle_reactor_makes_no_turns() {
    let reactor = Reactor::start(Config::default()).expect("a reactor");
    let (sender, receiver) = std::sync::mpsc::channel();
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
