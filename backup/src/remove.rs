//! Removal of backups, and of blocks that nothing refers to any more.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use futures_util::StreamExt;

use crate::block::Checksum;
use crate::error::{Error, Kind, Result, local};
use crate::format::backup::{BackupConfig, BlockEntry};
use crate::format::layout::{self, VolumeFolder};
use crate::lock::{Lock, LockType};
use crate::records::files;
use crate::records::spool::Reader;
use crate::source::OpenStore;
use crate::target::Content;
use crate::target::client::{Client, off_thread};

/// References that are held at once: 16 MiB of checksums, and what a set of them needs besides.
const REFERENCES_AT_ONCE: u64 = (16 << 20) / 32;

/// What a removal did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Whether the backup was there.
    pub existed: bool,
    /// Blocks that were removed.
    pub blocks: u64,
    /// Blocks that are left.
    pub kept: u64,
    /// Why no blocks were collected, if none were.
    pub postponed: Option<String>,
}

/// Removes a backup, if one is given and there, and all blocks of the volume without a reference. Lists are kept in `scratch` meanwhile.
///
/// One attempt: it is done again, with the same end, after an outage or a restart.
///
/// # Errors
/// Any: what is not terminal is worth another attempt.
pub async fn remove(target: &dyn OpenStore, volume: &str, backup: Option<&str>, scratch: &Path) -> Result<Removed> {
    let client = Client::new(target.open().await?);
    let folder = VolumeFolder::new(volume)?;
    if let Some(name) = backup {
        folder.backup(name)?;
    }
    // A volume that is not there has nothing to remove, not even a lock.
    match client.volume(&folder).await {
        Err(error) if error.kind() == Kind::NotFound => {
            if client.folder(&folder.backups()).await?.objects.is_empty() {
                return Ok(Removed::default());
            }
        }
        other => other.map(|_| ())?,
    }
    files::open_folder(scratch)?;
    let lock = Lock::acquire(&client, &folder, LockType::Delete).await?;
    let collector = Collector { client: &client, folder: &folder, lock: &lock, scratch };
    let removed = collector.run(backup).await;
    lock.release().await;
    files::remove_folder(scratch)?;
    removed
}

/// A backup that stays.
struct Kept {
    config: BackupConfig,
    list: PathBuf,
    blocks: u64,
}

struct Collector<'a> {
    client: &'a Client,
    folder: &'a VolumeFolder,
    lock: &'a Lock,
    scratch: &'a Path,
}

