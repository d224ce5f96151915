//! Long work as operations.
//!
//! ```text
//!                 the record of the work is there                    it is gone
//!   (none) ────────────▶ RUNNING ◀──▶ WAITING ─────────▶ SUCCEEDED, FAILED, CANCELLED ──▶ (none): pruned, oldest first,
//!                           ▲                                   │                                 or the same work again
//!                           └───────────────────────────────────┘
//! ```
//! Work under way has no record here: it is read from the durable one that the work itself goes by ([`Source`]), so that the two cannot
//! differ (L2). Only what has ended, and has no record any more, is written down, in `operations/` of the state directory.

mod ended;
mod sources;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::v1::{self, OperationKind, OperationState};
use tokio::sync::Notify;

pub(crate) use self::ended::EndedRecord;
use self::ended::History;
use self::sources::{DeleteReplica, Merge, Rebuild, ReplaceReplica, Scrub};
use super::backups::BackupWork;
use super::error::ControlError;
use super::pages::{self, Wanted};
use super::panics;
use super::request;
use super::streams::{ChangeStream, Told, stream};
use super::versions::{Change, Versions};
use super::{Backups, Deletions, Lvols, Observer, Scrubs, Stores, Volumes};
use crate::state::{Records, StateError};

/// Between two looks while something goes on, or waits and somebody wants to hear when it ends.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// The same while what is under way waits, as for a node that is away for days.
const WAITING: Duration = Duration::from_secs(20);
/// The same while nothing is under way: engines of other nodes delete snapshots here, and nobody tells.
const IDLE: Duration = Duration::from_secs(60);
/// How long the records of one kind may take to be read.
const PROMPT: Duration = Duration::from_secs(2);
/// What is told within this is looked at once.
const GATHERED: Duration = Duration::from_millis(200);

/// One kind of work, and the records that it goes by.
#[tonic::async_trait]
pub(crate) trait Source: Send + Sync {
    fn kind(&self) -> OperationKind;

    /// All that is under way. An error leaves those that are known as they are.
    async fn under_way(&self) -> Result<Vec<v1::Operation>, ControlError>;

    /// What became of one that is not under way any more. `cancelled`: somebody has asked for its end here.
    async fn outcome(&self, last: &v1::Operation, cancelled: bool) -> Outcome;

    /// What kind of failure one ended with, in a word; empty where there are no kinds.
    fn failure_of(&self, _last: &v1::Operation) -> String {
        String::new()
    }

    /// Ends one that is under way, or says why not.
    async fn cancel(&self, operation: &v1::Operation) -> Result<(), ControlError>;
}

/// What became of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Succeeded(String),
    Failed(String),
    Cancelled(String),
    /// Nobody can say now: it may go on.
    Unknown(String),
}

/// What the operations need of the node.
pub(crate) struct Surroundings {
    pub(crate) stores: Arc<Stores>,
    pub(crate) lvols: Arc<Lvols>,
    pub(crate) scrubs: Arc<Scrubs>,
    pub(crate) deletions: Arc<Deletions>,
    pub(crate) volumes: Arc<Volumes>,
    pub(crate) observer: Arc<Observer>,
    pub(crate) backups: Arc<Backups>,
}

/// All operations of the node.
pub(crate) struct Operations {
    sources: Vec<Box<dyn Source>>,
    /// Those under way and those that have ended, by their ids.
    known: Arc<Versions<v1::Operation>>,
    history: History,
    /// Those whose end somebody has asked for.
    cancelled: Mutex<BTreeSet<String>>,
    observer: Option<Arc<Observer>>,
    /// One look at a time.
    looking: tokio::sync::Mutex<Looks>,
    told: Arc<Notify>,
}

#[derive(Default)]
struct Looks {
    /// What there is at the first look began before.
    is_first_over: bool,
}

