//! Sets of numbers as runs: which blocks of an lvol nobody knows any more.

use std::collections::BTreeMap;
use std::ops::Range;

/// A set of numbers, kept as runs that neither touch nor overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    /// Adds a run.
    pub(super) fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        let joined: Vec<u64> = self.touching(&range).map(|(&start, _)| start).collect();
        for key in joined {
            if let Some(other) = self.0.remove(&key) {
                start = start.min(key);
                end = end.max(other);
            }
        }
        self.0.insert(start, end);
    }

    /// Takes a run out.
    pub(super) fn remove(&mut self, range: Range<u64>) {
        let cut: Vec<(u64, u64)> = self.touching(&range).map(|(&start, &end)| (start, end)).collect();
        for (start, end) in cut {
            self.0.remove(&start);
            let (before, after) = (start..end.min(range.start), start.max(range.end)..end);
            for rest in [before, after] {
                if !rest.is_empty() {
                    self.0.insert(rest.start, rest.end);
                }
            }
        }
    }

    /// Whether `at` is in the set, and up to where, at most `end`, the answer stays the same.
    pub(super) fn run(&self, at: u64, end: u64) -> (bool, u64) {
        match self.0.range(..=at).next_back() {
            Some((_, &last)) if last > at => (true, last.min(end)),
            _ => (false, self.0.range(at..).next().map_or(end, |(&start, _)| start.min(end))),
        }
    }

    /// The runs in order, as far as they lie below `end`.
    pub(super) fn below(&self, end: u64) -> impl Iterator<Item = Range<u64>> {
        let runs = self.0.iter().take_while(move |&(&start, _)| start < end);
        runs.map(move |(&start, &last)| start..last.min(end))
    }

    /// The runs that overlap or touch a range.
    fn touching(&self, range: &Range<u64>) -> impl Iterator<Item = (&u64, &u64)> {
        let start = range.start;
        self.0.range(..=range.end).rev().take_while(move |&(_, &end)| end >= start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(runs: &[Range<u64>]) -> Ranges {
        let mut set = Ranges::default();
        runs.iter().for_each(|run| set.insert(run.clone()));
        set
    }

    fn runs(set: &Ranges) -> Vec<(u64, u64)> {
        set.below(u64::MAX).map(|run| (run.start, run.end)).collect()
    }

    #[test]
    fn runs_that_touch_become_one() {
        assert_eq!(runs(&set(&[10..20, 30..40, 20..30])), [(10, 40)]);
        assert_eq!(runs(&set(&[10..20, 12..15, 5..11, 50..50])), [(5, 20)]);
    }

    #[test]
    fn what_is_taken_out_leaves_the_rest() {
        let mut left = set(&[10..20, 30..40]);
        left.remove(15..35);
        assert_eq!(runs(&left), [(10, 15), (35, 40)]);
        left.remove(11..12);
        assert_eq!(runs(&left), [(10, 11), (12, 15), (35, 40)]);
        left.remove(0..100);
        assert_eq!(runs(&left), []);
    }

    #[test]
    fn a_run_tells_how_far_the_answer_holds() {
        let set = set(&[10..20, 30..40]);
        assert_eq!(set.run(0, 100), (false, 10));
        assert_eq!(set.run(10, 100), (true, 20));
        assert_eq!(set.run(15, 18), (true, 18));
        assert_eq!(set.run(20, 25), (false, 25));
        assert_eq!(set.run(40, 100), (false, 100));
        assert_eq!(set.below(35).collect::<Vec<_>>(), [10..20, 30..35]);
    }
}
