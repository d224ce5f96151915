//! `ashlar node`.

use proto::v1::{GetLogRequest, LastRun, NodeInfo, NodeInfoRequest, Peer, SetLogRequest};

use crate::arguments::{NodeCommand, Output};
use crate::client::{Client, answer};
use crate::output::{Table, print_json};

pub(super) async fn run(client: &Client, command: &NodeCommand, output: Output) -> anyhow::Result<()> {
    let filter = match command {
        NodeCommand::Info => return show(client, output).await,
        NodeCommand::Log { filter } => filter.clone(),
    };
    let log = match filter {
        None => answer(client.node().get_log(GetLogRequest {}).await)?,
        Some(filter) => answer(client.node().set_log(SetLogRequest { filter }).await)?,
    };
    if output == Output::Json {
        return print_json(&log);
    }
    println!("{}", log.filter);
    if log.filter != log.configured {
        println!("(`{}` from the next start on)", log.configured);
    }
    Ok(())
}

async fn show(client: &Client, output: Output) -> anyhow::Result<()> {
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
         iscsi      {}\n\
         health     {}\n",
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
        info.health_address,
    );
    if let Some(last) = &info.last_run {
        text.push_str(&render_last_run(last));
    }
    if !info.peers.is_empty() {
        let mut table = Table::new(&["PEER", "STATE", "API", "REPLICAS", "CALLS", "FAILED"]);
        for peer in &info.peers {
            let (state, calls) = (peer.state().to_string(), peer.calls.to_string());
            let cells = [&peer.name, &state, &peer.grpc_address, &peer.replica_address, &calls];
            let mut cells: Vec<_> = cells.map(String::clone).to_vec();
            cells.push(peer.failed_calls.to_string());
            table.row(cells);
        }
        text = format!("{text}\n{}", table.render());
        for peer in info.peers.iter().filter(|peer| !peer.last_error.is_empty()) {
            text.push_str(&format!("{}: {}{}\n", peer.name, peer.last_error, render_tries(peer)));
        }
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

/// How often a peer was tried in vain, and when it is tried again.
fn render_tries(peer: &Peer) -> String {
    match peer.next_try_ms {
        Some(next) => format!(" ({} attempts, the next one in {:.1} s)", peer.attempts, next as f64 / 1000.0),
        None => String::new(),
    }
}

/// How the last run ended; of a panic only what it said, for the backtrace is long and in `-o json`.
fn render_last_run(last: &LastRun) -> String {
    let end = last.end();
    let mut text = match last.detail.as_str() {
        "" => format!("last run   {end}\n"),
        detail => format!("last run   {end}: {detail}\n"),
    };
    if let Some(panic) = last.panic.lines().next() {
        text.push_str(&format!("panic      {panic}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1::RunEnd;

    #[test]
    fn the_last_run_is_told_in_a_line_and_its_panic_in_another() {
        let mut last = LastRun { end: RunEnd::Killed.into(), detail: "SIGKILL".to_owned(), ..LastRun::default() };
        assert_eq!(render_last_run(&last), "last run   killed: SIGKILL\n");
        last.panic = "thread control panicked\n   0: main".to_owned();
        assert_eq!(render_last_run(&last), "last run   killed: SIGKILL\npanic      thread control panicked\n");
        let first = LastRun { end: RunEnd::First.into(), ..LastRun::default() };
        assert_eq!(render_last_run(&first), "last run   first\n");
    }
}
