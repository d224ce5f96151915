//! Leaves: 64 entries in the shortest form that holds them.
//!
//! ```text
//! empty, zero     nothing, or zeroes in every block: no memory
//! run             every block has data, clusters in a row: the first cluster
//! packed          clusters up to 64 KiB: which entries are there (two words), a cluster number (32 bits) each, and, unless
//!                 all are whole, a bitmap (16 bits) each
//! words           larger clusters: the entries as they are on disk
//! ```
//! A store has fewer than 2^32 clusters, so 32 bits are enough. A full leaf takes at most 392 bytes.

use smallvec::SmallVec;

use super::LEAF;
use super::blocks::MapEntry;
use super::entry::{Entry, EntryMut, Held, LOW, Run, Shape};

/// All entries of a leaf, each of as many words as the shape says.
pub(super) type Words = SmallVec<[u64; LEAF as usize]>;

/// 64 entries.
#[derive(Clone, Default)]
pub(super) enum Leaf {
    #[default]
    Empty,
    /// All blocks of all entries are zeroes.
    Zero,
    /// All blocks of all entries have data, in clusters from this one on.
    Run(u32),
    /// See [`Packed`].
    Packed(Box<[u32]>),
    /// `LEAF` × words long.
    Words(Box<[u64]>),
}

/// A look at a packed leaf: mask of the entries that are there, low half first; their clusters; their bitmaps, two a word, unless
/// all are whole.
#[derive(Clone, Copy)]
struct Packed<'a>(&'a [u32]);

/// Words of the mask.
const MASK: usize = 2;

impl Leaf {
    /// What the entry holds at block `first`, and for how many blocks, at most `count`, that is so.
    pub(super) fn run(&self, shape: Shape, place: u32, first: u32, count: u32) -> Run {
        match self {
            Self::Empty => Run { held: Held::Nothing, count },
            Self::Zero => Run { held: Held::Zero, count },
            Self::Run(cluster) => Run { held: Held::Data(u64::from(cluster + place)), count },
            Self::Packed(packed) => Entry(&[Packed(packed).word(shape, place)]).run(first, count),
            Self::Words(words) => entry_of(words, shape, place).run(first, count),
        }
    }

    /// What the entry is as a whole.
    pub(super) fn kind(&self, shape: Shape, place: u32) -> Held {
        match self {
            Self::Empty => Held::Nothing,
            Self::Zero => Held::Zero,
            Self::Run(cluster) => Held::Data(u64::from(cluster + place)),
            Self::Packed(packed) => Entry(&[Packed(packed).word(shape, place)]).kind(),
            Self::Words(words) => entry_of(words, shape, place).kind(),
        }
    }

    /// An entry as a value.
    pub(super) fn entry(&self, shape: Shape, place: u32) -> MapEntry {
        match self {
            Self::Packed(packed) => MapEntry::from_words(&[Packed(packed).word(shape, place)], shape),
            Self::Words(words) => MapEntry::from_words(entry_of(words, shape, place).0, shape),
            _ => {
                let words = self.unpacked(shape);
                MapEntry::from_words(entry_of(&words, shape, place).0, shape)
            }
        }
    }

    /// Calls `visit` with each cluster, in order.
    pub(super) fn each_cluster(&self, shape: Shape, mut visit: impl FnMut(u64)) {
        match self {
            Self::Empty | Self::Zero => {}
            Self::Run(first) => (0..LEAF).for_each(|place| visit(u64::from(first + place))),
            Self::Packed(packed) => Packed(packed)
                .clusters()
                .iter()
                .filter(|&&cluster| cluster != 0)
                .for_each(|&cluster| visit(cluster.into())),
            Self::Words(words) => {
                words.chunks_exact(shape.words()).filter_map(|entry| Entry(entry).data_cluster()).for_each(visit)
            }
        }
    }

    /// The entries as words.
    pub(super) fn unpacked(&self, shape: Shape) -> Words {
        let mut words = Words::from_elem(0, LEAF as usize * shape.words());
        match self {
            Self::Empty => {}
            Self::Zero => {
                words.chunks_exact_mut(shape.words()).for_each(|entry| EntryMut(entry).fill(0, shape.blocks(), true))
            }
            Self::Run(first) => {
                for (entry, cluster) in words.chunks_exact_mut(shape.words()).zip(*first..) {
                    let mut entry = EntryMut(entry);
                    entry.start_cluster(cluster.into());
                    entry.fill(0, shape.blocks(), true);
                }
            }
            Self::Packed(packed) => Packed(packed).put_words(shape, &mut words),
            Self::Words(all) => words.copy_from_slice(all),
        }
        words
    }

