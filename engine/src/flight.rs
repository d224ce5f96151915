//! Requests in flight: their places, and who has to wait for whom.
//!
//! A write claims its ranges when it arrives and gives them back when it is answered. A request that overlaps an earlier
//! claim waits. So overlapping writes reach every replica in the order of their arrival, and a read never runs
//! beside a write to the same block, which one replica may have and another not (I9).

use std::collections::VecDeque;

use block_device::{Error, Outcome, Range, Reply, Request};
use reactor::{Instant, bug};
use smallvec::SmallVec;

use crate::members::Mask;
use crate::reading::is_read;

/// Requests in flight and waiting, together. More are answered with Busy (I33).
pub(crate) const MAX_REQUESTS: usize = 4096;

/// Stands for no member: a read that waits to be tried on another one. It keeps its place until then.
pub(crate) const AGAIN: Mask = 1 << 31;

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Behind an earlier claim, or held.
    Waiting,
    /// A write whose regions are not noted yet.
    Noting,
    /// At replicas.
    Active,
    /// A read that has its data, but not the certainty that it is the newest.
    Leasing,
    /// All replicas have answered; the membership has to be recorded before the host is.
    Recording,
    /// Failed everywhere; what it may have changed is being settled.
    Settling,
    /// A read that has its answer, while others who were asked still work at it.
    Answered,
}

/// One request.
pub(crate) struct Slot {
    pub(crate) request: Request,
    pub(crate) reply: Option<Reply>,
    pub(crate) stage: Stage,
    pub(crate) since: Instant,
    /// The session in which it was sent as a write; zero before.
    pub(crate) session: u64,
    /// A flush whose end says what is durable everywhere.
    pub(crate) tells: bool,
    /// The order of arrival.
    pub(crate) sequence: u64,
    /// Members it was sent to.
    pub(crate) sent: Mask,
    /// Members that have not answered, and [`AGAIN`].
    pub(crate) pending: Mask,
    /// Of a read: the members asked last, and when.
    pub(crate) asked: (Mask, Instant),
    /// Members that have it.
    pub(crate) done: Mask,
    /// What a read will be answered with once that is certain to be the newest.
    pub(crate) held: Option<Outcome>,
    /// Requests that had come by then.
    held_at: u64,
    /// What the others said.
    pub(crate) errors: SmallVec<[(usize, Error); 2]>,
}

/// A range that overlapping requests have to wait for.
struct Claim {
    range: Range,
    sequence: u64,
    owner: Owner,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    Write(usize),
    /// The copier keeps writes out; reads may pass.
    Copy,
}

/// Everything in flight.
#[derive(Default)]
pub(crate) struct Flight {
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    /// In order of arrival. A scan is cheap for as many as are in flight at once.
    claims: Vec<Claim>,
    /// In order of arrival.
    waiting: VecDeque<usize>,
    sequence: u64,
    /// While above zero no write starts.
    holds: u32,
    /// While set nothing starts.
    frozen: bool,
    /// Answers that are held.
    held: usize,
}

impl Flight {
    /// Takes a request in, if there is room: its place, and whether it can start now.
    pub(crate) fn insert(&mut self, request: Request, reply: Reply, now: Instant) -> Result<(usize, bool), Reply> {
        if self.in_flight() >= MAX_REQUESTS {
            return Err(reply);
        }
        self.sequence += 1;
        let sequence = self.sequence;
        let slot = Slot {
            request,
            reply: Some(reply),
            stage: Stage::Active,
            since: now,
            session: 0,
            tells: false,
            sequence,
            sent: 0,
            pending: 0,
            asked: (0, now),
            done: 0,
            held: None,
            held_at: 0,
            errors: SmallVec::new(),
        };
        let free = !self.must_wait(&slot);
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        if slot.request.is_write() {
            let owner = Owner::Write(index);
            self.claims.extend(ranges(&slot.request).into_iter().map(|range| Claim { range, sequence, owner }));
        }
        let slot = self.slots[index].insert(slot);
        if !free {
            slot.stage = Stage::Waiting;
            self.waiting.push_back(index);
        }
        Ok((index, free))
    }

