//! Standby volumes: a device that follows the newest backup of a volume, until it is activated.
//!
//! There is no faulted state. Whatever goes wrong is waited out with its reason shown, and activation, which needs no storage, gives the last
//! complete backup at any time.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use crate::backoff::Backoff;
use crate::create::Options;
use crate::error::{Error, Kind, Result, invalid, local};
use crate::format::layout::VolumeFolder;
use crate::inspect;
use crate::progress::Progress;
use crate::records::files;
use crate::restore::{Base, Outcome, RestoreJob, RestoreRequest};
use crate::source::{OpenStore, Standby};
use crate::target::client::Client;

/// What a standby does.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Phase {
    /// It looks for a newer backup.
    #[default]
    Looking,
    /// It restores this one.
    Restoring(String),
    /// It has the newest backup, and looks again then.
    Idle {
        /// When.
        next_look: SystemTime,
    },
    /// It waits for its next attempt.
    Waiting {
        /// What kind of failure it was.
        kind: Kind,
        /// What was tried and why it failed.
        reason: String,
        /// How many attempts failed since the last one that came further.
        attempt: u32,
        /// When the next one is.
        next_try: SystemTime,
    },
    /// It becomes a volume like others.
    Activating,
    /// It is a volume like others.
    Active,
}

/// What a standby shows.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Status {
    /// What it does.
    pub phase: Phase,
    /// The last backup that it has, bit for bit.
    pub complete: Option<String>,
}

/// What a standby follows, and how.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FollowRequest {
    /// The target's URL, for people; credentials are no part of it.
    pub target: String,
    /// The volume's name in the store.
    pub volume: String,
    /// What the device is.
    pub device: String,
    /// Seconds between two looks.
    pub interval_seconds: u64,
}

/// What a standby is, for a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
enum Stage {
    Following,
    Activating,
    Active,
}

/// The last backup that the device has.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Complete {
    backup: String,
    block_size: u64,
    /// The file with its block list, in the standby's folder.
    list: String,
}

/// What a standby knows after a restart.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Record {
    version: u32,
    request: FollowRequest,
    stage: Stage,
    complete: Option<Complete>,
    /// The backup that is being restored: the device is between two states.
    restoring: Option<String>,
    /// That restore is given up: before anything else the device goes back.
    giving_up: bool,
    /// Restores that were begun: lists have names of their own.
    restores: u64,
}

const VERSION: u32 = 1;

/// Files of a standby.
const RECORD: &str = "standby.json";
const RESTORE: &str = "restore";

/// A standby.
#[derive(Debug)]
pub struct Follower {
    folder: PathBuf,
    record: Record,
    options: Options,
    status: watch::Sender<Status>,
    progress: Progress,
}

impl Follower {
    /// A standby in a folder of its own. Asked for again it is the same.
    ///
    /// # Errors
    /// `Invalid` when the request makes no sense, or the folder has another one.
    pub fn create(folder: &Path, request: FollowRequest, options: Options) -> Result<Self> {
        VolumeFolder::new(&request.volume)?;
        files::open_folder(folder)?;
        let path = folder.join(RECORD);
        let record = match files::read_record::<Record>(&path)? {
            Some(record) if record.request == request => record,
            Some(_) => return Err(invalid(format!("{}: another standby is there", folder.display()))),
            None => Record {
                version: VERSION,
                request,
                stage: Stage::Following,
                complete: None,
                restoring: None,
                giving_up: false,
                restores: 0,
            },
        };
        files::write_record(&path, &record)?;
        Ok(Self::new(folder, record, options))
    }

