//! The daemon, and two stores: one on the disk of the machine, one on a disk that can be made to hang.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, ensure};
use cli::client::{Client, answer};
use cli::cluster::{Cluster, program};
use integration::{Mounted, probe};
use proto::v1::{CreateStoreRequest, CreateVolumeRequest, NodeInfoRequest, Volume};
use tokio::task::JoinSet;

/// Bytes of a volume, of which a load uses few.
const VOLUME: u64 = 1 << 30;
/// Bytes of a store for each of its volumes.
const ROOM: u64 = 24 << 20;
const SMALLEST_STORE: u64 = 1 << 30;
/// One volume in so many is on the disk that hangs.
const ON_DISK: usize = 60;
/// One volume in so many has a load.
const LOADED: usize = 10;
/// Calls under way while volumes are made.
const AT_ONCE: usize = 8;
/// What the volumes of the disk that hangs are called, before their number.
const HANGING: &str = "hanging-";

pub(super) struct Stage {
    /// Goes before the daemon, which cannot end while it hangs.
    disk: Mounted,
    cluster: Cluster,
    volumes: Vec<Loaded>,
    started_at: i64,
}

/// A volume and what it is for.
#[derive(Clone, Debug)]
struct Loaded {
    name: String,
    nqn: String,
    has_load: bool,
}

impl Stage {
    pub(super) async fn open(folder: &Path, volumes: usize) -> anyhow::Result<Self> {
        let mut cluster = Cluster::prepare(&program("ashlard")?, folder, &["node"], "")?;
        cluster.start().await?;
        let client = cluster.nodes()[0].client().await?;
        // With and without a load.
        let on_disk = (volumes / ON_DISK).max(2);
        let size = |volumes: usize| SMALLEST_STORE.max(volumes as u64 * ROOM);
        // The file system needs some for itself.
        let disk = Mounted::make(&folder.join("disk.ext4"), &folder.join("disk"), size(on_disk) + (128 << 20))?;
        let place = cluster.nodes()[0].store_path();
        create_store(&client, "main", &place, size(volumes - on_disk)).await?;
        create_store(&client, "hanging", &disk.path().join("store.img"), size(on_disk)).await?;
        let volumes = create_all(&client, volumes, on_disk).await?;
        let started_at = answer(client.node().info(NodeInfoRequest {}).await)?.started_at_unix_ms;
        Ok(Self { disk, cluster, volumes, started_at })
    }

    pub(super) fn volumes(&self) -> usize {
        self.volumes.len()
    }

    /// How hosts find the volumes that get a load.
    pub(super) fn loaded(&self) -> Vec<String> {
        self.volumes.iter().filter(|volume| volume.has_load).map(|volume| volume.nqn.clone()).collect()
    }

    /// The volumes with a load on the disk that can hang.
    pub(super) fn hanging(&self) -> Vec<String> {
        let hanging = self.volumes.iter().filter(|volume| volume.has_load && self.is_on_disk(&volume.name));
        hanging.map(|volume| volume.name.clone()).collect()
    }

    pub(super) fn is_on_disk(&self, name: &str) -> bool {
        name.starts_with(HANGING)
    }

    pub(super) fn disk(&self) -> &Mounted {
        &self.disk
    }

    /// The volumes that the daemon calls unhealthy.
    pub(super) fn unhealthy(&self) -> anyhow::Result<Vec<String>> {
        let page = probe(self.health(), "/volumes")?;
        let unhealthy = page.body.lines().filter_map(|line| line.strip_prefix("unhealthy "));
        Ok(unhealthy.filter_map(|line| line.split(' ').next()).map(str::to_owned).collect())
    }

    pub(super) fn health(&self) -> SocketAddr {
        self.cluster.nodes()[0].addresses().health
    }

    pub(super) fn hosts_address(&self) -> SocketAddr {
        self.cluster.nodes()[0].addresses().nvmf
    }

    pub(super) fn pid(&self) -> anyhow::Result<u32> {
        self.cluster.nodes()[0].pid().context("it does not run")
    }

    /// Whether it is still the process that was started, with the run that it began.
    pub(super) async fn is_same_run(&self, pid: u32) -> anyhow::Result<bool> {
        let info = answer(self.cluster.nodes()[0].client().await?.node().info(NodeInfoRequest {}).await)?;
        Ok(info.pid == pid && info.started_at_unix_ms == self.started_at)
    }

    /// Whether it ended in order.
    pub(super) async fn stop(&mut self) -> anyhow::Result<bool> {
        Ok(self.cluster.node(0).stop().await?.success())
    }

    pub(super) fn log_tail(&self) -> String {
        self.cluster.nodes()[0].log_tail()
    }
}

async fn create_store(client: &Client, name: &str, path: &Path, size_bytes: u64) -> anyhow::Result<()> {
    let (name, path) = (name.to_owned(), path.display().to_string());
    answer(client.stores().create(CreateStoreRequest { name, path, size_bytes, ..Default::default() }).await).map(drop)
}

/// Makes the volumes; of those on the disk that can hang every second one gets a load.
async fn create_all(client: &Client, count: usize, on_disk: usize) -> anyhow::Result<Vec<Loaded>> {
    let (mut calls, mut volumes) = (JoinSet::new(), Vec::new());
    for number in 0..count {
        if calls.len() == AT_ONCE {
            volumes.push(calls.join_next().await.context("one is under way")???);
        }
        let hangs = number < on_disk;
        let has_load = if hangs { number % 2 == 0 } else { number % LOADED == 0 };
        calls.spawn(create(client.clone(), number, hangs, has_load));
    }
    while let Some(made) = calls.join_next().await {
        volumes.push(made??);
    }
    ensure!(volumes.len() == count, "{} volumes were made, not {count}", volumes.len());
    Ok(volumes)
}

async fn create(client: Client, number: usize, hangs: bool, has_load: bool) -> anyhow::Result<Loaded> {
    let (prefix, store) = if hangs { (HANGING, "hanging") } else { ("volume-", "main") };
    let name = format!("{prefix}{number:05}");
    let request = CreateVolumeRequest {
        name: name.clone(),
        size_bytes: VOLUME,
        store: store.to_owned(),
        ..CreateVolumeRequest::default()
    };
    let nqn = nqn_of(&answer(client.volumes().create(request).await)?)?;
    Ok(Loaded { name, nqn, has_load })
}

fn nqn_of(volume: &Volume) -> anyhow::Result<String> {
    let export = volume.engine.as_ref().and_then(|engine| engine.nvmf.as_ref());
    Ok(export.context("the volume is not exported")?.nqn.clone())
}
