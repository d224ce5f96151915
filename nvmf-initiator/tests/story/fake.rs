//! A target as small as can be, on the protocol crate's controller end, and what it may do wrong.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;

use nvmf_target_protocol::target::command::{Blocks, IoCommand, parse_ranges};
use nvmf_target_protocol::target::connection::{Connection, Event, Limits, Slot, Transfer};
use nvmf_target_protocol::target::controller::{AdminCommand, Controller, IdentifyLimits, Outcome, Service};
use nvmf_target_protocol::target::subsystem::{BlockSize, Namespace, Subsystem};
use nvmf_target_protocol::wire::fabrics::{CONNECT_DATA_SIZE, ConnectCommand, ConnectData};
use nvmf_target_protocol::wire::identify::ControllerType;
use nvmf_target_protocol::wire::log_page::{AnaState, Health};
use nvmf_target_protocol::wire::{Completion, Status, Submission, opcode};
use nvmf_target_protocol::{Digests, HeaderSink};
use reactor::{Slice, TcpListener, TcpStream};
use tokio::sync::Notify;

pub(crate) const NQN: &str = "nqn.2026-01.io.ashlar:fake";
pub(crate) const BLOCK: usize = 4096;
pub(crate) const BLOCKS: u64 = 1024;
const TRANSFER: u32 = 128 << 10;
const CAPSULE: u32 = 16 << 10;

/// What it does with I/O commands.
#[derive(Clone, Debug, Default)]
pub(crate) enum Manner {
    /// What it should.
    #[default]
    Proper,
    /// Never answers.
    Silent,
    /// Answers everything with this.
    Status(Status),
    /// Sends these bytes instead of an answer.
    Raw(Vec<u8>),
    /// Sends one byte less of a read than asked for, in a transfer that claims to be all.
    ShortReads,
    /// Damages a bit of the data of reads after their digest was made.
    FlippedBits,
    /// Acknowledges writes and forgets them.
    Forgetful,
    /// Performs writes, but closes the connection instead of acknowledging them.
    Hangup,
}

/// The target.
#[derive(Default)]
pub(crate) struct Fake {
    pub(crate) disk: RefCell<Vec<u8>>,
    pub(crate) manner: RefCell<Manner>,
    /// Answers Connect with this.
    pub(crate) refuse: Cell<Option<Status>>,
    pub(crate) keep_alives: Cell<u32>,
    /// Never answers keep alives.
    pub(crate) deaf: Cell<bool>,
    pub(crate) connects: Cell<u32>,
    pub(crate) flushes: Cell<u32>,
    pub(crate) nguid: Cell<[u8; 16]>,
    restarted: Notify,
    controllers: RefCell<BTreeMap<u16, Controller>>,
    streams: RefCell<Vec<TcpStream>>,
}

impl Fake {
    pub(crate) fn new() -> Rc<Self> {
        let disk = RefCell::new(vec![0; BLOCKS as usize * BLOCK]);
        Rc::new(Self { disk, nguid: Cell::new([0x11; 16]), ..Self::default() })
    }

    /// Listens, and serves whoever connects for as long as the reactor runs.
    pub(crate) fn listen(self: &Rc<Self>, address: SocketAddr) {
        let listener = TcpListener::bind(address).expect("a free address");
        let fake = Rc::clone(self);
        reactor::spawn(async move {
            loop {
                fake.restarted.notified().await;
                fake.streams.borrow_mut().drain(..).for_each(|stream| stream.close());
                fake.controllers.borrow_mut().clear();
            }
        });
        let fake = Rc::clone(self);
        reactor::spawn(async move {
            while let Ok(stream) = listener.accept().await {
                fake.streams.borrow_mut().push(stream.clone());
                let fake = Rc::clone(&fake);
                reactor::spawn(async move { serve(fake, stream).await });
            }
        });
    }

    /// Makes it close every connection and forget every controller soon, as a restart would. From any reactor.
    pub(crate) fn restart(&self) {
        self.restarted.notify_one();
    }

    fn namespace(&self) -> Namespace {
        Namespace {
            blocks: BLOCKS,
            block_size: BlockSize::B4096,
            nguid: self.nguid.get(),
            uuid: [0x22; 16],
            used_blocks: 0,
            atomic_blocks: 1,
            ana_state: AnaState::Optimized,
        }
    }

    fn bytes(&self, blocks: Blocks) -> std::ops::Range<usize> {
        let start = blocks.start as usize * BLOCK;
        start..start + blocks.count as usize * BLOCK
    }

