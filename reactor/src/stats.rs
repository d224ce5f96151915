//! Counters of a reactor, for metrics: written by its thread, read by any.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Counters of one reactor since it started. Reading them costs the reactor nothing.
#[derive(Debug, Default)]
pub struct Stats {
    turns: AtomicU64,
    completions: AtomicU64,
    sleeps: AtomicU64,
    slept_nanoseconds: AtomicU64,
    submit_nanoseconds: AtomicU64,
    spins: AtomicU64,
    spun_nanoseconds: AtomicU64,
}

impl Stats {
    /// Turns of the reactor. An idle one makes none.
    pub fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    /// Completions from the kernel.
    pub fn completions(&self) -> u64 {
        self.completions.load(Ordering::Relaxed)
    }

    /// How often the reactor went to sleep in the kernel.
    pub fn sleeps(&self) -> u64 {
        self.sleeps.load(Ordering::Relaxed)
    }

    /// How long it slept; a sleep that goes on is not counted yet.
    pub fn slept(&self) -> Duration {
        Duration::from_nanos(self.slept_nanoseconds.load(Ordering::Relaxed))
    }

    /// How often the reactor spun while waiting.
    pub fn spins(&self) -> u64 {
        self.spins.load(Ordering::Relaxed)
    }

    /// How long it spun. What is left of its life after this, [`Stats::slept`] and [`Stats::in_kernel`] is the work of its
    /// own code.
    pub fn spun(&self) -> Duration {
        Duration::from_nanos(self.spun_nanoseconds.load(Ordering::Relaxed))
    }

    /// How long it was in the kernel to start operations and to take what has completed, where most of the work of
    /// sockets is done.
    pub fn in_kernel(&self) -> Duration {
        Duration::from_nanos(self.submit_nanoseconds.load(Ordering::Relaxed))
    }

    pub(crate) fn count_submit(&self, time: Duration) {
        add(&self.submit_nanoseconds, nanoseconds(time));
    }

    pub(crate) fn count_turn(&self, completions: usize) {
        add(&self.turns, 1);
        add(&self.completions, completions as u64);
    }

    pub(crate) fn count_sleep(&self, time: Duration) {
        add(&self.sleeps, 1);
        add(&self.slept_nanoseconds, nanoseconds(time));
    }

    pub(crate) fn count_spin(&self, time: Duration) {
        add(&self.spins, 1);
        add(&self.spun_nanoseconds, nanoseconds(time));
    }
}

/// Only the reactor's thread writes, so a plain addition does.
fn add(counter: &AtomicU64, count: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
