//! A few daemons on this machine, each with its own folder, ports and process: for the demo and the integration tests.
//!
//! ```text
//! FOLDER/NODE/node.toml   its configuration
//! FOLDER/NODE/state/      its state directory
//! FOLDER/NODE/store.img   its store, made by whoever uses the cluster
//! FOLDER/NODE/log         what it logged, over all its runs
//! ```

use std::fmt::Write;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use proto::v1::NodeInfoRequest;
use tls::Files;

use crate::client::Client;
use crate::ports::Ports;

/// How long a daemon may take from start to its first answer.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long a graceful stop may take: longer than the daemon's own limit.
const STOP_LIMIT: Duration = Duration::from_secs(40);
const POLL: Duration = Duration::from_millis(20);

/// Daemons that know each other as peers. Dropping it ends those that run.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
    /// Kept for nodes that are down.
    _ports: Option<Ports>,
}

/// One daemon: its files and addresses, and its process while it runs.
#[derive(Debug)]
pub struct Node {
    name: String,
    program: PathBuf,
    folder: PathBuf,
    addresses: Addresses,
    /// What is put before the program, with its arguments; empty for nothing.
    launcher: Vec<String>,
    /// Who asks it; none where its API is in plaintext.
    certificate: Option<Files>,
    process: Option<Child>,
}

/// Where one daemon listens.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// Its API.
    pub grpc: SocketAddr,
    /// Its probes and metrics.
    pub health: SocketAddr,
    /// Its replicas.
    pub replica: SocketAddr,
    /// NVMe/TCP.
    pub nvmf: SocketAddr,
    /// NVMe discovery.
    pub discovery: SocketAddr,
    /// iSCSI: two ways to each target.
    pub portals: [SocketAddr; 2],
}

impl Cluster {
    /// Writes folders and configurations for daemons with these names; starts none. `program` is the `ashlard` to run;
    /// `extra` goes into each configuration as it is.
    pub fn prepare(program: &Path, folder: &Path, names: &[&str], extra: &str) -> anyhow::Result<Self> {
        let mut ports = Ports::reserve()?;
        let addresses = addresses(&mut ports, names.len())?;
        let members: Vec<_> = names.iter().copied().zip(addresses).collect();
        let cluster = Self::prepare_at(program, folder, &members, extra)?;
        Ok(Self { _ports: Some(ports), ..cluster })
    }

    /// The same for daemons at given addresses.
    pub fn prepare_at(
        program: &Path,
        folder: &Path,
        members: &[(&str, Addresses)],
        extra: &str,
    ) -> anyhow::Result<Self> {
        let nodes = members.iter().map(|(name, addresses)| {
            let folder = folder.join(name);
            fs::create_dir_all(&folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
            let text = configuration(name, &folder, *addresses, members, extra);
            fs::write(folder.join("node.toml"), text)?;
            let (name, program, addresses) = ((*name).to_owned(), program.to_owned(), *addresses);
            Ok(Node { name, program, folder, addresses, launcher: Vec::new(), certificate: None, process: None })
        });
        Ok(Self { nodes: nodes.collect::<anyhow::Result<_>>()?, _ports: None })
    }

    /// Starts all daemons and waits until each answers.
    pub async fn start(&mut self) -> anyhow::Result<()> {
        for node in &mut self.nodes {
            node.spawn()?;
        }
        for node in &mut self.nodes {
            node.ready().await?;
        }
        Ok(())
    }

    /// The daemons, in the order of their names as given.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A daemon by its place.
    pub fn node(&mut self, index: usize) -> &mut Node {
        &mut self.nodes[index]
    }

    /// Leaves the daemons running and returns their process ids.
    pub fn leave_running(mut self) -> Vec<u32> {
        // A Child that is dropped leaves its process alone.
        self.nodes.iter_mut().filter_map(|node| node.process.take()).map(|process| process.id()).collect()
    }
}

impl Node {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it listens.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// From its next start on it is run by another program: `launcher` is that with its arguments, to which the daemon's command is added.
    /// It has to replace itself by the daemon.
    pub fn launch_with(&mut self, launcher: Vec<String>) {
        self.launcher = launcher;
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The path for its store.
    pub fn store_path(&self) -> PathBuf {
        self.folder.join("store.img")
    }

    /// From here on its API is asked with this certificate.
    pub fn ask_as(&mut self, certificate: Files) {
        self.certificate = Some(certificate);
    }

    /// The URL of its API.
    pub fn server(&self) -> String {
        let scheme = if self.certificate.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.addresses.grpc)
    }

    /// A connection to its API.
    pub async fn client(&self) -> anyhow::Result<Client> {
        Client::connect_as(&self.server(), self.certificate.as_ref()).await
    }

    /// Starts its process and waits until it answers.
    pub async fn start(&mut self) -> anyhow::Result<()> {
        self.spawn()?;
        self.ready().await
    }

    /// Kills it as a power cut of the process would: SIGKILL, no chance to tidy up.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        let mut process = self.process.take().ok_or_else(|| anyhow!("node {} does not run", self.name))?;
        process.kill()?;
        process.wait()?;
        Ok(())
    }

    /// Stops it in the middle of whatever it does (SIGSTOP), until [`Node::resume`].
    pub fn pause(&self) -> anyhow::Result<()> {
        self.signal("STOP")
    }

    /// Lets it go on (SIGCONT).
    pub fn resume(&self) -> anyhow::Result<()> {
        self.signal("CONT")
    }

