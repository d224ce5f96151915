//! Deleting lvols, also those that others read through: a snapshot's blocks move into its only child, in the background and
//! in batches, each of which happened or did not.
//!
//! ```text
//! ready ──delete──▶ marked ──at most one child, nobody has it open──▶ merging ──its map is empty──▶ gone
//!   ▲                 │  └───────── no child, or the child's map is empty ─────────────────────────▶ gone
//!   └─────cancel──────┘
//! ```
//! A batch: the child's clusters are locked, blocks are copied where both have some of the same cluster (the fewer ones) and
//! synced, then one commit gives the entries to the child and takes them from the snapshot. Every read through the child is
//! the same before and after. What a crash leaves is a snapshot with the rest of its entries: opening the store goes on.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::time::Duration;

use block_device::BlockDevice;
use reactor::{Buffer, spawn, timeout};
use tokio::sync::Notify;
use uuid::Uuid;

use crate::catalog::{Catalog, MAX_CHAIN};
use crate::core::Core;
use crate::error::StoreError;
use crate::format::record::{LvolRecord, Record, Stage};
use crate::info::{Deletion, WaitsFor};
use crate::locks::Mode;
use crate::lvol::Lvol;
use crate::merge::{Batch, Copy, Pair, SPAN};
use crate::operations::to_the_end;
use crate::store::Store;
use crate::volume::Volume;

/// How long a merge that failed waits before it tries again.
const PAUSE: Duration = Duration::from_secs(1);

/// The most bytes that are read at once for a copy.
const COPY: u64 = 256 << 10;

/// Deletions that are finished in the background.
#[derive(Default)]
pub(crate) struct Merges {
    running: Cell<bool>,
    /// Something changed that may let one go on.
    wake: Rc<Notify>,
    /// One made a step, or none will.
    progress: Notify,
    /// How many bytes each had when it was first looked at.
    totals: RefCell<BTreeMap<Uuid, u64>>,
}

/// What can be done next.
enum Due {
    /// Nobody reads through it.
    Drop(Uuid),
    /// One lvol does.
    Merge { snapshot: Uuid, child: Uuid },
}

/// What came of one step.
enum Step {
    Done,
    /// All that are left wait for someone.
    Waiting,
    /// Nothing is left, or the store is closed.
    End,
}

impl Store {
    /// Deletes an lvol and frees its space. One that is not there is deleted already.
    ///
    /// An lvol that nobody reads through is gone when this returns. A snapshot that others read through is marked, durably:
    /// it cannot be opened any more, and is gone when its blocks are in its only child (see [`Store::deleted`]), also after
    /// a restart. While it has several children, or someone has it open, it stays.
    pub async fn delete(&self, id: Uuid) -> Result<(), StoreError> {
        let store = self.clone();
        to_the_end(async move { store.remove(id).await }).await
    }

    async fn remove(&self, id: Uuid) -> Result<(), StoreError> {
        let _one = self.core.control_turn().await?;
        let record = {
            let catalog = self.core.catalog.borrow();
            let Some(node) = catalog.users_lvol(id) else { return Ok(()) };
            node.record.clone()
        };
        let has_children = self.core.catalog.borrow().family.children(id).next().is_some();
        if !has_children {
            self.core.drop_lvol(id).await?;
            self.core.merges.wake();
            return Ok(());
        }
        if record.deletion.is_none() {
            self.core.put(LvolRecord { deletion: Some(Stage::Marked), ..record }).await?;
        }
        self.core.flush().await?;
        self.core.start_merges();
        // What it holds counts as its child's from now on.
        self.core.start_hashing();
        Ok(())
    }

    /// Takes the deletion of a snapshot back.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] when some of its blocks have moved already: it can only be finished.
    pub async fn cancel_delete(&self, id: Uuid) -> Result<(), StoreError> {
        let store = self.clone();
        to_the_end(async move { store.keep(id).await }).await
    }

    async fn keep(&self, id: Uuid) -> Result<(), StoreError> {
        let _one = self.core.control_turn().await?;
        let node = self.core.catalog.borrow().users_lvol(id).map(|node| node.record.clone());
        let record = node.ok_or(StoreError::NotFound { uuid: id })?;
        match record.deletion {
            None => Ok(()),
            Some(Stage::Marked) => {
                self.core.put(LvolRecord { deletion: None, ..record }).await?;
                self.core.merges.progress.notify_waiters();
                self.core.flush().await
            }
            Some(Stage::Merging) => {
                Err(StoreError::invalid(format!("{id} is in part merged into its child: its deletion can only go on")))
            }
        }
    }

