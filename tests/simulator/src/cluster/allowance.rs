//! What limits allow, worked out anew: more than this never passes, in any time (`docs/qos.md`, "The buckets").

use std::time::Duration;

use block_device::{Limits, Request};
use reactor::Instant;

/// What is saved up at least, and what is while something waits.
const LEAST: Duration = Duration::from_millis(10);
const LEAST_FOR_WAITING: Duration = Duration::from_millis(100);

/// Parts of a command or a byte.
const PARTS: i128 = 1_000_000_000;

/// What one limit of a volume allows, over its life.
///
/// In any time `t` no more begins than `limit × t + burst`, and one command, because a command begins while anything is left. So what is
/// left is counted down by what begins, and grows with the time up to the burst.
#[derive(Clone, Debug)]
struct Allowance {
    /// In a second.
    rate: u64,
    most: Duration,
    /// In parts.
    left: i128,
    /// How much began since the limit was set, and when that was.
    begun: u64,
    since: Instant,
    at: Instant,
}

impl Allowance {
    fn new(rate: u64, burst: Duration, saved: Duration, now: Instant) -> Option<Self> {
        let most = burst.max(LEAST_FOR_WAITING);
        let left = worth(rate, saved.min(burst).max(LEAST));
        (rate > 0).then_some(Self { rate, most, left, begun: 0, since: now, at: now })
    }

    fn pass_time(&mut self, now: Instant) {
        let elapsed = now - self.at;
        self.at = self.at.max(now);
        let grown = self.left + i128::from(self.rate) * elapsed.as_nanos() as i128;
        self.left = grown.min(worth(self.rate, self.most));
    }

    /// For how long it was saved.
    fn saved(&self) -> Duration {
        // A run takes minutes.
        Duration::from_nanos((self.left.max(0) / i128::from(self.rate)) as u64)
    }

    fn take(&mut self, count: u64, now: Instant) -> Result<(), String> {
        self.pass_time(now);
        if self.left <= 0 {
            let time = now - self.since;
            return Err(format!("after {} in {time:.6?}, at {} a second, another {count}", self.begun, self.rate));
        }
        self.left -= i128::from(count) * PARTS;
        self.begun += count;
        Ok(())
    }
}

/// What accrues in a time, but at least one.
fn worth(rate: u64, time: Duration) -> i128 {
    (i128::from(rate) * time.as_nanos() as i128).max(PARTS)
}

/// What the limits of a volume allow.
#[derive(Clone, Debug)]
pub(super) struct Allowances {
    limits: Limits,
    commands: Option<Allowance>,
    bytes: Option<Allowance>,
}

impl Allowances {
    /// Nothing was saved yet.
    pub(super) fn new(limits: Limits, now: Instant) -> Self {
        Self::with_saved(limits, [Duration::ZERO; 2], now)
    }

    fn with_saved(limits: Limits, [commands, bytes]: [Duration; 2], now: Instant) -> Self {
        Self {
            limits,
            commands: Allowance::new(limits.iops, limits.burst, commands, now),
            bytes: Allowance::new(limits.bytes_per_second, limits.burst, bytes, now),
        }
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    /// Other limits: what was owed is forgotten, and of what was saved as much is kept as the new burst allows. The same ones change nothing.
    pub(super) fn change(&mut self, limits: Limits, now: Instant) {
        if limits == self.limits {
            return;
        }
        let saved = [&mut self.commands, &mut self.bytes].map(|allowance| {
            allowance.as_mut().map_or(Duration::ZERO, |allowance| {
                allowance.pass_time(now);
                allowance.saved()
            })
        });
        *self = Self::with_saved(limits, saved, now);
    }

    /// A request begins. The error tells which limit it breaks.
    pub(super) fn take(&mut self, request: &Request, now: Instant) -> Result<(), String> {
        if let Some(commands) = &mut self.commands {
            commands.take(1, now).map_err(|told| format!("{told} command(s)"))?;
        }
        if let Some(bytes) = &mut self.bytes {
            bytes.take(moved(request), now).map_err(|told| format!("{told} bytes"))?;
        }
        Ok(())
    }
}

/// The bytes that a request moves.
fn moved(request: &Request) -> u64 {
    match request {
        Request::Read { range } => range.length,
        Request::Write { data, .. } | Request::Compare { data, .. } => data.len() as u64,
        Request::Unmap { .. } | Request::WriteZeroes { .. } | Request::Flush => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64) -> Instant {
        Instant::from_nanos(milliseconds * 1_000_000)
    }

    fn taken(allowances: &mut Allowances, now: Instant) -> u64 {
        let read = Request::read(0, 4096);
        (0..).find(|_| allowances.take(&read, now).is_err()).unwrap_or_default()
    }

    #[test]
    fn it_allows_the_burst_and_the_rate_and_one_command() {
        let limits = Limits { iops: 1_000, bytes_per_second: 0, burst: Duration::from_secs(2) };
        let mut allowances = Allowances::new(limits, at(0));
        assert_eq!(taken(&mut allowances, at(0)), 10);
        assert_eq!(taken(&mut allowances, at(500)), 500);
        assert_eq!(taken(&mut allowances, at(100_000)), 2_000);
        let mut allowances = Allowances::new(Limits { iops: 0, bytes_per_second: 1 << 20, ..limits }, at(0));
        assert_eq!(taken(&mut allowances, at(0)), 3, "the last one owes");
    }

    #[test]
    fn other_limits_keep_what_was_saved_and_no_more() {
        let limits = Limits { iops: 1_000, bytes_per_second: 0, burst: Duration::from_secs(2) };
        let mut allowances = Allowances::new(limits, at(0));
        allowances.change(Limits { iops: 500, ..limits }, at(1_000));
        assert_eq!(taken(&mut allowances, at(1_000)), 505);
        allowances.change(limits, at(1_000));
        assert_eq!(taken(&mut allowances, at(1_000)), 10);
        allowances.change(limits, at(1_000));
        assert_eq!(taken(&mut allowances, at(1_000)), 0);
    }
}
