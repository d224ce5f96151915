//! Nodes: 4096 entries, in whichever form takes less memory.
//!
//! ```text
//! empty      nothing
//! sparse     the entries one by one: for clusters up to 64 KiB, where there are few
//! dense      64 leaves, each in the shortest form that holds it
//! ```
//! A node becomes dense when that takes no more, and stays so: a map that became thin is sparse when it is loaded again.

use std::mem;

use super::LEAF;
use super::blocks::MapEntry;
use super::entry::{Entry, EntryMut, Held, LOW, Run, Shape};
use super::leaf::Leaf;
use super::sparse::Sparse;

/// Leaves of a node.
pub(super) const LEAVES: u32 = 64;

/// More entries than this are never kept one by one: each change moves half of them.
const FEW: usize = 2048;

/// 4096 entries. Their places are counted from the start of the node, and so are its leaves.
#[derive(Clone, Default)]
pub(super) enum Node {
    #[default]
    Empty,
    Sparse(Sparse),
    Dense(Box<[Leaf; LEAVES as usize]>),
}

impl Node {
    /// What the entry holds at block `first`, and for how many blocks, at most `count`, that is so.
    pub(super) fn run(&self, shape: Shape, place: u32, first: u32, count: u32) -> Run {
        match self {
            Self::Empty => Run { held: Held::Nothing, count },
            Self::Sparse(sparse) => Entry(&[sparse.word(place)]).run(first, count),
            Self::Dense(leaves) => leaves[(place / LEAF) as usize].run(shape, place % LEAF, first, count),
        }
    }

    /// What the entry is as a whole.
    pub(super) fn kind(&self, shape: Shape, place: u32) -> Held {
        match self {
            Self::Empty => Held::Nothing,
            Self::Sparse(sparse) => Entry(&[sparse.word(place)]).kind(),
            Self::Dense(leaves) => leaves[(place / LEAF) as usize].kind(shape, place % LEAF),
        }
    }

    /// An entry as a value.
    pub(super) fn entry(&self, shape: Shape, place: u32) -> MapEntry {
        match self {
            Self::Empty => Leaf::Empty.entry(shape, place % LEAF),
            Self::Sparse(sparse) => MapEntry::from_words(&[sparse.word(place)], shape),
            Self::Dense(leaves) => leaves[(place / LEAF) as usize].entry(shape, place % LEAF),
        }
    }

    pub(super) fn is_empty_leaf(&self, leaf: u32) -> bool {
        match self {
            Self::Empty => true,
            Self::Sparse(sparse) => sparse.is_empty_leaf(leaf),
            Self::Dense(leaves) => matches!(leaves[leaf as usize], Leaf::Empty),
        }
    }

    /// Whether all blocks of a leaf are zeroes. Such a leaf is in no sparse node.
    pub(super) fn is_zero_leaf(&self, leaf: u32) -> bool {
        matches!(self, Self::Dense(leaves) if matches!(leaves[leaf as usize], Leaf::Zero))
    }

    /// The first leaf from `leaf` on that is not empty.
    pub(super) fn next_leaf(&self, leaf: u32) -> Option<u32> {
        match self {
            Self::Empty => None,
            Self::Sparse(sparse) => sparse.next_leaf(leaf),
            Self::Dense(leaves) => (leaf..LEAVES).find(|leaf| !matches!(leaves[*leaf as usize], Leaf::Empty)),
        }
    }

    /// Looks at a leaf.
    pub(super) fn with_leaf<T>(&self, shape: Shape, leaf: u32, look: impl FnOnce(&Leaf) -> T) -> T {
        match self {
            Self::Empty => look(&Leaf::Empty),
            Self::Sparse(sparse) => look(&sparse.leaf(shape, leaf)),
            Self::Dense(leaves) => look(&leaves[leaf as usize]),
        }
    }

    /// Calls `visit` with each cluster, in order.
    pub(super) fn each_cluster(&self, shape: Shape, visit: &mut impl FnMut(u64)) {
        match self {
            Self::Empty => {}
            Self::Sparse(sparse) => sparse.each_cluster(visit),
            Self::Dense(leaves) => leaves.iter().for_each(|leaf| leaf.each_cluster(shape, &mut *visit)),
        }
    }

    /// Bytes of the heap that change when a leaf does: all of them but for the other leaves of a dense node.
    pub(super) fn heap_bytes(&self, leaf: u32) -> u64 {
        match self {
            Self::Empty => 0,
            Self::Sparse(sparse) => sparse.heap_bytes(),
            Self::Dense(leaves) => dense_bytes() + leaves[leaf as usize].heap_bytes(),
        }
    }

