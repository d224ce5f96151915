//! What happened, as it is told to who follows it, and what is logged, changed while the daemon runs.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use anyhow::{Context, ensure};
use integration::{Host, House, MIB, PATIENCE, export_of, program, said};

/// `ashlar events --follow`, and the lines that it prints.
struct Follower {
    process: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Follower {
    fn start(server: &str) -> anyhow::Result<Self> {
        let mut command = Command::new(program("ashlar")?);
        let mut process = command.args(["--server", server, "events", "--follow"]).stdout(Stdio::piped()).spawn()?;
        let (sender, lines) = channel();
        let output = process.stdout.take().context("piped")?;
        std::thread::spawn(move || {
            // An error means that the test has ended.
            BufReader::new(output).lines().map_while(Result::ok).try_for_each(|line| sender.send(line)).ok()
        });
        Ok(Self { process, lines, seen: Vec::new() })
    }

    /// Waits for a line that ends so.
    fn hear(&mut self, ending: &str) -> anyhow::Result<()> {
        let limit = Instant::now() + PATIENCE;
        loop {
            let left = limit.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left).with_context(|| format!("no `{ending}` in {:#?}", self.seen))?;
            // After the time.
            let found = line.split_once("Z  ").is_some_and(|(_, text)| text.starts_with(ending));
            self.seen.push(line);
            if found {
                return Ok(());
            }
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        // Errors mean that it has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn who_follows_hears_what_becomes_of_volumes_and_replicas() -> anyhow::Result<()> {
    let mut house = House::open(&["a", "b"], 256 * MIB).await?;
    let server = house.cluster.nodes()[0].server();
    let mut follower = Follower::start(&server)?;
    follower.hear("node a started: for the first time here")?;
    follower.hear("store main ready")?;
    let volume = house.create_volume("v", 64 * MIB, &["a", "b"]).await?;
    follower.hear("volume v created")?;
    follower.hear("volume v healthy")?;

    house.cluster.node(1).kill()?;
    let (host, nvmf) = (Host::new()?, house.cluster.nodes()[0].addresses().nvmf);
    host.write(nvmf, &export_of(&volume)?.nqn, 0, 1, 4096).await?;
    let before = follower.seen.len();
    follower.hear("replica v on b out of sync")?;
    house.cluster.node(1).start().await?;
    follower.hear("replica v on b in sync")?;
    let told = follower.seen[before - 1..].join("\n");
    house.wait_until_healthy("v").await?;

    // Who comes later reads the same.
    let kept = said(&house.ashlar(0, &["events"])?);
    ensure!(told.lines().skip(1).all(|line| kept.contains(line)), "{kept}\n---\n{told}");
    ensure!(kept.contains("volume v degraded: 1 of 2 replicas not in sync"), "{kept}");
    let json = said(&house.ashlar(0, &["-o", "json", "events"])?);
    for (number, line) in (1..).zip(json.lines()) {
        let event: serde_json::Value = serde_json::from_str(line)?;
        assert_eq!((event["run"].as_u64(), event["number"].as_u64()), (Some(1), Some(number)), "{line}");
    }

    house.cluster.node(0).stop().await?;
    follower.hear("node a stopping: asked to by SIGTERM")?;
    let status = follower.process.wait()?;
    assert!(status.success(), "the stream ends in order: {status}");
    Ok(())
}

#[tokio::test]
async fn what_is_logged_changes_at_once_and_nonsense_changes_nothing() -> anyhow::Result<()> {
    let house = House::open(&["a"], 256 * MIB).await?;
    let shown = |arguments: &[&str]| house.ashlar(0, &[&["node", "log"], arguments].concat());
    assert_eq!(said(&shown(&[])?), "info\n");
    let log = || fs::read_to_string(house.cluster.nodes()[0].log());
    house.create_volume("quiet", 64 * MIB, &[]).await?;
    ensure!(!log()?.contains(" DEBUG "), "{}", log()?);
    assert_eq!(said(&shown(&["info,engine=debug"])?), "info,engine=debug\n(`info` from the next start on)\n");
    house.create_volume("loud", 64 * MIB, &[]).await?;
    ensure!(log()?.contains(" DEBUG "), "{}", log()?);
    let refused = shown(&["info,engine=very"])?;
    assert_eq!(refused.status.code(), Some(1));
    ensure!(said(&refused).contains("`info,engine=very` is not a filter"), "{}", said(&refused));
    assert!(said(&shown(&[])?).starts_with("info,engine=debug\n"));
    Ok(())
}
