//! Copying and settling the head, which changes meanwhile: region by region, each kept from writes while it is looked at.

use block_device::{Error, Range, Request, Segments};
use replica::{Extent, ExtentKind, Replica};
use uuid::Uuid;

use super::chain::head;
use super::transfer::{cut, perform, pieces, write};
use super::{EXTENTS, Interrupted, Job, REGION};
use crate::core::Core;
use crate::flight::ranges;
use crate::members::bit;

impl Job<'_> {
    /// Copies the source's own blocks. Writes before a region's turn are in them; later ones reach the target themselves (I17).
    pub(super) async fn copy_head(&self) -> Result<(), Interrupted> {
        let source = self.source()?;
        let lvol = head(&*source).await?;
        self.begin_head("copying the head");
        let mut from = 0;
        while let Some(region) = next_region(&*source, lvol, from, self.size()).await? {
            let _locked = self.core.lock_region(region).await;
            self.check_attached()?;
            for extent in own_in(&*source, lvol, region).await? {
                match extent.kind {
                    ExtentKind::Data => {
                        let data = read(&*source, extent.range).await?;
                        write(&*self.target, extent.range.offset, data).await?;
                        self.progress(|copy| copy.written += extent.range.length);
                    }
                    ExtentKind::Zero => self.zero(extent.range).await?,
                }
            }
            from = region.end();
            self.progress(|copy| copy.position = from);
        }
        self.check_attached()
    }

    /// Makes the target equal to the source where an engine's crash may have left them different: the source's bytes win (I7).
    pub(super) async fn settle_head(&self) -> Result<(), Interrupted> {
        let source = self.source()?;
        let (ours, theirs) = (head(&*source).await?, head(&*self.target).await?);
        self.begin_head("settling");
        let mut from = 0;
        loop {
            let here = next_region(&*source, ours, from, self.size()).await?;
            let there = next_region(&*self.target, theirs, from, self.size()).await?;
            let first = here.into_iter().chain(there).min_by_key(|region| region.offset);
            let Some(region) = first else { return self.check_attached() };
            let _locked = self.core.lock_region(region).await;
            self.check_attached()?;
            let mut own = own_in(&*source, ours, region).await?;
            own.extend(own_in(&*self.target, theirs, region).await?);
            for range in merged(own) {
                self.settle_range(&*source, range).await?;
            }
            from = region.end();
            self.progress(|copy| copy.position = from);
        }
    }

    async fn settle_range(&self, source: &dyn Replica, range: Range) -> Result<(), Error> {
        let (wanted, found) = (read(source, range).await?, read(&*self.target, range).await?);
        if !same(&wanted, &found) {
            write(&*self.target, range.offset, wanted).await?;
            self.progress(|copy| copy.written += range.length);
        }
        Ok(())
    }

    fn begin_head(&self, step: &str) {
        let size = self.size();
        self.progress(|copy| {
            copy.step = step.to_owned();
            (copy.position, copy.size) = (0, size);
        });
    }

    fn size(&self) -> u64 {
        self.core.geometry.get().size()
    }
}

async fn read(replica: &dyn Replica, range: Range) -> Result<Segments, Error> {
    perform(replica, Request::Read { range }).await
}

fn same(one: &Segments, other: &Segments) -> bool {
    match other.iter().as_slice() {
        [only] => one.equals(only),
        _ => one.equals(&other.to_vec()),
    }
}

/// The first region from `from` on in which an lvol has own blocks.
async fn next_region(replica: &dyn Replica, lvol: Uuid, from: u64, size: u64) -> Result<Option<Range>, Error> {
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
async fn own_in(replica: &dyn Replica, lvol: Uuid, region: Range) -> Result<Vec<Extent>, Error> {
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
fn merged(mut extents: Vec<Extent>) -> Vec<Range> {
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

/// Writes to a region wait while it lives.
pub(crate) struct Locked<'a> {
    core: &'a Core,
    claim: u64,
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.core.flight.borrow_mut().unclaim_copy(self.claim);
        self.core.signals.pump.notify_one();
    }
}

impl Core {
    /// Keeps new writes out of a region and waits for those in flight there.
    async fn lock_region(&self, region: Range) -> Locked<'_> {
        let claim = self.flight.borrow_mut().claim_copy(region);
        let locked = Locked { core: self, claim };
        self.until_ended(|| self.flight.borrow().copy_is_free(claim).then_some(())).await;
        locked
    }

    /// A write that no replica had space for may have landed in part: makes those in sync equal again, then answers (I10, I32).
    /// The write's claim keeps everyone else out meanwhile.
    pub(crate) fn settle_failed(&self, index: usize, error: Error) {
        let core = self.rc();
        reactor::spawn(async move {
            let ranges = ranges(&core.flight.borrow_mut().slot(index).request);
            for piece in ranges.into_iter().flat_map(|range| pieces(range, REGION)) {
                core.settle_piece(piece).await;
            }
            // Who could not follow is recorded before the host hears of it.
            core.until(|| (core.members.borrow().failing() == 0 || !core.is_running()).then_some(())).await;
            core.finish(index, Err(error));
        });
    }

    async fn settle_piece(&self, piece: Range) {
        let (source, others): (_, Vec<_>) = {
            let members = self.members.borrow();
            let Some(source) = members.source(0) else { return };
            let others = members.replicas(members.readable() & !bit(source));
            (members.replica(source), others.map(|(member, replica)| (member, std::rc::Rc::clone(replica))).collect())
        };
        let Some(source) = source else { return };
        let data = perform(&*source, Request::Read { range: piece }).await;
        for (member, replica) in others {
            let settled = match data.clone() {
                Ok(data) => write(&*replica, piece.offset, data).await,
                Err(error) => Err(error),
            };
            if let Err(error) = settled {
                self.member_failed(member, &error);
            }
        }
    }
}

#[cfg(test)]
mod tests {
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
