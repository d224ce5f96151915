//! Restores: a job that outlives restarts and outages, and goes on with the first block that may not be durable.

mod attempt;

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::backoff::Backoff;
pub use crate::create::Options;
use crate::error::{Error, Kind, Result, invalid};
use crate::format::layout::VolumeFolder;
use crate::format::time;
use crate::progress::{Phase, Progress};
use crate::records::files;
use crate::source::{Device, OpenStore};

/// What is to be restored.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RestoreRequest {
    /// The target's URL, for people; credentials are no part of it.
    pub target: String,
    /// The volume's name in the store.
    pub volume: String,
    /// The backup's name.
    pub backup: String,
    /// What the device is, for people and to tell requests apart.
    pub device: String,
    /// What the device holds: nothing that matters, or a backup whose list is known.
    pub base: Option<Base>,
}

/// The backup that a device holds, bit for bit.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Base {
    /// Its name.
    pub backup: String,
    /// The size of its blocks.
    pub block_size: u64,
    /// The local file with its block list, as [`RestoreJob::list`] has it of a restore that is complete.
    pub list: PathBuf,
}

impl RestoreRequest {
    /// A restore onto a device that holds nothing that matters.
    pub fn new(target: &str, volume: &str, backup: &str, device: &str) -> Self {
        Self {
            target: target.to_owned(),
            volume: volume.to_owned(),
            backup: backup.to_owned(),
            device: device.to_owned(),
            base: None,
        }
    }
}

/// How a restore stands, as its record has it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Not at its end. The device is between two states once it has begun to write.
    Running,
    /// Failed.
    Failed {
        /// What kind of failure it was.
        kind: Kind,
        /// What was tried and why it failed.
        reason: String,
        /// Whether the device may hold parts of the backup.
        begun: bool,
    },
    /// Complete.
    Complete {
        /// Whether it built on what the device held.
        incremental: bool,
        /// The size of the backup's blocks.
        block_size: u64,
    },
}

/// What a job knows after a restart.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Record {
    version: u32,
    request: RestoreRequest,
    /// How the plan's blocks are packed, once there is a plan.
    planned: Option<Planned>,
    outcome: Outcome,
    /// When it ended.
    ended: Option<String>,
}

/// What belongs to a plan.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Planned {
    compression: crate::block::Compression,
    block_size: u64,
    incremental: bool,
}

const VERSION: u32 = 1;

/// Files of a job.
const RECORD: &str = "record.json";
const LIST: &str = "target.list";
const PLAN: &str = "plan";
const DONE: &str = "done";

/// A restore, under way or ended.
#[derive(Debug)]
pub struct RestoreJob {
    folder: PathBuf,
    record: Record,
    options: Options,
    progress: Progress,
}

impl RestoreJob {
    /// A job in a folder of its own. Asked for again it is the same job.
    ///
    /// # Errors
    /// `Invalid` when the request makes no sense, or the folder has a job with another one.
    pub fn create(folder: &Path, request: RestoreRequest, options: Options) -> Result<Self> {
        VolumeFolder::new(&request.volume)?.backup(&request.backup)?;
        files::open_folder(folder)?;
        let path = folder.join(RECORD);
        let record = match files::read_record::<Record>(&path)? {
            Some(record) if record.request == request => record,
            Some(_) => return Err(invalid(format!("{}: a job with another request is there", folder.display()))),
            None => Record { version: VERSION, request, planned: None, outcome: Outcome::Running, ended: None },
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
    pub fn request(&self) -> &RestoreRequest {
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

    /// Tells how far it is to those who listen to `progress`.
    #[must_use]
    pub(crate) fn told_to(mut self, progress: &Progress) -> Self {
        self.progress = progress.clone();
        self
    }

    /// The local file with the backup's block list: what the next incremental restore builds on.
    pub fn list(&self) -> PathBuf {
        self.folder.join(LIST)
    }

    /// Works until it is complete or has failed. Outages are waited out, however long they last.
    ///
    /// # Errors
    /// Only `Local`: the job's own files cannot be written. It goes on when it is run again.
    pub async fn run(&mut self, target: &dyn OpenStore, device: &dyn Device) -> Result<Outcome> {
        let mut backoff = Backoff::new(self.options.pauses);
        while self.record.outcome == Outcome::Running {
            let before = self.progress.state().done;
            match self.attempt(target, device).await {
                Ok(()) => {}
                Err(error) if error.kind() == Kind::Local => return Err(error),
                Err(error) if error.is_terminal() => self.fail(&error)?,
                Err(error) => {
                    if self.progress.state().done > before {
                        backoff.reset();
                    }
                    self.progress.wait(&mut backoff, &error).await;
                }
            }
        }
        self.progress.set(match &self.record.outcome {
            Outcome::Failed { kind, reason, .. } => Phase::Failed(Error::new(*kind, reason.clone())),
            _ => Phase::Complete,
        });
        Ok(self.record.outcome.clone())
    }

    fn fail(&mut self, error: &Error) -> Result<()> {
        let (kind, reason) = (error.kind(), error.reason().to_owned());
        tracing::warn!(backup = self.record.request.backup, %kind, reason, "restore failed");
        self.end(Outcome::Failed { kind, reason, begun: self.record.planned.is_some() })
    }

    /// Records the end, then removes what only the way there needed.
    fn end(&mut self, outcome: Outcome) -> Result<()> {
        self.record.outcome = outcome;
        self.record.ended = Some(time::format(SystemTime::now()));
        self.save()?;
        [PLAN, DONE].iter().try_for_each(|name| files::remove(&self.folder.join(name)))
    }

    fn save(&self) -> Result<()> {
        files::write_record(&self.folder.join(RECORD), &self.record)
    }
}
