//! What targets have: volumes, and their backups.

use backup::format::backup::BackupConfig;
use backup::format::volume::VolumeConfig;
use backup::inspect::{self, Listed};
use proto::v1;

use super::Backups;
use super::errors::control_error;
use crate::control::error::ControlError;
use crate::control::pages::{self, Wanted};
use crate::control::streams::ChangeStream;

/// The label with the identity of the operation that made a backup, and those that tell where it comes from.
pub(super) const UUID_LABEL: &str = "ashlar.uuid";
pub(super) const SNAPSHOT_LABEL: &str = "ashlar.snapshot";

impl Backups {
    /// A page of the volumes that a target has.
    pub(crate) async fn list_volumes(
        &self,
        request: v1::ListBackupVolumesRequest,
    ) -> Result<v1::ListBackupVolumesResponse, ControlError> {
        let target = self.targets.find(&request.target)?;
        let opener = self.targets.opener(target.uuid);
        let names = inspect::volumes(&opener).await.map_err(|error| control_error(&error))?;
        // Only those of the page are read.
        let named = names.into_iter().map(|name| v1::BackupVolume { name, ..v1::BackupVolume::default() });
        let wanted = Wanted { size: request.page_size, token: request.page_token };
        let list = format!("backup volumes of {}", target.uuid);
        let (mut volumes, next_page_token) =
            pages::page(&list, named.collect(), |volume: &v1::BackupVolume| [&volume.name], &wanted)?;
        for volume in &mut volumes {
            match inspect::volume(&opener, &volume.name).await {
                Ok(config) => *volume = describe_volume(config),
                Err(error) if error.is_terminal() => volume.error = error.to_string(),
                Err(error) => return Err(control_error(&error)),
            }
        }
        Ok(v1::ListBackupVolumesResponse { volumes, next_page_token })
    }

    /// A page of the backups of a volume.
    pub(crate) async fn list(&self, request: v1::ListBackupsRequest) -> Result<v1::ListBackupsResponse, ControlError> {
        let target = self.targets.find(&request.target)?;
        let (backups, resource_version) = self.watched.list(&target, &request.backup_volume).await?;
        let wanted = Wanted { size: request.page_size, token: request.page_token };
        let list = format!("backups of {} in {}", request.backup_volume, target.uuid);
        let (backups, next_page_token) = pages::page(&list, backups, |backup: &v1::Backup| [&backup.name], &wanted)?;
        Ok(v1::ListBackupsResponse { backups, next_page_token, resource_version })
    }

    /// The backups of a volume, then what becomes of them.
    pub(crate) async fn watch(
        &self,
        request: v1::WatchBackupsRequest,
    ) -> Result<ChangeStream<v1::BackupChange>, ControlError> {
        let target = self.targets.find(&request.target)?;
        self.watched.watch(&target, &request.backup_volume, &request.resource_version).await
    }

    /// One backup.
    pub(crate) async fn get(&self, request: v1::GetBackupRequest) -> Result<v1::Backup, ControlError> {
        let target = self.targets.find(&request.target)?;
        let opener = self.targets.opener(target.uuid);
        let found = inspect::backup(&opener, &request.backup_volume, &request.name).await;
        let found = found.map_err(|error| control_error(&error))?;
        Ok(describe(&target.name, &request.backup_volume, found))
    }
}

fn describe_volume(config: VolumeConfig) -> v1::BackupVolume {
    let compression = config.compression().map(|compression| compression.name().to_owned());
    v1::BackupVolume {
        size_bytes: config.size,
        created_at: config.created,
        last_backup: config.last_backup,
        last_backup_at: config.last_backup_at,
        blocks: config.block_count,
        labels: config.labels.unwrap_or_default(),
        error: compression.as_ref().err().map_or_else(String::new, ToString::to_string),
        compression: compression.unwrap_or_default(),
        name: config.name,
    }
}

pub(super) fn describe(target: &str, volume: &str, listed: Listed) -> v1::Backup {
    let backup = v1::Backup {
        name: listed.name,
        backup_volume: volume.to_owned(),
        target: target.to_owned(),
        blocks: listed.blocks,
        ..v1::Backup::default()
    };
    match listed.config {
        Ok(config) => describe_config(config, backup),
        Err(error) => v1::Backup { error: error.to_string(), ..backup },
    }
}

fn describe_config(config: BackupConfig, backup: v1::Backup) -> v1::Backup {
    let (block_size, compression) = (config.block_size(), config.compression());
    let error = block_size.as_ref().err().or(compression.as_ref().err()).map_or_else(String::new, ToString::to_string);
    let labels = config.labels.clone().unwrap_or_default();
    v1::Backup {
        complete: config.is_complete(),
        created_at: config.created,
        snapshot: config.snapshot,
        snapshot_created_at: config.snapshot_created,
        size_bytes: config.size,
        uploaded_bytes: config.newly_uploaded.saturating_add(config.reuploaded),
        block_size_bytes: block_size.unwrap_or_default(),
        compression: compression.map_or_else(|_| String::new(), |compression| compression.name().to_owned()),
        incremental: config.is_incremental,
        uuid: labels.get(UUID_LABEL).cloned().unwrap_or_default(),
        labels,
        error,
        ..backup
    }
}
