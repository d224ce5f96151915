//! Backups of volumes with the versions of their last changes. What a target has is known to nobody but the target: it is listed again when a job
//! of ours has ended, and every few seconds, but only while somebody watches.
//!
//! ```text
//!              list, watch                    somebody watches
//!   (none) ───────────────▶ known, not looked at ◀──────────▶ looked at
//!      ▲                            │
//!      └── others were asked for ───┘
//! ```

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backup::inspect::Known;
use proto::v1;
use uuid::Uuid;

use super::catalog::describe;
use super::check_backup_volume;
use super::errors::control_error;
use super::jobs::Jobs;
use super::targets::{TargetRecord, Targets};
use crate::control::error::ControlError;
use crate::control::panics;
use crate::control::streams::{ChangeStream, Told, stream};
use crate::control::versions::{Change, Versions};

/// Between two listings while somebody watches.
const LOOK: Duration = Duration::from_secs(10);
/// Ends of jobs that come within this are one.
const GATHERED: Duration = Duration::from_millis(200);
/// Volumes whose backups are known, besides those that somebody watches.
const MOST: usize = 64;

/// Volumes in targets whose backups somebody has asked for.
pub(super) struct Watched {
    targets: Arc<Targets>,
    jobs: Arc<Jobs>,
    run: u64,
    volumes: Mutex<Volumes>,
}

#[derive(Default)]
struct Volumes {
    /// Last is who was asked for last.
    known: VecDeque<Arc<Volume>>,
    /// How many there have been.
    made: u64,
    is_over: bool,
}

/// The backups of one volume.
struct Volume {
    target: Uuid,
    name: String,
    versions: Arc<Versions<v1::Backup>>,
    /// One look at a time.
    files: tokio::sync::Mutex<Known>,
    /// There is a task that looks.
    is_looked_at: Mutex<bool>,
    /// Its target was deleted. One of the same UUID is another one.
    is_gone: AtomicBool,
}

impl Watched {
    pub(super) fn new(targets: Arc<Targets>, jobs: Arc<Jobs>, run: u64) -> Arc<Self> {
        Arc::new(Self { targets, jobs, run, volumes: Mutex::default() })
    }

    /// The backups as they are now, and their version.
    pub(super) async fn list(
        &self,
        target: &TargetRecord,
        volume: &str,
    ) -> Result<(Vec<v1::Backup>, String), ControlError> {
        let volume = self.volume(target, volume)?;
        volume.look(&self.targets).await?;
        let version = volume.versions.version();
        Ok((volume.versions.all(), version))
    }

    /// The backups that there are, then what becomes of them.
    pub(super) async fn watch(
        self: &Arc<Self>,
        target: &TargetRecord,
        volume: &str,
        version: &str,
    ) -> Result<ChangeStream<v1::BackupChange>, ControlError> {
        let volume = self.volume(target, volume)?;
        volume.look(&self.targets).await?;
        let follower = volume.versions.follow(version)?;
        self.keep_looking(&volume);
        Ok(stream(follower, |Change { kind, object, version }| {
            Told::Message(v1::BackupChange { kind: kind.into(), backup: object, resource_version: version })
        }))
    }

    /// Ends all watches.
    pub(super) fn end(&self) {
        let mut volumes = self.volumes();
        volumes.is_over = true;
        volumes.known.iter().for_each(|volume| volume.versions.end());
    }

    fn volume(&self, target: &TargetRecord, name: &str) -> Result<Arc<Volume>, ControlError> {
        check_backup_volume(name)?;
        let mut volumes = self.volumes();
        let place = volumes.known.iter().position(|known| known.target == target.uuid && known.name == name);
        let known = place.and_then(|place| volumes.known.remove(place));
        let volume = match known.filter(|known| !known.is_gone.load(Ordering::Relaxed)) {
            Some(volume) => volume,
            None => {
                volumes.made += 1;
                volumes.forget_old();
                Arc::new(Volume {
                    target: target.uuid,
                    name: name.to_owned(),
                    // Versions of one that was forgotten are not those of its successor.
                    versions: Versions::new((self.run << 32) + volumes.made),
                    files: tokio::sync::Mutex::default(),
                    is_looked_at: Mutex::default(),
                    is_gone: AtomicBool::new(false),
                })
            }
        };
        if volumes.is_over {
            volume.versions.end();
        }
        volumes.known.push_back(Arc::clone(&volume));
        Ok(volume)
    }

    /// Sets a task on a volume that somebody watches, unless there is one.
    fn keep_looking(self: &Arc<Self>, volume: &Arc<Volume>) {
        let is_looked_at = std::mem::replace(&mut *volume.is_looked_at(), true);
        if is_looked_at {
            return;
        }
        let (watched, volume) = (Arc::clone(self), Arc::clone(volume));
        tokio::spawn(async move {
            let mut ends = watched.jobs.ends();
            while volume.is_wanted() {
                tokio::select! {
                    Ok(()) = ends.changed() => tokio::time::sleep(GATHERED).await,
                    () = tokio::time::sleep(LOOK) => {}
                }
                // A panic over one file is logged, and the next look is another chance.
                if let Ok(Err(error)) = panics::caught(volume.look(&watched.targets)).await {
                    tracing::debug!(volume = volume.name, %error, "the backups of a volume cannot be looked at now");
                }
            }
        });
    }

    fn volumes(&self) -> MutexGuard<'_, Volumes> {
        // Poisoned or not, it is whole: nothing in a change of it panics half way.
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Volumes {
    /// Makes room for one more; those that somebody watches stay.
    fn forget_old(&mut self) {
        let mut surplus = (self.known.len() + 1).saturating_sub(MOST);
        self.known.retain(|volume| {
            let goes = surplus > 0 && !volume.versions.is_followed();
            surplus -= usize::from(goes);
            !goes
        });
    }
}

impl Volume {
    /// Takes in what the target has now. Of a target that was deleted nothing is told any more.
    async fn look(&self, targets: &Arc<Targets>) -> Result<(), ControlError> {
        let mut files = self.files.lock().await;
        let target = targets.find(&self.target.to_string()).inspect_err(|_| {
            self.is_gone.store(true, Ordering::Relaxed);
            self.versions.end();
        })?;
        let listed = files.look(&targets.opener(self.target), &self.name).await;
        let listed = listed.map_err(|error| control_error(&error))?;
        for gone in self.versions.all().iter().filter(|seen| !listed.iter().any(|found| found.name == seen.name)) {
            self.versions.remove(&gone.name);
        }
        for found in listed {
            let name = found.name.clone();
            self.versions.set(&name, describe(&target.name, &self.name, found));
        }
        Ok(())
    }

    /// Whether somebody watches; if not, the task that asks ends.
    fn is_wanted(&self) -> bool {
        let mut is_looked_at = self.is_looked_at();
        // Who begins to watch does so before he looks whether there is a task.
        *is_looked_at = self.versions.is_followed();
        *is_looked_at
    }

    fn is_looked_at(&self) -> MutexGuard<'_, bool> {
        self.is_looked_at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
