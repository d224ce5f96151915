//! Where each I/O goes.

use super::random::Random;

/// The units that one of several jobs visits.
#[derive(Clone, Debug)]
pub(crate) enum Offsets {
    /// One after the other within the job's share of the region, then from its start again.
    Sequential { first: u64, count: u64, next: u64 },
    /// Anywhere in the region; a unit may come twice before another came once (fio's `norandommap`).
    Random { random: Random, units: u64 },
}

impl Offsets {
    /// The whole region for each job.
    pub(crate) fn random(random: Random, units: u64) -> Self {
        Self::Random { random, units }
    }

    /// Share `job` of `jobs` equal ones; with fewer units than jobs some share the last ones.
    pub(crate) fn sequential(units: u64, job: u64, jobs: u64) -> Self {
        let (first, end) = (units * job / jobs, units * (job + 1) / jobs);
        let first = first.min(units - 1);
        Self::Sequential { first, count: end.saturating_sub(first).max(1), next: 0 }
    }

    /// How many units until the first comes again, or would on average.
    pub(crate) fn pass(&self) -> u64 {
        match self {
            Self::Sequential { count, .. } => *count,
            Self::Random { units, .. } => *units,
        }
    }

    /// The next unit.
    pub(crate) fn next(&mut self) -> u64 {
        match self {
            Self::Sequential { first, count, next } => {
                let unit = *first + *next;
                *next = if *next + 1 == *count { 0 } else { *next + 1 };
                unit
            }
            Self::Random { random, units } => random.below(*units),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_a_sequential_load_cover_the_region_once() {
        for (units, jobs) in [(10, 1), (10, 3), (7, 7), (1000, 16)] {
            let mut seen = Vec::new();
            for job in 0..jobs {
                let mut offsets = Offsets::sequential(units, job, jobs);
                seen.extend((0..offsets.pass()).map(|_| offsets.next()));
            }
            assert_eq!(seen, (0..units).collect::<Vec<_>>(), "{units} units, {jobs} jobs");
        }
    }

    #[test]
    fn a_sequential_load_starts_again_at_its_share() {
        let mut offsets = Offsets::sequential(10, 1, 3);
        assert_eq!([3, 4, 5, 3], std::array::from_fn(|_| offsets.next()));
    }

    #[test]
    fn more_jobs_than_units_stay_in_the_region() {
        for job in 0..5 {
            let mut offsets = Offsets::sequential(2, job, 5);
            assert!((0..4).all(|_| offsets.next() < 2));
        }
    }

    #[test]
    fn random_units_stay_in_the_region_and_reach_its_ends() {
        let mut offsets = Offsets::random(Random::new(1, 0), 8);
        let seen: std::collections::BTreeSet<_> = (0..200).map(|_| offsets.next()).collect();
        assert_eq!(seen, (0..8).collect());
    }
}
