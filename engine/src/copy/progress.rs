//! How far a copy is, and how long it may take.

use std::time::Duration;

use block_device::Range;
use reactor::{Instant, now};

use super::Job;
use crate::config::CopyProgress;

/// How often the pace is measured.
const SAMPLE: Duration = Duration::from_millis(500);
/// How much of it comes from the last measurement.
const NEWEST: f64 = 0.3;

/// The pace of a copy.
#[derive(Default)]
pub(super) struct Speed {
    /// Where the lvol being copied begins and ends among all that is gone through.
    lvol: (u64, u64),
    /// When it was last measured; what was gone through and what was moved until then.
    measured: Option<(Instant, u64, u64)>,
    /// Bytes a second gone through, and moved.
    pace: Option<(f64, f64)>,
}

impl Speed {
    fn measure(&mut self, now: Instant, copy: &mut CopyProgress) {
        let moved = copy.compared + copy.written;
        let Some((since, done, before)) = self.measured else {
            self.measured = Some((now, copy.done, moved));
            return;
        };
        let time = now - since;
        if time < SAMPLE {
            return;
        }
        let newest = [(copy.done, done), (moved, before)];
        let [done, moved_now] = newest.map(|(to, from)| to.saturating_sub(from) as f64 / time.as_secs_f64());
        let mix = |old: f64, new: f64| old + (new - old) * NEWEST;
        let pace = match self.pace {
            Some((old_done, old_moved)) => (mix(old_done, done), mix(old_moved, moved_now)),
            None => (done, moved_now),
        };
        (self.pace, self.measured) = (Some(pace), Some((now, copy.done, moved)));
        copy.rate = pace.1 as u64;
        let left = copy.total.saturating_sub(copy.done) as f64;
        copy.remaining = Duration::try_from_secs_f64((left / pace.0).round()).ok();
    }
}

impl Job<'_> {
    pub(super) fn progress(&self, change: impl FnOnce(&mut CopyProgress)) {
        let mut members = self.core.members.borrow_mut();
        // None when the session has ended meanwhile.
        if let Some(member) = members.0.get_mut(self.member) {
            change(member.copy.get_or_insert_default());
        }
    }

    /// The next lvol, of which `length` bytes are to be gone through, and after which there are `more` of about the same kind.
    pub(super) fn begin_progress(&self, step: String, length: u64, more: usize) {
        let lvol = &mut self.speed.borrow_mut().lvol;
        self.progress(|copy| {
            copy.step = step;
            // Holes at the end of the one before are passed too.
            copy.done = copy.done.max(lvol.1);
            *lvol = (copy.done, copy.done + length);
            copy.total = copy.done + length * (1 + more as u64);
        });
    }

    /// A range was gone through, and nearly all before it in an lvol that is looked at from its start to its end.
    pub(super) fn passed(&self, range: Range) {
        let mut speed = self.speed.borrow_mut();
        let (start, end) = speed.lvol;
        let partial = self.partial.get();
        self.progress(|copy| {
            let to = if partial { copy.done + range.length } else { copy.done.max(start + range.end()) };
            copy.done = to.min(end);
            speed.measure(now(), copy);
        });
    }

    /// It does not go on now, for a reason that people are told.
    pub(super) fn waits(&self, reason: &str) {
        self.speed.borrow_mut().measured = None;
        self.progress(|copy| {
            copy.waiting = Some(reason.to_owned());
            (copy.rate, copy.remaining) = (0, None);
        });
    }

    /// Bytes were read on both sides and compared.
    pub(super) fn compared(&self, bytes: u64) {
        self.core.spend(bytes);
        self.progress(|copy| copy.compared += bytes);
    }

    /// Bytes were sent to the target.
    pub(super) fn sent(&self, bytes: u64) {
        self.core.spend(bytes);
        self.progress(|copy| copy.written += bytes);
    }
}
