//! What lvols have of their own: only there can a copy have something to do.

use block_device::{Error, Range};
use replica::{Extent, Replica};
use uuid::Uuid;

use super::EXTENTS;
use super::transfer::cut;
use crate::regions::REGION;

/// Where an lvol has own blocks next, as it was found when it was asked last. It is gone through once, from its start to its end: a block
/// that comes to be meanwhile, behind where was looked, reaches the target by itself.
#[derive(Default)]
pub(super) struct Ahead(Option<Option<Range>>);

impl Ahead {
    /// The first region from `from` on in which the lvol has own blocks.
    pub(super) async fn next_region(
        &mut self,
        replica: &dyn Replica,
        lvol: Uuid,
        from: u64,
        size: u64,
    ) -> Result<Option<Range>, Error> {
        if from >= size {
            return Ok(None);
        }
        let known = self.0.filter(|known| known.is_none_or(|extent| extent.end() > from));
        let next = match known {
            Some(next) => next,
            None => {
                let rest = Range { offset: from, length: size - from };
                let found = replica.extents(lvol, rest, 1).await?;
                *self.0.insert(found.list.first().map(|extent| extent.range))
            }
        };
        Ok(next.map(|extent| {
            let offset = extent.offset.max(from);
            let start = offset - offset % REGION;
            Range { offset: start, length: REGION.min(size - start) }
        }))
    }
}

/// An lvol's own blocks within a region.
pub(super) async fn own_in(replica: &dyn Replica, lvol: Uuid, region: Range) -> Result<Vec<Extent>, Error> {
    let mut own = Vec::new();
    let mut next = Some(region.offset);
    while let Some(from) = next.filter(|from| *from < region.end()) {
        let rest = Range { offset: from, length: region.end() - from };
        let extents = replica.extents(lvol, rest, EXTENTS).await?;
        own.extend(
            extents.list.iter().filter_map(|extent| Some(Extent { range: cut(extent.range, region)?, ..*extent })),
        );
        next = extents.next;
    }
    Ok(own)
}

/// The ranges of extents from two lvols, in order, with what overlaps or touches joined.
pub(super) fn merged(extents: impl IntoIterator<Item = Range>) -> Vec<Range> {
    let mut ranges: Vec<Range> = extents.into_iter().collect();
    ranges.sort_by_key(|range| range.offset);
    let mut merged: Vec<Range> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.offset <= last.end() => last.length = last.length.max(range.end() - last.offset),
            _ => merged.push(range),
        }
    }
    merged
}

/// What is to be done in a region, from what source and target have of their own there.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Where the target has something: what differs is sent.
    pub(super) compare: Vec<Range>,
    /// What only the source has. There is nothing to compare it with: below, both read the same.
    pub(super) send: Vec<Extent>,
}

impl Plan {
    /// Whatever is within `granule` bytes of what the target has is compared too, so that much can be asked for at once.
    pub(super) fn new(ours: &[Extent], theirs: &[Extent], granule: u64) -> Self {
        let around = |extent: &Extent| {
            let start = extent.range.offset - extent.range.offset % granule;
            Range { offset: start, length: extent.range.end().next_multiple_of(granule) - start }
        };
        let there = merged(theirs.iter().map(around));
        let either = merged(ours.iter().chain(theirs).map(|extent| extent.range));
        let compare =
            either.iter().flat_map(|range| there.iter().filter_map(move |there| cut(*range, *there))).collect();
        let send = ours.iter().flat_map(|extent| {
            without(extent.range, &there).into_iter().map(move |range| Extent { range, kind: extent.kind })
        });
        Self { compare, send: send.collect() }
    }
}

/// What is left of a range without others, which are in order.
fn without(range: Range, others: &[Range]) -> Vec<Range> {
    let (mut left, mut from) = (Vec::new(), range.offset);
    for other in others.iter().filter(|other| other.overlaps(&range)) {
        if from < other.offset {
            left.push(Range { offset: from, length: other.offset - from });
        }
        from = from.max(other.end());
    }
    if from < range.end() {
        left.push(Range { offset: from, length: range.end() - from });
    }
    left
}

#[cfg(test)]
mod tests {
    use replica::ExtentKind;

    use super::*;

    const KIB: u64 = 1024;

    fn range(offset: u64, length: u64) -> Range {
        Range { offset: offset * KIB, length: length * KIB }
    }

    fn data(offset: u64, length: u64) -> Extent {
        Extent { range: range(offset, length), kind: ExtentKind::Data }
    }

    #[test]
    fn extents_of_both_sides_become_one_list() {
        assert_eq!(merged([range(8, 4), range(0, 4), range(4, 4), range(20, 4)]), [range(0, 12), range(20, 4)]);
        assert_eq!(merged([range(0, 8), range(0, 4)]), [range(0, 8)]);
    }

    #[test]
    fn only_where_the_target_has_something_is_compared() {
        let zero = Extent { range: range(512, 128), kind: ExtentKind::Zero };
        let plan = Plan::new(&[data(4, 300), zero], &[], 64 * KIB);
        assert_eq!(plan, Plan { compare: Vec::new(), send: vec![data(4, 300), zero] });
        // A block of the target in the middle, one before the source's first, and one where the source has none.
        let plan = Plan::new(&[data(4, 300), zero], &[data(0, 4), data(132, 4), data(700, 4)], 64 * KIB);
        assert_eq!(plan.compare, [range(0, 64), range(128, 64), range(700, 4)]);
        assert_eq!(plan.send, [data(64, 64), data(192, 112), zero]);
        let plan = Plan::new(&[], &[data(8, 4)], 64 * KIB);
        assert_eq!(plan, Plan { compare: vec![range(8, 4)], send: Vec::new() });
    }
}
