//! The map of one lvol: which of its blocks it holds, and where.
//!
//! A map has entries, one a cluster of the lvol: nothing, zeroes without a cluster, or a cluster and a bitmap of which of
//! its 4 KiB blocks hold data. 64 entries make a leaf, 64 leaves a node; a list of nodes is the root, so a lookup is few
//! dependent loads, and what was never written costs nothing. What was written in order costs next to nothing, and nodes in which
//! little is have no leaves.

mod blocks;
mod entry;
mod leaf;
mod node;
mod pages;
mod sparse;

use std::cell::RefCell;
use std::fmt;

pub(crate) use blocks::{Blocks, MapEntry};
use entry::{Entry, EntryMut};
pub(crate) use entry::{Held, Run, Shape};
use leaf::Leaf;
use node::{LEAVES, Node};
pub(crate) use pages::Loader;

use crate::format::page::{Counts, Segment};

/// Entries a leaf.
pub(crate) const LEAF: u32 = 64;

/// Entries a node.
const NODE: u32 = LEAVES * LEAF;

/// Why a change does not fit the map: the metadata on disk disagrees with itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Inconsistent(pub(crate) &'static str);

impl fmt::Display for Inconsistent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// The map of one lvol.
pub(crate) struct Map {
    id: u32,
    shape: Shape,
    table: RefCell<Table>,
}

#[derive(Default)]
struct Table {
    nodes: Vec<Node>,
    /// Entries with a cluster.
    clusters: u64,
    /// Entries that are not empty, outside of zero leaves.
    entries: u64,
    /// Leaves that are not empty.
    leaves: u64,
    /// Bytes of nodes and leaves.
    heap: u64,
}

impl Map {
    pub(crate) fn new(id: u32, shape: Shape) -> Self {
        Self { id, shape, table: RefCell::default() }
    }

    pub(crate) const fn id(&self) -> u32 {
        self.id
    }

    pub(crate) const fn shape(&self) -> Shape {
        self.shape
    }

    /// How much is in it.
    pub(crate) fn counts(&self) -> Counts {
        let table = self.table.borrow();
        // A map has less than 2^32 entries.
        Counts { clusters: table.clusters as u32, entries: table.entries as u32, leaves: table.leaves as u32 }
    }

    /// Bytes of memory that it takes, with what the allocator needs for them.
    pub(crate) fn heap_bytes(&self) -> u64 {
        let table = self.table.borrow();
        table.heap + allocated(table.nodes.capacity() * size_of::<Node>()) + size_of::<Self>() as u64
    }

    /// What the map holds at block `first` of cluster `index`, and for how many blocks, at most `count`, the same is
    /// true.
    pub(crate) fn run(&self, index: u32, first: u32, count: u32) -> Run {
        self.table.borrow().node(index).run(self.shape, index % NODE, first, count)
    }

    /// What the entry is as a whole: the cluster, or zeroes for some blocks, or nothing.
    pub(crate) fn kind(&self, index: u32) -> Held {
        self.table.borrow().node(index).kind(self.shape, index % NODE)
    }

    /// An entry as a value.
    pub(crate) fn entry(&self, index: u32) -> MapEntry {
        self.table.borrow().node(index).entry(self.shape, index % NODE)
    }

