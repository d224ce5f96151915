//! `ashlar snapshot`.

use proto::v1::{DeleteSnapshotRequest, ListSnapshotsRequest, Snapshot, SnapshotVolumeRequest};

use crate::arguments::{Output, SnapshotCommand};
use crate::client::{Client, answer};
use crate::output::{Table, print_json};
use crate::size::Size;

pub(super) async fn run(client: &Client, command: &SnapshotCommand, output: Output) -> anyhow::Result<()> {
    match command {
        SnapshotCommand::Create { volume, name, uuid } => {
            create(client, volume, name.as_deref(), uuid.as_deref(), output).await
        }
        SnapshotCommand::List { volume } => {
            let request = ListSnapshotsRequest { volume: volume.clone(), ..Default::default() };
            let snapshots = client.list_snapshots(request).await?;
            if output == Output::Json {
                return print_json(&snapshots);
            }
            print!("{}", render(volume, &snapshots));
            Ok(())
        }
        SnapshotCommand::Delete { volume, snapshot } => {
            let (volume, snapshot) = (volume.clone(), snapshot.clone());
            let request =
                DeleteSnapshotRequest { volume: volume.clone(), snapshot: snapshot.clone(), ..Default::default() };
            let deleted = answer(client.volumes().delete_snapshot(request).await)?;
            if output == Output::Json {
                return print_json(&deleted);
            }
            println!("snapshot {snapshot} of volume {volume} is deleted");
            Ok(())
        }
    }
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
    if output == Output::Json {
        return print_json(&snapshot);
    }
    println!("snapshot {} ({}) of volume {volume}", snapshot.name, snapshot.uuid);
    Ok(())
}

fn render(volume: &str, snapshots: &[Snapshot]) -> String {
    if snapshots.is_empty() {
        return format!("Volume {volume} has no snapshots. Take one with `ashlar snapshot create {volume}`.\n");
    }
    let mut table = Table::new(&["NAME", "SIZE", "UUID"]);
    for snapshot in snapshots {
        table.row(vec![snapshot.name.clone(), Size(snapshot.size_bytes).to_string(), snapshot.uuid.clone()]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_names_what_delete_and_revert_take() {
        assert!(render("v", &[]).contains("ashlar snapshot create v"));
        let snapshot = Snapshot { name: "daily".into(), uuid: "u".into(), size_bytes: 1 << 30, ..Snapshot::default() };
        assert_eq!(render("v", &[snapshot]), "NAME   SIZE   UUID\ndaily  1 GiB  u\n");
    }
}
