//! Maps on their way into the pages of a checkpoint and back.

use std::ops::Range;

use super::entry::Entry;
use super::leaf::{Leaf, Words};
use super::{Held, Inconsistent, LEAF, LEAVES, Map, NODE, Shape, Table, leaf_of};
use crate::format::layout::Layout;
use crate::format::page::{Counts, Form, MapPage, MapPages, RawSegment, Segment};

impl Map {
    /// Puts the first leaf from `leaf` on that is not empty, and counts what is in it. Returns its number.
    pub(crate) fn put_leaf(&self, leaf: u32, pages: &mut MapPages<'_>, counts: &mut Counts) -> Option<u32> {
        let leaf = self.next_used(leaf.checked_mul(LEAF)?)? / LEAF;
        let table = self.table.borrow();
        counts.leaves += 1;
        table.node(leaf * LEAF).with_leaf(self.shape, leaf % LEAVES, |found| self.put_form(leaf, found, pages, counts));
        Some(leaf)
    }

    fn put_form(&self, leaf: u32, found: &Leaf, pages: &mut MapPages<'_>, counts: &mut Counts) {
        if matches!(found, Leaf::Zero) {
            return pages.put_zero_leaf(leaf);
        }
        let mut words = found.unpacked(self.shape);
        found.each_cluster(self.shape, |_| counts.clusters += 1);
        if matches!(found, Leaf::Run(_)) {
            counts.entries += LEAF;
            return pages.put_run(leaf, &words[..self.shape.words()]);
        }
        let mut present = 0u64;
        let mut end = 0;
        for place in 0..LEAF as usize {
            let at = place * self.shape.words()..(place + 1) * self.shape.words();
            if words[at.clone()].iter().any(|&word| word != 0) {
                present |= 1 << place;
                words.copy_within(at, end);
                end += self.shape.words();
            }
        }
        counts.entries += present.count_ones();
        pages.put_entries(leaf, present, &words[..end]);
    }

    /// The first leaf from `leaf` on that is not empty, with all its entries.
    pub(crate) fn next_segment(&self, leaf: u32) -> Option<Segment> {
        let leaf = self.next_used(leaf.checked_mul(LEAF)?)? / LEAF;
        let table = self.table.borrow();
        let node = table.node(leaf * LEAF);
        if node.is_zero_leaf(leaf % LEAVES) {
            return Some(Segment { leaf, zero: true, present: u64::MAX, words: Vec::new() });
        }
        let mut segment = Segment { leaf, zero: false, present: 0, words: Vec::new() };
        let words = node.with_leaf(self.shape, leaf % LEAVES, |leaf| leaf.unpacked(self.shape));
        for (place, entry) in words.chunks_exact(self.shape.words()).enumerate() {
            if entry.iter().any(|&word| word != 0) {
                segment.present |= 1 << place;
                segment.words.extend_from_slice(entry);
            }
        }
        Some(segment)
    }

    /// Takes in a segment. `is_data` says whether a cluster number can be one.
    pub(crate) fn load(&self, segment: &Segment, is_data: impl Fn(u64) -> bool) -> Result<(), Inconsistent> {
        let first = segment.leaf.checked_mul(LEAF).ok_or(Inconsistent("a leaf lies beyond the end"))?;
        let mut table = self.table.borrow_mut();
        let told = |place: u32| segment.present >> place & 1 == 1;
        let twice =
            |place: u32| told(place) && table.node(first).kind(self.shape, first % NODE + place) != Held::Nothing;
        if (0..LEAF).any(twice) {
            return Err(Inconsistent("an entry is told twice"));
        }
        if segment.zero {
            table.put_zero_leaf(self.shape, first);
            return Ok(());
        }
        if segment.present == 0 {
            return Ok(());
        }
        let width = self.shape.words();
        if segment.words.len() != segment.present.count_ones() as usize * width {
            return Err(Inconsistent("a segment has entries of another cluster size"));
        }
        let mut words = Words::from_elem(0, LEAF as usize * width);
        let mut clusters = 0;
        for (place, listed) in (0..LEAF).filter(|&place| told(place)).zip(segment.words.chunks_exact(width)) {
            if !Entry(listed).is_valid(self.shape, &is_data) {
                return Err(Inconsistent("a map entry names an impossible cluster or block"));
            }
            clusters += u32::from(Entry(listed).data_cluster().is_some());
            words[place as usize * width..][..width].copy_from_slice(listed);
        }
        table.add_entries(self.shape, segment.leaf, words, segment.present.count_ones(), clusters);
        Ok(())
    }
}

/// Takes in the pages of one map, one after the other: checks them, counts, and builds the map if it is wanted.
pub(crate) struct Loader {
    shape: Shape,
    /// Which numbers can be those of data clusters.
    first_cluster: u64,
    clusters: u64,
    taken: [Range<u64>; 2],
    map: Option<Map>,
    /// The first entry that was not passed yet: what is told twice is wrong.
    next: u64,
    counts: Counts,
    pages: u32,
}

impl Loader {
    /// For the map of this id, which is built if `keep` says so.
    pub(crate) fn new(id: u32, layout: &Layout, keep: bool) -> Self {
        let shape = Shape::new(layout.cluster_size);
        let map = keep.then(|| Map::new(id, shape));
        let (first_cluster, clusters) = (layout.first_cluster, layout.clusters);
        let taken = layout.taken_ranges();
        Self { shape, first_cluster, clusters, taken, map, next: 0, counts: Counts::default(), pages: 0 }
    }

