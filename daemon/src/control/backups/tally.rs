//! What metrics tell of backups and restores of this run.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use backup::Kind;

use super::job::{Ended, How, JobRecord, Work};

/// Counters of this run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    /// Packed bytes that backups stored.
    pub(crate) stored: u64,
    /// Bytes of backups that were restored.
    pub(crate) restored: u64,
    /// What succeeded and failed, by the work: `backup`, `restore`, `delete`, `verify`.
    pub(crate) succeeded: BTreeMap<&'static str, u64>,
    /// By the work and the kind of failure.
    pub(crate) failed: BTreeMap<(&'static str, &'static str), u64>,
}

#[derive(Default)]
pub(crate) struct Tally(Mutex<Counts>);

impl Tally {
    pub(super) fn count(&self, record: &JobRecord, ended: &Ended) {
        let work = word(&record.work);
        self.with(|counts| match ended.how {
            How::Succeeded => {
                *counts.succeeded.entry(work).or_default() += 1;
                match record.work {
                    Work::Backup(_) => counts.stored += ended.bytes,
                    Work::Restore(_) => counts.restored += ended.bytes,
                    Work::Delete | Work::Verify => {}
                }
            }
            How::Failed => *counts.failed.entry((work, name(ended.failure))).or_default() += 1,
            How::Cancelled => {}
        });
    }

    /// A request that was refused because what it is of is gone.
    pub(super) fn refused(&self, work: &'static str, kind: Kind) {
        self.with(|counts| *counts.failed.entry((work, kind.name())).or_default() += 1);
    }

    pub(super) fn counts(&self) -> Counts {
        self.with(|counts| counts.clone())
    }

    fn with<T>(&self, look: impl FnOnce(&mut Counts) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn name(kind: Option<Kind>) -> &'static str {
    kind.map_or("other", Kind::name)
}

/// What a job does, in a word.
pub(super) const fn word(work: &Work) -> &'static str {
    match work {
        Work::Backup(_) => "backup",
        Work::Restore(_) => "restore",
        Work::Delete => "delete",
        Work::Verify => "verify",
    }
}