    /// The standby of a folder, after a restart; None if there is none.
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
        Ok(Some(Self::new(folder, record, options)))
    }

    fn new(folder: &Path, record: Record, options: Options) -> Self {
        let phase = match record.stage {
            Stage::Following => Phase::Looking,
            Stage::Activating => Phase::Activating,
            Stage::Active => Phase::Active,
        };
        let complete = record.complete.as_ref().map(|complete| complete.backup.clone());
        let status = watch::Sender::new(Status { phase, complete });
        Self { folder: folder.to_owned(), record, options, status, progress: Progress::default() }
    }

    /// What it shows from now on.
    pub fn subscribe(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// What it shows.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Follows for ever; drop the future to stop. One that was being activated is activated, and then this ends, as it does
    /// for one that is active.
    ///
    /// # Errors
    /// Only `Local`: its own record cannot be written. It goes on when it is run again.
    pub async fn run(&mut self, target: &dyn OpenStore, standby: &dyn Standby) -> Result<()> {
        let mut backoff = Backoff::new(self.options.pauses);
        loop {
            let looked = match self.record.stage {
                Stage::Active => return Ok(()),
                Stage::Activating => self.finish_activation(standby).await,
                Stage::Following => self.look(target, standby).await,
            };
            match looked {
                Ok(()) if self.record.stage != Stage::Following => {}
                Ok(()) => {
                    backoff.reset();
                    let interval = self.interval();
                    self.show(Phase::Idle { next_look: SystemTime::now() + interval });
                    tokio::time::sleep(interval).await;
                }
                Err(error) if error.kind() == Kind::Local => return Err(error),
                Err(error) => self.wait(&mut backoff, &error).await,
            }
        }
    }

    /// Makes it a volume with the content of the last complete backup. Needs no storage. Done again, it goes on.
    ///
    /// # Errors
    /// `Invalid` before the first complete restore, and what the device or the record fails with: then it is to be done again.
    pub async fn activate(&mut self, standby: &dyn Standby) -> Result<String> {
        let Some(complete) = self.record.complete.clone() else {
            return Err(invalid("no backup was restored completely yet"));
        };
        if self.record.stage == Stage::Following {
            self.record.stage = Stage::Activating;
            self.save()?;
        }
        self.finish_activation(standby).await?;
        Ok(complete.backup)
    }

    async fn finish_activation(&mut self, standby: &dyn Standby) -> Result<()> {
        if self.record.stage == Stage::Active {
            return Ok(());
        }
        self.show(Phase::Activating);
        if let (Some(_), Some(complete)) = (&self.record.restoring, &self.record.complete) {
            standby.revert(&complete.backup).await?;
        }
        standby.activate().await?;
        self.record.stage = Stage::Active;
        (self.record.restoring, self.record.giving_up) = (None, false);
        self.save()?;
        files::remove_folder(&self.folder.join(RESTORE))?;
        self.show(Phase::Active);
        Ok(())
    }

    /// Looks for a newer backup and restores it. One that is under way is finished first.
    async fn look(&mut self, target: &dyn OpenStore, standby: &dyn Standby) -> Result<()> {
        if self.record.giving_up {
            self.give_up(standby).await?;
        }
        let restoring = match self.record.restoring.clone() {
            Some(backup) => backup,
            None => {
                self.show(Phase::Looking);
                let client = Client::new(target.open().await?);
                let newest = inspect::newest(&client, &VolumeFolder::new(&self.record.request.volume)?).await?;
                if self.record.complete.as_ref().is_some_and(|complete| complete.backup == newest) {
                    return Ok(());
                }
                self.begin(newest)?
            }
        };
        self.show(Phase::Restoring(restoring.clone()));
        let restored = self.restore(target, standby, &restoring).await;
        let Err(error) = restored else { return Ok(()) };
        let error = error.during(format!("restoring {restoring}"));
        if error.is_terminal() && error.kind() != Kind::Local && error.kind() != Kind::Auth {
            // It is gone, or damaged: the device goes back, so that another one can be chosen.
            self.give_up(standby).await?;
        }
        // After one that was deleted comes the next newest, and soon.
        let gone = error.kind() == Kind::NotFound;
        Err(if gone { Error::new(Kind::Interrupted, error.reason()) } else { error })
    }

    /// Records which backup is restored, before the device is touched.
    fn begin(&mut self, backup: String) -> Result<String> {
        files::remove_folder(&self.folder.join(RESTORE))?;
        self.record.restoring = Some(backup.clone());
        self.record.restores += 1;
        self.save()?;
        Ok(backup)
    }

    async fn restore(&mut self, target: &dyn OpenStore, standby: &dyn Standby, backup: &str) -> Result<()> {
        let request = &self.record.request;
        let base = self.record.complete.as_ref().map(|complete| Base {
            backup: complete.backup.clone(),
            block_size: complete.block_size,
            list: self.folder.join(&complete.list),
        });
        let request =
            RestoreRequest { base, ..RestoreRequest::new(&request.target, &request.volume, backup, &request.device) };
        let mut job =
            RestoreJob::create(&self.folder.join(RESTORE), request, self.options.clone())?.told_to(&self.progress);
        if *job.outcome() == Outcome::Running {
            job.attempt(target, standby).await?;
        }
        let Outcome::Complete { block_size, .. } = *job.outcome() else {
            return Err(Error::new(Kind::Invalid, "a restore that failed is not the end of one"));
        };
        self.finish(standby, &job, backup, block_size).await
    }

    /// Marks the device, then records the backup as complete, with its list.
    async fn finish(&mut self, standby: &dyn Standby, job: &RestoreJob, backup: &str, block_size: u64) -> Result<()> {
        standby.mark(backup).await?;
        let list = format!("complete-{}.list", self.record.restores);
        let path = self.folder.join(&list);
        // A link, so that a crash before the record leaves the job as it is.
        let linked = files::remove(&path).and_then(|()| {
            fs::hard_link(job.list(), &path).and_then(|()| files::sync_folder_of(&path)).map_err(local(path.display()))
        });
        linked?;
        let old = self.record.complete.replace(Complete { backup: backup.to_owned(), block_size, list: list.clone() });
        self.record.restoring = None;
        self.save()?;
        self.status.send_modify(|status| status.complete = Some(backup.to_owned()));
        if let Some(old) = old.filter(|old| old.list != list) {
            files::remove(&self.folder.join(old.list))?;
        }
        standby.keep_only(backup).await?;
        files::remove_folder(&self.folder.join(RESTORE))
    }

    /// Takes the device back to the last complete backup, if there is one. A kill in between is followed by doing it again: what
    /// the restore knows of its steps is not true of a device that went back.
    async fn give_up(&mut self, standby: &dyn Standby) -> Result<()> {
        self.record.giving_up = true;
        self.save()?;
        if let Some(complete) = &self.record.complete {
            standby.revert(&complete.backup).await?;
        }
        files::remove_folder(&self.folder.join(RESTORE))?;
        (self.record.restoring, self.record.giving_up) = (None, false);
        self.save()
    }

    const fn interval(&self) -> Duration {
        Duration::from_secs(self.record.request.interval_seconds)
    }

    async fn wait(&self, backoff: &mut Backoff, error: &Error) {
        let pause = backoff.between_looks(error, self.interval());
        let (kind, reason, attempt) = (error.kind(), error.reason().to_owned(), backoff.attempt());
        tracing::info!(volume = self.record.request.volume, %kind, reason, attempt, "standby waits");
        self.show(Phase::Waiting { kind, reason, attempt, next_try: SystemTime::now() + pause });
        tokio::time::sleep(pause).await;
    }

    fn show(&self, phase: Phase) {
        self.status.send_modify(|status| status.phase = phase);
    }

    fn save(&self) -> Result<()> {
        files::write_record(&self.folder.join(RECORD), &self.record)
    }

    /// How far the restore under way is.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }
}
