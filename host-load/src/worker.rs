//! The part of a load that runs on one lane.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::{Rc, Weak};
use std::task::{Poll, Waker};
use std::time::Duration;

use reactor::{Buffer, Instant, Slice};

use super::job::Plan;
use super::offsets::Offsets;
use super::random::Random;
use super::report::{Figures, Report};
use super::stamp::fill_pattern;
use super::statistics::{Kind, Statistics};
use super::{Progress, SharedRecord};
use crate::host::{Host, Io, IoError, Lane, Sink};

/// How often a load with a rate looks whether more I/Os are due.
const PACE: Duration = Duration::from_millis(1);

type ErrorOf<H> = <<H as Host>::Lane as Lane>::Error;

/// What all workers of a load have in common.
pub(crate) struct Shared<H> {
    pub(crate) plan: Plan,
    host: Rc<H>,
    record: Option<SharedRecord>,
    statistics: RefCell<Statistics>,
    began: Instant,
    /// Between ramp and end of the run time.
    measuring: Cell<bool>,
    measured_from: Cell<Instant>,
    /// The end of the run time, once it is over; a load without one is measured to its report.
    measured_to: Cell<Option<Instant>>,
    stopping: Cell<bool>,
    aborted: Cell<bool>,
    started: Cell<u64>,
    completed: Cell<u64>,
    in_flight: Cell<u64>,
    /// Slots that wait for the rate, of all workers.
    resting: Cell<u64>,
    waiting: RefCell<Option<Waker>>,
    reconnects_before: u64,
}

/// One lane's share of a load.
pub(crate) struct Worker<H: Host> {
    shared: Rc<Shared<H>>,
    lane: H::Lane,
    this: Weak<Self>,
    state: RefCell<State>,
    /// What writes without verify send.
    pattern: Slice,
}

struct State {
    offsets: Offsets,
    random: Random,
    slots: Vec<Slot>,
    /// Slots that wait for the rate.
    resting: Vec<usize>,
    /// I/Os still to start.
    budget: u64,
    writes_since_flush: u32,
}

/// One I/O in flight.
struct Slot {
    kind: Kind,
    unit: u64,
    /// Of a verified read: the least generation it must return.
    least: u32,
    started: Instant,
    /// Of a verified read: what arrived. Of the unit's size once used, else empty.
    content: Vec<u8>,
}

impl<H: Host> Shared<H> {
    pub(crate) fn new(host: Rc<H>, plan: Plan, record: Option<SharedRecord>) -> Rc<Self> {
        let began = reactor::now();
        let reconnects_before = host.reconnects();
        Rc::new(Self {
            measuring: Cell::new(plan.job.ramp.is_zero()),
            plan,
            host,
            record,
            statistics: RefCell::default(),
            began,
            measured_from: Cell::new(began),
            measured_to: Cell::new(None),
            stopping: Cell::new(false),
            aborted: Cell::new(false),
            started: Cell::new(0),
            completed: Cell::new(0),
            in_flight: Cell::new(0),
            resting: Cell::new(0),
            waiting: RefCell::default(),
            reconnects_before,
        })
    }

    pub(crate) fn progress(&self) -> Progress {
        let statistics = self.statistics.borrow();
        Progress {
            completed: self.completed.get(),
            errors: statistics.error_count,
            faults: statistics.verified.failed,
            in_flight: self.in_flight.get(),
        }
    }

    pub(crate) fn stop(&self) {
        self.stopping.set(true);
        self.end_if_drained();
    }

    /// Waits for the end of the ramp, then of the run time; returns at once when there is no run time.
    pub(crate) async fn keep_time(&self) {
        let ramp_end = self.began + self.plan.job.ramp;
        if !self.measuring.get() {
            self.until(ramp_end).await;
            self.statistics.borrow_mut().restart();
            self.measured_from.set(reactor::now());
            self.measuring.set(true);
        }
        if let Some(runtime) = self.plan.job.runtime {
            self.until(ramp_end + runtime).await;
            self.measuring.set(false);
            self.measured_to.set(Some(reactor::now()));
            self.stop();
        }
    }

    /// Waits until a point in time, or until nothing is left to do.
    async fn until(&self, deadline: Instant) {
        let limit = deadline - reactor::now();
        // Elapsed is the ordinary case here.
        let _ = reactor::timeout(limit, self.drained()).await;
    }

