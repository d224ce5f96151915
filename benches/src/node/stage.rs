//! The daemon, its store and its volumes.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use cli::client::{Client, answer};
use cli::cluster::{Cluster, program};
use integration::probe;
use proto::v1::{CreateStoreRequest, CreateVolumeRequest, Volume};
use tokio::task::JoinSet;

use crate::report::Row;

/// Bytes of a volume. Nothing is written to it.
const VOLUME: u64 = 1 << 30;
/// Bytes of the store for each volume: what a replica keeps for itself, and some more.
const ROOM: u64 = 8 << 20;
const SMALLEST_STORE: u64 = 4 << 30;
/// Calls under way while volumes are made.
const AT_ONCE: usize = 8;
/// Longer than anything that is measured.
const PATIENCE: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_millis(5);
/// What the daemon logs of a volume that hosts can use.
const SERVED: &str = "the volume is served";

pub(super) struct Stage {
    cluster: Cluster,
    pub(super) volumes: usize,
}

/// Seconds from the start of the process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Started {
    /// Until `/readyz` says so.
    pub(super) ready: f64,
    /// Until every volume is served.
    pub(super) served: f64,
}

impl Stage {
    /// A daemon with a store, and no volumes yet.
    pub(super) async fn open(folder: &Path, volumes: usize) -> anyhow::Result<Self> {
        let mut cluster = Cluster::prepare(&program("ashlard")?, folder, &["node"], "")?;
        cluster.start().await?;
        let size_bytes = SMALLEST_STORE.max(volumes as u64 * ROOM);
        let path = cluster.nodes()[0].store_path().display().to_string();
        let request = CreateStoreRequest { name: "main".to_owned(), path, size_bytes, ..Default::default() };
        answer(cluster.nodes()[0].client().await?.stores().create(request).await)?;
        Ok(Self { cluster, volumes })
    }

    /// Makes the volumes. What that takes is told, and has no target.
    pub(super) async fn create_all(&self) -> anyhow::Result<Vec<Row>> {
        let (client, begun) = (self.client().await?, Instant::now());
        let mut calls = JoinSet::new();
        for number in 0..self.volumes {
            if calls.len() == AT_ONCE {
                calls.join_next().await.context("one is under way")???;
            }
            let client = client.clone();
            calls.spawn(async move { create(&client, name(number)).await.map(drop) });
        }
        while let Some(made) = calls.join_next().await {
            made??;
        }
        let each = begun.elapsed().as_secs_f64() * 1000.0 / self.volumes as f64;
        let note = format!("{} volumes of 1 GiB, thin, one replica each; {AT_ONCE} calls at once", self.volumes);
        Ok(vec![Row::alone("a volume made, on the average", "ms", each).note(note)])
    }

    pub(super) async fn client(&self) -> anyhow::Result<Client> {
        self.cluster.nodes()[0].client().await
    }

    /// The URL of its API.
    pub(super) fn server(&self) -> String {
        self.cluster.nodes()[0].server()
    }

    /// Where hosts attach.
    pub(super) fn hosts_address(&self) -> SocketAddr {
        self.cluster.nodes()[0].addresses().nvmf
    }

    pub(super) fn pid(&self) -> anyhow::Result<u32> {
        self.cluster.nodes()[0].pid().context("it does not run")
    }

    pub(super) fn log_tail(&self) -> String {
        self.cluster.nodes()[0].log_tail()
    }

    /// Asks it to end and waits for that; gives the seconds that it took.
    pub(super) async fn stop(&mut self) -> anyhow::Result<f64> {
        let begun = Instant::now();
        let status = self.cluster.node(0).stop().await?;
        ensure!(status.success(), "it did not stop in order: {status}\n{}", self.log_tail());
        Ok(begun.elapsed().as_secs_f64())
    }

    pub(super) fn kill(&mut self) -> anyhow::Result<()> {
        self.cluster.node(0).kill()
    }

    /// Starts it.
    pub(super) async fn start(&mut self) -> anyhow::Result<Started> {
        let (log, before) = (self.cluster.nodes()[0].log(), self.served()?);
        let health = self.cluster.nodes()[0].addresses().health;
        let begun = Instant::now();
        let ready = tokio::task::spawn_blocking(move || until_ready(health, begun));
        self.cluster.node(0).start().await?;
        let ready = ready.await??;
        while self.served()? < before + self.volumes {
            ensure!(begun.elapsed() < PATIENCE, "not all volumes are served: {}", log.display());
            tokio::time::sleep(POLL).await;
        }
        Ok(Started { ready, served: begun.elapsed().as_secs_f64() })
    }

    /// How many volumes its log says are served, over all runs. Asking the daemon would have it do something else than start.
    fn served(&self) -> anyhow::Result<usize> {
        Ok(fs::read_to_string(self.cluster.nodes()[0].log())?.matches(SERVED).count())
    }
}

fn until_ready(health: SocketAddr, begun: Instant) -> anyhow::Result<f64> {
    loop {
        // Nobody listens at first.
        if probe(health, "/readyz").is_ok_and(|page| page.status == 200) {
            return Ok(begun.elapsed().as_secs_f64());
        }
        ensure!(begun.elapsed() < PATIENCE, "it does not become ready");
        std::thread::sleep(POLL);
    }
}

/// What the volumes are called.
pub(super) fn name(number: usize) -> String {
    format!("volume-{number:05}")
}

pub(super) async fn create(client: &Client, name: String) -> anyhow::Result<Volume> {
    let request = CreateVolumeRequest { name, size_bytes: VOLUME, ..CreateVolumeRequest::default() };
    answer(client.volumes().create(request).await)
}

/// How hosts find a volume.
pub(super) fn nqn_of(volume: &Volume) -> anyhow::Result<String> {
    let export = volume.engine.as_ref().and_then(|engine| engine.nvmf.as_ref());
    Ok(export.context("the volume is not exported")?.nqn.clone())
}