    /// Waits until an lvol that is to be deleted is gone, however long that takes.
    ///
    /// # Errors
    /// When it is not to be deleted, or not any more, and when the store stops or is closed before.
    pub async fn deleted(&self, id: Uuid) -> Result<(), StoreError> {
        loop {
            let progress = self.core.merges.progress.notified();
            match self.core.catalog.borrow().users_lvol(id) {
                None => return Ok(()),
                Some(node) if node.record.deletion.is_none() => {
                    return Err(StoreError::invalid(format!("nobody deletes {id}")));
                }
                Some(_) => {}
            }
            self.core.check_running()?;
            progress.await;
        }
    }
}

/// What is to be told about the deletion of an lvol.
pub(crate) fn deletion_of(core: &Core, catalog: &Catalog, id: Uuid, children: usize) -> Option<Deletion> {
    let node = catalog.lvols.get(&id)?;
    let left = catalog.used_bytes(node);
    let total = core.merges.totals.borrow().get(&id).copied().unwrap_or(left);
    let stage = node.record.deletion?;
    let waits_for = match children {
        0 => None,
        1 if is_open(node.volume.as_ref()) => Some(WaitsFor::Users),
        1 => catalog.family.children(id).find_map(|child| catalog.damage(child)).map(|_| WaitsFor::Repair),
        _ => Some(WaitsFor::Children),
    };
    Some(Deletion {
        merging: stage == Stage::Merging,
        left,
        total: total.max(left),
        waits_for,
        error: node.trouble.clone(),
    })
}

/// Whether someone has an lvol open: the catalog's own reference is one.
pub(crate) fn is_open(volume: Option<&Rc<Volume>>) -> bool {
    volume.is_some_and(|volume| Rc::strong_count(volume) > 1)
}

impl Merges {
    /// Something changed: an lvol is gone or nobody has it open any more.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Nothing will go on any more.
    pub(crate) fn end(&self) {
        self.wake.notify_one();
        self.progress.notify_waiters();
    }
}

impl Drop for Merges {
    fn drop(&mut self) {
        // The task finds the store gone, and ends.
        self.wake.notify_one();
    }
}

impl Catalog {
    /// The next deletion that can go on: one further from the root before those that it would go to, so that no block moves twice.
    fn due(&self) -> Option<Due> {
        let first = self.family.doomed().find_map(|uuid| self.due_of(uuid))?;
        let further = |due: &Due| match due {
            Due::Drop(_) => None,
            Due::Merge { child, .. } => self.due_of(*child),
        };
        std::iter::successors(Some(first), further).take(MAX_CHAIN).last()
    }

    /// What can be done next about an lvol that is to be deleted.
    fn due_of(&self, uuid: Uuid) -> Option<Due> {
        self.lvols.get(&uuid).filter(|node| node.record.deletion.is_some())?;
        let mut children = self.family.children(uuid);
        match (children.next(), children.next()) {
            (None, _) => Some(Due::Drop(uuid)),
            (Some(child), None) => self.can_merge(uuid, child).then_some(Due::Merge { snapshot: uuid, child }),
            _ => None,
        }
    }

    fn can_merge(&self, snapshot: Uuid, child: Uuid) -> bool {
        let merges_itself = self.lvols.get(&child).is_some_and(|node| node.record.deletion == Some(Stage::Merging));
        let open = self.lvols.get(&snapshot).is_some_and(|node| is_open(node.volume.as_ref()));
        !merges_itself && !open && self.damage(child).is_none()
    }

    fn record(&self, uuid: Uuid) -> Result<LvolRecord, StoreError> {
        self.lvols.get(&uuid).map(|node| node.record.clone()).ok_or(StoreError::NotFound { uuid })
    }
}

impl Core {
    /// Makes sure that someone goes on with the deletions that are marked, if there are any.
    pub(crate) fn start_merges(self: &Rc<Self>) {
        let any = self.catalog.borrow().family.doomed().next().is_some();
        self.merges.wake();
        if any && !self.merges.running.replace(true) {
            spawn(run(Rc::downgrade(self)));
        }
    }