    /// What was in the pages so far, and how many they were.
    pub(crate) const fn seen(&self) -> (u32, Counts) {
        (self.pages, self.counts)
    }

    pub(crate) fn into_map(self) -> Option<Map> {
        self.map
    }

    /// Takes in a page of the map and calls `claim` with each cluster. What comes before something wrong stays.
    pub(crate) fn take(&mut self, mut page: MapPage<'_>, mut claim: impl FnMut(u64)) -> Result<(), Inconsistent> {
        self.pages += 1;
        if page.words() != self.shape.words() {
            return Err(Inconsistent("a segment has entries of another cluster size"));
        }
        while let Some(segment) = page.next_segment().map_err(|_| Inconsistent("a segment is cut off"))? {
            self.take_segment(&segment, &mut claim)?;
        }
        Ok(())
    }

    fn take_segment(&mut self, segment: &RawSegment<'_>, claim: &mut impl FnMut(u64)) -> Result<(), Inconsistent> {
        let (leaf, present) = (segment.leaf, segment.present);
        if leaf > u32::MAX / LEAF || present == 0 || (segment.form != Form::Entries && present != u64::MAX) {
            return Err(Inconsistent("a segment lies beyond the end or tells of nothing"));
        }
        let start = u64::from(leaf) * u64::from(LEAF);
        if start + u64::from(present.trailing_zeros()) < self.next {
            return Err(Inconsistent("an entry is told twice"));
        }
        let continues = self.next > start;
        self.next = start + u64::from(u64::BITS - present.leading_zeros());
        self.counts.leaves += u32::from(!continues);
        match segment.form {
            Form::Zero => self.keep(|table, shape| table.put_zero_leaf(shape, leaf * LEAF)),
            Form::Run => self.take_run(segment, claim)?,
            Form::Entries => self.take_entries(segment, claim)?,
        }
        Ok(())
    }

    fn take_run(&mut self, segment: &RawSegment<'_>, claim: &mut impl FnMut(u64)) -> Result<(), Inconsistent> {
        let words: Words = segment.words().collect();
        let entry = Entry(&words);
        let Held::Data(first) = entry.kind() else { return Err(Inconsistent("a run has no cluster")) };
        let last = first + u64::from(LEAF - 1);
        if !entry.is_valid(self.shape, |_| true) || !entry.is_whole(self.shape) || !self.is_data(first, last) {
            return Err(Inconsistent("a run of clusters is impossible"));
        }
        (first..=last).for_each(claim);
        self.counts.entries += LEAF;
        self.counts.clusters += LEAF;
        // Below 2^32 as all clusters.
        self.keep(|table, shape| table.put_leaf(shape, segment.leaf, Leaf::Run(first as u32), LEAF, LEAF));
        Ok(())
    }

    fn take_entries(&mut self, segment: &RawSegment<'_>, claim: &mut impl FnMut(u64)) -> Result<(), Inconsistent> {
        let width = self.shape.words();
        let mut words = Words::from_elem(0, LEAF as usize * width);
        let mut listed = segment.words();
        let mut clusters = 0;
        let mut left = segment.present;
        while left != 0 {
            let at = left.trailing_zeros() as usize * width;
            left &= left - 1;
            let entry = &mut words[at..at + width];
            entry.iter_mut().zip(&mut listed).for_each(|(word, listed)| *word = listed);
            let entry = Entry(entry);
            if !entry.is_valid(self.shape, |cluster| self.is_data(cluster, cluster)) {
                return Err(Inconsistent("a map entry names an impossible cluster or block"));
            }
            if let Some(cluster) = entry.data_cluster() {
                clusters += 1;
                claim(cluster);
            }
        }
        let entries = segment.present.count_ones();
        self.counts.entries += entries;
        self.counts.clusters += clusters;
        self.keep(|table, shape| table.add_entries(shape, segment.leaf, words, entries, clusters));
        Ok(())
    }

    fn is_data(&self, first: u64, last: u64) -> bool {
        first >= self.first_cluster
            && last - self.first_cluster < self.clusters
            && self.taken.iter().all(|taken| last < taken.start || first >= taken.end)
    }

    fn keep(&self, put: impl FnOnce(&mut Table, Shape)) {
        if let Some(map) = &self.map {
            put(&mut map.table.borrow_mut(), map.shape);
        }
    }
}

impl Table {
    /// A leaf gets entries that were not in memory.
    fn put_leaf(&mut self, shape: Shape, leaf: u32, new: Leaf, entries: u32, clusters: u32) {
        let index = leaf * LEAF;
        self.leaves += u64::from(self.is_empty_leaf(index));
        self.entries += u64::from(entries);
        self.clusters += u64::from(clusters);
        self.alter(shape, index, |node| node.put(shape, leaf_of(index), new));
    }

    /// The same, where the first entries of the leaf may be here already: the page before ended with them.
    fn add_entries(&mut self, shape: Shape, leaf: u32, mut words: Words, entries: u32, clusters: u32) {
        let index = leaf * LEAF;
        if !self.is_empty_leaf(index) {
            let old = self.node(index).with_leaf(shape, leaf_of(index), |old| old.unpacked(shape));
            words.iter_mut().zip(old).for_each(|(word, old)| *word |= old);
        }
        let new = Leaf::pack(words, shape, None);
        if matches!(new, Leaf::Zero) {
            // Zeroes told one by one: they count as a leaf all the same.
            self.entries = self.entries + u64::from(entries) - u64::from(LEAF);
            return self.put_zero_leaf(shape, index);
        }
        self.put_leaf(shape, leaf, new, entries, clusters);
    }
}
