//! `ashlar backup`, `backup-target`, `standby` and `schedule`.

mod operation;
mod render;
mod schedule;
mod standby;
mod target;

use proto::v1::{
    CreateBackupRequest, DeleteBackupRequest, GetBackupRequest, ListBackupVolumesRequest, ListBackupsRequest,
    RestoreBackupRequest, VerifyBackupRequest,
};

pub(super) use self::schedule::run as schedule;
pub(super) use self::standby::run as standby;
pub(super) use self::target::run as target;
use crate::arguments::{BackupCommand, CreateBackup, RestoreBackup, WhichBackup};
use crate::client::{Client, answer};
use crate::output::{Output, Watch, look, look_on};

pub(super) async fn run(client: &Client, command: &BackupCommand, output: Output) -> anyhow::Result<()> {
    match command {
        BackupCommand::Create(options) => create(client, options, output).await,
        BackupCommand::List { volume: Some(volume), target, watch } => {
            list(client, target, volume, *watch, output).await
        }
        BackupCommand::List { volume: None, target, watch } => list_volumes(client, target, *watch, output).await,
        BackupCommand::Inspect(which) => {
            let (target, backup_volume, name) = parts(which);
            let found = answer(client.backups().get(GetBackupRequest { target, backup_volume, name }).await)?;
            output.print(&found, |backup, _| render::backup(backup))
        }
        BackupCommand::Delete { which, uuid, wait } => {
            let (target, backup_volume, name) = parts(which);
            let expected_uuid = uuid.clone().unwrap_or_default();
            let request = DeleteBackupRequest { target, backup_volume, name, expected_uuid };
            let begun = answer(client.backups().delete(request).await)?;
            operation::follow(client, begun, "deleted", *wait, output).await
        }
        BackupCommand::Verify { which, wait } => {
            let (target, backup_volume, name) = parts(which);
            let request = VerifyBackupRequest { target, backup_volume, name };
            let begun = answer(client.backups().verify(request).await)?;
            operation::follow(client, begun, "verified", *wait, output).await
        }
        BackupCommand::Restore(options) => restore(client, options, output).await,
    }
}

/// Target, volume and name.
fn parts(which: &WhichBackup) -> (String, String, String) {
    (which.target.clone(), which.volume.clone(), which.backup.clone())
}

async fn create(client: &Client, options: &CreateBackup, output: Output) -> anyhow::Result<()> {
    let request = CreateBackupRequest {
        volume: options.volume.clone(),
        snapshot: options.snapshot.clone(),
        target: options.target.clone(),
        name: options.name.clone().unwrap_or_default(),
        uuid: options.uuid.clone().unwrap_or_default(),
        backup_volume: options.backup_volume.clone().unwrap_or_default(),
        labels: options.labels.iter().cloned().collect(),
        compression: options.blocks.compression.map_or(String::new(), |compression| compression.word().to_owned()),
        block_size_bytes: options.blocks.block_size.0,
        full: options.full,
    };
    let begun = answer(client.backups().create(request).await)?;
    operation::follow(client, begun, "backed up", options.wait, output).await
}

async fn restore(client: &Client, options: &RestoreBackup, output: Output) -> anyhow::Result<()> {
    let (target, backup_volume, name) = parts(&options.which);
    let request = RestoreBackupRequest {
        target,
        backup_volume,
        name,
        volume: options.to.clone(),
        replace: options.replace,
        nodes: options.placement.nodes.clone(),
        replica_count: options.placement.replica_count,
        store: options.placement.store.clone().unwrap_or_default(),
        uuid: options.uuid.clone().unwrap_or_default(),
    };
    let begun = answer(client.backups().restore(request).await)?;
    operation::follow(client, begun, "restored", options.wait, output).await
}

async fn list(client: &Client, target: &str, volume: &str, watch: Watch, output: Output) -> anyhow::Result<()> {
    let fetch = async || {
        let (target, backup_volume) = (target.to_owned(), volume.to_owned());
        Ok(client.list_backups(ListBackupsRequest { target, backup_volume, ..Default::default() }).await?.into())
    };
    let follow = async |_: &Vec<_>| client.follow_backups(target, volume).await.map(Some);
    look_on(watch, output, fetch, follow, |backups: &Vec<_>, width| render::backups(target, volume, backups, width))
        .await
}

async fn list_volumes(client: &Client, target: &str, watch: Watch, output: Output) -> anyhow::Result<()> {
    let fetch = async || {
        let request = ListBackupVolumesRequest { target: target.to_owned(), ..Default::default() };
        Ok(client.list_backup_volumes(request).await?.into())
    };
    look(watch, output, fetch, |volumes: &Vec<_>, width| render::volumes(target, volumes, width)).await
}
