//! Which lvols are being exported: their content must stay what it is.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

/// The lvols that are being exported, each as often as it is.
#[derive(Clone, Default)]
pub(super) struct Exported(Arc<Mutex<Vec<Uuid>>>);

/// One export, until it is dropped.
pub(super) struct Export {
    all: Exported,
    id: Uuid,
}

impl Exported {
    pub(super) fn begin(&self, id: Uuid) -> Export {
        self.ids().push(id);
        Export { all: self.clone(), id }
    }

    pub(super) fn contains(&self, id: Uuid) -> bool {
        self.ids().contains(&id)
    }

    fn ids(&self) -> MutexGuard<'_, Vec<Uuid>> {
        // Poisoned or not, the list is whole: no change of it has several steps.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        let mut ids = self.all.ids();
        if let Some(at) = ids.iter().position(|id| *id == self.id) {
            ids.swap_remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_lvol_counts_until_its_last_export_ends() {
        let (all, id) = (Exported::default(), Uuid::from_u128(1));
        let first = all.begin(id);
        let second = all.begin(id);
        let other = all.begin(Uuid::from_u128(2));
        drop(first);
        assert!(all.contains(id));
        drop(second);
        assert!(!all.contains(id) && all.contains(Uuid::from_u128(2)));
        drop(other);
        assert!(all.ids().is_empty());
    }
}
