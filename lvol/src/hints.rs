//! Who of a long chain holds a block: remembered, so that a read need not ask every ancestor.
//!
//! What is remembered are hints, for 16 blocks at a time: the place in the chain of the ancestor that holds each. A hint is
//! checked by asking that ancestor, which a read does anyway. That is enough, as ancestors change by merges only: one
//! takes what the one behind it had, which then has nothing there. So who is asked by a hint either still is the
//! nearest that holds the block, or holds nothing and the chain is walked again; and a block that nobody holds stays
//! so. When an lvol gets another chain, its hints are under a number that nobody asks for any more.
//!
//! One table for a store, made by the first read that needs it: bounded, and lvols that are not read leave it to the others.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use crate::chain::find;
use crate::map::{Held, Map};

/// Chains of fewer maps are walked: that costs less.
const LONG: usize = 4;

/// Blocks that one slot tells of. A cluster has at least 4 blocks; a slot never tells of two clusters.
const GROUP: u32 = 16;

/// Slots of a store: 8 MiB, enough for the hints of 16 GiB of lvols in use.
const SLOTS: usize = 1 << 18;

/// Words a slot: the number of the chain, the number of the group, and a byte for each block.
const WORDS: usize = 4;

/// Nobody in the chain holds the block.
const NOBODY: u8 = u8::MAX;

/// Its holder is this far away or further: those are asked one by one.
const FAR: u8 = u8::MAX - 1;

/// The hints of a store.
#[derive(Default)]
pub(crate) struct Hints {
    /// Each group has one slot that it can be in.
    words: RefCell<Vec<u64>>,
    /// The number given to a chain last.
    chains: Cell<u64>,
}

/// Where the hints of one lvol are found. A new one for a new chain.
#[derive(Default)]
pub(crate) struct ChainNumber(Cell<u64>);

/// Whose blocks of a group are, in order.
type Holders = [u8; GROUP as usize];

impl Hints {
    /// As [`find`]: the first of the chain that holds the block, and for how many blocks the answer is the same.
    pub(crate) fn find(
        &self,
        number: &ChainNumber,
        chain: &[Rc<Map>],
        index: u32,
        first: u32,
        count: u32,
    ) -> (Held, u32) {
        let Some((own, ancestors)) = chain.split_first().filter(|_| chain.len() >= LONG) else {
            return find(chain, index, first, count);
        };
        let run = own.run(index, first, count);
        let found = match run.held {
            Held::Nothing => self.find_ancestor(number, ancestors, index, first, run.count),
            held => (held, run.count),
        };
        debug_assert_eq!(found.0, find(chain, index, first, found.1).0, "a hint leads to who holds the block");
        found
    }

    fn find_ancestor(
        &self,
        number: &ChainNumber,
        ancestors: &[Rc<Map>],
        index: u32,
        first: u32,
        count: u32,
    ) -> (Held, u32) {
        let group = Group::of(ancestors[0].shape().blocks(), index, first);
        let mut holders = self.recall(number, &group);
        if let Some(known) = holders
            && let Some(found) = ask(known, ancestors, &group, first, count)
        {
            return found;
        }
        let known = *holders.insert(group.walk(ancestors));
        self.remember(number, &group, known);
        // Nothing changed since the walk: who holds a block says so.
        ask(known, ancestors, &group, first, count).unwrap_or_else(|| find(ancestors, index, first, count))
    }

    fn recall(&self, number: &ChainNumber, group: &Group) -> Option<Holders> {
        let words = self.words.borrow();
        let number = number.0.get();
        let slot = words.get(place(number, group)..)?.first_chunk::<WORDS>()?;
        let [chain, of, low, high] = *slot;
        (chain == number && of == group.number).then(|| {
            let mut holders = [0; GROUP as usize];
            holders[..8].copy_from_slice(&low.to_le_bytes());
            holders[8..].copy_from_slice(&high.to_le_bytes());
            holders
        })
    }

    fn remember(&self, number: &ChainNumber, group: &Group, holders: Holders) {
        if number.0.get() == 0 {
            self.chains.set(self.chains.get() + 1);
            number.0.set(self.chains.get());
        }
        let mut words = self.words.borrow_mut();
        if words.is_empty() {
            // Zeroes from the system: only what is used becomes resident.
            *words = vec![0; SLOTS * WORDS];
        }
        let half = |at: usize| holders[at..at + 8].iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
        let at = place(number.0.get(), group);
        words[at..at + WORDS].copy_from_slice(&[number.0.get(), group.number, half(0), half(8)]);
    }
}

impl ChainNumber {
    /// The chain is another one from now on.
    pub(crate) fn renew(&self) {
        // Zero is no chain's number: the next walk gives one.
        self.0.set(0);
    }
}

/// Where in the words the slot of a group is. Groups in a row are in slots in a row.
const fn place(number: u64, group: &Group) -> usize {
    // A multiplier that spreads chains over the table: 2^64 divided by the golden ratio.
    let start = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    (group.number.wrapping_add(start) as usize % SLOTS) * WORDS
}

/// Blocks of one cluster of the lvol that share a slot.
struct Group {
    /// Counted over the whole lvol.
    number: u64,
    index: u32,
    /// Its first block in the cluster, and how many there are.
    first: u32,
    count: u32,
}

impl Group {
    /// The group of a block.
    const fn of(blocks_per_cluster: u32, index: u32, block: u32) -> Self {
        let groups = blocks_per_cluster.div_ceil(GROUP);
        let first = block - block % GROUP;
        let left = blocks_per_cluster - first;
        let count = if left < GROUP { left } else { GROUP };
        Self { number: index as u64 * groups as u64 + (first / GROUP) as u64, index, first, count }
    }

