//! What belongs to nobody.

use proto::v1;
use proto::v1::orphan_service_server::OrphanService;
use tonic::Request;

use super::{Answer, Services, answer};
use crate::control::ChangeStream;

#[tonic::async_trait]
impl OrphanService for Services {
    async fn list(&self, request: Request<v1::ListOrphansRequest>) -> Answer<v1::ListOrphansResponse> {
        answer(self.control.list_orphans(request.into_inner()).await)
    }

    type WatchStream = ChangeStream<v1::OrphanChange>;

    async fn watch(&self, request: Request<v1::WatchOrphansRequest>) -> Answer<Self::WatchStream> {
        answer(self.control.watch_orphans(request.into_inner()).await)
    }

    async fn adopt(&self, request: Request<v1::AdoptOrphanRequest>) -> Answer<v1::AdoptOrphanResponse> {
        self.detached(|control| async move {
            let volume = control.orphans.adopt(request.into_inner()).await;
            volume.map(|volume| v1::AdoptOrphanResponse { volume_uuid: volume.to_string() })
        })
        .await
    }

    async fn delete(&self, request: Request<v1::DeleteOrphanRequest>) -> Answer<v1::DeleteOrphanResponse> {
        self.detached(|control| async move {
            control.orphans.delete(request.into_inner()).await.map(|()| v1::DeleteOrphanResponse {})
        })
        .await
    }

    async fn list_claims(&self, request: Request<v1::ListClaimsRequest>) -> Answer<v1::ListClaimsResponse> {
        answer(self.control.orphans.list_claims(request.into_inner()))
    }
}
