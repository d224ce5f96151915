//! Clones: volumes that begin as a snapshot of another one. Each replica is made where a replica of that one is in sync, and shares its
//! blocks. Snapshots are equal on all replicas in sync (I24), so a clone's replicas are in sync from the start.

use proto::v1::{self, MemberState};
use uuid::Uuid;

use super::{Phase, ReplicaRecord, SourceRecord, VolumeRecord, Volumes};
use crate::control::error::{Comparison, ControlError};
use crate::control::request;
use crate::data::SnapshotFacts;

impl Volumes {
    /// Makes a clone, or returns the one that is there, or goes on with one that is half made (I30).
    pub(crate) async fn clone_snapshot(&self, request: v1::CloneVolumeRequest) -> Result<v1::Volume, ControlError> {
        let name = request::name("name", &request.name)?;
        let uuid = request::optional_uuid("uuid", &request.uuid)?;
        let _lock = self.locks.lock(name.clone()).await;
        let existing = self.entries().values().find(|entry| entry.record.name == name).cloned();
        let record = match existing {
            Some(entry) => {
                compare(&entry.record, &request, uuid)?;
                entry.record
            }
            None => self.begin_clone(name, uuid, &request).await?,
        };
        self.complete(record).await
    }

    async fn begin_clone(
        &self,
        name: String,
        uuid: Option<Uuid>,
        request: &v1::CloneVolumeRequest,
    ) -> Result<VolumeRecord, ControlError> {
        let uuid = self.unused_uuid(uuid, &name)?;
        let source = self.find(&request.volume)?.record;
        let snapshot = self.here.engines.find_snapshot(source.uuid, &request.snapshot).await?;
        let replicas = self.places(&source, &request.nodes).await?;
        let record = VolumeRecord {
            uuid,
            name,
            size: size(&snapshot, request.size_bytes, source.block_size)?,
            block_size: source.block_size,
            created_at: request::unix_milliseconds(),
            store: source.store,
            replicas,
            phase: Phase::Creating,
            source: Some(SourceRecord {
                volume: source.uuid,
                volume_name: source.name,
                snapshot: snapshot.uuid,
                snapshot_name: snapshot.name,
            }),
            held: None,
        };
        self.keep(&record).await?;
        Ok(record)
    }

    /// A replica beside each that is in sync, or beside those on the nodes named.
    async fn places(&self, source: &VolumeRecord, named: &[String]) -> Result<Vec<ReplicaRecord>, ControlError> {
        let members = self.here.engines.get(source.uuid).await?.members;
        let in_sync = members.into_iter().filter(|member| member.state() == MemberState::InSync && member.connected);
        let mut replicas = Vec::new();
        for member in in_sync.filter(|member| named.is_empty() || named.contains(&member.node)) {
            let origin = Some(request::uuid("replica_uuid", &member.replica_uuid)?);
            replicas.push(ReplicaRecord { origin, ..ReplicaRecord::new(member.node) });
        }
        if let Some(missing) = named.iter().find(|node| !replicas.iter().any(|replica| replica.node == **node)) {
            let name = &source.name;
            let text = format!(
                "node `{missing}` has no replica of volume `{name}` that is in sync: leave it out, and add a replica there afterwards"
            );
            return Err(ControlError::precondition("NO_SOURCE", text).with("node", missing));
        }
        if replicas.is_empty() {
            let text = format!("volume `{}` has no replica in sync that can be reached now", source.name);
            return Err(ControlError::unavailable("NO_SOURCE", text));
        }
        Ok(replicas)
    }
}

fn size(snapshot: &SnapshotFacts, wanted: u64, block_size: u32) -> Result<u64, ControlError> {
    let size = if wanted == 0 { snapshot.size } else { wanted };
    if size < snapshot.size {
        let problem = format!("snapshot `{}` has {} bytes; nothing is ever cut off", snapshot.name, snapshot.size);
        return Err(ControlError::invalid("size_bytes", problem));
    }
    request::geometry(size, block_size)?;
    Ok(size)
}

/// Whether a volume that is there is the one that the request means. Where its replicas are is not asked: that changes.
fn compare(existing: &VolumeRecord, request: &v1::CloneVolumeRequest, uuid: Option<Uuid>) -> Result<(), ControlError> {
    // By UUID or name, whichever the caller uses.
    let called = |wanted: &str, uuid: Uuid, name: &str| match wanted == uuid.to_string() {
        true => wanted.to_owned(),
        false => name.to_owned(),
    };
    let (volume, snapshot) = existing.source.as_ref().map_or_else(Default::default, |source| {
        let volume = called(&request.volume, source.volume, &source.volume_name);
        (volume, called(&request.snapshot, source.snapshot, &source.snapshot_name))
    });
    let size = if request.size_bytes == 0 { existing.size } else { request.size_bytes };
    Comparison::default()
        .optional("uuid", existing.uuid, uuid)
        .field("volume", &volume, &request.volume)
        .field("snapshot", &snapshot, &request.snapshot)
        .field("size_bytes", existing.size, size)
        .finish("volume", &existing.name)
}

impl SourceRecord {
    pub(super) fn describe(self) -> v1::VolumeSource {
        v1::VolumeSource {
            volume_uuid: self.volume.to_string(),
            volume: self.volume_name,
            snapshot_uuid: self.snapshot.to_string(),
            snapshot: self.snapshot_name,
        }
    }
}