    /// Asks one ancestor after the other until all holders are known.
    fn walk(&self, ancestors: &[Rc<Map>]) -> Holders {
        let nobody = if ancestors.len() > usize::from(FAR) { FAR } else { NOBODY };
        let mut holders = [nobody; GROUP as usize];
        let mut left = self.count;
        for (map, depth) in ancestors.iter().zip(0..FAR) {
            let mut at = 0;
            while at < self.count {
                let run = map.run(self.index, self.first + at, self.count - at);
                if run.held != Held::Nothing {
                    for holder in &mut holders[at as usize..(at + run.count) as usize] {
                        if *holder == nobody {
                            *holder = depth;
                            left -= 1;
                        }
                    }
                }
                at += run.count;
            }
            if left == 0 {
                break;
            }
        }
        holders
    }
}

/// Asks whom the hint names; `None` when the hint is wrong.
fn ask(holders: Holders, ancestors: &[Rc<Map>], group: &Group, first: u32, count: u32) -> Option<(Held, u32)> {
    let at = (first - group.first) as usize;
    let holder = holders[at];
    let asked = &holders[at..group.count.min(at as u32 + count) as usize];
    let count = asked.iter().take_while(|&&other| other == holder).count() as u32;
    match holder {
        NOBODY => Some((Held::Nothing, count)),
        FAR => Some(find(&ancestors[usize::from(FAR).min(ancestors.len())..], group.index, first, count)),
        depth => {
            let run = ancestors.get(usize::from(depth))?.run(group.index, first, count);
            (run.held != Held::Nothing).then_some((run.held, run.count))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::map::Shape;

    /// What the whole lvol of `clusters` clusters is found to be, run by run, block by block.
    fn blocks(clusters: u32, per_cluster: u32, mut find: impl FnMut(u32, u32, u32) -> (Held, u32)) -> Vec<Held> {
        let mut found = Vec::new();
        for index in 0..clusters {
            let mut at = 0;
            while at < per_cluster {
                let (held, count) = find(index, at, per_cluster - at);
                assert!(count > 0 && at + count <= per_cluster);
                found.extend((0..count).map(|_| held));
                at += count;
            }
        }
        found
    }

    fn chain(cluster_size: u32, sets: &[(usize, u32, u32, bool)], depth: usize) -> Vec<Rc<Map>> {
        let shape = Shape::new(cluster_size);
        let maps: Vec<Rc<Map>> = (0..depth).map(|id| Rc::new(Map::new(id as u32, shape))).collect();
        for &(which, index, block, zero) in sets {
            let (which, block) = (which % depth, block % shape.blocks());
            match zero && !matches!(maps[which].kind(index), Held::Data(_)) {
                true => {
                    maps[which].zero(u64::from(index) * u64::from(shape.blocks()) + u64::from(block), 1, &mut vec![]);
                }
                false => {
                    let cluster = 100 + (which as u64) * 8 + u64::from(index);
                    maps[which].set(index, cluster, block, 1, &mut vec![]);
                }
            }
        }
        maps
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]
        #[test]
        fn hints_say_what_a_walk_says(
            size in prop::sample::select(vec![16u32 << 10, 64 << 10, 256 << 10]),
            depth in prop::sample::select(vec![1usize, 3, 4, 20, 253, 254, 255, 256, 300]),
            sets in prop::collection::vec((0usize..300, 0u32..4, 0u32..64, prop::bool::weighted(0.2)), 0..200),
        ) {
            let maps = chain(size, &sets, depth);
            let per_cluster = Shape::new(size).blocks();
            let (hints, number) = (Hints::default(), ChainNumber::default());
            let walked = blocks(4, per_cluster, |index, first, count| find(&maps, index, first, count));
            for _ in 0..2 {
                let hinted = blocks(4, per_cluster, |index, first, count| hints.find(&number, &maps, index, first, count));
                prop_assert_eq!(&hinted, &walked);
            }
        }
    }

    #[test]
    fn a_hint_that_a_merge_made_wrong_is_noticed() {
        let maps = chain(64 << 10, &[(5, 0, 3, false), (4, 0, 7, false)], 6);
        let (hints, number) = (Hints::default(), ChainNumber::default());
        let found = |block| hints.find(&number, &maps, 0, block, 1).0;
        assert_eq!((found(3), found(7), found(9)), (Held::Data(140), Held::Data(132), Held::Nothing));
        // The fifth takes over what the sixth has.
        let mut freed = Vec::new();
        maps[4].set(0, 132, 3, 1, &mut freed);
        maps[5].clear(3, 1, &mut freed);
        assert_eq!((found(3), found(7), found(9)), (Held::Data(132), Held::Data(132), Held::Nothing));
    }

    #[test]
    fn a_new_chain_has_no_hints_and_chains_do_not_mix() {
        let (first, second) = (chain(64 << 10, &[(3, 0, 3, false)], 6), chain(64 << 10, &[(2, 0, 3, false)], 6));
        let hints = Hints::default();
        let (one, two) = (ChainNumber::default(), ChainNumber::default());
        for _ in 0..2 {
            assert_eq!(hints.find(&one, &first, 0, 3, 1).0, Held::Data(124));
            assert_eq!(hints.find(&two, &second, 0, 3, 1).0, Held::Data(116));
        }
        one.renew();
        assert_eq!(hints.find(&one, &second, 0, 3, 1).0, Held::Data(116));
    }
}