    /// Marks blocks of a cluster as held if that changes nothing else about the node's memory; false if it does.
    pub(super) fn fill(&mut self, shape: Shape, place: u32, cluster: u64, first: u32, count: u32) -> bool {
        match self {
            Self::Empty => false,
            Self::Sparse(sparse) => {
                let mut word = 0;
                EntryMut(std::slice::from_mut(&mut word)).fill(first, count, true);
                // An entry of one word has at most 16 blocks.
                sparse.fill(place, cluster, word as u16)
            }
            Self::Dense(leaves) => leaves[(place / LEAF) as usize].fill(shape, place % LEAF, cluster, first, count),
        }
    }

    /// Changes one entry. Returns what it was and what it is.
    pub(super) fn change(&mut self, shape: Shape, place: u32, change: impl FnOnce(&mut EntryMut<'_>)) -> (Held, Held) {
        self.begin(shape);
        let sparse = match self {
            Self::Dense(leaves) => return leaves[(place / LEAF) as usize].change(shape, place % LEAF, change),
            Self::Sparse(sparse) => sparse,
            Self::Empty => return (Held::Nothing, Held::Nothing),
        };
        let mut word = sparse.word(place);
        let mut entry = EntryMut(std::slice::from_mut(&mut word));
        let before = entry.kind();
        change(&mut entry);
        let after = entry.kind();
        sparse.put(place, word);
        if sparse.len() == 0 {
            *self = Self::Empty;
        }
        (before, after)
    }

    /// Replaces a leaf. Only a dense node takes one that is all zeroes.
    pub(super) fn put(&mut self, shape: Shape, leaf: u32, new: Leaf) {
        self.begin(shape);
        match self {
            Self::Dense(leaves) => leaves[leaf as usize] = new,
            Self::Sparse(sparse) => sparse.put_leaf(leaf, &new.unpacked(shape)),
            Self::Empty => {}
        }
    }

    /// The form in which a node that had nothing takes its first entry.
    fn begin(&mut self, shape: Shape) {
        match self {
            Self::Empty if shape.words() == 1 => *self = Self::Sparse(Sparse::empty()),
            Self::Empty => _ = self.make_dense(shape),
            Self::Sparse(_) | Self::Dense(_) => {}
        }
    }

    /// How many entries are kept one by one.
    pub(super) fn few(&self) -> usize {
        match self {
            Self::Sparse(sparse) => sparse.len(),
            Self::Empty | Self::Dense(_) => 0,
        }
    }

    /// After a change of a leaf of a node that had `before` entries one by one: makes the node dense if that takes no more. Returns the
    /// bytes of the heap given back and taken.
    pub(super) fn settle(&mut self, shape: Shape, leaf: u32, before: usize) -> (u64, u64) {
        let Self::Sparse(sparse) = self else { return (0, 0) };
        // Looking at all entries costs something: every now and then is enough.
        let grown = sparse.len() / LEAF as usize > before / LEAF as usize;
        let shorter = || dense_bytes() + sparse.bytes_as_leaves(shape) <= sparse.heap_bytes();
        let starts_with_zeroes =
            || Entry(&[sparse.word(leaf * LEAF)]).is_whole(shape) && sparse.word(leaf * LEAF) >> LOW == 0;
        let is_zero = || starts_with_zeroes() && matches!(sparse.leaf(shape, leaf), Leaf::Zero);
        if !(sparse.len() > FEW || is_zero() || grown && shorter()) {
            return (0, 0);
        }
        self.make_dense(shape)
    }

    /// Makes the node dense if it is not. Returns the bytes of the heap given back and taken.
    pub(super) fn make_dense(&mut self, shape: Shape) -> (u64, u64) {
        let before = self.all_bytes();
        match self {
            Self::Dense(_) => return (0, 0),
            Self::Empty => *self = Self::Dense(Box::new([const { Leaf::Empty }; LEAVES as usize])),
            Self::Sparse(sparse) => {
                *self = Self::Dense(Box::new(std::array::from_fn(|leaf| sparse.leaf(shape, leaf as u32))));
            }
        }
        (before, self.all_bytes())
    }

    /// All bytes of the heap.
    pub(super) fn all_bytes(&self) -> u64 {
        match self {
            Self::Empty => 0,
            Self::Sparse(sparse) => sparse.heap_bytes(),
            Self::Dense(leaves) => dense_bytes() + leaves.iter().map(Leaf::heap_bytes).sum::<u64>(),
        }
    }
}

/// Bytes of the heap of a dense node without its leaves.
fn dense_bytes() -> u64 {
    super::allocated(mem::size_of::<[Leaf; LEAVES as usize]>())
}
