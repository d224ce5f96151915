//! The seams to the data: what is backed up, and what is restored to.

use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;

use crate::error::Result;
use crate::target::Store;

/// A part of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins.
    pub offset: u64,
    /// How long it is.
    pub length: u64,
}

/// What is known of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Its name.
    pub name: String,
    /// When it was taken.
    pub created: SystemTime,
    /// The size of the volume in it.
    pub size: u64,
}

/// A snapshot, as a replica in sync serves it. Errors are `NotFound` when it is gone, which is terminal, and `SourceBusy` when
/// it cannot be read now.
#[async_trait]
pub trait Source: Send + Sync {
    /// What is known of it.
    async fn snapshot(&self) -> Result<SnapshotInfo>;

    /// Whether the volume has another snapshot of this name, too, from which differences can be told.
    async fn has_snapshot(&self, name: &str) -> Result<bool>;

    /// At most `most` extents that end after `from`, in order, of what is mapped or, with `since`, what changed since that snapshot; none at the
    /// end. It is taken from maps, not found by reading.
    async fn extents(&self, since: Option<&str>, from: u64, most: usize) -> Result<Vec<Extent>>;

    /// Reads.
    async fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()>;
}

/// What is restored to. Errors are `SourceBusy` when it cannot be used now.
#[async_trait]
pub trait Device: Send + Sync {
    /// Its size in bytes.
    async fn size(&self) -> Result<u64>;

    /// Writes.
    async fn write(&self, offset: u64, bytes: &[u8]) -> Result<()>;

    /// Makes a range read as zeroes.
    async fn zero(&self, offset: u64, length: u64) -> Result<()>;

    /// Makes durable what was written.
    async fn flush(&self) -> Result<()>;
}

/// A device that follows the backups of a volume.
#[async_trait]
pub trait Standby: Device {
    /// Keeps the content as it is now under the name of this backup, durably, beside other marks. Again: no change.
    async fn mark(&self, backup: &str) -> Result<()>;

    /// Drops all marks but this one.
    async fn keep_only(&self, backup: &str) -> Result<()>;

    /// Takes the content back to what was marked. Again: no change.
    async fn revert(&self, backup: &str) -> Result<()>;

    /// Makes it a volume like others. Again: no change.
    async fn activate(&self) -> Result<()>;
}

/// Opens the target for one attempt, with whatever credentials are right then.
#[async_trait]
pub trait OpenStore: Send + Sync {
    /// The store.
    async fn open(&self) -> Result<Arc<dyn Store>>;
}

#[async_trait]
impl OpenStore for Arc<dyn Store> {
    async fn open(&self) -> Result<Arc<dyn Store>> {
        Ok(Self::clone(self))
    }
}
