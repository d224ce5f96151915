//! Computing values in the background, a stretch at a time, with nothing held in between.
//!
//! ```text
//! off ──rate──▶ idle ──a snapshot lacks values──▶ running ──none does──▶ idle
//! ```
//! Idle is no task and no timer. A stretch opens a snapshot, computes values for at most a second, writes them, flushes,
//! and only then notes in the head how far it came: values are durable before the head says so.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::time::Duration;

use block_device::ErrorKind;
use reactor::{now, spawn, timeout};
use tokio::sync::Notify;
use uuid::Uuid;

use super::format::{Basis, Head, PER_BLOCK, Values};
use super::pace::Pace;
use super::table::Table;
use super::{REGION, is_immutable};
use crate::catalog::Catalog;
use crate::core::Core;
use crate::error::StoreError;
use crate::format::record::LvolRecord;
use crate::lvol::Lvol;
use crate::store::Store;

/// How long one stretch takes: a snapshot that is to be deleted waits no longer for it.
pub(super) const STRETCH: Duration = Duration::from_secs(1);

/// How long it waits after a failure, of space or of the disk.
const PAUSE: Duration = Duration::from_secs(60);

/// The background hashing of a store.
#[derive(Default)]
pub(crate) struct Hashing {
    pace: Pace,
    running: Cell<bool>,
    wake: Rc<Notify>,
    /// A stretch is under way.
    busy: Cell<bool>,
    /// A stretch is over.
    over: Notify,
    /// The store is being closed.
    closing: Cell<bool>,
    /// Snapshots known to have all values, and on what basis. Only saves work: the heads on disk have it.
    complete: RefCell<BTreeMap<Uuid, Basis>>,
}

/// What came of one stretch.
enum Step {
    Done,
    /// Nothing is left to do, or it is switched off.
    Idle,
}

impl Store {
    /// Switches the hashing of snapshots in the background on, at so many bytes a second, or off with 0. A store that was
    /// just opened has it off. Takes effect at once.
    pub fn set_hash_rate(&self, bytes_per_second: u64) {
        self.core.hashing.pace.set_rate(bytes_per_second);
        self.core.start_hashing();
    }

    /// The rate of the hashing in the background, in bytes a second; 0 when it is off.
    pub fn hash_rate(&self) -> u64 {
        self.core.hashing.pace.rate()
    }
}

impl Hashing {
    /// Whether a snapshot is known to have all values.
    pub(super) fn is_complete(&self, catalog: &Catalog, record: &LvolRecord) -> bool {
        self.complete.borrow().get(&record.uuid) == Some(&Basis::of(catalog, record))
    }

    /// Nothing will go on any more.
    pub(crate) fn end(&self) {
        self.wake.notify_one();
    }

    /// Ends the stretch under way soon, and begins no other. Returns when it is over.
    pub(crate) async fn finish(&self) {
        self.closing.set(true);
        self.end();
        while self.busy.get() {
            self.over.notified().await;
        }
    }
}

impl Drop for Hashing {
    fn drop(&mut self) {
        // The task finds the store gone, and ends.
        self.wake.notify_one();
    }
}

impl Core {
    /// Makes sure that someone computes what values are missing, if it is switched on.
    pub(crate) fn start_hashing(self: &Rc<Self>) {
        self.hashing.wake.notify_one();
        if self.hashing.pace.rate() > 0 && !self.hashing.running.replace(true) {
            spawn(run(Rc::downgrade(self)));
        }
    }

    async fn hash_some(self: &Rc<Self>) -> Result<Step, StoreError> {
        self.hashing.busy.set(true);
        let step = self.hash_next().await;
        self.hashing.busy.set(false);
        self.hashing.over.notify_one();
        step
    }

    async fn hash_next(self: &Rc<Self>) -> Result<Step, StoreError> {
        self.forget_gone();
        let Some((id, basis)) = self.next_to_hash() else {
            self.hashing.running.set(false);
            return Ok(Step::Idle);
        };
        match self.hash_stretch(id, basis).await {
            // It was deleted, or is damaged: no longer one to hash.
            Err(_) if !self.is_immutable(id) => Ok(Step::Done),
            Err(StoreError::LvolDamaged { .. }) => {
                self.hashing.complete.borrow_mut().insert(id, basis);
                Ok(Step::Done)
            }
            result => result.map(|()| Step::Done),
        }
    }