    fn perform(&self, command: IoCommand, data: &[u8]) -> Result<Vec<u8>, Status> {
        let mut disk = self.disk.borrow_mut();
        match command {
            IoCommand::Read(blocks) => return Ok(disk[self.bytes(blocks)].to_vec()),
            IoCommand::Write { .. } if matches!(*self.manner.borrow(), Manner::Forgetful) => {}
            IoCommand::Write { blocks, .. } => disk[self.bytes(blocks)].copy_from_slice(data),
            IoCommand::Compare(blocks) if disk[self.bytes(blocks)] != *data => return Err(Status::CompareFailure),
            IoCommand::Compare(_) => {}
            IoCommand::WriteZeroes { blocks, .. } => disk[self.bytes(blocks)].fill(0),
            IoCommand::Flush => self.flushes.set(self.flushes.get() + 1),
            IoCommand::DatasetManagement { ranges, .. } => {
                for range in parse_ranges(data, ranges, &self.namespace())? {
                    disk[self.bytes(Blocks { start: range.start, count: range.blocks })].fill(0);
                }
            }
        }
        Ok(Vec::new())
    }
}

struct Output<'a>(&'a TcpStream);

impl HeaderSink for Output<'_> {
    fn push(&mut self, bytes: &[u8]) {
        self.0.push_copy(bytes);
    }
}

/// A command whose data may still be coming.
struct Pending {
    slot: Slot,
    entry: Submission,
    transfer: Transfer,
    data: Vec<u8>,
}

/// One connection.
struct Serving {
    fake: Rc<Fake>,
    stream: TcpStream,
    connection: Connection,
    /// Controller and queue.
    queue: Option<(u16, u16)>,
    pending: BTreeMap<usize, Pending>,
}

async fn serve(fake: Rc<Fake>, stream: TcpStream) {
    let limits = Limits {
        admin_capsule_data: 8192,
        io_capsule_data: CAPSULE,
        host_data: 64 << 10,
        transfer: TRANSFER,
        digests: Digests { header: true, data: true },
    };
    let connection = Connection::new(limits);
    let mut serving = Serving { fake, stream, connection, queue: None, pending: BTreeMap::new() };
    while let Ok(chunk) = serving.stream.receive().await {
        if chunk.is_empty() || !serving.take_in(&chunk) {
            break;
        }
        serving.stream.flush();
    }
    serving.stream.close();
}

impl Serving {
    /// False when the connection is over.
    fn take_in(&mut self, mut input: &[u8]) -> bool {
        loop {
            match self.connection.receive(&mut input) {
                Ok(None) => return true,
                Ok(Some(Event::Initialize)) => self.connection.accept(&mut Output(&self.stream)),
                Ok(Some(Event::Command { slot, entry, transfer: Ok(transfer) })) => self.begin(slot, entry, transfer),
                Ok(Some(Event::Command { slot, transfer: Err(status), .. })) => self.respond(slot, status.into()),
                Ok(Some(Event::Payload { slot, bytes, .. })) => {
                    self.pending.get_mut(&slot.index()).expect("in flight").data.extend_from_slice(bytes);
                }
                Ok(Some(Event::PayloadEnd { slot, result })) => {
                    let pending = self.pending.remove(&slot.index()).expect("in flight");
                    match result {
                        Ok(()) if !self.execute(pending) => return false,
                        Ok(()) => {}
                        Err(status) => self.respond(slot, status.into()),
                    }
                    continue;
                }
                Err(_) => return false,
            }
            // Commands without data are executed at once, too.
            let ready: Vec<_> =
                self.pending.iter().filter(|(_, pending)| pending.is_ready()).map(|(&at, _)| at).collect();
            for at in ready {
                let pending = self.pending.remove(&at).expect("just found");
                if !self.execute(pending) {
                    return false;
                }
            }
        }
    }

    fn begin(&mut self, slot: Slot, entry: Submission, transfer: Transfer) {
        if matches!(transfer, Transfer::Solicited { .. }) {
            self.connection.request_data(slot, &mut Output(&self.stream));
        }
        self.pending.insert(slot.index(), Pending { slot, entry, transfer, data: Vec::new() });
    }

    fn execute(&mut self, pending: Pending) -> bool {
        match self.queue {
            None => self.connect(&pending),
            Some((controller, 0)) => self.admin(controller, &pending),
            Some(_) => return self.io(&pending),
        }
        true
    }

