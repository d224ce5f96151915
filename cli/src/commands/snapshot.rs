//! `ashlar snapshot`.

use anyhow::{Context, ensure};
use proto::v1::{DeleteSnapshotRequest, ListSnapshotsRequest, Snapshot, SnapshotVolumeRequest};

use super::utc;
use crate::arguments::SnapshotCommand;
use crate::client::{Client, answer};
use crate::output::{Fixed, Name, Output, Table, Wide, Width, look_on};
use crate::size::Size;

pub(super) async fn run(client: &Client, command: &SnapshotCommand, output: Output) -> anyhow::Result<()> {
    match command {
        SnapshotCommand::Create { volume, name, uuid } => {
            create(client, volume, name.as_deref(), uuid.as_deref(), output).await
        }
        SnapshotCommand::List { volume, watch } => {
            let fetch = async || Ok(list(client, volume).await?.into());
            let follow = async |_: &Vec<_>| client.follow_snapshots(volume).await.map(Some);
            look_on(*watch, output, fetch, follow, |snapshots: &Vec<_>, width| render_list(volume, snapshots, width))
                .await
        }
        SnapshotCommand::Show { volume, snapshot, watch } => {
            let fetch = async || Ok(find(list(client, volume).await?, snapshot)?.into());
            let follow = async |_: &Snapshot| client.follow_snapshots(volume).await.map(Some);
            look_on(*watch, output, fetch, follow, |snapshot, _| render(volume, snapshot)).await
        }
        SnapshotCommand::Delete { volume, snapshot, expected_uuid } => {
            let request = DeleteSnapshotRequest {
                volume: volume.clone(),
                snapshot: snapshot.clone(),
                expected_uuid: expected_uuid.clone().unwrap_or_default(),
            };
            let deleted = answer(client.volumes().delete_snapshot(request).await)?;
            output.print(&deleted, |_, _| format!("snapshot {snapshot} of volume {volume} is deleted\n"))
        }
    }
}

async fn list(client: &Client, volume: &str) -> anyhow::Result<Vec<Snapshot>> {
    client.list_snapshots(ListSnapshotsRequest { volume: volume.to_owned(), ..Default::default() }).await
}

/// By UUID, or by a name that only one has.
fn find(snapshots: Vec<Snapshot>, wanted: &str) -> anyhow::Result<Snapshot> {
    if let Some(found) = snapshots.iter().find(|snapshot| snapshot.uuid == wanted) {
        return Ok(found.clone());
    }
    let mut named = snapshots.into_iter().filter(|snapshot| snapshot.name == wanted);
    let found = named.next().with_context(|| {
        format!("the volume has no snapshot `{wanted}`\nList what there is with `ashlar snapshot list`.")
    })?;
    ensure!(named.next().is_none(), "several snapshots are called `{wanted}`\nGive the UUID instead of the name.");
    Ok(found)
}

/// Cuts a volume.
pub(super) async fn create(
    client: &Client,
    volume: &str,
    name: Option<&str>,
    uuid: Option<&str>,
    output: Output,
) -> anyhow::Result<()> {
    let (name, uuid) = (name.unwrap_or_default().to_owned(), uuid.unwrap_or_default().to_owned());
    let request = SnapshotVolumeRequest { volume: volume.to_owned(), name, uuid };
    let snapshot = answer(client.volumes().snapshot(request).await)?;
    output
        .print(&snapshot, |snapshot, _| format!("snapshot {} ({}) of volume {volume}\n", snapshot.name, snapshot.uuid))
}

fn render_list(volume: &str, snapshots: &[Snapshot], width: Width) -> String {
    if snapshots.is_empty() {
        return format!("Volume {volume} has no snapshots. Take one with `ashlar snapshot create {volume}`.\n");
    }
    let mut table = Table::new(&[Name("NAME"), Fixed("SIZE"), Fixed("UUID"), Wide("TAKEN")]);
    for snapshot in snapshots {
        table.row(vec![
            snapshot.name.clone(),
            Size(snapshot.size_bytes).to_string(),
            snapshot.uuid.clone(),
            taken(snapshot),
        ]);
    }
    table.render(width)
}

fn render(volume: &str, snapshot: &Snapshot) -> String {
    let Snapshot { name, uuid, volume_uuid, size_bytes, .. } = snapshot;
    format!(
        "snapshot {name}\nuuid     {uuid}\nvolume   {volume} ({volume_uuid})\ntaken    {}\nsize     {}\n",
        taken(snapshot),
        Size(*size_bytes)
    )
}

fn taken(snapshot: &Snapshot) -> String {
    if snapshot.created_at_unix_ms == 0 { "-".to_owned() } else { utc(snapshot.created_at_unix_ms) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(name: &str, uuid: &str) -> Snapshot {
        let (name, uuid) = (name.to_owned(), uuid.to_owned());
        Snapshot { name, uuid, size_bytes: 1 << 30, created_at_unix_ms: 1_709_164_800_000, ..Snapshot::default() }
    }

    #[test]
    fn the_list_names_what_delete_and_revert_take() {
        assert!(render_list("v", &[], Width::Narrow).contains("ashlar snapshot create v"));
        let daily = [snapshot("daily", "u")];
        assert_eq!(render_list("v", &daily, Width::Narrow), "NAME   SIZE   UUID\ndaily  1 GiB  u\n");
        let wide = "NAME   SIZE   UUID  TAKEN\ndaily  1 GiB  u     2024-02-29T00:00:00Z\n";
        assert_eq!(render_list("v", &daily, Width::Full), wide);
        let uuid = "00000000-0000-0000-0000-000000000001";
        let text = render_list("v", &[snapshot(&"n".repeat(63), uuid)], Width::Narrow);
        assert!(text.lines().all(|line| line.chars().count() <= 80) && text.contains(uuid), "{text}");
    }

    #[test]
    fn one_is_found_by_its_uuid_or_by_a_name_of_its_own() {
        let all = || vec![snapshot("a", "1"), snapshot("b", "2"), snapshot("b", "3")];
        assert_eq!(find(all(), "3").map(|found| found.name).ok().as_deref(), Some("b"));
        assert_eq!(find(all(), "a").map(|found| found.uuid).ok().as_deref(), Some("1"));
        assert!(find(all(), "b").is_err_and(|error| error.to_string().contains("Give the UUID")));
        assert!(find(all(), "c").is_err_and(|error| error.to_string().contains("no snapshot `c`")));
    }
}
