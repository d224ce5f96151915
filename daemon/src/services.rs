//! The gRPC services: each call is handed to [`Control`] as it is.
//!
//! Calls that change something run as tasks of their own: a client that goes away in the middle does not cut them off,
//! and a panic in one ends that call only.

mod backups;
mod orphans;

use std::future::Future;
use std::sync::Arc;

use proto::v1;
use proto::v1::engine_service_server::EngineService;
use proto::v1::lvol_service_server::LvolService;
use proto::v1::node_service_server::NodeService;
use proto::v1::operation_service_server::OperationService;
use proto::v1::replica_service_server::ReplicaService;
use proto::v1::store_service_server::StoreService;
use proto::v1::volume_service_server::VolumeService;
use tonic::{Request, Response, Status, Streaming};
use uuid::Uuid;

use crate::calls;
use crate::control::{ChangeStream, Control, ControlError, EventStream, Parts};

/// All services of the node.
#[derive(Clone)]
pub(crate) struct Services {
    control: Arc<Control>,
}

type Answer<T> = Result<Response<T>, Status>;

impl Services {
    pub(crate) fn new(control: Arc<Control>) -> Self {
        Self { control }
    }

    /// Runs `work` to its end, whatever becomes of the caller.
    async fn detached<T, F>(&self, work: impl FnOnce(Arc<Control>) -> F) -> Answer<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, ControlError>> + Send + 'static,
    {
        let control = Arc::clone(&self.control);
        let work = work(Arc::clone(&control));
        let task = calls::detached(async move {
            let result = work.await;
            control.was_asked();
            result
        });
        let result = task.await;
        let result = result.unwrap_or_else(|ended| {
            Err(ControlError::failed("PANIC", format!("the call ended unexpectedly ({ended}); see the daemon's log")))
        });
        answer(result)
    }
}

fn answer<T>(result: Result<T, ControlError>) -> Answer<T> {
    result.map(Response::new).map_err(Status::from)
}

#[tonic::async_trait]
impl NodeService for Services {
    async fn info(&self, _: Request<v1::NodeInfoRequest>) -> Answer<v1::NodeInfo> {
        answer(self.control.node_info().await)
    }

    type WatchStream = ChangeStream<v1::NodeChange>;

    async fn watch(&self, request: Request<v1::WatchNodeRequest>) -> Answer<Self::WatchStream> {
        answer(self.control.watch_node(request.into_inner()).await)
    }

    type EventsStream = EventStream;

    async fn events(&self, request: Request<v1::EventsRequest>) -> Answer<EventStream> {
        answer(self.control.events.stream(&request.into_inner()))
    }

    async fn get_log(&self, _: Request<v1::GetLogRequest>) -> Answer<v1::LogFilter> {
        answer(Ok(self.control.log()))
    }

    async fn set_log(&self, request: Request<v1::SetLogRequest>) -> Answer<v1::LogFilter> {
        answer(self.control.set_log(&request.into_inner().filter))
    }
}

#[tonic::async_trait]
impl StoreService for Services {
    async fn create(&self, request: Request<v1::CreateStoreRequest>) -> Answer<v1::Store> {
        self.detached(|control| async move { control.stores.create(request.into_inner()).await }).await
    }

    async fn list(&self, request: Request<v1::ListStoresRequest>) -> Answer<v1::ListStoresResponse> {
        answer(self.control.list_stores(request.into_inner()).await)
    }

    type WatchStream = ChangeStream<v1::StoreChange>;

    async fn watch(&self, request: Request<v1::WatchStoresRequest>) -> Answer<Self::WatchStream> {
        answer(self.control.watch_stores(request.into_inner()).await)
    }

    async fn get(&self, request: Request<v1::GetStoreRequest>) -> Answer<v1::Store> {
        answer(self.control.stores.get(&request.into_inner().store).await)
    }

    async fn grow(&self, request: Request<v1::GrowStoreRequest>) -> Answer<v1::Store> {
        self.detached(|control| async move { control.stores.grow(request.into_inner()).await }).await
    }

