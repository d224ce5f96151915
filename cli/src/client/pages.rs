//! Whole lists, page by page.

use proto::v1::{
    Engine, ListEnginesRequest, ListLvolsRequest, ListLvolsResponse, ListOperationsRequest, ListOrphansRequest,
    ListOrphansResponse, ListReplicasRequest, ListReplicasResponse, ListSnapshotsRequest, ListStoresRequest,
    ListVolumesRequest, Operation, Snapshot, Store, Volume,
};

use super::{Client, answer};

/// Asks for page after page. What else an answer says is that of the first one.
macro_rules! all_pages {
    ($client:expr, $request:expr, $items:ident) => {{
        let mut request = $request;
        let mut all = answer($client.list(request.clone()).await)?;
        while !all.next_page_token.is_empty() {
            request.page_token = std::mem::take(&mut all.next_page_token);
            let page = answer($client.list(request.clone()).await)?;
            all.$items.extend(page.$items);
            all.next_page_token = page.next_page_token;
        }
        all
    }};
}

impl Client {
    /// All volumes of the node.
    pub async fn list_volumes(&self) -> anyhow::Result<Vec<Volume>> {
        Ok(all_pages!(self.volumes(), ListVolumesRequest::default(), volumes).volumes)
    }

    /// All stores of the node.
    pub async fn list_stores(&self) -> anyhow::Result<Vec<Store>> {
        Ok(all_pages!(self.stores(), ListStoresRequest::default(), stores).stores)
    }

    /// All lvols that a request asks for.
    pub async fn list_lvols(&self, request: ListLvolsRequest) -> anyhow::Result<ListLvolsResponse> {
        Ok(all_pages!(self.lvols(), request, lvols))
    }

    /// All replicas that a request asks for.
    pub async fn list_replicas(&self, request: ListReplicasRequest) -> anyhow::Result<ListReplicasResponse> {
        Ok(all_pages!(self.replicas(), request, replicas))
    }

    /// All engines of the node.
    pub async fn list_engines(&self) -> anyhow::Result<Vec<Engine>> {
        Ok(all_pages!(self.engines(), ListEnginesRequest::default(), engines).engines)
    }

    /// All that belongs to nobody on the node.
    pub async fn list_orphans(&self) -> anyhow::Result<ListOrphansResponse> {
        Ok(all_pages!(self.orphans(), ListOrphansRequest::default(), orphans))
    }

    /// All operations that a request asks for.
    pub async fn list_operations(&self, request: ListOperationsRequest) -> anyhow::Result<Vec<Operation>> {
        Ok(all_pages!(self.operations(), request, operations).operations)
    }

    /// All snapshots of a volume.
    pub async fn list_snapshots(&self, request: ListSnapshotsRequest) -> anyhow::Result<Vec<Snapshot>> {
        let mut request = request;
        let mut all = Vec::new();
        loop {
            let page = answer(self.volumes().list_snapshots(request.clone()).await)?;
            all.extend(page.snapshots);
            if page.next_page_token.is_empty() {
                return Ok(all);
            }
            request.page_token = page.next_page_token;
        }
    }
}
