//! Volumes with the version of their last change.

use proto::v1::{self, ChangeKind};
use uuid::Uuid;

use super::Volumes;
use crate::control::error::ControlError;
use crate::control::request;
use crate::control::streams::{ChangeStream, Told, stream};
use crate::control::versions::Change;

impl Volumes {
    /// Takes in how a volume is seen now.
    pub(in crate::control) fn seen(&self, uuid: Uuid, engine: Option<v1::Engine>) {
        let key = uuid.to_string();
        let entry = self.entries().get(&uuid).cloned();
        match entry {
            None => self.versions.remove(&key),
            Some(entry) => {
                let volume = entry.describe(engine);
                let known = self.versions.get(&key);
                if known.is_none_or(|known| without_pauses(known) != without_pauses(volume.clone())) {
                    self.versions.set(&key, volume);
                }
            }
        }
    }

    /// The volumes that there are, then what becomes of them.
    pub(crate) async fn watch(
        &self,
        request: &v1::WatchVolumesRequest,
    ) -> Result<ChangeStream<v1::VolumeChange>, ControlError> {
        // What was made just now may not have been looked at yet: who begins with a list has it in there.
        for uuid in self.uuids() {
            if self.versions.get(&uuid.to_string()).is_none() {
                self.seen(uuid, self.engines().get(uuid).await.ok());
            }
        }
        let only = request::optional_uuid("volume_uuid", &request.volume_uuid)?.map(|uuid| uuid.to_string());
        let follower = self.versions.follow(&request.resource_version)?;
        Ok(stream(follower, move |change| {
            let is_other = |volume: &v1::Volume| only.as_ref().is_some_and(|only| *only != volume.uuid);
            match &change.object {
                Some(volume) if is_other(volume) => Told::Nothing,
                _ => Told::Message(message(change)),
            }
        }))
    }

    /// Ends all watches.
    pub(crate) fn end_watches(&self) {
        self.versions.end();
    }

    /// All there are.
    pub(in crate::control) fn uuids(&self) -> Vec<Uuid> {
        self.entries().keys().copied().collect()
    }
}

fn message(change: Change<v1::Volume>) -> v1::VolumeChange {
    let Change { kind, object, version } = change;
    let volume = object.map(|volume| v1::Volume { resource_version: version.clone(), ..volume });
    debug_assert_eq!(volume.is_none(), kind == ChangeKind::Listed);
    v1::VolumeChange { kind: kind.into(), volume, resource_version: version }
}

/// Without what changes with time alone.
fn without_pauses(mut volume: v1::Volume) -> v1::Volume {
    for member in volume.engine.iter_mut().flat_map(|engine| &mut engine.members) {
        member.next_try_ms = None;
    }
    volume
}
