//! A snapshot of a volume of this node, as a backup reads it: through the engine, from a replica in sync.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use backup::source::{Extent, SnapshotInfo, Source};
use backup::{Error, Kind, Result};
use block_device::Range;
use uuid::Uuid;

use crate::control::error::ControlError;
use crate::control::{Engines, Volumes};
use crate::data::SnapshotFacts;

/// Bytes that are read with one message to the reactor.
const PIECE: u64 = 1 << 20;

pub(super) struct SnapshotSource {
    pub(super) volumes: Arc<Volumes>,
    pub(super) engines: Arc<Engines>,
    pub(super) volume: Uuid,
    pub(super) snapshot: Uuid,
}

impl SnapshotSource {
    /// The volume's reactor, and the name of its engine.
    fn home(&self) -> Result<(usize, String)> {
        if !self.volumes.contains(self.volume) {
            return Err(Error::new(Kind::NotFound, format!("volume {} is gone", self.volume)));
        }
        let found = self.engines.record_of(self.volume);
        let (record, home) = found.ok_or_else(|| Error::new(Kind::SourceBusy, "the volume has no engine now"))?;
        Ok((home, record.name))
    }

    async fn snapshots(&self) -> Result<Vec<SnapshotFacts>> {
        let (home, name) = self.home()?;
        self.engines.data().snapshots(home, self.volume, name).await.map_err(|error| busy(&error))
    }

    fn gone(&self) -> Error {
        Error::new(Kind::NotFound, format!("snapshot {} is gone", self.snapshot))
    }
}

/// Whatever the engine says, another attempt may find it otherwise: only a list of snapshots says that one is gone.
fn busy(error: &ControlError) -> Error {
    Error::new(Kind::SourceBusy, error.to_string())
}

#[tonic::async_trait]
impl Source for SnapshotSource {
    async fn snapshot(&self) -> Result<SnapshotInfo> {
        let snapshots = self.snapshots().await?;
        let found = snapshots.into_iter().find(|found| found.uuid == self.snapshot).ok_or_else(|| self.gone())?;
        let created = SystemTime::UNIX_EPOCH + Duration::from_secs(found.created);
        Ok(SnapshotInfo { name: self.snapshot.to_string(), created, size: found.size })
    }

    async fn has_snapshot(&self, name: &str) -> Result<bool> {
        // Snapshots are called by their UUIDs in the store, which are never those of another one.
        let Ok(wanted) = Uuid::try_parse(name) else { return Ok(false) };
        Ok(self.snapshots().await?.iter().any(|found| found.uuid == wanted))
    }

    async fn extents(&self, since: Option<&str>, from: u64, most: usize) -> Result<Vec<Extent>> {
        let (home, _) = self.home()?;
        let base = match since {
            // What it was compared with is gone: whatever is in the snapshot may differ from it, zeroes, too.
            Some(name) if !self.has_snapshot(name).await? => {
                let size = self.snapshot().await?.size;
                let whole = Extent { offset: from, length: size.saturating_sub(from) };
                return Ok(if whole.length == 0 { Vec::new() } else { vec![whole] });
            }
            since => since.and_then(|name| Uuid::try_parse(name).ok()),
        };
        let of = (self.volume, self.snapshot);
        let found = self.engines.data().snapshot_extents(home, of, base, from, most).await;
        let found = found.map_err(|error| busy(&error))?.ok_or_else(|| self.gone())?;
        Ok(found.into_iter().map(|range| Extent { offset: range.offset, length: range.length }).collect())
    }

    async fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let (home, _) = self.home()?;
        let of = (self.volume, self.snapshot);
        for (piece, at) in buffer.chunks_mut(PIECE as usize).zip((offset..).step_by(PIECE as usize)) {
            let range = Range { offset: at, length: piece.len() as u64 };
            let read = self.engines.data().read_snapshot(home, of, range).await;
            let read = read.map_err(|error| busy(&error))?.ok_or_else(|| self.gone())?;
            if read.len() != piece.len() {
                return Err(Error::new(Kind::SourceBusy, format!("{} bytes came of {}", read.len(), piece.len())));
            }
            piece.copy_from_slice(&read);
        }
        Ok(())
    }
}
