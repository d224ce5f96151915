//! The network of a simulated world, from outside.

use super::{NodeId, World};
use crate::driver::simulated::Link;

impl World {
    /// Sets what one direction between two nodes is like from here on.
    pub fn set_link(&self, from: NodeId, to: NodeId, link: Link) {
        self.inner.state.borrow_mut().network.set_link(from.0, to.0, link);
    }

    /// Stops all packets between two nodes. Connections wait; those with unacknowledged bytes end after 15 minutes.
    pub fn partition(&self, one: NodeId, other: NodeId) {
        self.partition_one_way(one, other);
        self.partition_one_way(other, one);
    }

    /// Stops packets in one direction only. Bytes of the other direction still arrive, but their sender does not learn of
    /// it and stops when its window is full.
    pub fn partition_one_way(&self, from: NodeId, to: NodeId) {
        self.inner.state.borrow_mut().block(from.0, to.0);
    }

    /// Lets packets pass again between two nodes, in both directions.
    pub fn heal(&self, one: NodeId, other: NodeId) {
        let mut state = self.inner.state.borrow_mut();
        state.unblock(one.0, other.0);
        state.unblock(other.0, one.0);
    }

    /// Lets packets pass again in one direction.
    pub fn heal_one_way(&self, from: NodeId, to: NodeId) {
        self.inner.state.borrow_mut().unblock(from.0, to.0);
    }

    /// Ends all partitions.
    pub fn heal_all(&self) {
        let mut state = self.inner.state.borrow_mut();
        let nodes = state.nodes.len();
        for pair in 0..nodes * nodes {
            state.unblock(pair / nodes, pair % nodes);
        }
    }

    /// Resets all connections between two nodes.
    pub fn reset_connections(&self, one: NodeId, other: NodeId) {
        self.inner.state.borrow_mut().reset_between(one.0, other.0);
    }

    /// How many sockets and listeners a node has open: for tests of leaks (I40).
    pub fn open_sockets(&self, node: NodeId) -> usize {
        self.inner.state.borrow().network.open_sockets(node.0)
    }
}
