//! Watches of the API: what is told as soon as it is so.

use std::pin::Pin;

use proto::v1::{
    ChangeKind, LvolChange, NodeChange, OperationChange, OrphanChange, ReplicaChange, SnapshotChange, StoreChange,
    VolumeChange, WatchLvolsRequest, WatchNodeRequest, WatchOperationsRequest, WatchOrphansRequest,
    WatchReplicasRequest, WatchSnapshotsRequest, WatchStoresRequest, WatchVolumesRequest,
};
use tonic::codegen::tokio_stream::{Stream, StreamExt};
use tonic::{Response, Status, Streaming};

use super::{Client, answer};

/// What becomes of objects of one kind.
pub(crate) struct Changes(Pin<Box<dyn Stream<Item = Result<ChangeKind, Status>>>>);

impl Changes {
    pub(super) fn of<M: 'static>(
        watch: Result<Response<Streaming<M>>, Status>,
        kind: fn(&M) -> ChangeKind,
    ) -> anyhow::Result<Self> {
        let stream = answer(watch)?;
        Ok(Self(Box::pin(stream.map(move |message| message.map(|message| kind(&message))))))
    }

    /// Waits for the next change; the first one is that all there was has been told. An error when nothing is told any more.
    pub(crate) async fn next(&mut self) -> Result<(), Status> {
        loop {
            match self.0.next().await.transpose()? {
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
        Changes::of(self.patient_volumes().watch(request).await, VolumeChange::kind)
    }

    /// Follows the operation with this id, or all of them.
    pub(crate) async fn follow_operations(&self, id: &str) -> anyhow::Result<Changes> {
        let request = WatchOperationsRequest { id: id.to_owned(), ..Default::default() };
        Changes::of(self.patient_operations().watch(request).await, OperationChange::kind)
    }

    /// Follows the node: its peers, and what it counts.
    pub(crate) async fn follow_node(&self) -> anyhow::Result<Changes> {
        Changes::of(self.patient_node().watch(WatchNodeRequest::default()).await, NodeChange::kind)
    }

    /// Follows the store with this UUID, or all of them.
    pub(crate) async fn follow_stores(&self, uuid: &str) -> anyhow::Result<Changes> {
        let request = WatchStoresRequest { store_uuid: uuid.to_owned(), ..Default::default() };
        Changes::of(self.patient_stores().watch(request).await, StoreChange::kind)
    }

    /// Follows the replicas of the volume with this UUID, or all of them.
    pub(crate) async fn follow_replicas(&self, volume_uuid: &str) -> anyhow::Result<Changes> {
        let request = WatchReplicasRequest { volume_uuid: volume_uuid.to_owned(), ..Default::default() };
        Changes::of(self.patient_replicas().watch(request).await, ReplicaChange::kind)
    }

    /// Follows the lvols that a request asks for.
    pub(crate) async fn follow_lvols(&self, request: WatchLvolsRequest) -> anyhow::Result<Changes> {
        Changes::of(self.transfers().watch(request).await, LvolChange::kind)
    }

    /// Follows the snapshots of a volume.
    pub(crate) async fn follow_snapshots(&self, volume: &str) -> anyhow::Result<Changes> {
        let request = WatchSnapshotsRequest { volume: volume.to_owned(), ..WatchSnapshotsRequest::default() };
        Changes::of(self.patient_volumes().watch_snapshots(request).await, SnapshotChange::kind)
    }

    /// Follows what belongs to nobody.
    pub(crate) async fn follow_orphans(&self) -> anyhow::Result<Changes> {
        Changes::of(self.patient_orphans().watch(WatchOrphansRequest::default()).await, OrphanChange::kind)
    }
}
