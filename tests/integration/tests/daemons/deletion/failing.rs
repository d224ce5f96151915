//! Calls that fail, at every step that can, and ten thousand of them: nothing is left of any (L3, I40).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use cli::client::{Client, answer};
use integration::{Exposition, House, MIB, PATIENCE, probe};
use proto::chunk::chunks;
use proto::v1::import_lvol_request::Part;
use proto::v1::{
    AddReplicaRequest, AdoptOrphanRequest, ChapCredentials, ChapSettings, CloneVolumeRequest, CreateLvolRequest,
    CreateStoreRequest, CreateVolumeRequest, DeleteLvolRequest, DeleteReplicaRequest, DeleteSnapshotRequest,
    DeleteStoreRequest, DeleteVolumeRequest, EngineState, ExportLvolRequest, ExportVolumeRequest, Frontend,
    GetVolumeRequest, GrowStoreRequest, GrowVolumeRequest, ImportLvolRequest, LvolEnd, NodeInfoRequest,
    RemoveReplicaRequest, RevertVolumeRequest, SetRebuildRequest, SetStoreLimitsRequest, SnapshotLvolRequest,
    SnapshotVolumeRequest, UnexportVolumeRequest,
};
use tonic::codegen::tokio_stream;
use tonic::{Code, Request, Status};
use uuid::Uuid;

use super::failpoints::{Failpoints, is_long};
use super::left::{delete, nothing_is_left, orphans};

/// What an administrator does to a node from its first volume to its last, one call after the other.
const LIFE: [&str; 25] = [
    "store create",
    "store limits",
    "volume create",
    "snapshot",
    "clone",
    "second snapshot",
    "revert",
    "grow",
    "export",
    "unexport",
    "rebuild",
    "remove replica",
    "add replica",
    "delete snapshot",
    "delete clone",
    "delete volume",
    "lvol create",
    "lvol snapshot",
    "lvol delete",
    "lvol snapshot delete",
    "lvol import",
    "lvol export",
    "imported lvol delete",
    "store grow",
    "store delete",
];

/// Those of a life: equal each time it is sent, as of somebody who tries again.
struct Calls {
    client: Client,
    path: String,
    ids: BTreeMap<&'static str, String>,
}

impl Calls {
    fn new(client: Client, path: String) -> Self {
        let ids = ["v", "c", "s1", "s2", "lvol", "cut", "imported"].map(|name| (name, Uuid::new_v4().to_string()));
        Self { client, path, ids: ids.into() }
    }

    fn id(&self, name: &str) -> String {
        self.ids[name].clone()
    }

    fn cut(&self, name: &str) -> SnapshotVolumeRequest {
        SnapshotVolumeRequest { volume: "v".to_owned(), name: name.to_owned(), uuid: self.id(name) }
    }

