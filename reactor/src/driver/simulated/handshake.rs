//! How connections of the simulated network come to be: listeners, accepts and connects.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::connection::{Connection, End, EndId, Piece, Place};
use super::network::{Network, NetworkEvent};
use super::state::{Resource, State, Work};
use crate::driver::{OperationId, Output, ResourceId};

/// How many connections wait for a program to accept them; more are turned away.
pub(super) const BACKLOG: usize = 128;

/// How long a connect tries, in nanoseconds: Linux's six repetitions of the first packet.
const CONNECT_LIMIT: u64 = 127_000_000_000;

/// The first port that is given out for port 0, and how many there are.
const FIRST_PORT: u16 = 32768;
const PORTS: u16 = 28232;

#[derive(Debug)]
pub(super) struct Listener {
    pub(super) node: usize,
    pub(super) address: SocketAddr,
    pub(super) reactor: usize,
    pub(super) waiting: VecDeque<EndId>,
    pub(super) accepts: VecDeque<OperationId>,
}

#[derive(Debug)]
pub(super) struct Connecting {
    pub(super) reactor: usize,
    pub(super) operation: OperationId,
    pub(super) from: usize,
    /// None: no machine has the address.
    to: Option<usize>,
    local: SocketAddr,
    target: SocketAddr,
    deadline: u64,
    attempts: u32,
}

impl Network {
    fn listener_for(&self, node: usize, target: SocketAddr) -> Option<u64> {
        let meets = |listener: &Listener| {
            let ip = listener.address.ip();
            listener.node == node
                && listener.address.port() == target.port()
                && (ip == target.ip() || ip.is_unspecified())
        };
        self.listeners.iter().find(|(_, listener)| meets(listener)).map(|(number, _)| *number)
    }
}

