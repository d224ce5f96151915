//! Backup targets: a record each, and their credentials, which are read for each use.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use backup::source::OpenStore;
use backup::target::check::Step;
use backup::target::{self, FolderStore, Place, Settings, Store, TargetUrl};
use backup::{Error, Kind};
use proto::v1;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::credentials;
use super::errors::control_error;
use crate::control::error::{Comparison, ControlError};
use crate::control::locks::KeyedLocks;
use crate::control::pages::{self, Wanted};
use crate::control::request;
use crate::control::streams::{ChangeStream, Told, stream};
use crate::control::versions::{Change, Versions};
use crate::state::{Records, StateError};

/// A target as the state directory knows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct TargetRecord {
    pub(super) uuid: Uuid,
    pub(super) name: String,
    pub(super) url: String,
    /// The file with the credentials; empty for none.
    credentials_file: String,
    /// Milliseconds since the Unix epoch.
    created_at: i64,
    /// Of a folder: the file without which it is not the one that is meant; none before it was there once.
    #[serde(default)]
    mark: Option<String>,
}

/// Most targets of a node.
const MOST: usize = 256;

/// All targets of the node.
pub(crate) struct Targets {
    records: Records<TargetRecord>,
    known: Mutex<BTreeMap<Uuid, TargetRecord>>,
    versions: Arc<Versions<v1::BackupTarget>>,
    locks: KeyedLocks<()>,
}

impl Targets {
    pub(super) fn load(records: Records<TargetRecord>, run: u64) -> Result<Arc<Self>, StateError> {
        let loaded = records.load()?;
        for error in loaded.failed {
            tracing::error!(%error, "a backup target's record is left out");
        }
        let versions = Versions::new(run);
        loaded.records.iter().for_each(|(uuid, record)| versions.set(&uuid.to_string(), record.describe()));
        Ok(Arc::new(Self { records, known: Mutex::new(loaded.records), versions, locks: KeyedLocks::default() }))
    }

    /// Makes a target known, or returns the one that is there (I30).
    pub(super) async fn create(
        &self,
        request: v1::CreateBackupTargetRequest,
    ) -> Result<v1::BackupTarget, ControlError> {
        let name = request::name("name", &request.name)?;
        let uuid = request::optional_uuid("uuid", &request.uuid)?;
        let url: TargetUrl =
            request.url.parse().map_err(|error: Error| ControlError::invalid("url", error.reason()))?;
        if url.volume.is_some() || url.backup.is_some() {
            return Err(ControlError::invalid("url", "it names a volume or a backup: leave the query out"));
        }
        let mut record = TargetRecord {
            uuid: uuid.unwrap_or_else(Uuid::new_v4),
            name,
            url: url.to_string(),
            credentials_file: request.credentials_file,
            created_at: request::unix_milliseconds(),
            mark: None,
        };
        if let Some(existing) = self.same(&record, uuid)? {
            return Ok(existing.describe());
        }
        match request.unchecked {
            false => {
                record.must_work().await?;
                record.mark = record.find_mark().await.map_err(|error| control_error(&error))?;
            }
            // What makes no sense now makes none later.
            true => drop(record.open().await.map_err(|error| control_error(&error))?),
        }
        let _lock = self.locks.lock(()).await;
        if let Some(existing) = self.same(&record, uuid)? {
            return Ok(existing.describe());
        }
        if self.known().contains_key(&record.uuid) {
            return Err(ControlError::invalid("uuid", "another backup target has it"));
        }
        if self.known().len() >= MOST {
            return Err(ControlError::invalid("name", format!("there are {MOST} backup targets already")));
        }
        self.keep(None, &record).await?;
        Ok(record.describe())
    }

    async fn keep(&self, before: Option<&TargetRecord>, record: &TargetRecord) -> Result<(), ControlError> {
        self.records.change(record.uuid, before, record).await.map_err(|unchanged| unchanged.error)?;
        self.known().insert(record.uuid, record.clone());
        self.versions.set(&record.uuid.to_string(), record.describe());
        Ok(())
    }

