//! Changes of a volume that exists: its snapshots, its content, its size.

use proto::v1;
use uuid::Uuid;

use super::engines::{Engines, MemberRecord};
use super::error::ControlError;
use super::request;
use super::volumes::Volumes;
use crate::data::{SnapshotFacts, VolumeChange};

impl Engines {
    /// Changes a volume on all its replicas.
    pub(super) async fn change(&self, volume: Uuid, change: VolumeChange) -> Result<(), ControlError> {
        let (_lock, record, home) = self.lock_running(volume).await?;
        self.data().change(home, volume, record.name.clone(), change.clone()).await?;
        match change {
            VolumeChange::Grow(size) => self.note_size(volume, size).await,
            VolumeChange::DeleteSnapshot(_)
            | VolumeChange::Revert { .. }
            | VolumeChange::AddReplica(_)
            | VolumeChange::RemoveReplica(_) => Ok(()),
        }
    }

    /// Takes a replica into a volume.
    pub(super) async fn add_member(&self, volume: Uuid, member: MemberRecord) -> Result<(), ControlError> {
        let spec = self.member_spec(&member);
        self.change(volume, VolumeChange::AddReplica(spec)).await?;
        self.note_members(volume, |members| {
            members.retain(|known| known.replica != member.replica);
            members.push(member);
        })
        .await
    }

    /// Lets a replica of a volume go; its content stays.
    pub(super) async fn remove_member(&self, volume: Uuid, replica: Uuid) -> Result<(), ControlError> {
        self.change(volume, VolumeChange::RemoveReplica(replica)).await?;
        self.note_members(volume, |members| members.retain(|known| known.replica != replica)).await
    }

    /// Makes a replica that is out of sync the one that counts.
    pub(super) async fn force(&self, volume: Uuid, replica: Uuid) -> Result<(), ControlError> {
        let (_lock, record, home) = self.lock_running(volume).await?;
        self.data().force(home, volume, record.name, replica).await
    }

    pub(super) async fn snapshots(&self, volume: Uuid) -> Result<Vec<SnapshotFacts>, ControlError> {
        let (_lock, record, home) = self.lock_running(volume).await?;
        self.data().snapshots(home, volume, record.name).await
    }
}

impl Engines {
    /// A snapshot of a volume, by UUID or by a name that only one has.
    pub(super) async fn find_snapshot(&self, volume: Uuid, wanted: &str) -> Result<SnapshotFacts, ControlError> {
        let snapshots = self.snapshots(volume).await?;
        let uuid = find(&snapshots, wanted)?;
        let found = snapshots.into_iter().find(|snapshot| Some(snapshot.uuid) == uuid);
        found.ok_or_else(|| ControlError::not_found("snapshot", wanted))
    }
}

impl Volumes {
    /// The snapshots of a volume, oldest first.
    pub(super) async fn snapshots(&self, volume: Uuid) -> Result<Vec<v1::Snapshot>, ControlError> {
        let snapshots = self.engines().snapshots(volume).await?;
        Ok(snapshots.into_iter().map(|snapshot| describe(volume, snapshot)).collect())
    }

    /// Deletes a snapshot; an absent one is a success (I42).
    pub(crate) async fn delete_snapshot(&self, request: v1::DeleteSnapshotRequest) -> Result<(), ControlError> {
        let volume = self.free_uuid_of(&request.volume)?;
        let snapshots = self.engines().snapshots(volume).await?;
        let expected = request::optional_uuid("expected_uuid", &request.expected_uuid)?;
        match find(&snapshots, &request.snapshot)? {
            Some(found) if expected.is_some_and(|expected| expected != found) => {
                Err(ControlError::other_uuid("snapshot", &request.snapshot, found))
            }
            Some(snapshot) => self.engines().change(volume, VolumeChange::DeleteSnapshot(snapshot)).await,
            None => Ok(()),
        }
    }

    /// Takes a volume back to a snapshot.
    pub(crate) async fn revert(&self, request: v1::RevertVolumeRequest) -> Result<v1::Volume, ControlError> {
        let volume = self.free_uuid_of(&request.volume)?;
        let snapshots = self.engines().snapshots(volume).await?;
        let found = find(&snapshots, &request.snapshot)?;
        let snapshot = found.ok_or_else(|| ControlError::not_found("snapshot", &request.snapshot))?;
        let newer: Vec<_> = snapshots.iter().skip_while(|entry| entry.uuid != snapshot).skip(1).collect();
        if !newer.is_empty() && !request.discard_newer {
            let names: Vec<_> = newer.iter().map(|entry| entry.name.as_str()).collect();
            let text = format!(
                "going back to `{}` would lose the newer snapshots {}; say so (--discard-newer) if they may go",
                request.snapshot,
                names.join(", ")
            );
            return Err(ControlError::precondition("NEWER_SNAPSHOTS", text).with("snapshots", names.join(",")));
        }
        let discard_newer = request.discard_newer;
        self.engines().change(volume, VolumeChange::Revert { snapshot, discard_newer }).await?;
        self.get(&volume.to_string()).await
    }

    /// Makes a volume larger.
    pub(crate) async fn grow(&self, request: v1::GrowVolumeRequest) -> Result<v1::Volume, ControlError> {
        let volume = self.free_uuid_of(&request.volume)?;
        self.check_size(volume, request.size_bytes)?;
        self.engines().change(volume, VolumeChange::Grow(request.size_bytes)).await?;
        self.note_size(volume, request.size_bytes).await?;
        self.get(&volume.to_string()).await
    }
}

/// A snapshot by UUID, or by a name that only one has.
fn find(snapshots: &[SnapshotFacts], wanted: &str) -> Result<Option<Uuid>, ControlError> {
    if let Ok(uuid) = Uuid::try_parse(wanted) {
        return Ok(snapshots.iter().any(|snapshot| snapshot.uuid == uuid).then_some(uuid));
    }
    let named: Vec<_> = snapshots.iter().filter(|snapshot| snapshot.name == wanted).collect();
    match named[..] {
        [] => Ok(None),
        [only] => Ok(Some(only.uuid)),
        _ => Err(ControlError::invalid(
            "snapshot",
            format!("{} snapshots are named `{wanted}`: give a UUID", named.len()),
        )),
    }
}

fn describe(volume: Uuid, snapshot: SnapshotFacts) -> v1::Snapshot {
    v1::Snapshot {
        uuid: snapshot.uuid.to_string(),
        name: snapshot.name,
        volume_uuid: volume.to_string(),
        created_at_unix_ms: i64::try_from(snapshot.created).unwrap_or(i64::MAX).saturating_mul(1000),
        size_bytes: snapshot.size,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_found_by_uuid_or_by_a_name_of_its_own() {
        let snapshot = |number: u128, name: &str| SnapshotFacts {
            uuid: Uuid::from_u128(number),
            name: name.to_owned(),
            created: 1,
            size: 4096,
        };
        let snapshots = [snapshot(1, "daily"), snapshot(2, "daily"), snapshot(3, "before-upgrade")];
        assert_eq!(find(&snapshots, "before-upgrade").expect("one"), Some(Uuid::from_u128(3)));
        assert_eq!(find(&snapshots, &Uuid::from_u128(2).to_string()).expect("one"), Some(Uuid::from_u128(2)));
        assert_eq!(find(&snapshots, "weekly").expect("none is no error"), None);
        let error = find(&snapshots, "daily").expect_err("two");
        assert!(error.to_string().contains("2 snapshots"), "{error}");
    }
}
