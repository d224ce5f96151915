//! One TCP connection: two ends, and what travels between them. Bytes are in order and whole until a reset.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;

use super::random::Random;
use crate::driver::{OperationId, ResourceId};

/// How many bytes of one direction may be sent and not yet read, the socket buffers of both sides together.
pub(crate) const WINDOW: usize = 256 << 10;

/// Names one end of a connection. Connections are never named twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct EndId {
    pub(crate) connection: u64,
    /// 0: the one that connected, 1: the one that accepted.
    pub(crate) side: usize,
}

impl EndId {
    pub(crate) fn other(self) -> Self {
        Self { connection: self.connection, side: 1 - self.side }
    }

    /// What traces show of it.
    pub(crate) fn details(self, third: usize) -> [u64; 3] {
        [self.connection, self.side as u64, third as u64]
    }
}

/// Who has an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The kernel, until a program accepts it.
    Waiting,
    Attached {
        reactor: usize,
        resource: ResourceId,
    },
    /// On its way between two reactors.
    Detached,
    /// Nobody: closed, or its process is dead.
    Closed,
}

/// A piece of one direction.
#[derive(Debug)]
pub(crate) enum Piece {
    /// The last step of the handshake: the connection can be accepted.
    Open,
    Bytes(Vec<u8>),
    /// No more bytes come.
    End,
}

#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) piece: Piece,
    pub(crate) arrives: u64,
}

/// One end and the direction that starts at it.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) node: usize,
    pub(crate) address: SocketAddr,
    pub(crate) place: Place,
    pub(crate) failed: Option<io::ErrorKind>,
    /// Its machine lost its power: nothing is sent again, and nobody is told.
    pub(crate) gone: bool,

    /// Bytes that arrived and were not read.
    pub(crate) arrived: VecDeque<u8>,
    pub(crate) end_arrived: bool,
    pub(crate) receive: Option<OperationId>,

    pub(crate) send: Option<OperationId>,
    pub(crate) end_sent: bool,
    /// Sent and not known to be read by the peer.
    pub(crate) in_flight: usize,
    /// Of these, what the peer has read without this end knowing yet.
    pub(crate) read_by_peer: usize,
    /// What has not arrived yet, in order.
    pub(crate) wire: VecDeque<Segment>,
    pub(crate) last_arrival: u64,
    pub(crate) arrival_planned: bool,
    pub(crate) acknowledge_planned: bool,
    /// Grows with each sign of life of the peer.
    pub(crate) progress: u64,
}

impl End {
    pub(crate) fn new(node: usize, address: SocketAddr, place: Place) -> Self {
        Self {
            node,
            address,
            place,
            failed: None,
            gone: false,
            arrived: VecDeque::new(),
            end_arrived: false,
            receive: None,
            send: None,
            end_sent: false,
            in_flight: 0,
            read_by_peer: 0,
            wire: VecDeque::new(),
            last_arrival: 0,
            arrival_planned: false,
            acknowledge_planned: false,
            progress: 0,
        }
    }

    /// Whether a receive would end or give something now.
    pub(crate) fn has_news(&self) -> bool {
        !self.arrived.is_empty() || self.end_arrived || self.failed.is_some()
    }

    /// Whether the peer owes this end a sign of life.
    pub(crate) fn waits_for_peer(&self) -> bool {
        self.failed.is_none() && (self.in_flight > 0 || !self.wire.is_empty())
    }

    /// Fails the end: nothing more is sent, and what arrived but was not read may be lost.
    pub(crate) fn fail(&mut self, error: io::ErrorKind, random: &mut Random) {
        self.failed = Some(error);
        self.wire.clear();
        self.in_flight = 0;
        self.read_by_peer = 0;
        if random.one_in(2) {
            self.arrived.truncate(random.index(self.arrived.len() + 1));
        }
    }

    /// Takes some of the bytes that arrived: usually what there is `room` for, sometimes any part, sometimes a few bytes,
    /// so that a parser meets every split.
    pub(crate) fn read_some(&mut self, room: usize, random: &mut Random) -> Vec<u8> {
        let here = self.arrived.len();
        let count = match random.below(16) {
            0 => 1 + random.index(8),
            1..4 => 1 + random.index(here),
            _ => here,
        };
        self.arrived.drain(..count.min(here).min(room)).collect()
    }
}

/// The most bytes of one received chunk.
pub(crate) const CHUNK: usize = 64 << 10;

#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) ends: [End; 2],
    /// The listener that it was made for.
    pub(crate) listener: u64,
}
