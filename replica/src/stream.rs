//! The stream of a connection: plain, or with a [`SecureSession`] around it. To the protocol both are the same.

use std::cell::{Cell, RefCell};
use std::fmt::Debug;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::ops::Deref;
use std::rc::Rc;

use reactor::{DetachedStream, Received, Slice, TcpStream, TurnEnd};

/// Memory for opened bytes that is larger is not kept for the next ones.
const KEPT: usize = 256 << 10;
/// The same for bytes that wait to be sealed, of which each connection has some.
const KEPT_UNSEALED: usize = 16 << 10;

thread_local! {
    /// The memory of the last chunk, for the next one of any connection: a chunk does not live long.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// What keeps one connection private. It does no I/O: what it wants to be sent it writes to `socket`, which takes all of it.
pub trait SecureSession: Send {
    /// Whether both sides know who the other one is.
    fn is_established(&self) -> bool;

    /// Takes in what the peer sent, and adds what it says to `plain`.
    ///
    /// # Errors
    /// When the peer is not who it should be, or what it sent was changed on its way.
    fn receive(&mut self, bytes: &[u8], plain: &mut Vec<u8>, socket: &mut dyn Write) -> io::Result<()>;

    /// Seals the parts, one after the other; without any, what the session itself has to say.
    ///
    /// # Errors
    /// When the session has failed.
    fn send(&mut self, parts: &[&[u8]], socket: &mut dyn Write) -> io::Result<()>;
}

/// How connections between nodes are kept private, and how each side knows the other.
pub trait Security: Debug + Send + Sync {
    /// For a connection to the replicas of `node`, and nobody else.
    ///
    /// # Errors
    /// When there can be none now.
    fn connect(&self, node: &str) -> io::Result<Box<dyn SecureSession>>;

    /// For a connection from some engine's node.
    ///
    /// # Errors
    /// When there can be none now.
    fn accept(&self) -> io::Result<Box<dyn SecureSession>>;
}

/// A connection's stream; clones share it.
#[derive(Clone)]
pub(crate) struct Stream(Rc<Ends>);

/// What the clones of a stream share.
struct Ends {
    socket: TcpStream,
    secure: Option<RefCell<Secure>>,
    /// A flush was left for the end of the turn.
    flushes: Cell<bool>,
}

pub(crate) struct Secure {
    /// None once the stream has gone to another reactor.
    session: Option<Box<dyn SecureSession>>,
    /// What came with the end of the handshake.
    early: Vec<u8>,
    /// What is to be sent and not sealed yet: small pieces that go with what comes next.
    unsealed: Vec<u8>,
}

/// A stream between two reactors.
pub(crate) struct DetachedConnection {
    socket: DetachedStream,
    session: Option<Box<dyn SecureSession>>,
}

/// Bytes that were received. Do not keep it.
pub(crate) enum Chunk {
    Plain(Received),
    Opened(Vec<u8>),
}

impl Stream {
    /// A stream whose two ends know each other; takes as long as it takes. Without a session it is plain.
    pub(crate) async fn establish(socket: TcpStream, session: Option<Box<dyn SecureSession>>) -> io::Result<Self> {
        let Some(mut session) = session else { return Ok(Self::new(socket, None)) };
        let mut early = Vec::new();
        session.send(&[], &mut Socket::new(&socket))?;
        socket.flush();
        while !session.is_established() {
            let chunk = socket.receive().await?;
            if chunk.is_empty() {
                let text = "the peer ended the connection in its handshake";
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
            }
            let received = session.receive(&chunk, &mut early, &mut Socket::new(&socket));
            // When it failed this tells the peer why.
            socket.flush();
            received?;
        }
        Ok(Self::secured(socket, session, early))
    }

    fn secured(socket: TcpStream, session: Box<dyn SecureSession>, early: Vec<u8>) -> Self {
        let secure = Secure { session: Some(session), early, unsealed: Vec::new() };
        Self::new(socket, Some(RefCell::new(secure)))
    }

    fn new(socket: TcpStream, secure: Option<RefCell<Secure>>) -> Self {
        Self(Rc::new(Ends { socket, secure, flushes: Cell::new(false) }))
    }

    /// The other end.
    pub(crate) fn peer_address(&self) -> SocketAddr {
        self.0.socket.peer_address()
    }

    /// Waits for bytes; an empty chunk is the end of the stream.
    pub(crate) async fn receive(&self) -> io::Result<Chunk> {
        let Some(secure) = &self.0.secure else { return self.0.socket.receive().await.map(Chunk::Plain) };
        let mut bytes = std::mem::take(&mut secure.borrow_mut().early);
        while bytes.is_empty() {
            let sealed = self.0.socket.receive().await?;
            if sealed.is_empty() {
                return Ok(Chunk::Plain(sealed));
            }
            bytes = secure.borrow_mut().open(&sealed, &self.0.socket)?;
        }
        Ok(Chunk::Opened(bytes))
    }

    /// Queues a copy of a few bytes (a header).
    pub(crate) fn push_copy(&self, bytes: &[u8]) {
        match &self.0.secure {
            None => self.0.socket.push_copy(bytes),
            Some(secure) => secure.borrow_mut().unsealed.extend_from_slice(bytes),
        }
    }

    /// Queues bytes by reference.
    pub(crate) fn push(&self, slice: Slice) {
        match &self.0.secure {
            None => self.0.socket.push(slice),
            // At once, so that the work is done with the request, and not for many of them at the flush.
            Some(secure) => self.0.check(secure.borrow_mut().seal(&slice, &self.0.socket)),
        }
    }

    /// Sends what is queued.
    pub(crate) fn flush(&self) {
        self.0.flush();
    }

    /// Sends what is queued by then, once all that this turn brings is done: in one call, however many requests or answers there are.
    pub(crate) fn flush_at_turn_end(&self) {
        if !self.0.flushes.replace(true) {
            reactor::at_turn_end(Rc::clone(&self.0) as Rc<dyn TurnEnd>);
        }
    }

    /// Waits until at most `bytes` of what was flushed are not with the system yet.
    pub(crate) async fn drained(&self, bytes: usize) -> io::Result<()> {
        self.0.socket.drained(bytes).await
    }

    /// Ends the stream for both sides now.
    pub(crate) fn close(&self) {
        self.0.socket.close();
    }

    /// Takes the stream off this reactor once all output is sent.
    pub(crate) async fn detach(self) -> io::Result<DetachedConnection> {
        self.flush();
        let session = match &self.0.secure {
            None => None,
            Some(secure) => Some(secure.borrow_mut().session.take().ok_or(io::ErrorKind::NotConnected)?),
        };
        Ok(DetachedConnection { socket: self.0.socket.clone().detach().await?, session })
    }
}

impl Ends {
    fn flush(&self) {
        if let Some(secure) = &self.secure {
            self.check(secure.borrow_mut().seal(&[], &self.socket));
        }
        self.socket.flush();
    }

    /// A session that cannot seal ends the stream, as a socket does that cannot send.
    fn check(&self, sealed: io::Result<()>) {
        if let Err(error) = sealed {
            tracing::error!(%error, "a connection cannot be encrypted any more");
            self.socket.close();
        }
    }
}

impl TurnEnd for Ends {
    fn turn_ends(&self) {
        self.flushes.set(false);
        self.flush();
    }
}

impl DetachedConnection {
    /// Takes the stream in on the current reactor.
    pub(crate) fn attach(self) -> io::Result<Stream> {
        let socket = self.socket.attach()?;
        Ok(match self.session {
            None => Stream::new(socket, None),
            Some(session) => Stream::secured(socket, session, Vec::new()),
        })
    }
}

impl Secure {
    /// What the peer said, as far as it is here; may be nothing.
    fn open(&mut self, sealed: &[u8], socket: &TcpStream) -> io::Result<Vec<u8>> {
        let session = self.session.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        let mut bytes = SPARE.take();
        bytes.clear();
        let mut answers = Socket::new(socket);
        let opened = session.receive(sealed, &mut bytes, &mut answers);
        if answers.wrote {
            socket.flush();
        }
        opened?;
        if bytes.is_empty() {
            SPARE.set(std::mem::take(&mut bytes));
        }
        Ok(bytes)
    }

    /// Seals what waits and then `last`, and queues it.
    fn seal(&mut self, last: &[u8], socket: &TcpStream) -> io::Result<()> {
        if self.unsealed.is_empty() && last.is_empty() {
            return Ok(());
        }
        let session = self.session.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        session.send(&[&self.unsealed, last], &mut Socket::new(socket))?;
        self.unsealed.clear();
        self.unsealed.shrink_to(KEPT_UNSEALED);
        Ok(())
    }
}

impl Deref for Chunk {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Plain(received) => received,
            Self::Opened(bytes) => bytes,
        }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        if let Self::Opened(bytes) = self
            && bytes.capacity() <= KEPT
        {
            // An error means that the thread ends.
            let _ = SPARE.try_with(|spare| spare.set(std::mem::take(bytes)));
        }
    }
}

/// The socket, for what a session writes.
struct Socket<'a> {
    stream: &'a TcpStream,
    wrote: bool,
}

impl<'a> Socket<'a> {
    fn new(stream: &'a TcpStream) -> Self {
        Self { stream, wrote: false }
    }
}

impl Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.wrote = true;
        self.stream.push_copy(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
