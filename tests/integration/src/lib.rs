//! Tests against the real `ashlar` and `ashlard`, on loopback. Each test has daemons, ports and a folder of its own, and
//! ends what it started.
//!
//! The programs come from the folder that ASHLAR_BIN_DIR names; without it, from this build, which is done if it is not
//! there yet.

#![forbid(unsafe_code)]

mod exposition;
mod host;
mod initiator;
pub mod lvols;
mod mounted;
mod network;
mod power;
mod probe;
mod secured;
mod stopped;

use std::fs::{self, OpenOptions, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use cli::client::{Client, answer};
use cli::cluster::{self, Cluster};
use proto::v1::{
    CreateStoreRequest, CreateVolumeRequest, Engine, EngineState, GetVolumeRequest, IscsiExport, NvmfExport, Store,
    Volume,
};
use tempfile::TempDir;

pub use crate::exposition::{Exposition, Sample};
pub use crate::host::{Host, attach};
pub use crate::initiator::{Answer, INITIATOR, Initiator, login_options};
pub use crate::mounted::Mounted;
pub use crate::network::Network;
pub use crate::power::{FileSystem, PoweredDisk};
pub use crate::probe::{Page, probe, probe_until};
pub use crate::secured::{Secured, node, uri};
pub use crate::stopped::Stopped;

/// How long a test waits for something that must come. Generous: it only ends tests that have failed.
pub const PATIENCE: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_millis(50);

/// Bytes.
pub const MIB: u64 = 1 << 20;

/// Daemons in a folder of their own.
pub struct House {
    /// The daemons.
    pub cluster: Cluster,
    folder: TempDir,
}

impl House {
    /// Daemons with these names, configured and not started.
    pub fn prepare(names: &[&str]) -> anyhow::Result<Self> {
        Self::prepare_with(names, "")
    }

    /// The same; `extra` is added to their configurations.
    pub fn prepare_with(names: &[&str], extra: &str) -> anyhow::Result<Self> {
        Self::prepare_in(tempfile::Builder::new().prefix("ashlar-test-").tempdir()?, names, extra)
    }

    /// The same in a folder that is there.
    pub fn prepare_in(folder: TempDir, names: &[&str], extra: &str) -> anyhow::Result<Self> {
        let cluster = Cluster::prepare(&program("ashlard")?, folder.path(), names, extra)?;
        Ok(Self { cluster, folder })
    }

    /// Daemons with these names on the nodes of a network, running, in plaintext. `extra` is added to their configurations.
    pub async fn open_in(network: &Network, names: &[&str], extra: &str) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("ashlar-test-").tempdir()?;
        let members: Vec<_> =
            names.iter().enumerate().map(|(index, name)| (*name, Network::addresses(index))).collect();
        let mut cluster =
            Cluster::prepare_at(&program("ashlard")?, folder.path(), &members, &format!("insecure = true\n{extra}"))?;
        for index in 0..names.len() {
            cluster.node(index).launch_with(network.launcher(index));
        }
        let mut house = Self { cluster, folder };
        house.cluster.start().await?;
        Ok(house)
    }

    /// Daemons with these names, running, each with a store `main` of this size in bytes.
    pub async fn open(names: &[&str], store_size: u64) -> anyhow::Result<Self> {
        let mut house = Self::prepare(names)?;
        house.cluster.start().await?;
        for index in 0..names.len() {
            house.create_store(index, "main", store_size).await?;
        }
        Ok(house)
    }

    /// The folder of everything.
    pub fn folder(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    /// A connection to the API of a daemon.
    pub async fn client(&self, index: usize) -> anyhow::Result<Client> {
        self.cluster.nodes()[index].client().await
    }

    /// Makes a store in a new file.
    pub async fn create_store(&self, index: usize, name: &str, size_bytes: u64) -> anyhow::Result<Store> {
        let path = self.cluster.nodes()[index].folder().join(format!("{name}.img"));
        self.create_store_at(index, name, &path, size_bytes).await
    }

    /// Makes a store in a new file there.
    pub async fn create_store_at(
        &self,
        index: usize,
        name: &str,
        path: &Path,
        size_bytes: u64,
    ) -> anyhow::Result<Store> {
        let path = path.display().to_string();
        let request = CreateStoreRequest { name: name.to_owned(), path, size_bytes, ..CreateStoreRequest::default() };
        answer(self.client(index).await?.stores().create(request).await)
    }

    /// Makes a volume on the first daemon, with replicas on `nodes`, and waits until all are in sync.
    pub async fn create_volume(&self, name: &str, size_bytes: u64, nodes: &[&str]) -> anyhow::Result<Volume> {
        let nodes = nodes.iter().map(|node| (*node).to_owned()).collect();
        let request =
            CreateVolumeRequest { name: name.to_owned(), size_bytes, nodes, ..CreateVolumeRequest::default() };
        answer(self.client(0).await?.volumes().create(request).await)?;
        self.wait_until_healthy(name).await
    }

    /// A volume of the first daemon.
    pub async fn volume(&self, name: &str) -> anyhow::Result<Volume> {
        let request = GetVolumeRequest { volume: name.to_owned() };
        answer(self.client(0).await?.volumes().get(request).await)
    }

    /// Waits until a volume's replicas are all in sync.
    pub async fn wait_until_healthy(&self, name: &str) -> anyhow::Result<Volume> {
        self.wait_for_engine(name, |engine| engine.state() == EngineState::Healthy).await
    }

    /// Waits until the engine of a volume is as wanted.
    pub async fn wait_for_engine(&self, name: &str, wanted: impl Fn(&Engine) -> bool) -> anyhow::Result<Volume> {
        let limit = Instant::now() + PATIENCE;
        loop {
            let volume = self.volume(name).await?;
            if volume.engine.as_ref().is_some_and(&wanted) {
                return Ok(volume);
            }
            ensure!(Instant::now() < limit, "the volume stays {volume:#?}\n{}", self.logs());
            tokio::time::sleep(POLL).await;
        }
    }

    /// The ends of all logs, for a test's failure.
    pub fn logs(&self) -> String {
        self.cluster.nodes().iter().map(|node| format!("--- {}\n{}\n", node.name(), node.log_tail())).collect()
    }

    /// Runs `ashlar` against a daemon.
    pub fn ashlar(&self, index: usize, arguments: &[&str]) -> anyhow::Result<Output> {
        let server = self.cluster.nodes()[index].server();
        run_ashlar(&[&["--server", &server], arguments].concat())
    }
}

impl Drop for House {
    /// Ends the daemons and empties their stores before the folder goes.
    ///
    /// The kernel lets go of a killed process's io_uring files one after the other, for all processes of the machine. Freeing
    /// the blocks of a store there, on a disk that is slow to discard, would keep the ports of other tests' daemons taken
    /// for seconds.
    fn drop(&mut self) {
        for index in 0..self.cluster.nodes().len() {
            // An error means that it does not run.
            let _ = self.cluster.node(index).kill();
            for entry in fs::read_dir(self.cluster.nodes()[index].folder()).into_iter().flatten().flatten() {
                if entry.path().extension().is_some_and(|extension| extension == "img") {
                    // Left to the removal of the folder if it fails.
                    let _ = OpenOptions::new().write(true).truncate(true).open(entry.path());
                }
            }
        }
    }
}

/// A volume without what is of the moment: the version of the list that it was read with, which goes up with whatever changes, and the age of
/// the request that a replica happens to be at, a ping often enough.
pub fn unversioned(mut volume: Volume) -> Volume {
    for member in volume.engine.iter_mut().flat_map(|engine| &mut engine.members) {
        member.oldest_request_ms = None;
    }
    Volume { resource_version: String::new(), ..volume }
}

/// How initiators reach a volume.
pub fn target_of(volume: &Volume) -> anyhow::Result<&IscsiExport> {
    volume.engine.as_ref().and_then(|engine| engine.iscsi.as_ref()).context("the volume is no target")
}

/// How hosts reach a volume.
pub fn export_of(volume: &Volume) -> anyhow::Result<&NvmfExport> {
    volume.engine.as_ref().and_then(|engine| engine.nvmf.as_ref()).context("the volume has no export")
}

/// Runs `ashlar` to its end. Daemons of tests may be on a network of the tests' own, in plaintext.
pub fn run_ashlar(arguments: &[&str]) -> anyhow::Result<Output> {
    let mut command = Command::new(program("ashlar")?);
    Ok(command.args(arguments).env_remove("ASHLAR_SERVER").env("ASHLAR_INSECURE", "1").output()?)
}

/// Writes a file that nobody else may read.
pub fn write_secret(path: &Path, content: &str) -> std::io::Result<()> {
    fs::write(path, content)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))
}

/// What a program said, both ways.
pub fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A program of this workspace, built if need be.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    static BUILT: OnceLock<Result<(), String>> = OnceLock::new();
    if let Ok(path) = cluster::program(name)
        && path.is_file()
    {
        return Ok(path);
    }
    let built = BUILT.get_or_init(|| build().map_err(|error| format!("{error:#}")));
    if let Err(error) = built {
        bail!("{error}");
    }
    cluster::program(name)
}

fn build() -> anyhow::Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    // What cargo says of this test's package: some build scripts would run again for it, and again without.
    let of_this_package = |name: &&str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    let names: Vec<_> = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()).collect();
    for name in names.iter().map(String::as_str).filter(of_this_package) {
        build.env_remove(name);
    }
    let built = build.args(["build", "--quiet", "-p", "cli", "-p", "daemon"]).status()?;
    ensure!(built.success(), "the programs cannot be built");
    Ok(())
}
