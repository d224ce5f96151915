//! A target node, a host node, and devices under the test's control.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use block_device::{
    BlockDevice, Error, ErrorKind, Geometry, Limiter, Limits, MemoryDevice, Reply, ReplySink, Request, Segments,
};
use iscsi_target::{
    Access, AccessState, Directory, Identity, Listener, ListenerOptions, Name, ReservationStore, Reservations, Saved,
    Target, TargetOptions,
};
use iscsi_target_protocol::Digests;
use iscsi_target_protocol::chap::Challenge;
use iscsi_target_protocol::initiator::connection::{Command, Connection, Data, Event, Session};
use iscsi_target_protocol::initiator::login::{self, Login, Options};
use iscsi_target_protocol::negotiation::Parameters;
use iscsi_target_protocol::target::connection::Slot;
use iscsi_target_protocol::wire::LoginStatus;
use iscsi_target_protocol::wire::request::{LogoutReason, TaskFunction};
use iscsi_target_protocol::wire::response::Residual;
use reactor::TcpStream;
use reactor::simulated::{NodeId, World};
use uuid::Uuid;

pub(crate) const TARGET: [u8; 4] = [10, 0, 0, 1];
pub(crate) const HOST: [u8; 4] = [10, 0, 0, 2];
pub(crate) const BLOCK: u32 = 4096;
const BLOCKS: u64 = 4096;

/// Long enough for everything that does not wait for a timer.
pub(crate) const SOON: Duration = Duration::from_millis(100);

pub(crate) fn address() -> SocketAddr {
    (TARGET, 3260).into()
}

pub(crate) fn identity() -> Identity {
    Identity::of_volume(Uuid::from_u128(7))
}

pub(crate) fn geometry() -> Geometry {
    Geometry::new(BLOCKS * u64::from(BLOCK), BLOCK).expect("a good size")
}

pub(crate) fn initiator(number: u8) -> Name {
    Name::parse(&format!("iqn.1993-08.org.debian:01:host{number}")).expect("a name")
}

/// Where reservations are kept: here, or nowhere.
#[derive(Default)]
pub(crate) struct Shelf {
    pub(crate) record: RefCell<Vec<u8>>,
    pub(crate) fails: Cell<bool>,
}

impl ReservationStore for Shelf {
    fn save(&self, record: Vec<u8>) -> Saved {
        if self.fails.get() {
            return Box::pin(async { Err(Error::new(ErrorKind::WriteFailed)) });
        }
        self.record.replace(record);
        Box::pin(async { Ok(()) })
    }
}

/// A world with a target that exports one volume on a device, made on the target's reactor.
pub(crate) struct Stage {
    pub(crate) world: World,
    pub(crate) target_node: NodeId,
    pub(crate) host: NodeId,
    pub(crate) directory: Arc<Directory>,
    /// Kept here so that the test can reach it; it belongs to the target's reactor.
    pub(crate) target: Rc<Target>,
    pub(crate) shelf: Rc<Shelf>,
    _listener: Listener,
}

impl Stage {
    pub(crate) fn new(seed: u64, device: Rc<dyn BlockDevice>) -> Self {
        Self::with_access(seed, device, Access::default())
    }

    pub(crate) fn with_access(seed: u64, device: Rc<dyn BlockDevice>, access: Access) -> Self {
        let world = World::new(seed);
        let (target_node, host) = (world.add_node(TARGET.into()), world.add_node(HOST.into()));
        let directory = Directory::new();
        let shelf = Rc::<Shelf>::default();
        let (shared, store) = (Arc::clone(&directory), Rc::clone(&shelf));
        let (target, listener) = world.block_on(target_node, async move {
            let listener = Listener::bind(&shared, ListenerOptions::new(address())).expect("a free port");
            let options = TargetOptions {
                identity: identity(),
                device,
                access,
                access_state: AccessState::Optimized,
                reservations: Reservations::default(),
                store,
            };
            (Target::start(&shared, options).expect("the only one"), listener)
        });
        Self { world, target_node, host, directory, target, shelf, _listener: listener }
    }

    pub(crate) fn memory(seed: u64) -> Self {
        Self::new(seed, Rc::new(MemoryDevice::new(geometry()).expect("enough memory")))
    }

