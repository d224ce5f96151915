//! Sets of regions of a volume: where writes may be in flight, where a replica may lack something.

use block_device::Range;

/// Bytes of a region. Copies look at one at a time, and a write may have to wait for that.
pub(crate) const REGION: u64 = 1 << 20;

/// Some regions of a volume, a bit for each.
#[derive(Clone, Debug, Default)]
pub(crate) struct Regions {
    words: Vec<u64>,
}

impl Regions {
    /// Those that a range touches.
    pub(crate) fn of(range: Range) -> std::ops::Range<u64> {
        match range.length {
            0 => 0..0,
            _ => range.offset / REGION..(range.end() - 1) / REGION + 1,
        }
    }

    /// Adds one. Says whether it is new.
    pub(crate) fn insert(&mut self, region: u64) -> bool {
        let (word, bit) = ((region / 64) as usize, 1 << (region % 64));
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        let new = self.words[word] & bit == 0;
        self.words[word] |= bit;
        new
    }

    /// Adds all that a range touches. Says whether one of them is new.
    pub(crate) fn insert_range(&mut self, range: Range) -> bool {
        Self::of(range).fold(false, |new, region| self.insert(region) | new)
    }

    /// Whether one is in the set.
    #[cfg(test)]
    pub(crate) fn contains(&self, region: u64) -> bool {
        self.words.get((region / 64) as usize).is_some_and(|word| word >> (region % 64) & 1 == 1)
    }

    /// Adds those of another set.
    pub(crate) fn add(&mut self, other: &Self) {
        if self.words.len() < other.words.len() {
            self.words.resize(other.words.len(), 0);
        }
        self.words.iter_mut().zip(&other.words).for_each(|(word, other)| *word |= other);
    }

    /// The first one from `from` on.
    pub(crate) fn next(&self, from: u64) -> Option<u64> {
        let first = (from / 64) as usize;
        let masked = |(index, word): (usize, &u64)| {
            let word = if index == first { word >> (from % 64) << (from % 64) } else { *word };
            (word != 0).then(|| index as u64 * 64 + u64::from(word.trailing_zeros()))
        };
        self.words.iter().enumerate().skip(first).find_map(masked)
    }

    /// All of them, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = u64> {
        std::iter::successors(self.next(0), |region| self.next(region + 1))
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }
}

impl FromIterator<u64> for Regions {
    fn from_iter<T: IntoIterator<Item = u64>>(regions: T) -> Self {
        let mut set = Self::default();
        for region in regions {
            set.insert(region);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_in_every_region_it_touches() {
        let mut set = Regions::default();
        assert!(set.insert_range(Range { offset: REGION - 1, length: 2 }));
        assert!(!set.insert_range(Range { offset: REGION - 2, length: 2 }));
        set.insert_range(Range { offset: 200 * REGION, length: REGION });
        set.insert_range(Range { offset: 5 * REGION, length: 0 });
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 1, 200]);
        assert_eq!(set.count(), 3);
        assert!(set.contains(200) && !set.contains(201) && !set.contains(1 << 40));
    }

    #[test]
    fn a_set_is_gone_through_from_anywhere() {
        let set: Regions = [0, 63, 64, 130].into_iter().collect();
        assert_eq!(set.next(1), Some(63));
        assert_eq!(set.next(64), Some(64));
        assert_eq!(set.next(65), Some(130));
        assert_eq!(set.next(131), None);
        assert_eq!(set.next(100_000), None);
    }

    #[test]
    fn sets_of_different_lengths_add_up() {
        let mut set: Regions = [3].into_iter().collect();
        set.add(&[700].into_iter().collect());
        set.add(&[4].into_iter().collect());
        assert_eq!(set.iter().collect::<Vec<_>>(), [3, 4, 700]);
    }
}
