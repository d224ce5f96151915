//! What all scenarios share: daemons on a network, a volume, a host that never stops, and the judgement at the end.

use std::fs;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use cli::cluster::Node;
use integration::{Host, House, MIB, Mounted, Network, PATIENCE, export_of, run_ashlar, said};
use nvmf_initiator::load::{self, Job, Load, Pattern, Report};
use nvmf_initiator::{Controller, Options, Reconnect};
use proto::v1::{Engine, EngineState, MemberState, Volume};
use uuid::Uuid;

/// The volume of each scenario.
pub(crate) const VOLUME: &str = "v";
const VOLUME_SIZE: u64 = 64 * MIB;
const STORE_SIZE: u64 = 512 * MIB;
/// With room for what scenarios write, and soon full.
const FILE_SYSTEM_SIZE: u64 = 192 * MIB;
/// A silent replica is given up on after this long: soon, so that tests are quick, and not as soon as can be configured. A disk
/// that many tests share answers late at times, and a volume of two that loses that replica beside the other has none left.
const DEADLINE: &str = "replica_deadline_ms = 2000";
/// Places for heads that resets of one replica leave: more than a scenario makes.
const GENERATIONS: u64 = 20;

/// Nodes a, b, c on a network, and the volume, whose engine is on node a.
pub(crate) struct Scene {
    // Goes before the daemons: they hang while it is frozen.
    disk: Option<Mounted>,
    pub(crate) house: House,
    pub(crate) network: Network,
    pub(crate) host: Host,
    nqn: String,
}

/// A host that reads and writes until it is told to stop.
pub(crate) struct Traffic {
    stop: Arc<AtomicBool>,
    running: tokio::task::JoinHandle<anyhow::Result<Vec<Report>>>,
}

impl Scene {
    /// Starts three nodes, and makes the volume with replicas on some of them. None where there can be no network.
    pub(crate) async fn open(replicas: &[&str]) -> anyhow::Result<Option<Self>> {
        Self::start(replicas, None).await
    }

    /// The same, with the store of a node on a small file system of its own.
    pub(crate) async fn open_with_disk(replicas: &[&str], node: usize) -> anyhow::Result<Option<Self>> {
        Self::start(replicas, Some(node)).await
    }

    async fn start(replicas: &[&str], apart: Option<usize>) -> anyhow::Result<Option<Self>> {
        let nodes = ["a", "b", "c"];
        let Some(network) = Network::enter(nodes.len())? else { return Ok(None) };
        let house = House::open_in(&network, &nodes, DEADLINE).await?;
        let mut disk = None;
        for (index, node) in house.cluster.nodes().iter().enumerate() {
            if apart == Some(index) {
                let (image, path) = (node.folder().join("disk.img"), node.folder().join("disk"));
                disk = Some(Mounted::make(&image, &path, FILE_SYSTEM_SIZE)?);
            }
            house.create_store_at(index, "main", &store_of(node), STORE_SIZE).await?;
        }
        let volume = house.create_volume(VOLUME, VOLUME_SIZE, replicas).await?;
        let nqn = export_of(&volume)?.nqn.clone();
        Ok(Some(Self { disk, house, network, host: Host::new()?, nqn }))
    }

    /// The file system that is apart.
    pub(crate) fn disk(&self) -> anyhow::Result<&Mounted> {
        self.disk.as_ref().context("no disk is apart")
    }

    /// Starts a load that checks itself.
    pub(crate) fn traffic(&self) -> Traffic {
        let stop = Arc::new(AtomicBool::new(false));
        let (flag, nqn, address) = (Arc::clone(&stop), self.nqn.clone(), Network::addresses(0).nvmf);
        let work = self.host.run(move || async move {
            let job = job();
            let options = Options { reconnect: Some(Reconnect::within(2 * PATIENCE)), ..load::options(&job) };
            let controller = Controller::connect(address, &nqn, options).await?;
            let record = load::new_record(&controller, &job)?;
            let mut reports = Vec::new();
            while !flag.load(Ordering::Relaxed) {
                reports.push(Load::start(&controller, &job, Some(Rc::clone(&record)))?.finish().await);
            }
            reports.push(load::check(&controller, &job, &record).await?);
            controller.disconnect().await;
            Ok(reports)
        });
        Traffic { stop, running: tokio::spawn(work) }
    }

    /// Writes one value over a range, flushed.
    pub(crate) async fn write(&self, offset: u64, value: u8, length: usize) -> anyhow::Result<()> {
        self.host.write(Network::addresses(0).nvmf, &self.nqn, offset, value, length).await
    }

    /// Whether a range reads as one value.
    pub(crate) async fn reads_as(&self, offset: u64, value: u8, length: usize) -> anyhow::Result<()> {
        let found = self.host.read(Network::addresses(0).nvmf, &self.nqn, offset, length).await?;
        let wrong = found.iter().position(|byte| *byte != value);
        ensure!(
            wrong.is_none(),
            "byte {} is {}, not {value}",
            offset + wrong.unwrap_or(0) as u64,
            found[wrong.unwrap_or(0)]
        );
        Ok(())
    }

