//! A session with its connections: an I_T nexus.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;

use block_device::Completions;
use iscsi_target_protocol::target::connection::{Connection, Slot};
use iscsi_target_protocol::target::session::Session as Numbers;
use iscsi_target_protocol::wire::Name;
use reactor::TcpStream;
use scsi_protocol::unit::{NexusId, Response};

use crate::signal::Signal;
use crate::target::Target;

/// An initiator that is logged in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    /// Target Session Identifying Handle (TSIH).
    pub handle: u16,
    /// The initiator's name.
    pub initiator: String,
    /// Where its connections come from.
    pub peers: Vec<SocketAddr>,
}

/// What the connections of a session share.
pub(crate) struct Session {
    pub(crate) target: Rc<Target>,
    pub(crate) handle: u16,
    pub(crate) initiator: Name,
    pub(crate) nexus: NexusId,
    pub(crate) numbers: RefCell<Numbers>,
    /// By connection identifier (CID), until they read no more.
    lines: RefCell<BTreeMap<u16, Rc<Line>>>,
    /// Connections whose tasks have not ended: they may have requests at the device after their stream is closed.
    connections: Cell<usize>,
    ended: Cell<bool>,
}

/// One connection, as others of its target see it.
pub(crate) struct Line {
    pub(crate) stream: TcpStream,
    /// None once the connection has ended.
    pub(crate) protocol: RefCell<Option<Connection>>,
    /// Wakes the connection: it may go on with what waits, or something that it waits for has ended.
    pub(crate) wake: Signal,
    /// Where the device's answers come.
    pub(crate) completions: Rc<Completions>,
    /// Ends of commands that did not go to the device as one request.
    pub(crate) finished: RefCell<Vec<(Slot, Response)>>,
    /// Commands that are carried out beside the connection's own task.
    pub(crate) beside: Cell<usize>,
    /// Who waits for aborted commands of this connection to end.
    pub(crate) managers: Cell<usize>,
    /// Requests that the device has, and commands that are carried out beside.
    pub(crate) outstanding: Cell<usize>,
}

impl Line {
    pub(crate) fn new(stream: TcpStream, protocol: Connection) -> Rc<Self> {
        Rc::new(Self {
            stream,
            protocol: RefCell::new(Some(protocol)),
            wake: Signal::default(),
            completions: Completions::new(),
            finished: RefCell::default(),
            beside: Cell::new(0),
            managers: Cell::new(0),
            outstanding: Cell::new(0),
        })
    }

    /// The command of a slot has ended beside the connection's own task.
    pub(crate) fn finish(&self, slot: Slot, response: Response) {
        self.beside.set(self.beside.get() - 1);
        self.finished.borrow_mut().push((slot, response));
        self.wake.raise();
    }
}

impl Session {
    pub(crate) fn new(target: Rc<Target>, handle: u16, initiator: Name, nexus: NexusId, numbers: Numbers) -> Rc<Self> {
        Rc::new(Self {
            target,
            handle,
            initiator,
            nexus,
            numbers: RefCell::new(numbers),
            lines: RefCell::default(),
            connections: Cell::new(0),
            ended: Cell::new(false),
        })
    }

    pub(crate) fn info(&self) -> SessionInfo {
        SessionInfo {
            handle: self.handle,
            initiator: self.initiator.to_string(),
            peers: self.lines.borrow().values().map(|line| line.stream.peer_address()).collect(),
        }
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.get()
    }

    /// A connection is about to be served.
    pub(crate) fn add_line(&self, cid: u16, line: Rc<Line>) {
        self.connections.set(self.connections.get() + 1);
        self.lines.borrow_mut().insert(cid, line);
    }

    /// A connection reads no more; at error recovery level 0 its session ends with it unless it was `logged_out`.
    pub(crate) fn line_closed(&self, cid: u16, line: &Rc<Line>, logged_out: bool) {
        let mut lines = self.lines.borrow_mut();
        // A connection that replaced this one has its place.
        if lines.get(&cid).is_some_and(|other| Rc::ptr_eq(other, line)) {
            lines.remove(&cid);
        }
        drop(lines);
        if !logged_out || self.lines.borrow().is_empty() {
            self.end();
        }
    }

    /// Everything that came through a connection is answered (I16).
    pub(crate) fn line_drained(self: &Rc<Self>) {
        self.connections.set(self.connections.get() - 1);
        if self.ended.get() && self.connections.get() == 0 {
            self.target.remove(self);
        }
        self.target.changed();
    }

    /// Closes every connection of the session.
    pub(crate) fn end(&self) {
        if !self.ended.replace(true) {
            self.lines.borrow().values().for_each(|line| line.stream.close());
        }
    }

    /// The line of a connection.
    pub(crate) fn line(&self, cid: u16) -> Option<Rc<Line>> {
        self.lines.borrow().get(&cid).cloned()
    }

    /// All lines.
    pub(crate) fn lines(&self) -> Vec<Rc<Line>> {
        self.lines.borrow().values().cloned().collect()
    }

    /// Command numbers have moved on: connections that wait for their turn look again.
    #[inline]
    pub(crate) fn wake_others(&self, own: u16) {
        let lines = self.lines.borrow();
        if lines.len() > 1 {
            lines.iter().filter(|(cid, _)| **cid != own).for_each(|(_, line)| line.wake.raise());
        }
    }
}
