//! A target node, a host node, and devices under the test's control.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use block_device::{BlockDevice, ErrorKind, Geometry, MemoryDevice, Reply, Request};
use nvmf_target::{
    AnaState, Directory, Hosts, Identity, Limits, Listener, ListenerOptions, Subsystem, SubsystemOptions,
};
use nvmf_target_protocol::host::command::{Command, Data};
use nvmf_target_protocol::host::connection as host;
use nvmf_target_protocol::wire::fabrics::{CONTROLLER_ANY, ConnectCommand, ConnectData};
use nvmf_target_protocol::wire::property::{self, Configuration};
use nvmf_target_protocol::wire::{Completion, Status};
use reactor::TcpStream;
use reactor::simulated::{NodeId, World};
use uuid::Uuid;

pub(crate) const TARGET: [u8; 4] = [10, 0, 0, 1];
pub(crate) const HOST: [u8; 4] = [10, 0, 0, 2];
pub(crate) const HOST_NQN: &str = "nqn.2014-08.org.nvmexpress:uuid:host";
pub(crate) const BLOCK: u32 = 4096;
const BLOCKS: u64 = 1024;

pub(crate) fn address() -> SocketAddr {
    (TARGET, 4420).into()
}

pub(crate) fn identity() -> Identity {
    Identity::of_volume(Uuid::from_u128(7))
}

pub(crate) fn geometry() -> Geometry {
    Geometry::new(BLOCKS * u64::from(BLOCK), BLOCK).expect("a good size")
}

/// A world with a target that exports one volume on `device`, made on the target's reactor.
pub(crate) struct Stage {
    pub(crate) world: World,
    pub(crate) target: NodeId,
    pub(crate) host: NodeId,
    pub(crate) directory: Arc<Directory>,
    /// Kept here so that the test can reach it; it belongs to the target's reactor.
    pub(crate) subsystem: Rc<Subsystem>,
    pub(crate) listener: Rc<RefCell<Option<Listener>>>,
}

impl Stage {
    pub(crate) fn new(seed: u64, device: Rc<dyn BlockDevice>) -> Self {
        Self::with_hosts(seed, device, Hosts::Any)
    }

    pub(crate) fn with_hosts(seed: u64, device: Rc<dyn BlockDevice>, hosts: Hosts) -> Self {
        let world = World::new(seed);
        let (target, host) = (world.add_node(TARGET.into()), world.add_node(HOST.into()));
        let directory = Directory::new();
        let (listener, shared) = (Rc::new(RefCell::new(None)), Arc::clone(&directory));
        let bound = Rc::clone(&listener);
        let subsystem = world.block_on(target, async move {
            *bound.borrow_mut() = Some(Listener::bind(&shared, ListenerOptions::new(address())).expect("a free port"));
            let options = SubsystemOptions { identity: identity(), hosts, limits: Limits::default() };
            let subsystem = Subsystem::start(&shared, options).expect("the only one");
            subsystem.attach(1, device, &identity(), AnaState::Optimized);
            subsystem
        });
        Self { world, target, host, directory, subsystem, listener }
    }

    pub(crate) fn memory(seed: u64) -> Self {
        Self::new(seed, Rc::new(MemoryDevice::new(geometry()).expect("enough memory")))
    }

    /// Runs a story on the host.
    pub(crate) fn host<T: 'static>(&self, story: impl Future<Output = T> + 'static) -> T {
        self.world.block_on(self.host, story)
    }

    /// Runs something on the target's reactor.
    pub(crate) fn on_target<T: 'static>(&self, action: impl FnOnce(&Subsystem) -> T + 'static) -> T {
        let subsystem = Rc::clone(&self.subsystem);
        self.world.block_on(self.target, async move { action(&subsystem) })
    }
}

/// What became of a command.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) completion: Completion,
    pub(crate) data: Vec<u8>,
}

impl Answer {
    pub(crate) fn status(&self) -> Status {
        self.completion.status
    }
}

/// A host's connection, one command after the other or several at once.
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    connection: host::Connection,
    buffers: BTreeMap<host::Slot, Vec<u8>>,
    answers: BTreeMap<host::Slot, Answer>,
    initialized: bool,
}

fn broken(reason: impl std::fmt::Debug) -> io::Error {
    io::Error::other(format!("{reason:?}"))
}

impl Client {
    pub(crate) async fn open() -> io::Result<Self> {
        Self::open_at(address()).await
    }

    pub(crate) async fn open_at(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        let mut connection = host::Connection::new(host::Options::default());
        let mut out = Vec::new();
        connection.initialize(&mut out);
        stream.push_copy(&out);
        let (buffers, answers) = Default::default();
        let mut client = Self { stream, connection, buffers, answers, initialized: false };
        while !client.initialized {
            client.turn().await?;
        }
        Ok(client)
    }

    /// An enabled controller's admin queue, and its identifier.
    pub(crate) async fn admin(keep_alive_ms: u32) -> io::Result<(Self, u16)> {
        let mut client = Self::open().await?;
        let answer = client.connect(&identity().nqn, HOST_NQN, 0, CONTROLLER_ANY, keep_alive_ms).await?;
        assert_eq!(answer.status(), Status::Success);
        client.enable().await?;
        Ok((client, answer.completion.result as u16))
    }

    pub(crate) async fn enable(&mut self) -> io::Result<()> {
        let enable = Command::set_property(property::CC, Configuration::enable(true).0);
        assert_eq!(self.command(&enable, &[]).await?.status(), Status::Success);
        Ok(())
    }

