//! Everything a simulated world consists of but the reactors' own tasks: machines, disks, wires and what is to come.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use slab::Slab;

use super::disk::{Disk, Request, Want};
use super::files::Files;
use super::image::Change;
use super::network::{EndId, Network};
use super::queue::{Event, Queue};
use super::random::{Random, nanoseconds};
use super::trace::{Trace, hash_bytes};
use crate::core::ECANCELED;
use crate::disk::DiskOptions;
use crate::driver::{Completion, OpenDisk, Operation, OperationId, Output, ResourceId};

/// How many operations a reactor may submit in one turn: the size of its submission queue.
const SUBMISSIONS: usize = 256;

/// Wall clocks of new worlds start at the beginning of 2026, in seconds since the Unix epoch.
const WALL_CLOCK_START: i128 = 1_767_225_600;

/// One world, without the reactors' tasks. Nothing here calls back into a reactor.
#[derive(Debug)]
pub(crate) struct State {
    /// Nanoseconds since the world began.
    pub(crate) now: u64,
    pub(crate) random: Random,
    pub(crate) queue: Queue,
    pub(crate) trace: Trace,
    pub(crate) nodes: Vec<Node>,
    pub(crate) reactors: Vec<Reactor>,
    pub(crate) disks: Vec<Disk>,
    disk_names: BTreeMap<(usize, PathBuf), usize>,
    pub(crate) network: Network,
    /// Detached sockets that were dropped before a reactor took them in.
    pub(crate) abandoned: Arc<Mutex<Vec<EndId>>>,
}

/// One machine.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) address: IpAddr,
    /// Whether it has power. Without, it answers nothing, not even with a reset.
    pub(crate) on: bool,
    /// Whether its process is stopped (SIGSTOP). The kernel goes on.
    pub(crate) paused: bool,
    boot_id: [u8; 16],
    /// How far its monotonic clock is from the world's, in nanoseconds.
    clock_offset: u64,
    /// How far its wall clock is from the world's, in nanoseconds.
    pub(crate) wall_offset: i128,
    pub(crate) files: Files,
    pub(crate) next_port: u16,
}

/// What the kernel of a machine keeps for one reactor.
#[derive(Debug)]
pub(crate) struct Reactor {
    pub(crate) node: usize,
    pub(crate) alive: bool,
    /// Which of its turn events is the valid one, and its time.
    plan: u64,
    planned_at: Option<u64>,
    /// A turn was due while the process was stopped.
    held: bool,
    ready: Vec<Completion>,
    operations: BTreeMap<OperationId, Flight>,
    next_serial: u64,
    submitted: usize,
    pub(crate) resources: Slab<Resource>,
    /// Sockets that have something for a receive in flight.
    pub(crate) readable: BTreeSet<EndId>,
    random: Random,
}

/// What a handle of a driver stands for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Resource {
    Disk {
        disk: usize,
        read_only: bool,
        /// Closed by its user; it goes with its last operation.
        closing: bool,
    },
    Socket(EndId),
    Listener(u64),
}

/// An operation on its way.
#[derive(Debug)]
struct Flight {
    serial: u64,
    operation: Operation,
    work: Work,
}

/// Who works on an operation.
#[derive(Debug)]
pub(crate) enum Work {
    Disk(usize, Request),
    Files,
    Receive(EndId),
    Send(EndId),
    Accept(u64),
    Connect(u64),
    /// Refused at once; the completion says why.
    Refused(i32),
}

