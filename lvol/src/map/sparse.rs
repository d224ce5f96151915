//! Entries of a node in which there are few: one by one, in the order of their places, in one piece of memory.
//!
//! ```text
//! 16 × 2 bytes    ends: how many entries there are up to the end of each sixteenth of the node
//! n × 4 bytes     cluster numbers
//! n × 2 bytes     bitmaps
//! n × 1 byte      places within the sixteenth
//! ```
//! All numbers little-endian. Only for clusters up to 64 KiB, whose entries are one word.

use std::ops::Range;

use super::LEAF;
use super::entry::{Entry, LOW, Shape};
use super::leaf::{Leaf, Words};

/// Parts of a node that have an end of their own, and the places of each: as many as a byte tells apart.
const PARTS: usize = 16;
const PART: u32 = 256;

/// Leaves of a part.
const LEAVES: u32 = PART / LEAF;

/// Bytes of the ends, and of one entry.
const ENDS: usize = 2 * PARTS;
const ENTRY: usize = 7;

/// Entries of a node that are not empty.
#[derive(Clone)]
pub(super) struct Sparse(Box<[u8]>);

/// An entry as it comes in: its place within its part, and the entry.
type Placed = (u8, u64);

impl Sparse {
    pub(super) fn empty() -> Self {
        Self(vec![0; ENDS].into_boxed_slice())
    }

    /// How many entries there are.
    pub(super) fn len(&self) -> usize {
        (self.0.len() - ENDS) / ENTRY
    }

    /// Bytes of the heap, with what the allocator needs for them.
    pub(super) fn heap_bytes(&self) -> u64 {
        super::allocated(self.0.len())
    }

    /// The entry of a place in the node: zero when there is none.
    pub(super) fn word(&self, place: u32) -> u64 {
        self.rank(place).map_or(0, |rank| self.word_at(rank))
    }

    /// Replaces the entry of a place; zero takes it away.
    pub(super) fn put(&mut self, place: u32, word: u64) {
        let (rank, there) = match self.rank(place) {
            Ok(rank) => (rank, 1),
            Err(rank) => (rank, 0),
        };
        if there == 1 && word != 0 {
            return self.put_at(rank, word);
        }
        let new = [((place % PART) as u8, word)];
        *self = self.replaced(place / PART, rank..rank + there, if word == 0 { &[] } else { &new });
    }

    /// Marks blocks as held if the entry has that cluster; false if it has not.
    pub(super) fn fill(&mut self, place: u32, cluster: u64, bits: u16) -> bool {
        let Ok(rank) = self.rank(place) else { return false };
        let word = self.word_at(rank);
        if word >> LOW != cluster {
            return false;
        }
        self.put_at(rank, word | u64::from(bits));
        true
    }

    /// Replaces all entries of a leaf.
    pub(super) fn put_leaf(&mut self, leaf: u32, words: &[u64]) {
        let first = (leaf % LEAVES * LEAF) as u8;
        let there = (first..=first + (LEAF - 1) as u8).zip(words).filter(|(_, word)| **word != 0);
        let new: Vec<Placed> = there.map(|(place, word)| (place, *word)).collect();
        *self = self.replaced(leaf / LEAVES, self.ranks(leaf), &new);
    }

    /// Whether a leaf has no entry.
    pub(super) fn is_empty_leaf(&self, leaf: u32) -> bool {
        self.ranks(leaf).is_empty()
    }

    /// All entries of a leaf, in the form that a leaf by itself has.
    pub(super) fn leaf(&self, shape: Shape, leaf: u32) -> Leaf {
        let mut words = Words::from_elem(0, LEAF as usize);
        for rank in self.ranks(leaf) {
            words[(u32::from(self.places()[rank]) % LEAF) as usize] = self.word_at(rank);
        }
        Leaf::pack(words, shape, None)
    }

    /// The first leaf from `leaf` on that has an entry.
    pub(super) fn next_leaf(&self, leaf: u32) -> Option<u32> {
        let part = leaf / LEAVES;
        let rank = self.span(part).start
            + self.places_of(part).partition_point(|place| u32::from(*place) / LEAF < leaf % LEAVES);
        let place = u32::from(*self.places().get(rank)?);
        let part = (0..PARTS as u32).find(|part| rank < self.span(*part).end)?;
        Some(part * LEAVES + place / LEAF)
    }

