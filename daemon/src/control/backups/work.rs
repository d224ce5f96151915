//! Doing what a job is for, to its end.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use backup::backoff::{Backoff, Pauses};
use backup::create::{self, BackupJob, Options};
use backup::progress::{Phase, Progress, Waiting};
use backup::restore::{self, RestoreJob, RestoreRequest};
use backup::source::{OpenStore, Source};
use backup::{Error, Kind, inspect, remove, verify};
use proto::v1;
use uuid::Uuid;

use super::device::{VolumeDevice, busy};
use super::errors::of_node;
use super::job::{Backup, Ended, How, JobRecord, Now, Restore, Work};
use super::jobs::ended;
use super::source::SnapshotSource;
use super::targets::Targets;
use crate::control::volumes::Hold;
use crate::control::{Engines, Volumes};

/// Damaged blocks that are named.
const NAMED: usize = 8;
/// Between two looks whether the snapshot of a backup that waits is there.
const LOOK: Duration = Duration::from_secs(2);

/// What jobs work with.
pub(super) struct Worker {
    pub(super) targets: Arc<Targets>,
    pub(super) volumes: Arc<Volumes>,
    pub(super) engines: Arc<Engines>,
    /// How each of them works, with the limits.
    pub(super) options: Options,
}

/// Tells what a job does now.
type Told<'a> = &'a (dyn Fn(Now) + Send + Sync);

impl Worker {
    /// Works until the job has ended; outages are waited out. An error: our own disk fails, and it is to be done again.
    pub(super) async fn work(&self, record: &JobRecord, folder: &Path, told: Told<'_>) -> Result<Ended, String> {
        let opener = self.targets.opener(record.target);
        let done = match &record.work {
            Work::Backup(backup) => self.back_up(record, backup, &opener, folder, told).await,
            Work::Restore(restore) if record.cancelled => self.give_up(record, restore, folder).await,
            Work::Restore(restore) => self.restore(record, restore, &opener, folder, told).await,
            Work::Delete | Work::Verify if record.cancelled => {
                Ok(ended(How::Cancelled, None, "as asked for".to_owned(), 0))
            }
            Work::Delete => {
                let (volume, backup) = (&record.backup_volume, &record.backup);
                let removing = || remove::remove(&opener, volume, Some(backup), folder);
                let removed = self.patiently(told, removing).await;
                removed.map(|removed| ended(How::Succeeded, None, describe_removed(&removed), 0))
            }
            Work::Verify => self.verify(record, &opener, folder, told).await,
        };
        match done {
            Ok(ended) => Ok(ended),
            Err(error) if error.kind() == Kind::Local => Err(error.to_string()),
            Err(error) => Ok(failed(error.kind(), error.reason())),
        }
    }

    async fn back_up(
        &self,
        record: &JobRecord,
        backup: &Backup,
        target: &dyn OpenStore,
        folder: &Path,
        told: Told<'_>,
    ) -> backup::Result<Ended> {
        let mut job = BackupJob::create(folder, backup.request(record), self.options.clone())?;
        if record.cancelled {
            job.discard()?;
        }
        told(Now::Working(job.progress().clone()));
        let source = SnapshotSource {
            volumes: Arc::clone(&self.volumes),
            engines: Arc::clone(&self.engines),
            volume: backup.volume,
            snapshot: backup.snapshot,
        };
        let progress = job.progress().clone();
        let ended_or_gone = tokio::select! {
            ended = job.run(target, &source) => Some(ended?),
            () = gone_meanwhile(&source, &progress) => None,
        };
        let outcome = match ended_or_gone {
            Some(outcome) => outcome,
            // An attempt that begins now finds that by itself, and asks nothing of the target before.
            None => job.run(target, &source).await?,
        };
        Ok(match outcome {
            create::Outcome::Complete { incremental, size, uploaded } => {
                let what = if incremental { "incremental" } else { "full" };
                ended(How::Succeeded, None, format!("{what}: {size} bytes in blocks, {uploaded} stored"), uploaded)
            }
            create::Outcome::Failed { .. } if record.cancelled => {
                ended(How::Cancelled, None, "as asked for".to_owned(), 0)
            }
            create::Outcome::Failed { kind, reason } | create::Outcome::Failing { kind, reason } => {
                failed(kind, &reason)
            }
            create::Outcome::Running => return Err(Error::new(Kind::Local, "a backup that ended goes on")),
        })
    }

