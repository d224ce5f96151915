//! The replica's end of a connection, on the reactor of the replica.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};

use block_device::{Buffer, Error, ErrorKind, Outcome, Range, Reply, ReplySink, Request, Segments};
use reactor::{bug, spawn};
use replica_protocol as wire;
use replica_protocol::{Command, Grant, Open, ProtocolError, Refusal, Server, ServerEvent, Status};
use uuid::Uuid;

use crate::directory::Incoming;
use crate::listener::{ReplicaHost, refuse};
use crate::status::{chain_to_wire, damage_to_wire, extents_to_wire, notes_to_wire, status_of};
use crate::stream::{Chunk, Stream};
use crate::{OpenError, OpenReplica, Replica};

/// Serves a connection from its Open to its end.
pub(crate) async fn serve(host: Rc<dyn ReplicaHost>, incoming: Incoming) {
    let Incoming { stream, mut session, open } = incoming;
    let Ok(stream) = stream.attach() else { return };
    let peer = stream.peer_address();
    let opened = race(host.open(open_of(&open)), stream.receive()).await;
    let ended = match opened {
        Raced::First(Ok(replica)) => {
            stream.push_copy(&session.grant(&grant_of(&*replica)));
            stream.flush();
            let connection = Rc::new(Connection::new(stream, session, replica));
            connection.run().await
        }
        Raced::First(Err(error)) => {
            tracing::info!(%peer, %error, "a replica was not opened");
            refuse(&stream, &mut session, &refusal_of(&error)).await
        }
        Raced::Second => Err(io::Error::other("the engine did not wait for the grant, or went away")),
    };
    if let Err(error) = ended {
        tracing::info!(%peer, %error, "a replica connection ended");
    }
}

enum Raced<T> {
    First(T),
    Second,
}

/// Which of the two is ready first. An open that waits for a disk to drain must not outlive the connection that asked.
async fn race<A: Future, B: Future>(first: A, second: B) -> Raced<A::Output> {
    let (mut first, mut second) = (pin!(first), pin!(second));
    poll_fn(|context| {
        if let Poll::Ready(output) = first.as_mut().poll(context) {
            return Poll::Ready(Raced::First(output));
        }
        second.as_mut().poll(context).map(|_| Raced::Second)
    })
    .await
}

fn open_of(open: &Open) -> OpenReplica {
    OpenReplica {
        replica: Uuid::from_bytes(open.replica),
        volume: Uuid::from_bytes(open.volume),
        epoch: open.epoch,
        instance: Uuid::from_bytes(open.instance),
    }
}

fn grant_of(replica: &dyn Replica) -> Grant {
    let granted = replica.granted();
    Grant {
        epoch: granted.epoch,
        size: granted.geometry.size(),
        block_size: granted.geometry.block_size,
        atomic_write: granted.geometry.atomic_write,
        allocation_unit: granted.geometry.allocation_unit,
        state: granted.state.into(),
    }
}

fn refusal_of(error: &OpenError) -> Refusal {
    let (status, stored_epoch) = match error {
        OpenError::Fenced { stored } => (Status::Fenced, *stored),
        OpenError::NotFound => (Status::NotFound, 0),
        OpenError::Mismatch(_) => (Status::Conflict, 0),
        OpenError::Unreachable(_) => (Status::Unavailable, 0),
        OpenError::Failed(error) => (status_of(error.kind()), 0),
    };
    Refusal { status, stored_epoch, text: error.to_string() }
}

/// A connection that was granted its replica.
struct Connection {
    stream: Stream,
    session: RefCell<Server>,
    replica: Rc<dyn Replica>,
    epoch: u64,
    write: RefCell<Option<Write>>,
    /// The engine said Close.
    closing: Cell<bool>,
    /// The connection's task, when it waits for the last answer.
    task: RefCell<Option<Waker>>,
}

/// A write whose data is arriving.
struct Write {
    id: u64,
    epoch: u64,
    offset: u64,
    fua: bool,
    /// None when there was no memory for it: its data is skipped, and the answer is Busy.
    buffer: Option<Buffer>,
    filled: usize,
}

impl Connection {
    fn new(stream: Stream, session: Server, replica: Rc<dyn Replica>) -> Self {
        Self {
            epoch: replica.granted().epoch,
            stream,
            session: RefCell::new(session),
            replica,
            write: RefCell::new(None),
            closing: Cell::new(false),
            task: RefCell::new(None),
        }
    }

