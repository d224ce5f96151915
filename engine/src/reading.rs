//! The path of a read: one replica is asked, another one when that fails or is slow, and the first good answer counts.
//!
//! `docs/replication.md`, "Reads", has the rules. What is asked beside the first keeps its place among the requests in flight until it
//! has answered, so that no token ever means another request.

use std::rc::Rc;
use std::time::Duration;

use block_device::{Error, ErrorKind, Outcome, Range, Request, Segments};
use reactor::{Instant, now};
use replica::Replica;
use smallvec::SmallVec;

use crate::core::Core;
use crate::flight::{AGAIN, Slot, Stage};
use crate::members::{Members, bit};

/// How often reads in flight are looked at, and how long one may take at least before another replica is asked too.
const LOOK: Duration = Duration::from_millis(25);
const PATIENCE: Duration = Duration::from_millis(50);

/// How many times as long as usual a read may take before that.
const USUALLY: u32 = 4;

/// What becomes of a read after an answer.
enum Next {
    /// Somebody is still at it.
    Wait,
    /// It is tried on another one.
    Again,
    /// The host gets this; others may still be at it.
    Answer(Outcome, bool),
    /// The host has its answer, and nobody is at it any more.
    Over,
}

impl Core {
    /// Sends a read to the best replica that was not asked yet, and now and then to one that has to be measured.
    pub(crate) fn start_read(&self, index: usize, now: Instant) {
        let (targets, request, others) = {
            let mut flight = self.flight.borrow_mut();
            let slot = flight.slot(index);
            let members = self.members.borrow();
            let targets = choose(slot, &members, now);
            (targets, as_sent(&slot.request), members.readable() & !slot.sent != 0)
        };
        if targets.is_empty() {
            return self.fail_read(index);
        }
        if others && !self.hurrying.replace(true) {
            self.signals.reading.notify_one();
        }
        for (member, replica) in targets {
            replica.submit(request.clone(), self.reply(index, member));
        }
    }

    /// No member in sync is left to try: once all that were asked have answered, the read has failed.
    fn fail_read(&self, index: usize) {
        let error = {
            let mut flight = self.flight.borrow_mut();
            let slot = flight.slot(index);
            if slot.pending != 0 {
                return;
            }
            slot.errors.drain(..).next().map(|(_, error)| error)
        };
        let error = self.stopped().or(error);
        let lost = || Error::with_detail(ErrorKind::Unavailable, "no replica in sync can be reached");
        self.finish(index, Err(error.unwrap_or_else(lost)));
    }

    /// One member has answered a read.
    pub(crate) fn read_answered(&self, index: usize, member: usize, outcome: Outcome) {
        // Once: a look at the clock costs as much as all the rest of this.
        let now = now();
        let next = {
            let mut flight = self.flight.borrow_mut();
            let slot = flight.slot(index);
            slot.pending &= !bit(member);
            let members = self.members.borrow();
            let (asked, since) = slot.asked;
            if let Some(member) = members.0.get(member).filter(|_| outcome.is_ok() && asked & bit(member) != 0) {
                member.latency.note(now - since, slot.request.transfer());
            }
            if matches!(&outcome, Err(error) if error.kind() == ErrorKind::ReadFailed) {
                self.want_mended(member, range_of(&slot.request));
            }
            take(slot, &members, member, outcome)
        };
        match next {
            Next::Wait => {}
            Next::Again => {
                // Not from here: this may be within a submit of the replica.
                self.again.borrow_mut().push(index);
                self.signals.pump.notify_one();
            }
            Next::Answer(outcome, _) if !self.may_answer_reads(now) || self.is_beside_a_write(index) => {
                self.hold_answer(index, outcome)
            }
            Next::Answer(outcome, false) => self.finish_at(index, outcome, now),
            Next::Answer(outcome, true) => self.answer_early(index, outcome, now),
            Next::Over => self.finish_at(index, Ok(Segments::none()), now),
        }
    }

    /// Answers the host while others are still at the read.
    pub(crate) fn answer_early(&self, index: usize, outcome: Outcome, now: Instant) {
        // I14: an engine that has stopped answers nothing.
        let outcome = self.stopped().map_or(outcome, Err);
        let reply = {
            let mut flight = self.flight.borrow_mut();
            let slot = flight.slot(index);
            slot.stage = Stage::Answered;
            if slot.reply.is_some() {
                self.config.meter.end(slot.sequence);
                self.measure(&slot.request, now - slot.since, &outcome);
            }
            slot.reply.take()
        };
        if let Some(reply) = reply {
            reply.complete(outcome);
        }
    }

