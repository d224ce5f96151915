//! A controller with its connections. It lives from the Connect of its admin queue until that connection is gone and
//! every request of all its connections is answered.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;

use nvmf_target_protocol::target::controller::{AdminCommand, Controller, Outcome, Service};
use nvmf_target_protocol::wire::log_page::Notice;
use nvmf_target_protocol::wire::{Status, Submission};
use reactor::{Instant, TcpStream, now, turn_began};

use crate::discovery::Discovery;
use crate::signal::Signal;
use crate::subsystem::Subsystem;

/// What a controller belongs to.
pub(crate) enum Home {
    Subsystem(Rc<Subsystem>),
    Discovery(Rc<Discovery>),
}

/// A connected host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerInfo {
    /// Controller ID (CNTLID).
    pub id: u16,
    /// The host's NQN.
    pub host_nqn: String,
    /// Where its admin connection comes from.
    pub peer: SocketAddr,
    /// I/O queues that are connected.
    pub io_queues: usize,
}

pub(crate) struct Association {
    pub(crate) home: Home,
    pub(crate) controller: RefCell<Controller>,
    peer: SocketAddr,
    host_id: [u8; 16],
    /// Connections by queue identifier; 0 is the admin queue.
    streams: RefCell<BTreeMap<u16, TcpStream>>,
    /// Connections whose tasks have not ended: they may have requests in flight after their stream is closed.
    connections: Cell<usize>,
    ended: Cell<bool>,
    /// Wakes the admin connection: an event may be ready.
    pub(crate) events: Signal,
    /// Every write is to be durable: the host turned the volatile write cache off.
    force_unit_access: Cell<bool>,
}

impl Association {
    pub(crate) fn new(home: Home, controller: Controller, host_id: [u8; 16], peer: SocketAddr) -> Rc<Self> {
        Rc::new(Self {
            home,
            controller: RefCell::new(controller),
            peer,
            host_id,
            streams: RefCell::default(),
            connections: Cell::new(0),
            ended: Cell::new(false),
            events: Signal::default(),
            force_unit_access: Cell::new(false),
        })
    }

    pub(crate) fn id(&self) -> u16 {
        self.controller.borrow().id()
    }

    pub(crate) fn info(&self) -> ControllerInfo {
        let streams = self.streams.borrow();
        let controller = self.controller.borrow();
        ControllerInfo {
            id: controller.id(),
            host_nqn: controller.host_nqn().to_owned(),
            peer: self.peer,
            io_queues: streams.keys().filter(|queue| **queue != 0).count(),
        }
    }

    pub(crate) fn is_of_host(&self, host_id: &[u8; 16], host_nqn: &str) -> bool {
        self.host_id == *host_id && self.controller.borrow().host_nqn() == host_nqn
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.get()
    }

    /// A connection is about to serve `queue`.
    pub(crate) fn add_connection(&self, queue: u16, stream: TcpStream) {
        self.connections.set(self.connections.get() + 1);
        self.streams.borrow_mut().insert(queue, stream);
    }

    /// The connection of `queue` reads no more; its requests may still be in flight.
    pub(crate) fn queue_closed(&self, queue: u16) {
        self.streams.borrow_mut().remove(&queue);
        if queue == 0 {
            self.end();
        }
    }

    /// Everything that came through the connection of `queue` is answered (I16): the queue may be connected again.
    pub(crate) fn queue_drained(&self, queue: u16) {
        self.connections.set(self.connections.get() - 1);
        self.controller.borrow_mut().disconnect_queue(queue);
        if self.ended.get() && self.connections.get() == 0 {
            match &self.home {
                Home::Subsystem(subsystem) => subsystem.remove(self.id()),
                Home::Discovery(discovery) => discovery.remove(self.id()),
            }
        }
    }

    /// Closes every connection of the controller.
    pub(crate) fn end(&self) {
        if !self.ended.replace(true) {
            self.streams.borrow().values().for_each(TcpStream::close);
        }
    }

    /// Commands arrived on one of the connections: the host is alive, since this turn at least.
    #[inline]
    pub(crate) fn touch(&self) {
        self.controller.borrow_mut().touch(turn_began().as_nanos());
    }

    /// When to look again whether the host is silent.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.controller.borrow().deadline_ns().map(Instant::from_nanos)
    }

    pub(crate) fn is_expired(&self) -> bool {
        self.controller.borrow().is_expired(now().as_nanos())
    }

    #[inline]
    pub(crate) fn forces_unit_access(&self) -> bool {
        self.force_unit_access.get()
    }

    pub(crate) fn notify(&self, notice: Notice, namespace: u32) {
        self.controller.borrow_mut().notify(notice, namespace);
        self.events.raise();
    }

    pub(crate) fn record_error(&self, queue: u16, entry: &Submission, status: Status) {
        self.controller.borrow_mut().record_error(queue, entry, status);
    }

    /// Runs an admin command, with what follows from it for the other connections.
    pub(crate) fn execute(&self, command: &AdminCommand<'_>) -> Outcome {
        let outcome =
            self.with_service(|service| self.controller.borrow_mut().execute(command, service, now().as_nanos()));
        let controller = self.controller.borrow();
        self.force_unit_access.set(!controller.write_cache_enabled());
        if !controller.is_ready() {
            // A reset deletes the I/O queues (Base 3.7.2).
            self.streams.borrow().iter().filter(|(queue, _)| **queue != 0).for_each(|(_, stream)| stream.close());
        }
        outcome
    }

    fn with_service<T>(&self, run: impl FnOnce(&Service<'_>) -> T) -> T {
        match &self.home {
            Home::Subsystem(subsystem) => subsystem.with_service(run),
            Home::Discovery(discovery) => {
                // Copied: `run` borrows the controller for itself.
                let host_nqn = self.controller.borrow().host_nqn().to_owned();
                discovery.with_service(&host_nqn, run)
            }
        }
    }
}