impl Operations {
    /// Reads what has ended and sets a task on what is under way.
    pub(crate) fn start(here: Surroundings, records: Records<EndedRecord>, run: u64) -> Result<Arc<Self>, StateError> {
        let told = Arc::clone(&here.observer.seen);
        let mut sources: Vec<Box<dyn Source>> = vec![
            Box::new(Merge { stores: Arc::clone(&here.stores), lvols: here.lvols }),
            Box::new(Scrub { stores: here.stores, scrubs: here.scrubs }),
            Box::new(Rebuild { volumes: Arc::clone(&here.volumes), observer: Arc::clone(&here.observer) }),
            Box::new(ReplaceReplica { volumes: here.volumes, observer: Arc::clone(&here.observer) }),
            Box::new(DeleteReplica { deletions: here.deletions }),
        ];
        sources.extend(BackupWork::all(&here.backups.jobs));
        let operations = Self::new(sources, History::load(records)?, run, told);
        let operations = Arc::new(Self { observer: Some(here.observer), ..operations });
        tokio::spawn(Arc::clone(&operations).work());
        Ok(operations)
    }

    fn new(sources: Vec<Box<dyn Source>>, history: History, run: u64, told: Arc<Notify>) -> Self {
        let known = Versions::new(run);
        history.all().into_iter().for_each(|ended| known.set(&ended.id.clone(), ended));
        let (cancelled, looking) = Default::default();
        Self { sources, known, history, cancelled, observer: None, looking, told }
    }

    /// Something has changed that may have begun or ended work.
    pub(crate) fn tell(&self) {
        self.told.notify_one();
    }

    /// A page of them: those under way first.
    pub(crate) async fn list(
        &self,
        request: v1::ListOperationsRequest,
    ) -> Result<v1::ListOperationsResponse, ControlError> {
        let volume = request::optional_uuid("volume_uuid", &request.volume_uuid)?.map(|uuid| uuid.to_string());
        self.look_closely().await;
        let resource_version = self.known.version();
        let is_wanted = |operation: &v1::Operation| {
            volume.as_ref().is_none_or(|volume| operation.volume_uuid == *volume)
                && (!request.only_active || is_active(operation))
        };
        let mut operations = self.known.all();
        operations.retain(is_wanted);
        operations.sort_by(|one, other| order(one).cmp(&order(other)));
        let list = format!("operations of {} {}", request.volume_uuid, request.only_active);
        let wanted = Wanted { size: request.page_size, token: request.page_token };
        let (operations, next_page_token) = pages::page(&list, operations, order, &wanted)?;
        Ok(v1::ListOperationsResponse { operations, next_page_token, resource_version })
    }

    /// One of them.
    pub(crate) async fn get(&self, id: &str) -> Result<v1::Operation, ControlError> {
        self.look_closely().await;
        self.known.get(id).ok_or_else(|| ControlError::not_found("operation", id))
    }

    /// Those that there are, then what becomes of them; of one until its end.
    pub(crate) async fn watch(
        &self,
        request: v1::WatchOperationsRequest,
    ) -> Result<ChangeStream<v1::OperationChange>, ControlError> {
        self.look_closely().await;
        let follower = self.known.follow(&request.resource_version)?;
        if !request.id.is_empty() && self.known.get(&request.id).is_none() {
            return Err(ControlError::not_found("operation", &request.id));
        }
        let only = request.id;
        Ok(stream(follower, move |Change { kind, object, version }| {
            let is_other = object.as_ref().is_some_and(|operation| !only.is_empty() && operation.id != only);
            let is_end = object.as_ref().is_some_and(|operation| !only.is_empty() && !is_active(operation));
            let message = v1::OperationChange { kind: kind.into(), operation: object, resource_version: version };
            match (is_other, is_end) {
                (true, _) => Told::Nothing,
                (false, true) => Told::Last(message),
                (false, false) => Told::Message(message),
            }
        }))
    }

    /// Ends one before it is through.
    pub(crate) async fn cancel(&self, id: &str) -> Result<v1::Operation, ControlError> {
        let operation = self.get(id).await?;
        match operation.state() {
            OperationState::Cancelled => return Ok(operation),
            OperationState::Succeeded | OperationState::Failed => {
                let text = format!("operation `{id}` has ended: it {}", operation.state());
                return Err(ControlError::precondition("ENDED", text));
            }
            OperationState::Unspecified | OperationState::Running | OperationState::Waiting => {}
        }
        let source = self.source_of(operation.kind()).ok_or_else(|| not_cancellable(id, "nobody knows how"))?;
        self.asked_to_cancel().insert(id.to_owned());
        if let Err(error) = source.cancel(&operation).await {
            self.asked_to_cancel().remove(id);
            return Err(error);
        }
        self.get(id).await
    }

