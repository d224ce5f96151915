//! Daemons, stores and a volume.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use cli::client::answer;
use cli::cluster::{Cluster, program};
use proto::v1::{
    AddReplicaRequest, CreateStoreRequest, CreateVolumeRequest, Engine, EngineState, GetVolumeRequest, Member,
    RemoveReplicaRequest, Volume,
};

pub(super) const NODES: [&str; 3] = ["a", "b", "c"];
const VOLUME: &str = "bench";
const PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(20);

/// Three daemons; the first has the engine.
pub(super) struct Stage {
    pub(super) cluster: Cluster,
}

impl Stage {
    /// Daemons with a store of this size in bytes each.
    pub(super) async fn open(folder: &Path, store: u64) -> anyhow::Result<Self> {
        let mut cluster = Cluster::prepare(&program("ashlard")?, folder, &NODES, "")?;
        cluster.start().await?;
        for node in cluster.nodes() {
            let path = node.store_path().display().to_string();
            let request = CreateStoreRequest { name: "main".to_owned(), path, size_bytes: store, ..Default::default() };
            answer(node.client().await?.stores().create(request).await)?;
        }
        Ok(Self { cluster })
    }

    /// Makes a volume with replicas on the first so many nodes; gives where hosts find it.
    pub(super) async fn create(&self, name: &str, size: u64, replicas: usize) -> anyhow::Result<(SocketAddr, String)> {
        let nodes = NODES[..replicas].iter().map(|node| (*node).to_owned()).collect();
        let request =
            CreateVolumeRequest { name: name.to_owned(), size_bytes: size, nodes, ..CreateVolumeRequest::default() };
        let client = self.cluster.nodes()[0].client().await?;
        answer(client.volumes().create(request).await)?;
        let engine = self.until(name, |engine| engine.state() == EngineState::Healthy).await?;
        let nqn = engine.nvmf.context("the volume is not exported")?.nqn;
        Ok((self.cluster.nodes()[0].addresses().nvmf, nqn))
    }

    /// The only volume of a case.
    pub(super) async fn create_one(&self, size: u64, replicas: usize) -> anyhow::Result<(SocketAddr, String)> {
        self.create(VOLUME, size, replicas).await
    }

    async fn volume(&self, name: &str) -> anyhow::Result<Volume> {
        let client = self.cluster.nodes()[0].client().await?;
        answer(client.volumes().get(GetVolumeRequest { volume: name.to_owned() }).await)
    }

    /// Waits until the engine of a volume is as wanted.
    async fn until(&self, name: &str, wanted: impl Fn(&Engine) -> bool) -> anyhow::Result<Engine> {
        let limit = Instant::now() + PATIENCE;
        loop {
            let volume = self.volume(name).await?;
            match volume.engine {
                Some(engine) if wanted(&engine) => return Ok(engine),
                engine => ensure!(Instant::now() < limit, "the volume stays {engine:#?}"),
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until all replicas are in sync.
    pub(super) async fn healthy(&self) -> anyhow::Result<()> {
        self.until(VOLUME, |engine| engine.state() == EngineState::Healthy).await.map(drop)
    }

    /// Waits until one is not.
    pub(super) async fn degraded(&self) -> anyhow::Result<()> {
        self.until(VOLUME, |engine| engine.state() == EngineState::Degraded).await.map(drop)
    }

    /// The replica on the third node now.
    pub(super) async fn third(&self) -> anyhow::Result<Option<Member>> {
        let engine = self.volume(VOLUME).await?.engine.context("no engine")?;
        Ok(engine.members.into_iter().find(|member| member.node == NODES[2]))
    }

    /// Makes a replica on the third node.
    pub(super) async fn add_third(&self) -> anyhow::Result<()> {
        let request = AddReplicaRequest { volume: VOLUME.to_owned(), node: NODES[2].to_owned(), ..Default::default() };
        answer(self.cluster.nodes()[0].client().await?.volumes().add_replica(request).await).map(drop)
    }

    /// Deletes the replica on the third node.
    pub(super) async fn remove_third(&self) -> anyhow::Result<()> {
        let request =
            RemoveReplicaRequest { volume: VOLUME.to_owned(), node: NODES[2].to_owned(), ..Default::default() };
        answer(self.cluster.nodes()[0].client().await?.volumes().remove_replica(request).await).map(drop)
    }

    /// Bytes compared and sent by copies that the engine has logged the end of, in all.
    pub(super) fn copied(&self) -> anyhow::Result<Copied> {
        Ok(copied(&fs::read_to_string(self.cluster.nodes()[0].log())?))
    }
}

/// What copies did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Copied {
    pub(super) count: u64,
    pub(super) compared: u64,
    pub(super) sent: u64,
}

fn copied(log: &str) -> Copied {
    let mut all = Copied::default();
    for line in log.lines().filter(|line| line.contains("a replica is in sync again")) {
        let number = |key: &str| {
            let value = line.split_once(key).map_or("", |(_, rest)| rest);
            value.split(|letter: char| !letter.is_ascii_digit()).next().and_then(|digits| digits.parse().ok())
        };
        all.count += 1;
        all.compared += number("compared=").unwrap_or(0);
        all.sent += number("sent=").unwrap_or(0);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_found_in_a_log() {
        let log = "x INFO engine: a replica is in sync again volume=1 replica=2 compared=4096 sent=512\nother\n\
                   y INFO engine: a replica is in sync again volume=1 replica=2 compared=1 sent=0\n";
        assert_eq!(copied(log), Copied { count: 2, compared: 4097, sent: 512 });
        assert_eq!(copied("nothing"), Copied::default());
    }
}
