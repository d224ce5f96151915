//! `ashlar preflight`: whether a machine can be a node, or a host. docs/preflight.md has each check and its limits.
//!
//! A check looks at one thing, changes nothing, ends within seconds, and says what it found and what to do.

mod host;
mod kernel;
mod limits;
mod machine;
mod names;
mod node;
mod peers;
mod ports;
mod stores;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use tls::Files;

use self::machine::Machine;
use crate::arguments::PreflightOptions;
use crate::client::Client;
use crate::cluster;
use crate::output::{Output, Width};

/// Where the configuration is when nobody says.
const USUAL_CONFIG: &str = "/etc/ashlar/node.toml";
/// Columns of a terminal.
const COLUMNS: usize = 80;
/// Where findings and advice begin.
const INDENT: usize = 21;

/// What came of a check.
#[derive(Serialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    Ok,
    /// It works, or may, and something is not as it should be.
    Warn,
    /// It will not work.
    Fail,
}

/// One check.
#[derive(Serialize, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Check {
    pub(crate) name: &'static str,
    pub(crate) verdict: Verdict,
    /// What was found.
    pub(crate) found: String,
    /// What to do; empty where nothing is to be done.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) advice: String,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Ok, found: found.into(), advice: String::new() }
    }

    fn warn(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Warn, found: found.into(), advice: advice.into() }
    }

    fn fail(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Fail, found: found.into(), advice: advice.into() }
    }
}

/// What a preflight needs of the configuration, with everything that the file leaves out. `ashlard` says it: its defaults are
/// nowhere else.
#[derive(Deserialize, Clone, Debug)]
struct NodeConfig {
    node: String,
    state_dir: PathBuf,
    grpc: SocketAddr,
    health: SocketAddr,
    replica: SocketAddr,
    nvmf: Vec<SocketAddr>,
    iscsi: Vec<SocketAddr>,
    discovery: Vec<SocketAddr>,
    reactors: usize,
    replica_deadline_ms: u64,
    unhealthy_after_ms: u64,
    shutdown_timeout_ms: u64,
    peers: Vec<PeerConfig>,
    tls: Option<TlsConfig>,
}

/// The files of the node's certificate.
#[derive(Deserialize, Clone, Debug)]
struct TlsConfig {
    certificate: PathBuf,
    key: PathBuf,
    ca: PathBuf,
}

impl NodeConfig {
    /// A connection to an API, as the node itself would make it.
    async fn connect(&self, address: SocketAddr) -> anyhow::Result<Client> {
        let Some(TlsConfig { certificate, key, ca }) = self.tls.clone() else {
            return Client::connect(&format!("http://{address}")).await;
        };
        let files = Files { certificate, key, ca, crl: None };
        Client::connect_as(&format!("https://{address}"), Some(&files)).await
    }
}

/// Another node.
#[derive(Deserialize, Clone, Debug)]
struct PeerConfig {
    name: String,
    grpc: SocketAddr,
    replica: SocketAddr,
}

/// Prints all checks.
///
/// # Errors
/// After printing, if one failed.
pub(crate) fn run(options: &PreflightOptions, output: Output) -> anyhow::Result<()> {
    let checks = checks(options)?;
    output.print(&checks, |checks, width| render(checks, width))?;
    match checks.iter().filter(|check| check.verdict == Verdict::Fail).count() {
        0 => Ok(()),
        1 => bail!("1 check failed"),
        failed => bail!("{failed} checks failed"),
    }
}

/// All checks of a node, or of a host.
pub(crate) fn checks(options: &PreflightOptions) -> anyhow::Result<Vec<Check>> {
    let machine = Machine::this();
    let path = configuration(options.config.as_deref());
    let read = read_configuration(path.as_deref());
    if options.host {
        let config = if path.is_some() { read.ok() } else { None };
        return Ok(host::checks(&machine, config.as_ref()));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut checks = vec![config_check(path.as_deref(), &read)];
    checks.extend([kernel::version(&machine), kernel::io_uring(&machine), kernel::huge_pages(&machine)]);
    let config = read.ok();
    let running = config.as_ref().and_then(|config| runtime.block_on(ports::running(config)));
    checks.extend(limits::checks(&machine, running.as_ref()));
    checks.push(kernel::clock());
    checks.extend(names::checks(&machine, config.as_ref().map_or(&[], |config| &config.peers)));
    if let Some(config) = &config {
        checks.extend(node::checks(&machine, config));
        checks.extend(ports::checks(config, running.as_ref()));
        checks.extend(runtime.block_on(peers::checks(config)));
    }
    checks.extend(stores::checks(config.as_ref().map(|config| config.state_dir.as_path()), &options.store));
    Ok(checks)
}

/// The configuration to use: the one that is named, else the usual one if it is there.
pub(crate) fn configuration(named: Option<&Path>) -> Option<PathBuf> {
    let usual = Path::new(USUAL_CONFIG);
    named.map(Path::to_owned).or_else(|| usual.exists().then(|| usual.to_owned()))
}

/// The configuration with everything that the file leaves out, as `ashlard` has it.
pub(crate) fn shown_configuration(path: Option<&Path>) -> anyhow::Result<serde_json::Value> {
    let mut command = Command::new(cluster::program("ashlard")?);
    if let Some(path) = path {
        command.arg("--config").arg(path);
    }
    let output = command.arg("--show-config").output().context("cannot run ashlard")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim().trim_start_matches("ashlard: "));
    }
    serde_json::from_slice(&output.stdout).context("ashlard is of another version than this command")
}

