//! Cutting all replicas at one point.

use std::rc::Rc;

use block_device::{Error, ErrorKind};
use replica::Replica;
use uuid::Uuid;

use crate::config::EngineError;
use crate::core::Core;
use crate::members::Role;

impl Core {
    /// Snapshots the volume: everything acknowledged before the call is in it, nothing submitted after its end (I24).
    pub(crate) async fn snapshot(self: &Rc<Self>, id: Uuid, name: &str) -> Result<(), EngineError> {
        let _administration = self.administration.lock().await;
        let _held = self.hold_writes().await;
        if !self.is_serving() {
            return Err(EngineError::Unavailable("the volume is not open".to_owned()));
        }
        self.detach_copies();
        let results = self.cut(id, name).await;
        let (cut, failed): (Vec<_>, Vec<_>) = results.into_iter().partition(|(_, result)| result.is_ok());
        if cut.is_empty() {
            return Err(self.nobody_cut(failed));
        }
        // I25: who lacks it is out of sync before anyone hears that it is there.
        for (member, result) in failed {
            if let Err(error) = result {
                self.member_failed(member, &error);
            }
        }
        let settled = || self.members.borrow().failing() == 0;
        self.until(|| (settled() || !self.is_serving()).then_some(())).await;
        match self.is_serving() {
            true => Ok(()),
            false => Err(EngineError::Unavailable("the volume closed meanwhile".to_owned())),
        }
    }

    /// Cuts every replica in sync, all at once.
    async fn cut(&self, id: Uuid, name: &str) -> Vec<(usize, Result<(), Error>)> {
        let targets: Vec<(usize, Rc<dyn Replica>)> = {
            let members = self.members.borrow();
            members.replicas(members.readable()).map(|(member, replica)| (member, Rc::clone(replica))).collect()
        };
        let limit = self.config.replica_deadline;
        let cutting = targets.into_iter().map(|(member, replica)| {
            let name = name.to_owned();
            let task = reactor::spawn(async move {
                let late = || Error::with_detail(ErrorKind::TimedOut, "no answer to a snapshot in time");
                reactor::timeout(limit, replica.snapshot(id, &name)).await.unwrap_or_else(|_| Err(late()))
            });
            (member, task)
        });
        let mut results = Vec::new();
        for (member, task) in cutting.collect::<Vec<_>>() {
            let ended = |_| Error::with_detail(ErrorKind::Internal, "cutting a replica panicked");
            results.push((member, task.await.map_err(ended).and_then(|result| result)));
        }
        results
    }

    /// No replica said that it has the snapshot. One that said clearly that it has not is as before; of the others nobody
    /// knows, and they cannot stay beside it (I25).
    fn nobody_cut(&self, failed: Vec<(usize, Result<(), Error>)>) -> EngineError {
        let unknown =
            |error: &Error| matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::Unavailable | ErrorKind::Aborted);
        let errors = failed.into_iter().filter_map(|(member, result)| Some((member, result.err()?)));
        let (lost, clear): (Vec<_>, Vec<_>) = errors.partition(|(_, error)| unknown(error));
        let told = clear.first().or(lost.first()).map(|(_, error)| error.clone());
        for (member, error) in lost {
            self.member_failed(member, &error);
        }
        told.map_or_else(|| EngineError::Unavailable("no replica in sync".to_owned()), EngineError::Failed)
    }

    /// Replicas being copied do not get the snapshot now: a rebuild copies it later, a settling one becomes a rebuild.
    fn detach_copies(&self) {
        let mut settling = Vec::new();
        for (index, member) in self.members.borrow_mut().0.iter_mut().enumerate() {
            match member.role {
                Role::Rebuilding => (member.role, member.replica) = (Role::Absent, None),
                Role::Settling => settling.push(index),
                Role::Absent | Role::InSync => {}
            }
        }
        let error = Error::with_detail(ErrorKind::Aborted, "a snapshot was taken before it was settled");
        settling.into_iter().for_each(|member| self.member_failed(member, &error));
    }
}
