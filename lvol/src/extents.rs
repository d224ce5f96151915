//! What an lvol holds of its own, as extents.

use std::rc::Rc;

use block_device::Range;

use crate::chain::find;
use crate::format::BLOCK;
use crate::info::{Extent, ExtentKind};
use crate::map::{Held, Map};

/// Bytes of the longest extent: what goes on comes as another one, so that who asks for one does not wait for a look at all.
const LONGEST: u64 = 64 << 20;

/// Up to `max` extents of an lvol that begin within a range, in order, none beyond `size`: of its own map, which is the first, and of
/// those that count as its own. They may begin and end in the blocks in which the range does.
pub(crate) fn own_extents(maps: &[Rc<Map>], size: u64, range: Range, max: usize) -> Vec<Extent> {
    let Some(map) = maps.first() else { return Vec::new() };
    let blocks = map.shape().blocks();
    let mut extents: Vec<Extent> = Vec::new();
    let mut at = range.offset / BLOCK;
    let until = range.offset.saturating_add(range.length).min(size);
    let end = if range.offset < until { until.div_ceil(BLOCK) } else { 0 };
    while at < end {
        // An lvol has at most 2^32 clusters.
        let index = (at / u64::from(blocks)) as u32;
        let Some(used) = maps.iter().filter_map(|map| map.next_used(index)).min() else { break };
        at = at.max(u64::from(used) * u64::from(blocks));
        if at >= end {
            break;
        }
        let first = (at % u64::from(blocks)) as u32;
        let (held, count) = find(maps, used, first, blocks - first);
        let count = u64::from(count).min(end - at);
        let kind = match held {
            Held::Nothing => None,
            Held::Zero => Some(ExtentKind::Zero),
            Held::Data(_) => Some(ExtentKind::Data),
        };
        if let Some(kind) = kind {
            let offset = at * BLOCK;
            let length = (count * BLOCK).min(size - offset);
            let full = extents.len() == max;
            match extents.last_mut() {
                Some(last) if last.kind == kind && last.end() == offset && last.length < LONGEST => {
                    last.length += length
                }
                _ if full => break,
                _ => extents.push(Extent { offset, length, kind }),
            }
        }
        at += count;
    }
    extents
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::Shape;

    #[test]
    fn extents_join_across_clusters_and_end_with_the_range_and_the_lvol() {
        let map = Rc::new(Map::new(1, Shape::new(64 << 10)));
        let mut freed = Vec::new();
        map.set(0, 100, 8, 8, &mut freed);
        map.set(1, 300, 0, 4, &mut freed);
        map.zero(64 * 16, 64 * 16, &mut freed);
        let size = 100 * 65536 + 512;
        let maps = [map];
        let data = Extent { offset: 8 * 4096, length: 12 * 4096, kind: ExtentKind::Data };
        let zero = Extent { offset: 64 * 65536, length: 36 * 65536 + 512, kind: ExtentKind::Zero };
        let own = |offset, length, max| own_extents(&maps, size, Range { offset, length }, max);
        assert_eq!(own(0, size, 10), [data, zero]);
        assert_eq!(own(0, u64::MAX, 1), [data]);
        let rest = Extent { offset: 65536, length: 4 * 4096, kind: ExtentKind::Data };
        assert_eq!(own(65536, size, 10), [rest, zero]);
        assert_eq!(own(65536, 3 * 4096, 10), [Extent { length: 3 * 4096, ..rest }]);
        assert_eq!(own(65536, 0, 10), []);
        assert_eq!(own(size, size, 10), []);
    }

    #[test]
    fn what_is_long_comes_in_parts() {
        let map = Rc::new(Map::new(1, Shape::new(64 << 10)));
        map.zero(0, 5 * LONGEST / 2 / BLOCK, &mut Vec::new());
        let own = own_extents(&[map], 10 * LONGEST, Range { offset: 4096, length: u64::MAX }, 10);
        let ends: Vec<u64> = own.iter().map(Extent::end).collect();
        assert_eq!(own[0].offset, 4096);
        assert!(own.windows(2).all(|pair| pair[0].end() == pair[1].offset), "{own:?}");
        assert_eq!(ends[2], 5 * LONGEST / 2);
        assert!(own.iter().all(|extent| extent.length <= LONGEST + 65536), "{own:?}");
    }

    #[test]
    fn what_is_on_its_way_into_an_lvol_counts_as_its_own() {
        let [own, coming] = [1, 2].map(|id| Rc::new(Map::new(id, Shape::new(64 << 10))));
        let mut freed = Vec::new();
        own.set(1, 300, 4, 4, &mut freed);
        coming.set(0, 100, 15, 1, &mut freed);
        coming.set(1, 101, 0, 5, &mut freed);
        coming.zero(2 * 16, 16, &mut freed);
        let data = Extent { offset: 15 * 4096, length: 9 * 4096, kind: ExtentKind::Data };
        let zero = Extent { offset: 2 * 65536, length: 65536, kind: ExtentKind::Zero };
        assert_eq!(own_extents(&[own, coming], 1 << 20, Range { offset: 0, length: 1 << 20 }, 10), [data, zero]);
    }
}
