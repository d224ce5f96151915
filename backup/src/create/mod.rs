//! Backups of a snapshot: a job that outlives restarts and outages.

mod attempt;
mod blocks;
mod offsets;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::backoff::{Backoff, Pauses};
use crate::block::{self, Compression};
use crate::error::{Error, Kind, Result, invalid};
use crate::format::layout::{VolumeFolder, is_name};
use crate::format::time;
use crate::pace::Limit;
use crate::progress::{Phase, Progress};
use crate::records::files;
use crate::source::{OpenStore, Source};

/// What is to be backed up, and how.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct BackupRequest {
    /// The target's URL, for people; credentials are no part of it.
    pub target: String,
    /// The volume's name in the store.
    pub volume: String,
    /// The backup's name.
    pub backup: String,
    /// The snapshot's name.
    pub snapshot: String,
    /// Labels of the backup, which the volume gets, too.
    pub labels: BTreeMap<String, String>,
    /// How blocks are packed, if this is the volume's first backup.
    pub compression: Compression,
    /// Bytes of a block.
    pub block_size: u64,
    /// Store all blocks, whether they are there or not.
    pub full: bool,
}

impl BackupRequest {
    /// A backup with what is usual.
    pub fn new(target: &str, volume: &str, backup: &str, snapshot: &str) -> Self {
        Self {
            target: target.to_owned(),
            volume: volume.to_owned(),
            backup: backup.to_owned(),
            snapshot: snapshot.to_owned(),
            labels: BTreeMap::new(),
            compression: Compression::default(),
            block_size: block::DEFAULT_SIZE,
            full: false,
        }
    }

    fn check(&self) -> Result<()> {
        VolumeFolder::new(&self.volume)?.backup(&self.backup)?;
        if self.snapshot.is_empty() {
            return Err(invalid("a backup is of a snapshot, which has a name"));
        }
        if !block::SIZES.contains(&self.block_size) {
            return Err(invalid(format!("blocks have 2 or 16 MiB, not {} bytes", self.block_size)));
        }
        Ok(())
    }
}

/// How a job works.
#[derive(Clone, Debug)]
pub struct Options {
    /// Blocks at once. Those of 16 MiB are fewer.
    pub concurrency: usize,
    /// Bytes of the volume that the job may read or fetch a second; None is no limit.
    pub rate: Option<u64>,
    /// The same for all jobs that share it.
    pub shared: Option<Limit>,
    /// Pauses between attempts.
    pub pauses: Pauses,
}

impl Default for Options {
    fn default() -> Self {
        Self { concurrency: 6, rate: None, shared: None, pauses: Pauses::default() }
    }
}

/// Bytes of blocks that are under way at most.
const IN_FLIGHT: u64 = 32 << 20;

impl Options {
    /// Blocks of this size at once.
    pub(crate) fn blocks_at_once(&self, block_size: u64) -> usize {
        let most = usize::try_from(IN_FLIGHT / block_size).unwrap_or(1);
        self.concurrency.clamp(1, most.max(1))
    }
}

/// How a backup stands, as its record has it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Not at its end.
    Running,
    /// Failed, with a file in the store that is still to be removed.
    Failing {
        /// What kind of failure it was.
        kind: Kind,
        /// What was tried and why it failed.
        reason: String,
    },
    /// Failed.
    Failed {
        /// What kind of failure it was.
        kind: Kind,
        /// What was tried and why it failed.
        reason: String,
    },
    /// Complete.
    Complete {
        /// Whether it built on another one.
        incremental: bool,
        /// Bytes of its blocks.
        size: u64,
        /// Packed bytes that were stored for it.
        uploaded: u64,
    },
}

/// The backup that this one builds on.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Base {
    backup: String,
    snapshot: String,
}

/// What a job knows after a restart.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Record {
    version: u32,
    request: BackupRequest,
    /// Whether the base is chosen, and a file may be in the store.
    started: bool,
    base: Option<Base>,
    outcome: Outcome,
    /// When it ended.
    ended: Option<String>,
}

const VERSION: u32 = 1;

/// A backup, under way or ended.
#[derive(Debug)]
pub struct BackupJob {
    folder: PathBuf,
    record: Record,
    options: Options,
    progress: Progress,
}

impl BackupJob {
    /// A job in a folder of its own. Asked for again it is the same job.
    ///
    /// # Errors
    /// `Invalid` when the request makes no sense, or the folder has a job with another one.
    pub fn create(folder: &Path, request: BackupRequest, options: Options) -> Result<Self> {
        request.check()?;
        files::open_folder(folder)?;
        let path = folder.join(RECORD);
        let record = match files::read_record::<Record>(&path)? {
            Some(record) if record.request == request => record,
            Some(_) => return Err(invalid(format!("{}: a job with another request is there", folder.display()))),
            None => {
                let outcome = Outcome::Running;
                Record { version: VERSION, request, started: false, base: None, outcome, ended: None }
            }
        };
        files::write_record(&path, &record)?;
        Ok(Self { folder: folder.to_owned(), record, options, progress: Progress::default() })
    }

