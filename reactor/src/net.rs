//! TCP: streams whose sends of one turn go out together, listeners, and hand-over between reactors.

mod filling;
mod received;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Poll, Waker};

use smallvec::SmallVec;

use self::filling::Filling;
pub use self::received::Received;
use crate::buffer::{Buffer, Slice};
use crate::core::{Home, OperationSink, perform};
use crate::driver::{Completion, Operation, OperationId, Output, ResourceId, SEND_SLICES};

/// How many received chunks may wait in a stream before it stops receiving: the peer then meets a full window.
const RECEIVED_CHUNKS: usize = 64;

/// How few must be left before it receives again: not with every chunk taken, as each start and stop costs a call.
const RESUME_CHUNKS: usize = RECEIVED_CHUNKS / 2;

/// The size of the buffers that small pieces of a stream's output are gathered in.
const GATHER: usize = 16 << 10;

/// A socket between two reactors: the descriptor (or its simulated twin) and bytes received but not yet read.
#[derive(Debug)]
pub struct DetachedSocket {
    /// The socket itself, as its driver knows it.
    pub(crate) raw: RawSocket,
}

/// A socket outside any driver.
#[derive(Debug)]
pub(crate) enum RawSocket {
    Descriptor(std::os::fd::OwnedFd),
    Simulated(crate::driver::simulated::SimulatedSocket),
}

/// A stream on its way to another reactor.
#[derive(Debug)]
pub struct DetachedStream {
    socket: DetachedSocket,
    peer: SocketAddr,
    unread: Vec<u8>,
}

impl DetachedStream {
    /// Takes the stream in on the current reactor.
    pub fn attach(self) -> io::Result<TcpStream> {
        let home = Home::here();
        let socket = home.with_driver(|driver| driver.attach(self.socket))?;
        let stream = TcpStream::new(home, socket, self.peer);
        if !self.unread.is_empty() {
            stream.inner.state.borrow_mut().chunks.push_back(Received::owned(self.unread));
        }
        Ok(stream)
    }
}

/// A listening socket.
pub struct TcpListener {
    home: Home,
    listener: ResourceId,
    address: SocketAddr,
}

impl TcpListener {
    /// Binds and listens. Port 0 takes a free port, see [`TcpListener::local_address`].
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let home = Home::here();
        let (listener, address) = home.with_driver(|driver| driver.listen(address))?;
        Ok(Self { home, listener, address })
    }

    /// The address in use.
    pub fn local_address(&self) -> SocketAddr {
        self.address
    }

    /// Waits for a connection.
    pub async fn accept(&self) -> io::Result<TcpStream> {
        let accepted = self.home.perform(Operation::Accept { listener: self.listener }).await.0;
        connected(self.home.clone(), accepted)
    }
}

impl Drop for TcpListener {
    fn drop(&mut self) {
        self.home.with(|core| core.close(self.listener));
    }
}

/// A connected stream. Clones share it; dropping the last one closes the socket.
///
/// One task receives; any task may queue output. Output is queued with [`TcpStream::push`] and friends and goes out, all
/// of it in as few system calls as possible, at [`TcpStream::flush`].
#[derive(Clone)]
pub struct TcpStream {
    inner: Rc<Inner>,
}

struct Inner {
    home: Home,
    socket: Cell<Option<ResourceId>>,
    peer: SocketAddr,
    state: RefCell<State>,
    sink: RefCell<Option<Rc<StreamSink>>>,
}

#[derive(Default)]
struct State {
    chunks: VecDeque<Received>,
    receiving: Option<OperationId>,
    /// A buffer that bytes go to before any of them is a chunk.
    filling: Option<Filling>,
    /// How many receives from here on are of one piece.
    singles: u8,
    /// Set by `detach`: the receive in flight ends and is not started again.
    stopping: bool,
    ended: Option<Result<(), io::ErrorKind>>,
    reader: Option<Waker>,

    queue: VecDeque<Slice>,
    /// The empty list of the last send, for the next one.
    spare: Vec<Slice>,
    /// Small output gathered until something else is queued or flushed; it ends at `gathered`.
    gather: Option<Buffer>,
    gathered: usize,
    queued_bytes: usize,
    sending: bool,
    flush_asked: bool,
    send_error: Option<io::ErrorKind>,
    writers: SmallVec<[Waker; 2]>,
}