    /// How many requests are in flight or waiting.
    pub(crate) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// A request by its place.
    pub(crate) fn slot(&mut self, index: usize) -> &mut Slot {
        self.slots[index]
            .as_mut()
            .expect("a place is used from insert to remove, and tokens are given out in between only")
    }

    /// Takes a request out; its claims end. Says whether someone may be able to start now.
    pub(crate) fn remove(&mut self, index: usize) -> (Slot, bool) {
        let slot = self.slots[index].take().expect("a place is removed once, by whoever answers the request");
        self.free.push(index);
        if slot.stage == Stage::Waiting {
            self.waiting.retain(|waiting| *waiting != index);
        }
        let is_write = slot.request.is_write();
        if is_write {
            self.claims.retain(|claim| claim.owner != Owner::Write(index));
        }
        (slot, is_write)
    }

    /// The first of those that wait that need not any more; it is active from now on.
    pub(crate) fn next_ready(&mut self) -> Option<usize> {
        let ready = self.waiting.iter().position(|&index| match &self.slots[index] {
            Some(slot) => !self.must_wait(slot),
            None => false,
        })?;
        let index = self.waiting.remove(ready)?;
        self.slot(index).stage = Stage::Active;
        Some(index)
    }

    /// Whether anyone waits.
    pub(crate) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The places of all requests at this stage.
    pub(crate) fn at(&self, stage: Stage) -> Vec<usize> {
        let at =
            |(index, slot): (usize, &Option<Slot>)| slot.as_ref().filter(|slot| slot.stage == stage).map(|_| index);
        self.slots.iter().enumerate().filter_map(at).collect()
    }

    /// How many places there are, in use or not.
    pub(crate) fn places(&self) -> usize {
        self.slots.len()
    }

    /// The read at a place, if replicas are at one there that has no answer yet.
    pub(crate) fn reading(&self, index: usize) -> Option<&Slot> {
        let slot = self.slots.get(index)?.as_ref()?;
        let waits = slot.stage != Stage::Active || slot.pending & AGAIN != 0;
        (!waits && is_read(&slot.request)).then_some(slot)
    }

    /// Whether a write is at replicas of which a read beside it may have brought some, and that had come when the read's answer was
    /// held, if it is.
    pub(crate) fn is_beside_a_write(&self, index: usize) -> bool {
        let Some(slot) = self.slots.get(index).and_then(Option::as_ref) else { return false };
        let newest = if slot.held.is_some() { slot.held_at } else { self.sequence };
        self.claims.iter().any(|claim| match claim.owner {
            Owner::Write(write) => {
                claim.sequence <= newest && slot.request.touches(&claim.range) && self.is_at_replicas(write)
            }
            Owner::Copy => false,
        })
    }

    fn is_at_replicas(&self, index: usize) -> bool {
        let stage = self.slots[index].as_ref().map(|slot| slot.stage);
        matches!(stage, Some(Stage::Active | Stage::Recording | Stage::Settling))
    }

    /// Keeps the answer of a read.
    pub(crate) fn hold_answer(&mut self, index: usize, outcome: Outcome) {
        let now = self.sequence;
        let slot = self.slot(index);
        (slot.stage, slot.held, slot.held_at) = (Stage::Leasing, Some(outcome), now);
        self.held += 1;
    }

    /// Takes a kept answer out.
    pub(crate) fn take_held(&mut self, index: usize) -> Option<Outcome> {
        let held = self.slot(index).held.take();
        self.held -= usize::from(held.is_some());
        held
    }

    /// Whether answers are kept.
    pub(crate) const fn holds_answers(&self) -> bool {
        self.held > 0
    }

    /// A write to these ranges failed: nobody knows whether it stays what reads beside it have brought.
    pub(crate) fn fail_held(&mut self, ranges: &[Range], error: &Error) {
        for slot in self.slots.iter_mut().flatten().filter(|slot| slot.held.is_some()) {
            if ranges.iter().any(|range| slot.request.touches(range)) {
                slot.held = Some(Err(error.clone()));
            }
        }
    }