    fn forget_gone(&self) {
        let catalog = self.catalog.borrow();
        self.hashing.complete.borrow_mut().retain(|id, _| catalog.users_lvol(*id).is_some());
    }

    /// A snapshot that may lack values.
    fn next_to_hash(&self) -> Option<(Uuid, Basis)> {
        if self.hashing.pace.rate() == 0 || self.hashing.closing.get() || self.check_running().is_err() {
            return None;
        }
        let catalog = self.catalog.borrow();
        let mut snapshots = catalog.lvols.values().map(|node| &node.record).filter(|record| is_immutable(record));
        let next = snapshots.find(|record| !self.hashing.is_complete(&catalog, record))?;
        Some((next.uuid, Basis::of(&catalog, next)))
    }

    async fn hash_stretch(self: &Rc<Self>, id: Uuid, basis: Basis) -> Result<(), StoreError> {
        let lvol = self.open_snapshot(id).await?;
        let size = lvol.volume().size();
        if self.next_own_region(id, &lvol, 0).is_none() {
            // Nothing of its own: no values, and no lvol for them.
            self.hashing.complete.borrow_mut().insert(id, basis);
            return Ok(());
        }
        let table = Table::create(self, id, size).await?;
        let mut head = table.head(size, basis).await?;
        if head.basis != basis {
            // A merge gave it more regions. Those that have values keep them.
            head = Head { next: 0, basis, ..head };
        }
        let before = head;
        let start = now();
        let stop = || self.hashing.pace.rate() == 0 || self.hashing.closing.get() || !self.is_immutable(id);
        while let Some(region) = self.next_own_region(id, &lvol, head.next) {
            head.next = self.hash_block(id, &lvol, &table, region, &|| stop() || now() - start >= STRETCH).await?;
            if stop() || now() - start >= STRETCH {
                break;
            }
        }
        if self.next_own_region(id, &lvol, head.next).is_none() {
            head.next = size.div_ceil(REGION);
        }
        if head != before {
            self.flush().await?;
            table.put_head(&head).await?;
        }
        if head.next == size.div_ceil(REGION) {
            self.hashing.complete.borrow_mut().insert(id, basis);
        }
        Ok(())
    }

    /// Computes the missing values of one block of them, from `region` on, until `stop`. Returns the region to go on with.
    async fn hash_block(
        self: &Rc<Self>,
        id: Uuid,
        lvol: &Rc<Lvol>,
        table: &Table,
        region: u64,
        stop: &dyn Fn() -> bool,
    ) -> Result<u64, StoreError> {
        let block = region / PER_BLOCK;
        let mut values = table.values(block).await?;
        let mut changed = false;
        let mut next = region;
        while let Some(region) = self.next_own_region(id, lvol, next).filter(|region| region / PER_BLOCK == block) {
            next = region;
            if values.get(region % PER_BLOCK).is_none() {
                if stop() {
                    break;
                }
                self.hashing.pace.step(self, REGION, stop).await;
                changed |= self.hash_one(id, lvol, region, &mut values).await?;
            }
            next += 1;
        }
        if changed {
            table.put_values(block, &values).await?;
        }
        Ok(next)
    }

    /// Computes one value. A region that cannot be read gets none; what of it cannot be read is marked.
    async fn hash_one(
        self: &Rc<Self>,
        id: Uuid,
        lvol: &Rc<Lvol>,
        region: u64,
        values: &mut Values,
    ) -> Result<bool, StoreError> {
        match lvol.hash_region(region).await {
            Ok(value) => {
                values.set(region % PER_BLOCK, value);
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::ReadFailed => {
                self.judge(id, region, None).await?;
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Computes values as long as some are missing.
async fn run(core: Weak<Core>) {
    loop {
        let Some(here) = core.upgrade() else { return };
        let wake = Rc::clone(&here.hashing.wake);
        let step = here.hash_some().await;
        drop(here);
        match step {
            Ok(Step::Done) => {}
            Ok(Step::Idle) => return,
            Err(error) => {
                tracing::warn!(%error, "hashing snapshots did not go on; it is tried again");
                let _ = timeout(PAUSE, wake.notified()).await;
            }
        }
    }
}
