//! Freed clusters on their way back: durable first, then out of use, then given back to the disk, then free.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use std::time::Duration;

use reactor::{bug, spawn, timeout};
use tokio::sync::Notify;

use crate::core::Core;

/// How long freed clusters wait for a flush by someone else before the store flushes for their sake.
const PATIENCE: Duration = Duration::from_millis(500);

/// Clusters that are in no map any more, but not free yet.
///
/// A cluster that was freed must not be written, nor punched, before the record that freed it is durable: after a power
/// cut the old map would find another lvol's data there. And not before I/O that looked it up in the old map is over.
#[derive(Default)]
pub(crate) struct Reclaim {
    /// By the batch that freed them. Bounded by the clusters of the store.
    pending: RefCell<VecDeque<(u64, Vec<u64>)>>,
    /// How many are pending.
    count: Cell<u64>,
    /// Batches up to this one are durable.
    synced: Cell<u64>,
    running: Cell<bool>,
    /// A flush is done, or someone needs space now.
    urgent: Rc<Notify>,
    /// Clusters became free, or it is certain that none will.
    progress: Notify,
}

impl Reclaim {
    /// How many clusters will be free after a flush.
    pub(crate) fn pending(&self) -> u64 {
        self.count.get()
    }

    /// Batches up to this one are durable.
    pub(crate) fn synced_through(&self, batch: u64) {
        self.synced.set(self.synced.get().max(batch));
        if self.running.get() {
            self.urgent.notify_one();
        }
    }

    fn take_synced(&self) -> Vec<u64> {
        let mut pending = self.pending.borrow_mut();
        let mut clusters = Vec::new();
        while let Some((batch, _)) = pending.front()
            && (*batch <= self.synced.get() || bug!("reuse-freed-clusters-at-once"))
            && let Some((_, mut more)) = pending.pop_front()
        {
            clusters.append(&mut more);
        }
        clusters.sort_unstable();
        clusters
    }

    fn is_waiting(&self) -> bool {
        let pending = self.pending.borrow();
        pending.front().is_some_and(|(batch, _)| *batch > self.synced.get()) && !bug!("reuse-freed-clusters-at-once")
    }
}

impl Core {
    /// Takes clusters that the batch just completed freed.
    pub(crate) fn free_later(self: &Rc<Self>, clusters: Vec<u64>) {
        if clusters.is_empty() {
            return;
        }
        let reclaim = &self.reclaim;
        reclaim.count.set(reclaim.count.get() + clusters.len() as u64);
        reclaim.pending.borrow_mut().push_back((self.journal.completed(), clusters));
        if !reclaim.running.replace(true) {
            spawn(run(Rc::downgrade(self)));
        }
    }

    /// Waits until clusters that were freed have become free; false if none is on its way.
    pub(crate) async fn wait_for_space(&self) -> bool {
        if self.reclaim.pending() == 0 || self.check_running().is_err() {
            return false;
        }
        let progress = self.reclaim.progress.notified();
        self.reclaim.urgent.notify_one();
        progress.await;
        true
    }

    /// Waits until no cluster is on its way any more.
    pub(crate) async fn finish_reclaim(&self) {
        while self.wait_for_space().await {}
    }

    async fn reclaim_once(self: &Rc<Self>) {
        if self.reclaim.is_waiting() && self.flush().await.is_err() {
            return;
        }
        let clusters = self.reclaim.take_synced();
        self.io.grace.pass().await;
        for run in clusters.chunk_by(|a, b| a + 1 == *b) {
            self.give_back(run).await;
        }
    }

    /// Gives a run of clusters back to the disk, then makes them free.
    async fn give_back(&self, run: &[u64]) {
        let offset = self.layout().cluster_offset(run[0]);
        let length = run.len() as u64 * u64::from(self.layout().cluster_size);
        if let Err(error) = self.disk.discard(offset, length).await {
            // The clusters can be used all the same: nothing relies on their content.
            tracing::debug!(%error, offset, length, "discard failed");
        }
        let mut catalog = self.catalog.borrow_mut();
        run.iter().for_each(|&cluster| catalog.allocator.release(cluster));
        self.reclaim.count.set(self.reclaim.count.get() - run.len() as u64);
        self.reclaim.progress.notify_waiters();
    }
}

/// Brings freed clusters back for as long as there are any. Holds the store only while it does something, so that a
/// store that nobody uses any more ends.
async fn run(core: Weak<Core>) {
    loop {
        let urgent = {
            let Some(core) = core.upgrade() else { return };
            if core.reclaim.pending() == 0 || core.check_running().is_err() {
                core.reclaim.running.set(false);
                core.reclaim.progress.notify_waiters();
                return;
            }
            core.reclaim.is_waiting().then(|| Rc::clone(&core.reclaim.urgent))
        };
        if let Some(urgent) = urgent {
            // Woken by a flush, by someone who needs space, or by the end of patience: all the same.
            let _ = timeout(PATIENCE, urgent.notified()).await;
        }
        let Some(core) = core.upgrade() else { return };
        core.reclaim_once().await;
    }
}
