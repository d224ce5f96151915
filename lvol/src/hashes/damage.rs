//! Damage of snapshots that was found since the store was opened, for whoever has other copies.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use tokio::sync::Notify;
use uuid::Uuid;

use super::{BadRegion, REGION};
use crate::store::Store;

/// The most regions that are listed; those beyond are found again by the next scrub.
const MOST: usize = 1000;

/// Regions found damaged and not mended since.
#[derive(Default)]
pub(crate) struct Damage {
    regions: RefCell<BTreeSet<(Uuid, u64)>>,
    findings: Cell<u32>,
    found: Notify,
}

impl Damage {
    pub(super) fn found(&self, id: Uuid, region: u64) {
        let mut regions = self.regions.borrow_mut();
        if regions.len() < MOST {
            regions.insert((id, region));
        }
        self.findings.set(self.findings.get().wrapping_add(1));
        self.found.notify_waiters();
    }

    pub(super) fn is_good(&self, id: Uuid, region: u64) {
        self.regions.borrow_mut().remove(&(id, region));
    }
}

impl Store {
    /// Up to 1000 regions of snapshots that were found damaged since the store was opened, and not mended since. What a mark says from
    /// before that is found again when it is read or scrubbed.
    pub fn damage(&self) -> Vec<BadRegion> {
        let damage = &self.core.scrubs.damage;
        damage.regions.borrow_mut().retain(|(id, _)| self.core.is_immutable(*id));
        let regions = damage.regions.borrow();
        regions.iter().map(|(id, region)| BadRegion { lvol: *id, offset: region * REGION }).collect()
    }

    /// Changes whenever damage was found: then [`Store::damage`] is worth a look.
    pub fn findings(&self) -> u32 {
        self.core.scrubs.damage.findings.get()
    }

    /// Waits until [`Store::findings`] is not `seen` any more.
    pub async fn more_findings(&self, seen: u32) {
        loop {
            let found = self.core.scrubs.damage.found.notified();
            if self.findings() != seen {
                return;
            }
            found.await;
        }
    }
}
