//! The simulated network: machines, links between them, listeners, and the life of connections.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

pub(crate) use super::connection::EndId;
use super::connection::{Connection, End, Piece, Place, Segment, WINDOW};
use super::fault::Link;
use super::queue::Event;
use super::random::nanoseconds;
use super::state::{Resource, State, Work};
use crate::driver::{OperationId, Output, ResourceId};

/// How many connections wait for a program to accept them; more are turned away.
const BACKLOG: usize = 128;

/// How long a connect tries, in nanoseconds: Linux's six repetitions of the first packet.
const CONNECT_LIMIT: u64 = 127_000_000_000;

/// How long bytes go unacknowledged before the connection ends, in nanoseconds: Linux's fifteen repetitions.
const SILENCE_LIMIT: u64 = 924_000_000_000;

/// The first port that is given out for port 0, and how many there are.
const FIRST_PORT: u16 = 32768;
const PORTS: u16 = 28232;

/// What the network does at a time.
#[derive(Clone, Copy, Debug)]
pub(crate) enum NetworkEvent {
    /// The first packet of a connection reaches its target.
    Knock(u64),
    /// The answer to it comes back.
    Answer { connecting: u64, listener: Option<u64> },
    /// Connections that wait on a listener meet accepts that wait.
    Accept(u64),
    /// A send in flight is tried.
    Transmit(EndId),
    /// What this end sent reaches the other.
    Arrive(EndId),
    /// What the other end has read becomes known to this one.
    Acknowledge(EndId),
    /// A reset reaches this end.
    Reset(EndId),
    /// The peer of this end has been silent since `progress`.
    Expire { end: EndId, progress: u64 },
}

/// All links, listeners and connections of a world.
#[derive(Debug, Default)]
pub(crate) struct Network {
    pub(crate) connections: BTreeMap<u64, Connection>,
    connecting: BTreeMap<u64, Connecting>,
    listeners: BTreeMap<u64, Listener>,
    /// The last number given to a connection, an attempt at one or a listener.
    last: u64,
    links: BTreeMap<(usize, usize), Link>,
    blocked: BTreeSet<(usize, usize)>,
    /// When each link has sent what was given to it, for those with limited bandwidth.
    busy_until: BTreeMap<(usize, usize), u64>,
}

#[derive(Debug)]
struct Listener {
    node: usize,
    address: SocketAddr,
    reactor: usize,
    waiting: VecDeque<EndId>,
    accepts: VecDeque<OperationId>,
}

#[derive(Debug)]
struct Connecting {
    reactor: usize,
    operation: OperationId,
    from: usize,
    /// None: no machine has the address.
    to: Option<usize>,
    local: SocketAddr,
    target: SocketAddr,
    deadline: u64,
    attempts: u32,
}

impl Network {
    fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    pub(crate) fn set_link(&mut self, from: usize, to: usize, link: Link) {
        self.links.insert((from, to), link);
    }

    fn link(&self, from: usize, to: usize) -> Link {
        let loopback = || Link { delay: Duration::from_micros(3)..=Duration::from_micros(20), ..Link::default() };
        self.links.get(&(from, to)).cloned().unwrap_or_else(|| if from == to { loopback() } else { Link::default() })
    }

    fn end(&self, id: EndId) -> Option<&End> {
        self.connections.get(&id.connection).map(|connection| &connection.ends[id.side])
    }

    fn end_mut(&mut self, id: EndId) -> Option<&mut End> {
        self.connections.get_mut(&id.connection).map(|connection| &mut connection.ends[id.side])
    }

    /// The ends of a kind, oldest connection first.
    fn ends(&self, mut which: impl FnMut(&End, &End) -> bool) -> Vec<EndId> {
        let mut found = Vec::new();
        for (number, connection) in &self.connections {
            for side in 0..2 {
                if which(&connection.ends[side], &connection.ends[1 - side]) {
                    found.push(EndId { connection: *number, side });
                }
            }
        }
        found
    }

    /// How many sockets and listeners a node has open.
    pub(crate) fn open_sockets(&self, node: usize) -> usize {
        let ends = self.ends(|end, _| end.node == node && end.place != Place::Closed);
        ends.len() + self.listeners.values().filter(|listener| listener.node == node).count()
    }

