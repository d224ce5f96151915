//! How connections of the simulated network end: closed, reset, timed out, or with their machine.

use std::io;

use super::connection::{EndId, Piece, Place};
use super::network::NetworkEvent;
use super::state::{Resource, State};
use crate::driver::ResourceId;

/// How long bytes go unacknowledged before the connection ends, in nanoseconds: Linux's fifteen repetitions.
const SILENCE_LIMIT: u64 = 924_000_000_000;

impl State {
    pub(super) fn socket(&self, index: usize, resource: ResourceId) -> EndId {
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
    pub(super) fn abort(&mut self, id: EndId, silent: bool) {
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
    pub(super) fn answer_with_reset(&mut self, id: EndId) {
        let Some(from) = self.network.end(id).map(|end| end.node) else { return };
        let delay = self.travel(from, self.peer_node(id));
        self.plan(delay, NetworkEvent::Reset(id.other()));
    }

    pub(super) fn reset(&mut self, id: EndId) {
        let Some(to) = self.network.end(id).map(|end| end.node) else { return };
        // A reset that is lost is not repeated: the next bytes sent to the closed end bring another.
        if self.reachable(self.peer_node(id), to) {
            self.fail_end(id, io::ErrorKind::ConnectionReset);
        }
    }

    /// Fails an end and what is in flight on it.
    pub(super) fn fail_end(&mut self, id: EndId, error: io::ErrorKind) {
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
    pub(super) fn watch_silence(&mut self, id: EndId) {
        let Some(end) = self.network.end(id) else { return };
        let progress = end.progress;
        self.plan(SILENCE_LIMIT, NetworkEvent::Expire { end: id, progress });
    }

    pub(super) fn expire(&mut self, id: EndId, progress: u64) {
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
