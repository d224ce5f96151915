//! What a target has: volumes, and their backups.

use std::collections::BTreeMap;
use std::time::SystemTime;

use crate::error::{Error, Kind, Result};
use crate::format::backup::BackupConfig;
use crate::format::layout::{self, VolumeFolder};
use crate::format::volume::VolumeConfig;
use crate::source::OpenStore;
use crate::target::client::Client;

/// A backup as a listing has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// All of its file but the blocks, or why it cannot be read.
    pub config: Result<BackupConfig>,
    /// How many blocks it has.
    pub blocks: u64,
}

/// The names of all volumes of a target, in order.
///
/// # Errors
/// Any: a part of a list is no list.
pub async fn volumes(target: &dyn OpenStore) -> Result<Vec<String>> {
    let client = Client::new(target.open().await?);
    let mut names = Vec::new();
    for first in client.folder(layout::VOLUMES).await?.folders {
        let outer = format!("{}/{first}", layout::VOLUMES);
        for second in client.folder(&outer).await?.folders {
            let inner = format!("{outer}/{second}");
            let volumes = client.folder(&inner).await?.folders.into_iter();
            // What does not lie where its name belongs is no volume.
            let belongs = |name: &String| {
                VolumeFolder::new(name).is_ok_and(|folder| folder.folder() == format!("{inner}/{name}"))
            };
            names.extend(volumes.filter(belongs));
        }
    }
    names.sort();
    Ok(names)
}

/// What the store knows of a volume.
///
/// # Errors
/// `NotFound` when the store does not have it.
pub async fn volume(target: &dyn OpenStore, name: &str) -> Result<VolumeConfig> {
    Client::new(target.open().await?).volume(&VolumeFolder::new(name)?).await
}

/// The backups of a volume, in the order of their names. One that cannot be read is listed with the reason.
///
/// # Errors
/// Outages: a part of a list is no list.
pub async fn backups(target: &dyn OpenStore, volume: &str) -> Result<Vec<Listed>> {
    Known::default().look(target, volume).await
}

/// What was read of the backups of a volume, so that only files which are new or were written since are read again.
#[derive(Debug, Default)]
pub struct Known(BTreeMap<String, (Written, Listed)>);

/// When a file was written, and its size: a file that is written again in the same second has another one, since what is in progress has no
/// blocks and no time of its end.
type Written = (SystemTime, u64);

impl Known {
    /// The backups of a volume, as [`backups`] has them.
    ///
    /// # Errors
    /// Outages: a part of a list is no list.
    pub async fn look(&mut self, target: &dyn OpenStore, volume: &str) -> Result<Vec<Listed>> {
        let client = Client::new(target.open().await?);
        let folder = VolumeFolder::new(volume)?;
        let listed = client.folder(&folder.backups()).await?.objects;
        let mut backups = BTreeMap::new();
        for object in &listed {
            let Some(name) = layout::backup_of(&object.key) else { continue };
            let written = (object.modified, object.size);
            let known = self.0.get(name).filter(|(read, found)| *read == written && found.config.is_ok());
            let found = match known {
                Some((_, found)) => Some(found.clone()),
                None => read(&client, &folder, name).await?,
            };
            if let Some(found) = found {
                backups.insert(name.to_owned(), (written, found));
            }
        }
        self.0 = backups;
        Ok(self.0.values().map(|(_, found)| found.clone()).collect())
    }
}

/// A backup that was listed; None if it was removed since.
async fn read(client: &Client, folder: &VolumeFolder, name: &str) -> Result<Option<Listed>> {
    let (config, blocks) = match client.backup(folder, name, None).await {
        Ok((config, blocks)) => (Ok(config), blocks.count),
        Err(error) if error.kind() == Kind::NotFound => return Ok(None),
        Err(error) if error.is_terminal() => (Err(error), 0),
        Err(error) => return Err(error),
    };
    Ok(Some(Listed { name: name.to_owned(), config, blocks }))
}

/// One backup of a volume.
///
/// # Errors
/// `NotFound` when the store does not have it.
pub async fn backup(target: &dyn OpenStore, volume: &str, name: &str) -> Result<Listed> {
    let client = Client::new(target.open().await?);
    let (config, blocks) = client.backup(&VolumeFolder::new(volume)?, name, None).await?;
    Ok(Listed { name: name.to_owned(), config: Ok(config), blocks: blocks.count })
}

/// The newest complete backup of a volume: the one that its file names, or, if that is gone, the newest that is listed.
pub(crate) async fn newest(client: &Client, folder: &VolumeFolder) -> Result<String> {
    let volume = client.volume(folder).await?;
    if !volume.last_backup.is_empty() {
        match client.backup(folder, &volume.last_backup, None).await {
            Ok((config, _)) if config.is_complete() => return Ok(config.name),
            // Not complete, not there or not readable: others may be.
            Err(error) if !error.is_terminal() => return Err(error),
            _ => {}
        }
    }
    let listed = client.folder(&folder.backups()).await?.objects;
    let mut newest: Option<BackupConfig> = None;
    for name in listed.iter().filter_map(|object| layout::backup_of(&object.key)) {
        let config = match client.backup(folder, name, None).await {
            Ok((config, _)) if config.is_complete() => config,
            Err(error) if !error.is_terminal() => return Err(error),
            _ => continue,
        };
        let order = |config: &BackupConfig| (config.snapshot_created.clone(), config.created.clone());
        if newest.as_ref().is_none_or(|newest| order(newest) < order(&config)) {
            newest = Some(config);
        }
    }
    let none = || Error::new(Kind::NotFound, format!("volume {}: the store lists no complete backup", folder.volume()));
    newest.map(|config| config.name).ok_or_else(none)
}
