//! Reading through a chain: who holds each block, and where.

use std::rc::Rc;

use block_device::Range;
use smallvec::SmallVec;

use crate::format::BLOCK;
use crate::map::{Held, Map};

/// Where bytes in a row come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Nobody holds them, or someone holds zeroes.
    Zeroes,
    /// This byte offset of the disk.
    Disk(u64),
}

/// Bytes in a row from one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) source: Source,
    pub(crate) length: u64,
}

/// The pieces of a range in order, as few as possible.
pub(crate) type Pieces = SmallVec<[Piece; 4]>;

/// Finds the pieces of a range of bytes of an lvol. `find` says who holds a block, given the cluster of the lvol, the block in it
/// and how many blocks are of interest, and for how many of them the answer is the same.
pub(crate) fn resolve(cluster_size: u32, range: Range, mut find: impl FnMut(u32, u32, u32) -> (Held, u32)) -> Pieces {
    let cluster_size = u64::from(cluster_size);
    let mut pieces = Pieces::new();
    let mut at = range.offset;
    while at < range.end() {
        // An lvol has at most 2^32 clusters, a cluster at most 1024 blocks.
        let index = (at / cluster_size) as u32;
        let within = at % cluster_size;
        let first = within / BLOCK;
        let end = (range.end() - at + within).min(cluster_size);
        let blocks = end.div_ceil(BLOCK) - first;
        let (held, count) = find(index, first as u32, blocks as u32);
        let length = ((first + u64::from(count)) * BLOCK).min(end) - within;
        let source = match held {
            Held::Data(cluster) => Source::Disk(cluster * cluster_size + within),
            Held::Zero | Held::Nothing => Source::Zeroes,
        };
        push(&mut pieces, Piece { source, length });
        at += length;
    }
    pieces
}

/// The first of the chain that holds the block, and for how many blocks the answer is the same. The cost grows with the depth for
/// blocks that only old snapshots hold: reads use [`crate::hints`].
pub(crate) fn find(chain: &[Rc<Map>], index: u32, first: u32, count: u32) -> (Held, u32) {
    let mut count = count;
    for map in chain {
        let run = map.run(index, first, count);
        count = run.count;
        if run.held != Held::Nothing {
            return (run.held, count);
        }
    }
    (Held::Nothing, count)
}

fn push(pieces: &mut Pieces, piece: Piece) {
    if let Some(last) = pieces.last_mut() {
        let joins = match (last.source, piece.source) {
            (Source::Zeroes, Source::Zeroes) => true,
            (Source::Disk(before), Source::Disk(after)) => before + last.length == after,
            _ => false,
        };
        if joins {
            last.length += piece.length;
            return;
        }
    }
    pieces.push(piece);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::Shape;

    const CLUSTER: u32 = 64 << 10;

    fn map(sets: &[(u32, u64, u32, u32)]) -> Rc<Map> {
        let map = Map::new(1, Shape::new(CLUSTER));
        sets.iter().for_each(|&(index, cluster, first, count)| map.set(index, cluster, first, count, &mut Vec::new()));
        Rc::new(map)
    }

    fn disk(cluster: u64, block: u64, blocks: u64) -> Piece {
        Piece { source: Source::Disk(cluster * u64::from(CLUSTER) + block * 4096), length: blocks * 4096 }
    }

    #[test]
    fn each_block_comes_from_the_nearest_that_holds_it() {
        let parent = map(&[(0, 100, 0, 16), (1, 101, 0, 16)]);
        let child = map(&[(0, 200, 4, 2)]);
        child.zero(16, 8, &mut Vec::new());
        let range = Range { offset: 0, length: 3 * u64::from(CLUSTER) };
        let chain = [child, parent];
        let pieces = resolve(CLUSTER, range, |index, at, count| find(&chain, index, at, count));
        let zeroes = |blocks: u64| Piece { source: Source::Zeroes, length: blocks * 4096 };
        let expected = [disk(100, 0, 4), disk(200, 4, 2), disk(100, 6, 10), zeroes(8), disk(101, 8, 8), zeroes(16)];
        assert_eq!(pieces.as_slice(), expected);
    }

    #[test]
    fn clusters_in_a_row_on_disk_are_one_piece() {
        let own = map(&[(0, 100, 0, 16), (1, 101, 0, 16), (2, 103, 0, 16)]);
        let range = Range { offset: 512, length: 3 * u64::from(CLUSTER) - 1024 };
        let pieces = resolve(CLUSTER, range, |index, at, count| find(std::slice::from_ref(&own), index, at, count));
        let first = Piece { source: Source::Disk(100 * 65536 + 512), length: 2 * 65536 - 512 };
        let second = Piece { source: Source::Disk(103 * 65536), length: 65536 - 512 };
        assert_eq!(pieces.as_slice(), [first, second]);
    }
}