    /// Calls `visit` with each cluster, in order.
    pub(super) fn each_cluster(&self, mut visit: impl FnMut(u64)) {
        (0..self.len()).map(|rank| self.word_at(rank) >> LOW).filter(|cluster| *cluster != 0).for_each(&mut visit);
    }

    /// Bytes of the heap that leaves of the same entries would take.
    pub(super) fn bytes_as_leaves(&self, shape: Shape) -> u64 {
        (0..PARTS as u32 * LEAVES).map(|leaf| self.leaf_bytes(shape, self.ranks(leaf))).sum()
    }

    fn leaf_bytes(&self, shape: Shape, ranks: Range<usize>) -> u64 {
        let Some(first) = ranks.clone().next().map(|rank| self.word_at(rank)) else { return 0 };
        let step = if first >> LOW == 0 { 0 } else { 1 << LOW };
        let (mut whole, mut in_a_row) = (true, ranks.len() == LEAF as usize);
        for (word, number) in ranks.clone().map(|rank| self.word_at(rank)).zip(0..) {
            whole &= Entry(&[word]).is_whole(shape);
            in_a_row &= word == first + number * step;
        }
        if whole && in_a_row { 0 } else { Leaf::packed_bytes(ranks.len(), whole) }
    }

    /// Where the entry of a place is, or would be.
    fn rank(&self, place: u32) -> Result<usize, usize> {
        let start = self.span(place / PART).start;
        let found = self.places_of(place / PART).binary_search(&((place % PART) as u8));
        found.map(|at| start + at).map_err(|at| start + at)
    }

    /// Where the entries of a leaf are.
    fn ranks(&self, leaf: u32) -> Range<usize> {
        let part = leaf / LEAVES;
        let (start, places) = (self.span(part).start, self.places_of(part));
        let upto = |leaves: u32| start + places.partition_point(|place| u32::from(*place) / LEAF < leaves);
        upto(leaf % LEAVES)..upto(leaf % LEAVES + 1)
    }

    /// Where the entries of a part are.
    fn span(&self, part: u32) -> Range<usize> {
        let end = |part: usize| usize::from(u16::from_le_bytes([self.0[2 * part], self.0[2 * part + 1]]));
        let part = part as usize;
        if part == 0 { 0..end(0) } else { end(part - 1)..end(part) }
    }

    fn clusters(&self) -> &[u8] {
        &self.0[ENDS..ENDS + 4 * self.len()]
    }

    fn bitmaps(&self) -> &[u8] {
        &self.0[ENDS + 4 * self.len()..ENDS + 6 * self.len()]
    }

    fn places(&self) -> &[u8] {
        &self.0[ENDS + 6 * self.len()..]
    }

    fn places_of(&self, part: u32) -> &[u8] {
        &self.places()[self.span(part)]
    }