    /// Whether it holds nothing at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.table.borrow().leaves == 0
    }

    /// The first cluster index from `index` on where the map may hold something.
    pub(crate) fn next_used(&self, index: u32) -> Option<u32> {
        let table = self.table.borrow();
        let start = index / NODE;
        let mut nodes = table.nodes.get(start as usize..)?.iter().zip(start..);
        nodes.find_map(|(node, number)| {
            let from = if number == start { index % NODE / LEAF } else { 0 };
            let leaf = number * LEAVES + node.next_leaf(from)?;
            Some(index.max(leaf * LEAF))
        })
    }

    /// Blocks of `cluster` hold data from now on. If the entry had another cluster, that one is replaced with all its
    /// blocks and goes to `freed`.
    pub(crate) fn set(&self, index: u32, cluster: u64, first: u32, count: u32, freed: &mut Vec<u64>) {
        let shape = self.shape;
        let mut table = self.table.borrow_mut();
        if table.node_mut(index).fill(shape, index % NODE, cluster, first, count) {
            return;
        }
        table.change(shape, index, |entry| {
            if entry.kind() != Held::Data(cluster) {
                entry.free_into(freed);
                entry.start_cluster(cluster);
            }
            entry.fill(first, count, true);
        });
    }

    /// Blocks of the lvol, counted from its start, hold nothing from now on. A cluster without any block left goes to
    /// `freed`.
    pub(crate) fn clear(&self, first: u64, count: u64, freed: &mut Vec<u64>) {
        self.each_piece(first, count, true, |table, shape, index, first, count| {
            table.change(shape, index, |entry| {
                entry.fill(first, count, false);
                if entry.is_blank() {
                    entry.free_into(freed);
                }
            });
        });
    }

    /// Blocks of the lvol, counted from its start, hold zeroes without a cluster from now on. An entry with a cluster loses
    /// it with all its blocks.
    pub(crate) fn zero(&self, first: u64, count: u64, freed: &mut Vec<u64>) {
        self.each_piece(first, count, false, |table, shape, index, first, count| {
            table.change(shape, index, |entry| {
                if matches!(entry.kind(), Held::Data(_)) {
                    entry.free_into(freed);
                }
                entry.fill(first, count, true);
            });
        });
    }

    /// All clusters, in the order of the lvol.
    pub(crate) fn each_cluster(&self, mut visit: impl FnMut(u64)) {
        let table = self.table.borrow();
        table.nodes.iter().for_each(|node| node.each_cluster(self.shape, &mut visit));
    }

    /// Checks the entries of a merge: as many as the segment says, of this map's shape, none of them empty.
    pub(crate) fn check_merge(&self, segment: &Segment, is_data: impl Fn(u64) -> bool) -> Result<(), Inconsistent> {
        let words = self.shape.words();
        if segment.leaf > u32::MAX / LEAF || segment.words.len() != segment.present.count_ones() as usize * words {
            return Err(Inconsistent("a merge has entries of another cluster size or beyond the end"));
        }
        match segment.words.chunks_exact(words).all(|entry| Entry(entry).is_valid(self.shape, &is_data)) {
            true => Ok(()),
            false => Err(Inconsistent("a merge names an impossible cluster or block")),
        }
    }

    /// Entries become what a checked merge says. The clusters that they had go to `before`, those that they have to
    /// `after`.
    pub(crate) fn merge(&self, segment: &Segment, before: &mut Vec<u64>, after: &mut Vec<u64>) {
        let places = (0..LEAF).filter(|place| segment.present >> place & 1 == 1);
        let mut table = self.table.borrow_mut();
        for (place, words) in places.zip(segment.words.chunks_exact(self.shape.words())) {
            table.change(self.shape, segment.leaf * LEAF + place, |entry| {
                entry.free_into(before);
                entry.copy_from(words);
            });
            after.extend(Entry(words).data_cluster());
        }
    }

    /// Entries that a merge took become empty. The clusters that they had go to `before`.
    pub(crate) fn give_up(&self, segment: &Segment, before: &mut Vec<u64>) {
        let mut table = self.table.borrow_mut();
        for place in (0..LEAF).filter(|place| segment.present >> place & 1 == 1) {
            let index = segment.leaf * LEAF + place;
            if !table.is_empty_leaf(index) {
                table.change(self.shape, index, |entry| entry.free_into(before));
            }
        }
    }

    /// Calls `visit` for each cluster that the blocks touch; where only what is there can change, empty leaves are skipped,
    /// and where all become zero, whole leaves are made so at once.
    fn each_piece(&self, first: u64, count: u64, clear: bool, mut visit: impl FnMut(&mut Table, Shape, u32, u32, u32)) {
        let blocks = u64::from(self.shape.blocks());
        let end = first + count;
        let mut at = first;
        while at < end {
            // Checked against the lvol's size, whose clusters a u32 counts.
            let mut index = (at / blocks) as u32;
            if clear {
                let Some(used) = self.next_used(index) else { return };
                if used > index {
                    index = used;
                    at = u64::from(index) * blocks;
                    continue;
                }
            }
            let leaf_end = (u64::from(index) + u64::from(LEAF)) * blocks;
            let mut table = self.table.borrow_mut();
            let whole_leaf = at == u64::from(index) * blocks && index.is_multiple_of(LEAF) && end >= leaf_end;
            if !clear && whole_leaf && table.is_empty_leaf(index) {
                table.put_zero_leaf(self.shape, index);
                at = leaf_end;
                continue;
            }
            let piece = (end - at).min(blocks - at % blocks);
            visit(&mut table, self.shape, index, (at % blocks) as u32, piece as u32);
            at += piece;
        }
    }
}

