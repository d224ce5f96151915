//! Counters of a target, over all its sessions.

use std::cell::Cell;

/// What a target has done since it was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Bytes sent to initiators by reads.
    pub bytes_read: u64,
    /// Bytes written by initiators.
    pub bytes_written: u64,
    /// Successful reads.
    pub reads: u64,
    /// Successful writes.
    pub writes: u64,
    /// Successful SYNCHRONIZE CACHE commands.
    pub flushes: u64,
    /// Successful UNMAP and WRITE SAME commands.
    pub deallocations: u64,
    /// Commands that failed on the medium.
    pub errors: u64,
}

/// Counters that commands add to.
#[derive(Default)]
pub(crate) struct Counters(Cell<Statistics>);

impl Counters {
    pub(crate) fn update(&self, change: impl FnOnce(&mut Statistics)) {
        let mut statistics = self.0.get();
        change(&mut statistics);
        self.0.set(statistics);
    }

    pub(crate) fn get(&self) -> Statistics {
        self.0.get()
    }
}
