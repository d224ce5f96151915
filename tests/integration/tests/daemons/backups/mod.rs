//! Backups with real daemons: to a folder and back, over kills and outages.

mod gateway;
mod many;
mod outages;
mod restores;
mod roles;
mod schedules;
mod sources;
mod standbys;
mod unmounted;
mod verbs;
mod watches;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::ensure;
use cli::client::answer;
use integration::{Exposition, Host, House, MIB, PATIENCE, export_of, probe};
use proto::v1::backup_schedule_service_client::BackupScheduleServiceClient;
use proto::v1::backup_service_client::BackupServiceClient;
use proto::v1::backup_target_service_client::BackupTargetServiceClient;
use proto::v1::standby_service_client::StandbyServiceClient;
use proto::v1::{
    BackupTarget, CreateBackupRequest, CreateBackupTargetRequest, GetOperationRequest, Operation, OperationState,
    RestoreBackupRequest, Snapshot, SnapshotVolumeRequest,
};
use tonic::Status;
use tonic::transport::Channel;

const SIZE: u64 = 32 * MIB;

/// Daemons whose backups go to a folder.
struct Depot {
    house: House,
    host: Host,
    folder: PathBuf,
}

impl Depot {
    /// Running daemons with a store each and the target `depot`. `extra` is added to their configurations.
    async fn open(names: &[&str], extra: &str) -> anyhow::Result<Self> {
        let mut house = House::prepare_with(names, extra)?;
        house.cluster.start().await?;
        let folder = house.folder().join("depot");
        std::fs::create_dir(&folder)?;
        for index in 0..names.len() {
            house.create_store(index, "main", 512 * MIB).await?;
            create_target(&house, index, "depot", &folder).await?;
        }
        Ok(Self { house, host: Host::new()?, folder })
    }

    async fn backups(&self, index: usize) -> anyhow::Result<BackupServiceClient<Channel>> {
        Ok(BackupServiceClient::connect(self.house.cluster.nodes()[index].server()).await?)
    }

    async fn standbys(&self, index: usize) -> anyhow::Result<StandbyServiceClient<Channel>> {
        Ok(StandbyServiceClient::connect(self.house.cluster.nodes()[index].server()).await?)
    }

    async fn schedules(&self) -> anyhow::Result<BackupScheduleServiceClient<Channel>> {
        Ok(BackupScheduleServiceClient::connect(self.house.cluster.nodes()[0].server()).await?)
    }

    /// Writes to a volume of the first daemon.
    async fn write(&self, volume: &str, offset: u64, value: u8, length: u64) -> anyhow::Result<()> {
        let volume = self.house.volume(volume).await?;
        let address = self.house.cluster.nodes()[0].addresses().nvmf;
        self.host.write(address, &export_of(&volume)?.nqn, offset, value, length as usize).await
    }

    /// All of a volume of a daemon.
    async fn content(&self, index: usize, volume: &str) -> anyhow::Result<Vec<u8>> {
        let request = proto::v1::GetVolumeRequest { volume: volume.to_owned() };
        let volume = answer(self.house.client(index).await?.volumes().get(request).await)?;
        let address = self.house.cluster.nodes()[index].addresses().nvmf;
        let mut content = Vec::new();
        for offset in (0..volume.size_bytes).step_by(4 << 20) {
            content.extend(self.host.read(address, &export_of(&volume)?.nqn, offset, 4 << 20).await?);
        }
        Ok(content)
    }

    async fn snapshot(&self, volume: &str, name: &str) -> anyhow::Result<Snapshot> {
        let request = SnapshotVolumeRequest { volume: volume.to_owned(), name: name.to_owned(), ..Default::default() };
        answer(self.house.client(0).await?.volumes().snapshot(request).await)
    }

    async fn back_up(&self, snapshot: &str, name: &str) -> anyhow::Result<Operation> {
        answer(self.backups(0).await?.create(backup_request(snapshot, name)).await)
    }

    async fn restore(&self, index: usize, name: &str, volume: &str) -> anyhow::Result<Operation> {
        answer(self.backups(index).await?.restore(restore_request(name, volume)).await)
    }