    fn word_at(&self, rank: usize) -> u64 {
        let cluster = self.clusters()[4 * rank..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
        let bits = self.bitmaps()[2 * rank..].first_chunk().map_or(0, |bytes| u16::from_le_bytes(*bytes));
        u64::from(cluster) << LOW | u64::from(bits)
    }

    fn put_at(&mut self, rank: usize, word: u64) {
        let (cluster, bits) = halves(word);
        let (at, bitmap_at) = (ENDS + 4 * rank, ENDS + 4 * self.len() + 2 * rank);
        self.0[at..at + 4].copy_from_slice(&cluster);
        self.0[bitmap_at..bitmap_at + 2].copy_from_slice(&bits);
    }

    /// The same with other entries in the place of some, all of one part.
    fn replaced(&self, part: u32, ranks: Range<usize>, new: &[Placed]) -> Self {
        let length = self.len() - ranks.len() + new.len();
        let mut bytes = Vec::with_capacity(ENDS + ENTRY * length);
        for at in 0..PARTS as u32 {
            let end = self.span(at).end;
            // A node has at most 4096 entries.
            let end = if at < part { end } else { end - ranks.len() + new.len() } as u16;
            bytes.extend(end.to_le_bytes());
        }
        let (before, after) = (ranks.start, ranks.end);
        bytes.extend(&self.clusters()[..4 * before]);
        new.iter().for_each(|(_, word)| bytes.extend(halves(*word).0));
        bytes.extend(&self.clusters()[4 * after..]);
        bytes.extend(&self.bitmaps()[..2 * before]);
        new.iter().for_each(|(_, word)| bytes.extend(halves(*word).1));
        bytes.extend(&self.bitmaps()[2 * after..]);
        bytes.extend(&self.places()[..before]);
        bytes.extend(new.iter().map(|(place, _)| *place));
        bytes.extend(&self.places()[after..]);
        Self(bytes.into_boxed_slice())
    }
}

/// Cluster and bitmap of an entry. Cluster numbers are below 2^32 by the format check.
fn halves(word: u64) -> ([u8; 4], [u8; 2]) {
    (((word >> LOW) as u32).to_le_bytes(), (word as u16).to_le_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Put(u32, u64),
        Fill(u32, u16),
        Leaf(u32, Vec<u64>),
    }

    fn step() -> impl Strategy<Value = Step> {
        let word = || prop_oneof![Just(0), 1u64..1 << 48];
        let place = || prop_oneof![0u32..4096, 0u32..64, 250u32..260, Just(4095)];
        prop_oneof![
            8 => (place(), word()).prop_map(|(place, word)| Step::Put(place, word)),
            2 => (place(), 1u16..).prop_map(|(place, bits)| Step::Fill(place, bits)),
            1 => (0u32..64, prop::collection::vec(word(), 64)).prop_map(|(leaf, words)| Step::Leaf(leaf, words)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]
        #[cfg_attr(miri, ignore = "takes minutes there")]
        #[test]
        fn it_holds_what_a_plain_list_of_entries_does(steps in prop::collection::vec(step(), 1..100)) {
            let (mut sparse, mut model) = (Sparse::empty(), vec![0u64; 4096]);
            for step in steps {
                match step {
                    Step::Put(place, word) => {
                        sparse.put(place, word);
                        model[place as usize] = word;
                    }
                    Step::Fill(place, bits) => {
                        let word = &mut model[place as usize];
                        prop_assert!(!sparse.fill(place, (*word >> LOW) + 1, bits));
                        prop_assert_eq!(sparse.fill(place, *word >> LOW, bits), *word != 0);
                        if *word != 0 { *word |= u64::from(bits); }
                    }
                    Step::Leaf(leaf, words) => {
                        sparse.put_leaf(leaf, &words);
                        model[leaf as usize * 64..][..64].copy_from_slice(&words);
                    }
                }
                prop_assert_eq!(sparse.len(), model.iter().filter(|word| **word != 0).count());
            }
            for (place, word) in (0..).zip(&model) {
                prop_assert_eq!(sparse.word(place), *word);
            }
            let shape = Shape::new(64 << 10);
            let mut bytes = 0;
            for (leaf, words) in (0..).zip(model.chunks(64)) {
                prop_assert_eq!(sparse.is_empty_leaf(leaf), words.iter().all(|word| *word == 0));
                let found = sparse.leaf(shape, leaf);
                let unpacked = found.unpacked(shape);
                prop_assert_eq!(unpacked.as_slice(), words);
                bytes += found.heap_bytes();
                let next = (leaf..64).find(|leaf| model[*leaf as usize * 64..][..64].iter().any(|word| *word != 0));
                prop_assert_eq!(sparse.next_leaf(leaf), next);
            }
            prop_assert_eq!(sparse.bytes_as_leaves(shape), bytes);
            let mut clusters = Vec::new();
            sparse.each_cluster(|cluster| clusters.push(cluster));
            let expected: Vec<u64> = model.iter().map(|word| word >> LOW).filter(|cluster| *cluster != 0).collect();
            prop_assert_eq!(clusters, expected);
        }
    }

    #[test]
    fn what_leaves_would_take_knows_their_short_forms() {
        let shape = Shape::new(64 << 10);
        let whole = |cluster: u64| cluster << LOW | 0xffff;
        let cases: [Vec<u64>; 4] = [
            (0..64).map(|place| whole(900 + place)).collect(),
            (0..64).map(|place| whole(900 + 2 * place)).collect(),
            (0..64).map(|place| whole(900 + place) - u64::from(place == 63)).collect(),
            vec![0xffff; 64],
        ];
        for words in cases {
            let mut sparse = Sparse::empty();
            sparse.put_leaf(7, &words);
            assert_eq!(sparse.bytes_as_leaves(shape), sparse.leaf(shape, 7).heap_bytes());
        }
    }
}
