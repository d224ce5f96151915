//! Two endpoints and what lies between them: a story's stage.

use std::collections::BTreeMap;

use nvmf_target_protocol::host::command::{Command, Data};
use nvmf_target_protocol::host::connection as host;
use nvmf_target_protocol::target::command::{Blocks, IoCommand, parse_ranges};
use nvmf_target_protocol::target::connection::{self as target, Transfer};
use nvmf_target_protocol::target::controller::{AdminCommand, Controller, IdentifyLimits, Outcome, Service};
use nvmf_target_protocol::target::subsystem::{BlockSize, Namespace, Subsystem};
use nvmf_target_protocol::wire::fabrics::{CONNECT, CONNECT_DATA_SIZE, CONTROLLER_ANY, ConnectCommand, ConnectData};
use nvmf_target_protocol::wire::identify::ControllerType;
use nvmf_target_protocol::wire::log_page::{AnaState, Health};
use nvmf_target_protocol::wire::property::{self, Configuration};
use nvmf_target_protocol::wire::{Completion, Status, Submission};

pub(crate) const NQN: &str = "nqn.2026-01.io.ashlar:pair";
pub(crate) const HOST_NQN: &str = "nqn.2014-08.org.nvmexpress:uuid:host";
pub(crate) const SECOND: u64 = 1_000_000_000;
pub(crate) const BLOCK: u32 = 4096;
const BLOCKS: u64 = 1024;

pub(crate) fn namespace() -> Namespace {
    Namespace {
        blocks: BLOCKS,
        block_size: BlockSize::B4096,
        nguid: [0x11; 16],
        uuid: [0x22; 16],
        used_blocks: 7,
        atomic_blocks: 1,
        ana_state: AnaState::Optimized,
    }
}

/// The subsystem, its one disk and its controllers; and the clock.
pub(crate) struct World {
    pub(crate) subsystem: Subsystem,
    pub(crate) health: Health,
    pub(crate) disk: Vec<u8>,
    pub(crate) controllers: BTreeMap<u16, Controller>,
    pub(crate) now_ns: u64,
    pub(crate) flushes: u32,
}

impl World {
    pub(crate) fn new() -> Self {
        let mut subsystem =
            Subsystem::new(NQN.into(), "0123456789abcdef0123".into(), "Ashlar Volume".into(), "0.1.0".into());
        subsystem.attach(1, namespace());
        Self {
            subsystem,
            health: Health::default(),
            disk: vec![0; BLOCKS as usize * BLOCK as usize],
            controllers: BTreeMap::new(),
            now_ns: 0,
            flushes: 0,
        }
    }

    fn bytes(&mut self, blocks: Blocks) -> &mut [u8] {
        let start = blocks.start as usize * BLOCK as usize;
        &mut self.disk[start..start + blocks.count as usize * BLOCK as usize]
    }

    /// Executes an I/O command on the disk; what a read returns.
    fn perform(&mut self, command: IoCommand, data: &[u8]) -> Result<Vec<u8>, Status> {
        match command {
            IoCommand::Read(blocks) => return Ok(self.bytes(blocks).to_vec()),
            IoCommand::Write { blocks, fua } => {
                self.bytes(blocks).copy_from_slice(data);
                self.flushes += u32::from(fua);
            }
            IoCommand::Compare(blocks) if self.bytes(blocks) != data => return Err(Status::CompareFailure),
            IoCommand::Compare(_) => {}
            IoCommand::WriteZeroes { blocks, .. } => self.bytes(blocks).fill(0),
            IoCommand::Flush => self.flushes += 1,
            IoCommand::DatasetManagement { ranges, deallocate } => {
                let ranges: Vec<_> = parse_ranges(data, ranges, &namespace())?.collect();
                for range in ranges.into_iter().filter(|_| deallocate) {
                    self.bytes(Blocks { start: range.start, count: range.blocks }).fill(0);
                }
            }
        }
        Ok(Vec::new())
    }
}

/// A command the target is busy with.
struct Pending {
    slot: target::Slot,
    entry: Submission,
    transfer: Transfer,
    data: Vec<u8>,
}

/// The target's driver in its simplest form.
pub(crate) struct TargetEnd {
    pub(crate) connection: target::Connection,
    pub(crate) out: Vec<u8>,
    /// Controller and queue, once connected.
    pub(crate) queue: Option<(u16, u16)>,
    pending: BTreeMap<usize, Pending>,
    transfer_max: u32,
    /// Data at the beginning of every second piece of the stream goes to its place by itself.
    places: bool,
}

