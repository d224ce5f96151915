//! Flushes: many at a time share one sync of the disk.

use std::cell::RefCell;
use std::rc::Rc;

use reactor::{bug, spawn};
use tokio::sync::oneshot;

use crate::core::Core;
use crate::error::StoreError;

/// Who waits for the next flush.
#[derive(Default)]
pub(crate) struct Flushes(RefCell<State>);

#[derive(Default)]
struct State {
    /// Bounded by the requests in flight.
    waiting: Vec<oneshot::Sender<Result<(), String>>>,
    /// A flush was asked for, by those who wait or by the store itself.
    wanted: bool,
    running: bool,
}

impl Core {
    /// Makes everything that completed before this call durable (I4).
    pub(crate) async fn flush(self: &Rc<Self>) -> Result<(), StoreError> {
        self.check_running()?;
        let (done, finished) = oneshot::channel();
        self.flushes.0.borrow_mut().waiting.push(done);
        self.start_flush();
        match finished.await {
            Ok(result) => result.map_err(|detail| StoreError::Stopped { detail }),
            Err(_) => Err(StoreError::Closed),
        }
    }

    /// Makes sure that a flush begins from here on.
    pub(crate) fn start_flush(self: &Rc<Self>) {
        let mut state = self.flushes.0.borrow_mut();
        state.wanted = true;
        if !std::mem::replace(&mut state.running, true) {
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
    loop {
        let waiting = {
            let mut state = core.flushes.0.borrow_mut();
            if !std::mem::take(&mut state.wanted) {
                state.running = false;
                return;
            }
            std::mem::take(&mut state.waiting)
        };
        let result = core.flush_once().await.map_err(|error| error.to_string());
        for done in waiting {
            let _ = done.send(result.clone());
        }
    }
}
