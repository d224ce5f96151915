//! Jobs as operations.

use std::sync::Arc;

use proto::v1::{self, OperationKind};
use uuid::Uuid;

use super::job::How;
use super::jobs::Jobs;
use crate::control::error::ControlError;
use crate::control::operations::{Outcome, Source};

/// The jobs of one kind.
pub(crate) struct BackupWork {
    pub(crate) jobs: Arc<Jobs>,
    pub(crate) kind: OperationKind,
}

impl BackupWork {
    /// All kinds of jobs.
    pub(crate) fn all(jobs: &Arc<Jobs>) -> impl Iterator<Item = Box<dyn Source>> + use<> {
        let kinds =
            [OperationKind::Backup, OperationKind::Restore, OperationKind::DeleteBackup, OperationKind::VerifyBackup];
        let jobs = Arc::clone(jobs);
        kinds.into_iter().map(move |kind| Box::new(Self { jobs: Arc::clone(&jobs), kind }) as Box<dyn Source>)
    }
}

/// The job that an operation is of: its name ends with the UUID.
fn uuid_of(id: &str) -> Option<Uuid> {
    let at = id.len().checked_sub(36)?;
    Uuid::try_parse(id.get(at..)?).ok()
}

#[tonic::async_trait]
impl Source for BackupWork {
    fn kind(&self) -> OperationKind {
        self.kind
    }

    async fn under_way(&self) -> Result<Vec<v1::Operation>, ControlError> {
        Ok(self.jobs.under_way(self.kind))
    }

    async fn outcome(&self, last: &v1::Operation, _: bool) -> Outcome {
        match uuid_of(&last.id).and_then(|uuid| self.jobs.end_of(uuid)) {
            Some(ended) => match ended.how {
                How::Succeeded => Outcome::Succeeded(ended.reason),
                How::Failed => Outcome::Failed(ended.reason),
                How::Cancelled => Outcome::Cancelled(ended.reason),
            },
            None => Outcome::Cancelled("its record is gone".to_owned()),
        }
    }

    fn failure_of(&self, last: &v1::Operation) -> String {
        let ended = uuid_of(&last.id).and_then(|uuid| self.jobs.end_of(uuid));
        ended.and_then(|ended| ended.failure).map_or_else(String::new, |kind| kind.to_string())
    }

    async fn cancel(&self, operation: &v1::Operation) -> Result<(), ControlError> {
        match uuid_of(&operation.id) {
            Some(uuid) => self.jobs.cancel(uuid).await,
            None => Err(ControlError::not_found("operation", &operation.id)),
        }
    }
}