    async fn send(&self, call: &str) -> Result<(), Status> {
        let (volumes, stores, lvols) =
            (&mut self.client.volumes(), &mut self.client.stores(), &mut self.client.lvols());
        let (v, store) = (|| "v".to_owned(), || "extra".to_owned());
        match call {
            "store create" => {
                let (path, name) = (self.path.clone(), store());
                let request = CreateStoreRequest { name, path, size_bytes: 64 * MIB, ..CreateStoreRequest::default() };
                stores.create(request).await.map(drop)
            }
            "store limits" => {
                let limits = SetStoreLimitsRequest { store: store(), reserve_bytes: Some(MIB), ..Default::default() };
                stores.set_limits(limits).await.map(drop)
            }
            "volume create" => {
                let nodes = vec!["a".to_owned(), "b".to_owned()];
                let (name, uuid, store) = (v(), self.id("v"), "main".to_owned());
                let request =
                    CreateVolumeRequest { name, uuid, nodes, store, size_bytes: 16 * MIB, ..Default::default() };
                volumes.create(request).await.map(drop)
            }
            "snapshot" => volumes.snapshot(self.cut("s1")).await.map(drop),
            "clone" => {
                let (name, uuid, snapshot) = ("c".to_owned(), self.id("c"), self.id("s1"));
                let request = CloneVolumeRequest { volume: v(), snapshot, name, uuid, ..CloneVolumeRequest::default() };
                volumes.create_clone(request).await.map(drop)
            }
            "second snapshot" => volumes.snapshot(self.cut("s2")).await.map(drop),
            "revert" => {
                let request = RevertVolumeRequest { volume: v(), snapshot: self.id("s1"), discard_newer: true };
                volumes.revert(request).await.map(drop)
            }
            "grow" => volumes.grow(GrowVolumeRequest { volume: v(), size_bytes: 24 * MIB }).await.map(drop),
            "export" => {
                let frontend = Frontend::Iscsi.into();
                volumes.export(ExportVolumeRequest { volume: v(), frontend, ..Default::default() }).await.map(drop)
            }
            "unexport" => {
                let frontend = Frontend::Iscsi.into();
                volumes.unexport(UnexportVolumeRequest { volume: v(), frontend }).await.map(drop)
            }
            "rebuild" => {
                let request = SetRebuildRequest { volume: v(), bytes_per_second: Some(1 << 40), ..Default::default() };
                volumes.set_rebuild(request).await.map(drop)
            }
            "remove replica" => {
                let request = RemoveReplicaRequest { volume: v(), node: "b".to_owned(), ..Default::default() };
                volumes.remove_replica(request).await.map(drop)
            }
            "add replica" => volumes
                .add_replica(AddReplicaRequest { volume: v(), node: "b".to_owned(), ..Default::default() })
                .await
                .map(drop),
            "delete snapshot" => {
                let request = DeleteSnapshotRequest { volume: v(), snapshot: self.id("s1"), ..Default::default() };
                volumes.delete_snapshot(request).await.map(drop)
            }
            "delete clone" => volumes.delete(delete("c")).await.map(drop),
            "delete volume" => volumes.delete(delete("v")).await.map(drop),
            "lvol create" => {
                let (name, uuid) = ("l".to_owned(), self.id("lvol"));
                let request = CreateLvolRequest { name, store: store(), size_bytes: MIB, uuid, ..Default::default() };
                lvols.create(request).await.map(drop)
            }
            "lvol snapshot" => {
                let (lvol, name, uuid) = (self.id("lvol"), "cut".to_owned(), self.id("cut"));
                lvols.snapshot(SnapshotLvolRequest { lvol, name, uuid }).await.map(drop)
            }
            "lvol delete" => {
                lvols.delete(DeleteLvolRequest { lvol: self.id("lvol"), ..Default::default() }).await.map(drop)
            }
            "lvol snapshot delete" => {
                lvols.delete(DeleteLvolRequest { lvol: self.id("cut"), ..Default::default() }).await.map(drop)
            }
            "lvol import" => {
                let (name, uuid) = ("i".to_owned(), self.id("imported"));
                let wanted = CreateLvolRequest { name, store: store(), size_bytes: MIB, uuid, ..Default::default() };
                let data = vec![7; 64 << 10];
                let end = Part::End(LvolEnd { data_bytes: data.len() as u64 });
                let parts = [Part::Lvol(wanted)].into_iter().chain(chunks(0, &data).map(Part::Chunk)).chain([end]);
                let messages: Vec<_> = parts.map(|part| ImportLvolRequest { part: Some(part) }).collect();
                lvols.import(tokio_stream::iter(messages)).await.map(drop)
            }
            "lvol export" => {
                let request = ExportLvolRequest { lvol: self.id("imported") };
                let mut parts = lvols.export(request).await?.into_inner();
                while parts.message().await?.is_some() {}
                Ok(())
            }
            "imported lvol delete" => {
                lvols.delete(DeleteLvolRequest { lvol: self.id("imported"), ..Default::default() }).await.map(drop)
            }
            "store grow" => stores.grow(GrowStoreRequest { store: store(), size_bytes: 128 * MIB }).await.map(drop),
            "store delete" => {
                stores.delete(DeleteStoreRequest { store: store(), expected_uuid: String::new() }).await.map(drop)
            }
            other => Err(Status::internal(format!("no such call: {other}"))),
        }
    }

