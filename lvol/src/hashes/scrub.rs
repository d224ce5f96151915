//! Scrubs: all snapshots are read again and compared with their values.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use block_device::ErrorKind;
use reactor::{Instant, now};
use tokio::sync::Notify;
use uuid::Uuid;

use super::background::STRETCH;
use super::damage::Damage;
use super::format::{Basis, PER_BLOCK};
use super::judge::Verdict;
use super::pace::Pace;
use super::table::Table;
use super::{Hash, REGION, is_immutable};
use crate::core::Core;
use crate::error::StoreError;
use crate::format::BLOCK;
use crate::lvol::Lvol;
use crate::operations::to_the_end;
use crate::store::{Store, milliseconds_now};

/// The most bad regions that a report names.
const MOST_NAMED: usize = 1000;

/// What a scrub found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScrubReport {
    /// Snapshots looked at.
    pub snapshots: u64,
    /// Regions compared.
    pub regions: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Regions without a value: not computed yet, or lost. They were not compared.
    pub unknown: u64,
    /// How many regions are bad.
    pub bad_regions: u64,
    /// Up to 1000 of them.
    pub bad: Vec<BadRegion>,
    /// How many regions of each snapshot were bad when a scrub looked at it last, this one or one before. Those without any are
    /// not in it.
    pub bad_lvols: BTreeMap<Uuid, u64>,
    /// How far it is; none at its begin and after its end.
    pub position: Option<ScrubPosition>,
    /// How long it took so far.
    pub duration: Duration,
}

/// Where a scrub goes on. Snapshots are looked at in the order of their UUIDs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubPosition {
    /// The snapshot.
    pub lvol: Uuid,
    /// The first region of it that was not looked at; none when it is done.
    pub region: Option<u64>,
}

/// A region that does not hash to its value or cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadRegion {
    /// The snapshot.
    pub lvol: Uuid,
    /// Bytes from its start.
    pub offset: u64,
}

/// Scrubs and hashes of a store now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScrubStatus {
    /// What the scrub under way found so far.
    pub running: Option<ScrubReport>,
    /// About how many bytes it has not looked at yet: the space of what is before it.
    pub left: u64,
    /// What the last one since the store was opened found, also one that was stopped or failed on its way.
    pub last: Option<ScrubReport>,
    /// Bytes of the disk that are marked: known to be wrong, whoever found that.
    pub marked: u64,
    /// Snapshots whose values are all computed, as far as is known since the store was opened.
    pub hashed: usize,
    /// Snapshots in all, without those that are to be deleted.
    pub snapshots: usize,
}

/// The scrubs of a store.
#[derive(Default)]
pub(crate) struct Scrubs {
    pace: Pace,
    pub(super) damage: Damage,
    running: RefCell<Option<ScrubReport>>,
    last: RefCell<Option<ScrubReport>>,
    stop: Cell<bool>,
    /// A scrub is over.
    over: Notify,
}

/// When a scrub began, or went on.
#[derive(Clone, Copy)]
struct Start {
    at: Instant,
    /// How long it had taken before.
    before: Duration,
}

impl Scrubs {
    /// Ends the scrub under way, if there is one. Returns when it is over.
    pub(crate) async fn finish(&self) {
        self.stop.set(true);
        while self.running.borrow().is_some() {
            self.over.notified().await;
        }
    }
}

impl Store {
    /// Reads all snapshots again, at so many bytes a second, and compares them with their values. What differs or cannot be
    /// read is marked, durably: reads of these blocks fail from then on until they are mended. Regions that were marked and
    /// are right after all are not any more.
    ///
    /// It goes on when nobody waits for it; [`Store::stop_scrub`] ends it.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] when one is under way; when the disk or the store fails, or is closed.
    pub async fn scrub(&self, bytes_per_second: u64) -> Result<ScrubReport, StoreError> {
        let bad_lvols = self.core.scrubs.last.borrow().as_ref().map(|last| last.bad_lvols.clone());
        self.resume_scrub(
            bytes_per_second,
            ScrubReport { bad_lvols: bad_lvols.unwrap_or_default(), ..Default::default() },
        )
        .await
    }