    /// The record of a target, with the mark of its folder if that is there for the first time.
    async fn marked(&self, target: Uuid) -> backup::Result<TargetRecord> {
        let missing = |error: ControlError| Error::new(Kind::Invalid, error.to_string());
        let found = self.find(&target.to_string()).map_err(missing)?;
        if found.mark.is_some() || !found.is_folder() {
            return Ok(found);
        }
        let _lock = self.locks.lock(()).await;
        let found = self.find(&target.to_string()).map_err(missing)?;
        let marked = match found.mark {
            Some(_) => return Ok(found),
            None => TargetRecord { mark: found.find_mark().await?, ..found.clone() },
        };
        if marked.mark.is_some() {
            let kept = self.keep(Some(&found), &marked).await;
            kept.map_err(|error| Error::new(Kind::Local, error.to_string()))?;
        }
        Ok(marked)
    }

    /// The target of this name, if it is there and what is asked for.
    fn same(&self, wanted: &TargetRecord, uuid: Option<Uuid>) -> Result<Option<TargetRecord>, ControlError> {
        let existing = self.known().values().find(|known| known.name == wanted.name).cloned();
        if let Some(existing) = &existing {
            Comparison::default()
                .optional("uuid", existing.uuid, uuid)
                .field("url", &existing.url, &wanted.url)
                .field("credentials_file", &existing.credentials_file, &wanted.credentials_file)
                .finish("backup target", &wanted.name)?;
        }
        Ok(existing)
    }

    pub(super) fn list(
        &self,
        request: v1::ListBackupTargetsRequest,
    ) -> Result<v1::ListBackupTargetsResponse, ControlError> {
        let resource_version = self.versions.version();
        let mut targets: Vec<_> = self.known().values().map(TargetRecord::describe).collect();
        targets.sort_by(|one, other| (&one.name, &one.uuid).cmp(&(&other.name, &other.uuid)));
        let wanted = Wanted { size: request.page_size, token: request.page_token };
        let (targets, next_page_token) =
            pages::page("backup targets", targets, |target| [&target.name, &target.uuid], &wanted)?;
        Ok(v1::ListBackupTargetsResponse { targets, next_page_token, resource_version })
    }

    /// The targets that there are, then what becomes of them.
    pub(crate) fn watch(
        &self,
        request: &v1::WatchBackupTargetsRequest,
    ) -> Result<ChangeStream<v1::BackupTargetChange>, ControlError> {
        let only = request::optional_uuid("target_uuid", &request.target_uuid)?.map(|uuid| uuid.to_string());
        let follower = self.versions.follow(&request.resource_version)?;
        Ok(stream(follower, move |Change { kind, object, version }| match &object {
            Some(target) if only.as_ref().is_some_and(|only| *only != target.uuid) => Told::Nothing,
            _ => Told::Message(v1::BackupTargetChange { kind: kind.into(), target: object, resource_version: version }),
        }))
    }

    /// Ends all watches.
    pub(super) fn end_watches(&self) {
        self.versions.end();
    }

    pub(super) fn get(&self, target: &str) -> Result<v1::BackupTarget, ControlError> {
        Ok(self.find(target)?.describe())
    }

    pub(super) async fn check(&self, target: &str) -> Result<v1::BackupTargetCheck, ControlError> {
        let uuid = self.find(target)?.uuid;
        match self.marked(uuid).await {
            Ok(found) => found.check().await,
            // Where it cannot be marked now the check says why.
            Err(_) => self.find(target)?.check().await,
        }
    }

    /// Forgets a target that nothing uses, by what `user` says; an absent one is a success (I42).
    pub(super) async fn delete(
        &self,
        request: v1::DeleteBackupTargetRequest,
        user: impl Fn(Uuid) -> Option<String>,
    ) -> Result<(), ControlError> {
        let expected = request::optional_uuid("expected_uuid", &request.expected_uuid)?;
        let _lock = self.locks.lock(()).await;
        let Ok(found) = self.find(&request.target) else { return Ok(()) };
        if expected.is_some_and(|expected| expected != found.uuid) {
            return Err(ControlError::other_uuid("backup target", &found.name, found.uuid));
        }
        if let Some(user) = user(found.uuid) {
            let text = format!("{user} uses backup target `{}`: end that first", found.name);
            return Err(ControlError::precondition("IN_USE", text).with("user", user));
        }
        self.records.remove(found.uuid).await?;
        self.known().remove(&found.uuid);
        self.versions.remove(&found.uuid.to_string());
        Ok(())
    }

    /// A target by name or UUID.
    pub(super) fn find(&self, target: &str) -> Result<TargetRecord, ControlError> {
        let uuid = Uuid::try_parse(target).ok();
        let known = self.known();
        let found = known.values().find(|known| Some(known.uuid) == uuid || known.name == target);
        found.cloned().ok_or_else(|| ControlError::not_found("backup target", target))
    }

