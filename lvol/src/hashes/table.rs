//! The hash lvol of a snapshot, opened.

use std::rc::Rc;

use block_device::{Error, ErrorKind, Request, Slice, execute};
use uuid::Uuid;

use super::format::{Basis, Head, PER_BLOCK, Values};
use super::{Hash, REGION};
use crate::core::Core;
use crate::error::StoreError;
use crate::format::{BLOCK, Flaw};
use crate::info::Role;
use crate::lvol::Lvol;
use crate::store::Store;

pub(super) struct Table {
    lvol: Rc<Lvol>,
    snapshot: Uuid,
}

impl Table {
    /// The hash lvol of a snapshot, if it has one that is whole.
    pub(super) async fn open(core: &Rc<Core>, snapshot: Uuid) -> Result<Option<Self>, StoreError> {
        let store = Store { core: Rc::clone(core) };
        match store.open_internal(snapshot, Role::Hashes).await {
            Ok(lvol) => Ok(Some(Self { lvol, snapshot })),
            Err(StoreError::NotFound { .. } | StoreError::LvolDamaged { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The hash lvol of a snapshot, made if there is none. A damaged one is replaced.
    pub(super) async fn create(core: &Rc<Core>, snapshot: Uuid, size: u64) -> Result<Self, StoreError> {
        let store = Store { core: Rc::clone(core) };
        let blocks = 1 + size.div_ceil(REGION).div_ceil(PER_BLOCK);
        let role = Role::Hashes;
        match store.create_internal(snapshot, role, blocks * BLOCK, BLOCK as u32).await {
            Err(StoreError::LvolDamaged { .. } | StoreError::Conflict { .. }) => {
                store.delete_internal(snapshot, role).await?;
                store.create_internal(snapshot, role, blocks * BLOCK, BLOCK as u32).await?;
            }
            result => drop(result?),
        }
        let lvol = store.open_internal(snapshot, role).await?;
        Ok(Self { lvol, snapshot })
    }

    /// The head; one that is damaged or was never written knows of nothing.
    pub(super) async fn head(&self, size: u64, basis: Basis) -> Result<Head, Error> {
        let none = Head { size, next: 0, basis, scrubbed_at: 0 };
        let Some(bytes) = self.read(0).await? else { return Ok(none) };
        match Head::decode(&bytes, self.snapshot) {
            Ok(head) if head.size == size => Ok(head),
            Ok(_) => Ok(none),
            Err(flaw) => {
                self.report(0, flaw);
                Ok(none)
            }
        }
    }

    pub(super) async fn put_head(&self, head: &Head) -> Result<(), Error> {
        self.write(0, head.encode(self.snapshot)).await
    }

    /// A block of values; one that is damaged has none.
    pub(super) async fn values(&self, block: u64) -> Result<Values, Error> {
        let address = address(block);
        let Some(bytes) = self.read(address).await? else { return Ok(Values::none()) };
        Values::decode(&bytes, self.snapshot, address).or_else(|flaw| {
            self.report(address, flaw);
            Ok(Values::none())
        })
    }

    pub(super) async fn put_values(&self, block: u64, values: &Values) -> Result<(), Error> {
        let address = address(block);
        self.write(address, values.encode(self.snapshot, address)).await
    }

    /// The stored value of one region.
    pub(super) async fn value(&self, region: u64) -> Result<Option<Hash>, Error> {
        Ok(self.values(region / PER_BLOCK).await?.get(region % PER_BLOCK))
    }

    /// Bytes that the medium does not give back are unknown, like damaged ones: they are computed again.
    async fn read(&self, address: u64) -> Result<Option<Vec<u8>>, Error> {
        match execute(&*self.lvol, Request::read(address, BLOCK)).await {
            Ok(segments) => Ok(Some(segments.to_vec())),
            Err(error) if error.kind() == ErrorKind::ReadFailed => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn write(&self, address: u64, bytes: Vec<u8>) -> Result<(), Error> {
        execute(&*self.lvol, Request::write(address, Slice::from(&bytes[..]))).await.map(drop)
    }

    fn report(&self, address: u64, flaw: Flaw) {
        if flaw != Flaw::Empty {
            tracing::warn!(snapshot = %self.snapshot, address, %flaw, "a block of hashes is damaged; it is computed again");
        }
    }
}

/// Where a block of values is in the hash lvol: after the head.
const fn address(block: u64) -> u64 {
    (1 + block) * BLOCK
}