    /// Takes the entries out as words; the leaf is empty then.
    fn take(&mut self, shape: Shape) -> (Words, Option<Box<[u32]>>) {
        match std::mem::take(self) {
            Self::Words(words) => (Words::from_vec(words.into_vec()), None),
            Self::Packed(packed) => {
                let mut words = Words::from_elem(0, LEAF as usize);
                Packed(&packed).put_words(shape, &mut words);
                (words, Some(packed))
            }
            short => (short.unpacked(shape), None),
        }
    }

    /// Changes one entry. Returns what it was and what it is.
    pub(super) fn change(&mut self, shape: Shape, place: u32, change: impl FnOnce(&mut EntryMut<'_>)) -> (Held, Held) {
        let (mut words, room) = self.take(shape);
        let at = place as usize * shape.words();
        let mut entry = EntryMut(&mut words[at..at + shape.words()]);
        let before = entry.kind();
        change(&mut entry);
        let after = entry.kind();
        *self = Self::pack(words, shape, room);
        (before, after)
    }

    /// Marks blocks of a cluster as held if that changes nothing else about the leaf; false if it does.
    pub(super) fn fill(&mut self, shape: Shape, place: u32, cluster: u64, first: u32, count: u32) -> bool {
        let Self::Packed(packed) = self else { return false };
        let (mask, length) = (Packed(packed).mask(), packed.len());
        let mut word = Packed(packed).word(shape, place);
        EntryMut(std::slice::from_mut(&mut word)).fill(first, count, true);
        let all = MASK + mask.count_ones() as usize;
        if mask >> place & 1 == 0 || word >> LOW != cluster || length == all || Entry(&[word]).is_whole(shape) {
            return false;
        }
        let rank = (mask & ((1 << place) - 1)).count_ones();
        packed[all + rank as usize / 2] |= ((word & ((1 << LOW) - 1)) as u32) << (LOW * (rank % 2));
        true
    }

    /// The shortest form of the entries. `room` is used again if it is as long as needed.
    pub(super) fn pack(words: Words, shape: Shape, room: Option<Box<[u32]>>) -> Self {
        let mut entries = words.chunks_exact(shape.words()).map(Entry);
        let first = entries.next().unwrap_or(Entry(&[0]));
        match first.kind() {
            Held::Nothing if words.iter().all(|&word| word == 0) => return Self::Empty,
            Held::Zero if first.is_whole(shape) && entries.all(|entry| entry.0 == first.0) => return Self::Zero,
            Held::Data(cluster) if first.is_whole(shape) => {
                let mut next = cluster;
                let follows = entries.all(|entry| {
                    next += 1;
                    entry.kind() == Held::Data(next) && entry.is_whole(shape)
                });
                if follows {
                    // The format check leaves no larger cluster.
                    return Self::Run(cluster as u32);
                }
            }
            _ => {}
        }
        match shape.words() {
            1 => Self::Packed(pack(&words, shape, room)),
            _ => Self::Words(words.into_boxed_slice()),
        }
    }

    /// Bytes of the heap that a packed leaf of so many entries takes.
    pub(super) fn packed_bytes(entries: usize, whole: bool) -> u64 {
        super::allocated(4 * packed_length(entries, whole))
    }

    /// Bytes of the heap that the leaf takes, with what the allocator needs for them.
    pub(super) fn heap_bytes(&self) -> u64 {
        match self {
            Self::Empty | Self::Zero | Self::Run(_) => 0,
            Self::Packed(packed) => super::allocated(packed.len() * 4),
            Self::Words(words) => super::allocated(words.len() * 8),
        }
    }
}

fn entry_of(words: &[u64], shape: Shape, place: u32) -> Entry<'_> {
    let at = place as usize * shape.words();
    Entry(&words[at..at + shape.words()])
}

/// Words of a packed leaf of so many entries.
fn packed_length(entries: usize, whole: bool) -> usize {
    MASK + entries + if whole { 0 } else { entries.div_ceil(2) }
}

fn pack(words: &[u64], shape: Shape, room: Option<Box<[u32]>>) -> Box<[u32]> {
    let there = || words.iter().filter(|&&word| word != 0);
    let count = there().count();
    let whole = there().all(|&word| Entry(&[word]).is_whole(shape));
    let length = packed_length(count, whole);
    let mut packed = match room {
        Some(room) if room.len() == length => room,
        _ => vec![0; length].into_boxed_slice(),
    };
    let mask = (0..).zip(words).filter(|(_, word)| **word != 0).fold(0u64, |mask, (place, _)| mask | 1 << place);
    // Both halves of the mask; cluster numbers are below 2^32 by the format check.
    (packed[0], packed[1]) = (mask as u32, (mask >> 32) as u32);
    for (rank, word) in there().enumerate() {
        packed[MASK + rank] = (word >> LOW) as u32;
    }
    if !whole {
        let bitmaps = &mut packed[MASK + count..];
        bitmaps.fill(0);
        for (rank, word) in there().enumerate() {
            bitmaps[rank / 2] |= ((word & ((1 << LOW) - 1)) as u32) << (LOW * (rank as u32 % 2));
        }
    }
    packed
}

