//! Going back to a snapshot, on all replicas or on none.
//!
//! No write tells a replica that was away, or an engine that starts after a crash, which blocks a revert has changed. So it
//! is recorded before it begins and until it is done: a start in between makes it on every replica again, before anything is
//! served. Made twice it is the same, since nothing is written meanwhile.

use std::rc::Rc;

use block_device::{Error, ErrorKind};
use reactor::bug;
use replica::Replica;
use uuid::Uuid;

use crate::config::EngineError;
use crate::core::Core;
use crate::members::Role;
use crate::registry::PendingChange;
use crate::session::{Opened, SessionError};

impl Core {
    /// Makes the volume read as one of its snapshots did; what was written since, and the snapshots since, are gone.
    ///
    /// # Errors
    /// When there are newer snapshots, unless `discard_newer` says that they may go; nothing is changed then.
    pub(crate) async fn revert(self: &Rc<Self>, snapshot: Uuid, discard_newer: bool) -> Result<(), EngineError> {
        let _administration = self.administration.lock().await;
        let _frozen = self.freeze().await;
        self.check_serving()?;
        self.check_revert(snapshot, discard_newer).await?;
        self.end_copies();
        self.record_pending(Some(PendingChange::Revert { snapshot })).await?;
        let result = self
            .together("going back to a snapshot", self.readable(), move |replica| async move {
                replica.revert(snapshot).await
            })
            .await;
        match result {
            Ok(()) => self.record_pending(None).await,
            Err(error) => {
                // Some may have done it, and the record says that all are to: the next session makes it so.
                self.lose();
                Err(error)
            }
        }
    }

    async fn check_revert(&self, snapshot: Uuid, discard_newer: bool) -> Result<(), EngineError> {
        let snapshots = self.snapshots().await?;
        let Some(place) = snapshots.iter().position(|entry| entry.id == snapshot) else {
            return Err(EngineError::Config(format!("the volume has no snapshot {snapshot}")));
        };
        let newer = &snapshots[place + 1..];
        if newer.is_empty() || discard_newer {
            return Ok(());
        }
        let names: Vec<_> = newer.iter().map(|entry| entry.name.as_str()).collect();
        Err(EngineError::Config(format!("snapshots newer than it would be lost: {}", names.join(", "))))
    }

    /// Whatever a copy has brought to a replica so far is not what the volume will read as.
    fn end_copies(&self) {
        let copied: Vec<_> = {
            let members = self.members.borrow();
            let members = members.0.iter().enumerate();
            members
                .filter(|(_, member)| matches!(member.role, Role::Settling | Role::Rebuilding))
                .map(|(index, _)| index)
                .collect()
        };
        let error = Error::with_detail(ErrorKind::Aborted, "the volume went back to a snapshot");
        copied.into_iter().for_each(|member| self.member_failed(member, &error));
    }

    async fn record_pending(&self, pending: Option<PendingChange>) -> Result<(), EngineError> {
        let recorded = self.change_record(|record| {
            record.pending = pending.clone();
            if bug!("keep-the-maps-in-a-revert") {
                return true;
            }
            // Of those that are not in sync nobody knows any more what they lack (I23).
            record.replicas.iter_mut().for_each(|replica| replica.changes = None);
            true
        });
        recorded.await.map_err(|reason| EngineError::Unavailable(Error::from(reason).to_string()))?;
        if !bug!("keep-the-maps-in-a-revert") {
            self.members.borrow_mut().stop_following(!0);
        }
        Ok(())
    }

    /// Ends what an engine before had begun, on every replica that was opened in sync. Those that do not follow count as
    /// missing.
    pub(crate) async fn end_pending_change(&self, mut opened: Opened) -> Result<Opened, SessionError> {
        let Some(PendingChange::Revert { snapshot }) = self.record.borrow().pending.clone() else {
            return Ok(opened);
        };
        if bug!("forget-a-revert-under-way") {
            return Ok(opened);
        }
        tracing::info!(volume = %self.config.volume, %snapshot, "going back to a snapshot, as was begun");
        let mut failure = None;
        for place in &mut opened {
            let Some(replica) = place else { continue };
            if let Err(error) = self.revert_one(replica, snapshot).await {
                tracing::warn!(replica = %replica.id(), %error, "a replica does not go back to the snapshot");
                failure = Some(error);
                *place = None;
            }
        }
        match failure {
            Some(error) if opened.iter().all(Option::is_none) => return Err(SessionError::Change(error)),
            _ => {}
        }
        // Recorded together with those that are missing, which have not gone back: see `admit`.
        Ok(opened)
    }

    async fn revert_one(&self, replica: &Rc<dyn Replica>, snapshot: Uuid) -> Result<(), Error> {
        let late = || Error::with_detail(ErrorKind::TimedOut, "no answer to going back to a snapshot in time");
        reactor::timeout(self.config.replica_deadline, replica.revert(snapshot)).await.unwrap_or_else(|_| Err(late()))
    }

    /// Keeps every request waiting, and waits until those in flight are answered.
    pub(crate) async fn freeze(&self) -> Frozen<'_> {
        self.flight.borrow_mut().freeze(true);
        let frozen = Frozen(self);
        self.until_ended(|| (!self.flight.borrow().is_active() || !self.is_running()).then_some(())).await;
        frozen
    }
}

/// Nothing starts while it lives.
pub(crate) struct Frozen<'a>(&'a Core);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        self.0.flight.borrow_mut().freeze(false);
        self.0.signals.pump.notify_one();
    }
}