    /// Sends it a signal by name. The standard library sends none but SIGKILL, and this crate has no unsafe code.
    pub fn signal(&self, name: &str) -> anyhow::Result<()> {
        let pid = self.pid().ok_or_else(|| anyhow!("node {} does not run", self.name))?;
        let sent = Command::new("sh").arg("-c").arg(format!("kill -{name} {pid}")).status()?;
        if !sent.success() {
            bail!("cannot send SIG{name} to node {}", self.name);
        }
        Ok(())
    }

    /// Asks it to end (SIGTERM) and waits until it has.
    pub async fn stop(&mut self) -> anyhow::Result<ExitStatus> {
        self.signal("TERM")?;
        let mut process = self.process.take().ok_or_else(|| anyhow!("node {} does not run", self.name))?;
        let limit = Instant::now() + STOP_LIMIT;
        while Instant::now() < limit {
            if let Some(status) = process.try_wait()? {
                return Ok(status);
            }
            tokio::time::sleep(POLL).await;
        }
        process.kill()?;
        process.wait()?;
        bail!("node {} did not stop within {} s; its log is {}", self.name, STOP_LIMIT.as_secs(), self.log().display())
    }

    /// The process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// What it logged.
    pub fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    fn spawn(&mut self) -> anyhow::Result<()> {
        if self.process.is_some() {
            bail!("node {} runs already", self.name);
        }
        let log = OpenOptions::new().create(true).append(true).open(self.log())?;
        self.process = Some(self.command(log).spawn().with_context(|| {
            format!("cannot run {}; build it with `cargo build --release`", self.program.display())
        })?);
        Ok(())
    }

    /// The command that starts the daemon: for tests that expect it to fail, too.
    pub fn command(&self, log: File) -> Command {
        let mut command = match &self.launcher[..] {
            [] => Command::new(&self.program),
            [first, rest @ ..] => {
                let mut command = Command::new(first);
                command.args(rest).arg(&self.program);
                command
            }
        };
        command
            .arg("--config")
            .arg(self.folder.join("node.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        command
    }

    async fn ready(&mut self) -> anyhow::Result<()> {
        let limit = Instant::now() + START_LIMIT;
        loop {
            let process = self.process.as_mut().ok_or_else(|| anyhow!("node {} does not run", self.name))?;
            if let Some(status) = process.try_wait()? {
                self.process = None;
                bail!("node {} ended at its start ({status}):\n{}", self.name, self.log_tail());
            }
            if let Ok(client) = self.client().await
                && client.node().info(NodeInfoRequest {}).await.is_ok()
            {
                return Ok(());
            }
            if Instant::now() > limit {
                bail!("node {} does not answer after {} s:\n{}", self.name, START_LIMIT.as_secs(), self.log_tail());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// The end of the log, for error texts.
    pub fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(20)..];
        format!("{}\n(from {})", tail.join("\n"), self.log().display())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // Errors mean that it has ended already.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// Where the program `name` of this build is: in the folder ASHLAR_BIN_DIR, or beside the running program (for a test,
/// which cargo puts into `deps`, one folder up).
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    if let Some(folder) = std::env::var_os("ASHLAR_BIN_DIR") {
        return Ok(Path::new(&folder).join(name));
    }
    let own = std::env::current_exe()?;
    let candidates = own.ancestors().skip(1).take(2).map(|folder| folder.join(name));
    candidates
        .into_iter()
        .find(|path| path.is_file())
        .ok_or_else(|| anyhow!("cannot find `{name}` beside {}; build it with `cargo build --release`", own.display()))
}

fn configuration(
    name: &str,
    folder: &Path,
    addresses: Addresses,
    members: &[(&str, Addresses)],
    extra: &str,
) -> String {
    let mut text = format!(
        "node = \"{name}\"\nstate_dir = {:?}\ngrpc = \"{}\"\nhealth = \"{}\"\nreplica = \"{}\"\nnvmf = [\"{}\"]\ndiscovery = \
         [\"{}\"]\niscsi = [\"{}\", \"{}\"]\n{extra}\n",
        folder.join("state"),
        addresses.grpc,
        addresses.health,
        addresses.replica,
        addresses.nvmf,
        addresses.discovery,
        addresses.portals[0],
        addresses.portals[1],
    );
    for (peer, addresses) in members.iter().filter(|(peer, _)| *peer != name) {
        let (grpc, replica) = (addresses.grpc, addresses.replica);
        // Writing to a String cannot fail.
        let _ = write!(text, "\n[[peers]]\nname = \"{peer}\"\ngrpc = \"{grpc}\"\nreplica = \"{replica}\"\n");
    }
    text
}

/// Addresses for this many daemons.
fn addresses(ports: &mut Ports, count: usize) -> io::Result<Vec<Addresses>> {
    let mut node = || {
        let mut next = || ports.next();
        Ok(Addresses {
            grpc: next()?,
            health: next()?,
            replica: next()?,
            nvmf: next()?,
            discovery: next()?,
            portals: [next()?, next()?],
        })
    };
    (0..count).map(|_| node()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_configuration_names_the_others_as_peers() {
        let folder = tempfile::tempdir().expect("a folder");
        let cluster =
            Cluster::prepare(Path::new("ashlard"), folder.path(), &["a", "b", "c"], "reactors = 2").expect("prepared");
        let text = fs::read_to_string(folder.path().join("b/node.toml")).expect("written");
        assert!(text.starts_with("node = \"b\"\n") && text.contains("\nreactors = 2\n"), "{text}");
        let peers: Vec<_> = text.lines().filter(|line| line.starts_with("name = ")).collect();
        assert_eq!(peers, ["name = \"a\"", "name = \"c\""]);
        assert!(text.contains(&format!("grpc = \"{}\"", cluster.nodes()[2].addresses().grpc)), "{text}");
    }
}
