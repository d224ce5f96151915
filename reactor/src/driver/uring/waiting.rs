//! How a reactor waits: it spins briefly while that pays, then sleeps in the kernel until something completes or
//! another thread rings.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use io_uring::{opcode, types};

use super::ring::Ring;
use crate::driver::Wait;
use crate::stats::Stats;
use crate::time::Instant;

/// Wakes a reactor from other threads. A reactor that is awake costs them one store; one that sleeps is woken by the
/// first who rings, and by nobody else until it sleeps again.
pub(crate) struct Doorbell {
    event: OwnedFd,
    rung: AtomicBool,
    asleep: AtomicBool,
}

impl Doorbell {
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: no memory is passed.
        let event = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if event < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made, and nobody else owns it.
        let event = unsafe { OwnedFd::from_raw_fd(event) };
        Ok(Self { event, rung: AtomicBool::new(false), asleep: AtomicBool::new(false) })
    }

    /// Makes the reactor look at its messages soon.
    pub(crate) fn ring(&self) {
        // Sequentially consistent, like the pair in `fall_asleep`: at least one side sees the other.
        self.rung.store(true, Ordering::SeqCst);
        if self.asleep.swap(false, Ordering::SeqCst) {
            let one = 1_u64;
            // SAFETY: the descriptor is ours and the eight bytes live through the call. It cannot block before 2^64 - 2 rings.
            let written = unsafe { libc::write(self.event.as_raw_fd(), (&raw const one).cast(), size_of::<u64>()) };
            debug_assert_eq!(written, 8, "an eventfd takes its eight bytes");
        }
    }

    /// Whether somebody rang since the last [`Doorbell::answer`].
    pub(super) fn is_rung(&self) -> bool {
        self.rung.load(Ordering::Relaxed)
    }

    /// Forgets the rings so far. The caller looks at all messages afterwards.
    pub(super) fn answer(&self) {
        if self.is_rung() {
            self.rung.swap(false, Ordering::SeqCst);
        }
    }

    /// Announces a sleep. False if somebody has rung: there is something to do first.
    pub(super) fn fall_asleep(&self) -> bool {
        self.asleep.store(true, Ordering::SeqCst);
        if self.rung.load(Ordering::SeqCst) {
            self.asleep.store(false, Ordering::SeqCst);
            return false;
        }
        true
    }

    pub(super) fn wake_up(&self) {
        self.asleep.store(false, Ordering::SeqCst);
    }

    pub(super) fn descriptor(&self) -> i32 {
        self.event.as_raw_fd()
    }
}

/// What a wait is for, as far as it tells whether spinning pays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Awaited {
    /// Also something that runs on another thread, which needs the processor that a spin would take.
    Threads,
    /// Disks, whatever else.
    Disks,
    /// Anything else: hosts, replicas, timers.
    Others,
}

/// The wait of a turn.
pub(super) struct Waiting {
    doorbell: Arc<Doorbell>,
    /// Whether a read of the bell's event is in flight, into `event`.
    listening: bool,
    event: Box<u64>,
    /// One for waits with disks in them and one for those without: a host on a fast network before a slow disk makes short waits and long
    /// ones by turns, and one that is lost takes away what two gave.
    disks: Patience,
    others: Patience,
    stats: Arc<Stats>,
}

/// How much longer than for others it spins for disks. A good one takes some 100 µs for a transfer, and being woken up for it half as
/// much again in a guest: docs/performance.md has what each limit costs and brings.
const LONGER_FOR_DISKS: u32 = 4;

/// Marks the completion of the read of the bell's event.
pub(super) const BELL: u64 = u64::MAX;

impl Waiting {
    pub(super) fn new(doorbell: Arc<Doorbell>, busy_poll: Duration, stats: Arc<Stats>) -> Self {
        let disks = Patience::new(busy_poll.saturating_mul(LONGER_FOR_DISKS));
        let others = Patience::new(busy_poll);
        Self { doorbell, listening: false, event: Box::default(), disks, others, stats }
    }

    /// Submits what there is and waits as told, unless there are completions already.
    pub(super) fn advance(&mut self, ring: &mut Ring, wait: Wait, awaited: Awaited) -> io::Result<()> {
        self.submit(ring)?;
        let deadline = match wait {
            Wait::Poll => return Ok(()),
            Wait::Until(deadline) => Some(deadline),
            Wait::Forever => None,
        };
        if ring.has_completions() || self.doorbell.is_rung() {
            return Ok(());
        }
        let spin = self.patience(awaited).spin_time().filter(|_| awaited != Awaited::Threads);
        if let Some(limit) = spin
            && self.spin(ring, limit, deadline, awaited)
        {
            return self.submit(ring);
        }
        let slept = self.sleep(ring, deadline)?;
        if let Some(time) = slept.filter(|_| spin.is_none()) {
            self.patience(awaited).slept(time);
        }
        Ok(())
    }

    fn patience(&mut self, awaited: Awaited) -> &mut Patience {
        match awaited {
            Awaited::Disks => &mut self.disks,
            Awaited::Threads | Awaited::Others => &mut self.others,
        }
    }

    /// The read of the bell's event has completed.
    pub(super) fn heard(&mut self) {
        self.listening = false;
    }

