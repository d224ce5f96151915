//! The node's end of new connections: greets them, and hands each to the reactor of its replica.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use reactor::{JoinHandle, TcpListener, TcpStream, spawn, timeout};
use replica_protocol::{Open, Refusal, Server, ServerEvent, Status};
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::connection;
use crate::directory::{Directory, INCOMING, Incoming};
use crate::stream::{Security, Stream};
use crate::{LocalFuture, OpenError, OpenReplica, Replica};

/// Connections that may be in their greeting at once; one more is closed.
const MAX_GREETINGS: usize = 256;

/// How long a greeting may take.
const GREETING: Duration = Duration::from_secs(10);

/// How long a refusal may take to reach the peer before the connection is closed all the same.
const FAREWELL: Duration = Duration::from_secs(2);

/// Requests in flight granted to a connection.
const REQUESTS: u32 = 256;

/// Bytes in flight granted to a connection.
const BYTES: u64 = 32 << 20;

/// How long to wait after a failed accept (out of descriptors, say) before the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Opens replicas for connections; implemented by what is behind [`ReplicaServer`](crate::ReplicaServer).
pub trait ReplicaHost {
    /// Opens a replica at an epoch (I12, I13).
    fn open(self: Rc<Self>, open: OpenReplica) -> LocalFuture<'static, Result<Rc<dyn Replica>, OpenError>>;
}

/// Takes connections from engines on other nodes.
pub struct ReplicaListener {
    address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl ReplicaListener {
    /// Listens on `address` in plaintext; `node` is this node's name, for people.
    pub fn bind(address: SocketAddr, directory: &Directory, node: &str) -> io::Result<Self> {
        Self::bind_with(address, directory, node, None)
    }

    /// The same, for connections that are kept private in this way.
    pub fn bind_with(
        address: SocketAddr,
        directory: &Directory,
        node: &str,
        security: Option<Arc<dyn Security>>,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        let address = listener.local_address();
        let greeter =
            Greeter { directory: directory.clone(), node: node.to_owned(), security, greetings: Cell::new(0) };
        Ok(Self { address, accepting: spawn(accept(listener, Rc::new(greeter))) })
    }

    /// The address in use.
    pub fn local_address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for ReplicaListener {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

struct Greeter {
    directory: Directory,
    node: String,
    security: Option<Arc<dyn Security>>,
    greetings: Cell<usize>,
}

async fn accept(listener: TcpListener, greeter: Rc<Greeter>) {
    loop {
        match listener.accept().await {
            Ok(stream) if greeter.greetings.get() < MAX_GREETINGS => {
                greeter.greetings.set(greeter.greetings.get() + 1);
                let greeter = Rc::clone(&greeter);
                spawn(async move {
                    let peer = stream.peer_address();
                    match timeout(GREETING, greeter.greet(stream)).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => tracing::debug!(%peer, %error, "a replica connection ended in its greeting"),
                        Err(elapsed) => tracing::debug!(%peer, %elapsed, "a replica connection said nothing"),
                    }
                    greeter.greetings.set(greeter.greetings.get() - 1);
                });
            }
            Ok(stream) => tracing::warn!(peer = %stream.peer_address(), "too many new replica connections: closed one"),
            Err(error) => {
                tracing::warn!(%error, "accepting replica connections failed, trying again");
                reactor::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

impl Greeter {
    /// From the first byte to the hand-over.
    async fn greet(&self, socket: TcpStream) -> io::Result<()> {
        let stream = self.secured(socket).await?;
        let mut session = Server::new(REQUESTS, BYTES);
        let open = self.until_open(&stream, &mut session).await?;
        let Some(owner) = self.directory.find(Uuid::from_bytes(open.replica)) else {
            let text = "there is no such replica on this node".to_owned();
            let refusal = Refusal { status: Status::NotFound, stored_epoch: 0, text };
            return refuse(&stream, &mut session, &refusal).await;
        };
        let stream = stream.detach().await?;
        // An error means that the reactor is gone or swamped: the connection is closed, and the engine tries again.
        owner.try_send(Incoming { stream, session, open }).map_err(|_| io::Error::from(io::ErrorKind::ConnectionReset))
    }

    async fn secured(&self, socket: TcpStream) -> io::Result<Stream> {
        let peer = socket.peer_address();
        let secure = self.security.as_ref().map(|security| security.accept()).transpose()?;
        // Whoever looks for the reason why a replica is not in reach looks here, too.
        let established = Stream::establish(socket, secure).await;
        established.inspect_err(|error| tracing::info!(%peer, %error, "a replica connection was refused"))
    }

    async fn until_open(&self, stream: &Stream, session: &mut Server) -> io::Result<Open> {
        loop {
            let chunk = stream.receive().await?;
            if chunk.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let mut input = &chunk[..];
            while let Some(event) = session.handle(&mut input).map_err(io::Error::other)? {
                match event {
                    ServerEvent::Hello(_) => {
                        stream.push_copy(&session.welcome(&self.node));
                        stream.flush();
                    }
                    // Nothing may follow before the grant.
                    ServerEvent::Open(open) if input.is_empty() => return Ok(open),
                    _ => return Err(io::Error::other("the engine did not wait for the grant")),
                }
            }
        }
    }
}

/// Sends a refusal and closes.
pub(crate) async fn refuse(stream: &Stream, session: &mut Server, refusal: &Refusal) -> io::Result<()> {
    stream.push_copy(&session.refuse(refusal));
    stream.flush();
    // Once it is with the system, the peer gets it before the end of the stream.
    timeout(FAREWELL, stream.drained(0)).await.unwrap_or(Err(io::ErrorKind::TimedOut.into()))
}

/// Where the listener sends connections for a host: the sending end for the directory. The host's reactor serves them from
/// here on, until the host is dropped.
pub(crate) fn serve_incoming<H: ReplicaHost + 'static>(host: std::rc::Weak<H>) -> mpsc::Sender<Incoming> {
    let (sender, mut receiver) = mpsc::channel::<Incoming>(INCOMING);
    spawn(async move {
        while let Some(incoming) = receiver.recv().await {
            let Some(host) = host.upgrade() else { return };
            spawn(connection::serve(host, incoming));
        }
    });
    sender
}