    async fn restore(
        &self,
        record: &JobRecord,
        restore: &Restore,
        target: &dyn OpenStore,
        folder: &Path,
        told: Told<'_>,
    ) -> backup::Result<Ended> {
        let hold = Hold::Restore(record.uuid);
        let before = RestoreJob::open(folder, self.options.clone())?;
        // One that is complete may have given its volume to hosts already.
        if !before.is_some_and(|job| matches!(job.outcome(), restore::Outcome::Complete { .. })) {
            let made = || self.make_volume(record, restore, target);
            self.patiently(told, made).await?;
        }
        let request =
            RestoreRequest::new(&record.url, &record.backup_volume, &record.backup, &restore.volume.to_string());
        let mut job = RestoreJob::create(folder, request, self.options.clone())?;
        told(Now::Working(job.progress().clone()));
        let progress = job.progress().clone();
        let device = self.device(restore.volume, hold);
        Ok(match job.run(target, &device).await? {
            restore::Outcome::Complete { .. } => {
                let release = || async {
                    let released = self.volumes.release(restore.volume, hold, !restore.replace).await;
                    released.map_err(|error| self.unless_gone(restore.volume, &error))
                };
                self.patiently(told, release).await?;
                ended(How::Succeeded, None, "verified by the checksum of each block".to_owned(), progress.state().moved)
            }
            restore::Outcome::Failed { kind, reason, begun: true } => {
                failed(kind, &format!("{reason}; the volume has a part of the backup, and stays away from hosts"))
            }
            restore::Outcome::Failed { kind, reason, begun: false } => {
                self.let_go(restore, hold).await;
                failed(kind, &reason)
            }
            restore::Outcome::Running => return Err(Error::new(Kind::Local, "a restore that ended goes on")),
        })
    }

    /// Sees to it that there is a volume to restore to, which hosts cannot attach.
    async fn make_volume(&self, record: &JobRecord, restore: &Restore, target: &dyn OpenStore) -> backup::Result<()> {
        let hold = Hold::Restore(record.uuid);
        if restore.replace {
            return match self.volumes.held(restore.volume) {
                Some(Some(held)) if held == hold => Ok(()),
                Some(_) => Err(Error::new(Kind::Invalid, "the volume was taken for something else")),
                None => Err(gone(restore.volume)),
            };
        }
        let size = inspect::volume(target, &record.backup_volume).await?.size;
        let request = v1::CreateVolumeRequest {
            name: restore.volume_name.clone(),
            size_bytes: size,
            nodes: restore.nodes.clone(),
            replica_count: restore.replica_count,
            store: restore.store.clone(),
            uuid: restore.volume.to_string(),
            ..v1::CreateVolumeRequest::default()
        };
        // The volume in the store may have become larger meanwhile: what was made stays.
        if self.volumes.held(restore.volume) == Some(Some(hold)) && self.volumes.is_created(restore.volume) {
            return Ok(());
        }
        self.volumes.create_held(request, hold).await.map(drop).map_err(|error| of_node(&error))
    }

    /// A restore that is not to go on. What it has written to is between two states.
    async fn give_up(&self, record: &JobRecord, restore: &Restore, folder: &Path) -> backup::Result<Ended> {
        let begun = folder.join("record.json").exists();
        if !begun {
            self.let_go(restore, Hold::Restore(record.uuid)).await;
        }
        let what = match begun && self.volumes.contains(restore.volume) {
            true => "as asked for; the volume may have a part of the backup, and stays away from hosts",
            false => "as asked for",
        };
        Ok(ended(How::Cancelled, None, what.to_owned(), 0))
    }

