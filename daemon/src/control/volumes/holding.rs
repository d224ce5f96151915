//! Volumes that are kept from hosts: a backup is restored to them, or they follow the backups of another one.
//!
//! ```text
//!             create_held, hold                     release
//!  (free) ─────────────────────▶ HELD by one work ───────────▶ RELEASING ───▶ (free)
//! ```
//! From RELEASING on hosts may be let in at any moment, and nobody else writes to it.
//!
//! It is on record, so that no restart shows half a volume to hosts. What changes such a volume for others is refused meanwhile.

use proto::v1::{self, VolumeState};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{VolumeRecord, Volumes};
use crate::control::error::ControlError;
use crate::control::frontends::Frontends;
use crate::data::VolumeChange;

/// What keeps a volume from hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Hold {
    /// The restore with this UUID. One that failed holds it still: the volume is between two states.
    Restore(Uuid),
    /// It is a standby.
    Standby,
    /// Its content is what it is to be: hosts are about to be let in.
    Releasing,
}

/// For people and comparisons.
pub(super) fn word(held: Option<Hold>) -> &'static str {
    match held {
        None => "a volume of its own",
        Some(Hold::Restore(_)) => "a restore",
        Some(Hold::Standby) => "a standby",
        Some(Hold::Releasing) => "a volume that is about to be given to hosts",
    }
}

impl VolumeRecord {
    /// Over what hosts reach it from the start.
    pub(super) fn frontends(&self) -> Frontends {
        match self.held {
            None => Frontends::default(),
            Some(_) => Frontends::default().unexport(None),
        }
    }

    pub(super) fn state_when_created(&self) -> VolumeState {
        match self.held {
            None => VolumeState::Created,
            Some(Hold::Restore(_) | Hold::Releasing) => VolumeState::Restoring,
            Some(Hold::Standby) => VolumeState::Standby,
        }
    }

    pub(super) fn why_held(&self) -> String {
        match self.held {
            None => String::new(),
            Some(Hold::Restore(work)) => {
                format!("operation restore-{work} has it: restore to it again, or delete it, if that has failed")
            }
            Some(Hold::Standby) => "it follows backups: activate the standby to use it".to_owned(),
            Some(Hold::Releasing) => "it is about to be given to hosts".to_owned(),
        }
    }

    /// An error if something keeps it from hosts.
    pub(super) fn check_free(&self) -> Result<(), ControlError> {
        match self.held {
            None => Ok(()),
            Some(_) => {
                let text = format!("volume `{}` cannot be changed: {}", self.name, self.why_held());
                Err(ControlError::precondition("RESTORING", text).with("volume", &self.name))
            }
        }
    }

    /// An error if it is a standby: it goes with that.
    pub(super) fn check_no_standby(&self) -> Result<(), ControlError> {
        match self.held {
            Some(Hold::Standby) => {
                let text = format!("volume `{}` is a standby: delete the standby", self.name);
                Err(ControlError::precondition("RESTORING", text).with("volume", &self.name))
            }
            _ => Ok(()),
        }
    }
}

impl Volumes {
    /// The identity of a volume that nothing keeps from hosts.
    pub(in crate::control) fn free_uuid_of(&self, volume: &str) -> Result<Uuid, ControlError> {
        let record = self.find(volume)?.record;
        record.check_free()?;
        Ok(record.uuid)
    }

    /// Makes a volume that hosts cannot attach, or returns the one that the same work has made.
    pub(in crate::control) async fn create_held(
        &self,
        request: v1::CreateVolumeRequest,
        hold: Hold,
    ) -> Result<v1::Volume, ControlError> {
        self.create_for(request, Some(hold)).await
    }

    /// What keeps a volume from hosts; the outer None: there is no such volume.
    pub(in crate::control) fn held(&self, volume: Uuid) -> Option<Option<Hold>> {
        self.entries().get(&volume).map(|entry| entry.record.held)
    }

    /// Takes a volume that hosts cannot attach now. `passes_on` says whether one that a restore holds may be taken from that.
    pub(in crate::control) async fn hold(
        &self,
        volume: Uuid,
        hold: Hold,
        passes_on: impl Fn(Uuid) -> bool + Send,
    ) -> Result<(), ControlError> {
        let (_lock, mut record) = self.lock_created(&volume.to_string()).await?;
        match record.held {
            Some(held) if held == hold => return Ok(()),
            Some(Hold::Restore(other)) if passes_on(other) => {}
            _ => record.check_free()?,
        }
        if self.here.engines.is_exported(volume) {
            let text = format!("hosts can attach volume `{}`: unexport it first", record.name);
            return Err(ControlError::precondition("EXPORTED", text).with("volume", &record.name));
        }
        record.held = Some(hold);
        Ok(self.keep(&record).await?)
    }

    /// Gives a volume to hosts again, over NVMe/TCP if `export` says so. Again: no change.
    pub(in crate::control) async fn release(&self, volume: Uuid, hold: Hold, export: bool) -> Result<(), ControlError> {
        let (_lock, mut record) = self.lock_created(&volume.to_string()).await?;
        if record.held != Some(hold) && record.held != Some(Hold::Releasing) {
            return Ok(());
        }
        record.held = Some(Hold::Releasing);
        self.keep(&record).await?;
        if export {
            self.here.engines.export_by_default(volume).await?;
        }
        record.held = None;
        Ok(self.keep(&record).await?)
    }

    /// Deletes a volume that is a standby no more.
    pub(in crate::control) async fn delete_held(&self, volume: Uuid) -> Result<(), ControlError> {
        match self.lock_created(&volume.to_string()).await {
            Ok((_lock, mut record)) => {
                // From here on it can be deleted like one whose restore failed.
                record.held = record.held.map(|_| Hold::Restore(volume));
                self.keep(&record).await?;
            }
            Err(_) if !self.contains(volume) => return Ok(()),
            // It is half made or being deleted: the deletion goes on with that.
            Err(_) => {}
        }
        let request = v1::DeleteVolumeRequest { volume: volume.to_string(), expected_uuid: String::new() };
        self.delete(request).await.map(drop)
    }

    /// Makes a held volume at least so large.
    pub(in crate::control) async fn grow_held(&self, volume: Uuid, size: u64) -> Result<(), ControlError> {
        if self.here.engines.size_of(volume).is_some_and(|now| now >= size) {
            return Ok(());
        }
        self.check_size(volume, size)?;
        self.here.engines.change(volume, VolumeChange::Grow(size)).await?;
        self.note_size(volume, size).await
    }
}