    /// Runs `ashlar` on node a, which has to succeed.
    pub(crate) fn ashlar(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.house.ashlar(0, arguments)?;
        ensure!(output.status.success(), "{arguments:?}: {}\n{}", said(&output), self.house.logs());
        Ok(said(&output))
    }

    /// Runs `ashlar` on node a, which has to refuse.
    pub(crate) fn refused(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.house.ashlar(0, arguments)?;
        ensure!(!output.status.success(), "{arguments:?} was not refused: {}", said(&output));
        Ok(said(&output))
    }

    /// Waits until the replica of a node is not in sync any more.
    pub(crate) async fn wait_until_out_of_sync(&self, node: &str) -> anyhow::Result<Volume> {
        let gone = |engine: &Engine| {
            let member = engine.members.iter().find(|member| member.node == node);
            member.is_some_and(|member| member.state() != MemberState::InSync)
        };
        self.house.wait_for_engine(VOLUME, gone).await
    }

    /// Waits until the engine says that it cannot serve yet.
    pub(crate) async fn wait_until_waiting(&self) -> anyhow::Result<Volume> {
        self.house.wait_for_engine(VOLUME, |engine| engine.state() == EngineState::Starting).await
    }

    /// Waits until every replica is in sync.
    pub(crate) async fn wait_until_healthy(&self) -> anyhow::Result<Volume> {
        self.house.wait_until_healthy(VOLUME).await
    }

    /// The judgement: the host met no error and misses nothing, all replicas come back, and are equal in their stores.
    pub(crate) async fn ends_well(self, traffic: Traffic) -> anyhow::Result<()> {
        traffic.ends_well(&self.house).await?;
        self.replicas_are_equal().await
    }

    /// All replicas are in sync, and equal when the daemons have stopped.
    pub(crate) async fn replicas_are_equal(mut self) -> anyhow::Result<()> {
        let volume = self.wait_until_healthy().await?;
        for index in 0..self.house.cluster.nodes().len() {
            if self.house.cluster.node(index).pid().is_some() {
                let status = self.house.cluster.node(index).stop().await?;
                ensure!(status.success(), "{status}\n{}", self.house.logs());
            }
        }
        let mut first: Option<(String, Vec<u8>)> = None;
        for replica in &volume.replicas {
            let content = self.content_of(&replica.node, replica.replica_uuid.parse()?)?;
            match &first {
                None => first = Some((replica.node.clone(), content)),
                Some((node, expected)) => {
                    let differs = expected.iter().zip(&content).position(|(one, other)| one != other);
                    ensure!(
                        expected.len() == content.len(),
                        "the replicas on {node} and {} have other sizes",
                        replica.node
                    );
                    ensure!(
                        differs.is_none(),
                        "the replicas on {node} and {} differ at byte {differs:?}",
                        replica.node
                    );
                }
            }
        }
        Ok(())
    }

    /// What a replica reads like, from its store.
    fn content_of(&self, node: &str, replica: Uuid) -> anyhow::Result<Vec<u8>> {
        let node = self.house.cluster.nodes().iter().find(|other| other.name() == node).context("a node")?;
        let (store, file) = (store_of(node), node.folder().join("content"));
        // Each reset makes a new head: docs/replication.md, "The replica's attribute".
        let later = (1..GENERATIONS).map(|generation| Uuid::new_v5(&replica, &generation.to_le_bytes()));
        let heads: Vec<Uuid> = std::iter::once(replica).chain(later).collect();
        for head in heads.iter().rev() {
            let (store, to) = (store.display().to_string(), file.display().to_string());
            let output = run_ashlar(&["store", "dump", &store, "--lvol", &head.to_string(), "--to", &to])?;
            if output.status.success() {
                let content = fs::read(&file)?;
                fs::remove_file(&file)?;
                return Ok(content);
            }
        }
        anyhow::bail!("no head of replica {replica} in {}", store.display())
    }
}

/// Where the store of a node is: on the file system that is its own, if it has one.
fn store_of(node: &Node) -> PathBuf {
    let apart = node.folder().join("disk");
    let folder = if apart.is_dir() { &apart } else { node.folder() };
    folder.join("main.img")
}

impl Traffic {
    /// Ends the load, and judges it.
    pub(crate) async fn ends_well(self, house: &House) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let reports = self.running.await??;
        let written: u64 = reports.iter().map(|report| report.verify.checked).sum();
        ensure!(written > 0, "the host did nothing\n{}", house.logs());
        for report in reports {
            ensure!(report.is_clean(), "the host met errors:\n{report}\n{}", house.logs());
        }
        Ok(())
    }
}

fn job() -> Job {
    Job {
        rw: Pattern::RandRw,
        depth: 8,
        size: Some(16 * MIB),
        runtime: Some(Duration::from_millis(500)),
        // Enough to have something in flight at any time; scenarios run side by side.
        rate: Some(2000),
        verify: true,
        flush_every: 100,
        ..Job::default()
    }
}

/// Lets the load go on for a while.
pub(crate) async fn a_while() {
    tokio::time::sleep(Duration::from_secs(1)).await;
}

/// Waits for something that must come.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let limit = Instant::now() + PATIENCE;
    while !holds().await? {
        ensure!(Instant::now() < limit, "it did not come: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