    /// The job of a folder, after a restart; None if there is none.
    ///
    /// # Errors
    /// `Local` when its record cannot be read.
    pub fn open(folder: &Path, options: Options) -> Result<Option<Self>> {
        let Some(record) = files::read_record::<Record>(&folder.join(RECORD))? else { return Ok(None) };
        if record.version != VERSION {
            return Err(Error::new(
                Kind::Local,
                format!("{}: a record of version {}", folder.display(), record.version),
            ));
        }
        files::open_folder(folder)?;
        Ok(Some(Self { folder: folder.to_owned(), record, options, progress: Progress::default() }))
    }

    /// What was asked for.
    pub fn request(&self) -> &BackupRequest {
        &self.record.request
    }

    /// How it stands.
    pub fn outcome(&self) -> &Outcome {
        &self.record.outcome
    }

    /// How far it is.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Works until it is complete or has failed. Outages are waited out, however long they last.
    ///
    /// # Errors
    /// Only `Local`: the job's own record cannot be written. It goes on when it is run again.
    pub async fn run(&mut self, target: &dyn OpenStore, source: &dyn Source) -> Result<Outcome> {
        let mut backoff = Backoff::new(self.options.pauses);
        while !self.is_terminal() {
            let before = self.progress.state().done;
            let attempted = match &self.record.outcome {
                Outcome::Failing { .. } => self.clean_up(target).await,
                _ => self.attempt(target, source).await,
            };
            match attempted {
                Ok(()) => {}
                Err(error) if error.kind() == Kind::Local => return Err(error),
                Err(error) if error.is_terminal() => self.fail(&error, &mut backoff).await?,
                Err(error) => {
                    if self.progress.state().done > before {
                        backoff.reset();
                    }
                    self.progress.wait(&mut backoff, &error).await;
                }
            }
        }
        self.show_end();
        Ok(self.record.outcome.clone())
    }

    /// Gives the backup up: the next run removes what it has in the store.
    ///
    /// # Errors
    /// `Local` when the record cannot be written.
    pub fn discard(&mut self) -> Result<()> {
        if self.is_terminal() {
            return Ok(());
        }
        self.end_with(&invalid("given up"))
    }

    fn is_terminal(&self) -> bool {
        matches!(self.record.outcome, Outcome::Complete { .. } | Outcome::Failed { .. })
    }

    fn show_end(&self) {
        self.progress.set(match &self.record.outcome {
            Outcome::Failed { kind, reason } | Outcome::Failing { kind, reason } => {
                Phase::Failed(Error::new(*kind, reason.clone()))
            }
            _ => Phase::Complete,
        });
    }

    /// What is terminal ends the job. While it cleans up, it is one more reason to wait.
    async fn fail(&mut self, error: &Error, backoff: &mut Backoff) -> Result<()> {
        if matches!(self.record.outcome, Outcome::Failing { .. }) {
            self.progress.wait(backoff, error).await;
            return Ok(());
        }
        self.end_with(error)?;
        self.show_end();
        Ok(())
    }

    fn end_with(&mut self, error: &Error) -> Result<()> {
        let (kind, reason) = (error.kind(), error.reason().to_owned());
        tracing::warn!(backup = self.record.request.backup, %kind, reason, "backup failed");
        if self.record.started {
            self.record.outcome = Outcome::Failing { kind, reason };
            return self.save();
        }
        self.end(Outcome::Failed { kind, reason })
    }

    /// Records the end, then removes what only the way there needed.
    fn end(&mut self, outcome: Outcome) -> Result<()> {
        self.record.outcome = outcome;
        self.record.ended = Some(time::format(SystemTime::now()));
        self.save()?;
        for name in [BASE, DELTA, FINAL] {
            files::remove(&self.folder.join(name))?;
        }
        Ok(())
    }

    fn save(&self) -> Result<()> {
        files::write_record(&self.folder.join(RECORD), &self.record)
    }
}

/// Files of a job.
const RECORD: &str = "record.json";
const BASE: &str = "base.list";
const DELTA: &str = "delta";
const FINAL: &str = "final.cfg";

/// Removes the folders of jobs that have ended, but for the `keep` that ended last; says how many.
///
/// # Errors
/// `Local` when the folder of all jobs cannot be read, or one of them not removed.
pub fn prune(jobs: &Path, keep: usize) -> Result<usize> {
    let mut ended = Vec::new();
    let entries = std::fs::read_dir(jobs).map_err(crate::error::local(jobs.display()))?;
    for entry in entries {
        let folder = entry.map_err(crate::error::local(jobs.display()))?.path();
        // A record that cannot be read is nobody's to remove.
        let Ok(Some(record)) = files::read_record::<Record>(&folder.join(RECORD)) else { continue };
        if let Some(time) = record.ended {
            ended.push((time, folder));
        }
    }
    ended.sort();
    let old = ended.len().saturating_sub(keep);
    ended.iter().take(old).try_for_each(|(_, folder)| files::remove_folder(folder))?;
    Ok(old)
}

/// Whether this can be the name of a job's folder.
pub fn is_job_name(name: &str) -> bool {
    is_name(name)
}