impl State {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            now: 0,
            random: Random::new(seed),
            queue: Queue::default(),
            trace: Trace::new(seed),
            nodes: Vec::new(),
            reactors: Vec::new(),
            disks: Vec::new(),
            disk_names: BTreeMap::new(),
            network: Network::default(),
            abandoned: Arc::default(),
        }
    }

    /// Adds a machine that is switched on and runs nothing.
    pub(crate) fn add_node(&mut self, address: IpAddr) -> usize {
        assert!(self.nodes.iter().all(|node| node.address != address), "two nodes with the address {address}");
        self.nodes.push(Node {
            address,
            on: true,
            paused: false,
            boot_id: [0; 16],
            clock_offset: 0,
            wall_offset: 0,
            files: Files::default(),
            next_port: 0,
        });
        let node = self.nodes.len() - 1;
        self.start_machine(node);
        node
    }

    /// What each boot of a machine changes.
    fn start_machine(&mut self, node: usize) {
        let boot_id = u128::from(self.random.next_u64()) << 64 | u128::from(self.random.next_u64());
        // Monotonic clocks of different boots have nothing to do with each other.
        let clock_offset = self.random.below(nanoseconds(Duration::from_secs(1 << 20)));
        let node = &mut self.nodes[node];
        (node.on, node.boot_id, node.clock_offset) = (true, boot_id.to_le_bytes(), clock_offset);
    }

    /// Switches a machine on, if it is off.
    pub(crate) fn power_on(&mut self, node: usize) {
        if self.nodes[node].on {
            return;
        }
        self.start_machine(node);
        self.trace.event(self.now, "power on, node", [node as u64, 0, 0]);
        self.kick_links_of(node);
    }

    pub(crate) fn add_reactor(&mut self, node: usize) -> usize {
        self.power_on(node);
        self.reactors.push(Reactor {
            node,
            alive: true,
            plan: 0,
            planned_at: None,
            held: false,
            ready: Vec::new(),
            operations: BTreeMap::new(),
            next_serial: 0,
            submitted: 0,
            resources: Slab::new(),
            readable: BTreeSet::new(),
            random: self.random.fork(),
        });
        let reactor = self.reactors.len() - 1;
        self.trace.event(self.now, "start reactor, node", [reactor as u64, node as u64, 0]);
        self.wake(reactor);
        reactor
    }

    /// Adds an event that concerns one node to the trace.
    pub(crate) fn note(&mut self, name: &'static str, node: usize) {
        self.trace.event(self.now, name, [node as u64, 0, 0]);
    }

    /// The reactors that run on a node, oldest first.
    pub(crate) fn reactors_of(&self, node: usize) -> Vec<usize> {
        let alive = self.reactors.iter().enumerate().filter(|(_, reactor)| reactor.alive && reactor.node == node);
        alive.map(|(index, _)| index).collect()
    }

    /// Ends a node's process as far as the machine sees it: the reactors' tasks are the caller's to drop.
    pub(crate) fn end_process(&mut self, node: usize, power_cut: bool) {
        let name = if power_cut { "power cut, node" } else { "kill, node" };
        self.trace.event(self.now, name, [node as u64, 0, 0]);
        let mut requests: BTreeMap<usize, Vec<Request>> = BTreeMap::new();
        for reactor in self.reactors_of(node) {
            for flight in self.end_reactor(reactor) {
                match (flight.work, flight.operation) {
                    (Work::Disk(disk, request), _) => requests.entry(disk).or_default().push(request),
                    (Work::Files, Operation::ReplaceFile { path, content }) => {
                        self.nodes[node].files.put_by_chance(&path, Some(content), &mut self.random);
                    }
                    (Work::Files, Operation::RemoveFile { path }) => {
                        self.nodes[node].files.put_by_chance(&path, None, &mut self.random);
                    }
                    _ => {}
                }
            }
        }
        self.end_network_of(node, power_cut);
        let disks: Vec<usize> =
            self.disk_names.iter().filter(|(key, _)| key.0 == node).map(|(_, disk)| *disk).collect();
        for disk in disks {
            let in_flight = requests.remove(&disk).unwrap_or_default();
            if power_cut {
                self.disks[disk].power_cut(in_flight, &mut self.random);
            } else {
                self.disks[disk].kill(in_flight, &mut self.random);
            }
        }
        self.nodes[node].paused = false;
        if power_cut {
            self.nodes[node].files.power_cut(&mut self.random);
            self.nodes[node].on = false;
        }
    }

    fn end_reactor(&mut self, reactor: usize) -> Vec<Flight> {
        let reactor = &mut self.reactors[reactor];
        reactor.alive = false;
        reactor.ready = Vec::new();
        reactor.resources = Slab::new();
        reactor.readable = BTreeSet::new();
        std::mem::take(&mut reactor.operations).into_values().collect()
    }

    pub(crate) fn resume(&mut self, node: usize) {
        self.nodes[node].paused = false;
        for reactor in self.reactors_of(node) {
            if std::mem::take(&mut self.reactors[reactor].held) {
                self.wake(reactor);
            }
        }
    }

    /// A reactor's monotonic time, in nanoseconds.
    pub(crate) fn clock(&self, reactor: usize) -> u64 {
        self.now + self.nodes[self.reactors[reactor].node].clock_offset
    }

    pub(crate) fn wall_clock(&self, reactor: usize) -> Duration {
        let node = &self.nodes[self.reactors[reactor].node];
        let nanoseconds = WALL_CLOCK_START * 1_000_000_000 + i128::from(self.now) + node.wall_offset;
        Duration::from_nanos(u64::try_from(nanoseconds.max(0)).unwrap_or(u64::MAX))
    }

    pub(crate) fn boot_id(&self, reactor: usize) -> [u8; 16] {
        self.nodes[self.reactors[reactor].node].boot_id
    }

    pub(crate) fn random_of(&mut self, reactor: usize) -> u64 {
        self.reactors[reactor].random.next_u64()
    }

    /// Plans a turn as soon as a reactor can wake.
    pub(crate) fn wake(&mut self, reactor: usize) {
        let latency = 500 + self.random.below(5_000);
        self.plan_turn(reactor, self.now + latency);
    }

    /// Plans the turn after one that left work: this long is what the turn itself took.
    pub(crate) fn go_on(&mut self, reactor: usize) {
        let cost = 200 + self.random.below(2_000);
        self.plan_turn(reactor, self.now + cost);
    }

    /// Plans a turn at a time of the reactor's own clock.
    pub(crate) fn plan_turn_at_clock(&mut self, reactor: usize, at: u64) {
        let offset = self.nodes[self.reactors[reactor].node].clock_offset;
        self.plan_turn(reactor, at.saturating_sub(offset).max(self.now));
    }

    fn plan_turn(&mut self, index: usize, at: u64) {
        let reactor = &mut self.reactors[index];
        if !reactor.alive || reactor.planned_at.is_some_and(|planned| planned <= at) {
            return;
        }
        reactor.plan += 1;
        reactor.planned_at = Some(at);
        self.queue.push(at, Event::Turn { reactor: index, plan: reactor.plan });
    }

    /// Lets the first event happen, if it is due by `limit`. Says which reactor is to run now, if one is.
    pub(crate) fn advance(&mut self, limit: u64) -> Option<Option<usize>> {
        let (at, event) = self.queue.pop(limit)?;
        self.now = at;
        match event {
            Event::Turn { reactor, plan } => return Some(self.begin_turn(reactor, plan)),
            Event::Finish { reactor, operation, serial } => self.finish(reactor, operation, serial),
            Event::Network(event) => self.network_event(event),
        }
        Some(None)
    }

    fn begin_turn(&mut self, index: usize, plan: u64) -> Option<usize> {
        let reactor = &mut self.reactors[index];
        if !reactor.alive || reactor.plan != plan {
            return None;
        }
        reactor.planned_at = None;
        if self.nodes[reactor.node].paused {
            reactor.held = true;
            return None;
        }
        Some(index)
    }

    /// Hands a reactor what completed.
    pub(crate) fn take_completions(&mut self, index: usize, completions: &mut Vec<Completion>) {
        self.deliver_received(index);
        let reactor = &mut self.reactors[index];
        reactor.submitted = 0;
        self.trace.event(self.now, "turn of reactor, completions", [index as u64, reactor.ready.len() as u64, 0]);
        completions.append(&mut reactor.ready);
    }

    /// Ends an operation.
    pub(crate) fn complete(&mut self, index: usize, id: OperationId, result: io::Result<Output>) {
        if let Some(flight) = self.reactors[index].operations.remove(&id) {
            let operation = Some(flight.operation);
            self.reactors[index].ready.push(Completion { id, result, operation });
            self.wake(index);
        }
    }

    /// Adds a result of an operation that goes on.
    pub(crate) fn complete_part(&mut self, index: usize, id: OperationId, output: Output) {
        self.reactors[index].ready.push(Completion { id, result: Ok(output), operation: None });
    }

    pub(crate) fn operation(&self, index: usize, id: OperationId) -> Option<&Operation> {
        self.reactors[index].operations.get(&id).map(|flight| &flight.operation)
    }

    #[allow(clippy::result_large_err, reason = "the seam's contract: a full queue hands the operation back, unboxed")]
    pub(crate) fn submit(&mut self, index: usize, id: OperationId, operation: Operation) -> Result<(), Operation> {
        if !self.reactors[index].alive {
            // Its tasks are being dropped and start things in their last moment: nothing comes of it.
            return Ok(());
        }
        if self.reactors[index].submitted >= SUBMISSIONS || self.random.one_in(512) {
            return Err(operation);
        }
        self.reactors[index].submitted += 1;
        let work = self.begin(index, id, &operation);
        let delay = self.delay(&work);
        let reactor = &mut self.reactors[index];
        reactor.next_serial += 1;
        let serial = reactor.next_serial;
        reactor.operations.insert(id, Flight { serial, operation, work });
        if let Some(delay) = delay {
            self.queue.push(self.now + delay, Event::Finish { reactor: index, operation: id, serial });
        }
        Ok(())
    }

    fn begin(&mut self, index: usize, id: OperationId, operation: &Operation) -> Work {
        match operation {
            Operation::DiskRead { disk, offset, buffer } => {
                self.begin_disk(index, *disk, Want::Read { offset: *offset, length: buffer.len() as u64 })
            }
            Operation::DiskWrite { disk, offset, data } => {
                let data: Box<[u8]> = data.iter().flat_map(|slice| slice.iter().copied()).collect();
                let change = Change { offset: *offset, length: data.len() as u64, data: Some(data) };
                self.begin_disk(index, *disk, Want::Change(Arc::new(change)))
            }
            Operation::DiskSync { disk } => self.begin_disk(index, *disk, Want::Sync),
            Operation::DiskDiscard { disk, offset, length } | Operation::DiskZero { disk, offset, length } => {
                let change = Change { offset: *offset, length: *length, data: None };
                self.begin_disk(index, *disk, Want::Change(Arc::new(change)))
            }
            Operation::Accept { listener } => self.begin_accept(index, id, *listener),
            Operation::Connect { address } => self.begin_connect(index, id, *address),
            Operation::Receive { socket } => self.begin_receive(index, id, *socket),
            Operation::Send { socket, .. } => self.begin_send(index, id, *socket),
            Operation::ReadFile { .. }
            | Operation::ReplaceFile { .. }
            | Operation::RemoveFile { .. }
            | Operation::ListFolder { .. } => Work::Files,
        }
    }

    /// How long work takes that ends with an [`Event::Finish`].
    fn delay(&mut self, work: &Work) -> Option<u64> {
        match work {
            Work::Disk(_, request) => request.delay.map(nanoseconds),
            Work::Files => Some(200_000 + self.random.below(5_000_000)),
            Work::Refused(_) => Some(1_000),
            _ => None,
        }
    }

    fn begin_disk(&mut self, index: usize, resource: ResourceId, want: Want) -> Work {
        let Resource::Disk { disk, read_only, .. } = self.resource(index, resource) else {
            unreachable!("a disk operation names a disk")
        };
        if read_only && matches!(want, Want::Change(_)) {
            return Work::Refused(EBADF);
        }
        let request = self.disks[disk].start(want, &mut self.random);
        Work::Disk(disk, request)
    }

    fn finish(&mut self, index: usize, id: OperationId, serial: u64) {
        let operations = &mut self.reactors[index].operations;
        if operations.get(&id).is_none_or(|flight| flight.serial != serial) {
            return;
        }
        let Some(Flight { mut operation, work, .. }) = operations.remove(&id) else { return };
        let result = match work {
            Work::Disk(disk, request) => self.finish_disk(disk, request, &mut operation),
            Work::Refused(code) => Err(io::Error::from_raw_os_error(code)),
            _ => self.finish_files(self.reactors[index].node, &operation),
        };
        let failed = u64::from(result.is_err());
        self.trace.event(self.now, operation_name(&operation), [index as u64, id as u64, failed]);
        let resource = disk_of(&operation);
        self.reactors[index].ready.push(Completion { id, result, operation: Some(operation) });
        self.wake(index);
        if let Some(resource) = resource {
            self.release_disk(index, resource);
        }
    }

    fn finish_disk(&mut self, disk: usize, request: Request, operation: &mut Operation) -> io::Result<Output> {
        let written = request.written_hash();
        let into: &mut [u8] = match operation {
            Operation::DiskRead { buffer, .. } => buffer,
            _ => &mut [],
        };
        let result = self.disks[disk].finish(request, into, &mut self.random);
        // Two runs that differ anywhere will differ in what they write or read.
        let seen = written ^ hash_bytes(into);
        self.trace.event(self.now, "disk, hash", [disk as u64, seen, 0]);
        result.map(|()| Output::Done)
    }

    fn finish_files(&mut self, node: usize, operation: &Operation) -> io::Result<Output> {
        if self.nodes[node].files.fails(&mut self.random) {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        let files = &mut self.nodes[node].files;
        match operation {
            Operation::ReadFile { path } => files.read(path).map(Output::Content),
            Operation::ReplaceFile { path, content } => {
                files.put(path, Some(content.clone()));
                Ok(Output::Done)
            }
            Operation::RemoveFile { path } => {
                files.put(path, None);
                Ok(Output::Done)
            }
            Operation::ListFolder { path } => {
                let mut names = files.list(path);
                let disks = self.disk_names.keys().filter(|key| key.0 == node && key.1.parent() == Some(path));
                names.extend(disks.filter_map(|key| Some(key.1.file_name()?.to_string_lossy().into_owned())));
                names.sort();
                Ok(Output::Names(names))
            }
            other => unreachable!("{other:?} is not an operation on files"),
        }
    }

    pub(crate) fn cancel(&mut self, index: usize, id: OperationId) {
        let Some(flight) = self.reactors[index].operations.get(&id) else { return };
        match flight.work {
            Work::Receive(end) => self.cancel_receive(index, id, end),
            Work::Send(end) => self.cancel_send(index, id, end),
            Work::Accept(listener) => self.cancel_accept(index, id, listener),
            Work::Connect(connecting) => self.cancel_connect(index, id, connecting),
            Work::Disk(..) => self.cancel_disk(index, id),
            Work::Files | Work::Refused(_) => {}
        }
    }

    /// A kernel can call back what still waits, but not what its disk works on.
    fn cancel_disk(&mut self, index: usize, id: OperationId) {
        let waits = self.random.one_in(8);
        let resource = self.operation(index, id).and_then(disk_of);
        if let (true, Some(resource)) = (waits, resource) {
            self.cancelled(index, id);
            self.release_disk(index, resource);
        }
    }

    pub(crate) fn cancelled(&mut self, index: usize, id: OperationId) {
        self.complete(index, id, Err(io::Error::from_raw_os_error(ECANCELED)));
    }

    pub(crate) fn resource(&self, index: usize, resource: ResourceId) -> Resource {
        *self.reactors[index].resources.get(resource).expect("the front half names only what it has open")
    }

    pub(crate) fn close(&mut self, index: usize, resource: ResourceId) {
        if !self.reactors[index].alive {
            return;
        }
        match self.resource(index, resource) {
            Resource::Disk { .. } => {
                if let Resource::Disk { closing, .. } = &mut self.reactors[index].resources[resource] {
                    *closing = true;
                }
                self.release_disk(index, resource);
            }
            Resource::Socket(end) => {
                self.reactors[index].resources.remove(resource);
                self.close_socket(end);
            }
            Resource::Listener(listener) => {
                self.reactors[index].resources.remove(resource);
                self.close_listener(listener, false);
            }
        }
    }

    /// Lets go of a disk that was closed, once nothing is in flight on it.
    fn release_disk(&mut self, index: usize, resource: ResourceId) {
        let Some(Resource::Disk { disk, closing: true, .. }) = self.reactors[index].resources.get(resource).copied()
        else {
            return;
        };
        let mut flights = self.reactors[index].operations.values();
        if flights.all(|flight| disk_of(&flight.operation) != Some(resource)) {
            self.reactors[index].resources.remove(resource);
            self.disks[disk].unlock();
        }
    }

    pub(crate) fn open_disk(&mut self, index: usize, path: &Path, options: &DiskOptions) -> io::Result<OpenDisk> {
        let node = self.reactors[index].node;
        let disk = match (self.disk(node, path), options.create) {
            (Some(disk), _) => disk,
            (None, Some(size)) => self.add_disk(node, path, Disk::new(size, DEFAULT_ALIGNMENT)),
            (None, None) => return Err(io::ErrorKind::NotFound.into()),
        };
        if !self.disks[disk].lock(index) {
            let text = format!("{} is in use", path.display());
            return Err(io::Error::new(io::ErrorKind::WouldBlock, text));
        }
        let resource = Resource::Disk { disk, read_only: options.read_only, closing: false };
        let id = self.reactors[index].resources.insert(resource);
        Ok(OpenDisk { id, size: self.disks[disk].size(), alignment: self.disks[disk].alignment() })
    }

    pub(crate) fn resize_disk(&mut self, index: usize, resource: ResourceId, size: u64) -> io::Result<()> {
        let Resource::Disk { disk, read_only, .. } = self.resource(index, resource) else {
            unreachable!("a resize names a disk")
        };
        if read_only {
            return Err(io::Error::from_raw_os_error(EBADF));
        }
        self.disks[disk].resize(size);
        Ok(())
    }

    /// The disk with this name.
    pub(crate) fn disk(&self, node: usize, path: &Path) -> Option<usize> {
        self.disk_names.get(&(node, path.to_owned())).copied()
    }

    /// Adds a disk, or puts one in the place of another.
    pub(crate) fn add_disk(&mut self, node: usize, path: &Path, disk: Disk) -> usize {
        self.disks.push(disk);
        let index = self.disks.len() - 1;
        self.disk_names.insert((node, path.to_owned()), index);
        index
    }

    /// Starts again what hung on a disk: its faults were lifted.
    pub(crate) fn unhang(&mut self, disk: usize) {
        for index in 0..self.reactors.len() {
            let mut due = Vec::new();
            for (id, flight) in &mut self.reactors[index].operations {
                if let Work::Disk(on, request) = &mut flight.work
                    && *on == disk
                    && request.delay.is_none()
                {
                    request.delay = Some(Duration::ZERO);
                    due.push((*id, flight.serial));
                }
            }
            for (operation, serial) in due {
                let delay = self.random.below(1_000_000);
                self.queue.push(self.now + delay, Event::Finish { reactor: index, operation, serial });
            }
        }
    }
}

