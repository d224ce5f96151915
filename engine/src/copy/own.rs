//! What lvols have of their own: only there can a copy have something to do.

use block_device::{Error, Range};
use replica::{Extent, Replica};
use uuid::Uuid;

use super::EXTENTS;
use super::transfer::cut;
use crate::regions::REGION;

/// The first region from `from` on in which an lvol has own blocks.
pub(super) async fn next_own(replica: &dyn Replica, lvol: Uuid, from: u64, size: u64) -> Result<Option<Range>, Error> {
    if from >= size {
        return Ok(None);
    }
    let extents = replica.extents(lvol, from, 1).await?;
    Ok(extents.list.first().map(|extent| {
        let offset = extent.range.offset.max(from);
        let start = offset - offset % REGION;
        Range { offset: start, length: REGION.min(size - start) }
    }))
}

/// An lvol's own blocks within a region.
pub(super) async fn own_in(replica: &dyn Replica, lvol: Uuid, region: Range) -> Result<Vec<Extent>, Error> {
    let mut own = Vec::new();
    let mut next = Some(region.offset);
    while let Some(from) = next.filter(|from| *from < region.end()) {
        let extents = replica.extents(lvol, from, EXTENTS).await?;
        own.extend(
            extents.list.iter().filter_map(|extent| Some(Extent { range: cut(extent.range, region)?, ..*extent })),
        );
        let passed = extents.list.last().is_some_and(|last| last.range.end() >= region.end());
        next = extents.next.filter(|_| !passed);
    }
    Ok(own)
}

/// The ranges of extents from two lvols, in order, with what overlaps or touches joined.
pub(super) fn merged(mut extents: Vec<Extent>) -> Vec<Range> {
    extents.sort_by_key(|extent| extent.range.offset);
    let mut merged: Vec<Range> = Vec::new();
    for Extent { range, .. } in extents {
        match merged.last_mut() {
            Some(last) if range.offset <= last.end() => last.length = last.length.max(range.end() - last.offset),
            _ => merged.push(range),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use replica::ExtentKind;

    use super::*;

    #[test]
    fn extents_of_both_sides_become_one_list() {
        let extent = |offset, length| Extent { range: Range { offset, length }, kind: ExtentKind::Data };
        let ranges = merged(vec![extent(8192, 4096), extent(0, 4096), extent(4096, 4096), extent(20480, 4096)]);
        assert_eq!(ranges, [Range { offset: 0, length: 12288 }, Range { offset: 20480, length: 4096 }]);
        let ranges = merged(vec![extent(0, 8192), extent(0, 4096)]);
        assert_eq!(ranges, [Range { offset: 0, length: 8192 }]);
    }
}
