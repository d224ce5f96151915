//! Reads of an engine that may have been replaced: they are answered only while it is certain that no newer engine has
//! acknowledged anything.
//!
//! Each replica in sync confirms the epoch about once a second. An engine answers reads for [`LEASE`] after the oldest of the last
//! confirmations was asked for; one that follows, and cannot open every replica in sync, waits that long and a little more. The
//! reasons are in `docs/replication.md`.

use std::time::Duration;

use block_device::{Error, ErrorKind, Outcome, Request};
use reactor::bug;

use crate::core::Core;
use crate::flight::{Stage, ranges};

/// How long after a confirmation was asked for reads may be answered.
pub(crate) const LEASE: Duration = Duration::from_secs(6);

/// How often it is looked whether reads that wait can be answered.
const PAUSE: Duration = Duration::from_millis(20);

impl Core {
    /// Whether a read that has its data may be answered (I9, I14). `now` is a look at the clock since it has: time that passed while the process
    /// was stopped counts too.
    pub(crate) fn may_answer_reads(&self, now: reactor::Instant) -> bool {
        now <= self.leased.get() || self.renew_lease(now) || bug!("read-after-the-lease")
    }

    fn renew_lease(&self, now: reactor::Instant) -> bool {
        // Never longer than from now on: whoever comes in sync later has not confirmed anything yet.
        let confirmed = self.members.borrow().confirmed();
        let leased = confirmed.map(|confirmed| confirmed.min(now) + self.config.lease);
        if let Some(leased) = leased {
            self.leased.set(leased);
        }
        leased.is_some_and(|leased| now <= leased)
    }

    /// How long an engine that takes the volume over waits for the reads of the one before: longer by more than two clocks differ in
    /// that time.
    pub(crate) fn take_over(&self) -> Duration {
        match bug!("take-over-without-waiting-for-the-lease") {
            true => Duration::ZERO,
            false => self.config.lease + self.config.lease / 15,
        }
    }

    /// Keeps the answer of a read until the replicas in sync confirm the epoch again, or are fewer, and no write is beside it. What was read
    /// is new enough then too: nobody else can have acknowledged anything before.
    pub(crate) fn hold_answer(&self, index: usize, outcome: Outcome) {
        self.flight.borrow_mut().hold_answer(index, outcome);
        self.signals.lease.notify_one();
    }

    /// Whether a read may have brought what a write beside it has written, which not all have yet: should the engine end now, the next one may
    /// settle on what was there before (I7), and nobody may have seen the new (I9).
    pub(crate) fn is_beside_a_write(&self, index: usize) -> bool {
        self.flight.borrow().is_beside_a_write(index) && !bug!("answer-beside-a-write")
    }

    /// A write has been answered: reads that waited for it may be answered too, or nobody knows what they brought.
    pub(crate) fn beside_is_over(&self, request: &Request, outcome: &Outcome) {
        let mut flight = self.flight.borrow_mut();
        if !flight.holds_answers() {
            return;
        }
        if outcome.is_err() {
            let error = Error::with_detail(ErrorKind::Unavailable, "a write to the same place failed meanwhile");
            flight.fail_held(&ranges(request), &error);
        }
        self.signals.lease.notify_one();
    }

    /// Gives reads the answers that were kept. Runs for a session.
    pub(crate) async fn keep_lease(&self) {
        loop {
            self.signals.lease.notified().await;
            while self.is_running() && !self.may_answer_reads(reactor::now()) {
                reactor::sleep(PAUSE).await;
            }
            if self.is_running() {
                self.answer_held(None);
            }
        }
    }

    /// Answers what was held: with what was read, or with an error. Other replicas may still be at it.
    pub(crate) fn answer_held(&self, error: Option<&Error>) {
        let held = self.flight.borrow().at(Stage::Leasing);
        for index in held {
            if error.is_none() && self.is_beside_a_write(index) {
                continue;
            }
            let (outcome, others) = {
                let mut flight = self.flight.borrow_mut();
                (flight.take_held(index), flight.slot(index).pending != 0)
            };
            let outcome = error.map_or(outcome, |error| Some(Err(error.clone())));
            let Some(outcome) = outcome else { continue };
            match others {
                true => self.answer_early(index, outcome, reactor::now()),
                false => self.finish(index, outcome),
            }
        }
    }
}