    /// Runs a story on the host.
    pub(crate) fn host<T: 'static>(&self, story: impl Future<Output = T> + 'static) -> T {
        self.world.block_on(self.host, story)
    }

    /// Runs something on the target's reactor.
    pub(crate) fn on_target<T: 'static>(&self, action: impl FnOnce(&Target) -> T + 'static) -> T {
        let target = Rc::clone(&self.target);
        self.world.block_on(self.target_node, async move { action(&target) })
    }
}

/// What became of a command.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u8,
    pub(crate) residual: Residual,
    pub(crate) sense: Vec<u8>,
    pub(crate) data: Vec<u8>,
}

impl Answer {
    /// Sense key, code and qualifier.
    pub(crate) fn why(&self) -> (u8, u16) {
        assert_eq!(self.status, 2, "{self:?}");
        (self.sense[2] & 0xf, u16::from_be_bytes([self.sense[12], self.sense[13]]))
    }

    pub(crate) fn good(self) -> Vec<u8> {
        assert_eq!(self.status, 0, "{self:?}");
        self.data
    }
}

/// An initiator's connection, one command after the other or several at once.
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    pub(crate) session: Rc<RefCell<Session>>,
    connection: Connection,
    unread: Vec<u8>,
    buffers: BTreeMap<Slot, Vec<u8>>,
    answers: BTreeMap<Slot, Answer>,
    managed: BTreeMap<Slot, u8>,
    logged_out: Option<u8>,
    pub(crate) text: Option<Vec<u8>>,
}

/// Why there is no session.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NoLogin {
    Refused(LoginStatus),
    Broken,
}

pub(crate) fn options(number: u8) -> Options {
    Options {
        initiator: initiator(number),
        target: Some(identity().name),
        isid: [0, 2, 0x3d, 0, 0, number],
        tsih: 0,
        cid: 0,
        offer: Parameters { digests: Digests::default(), ..Parameters::target() },
        chap: None,
        challenge: Challenge { identifier: 9, bytes: [number; 32] },
    }
}

impl Client {
    pub(crate) async fn login(options: Options) -> Result<Self, NoLogin> {
        Self::enter(Login::new(options, 1), None).await
    }

    /// A session of initiator `number` that has been told its first unit attention.
    pub(crate) async fn ready(number: u8) -> Self {
        let mut client = Self::login(options(number)).await.expect("a login");
        assert_eq!(client.command(&[0], Data::None, &[]).await.expect("an answer").why(), (6, 0x2900));
        client
    }

    /// One more connection of a session.
    pub(crate) async fn join(options: Options, session: &Rc<RefCell<Session>>) -> Result<Self, NoLogin> {
        let login = Login::joining(options, &session.borrow());
        Self::enter(login, Some(session)).await
    }

    async fn enter(mut login: Login, joined: Option<&Rc<RefCell<Session>>>) -> Result<Self, NoLogin> {
        let stream = TcpStream::connect(address()).await.map_err(|_| NoLogin::Broken)?;
        let mut out = Vec::new();
        login.start(&mut out);
        loop {
            stream.push_copy(&out);
            stream.flush();
            out.clear();
            let chunk = stream.receive().await.map_err(|_| NoLogin::Broken)?;
            if chunk.is_empty() {
                return Err(NoLogin::Broken);
            }
            let mut input = &chunk[..];
            match login.receive(&mut input, &mut out).map_err(|_| NoLogin::Broken)? {
                Some(login::Event::Complete) => {
                    let unread = input.to_vec();
                    let (session, connection) = login.finish();
                    let session = joined.cloned().unwrap_or_else(|| Rc::new(RefCell::new(session)));
                    return Ok(Self {
                        stream,
                        session,
                        connection,
                        unread,
                        buffers: BTreeMap::new(),
                        answers: BTreeMap::new(),
                        managed: BTreeMap::new(),
                        logged_out: None,
                        text: None,
                    });
                }
                Some(login::Event::Refused { status, .. }) => return Err(NoLogin::Refused(status)),
                Some(login::Event::Distrusted) => return Err(NoLogin::Broken),
                None => {}
            }
        }
    }

    pub(crate) fn submit(&mut self, cdb: &[u8], data: Data, bytes: &[u8]) -> Slot {
        let mut whole = [0; 16];
        whole[..cdb.len()].copy_from_slice(cdb);
        let command = Command { lun: 0, cdb: whole, data, immediate: false };
        let mut out = Vec::new();
        let submitted =
            self.connection.submit(&mut self.session.borrow_mut(), &command, &mut out).expect("room in the window");
        let now = submitted.immediate_data as usize;
        if now > 0 {
            out.extend_from_slice(&bytes[..now]);
            self.connection.write_data_end([&bytes[..now]], &mut out);
        }
        self.buffers.insert(submitted.slot, bytes.to_vec());
        self.stream.push_copy(&out);
        self.send_data(submitted.slot);
        submitted.slot
    }

