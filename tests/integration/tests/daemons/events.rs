//! What happened, as it is told to who follows it, and what is logged, changed while the daemon runs.

use std::cell::Cell;
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use cli::client::{Client, answer};
use integration::{Host, House, MIB, PATIENCE, export_of, program, said};
use proto::v1::{
    ChangeKind, DeleteVolumeRequest, EngineState, EventsRequest, GrowVolumeRequest, ListVolumesRequest, VolumeChange,
    WatchVolumesRequest,
};
use tonic::Streaming;

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

/// Waits until an event is in the file of the first daemon's.
fn wait_until_kept(house: &House, text: &str) -> anyhow::Result<()> {
    let limit = Instant::now() + PATIENCE;
    while !fs::read_to_string(event_log(house))?.contains(text) {
        ensure!(Instant::now() < limit, "`{text}` is not kept");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn event_log(house: &House) -> PathBuf {
    house.cluster.nodes()[0].folder().join("state/events/1.log")
}

#[tokio::test]
async fn events_are_there_after_a_kill_and_a_torn_end_is_told() -> anyhow::Result<()> {
    let mut house = House::open(&["a"], 256 * MIB).await?;
    house.create_volume("v", 16 * MIB, &[]).await?;
    wait_until_kept(&house, "healthy")?;
    let before = said(&house.ashlar(0, &["events"])?);
    house.cluster.node(0).kill()?;
    // As a power cut leaves it.
    OpenOptions::new().append(true).open(event_log(&house))?.write_all(b"00000000 {\"run\":1,\"num")?;
    house.cluster.node(0).start().await?;
    house.wait_until_healthy("v").await?;
    let after = said(&house.ashlar(0, &["events"])?);
    ensure!(after.starts_with(&before), "{after}\n---\n{before}");
    for part in ["node a started: the last run ended: killed", "node a events lost: 22 bytes were cut off"] {
        ensure!(after[before.len()..].contains(part), "{after}");
    }

    // Who has the last one of the first run gets those after it; a time leaves out what was before.
    let json = said(&house.ashlar(0, &["-o", "json", "events"])?);
    let events: Vec<serde_json::Value> = json.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let numbers: Vec<_> = events.iter().map(|event| (event["run"].as_u64(), event["number"].as_u64())).collect();
    let of_first = numbers.iter().filter(|(run, _)| *run == Some(1)).count();
    let expected = (1..=of_first as u64).map(|number| (Some(1), Some(number)));
    let expected = expected.chain((1..).map(|number| (Some(2), Some(number)))).take(numbers.len());
    assert_eq!(numbers, expected.collect::<Vec<_>>());
    let request = EventsRequest { run: 1, after: of_first as u64, ..EventsRequest::default() };
    let mut rest = answer(house.client(0).await?.patient_node().events(request).await)?;
    let next = rest.message().await?.context("those of this run")?;
    assert_eq!((next.run, next.number), (2, 1), "{next:?}");
    let future = said(&house.ashlar(0, &["events", "--since", "2999-01-01T00:00:00Z"])?);
    assert_eq!(future, "");
    assert_eq!(said(&house.ashlar(0, &["events", "--since", "1h"])?).lines().count(), events.len());

    // An end in order loses nothing.
    house.cluster.node(0).stop().await?;
    ensure!(fs::read_to_string(event_log(&house))?.contains("asked to by SIGTERM"), "the last ones are not there");
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

/// The next message about a volume that is as wanted, and all before it.
async fn hear(
    stream: &mut Streaming<VolumeChange>,
    wanted: impl Fn(&VolumeChange) -> bool,
) -> anyhow::Result<Vec<VolumeChange>> {
    let mut heard = Vec::new();
    loop {
        let message = tokio::time::timeout(PATIENCE, stream.message()).await;
        let message = message.with_context(|| format!("nothing more after {heard:#?}"))??;
        let message = message.with_context(|| format!("it ended after {heard:#?}"))?;
        heard.push(message);
        if heard.last().is_some_and(&wanted) {
            return Ok(heard);
        }
    }
}

fn is(change: &VolumeChange, kind: ChangeKind, name: &str) -> bool {
    change.kind() == kind && change.volume.as_ref().is_some_and(|volume| volume.name == name)
}

fn is_healthy(change: &VolumeChange, name: &str) -> bool {
    let engine = change.volume.as_ref().and_then(|volume| volume.engine.as_ref());
    is(change, ChangeKind::Changed, name) && engine.is_some_and(|engine| engine.state() == EngineState::Healthy)
}

#[tokio::test]
async fn who_watches_gets_volumes_with_content_and_goes_on_from_a_version() -> anyhow::Result<()> {
    let mut house = House::open(&["a"], 256 * MIB).await?;
    house.create_volume("old", 16 * MIB, &[]).await?;
    let client = house.client(0).await?;
    let watch = |client: Client, resource_version: &str| {
        let request = WatchVolumesRequest { resource_version: resource_version.to_owned(), ..Default::default() };
        async move { client.patient_volumes().watch(request).await.map(tonic::Response::into_inner) }
    };
    let mut stream = watch(client.clone(), "").await?;
    let list = hear(&mut stream, |change| change.kind() == ChangeKind::Listed).await?;
    ensure!(is(&list[0], ChangeKind::Existing, "old") && list.len() == 2, "{list:#?}");
    house.create_volume("new", 16 * MIB, &[]).await?;
    let made = hear(&mut stream, |change| is_healthy(change, "new")).await?;
    ensure!(made.iter().all(|change| change.kind() == ChangeKind::Changed), "{made:#?}");
    let version = made.last().context("one at least")?.resource_version.clone();
    drop(stream);

    // While nobody listens one volume grows and another goes.
    let request = GrowVolumeRequest { volume: "old".to_owned(), size_bytes: 32 * MIB };
    answer(client.volumes().grow(request).await)?;
    let request = DeleteVolumeRequest { volume: "new".to_owned(), ..Default::default() };
    answer(client.volumes().delete(request).await)?;
    let mut stream = watch(client.clone(), &version).await?;
    let size = |change: &VolumeChange| change.volume.as_ref().map(|volume| volume.size_bytes);
    // In whichever order they were looked at.
    let (gone, grown) = (Cell::new(false), Cell::new(false));
    let missed = hear(&mut stream, |change| {
        gone.set(gone.get() || is(change, ChangeKind::Deleted, "new"));
        grown.set(grown.get() || (is(change, ChangeKind::Changed, "old") && size(change) == Some(32 * MIB)));
        gone.get() && grown.get()
    });
    let missed = missed.await?;
    ensure!(!missed.iter().any(|change| change.kind() == ChangeKind::Existing), "{missed:#?}");

    // From a list on nothing comes that is in it.
    let listed = answer(client.volumes().list(ListVolumesRequest::default()).await)?;
    ensure!(listed.volumes.len() == 1 && listed.volumes[0].resource_version == listed.resource_version);

    // The stream ends with the daemon, in order and at once; another run knows nothing of its versions.
    house.cluster.node(0).stop().await?;
    while stream.message().await?.is_some() {}
    house.cluster.node(0).start().await?;
    let refused = watch(house.client(0).await?, &listed.resource_version).await.expect_err("another run");
    assert_eq!(proto::error::info(&refused).map(|info| info.reason).as_deref(), Some("EXPIRED"));
    Ok(())
}