    async fn set_limits(&self, request: Request<v1::SetStoreLimitsRequest>) -> Answer<v1::Store> {
        self.detached(|control| async move { control.stores.set_limits(request.into_inner()).await }).await
    }

    async fn start_scrub(&self, request: Request<v1::StartScrubRequest>) -> Answer<v1::Store> {
        self.detached(|control| async move { control.scrubs.begin(request.into_inner()).await }).await
    }

    async fn stop_scrub(&self, request: Request<v1::StopScrubRequest>) -> Answer<v1::Store> {
        self.detached(|control| async move { control.scrubs.stop(request.into_inner()).await }).await
    }

    async fn delete(&self, request: Request<v1::DeleteStoreRequest>) -> Answer<v1::DeleteStoreResponse> {
        self.detached(|control| async move {
            control.stores.delete(request.into_inner()).await.map(|()| v1::DeleteStoreResponse {})
        })
        .await
    }
}

#[tonic::async_trait]
impl LvolService for Services {
    async fn create(&self, request: Request<v1::CreateLvolRequest>) -> Answer<v1::Lvol> {
        self.detached(|control| async move { control.lvols.create(request.into_inner()).await }).await
    }

    async fn list(&self, request: Request<v1::ListLvolsRequest>) -> Answer<v1::ListLvolsResponse> {
        answer(self.control.list_lvols(request.into_inner()).await)
    }

    type WatchStream = ChangeStream<v1::LvolChange>;

    async fn watch(&self, request: Request<v1::WatchLvolsRequest>) -> Answer<Self::WatchStream> {
        answer(self.control.watch_lvols(request.into_inner()).await)
    }

    async fn get(&self, request: Request<v1::GetLvolRequest>) -> Answer<v1::Lvol> {
        let request = request.into_inner();
        answer(self.control.lvols.get(&request.lvol, request.with_usage).await)
    }

    async fn delete(&self, request: Request<v1::DeleteLvolRequest>) -> Answer<v1::DeleteLvolResponse> {
        self.detached(|control| async move {
            let remaining = control.lvols.delete(request.into_inner()).await;
            remaining.map(|remaining| v1::DeleteLvolResponse { remaining })
        })
        .await
    }

    async fn cancel_delete(&self, request: Request<v1::CancelDeleteLvolRequest>) -> Answer<v1::Lvol> {
        self.detached(|control| async move { control.lvols.cancel_delete(request.into_inner()).await }).await
    }

    async fn snapshot(&self, request: Request<v1::SnapshotLvolRequest>) -> Answer<v1::Lvol> {
        self.detached(|control| async move { control.lvols.snapshot(request.into_inner()).await }).await
    }

    async fn create_clone(&self, request: Request<v1::CloneLvolRequest>) -> Answer<v1::Lvol> {
        self.detached(|control| async move { control.lvols.clone_snapshot(request.into_inner()).await }).await
    }

    async fn revert(&self, request: Request<v1::RevertLvolRequest>) -> Answer<v1::Lvol> {
        self.detached(|control| async move { control.lvols.revert(request.into_inner()).await }).await
    }

    async fn grow(&self, request: Request<v1::GrowLvolRequest>) -> Answer<v1::Lvol> {
        self.detached(|control| async move { control.lvols.grow(request.into_inner()).await }).await
    }

    async fn rename(&self, request: Request<v1::RenameLvolRequest>) -> Answer<v1::Lvol> {
        self.detached(|control| async move { control.lvols.rename(request.into_inner()).await }).await
    }

    type ExportStream = Parts;

    async fn export(&self, request: Request<v1::ExportLvolRequest>) -> Answer<Parts> {
        answer(self.control.lvols.export(&request.into_inner().lvol).await)
    }

    async fn import(&self, request: Request<Streaming<v1::ImportLvolRequest>>) -> Answer<v1::ImportLvolResponse> {
        self.detached(|control| async move { control.lvols.import(request.into_inner()).await }).await
    }
}

#[tonic::async_trait]
impl ReplicaService for Services {
    async fn create(&self, request: Request<v1::CreateReplicaRequest>) -> Answer<v1::Replica> {
        self.detached(|control| async move { control.replicas.create(request.into_inner()).await }).await
    }

