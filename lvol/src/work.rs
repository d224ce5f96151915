//! What a store has done at its disk since it was opened: for metrics, which nothing decides by.

use std::cell::Cell;
use std::time::Duration;

/// What a store has done since it was opened, and how full its journal is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreWork {
    /// Flushes of the disk.
    pub flushes: u64,
    /// The time that they took.
    pub flush_time: Duration,
    /// Batches written to the journal.
    pub batches: u64,
    /// Bytes of these.
    pub batch_bytes: u64,
    /// Checkpoints written.
    pub checkpoints: u64,
    /// Bytes of the journal in use: what a recovery would read.
    pub journal_used: u64,
    /// Bytes of the journal.
    pub journal_size: u64,
}

/// Counts it.
#[derive(Debug, Default)]
pub(crate) struct Work {
    done: Cell<StoreWork>,
}

impl Work {
    pub(crate) fn flushed(&self, took: Duration) {
        self.change(|done| {
            done.flushes += 1;
            done.flush_time += took;
        });
    }

    pub(crate) fn wrote_batch(&self, bytes: u64) {
        self.change(|done| {
            done.batches += 1;
            done.batch_bytes += bytes;
        });
    }

    pub(crate) fn wrote_checkpoint(&self) {
        self.change(|done| done.checkpoints += 1);
    }

    pub(crate) fn done(&self) -> StoreWork {
        self.done.get()
    }

    fn change(&self, change: impl FnOnce(&mut StoreWork)) {
        let mut done = self.done.get();
        change(&mut done);
        self.done.set(done);
    }
}
