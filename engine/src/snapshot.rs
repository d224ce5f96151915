//! Cutting all replicas at one point, and deleting what was cut.

use std::rc::Rc;

use block_device::{Error, ErrorKind};
use reactor::bug;
use replica::{ChainEntry, LvolKind};
use uuid::Uuid;

use crate::config::EngineError;
use crate::core::Core;
use crate::members::Role;

impl Core {
    /// Snapshots the volume: everything acknowledged before the call is in it, nothing submitted after its end (I24).
    pub(crate) async fn snapshot(self: &Rc<Self>, id: Uuid, name: &str) -> Result<(), EngineError> {
        let _administration = self.administration.lock().await;
        let _held = if bug!("snapshot-without-a-hold") { None } else { Some(self.hold_writes().await) };
        self.check_serving()?;
        if !bug!("copy-across-a-snapshot") {
            self.detach_copies("a snapshot was taken");
        }
        let (name, size) = (name.to_owned(), self.geometry.get().size());
        let members = if bug!("snapshot-one-replica") {
            self.readable() & self.readable().wrapping_neg()
        } else {
            self.readable()
        };
        self.together("a snapshot", members, move |replica| {
            let name = name.clone();
            async move { replica.snapshot(id, size, &name).await }
        })
        .await
    }

    /// Deletes a snapshot from the volume's chain; none there is no error. The space comes back in the background.
    pub(crate) async fn delete_snapshot(self: &Rc<Self>, id: Uuid) -> Result<(), EngineError> {
        let _administration = self.administration.lock().await;
        self.check_serving()?;
        self.detach_copies("a snapshot was deleted");
        self.together("deleting a snapshot", self.readable(), move |replica| async move {
            replica.delete_snapshot(id).await
        })
        .await
    }

    /// The volume's snapshots, oldest first.
    pub(crate) async fn snapshots(&self) -> Result<Vec<ChainEntry>, EngineError> {
        let source = {
            let members = self.members.borrow();
            members.source(0).and_then(|member| members.replica(member))
        };
        let source = source.ok_or_else(|| EngineError::Unavailable("the volume is not open".to_owned()))?;
        let mut chain = source.chain().await.map_err(EngineError::Failed)?;
        chain.retain(|entry| entry.kind == LvolKind::Snapshot);
        Ok(chain)
    }

    /// Replicas being copied do not take part now: a rebuild copies it later, a settling one becomes a rebuild.
    fn detach_copies(&self, why: &str) {
        let mut settling = Vec::new();
        for (index, member) in self.members.borrow_mut().0.iter_mut().enumerate() {
            match member.role {
                Role::Rebuilding => (member.role, member.replica) = (Role::Absent, None),
                Role::Settling => settling.push(index),
                Role::Absent | Role::InSync => {}
            }
        }
        let error = Error::with_detail(ErrorKind::Aborted, format_args!("{why} before it was settled"));
        settling.into_iter().for_each(|member| self.member_failed(member, &error));
    }
}
