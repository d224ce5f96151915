//! The simulated network: machines, links between them, listeners, and the life of connections.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::Duration;

pub(crate) use super::connection::EndId;
use super::connection::{Connection, End, Place};
use super::fault::Link;
use super::handshake::{Connecting, Listener};
use super::queue::Event;
use super::random::nanoseconds;
use super::state::State;

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
    pub(super) connecting: BTreeMap<u64, Connecting>,
    pub(super) listeners: BTreeMap<u64, Listener>,
    /// The last number given to a connection, an attempt at one or a listener.
    last: u64,
    pub(super) links: BTreeMap<(usize, usize), Link>,
    pub(super) blocked: BTreeSet<(usize, usize)>,
    /// When each link has sent what was given to it, for those with limited bandwidth.
    pub(super) busy_until: BTreeMap<(usize, usize), u64>,
}

impl Network {
    pub(super) fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    pub(crate) fn set_link(&mut self, from: usize, to: usize, link: Link) {
        self.links.insert((from, to), link);
    }

    pub(super) fn link(&self, from: usize, to: usize) -> Link {
        let loopback = || Link { delay: Duration::from_micros(3)..=Duration::from_micros(20), ..Link::default() };
        self.links.get(&(from, to)).cloned().unwrap_or_else(|| if from == to { loopback() } else { Link::default() })
    }

    pub(super) fn end(&self, id: EndId) -> Option<&End> {
        self.connections.get(&id.connection).map(|connection| &connection.ends[id.side])
    }

    pub(super) fn end_mut(&mut self, id: EndId) -> Option<&mut End> {
        self.connections.get_mut(&id.connection).map(|connection| &mut connection.ends[id.side])
    }

    /// The ends of a kind, oldest connection first.
    pub(super) fn ends(&self, mut which: impl FnMut(&End, &End) -> bool) -> Vec<EndId> {
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
    pub(super) fn reap(&mut self, id: EndId) {
        if let Some(connection) = self.connections.get(&id.connection)
            && connection.ends.iter().all(|end| end.place == Place::Closed)
        {
            self.connections.remove(&id.connection);
        }
    }
}

/// Links and partitions.
impl State {
    /// Whether packets pass from one node to another.
    pub(super) fn reachable(&self, from: usize, to: usize) -> bool {
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

    pub(super) fn travel(&mut self, from: usize, to: usize) -> u64 {
        let delay = self.network.link(from, to).delay;
        nanoseconds(self.random.duration(&delay))
    }

    pub(super) fn plan(&mut self, delay: u64, event: NetworkEvent) {
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
