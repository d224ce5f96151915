//! One attempt of a backup: all steps, of which those that were done before come to nothing.

use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::SystemTime;

use super::blocks::{Mover, UnderWay};
use super::offsets::Offsets;
use super::{BASE, BackupJob, Base, DELTA, FINAL, Outcome};
use crate::delta::{Done, Sums};
use crate::error::{Error, Kind, Result, invalid, local};
use crate::format::backup::{BackupConfig, BlockEntry};
use crate::format::layout::VolumeFolder;
use crate::format::time;
use crate::format::volume::VolumeConfig;
use crate::lock::{Lock, LockType};
use crate::pace::Pace;
use crate::records::journal::{self, Journal};
use crate::records::spool::Reader;
use crate::records::{files, lists};
use crate::source::{OpenStore, SnapshotInfo, Source};
use crate::target::Content;
use crate::target::client::{Client, length_of, off_thread};

/// What an attempt works with.
struct Work<'a> {
    client: &'a Client,
    folder: &'a VolumeFolder,
    lock: &'a Lock,
    source: &'a dyn Source,
    snapshot: SnapshotInfo,
}

/// What is in the store under the backup's name.
enum Found {
    Nothing,
    InProgress,
    Complete(Box<BackupConfig>),
}

impl BackupJob {
    pub(super) async fn attempt(&mut self, target: &dyn OpenStore, source: &dyn Source) -> Result<()> {
        // Before anything is asked of the store: a snapshot that is gone ends the job, whatever the store does.
        let snapshot = source.snapshot().await?;
        let block_size = self.record.request.block_size;
        if snapshot.size == 0 || !snapshot.size.is_multiple_of(block_size) {
            let text = format!("a volume of {} bytes is no multiple of blocks of {block_size}", snapshot.size);
            return Err(invalid(text));
        }
        let client = Client::new(target.open().await?);
        let folder = VolumeFolder::new(&self.record.request.volume)?;
        let lock = Lock::acquire(&client, &folder, LockType::Shared).await?;
        let work = Work { client: &client, folder: &folder, lock: &lock, source, snapshot };
        let outcome = self.under_lock(&work).await;
        lock.release().await;
        self.end(outcome?)
    }

    async fn under_lock(&mut self, work: &Work<'_>) -> Result<Outcome> {
        let mut volume = self.volume(work).await?;
        let delta = self.folder.join(DELTA);
        let mut sums = Sums::default();
        let mut journal = Journal::open(&delta, |done: Done| sums.add(&done)).map_err(local(delta.display()))?;
        match self.found(work).await? {
            Found::Complete(config) => return self.complete(work, &mut volume, &config, sums.new_blocks).await,
            Found::InProgress if self.record.started => {}
            Found::InProgress => {
                return Err(invalid(format!("backup {} is in progress elsewhere", self.record.request.backup)));
            }
            Found::Nothing => {
                // Nothing done yet; or somebody gave it up, and its blocks may be gone.
                self.record.started = false;
                journal.clear().map_err(local(delta.display()))?;
                sums = Sums::default();
                self.start(work, &volume).await?;
            }
        }
        self.put_config(work, &volume, &sums, false).await?;
        self.move_blocks(work, &volume, &mut journal, &mut sums).await?;
        let config = self.put_config(work, &volume, &sums, true).await?;
        self.complete(work, &mut volume, &config, sums.new_blocks).await
    }

    /// The volume's file, which is made if there is none. What is there wins.
    async fn volume(&self, work: &Work<'_>) -> Result<VolumeConfig> {
        let request = &self.record.request;
        if work.client.find_volume(work.folder).await?.is_none() {
            let now = time::format(SystemTime::now());
            let config = VolumeConfig::new(&request.volume, work.snapshot.size, request.compression, now);
            work.lock.check()?;
            work.client.put(&work.folder.config(), Content::from(config.to_bytes())).await?;
        }
        let volume = work.client.volume(work.folder).await?;
        volume.compression()?;
        Ok(volume)
    }

    async fn found(&self, work: &Work<'_>) -> Result<Found> {
        let request = &self.record.request;
        match work.client.backup(work.folder, &request.backup, None).await {
            Err(error) if error.kind() == Kind::NotFound => Ok(Found::Nothing),
            Err(error) => Err(error),
            Ok((config, _)) if config.snapshot != request.snapshot => {
                let text = format!("backup {} exists, and is of snapshot {}", request.backup, config.snapshot);
                Err(invalid(text))
            }
            Ok((config, _)) if config.is_complete() => Ok(Found::Complete(Box::new(config))),
            Ok(_) => Ok(Found::InProgress),
        }
    }