impl TargetEnd {
    pub(crate) fn new(limits: target::Limits) -> Self {
        Self {
            connection: target::Connection::new(limits),
            out: Vec::new(),
            queue: None,
            pending: BTreeMap::new(),
            transfer_max: limits.transfer,
            places: false,
        }
    }

    /// Takes data that is awaited without the state machine, as a driver does that receives it into its buffer.
    fn place(&mut self, input: &mut &[u8]) {
        let Some(awaited) = self.connection.awaited() else { return };
        let (data, rest) = input.split_at(input.len().min(awaited.length as usize));
        *input = rest;
        let pending = self.pending.get_mut(&awaited.slot.index()).expect("data of a command in flight");
        assert_eq!(pending.data.len(), awaited.offset as usize, "data comes in order");
        pending.data.extend_from_slice(data);
        self.connection.placed(data);
    }

    pub(crate) fn receive(&mut self, mut input: &[u8], world: &mut World) -> Result<(), target::Fault> {
        self.places = !self.places;
        if self.places {
            self.place(&mut input);
        }
        while let Some(event) = self.connection.receive(&mut input)? {
            match event {
                target::Event::Initialize => self.connection.accept(&mut self.out),
                target::Event::Command { slot, entry, transfer } => self.command(slot, entry, transfer, world),
                target::Event::Payload { slot, offset, bytes } => {
                    let pending = self.pending.get_mut(&slot.index()).expect("payload of a command in flight");
                    assert_eq!(pending.data.len(), offset as usize, "payload comes in order");
                    pending.data.extend_from_slice(bytes);
                }
                target::Event::PayloadEnd { slot, result } => {
                    let pending = self.pending.remove(&slot.index()).expect("a command in flight");
                    match result {
                        Ok(()) => self.execute(pending, world),
                        Err(status) => self.connection.respond(slot, status.into(), &mut self.out),
                    }
                }
            }
        }
        assert!(input.is_empty(), "None means that the input is used up");
        Ok(())
    }

    fn command(
        &mut self,
        slot: target::Slot,
        entry: Submission,
        transfer: Result<Transfer, Status>,
        world: &mut World,
    ) {
        let transfer = match transfer {
            Ok(transfer) => transfer,
            Err(status) => return self.connection.respond(slot, status.into(), &mut self.out),
        };
        let pending = Pending { slot, entry, transfer, data: Vec::new() };
        match transfer {
            Transfer::None | Transfer::ToHost { .. } => self.execute(pending, world),
            Transfer::InCapsule { .. } => {
                self.pending.insert(slot.index(), pending);
            }
            Transfer::Solicited { .. } => {
                self.pending.insert(slot.index(), pending);
                self.connection.request_data(slot, &mut self.out);
            }
        }
    }

    fn execute(&mut self, pending: Pending, world: &mut World) {
        match self.queue {
            None => self.connect(&pending, world),
            Some((controller, 0)) => self.admin(controller, &pending, world),
            Some((controller, _)) => self.io(controller, &pending, world),
        }
    }

    fn connect(&mut self, pending: &Pending, world: &mut World) {
        if pending.entry.fabrics_type() != CONNECT || pending.data.len() != CONNECT_DATA_SIZE {
            let status = Status::CommandSequenceError.into();
            return self.connection.respond(pending.slot, status, &mut self.out);
        }
        let command = ConnectCommand::parse(&pending.entry);
        let data = ConnectData::parse(pending.data.as_slice().try_into().unwrap()).expect("the pair's names are valid");
        let limits = IdentifyLimits { transfer: self.transfer_max, io_capsule_data: 16 << 10 };
        let result = if command.queue_id == 0 {
            let id = world.controllers.keys().last().map_or(1, |last| last + 1);
            Controller::connect(id, ControllerType::Io, limits, &command, &data, world.now_ns).map(|(made, queue)| {
                world.controllers.insert(id, made);
                (id, queue)
            })
        } else {
            let controller = world.controllers.get_mut(&data.controller_id).expect("the pair connects to what exists");
            controller.connect_queue(&command, &data).map(|queue| (data.controller_id, queue))
        };
        let completion = match result {
            Ok((id, queue)) => {
                self.queue = Some((id, queue.id));
                self.connection.connected(queue);
                Completion::with_result(u64::from(id))
            }
            Err(completion) => completion,
        };
        self.connection.respond_to_connect(pending.slot, completion, &mut self.out);
    }

