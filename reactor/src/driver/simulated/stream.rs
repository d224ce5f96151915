//! Bytes on their way through the simulated network: in order and whole, late, in pieces, and held up.

use std::io;

use super::connection::{CHUNK, EndId, Piece, Place, Segment, WINDOW};
use super::errno::{ENOBUFS, error};
use super::handshake::BACKLOG;
use super::network::NetworkEvent;
use super::queue::Event;
use super::state::{State, Work};
use crate::driver::{Operation, OperationId, Output, ResourceId};

/// How many chunks one receive gets in a turn, so that no stream starves the others.
const CHUNKS_A_TURN: usize = 4;

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
    pub(super) fn transmit(&mut self, id: EndId) {
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
        let Some(Operation::Send { slices, .. }) = self.operation(reactor, operation) else {
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

    pub(super) fn peer_node(&self, id: EndId) -> usize {
        self.network.connections[&id.connection].ends[1 - id.side].node
    }

    /// Sends a piece after all others.
    pub(super) fn put_on_wire(&mut self, id: EndId, piece: Piece) {
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

    pub(super) fn plan_arrival(&mut self, id: EndId, at: u64) {
        let Some(end) = self.network.end_mut(id) else { return };
        if !std::mem::replace(&mut end.arrival_planned, true) {
            self.queue.push(at, Event::Network(NetworkEvent::Arrive(id)));
        }
    }

    /// What an end sent reaches its peer.
    pub(super) fn arrive(&mut self, id: EndId) {
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
    pub(super) fn news(&mut self, id: EndId) {
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
            // A kernel would share the bytes out between them in any order.
            assert!(own.receive.replace(id).is_none(), "one receive at a time");
        }
        self.news(end);
        Work::Receive(end)
    }

    pub(crate) fn cancel_receive(&mut self, index: usize, id: OperationId, end: EndId) {
        // The cancel may lose the race against bytes that are here already.
        if self.random.one_in(2) && self.network.end(end).is_some_and(|end| !end.arrived.is_empty()) {
            let once = self.receives_once(index, id);
            self.receive_chunk(index, end, id);
            if once {
                return;
            }
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
                None if end.end_arrived => Ok(self.nothing_more(index, operation)),
                None => return false,
            };
            if let Some(end) = self.network.end_mut(id) {
                end.receive = None;
            }
            self.complete(index, operation, result);
            return false;
        }
        if self.receives_once(index, operation) {
            self.receive_chunk(index, id, operation);
            return false;
        }
        // Multishot receives end now and then for the kernel's own reasons, with or without bytes.
        if self.random.one_in(64) {
            if let Some(end) = self.network.end_mut(id) {
                end.receive = None;
            }
            self.complete(index, operation, Err(error(ENOBUFS)));
            return false;
        }
        self.receive_chunk(index, id, operation);
        true
    }

    fn receives_once(&self, index: usize, operation: OperationId) -> bool {
        matches!(self.operation(index, operation), Some(Operation::ReceiveOnce { .. }))
    }

    /// What a receive gives at the end of its stream.
    fn nothing_more(&self, index: usize, operation: OperationId) -> Output {
        if self.receives_once(index, operation) {
            Output::ReceivedOnce(0)
        } else {
            Output::Received(crate::net::Received::end())
        }
    }

    fn receive_chunk(&mut self, index: usize, id: EndId, operation: OperationId) {
        let room = self.room(index, operation);
        let Some(end) = self.network.connections.get_mut(&id.connection) else { return };
        let bytes = end.ends[id.side].read_some(room, &mut self.random);
        let count = bytes.len();
        end.ends[1 - id.side].read_by_peer += count;
        let seen = super::trace::hash_bytes(&bytes);
        self.trace.event(self.now, "received: connection, side, hash", [id.connection, id.side as u64, seen]);
        self.plan_acknowledge(id.other());
        if !self.receives_once(index, operation) {
            return self.complete_part(index, operation, Output::Received(crate::net::Received::owned(bytes)));
        }
        if let Some(end) = self.network.end_mut(id) {
            end.receive = None;
        }
        self.place(index, operation, &bytes);
        self.complete(index, operation, Ok(Output::ReceivedOnce(count)));
    }

    /// Writes what a receive of one piece got to where it belongs.
    fn place(&mut self, index: usize, operation: OperationId, bytes: &[u8]) {
        let Some(Operation::ReceiveOnce { data, behind, .. }) = self.operation_mut(index, operation) else { return };
        let here = match data {
            Some((buffer, range)) => {
                let here = bytes.len().min(range.len());
                buffer[range.start..range.start + here].copy_from_slice(&bytes[..here]);
                here
            }
            None => 0,
        };
        behind[..bytes.len() - here].copy_from_slice(&bytes[here..]);
    }

    /// How much fits into the memory of a receive.
    fn room(&self, index: usize, operation: OperationId) -> usize {
        match self.operation(index, operation) {
            Some(Operation::ReceiveOnce { data, behind, .. }) => {
                data.as_ref().map_or(0, |(_, range)| range.len()) + behind.len()
            }
            _ => CHUNK,
        }
    }

    pub(super) fn plan_acknowledge(&mut self, id: EndId) {
        let from = self.peer_node(id);
        let Some(end) = self.network.end_mut(id) else { return };
        let to = end.node;
        if !std::mem::replace(&mut end.acknowledge_planned, true) {
            let delay = self.travel(from, to);
            self.plan(delay, NetworkEvent::Acknowledge(id));
        }
    }

    pub(super) fn acknowledge(&mut self, id: EndId) {
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
