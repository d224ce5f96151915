//! Watches of the API: what is told as soon as it is so.

use proto::v1::{
    BackupChange, BackupScheduleChange, BackupTargetChange, ChangeKind, OperationChange, StandbyChange, VolumeChange,
    WatchOperationsRequest, WatchVolumesRequest,
};
use tonic::{Status, Streaming};

use super::{Client, answer};

/// What becomes of objects of one kind.
pub(crate) enum Changes {
    Volumes(Box<Streaming<VolumeChange>>),
    Operations(Box<Streaming<OperationChange>>),
    Targets(Box<Streaming<BackupTargetChange>>),
    Backups(Box<Streaming<BackupChange>>),
    Standbys(Box<Streaming<StandbyChange>>),
    Schedules(Box<Streaming<BackupScheduleChange>>),
}

impl Changes {
    /// Waits for the next change; the first one is that all there was has been told. An error when nothing is told any more.
    pub(crate) async fn next(&mut self) -> Result<(), Status> {
        loop {
            let kind = match self {
                Self::Volumes(stream) => stream.message().await?.map(|change| change.kind()),
                Self::Operations(stream) => stream.message().await?.map(|change| change.kind()),
                Self::Targets(stream) => stream.message().await?.map(|change| change.kind()),
                Self::Backups(stream) => stream.message().await?.map(|change| change.kind()),
                Self::Standbys(stream) => stream.message().await?.map(|change| change.kind()),
                Self::Schedules(stream) => stream.message().await?.map(|change| change.kind()),
            };
            match kind {
                None => return Err(Status::unavailable("the daemon tells no more")),
                Some(ChangeKind::Existing) => {}
                Some(_) => return Ok(()),
            }
        }
    }
}

impl Client {
    /// Follows the volume with this UUID, or all of them.
    pub(crate) async fn follow_volumes(&self, uuid: &str) -> anyhow::Result<Changes> {
        let request = WatchVolumesRequest { volume_uuid: uuid.to_owned(), ..Default::default() };
        Ok(Changes::Volumes(Box::new(answer(self.patient_volumes().watch(request).await)?)))
    }

    /// Follows the operation with this id, or all of them.
    pub(crate) async fn follow_operations(&self, id: &str) -> anyhow::Result<Changes> {
        let request = WatchOperationsRequest { id: id.to_owned(), ..Default::default() };
        Ok(Changes::Operations(Box::new(answer(self.patient_operations().watch(request).await)?)))
    }
}
