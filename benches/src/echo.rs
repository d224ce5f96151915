//! The limit: a server that answers NVMe/TCP-shaped bytes without looking at them, and the leanest load for it. What they
//! reach together is what the reactor, the kernel's TCP and this machine allow to any target.
//!
//! The bytes of one I/O are those of NVMe/TCP without digests and without SQ flow control:
//! ```text
//! read    72 B command capsule            ──▶
//!                                         ◀──  24 B C2HData header, data
//! write   72 B command capsule, data      ──▶
//!                                         ◀──  24 B response capsule
//! ```

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use nvmf_initiator::load::Histogram;
use reactor::{Instant, Slice, TcpListener, TcpStream};

/// Bytes of a command capsule's header, of a response capsule and of a C2HData header.
const COMMAND: usize = 72;
const RESPONSE: usize = 24;

/// Bytes that a connection begins with: the two lengths of its shape.
const OPENING: usize = 16;

/// How many bytes go each way for one I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    request_data: usize,
    reply_data: usize,
}

impl Shape {
    /// Reads of `block_size` bytes.
    pub(crate) const fn read(block_size: usize) -> Self {
        Self { request_data: 0, reply_data: block_size }
    }

    /// Writes of `block_size` bytes, in their capsules.
    pub(crate) const fn write(block_size: usize) -> Self {
        Self { request_data: block_size, reply_data: 0 }
    }

    /// Bytes of a request.
    pub(crate) const fn request(self) -> usize {
        COMMAND + self.request_data
    }

    /// Whether the data goes to the server.
    pub(crate) const fn writes(self) -> bool {
        self.reply_data == 0
    }

    /// Bytes of data of an I/O, whichever way they go.
    pub(crate) const fn block_size(self) -> usize {
        self.request_data + self.reply_data
    }
}

/// Serves on `address` for as long as the reactor runs. The shape of a connection comes first, as two lengths.
pub(crate) fn serve(address: SocketAddr) -> io::Result<SocketAddr> {
    serve_each(address, |stream| async move { answer(&stream).await })
}

/// The same with other answers: each connection has a task that ends with it.
pub(crate) fn serve_each<F>(address: SocketAddr, answer: impl Fn(TcpStream) -> F + 'static) -> io::Result<SocketAddr>
where
    F: Future<Output = io::Result<()>> + 'static,
{
    let listener = TcpListener::bind(address)?;
    let address = listener.local_address();
    reactor::spawn(async move {
        while let Ok(stream) = listener.accept().await {
            let answering = answer(stream);
            reactor::spawn(async move {
                // A load that goes away ends its connection, nothing else.
                let _ = answering.await;
            });
        }
    });
    Ok(address)
}

async fn answer(stream: &TcpStream) -> io::Result<()> {
    let Some((shape, mut pending)) = opening(stream).await? else { return Ok(()) };
    let (request, data) = (shape.request(), Slice::zeroes(shape.reply_data));
    loop {
        while pending >= request {
            pending -= request;
            reply(stream, &data);
        }
        let chunk = match stream.try_receive() {
            Some(chunk) => chunk?,
            None => {
                stream.flush();
                stream.receive().await?
            }
        };
        if chunk.is_empty() {
            return Ok(());
        }
        pending += chunk.len();
    }
}

/// The shape of a connection, and how many bytes of its first requests came with it; none if it ended before.
pub(crate) async fn opening(stream: &TcpStream) -> io::Result<Option<(Shape, usize)>> {
    let mut lengths = [0; OPENING];
    let mut filled = 0;
    loop {
        let chunk = stream.receive().await?;
        if chunk.is_empty() {
            return Ok(None);
        }
        let taken = chunk.len().min(OPENING - filled);
        lengths[filled..filled + taken].copy_from_slice(&chunk[..taken]);
        filled += taken;
        if filled == OPENING {
            let length = |half: &[u8]| half.iter().rev().fold(0, |value, &byte| value << 8 | usize::from(byte));
            let (request, reply) = lengths.split_at(OPENING / 2);
            let shape = Shape { request_data: length(request), reply_data: length(reply) };
            return Ok(Some((shape, chunk.len() - taken)));
        }
    }
}

/// Queues the reply to one request.
pub(crate) fn reply(stream: &TcpStream, data: &Slice) {
    stream.push_copy(&[0; RESPONSE]);
    if !data.is_empty() {
        stream.push(data.clone());
    }
}

/// What a load reached.
pub(crate) struct Reached {
    pub(crate) latency: Histogram,
    pub(crate) elapsed: Duration,
}

/// Keeps `depth` I/Os in flight on each of `connections` for `runtime`.
pub(crate) async fn load(
    address: SocketAddr,
    shape: Shape,
    depth: usize,
    connections: usize,
    runtime: Duration,
) -> io::Result<Reached> {
    let latency = Rc::new(RefCell::new(Histogram::default()));
    let mut streams = Vec::new();
    for _ in 0..connections {
        let stream = TcpStream::connect(address).await?;
        stream.push_copy(&(shape.request_data as u64).to_le_bytes());
        stream.push_copy(&(shape.reply_data as u64).to_le_bytes());
        streams.push(stream);
    }
    let start = reactor::now();
    let end = start + runtime;
    let tasks: Vec<_> = streams
        .into_iter()
        .map(|stream| {
            let latency = Rc::clone(&latency);
            reactor::spawn(async move { keep_in_flight(&stream, shape, depth, end, &latency).await })
        })
        .collect();
    for task in tasks {
        task.await.map_err(io::Error::other)??;
    }
    let elapsed = reactor::now() - start;
    Ok(Reached { latency: latency.take(), elapsed })
}

async fn keep_in_flight(
    stream: &TcpStream,
    shape: Shape,
    depth: usize,
    end: Instant,
    latency: &RefCell<Histogram>,
) -> io::Result<()> {
    let reply = RESPONSE + shape.reply_data;
    let data = (shape.request_data > 0).then(|| Slice::zeroes(shape.request_data));
    let send = |started: &mut VecDeque<Instant>, now: Instant| {
        stream.push_copy(&[0; COMMAND]);
        if let Some(data) = &data {
            stream.push(data.clone());
        }
        started.push_back(now);
    };
    let mut started = VecDeque::with_capacity(depth);
    (0..depth).for_each(|_| send(&mut started, reactor::now()));
    let mut pending = 0;
    while !started.is_empty() {
        let chunk = match stream.try_receive() {
            Some(chunk) => chunk?,
            None => {
                stream.flush();
                stream.receive().await?
            }
        };
        if chunk.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        pending += chunk.len();
        // Replies come in order.
        while pending >= reply {
            pending -= reply;
            let now = reactor::now();
            if let Some(since) = started.pop_front() {
                latency.borrow_mut().record((now - since).as_nanos() as u64);
            }
            if now < end {
                send(&mut started, now);
            }
        }
    }
    Ok(())
}