    fn admin(&mut self, controller: u16, pending: &Pending, world: &mut World) {
        let Pending { slot, entry, transfer, .. } = pending;
        let controller = world.controllers.get_mut(&controller).expect("a queue belongs to a controller");
        let service = Service::Nvm { subsystem: &world.subsystem, health: &world.health };
        let command = AdminCommand { slot: *slot, entry, transfer: *transfer };
        match controller.execute(&command, &service, world.now_ns) {
            Outcome::Complete(completion) => self.connection.respond(*slot, completion, &mut self.out),
            Outcome::Data { bytes, result } => self.send(*slot, &bytes, Completion::with_result(result)),
            Outcome::Held => {}
        }
        self.drain_events(world);
    }

    pub(crate) fn drain_events(&mut self, world: &mut World) {
        let Some((id, 0)) = self.queue else { return };
        let controller = world.controllers.get_mut(&id).expect("a queue belongs to a controller");
        while let Some((slot, completion)) = controller.next_completion() {
            self.connection.respond(slot, completion, &mut self.out);
        }
    }

    fn io(&mut self, controller: u16, pending: &Pending, world: &mut World) {
        let result = world
            .subsystem
            .namespace_for_io(pending.entry.namespace())
            .and_then(|namespace| IoCommand::parse(&pending.entry, pending.transfer, namespace, self.transfer_max))
            .and_then(|command| world.perform(command, &pending.data));
        match result {
            Ok(data) => self.send(pending.slot, &data, Completion::SUCCESS),
            Err(status) => {
                let controller = world.controllers.get_mut(&controller).expect("a queue belongs to a controller");
                controller.record_error(1, &pending.entry, status);
                self.connection.respond(pending.slot, status.into(), &mut self.out);
            }
        }
    }

    fn send(&mut self, slot: target::Slot, data: &[u8], completion: Completion) {
        let mut done = false;
        if !data.is_empty() {
            done = self.connection.write_data_header(slot, data.len() as u32, &mut self.out);
            self.out.extend_from_slice(data);
            self.connection.write_data_digest([data], &mut self.out);
        }
        if !done {
            self.connection.respond(slot, completion, &mut self.out);
        }
    }
}

/// What became of a command.
#[derive(Debug, PartialEq)]
pub(crate) struct Reply {
    pub(crate) completion: Completion,
    pub(crate) data: Vec<u8>,
    pub(crate) submission_head: u16,
}

impl Reply {
    pub(crate) fn status(&self) -> Status {
        self.completion.status
    }
}

/// The host's driver in its simplest form.
pub(crate) struct HostEnd {
    pub(crate) connection: host::Connection,
    pub(crate) out: Vec<u8>,
    pub(crate) initialized: bool,
    /// By slot: what a command sends, or what came for it.
    buffers: BTreeMap<usize, Vec<u8>>,
    pub(crate) replies: BTreeMap<host::Slot, Reply>,
}

impl HostEnd {
    fn new(options: host::Options) -> Self {
        let mut connection = host::Connection::new(options);
        let mut out = Vec::new();
        connection.initialize(&mut out);
        Self { connection, out, initialized: false, buffers: BTreeMap::new(), replies: BTreeMap::new() }
    }

    pub(crate) fn submit(&mut self, command: &Command, data: &[u8]) -> host::Slot {
        if let Data::Send(length) = command.data {
            assert_eq!(data.len(), length as usize, "a test sends what it says");
        }
        let submitted = self.connection.submit(command, &mut self.out).expect("room in the queue");
        if submitted.with_data {
            self.out.extend_from_slice(data);
            self.connection.write_data_digest([data], &mut self.out);
        }
        let buffer = if matches!(command.data, Data::Send(_)) { data.to_vec() } else { Vec::new() };
        self.buffers.insert(submitted.slot.index(), buffer);
        submitted.slot
    }

    fn receive(&mut self, mut input: &[u8]) -> Result<(), host::Fault> {
        while let Some(event) = self.connection.receive(&mut input)? {
            match event {
                host::Event::Initialized => self.initialized = true,
                host::Event::Data { slot, offset, bytes } => {
                    let buffer = self.buffers.get_mut(&slot.index()).expect("data of a command in flight");
                    assert_eq!(buffer.len(), offset as usize, "data comes in order");
                    buffer.extend_from_slice(bytes);
                }
                host::Event::DataRequested { slot } => self.send_requested(slot),
                host::Event::Completed { slot, completion, received, submission_head } => {
                    let data = self.buffers.remove(&slot.index()).expect("exactly one completion (I34)");
                    assert!(received == 0 || received as usize == data.len());
                    self.replies.insert(slot, Reply { completion, data, submission_head });
                }
            }
        }
        Ok(())
    }