    fn connect(&mut self, pending: &Pending) {
        let fake = Rc::clone(&self.fake);
        if let Some(status) = fake.refuse.get() {
            return self.respond(pending.slot, status.into());
        }
        fake.connects.set(fake.connects.get() + 1);
        let command = ConnectCommand::parse(&pending.entry);
        let bytes: &[u8; CONNECT_DATA_SIZE] = pending.data[..].try_into().expect("connect data");
        let data = ConnectData::parse(bytes).expect("valid names");
        let mut controllers = fake.controllers.borrow_mut();
        let result = if command.queue_id == 0 {
            let id = fake.connects.get() as u16;
            let limits = IdentifyLimits { transfer: TRANSFER, io_capsule_data: CAPSULE };
            Controller::connect(id, ControllerType::Io, limits, &command, &data, 0).map(|(made, queue)| {
                controllers.insert(id, made);
                (id, queue)
            })
        } else {
            match controllers.get_mut(&data.controller_id) {
                Some(found) => found.connect_queue(&command, &data).map(|queue| (data.controller_id, queue)),
                None => Err(Status::ConnectInvalidParameters.into()),
            }
        };
        let completion = match result {
            Ok((id, queue)) => {
                self.queue = Some((id, queue.id));
                self.connection.connected(queue);
                Completion::with_result(id.into())
            }
            Err(completion) => completion,
        };
        self.connection.respond_to_connect(pending.slot, completion, &mut Output(&self.stream));
    }

    fn admin(&mut self, controller: u16, pending: &Pending) {
        let fake = Rc::clone(&self.fake);
        let Pending { slot, entry, transfer, .. } = pending;
        if entry.opcode() == opcode::KEEP_ALIVE {
            fake.keep_alives.set(fake.keep_alives.get() + 1);
            if fake.deaf.get() {
                return;
            }
        }
        let mut subsystem = Subsystem::new(NQN.into(), "serial".into(), "Fake".into(), "1".into());
        subsystem.attach(1, fake.namespace());
        let service = Service::Nvm { subsystem: &subsystem, health: &Health::default() };
        let command = AdminCommand { slot: *slot, entry, transfer: *transfer };
        let mut controllers = fake.controllers.borrow_mut();
        let Some(controller) = controllers.get_mut(&controller) else { return };
        match controller.execute(&command, &service, 0) {
            Outcome::Complete(completion) => self.respond(*slot, completion),
            Outcome::Data { bytes, result } => self.send(*slot, &bytes, Completion::with_result(result)),
            Outcome::Held => {}
        }
    }

    fn io(&mut self, pending: &Pending) -> bool {
        let manner = self.fake.manner.borrow().clone();
        let status = match manner {
            Manner::Silent => return true,
            Manner::Raw(bytes) => {
                self.stream.push_copy(&bytes);
                return true;
            }
            Manner::Status(status) => Err(status),
            _ => Ok(()),
        };
        let namespace = self.fake.namespace();
        let result = status
            .and_then(|()| IoCommand::parse(&pending.entry, pending.transfer, &namespace, TRANSFER))
            .and_then(|command| self.fake.perform(command, &pending.data));
        match result {
            Ok(_) if matches!(manner, Manner::Hangup) && pending.entry.opcode() == opcode::WRITE => return false,
            Ok(data) => self.send(pending.slot, &data, Completion::SUCCESS),
            Err(status) => self.respond(pending.slot, status.into()),
        }
        true
    }

    fn send(&mut self, slot: Slot, data: &[u8], completion: Completion) {
        let manner = if self.queue.is_some_and(|queue| queue.1 > 0) {
            self.fake.manner.borrow().clone()
        } else {
            Manner::Proper
        };
        let mut done = false;
        if !data.is_empty() {
            let length = data.len() - usize::from(matches!(manner, Manner::ShortReads));
            done = self.connection.write_data_header(slot, length as u32, &mut Output(&self.stream));
            let mut sent = data[..length].to_vec();
            sent[length / 2] ^= u8::from(matches!(manner, Manner::FlippedBits));
            self.stream.push(Slice::from(&sent[..]));
            self.connection.write_data_digest([&data[..length]], &mut Output(&self.stream));
        }
        if !done {
            self.respond(slot, completion);
        }
    }

    fn respond(&mut self, slot: Slot, completion: Completion) {
        self.connection.respond(slot, completion, &mut Output(&self.stream));
    }
}

impl Pending {
    fn is_ready(&self) -> bool {
        matches!(self.transfer, Transfer::None | Transfer::ToHost { .. })
    }
}