    /// Ends all watches.
    pub(crate) fn end_watches(&self) {
        self.known.end();
    }

    async fn work(self: Arc<Self>) {
        loop {
            // A panic over one kind is logged, and does not end the looks at all others.
            let _ = panics::caught(self.look()).await;
            let known = self.known.all();
            let active = || known.iter().filter(|operation| is_active(operation));
            let pause = match active().any(|operation| operation.state() == OperationState::Running) {
                true => LOOK_EVERY,
                false if active().next().is_none() => IDLE,
                false if self.known.is_followed() => LOOK_EVERY,
                false => WAITING,
            };
            tokio::select! {
                () = self.told.notified() => tokio::time::sleep(GATHERED).await,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// The same for somebody who asks: as it is now.
    async fn look_closely(&self) {
        if let Some(observer) = &self.observer {
            observer.look_closely().await;
        }
        self.look().await;
    }

    /// Looks at the records of all work.
    async fn look(&self) {
        let mut looks = self.looking.lock().await;
        for source in &self.sources {
            let found = tokio::time::timeout(PROMPT, source.under_way()).await;
            match found.unwrap_or_else(|_| Err(ControlError::unavailable("REACTOR", "a reactor does not answer"))) {
                Ok(found) => self.take_in(&**source, found, looks.is_first_over).await,
                Err(error) => tracing::warn!(kind = %source.kind(), %error, "operations cannot be looked at now"),
            }
        }
        looks.is_first_over = true;
    }

    async fn take_in(&self, source: &dyn Source, found: Vec<v1::Operation>, has_begun_since: bool) {
        let of_kind = |operation: &v1::Operation| operation.kind() == source.kind() && is_active(operation);
        let before = self.known.all().into_iter().filter(of_kind);
        let mut before: BTreeMap<_, _> = before.map(|operation| (operation.id.clone(), operation)).collect();
        for mut operation in found {
            let known = before.remove(&operation.id);
            let is_new = known.is_none();
            let seen = known
                .map_or_else(|| has_begun_since.then(request::unix_milliseconds), |known| known.started_at_unix_ms);
            operation.started_at_unix_ms = operation.started_at_unix_ms.or(seen);
            if is_new && let Err(error) = self.history.forget(&operation.id).await {
                tracing::warn!(operation = %operation.id, %error, "what was on record of the same work before stays there");
            }
            self.known.set(&operation.id.clone(), operation);
        }
        for (id, last) in before {
            let cancelled = self.asked_to_cancel().contains(&id);
            let outcome = tokio::time::timeout(PROMPT, source.outcome(&last, cancelled)).await;
            let late = |_| Outcome::Unknown("a thread of the data path does not answer".to_owned());
            match outcome.unwrap_or_else(late) {
                Outcome::Unknown(reason) => {
                    self.known.set(&id, v1::Operation { state: OperationState::Waiting.into(), reason, ..last });
                }
                outcome => {
                    let failure = source.failure_of(&last);
                    self.end(v1::Operation { failure, ..last }, outcome).await;
                }
            }
        }
    }

    async fn end(&self, last: v1::Operation, outcome: Outcome) {
        let (state, reason) = match outcome {
            Outcome::Succeeded(reason) => (OperationState::Succeeded, reason),
            Outcome::Failed(reason) => (OperationState::Failed, reason),
            Outcome::Cancelled(reason) | Outcome::Unknown(reason) => (OperationState::Cancelled, reason),
        };
        let done_bytes = match state {
            OperationState::Succeeded => last.total_bytes.or(last.done_bytes),
            _ => last.done_bytes,
        };
        let ended_at_unix_ms = Some(request::unix_milliseconds());
        let id = last.id.clone();
        let ended =
            v1::Operation { state: state.into(), reason, done_bytes, ended_at_unix_ms, can_cancel: false, ..last };
        let ended = v1::Operation { remaining_ms: None, next_try_unix_ms: None, ..ended };
        tracing::info!(operation = %id, %state, reason = %ended.reason, "an operation ended");
        self.asked_to_cancel().remove(&id);
        match self.history.keep(&ended).await {
            Ok(pruned) => pruned.iter().for_each(|id| self.known.remove(id)),
            Err(error) => tracing::warn!(operation = %id, %error, "its end is not on record"),
        }
        self.known.set(&id, ended);
    }

    fn source_of(&self, kind: OperationKind) -> Option<&dyn Source> {
        self.sources.iter().find(|source| source.kind() == kind).map(|source| &**source)
    }

    fn asked_to_cancel(&self) -> MutexGuard<'_, BTreeSet<String>> {
        // Poisoned or not, the set is whole: no change of it has several steps.
        self.cancelled.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether it has not ended.
fn is_active(operation: &v1::Operation) -> bool {
    operation.ended_at_unix_ms.is_none()
}

/// Those under way first.
fn order(operation: &v1::Operation) -> [&str; 2] {
    [if is_active(operation) { "0" } else { "1" }, &operation.id]
}

fn not_cancellable(id: &str, why: &str) -> ControlError {
    ControlError::precondition("NOT_CANCELLABLE", format!("operation `{id}` cannot be cancelled: {why}"))
}

#[cfg(test)]
mod tests {
    use proto::v1::ChangeKind;

    use super::*;

    /// Work that a test begins and ends.
    #[derive(Clone, Default)]
    struct Fake(Arc<Mutex<Work>>);

    #[derive(Default)]
    struct Work {
        /// How far each is.
        done: BTreeMap<String, u64>,
        /// What became of the last one that ended.
        outcome: Option<Outcome>,
    }

    impl Fake {
        fn set(&self, id: &str, done: u64) {
            self.0.lock().expect("no panic").done.insert(id.to_owned(), done);
        }

        fn end(&self, id: &str, outcome: Outcome) {
            let mut inner = self.0.lock().expect("no panic");
            inner.done.remove(id);
            inner.outcome = Some(outcome);
        }
    }

    #[tonic::async_trait]
    impl Source for Fake {
        fn kind(&self) -> OperationKind {
            OperationKind::Scrub
        }

        async fn under_way(&self) -> Result<Vec<v1::Operation>, ControlError> {
            let operation = |(id, done): (&String, &u64)| v1::Operation {
                id: id.clone(),
                kind: OperationKind::Scrub.into(),
                state: OperationState::Running.into(),
                done_bytes: Some(*done),
                total_bytes: Some(100),
                ..v1::Operation::default()
            };
            Ok(self.0.lock().expect("no panic").done.iter().map(operation).collect())
        }

        async fn outcome(&self, _: &v1::Operation, cancelled: bool) -> Outcome {
            match cancelled {
                true => Outcome::Cancelled("as asked".to_owned()),
                false => self.0.lock().expect("no panic").outcome.clone().expect("the test says"),
            }
        }

        async fn cancel(&self, operation: &v1::Operation) -> Result<(), ControlError> {
            self.0.lock().expect("no panic").done.remove(&operation.id);
            Ok(())
        }
    }

    fn operations(fake: &Fake, folder: &std::path::Path, run: u64) -> Operations {
        let records = Records::open(folder.join("operations")).expect("a folder");
        let history = History::load(records).expect("it can be read");
        Operations::new(vec![Box::new(fake.clone())], history, run, Arc::default())
    }

    async fn states(operations: &Operations) -> Vec<(String, OperationState)> {
        let listed = operations.list(v1::ListOperationsRequest::default()).await.expect("a list");
        listed.operations.into_iter().map(|operation| (operation.id.clone(), operation.state())).collect()
    }

    #[tokio::test]
    async fn work_is_an_operation_from_its_record_to_its_end_and_over_restarts() {
        let (fake, folder) = (Fake::default(), tempfile::tempdir().expect("a folder"));
        let first = operations(&fake, folder.path(), 1);
        assert!(states(&first).await.is_empty());
        fake.set("scrub-a", 10);
        fake.set("scrub-b", 20);
        let both = [("scrub-a".to_owned(), OperationState::Running), ("scrub-b".to_owned(), OperationState::Running)];
        assert_eq!(states(&first).await, both);
        fake.end("scrub-a", Outcome::Succeeded(String::new()));
        let one_ended =
            [("scrub-b".to_owned(), OperationState::Running), ("scrub-a".to_owned(), OperationState::Succeeded)];
        assert_eq!(states(&first).await, one_ended);
        // Another run finds what is under way by its record, and what has ended in the history.
        let second = operations(&fake, folder.path(), 2);
        assert_eq!(states(&second).await, one_ended);
        let ended = second.get("scrub-a").await.expect("it is kept");
        assert_eq!((ended.done_bytes, ended.total_bytes), (Some(100), Some(100)));
        assert!(ended.ended_at_unix_ms.is_some());
        // The same work again has the same id.
        fake.set("scrub-a", 1);
        assert_eq!(states(&second).await, both);
        let third = operations(&fake, folder.path(), 3);
        assert_eq!(states(&third).await, both);
    }

    #[tokio::test]
    async fn what_nobody_knows_the_end_of_waits() {
        let (fake, folder) = (Fake::default(), tempfile::tempdir().expect("a folder"));
        let operations = operations(&fake, folder.path(), 1);
        fake.set("scrub-a", 10);
        states(&operations).await;
        fake.end("scrub-a", Outcome::Unknown("its store is not open".to_owned()));
        assert_eq!(states(&operations).await, [("scrub-a".to_owned(), OperationState::Waiting)]);
        fake.set("scrub-a", 50);
        assert_eq!(states(&operations).await, [("scrub-a".to_owned(), OperationState::Running)]);
    }

    #[tokio::test]
    async fn a_cancelled_one_says_so_and_one_that_ended_cannot_be_cancelled() {
        let (fake, folder) = (Fake::default(), tempfile::tempdir().expect("a folder"));
        let operations = operations(&fake, folder.path(), 1);
        fake.set("scrub-a", 10);
        fake.set("scrub-b", 10);
        let cancelled = operations.cancel("scrub-a").await.expect("it can be");
        assert_eq!((cancelled.state(), cancelled.reason.as_str()), (OperationState::Cancelled, "as asked"));
        assert!(operations.cancel("scrub-a").await.is_ok(), "again");
        states(&operations).await;
        fake.end("scrub-b", Outcome::Succeeded(String::new()));
        assert!(operations.cancel("scrub-b").await.is_err_and(|error| error.to_string().contains("has ended")));
        assert!(operations.cancel("scrub-c").await.is_err_and(|error| error.to_string().contains("there is no")));
    }

    #[tokio::test]
    async fn a_watch_of_one_ends_with_it() {
        let (fake, folder) = (Fake::default(), tempfile::tempdir().expect("a folder"));
        let operations = operations(&fake, folder.path(), 1);
        fake.set("scrub-a", 10);
        fake.set("scrub-b", 10);
        let request = v1::WatchOperationsRequest { id: "scrub-a".to_owned(), ..Default::default() };
        let mut watch = operations.watch(request).await.expect("it is there");
        fake.set("scrub-a", 60);
        operations.look().await;
        fake.end("scrub-a", Outcome::Failed("the disk".to_owned()));
        operations.look().await;
        let mut told = Vec::new();
        // Only a test that has failed waits as long as that.
        let limit = Duration::from_secs(60);
        while let Some(change) = tokio::time::timeout(limit, watch.recv()).await.expect("it goes on or ends") {
            let change = change.expect("no error");
            told.push((change.kind(), change.operation.map(|operation| (operation.id.clone(), operation.state()))));
        }
        let of = |state| Some(("scrub-a".to_owned(), state));
        assert_eq!(told.first(), Some(&(ChangeKind::Existing, of(OperationState::Running))));
        assert_eq!(told.last(), Some(&(ChangeKind::Changed, of(OperationState::Failed))));
    }

    #[tokio::test]
    async fn only_the_last_ones_that_ended_are_kept() {
        let (fake, folder) = (Fake::default(), tempfile::tempdir().expect("a folder"));
        let operations = operations(&fake, folder.path(), 1);
        let count = ended::KEPT + 3;
        for number in 0..count {
            let id = format!("scrub-{number:04}");
            let last = v1::Operation { id, kind: OperationKind::Scrub.into(), ..Default::default() };
            operations.end(last, Outcome::Succeeded(String::new())).await;
        }
        assert_eq!(states(&operations).await.len(), ended::KEPT);
        assert!(operations.get("scrub-0002").await.is_err());
        let files = std::fs::read_dir(folder.path().join("operations")).expect("a folder").count();
        assert_eq!(files, ended::KEPT);
    }
}
