//! Replicas that left a volume: what each may hold, should a person make it the one that counts (I5).

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use reactor::sleep;
use uuid::Uuid;

use super::registry::{Came, SharedRegistry};
use super::volume::{Snapshot, Volume, short};
use crate::model::Value;

/// How long a person tries.
const MOMENT: Duration = Duration::from_millis(10);
const TRIES: u32 = 200;

/// By replica that left, and unit: what was not overwritten for good by then, and all that was written since.
#[derive(Default)]
pub(super) struct Behind(RefCell<BTreeMap<Uuid, Vec<BTreeSet<Value>>>>);

impl Behind {
    /// A write begins: it may reach whoever is behind, too.
    pub(super) fn wrote(&self, units: Range<usize>, value: Value) {
        for held in self.0.borrow_mut().values_mut() {
            grow(held, units.end);
            held[units.clone()].iter_mut().for_each(|unit| _ = unit.insert(value));
        }
    }

    /// The volume begins to go back to this.
    pub(super) fn reverts(&self, possible: &[BTreeSet<Value>]) {
        for held in self.0.borrow_mut().values_mut() {
            grow(held, possible.len());
            for (unit, held) in held.iter_mut().enumerate() {
                held.extend(possible.get(unit).cloned().unwrap_or_else(|| BTreeSet::from([0])));
            }
        }
    }

    pub(super) fn has(&self, replica: Uuid) -> bool {
        self.0.borrow().contains_key(&replica)
    }

    /// It is in sync, or was made anew and has nothing.
    pub(super) fn forget(&self, replica: Uuid) {
        self.0.borrow_mut().remove(&replica);
    }
}

/// What nobody wrote to is zeroes.
fn grow(held: &mut Vec<BTreeSet<Value>>, units: usize) {
    if held.len() < units {
        held.resize(units, BTreeSet::from([0]));
    }
}

impl Volume {
    /// The place of a replica in the record has changed.
    pub(super) fn member_came(&self, replica: Uuid, came: Came) {
        let Some(behind) = &self.behind else { return };
        match came {
            Came::Left => {
                let held = self.model.borrow().held_in_sync();
                behind.0.borrow_mut().insert(replica, held);
            }
            Came::Back => behind.forget(replica),
            Came::ByForce => {
                let mut held = behind.0.borrow_mut().remove(&replica).expect("only such a replica is chosen");
                let units = self.model.borrow().units();
                grow(&mut held, units);
                self.model.borrow_mut().go_back(&held);
                self.begin_waiting_writes_anew();
                // It may lack those that were taken since, and have those that were deleted.
                self.snapshots.borrow_mut().values_mut().for_each(|snapshot| *snapshot = Snapshot::Unknown);
                self.reverts.set(self.reverts.get() + 1);
                self.note(format!("replica {} counts by force", short(replica)));
            }
        }
    }
}

/// A person makes a replica the one that counts; says so to the registry's checks as long as it lasts.
pub(super) struct Forcing {
    registry: Rc<SharedRegistry>,
    volume: Rc<Volume>,
    replica: Uuid,
}

impl Forcing {
    pub(super) fn new(registry: &Rc<SharedRegistry>, volume: &Rc<Volume>, replica: Uuid) -> Self {
        registry.set_forced(volume.id, Some(replica));
        Self { registry: Rc::clone(registry), volume: Rc::clone(volume), replica }
    }

    /// Tries for a while: until it is done, or the volume's engine is another one.
    pub(super) async fn run(self, path: u64) {
        for _ in 0..TRIES {
            sleep(MOMENT).await;
            let engine = self.volume.engine.borrow().clone();
            if !self.volume.is_on(path) {
                return;
            }
            let Some(engine) = engine else { continue };
            let result = engine.recover(self.replica).await;
            self.volume.note(format!("recovered by force: {:?}", result.as_ref().err()));
            if result.is_ok() {
                return;
            }
        }
    }
}

impl Drop for Forcing {
    fn drop(&mut self) {
        self.registry.set_forced(self.volume.id, None);
    }
}