impl Collector<'_> {
    async fn run(&self, backup: Option<&str>) -> Result<Removed> {
        let mut removed = Removed::default();
        if let Some(name) = backup {
            let key = self.folder.backup(name)?;
            removed.existed = self.client.head(&key).await?.is_some();
            self.lock.check()?;
            self.client.delete(&key).await?;
        }
        let names = self.names().await?;
        self.doubt(&names, backup).await?;
        let mut kept = Vec::new();
        for (index, name) in names.keys().enumerate() {
            match self.load(name, index).await? {
                Ok(backup) => kept.push(backup),
                Err(why) => removed.postponed = removed.postponed.or(Some(why)),
            }
        }
        if removed.postponed.is_none() && self.names().await? != names {
            removed.postponed = Some("a backup came meanwhile".to_owned());
        }
        if removed.postponed.is_none() {
            self.collect(&kept, &mut removed).await?;
            self.client.sweep(self.folder.folder()).await?;
        }
        self.update_volume(&kept, &removed).await?;
        Ok(removed)
    }

    /// The volume's backups, and when their files were last written.
    async fn names(&self) -> Result<BTreeMap<String, std::time::SystemTime>> {
        let listed = self.client.folder(&self.folder.backups()).await?.objects;
        let names = listed
            .iter()
            .filter_map(|object| layout::backup_of(&object.key).map(|name| (name.to_owned(), object.modified)));
        Ok(names.collect())
    }

    /// A listing that lacks the last backup, which is there, is no listing to remove blocks by.
    async fn doubt(&self, names: &BTreeMap<String, std::time::SystemTime>, removed: Option<&str>) -> Result<()> {
        let Some(volume) = self.client.find_volume(self.folder).await? else { return Ok(()) };
        let last = volume.last_backup.as_str();
        if last.is_empty() || Some(last) == removed || names.contains_key(last) || !layout::is_name(last) {
            return Ok(());
        }
        match self.client.head(&self.folder.backup(last)?).await? {
            None => Ok(()),
            Some(_) => Err(Error::new(Kind::Server, format!("backup {last} is there, but not listed"))),
        }
    }

    /// A backup with its list, or why its references are not known.
    async fn load(&self, name: &str, index: usize) -> Result<Result<Kept, String>> {
        let list = self.scratch.join(format!("{index}.list"));
        match self.client.backup(self.folder, name, Some(&list)).await {
            Ok((config, _)) if !config.is_complete() => Ok(Err(format!("backup {name} is in progress"))),
            Ok((config, blocks)) => Ok(Ok(Kept { config, list, blocks: blocks.count })),
            Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::NotFound) => {
                Ok(Err(format!("backup {name} cannot be read: {}", error.reason())))
            }
            Err(error) => Err(error),
        }
    }

    /// Removes blocks without a reference, part by part of the checksums' range.
    async fn collect(&self, kept: &[Kept], removed: &mut Removed) -> Result<()> {
        let references: u64 = kept.iter().map(|backup| backup.blocks).sum();
        // Whole first bytes, since blocks are listed by them.
        let parts = references.div_ceil(REFERENCES_AT_ONCE).clamp(1, 256).next_power_of_two();
        let width = 256 / parts;
        for part in 0..parts {
            let range = part * width..(part + 1) * width;
            let lists: Vec<_> = kept.iter().map(|backup| backup.list.clone()).collect();
            let wanted = range.clone();
            let references = off_thread(move || references_of(&lists, &wanted)).await?;
            // One part is all: then one listing is enough.
            let folders: Vec<_> = if parts == 1 {
                vec![self.folder.blocks()]
            } else {
                range
                    .filter_map(|first| u8::try_from(first).ok())
                    .map(|first| self.folder.blocks_beginning(first))
                    .collect()
            };
            for folder in folders {
                self.collect_folder(&folder, &references, removed).await?;
            }
        }
        Ok(())
    }

    async fn collect_folder(&self, folder: &str, references: &HashSet<Checksum>, removed: &mut Removed) -> Result<()> {
        let mut listing = self.client.store().list(folder);
        while let Some(object) = listing.next().await {
            let object = object?;
            // What has no name of a block is not ours to judge.
            let Some(checksum) = layout::block_of(&object.key) else { continue };
            if references.contains(&checksum) || object.key != self.folder.block(&checksum) {
                removed.kept += 1;
                continue;
            }
            self.lock.check()?;
            self.client.delete(&object.key).await?;
            removed.blocks += 1;
        }
        Ok(())
    }

    /// What the volume's file says of its backups. The block count is known only after a collection.
    async fn update_volume(&self, kept: &[Kept], removed: &Removed) -> Result<()> {
        let Some(mut volume) = self.client.find_volume(self.folder).await? else { return Ok(()) };
        let before = volume.to_bytes();
        if removed.postponed.is_none() {
            volume.block_count = removed.kept;
        }
        if !kept.iter().any(|backup| backup.config.name == volume.last_backup) {
            let order = |backup: &&Kept| (backup.config.snapshot_created.clone(), backup.config.created.clone());
            let newest = kept.iter().max_by_key(order);
            volume.last_backup = newest.map_or(String::new(), |backup| backup.config.name.clone());
            volume.last_backup_at = newest.map_or(String::new(), |backup| backup.config.snapshot_created.clone());
        }
        if volume.to_bytes() == before {
            return Ok(());
        }
        self.lock.check()?;
        self.client.put(&self.folder.config(), Content::from(volume.to_bytes())).await
    }
}

/// The references of these lists whose first byte is in `range`.
fn references_of(lists: &[PathBuf], range: &std::ops::Range<u64>) -> Result<HashSet<Checksum>> {
    let mut references = HashSet::new();
    for path in lists {
        let damaged = || Error::new(Kind::Local, format!("{}: no whole list", path.display()));
        let list = Reader::<BlockEntry>::open(path)?.ok_or_else(damaged)?;
        for entry in list {
            let checksum = entry.map_err(local(path.display()))?.checksum;
            if range.contains(&u64::from(checksum.0[0])) {
                references.insert(checksum);
            }
        }
    }
    Ok(references)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::spool::Writer;

    #[test]
    fn parts_of_the_range_come_to_all_references() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("list");
        let mut writer = Writer::create(&path).expect("a file");
        for n in 0..1000_u64 {
            let entry = BlockEntry { offset: n, checksum: Checksum::of(&(n % 700).to_le_bytes()) };
            writer.push(&entry).expect("room");
        }
        writer.finish().expect("finished");
        let lists = [path.clone(), path];
        let all = references_of(&lists, &(0..256)).expect("read");
        assert_eq!(all.len(), 700);
        let parts = (0..8).map(|part| references_of(&lists, &(part * 32..(part + 1) * 32)).expect("read").len());
        assert_eq!(parts.sum::<usize>(), 700);
    }
}
