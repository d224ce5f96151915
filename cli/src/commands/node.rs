//! `ashlar node`.

use proto::v1::{NodeInfo, NodeInfoRequest};

use crate::arguments::{NodeCommand, Output};
use crate::client::{Client, answer};
use crate::output::{Table, print_json};

pub(super) async fn run(client: &Client, command: &NodeCommand, output: Output) -> anyhow::Result<()> {
    let NodeCommand::Info = command;
    let info = answer(client.node().info(NodeInfoRequest {}).await)?;
    if output == Output::Json {
        return print_json(&info);
    }
    print!("{}", render(&info));
    Ok(())
}

fn render(info: &NodeInfo) -> String {
    let mut text = format!(
        "node       {} (ashlard {}, process {}, {} reactor{})\n\
         state      {}\n\
         serves     {} store(s), {} replica(s), {} volume(s)\n\
         api        {}\n\
         replicas   {}\n\
         nvme/tcp   {}\n\
         discovery  {}\n\
         iscsi      {}\n",
        info.name,
        info.version,
        info.pid,
        info.reactors,
        if info.reactors == 1 { "" } else { "s" },
        info.state_directory,
        info.stores,
        info.replicas,
        info.volumes,
        info.grpc_address,
        info.replica_address,
        info.nvmf_addresses.join(" "),
        info.discovery_addresses.join(" "),
        info.iscsi_addresses.join(" "),
    );
    if !info.peers.is_empty() {
        let mut table = Table::new(&["PEER", "API", "REPLICAS", "LAST ERROR"]);
        for peer in &info.peers {
            let error = if peer.last_error.is_empty() { "-" } else { &peer.last_error };
            let cells = [&peer.name, &peer.grpc_address, &peer.replica_address, error];
            table.row(cells.map(str::to_owned).to_vec());
        }
        text = format!("{text}\n{}", table.render());
    }
    if !info.pending_deletions.is_empty() {
        let mut table = Table::new(&["TO DELETE", "NODE", "TRIES", "LAST ERROR"]);
        for pending in &info.pending_deletions {
            let tries = pending.attempts.to_string();
            table.row(vec![pending.replica_uuid.clone(), pending.node.clone(), tries, pending.last_error.clone()]);
        }
        text = format!("{text}\n{}", table.render());
    }
    text
}
