//! A volume of this node, as a restore fills it: through its engine, on all its replicas.

use std::sync::Arc;

use backup::block::Checksum;
use backup::source::{Device, Standby};
use backup::{Error, Kind, Result, inspect};
use block_device::Range;
use uuid::Uuid;

use super::targets::Opener;
use crate::control::error::ControlError;
use crate::control::volumes::Hold;
use crate::control::{Engines, Volumes};
use crate::data::{SnapshotFacts, VolumeChange};

pub(super) struct VolumeDevice {
    pub(super) volumes: Arc<Volumes>,
    pub(super) engines: Arc<Engines>,
    pub(super) volume: Uuid,
    /// What keeps the volume from hosts: nothing is written when it does not any more.
    pub(super) hold: Hold,
}

impl VolumeDevice {
    pub(super) fn home(&self) -> Result<usize> {
        match self.volumes.held(self.volume) {
            None => return Err(Error::new(Kind::NotFound, format!("volume {} is gone", self.volume))),
            Some(held) if held != Some(self.hold) => {
                return Err(Error::new(Kind::Invalid, "the volume was taken for something else"));
            }
            Some(_) => {}
        }
        let found = self.engines.record_of(self.volume);
        found.map(|(_, home)| home).ok_or_else(|| Error::new(Kind::SourceBusy, "the volume has no engine now"))
    }
}

/// Whatever the engine says, another attempt may find it otherwise.
pub(super) fn busy(error: &ControlError) -> Error {
    Error::new(Kind::SourceBusy, error.to_string())
}

#[tonic::async_trait]
impl Device for VolumeDevice {
    async fn size(&self) -> Result<u64> {
        self.home()?;
        let size = self.engines.size_of(self.volume);
        size.ok_or_else(|| Error::new(Kind::SourceBusy, "the volume has no engine now"))
    }

    async fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let (home, bytes) = (self.home()?, bytes.to_vec());
        self.engines.data().write_volume(home, self.volume, offset, bytes).await.map_err(|error| busy(&error))
    }

    async fn zero(&self, offset: u64, length: u64) -> Result<()> {
        let (home, range) = (self.home()?, Range { offset, length });
        self.engines.data().zero_volume(home, self.volume, range).await.map_err(|error| busy(&error))
    }

    async fn flush(&self) -> Result<()> {
        let home = self.home()?;
        self.engines.data().flush_volume(home, self.volume).await.map_err(|error| busy(&error))
    }
}

/// What the names of snapshots begin with that mark complete restores.
const MARK: &str = "standby-";

/// A volume that follows backups. What it is marked with are snapshots.
pub(super) struct StandbyDevice {
    device: VolumeDevice,
    opener: Opener,
    backup_volume: String,
}

impl StandbyDevice {
    pub(super) fn new(
        (volumes, engines): (Arc<Volumes>, Arc<Engines>),
        volume: Uuid,
        opener: Opener,
        backup_volume: String,
    ) -> Self {
        Self { device: VolumeDevice { volumes, engines, volume, hold: Hold::Standby }, opener, backup_volume }
    }

    async fn marks(&self) -> Result<Vec<SnapshotFacts>> {
        self.device.home()?;
        let mut snapshots = self.device.engines.snapshots(self.device.volume).await.map_err(|error| busy(&error))?;
        snapshots.retain(|snapshot| snapshot.name.starts_with(MARK));
        Ok(snapshots)
    }

    async fn change(&self, change: VolumeChange) -> Result<()> {
        self.device.engines.change(self.device.volume, change).await.map_err(|error| busy(&error))
    }

    /// Hosts have it: it was activated before somebody could say so.
    fn is_released(&self) -> bool {
        matches!(self.device.volumes.held(self.device.volume), Some(None | Some(Hold::Releasing)))
    }
}

/// The name of a mark, within what a name may be.
fn mark_of(backup: &str) -> String {
    format!("{MARK}{}", &Checksum::of(backup.as_bytes()).to_string()[..32])
}

#[tonic::async_trait]
impl Device for StandbyDevice {
    /// The volume in the target may have grown, and the standby grows with it.
    async fn size(&self) -> Result<u64> {
        let wanted = inspect::volume(&self.opener, &self.backup_volume).await?.size;
        self.device.home()?;
        self.device.volumes.grow_held(self.device.volume, wanted).await.map_err(|error| busy(&error))?;
        self.device.size().await
    }

    async fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.device.write(offset, bytes).await
    }

    async fn zero(&self, offset: u64, length: u64) -> Result<()> {
        self.device.zero(offset, length).await
    }

    async fn flush(&self) -> Result<()> {
        self.device.flush().await
    }
}

#[tonic::async_trait]
impl Standby for StandbyDevice {
    async fn mark(&self, backup: &str) -> Result<()> {
        let mark = mark_of(backup);
        if self.marks().await?.iter().any(|found| found.name == mark) {
            return Ok(());
        }
        let cut = self.device.engines.snapshot(self.device.volume, "", &mark).await;
        cut.map(drop).map_err(|error| busy(&error))
    }

    async fn keep_only(&self, backup: &str) -> Result<()> {
        let mark = mark_of(backup);
        for other in self.marks().await?.into_iter().filter(|found| found.name != mark) {
            self.change(VolumeChange::DeleteSnapshot(other.uuid)).await?;
        }
        Ok(())
    }

    async fn revert(&self, backup: &str) -> Result<()> {
        if self.is_released() {
            // What hosts have written since is theirs.
            return Ok(());
        }
        let mark = mark_of(backup);
        let found = self.marks().await?.into_iter().find(|found| found.name == mark);
        let lost = || Error::new(Kind::Invalid, format!("the snapshot {mark} of backup {backup} is gone"));
        let snapshot = found.ok_or_else(lost)?.uuid;
        self.change(VolumeChange::Revert { snapshot, discard_newer: true }).await
    }

    async fn activate(&self) -> Result<()> {
        let released = self.device.volumes.release(self.device.volume, Hold::Standby, true).await;
        released.map_err(|error| busy(&error))
    }
}