impl Table {
    /// The node that an entry is in.
    fn node(&self, index: u32) -> &Node {
        self.nodes.get((index / NODE) as usize).unwrap_or(&Node::Empty)
    }

    fn node_mut(&mut self, index: u32) -> &mut Node {
        let node = (index / NODE) as usize;
        if self.nodes.len() <= node {
            self.nodes.resize(node + 1, Node::Empty);
        }
        &mut self.nodes[node]
    }

    fn is_empty_leaf(&self, index: u32) -> bool {
        self.node(index).is_empty_leaf(leaf_of(index))
    }

    fn put_zero_leaf(&mut self, shape: Shape, index: u32) {
        self.leaves += u64::from(self.is_empty_leaf(index));
        let (given_back, taken) = self.node_mut(index).make_dense(shape);
        self.heap = self.heap + taken - given_back;
        self.alter(shape, index, |node| node.put(shape, leaf_of(index), Leaf::Zero));
    }

    /// Changes one entry, and keeps the counts and the shortest form of its node.
    fn change(&mut self, shape: Shape, index: u32, change: impl FnOnce(&mut EntryMut<'_>)) {
        let leaf = leaf_of(index);
        let state = |node: &Node| (node.is_empty_leaf(leaf), node.is_zero_leaf(leaf));
        let (was_empty, was_zero) = state(self.node(index));
        let (before, after) = self.alter(shape, index, |node| node.change(shape, index % NODE, change));
        let (now_empty, now_zero) = state(self.node(index));
        if was_zero {
            self.entries += u64::from(LEAF);
        }
        self.count(before, after);
        if now_zero {
            self.entries -= u64::from(LEAF);
        }
        self.leaves = self.leaves + u64::from(was_empty) - u64::from(now_empty);
    }

    /// Makes a change of the leaf that an entry is in, and keeps count of the memory.
    fn alter<T>(&mut self, shape: Shape, index: u32, change: impl FnOnce(&mut Node) -> T) -> T {
        let leaf = leaf_of(index);
        let node = self.node_mut(index);
        let (few, heap_before) = (node.few(), node.heap_bytes(leaf));
        let result = change(node);
        let heap_after = node.heap_bytes(leaf);
        let (given_back, taken) = node.settle(shape, leaf, few);
        self.heap = self.heap + heap_after + taken - heap_before - given_back;
        result
    }

    fn count(&mut self, before: Held, after: Held) {
        let is_data = |held| u64::from(matches!(held, Held::Data(_)));
        let is_entry = |held| u64::from(held != Held::Nothing);
        self.clusters = self.clusters + is_data(after) - is_data(before);
        self.entries = self.entries + is_entry(after) - is_entry(before);
    }
}

/// The leaf of its node that an entry is in.
const fn leaf_of(index: u32) -> u32 {
    index % NODE / LEAF
}

/// Bytes that an allocation of this size takes: a word before it, rounded up to 16, at least 32, none for nothing.
fn allocated(bytes: usize) -> u64 {
    match bytes {
        0 => 0,
        _ => (bytes as u64 + 8).next_multiple_of(16).max(32),
    }
}

#[cfg(test)]
mod tests;