    /// Forgets a connection that nobody has any more.
    fn reap(&mut self, id: EndId) {
        if let Some(connection) = self.connections.get(&id.connection)
            && connection.ends.iter().all(|end| end.place == Place::Closed)
        {
            self.connections.remove(&id.connection);
        }
    }

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

/// Links and partitions.
impl State {
    /// Whether packets pass from one node to another.
    fn reachable(&self, from: usize, to: usize) -> bool {
        self.nodes[from].on && self.nodes[to].on && !self.network.blocked.contains(&(from, to))
    }

    /// Stops packets in one direction.
    pub(crate) fn block(&mut self, from: usize, to: usize) {
        if !self.network.blocked.insert((from, to)) {
            return;
        }
        self.trace.event(self.now, "blocked: from, to", [from as u64, to as u64, 0]);
        for end in self.network.ends(|end, other| [(from, to), (to, from)].contains(&(end.node, other.node))) {
            self.watch_silence(end);
        }
    }

    /// Lets packets pass again in one direction.
    pub(crate) fn unblock(&mut self, from: usize, to: usize) {
        if self.network.blocked.remove(&(from, to)) {
            self.trace.event(self.now, "unblocked: from, to", [from as u64, to as u64, 0]);
            self.kick(|one, other| (one, other) == (from, to));
        }
    }

    /// Starts what waited while a machine was off.
    pub(crate) fn kick_links_of(&mut self, node: usize) {
        self.kick(|from, to| from == node || to == node);
    }

    /// Sends again what was held up on links that may work now.
    fn kick(&mut self, links: impl Fn(usize, usize) -> bool) {
        for id in self.network.ends(|end, other| links(end.node, other.node) && !end.wire.is_empty()) {
            // The sender repeats when its timer says so, not at once.
            let delay = 1_000_000 + self.random.below(400_000_000);
            self.plan_arrival(id, self.now + delay);
        }
        for id in self.network.ends(|end, other| links(other.node, end.node) && end.read_by_peer > 0) {
            self.plan_acknowledge(id);
        }
    }

    /// Resets every connection between two nodes.
    pub(crate) fn reset_between(&mut self, one: usize, other: usize) {
        for id in self.network.ends(|end, peer| (end.node, peer.node) == (one, other)) {
            self.fail_end(id, io::ErrorKind::ConnectionReset);
            self.fail_end(id.other(), io::ErrorKind::ConnectionReset);
        }
    }

    fn travel(&mut self, from: usize, to: usize) -> u64 {
        let delay = self.network.link(from, to).delay;
        nanoseconds(self.random.duration(&delay))
    }

    fn plan(&mut self, delay: u64, event: NetworkEvent) {
        self.queue.push(self.now + delay, Event::Network(event));
    }