    async fn list(&self, request: Request<v1::ListReplicasRequest>) -> Answer<v1::ListReplicasResponse> {
        answer(self.control.list_replicas(request.into_inner()).await)
    }

    type WatchStream = ChangeStream<v1::ReplicaChange>;

    async fn watch(&self, request: Request<v1::WatchReplicasRequest>) -> Answer<Self::WatchStream> {
        answer(self.control.watch_replicas(request.into_inner()).await)
    }

    async fn delete(&self, request: Request<v1::DeleteReplicaRequest>) -> Answer<v1::DeleteReplicaResponse> {
        self.detached(|control| async move {
            control.delete_replica(request.into_inner()).await.map(|()| v1::DeleteReplicaResponse {})
        })
        .await
    }
}

#[tonic::async_trait]
impl EngineService for Services {
    async fn create(&self, request: Request<v1::CreateEngineRequest>) -> Answer<v1::Engine> {
        self.detached(|control| async move { control.engines.create(request.into_inner()).await }).await
    }

    async fn list(&self, request: Request<v1::ListEnginesRequest>) -> Answer<v1::ListEnginesResponse> {
        answer(self.control.engines.list(request.into_inner()).await)
    }

    async fn get(&self, request: Request<v1::GetEngineRequest>) -> Answer<v1::Engine> {
        let volume = volume_uuid(&request.into_inner().volume_uuid)?;
        answer(self.control.engines.get(volume).await)
    }

    async fn delete(&self, request: Request<v1::DeleteEngineRequest>) -> Answer<v1::DeleteEngineResponse> {
        let volume = volume_uuid(&request.into_inner().volume_uuid)?;
        self.detached(move |control| async move {
            control.delete_engine(volume).await.map(|()| v1::DeleteEngineResponse {})
        })
        .await
    }

    async fn snapshot(&self, request: Request<v1::SnapshotEngineRequest>) -> Answer<v1::Snapshot> {
        let request = request.into_inner();
        let volume = volume_uuid(&request.volume_uuid)?;
        self.detached(move |control| async move {
            control.engines.snapshot(volume, &request.snapshot_uuid, &request.name).await
        })
        .await
    }
}

#[tonic::async_trait]
impl VolumeService for Services {
    async fn create(&self, request: Request<v1::CreateVolumeRequest>) -> Answer<v1::Volume> {
        self.detached(|control| async move { control.volumes.create(request.into_inner()).await }).await
    }

    async fn list(&self, request: Request<v1::ListVolumesRequest>) -> Answer<v1::ListVolumesResponse> {
        answer(self.control.volumes.list(request.into_inner()).await)
    }

    type WatchStream = ChangeStream<v1::VolumeChange>;

    async fn watch(&self, request: Request<v1::WatchVolumesRequest>) -> Answer<Self::WatchStream> {
        answer(self.control.volumes.watch(&request.into_inner()).await)
    }

    async fn get(&self, request: Request<v1::GetVolumeRequest>) -> Answer<v1::Volume> {
        answer(self.control.volumes.get(&request.into_inner().volume).await)
    }

    async fn snapshot(&self, request: Request<v1::SnapshotVolumeRequest>) -> Answer<v1::Snapshot> {
        self.detached(|control| async move { control.volumes.snapshot(request.into_inner()).await }).await
    }

    async fn list_snapshots(&self, request: Request<v1::ListSnapshotsRequest>) -> Answer<v1::ListSnapshotsResponse> {
        answer(self.control.list_snapshots(request.into_inner()).await)
    }

    type WatchSnapshotsStream = ChangeStream<v1::SnapshotChange>;

    async fn watch_snapshots(&self, request: Request<v1::WatchSnapshotsRequest>) -> Answer<Self::WatchSnapshotsStream> {
        answer(self.control.watch_snapshots(request.into_inner()).await)
    }

    async fn delete_snapshot(&self, request: Request<v1::DeleteSnapshotRequest>) -> Answer<v1::DeleteSnapshotResponse> {
        self.detached(|control| async move {
            let deleted = control.volumes.delete_snapshot(request.into_inner()).await;
            deleted.map(|()| v1::DeleteSnapshotResponse {})
        })
        .await
    }