    /// Goes on with a scrub that a crash or a close of the store cut off, from its report as it was at some time before. As
    /// [`Store::scrub`] otherwise.
    ///
    /// # Errors
    /// Those of [`Store::scrub`].
    pub async fn resume_scrub(&self, bytes_per_second: u64, report: ScrubReport) -> Result<ScrubReport, StoreError> {
        let core = Rc::clone(&self.core);
        to_the_end(async move { core.scrub(bytes_per_second, report).await }).await
    }

    /// Takes over what the last scrub before the store was opened found. The store itself does not keep it.
    pub fn recall_scrub(&self, report: ScrubReport) {
        self.core.scrubs.last.borrow_mut().get_or_insert(report);
    }

    /// How many regions of each snapshot were bad when a scrub looked at it last.
    pub fn bad_regions(&self) -> BTreeMap<Uuid, u64> {
        let scrubs = &self.core.scrubs;
        let (running, last) = (scrubs.running.borrow(), scrubs.last.borrow());
        running.as_ref().or(last.as_ref()).map_or_else(BTreeMap::new, |report| report.bad_lvols.clone())
    }

    /// Ends the scrub under way soon, if there is one.
    pub fn stop_scrub(&self) {
        self.core.scrubs.stop.set(true);
    }

    /// How far the scrub and the hashing are.
    pub fn scrub_status(&self) -> ScrubStatus {
        let catalog = self.core.catalog.borrow();
        let snapshots = || catalog.lvols.values().map(|node| &node.record).filter(|record| is_immutable(record));
        ScrubStatus {
            running: self.core.scrubs.running.borrow().clone(),
            left: self.core.scrub_left(),
            last: self.core.scrubs.last.borrow().clone(),
            marked: self.core.marks.count() as u64 * BLOCK,
            hashed: snapshots().filter(|record| self.core.hashing.is_complete(&catalog, record)).count(),
            snapshots: snapshots().count(),
        }
    }
}

impl Core {
    async fn scrub(self: &Rc<Self>, rate: u64, report: ScrubReport) -> Result<ScrubReport, StoreError> {
        self.check_running()?;
        if rate == 0 {
            return Err(StoreError::invalid("a scrub at no bytes a second has no end"));
        }
        if self.scrubs.running.borrow().is_some() {
            return Err(StoreError::invalid("a scrub is under way"));
        }
        self.scrubs.pace.set_rate(rate);
        self.scrubs.stop.set(false);
        *self.scrubs.running.borrow_mut() = Some(report);
        let result = self.scrub_all().await;
        let report = self.scrubs.running.take().unwrap_or_default();
        *self.scrubs.last.borrow_mut() = Some(report.clone());
        self.scrubs.over.notify_one();
        result.map(|()| report)
    }

    /// The space of the snapshots that the scrub under way has not come to, and of one that it is in the part that it has not.
    fn scrub_left(&self) -> u64 {
        let running = self.scrubs.running.borrow();
        let Some(position) = running.as_ref().map(|report| report.position) else { return 0 };
        let catalog = self.catalog.borrow();
        let snapshots = catalog.lvols.values().filter(|node| is_immutable(&node.record));
        let left = snapshots.map(|node| {
            let used = catalog.used_bytes(node);
            match position {
                Some(position) if node.record.uuid < position.lvol => 0,
                Some(position) if node.record.uuid == position.lvol => {
                    let regions = node.record.size.div_ceil(REGION).max(1);
                    let after = position.region.map_or(0, |region| regions.saturating_sub(region));
                    // No more than `used`.
                    (u128::from(used) * u128::from(after) / u128::from(regions)) as u64
                }
                _ => used,
            }
        });
        left.sum()
    }

    async fn scrub_all(self: &Rc<Self>) -> Result<(), StoreError> {
        let begun = self.scrubs.running.borrow().as_ref().map(|report| (report.position, report.duration));
        let (position, before) = begun.unwrap_or_default();
        let start = Start { at: now(), before };
        let snapshots: Vec<Uuid> = self.catalog.borrow().lvols.keys().copied().collect();
        for id in snapshots {
            let mut next = match position {
                Some(position) if id < position.lvol => None,
                Some(position) if id == position.lvol => position.region,
                _ => Some(0),
            };
            if next.is_none() || !self.is_immutable(id) {
                continue;
            }
            if next == Some(0) {
                self.report(|report| report.bad_lvols.retain(|lvol, _| *lvol != id));
            }
            while let Some(region) = next {
                next = match self.scrub_stretch(id, region, start).await {
                    // It was deleted meanwhile, or is damaged: others tell of that.
                    Err(_) if !self.is_immutable(id) => None,
                    Err(StoreError::LvolDamaged { .. }) => None,
                    result => result?,
                };
            }
            self.report(|report| {
                report.snapshots += 1;
                report.position = Some(ScrubPosition { lvol: id, region: None });
            });
        }
        self.report(|report| {
            report.position = None;
            report.bad_lvols.retain(|id, _| self.is_immutable(*id));
        });
        Ok(())
    }

