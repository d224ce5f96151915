//! `ashlar demo`: the main job on one machine, without root. Three daemons, a volume with three replicas, a verified load
//! through the built-in host, and nodes killed while it runs.

mod load;
mod report;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use proto::v1::{
    CreateStoreRequest, CreateVolumeRequest, Engine, EngineState, GetVolumeRequest, Member, MemberState, Volume,
};

use self::load::LoadRunner;
use self::report::Outcome;
use crate::arguments::DemoOptions;
use crate::client::answer;
use crate::cluster::{Cluster, program};
use crate::size::Size;

const NODES: [&str; 3] = ["a", "b", "c"];
/// The node whose engine serves the volume.
const ENGINE: usize = 0;
/// The node that is killed first.
const VICTIM: usize = 2;
const VOLUME: &str = "demo";
/// How long a state may take to come.
const STATE_LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);
/// How long a killed node stays away.
const AWAY: Duration = Duration::from_millis(500);

/// Runs the demo. Everything it starts ends with it, unless it is asked to keep it.
pub(crate) fn run(options: &DemoOptions) -> anyhow::Result<()> {
    let folder = Folder::new(options.dir.as_deref())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(Demo::play(options, &folder.path));
    match outcome {
        Ok(()) => folder.finish(options.keep || options.dir.is_some()),
        Err(error) => {
            let logs = folder.path.join("*").join("log");
            Err(error.context(format!("the demo failed; the logs are {}", logs.display())))
        }
    }
}

/// Where stores, state and logs go.
struct Folder {
    path: PathBuf,
}

impl Folder {
    fn new(given: Option<&Path>) -> anyhow::Result<Self> {
        let path = match given {
            None => tempfile::Builder::new().prefix("ashlar-demo-").tempdir()?.keep(),
            Some(path) => {
                fs::create_dir_all(path).with_context(|| format!("cannot make the folder {}", path.display()))?;
                let path = path.canonicalize()?;
                ensure!(fs::read_dir(&path)?.next().is_none(), "{} is not empty: name another folder", path.display());
                path
            }
        };
        Ok(Self { path })
    }

    /// Not called after a failure: the logs are needed then.
    fn finish(&self, keep: bool) -> anyhow::Result<()> {
        if !keep {
            fs::remove_dir_all(&self.path)?;
        }
        Ok(())
    }
}

/// The stage.
struct Demo {
    cluster: Cluster,
    load: LoadRunner,
    /// How long each load runs.
    runtime: Duration,
}

impl Demo {
    async fn play(options: &DemoOptions, folder: &Path) -> anyhow::Result<()> {
        let program = program("ashlard")?;
        let cluster = Cluster::prepare(&program, folder, &NODES, "")?;
        let runtime = Duration::from_secs(options.seconds);
        let mut demo = Self { cluster, load: LoadRunner::start(runtime)?, runtime };
        let (volume, outcome) = demo.acts(options.size).await?;
        print!("{}", outcome.render(&volume));
        if options.keep {
            let server = demo.cluster.nodes()[ENGINE].server();
            let pids = demo.cluster.leave_running();
            print!("{}", report::still_running(folder, &server, &pids));
            return Ok(());
        }
        step("stopping the daemons in order");
        for (index, name) in NODES.iter().enumerate() {
            let status = demo.cluster.node(index).stop().await?;
            ensure!(status.success(), "node {name} did not stop in order: {status}");
        }
        Ok(())
    }

    async fn acts(&mut self, size: Size) -> anyhow::Result<(Volume, Outcome)> {
        step("starting three daemons on loopback");
        self.cluster.start().await?;
        self.create_stores(size).await?;
        let volume = self.create_volume(size).await?;
        let nqn = export(&volume)?.nqn.clone();
        step(format!("attaching {nqn} with the built-in NVMe/TCP host"));
        self.load.attach(self.cluster.nodes()[ENGINE].addresses().nvmf, &nqn).await?;

        let replica_killed = self.lose_a_replica().await?;
        self.wait_for_rebuild().await?;
        let engine_killed = self.lose_the_engine().await?;
        self.wait_for_rebuild().await?;

        step("reading back everything that was acknowledged");
        let read_back = self.load.check().await?;
        ensure!(read_back.verify.checked > 0, "nothing was read back");
        let volume = self.volume().await?;
        Ok((volume, Outcome { replica_killed, engine_killed, read_back }))
    }

    async fn create_stores(&self, volume: Size) -> anyhow::Result<()> {
        // Room for the volume, its metadata and snapshots; sparse, so that only what is written takes space.
        let size = Size((2 * volume.0).max(512 << 20));
        step(format!("creating a store of {size} (sparse file) on each node"));
        for node in self.cluster.nodes() {
            let request = CreateStoreRequest {
                name: "main".to_owned(),
                path: node.store_path().display().to_string(),
                size_bytes: size.0,
                ..CreateStoreRequest::default()
            };
            answer(node.client().await?.stores().create(request).await)?;
        }
        Ok(())
    }