    /// Chooses the base, and records it before anything of this backup is in the store.
    async fn start(&mut self, work: &Work<'_>, volume: &VolumeConfig) -> Result<()> {
        self.record.base = self.choose_base(work, volume).await?;
        self.record.started = true;
        self.save()
    }

    async fn choose_base(&self, work: &Work<'_>, volume: &VolumeConfig) -> Result<Option<Base>> {
        let request = &self.record.request;
        let last = &volume.last_backup;
        if request.full || last.is_empty() || *last == request.backup {
            return Ok(None);
        }
        let list = self.folder.join(BASE);
        let config = match work.client.backup(work.folder, last, Some(&list)).await {
            Ok((config, _)) => config,
            // A base that is not there or cannot be read is none: a full backup builds on nothing.
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Corrupt | Kind::Invalid) => return Ok(None),
            Err(error) => return Err(error),
        };
        let usable = config.is_complete()
            && config.snapshot != request.snapshot
            && config.block_size()? == request.block_size
            && work.source.has_snapshot(&config.snapshot).await?;
        Ok(usable.then(|| Base { backup: last.clone(), snapshot: config.snapshot }))
    }

    /// The base's list. When it was lost it is read again; when that cannot be, the backup begins again.
    async fn base(&mut self, work: &Work<'_>) -> Result<Option<Reader<BlockEntry>>> {
        let Some(base) = self.record.base.clone() else { return Ok(None) };
        let path = self.folder.join(BASE);
        if let Some(reader) = open_list(&path).await? {
            return Ok(Some(reader));
        }
        let read = work.client.backup(work.folder, &base.backup, Some(&path)).await;
        match read {
            Ok((config, _)) if config.snapshot == base.snapshot => open_list(&path).await,
            Err(error) if !error.is_terminal() => Err(error),
            _ => {
                // Without its file a new attempt starts from the beginning.
                work.client.delete(&work.folder.backup(&self.record.request.backup)?).await?;
                Err(Error::new(Kind::Interrupted, format!("the list of base {} is lost", base.backup)))
            }
        }
    }

    async fn move_blocks(
        &mut self,
        work: &Work<'_>,
        volume: &VolumeConfig,
        journal: &mut Journal,
        sums: &mut Sums,
    ) -> Result<()> {
        let base = self.base(work).await?;
        let request = &self.record.request;
        let since = self.record.base.as_ref().map(|base| base.snapshot.as_str());
        let (size, block_size) = (work.snapshot.size, request.block_size);
        let total = Offsets::new(work.source, since, size, block_size, 0).count().await?;
        self.progress.begin(sums.count * block_size, total * block_size);
        let from = sums.last.map_or(0, |last| last + block_size);
        let mover = Mover {
            client: work.client,
            folder: work.folder,
            lock: work.lock,
            source: work.source,
            progress: &self.progress,
            pace: Pace::new(self.options.rate, self.options.shared.clone()),
            compression: volume.compression()?,
            block_size,
            full: request.full,
            at_once: self.options.blocks_at_once(block_size),
            under_way: UnderWay::default(),
        };
        mover.run(Offsets::new(work.source, since, size, block_size, from), base, journal, sums).await
    }

    /// Writes the backup's file: without blocks and in progress, or with all of them and complete.
    async fn put_config(
        &self,
        work: &Work<'_>,
        volume: &VolumeConfig,
        sums: &Sums,
        complete: bool,
    ) -> Result<BackupConfig> {
        let request = &self.record.request;
        let mut config = BackupConfig {
            name: request.backup.clone(),
            volume: request.volume.clone(),
            snapshot: request.snapshot.clone(),
            snapshot_created: time::format(work.snapshot.created),
            labels: Some(request.labels.clone()),
            parameters: Some(BackupConfig::parameters_for(request.block_size, request.full)),
            is_incremental: self.record.base.is_some(),
            compression: volume.compression()?.name().to_owned(),
            ..BackupConfig::default()
        };
        let key = work.folder.backup(&request.backup)?;
        if !complete {
            let mut bytes = Vec::new();
            config.write(&mut bytes, &mut std::iter::empty()).map_err(local(&key))?;
            work.lock.check()?;
            work.client.put(&key, Content::from(bytes)).await?;
            return Ok(config);
        }
        config.created = time::format(SystemTime::now());
        (config.newly_uploaded, config.reuploaded) = (sums.new_bytes, sums.again_bytes);
        let base = self.record.base.is_some().then(|| self.folder.join(BASE));
        let (delta, path) = (self.folder.join(DELTA), self.folder.join(FINAL));
        let block_size = request.block_size;
        let written = path.clone();
        let write = move || write_final(config, base.as_deref(), &delta, &written, block_size).map_err(local(FINAL));
        let config = off_thread(write).await?;
        work.lock.check()?;
        work.client.put(&key, Content::File(path.clone())).await?;
        let stored = work.client.head(&key).await?.map(|found| found.size);
        if stored != Some(length_of(&path)?) {
            return Err(Error::new(Kind::Server, format!("{key}: the store has another size of it than was written")));
        }
        Ok(config)
    }

    /// The volume's file last: it names a backup that is complete.
    async fn complete(
        &self,
        work: &Work<'_>,
        volume: &mut VolumeConfig,
        config: &BackupConfig,
        new_blocks: u64,
    ) -> Result<Outcome> {
        let request = &self.record.request;
        *volume = work.client.volume(work.folder).await?;
        // An attempt that ended right after this step did it already.
        if volume.last_backup != request.backup {
            volume.last_backup.clone_from(&request.backup);
            volume.last_backup_at.clone_from(&config.snapshot_created);
            volume.block_count += new_blocks;
            volume.size = volume.size.max(work.snapshot.size);
            volume.labels = Some(request.labels.clone());
            work.lock.check()?;
            work.client.put(&work.folder.config(), Content::from(volume.to_bytes())).await?;
        }
        Ok(Outcome::Complete {
            incremental: config.is_incremental,
            size: config.size,
            uploaded: config.newly_uploaded + config.reuploaded,
        })
    }

    /// Removes the file of a backup that failed, so that it does not stop garbage collections for ever.
    pub(super) async fn clean_up(&mut self, target: &dyn OpenStore) -> Result<()> {
        let Outcome::Failing { kind, reason } = self.record.outcome.clone() else { return Ok(()) };
        let client = Client::new(target.open().await?);
        let folder = VolumeFolder::new(&self.record.request.volume)?;
        let key = folder.backup(&self.record.request.backup)?;
        match client.backup(&folder, &self.record.request.backup, None).await {
            Ok((config, _)) if !config.is_complete() && config.snapshot == self.record.request.snapshot => {
                client.delete(&key).await?;
            }
            // It is complete, or another's, or not there.
            Ok(_) => {}
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Corrupt) => {}
            Err(error) => return Err(error),
        }
        self.end(Outcome::Failed { kind, reason })
    }
}

