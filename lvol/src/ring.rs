//! The journal's ring: which of its bytes are in use.

/// Positions in a ring of `length` bytes; batches lie in it in one piece each.
///
/// In use is what lies from `tail` up to `head`. The two are equal only when nothing is in use, so at least one block
/// always stays free.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ring {
    length: u64,
    head: u64,
    tail: u64,
}

impl Ring {
    /// A ring where nothing is in use; the next batch goes to `start`.
    pub(crate) const fn new(length: u64, start: u64) -> Self {
        let start = if start >= length { 0 } else { start };
        Self { length, head: start, tail: start }
    }

    /// Where the next batch goes, unless it is too long for the rest of the ring: then at 0.
    pub(crate) const fn head(&self) -> u64 {
        self.head
    }

    /// Takes room for a batch; `None` when there is none until the tail moves.
    pub(crate) fn reserve(&mut self, bytes: u64) -> Option<u64> {
        let end = self.head + bytes;
        let place = if self.head < self.tail {
            (end < self.tail).then_some(self.head)
        } else if end < self.length || (end == self.length && self.tail > 0) {
            Some(self.head)
        } else {
            (bytes < self.tail).then_some(0)
        }?;
        self.head = (place + bytes) % self.length;
        Some(place)
    }

    /// Gives back everything before `position`.
    pub(crate) const fn release_to(&mut self, position: u64) {
        self.tail = position % self.length;
    }

    /// Bytes in use, with those lost at the end of the ring.
    pub(crate) const fn used(&self) -> u64 {
        (self.head + self.length - self.tail) % self.length
    }

    /// Whether it is time for a checkpoint: half of the ring is in use.
    pub(crate) const fn is_half_used(&self) -> bool {
        self.used() > self.length / 2
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn what_is_in_use_is_never_given_out(steps in prop::collection::vec((1u64..5, prop::bool::ANY), 1..200)) {
            let mut ring = Ring::new(16, 7);
            let mut used: VecDeque<(u64, u64)> = VecDeque::new();
            for (bytes, release) in steps {
                if release && let Some((place, length)) = used.pop_front() {
                    ring.release_to(used.front().map_or((place + length) % 16, |next| next.0));
                }
                if used.is_empty() { ring = Ring::new(16, ring.head()); }
                if let Some(place) = ring.reserve(bytes) {
                    prop_assert!(place + bytes <= 16);
                    for &(other, length) in &used {
                        prop_assert!(place + bytes <= other || other + length <= place);
                    }
                    used.push_back((place, bytes));
                    prop_assert!(ring.used() > 0);
                } else {
                    prop_assert!(!used.is_empty(), "an empty ring has room for a quarter of itself");
                }
            }
        }
    }
}