impl State {
    pub(crate) fn listen(&mut self, index: usize, address: SocketAddr) -> io::Result<(ResourceId, SocketAddr)> {
        let node = self.reactors[index].node;
        let ip = address.ip();
        if !(ip.is_unspecified() || ip.is_loopback() || ip == self.nodes[node].address) {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        let port = if address.port() == 0 { self.free_port(node) } else { address.port() };
        let address = SocketAddr::new(ip, port);
        let clash = |listener: &Listener| {
            let taken = listener.address.ip();
            let same_ip = taken == ip || taken.is_unspecified() || ip.is_unspecified();
            listener.node == node && listener.address.port() == port && same_ip
        };
        if self.network.listeners.values().any(clash) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let number = self.network.number();
        let (waiting, accepts) = (VecDeque::new(), VecDeque::new());
        self.network.listeners.insert(number, Listener { node, address, reactor: index, waiting, accepts });
        let resource = self.reactors[index].resources.insert(Resource::Listener(number));
        self.trace.event(self.now, "listen: reactor, port", [index as u64, u64::from(port), 0]);
        Ok((resource, address))
    }

    fn free_port(&mut self, node: usize) -> u16 {
        let node = &mut self.nodes[node];
        node.next_port = (node.next_port + 1) % PORTS;
        FIRST_PORT + node.next_port
    }

    pub(crate) fn close_listener(&mut self, number: u64, silent: bool) {
        let Some(listener) = self.network.listeners.remove(&number) else { return };
        for id in listener.accepts {
            self.cancelled(listener.reactor, id);
        }
        for end in listener.waiting {
            self.abort(end, silent);
        }
    }

    pub(crate) fn begin_accept(&mut self, index: usize, id: OperationId, resource: ResourceId) -> Work {
        let Resource::Listener(number) = self.resource(index, resource) else {
            unreachable!("an accept names a listener")
        };
        if let Some(listener) = self.network.listeners.get_mut(&number) {
            listener.accepts.push_back(id);
            if !listener.waiting.is_empty() {
                self.plan(1_000, NetworkEvent::Accept(number));
            }
        }
        Work::Accept(number)
    }

    pub(crate) fn cancel_accept(&mut self, index: usize, id: OperationId, number: u64) {
        if let Some(listener) = self.network.listeners.get_mut(&number) {
            listener.accepts.retain(|accept| *accept != id);
        }
        self.cancelled(index, id);
    }

    /// Brings connections and accepts of a listener together.
    pub(super) fn match_accepts(&mut self, number: u64) {
        loop {
            let Some(listener) = self.network.listeners.get_mut(&number) else { return };
            if listener.waiting.is_empty() || listener.accepts.is_empty() {
                return;
            }
            let (Some(end), Some(id)) = (listener.waiting.pop_front(), listener.accepts.pop_front()) else { return };
            let reactor = listener.reactor;
            self.hand_over(reactor, id, end);
        }
    }

    /// Completes an accept or connect with an end.
    fn hand_over(&mut self, reactor: usize, id: OperationId, end: EndId) {
        let resource = self.reactors[reactor].resources.insert(Resource::Socket(end));
        let Some(peer) = self.network.end(end.other()).map(|other| other.address) else { return };
        if let Some(own) = self.network.end_mut(end) {
            own.place = Place::Attached { reactor, resource };
        }
        self.trace.event(self.now, "connected: connection, side, reactor", end.details(reactor));
        self.complete(reactor, id, Ok(Output::Socket(resource, peer)));
    }

    pub(crate) fn begin_connect(&mut self, index: usize, id: OperationId, target: SocketAddr) -> Work {
        let from = self.reactors[index].node;
        let own = self.nodes[from].address;
        let to = match target.ip() {
            ip if ip.is_loopback() => Some(from),
            ip => self.nodes.iter().position(|node| node.address == ip),
        };
        let ip = if target.ip().is_loopback() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { own };
        let local = SocketAddr::new(ip, self.free_port(from));
        let number = self.network.number();
        let deadline = self.now + CONNECT_LIMIT;
        let connecting = Connecting { reactor: index, operation: id, from, to, local, target, deadline, attempts: 0 };
        self.network.connecting.insert(number, connecting);
        let delay = to.map_or(1_000_000, |to| self.travel(from, to));
        self.plan(delay, NetworkEvent::Knock(number));
        Work::Connect(number)
    }

    pub(crate) fn cancel_connect(&mut self, index: usize, id: OperationId, number: u64) {
        self.network.connecting.remove(&number);
        self.cancelled(index, id);
    }

    pub(super) fn knock(&mut self, number: u64) {
        let Some(connecting) = self.network.connecting.get(&number) else { return };
        let (from, target, expired) = (connecting.from, connecting.target, connecting.deadline <= self.now);
        if expired {
            return self.refuse(number, io::ErrorKind::TimedOut);
        }
        match connecting.to {
            Some(to) if self.reachable(from, to) => {
                let listener = self.network.listener_for(to, target);
                let delay = self.travel(to, from);
                self.plan(delay, NetworkEvent::Answer { connecting: number, listener });
            }
            _ => self.knock_again(number),
        }
    }

    fn knock_again(&mut self, number: u64) {
        let Some(connecting) = self.network.connecting.get_mut(&number) else { return };
        let pause = 1_000_000_000 << connecting.attempts.min(6);
        connecting.attempts += 1;
        let at = (self.now + pause).min(connecting.deadline);
        self.plan(at - self.now, NetworkEvent::Knock(number));
    }

    pub(super) fn answer(&mut self, number: u64, listener: Option<u64>) {
        let Some(connecting) = self.network.connecting.get(&number) else { return };
        let Some(to) = connecting.to else { return };
        let (from, local, target) = (connecting.from, connecting.local, connecting.target);
        if !self.reachable(to, from) {
            return self.knock_again(number);
        }
        let Some(listener) = listener else { return self.refuse(number, io::ErrorKind::ConnectionRefused) };
        let Some(Connecting { reactor, operation, .. }) = self.network.connecting.remove(&number) else { return };
        let ends = [End::new(from, local, Place::Waiting), End::new(to, target, Place::Waiting)];
        self.network.connections.insert(number, Connection { ends, listener });
        let end = EndId { connection: number, side: 0 };
        self.put_on_wire(end, Piece::Open);
        self.hand_over(reactor, operation, end);
    }

    fn refuse(&mut self, number: u64, error: io::ErrorKind) {
        if let Some(Connecting { reactor, operation, .. }) = self.network.connecting.remove(&number) {
            self.trace.event(self.now, "connect refused: attempt", [number, 0, 0]);
            self.complete(reactor, operation, Err(error.into()));
        }
    }
}
