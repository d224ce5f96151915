//! Connections with a session around them. The sessions here hide nothing from anybody who tries: what is tested is what is around
//! them. Those of the daemon are in the crate `tls`.

use std::io::{self, Write};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use block_device::{BlockDevice, Request, Slice, execute};
use reactor::simulated::{NodeId, World};
use reactor::{TcpStream, now, sleep};
use replica::{OpenError, RemoteOptions, RemoteReplica, Replica, SecureSession, Security};

use crate::node::{SIZE, address, boot_with, open, read, spec, world, write};

/// Who a node says it is, and whom it lets in.
#[derive(Clone, Copy, Debug)]
struct Named {
    own: &'static str,
    admits: &'static str,
}

impl Security for Named {
    fn connect(&self, node: &str) -> io::Result<Box<dyn SecureSession>> {
        Ok(Box::new(Masked::new(self.own, node, true)))
    }

    fn accept(&self) -> io::Result<Box<dyn SecureSession>> {
        Ok(Box::new(Masked::new(self.own, self.admits, false)))
    }
}

/// Frames of a kind, a length of two bytes, and masked content. Hello of the client, hello of the server, end of the client, data: as in
/// TLS 1.3 the server's last message of the handshake may come with the first data.
struct Masked {
    own: String,
    expected: String,
    is_client: bool,
    has_spoken: bool,
    is_established: bool,
    unread: Vec<u8>,
}

const HELLO: u8 = b'H';
const END: u8 = b'E';
const DATA: u8 = b'D';
const MASK: u8 = 0x5a;
const MOST: usize = 16 << 10;

impl Masked {
    fn new(own: &str, expected: &str, is_client: bool) -> Self {
        let (own, expected) = (own.to_owned(), expected.to_owned());
        Self { own, expected, is_client, has_spoken: false, is_established: false, unread: Vec::new() }
    }

    fn next_frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let [kind, high, low, rest @ ..] = &self.unread[..] else { return None };
        let content = rest.get(..usize::from(u16::from_be_bytes([*high, *low])))?;
        let frame = (*kind, content.iter().map(|byte| byte ^ MASK).collect::<Vec<_>>());
        self.unread.drain(..3 + frame.1.len());
        Some(frame)
    }
}

fn frame(kind: u8, content: &[u8], socket: &mut dyn Write) -> io::Result<()> {
    let length = u16::try_from(content.len()).expect("MOST").to_be_bytes();
    socket.write_all(&[kind, length[0], length[1]])?;
    socket.write_all(&content.iter().map(|byte| byte ^ MASK).collect::<Vec<_>>())
}

impl SecureSession for Masked {
    fn is_established(&self) -> bool {
        self.is_established
    }

    fn receive(&mut self, bytes: &[u8], plain: &mut Vec<u8>, socket: &mut dyn Write) -> io::Result<()> {
        self.unread.extend(bytes);
        while let Some((kind, content)) = self.next_frame() {
            match (kind, self.is_established) {
                (HELLO, false) if content == self.expected.as_bytes() => match self.is_client {
                    true => {
                        frame(END, b"", socket)?;
                        self.is_established = true;
                    }
                    false => frame(HELLO, self.own.as_bytes(), socket)?,
                },
                (HELLO, false) => {
                    let who = String::from_utf8_lossy(&content).into_owned();
                    return Err(io::Error::other(format!("it is {who}, not {}", self.expected)));
                }
                (END, false) if !self.is_client => self.is_established = true,
                (DATA, true) => plain.extend(content),
                _ => return Err(io::Error::other("not a frame")),
            }
        }
        Ok(())
    }

    fn send(&mut self, parts: &[&[u8]], socket: &mut dyn Write) -> io::Result<()> {
        if self.is_client && !std::mem::replace(&mut self.has_spoken, true) {
            frame(HELLO, self.own.as_bytes(), socket)?;
        }
        parts.concat().chunks(MOST).try_for_each(|content| frame(DATA, content, socket))
    }
}

/// Node `b` has the replica and admits `a`.
fn with_replica(seed: u64) -> (World, NodeId, NodeId) {
    let (world, node, engine) = world(seed);
    let shared = boot_with(&world, node, Some(Arc::new(Named { own: "b", admits: "a" })));
    let server = shared.borrow().clone().expect("the node runs");
    world.block_on(node, async move { server.create(&spec()).await.expect("created") });
    (world, node, engine)
}