    /// What opens a target for each attempt of a job.
    pub(super) fn opener(self: &Arc<Self>, target: Uuid) -> Opener {
        Opener { targets: Arc::clone(self), target }
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<Uuid, TargetRecord>> {
        // Poisoned or not, the map is whole: no change of it has several steps.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TargetRecord {
    fn describe(&self) -> v1::BackupTarget {
        v1::BackupTarget {
            uuid: self.uuid.to_string(),
            name: self.name.clone(),
            url: self.url.clone(),
            credentials_file: self.credentials_file.clone(),
            created_at_unix_ms: self.created_at,
            mark: self.mark.clone().unwrap_or_default(),
        }
    }

    fn is_folder(&self) -> bool {
        matches!(self.url.parse(), Ok(TargetUrl { place: Place::Folder { .. }, .. }))
    }

    /// The mark of a folder, which is made if it has none; none of other targets, and where nothing may be written.
    async fn find_mark(&self) -> backup::Result<Option<String>> {
        let Ok(TargetUrl { place: Place::Folder { path }, .. }) = self.url.parse() else { return Ok(None) };
        match FolderStore::new(&path, self.settings().answer_timeout).mark().await {
            Ok(mark) => Ok(Some(mark)),
            Err(error) if error.kind() == Kind::Auth => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn settings(&self) -> Settings {
        Settings { mark: self.mark.clone(), ..Settings::default() }
    }

    async fn credentials(&self) -> Result<target::Credentials, String> {
        let file = self.credentials_file.clone();
        let read = tokio::task::spawn_blocking(move || credentials::read(&file)).await;
        read.unwrap_or_else(|_| Err("the file with the credentials cannot be read".to_owned()))
    }

    /// The store, with the credentials of now.
    pub(super) async fn open(&self) -> backup::Result<Arc<dyn Store>> {
        let url: TargetUrl = self.url.parse()?;
        // Somebody has to do something about it, as with keys that are refused.
        let credentials = self.credentials().await.map_err(|problem| Error::new(Kind::Auth, problem))?;
        Ok(target::open(&url, &credentials, &self.settings())?.store)
    }

    /// An error unless it works.
    async fn must_work(&self) -> Result<(), ControlError> {
        let checked = self.check().await?;
        let Some(failed) = checked.steps.iter().find(|step| step.took_us.is_none()) else { return Ok(()) };
        let text = format!("the target does not work: {}: {}", failed.step, failed.error);
        let error = ControlError::precondition("TARGET_CHECK", text);
        Err(error.with("step", &failed.step).with("failure", &failed.failure))
    }

    async fn check(&self) -> Result<v1::BackupTargetCheck, ControlError> {
        let url: TargetUrl = self.url.parse().map_err(|error| control_error(&error))?;
        let credentials = self.credentials().await;
        let credentials = credentials.map_err(|problem| ControlError::precondition("CREDENTIALS", problem))?;
        let checked = target::check::check(&url, &credentials, &self.settings()).await;
        let report = checked.map_err(|error| control_error(&error))?;
        Ok(v1::BackupTargetCheck {
            target: Some(self.describe()),
            good: report.is_good(),
            steps: report.steps.into_iter().map(|(step, result)| describe_step(step, result)).collect(),
            skew_seconds: report.skew_seconds,
            conditional_put: report.conditional_put,
        })
    }
}

fn describe_step(step: Step, result: backup::Result<std::time::Duration>) -> v1::BackupTargetStep {
    let name = match step {
        Step::Resolve => "resolve",
        Step::Connect => "connect",
        Step::List => "list",
        Step::Put => "put",
        Step::Get => "get",
        Step::Delete => "delete",
    };
    let step = v1::BackupTargetStep { step: name.to_owned(), ..v1::BackupTargetStep::default() };
    match result {
        Ok(took) => v1::BackupTargetStep { took_us: Some(u64::try_from(took.as_micros()).unwrap_or(u64::MAX)), ..step },
        Err(error) => v1::BackupTargetStep {
            failure: error.kind().to_string(),
            error: format!("{}: {}", error.reason(), error.kind().advice()),
            ..step
        },
    }
}

/// Opens a target by what is on record of it.
pub(super) struct Opener {
    targets: Arc<Targets>,
    target: Uuid,
}

#[tonic::async_trait]
impl OpenStore for Opener {
    async fn open(&self) -> backup::Result<Arc<dyn Store>> {
        self.targets.marked(self.target).await?.open().await
    }
}