    async fn create_clone(&self, request: Request<v1::CloneVolumeRequest>) -> Answer<v1::Volume> {
        self.detached(|control| async move { control.volumes.clone_snapshot(request.into_inner()).await }).await
    }

    async fn revert(&self, request: Request<v1::RevertVolumeRequest>) -> Answer<v1::Volume> {
        self.detached(|control| async move { control.volumes.revert(request.into_inner()).await }).await
    }

    async fn grow(&self, request: Request<v1::GrowVolumeRequest>) -> Answer<v1::Volume> {
        self.detached(|control| async move { control.volumes.grow(request.into_inner()).await }).await
    }

    async fn add_replica(&self, request: Request<v1::AddReplicaRequest>) -> Answer<v1::Volume> {
        self.detached(|control| async move { control.volumes.add_replica(request.into_inner()).await }).await
    }

    async fn remove_replica(&self, request: Request<v1::RemoveReplicaRequest>) -> Answer<v1::Volume> {
        self.detached(|control| async move { control.volumes.remove_replica(request.into_inner()).await }).await
    }

    async fn replace_replica(&self, request: Request<v1::ReplaceReplicaRequest>) -> Answer<v1::Volume> {
        self.detached(|control| async move { control.volumes.replace_replica(request.into_inner()).await }).await
    }

    async fn set_rebuild(&self, request: Request<v1::SetRebuildRequest>) -> Answer<v1::Volume> {
        self.detached(|control| async move { control.volumes.set_rebuild(request.into_inner()).await }).await
    }

    async fn set_limits(&self, request: Request<v1::SetLimitsRequest>) -> Answer<v1::Volume> {
        self.detached(|control| async move { control.volumes.set_limits(request.into_inner()).await }).await
    }

    async fn export(&self, request: Request<v1::ExportVolumeRequest>) -> Answer<v1::Volume> {
        self.detached(|control| async move { control.volumes.export(request.into_inner()).await }).await
    }

    async fn unexport(&self, request: Request<v1::UnexportVolumeRequest>) -> Answer<v1::Volume> {
        self.detached(|control| async move { control.volumes.unexport(request.into_inner()).await }).await
    }

    async fn start(&self, request: Request<v1::StartVolumeRequest>) -> Answer<v1::Volume> {
        self.detached(|control| async move { control.volumes.start_again(&request.into_inner().volume).await }).await
    }

    async fn recover(&self, request: Request<v1::RecoverVolumeRequest>) -> Answer<v1::RecoverVolumeResponse> {
        self.detached(|control| async move { control.volumes.recover(request.into_inner()).await }).await
    }

    async fn delete(&self, request: Request<v1::DeleteVolumeRequest>) -> Answer<v1::DeleteVolumeResponse> {
        self.detached(|control| async move {
            let pending = control.volumes.delete(request.into_inner()).await;
            pending.map(|pending_nodes| v1::DeleteVolumeResponse { pending_nodes })
        })
        .await
    }
}

#[tonic::async_trait]
impl OperationService for Services {
    async fn list(&self, request: Request<v1::ListOperationsRequest>) -> Answer<v1::ListOperationsResponse> {
        answer(self.control.operations.list(request.into_inner()).await)
    }

    async fn get(&self, request: Request<v1::GetOperationRequest>) -> Answer<v1::Operation> {
        answer(self.control.operations.get(&request.into_inner().id).await)
    }

    type WatchStream = ChangeStream<v1::OperationChange>;

    async fn watch(&self, request: Request<v1::WatchOperationsRequest>) -> Answer<Self::WatchStream> {
        answer(self.control.operations.watch(request.into_inner()).await)
    }

    async fn cancel(&self, request: Request<v1::CancelOperationRequest>) -> Answer<v1::Operation> {
        self.detached(|control| async move { control.operations.cancel(&request.into_inner().id).await }).await
    }
}

fn volume_uuid(text: &str) -> Result<Uuid, ControlError> {
    Uuid::try_parse(text).map_err(|_| ControlError::invalid("volume_uuid", format!("`{text}` is not a UUID")))
}
