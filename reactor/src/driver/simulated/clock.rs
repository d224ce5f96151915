//! A machine's monotonic clock: it starts anywhere, and runs a little fast or slow.

use super::random::Random;

/// What ordinary crystals keep: at most this many millionths off.
const MAX_DRIFT: i64 = 200;

/// A clock, as a function of the world's time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// What it showed when the world began, in nanoseconds.
    offset: u64,
    /// Millionths by which it is fast; slow if negative.
    drift: i64,
}

impl Clock {
    /// The clock of a machine that was just switched on.
    pub(crate) fn start(random: &mut Random) -> Self {
        // A clock's start has nothing to do with that of the boot before.
        let offset = random.below(1 << 50);
        let drift = random.below(2 * MAX_DRIFT as u64 + 1) as i64 - MAX_DRIFT;
        Self { offset, drift }
    }

    /// What it shows at a time of the world.
    pub(crate) fn show(&self, world: u64) -> u64 {
        self.offset.saturating_add(world.saturating_add_signed(self.gain(world)))
    }

    /// The first time of the world at which it shows `local` or more.
    pub(crate) fn when(&self, local: u64) -> u64 {
        let passed = local.saturating_sub(self.offset);
        let rate = (1_000_000 + self.drift) as u128;
        let world = (u128::from(passed) * 1_000_000).div_ceil(rate);
        let mut world = u64::try_from(world).unwrap_or(u64::MAX);
        // Gains are rounded towards zero: it may be a nanosecond too early or too late.
        while world < u64::MAX && self.show(world) < local {
            world += 1;
        }
        while world > 0 && self.show(world - 1) >= local {
            world -= 1;
        }
        world
    }

    /// By how much it is ahead of one that runs right, in nanoseconds.
    pub(crate) fn gain(&self, world: u64) -> i64 {
        let gain = i128::from(world) * i128::from(self.drift) / 1_000_000;
        i64::try_from(gain).unwrap_or(if gain < 0 { i64::MIN } else { i64::MAX })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_clock_shows_is_when_it_shows_it() {
        let mut random = Random::new(1);
        for _ in 0..1000 {
            let clock = Clock::start(&mut random);
            let world = random.below(1 << 50);
            let shown = clock.show(world);
            let when = clock.when(shown);
            assert!(when <= world && clock.show(when) >= shown, "{clock:?} at {world}");
            assert!(when == 0 || clock.show(when - 1) < shown, "{clock:?}: it shows {shown} before {when}");
        }
    }

    #[test]
    fn a_clock_runs_on_and_never_back() {
        let mut random = Random::new(2);
        let clock = Clock::start(&mut random);
        let mut last = 0;
        for world in 0..10_000 {
            let shown = clock.show(world * 7);
            assert!(shown >= last);
            last = shown;
        }
    }
}
