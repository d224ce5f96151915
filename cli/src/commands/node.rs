//! `ashlar node`.

use std::time::SystemTime;

use proto::v1::{GetLogRequest, LastRun, NodeCertificate, NodeInfo, NodeInfoRequest, Peer, SetLogRequest};

use crate::arguments::NodeCommand;
use crate::client::{Client, answer};
use crate::output::{End, Fixed, Name, Output, Table, Width, look_on};

pub(super) async fn run(client: &Client, command: &NodeCommand, output: Output) -> anyhow::Result<()> {
    let filter = match command {
        NodeCommand::Show { watch } => {
            let fetch = async || Ok(answer(client.node().info(NodeInfoRequest {}).await)?.into());
            let follow = async |_: &NodeInfo| client.follow_node().await.map(Some);
            return look_on(*watch, output, fetch, follow, render).await;
        }
        NodeCommand::Log { filter } => filter.clone(),
    };
    let log = match filter {
        None => answer(client.node().get_log(GetLogRequest {}).await)?,
        Some(filter) => answer(client.node().set_log(SetLogRequest { filter }).await)?,
    };
    output.print(&log, |log, _| {
        let next = if log.filter == log.configured {
            String::new()
        } else {
            format!("(`{}` from the next start on)\n", log.configured)
        };
        format!("{}\n{next}", log.filter)
    })
}

fn render(info: &NodeInfo, width: Width) -> String {
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
    if let Some(certificate) = &info.certificate {
        text.push_str(&render_certificate(certificate, SystemTime::now()));
    }
    if let Some(last) = &info.last_run {
        text.push_str(&render_last_run(last));
    }
    if !info.peers.is_empty() {
        let columns = [Name("PEER"), Fixed("STATE"), Name("API"), Name("REPLICAS"), Fixed("CALLS"), Fixed("FAILED")];
        let mut table = Table::new(&columns);
        for peer in &info.peers {
            let (state, calls) = (peer.state().to_string(), peer.calls.to_string());
            let cells = [&peer.name, &state, &peer.grpc_address, &peer.replica_address, &calls];
            let mut cells: Vec<_> = cells.map(String::clone).to_vec();
            cells.push(peer.failed_calls.to_string());
            table.row(cells);
        }
        text = format!("{text}\n{}", table.render(width));
        for peer in info.peers.iter().filter(|peer| !peer.last_error.is_empty()) {
            text.push_str(&format!("{}: {}{}\n", peer.name, peer.last_error, render_tries(peer)));
        }
    }
    if !info.pending_deletions.is_empty() {
        let mut table = Table::new(&[Fixed("TO DELETE"), Name("NODE"), Fixed("TRIES"), End("LAST ERROR")]);
        for pending in &info.pending_deletions {
            let tries = pending.attempts.to_string();
            table.row(vec![pending.replica_uuid.clone(), pending.node.clone(), tries, pending.last_error.clone()]);
        }
        text = format!("{text}\n{}", table.render(width));
    }
    text
}

/// Whose certificate it is and for how long, and what is wrong with newer files.
fn render_certificate(certificate: &NodeCertificate, now: SystemTime) -> String {
    const DAY: i64 = 24 * 60 * 60 * 1000;
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let left = certificate.not_after_unix_ms.saturating_sub(i64::try_from(now.as_millis()).unwrap_or(i64::MAX));
    let end = match left {
        ..=0 => "HAS ENDED".to_owned(),
        1..DAY => "ends within a day".to_owned(),
        _ => format!("ends in {} day(s)", left / DAY),
    };
    let mut text = format!("tls        {}, {end}\n", certificate.identity);
    if !certificate.problem.is_empty() {
        text.push_str(&format!("           the newer files are refused: {}\n", certificate.problem));
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
    fn the_end_of_a_certificate_is_told_in_days() {
        let told = |hours: i64, problem: &str| {
            let certificate = NodeCertificate {
                identity: "node a in c".to_owned(),
                not_after_unix_ms: hours * 3_600_000,
                problem: problem.to_owned(),
            };
            render_certificate(&certificate, SystemTime::UNIX_EPOCH)
        };
        assert_eq!(told(24 * 90 + 5, ""), "tls        node a in c, ends in 90 day(s)\n");
        assert_eq!(told(23, ""), "tls        node a in c, ends within a day\n");
        assert!(told(0, "x.key: no").contains("HAS ENDED\n           the newer files are refused: x.key: no\n"));
    }

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
