//! Keeps writes away while a command reads and then writes (COMPARE AND WRITE, ORWRITE).

use std::cell::Cell;

use tokio::sync::Notify;

/// Counts writes at the device, and stops new ones for as long as someone has it to himself.
#[derive(Default)]
pub(crate) struct Gate {
    writers: Cell<usize>,
    closed: Cell<bool>,
    changed: Notify,
}

impl Gate {
    /// A write goes to the device; false if it has to wait.
    #[inline]
    pub(crate) fn enter(&self) -> bool {
        if self.closed.get() {
            return false;
        }
        self.writers.set(self.writers.get() + 1);
        true
    }

    /// A write that entered has come back.
    #[inline]
    pub(crate) fn leave(&self) {
        self.writers.set(self.writers.get() - 1);
        if self.closed.get() && self.writers.get() == 0 {
            self.changed.notify_waiters();
        }
    }

    /// Waits until no write is at the device and none can get there.
    pub(crate) async fn close(&self) {
        self.wait_until(|| !self.closed.get()).await;
        self.closed.set(true);
        self.wait_until(|| self.writers.get() == 0).await;
    }

    /// Lets writes in again. Those that wait are for the caller to wake.
    pub(crate) fn open(&self) {
        self.closed.set(false);
        self.changed.notify_waiters();
    }

    /// Waits until writes are let in.
    pub(crate) async fn opened(&self) {
        self.wait_until(|| !self.closed.get()).await;
    }

    async fn wait_until(&self, condition: impl Fn() -> bool) {
        loop {
            let changed = self.changed.notified();
            if condition() {
                return;
            }
            changed.await;
        }
    }
}
