//! How fast background work goes: a rate, and room for the I/O of hosts.

use std::cell::Cell;
use std::time::Duration;

use reactor::{Instant, now, sleep};

use crate::core::Core;

/// More I/O than this in flight is a busy store.
const BUSY: u64 = 8;

/// How long background work gives way at most before it takes one more step: it is slow then, but ends.
const PATIENCE: Duration = Duration::from_millis(200);

/// How often it looks whether it may go on.
const LOOK: Duration = Duration::from_millis(10);

/// One kind of background work's pace.
#[derive(Default)]
pub(super) struct Pace {
    /// Bytes a second.
    rate: Cell<u64>,
    /// When the next step is due.
    next: Cell<Option<Instant>>,
}

impl Pace {
    pub(super) fn rate(&self) -> u64 {
        self.rate.get()
    }

    pub(super) fn set_rate(&self, rate: u64) {
        self.rate.set(rate);
    }

    /// Waits until a step of so many bytes is due and the store has time for it, or `stop` says not to.
    pub(super) async fn step(&self, core: &Core, bytes: u64, stop: impl Fn() -> bool) {
        while let Some(next) = self.next.get()
            && now() < next
            && !stop()
        {
            sleep((next - now()).min(LOOK)).await;
        }
        let start = now();
        while core.io.grace.in_flight() > BUSY && now() - start < PATIENCE && !stop() {
            sleep(LOOK).await;
        }
        // A rate of zero stops the work elsewhere.
        let cost = Duration::from_secs_f64(bytes as f64 / self.rate.get().max(1) as f64);
        self.next.set(Some(now() + cost.min(Duration::from_secs(60))));
    }
}
