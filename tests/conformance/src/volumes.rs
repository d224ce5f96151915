//! Three daemons, and a volume with three replicas for each variant of the tests.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cli::client::{Client, answer};
use cli::cluster::{self, Cluster};
use proto::v1::{
    ChapCredentials, ChapSettings, CreateStoreRequest, CreateVolumeRequest, EngineState, ExportVolumeRequest, Frontend,
    GetVolumeRequest, UnexportVolumeRequest,
};
use tokio::process::Command;

const NODES: [&str; 3] = ["node-a", "node-b", "node-c"];
const STORE_SIZE: u64 = 4 << 30;
const VOLUME_SIZE: u64 = 1 << 30;
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

/// A way to log in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Variant {
    Plain,
    /// The initiator insists on header digests. libiscsi 1.19 has none of data.
    Digests,
    /// Mutual.
    Chap,
    /// Plain, by qemu's initiator.
    Qemu,
}

impl Variant {
    /// Those that libiscsi's tests log in by.
    pub(crate) const OF_LIBISCSI: [Self; 3] = [Self::Plain, Self::Digests, Self::Chap];

    const ALL: [Self; 4] = [Self::Plain, Self::Digests, Self::Chap, Self::Qemu];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Digests => "digests",
            Self::Chap => "chap",
            Self::Qemu => "qemu",
        }
    }

    /// Bytes. qemu 7.2 ends itself over long uncached reads of larger blocks (it aligns a length to 512 bytes, and then asserts
    /// that it is one of whole blocks).
    fn block_size(self) -> u32 {
        if self == Self::Qemu { 512 } else { 4096 }
    }

    fn chap(self) -> Option<ChapSettings> {
        let credentials = |(name, secret): (&str, &str)| ChapCredentials { name: name.into(), secret: secret.into() };
        (self == Self::Chap).then(|| ChapSettings {
            initiator: Some(credentials(INITIATOR)),
            target: Some(credentials(TARGET)),
            algorithms: Vec::new(),
        })
    }
}

const INITIATOR: (&str, &str) = ("tester", "what the tester knows");
const TARGET: (&str, &str) = ("volumes", "what the volumes know");

/// The volumes, ready, with their daemons.
pub(crate) struct Volumes {
    cluster: Cluster,
    /// The targets' names, as the variants are ordered.
    targets: Vec<String>,
}

impl Volumes {
    /// Starts the daemons in `folder` and makes the volumes.
    pub(crate) async fn make(folder: &Path) -> Result<Self> {
        let mut cluster = Cluster::prepare(&cluster::program("ashlard")?, folder, &NODES, "")?;
        cluster.start().await?;
        for node in cluster.nodes() {
            let path = node.store_path().display().to_string();
            let request = CreateStoreRequest {
                name: "main".into(),
                path,
                size_bytes: STORE_SIZE,
                ..CreateStoreRequest::default()
            };
            answer(node.client().await?.stores().create(request).await)?;
        }
        let client = cluster.nodes()[0].client().await?;
        let mut targets = Vec::new();
        for variant in Variant::ALL {
            targets.push(target(&client, variant).await?);
        }
        Ok(Self { cluster, targets })
    }

    /// Where a variant's volume is.
    pub(crate) fn url(&self, variant: Variant) -> Result<String> {
        let place = Variant::ALL.iter().position(|one| *one == variant).context("no such variant")?;
        Ok(format!("iscsi://{}/{}/0", self.portal(), self.targets[place]))
    }

    /// The tests of a variant.
    pub(crate) fn command(&self, variant: Variant) -> Result<Command> {
        let digests = if variant == Variant::Digests { "?header_digest=crc32c" } else { "" };
        let url = format!("{}{digests}", self.url(variant)?);
        let mut command = Command::new("iscsi-test-cu");
        // Both initiators of a test are others than those of the other variants.
        let initiators = [1, 2].map(|number| format!("iqn.2026-01.org.example:{}-{number}", variant.name()));
        command.args(["--dataloss", "--test=ALL", "--fail", "-i", &initiators[0], "-I", &initiators[1], &url]);
        if variant == Variant::Chap {
            command.env("LIBISCSI_CHAP_USERNAME", INITIATOR.0).env("LIBISCSI_CHAP_PASSWORD", INITIATOR.1);
            command.env("LIBISCSI_CHAP_TARGET_USERNAME", TARGET.0).env("LIBISCSI_CHAP_TARGET_PASSWORD", TARGET.1);
        }
        Ok(command)
    }

    fn portal(&self) -> SocketAddr {
        self.cluster.nodes()[0].addresses().portals[0]
    }
}

/// Makes the volume of a variant, waits until all of its replicas are in sync, and returns its target's name.
async fn target(client: &Client, variant: Variant) -> Result<String> {
    let name = variant.name().to_owned();
    let request = CreateVolumeRequest {
        name: name.clone(),
        size_bytes: VOLUME_SIZE,
        block_size_bytes: variant.block_size(),
        nodes: NODES.map(str::to_owned).to_vec(),
        ..CreateVolumeRequest::default()
    };
    answer(client.volumes().create(request).await)?;
    let (frontend, chap) = (Frontend::Iscsi.into(), variant.chap());
    let request = ExportVolumeRequest { volume: name.clone(), frontend, allowed: None, chap };
    answer(client.volumes().export(request).await)?;
    let request = UnexportVolumeRequest { volume: name.clone(), frontend: Frontend::Nvmf.into() };
    answer(client.volumes().unexport(request).await)?;
    let limit = Instant::now() + PATIENCE;
    loop {
        let volume = answer(client.volumes().get(GetVolumeRequest { volume: name.clone() }).await)?;
        let engine = volume.engine.as_ref().context("no engine")?;
        if engine.state() == EngineState::Healthy {
            return Ok(engine.iscsi.as_ref().context("no target")?.iqn.clone());
        }
        ensure!(Instant::now() < limit, "the volume stays {volume:#?}");
        tokio::time::sleep(POLL).await;
    }
}
