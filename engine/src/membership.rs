//! Replicas that come to a volume and leave it, while it is in use.

use std::rc::Rc;

use block_device::Error;
use reactor::{bug, timeout, wall_clock};
use replica::ReplicaState;
use uuid::Uuid;

use crate::config::EngineError;
use crate::core::{Core, Phase};
use crate::members::{Member, bit};
use crate::registry::{MAX_REPLICAS, MemberState, NewReplica, ReplicaRecord};
use crate::spreading::look_at;

impl Core {
    /// Takes in a replica, which was made before and is empty. It is out of sync until it was rebuilt; one that belongs to
    /// the volume already is fine (I30).
    pub(crate) async fn add_replica(self: &Rc<Self>, new: NewReplica) -> Result<(), EngineError> {
        let _administration = self.administration.lock().await;
        self.check_serving()?;
        {
            let record = self.record.borrow();
            if record.replicas.iter().any(|replica| replica.replica == new.replica) {
                return Ok(());
            }
            if record.replicas.len() >= MAX_REPLICAS {
                return Err(EngineError::Config(format!("a volume has at most {MAX_REPLICAS} replicas")));
            }
        }
        let since = wall_clock().as_secs();
        let nothing = MemberState::OutOfSync { since, reason: "it was added and has nothing yet".to_owned() };
        let added = ReplicaRecord::new(new, nothing);
        let recorded = self.change_members(added.replica, |record| {
            // An earlier attempt may have done it.
            if !record.replicas.iter().any(|replica| replica.replica == added.replica) {
                record.replicas.push(added.clone());
            }
            true
        });
        recorded.await.map_err(not_recorded)?;
        if self.is_running() {
            self.members.borrow_mut().0.push(Member::absent());
            self.watch_members();
            self.signals.announce_change();
        }
        // Or the session has ended with the record on its way to the copies: the next one begins with it.
        Ok(())
    }

    /// Lets a replica go; one that does not belong to the volume is fine (I42). Its content stays where it is.
    ///
    /// Members are counted in masks, so nothing may be in flight: requests wait until the record is changed. What is being
    /// copied begins anew.
    ///
    /// # Errors
    /// For the last one that is in sync and in reach (I3).
    pub(crate) async fn remove_replica(self: &Rc<Self>, replica: Uuid) -> Result<(), EngineError> {
        let _administration = self.administration.lock().await;
        let _frozen = self.freeze().await;
        self.check_serving()?;
        let place = self.record.borrow().replicas.iter().position(|member| member.replica == replica);
        let Some(place) = place else { return Ok(()) };
        let recorded = self.change_members(replica, |record| {
            record.replicas.retain(|member| member.replica != replica);
            // Notes are found by the places of members, which move.
            record.replicas.iter_mut().for_each(|member| member.changes = None);
            self.members.borrow().readable() & !bit(place) != 0 || bug!("remove-the-last-replica")
        });
        recorded.await.map_err(|reason| match self.is_serving() {
            true => EngineError::Config("no other replica is in sync and in reach".to_owned()),
            false => not_recorded(reason),
        })?;
        if !self.is_running() {
            // The session has ended with the record on its way to the copies: the next one begins with it.
            return Ok(());
        }
        self.members.borrow_mut().stop_following(!0);
        let removed = self.members.borrow_mut().0.remove(place);
        if let Some(replica) = removed.replica {
            replica.close();
        }
        self.watch_members();
        self.signals.announce_change();
        Ok(())
    }

    /// Makes a replica that is out of sync the one that counts, because those in sync will not come back (I5, I6). What was
    /// acknowledged since it left is lost, which only a person can decide.
    ///
    /// # Errors
    /// When the volume is served, or the replica is in sync already, a mixture of old and new, or out of reach: nothing has changed then.
    pub(crate) async fn recover(&self, replica: Uuid) -> Result<(), EngineError> {
        let refused = |text: &str| Err(EngineError::Config(text.to_owned()));
        if !matches!(*self.phase.borrow(), Phase::Waiting(_)) {
            return refused("the volume is served: there is nothing to recover");
        }
        let member = self.record.borrow().replicas.iter().find(|member| member.replica == replica).cloned();
        let Some(member) = member else { return refused("it is no replica of the volume") };
        match member.state {
            MemberState::InSync => return refused("it is in sync: the volume opens when it is in reach"),
            MemberState::Rebuilding => return refused("it was being rebuilt: its content is a mixture"),
            // What it has is all that was acknowledged, but for writes that were in flight.
            MemberState::Settling | MemberState::OutOfSync { .. } => {}
        }
        let looking = look_at(&*self.connector, &member, self.config.volume);
        match timeout(self.config.remote.open_limit, looking).await {
            Ok(Ok(looked)) if looked.granted.state == ReplicaState::Complete => {}
            Ok(Ok(_)) => return refused("it says that it was being rebuilt: its content is a mixture"),
            Ok(Err(error)) => return refused(&format!("the replica does not answer: {error}")),
            Err(_) => return refused("the replica does not answer"),
        }
        let since = wall_clock().as_secs();
        let _recording = self.recording.lock().await;
        let recorded = self.change_members_record(|record| {
            // An engine that still runs somewhere finds that the volume is not its own any more (I14).
            (record.epoch, record.instance) = (record.epoch + 1, self.instance);
            // What going back to a snapshot had begun it may have done or not: what it holds counts.
            record.pending = None;
            for member in &mut record.replicas {
                // What it lacks was known of another history (I23).
                (member.token, member.changes) = (None, None);
                member.state = match &member.state {
                    _ if member.replica == replica => MemberState::InSync,
                    // It stays a mixture, which cannot be the one that counts.
                    MemberState::Rebuilding => MemberState::Rebuilding,
                    _ => {
                        MemberState::OutOfSync { since, reason: "given up: another was recovered by force".to_owned() }
                    }
                };
            }
            matches!(*self.phase.borrow(), Phase::Waiting(_))
        });
        recorded.await.map_err(not_recorded)?;
        tracing::warn!(volume = %self.config.volume, %replica, "recovered by force: what was acknowledged since it left is lost");
        self.signals.announce_change();
        Ok(())
    }

    pub(crate) fn check_serving(&self) -> Result<(), EngineError> {
        match self.is_serving() {
            true => Ok(()),
            false => Err(EngineError::Unavailable("the volume is not open".to_owned())),
        }
    }
}

pub(crate) fn not_recorded(reason: crate::recording::NotRecorded) -> EngineError {
    EngineError::Unavailable(Error::from(reason).to_string())
}