    fn send_data(&mut self, slot: Slot) {
        let mut out = Vec::new();
        while let Some(range) = self.connection.write_data_header(slot, &mut out) {
            let bytes = &self.buffers[&slot][range.start as usize..range.end as usize];
            out.extend_from_slice(bytes);
            self.connection.write_data_end([bytes], &mut out);
        }
        self.stream.push_copy(&out);
        self.stream.flush();
    }

    pub(crate) async fn command(&mut self, cdb: &[u8], data: Data, bytes: &[u8]) -> io::Result<Answer> {
        let slot = self.submit(cdb, data, bytes);
        self.answer(slot).await
    }

    pub(crate) async fn read(&mut self, block: u8, count: u8) -> io::Result<Answer> {
        let length = u32::from(count) * BLOCK;
        self.command(&[0x28, 0, 0, 0, 0, block, 0, 0, count], Data::Receive(length), &[]).await
    }

    pub(crate) fn submit_write(&mut self, block: u8, bytes: &[u8]) -> Slot {
        let count = (bytes.len() as u32 / BLOCK) as u8;
        self.submit(&[0x2a, 0, 0, 0, 0, block, 0, 0, count], Data::Send(bytes.len() as u32), bytes)
    }

    pub(crate) async fn write(&mut self, block: u8, bytes: &[u8]) -> io::Result<Answer> {
        let slot = self.submit_write(block, bytes);
        self.answer(slot).await
    }

    pub(crate) async fn answer(&mut self, slot: Slot) -> io::Result<Answer> {
        loop {
            if let Some(answer) = self.answers.remove(&slot) {
                return Ok(answer);
            }
            self.turn().await?;
        }
    }

    pub(crate) fn submit_management(&mut self, function: TaskFunction, task: Option<Slot>) -> Slot {
        let mut out = Vec::new();
        let session = &mut self.session.borrow_mut();
        let slot = self.connection.manage(session, function, 0, task, &mut out).expect("room");
        self.stream.push_copy(&out);
        self.stream.flush();
        slot
    }

    pub(crate) async fn managed(&mut self, slot: Slot) -> io::Result<u8> {
        loop {
            if let Some(response) = self.managed.remove(&slot) {
                return Ok(response);
            }
            self.turn().await?;
        }
    }

    pub(crate) async fn manage(&mut self, function: TaskFunction, task: Option<Slot>) -> io::Result<u8> {
        let slot = self.submit_management(function, task);
        self.managed(slot).await
    }

    pub(crate) async fn targets(&mut self) -> io::Result<String> {
        let mut out = Vec::new();
        self.connection.send_text(&mut self.session.borrow_mut(), b"SendTargets=All\0", &mut out).expect("room");
        self.stream.push_copy(&out);
        while self.text.is_none() {
            self.turn().await?;
        }
        Ok(String::from_utf8(self.text.take().unwrap_or_default()).expect("text"))
    }

    pub(crate) async fn logout(&mut self) -> io::Result<u8> {
        let mut out = Vec::new();
        let cid = self.connection.cid();
        let reason = LogoutReason::CloseSession;
        self.connection.logout(&mut self.session.borrow_mut(), reason, cid, &mut out).expect("room");
        self.stream.push_copy(&out);
        loop {
            if let Some(response) = self.logged_out {
                return Ok(response);
            }
            self.turn().await?;
        }
    }