    pub(crate) fn network_event(&mut self, event: NetworkEvent) {
        match event {
            NetworkEvent::Knock(connecting) => self.knock(connecting),
            NetworkEvent::Answer { connecting, listener } => self.answer(connecting, listener),
            NetworkEvent::Accept(listener) => self.match_accepts(listener),
            NetworkEvent::Transmit(end) => self.transmit(end),
            NetworkEvent::Arrive(end) => self.arrive(end),
            NetworkEvent::Acknowledge(end) => self.acknowledge(end),
            NetworkEvent::Reset(end) => self.reset(end),
            NetworkEvent::Expire { end, progress } => self.expire(end, progress),
        }
    }
}

/// Listeners and the making of connections.
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
    fn match_accepts(&mut self, number: u64) {
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

    fn knock(&mut self, number: u64) {
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

    fn answer(&mut self, number: u64, listener: Option<u64>) {
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

/// Bytes on their way.
impl State {
    pub(crate) fn begin_send(&mut self, index: usize, id: OperationId, resource: ResourceId) -> Work {
        let end = self.socket(index, resource);
        if let Some(own) = self.network.end_mut(end) {
            own.send = Some(id);
        }
        let delay = self.random.below(4_000);
        self.plan(delay, NetworkEvent::Transmit(end));
        Work::Send(end)
    }

    pub(crate) fn cancel_send(&mut self, index: usize, id: OperationId, end: EndId) {
        if let Some(own) = self.network.end_mut(end) {
            own.send = None;
        }
        self.cancelled(index, id);
    }

    /// Takes what fits of a send.
    fn transmit(&mut self, id: EndId) {
        let Some(end) = self.network.end(id) else { return };
        let (Some(operation), Place::Attached { reactor, .. }) = (end.send, end.place) else { return };
        if let Some(error) = end.failed.or(end.end_sent.then_some(io::ErrorKind::BrokenPipe)) {
            return self.end_send(id, reactor, operation, Err(error.into()));
        }
        let room = WINDOW.saturating_sub(end.in_flight);
        let link = self.network.link(end.node, self.peer_node(id));
        if room == 0 {
            return;
        }
        if self.random.chance(link.reset_probability) {
            self.fail_end(id.other(), io::ErrorKind::ConnectionReset);
            return self.fail_end(id, io::ErrorKind::ConnectionReset);
        }
        // Sometimes only a part is taken, as a busy kernel would.
        let room = if self.random.one_in(16) { 1 + self.random.index(room) } else { room };
        let bytes = self.sent_bytes(reactor, operation, room);
        let count = bytes.len();
        if let Some(end) = self.network.end_mut(id) {
            end.in_flight += count;
        }
        self.put_on_wire(id, Piece::Bytes(bytes));
        self.end_send(id, reactor, operation, Ok(Output::Sent(count)));
    }

    fn sent_bytes(&self, reactor: usize, operation: OperationId, room: usize) -> Vec<u8> {
        let Some(crate::driver::Operation::Send { slices, .. }) = self.operation(reactor, operation) else {
            unreachable!("an end's send is a send of its reactor")
        };
        let mut bytes = Vec::with_capacity(room.min(slices.iter().map(|slice| slice.len()).sum()));
        for slice in slices {
            let count = slice.len().min(room - bytes.len());
            bytes.extend_from_slice(&slice[..count]);
        }
        bytes
    }

    fn end_send(&mut self, id: EndId, reactor: usize, operation: OperationId, result: io::Result<Output>) {
        if let Some(end) = self.network.end_mut(id) {
            end.send = None;
        }
        self.complete(reactor, operation, result);
    }

    fn peer_node(&self, id: EndId) -> usize {
        self.network.connections[&id.connection].ends[1 - id.side].node
    }

    /// Sends a piece after all others.
    fn put_on_wire(&mut self, id: EndId, piece: Piece) {
        let to = self.peer_node(id);
        let Some(from) = self.network.end(id).map(|end| end.node) else { return };
        let length = if let Piece::Bytes(bytes) = &piece { bytes.len() as u64 } else { 0 };
        let mut departs = self.now;
        if let Some(rate) = self.network.link(from, to).bytes_per_second {
            let busy = self.network.busy_until.entry((from, to)).or_default();
            departs = departs.max(*busy) + length.saturating_mul(1_000_000_000) / rate.max(1);
            *busy = departs;
        }
        let delay = self.travel(from, to);
        let Some(end) = self.network.end_mut(id) else { return };
        let arrives = (departs + delay).max(end.last_arrival);
        end.last_arrival = arrives;
        end.wire.push_back(Segment { piece, arrives });
        self.plan_arrival(id, arrives);
    }

    fn plan_arrival(&mut self, id: EndId, at: u64) {
        let Some(end) = self.network.end_mut(id) else { return };
        if !std::mem::replace(&mut end.arrival_planned, true) {
            self.queue.push(at, Event::Network(NetworkEvent::Arrive(id)));
        }
    }

    /// What an end sent reaches its peer.
    fn arrive(&mut self, id: EndId) {
        let Some(connection) = self.network.connections.get_mut(&id.connection) else { return };
        let listener = connection.listener;
        connection.ends[id.side].arrival_planned = false;
        let (from, to) = (connection.ends[id.side].node, connection.ends[1 - id.side].node);
        // What a machine sent before its power went still arrives.
        if !self.nodes[to].on || self.network.blocked.contains(&(from, to)) {
            return self.held_up(id);
        }
        while let Some(piece) = self.next_piece(id) {
            self.arrived(id.other(), piece, listener);
        }
        self.match_accepts(listener);
        if let Some(next) = self.network.end(id).and_then(|end| end.wire.front()) {
            let at = next.arrives.max(self.now);
            self.plan_arrival(id, at);
        }
    }

    /// What an end sent cannot arrive now.
    fn held_up(&mut self, id: EndId) {
        match self.network.end_mut(id) {
            // Nobody is left to send it again.
            Some(end) if end.gone => end.wire.clear(),
            _ => self.watch_silence(id),
        }
    }

    fn next_piece(&mut self, id: EndId) -> Option<Piece> {
        let now = self.now;
        let end = self.network.end_mut(id)?;
        end.wire.pop_front_if(|segment| segment.arrives <= now).map(|segment| segment.piece)
    }

    /// A piece reaches this end.
    fn arrived(&mut self, id: EndId, piece: Piece, listener: u64) {
        let Some(end) = self.network.end_mut(id) else { return };
        if end.place == Place::Closed {
            return self.answer_with_reset(id);
        }
        if end.failed.is_some() {
            return;
        }
        let mut count = 0;
        match piece {
            Piece::Open => match self.network.listeners.get_mut(&listener) {
                Some(listener) if listener.waiting.len() < BACKLOG => listener.waiting.push_back(id),
                _ => self.abort(id, false),
            },
            Piece::Bytes(bytes) => {
                count = bytes.len();
                end.arrived.extend(bytes);
            }
            Piece::End => end.end_arrived = true,
        }
        self.trace.event(self.now, "arrived: connection, side, bytes", id.details(count));
        self.news(id);
    }

    /// Tells the reactor of an end that a receive would give something now.
    fn news(&mut self, id: EndId) {
        let Some(end) = self.network.end(id) else { return };
        if let (Place::Attached { reactor, .. }, Some(_)) = (end.place, end.receive)
            && end.has_news()
        {
            self.reactors[reactor].readable.insert(id);
            self.wake(reactor);
        }
    }

    pub(crate) fn begin_receive(&mut self, index: usize, id: OperationId, resource: ResourceId) -> Work {
        let end = self.socket(index, resource);
        if let Some(own) = self.network.end_mut(end) {
            own.receive = Some(id);
        }
        self.news(end);
        Work::Receive(end)
    }

    pub(crate) fn cancel_receive(&mut self, index: usize, id: OperationId, end: EndId) {
        // The cancel may lose the race against bytes that are here already.
        if self.random.one_in(2) && self.network.end(end).is_some_and(|end| !end.arrived.is_empty()) {
            self.receive_chunk(index, end, id);
        }
        if let Some(own) = self.network.end_mut(end) {
            own.receive = None;
        }
        self.cancelled(index, id);
    }

    /// Hands bytes that arrived to the receives of a reactor, as its turn comes.
    pub(crate) fn deliver_received(&mut self, index: usize) {
        for end in std::mem::take(&mut self.reactors[index].readable) {
            for _ in 0..CHUNKS_A_TURN {
                if !self.deliver(index, end) {
                    break;
                }
            }
            self.news(end);
        }
    }

    /// Gives one result to a receive; false when there is nothing more to do now.
    fn deliver(&mut self, index: usize, id: EndId) -> bool {
        let Some(end) = self.network.end_mut(id) else { return false };
        let Some(operation) = end.receive else { return false };
        if end.arrived.is_empty() {
            let result = match end.failed {
                Some(error) => Err(error.into()),
                None if end.end_arrived => Ok(Output::Received(crate::net::Received::end())),
                None => return false,
            };
            end.receive = None;
            self.complete(index, operation, result);
            return false;
        }
        // Multishot receives end now and then for the kernel's own reasons, with or without bytes.
        if self.random.one_in(64) {
            end.receive = None;
            self.complete(index, operation, Err(io::Error::from_raw_os_error(ENOBUFS)));
            return false;
        }
        self.receive_chunk(index, id, operation);
        true
    }

    fn receive_chunk(&mut self, index: usize, id: EndId, operation: OperationId) {
        let Some(end) = self.network.connections.get_mut(&id.connection) else { return };
        let bytes = end.ends[id.side].read_some(&mut self.random);
        let count = bytes.len();
        end.ends[1 - id.side].read_by_peer += count;
        let seen = super::trace::hash_bytes(&bytes);
        self.trace.event(self.now, "received: connection, side, hash", [id.connection, id.side as u64, seen]);
        self.complete_part(index, operation, Output::Received(crate::net::Received::owned(bytes)));
        self.plan_acknowledge(id.other());
    }

    fn plan_acknowledge(&mut self, id: EndId) {
        let from = self.peer_node(id);
        let Some(end) = self.network.end_mut(id) else { return };
        let to = end.node;
        if !std::mem::replace(&mut end.acknowledge_planned, true) {
            let delay = self.travel(from, to);
            self.plan(delay, NetworkEvent::Acknowledge(id));
        }
    }

    fn acknowledge(&mut self, id: EndId) {
        let Some(connection) = self.network.connections.get_mut(&id.connection) else { return };
        let from = connection.ends[1 - id.side].node;
        let end = &mut connection.ends[id.side];
        end.acknowledge_planned = false;
        let to = end.node;
        if !self.reachable(from, to) {
            return self.watch_silence(id);
        }
        let Some(end) = self.network.end_mut(id) else { return };
        end.in_flight = end.in_flight.saturating_sub(std::mem::take(&mut end.read_by_peer));
        end.progress += 1;
        self.transmit(id);
    }
}

/// Ends of connections.
impl State {
    fn socket(&self, index: usize, resource: ResourceId) -> EndId {
        let Resource::Socket(end) = self.resource(index, resource) else { unreachable!("a stream names a socket") };
        end
    }

    pub(crate) fn shutdown(&mut self, index: usize, resource: ResourceId) {
        let id = self.socket(index, resource);
        if let Some(end) = self.network.end_mut(id)
            && end.failed.is_none()
            && !std::mem::replace(&mut end.end_sent, true)
        {
            self.put_on_wire(id, Piece::End);
        }
    }

    pub(crate) fn detach(&mut self, index: usize, resource: ResourceId) -> EndId {
        let id = self.socket(index, resource);
        self.reactors[index].resources.remove(resource);
        if let Some(end) = self.network.end_mut(id) {
            assert!(end.send.is_none() && end.receive.is_none(), "a socket is detached with nothing in flight");
            end.place = Place::Detached;
        }
        id
    }

    pub(crate) fn attach(&mut self, index: usize, id: EndId) -> io::Result<ResourceId> {
        let node = self.reactors[index].node;
        let end = self.network.end_mut(id).filter(|end| end.place == Place::Detached && end.node == node);
        let end = end.ok_or(io::ErrorKind::NotConnected)?;
        let resource = self.reactors[index].resources.insert(Resource::Socket(id));
        end.place = Place::Attached { reactor: index, resource };
        Ok(resource)
    }

    /// Closes the sockets that were dropped while detached.
    pub(crate) fn close_abandoned(&mut self) {
        let abandoned = std::mem::take(&mut *self.abandoned.lock());
        for id in abandoned {
            if self.network.end(id).is_some_and(|end| end.place == Place::Detached) {
                self.close_socket(id);
            }
        }
    }

    /// A program closes its end: the peer gets what was sent and the end of the stream, or, where bytes were left unread,
    /// a reset.
    pub(crate) fn close_socket(&mut self, id: EndId) {
        if self.random.one_in(2) {
            self.transmit(id);
        }
        let Some(end) = self.network.end(id) else { return };
        if !end.arrived.is_empty() {
            return self.abort(id, false);
        }
        let send_end = end.failed.is_none() && !end.end_sent;
        self.release(id);
        if send_end {
            self.put_on_wire(id, Piece::End);
        }
        self.network.reap(id);
    }

    /// Closes an end with a reset; silently when its machine has no power.
    fn abort(&mut self, id: EndId, silent: bool) {
        self.release(id);
        // What is on the wire may be lost or overtake the reset.
        let lost = self.random.one_in(2);
        if let Some(end) = self.network.end_mut(id) {
            end.gone = silent;
            if lost {
                end.wire.clear();
            }
        }
        if !silent {
            self.answer_with_reset(id);
        }
        self.network.reap(id);
    }

    /// Ends what is in flight on an end and takes it from its program.
    fn release(&mut self, id: EndId) {
        let Some(end) = self.network.end_mut(id) else { return };
        let operations = [end.send.take(), end.receive.take()];
        let place = std::mem::replace(&mut end.place, Place::Closed);
        end.arrived.clear();
        self.trace.event(self.now, "closed: connection, side", id.details(0));
        if let Place::Attached { reactor, .. } = place {
            self.reactors[reactor].readable.remove(&id);
            for operation in operations.into_iter().flatten() {
                self.cancelled(reactor, operation);
            }
        }
    }

    /// Sends a reset from an end that is closed to its peer.
    fn answer_with_reset(&mut self, id: EndId) {
        let Some(from) = self.network.end(id).map(|end| end.node) else { return };
        let delay = self.travel(from, self.peer_node(id));
        self.plan(delay, NetworkEvent::Reset(id.other()));
    }

    fn reset(&mut self, id: EndId) {
        let Some(to) = self.network.end(id).map(|end| end.node) else { return };
        // A reset that is lost is not repeated: the next bytes sent to the closed end bring another.
        if self.reachable(self.peer_node(id), to) {
            self.fail_end(id, io::ErrorKind::ConnectionReset);
        }
    }

    /// Fails an end and what is in flight on it.
    fn fail_end(&mut self, id: EndId, error: io::ErrorKind) {
        let Some(connection) = self.network.connections.get_mut(&id.connection) else { return };
        let end = &mut connection.ends[id.side];
        if end.place == Place::Closed || end.failed.is_some() {
            return;
        }
        end.fail(error, &mut self.random);
        self.trace.event(self.now, "failed: connection, side", id.details(0));
        self.transmit(id);
        self.news(id);
    }

    /// Ends the connection of this end if its peer stays silent for too long from here on.
    fn watch_silence(&mut self, id: EndId) {
        let Some(end) = self.network.end(id) else { return };
        let progress = end.progress;
        self.plan(SILENCE_LIMIT, NetworkEvent::Expire { end: id, progress });
    }

    fn expire(&mut self, id: EndId, progress: u64) {
        let Some(end) = self.network.end(id) else { return };
        let (own, peer) = (end.node, self.peer_node(id));
        if end.progress != progress || !end.waits_for_peer() || (self.reachable(own, peer) && self.reachable(peer, own))
        {
            return;
        }
        if end.place == Place::Closed {
            // Nobody is told, but what could not be sent is given up.
            if let Some(end) = self.network.end_mut(id) {
                end.wire.clear();
            }
            return;
        }
        self.fail_end(id, io::ErrorKind::TimedOut);
    }

    /// The process of a node died, or the whole machine.
    pub(crate) fn end_network_of(&mut self, node: usize, power_cut: bool) {
        self.network.connecting.retain(|_, connecting| connecting.from != node);
        let listeners: Vec<u64> = self
            .network
            .listeners
            .iter()
            .filter(|(_, listener)| listener.node == node)
            .map(|(number, _)| *number)
            .collect();
        for number in listeners {
            self.close_listener(number, power_cut);
        }
        for id in self.network.ends(|end, _| end.node == node && end.place != Place::Closed) {
            if let Some(end) = self.network.end_mut(id) {
                (end.send, end.receive) = (None, None);
            }
            if power_cut || self.random.one_in(2) {
                self.abort(id, power_cut);
            } else {
                self.close_socket(id);
            }
        }
    }
}

/// How many chunks one receive gets in a turn, so that no stream starves the others.
const CHUNKS_A_TURN: usize = 4;

/// Linux's ENOBUFS.
const ENOBUFS: i32 = 105;