    pub(crate) async fn put(self: &Rc<Self>, record: LvolRecord) -> Result<(), StoreError> {
        self.commit(vec![Record::LvolPut(Box::new(record))]).await
    }

    /// Deletes an lvol that nobody reads through.
    pub(crate) async fn drop_lvol(self: &Rc<Self>, id: Uuid) -> Result<(), StoreError> {
        let Some(map) = self.catalog.borrow().lvols.get(&id).map(|node| node.record.map) else { return Ok(()) };
        // Its clusters are known only from its map.
        let _map = self.hold_to_drop(map).await?;
        let volume = self.catalog.borrow().lvols.get(&id).and_then(|node| node.volume.clone());
        if let Some(volume) = &volume {
            // No write may land in a cluster that is another lvol's by then.
            volume.hold().await;
        }
        let result = self.commit_removal(id, vec![Record::LvolRemove { uuid: id }, Record::MapDrop { map }]).await;
        if result.is_err()
            && let Some(volume) = volume
        {
            self.release(volume);
        }
        result?;
        self.flush().await
    }

    /// Lets the writes of an lvol start again after [`Volume::hold`].
    pub(crate) fn release(self: &Rc<Self>, volume: Rc<Volume>) {
        let lvol = Lvol::new(Rc::clone(self), volume);
        for (request, reply) in lvol.volume().release() {
            lvol.submit(request, reply);
        }
    }

    /// One step of one deletion, as one control operation: nobody cuts, reverts or deletes meanwhile.
    async fn merge_step(self: &Rc<Self>) -> Result<Step, StoreError> {
        let _one = self.control.lock().await;
        let due = {
            let catalog = self.catalog.borrow();
            if self.check_running().is_err() || catalog.family.doomed().next().is_none() {
                self.merges.running.set(false);
                return Ok(Step::End);
            }
            catalog.due()
        };
        let (uuid, result) = match due {
            None => return Ok(Step::Waiting),
            Some(Due::Drop(uuid)) => (uuid, self.drop_lvol(uuid).await),
            Some(Due::Merge { snapshot, child }) => (snapshot, self.merge_some(snapshot, child).await),
        };
        self.merges.totals.borrow_mut().retain(|uuid, _| self.catalog.borrow().lvols.contains_key(uuid));
        if let Some(node) = self.catalog.borrow_mut().lvols.get_mut(&uuid) {
            node.trouble = result.as_ref().err().map(ToString::to_string);
        }
        result.map(|()| Step::Done)
    }

    async fn merge_some(self: &Rc<Self>, snapshot: Uuid, child: Uuid) -> Result<(), StoreError> {
        if let Some(node) = self.catalog.borrow().lvols.get(&snapshot) {
            let bytes = self.catalog.borrow().used_bytes(node);
            self.merges.totals.borrow_mut().entry(snapshot).or_insert(bytes);
        }
        let (parent, record) = {
            let catalog = self.catalog.borrow();
            (catalog.record(snapshot)?, catalog.record(child)?)
        };
        let leaves = |record: &LvolRecord| self.catalog.borrow().maps.counts(record.map).leaves;
        if leaves(&parent) == 0 {
            let child = LvolRecord { parent: parent.parent, ..record };
            self.finish_merge(child, &parent, parent.map).await?;
            return self.flush().await;
        }
        if leaves(&record) == 0 && self.hand_over(&parent, &record).await? {
            return self.flush().await;
        }
        if parent.deletion != Some(Stage::Merging) {
            self.put(LvolRecord { deletion: Some(Stage::Merging), ..parent }).await?;
            // From here on all that the snapshot holds is durable, and nobody reads it alone any more.
            self.flush().await?;
            self.io.grace.pass().await;
        }
        let lvol = self.open_lvol(child).await?;
        // The child is open: all that it reads through is in memory.
        let below = self.catalog.borrow().chain(snapshot);
        let below = below.map_err(|reason| StoreError::LvolDamaged { uuid: snapshot, reason })?;
        let (from, to) = (Rc::clone(&below[0]), lvol.volume().map());
        let Some(start) = from.next_used(0) else { return Ok(()) };
        let pair = Pair { from: &from, to: &to, below: &below[1..] };
        self.merge_batch(&lvol, &pair, start).await
    }

