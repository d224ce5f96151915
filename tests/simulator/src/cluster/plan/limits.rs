//! Limits of volumes that come, change and go during a plan, and hosts that break off while their commands wait for them.

use std::time::Duration;

use block_device::Limits;
use reactor::simulated::Random;

use super::{Act, Plan, Step};

/// Seeds that find a deliberate bug with a plan without limits, and little else would.
const KEPT: [u64; 3] = [100, 178, 293];

/// Of so many plans one has limits.
const ONE_IN: u64 = 4;

const MIB: u64 = 1 << 20;

/// Gives a plan limits, if the seed says so. Chance of its own: the plans of all other seeds are what they were, and under the limits this
/// one is, too.
pub(super) fn limit(plan: &mut Plan, seed: u64) {
    let mut random = Random::new(seed ^ 0x0000_11A1_75EE_D001);
    if !random.one_in(ONE_IN) || KEPT.contains(&seed) {
        return;
    }
    for volume in &mut plan.volumes {
        if random.one_in(2) {
            volume.limits = limits(&mut random);
        }
    }
    let count = plan.volumes.len();
    for _ in 0..2 + random.below(7) {
        let volume = random.index(count);
        let act = match random.below(8) {
            0 => Act::Limit { volume, limits: Limits::default() },
            1 | 2 => Act::Disconnect { volume },
            3 => Act::Abort { volume },
            _ => Act::Limit { volume, limits: limits(&mut random) },
        };
        let place = random.index(plan.steps.len() + 1);
        plan.steps.insert(place, step(act, &mut random));
    }
    // Otherwise they hold to the end, and everything has to end well under them.
    if !random.one_in(3) {
        for volume in 0..count {
            plan.steps.push(step(Act::Limit { volume, limits: Limits::default() }, &mut random));
        }
    }
    for (number, step) in plan.steps.iter_mut().enumerate() {
        step.number = number;
    }
}

/// From so tight that nearly everything waits to so loose that nothing does.
fn limits(random: &mut Random) -> Limits {
    let iops = if random.one_in(4) { 100_000 } else { 10 << random.below(8) };
    let bytes_per_second = MIB << random.below(9);
    let (iops, bytes_per_second) = match random.below(3) {
        0 => (iops, 0),
        1 => (0, bytes_per_second),
        _ => (iops, bytes_per_second),
    };
    let burst = if random.one_in(3) { Duration::ZERO } else { Duration::from_millis(1 << random.below(13)) };
    Limits { iops, bytes_per_second, burst }
}

/// With as much work as makes hosts wait for a while, after a moment in which some of it is done or a pause in which a burst is saved.
fn step(act: Act, random: &mut Random) -> Step {
    let work = random.below(48) as u32;
    let longest = if random.one_in(4) { 2_000_000 } else { 50 << random.below(12) };
    Step { number: 0, work, after: Duration::from_micros(random.below(longest)), act }
}

#[cfg(test)]
mod tests {
    use super::super::generate;
    use super::*;
    use crate::Without;

    #[test]
    fn some_plans_have_limits_and_without_them_they_are_as_other_plans() {
        let plans: Vec<Plan> = (0..200).map(generate).collect();
        let limited: Vec<&Plan> = plans.iter().filter(|plan| plan.has_limits()).collect();
        assert!((30..80).contains(&limited.len()), "{} of 200", limited.len());
        for plan in limited {
            let without = plan.clone().without(&Without::NOTHING.and_no_limits());
            assert!(!without.has_limits());
            assert_eq!(without.volumes.len(), plan.volumes.len());
        }
    }
}