/// The alignment of disks that are made by opening them, in bytes: that of common drives.
const DEFAULT_ALIGNMENT: u32 = 512;

/// Linux's EIO and EBADF.
const EIO: i32 = 5;
const EBADF: i32 = 9;

fn disk_of(operation: &Operation) -> Option<ResourceId> {
    match operation {
        Operation::DiskRead { disk, .. }
        | Operation::DiskWrite { disk, .. }
        | Operation::DiskSync { disk }
        | Operation::DiskDiscard { disk, .. }
        | Operation::DiskZero { disk, .. } => Some(*disk),
        _ => None,
    }
}

fn operation_name(operation: &Operation) -> &'static str {
    match operation {
        Operation::DiskRead { .. } => "read done: reactor, operation, failed",
        Operation::DiskWrite { .. } => "write done: reactor, operation, failed",
        Operation::DiskSync { .. } => "sync done: reactor, operation, failed",
        Operation::DiskDiscard { .. } => "discard done: reactor, operation, failed",
        Operation::DiskZero { .. } => "zero done: reactor, operation, failed",
        Operation::Accept { .. } => "accept done: reactor, operation, failed",
        Operation::Connect { .. } => "connect done: reactor, operation, failed",
        Operation::Receive { .. } => "receive done: reactor, operation, failed",
        Operation::Send { .. } => "send done: reactor, operation, failed",
        Operation::ReadFile { .. } => "file read: reactor, operation, failed",
        Operation::ReplaceFile { .. } => "file replaced: reactor, operation, failed",
        Operation::RemoveFile { .. } => "file removed: reactor, operation, failed",
        Operation::ListFolder { .. } => "folder listed: reactor, operation, failed",
    }
}
