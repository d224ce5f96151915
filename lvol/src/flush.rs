//! Flushes: many at a time share one sync of the disk.

use std::rc::Rc;

use reactor::{bug, spawn};

use crate::core::Core;
use crate::error::StoreError;

impl Core {
    /// Makes everything that completed before this call durable (I4).
    pub(crate) async fn flush(self: &Rc<Self>) -> Result<(), StoreError> {
        self.check_running()?;
        let end = self.flushes.join();
        self.start_flush();
        end.wait().await
    }

    /// Makes sure that a flush begins from here on.
    pub(crate) fn start_flush(self: &Rc<Self>) {
        if self.flushes.ask() {
            spawn(run_flushes(Rc::clone(self)));
        }
    }

    /// One flush of all lvols.
    ///
    /// A sync alone makes data and journal durable, but after a power cut recovery trusts a record of newly valid
    /// blocks only as far as it can verify the data, which a later overwrite changes. So if there are such records a
    /// marker follows that says "verified, by a sync", and a second sync makes the marker durable.
    async fn flush_once(self: &Rc<Self>) -> Result<(), StoreError> {
        let covered = self.journal.completed();
        let needs_marker = self.journal.needs_marker();
        self.sync().await?;
        self.journal.set_durable(covered);
        self.reclaim.synced_through(covered);
        if needs_marker && !bug!("flush-without-a-marker") {
            self.commit(Vec::new()).await?;
            self.sync().await?;
            self.journal.set_marked(covered);
        }
        Ok(())
    }
}

/// Flushes as long as someone waits for one.
async fn run_flushes(core: Rc<Core>) {
    while let Some(round) = core.flushes.next() {
        round.end(&core.flush_once().await);
    }
}