const RECEIVE: u64 = 0;
const SEND: u64 = 1;
const RECEIVE_ONCE: u64 = 2;

/// Takes completions to the stream if it still exists.
struct StreamSink(std::rc::Weak<Inner>);

impl OperationSink for StreamSink {
    fn complete(&self, token: u64, completion: Completion) {
        let Some(inner) = self.0.upgrade() else { return };
        match token {
            RECEIVE => inner.received(completion),
            RECEIVE_ONCE => inner.received_once(completion),
            _ => inner.sent(completion),
        }
    }
}

fn connected(home: Home, result: io::Result<Output>) -> io::Result<TcpStream> {
    match result? {
        Output::Socket(socket, peer) => Ok(TcpStream::new(home, socket, peer)),
        other => unreachable!("a driver answers Accept and Connect with a socket, not {other:?}"),
    }
}

impl TcpStream {
    /// Connects. There is no time limit but the system's: see [`crate::timeout`].
    pub async fn connect(address: SocketAddr) -> io::Result<Self> {
        let connecting = perform(Operation::Connect { address });
        let home = Home::here();
        connected(home, connecting.await.0)
    }

    fn new(home: Home, socket: ResourceId, peer: SocketAddr) -> Self {
        let inner = Rc::new(Inner {
            home,
            socket: Cell::new(Some(socket)),
            peer,
            state: RefCell::default(),
            sink: RefCell::new(None),
        });
        *inner.sink.borrow_mut() = Some(Rc::new(StreamSink(Rc::downgrade(&inner))));
        Self { inner }
    }

    /// The other end.
    pub fn peer_address(&self) -> SocketAddr {
        self.inner.peer
    }