    /// Compares regions from `region` on for a while, with the snapshot open. Returns where to go on.
    async fn scrub_stretch(
        self: &Rc<Self>,
        id: Uuid,
        region: u64,
        scrub_start: Start,
    ) -> Result<Option<u64>, StoreError> {
        let lvol = self.open_snapshot(id).await?;
        let Some(table) = Table::open(self, id).await? else {
            return self.pass_over(id, &lvol, region);
        };
        let (start, mut next) = (now(), region);
        let mut block = None;
        while let Some(region) = self.next_own_region(id, &lvol, next) {
            if now() - start >= STRETCH || !self.is_immutable(id) {
                return Ok(Some(region));
            }
            if self.scrubs.stop.get() {
                return Err(StoreError::invalid("the scrub was stopped"));
            }
            self.check_running()?;
            if block.as_ref().is_none_or(|(index, _)| *index != region / PER_BLOCK) {
                block = Some((region / PER_BLOCK, table.values(region / PER_BLOCK).await?));
            }
            match block.as_ref().and_then(|(_, values)| values.get(region % PER_BLOCK)) {
                None => self.report(|report| report.unknown += 1),
                Some(value) => self.scrub_region(id, &lvol, region, value).await?,
            }
            next = region + 1;
            self.report(|report| {
                report.duration = scrub_start.before + (now() - scrub_start.at);
                report.position = Some(ScrubPosition { lvol: id, region: Some(next) });
            });
        }
        self.note_scrub(id, &lvol, &table).await?;
        Ok(None)
    }

    async fn scrub_region(
        self: &Rc<Self>,
        id: Uuid,
        lvol: &Rc<Lvol>,
        region: u64,
        value: Hash,
    ) -> Result<(), StoreError> {
        let stop = || self.scrubs.stop.get();
        self.scrubs.pace.step(self, REGION, stop).await;
        let good = match lvol.hash_region(region).await {
            Ok(found) => found == value,
            Err(error) if error.kind() == ErrorKind::ReadFailed => false,
            Err(error) => return Err(error.into()),
        };
        let good = good || self.judge(id, region, Some(value)).await? == Verdict::Good;
        self.report(|report| {
            report.regions += 1;
            report.bytes += REGION.min(lvol.volume().size() - region * REGION);
            if !good {
                report.bad_regions += 1;
                *report.bad_lvols.entry(id).or_default() += 1;
                if report.bad.len() < MOST_NAMED {
                    report.bad.push(BadRegion { lvol: id, offset: region * REGION });
                }
            }
        });
        Ok(())
    }

    /// Counts the regions of a snapshot without any value.
    fn pass_over(self: &Rc<Self>, id: Uuid, lvol: &Lvol, region: u64) -> Result<Option<u64>, StoreError> {
        let mut next = region;
        for _ in 0..PER_BLOCK {
            let Some(region) = self.next_own_region(id, lvol, next) else { return Ok(None) };
            next = region + 1;
            self.report(|report| {
                report.unknown += 1;
                report.position = Some(ScrubPosition { lvol: id, region: Some(next) });
            });
        }
        self.check_running().map(|()| Some(next))
    }

    async fn note_scrub(&self, id: Uuid, lvol: &Lvol, table: &Table) -> Result<(), StoreError> {
        let basis = {
            let catalog = self.catalog.borrow();
            let Some(node) = catalog.users_lvol(id) else { return Ok(()) };
            Basis::of(&catalog, &node.record)
        };
        let mut head = table.head(lvol.volume().size(), basis).await?;
        head.scrubbed_at = milliseconds_now();
        Ok(table.put_head(&head).await?)
    }

    fn report(&self, change: impl FnOnce(&mut ScrubReport)) {
        if let Some(report) = self.scrubs.running.borrow_mut().as_mut() {
            change(report);
        }
    }
}