    /// I/O queue `queue_id` of a controller.
    pub(crate) async fn io(queue_id: u16, controller: u16) -> io::Result<Self> {
        let mut client = Self::open().await?;
        let answer = client.connect(&identity().nqn, HOST_NQN, queue_id, controller, 0).await?;
        assert_eq!(answer.status(), Status::Success, "{answer:?}");
        client.connection.connected(127, 16 << 10);
        Ok(client)
    }

    pub(crate) async fn connect(
        &mut self,
        subsystem: &str,
        host: &str,
        queue_id: u16,
        controller_id: u16,
        keep_alive_ms: u32,
    ) -> io::Result<Answer> {
        let connect = ConnectCommand {
            record_format: 0,
            queue_id,
            queue_entries: 128,
            flow_control_disabled: false,
            keep_alive_ms,
        };
        let (subsystem_nqn, host_nqn) = (subsystem.to_owned(), host.to_owned());
        let data = ConnectData { host_id: [9; 16], controller_id, subsystem_nqn, host_nqn }.encode();
        let answer = self.command(&Command::connect(&connect), &data).await?;
        if answer.status() == Status::Success {
            self.connection.connected(31, 8 << 10);
        }
        Ok(answer)
    }

    pub(crate) fn submit(&mut self, command: &Command, data: &[u8]) -> host::Slot {
        let mut out = Vec::new();
        let submitted = self.connection.submit(command, &mut out).expect("room in the queue");
        if submitted.with_data {
            out.extend_from_slice(data);
        }
        self.stream.push_copy(&out);
        let sends = matches!(command.data, Data::Send(_));
        self.buffers.insert(submitted.slot, if sends { data.to_vec() } else { Vec::new() });
        submitted.slot
    }

    pub(crate) async fn command(&mut self, command: &Command, data: &[u8]) -> io::Result<Answer> {
        let slot = self.submit(command, data);
        self.answer(slot).await
    }

    pub(crate) async fn answer(&mut self, slot: host::Slot) -> io::Result<Answer> {
        loop {
            if let Some(answer) = self.answers.remove(&slot) {
                return Ok(answer);
            }
            self.turn().await?;
        }
    }

    /// Waits until data is asked for, sends the first `length` bytes of the answer and no more.
    pub(crate) async fn send_part_of_what_is_asked_for(&mut self, length: usize) -> io::Result<()> {
        self.stream.flush();
        loop {
            let chunk = self.stream.receive().await?;
            let mut input = &chunk[..];
            while let Some(event) = self.connection.receive(&mut input).map_err(broken)? {
                let host::Event::DataRequested { slot } = event else { continue };
                let mut out = Vec::new();
                while let Some(range) = self.connection.write_data_header(slot, &mut out) {
                    out.extend_from_slice(&self.buffers[&slot][range.start as usize..range.end as usize]);
                }
                self.stream.push_copy(&out[..length]);
                self.stream.flush();
                return self.stream.drained(0).await;
            }
        }
    }

    /// Sends what is queued and takes what comes next.
    async fn turn(&mut self) -> io::Result<()> {
        self.stream.flush();
        let chunk = self.stream.receive().await?;
        if chunk.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut input = &chunk[..];
        while let Some(event) = self.connection.receive(&mut input).map_err(broken)? {
            match event {
                host::Event::Initialized => self.initialized = true,
                host::Event::Data { slot, bytes, .. } => {
                    self.buffers.get_mut(&slot).expect("in flight").extend_from_slice(bytes);
                }
                host::Event::DataRequested { slot } => {
                    let mut out = Vec::new();
                    while let Some(range) = self.connection.write_data_header(slot, &mut out) {
                        out.extend_from_slice(&self.buffers[&slot][range.start as usize..range.end as usize]);
                    }
                    self.stream.push_copy(&out);
                }
                host::Event::Completed { slot, completion, .. } => {
                    let data = self.buffers.remove(&slot).expect("answered once (I34)");
                    self.answers.insert(slot, Answer { completion, data });
                }
            }
        }
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
    pub(crate) requests: RefCell<Vec<Request>>,
    pub(crate) blocks: Cell<u64>,
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
                let mut segments = block_device::Segments::none();
                segments.push_zeroes(range.length as usize);
                reply.complete(Ok(segments));
            }
            (None, _) => reply.complete(Ok(block_device::Segments::none())),
        }
    }
}

impl BlockDevice for Scripted {
    fn geometry(&self) -> Geometry {
        Geometry { blocks: self.blocks.get(), ..geometry() }
    }

    fn submit(&self, request: Request, reply: Reply) {
        self.requests.borrow_mut().push(without_data(&request));
        if self.holds.get() {
            self.held.borrow_mut().push((request, reply));
        } else {
            self.reply(&request, reply);
        }
    }
}

/// A request as a record: data would keep its buffer.
fn without_data(request: &Request) -> Request {
    match request {
        Request::Write { offset, fua, .. } => {
            Request::Write { offset: *offset, data: block_device::Slice::default(), fua: *fua }
        }
        other => other.clone(),
    }
}

/// Long enough for everything that does not wait for a timer.
pub(crate) const SOON: Duration = Duration::from_millis(100);

pub(crate) fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|index| (index / 7) as u8 ^ (index >> 9) as u8 ^ seed).collect()
}
