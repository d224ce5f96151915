//! Everything a simulated world consists of but the reactors' own tasks: machines, disks, wires and what is to come.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use slab::Slab;

use super::clock::Clock;
use super::disk::{Disk, Request};
use super::errno::{EBADF, error};
use super::files::Files;
use super::network::{EndId, Network};
use super::queue::{Event, Queue, Turn};
use super::random::Random;
use super::trace::Trace;
use crate::disk::DiskOptions;
use crate::driver::{Completion, OpenDisk, Operation, OperationId, ResourceId};

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
    pub(super) disk_names: BTreeMap<(usize, PathBuf), usize>,
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
    clock: Clock,
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
    /// Its next turn.
    planned: Option<Turn>,
    /// A turn was due while the process was stopped.
    held: bool,
    pub(super) ready: Vec<Completion>,
    pub(super) operations: BTreeMap<OperationId, Flight>,
    pub(super) next_serial: u64,
    pub(super) submitted: usize,
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
pub(super) struct Flight {
    pub(super) serial: u64,
    pub(super) operation: Operation,
    pub(super) work: Work,
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
        let clock = Clock::start(&mut self.random);
        assert!(self.nodes.iter().all(|node| node.address != address), "two nodes with the address {address}");
        self.nodes.push(Node {
            address,
            on: true,
            paused: false,
            boot_id: [0; 16],
            clock,
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
        let clock = Clock::start(&mut self.random);
        let node = &mut self.nodes[node];
        (node.on, node.boot_id, node.clock) = (true, boot_id.to_le_bytes(), clock);
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
            planned: None,
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
        self.nodes[self.reactors[reactor].node].clock.show(self.now)
    }

    pub(crate) fn wall_clock(&self, reactor: usize) -> Duration {
        let node = &self.nodes[self.reactors[reactor].node];
        let now = i128::from(self.now) + i128::from(node.clock.gain(self.now));
        let nanoseconds = WALL_CLOCK_START * 1_000_000_000 + now + node.wall_offset;
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
        let when = self.nodes[self.reactors[reactor].node].clock.when(at);
        self.plan_turn(reactor, when.max(self.now));
    }

    fn plan_turn(&mut self, index: usize, at: u64) {
        let reactor = &mut self.reactors[index];
        if reactor.alive && reactor.planned.is_none_or(|(planned, ..)| planned > at) {
            reactor.planned = Some(self.queue.push_turn(at, index, reactor.planned));
        }
    }

    /// Lets the first event happen, if it is due by `limit`. Says which reactor is to run now, if one is.
    pub(crate) fn advance(&mut self, limit: u64) -> Option<Option<usize>> {
        let (at, event) = self.queue.pop(limit)?;
        self.now = at;
        match event {
            Event::Turn(reactor) => return Some(self.begin_turn(reactor)),
            Event::Finish { reactor, operation, serial } => self.finish(reactor, operation, serial),
            Event::Network(event) => self.network_event(event),
        }
        Some(None)
    }

    fn begin_turn(&mut self, index: usize) -> Option<usize> {
        let reactor = &mut self.reactors[index];
        reactor.planned = None;
        if !reactor.alive {
            return None;
        }
        if self.nodes[reactor.node].paused {
            reactor.held = true;
            return None;
        }
        Some(index)
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
        let alignment = self.disks[disk].alignment();
        // Its sector is never torn.
        Ok(OpenDisk { id, size: self.disks[disk].size(), alignment, atomic_write: alignment })
    }

    pub(crate) fn resize_disk(&mut self, index: usize, resource: ResourceId, size: u64) -> io::Result<()> {
        let Resource::Disk { disk, read_only, .. } = self.resource(index, resource) else {
            unreachable!("a resize names a disk")
        };
        if read_only {
            return Err(error(EBADF));
        }
        self.disks[disk].resize(size);
        Ok(())
    }

    pub(crate) fn measure_disk(&self, index: usize, resource: ResourceId) -> u64 {
        let Resource::Disk { disk, .. } = self.resource(index, resource) else { unreachable!("a disk is measured") };
        self.disks[disk].size()
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