    /// Whether the kernel may still write to the event.
    pub(super) fn is_listening(&self) -> bool {
        self.listening
    }

    /// Leaves the event's memory to the kernel for ever.
    pub(super) fn leak(&mut self) {
        std::mem::forget(std::mem::take(&mut self.event));
    }

    /// Starts what was pushed, and lets the kernel finish what it has kept for this thread.
    fn submit(&self, ring: &mut Ring) -> io::Result<()> {
        if !ring.has_submissions() && !ring.has_deferred_work() {
            return Ok(());
        }
        let start = super::monotonic_now();
        let result = ring.submit();
        self.stats.count_submit(super::monotonic_now() - start);
        result
    }

    /// Looks for completions and rings until the limit. False if none came and the deadline is still ahead.
    fn spin(&mut self, ring: &mut Ring, limit: Duration, deadline: Option<Instant>, awaited: Awaited) -> bool {
        let start = super::monotonic_now();
        let end = start + limit;
        let (over, now) = loop {
            let found = ring.has_deferred_work() || ring.has_completions() || self.doorbell.is_rung();
            let now = super::monotonic_now();
            if found {
                self.patience(awaited).spin_paid();
                break (true, now);
            }
            if deadline.is_some_and(|deadline| deadline <= now) {
                break (true, now);
            }
            if end <= now {
                self.patience(awaited).spin_lost();
                break (false, now);
            }
            std::hint::spin_loop();
        };
        self.stats.count_spin(now - start);
        over
    }

    /// Returns how long it slept, if it did.
    fn sleep(&mut self, ring: &mut Ring, deadline: Option<Instant>) -> io::Result<Option<Duration>> {
        if !self.listen(ring) || !self.doorbell.fall_asleep() {
            return Ok(None);
        }
        let start = super::monotonic_now();
        self.stats.begin_sleep(start);
        let result = ring.sleep(deadline.map(|deadline| deadline - start));
        self.doorbell.wake_up();
        let time = super::monotonic_now() - start;
        self.stats.end_sleep(time);
        result.map(|()| Some(time))
    }

    /// Sees to it that the bell wakes a sleep. False if the ring has no room for it now.
    fn listen(&mut self, ring: &mut Ring) -> bool {
        if !self.listening {
            let event = (&raw mut *self.event).cast();
            let read = opcode::Read::new(types::Fd(self.doorbell.descriptor()), event, 8).build().user_data(BELL);
            // SAFETY: the event is boxed and lives until the read has completed (see `is_listening`); nobody else uses it.
            self.listening = unsafe { ring.push(&read) };
        }
        self.listening
    }
}

/// Decides whether the next wait begins with spinning, by what the last ones brought.
///
/// A wait that would end within the limit is worth spinning for: no sleep, no wake-up, half the latency. A longer one
/// is not, as the spin is lost on top of the sleep. Short waits raise the credit, lost spins take twice as much.
pub(super) struct Patience {
    limit: Duration,
    credit: u8,
}

const MOST_CREDIT: u8 = 16;

impl Patience {
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, credit: 0 }
    }

    /// How long to spin before sleeping; none when it would not pay.
    pub(super) fn spin_time(&self) -> Option<Duration> {
        (self.credit > 0 && !self.limit.is_zero()).then_some(self.limit)
    }

    /// The spin brought something.
    pub(super) fn spin_paid(&mut self) {
        self.credit = (self.credit + 1).min(MOST_CREDIT);
    }

    /// The spin brought nothing.
    pub(super) fn spin_lost(&mut self) {
        self.credit = self.credit.saturating_sub(2);
    }

    /// A sleep without a spin before it took so long.
    pub(super) fn slept(&mut self, time: Duration) {
        if time <= self.limit {
            self.credit = (self.credit + 2).min(MOST_CREDIT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spins_only_while_waits_are_short() {
        let limit = Duration::from_micros(50);
        let mut patience = Patience::new(limit);
        assert_eq!(patience.spin_time(), None, "an idle reactor never spins");
        patience.slept(limit / 2);
        assert_eq!(patience.spin_time(), Some(limit));
        patience.spin_lost();
        assert_eq!(patience.spin_time(), None);
        patience.slept(limit * 2);
        assert_eq!(patience.spin_time(), None, "long waits, as of timers, are slept through");
    }

    #[test]
    fn a_limit_of_zero_never_spins() {
        let mut patience = Patience::new(Duration::ZERO);
        patience.slept(Duration::ZERO);
        assert_eq!(patience.spin_time(), None);
    }

    #[test]
    fn whoever_rings_first_wakes_the_sleeper_and_nobody_else() {
        let bell = Doorbell::new().expect("an eventfd");
        bell.ring();
        assert!(!bell.fall_asleep(), "rung while awake: no sleep");
        bell.answer();
        assert!(bell.fall_asleep());
        bell.ring();
        bell.ring();
        let mut count = 0_u64;
        // SAFETY: eight bytes of our own; the read cannot block, as the bell has been rung.
        let read = unsafe { libc::read(bell.descriptor(), (&raw mut count).cast(), 8) };
        assert_eq!((read, count), (8, 1));
    }
}
