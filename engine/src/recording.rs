//! Changing the record: one change at a time, durable before anything depends on it (I2), in the registry and then as the
//! replicas' copies.

use std::time::Duration;

use block_device::{Error, ErrorKind};
use reactor::{bug, sleep, wall_clock};
use smallvec::SmallVec;
use uuid::Uuid;

use crate::core::Core;
use crate::members::{Role, bit};
use crate::registry::{MemberState, RegistryError, VolumeRecord};

/// How long to wait before a registry that failed is asked again, at first and at most.
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The record could not be changed, and never will be by this change.
pub(crate) enum NotRecorded {
    /// The engine has stopped, or starts over.
    Ended,
    /// The change found that it does not apply any more.
    Withdrawn,
}

impl From<NotRecorded> for Error {
    fn from(reason: NotRecorded) -> Self {
        Self::with_detail(
            ErrorKind::Unavailable,
            match reason {
                NotRecorded::Ended => "the engine has stopped or starts over",
                NotRecorded::Withdrawn => "the membership changed meanwhile",
            },
        )
    }
}

impl Core {
    /// Changes the record. `change` is asked for each attempt and may withdraw; a registry that cannot be reached is
    /// asked until it can. An engine whose record was changed by another one stops (I14).
    ///
    /// The engine itself works with the old record until copies have the new one, and from then on the caller runs before anyone else: what it
    /// changes with the record changes in the same moment.
    pub(crate) async fn change_record(&self, change: impl FnMut(&mut VolumeRecord) -> bool) -> Result<(), NotRecorded> {
        let _recording = self.recording.lock().await;
        self.change_locked_record(change).await
    }

    /// The same for whoever holds the lock.
    pub(crate) async fn change_locked_record(
        &self,
        mut change: impl FnMut(&mut VolumeRecord) -> bool,
    ) -> Result<(), NotRecorded> {
        self.change_members_record(|record| self.has_members_of(record, None) && change(record)).await
    }

    /// The same for whoever takes in this replica, or lets it go: an earlier attempt may have done it.
    pub(crate) async fn change_members(
        &self,
        replica: Uuid,
        mut change: impl FnMut(&mut VolumeRecord) -> bool,
    ) -> Result<(), NotRecorded> {
        let _recording = self.recording.lock().await;
        self.change_members_record(|record| self.has_members_of(record, Some(replica)) && change(record)).await
    }

    /// Whether a record has the session's replicas, `changing` aside. Whoever added or removed one may have given up after the registry had
    /// that: places mean other replicas there. The session ends then, and the next one has the record's members.
    fn has_members_of(&self, record: &VolumeRecord, changing: Option<Uuid>) -> bool {
        let ids = |record: &VolumeRecord| {
            let ids = record.replicas.iter().map(|replica| replica.replica);
            ids.filter(|id| Some(*id) != changing).collect::<SmallVec<[Uuid; 4]>>()
        };
        ids(&self.record.borrow()) == ids(record)
    }

    /// The same for whoever knows replicas by their uuids only, and holds the lock.
    pub(crate) async fn change_members_record(
        &self,
        mut change: impl FnMut(&mut VolumeRecord) -> bool,
    ) -> Result<(), NotRecorded> {
        let (mut pause, mut adopted) = (PAUSE, None);
        loop {
            if self.stopped().is_some() {
                return Err(NotRecorded::Ended);
            }
            let mut record = adopted.clone().unwrap_or_else(|| self.record.borrow().clone());
            if !change(&mut record) {
                if adopted.is_some() {
                    // An earlier attempt is in the registry: whoever starts over finds it.
                    self.lose();
                }
                return Err(NotRecorded::Withdrawn);
            }
            let expected = record.version;
            match self.registry.store(Some(expected), &record).await {
                Ok(version) => {
                    record.version = version;
                    if !bug!("change-the-record-without-the-copies") {
                        self.spread_record(&record).await;
                    }
                    *self.record.borrow_mut() = record;
                    self.signals.told.notify_waiters();
                    return Ok(());
                }
                Err(RegistryError::Conflict { .. }) => adopted = self.adopt_record().await.or(adopted),
                Err(error) => {
                    tracing::warn!(volume = %self.config.volume, %error, "recording the membership failed, trying again");
                    sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    /// After a conflict: an earlier attempt of ours that succeeded although it did not seem so, or another engine.
    async fn adopt_record(&self) -> Option<VolumeRecord> {
        match self.registry.load(self.config.volume).await {
            Ok(Some(record)) if record.instance == self.instance || bug!("go-on-with-the-record-of-another-engine") => {
                return Some(record);
            }
            Ok(Some(_)) => self.stop_fenced("another engine has changed the volume's record"),
            // What others do by now is not known: whoever starts anew asks the replicas.
            Ok(None) => self.stop_fenced("the registry has no record of the volume any more"),
            Err(error) => {
                tracing::warn!(volume = %self.config.volume, %error, "loading the membership failed, trying again");
                sleep(PAUSE).await;
            }
        }
        None
    }

    /// Records members that failed, and lets go what waited for it. Runs for a session.
    pub(crate) async fn record_failures(&self) {
        loop {
            self.signals.failing.notified().await;
            while self.is_running() && self.members.borrow().failing() != 0 {
                if self.record_failing().await.is_err() {
                    break;
                }
            }
            self.conclude_recorded();
        }
    }

    async fn record_failing(&self) -> Result<(), NotRecorded> {
        self.follow_failing().await;
        let since = wall_clock().as_secs();
        let mut recorded = 0;
        let result = self
            .change_record(|record| {
                let members = self.members.borrow();
                recorded = members.followed();
                if members.in_sync() & !members.failing() == 0 && !bug!("record-the-last-in-sync-as-failed") {
                    // I3: the last one is never recorded.
                    return false;
                }
                for (index, member) in members.0.iter().enumerate().filter(|(index, _)| recorded & bit(*index) != 0) {
                    let reason = member.failing.as_ref().map(ToString::to_string).unwrap_or_default();
                    record.replicas[index].state = MemberState::OutOfSync { since, reason };
                    record.replicas[index].changes = member.changes.as_ref().map(|changes| changes.generation);
                }
                true
            })
            .await;
        match result {
            Ok(()) => self.part_with(recorded),
            Err(NotRecorded::Withdrawn) => self.lose(),
            Err(NotRecorded::Ended) => {}
        }
        result
    }

    /// The record says that these are out of sync: nothing waits for them any more.
    fn part_with(&self, recorded: crate::members::Mask) {
        for (index, member) in self.members.borrow_mut().0.iter_mut().enumerate() {
            if recorded & bit(index) != 0 {
                member.role = Role::Absent;
                (member.failing, member.noted, member.following) = (None, false, false);
                // Its requests have ended; a drop closes it.
                member.replica = None;
                let reason = member.trouble.as_deref().unwrap_or_default();
                tracing::warn!(volume = %self.config.volume, member = index, reason, "a replica is out of sync");
            }
        }
        self.signals.announce_change();
    }
}