    fn send_requested(&mut self, slot: host::Slot) {
        while let Some(range) = self.connection.write_data_header(slot, &mut self.out) {
            let data = &self.buffers[&slot.index()][range.start as usize..range.end as usize];
            self.out.extend_from_slice(data);
            self.connection.write_data_digest([data], &mut self.out);
        }
    }
}

/// One connection between a host and the world's target.
pub(crate) struct Pair {
    pub(crate) host: HostEnd,
    pub(crate) target: TargetEnd,
    /// Most bytes that arrive at once, either way.
    pub(crate) fragment: usize,
    /// Bytes that went to the host since the pair was made.
    pub(crate) seen_by_host: Vec<u8>,
}

/// What a pair runs with.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Setting {
    pub(crate) limits: target::Limits,
    pub(crate) options: host::Options,
    pub(crate) flow_control_disabled: bool,
    /// Most bytes that arrive at once; 0 for no limit.
    pub(crate) fragment: usize,
    pub(crate) keep_alive_ms: u32,
}

impl Pair {
    /// A connection after ICReq and ICResp.
    pub(crate) fn open(setting: Setting, world: &mut World) -> Self {
        let mut pair = Self {
            host: HostEnd::new(setting.options),
            target: TargetEnd::new(setting.limits),
            fragment: if setting.fragment == 0 { usize::MAX } else { setting.fragment },
            seen_by_host: Vec::new(),
        };
        pair.run(world);
        assert!(pair.host.initialized);
        pair
    }

    /// An admin queue of a new, enabled controller.
    pub(crate) fn admin(setting: Setting, world: &mut World) -> Self {
        let mut pair = Self::open(setting, world);
        let reply = pair.connect(0, CONTROLLER_ANY, 32, setting, world);
        assert_eq!(reply.status(), Status::Success);
        let enable = Command::set_property(property::CC, Configuration::enable(true).0);
        assert_eq!(pair.command(&enable, &[], world).status(), Status::Success);
        pair
    }

    /// I/O queue `queue_id` of controller 1.
    pub(crate) fn io(queue_id: u16, entries: u32, setting: Setting, world: &mut World) -> Self {
        let mut pair = Self::open(setting, world);
        let reply = pair.connect(queue_id, 1, entries, setting, world);
        assert_eq!(reply.status(), Status::Success, "{reply:?}");
        pair.host.connection.connected(entries as usize - 1, setting.limits.io_capsule_data);
        pair
    }

    pub(crate) fn connect(
        &mut self,
        queue_id: u16,
        controller_id: u16,
        queue_entries: u32,
        setting: Setting,
        world: &mut World,
    ) -> Reply {
        let connect = ConnectCommand {
            record_format: 0,
            queue_id,
            queue_entries,
            flow_control_disabled: setting.flow_control_disabled,
            keep_alive_ms: setting.keep_alive_ms,
        };
        let reply = self.command(&Command::connect(&connect), &connect_data(controller_id).encode(), world);
        if reply.status() == Status::Success {
            self.host.connection.connected(queue_entries as usize - 1, setting.limits.admin_capsule_data);
        }
        reply
    }

    /// Runs one command to its end.
    pub(crate) fn command(&mut self, command: &Command, data: &[u8], world: &mut World) -> Reply {
        let slot = self.host.submit(command, data);
        self.run(world);
        self.host.replies.remove(&slot).expect("the command completed")
    }

    /// Lets bytes flow until none are left.
    pub(crate) fn run(&mut self, world: &mut World) {
        while !self.host.out.is_empty() || !self.target.out.is_empty() {
            for chunk in std::mem::take(&mut self.host.out).chunks(self.fragment) {
                self.target.receive(chunk, world).expect("a host that keeps to the protocol");
            }
            let to_host = std::mem::take(&mut self.target.out);
            self.seen_by_host.extend_from_slice(&to_host);
            for chunk in to_host.chunks(self.fragment) {
                self.host.receive(chunk).expect("a target that keeps to the protocol");
            }
        }
    }
}

pub(crate) fn connect_data(controller_id: u16) -> ConnectData {
    ConnectData { host_id: [0x77; 16], controller_id, subsystem_nqn: NQN.into(), host_nqn: HOST_NQN.into() }
}

/// Bytes that differ everywhere and by `seed`.
pub(crate) fn pattern(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}