    /// Waits until an operation is as wanted.
    async fn wait_for(&self, index: usize, id: &str, wanted: impl Fn(&Operation) -> bool) -> anyhow::Result<Operation> {
        let limit = Instant::now() + PATIENCE;
        loop {
            let request = GetOperationRequest { id: id.to_owned() };
            let found = answer(self.house.client(index).await?.operations().get(request).await)?;
            if wanted(&found) {
                return Ok(found);
            }
            ensure!(Instant::now() < limit, "the operation stays {found:#?}\n{}", self.house.logs());
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }

    async fn wait_until_done(&self, index: usize, operation: &Operation) -> anyhow::Result<Operation> {
        let ended = self.wait_for(index, &operation.id, |found| found.ended_at_unix_ms.is_some()).await?;
        ensure!(ended.state() == OperationState::Succeeded, "{ended:#?}\n{}", self.house.logs());
        Ok(ended)
    }

    /// Waits until a metric of a daemon is as wanted.
    async fn wait_for_metric(
        &self,
        index: usize,
        name: &str,
        labels: &[(&str, &str)],
        wanted: impl Fn(f64) -> bool,
    ) -> anyhow::Result<()> {
        let limit = Instant::now() + PATIENCE;
        loop {
            let page = probe(self.house.cluster.nodes()[index].addresses().health, "/metrics")?;
            let found = Exposition::parse(&page.body)?.get(name, labels);
            if found.is_some_and(&wanted) {
                return Ok(());
            }
            ensure!(Instant::now() < limit, "{name}{labels:?} stays {found:?}\n{}", self.house.logs());
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }

    /// Locks that kills have left are as old as they have to be to count no more.
    fn expire_locks(&self) -> anyhow::Result<()> {
        let old = std::time::SystemTime::now() - std::time::Duration::from_secs(600);
        for path in files_below(&self.folder, "lck")? {
            std::fs::File::options().write(true).open(path)?.set_modified(old)?;
        }
        Ok(())
    }

    /// How many blocks the target has.
    fn blocks(&self) -> anyhow::Result<usize> {
        Ok(files_below(&self.folder, "blk")?.len())
    }
}

fn backup_request(snapshot: &str, name: &str) -> CreateBackupRequest {
    CreateBackupRequest {
        volume: "vol".to_owned(),
        snapshot: snapshot.to_owned(),
        target: "depot".to_owned(),
        name: name.to_owned(),
        labels: [("who".to_owned(), "a test".to_owned())].into(),
        ..CreateBackupRequest::default()
    }
}

fn restore_request(name: &str, volume: &str) -> RestoreBackupRequest {
    RestoreBackupRequest {
        target: "depot".to_owned(),
        backup_volume: "vol".to_owned(),
        name: name.to_owned(),
        volume: volume.to_owned(),
        ..RestoreBackupRequest::default()
    }
}

async fn targets(house: &House, index: usize) -> anyhow::Result<BackupTargetServiceClient<Channel>> {
    Ok(BackupTargetServiceClient::connect(house.cluster.nodes()[index].server()).await?)
}

async fn create_target(house: &House, index: usize, name: &str, folder: &Path) -> anyhow::Result<BackupTarget> {
    let url = format!("vfs://{}", folder.display());
    let request = CreateBackupTargetRequest { name: name.to_owned(), url, ..CreateBackupTargetRequest::default() };
    answer(targets(house, index).await?.create(request).await)
}

fn files_below(folder: &Path, extension: &str) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files_below(&path, extension)?);
        } else if path.extension().is_some_and(|of| of == extension) {
            found.push(path);
        }
    }
    Ok(found)
}

/// Memory that a daemon has in RAM, in KiB.
fn resident_kib(pid: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    Ok(line.and_then(|line| line.split_whitespace().next()).unwrap_or("0").parse()?)
}

/// The reason that a call was refused for.
fn reason<T: std::fmt::Debug>(result: Result<T, Status>) -> anyhow::Result<String> {
    let status = match result {
        Err(status) => status,
        Ok(answer) => anyhow::bail!("it was not refused: {answer:?}"),
    };
    Ok(proto::error::info(&status).map(|info| info.reason).unwrap_or_default())
}