    /// Until the stream ends, the peer breaks the protocol, or it said Close and has all its answers.
    async fn run(self: &Rc<Self>) -> io::Result<()> {
        let ended = self.turns().await;
        // Nothing of this connection may start any more; what is at the disk ends as it does (I16).
        self.replica.close();
        self.stream.close();
        ended
    }

    async fn turns(self: &Rc<Self>) -> io::Result<()> {
        loop {
            let Some(chunk) = self.next_chunk().await? else {
                self.stream.flush();
                return self.stream.drained(0).await;
            };
            if chunk.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.receive(&chunk).map_err(io::Error::other)?;
        }
    }

    /// Waits for bytes; `None` when all is said.
    async fn next_chunk(&self) -> io::Result<Option<Chunk>> {
        let mut receive = pin!(self.stream.receive());
        poll_fn(|context| {
            let received = receive.as_mut().poll(context);
            if let Poll::Ready(chunk) = received {
                return Poll::Ready(chunk.map(Some));
            }
            if self.closing.get() && self.session.borrow().in_flight() == 0 {
                return Poll::Ready(Ok(None));
            }
            if self.closing.get() {
                *self.task.borrow_mut() = Some(context.waker().clone());
            }
            Poll::Pending
        })
        .await
    }

    fn receive(self: &Rc<Self>, mut input: &[u8]) -> Result<(), ProtocolError> {
        loop {
            let event = self.session.borrow_mut().handle(&mut input)?;
            match event {
                None => return Ok(()),
                Some(event) => self.act(event)?,
            }
        }
    }

    fn act(self: &Rc<Self>, event: ServerEvent<'_>) -> Result<(), ProtocolError> {
        match event {
            ServerEvent::Request { id, epoch, command } => self.request(id, epoch, command),
            ServerEvent::WriteBegin { id, epoch, offset, length, fua } => {
                let buffer = Buffer::try_new(length as usize);
                *self.write.borrow_mut() = Some(Write { id, epoch, offset, fua, buffer, filled: 0 });
            }
            ServerEvent::WriteData(data) => {
                if let Some(write) = &mut *self.write.borrow_mut() {
                    write.fill(data);
                }
            }
            ServerEvent::WriteEnd => self.write_complete(),
            ServerEvent::Ping => self.pong(),
            ServerEvent::Close => self.closing.set(true),
            // The session allows neither once a replica is granted.
            ServerEvent::Hello(_) | ServerEvent::Open(_) => return Err(ProtocolError::Malformed),
        }
        Ok(())
    }

    fn pong(&self) {
        let age = self.replica.oldest().map_or(0, |since| (reactor::now() - since).as_millis());
        let fenced = self.replica.failure().is_some_and(|error| error.kind() == ErrorKind::Fenced);
        let age = u64::try_from(age).unwrap_or(u64::MAX);
        let pong = self.session.borrow().pong(age, self.replica.findings(), fenced);
        self.stream.push_copy(&pong);
        self.send_soon();
    }

    fn write_complete(self: &Rc<Self>) {
        let Some(write) = self.write.take() else { return };
        match write.buffer {
            None => self.complete(write.id, Err(ErrorKind::Busy.into())),
            Some(buffer) => {
                let request = Request::Write { offset: write.offset, data: buffer.freeze(), fua: write.fua };
                self.submit(write.id, write.epoch, request);
            }
        }
    }

    /// Passes a request to the replica if it carries the epoch that was granted (I12).
    fn submit(self: &Rc<Self>, id: u64, epoch: u64, request: Request) {
        let reply = Reply::new(Rc::clone(self) as Rc<dyn ReplySink>, id);
        match epoch == self.epoch {
            true => self.replica.submit(request, reply),
            false => reply.fail(ErrorKind::Fenced),
        }
    }

    fn request(self: &Rc<Self>, id: u64, epoch: u64, command: Command) {
        let request = match command {
            Command::Read { offset, length } => Request::read(offset, length.into()),
            Command::Flush if bug!("flush-only-the-local-replica") => {
                return self.complete(id, Ok(Segments::none()));
            }
            Command::Flush => Request::Flush,
            Command::Unmap(ranges) => {
                Request::Unmap { ranges: ranges.into_iter().map(|(offset, length)| Range { offset, length }).collect() }
            }
            Command::WriteZeroes { offset, length, unmap, fua } => {
                Request::WriteZeroes { range: Range { offset, length }, unmap, fua }
            }
            control => return self.start_control(id, epoch, control),
        };
        self.submit(id, epoch, request);
    }