fn read_configuration(path: Option<&Path>) -> anyhow::Result<NodeConfig> {
    serde_json::from_value(shown_configuration(path)?).context("ashlard is of another version than this command")
}

fn config_check(path: Option<&Path>, read: &anyhow::Result<NodeConfig>) -> Check {
    const NAME: &str = "configuration";
    let place = path.map_or("no file: what holds without one".to_owned(), |path| path.display().to_string());
    match read {
        Ok(config) => Check::ok(NAME, format!("{place} (node {}, {} peers)", config.node, config.peers.len())),
        Err(error) => Check::fail(NAME, format!("{error:#}"), "docs/configuration.md has every setting."),
    }
}

/// A line for each check; on a terminal of 80 columns long ones go on below.
fn render(checks: &[Check], width: Width) -> String {
    let columns = if width == Width::Narrow { COLUMNS } else { usize::MAX };
    let mut text = String::new();
    for check in checks {
        let verdict = match check.verdict {
            Verdict::Ok => "ok",
            Verdict::Warn => "WARN",
            Verdict::Fail => "FAIL",
        };
        push(&mut text, &format!("{verdict:5} {:14}", check.name), &check.found, columns);
        if !check.advice.is_empty() {
            push(&mut text, &" ".repeat(INDENT - 4), &format!("-> {}", check.advice), columns);
        }
    }
    let count = |verdict| checks.iter().filter(|check| check.verdict == verdict).count();
    let (ok, warn, fail) = (count(Verdict::Ok), count(Verdict::Warn), count(Verdict::Fail));
    format!("{text}\n{ok} ok, {warn} warnings, {fail} failed\n")
}

/// Words behind a label, in lines of so many columns.
fn push(text: &mut String, label: &str, words: &str, columns: usize) {
    let mut line = label.to_owned();
    for word in words.split_whitespace() {
        let full = line.chars().count() + 1 + word.chars().count() > columns;
        if full && line.trim().len() > label.trim().len() {
            text.push_str(line.trim_end());
            text.push('\n');
            line = " ".repeat(INDENT - 1);
        }
        line.push(' ');
        line.push_str(word);
    }
    text.push_str(line.trim_end());
    text.push('\n');
}

/// A node on loopback, with ports that nobody uses.
#[cfg(test)]
fn tests_config() -> NodeConfig {
    let nobody = || SocketAddr::from(([127, 0, 0, 1], 0));
    NodeConfig {
        node: "a".into(),
        state_dir: "/nowhere".into(),
        grpc: nobody(),
        health: nobody(),
        replica: nobody(),
        nvmf: vec![nobody()],
        iscsi: Vec::new(),
        discovery: Vec::new(),
        reactors: 1,
        replica_deadline_ms: 4_000,
        unhealthy_after_ms: 4_500,
        shutdown_timeout_ms: 20_000,
        peers: Vec::new(),
        tls: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_fit_a_terminal_and_say_what_to_do() {
        let checks = [
            Check::ok("kernel", "6.12.0"),
            Check::warn("files", "1024 ".repeat(20), "Raise it. ".repeat(20)),
            Check::fail("io_uring", "EPERM", "sysctl kernel.io_uring_disabled=0"),
        ];
        let text = render(&checks, Width::Narrow);
        assert!(text.lines().all(|line| line.chars().count() <= COLUMNS), "{text}");
        assert!(text.starts_with("ok    kernel         6.12.0\nWARN  files          1024 "), "{text}");
        let end = "\
FAIL  io_uring       EPERM
                  -> sysctl kernel.io_uring_disabled=0

1 ok, 1 warnings, 1 failed
";
        assert!(text.ends_with(end), "{text}");
        assert_eq!(render(&checks, Width::Full).lines().count(), 7);
    }

    #[test]
    fn a_configuration_is_read_as_ashlard_shows_it() {
        let shown = serde_json::json!({
            "node": "a", "state_dir": "/s", "grpc": "10.0.0.1:9500", "health": "127.0.0.1:9501", "replica": "10.0.0.1:9600",
            "nvmf": ["10.0.0.1:4420"], "iscsi": [], "discovery": [], "reactors": 2, "replica_deadline_ms": 4000,
            "unhealthy_after_ms": 4500, "shutdown_timeout_ms": 20000, "something_new": 1,
            "peers": [{"name": "b", "grpc": "10.0.0.2:9500", "replica": "10.0.0.2:9600"}],
        });
        let read: NodeConfig = serde_json::from_value(shown).expect("a configuration");
        assert_eq!((read.reactors, read.peers[0].name.as_str()), (2, "b"));
        let check = config_check(None, &Err(anyhow::anyhow!("grpc: wrong")));
        assert_eq!((check.verdict, check.found.as_str()), (Verdict::Fail, "grpc: wrong"));
    }
}
