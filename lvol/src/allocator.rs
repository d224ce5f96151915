//! Which data clusters are free.

/// A bitmap of clusters in use, with a summary that lets a search skip 4096 full clusters at a time.
///
/// Clusters are handed out in rising order from where the last search ended, so that what is written together lies
/// together.
#[derive(Clone)]
pub(crate) struct Allocator {
    /// The number of the first cluster.
    first: u64,
    /// How many clusters there are.
    count: u64,
    /// One bit a cluster, set when in use; bits beyond the last cluster are set.
    words: Vec<u64>,
    /// One bit a word, set when the word is full.
    full: Vec<u64>,
    free: u64,
    /// The word where the next search starts.
    cursor: usize,
}

/// Clusters in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Clusters {
    pub(crate) first: u64,
    pub(crate) count: u64,
}

impl Allocator {
    /// `count` free clusters from `first`.
    pub(crate) fn new(first: u64, count: u64) -> Self {
        let mut allocator = Self { first, count: 0, words: Vec::new(), full: Vec::new(), free: 0, cursor: 0 };
        allocator.extend(count);
        allocator
    }

    /// Adds free clusters at the end: there are `count` from now on.
    pub(crate) fn extend(&mut self, count: u64) {
        debug_assert!(count >= self.count);
        set_from(&mut self.words, self.count, false);
        self.words.resize(count.div_ceil(64) as usize, 0);
        set_from(&mut self.words, count, true);
        self.full = vec![0; self.words.len().div_ceil(64)];
        set_from(&mut self.full, self.words.len() as u64, true);
        for (place, _) in self.words.iter().enumerate().filter(|(_, word)| **word == u64::MAX) {
            self.full[place / 64] |= 1 << (place % 64);
        }
        self.free += count - self.count;
        self.count = count;
    }

    /// How many clusters are free.
    pub(crate) const fn free(&self) -> u64 {
        self.free
    }

    /// Takes up to `want` clusters in a row, at least one; `None` when none is free.
    pub(crate) fn take(&mut self, want: u64) -> Option<Clusters> {
        let word = self.next_word_with_room()?;
        self.cursor = word;
        let bit = (!self.words[word]).trailing_zeros();
        let start = word as u64 * 64 + u64::from(bit);
        let mut count = 0;
        while count < want && self.is_free(start + count) {
            self.mark(start + count, true);
            count += 1;
        }
        self.free -= count;
        Some(Clusters { first: self.first + start, count })
    }

    /// Marks a cluster as used; false if it was already.
    pub(crate) fn claim(&mut self, cluster: u64) -> bool {
        let place = cluster - self.first;
        let free = self.is_free(place);
        if free {
            self.mark(place, true);
            self.free -= 1;
        }
        free
    }

    /// Whether a cluster is in use.
    pub(crate) fn is_used(&self, cluster: u64) -> bool {
        !self.is_free(cluster - self.first)
    }

    /// Makes a cluster free again.
    ///
    /// # Panics
    /// When it is free already: a cluster with two owners would be our mistake, and the worst one.
    pub(crate) fn release(&mut self, cluster: u64) {
        let place = cluster - self.first;
        assert!(!self.is_free(place), "cluster {cluster} is freed twice");
        self.mark(place, false);
        self.free += 1;
    }

    /// The bits of `count` clusters from `first` on, as a checkpoint keeps them.
    pub(crate) fn bits(&self, first: u64, count: u64) -> Vec<u8> {
        let start = (first - self.first) as usize;
        debug_assert!(start.is_multiple_of(64));
        let bytes = self.words[start / 64..].iter().flat_map(|word| word.to_le_bytes());
        bytes.take(count.div_ceil(8) as usize).collect()
    }

    fn is_free(&self, place: u64) -> bool {
        let word = self.words.get((place / 64) as usize);
        word.is_some_and(|word| word >> (place % 64) & 1 == 0)
    }

    fn mark(&mut self, place: u64, used: bool) {
        let word = (place / 64) as usize;
        let bit = 1 << (place % 64);
        if used {
            self.words[word] |= bit;
        } else {
            self.words[word] &= !bit;
        }
        let full = 1 << (word % 64);
        if self.words[word] == u64::MAX {
            self.full[word / 64] |= full;
        } else {
            self.full[word / 64] &= !full;
        }
    }

    fn next_word_with_room(&self) -> Option<usize> {
        if self.free == 0 {
            return None;
        }
        let start = self.cursor / 64;
        let below = (1u64 << (self.cursor % 64)) - 1;
        let first = self.full[start] | below;
        if first != u64::MAX {
            return Some(start * 64 + (!first).trailing_zeros() as usize);
        }
        let groups = self.full.len();
        (1..=groups).map(|step| (start + step) % groups).find_map(|group| {
            let bits = self.full[group];
            (bits != u64::MAX).then(|| group * 64 + (!bits).trailing_zeros() as usize)
        })
    }
}

/// Sets or clears the bits from `bit` to the end of its word.
fn set_from(words: &mut [u64], bit: u64, set: bool) {
    let Some(word) = words.get_mut((bit / 64) as usize) else { return };
    let mask = u64::MAX << (bit % 64);
    *word = if set { *word | mask } else { *word & !mask };
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_cluster_is_given_out_once() {
        for count in [1, 63, 64, 65, 4096, 5000] {
            let mut allocator = Allocator::new(100, count);
            let mut taken = BTreeSet::new();
            while let Some(run) = allocator.take(7) {
                for cluster in run.first..run.first + run.count {
                    assert!((100..100 + count).contains(&cluster) && taken.insert(cluster));
                }
            }
            assert_eq!((taken.len() as u64, allocator.free()), (count, 0));
        }
    }

    #[test]
    fn what_is_released_is_found_again_wherever_it_is() {
        let mut allocator = Allocator::new(1, 10_000);
        while allocator.take(64).is_some() {}
        for cluster in [1, 64, 65, 5000, 10_000] {
            allocator.release(cluster);
            assert_eq!(allocator.take(5), Some(Clusters { first: cluster, count: 1 }));
        }
    }

    #[test]
    fn what_is_added_is_given_out_once_too() {
        for (before, after) in [(1, 2), (63, 64), (64, 65), (100, 100), (100, 4096), (4095, 5000), (4096, 9000)] {
            let mut allocator = Allocator::new(7, before);
            let mut taken = BTreeSet::new();
            while allocator.free() > 0 {
                taken.extend(allocator.take(1).map(|run| run.first));
            }
            assert_eq!(allocator.take(1), None);
            allocator.extend(after);
            assert_eq!(allocator.free(), after - before);
            while let Some(run) = allocator.take(100) {
                assert!((run.first..run.first + run.count).all(|cluster| taken.insert(cluster)));
            }
            assert!(taken.into_iter().eq(7..7 + after));
        }
    }

    #[test]
    fn claims_tell_used_from_free() {
        let mut allocator = Allocator::new(1, 100);
        assert!(allocator.claim(100));
        assert!(!allocator.claim(100));
        assert_eq!(allocator.bits(65, 36), [0, 0, 0, 0, 0xf8]);
    }

    #[test]
    #[should_panic(expected = "cluster 5 is freed twice")]
    fn a_double_free_is_our_mistake() {
        Allocator::new(1, 100).release(5);
    }
}