    /// Sends a call until it succeeds, as long as it is worth it.
    async fn send_again(&self, call: &str) -> anyhow::Result<()> {
        let limit = Instant::now() + PATIENCE;
        loop {
            let Err(status) = self.send(call).await else { return Ok(()) };
            // Merging or leaving takes its time; nothing else is in the way of an administrator who tries again.
            let passes = matches!(status.code(), Code::Unavailable) || reason(&status) == "STORE_NOT_EMPTY";
            ensure!(passes && Instant::now() < limit, "{call} again: {status:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn reason(status: &Status) -> String {
    proto::error::info(status).map(|info| info.reason).unwrap_or_default()
}

async fn two_daemons() -> anyhow::Result<(House, Failpoints)> {
    let mut house = House::prepare(&["a", "b"])?;
    let failpoints = Failpoints::of(&mut house, 0);
    house.cluster.start().await?;
    for index in 0..2 {
        house.create_store(index, "main", 256 * MIB).await?;
    }
    Ok((house, failpoints))
}

/// A life in which one passage of each call fails: which of the `index`-th call, `chosen` says. Returns the steps of each call, and how many
/// calls failed.
async fn live(
    house: &House,
    failpoints: &Failpoints,
    chosen: impl Fn(usize) -> Option<usize>,
) -> anyhow::Result<(Vec<Vec<String>>, usize)> {
    let path = house.cluster.nodes()[0].folder().join("extra.img").display().to_string();
    let calls = Calls::new(house.client(0).await?, path.clone());
    let (mut steps, mut failed) = (Vec::new(), 0);
    for (index, call) in LIFE.into_iter().enumerate() {
        let number = chosen(index).unwrap_or(0);
        failpoints.arm(if number == 0 { "count" } else { "fail" }, number)?;
        let sent = calls.send(call).await;
        let passed = failpoints.disarm()?;
        if let Err(status) = sent {
            let what = passed.get(number.wrapping_sub(1)).cloned().unwrap_or_default();
            let passes = !matches!(status.code(), Code::Unknown | Code::NotFound | Code::DeadlineExceeded);
            ensure!(passes, "{call}, step {number} ({what}): {status:?}\n{}", house.logs());
            failed += 1;
            calls.send_again(call).await.with_context(|| format!("after step {number} ({what}) failed"))?;
        }
        if matches!(call, "remove replica" | "add replica" | "clone") {
            house.wait_for_engine("v", |engine| engine.state() == EngineState::Healthy).await?;
        }
        steps.push(passed);
    }
    let chosen: Vec<_> = (0..LIFE.len()).map(chosen).collect();
    nothing_is_left(house, 2).await.with_context(|| format!("steps that failed: {chosen:?}"))?;
    std::fs::remove_file(path)?;
    Ok((steps, failed))
}

#[tokio::test]
async fn whichever_step_of_a_call_fails_the_same_call_again_ends_it() -> anyhow::Result<()> {
    let (house, failpoints) = two_daemons().await?;
    let (steps, failed) = live(&house, &failpoints, |_| None).await?;
    assert_eq!(failed, 0);
    let lengths: Vec<usize> = steps.iter().map(Vec::len).collect();
    let (most, all) = (lengths.iter().copied().max().context("calls")?, lengths.iter().sum::<usize>());
    ensure!(all > 200, "steps are missing: {steps:#?}");
    let mut failures = 0;
    if is_long() {
        for number in 1..=most {
            let chosen = |index: usize| Some(number).filter(|number| *number <= lengths[index]);
            failures += live(&house, &failpoints, chosen).await?.1;
        }
    } else {
        // Other ones in each run.
        for round in [1, 2] {
            let salt = round * std::process::id() as usize;
            let chosen = |index: usize| Some(1 + (salt + index * 7) % lengths[index].max(1));
            failures += live(&house, &failpoints, chosen).await?.1;
        }
    }
    ensure!(failures > LIFE.len() / 2, "only {failures} calls failed");
    let mut names: Vec<_> =
        steps.iter().flatten().filter_map(|step| Some(step.split_once(' ')?.1.trim_start_matches('+'))).collect();
    names.sort_unstable();
    names.dedup();
    println!(
        "{} calls have {all} passages of {} steps, {most} at most; {failures} calls failed",
        LIFE.len(),
        names.len()
    );
    Ok(())
}

/// What must be as it was (I40).
#[derive(Debug, PartialEq)]
struct Counts(BTreeMap<&'static str, f64>);

fn scrape(address: SocketAddr) -> anyhow::Result<(Counts, f64)> {
    let all = Exposition::parse(&probe(address, "/metrics")?.body)?;
    let mut counts = BTreeMap::new();
    for name in ["process_open_fds", "ashlar_control_tasks", "ashlar_reactor_tasks", "ashlar_pending_deletions"] {
        counts.insert(name, all.get(name, &[]).context(name)?);
    }
    for (name, peer, shown) in [
        ("ashlar_peer_up", "b", "b is up"),
        ("ashlar_peer_connects_total", "b", "connections to b"),
        ("ashlar_peer_calls_in_flight", "b", "calls to b"),
        ("ashlar_peer_up", "c", "c is up"),
        ("ashlar_peer_calls_in_flight", "c", "calls to c"),
    ] {
        counts.insert(shown, all.get(name, &[("peer", peer)]).context(name)?);
    }
    let orphans = |state| all.get("ashlar_orphans", &[("state", state)]).context("ashlar_orphans");
    counts.insert("orphans", orphans("orphan")?);
    if is_long() {
        // Threads that waited for the disk end when they have been idle for a while.
        counts.insert("process_threads", all.get("process_threads", &[]).context("threads")?);
    }
    Ok((Counts(counts), all.get("process_resident_memory_bytes", &[]).context("memory")?))
}

/// The counts once they stay as they are.
async fn at_rest(address: SocketAddr) -> anyhow::Result<(Counts, f64)> {
    let (limit, mut same) = (Instant::now() + PATIENCE, 0);
    let mut last = scrape(address)?;
    // Long enough for threads that are idle to end, where those count.
    let wanted = if is_long() { 120 } else { 5 };
    while same < wanted {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = scrape(address)?;
        same = if now.0 == last.0 { same + 1 } else { 0 };
        last = now;
        ensure!(Instant::now() < limit, "it does not come to rest: {last:?}");
    }
    Ok(last)
}

/// A call that fails, of the kind that `number` says; how it failed.
async fn fail(client: &Client, used: &str, number: usize) -> anyhow::Result<Status> {
    let none = || "none".to_owned();
    let (volumes, orphans) = (&mut client.volumes(), &mut client.orphans());
    let create = |name: &str, nodes: &[&str]| CreateVolumeRequest {
        name: name.to_owned(),
        size_bytes: MIB,
        nodes: nodes.iter().map(|node| (*node).to_owned()).collect(),
        ..CreateVolumeRequest::default()
    };
    let failed = match number % 15 {
        0 => volumes.get(GetVolumeRequest { volume: none() }).await.map(drop),
        1 => volumes.create(CreateVolumeRequest { size_bytes: 1, ..create("w", &["a"]) }).await.map(drop),
        // Nobody is there.
        2 => volumes.create(create("half", &["a", "c"])).await.map(drop),
        // It has no store.
        3 => volumes.create(create("refused", &["b"])).await.map(drop),
        4 => volumes.create(create("v", &["a"])).await.map(drop),
        5 => volumes.snapshot(SnapshotVolumeRequest { volume: none(), ..Default::default() }).await.map(drop),
        6 => {
            let expected_uuid = Uuid::new_v4().to_string();
            volumes.delete(DeleteVolumeRequest { expected_uuid, ..delete("v") }).await.map(drop)
        }
        7 => {
            let initiator = Some(ChapCredentials { name: "h".to_owned(), secret: "short".to_owned() });
            let chap = Some(ChapSettings { initiator, ..ChapSettings::default() });
            let (volume, frontend) = ("v".to_owned(), Frontend::Iscsi.into());
            volumes.export(ExportVolumeRequest { volume, frontend, chap, ..Default::default() }).await.map(drop)
        }
        8 => {
            let uuid = Uuid::new_v4().to_string();
            orphans.adopt(AdoptOrphanRequest { uuid, ..AdoptOrphanRequest::default() }).await.map(drop)
        }
        9 => {
            let request =
                CreateLvolRequest { name: "l".to_owned(), store: none(), size_bytes: MIB, ..Default::default() };
            client.lvols().create(request).await.map(drop)
        }
        // Nobody waits for the answer.
        10 => {
            let mut request = Request::new(create("half", &["a", "c"]));
            request.set_timeout(Duration::from_micros(1));
            volumes.create(request).await.map(drop)
        }
        11 => {
            let request = DeleteReplicaRequest { uuid: used.to_owned(), ..DeleteReplicaRequest::default() };
            client.replicas().delete(request).await.map(drop)
        }
        12 => {
            let request = CreateStoreRequest { name: "s".to_owned(), path: "/".to_owned(), ..Default::default() };
            client.stores().create(request).await.map(drop)
        }
        13 => {
            let request = RevertVolumeRequest { volume: "v".to_owned(), snapshot: none(), discard_newer: true };
            volumes.revert(request).await.map(drop)
        }
        _ => volumes
            .add_replica(AddReplicaRequest { volume: "v".to_owned(), node: "c".to_owned(), ..Default::default() })
            .await
            .map(drop),
    };
    failed.err().with_context(|| format!("call {number} succeeded"))
}

/// Fails `count` calls, a few over each connection, and some at a step of theirs. Returns how often each code was the answer.
async fn fail_all(
    house: &House,
    failpoints: &Failpoints,
    used: &str,
    count: usize,
) -> anyhow::Result<BTreeMap<String, usize>> {
    let (mut failed, mut codes) = (0, BTreeMap::<String, usize>::new());
    while failed < count {
        let client = house.client(0).await?;
        let mut note = |status: Status| {
            failed += 1;
            *codes.entry(format!("{:?} {}", status.code(), reason(&status))).or_default() += 1;
        };
        for number in 0..45 {
            note(fail(&client, used, number).await?);
        }
        failpoints.arm("every", 3)?;
        let request = || CreateVolumeRequest {
            name: "w".to_owned(),
            size_bytes: MIB,
            nodes: vec!["a".to_owned()],
            ..Default::default()
        };
        for _ in 0..2 {
            if let Err(status) = client.volumes().create(request()).await {
                note(status);
            }
            if let Err(status) = client.volumes().delete(delete("w")).await {
                note(status);
            }
        }
        failpoints.disarm()?;
        answer(client.volumes().delete(delete("w")).await)?;
    }
    Ok(codes)
}

#[tokio::test]
async fn calls_that_fail_leave_everything_where_it_was() -> anyhow::Result<()> {
    let mut house = House::prepare(&["a", "b", "c"])?;
    let failpoints = Failpoints::of(&mut house, 0);
    // c never runs.
    for index in [0, 1] {
        house.cluster.node(index).start().await?;
    }
    house.create_store(0, "main", 256 * MIB).await?;
    let volume = house.create_volume("v", 16 * MIB, &["a"]).await?;
    let used = volume.replicas[0].replica_uuid.clone();
    let count = if is_long() { 10_000 } else { 400 };
    // What is made once, such as volumes that stay half made, and memory that is kept for the next call.
    fail_all(&house, &failpoints, &used, count / 10).await?;
    let health = house.cluster.nodes()[0].addresses().health;
    let (before, memory) = at_rest(health).await?;
    let codes = fail_all(&house, &failpoints, &used, count).await?;
    let limit = Instant::now() + PATIENCE;
    let (mut after, mut memory_after) = at_rest(health).await?;
    while after != before {
        ensure!(Instant::now() < limit, "before: {before:#?}\nafter: {after:#?}\n{}", house.logs());
        (after, memory_after) = at_rest(health).await?;
    }
    let grown = memory_after / memory;
    ensure!(grown < 1.05, "{memory} bytes before, {memory_after} after");
    println!("{} calls failed: {codes:#?}", codes.values().sum::<usize>());
    println!("before and after: {before:#?}, memory {memory} and {memory_after}");
    let info = answer(house.client(0).await?.node().info(NodeInfoRequest {}).await)?;
    let peer = |name| info.peers.iter().find(|peer| peer.name == name).context("a peer");
    assert_eq!((peer("b")?.connects, peer("c")?.connects), (1, 0), "one connection for all calls");
    ensure!(peer("c")?.attempts > 0 && peer("c")?.next_try_ms.is_some(), "{:?}", peer("c")?);
    assert_eq!(orphans(&house, 0).await?.iter().filter(|orphan| orphan.unasked_nodes.is_empty()).count(), 0);
    Ok(())
}