impl<'a> Packed<'a> {
    fn mask(self) -> u64 {
        u64::from(self.0[0]) | u64::from(self.0[1]) << 32
    }

    fn clusters(self) -> &'a [u32] {
        &self.0[MASK..MASK + self.mask().count_ones() as usize]
    }

    fn put_words(self, shape: Shape, words: &mut [u64]) {
        let mut left = self.mask();
        let bitmaps = &self.0[MASK + left.count_ones() as usize..];
        for (rank, cluster) in self.clusters().iter().enumerate() {
            let bits = match bitmaps.get(rank / 2) {
                None => (1 << shape.blocks()) - 1,
                Some(two) => two >> (LOW * (rank as u32 % 2)) & ((1 << LOW) - 1),
            };
            words[left.trailing_zeros() as usize] = u64::from(*cluster) << LOW | u64::from(bits);
            left &= left - 1;
        }
    }

    /// The entry as it is on disk.
    fn word(self, shape: Shape, place: u32) -> u64 {
        let mask = self.mask();
        if mask >> place & 1 == 0 {
            return 0;
        }
        let rank = (mask & ((1 << place) - 1)).count_ones() as usize;
        let bitmaps = &self.0[MASK + mask.count_ones() as usize..];
        let bits = match bitmaps.get(rank / 2) {
            None => (1 << shape.blocks()) - 1,
            Some(two) => two >> (LOW * (rank as u32 % 2)) & ((1 << LOW) - 1),
        };
        u64::from(self.0[MASK + rank]) << LOW | u64::from(bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(words: &[u64], shape: Shape) -> Leaf {
        let mut all = Words::from_elem(0, LEAF as usize * shape.words());
        all[..words.len()].copy_from_slice(words);
        Leaf::pack(all, shape, None)
    }

    #[test]
    fn each_form_comes_back_as_the_words_it_was_made_from() {
        let shape = Shape::new(64 << 10);
        let whole = |cluster: u64| cluster << 16 | 0xffff;
        let row: Vec<u64> = (0..64).map(|place| whole(900 + place)).collect();
        let mixed: Vec<u64> = (0..64).map(|place| (9000 - place) << 16 | (1 << (place % 16))).collect();
        let cases = [
            (vec![], 0),
            (vec![0xffff; 64], 0),
            (row.clone(), 0),
            (row.iter().rev().copied().collect(), 4 * 66),
            (row[..63].to_vec(), 4 * 65),
            (mixed, 4 * 98),
            (vec![0, 0, 7 << 16 | 3], 4 * 4),
            (vec![0xffff, 0, 7 << 16 | 0xffff], 4 * 4),
            (vec![0xff, u64::from(u32::MAX) << 16 | 0xffff], 4 * 5),
        ];
        for (words, bytes) in cases {
            let leaf = packed(&words, shape);
            let found = leaf.unpacked(shape);
            assert_eq!(found[..words.len()], words);
            assert!(found[words.len()..].iter().all(|&word| word == 0));
            assert_eq!(leaf.heap_bytes(), super::super::allocated(bytes), "{words:x?}");
            let mut clusters = Vec::new();
            leaf.each_cluster(shape, |cluster| clusters.push(cluster));
            assert_eq!(
                clusters,
                words.iter().map(|word| word >> 16).filter(|&cluster| cluster != 0).collect::<Vec<_>>()
            );
        }
    }

    #[test]
    fn a_run_is_found_for_large_clusters_and_small_ones() {
        for cluster_size in [16 << 10, 64 << 10, 128 << 10, 4 << 20] {
            let shape = Shape::new(cluster_size);
            let mut leaf = Leaf::Empty;
            for place in 0..LEAF {
                assert!(!matches!(leaf, Leaf::Run(_)));
                let (before, after) = leaf.change(shape, place, |entry| {
                    entry.start_cluster(500 + u64::from(place));
                    entry.fill(0, shape.blocks(), true);
                });
                assert_eq!((before, after), (Held::Nothing, Held::Data(500 + u64::from(place))));
            }
            assert!(matches!(leaf, Leaf::Run(500)));
            assert_eq!(leaf.kind(shape, 63), Held::Data(563));
            assert_eq!(leaf.entry(shape, 2).cluster, Some(502));
            leaf.change(shape, 5, |entry| entry.fill(1, 1, false));
            assert!(!matches!(leaf, Leaf::Run(_)));
            assert_eq!(leaf.run(shape, 5, 1, 3), Run { held: Held::Nothing, count: 1 });
            assert_eq!(leaf.run(shape, 6, 0, 4), Run { held: Held::Data(506), count: 4 });
        }
    }
}