    /// Lets go of a volume to which nothing was written: one that was made for this goes.
    async fn let_go(&self, restore: &Restore, hold: Hold) {
        if self.volumes.held(restore.volume) != Some(Some(hold)) {
            return;
        }
        let done = match restore.replace {
            true => self.volumes.release(restore.volume, hold, false).await,
            false => self.volumes.delete_held(restore.volume).await,
        };
        if let Err(error) = done {
            tracing::warn!(volume = %restore.volume_name, %error, "a volume stays away from hosts");
        }
    }

    async fn verify(
        &self,
        record: &JobRecord,
        target: &dyn OpenStore,
        folder: &Path,
        told: Told<'_>,
    ) -> backup::Result<Ended> {
        let (volume, name) = (&record.backup_volume, &record.backup);
        let options = &self.options;
        let reading = || async {
            let progress = Progress::default();
            told(Now::Working(progress.clone()));
            verify::verify(target, volume, name, folder, options, &progress).await
        };
        let report = self.patiently(told, reading).await?;
        if report.bad == 0 {
            return Ok(ended(How::Succeeded, None, format!("{} blocks are whole", report.blocks), 0));
        }
        let named = report.named.iter().take(NAMED);
        let named: Vec<_> = named.map(|(offset, checksum, error)| format!("{offset} ({checksum}: {error})")).collect();
        let text =
            format!("{} of {} blocks are damaged or missing, at {}", report.bad, report.blocks, named.join(", "));
        Ok(failed(Kind::Checksum, &text))
    }

    /// Tries until it succeeds, or fails for good.
    async fn patiently<T, F>(&self, told: Told<'_>, attempt: impl Fn() -> F) -> backup::Result<T>
    where
        F: Future<Output = backup::Result<T>>,
    {
        let mut backoff = Backoff::new(Pauses::default());
        loop {
            let error = match attempt().await {
                Err(error) if !error.is_terminal() => error,
                done => return done,
            };
            let pause = backoff.next();
            let (kind, reason, attempt) = (error.kind(), error.reason().to_owned(), backoff.attempt());
            tracing::info!(%kind, reason, attempt, pause = pause.as_secs(), "waiting");
            told(Now::Waiting(Waiting { kind, reason, attempt, next_try: SystemTime::now() + pause }));
            tokio::time::sleep(pause).await;
            told(Now::Working(Progress::default()));
        }
    }

    fn unless_gone(&self, volume: Uuid, error: &crate::control::ControlError) -> Error {
        if self.volumes.contains(volume) { busy(error) } else { gone(volume) }
    }

    fn device(&self, volume: Uuid, hold: Hold) -> VolumeDevice {
        VolumeDevice { volumes: Arc::clone(&self.volumes), engines: Arc::clone(&self.engines), volume, hold }
    }
}

/// Waits until the snapshot of a job is gone that waits for its target: that may be away for days.
async fn gone_meanwhile(source: &SnapshotSource, progress: &Progress) {
    loop {
        tokio::time::sleep(LOOK).await;
        let waits = matches!(progress.state().phase, Phase::Waiting(_));
        if waits && source.snapshot().await.is_err_and(|error| error.kind() == Kind::NotFound) {
            return;
        }
    }
}

fn gone(volume: Uuid) -> Error {
    Error::new(Kind::NotFound, format!("volume {volume} is gone"))
}

fn failed(kind: Kind, reason: &str) -> Ended {
    ended(How::Failed, Some(kind), format!("{reason}: {}", kind.advice()), 0)
}

fn describe_removed(removed: &remove::Removed) -> String {
    let what = if removed.existed { "removed" } else { "was not there" };
    match &removed.postponed {
        None => format!("{what}; {} blocks removed, {} kept", removed.blocks, removed.kept),
        Some(why) => format!("{what}; blocks are collected later: {why}"),
    }
}
