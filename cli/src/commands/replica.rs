//! `ashlar replica`.

use proto::v1::{ListReplicasRequest, ListReplicasResponse, Replica};

use super::store::warn_of_unopened;
use crate::arguments::{Output, ReplicaCommand};
use crate::client::Client;
use crate::output::{Table, print_json};
use crate::size::Size;

pub(super) async fn run(client: &Client, command: &ReplicaCommand, output: Output) -> anyhow::Result<()> {
    let ReplicaCommand::List { volume } = command;
    let request = ListReplicasRequest { volume_uuid: volume.clone().unwrap_or_default(), ..Default::default() };
    let ListReplicasResponse { replicas, unopened, .. } = client.list_replicas(request).await?;
    warn_of_unopened(&unopened, "replicas");
    if output == Output::Json {
        return print_json(&replicas);
    }
    print!("{}", render(&replicas));
    Ok(())
}

fn render(replicas: &[Replica]) -> String {
    if replicas.is_empty() {
        return "There are no replicas on this node.\n".to_owned();
    }
    let mut table = Table::new(&["VOLUME", "STORE", "STATE", "SIZE", "USED", "SNAPSHOTS", "EPOCH"]);
    for replica in replicas {
        table.row(vec![
            replica.name.clone(),
            replica.store.clone(),
            replica.state().to_string(),
            Size(replica.size_bytes).to_string(),
            Size(replica.used_bytes).to_string(),
            replica.snapshots.to_string(),
            replica.epoch.to_string(),
        ]);
    }
    let failed = replicas.iter().filter(|replica| !replica.reason.is_empty());
    let text = failed.fold(table.render(), |text, replica| {
        format!("{text}\n{} ({}): {}\n", replica.name, replica.uuid, replica.reason)
    });
    let bad = replicas.iter().filter(|replica| replica.bad_regions > 0);
    bad.fold(text, |text, replica| {
        let (name, uuid, regions) = (&replica.name, &replica.uuid, replica.bad_regions);
        format!("{text}\n{name} ({uuid}): the last scrub found {regions} regions of its snapshots damaged\n")
    })
}