async fn connect_as(own: &'static str, to: &str, epoch: u64) -> Result<Rc<RemoteReplica>, OpenError> {
    let security = Arc::new(Named { own, admits: "nobody" });
    let options = RemoteOptions { security: Some(security), ..RemoteOptions::default() };
    RemoteReplica::connect_to(to, address(), &open(epoch, 1), &options).await
}

#[test]
fn a_replica_behind_a_session_is_the_same_replica() {
    for seed in 0..8 {
        let (world, _, engine) = with_replica(seed);
        world.block_on(engine, async {
            let replica = connect_as("a", "b", 1).await.expect("granted");
            let large: Vec<u8> = (0..1_u32 << 20).map(|number| (number >> 8) as u8).collect();
            let offset = SIZE - large.len() as u64;
            let (one, two) = (write(&*replica, 0, 1), write(&*replica, 1, 2));
            execute(&*replica, Request::write(offset, Slice::from(&large[..]))).await.expect("written");
            one.await.expect("written");
            two.await.expect("written");
            execute(&*replica, Request::Flush).await.expect("flushed");
            let data = execute(&*replica, Request::read(offset, large.len() as u64)).await.expect("read");
            assert_eq!(data.to_vec(), large);
            assert_eq!(read(&*replica, 0).await.expect("read"), 1);
            assert_eq!(read(&*replica, 1).await.expect("read"), 2);
            // Pings keep it, although nobody asks for anything.
            sleep(Duration::from_secs(30)).await;
            assert_eq!(read(&*replica, 0).await.expect("read"), 1);
            replica.close();
            // A newer engine fences the older one through its session.
            let older = connect_as("a", "b", 2).await.expect("granted");
            let newer = connect_as("a", "b", 3).await.expect("granted");
            assert!(write(&*older, 0, 9).await.is_err());
            assert_eq!(read(&*newer, 0).await.expect("read"), 1);
        });
    }
}

#[test]
fn nobody_is_taken_for_somebody_else() {
    let (world, _, engine) = with_replica(20);
    world.block_on(engine, async {
        let refused = connect_as("a", "c", 1).await.err().expect("not c");
        assert!(matches!(&refused, OpenError::Unreachable(text) if text.contains("it is b, not c")), "{refused}");
        let refused = connect_as("x", "b", 1).await.err().expect("x is not admitted");
        assert!(matches!(refused, OpenError::Unreachable(_)), "{refused}");
        // In plaintext, and with noise: closed, and the next one is served.
        let plain = RemoteReplica::connect(address(), &open(1, 1), &RemoteOptions::default()).await;
        assert!(matches!(plain, Err(OpenError::Unreachable(_))));
        let replica = connect_as("a", "b", 1).await.expect("granted");
        write(&*replica, 0, 1).await.expect("written");
        assert_eq!(replica.geometry().size(), SIZE);
    });
}

#[test]
fn a_handshake_that_does_not_end_is_cut_off_and_there_are_not_too_many() {
    let (world, node, engine) = with_replica(21);
    let before = world.open_sockets(node);
    world.block_on(engine, async {
        let begun = now();
        let mut silent = Vec::new();
        for _ in 0..256 {
            let stream = TcpStream::connect(address()).await.expect("it listens");
            stream.push_copy(&[HELLO, 0]);
            stream.flush();
            silent.push(stream);
        }
        // One more is closed at once, and nobody gets in meanwhile.
        let more = TcpStream::connect(address()).await.expect("it listens");
        assert_eq!(more.receive().await.map_or(0, |chunk| chunk.len()), 0);
        assert!(now() - begun < Duration::from_secs(5));
        assert!(connect_as("a", "b", 1).await.is_err());
        for stream in &silent {
            assert_eq!(stream.receive().await.map_or(0, |chunk| chunk.len()), 0);
        }
        assert!(now() - begun < Duration::from_secs(15));
        let replica = connect_as("a", "b", 1).await.expect("there is room again");
        write(&*replica, 0, 1).await.expect("written");
        replica.close();
        drop((silent, more, replica));
        sleep(Duration::from_secs(10)).await;
    });
    assert_eq!((world.open_sockets(node), world.open_sockets(engine)), (before, 0));
}
