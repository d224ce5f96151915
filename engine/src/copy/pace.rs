//! When a copy may go on: not while it is paused, not without a place, not above its rate, not where hosts would feel it.
//!
//! All waiting is done here, before a region is locked: nobody waits for a copy that waits.

use std::time::Duration;

use block_device::Range;
use reactor::{Instant, now, sleep};
use tokio::sync::OwnedSemaphorePermit;

use super::walk::{Walk, side_by_side};
use super::{Interrupted, Job};
use crate::core::Core;

/// A rate or a share may become larger meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Regions that a copy works at side by side. More would only take longer each, and writes wait for regions.
const LANES: usize = 4;

/// Bytes of the smallest step, and into how many a second is cut while the rate is limited.
const SMALLEST_STEP: u64 = 64 << 10;
const STEPS_A_SECOND: u64 = 16;

/// One step of a copy, or of whoever else reads beside hosts, while it lives.
pub(crate) struct Step<'a> {
    core: &'a Core,
    begun: Instant,
    /// Bytes that it may look at.
    pub(crate) size: u64,
}

impl Drop for Step<'_> {
    fn drop(&mut self) {
        self.core.guard.borrow_mut().end_step(self.begun, now());
        self.core.signals.step_ended.notify_waiters();
    }
}

impl Job<'_> {
    /// Waits until a step may begin.
    pub(super) async fn step(&self) -> Step<'_> {
        let mut place = self.place.lock().await;
        loop {
            if self.must_pause() {
                // Others use it meanwhile.
                *place = None;
                self.waits("paused");
                self.core.until(|| (!self.must_pause()).then_some(())).await;
            } else if place.is_none() {
                *place = Some(self.take_place().await);
            } else if let Some(pause) = self.core.unpaid() {
                sleep(pause.min(LOOK_AGAIN)).await;
            } else if !self.core.may_step().await {
                // It waited; the rest may be otherwise now.
            } else {
                break;
            }
        }
        self.progress(|copy| copy.waiting = None);
        let mut step = self.core.begin_step();
        step.size = step.size.min(self.core.affordable());
        step
    }

    async fn take_place(&self) -> OwnedSemaphorePermit {
        let (rebuilds, settles) = (&self.core.config.rebuilds, !self.pausable.get());
        if let Some(place) = rebuilds.try_place(settles) {
            return place;
        }
        self.waits(&format!("waits for its turn: the node copies to {} replicas at once", rebuilds.count()));
        rebuilds.place(settles).await
    }

    fn must_pause(&self) -> bool {
        self.pausable.get() && self.core.rebuild.get().paused
    }

    /// Looks at all regions that a walk finds, several at once. All lanes have ended when it returns, also after an error: what one of
    /// them has sent must not arrive after something else was done with the target.
    pub(super) async fn walk(
        &self,
        walk: &Walk<'_>,
        each: impl AsyncFn(Range) -> Result<(), Interrupted>,
    ) -> Result<(), Interrupted> {
        side_by_side((0..LANES).map(|_| self.lane(walk, &each))).await
    }

    async fn lane(
        &self,
        walk: &Walk<'_>,
        each: &impl AsyncFn(Range) -> Result<(), Interrupted>,
    ) -> Result<(), Interrupted> {
        while let Some(region) = walk.next(self).await? {
            let mut offset = region.offset;
            while offset < region.end() {
                let step = self.step().await;
                let length = step.size.min(region.end() - offset);
                let range = Range { offset, length };
                each(range).await.inspect_err(|_| walk.end())?;
                drop(step);
                self.passed(range);
                offset += length;
            }
        }
        Ok(())
    }
}

impl Core {
    /// Something was read from a replica by a copy, or sent to one.
    pub(super) fn spend(&self, bytes: u64) {
        let now = now();
        self.bucket.spend(bytes, now);
        self.config.rebuilds.bucket().spend(bytes, now);
    }

    /// How long until what copies took is within their rates; none if it is.
    fn unpaid(&self) -> Option<Duration> {
        let now = now();
        let wait = self.bucket.wait(now).max(self.config.rebuilds.bucket().wait(now));
        (!wait.is_zero()).then_some(wait)
    }

    /// Bytes of a step: few where the rate is low, as it is paid for afterwards.
    fn affordable(&self) -> u64 {
        let rates = [self.bucket.rate(), self.config.rebuilds.rate()];
        let rate = rates.into_iter().filter(|rate| *rate > 0).min().unwrap_or(u64::MAX);
        (rate / STEPS_A_SECOND).next_multiple_of(SMALLEST_STEP).max(SMALLEST_STEP)
    }

    /// Waits until hosts leave room for a step, and begins it.
    pub(crate) async fn step_beside_hosts(&self) -> Step<'_> {
        while !self.may_step().await {}
        self.begin_step()
    }

    fn begin_step(&self) -> Step<'_> {
        let size = self.guard.borrow_mut().begin_step(now(), self.has_requests());
        Step { core: self, begun: now(), size }
    }

    /// Whether hosts leave room for a step now. If not, it has waited for a moment when they might.
    async fn may_step(&self) -> bool {
        if !self.config.rebuild_guard {
            return true;
        }
        let ended = self.signals.step_ended.notified();
        let wait = self.guard.borrow().wait(now(), self.has_requests());
        match wait {
            Some(Duration::ZERO) => return true,
            Some(wait) => sleep(wait).await,
            None => ended.await,
        }
        false
    }

    fn has_requests(&self) -> bool {
        self.flight.borrow().in_flight() > 0
    }
}