    /// Gives an lvol whose map is empty the whole map of its parent, which is gone by that: no data is copied and no entry
    /// looked at. False if there is something in the map after all.
    async fn hand_over(self: &Rc<Self>, parent: &LvolRecord, child: &LvolRecord) -> Result<bool, StoreError> {
        let volume = self.open_lvol(child.uuid).await?.volume().clone();
        volume.hold().await;
        let result = match volume.map().is_empty() {
            true => {
                let record = LvolRecord { parent: parent.parent, map: parent.map, ..child.clone() };
                self.finish_merge(record, parent, child.map).await.map(|()| true)
            }
            false => Ok(false),
        };
        self.release(volume);
        result
    }

    /// The child is as given, and the parent, all that belongs to it and an empty map are gone, in one commit.
    async fn finish_merge(self: &Rc<Self>, child: LvolRecord, parent: &LvolRecord, map: u32) -> Result<(), StoreError> {
        let put = Record::LvolPut(Box::new(child));
        let records = vec![put, Record::LvolRemove { uuid: parent.uuid }, Record::MapDrop { map }];
        self.commit_removal(parent.uuid, records).await?;
        // The child may be a snapshot that has more of its own now.
        self.start_hashing();
        Ok(())
    }

    async fn merge_batch(self: &Rc<Self>, child: &Lvol, pair: &Pair<'_>, start: u32) -> Result<(), StoreError> {
        let clusters = u64::from(start)..u64::from(start) + SPAN;
        let _held = child.volume().locks.lock(clusters.clone(), Mode::Exclusive).await;
        let mut batch = pair.plan(start, &self.layout());
        let writable = !child.volume().read_only();
        let _moving = Moving(child.volume());
        if batch.moves_child && writable {
            // Overwrites in place take no lock: new ones wait for ours from here on, those in flight end.
            child.volume().set_moving(clusters);
            self.io.grace.pass().await;
        }
        // Nothing marks blocks meanwhile: that is a control operation too.
        self.marks.carry(&mut batch);
        self.move_data(&batch).await?;
        if !batch.copies.is_empty() || !batch.zeroes.is_empty() || batch.has_child_blocks && writable {
            self.flush().await?;
        }
        self.commit(batch.records).await?;
        if batch.vacates && writable {
            // As after an erase: reads of the places that are empty now end before something is written there.
            self.io.grace.pass().await;
        }
        Ok(())
    }

    async fn move_data(&self, batch: &Batch) -> Result<(), StoreError> {
        for copy in &batch.copies {
            self.copy(*copy).await?;
        }
        for range in &batch.zeroes {
            let zeroed = self.disk.write_zeroes(range.offset, range.length).await;
            zeroed.map_err(StoreError::io("zeroing blocks of a merge"))?;
        }
        Ok(())
    }

    async fn copy(&self, copy: Copy) -> Result<(), StoreError> {
        let mut done = 0;
        while done < copy.length {
            let length = (copy.length - done).min(COPY);
            let (result, bytes) = self.disk.read(copy.from + done, Buffer::new(length as usize)).await;
            result.map_err(StoreError::io("reading what a merge moves"))?;
            let written = self.disk.write(copy.to + done, bytes.freeze()).await;
            written.map_err(StoreError::io("writing what a merge moves"))?;
            done += length;
        }
        Ok(())
    }
}

/// Ends the moving of clusters, however the batch ends.
struct Moving<'a>(&'a Rc<Volume>);

impl Drop for Moving<'_> {
    fn drop(&mut self) {
        self.0.set_moving(0..0);
    }
}

/// Goes on with deletions as long as some are marked. Holds the store only while it does something, so that a store that
/// nobody uses any more ends.
async fn run(core: Weak<Core>) {
    loop {
        let Some(here) = core.upgrade() else { return };
        let wake = Rc::clone(&here.merges.wake);
        let step = here.merge_step().await;
        here.merges.progress.notify_waiters();
        drop(here);
        match step {
            Ok(Step::Done) => {}
            Ok(Step::Waiting) => wake.notified().await,
            Ok(Step::End) => return,
            Err(error) => {
                tracing::warn!(%error, "a deletion did not go on; it is tried again");
                let _ = timeout(PAUSE, wake.notified()).await;
            }
        }
    }
}
