//! Counters of a reactor, for metrics and its watchdog: written by its thread, read by any.

use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use std::time::Duration;

use crate::time::Instant;

/// Says what a reactor does: a task's type, or a step of a turn.
pub(crate) type Name = fn() -> &'static str;

/// The steps of a turn that are no task.
pub(crate) fn messages() -> &'static str {
    "messages of other threads"
}

pub(crate) fn kernel() -> &'static str {
    "the kernel, which starts operations"
}

pub(crate) fn completions() -> &'static str {
    "completions"
}

/// Counters of one reactor since it started. Reading them costs the reactor nothing.
#[derive(Debug, Default)]
pub struct Stats {
    turns: AtomicU64,
    completions: AtomicU64,
    sleeps: AtomicU64,
    slept_nanoseconds: AtomicU64,
    /// When the sleep that goes on began; 0 while there is none.
    asleep_since: AtomicU64,
    submit_nanoseconds: AtomicU64,
    spins: AtomicU64,
    spun_nanoseconds: AtomicU64,
    panics: AtomicU64,
    /// A [`Name`], or null while the reactor sleeps or has not begun.
    activity: AtomicPtr<()>,
    ended: AtomicBool,
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

    /// How long it slept until `now`, with the sleep that goes on. It may be a little less than a moment before when a sleep
    /// ends meanwhile.
    pub fn slept_until(&self, now: Instant) -> Duration {
        match self.asleep_since.load(Ordering::Acquire) {
            0 => self.slept(),
            since => self.slept() + (now - Instant::from_nanos(since)),
        }
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

    /// How many tasks and jobs have panicked.
    pub fn panics(&self) -> u64 {
        self.panics.load(Ordering::Relaxed)
    }

    /// What the reactor does now: the type of the task that runs, or a step of its turn. None while it sleeps.
    ///
    /// Read this before the counters: those of a sleep that ended before are then there, too.
    pub fn activity(&self) -> Option<&'static str> {
        let name = self.activity.load(Ordering::Acquire);
        if name.is_null() {
            return None;
        }
        // SAFETY: only `set_activity` stores anything else than null, and that is a function of this type.
        let name = unsafe { std::mem::transmute::<*mut (), Name>(name) };
        Some(name())
    }

    /// Whether its thread has ended, in whatever way.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    pub(crate) fn set_activity(&self, name: Name) {
        self.activity.store(name as *mut (), Ordering::Release);
    }

    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    pub(crate) fn count_panic(&self) {
        add(&self.panics, 1);
    }

    pub(crate) fn count_submit(&self, time: Duration) {
        add(&self.submit_nanoseconds, nanoseconds(time));
    }

    pub(crate) fn count_turn(&self, completions: usize) {
        add(&self.turns, 1);
        add(&self.completions, completions as u64);
    }

    pub(crate) fn begin_sleep(&self, now: Instant) {
        self.asleep_since.store(now.as_nanos(), Ordering::Release);
        self.activity.store(std::ptr::null_mut(), Ordering::Release);
    }

    /// The sleep is over, and the reactor goes on in the kernel's part of its turn.
    pub(crate) fn end_sleep(&self, time: Duration) {
        self.asleep_since.store(0, Ordering::Release);
        add(&self.sleeps, 1);
        add(&self.slept_nanoseconds, nanoseconds(time));
        self.set_activity(kernel);
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
