//! Copying and settling the head, which changes meanwhile: region by region, each kept from writes while it is looked at.

use block_device::{Error, ErrorKind, Range, Request};
use reactor::bug;
use replica::{Extent, ExtentKind};

use super::compare::{COARSE, Pair};
use super::own::{Ahead, Plan};
use super::transfer::{perform, pieces, write};
use super::walk::Walk;
use super::{Interrupted, Job};
use crate::core::Core;
use crate::flight::ranges;
use crate::members::bit;
use crate::regions::{REGION, Regions};

impl Job<'_> {
    /// Makes the target's head read like the source's. Writes before a region's turn are in what is copied; later ones reach the
    /// target themselves (I17). Where an engine's crash may have left them different the source's bytes win (I7).
    pub(super) async fn copy_head(&self, step: &str) -> Result<(), Interrupted> {
        let source = self.source()?;
        let (ours, theirs) = (self.head(&*source).await?, self.head(&*self.target).await?);
        let pair = Pair { source: &*source, ours, theirs, end: u64::MAX };
        self.begin_lvol(step.to_owned(), 0)?;
        let copy = async |range| {
            let _locked = self.core.lock_region(range).await;
            self.check_attached()?;
            Ok(self.copy_region(pair, range).await?)
        };
        self.walk(&Walk::new(pair), copy).await?;
        self.check_attached()
    }

    /// The next region from `from` on in which the two may differ.
    pub(super) async fn next_region(
        &self,
        pair: Pair<'_>,
        (here, there): (&mut Ahead, &mut Ahead),
        from: u64,
    ) -> Result<Option<Range>, Error> {
        let size = self.size();
        if let Some(needs) = &*self.needs.borrow() {
            return Ok(next_needed(needs, from, size));
        }
        let here = self.core.in_time(here.next_region(pair.source, pair.ours, from, size)).await?;
        let there = match self.is_empty() {
            true => None,
            false => self.core.in_time(there.next_region(&*self.target, pair.theirs, from, size)).await?,
        };
        Ok(here.into_iter().chain(there).min_by_key(|region| region.offset))
    }

    /// Makes a region of the target's head read like the source: what only the source has is sent, and of the rest what differs.
    pub(super) async fn copy_region(&self, pair: Pair<'_>, region: Range) -> Result<(), Error> {
        let (ours, theirs) = self.own_of_both(pair, region).await?;
        let plan = Plan::new(&ours, &theirs, COARSE.into());
        for range in plan.compare {
            self.equalize(pair, range).await?;
        }
        self.send_own(pair, &plan.send).await
    }

    /// Whether the target began empty: only what the source has is to be looked at.
    pub(super) fn is_empty(&self) -> bool {
        self.fresh.get() || bug!("look-only-at-what-the-source-has")
    }

    /// Copies own blocks of the source to where the target has none.
    async fn send_own(&self, pair: Pair<'_>, own: &[Extent]) -> Result<(), Error> {
        for extent in own {
            match extent.kind {
                ExtentKind::Data => self.send(pair, extent.range).await?,
                ExtentKind::Zero => self.zero(extent.range).await?,
            }
        }
        Ok(())
    }

    /// Makes a range of the target read as zeroes, whatever the chain below has (I18).
    pub(super) async fn zero(&self, range: Range) -> Result<(), Error> {
        if bug!("skip-zeroes-in-a-rebuild") {
            return Ok(());
        }
        let zero = perform(&*self.target, Request::WriteZeroes { range, unmap: true, fua: false });
        self.core.in_time(zero).await.map(drop)
    }

    /// Before each lvol, after which there are so many more: what the target lacks may have grown. Once it receives writes it does not
    /// grow for those any more.
    pub(super) fn begin_lvol(&self, step: String, more: usize) -> Result<(), Error> {
        let size = self.size();
        if self.needs.borrow().is_some() && bug!("take-the-map-before-the-attach") {
            return Ok(());
        }
        let needs = match self.partial.get() {
            true => Some(self.followed()?),
            false => None,
        };
        let length = needs.as_ref().map_or(size, |needs| needs.count() * REGION);
        self.needs.replace(needs);
        self.begin_progress(step, length, more);
        Ok(())
    }

    fn followed(&self) -> Result<Regions, Error> {
        let members = self.core.members.borrow();
        let changes = members.0[self.member].changes.as_ref().map(|changes| changes.regions.clone());
        changes.ok_or_else(|| Error::with_detail(ErrorKind::Aborted, "what the replica lacks is not known any more"))
    }

    pub(super) fn size(&self) -> u64 {
        self.core.geometry.get().size()
    }
}

/// The first region of a set from `from` on, as far as the volume reaches.
fn next_needed(needs: &Regions, from: u64, size: u64) -> Option<Range> {
    let offset = needs.next(from.div_ceil(REGION))? * REGION;
    (offset < size).then(|| Range { offset, length: REGION.min(size - offset) })
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
    pub(crate) async fn lock_region(&self, region: Range) -> Locked<'_> {
        let region = if bug!("copy-without-the-lock") { Range { length: 0, ..region } } else { region };
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
