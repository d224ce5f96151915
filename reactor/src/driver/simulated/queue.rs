//! The events to come, by time and then by the order in which they were planned.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

use super::network::NetworkEvent;

/// Something that happens at a time.
#[derive(Debug)]
pub(crate) enum Event {
    /// A reactor runs.
    Turn(usize),
    /// An operation of a disk or on files ends.
    Finish { reactor: usize, operation: usize, serial: u64 },
    /// The network does something.
    Network(NetworkEvent),
}

/// When a reactor is to run: the time, the order among events of that time, and the reactor.
pub(crate) type Turn = (u64, u64, usize);

#[derive(Debug, Default)]
pub(crate) struct Queue {
    heap: BinaryHeap<Reverse<Entry>>,
    /// Apart from the heap because turns are often planned anew, for an earlier time.
    turns: BTreeSet<Turn>,
    next: u64,
}

#[derive(Debug)]
struct Entry {
    at: u64,
    order: u64,
    event: Event,
}

impl Queue {
    /// Plans an event at a time in nanoseconds.
    pub(crate) fn push(&mut self, at: u64, event: Event) {
        self.next += 1;
        self.heap.push(Reverse(Entry { at, order: self.next, event }));
    }

    /// Plans a turn in the place of an earlier plan.
    pub(crate) fn push_turn(&mut self, at: u64, reactor: usize, instead: Option<Turn>) -> Turn {
        if let Some(turn) = instead {
            self.turns.remove(&turn);
        }
        self.next += 1;
        let turn = (at, self.next, reactor);
        self.turns.insert(turn);
        turn
    }

    /// The first event, if it happens no later than `limit`.
    pub(crate) fn pop(&mut self, limit: u64) -> Option<(u64, Event)> {
        let event = self.heap.peek().map(|Reverse(entry)| (entry.at, entry.order));
        let turn = self.turns.first().map(|&(at, order, _)| (at, order));
        let first = event.into_iter().chain(turn).min().filter(|&(at, _)| at <= limit)?;
        if turn == Some(first) {
            return self.turns.pop_first().map(|(at, _, reactor)| (at, Event::Turn(reactor)));
        }
        self.heap.pop().map(|Reverse(entry)| (entry.at, entry.event))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}