    /// Sends what is queued and takes what comes next.
    pub(crate) async fn turn(&mut self) -> io::Result<()> {
        self.stream.flush();
        if self.unread.is_empty() {
            let chunk = self.stream.receive().await?;
            if chunk.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.unread = chunk.to_vec();
        }
        let chunk = std::mem::take(&mut self.unread);
        let mut input = &chunk[..];
        loop {
            let mut out = Vec::new();
            let session = &mut self.session.borrow_mut();
            let event = self.connection.receive(session, &mut input, &mut out);
            self.stream.push_copy(&out);
            let event = match event {
                Ok(Some(event)) => event,
                Ok(None) => break,
                Err(violation) => return Err(io::Error::other(format!("{violation:?}"))),
            };
            match event {
                Event::Data { slot, offset, bytes } => {
                    let buffer = self.buffers.get_mut(&slot).expect("in flight");
                    assert_eq!(buffer.len(), offset as usize, "in order");
                    buffer.extend_from_slice(bytes);
                }
                Event::DataRequested { slot } => {
                    let mut out = Vec::new();
                    while let Some(range) = self.connection.write_data_header(slot, &mut out) {
                        let bytes = &self.buffers[&slot][range.start as usize..range.end as usize];
                        out.extend_from_slice(bytes);
                        self.connection.write_data_end([bytes], &mut out);
                    }
                    self.stream.push_copy(&out);
                }
                Event::Completed { slot, status, residual, sense, .. } => {
                    let data = self.buffers.remove(&slot).expect("answered once (I34)");
                    self.answers.insert(slot, Answer { status, residual, sense, data });
                }
                Event::TaskManaged { slot, response } => drop(self.managed.insert(slot, response)),
                Event::LoggedOut { response } => self.logged_out = Some(response),
                Event::Text { text, .. } => self.text = Some(text),
                Event::Pong { .. } | Event::Async(_) | Event::Rejected { .. } => {}
            }
        }
        self.stream.flush();
        Ok(())
    }
}

/// A device that answers as the test says: with errors, or when told to.
#[derive(Default)]
pub(crate) struct Scripted {
    /// Answers of the next requests, oldest first; then success.
    pub(crate) errors: RefCell<VecDeque<ErrorKind>>,
    /// Requests are kept until [`Self::release`].
    pub(crate) holds: Cell<bool>,
    held: RefCell<Vec<(Request, Reply)>>,
    pub(crate) blocks: Cell<u64>,
    pub(crate) writes: Cell<usize>,
}

impl Scripted {
    pub(crate) fn new() -> Rc<Self> {
        let device = Self::default();
        device.blocks.set(BLOCKS);
        Rc::new(device)
    }

    pub(crate) fn held(&self) -> usize {
        self.held.borrow().len()
    }

    /// Answers everything that is held, latest first.
    pub(crate) fn release(&self) {
        self.holds.set(false);
        let held = std::mem::take(&mut *self.held.borrow_mut());
        for (request, reply) in held.into_iter().rev() {
            self.reply(&request, reply);
        }
    }

    fn reply(&self, request: &Request, reply: Reply) {
        match (self.errors.borrow_mut().pop_front(), request) {
            (Some(error), _) => reply.fail(error),
            (None, Request::Read { range }) => {
                let mut segments = Segments::none();
                segments.push_zeroes(range.length as usize);
                reply.complete(Ok(segments));
            }
            (None, _) => reply.complete(Ok(Segments::none())),
        }
    }
}

impl BlockDevice for Scripted {
    fn geometry(&self) -> Geometry {
        Geometry { blocks: self.blocks.get(), ..geometry() }
    }

    fn submit(&self, request: Request, reply: Reply) {
        self.writes.set(self.writes.get() + usize::from(request.is_write()));
        if self.holds.get() {
            self.held.borrow_mut().push((request, reply));
        } else {
            self.reply(&request, reply);
        }
    }
}

pub(crate) fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|index| (index / 7) as u8 ^ (index >> 9) as u8 ^ seed).collect()
}

/// A device that passes on ten commands a second. The limiter is made where it is first used: on the target's reactor.
pub(crate) struct Limited {
    device: Rc<dyn BlockDevice>,
    limiter: OnceCell<Rc<Limiter>>,
}

impl Limited {
    pub(crate) fn new(device: Rc<dyn BlockDevice>) -> Rc<Self> {
        Rc::new(Self { device, limiter: OnceCell::new() })
    }

    fn limiter(&self) -> &Rc<Limiter> {
        let limits = Limits { iops: 10, ..Limits::default() };
        self.limiter.get_or_init(|| Limiter::new(Rc::clone(&self.device), limits, Arc::default()))
    }

    pub(crate) fn waiting(&self) -> usize {
        self.limiter().waiting()
    }
}

impl BlockDevice for Limited {
    fn geometry(&self) -> Geometry {
        self.device.geometry()
    }

    fn submit(&self, request: Request, reply: Reply) {
        self.limiter().submit(request, reply);
    }

    fn cancel(&self, sink: &Rc<dyn ReplySink>, token: Option<u64>) {
        self.limiter().cancel(sink, token);
    }
}
