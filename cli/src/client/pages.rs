//! Whole lists, page by page.

use proto::v1::{
    Backup, BackupSchedule, BackupTarget, BackupVolume, Engine, ListBackupSchedulesRequest, ListBackupTargetsRequest,
    ListBackupVolumesRequest, ListBackupsRequest, ListEnginesRequest, ListLvolsRequest, ListLvolsResponse,
    ListOperationsRequest, ListOrphansRequest, ListOrphansResponse, ListReplicasRequest, ListReplicasResponse,
    ListSnapshotsRequest, ListStandbysRequest, ListStoresRequest, ListVolumesRequest, Operation, Snapshot, Standby,
    Store, Volume,
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

    /// All backup targets of the node.
    pub async fn list_targets(&self) -> anyhow::Result<Vec<BackupTarget>> {
        Ok(all_pages!(self.targets(), ListBackupTargetsRequest::default(), targets).targets)
    }

    /// All backups that a request asks for.
    pub async fn list_backups(&self, request: ListBackupsRequest) -> anyhow::Result<Vec<Backup>> {
        Ok(all_pages!(self.backups(), request, backups).backups)
    }

    /// All volumes of a target.
    pub async fn list_backup_volumes(&self, request: ListBackupVolumesRequest) -> anyhow::Result<Vec<BackupVolume>> {
        let mut request = request;
        let mut all = Vec::new();
        loop {
            let page = answer(self.backups().list_volumes(request.clone()).await)?;
            all.extend(page.volumes);
            if page.next_page_token.is_empty() {
                return Ok(all);
            }
            request.page_token = page.next_page_token;
        }
    }

    /// All standbys of the node.
    pub async fn list_standbys(&self) -> anyhow::Result<Vec<Standby>> {
        Ok(all_pages!(self.standbys(), ListStandbysRequest::default(), standbys).standbys)
    }

    /// All schedules of the node.
    pub async fn list_schedules(&self) -> anyhow::Result<Vec<BackupSchedule>> {
        Ok(all_pages!(self.schedules(), ListBackupSchedulesRequest::default(), schedules).schedules)
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
