//! What hosts should see and do not see yet.

use std::sync::{Arc, Mutex, PoisonError};

/// How much is hidden. While something is, initiators that look for a target that is not there are told to try again, where otherwise they
/// would give up.
pub(super) struct HiddenCount {
    targets: Arc<iscsi_target::Directory>,
    count: Mutex<usize>,
}

/// Something is hidden, until this is dropped.
pub(crate) struct Hidden(Arc<HiddenCount>);

impl HiddenCount {
    pub(super) fn new(targets: &Arc<iscsi_target::Directory>) -> Arc<Self> {
        Arc::new(Self { targets: Arc::clone(targets), count: Mutex::default() })
    }

    pub(super) fn hide(self: &Arc<Self>) -> Hidden {
        self.change(|count| count + 1);
        Hidden(Arc::clone(self))
    }

    fn change(&self, change: impl FnOnce(usize) -> usize) {
        // Poisoned or not, it is a number. Held until it is told, so that what is told last is what is so.
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        *count = change(*count);
        self.targets.set_starting(*count > 0);
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        self.0.change(|count| count - 1);
    }
}
