//! What a restart goes on with: deletions and removals that are on record and were cut off (L5). A creation that was cut off waits for its command.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::{Entry, Phase, ReplicaChange, Volumes};
use crate::control::error::ControlError;
use crate::control::retry::Backoff;

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

impl Volumes {
    /// Sets a task on each volume with something to go on with.
    pub(crate) fn resume(self: &Arc<Self>) {
        self.resume_replacing();
        let records: Vec<_> = self.entries().values().map(|entry| entry.record.clone()).collect();
        let leaves = |record: &super::VolumeRecord| {
            record.replicas.iter().any(|replica| replica.change == ReplicaChange::Leaves)
        };
        for record in records {
            match record.phase {
                Phase::Deleting => drop(tokio::spawn(Arc::clone(self).finish(record.uuid))),
                Phase::Created if leaves(&record) => drop(tokio::spawn(Arc::clone(self).finish(record.uuid))),
                Phase::Created | Phase::Creating => {}
            }
        }
    }

    /// Tries until nothing is left to go on with. What each attempt met is shown with the volume.
    async fn finish(self: Arc<Self>, volume: Uuid) {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        while let Err(error) = self.go_on(volume).await {
            tracing::warn!(%volume, %error, "what was cut off cannot be ended yet");
            backoff.wait().await;
        }
    }

    async fn go_on(&self, volume: Uuid) -> Result<(), ControlError> {
        let uuid = volume.to_string();
        let Ok(Entry { record, .. }) = self.find(&uuid) else { return Ok(()) };
        let lock = self.locks.lock(record.name).await;
        let Ok(Entry { record, .. }) = self.find(&uuid) else { return Ok(()) };
        match record.phase {
            Phase::Deleting => {
                let pending = self.delete_noted(&record).await?;
                tracing::info!(volume = %record.name, ?pending, "a deletion that was cut off has ended");
                Ok(())
            }
            Phase::Creating => Ok(()),
            Phase::Created => {
                let mut left = record.replicas.iter().filter(|replica| replica.change == ReplicaChange::Leaves);
                let Some(replica) = left.next().map(|replica| replica.uuid) else { return Ok(()) };
                let is_last = left.next().is_none();
                self.noting_failure(volume, self.delete_left(record, replica).await)?;
                drop(lock);
                if is_last { Ok(()) } else { Box::pin(self.go_on(volume)).await }
            }
        }
    }
}