    /// Tries a read that failed on another member, unless one that was asked before has answered meanwhile.
    pub(crate) fn read_again(&self, index: usize) {
        let (answered, over) = {
            let mut flight = self.flight.borrow_mut();
            let slot = flight.slot(index);
            slot.pending &= !AGAIN;
            if slot.held.is_some() {
                return;
            }
            (slot.reply.is_none(), slot.pending == 0)
        };
        match (answered, over) {
            (false, _) => self.start_read(index, now()),
            (true, true) => self.finish(index, Ok(Segments::none())),
            (true, false) => {}
        }
    }

    /// Asks other members for reads that take too long. Runs for as long as the engine; sleeps while nothing is read that another one
    /// could be asked for.
    pub(crate) async fn hurry(self: Rc<Self>) {
        loop {
            self.signals.reading.notified().await;
            while self.hurrying.get() {
                reactor::sleep(LOOK).await;
                self.hurrying.set(false);
                // One by one: what is sent may end others.
                let places = self.flight.borrow().places();
                (0..places).for_each(|index| self.look_at(index));
            }
        }
    }

    fn look_at(&self, index: usize) {
        let late = {
            let flight = self.flight.borrow();
            let members = self.members.borrow();
            let Some(slot) = flight.reading(index) else { return };
            if members.readable() & !slot.sent == 0 {
                return;
            }
            self.hurrying.set(true);
            self.is_late(slot, &members)
        };
        if late {
            self.start_read(index, now());
        }
    }

    /// Whether those asked last take too long. If so they are known to be slow from here on.
    fn is_late(&self, slot: &Slot, members: &Members) -> bool {
        let (asked, since) = slot.asked;
        let (took, length) = (now() - since, slot.request.transfer());
        let all = || members.0.iter().enumerate().filter(|(index, _)| asked & slot.pending & bit(*index) != 0);
        let usual = all().map(|(_, member)| member.latency.expected(length)).max().unwrap_or_default();
        let late = took >= (usual * USUALLY).clamp(PATIENCE, self.config.replica_deadline / 2);
        if late {
            all().for_each(|(_, member)| member.latency.note(took, length));
        }
        late
    }
}

/// Whom to send a read to now: nobody if all were asked.
fn choose(slot: &mut Slot, members: &Members, now: Instant) -> SmallVec<[(usize, Rc<dyn Replica>); 2]> {
    let mut targets = SmallVec::new();
    let Some(chosen) = members.reader(slot.sent) else { return targets };
    let unknown = if slot.sent == 0 { members.unknown(chosen, now) } else { None };
    slot.asked = (0, now);
    for index in [Some(chosen), unknown].into_iter().flatten() {
        let Some(replica) = members.replica(index) else { continue };
        members.0[index].latency.ask(now);
        slot.asked.0 |= bit(index);
        targets.push((index, replica));
    }
    slot.sent |= slot.asked.0;
    slot.pending |= slot.asked.0;
    targets
}

/// Takes in what a member said.
fn take(slot: &mut Slot, members: &Members, member: usize, outcome: Outcome) -> Next {
    if slot.reply.is_none() || slot.held.is_some() {
        return if slot.pending == 0 && slot.held.is_none() { Next::Over } else { Next::Wait };
    }
    match outcome {
        Ok(segments) => Next::Answer(outcome_of(&slot.request, segments), slot.pending != 0),
        Err(error) => {
            slot.errors.push((member, error));
            let queued = slot.pending & AGAIN != 0;
            let waits = slot.pending != 0 && members.reader(slot.sent).is_none();
            if queued || waits {
                return Next::Wait;
            }
            slot.pending |= AGAIN;
            Next::Again
        }
    }
}

/// Whether a request is answered by one replica.
pub(crate) const fn is_read(request: &Request) -> bool {
    matches!(request, Request::Read { .. } | Request::Compare { .. })
}

fn range_of(request: &Request) -> Range {
    match request {
        Request::Read { range } => *range,
        Request::Compare { offset, data } => Range { offset: *offset, length: data.len() as u64 },
        _ => Range { offset: 0, length: 0 },
    }
}

/// A compare is a read for the replica.
pub(crate) fn as_sent(request: &Request) -> Request {
    match request {
        Request::Compare { offset, data } => Request::read(*offset, data.len() as u64),
        other => other.clone(),
    }
}

fn outcome_of(request: &Request, segments: Segments) -> Outcome {
    match request {
        Request::Compare { data, .. } if !segments.equals(data) => Err(ErrorKind::CompareMismatch.into()),
        Request::Compare { .. } => Ok(Segments::none()),
        _ => Ok(segments),
    }
}