    /// Waits until nothing is in flight and nothing will be started any more.
    pub(crate) async fn drained(&self) {
        poll_fn(|context| {
            if self.is_drained() {
                return Poll::Ready(());
            }
            *self.waiting.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    pub(crate) fn report(&self) -> Report {
        let statistics = self.statistics.borrow();
        let end = self.measured_to.get().unwrap_or_else(reactor::now);
        let elapsed = end - self.measured_from.get();
        let block_size = u64::from(self.plan.job.block_size);
        let aborted = self.aborted.get().then(|| self.host.failure().unwrap_or_else(|| "connection lost".to_owned()));
        Report {
            job: self.plan.job.clone(),
            elapsed,
            read: Figures::new(&statistics.read, block_size, elapsed),
            write: Figures::new(&statistics.write, block_size, elapsed),
            flush: Figures::new(&statistics.flush, 0, elapsed),
            errors: statistics.errors.clone(),
            verify: statistics.verified.clone(),
            reconnects: self.host.reconnects() - self.reconnects_before,
            aborted,
        }
    }

    fn is_drained(&self) -> bool {
        self.in_flight.get() == 0 && (self.stopping.get() || self.resting.get() == 0)
    }

    fn end_if_drained(&self) {
        if self.is_drained()
            && let Some(waker) = self.waiting.borrow_mut().take()
        {
            waker.wake();
        }
    }

    /// Whether the rate lets one more I/O start now.
    fn may_start(&self, now: Instant) -> bool {
        let Some(rate) = self.plan.job.rate else { return true };
        let elapsed = (now - self.began).as_nanos();
        // One at once, then evenly.
        u128::from(self.started.get()) <= elapsed * u128::from(rate) / 1_000_000_000
    }
}

impl<H: Host> Worker<H> {
    /// The worker on lane `number`.
    pub(crate) fn new(shared: &Rc<Shared<H>>, number: u16) -> Rc<Self> {
        let Plan { job, units, budget, .. } = &shared.plan;
        let (number, jobs) = (u64::from(number), u64::from(job.jobs));
        let (offsets, budget) = if job.rw.is_random() {
            let share = budget / jobs + u64::from(number < budget % jobs);
            (Offsets::random(Random::new(job.seed, 2 * number), *units), share)
        } else {
            let offsets = Offsets::sequential(*units, number, jobs);
            let budget = job.loops.map_or(u64::MAX, |loops| offsets.pass().saturating_mul(loops.into()));
            (offsets, budget)
        };
        let slot = || Slot { kind: Kind::Read, unit: 0, least: 0, started: shared.began, content: Vec::new() };
        let state = State {
            offsets,
            random: Random::new(job.seed, 2 * number + 1),
            slots: (0..job.depth).map(|_| slot()).collect(),
            resting: Vec::new(),
            budget,
            writes_since_flush: 0,
        };
        let mut pattern = Buffer::new(job.block_size as usize);
        fill_pattern(&mut pattern, job.seed ^ number);
        Rc::new_cyclic(|this| Self {
            shared: Rc::clone(shared),
            lane: shared.host.lane(number as usize),
            this: this.clone(),
            state: RefCell::new(state),
            pattern: pattern.freeze(),
        })
    }

    /// Starts as many I/Os as the depth allows.
    pub(crate) fn start(&self) {
        let now = reactor::now();
        let depth = self.state.borrow().slots.len();
        self.shared.in_flight.set(self.shared.in_flight.get() + depth as u64);
        (0..depth).for_each(|slot| self.next(slot, now));
        self.lane.flush();
    }

    /// Starts the next I/O in a slot that counts as in flight, or lets it rest.
    fn next(&self, slot: usize, now: Instant) {
        let shared = &self.shared;
        if shared.stopping.get() {
            return self.end(false, slot);
        }
        if !shared.may_start(now) {
            return self.end(true, slot);
        }
        let Some(io) = self.state.borrow_mut().next_io(self, slot, now) else {
            return self.end(false, slot);
        };
        shared.started.set(shared.started.get() + 1);
        let Some(this) = self.this.upgrade() else { unreachable!("whoever calls this has an Rc") };
        if self.lane.submit(io, this, slot as u64).is_err() {
            // As many slots as the lane is deep: it refuses only when it is gone for good.
            self.state.borrow().abandon(self, slot);
            shared.aborted.set(true);
            shared.stopping.set(true);
            self.end(false, slot);
        }
    }

    /// Takes a slot out of flight, for good or until the rate allows.
    fn end(&self, rest: bool, slot: usize) {
        let shared = &self.shared;
        shared.in_flight.set(shared.in_flight.get() - 1);
        if rest {
            shared.resting.set(shared.resting.get() + 1);
            self.state.borrow_mut().resting.push(slot);
        }
        shared.end_if_drained();
    }

    /// Starts what the rate allows by now.
    fn wake_rested(&self) {
        let now = reactor::now();
        let shared = &self.shared;
        while shared.may_start(now) && !shared.stopping.get() {
            let Some(slot) = self.state.borrow_mut().resting.pop() else { break };
            shared.resting.set(shared.resting.get() - 1);
            shared.in_flight.set(shared.in_flight.get() + 1);
            self.next(slot, now);
        }
        self.lane.flush();
    }
}

impl State {
    /// Chooses what to do next in `slot`; none when everything is done.
    fn next_io<H: Host>(&mut self, worker: &Worker<H>, slot: usize, now: Instant) -> Option<Io> {
        let Plan { job, geometry, .. } = &worker.shared.plan;
        if job.flush_every > 0 && self.writes_since_flush >= job.flush_every {
            self.writes_since_flush = 0;
            self.slots[slot].begin(Kind::Flush, 0, now);
            return Some(Io::Flush);
        }
        let unit = self.next_unit(worker)?;
        let is_read = job.rw.reads() && (!job.rw.writes() || self.random.below(100) < u64::from(job.read_percent));
        let blocks = job.block_size / geometry.block_size;
        let first_block = job.offset / u64::from(geometry.block_size);
        let block_of = |unit: u64| first_block + unit * u64::from(blocks);
        if is_read {
            self.slots[slot].begin(Kind::Read, unit, now);
            self.slots[slot].expect(worker);
            return Some(Io::Read { block: block_of(unit), blocks });
        }
        self.writes_since_flush += 1;
        let (unit, data) = worker.content(unit);
        self.slots[slot].begin(Kind::Write, unit, now);
        Some(Io::Write { block: block_of(unit), blocks, data })
    }

    fn next_unit<H: Host>(&mut self, worker: &Worker<H>) -> Option<u64> {
        let only_written = worker.shared.plan.only_written;
        loop {
            self.budget = self.budget.checked_sub(1)?;
            let unit = self.offsets.next();
            match &worker.shared.record {
                Some(record) if only_written && !record.borrow().was_issued(unit) => {}
                _ => return Some(unit),
            }
        }
    }

    /// Undoes the begin of a write that was never sent.
    fn abandon<H: Host>(&self, worker: &Worker<H>, slot: usize) {
        if let (Kind::Write, Some(record)) = (self.slots[slot].kind, &worker.shared.record) {
            record.borrow_mut().end_write(self.slots[slot].unit, false);
        }
    }
}

impl Slot {
    fn begin(&mut self, kind: Kind, unit: u64, now: Instant) {
        (self.kind, self.unit, self.started) = (kind, unit, now);
    }

    /// Prepares a read for being verified.
    fn expect<H: Host>(&mut self, worker: &Worker<H>) {
        if let Some(record) = &worker.shared.record {
            self.least = record.borrow().begin_read(self.unit);
            self.content.resize(worker.shared.plan.job.block_size as usize, 0);
        }
    }
}

impl<H: Host> Worker<H> {
    /// What to write to `unit`, or to one after it that has no write in flight.
    fn content(&self, unit: u64) -> (u64, Slice) {
        let Some(record) = &self.shared.record else { return (unit, self.pattern.clone()) };
        let mut data = Buffer::new(self.shared.plan.job.block_size as usize);
        let unit = record.borrow_mut().begin_write(unit, &mut data);
        let Some(unit) = unit else { unreachable!("a plan has at least as many units as writes in flight") };
        (unit, data.freeze())
    }

    /// Books the end of the I/O in `slot`.
    fn finished(&self, slot: &Slot, outcome: Result<(), ErrorOf<H>>, now: Instant) {
        let shared = &self.shared;
        let mut statistics = shared.statistics.borrow_mut();
        if let Some(record) = &shared.record {
            let mut record = record.borrow_mut();
            match slot.kind {
                Kind::Write => record.end_write(slot.unit, outcome.is_ok()),
                Kind::Read if outcome.is_ok() => {
                    statistics.checked(record.end_read(slot.unit, slot.least, &slot.content));
                }
                Kind::Read | Kind::Flush => {}
            }
        }
        match outcome {
            Ok(()) => {
                if slot.kind != Kind::Flush {
                    shared.completed.set(shared.completed.get() + 1);
                }
                if shared.measuring.get() {
                    statistics.success(slot.kind, (now.as_nanos()).saturating_sub(slot.started.as_nanos()));
                }
            }
            Err(error) => {
                statistics.error(error);
                if error.is_lost() {
                    shared.aborted.set(true);
                    shared.stopping.set(true);
                }
            }
        }
    }
}

impl<H: Host> Sink<ErrorOf<H>> for Worker<H> {
    #[inline]
    fn data(&self, token: u64, offset: usize, bytes: &[u8]) {
        if self.shared.record.is_some() {
            let slot = &mut self.state.borrow_mut().slots[token as usize];
            slot.content[offset..offset + bytes.len()].copy_from_slice(bytes);
        }
    }

    #[inline]
    fn complete(&self, token: u64, outcome: Result<(), ErrorOf<H>>) {
        let now = reactor::now();
        self.finished(&self.state.borrow().slots[token as usize], outcome, now);
        self.next(token as usize, now);
    }
}

/// Wakes what waits for the rate, until it is aborted.
pub(crate) async fn pace<H: Host>(workers: Vec<Rc<Worker<H>>>) {
    loop {
        reactor::sleep(PACE).await;
        workers.iter().for_each(|worker| worker.wake_rested());
    }
}
