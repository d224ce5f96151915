//! `ashlar replica`.

use std::fmt::Write;

use anyhow::Context;
use proto::v1::{ListReplicasRequest, ListReplicasResponse, Replica};

use super::store::unopened_notes;
use crate::arguments::ReplicaCommand;
use crate::client::Client;
use crate::output::{Fixed, Look, Name, Output, Table, Wide, Width, look_on};
use crate::size::Size;

pub(super) async fn run(client: &Client, command: &ReplicaCommand, output: Output) -> anyhow::Result<()> {
    match command {
        ReplicaCommand::List { volume, watch } => {
            let volume = volume.clone().unwrap_or_default();
            let fetch = async || list(client, &volume).await;
            let follow = async |_: &Vec<_>| client.follow_replicas(&volume).await.map(Some);
            look_on(*watch, output, fetch, follow, |replicas: &Vec<_>, width| render_list(replicas, width)).await
        }
        ReplicaCommand::Show { replica, watch } => {
            let fetch = async || {
                let Look { value, notes } = list(client, "").await?;
                let found = value.into_iter().find(|found| found.uuid == *replica);
                let value = found.with_context(|| {
                    format!(
                        "there is no replica {replica} on this node\n`ashlar replica list -o wide` has their UUIDs."
                    )
                })?;
                Ok(Look { value, notes })
            };
            let follow = async |replica: &Replica| client.follow_replicas(&replica.volume_uuid).await.map(Some);
            look_on(*watch, output, fetch, follow, |replica, _| render(replica)).await
        }
    }
}

async fn list(client: &Client, volume_uuid: &str) -> anyhow::Result<Look<Vec<Replica>>> {
    let request = ListReplicasRequest { volume_uuid: volume_uuid.to_owned(), ..Default::default() };
    let ListReplicasResponse { replicas, unopened, .. } = client.list_replicas(request).await?;
    Ok(Look { value: replicas, notes: unopened_notes(&unopened, "replicas") })
}

fn render_list(replicas: &[Replica], width: Width) -> String {
    if replicas.is_empty() {
        return "There are no replicas on this node.\n".to_owned();
    }
    let columns = [
        Name("VOLUME"),
        Name("STORE"),
        Fixed("STATE"),
        Fixed("SIZE"),
        Fixed("USED"),
        Fixed("SNAPSHOTS"),
        Fixed("EPOCH"),
        Wide("UUID"),
        Wide("VOLUME UUID"),
    ];
    let mut table = Table::new(&columns);
    for replica in replicas {
        table.row(vec![
            replica.name.clone(),
            replica.store.clone(),
            replica.state().to_string(),
            Size(replica.size_bytes).to_string(),
            Size(replica.used_bytes).to_string(),
            replica.snapshots.to_string(),
            replica.epoch.to_string(),
            replica.uuid.clone(),
            replica.volume_uuid.clone(),
        ]);
    }
    let failed = replicas.iter().filter(|replica| !replica.reason.is_empty());
    let text = failed.fold(table.render(width), |text, replica| {
        format!("{text}\n{} ({}): {}\n", replica.name, replica.uuid, replica.reason)
    });
    let bad = replicas.iter().filter(|replica| replica.bad_regions > 0);
    bad.fold(text, |text, replica| {
        let (name, uuid, regions) = (&replica.name, &replica.uuid, replica.bad_regions);
        format!("{text}\n{name} ({uuid}): the last scrub found {regions} regions of its snapshots damaged\n")
    })
}

fn render(replica: &Replica) -> String {
    let mut text = String::new();
    let mut line = |label: &str, value: &dyn std::fmt::Display| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{label:9} {value}");
    };
    line("replica", &replica.uuid);
    line("volume", &format_args!("{}\n{:9} {}", replica.name, "", replica.volume_uuid));
    line("node", &replica.node);
    line("store", &replica.store);
    line("state", &replica.state());
    if !replica.reason.is_empty() {
        line("reason", &replica.reason);
    }
    line("size", &format_args!("{}, blocks of {} bytes", Size(replica.size_bytes), replica.block_size_bytes));
    line("used", &format_args!("{} with {} snapshots", Size(replica.used_bytes), replica.snapshots));
    line("epoch", &replica.epoch);
    if replica.bad_regions > 0 {
        line("scrub", &format_args!("the last one found {} regions damaged", replica.bad_regions));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1::ReplicaState;

    fn replica() -> Replica {
        Replica {
            uuid: "00000000-0000-0000-0000-000000000001".into(),
            volume_uuid: "00000000-0000-0000-0000-000000000002".into(),
            name: "v".repeat(63),
            node: "n".repeat(63),
            store: "s".repeat(63),
            size_bytes: (1 << 40) - 1,
            used_bytes: (1 << 40) - 1,
            block_size_bytes: 4096,
            snapshots: 250,
            epoch: 123_456,
            state: ReplicaState::Failed.into(),
            ..Replica::default()
        }
    }

    #[test]
    fn the_list_fits_a_terminal_whatever_the_names() {
        let text = render_list(&[replica()], Width::Narrow);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        for whole in ["failed", "1024.0 GiB", "123456"] {
            assert!(text.contains(whole), "{text}");
        }
        let wide = render_list(&[replica()], Width::Full);
        assert!(wide.contains(&replica().uuid) && wide.contains(&replica().name), "{wide}");
    }

    #[test]
    fn a_replica_is_shown_in_full() {
        let text = render(&Replica { reason: "its record is damaged".into(), bad_regions: 2, ..replica() });
        for part in [&replica().name[..], "reason    its record is damaged", "with 250 snapshots", "2 regions damaged"]
        {
            assert!(text.contains(part), "{text}");
        }
    }
}
