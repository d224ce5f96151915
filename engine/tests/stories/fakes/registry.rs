//! A registry that outlives engines, is shared by them, and refuses when told to.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use engine::{MemberState, Registry, RegistryError, VolumeRecord};
use reactor::sleep;
use replica::LocalFuture;
use uuid::Uuid;

use super::VOLUME;

pub(crate) struct FakeRegistry {
    records: RefCell<BTreeMap<Uuid, VolumeRecord>>,
    /// Every call fails.
    pub(crate) refuses: Cell<bool>,
    /// The next so many stores succeed but say that they failed.
    pub(crate) lies: Cell<u32>,
    pub(crate) stores: Cell<u32>,
}

impl FakeRegistry {
    pub(crate) fn with(record: VolumeRecord) -> Rc<Self> {
        let records = RefCell::new(BTreeMap::from([(record.volume, VolumeRecord { version: 1, ..record })]));
        Rc::new(Self { records, refuses: Cell::new(false), lies: Cell::new(0), stores: Cell::new(0) })
    }

    pub(crate) fn record(&self) -> VolumeRecord {
        self.records.borrow()[&VOLUME].clone()
    }

    pub(crate) fn state(&self, index: usize) -> MemberState {
        self.record().replicas[index].state.clone()
    }

    pub(crate) fn is_in_sync(&self, index: usize) -> bool {
        self.state(index) == MemberState::InSync
    }

    /// The record is gone, as if its file had been deleted.
    pub(crate) fn lose(&self) {
        self.records.borrow_mut().clear();
    }

    /// The record is that one again, as if a backup had been put back.
    pub(crate) fn put_back(&self, record: VolumeRecord) {
        self.records.borrow_mut().insert(record.volume, record);
    }

    async fn pass_time(&self) -> Result<(), RegistryError> {
        sleep(Duration::from_millis(2)).await;
        match self.refuses.get() {
            true => Err(io::Error::other("the fake registry refuses").into()),
            false => Ok(()),
        }
    }
}

impl Registry for FakeRegistry {
    fn load(&self, volume: Uuid) -> LocalFuture<'_, Result<Option<VolumeRecord>, RegistryError>> {
        Box::pin(async move {
            self.pass_time().await?;
            Ok(self.records.borrow().get(&volume).cloned())
        })
    }

    fn store(&self, expected: Option<u64>, record: &VolumeRecord) -> LocalFuture<'_, Result<u64, RegistryError>> {
        let mut record = record.clone();
        Box::pin(async move {
            self.pass_time().await?;
            let found = self.records.borrow().get(&record.volume).map(|record| record.version);
            if found != expected {
                return Err(RegistryError::Conflict { volume: record.volume, found });
            }
            // I3: whatever happens, something stays in sync.
            assert!(record.replicas.iter().any(|replica| replica.state == MemberState::InSync));
            let version = expected.unwrap_or(0) + 1;
            record.version = version;
            self.stores.set(self.stores.get() + 1);
            self.records.borrow_mut().insert(record.volume, record);
            if self.lies.get() > 0 {
                self.lies.set(self.lies.get() - 1);
                return Err(io::Error::other("the fake registry lost its answer").into());
            }
            Ok(version)
        })
    }

    fn set_aside(&self, _volume: Uuid) -> LocalFuture<'_, Result<(), RegistryError>> {
        Box::pin(async move { self.pass_time().await })
    }

    fn remove(&self, volume: Uuid) -> LocalFuture<'_, Result<(), RegistryError>> {
        Box::pin(async move {
            self.records.borrow_mut().remove(&volume);
            Ok(())
        })
    }

    fn list(&self) -> LocalFuture<'_, Result<Vec<Uuid>, RegistryError>> {
        Box::pin(async move { Ok(self.records.borrow().keys().copied().collect()) })
    }
}