    /// Waits for bytes; an empty chunk is the end of the stream.
    pub async fn receive(&self) -> io::Result<Received> {
        poll_fn(|context| {
            if let Some(chunk) = self.try_receive() {
                return Poll::Ready(chunk);
            }
            self.inner.state.borrow_mut().reader = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// The next chunk, if one is here. Starts receiving if nothing is.
    pub fn try_receive(&self) -> Option<io::Result<Received>> {
        let mut state = self.inner.state.borrow_mut();
        let chunk = state.chunks.pop_front();
        let ended = state.ended;
        let by_pieces = state.singles > 0;
        drop(state);
        if chunk.is_none()
            && let Some(ended) = ended
        {
            return Some(ended.map(|()| Received::end()).map_err(io::Error::from));
        }
        // What this piece says may ask for a fill, which nothing should be in flight for.
        if chunk.is_none() || !by_pieces {
            self.inner.start_receiving();
        }
        chunk.map(Ok)
    }

    /// Queues a copy of a few bytes (a header). Once the stream has failed, what is queued is dropped.
    pub fn push_copy(&self, bytes: &[u8]) {
        self.inner.state.borrow_mut().push_copy(bytes);
    }

    /// Queues bytes by reference. Once the stream has failed, what is queued is dropped.
    pub fn push(&self, slice: Slice) {
        self.inner.state.borrow_mut().push(slice);
    }

    /// Sends what is queued. Returns at once; what the socket cannot take yet stays queued, and errors show in
    /// [`TcpStream::drained`] and at the next receive.
    pub fn flush(&self) {
        self.inner.flush();
    }

    /// How many bytes are queued or being sent.
    pub fn queued_bytes(&self) -> usize {
        self.inner.state.borrow().queued_bytes
    }

    /// Waits until at most `bytes` are queued: back-pressure for whoever produces output.
    pub async fn drained(&self, bytes: usize) -> io::Result<()> {
        poll_fn(|context| {
            let mut state = self.inner.state.borrow_mut();
            if let Some(error) = state.send_error {
                return Poll::Ready(Err(error.into()));
            }
            if state.queued_bytes <= bytes {
                return Poll::Ready(Ok(()));
            }
            state.writers.push(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Ends this side's direction when all queued output is sent: the peer sees the end of the stream, and may still send.
    pub async fn shutdown(&self) -> io::Result<()> {
        self.flush();
        self.drained(0).await?;
        let socket = self.inner.socket.get().ok_or(io::ErrorKind::NotConnected)?;
        self.inner.home.with_driver(|driver| driver.shutdown(socket));
        Ok(())
    }

    /// Ends the stream for both sides now: receives and sends fail from here on. What was flushed before may still arrive.
    pub fn close(&self) {
        self.inner.close();
    }

    /// Takes the stream off this reactor once all queued output is sent, with what was received but not read. Other
    /// clones find it closed.
    ///
    /// # Errors
    /// When the stream has failed or ended.
    ///
    /// # Panics
    /// While a buffer is being filled.
    pub async fn detach(self) -> io::Result<DetachedStream> {
        assert!(self.inner.state.borrow().filling.is_none(), "detached while a buffer is being filled");
        self.inner.stop_receiving().await;
        self.flush();
        // Nothing is in flight when this ends, and nothing can come between it and the rest.
        if let Err(error) = self.drained(0).await {
            self.inner.state.borrow_mut().stopping = false;
            return Err(error);
        }
        let unread = self.inner.take_unread()?;
        let socket = self.inner.socket.take().ok_or(io::ErrorKind::NotConnected)?;
        self.inner.end(io::ErrorKind::NotConnected);
        let socket = self.inner.home.with_driver(|driver| driver.detach(socket));
        Ok(DetachedStream { socket, peer: self.inner.peer, unread })
    }
}

impl State {
    fn push_copy(&mut self, mut bytes: &[u8]) {
        if self.send_error.is_some() {
            return;
        }
        self.queued_bytes += bytes.len();
        while !bytes.is_empty() {
            let gather = self.gather.get_or_insert_with(|| Buffer::new(GATHER));
            let room = gather.len() - self.gathered;
            let (now, later) = bytes.split_at(bytes.len().min(room));
            gather[self.gathered..self.gathered + now.len()].copy_from_slice(now);
            self.gathered += now.len();
            bytes = later;
            if self.gathered == gather.len() {
                self.seal();
            }
        }
    }

    fn push(&mut self, slice: Slice) {
        if self.send_error.is_some() || slice.is_empty() {
            return;
        }
        self.queued_bytes += slice.len();
        self.seal();
        self.queue.push_back(slice);
    }

    /// Moves gathered bytes to the queue; the rest of their buffer goes on gathering.
    fn seal(&mut self) {
        if self.gathered == 0 {
            return;
        }
        if let Some(mut full) = self.gather.take() {
            let rest = full.split_off(self.gathered);
            self.gather = (!rest.is_empty()).then_some(rest);
            self.queue.push_back(full.freeze());
        }
        self.gathered = 0;
    }

    fn fail_sending(&mut self, error: io::ErrorKind) {
        self.send_error.get_or_insert(error);
        self.queue.clear();
        self.gather = None;
        self.gathered = 0;
        self.queued_bytes = 0;
    }

    fn take_writers(&mut self) -> SmallVec<[Waker; 2]> {
        std::mem::take(&mut self.writers)
    }
}

impl Inner {
    fn sink(&self) -> Rc<dyn OperationSink> {
        let sink = self.sink.borrow();
        Rc::clone(sink.as_ref().expect("set when the stream was made")) as Rc<_>
    }

    fn start_receiving(&self) {
        let Some(socket) = self.socket.get() else { return };
        let mut state = self.state.borrow_mut();
        let waits = state.chunks.len() > RESUME_CHUNKS || state.filling.is_some();
        if state.receiving.is_some() || state.stopping || state.ended.is_some() || waits {
            return;
        }
        let (operation, token) = match state.single(socket) {
            Some(single) => (single, RECEIVE_ONCE),
            None => (Operation::Receive { socket }, RECEIVE),
        };
        state.receiving = Some(self.home.start(operation, self.sink(), token));
    }

    fn received(&self, completion: Completion) {
        let mut state = self.state.borrow_mut();
        if completion.operation.is_some() {
            state.receiving = None;
        }
        match completion.result {
            Ok(Output::Received(chunk)) if chunk.is_empty() => state.ended = Some(Ok(())),
            Ok(Output::Received(chunk)) => {
                state.chunks.push_back(chunk);
                if state.chunks.len() >= RECEIVED_CHUNKS
                    && let Some(receiving) = state.receiving
                {
                    self.home.cancel(receiving);
                }
            }
            // Cancelled by us, or out of buffers to receive into: started again when the reader asks for more.
            Err(error) if matches!(error.raw_os_error(), Some(crate::core::ECANCELED | ENOBUFS)) => {}
            Err(error) => state.ended = Some(Err(error.kind())),
            Ok(_) => {}
        }
        let fills = state.filling.is_some();
        drop(state);
        if fills {
            self.go_on_filling();
        }
        self.wake_reader();
    }

    /// Wakes whoever waits for bytes, unless a buffer is to be filled first.
    fn wake_reader(&self) {
        let mut state = self.state.borrow_mut();
        let waits = state.ended.is_none() && state.filling.as_ref().is_some_and(|filling| !filling.is_full());
        let reader = if waits { None } else { state.reader.take() };
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    fn flush(&self) {
        let Some(socket) = self.socket.get() else { return };
        let mut state = self.state.borrow_mut();
        state.seal();
        if state.sending {
            state.flush_asked = true;
            return;
        }
        if state.send_error.is_some() || state.queue.is_empty() {
            return;
        }
        let count = state.queue.len().min(SEND_SLICES);
        let mut slices = std::mem::take(&mut state.spare);
        slices.extend(state.queue.drain(..count));
        state.sending = true;
        state.flush_asked = !state.queue.is_empty();
        drop(state);
        self.home.start(Operation::Send { socket, slices }, self.sink(), SEND);
    }

    fn sent(&self, completion: Completion) {
        let mut state = self.state.borrow_mut();
        state.sending = false;
        match completion.result {
            Ok(Output::Sent(count)) => {
                // Nothing is counted any more once the stream has failed.
                state.queued_bytes = state.queued_bytes.saturating_sub(count);
                if let Some(Operation::Send { slices, .. }) = completion.operation {
                    state.put_back(slices, count);
                }
            }
            Ok(_) => {}
            Err(error) => {
                state.fail_sending(error.kind());
            }
        }
        let writers = state.take_writers();
        let again = state.flush_asked;
        drop(state);
        for writer in writers {
            writer.wake();
        }
        if again {
            self.flush();
        }
    }

    async fn stop_receiving(&self) {
        poll_fn(|context| {
            let mut state = self.state.borrow_mut();
            let Some(receiving) = state.receiving else { return Poll::Ready(()) };
            state.reader = Some(context.waker().clone());
            if !std::mem::replace(&mut state.stopping, true) {
                drop(state);
                self.home.cancel(receiving);
            }
            Poll::Pending
        })
        .await;
    }

    fn take_unread(&self) -> io::Result<Vec<u8>> {
        let mut state = self.state.borrow_mut();
        match state.ended {
            Some(Ok(())) if state.chunks.is_empty() => return Err(io::ErrorKind::UnexpectedEof.into()),
            Some(Err(error)) => return Err(error.into()),
            _ => {}
        }
        Ok(state.chunks.drain(..).flat_map(|chunk| chunk.to_vec()).collect())
    }

    fn close(&self) {
        let Some(socket) = self.socket.take() else { return };
        self.home.with(|core| core.close(socket));
        self.end(io::ErrorKind::NotConnected);
    }

    /// Tells whoever waits that nothing more comes and nothing more goes.
    fn end(&self, why: io::ErrorKind) {
        let mut state = self.state.borrow_mut();
        state.ended.get_or_insert(Err(why));
        state.fail_sending(why);
        let mut waiting = state.take_writers();
        waiting.extend(state.reader.take());
        drop(state);
        for waker in waiting {
            waker.wake();
        }
    }
}

impl State {
    /// Returns the part of `slices` after the first `sent` bytes to the front of the queue.
    fn put_back(&mut self, mut slices: Vec<Slice>, sent: usize) {
        let mut unsent = slices.iter().map(|slice| slice.len()).sum::<usize>() - sent;
        self.flush_asked |= unsent > 0;
        while let Some(slice) = slices.pop() {
            let rest = unsent.min(slice.len());
            unsent -= rest;
            if rest > 0 {
                self.queue.push_front(slice.slice(slice.len() - rest..));
            }
        }
        self.spare = slices;
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

/// Linux's ENOBUFS. The io_uring driver deals with it by itself, the simulated one lets it through at times.
const ENOBUFS: i32 = 105;