    /// What writes are at replicas of.
    pub(crate) fn written(&self) -> impl Iterator<Item = Range> + '_ {
        self.claims.iter().filter_map(|claim| match claim.owner {
            Owner::Write(write) if self.is_at_replicas(write) => Some(claim.range),
            Owner::Write(_) | Owner::Copy => None,
        })
    }

    /// Whether a write has started and not been answered.
    pub(crate) fn has_active_writes(&self) -> bool {
        self.slots.iter().flatten().any(|slot| slot.stage != Stage::Waiting && slot.request.is_write())
    }

    /// Keeps writes from starting until [`Flight::release`].
    pub(crate) fn hold(&mut self) {
        self.holds += 1;
    }

    /// Ends one hold.
    pub(crate) fn release(&mut self) {
        self.holds -= 1;
    }

    /// Keeps everything from starting, or lets it start again.
    pub(crate) fn freeze(&mut self, frozen: bool) {
        self.frozen = frozen;
    }

    /// Whether nothing starts now.
    pub(crate) fn is_frozen(&self) -> bool {
        self.frozen
    }

    /// Whether anything has started and not been answered.
    pub(crate) fn is_active(&self) -> bool {
        self.in_flight() > self.waiting.len()
    }

    /// Claims a range for the copier; later writes to it wait. The number names the claim.
    pub(crate) fn claim_copy(&mut self, range: Range) -> u64 {
        self.sequence += 1;
        self.claims.push(Claim { range, sequence: self.sequence, owner: Owner::Copy });
        self.sequence
    }

    /// Whether no earlier write touches the copier's claim.
    pub(crate) fn copy_is_free(&self, sequence: u64) -> bool {
        if bug!("copy-beside-earlier-writes") {
            return true;
        }
        let Some(own) = self.claims.iter().find(|claim| claim.sequence == sequence) else { return true };
        !self
            .claims
            .iter()
            .any(|claim| claim.sequence < sequence && claim.owner != Owner::Copy && claim.range.overlaps(&own.range))
    }

    /// Ends the copier's claim.
    pub(crate) fn unclaim_copy(&mut self, sequence: u64) {
        self.claims.retain(|claim| claim.sequence != sequence);
    }

    fn must_wait(&self, slot: &Slot) -> bool {
        let is_write = slot.request.is_write();
        if self.frozen || (is_write && self.holds > 0) {
            return true;
        }
        if bug!("let-writes-overlap") {
            return false;
        }
        self.claims.iter().any(|claim| {
            claim.sequence < slot.sequence
                && (is_write || claim.owner != Owner::Copy)
                && slot.request.touches(&claim.range)
        })
    }
}

/// What a request that changes something changes.
pub(crate) fn ranges(request: &Request) -> SmallVec<[Range; 2]> {
    match request {
        Request::Write { offset, data, .. } => {
            [Range { offset: *offset, length: data.len() as u64 }].into_iter().collect()
        }
        Request::WriteZeroes { range, .. } => [*range].into_iter().collect(),
        Request::Unmap { ranges } => ranges.clone(),
        Request::Read { .. } | Request::Compare { .. } | Request::Flush => SmallVec::new(),
    }
}

#[cfg(test)]
mod tests {
    use block_device::{Completions, Slice};

    use super::*;

    fn insert(flight: &mut Flight, request: Request) -> (usize, bool) {
        let reply = Reply::new(Completions::new(), 0);
        flight.insert(request, reply, Instant::default()).map_err(drop).expect("there is room")
    }

    fn write(offset: u64) -> Request {
        Request::write(offset, Slice::zeroes(4096))
    }