async fn open_list(path: &Path) -> Result<Option<Reader<BlockEntry>>> {
    let path = path.to_owned();
    off_thread(move || Reader::open(&path)).await
}

/// The merged list: what changed in place of what the base has.
fn merged(base: Option<&Path>, delta: &Path) -> io::Result<Box<dyn Iterator<Item = io::Result<BlockEntry>>>> {
    let delta = journal::read::<Done>(delta)?.map(|done| done.map(|done| done.block));
    let Some(base) = base else { return Ok(Box::new(delta)) };
    let opened = Reader::<BlockEntry>::open(base).map_err(|error| io::Error::other(error.to_string()))?;
    let base = opened.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the base's list is damaged"))?;
    Ok(Box::new(lists::merge(base, delta)))
}

/// Writes the complete file to a local one: its blocks are counted first, since its size comes before them.
fn write_final(
    mut config: BackupConfig,
    base: Option<&Path>,
    delta: &Path,
    path: &Path,
    block_size: u64,
) -> io::Result<BackupConfig> {
    let mut count = 0;
    for entry in merged(base, delta)? {
        entry?;
        count += 1;
    }
    config.size = count * block_size;
    let temporary = files::temporary(path);
    let mut out = BufWriter::new(files::create(&temporary)?);
    config.write(&mut out, &mut *merged(base, delta)?)?;
    out.flush()?;
    fs::rename(&temporary, path)?;
    Ok(config)
}