    async fn create_volume(&self, size: Size) -> anyhow::Result<Volume> {
        step(format!("creating volume {VOLUME} of {size} with a replica on each node"));
        let request = CreateVolumeRequest {
            name: VOLUME.to_owned(),
            size_bytes: size.0,
            nodes: NODES.map(str::to_owned).to_vec(),
            ..CreateVolumeRequest::default()
        };
        answer(self.cluster.nodes()[ENGINE].client().await?.volumes().create(request).await)?;
        self.wait_for("every replica in sync", |engine| engine.state() == EngineState::Healthy).await
    }

    /// A replica's node is killed under load, and comes back under load.
    async fn lose_a_replica(&mut self) -> anyhow::Result<nvmf_initiator::load::Report> {
        step(format!("writing and verifying for {} s", self.runtime.as_secs()));
        self.load.begin().await?;
        tokio::time::sleep(self.runtime / 4).await;

        step(format!("kill -9 of node {}, which has a replica", NODES[VICTIM]));
        self.cluster.node(VICTIM).kill()?;
        let out_of_sync = |engine: &Engine| member(engine, VICTIM).is_some_and(|m| m.state() == MemberState::OutOfSync);
        self.wait_for("the replica recorded out of sync", out_of_sync).await?;
        self.load.must_move().await.context("after a replica's node was killed")?;
        step("the volume is degraded, the load goes on");

        tokio::time::sleep(self.runtime / 4).await;
        step(format!("starting node {} again", NODES[VICTIM]));
        self.cluster.node(VICTIM).start().await?;
        let report = self.load.end().await?;
        ensure!(report.is_clean(), "the load met errors:\n{report}");
        Ok(report)
    }

    /// The engine's node is killed under load, and comes back; the host rides through.
    async fn lose_the_engine(&mut self) -> anyhow::Result<nvmf_initiator::load::Report> {
        step(format!("writing and verifying for {} s more", self.runtime.as_secs()));
        self.load.begin().await?;
        tokio::time::sleep(self.runtime / 3).await;

        step(format!("kill -9 of node {}, which has the engine and the host's connection", NODES[ENGINE]));
        self.cluster.node(ENGINE).kill()?;
        tokio::time::sleep(AWAY).await;
        step(format!("starting node {} again", NODES[ENGINE]));
        self.cluster.node(ENGINE).start().await?;
        let report = self.load.end().await?;
        ensure!(report.is_clean(), "the load met errors:\n{report}");
        ensure!(report.reconnects > 0, "the host did not notice that its node was killed");
        Ok(report)
    }

    async fn wait_for_rebuild(&self) -> anyhow::Result<()> {
        let mut last = String::new();
        let mut show = |engine: &Engine| {
            let progress = engine.members.iter().filter_map(progress).collect::<Vec<_>>().join(", ");
            if !progress.is_empty() && progress != last {
                step(&progress);
                last = progress;
            }
            engine.state() == EngineState::Healthy
        };
        self.wait_for("every replica in sync again", &mut show).await?;
        step("every replica is in sync");
        Ok(())
    }

    /// Asks until the engine is as wanted.
    async fn wait_for(&self, what: &str, mut wanted: impl FnMut(&Engine) -> bool) -> anyhow::Result<Volume> {
        let limit = Instant::now() + STATE_LIMIT;
        loop {
            let volume = self.volume().await?;
            if volume.engine.as_ref().is_some_and(&mut wanted) {
                return Ok(volume);
            }
            if Instant::now() > limit {
                bail!("waited {} s for {what}; the volume is {volume:#?}", STATE_LIMIT.as_secs());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn volume(&self) -> anyhow::Result<Volume> {
        let client = self.cluster.nodes()[ENGINE].client().await?;
        answer(client.volumes().get(GetVolumeRequest { volume: VOLUME.to_owned() }).await)
    }
}

fn member(engine: &Engine, index: usize) -> Option<&Member> {
    engine.members.iter().find(|member| member.node == NODES[index])
}

/// What a member that is not in sync is doing.
fn progress(member: &Member) -> Option<String> {
    match member.state() {
        MemberState::Rebuilding if member.rebuild_total_bytes > 0 => {
            // Steps of 20 %, so that a person can read along.
            let percent = member.rebuilt_bytes * 5 / member.rebuild_total_bytes * 20;
            Some(format!("rebuilding the replica on {}: {percent} %", member.node))
        }
        MemberState::Rebuilding => Some(format!("rebuilding the replica on {}", member.node)),
        MemberState::Settling => Some(format!("comparing the replica on {} where writes were in flight", member.node)),
        _ => None,
    }
}

fn export(volume: &Volume) -> anyhow::Result<&proto::v1::NvmfExport> {
    let engine = volume.engine.as_ref();
    engine.and_then(|engine| engine.nvmf.as_ref()).ok_or_else(|| anyhow!("the volume is not exported"))
}

fn step(text: impl std::fmt::Display) {
    println!("· {text}");
}