    /// What is not on the hot path, as a task of its own; the credits bound how many there are.
    fn start_control(self: &Rc<Self>, id: u64, epoch: u64, command: Command) {
        if epoch != self.epoch {
            return self.complete(id, Err(ErrorKind::Fenced.into()));
        }
        let connection = Rc::clone(self);
        spawn(async move {
            match connection.control(command).await {
                Ok(Control::Message(payload)) => connection.send_control(id, &payload),
                Ok(Control::Data(outcome)) => connection.complete(id, Ok(outcome)),
                Err(error) => connection.complete(id, Err(error)),
            }
        });
    }

    async fn control(&self, command: Command) -> Result<Control, Error> {
        let replica = &self.replica;
        let none = |()| Control::Message(Vec::new());
        match command {
            Command::Snapshot { id, size, name } => replica.snapshot(Uuid::from_bytes(id), size, &name).await.map(none),
            Command::Chain => Ok(Control::Message(chain_to_wire(&replica.chain().await?).encode())),
            Command::Extents { lvol, offset, length, max } => {
                let extents = replica.extents(Uuid::from_bytes(lvol), Range { offset, length }, max).await?;
                Ok(Control::Message(extents_to_wire(&extents).encode()))
            }
            Command::ReadLvol { lvol, offset, length } => {
                let range = Range { offset, length: length.into() };
                replica.read_lvol(Uuid::from_bytes(lvol), range).await.map(Control::Data)
            }
            Command::Hashes { lvol, offset, length, granule } => {
                let range = Range { offset, length: length.into() };
                let hashes = replica.hashes(Uuid::from_bytes(lvol), range, granule).await?;
                Ok(Control::Message(wire::Hashes(hashes).encode()))
            }
            Command::SetNote { place, durable, content } => replica.set_note(place, &content, durable).await.map(none),
            Command::Notes => Ok(Control::Message(notes_to_wire(replica.notes().await?).encode())),
            Command::SetMembership { content, attached } => replica.set_membership(&content, &attached).await.map(none),
            Command::Membership => Ok(Control::Message(replica.membership().await?.encode())),
            Command::Reset => replica.reset().await.map(none),
            Command::SetState(state) => replica.set_state(state.into()).await.map(none),
            Command::DeleteSnapshot { id } => replica.delete_snapshot(Uuid::from_bytes(id)).await.map(none),
            Command::Revert { id } => replica.revert(Uuid::from_bytes(id)).await.map(none),
            Command::Grow { size } => replica.grow(size).await.map(none),
            Command::Damage => Ok(Control::Message(damage_to_wire(&replica.damage().await?).encode())),
            Command::Repair { id, offset, data } => replica.repair(Uuid::from_bytes(id), offset, data).await.map(none),
            _ => Err(ErrorKind::Internal.into()),
        }
    }

    fn send_control(&self, id: u64, payload: &[u8]) {
        if let Some(answer) = self.session.borrow_mut().answer_control(id, payload) {
            self.stream.push_copy(&answer);
            self.send_soon();
        }
    }

    fn send_soon(&self) {
        self.stream.flush_at_turn_end();
        if let Some(task) = self.task.take() {
            task.wake();
        }
    }
}

/// What a control request came to.
enum Control {
    Message(Vec<u8>),
    Data(block_device::Segments),
}

impl Write {
    fn fill(&mut self, data: &[u8]) {
        if let Some(buffer) = &mut self.buffer {
            // The session hands out exactly the length that WriteBegin told.
            buffer[self.filled..self.filled + data.len()].copy_from_slice(data);
            self.filled += data.len();
        }
    }
}

impl ReplySink for Connection {
    fn complete(&self, id: u64, outcome: Outcome) {
        let mut session = self.session.borrow_mut();
        match outcome {
            Ok(segments) => {
                let header = session.answer(id, Status::Good, segments.iter().map(|slice| &slice[..]));
                let Some(header) = header else { return };
                self.stream.push_copy(&header);
                segments.into_iter().for_each(|slice| self.stream.push(slice));
            }
            Err(error) => {
                let answer = session.answer_error(id, status_of(error.kind()), error.detail().unwrap_or_default());
                let Some(answer) = answer else { return };
                self.stream.push_copy(&answer);
            }
        }
        drop(session);
        self.send_soon();
    }
}
