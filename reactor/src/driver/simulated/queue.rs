//! The events to come, by time and then by the order in which they were planned.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::network::NetworkEvent;

/// Something that happens at a time.
#[derive(Debug)]
pub(crate) enum Event {
    /// A reactor runs, unless it was planned anew since.
    Turn { reactor: usize, plan: u64 },
    /// An operation of a disk or on files ends.
    Finish { reactor: usize, operation: usize, serial: u64 },
    /// The network does something.
    Network(NetworkEvent),
}

#[derive(Debug, Default)]
pub(crate) struct Queue {
    heap: BinaryHeap<Reverse<Entry>>,
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

    /// The first event, if it happens no later than `limit`.
    pub(crate) fn pop(&mut self, limit: u64) -> Option<(u64, Event)> {
        if self.heap.peek()?.0.at > limit {
            return None;
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