    #[test]
    fn overlapping_writes_start_in_the_order_of_their_arrival() {
        let mut flight = Flight::default();
        let (first, started) = insert(&mut flight, write(0));
        assert!(started);
        let (second, started) = insert(&mut flight, write(0));
        assert!(!started);
        let (third, started) = insert(&mut flight, write(0));
        assert!(!started);
        assert!(insert(&mut flight, write(4096)).1, "another range does not wait");
        assert_eq!(flight.next_ready(), None);
        flight.remove(first);
        assert_eq!(flight.next_ready(), Some(second));
        assert_eq!(flight.next_ready(), None);
        flight.remove(second);
        assert_eq!(flight.next_ready(), Some(third));
    }

    #[test]
    fn a_read_waits_for_an_earlier_write_but_not_for_a_later_one() {
        let mut flight = Flight::default();
        let (early, started) = insert(&mut flight, Request::read(0, 4096));
        assert!(started);
        let (first, started) = insert(&mut flight, write(0));
        assert!(started, "a read in flight keeps no write back");
        let (read, started) = insert(&mut flight, Request::read(0, 8192));
        assert!(!started);
        flight.remove(early);
        assert_eq!(flight.next_ready(), None);
        flight.remove(first);
        assert_eq!(flight.next_ready(), Some(read));
    }

    #[test]
    fn a_write_does_not_overtake_one_that_waits() {
        let mut flight = Flight::default();
        let (first, _) = insert(&mut flight, write(0));
        let (wide, _) = insert(&mut flight, Request::write(0, Slice::zeroes(8192)));
        let (second, started) = insert(&mut flight, write(4096));
        assert!(!started, "it overlaps the one that waits");
        flight.remove(first);
        assert_eq!(flight.next_ready(), Some(wide));
        assert_eq!(flight.next_ready(), None);
        flight.remove(wide);
        assert_eq!(flight.next_ready(), Some(second));
    }

    #[test]
    fn a_hold_stops_writes_and_lets_reads_and_flushes_pass() {
        let mut flight = Flight::default();
        flight.hold();
        let (held, started) = insert(&mut flight, write(0));
        assert!(!started);
        assert!(insert(&mut flight, Request::read(8192, 4096)).1);
        assert!(insert(&mut flight, Request::Flush).1);
        assert!(!flight.has_active_writes());
        flight.release();
        assert_eq!(flight.next_ready(), Some(held));
        assert!(flight.has_active_writes());
    }

    #[test]
    fn a_freeze_stops_everything_and_tells_when_all_is_quiet() {
        let mut flight = Flight::default();
        let (early, _) = insert(&mut flight, Request::read(0, 4096));
        flight.freeze(true);
        let (read, started) = insert(&mut flight, Request::read(4096, 4096));
        assert!(!started && !insert(&mut flight, Request::Flush).1);
        assert!(flight.is_active());
        flight.remove(early);
        assert!(!flight.is_active());
        assert_eq!(flight.next_ready(), None);
        flight.freeze(false);
        assert_eq!(flight.next_ready(), Some(read));
        assert!(flight.is_active());
    }

    #[test]
    fn the_copier_waits_for_writes_before_it_and_holds_up_those_after() {
        let mut flight = Flight::default();
        let (before, _) = insert(&mut flight, write(0));
        let claim = flight.claim_copy(Range { offset: 0, length: 1 << 20 });
        assert!(!flight.copy_is_free(claim));
        let (after, started) = insert(&mut flight, write(4096));
        assert!(!started);
        assert!(insert(&mut flight, Request::read(8192, 4096)).1, "reads pass the copier");
        flight.remove(before);
        assert!(flight.copy_is_free(claim));
        assert_eq!(flight.next_ready(), None);
        flight.unclaim_copy(claim);
        assert_eq!(flight.next_ready(), Some(after));
    }

    #[test]
    fn there_is_a_bound() {
        let mut flight = Flight::default();
        for _ in 0..MAX_REQUESTS {
            insert(&mut flight, Request::Flush);
        }
        let reply = Reply::new(Completions::new(), 0);
        assert!(flight.insert(Request::Flush, reply, Instant::default()).is_err());
    }
}
