//! What the daemon is told: a TOML file, and flags that override it. `docs/configuration.md` is the reference.

use std::collections::HashSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;
use serde::Deserialize;
use serde_json::json;
use tls::Files;

use crate::control::{DAY, Schedule};
use crate::names;

/// The data engine of one node: stores, replicas, engines, and volumes over NVMe/TCP and iSCSI.
#[derive(Parser, Debug, Default)]
#[command(name = "ashlard", version)]
pub(crate) struct Arguments {
    /// The configuration file (TOML). Flags override what it says
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check the configuration, say whether it is good, and end
    #[arg(long)]
    pub(crate) check: bool,
    /// Print the configuration with everything that was not given, as JSON, and end
    #[arg(long)]
    pub(crate) show_config: bool,
    /// This node's name
    #[arg(long)]
    node: Option<String>,
    /// The folder for the records of what this daemon runs
    #[arg(long, value_name = "FOLDER")]
    state_dir: Option<PathBuf>,
    /// Where to serve the API
    #[arg(long, value_name = "ADDRESS:PORT")]
    grpc: Option<SocketAddr>,
    /// Where to serve probes and metrics (HTTP)
    #[arg(long, value_name = "ADDRESS:PORT")]
    health: Option<SocketAddr>,
    /// Where to serve replicas to engines on other nodes
    #[arg(long, value_name = "ADDRESS:PORT")]
    replica: Option<SocketAddr>,
    /// Where hosts attach over NVMe/TCP (may be repeated)
    #[arg(long, value_name = "ADDRESS:PORT")]
    nvmf: Vec<SocketAddr>,
    /// Where hosts attach over iSCSI, and discover volumes (may be repeated)
    #[arg(long, value_name = "ADDRESS:PORT")]
    iscsi: Vec<SocketAddr>,
    /// Where hosts discover volumes (may be repeated)
    #[arg(long, value_name = "ADDRESS:PORT")]
    discovery: Vec<SocketAddr>,
    /// What hosts are told where NVMe/TCP is served at every address, 0.0.0.0 or :: (may be repeated)
    #[arg(long, value_name = "ADDRESS")]
    advertise: Vec<IpAddr>,
    /// Threads for the data path
    #[arg(long)]
    reactors: Option<usize>,
    /// Allow plaintext on addresses that are not on loopback: whoever reaches them is an administrator
    #[arg(long)]
    insecure: bool,
    /// What to log: a level, or per module as in `info,engine=debug`
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
}

/// The file as written. Every key is optional; an unknown one is an error, because a misspelt key that is ignored is
/// found at the worst time.
#[derive(Deserialize, Debug, Default)]
#[serde(deny_unknown_fields)]
struct File {
    node: Option<String>,
    state_dir: Option<PathBuf>,
    grpc: Option<SocketAddr>,
    health: Option<SocketAddr>,
    replica: Option<SocketAddr>,
    nvmf: Option<Vec<SocketAddr>>,
    iscsi: Option<Vec<SocketAddr>>,
    discovery: Option<Vec<SocketAddr>>,
    advertise: Option<Vec<IpAddr>>,
    reactors: Option<usize>,
    busy_poll_us: Option<u64>,
    replica_deadline_ms: Option<u64>,
    unhealthy_after_ms: Option<u64>,
    rebuilds: Option<usize>,
    rebuild_bytes_per_second: Option<u64>,
    rebuild_guard: Option<bool>,
    backup_bytes_per_second: Option<u64>,
    backup_total_bytes_per_second: Option<u64>,
    shutdown_timeout_ms: Option<u64>,
    hash_rate: Option<u64>,
    scrub_rate: Option<u64>,
    scrub_days: Option<u64>,
    log: Option<String>,
    insecure: Option<bool>,
    tls: Option<TlsConfig>,
    #[serde(default)]
    peers: Vec<PeerConfig>,
}

/// The files of this node's certificate. Paths that are not absolute start at the folder of the configuration file.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct TlsConfig {
    certificate: PathBuf,
    key: PathBuf,
    ca: PathBuf,
    crl: Option<PathBuf>,
}

impl TlsConfig {
    fn files(self, folder: &Path) -> Files {
        let at = |path: PathBuf| folder.join(path);
        Files { certificate: at(self.certificate), key: at(self.key), ca: at(self.ca), crl: self.crl.map(at) }
    }
}

/// Another node.
#[derive(Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub(crate) struct PeerConfig {
    /// Its name.
    pub(crate) name: String,
    /// Where its API is served.
    pub(crate) grpc: SocketAddr,
    /// Where its replicas are reached.
    pub(crate) replica: SocketAddr,
}

/// A configuration that has been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) node: String,
    pub(crate) state_dir: PathBuf,
    pub(crate) grpc: SocketAddr,
    /// Probes and metrics.
    pub(crate) health: SocketAddr,
    pub(crate) replica: SocketAddr,
    pub(crate) nvmf: Vec<SocketAddr>,
    /// Empty for no iSCSI.
    pub(crate) iscsi: Vec<SocketAddr>,
    pub(crate) discovery: Vec<SocketAddr>,
    /// What hosts are told instead of 0.0.0.0 and ::; see [`Config::advertised`].
    advertise: Vec<IpAddr>,
    /// At least 1.
    pub(crate) reactors: usize,
    /// How long a reactor spins before it sleeps.
    pub(crate) busy_poll: Duration,
    /// How long a replica may take before it is recorded out of sync; below [`HOST_IO_TIMEOUT`].
    pub(crate) replica_deadline: Duration,
    /// How old a request of a volume may get before the volume is unhealthy; longer than that.
    pub(crate) unhealthy_after: Duration,
    /// How many replicas are copied to at once, by all engines of the node.
    pub(crate) rebuilds: usize,
    /// Bytes a second of all of them; 0 for no limit.
    pub(crate) rebuild_rate: u64,
    /// Whether they leave room for hosts.
    pub(crate) rebuild_guard: bool,
    /// Bytes a second that a backup or restore may read or fetch; 0 for no limit.
    pub(crate) backup_rate: u64,
    /// The same for all of them together.
    pub(crate) backup_total_rate: u64,
    /// How long a graceful stop may take.
    pub(crate) shutdown_timeout: Duration,
    /// Bytes a second at which each store hashes its snapshots; 0 for not at all.
    pub(crate) hash_rate: u64,
    /// When stores are scrubbed, and how fast.
    pub(crate) scrubs: Schedule,
    pub(crate) log: String,
    /// Plaintext is allowed everywhere.
    pub(crate) insecure: bool,
    /// None for plaintext.
    pub(crate) tls: Option<Files>,
    pub(crate) peers: Vec<PeerConfig>,
}

/// What Linux hosts wait for an NVMe command before they give the connection up (nvme_core.io_timeout).
const HOST_IO_TIMEOUT: Duration = Duration::from_secs(30);
const SHORTEST_REPLICA_DEADLINE: Duration = Duration::from_millis(500);
/// Well below [`HOST_IO_TIMEOUT`]: recording the replica out of sync takes its time too.
const LONGEST_REPLICA_DEADLINE: Duration = Duration::from_secs(20);
/// After its deadline a replica is recorded out of sync within this time, and its volume goes on.
const RECORDED_WITHIN: Duration = Duration::from_millis(500);
const LONGEST_BUSY_POLL: Duration = Duration::from_millis(10);
const MOST_REACTORS: usize = 256;
const MOST_REBUILDS: usize = 256;

/// A configuration the daemon cannot run with. Each text names the key and what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("the configuration file {} is not valid:\n{source}", path.display())]
    Malformed { path: PathBuf, source: Box<toml::de::Error> },
    #[error("{key}: {problem}")]
    BadValue { key: &'static str, problem: String },
}

fn bad(key: &'static str, problem: impl Into<String>) -> ConfigError {
    ConfigError::BadValue { key, problem: problem.into() }
}

impl Config {
    /// Reads the file, if one is given, lays the flags over it and checks the result.
    pub(crate) fn load(arguments: &Arguments) -> Result<Self, ConfigError> {
        let file = arguments.config.as_deref().map(read).transpose()?.unwrap_or_default();
        let config = Self::merge(file, arguments);
        config.check()?;
        Ok(config)
    }

    /// All of it, in the words of the file.
    pub(crate) fn describe(&self) -> serde_json::Value {
        let peers = self.peers.iter();
        let peers = peers.map(|peer| json!({ "name": peer.name, "grpc": peer.grpc, "replica": peer.replica }));
        json!({
            "node": self.node,
            "state_dir": self.state_dir,
            "grpc": self.grpc,
            "health": self.health,
            "replica": self.replica,
            "nvmf": self.nvmf,
            "iscsi": self.iscsi,
            "discovery": self.discovery,
            "advertise": self.advertise,
            "reactors": self.reactors,
            "busy_poll_us": self.busy_poll.as_micros() as u64,
            "replica_deadline_ms": self.replica_deadline.as_millis() as u64,
            "unhealthy_after_ms": self.unhealthy_after.as_millis() as u64,
            "rebuilds": self.rebuilds,
            "rebuild_bytes_per_second": self.rebuild_rate,
            "rebuild_guard": self.rebuild_guard,
            "backup_bytes_per_second": self.backup_rate,
            "backup_total_bytes_per_second": self.backup_total_rate,
            "shutdown_timeout_ms": self.shutdown_timeout.as_millis() as u64,
            "hash_rate": self.hash_rate >> 20,
            "scrub_rate": self.scrubs.rate >> 20,
            "scrub_days": self.scrubs.interval.map_or(0, |interval| interval / DAY),
            "log": self.log,
            "insecure": self.insecure,
            "tls": self.tls.as_ref().map(|files| {
                json!({ "certificate": files.certificate, "key": files.key, "ca": files.ca, "crl": files.crl })
            }),
            "peers": peers.collect::<Vec<_>>(),
        })
    }

    /// Where hosts reach what listens at `addresses`: in place of one that stands for all of this machine, each that is advertised.
    pub(crate) fn advertised(&self, addresses: &[SocketAddr]) -> Vec<SocketAddr> {
        let told = |address: &SocketAddr| match address.ip().is_unspecified() {
            false => vec![*address],
            true => self.standing_for(*address).map(|ip| SocketAddr::new(ip, address.port())).collect(),
        };
        addresses.iter().flat_map(told).collect()
    }

    /// What is advertised and reached through a listener at every address: with `::` IPv4 comes in, too.
    fn standing_for(&self, every: SocketAddr) -> impl Iterator<Item = IpAddr> {
        self.advertise.iter().copied().filter(move |ip| every.is_ipv6() || ip.is_ipv4())
    }

    fn merge(file: File, arguments: &Arguments) -> Self {
        let replica_deadline = Duration::from_millis(file.replica_deadline_ms.unwrap_or(4_000));
        let unhealthy_after = file.unhealthy_after_ms.map(Duration::from_millis);
        let given = |flags: &[SocketAddr]| (!flags.is_empty()).then(|| flags.to_vec());
        Self {
            node: arguments.node.clone().or(file.node).unwrap_or_else(host_name),
            state_dir: arguments.state_dir.clone().or(file.state_dir).unwrap_or_else(|| "/var/lib/ashlar".into()),
            grpc: arguments.grpc.or(file.grpc).unwrap_or(loopback(9500)),
            health: arguments.health.or(file.health).unwrap_or(loopback(9501)),
            replica: arguments.replica.or(file.replica).unwrap_or(loopback(9600)),
            nvmf: given(&arguments.nvmf).or(file.nvmf).unwrap_or_else(|| vec![loopback(4420)]),
            iscsi: given(&arguments.iscsi).or(file.iscsi).unwrap_or_else(|| vec![loopback(3260)]),
            discovery: given(&arguments.discovery).or(file.discovery).unwrap_or_else(|| vec![loopback(8009)]),
            advertise: match arguments.advertise.is_empty() {
                true => file.advertise.unwrap_or_default(),
                false => arguments.advertise.clone(),
            },
            reactors: arguments.reactors.or(file.reactors).unwrap_or(1),
            busy_poll: Duration::from_micros(file.busy_poll_us.unwrap_or(50)),
            replica_deadline,
            unhealthy_after: unhealthy_after.unwrap_or(replica_deadline.saturating_add(RECORDED_WITHIN)),
            rebuilds: file.rebuilds.unwrap_or(engine::REBUILDS),
            rebuild_rate: file.rebuild_bytes_per_second.unwrap_or(0),
            rebuild_guard: file.rebuild_guard.unwrap_or(true),
            backup_rate: file.backup_bytes_per_second.unwrap_or(0),
            backup_total_rate: file.backup_total_bytes_per_second.unwrap_or(0),
            shutdown_timeout: Duration::from_millis(file.shutdown_timeout_ms.unwrap_or(20_000)),
            hash_rate: file.hash_rate.unwrap_or(64).saturating_mul(1 << 20),
            scrubs: Schedule {
                interval: Some(file.scrub_days.unwrap_or(30))
                    .filter(|&days| days > 0)
                    .map(|days| days.saturating_mul(DAY)),
                rate: file.scrub_rate.unwrap_or(64).saturating_mul(1 << 20),
            },
            log: arguments.log.clone().or(file.log).unwrap_or_else(|| "info".to_owned()),
            insecure: arguments.insecure || file.insecure.unwrap_or(false),
            tls: file.tls.map(|tls| tls.files(folder_of(arguments.config.as_deref()))),
            peers: file.peers,
        }
    }

    fn check(&self) -> Result<(), ConfigError> {
        names::check(&self.node).map_err(|problem| bad("node", problem))?;
        if !(1..=MOST_REACTORS).contains(&self.reactors) {
            return Err(bad("reactors", format!("{} is not between 1 and {MOST_REACTORS}", self.reactors)));
        }
        if self.busy_poll > LONGEST_BUSY_POLL {
            return Err(bad("busy_poll_us", format!("more than {} only burns a core", LONGEST_BUSY_POLL.as_micros())));
        }
        if self.scrubs.rate == 0 {
            return Err(bad(
                "scrub_rate",
                "a scrub at no bytes a second has no end; `scrub_days = 0` ends the schedule",
            ));
        }
        if !(1..=MOST_REBUILDS).contains(&self.rebuilds) {
            return Err(bad("rebuilds", format!("{} is not between 1 and {MOST_REBUILDS}", self.rebuilds)));
        }
        self.check_deadline()?;
        self.check_addresses()?;
        self.check_advertised()?;
        self.check_peers()?;
        self.check_plaintext()
    }

    /// Without TLS everybody who reaches an address is an administrator.
    fn check_plaintext(&self) -> Result<(), ConfigError> {
        if self.insecure && self.tls.is_some() {
            return Err(bad("insecure", "there is [tls], so nothing is in plaintext: leave one of the two out"));
        }
        if self.insecure || self.tls.is_some() {
            return Ok(());
        }
        let own = [("grpc", self.grpc), ("replica", self.replica)];
        let peers = self.peers.iter().flat_map(|peer| [("peers", peer.grpc), ("peers", peer.replica)]);
        match own.into_iter().chain(peers).find(|(_, address)| !address.ip().is_loopback()) {
            None => Ok(()),
            Some((key, address)) => Err(bad(
                key,
                format!(
                    "{address} is not on loopback, and there is no [tls]: give this node a certificate, or allow \
                     plaintext for everybody who reaches it with `insecure = true` or --insecure (docs/security.md)"
                ),
            )),
        }
    }

    /// I35: the time-outs in their right order.
    fn check_deadline(&self) -> Result<(), ConfigError> {
        if (SHORTEST_REPLICA_DEADLINE..=LONGEST_REPLICA_DEADLINE).contains(&self.replica_deadline) {
            return self.check_unhealthy_after();
        }
        let problem = format!(
            "{} is not between {} and {}: hosts give up after {} ms, and a replica that fails must be recorded out of \
             sync well before that",
            self.replica_deadline.as_millis(),
            SHORTEST_REPLICA_DEADLINE.as_millis(),
            LONGEST_REPLICA_DEADLINE.as_millis(),
            HOST_IO_TIMEOUT.as_millis(),
        );
        Err(bad("replica_deadline_ms", problem))
    }

    fn check_unhealthy_after(&self) -> Result<(), ConfigError> {
        if self.unhealthy_after > self.replica_deadline {
            return Ok(());
        }
        let problem = format!(
            "{} is not more than {} (replica_deadline_ms): until then a volume waits for a replica that hangs, and goes \
             on without it",
            self.unhealthy_after.as_millis(),
            self.replica_deadline.as_millis(),
        );
        Err(bad("unhealthy_after_ms", problem))
    }

    fn check_addresses(&self) -> Result<(), ConfigError> {
        if self.nvmf.is_empty() {
            return Err(bad("nvmf", "at least one address is needed for hosts to attach to"));
        }
        if let Some(any) = self.iscsi.iter().find(|address| address.ip().is_unspecified()) {
            return Err(bad(
                "iscsi",
                format!("{any} is not an address that discovery can tell hosts: name each of them"),
            ));
        }
        let mut seen = HashSet::new();
        let single = [("grpc", self.grpc), ("health", self.health), ("replica", self.replica)];
        let lists = [("nvmf", &self.nvmf), ("iscsi", &self.iscsi), ("discovery", &self.discovery)];
        let all =
            single.into_iter().chain(lists.into_iter().flat_map(|(key, list)| list.iter().map(move |a| (key, *a))));
        for (key, address) in all {
            if address.port() == 0 {
                return Err(bad(key, format!("{address} has no port: peers and hosts need one that stays")));
            }
            if !seen.insert(address) {
                return Err(bad(key, format!("{address} is used twice")));
            }
        }
        Ok(())
    }

    /// Hosts are told addresses that they can connect to.
    fn check_advertised(&self) -> Result<(), ConfigError> {
        if let Some(any) = self.advertise.iter().find(|ip| ip.is_unspecified()) {
            return Err(bad("advertise", format!("{any} is not an address that hosts can connect to")));
        }
        let of_all = |address: &&SocketAddr| address.ip().is_unspecified();
        let (nvmf, discovery) = (self.nvmf.iter().find(of_all), self.discovery.iter().find(of_all));
        for (key, every) in [("nvmf", nvmf), ("discovery", discovery)] {
            if let Some(every) = every.filter(|every| self.standing_for(**every).next().is_none()) {
                let problem = format!(
                    "{every} is not an address that hosts can be told: name each of them, or say under `advertise` what \
                     hosts are told instead"
                );
                return Err(bad(key, problem));
            }
        }
        if nvmf.or(discovery).is_none() && !self.advertise.is_empty() {
            let problem =
                "`nvmf` and `discovery` name the addresses that hosts are told: it is for 0.0.0.0 and :: there";
            return Err(bad("advertise", problem));
        }
        Ok(())
    }

    fn check_peers(&self) -> Result<(), ConfigError> {
        let mut seen = HashSet::from([self.node.as_str()]);
        for peer in &self.peers {
            names::check(&peer.name).map_err(|problem| bad("peers", problem))?;
            if !seen.insert(&peer.name) {
                let who = if peer.name == self.node { "this node itself" } else { "listed twice" };
                return Err(bad("peers", format!("`{}` is {who}", peer.name)));
            }
            if peer.grpc.port() == 0 || peer.replica.port() == 0 {
                return Err(bad("peers", format!("`{}` has an address without a port", peer.name)));
            }
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<File, ConfigError> {
    let text = fs::read_to_string(path).map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
    parse(&text, path)
}

fn parse(text: &str, path: &Path) -> Result<File, ConfigError> {
    toml::from_str(text).map_err(|source| ConfigError::Malformed { path: path.to_owned(), source: Box::new(source) })
}

/// The folder that relative paths in a configuration file start at.
fn folder_of(path: Option<&Path>) -> &Path {
    path.and_then(Path::parent).unwrap_or(Path::new(""))
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// The machine's name up to the first dot, or `node` where there is none.
fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let short = name.trim().split('.').next().unwrap_or_default();
    if short.is_empty() { "node".to_owned() } else { short.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, String> {
        let file = parse(text, Path::new("node.toml")).map_err(|error| error.to_string())?;
        let config = Config::merge(file, &Arguments::default());
        config.check().map_err(|error| error.to_string())?;
        Ok(config)
    }

    fn error(text: &str) -> String {
        load(text).expect_err("a bad configuration")
    }

    #[test]
    fn an_empty_file_is_a_node_on_loopback() {
        let config = load("node = \"a\"").expect("a good configuration");
        assert_eq!(config.grpc, loopback(9500));
        assert_eq!(config.nvmf, [loopback(4420)]);
        assert_eq!(config.iscsi, [loopback(3260)]);
        assert_eq!(config.discovery, [loopback(8009)]);
        assert_eq!(config.reactors, 1);
        assert_eq!(config.replica_deadline, Duration::from_secs(4));
        assert_eq!((config.health, config.unhealthy_after), (loopback(9501), Duration::from_millis(4_500)));
        assert_eq!(config.hash_rate, 64 << 20);
        assert_eq!(config.scrubs, Schedule { interval: Some(30 * DAY), rate: 64 << 20 });
    }

    #[test]
    fn the_examples_are_good_and_know_each_other() {
        let node = load(include_str!("../../contrib/examples/node.toml")).expect("the packaged one");
        assert_eq!((node.grpc, node.peers.len()), (loopback(9500), 0), "nothing but what holds without a file");
        let three = [
            include_str!("../../contrib/examples/three-nodes-a.toml"),
            include_str!("../../contrib/examples/three-nodes-b.toml"),
            include_str!("../../contrib/examples/three-nodes-c.toml"),
        ];
        let nodes: Vec<_> = three.into_iter().map(|text| load(text).expect("a good example")).collect();
        for node in &nodes {
            for other in nodes.iter().filter(|other| other.node != node.node) {
                let peer = PeerConfig { name: other.node.clone(), grpc: other.grpc, replica: other.replica };
                assert!(node.peers.contains(&peer), "{} does not know {}", node.node, other.node);
            }
        }
    }

    #[test]
    fn what_is_shown_is_the_same_configuration_again() {
        let text = "node = \"a\"\nscrub_days = 7\nhash_rate = 5\nbusy_poll_us = 9\nreactors = 2\nrebuilds = 3\n\
                    rebuild_guard = false\nbackup_bytes_per_second = 13\nbackup_total_bytes_per_second = 19\nrebuild_bytes_per_second = 11\nshutdown_timeout_ms = 17\nlog = \"debug\"\n\
                    [tls]\ncertificate = \"/k/a.crt\"\nkey = \"/k/a.key\"\nca = \"/k/ca.crt\"\n\
                    [[peers]]\nname = \"b\"\ngrpc = \"10.0.0.2:9500\"\nreplica = \"10.0.0.2:9600\"\n";
        for text in [text, "node = \"a\"\nscrub_days = 0\ninsecure = true"] {
            let config = load(text).expect("a good configuration");
            let file: File = serde_json::from_value(config.describe()).expect("the words of the file");
            assert_eq!(Config::merge(file, &Arguments::default()), config);
        }
    }

    #[test]
    fn scrubs_can_be_rarer_or_only_when_asked_for_but_not_endless() {
        let scrubs = |text: &str| load(&format!("node = \"a\"\n{text}")).map(|config| config.scrubs);
        assert_eq!(scrubs("scrub_days = 7").map(|scrubs| scrubs.interval), Ok(Some(7 * DAY)));
        assert_eq!(scrubs("scrub_days = 0").map(|scrubs| scrubs.interval), Ok(None));
        assert!(scrubs("scrub_rate = 0").is_err_and(|error| error.contains("scrub_rate")));
    }

    #[test]
    fn hashing_can_be_slower_or_off() {
        assert_eq!(load("node = \"a\"\nhash_rate = 1").map(|config| config.hash_rate), Ok(1 << 20));
        assert_eq!(load("node = \"a\"\nhash_rate = 0").map(|config| config.hash_rate), Ok(0));
    }

    #[test]
    fn flags_override_the_file() {
        let file = parse("node = \"a\"\nreactors = 2\ngrpc = \"127.0.0.1:1\"", Path::new("x")).expect("good");
        let flags = ["--node", "b", "--grpc", "127.0.0.1:7", "--nvmf", "127.0.0.1:8", "--iscsi", "127.0.0.1:9"];
        let config = Config::merge(file, &Arguments::parse_from(["ashlard"].iter().chain(&flags)));
        assert_eq!((config.node.as_str(), config.reactors), ("b", 2));
        assert_eq!((config.grpc, config.nvmf), (loopback(7), vec![loopback(8)]));
        assert_eq!(config.iscsi, [loopback(9)]);
    }

    #[test]
    fn an_unknown_key_is_named() {
        let error = error("node = \"a\"\nreactor = 2");
        assert!(error.contains("node.toml") && error.contains("unknown field `reactor`"), "{error}");
    }

    #[test]
    fn a_bad_address_is_shown_with_its_line() {
        let error = error("node = \"a\"\ngrpc = \"localhost\"");
        assert!(error.contains("line 2") && error.contains("localhost"), "{error}");
    }

    #[test]
    fn a_deadline_longer_than_a_host_waits_is_refused() {
        // I35
        assert!(error("node = \"a\"\nreplica_deadline_ms = 30000").contains("hosts give up after 30000 ms"));
        assert!(error("node = \"a\"\nreplica_deadline_ms = 100").contains("replica_deadline_ms"));
    }

    #[test]
    fn a_volume_is_unhealthy_after_a_replica_has_had_its_time() {
        // I35
        let limit =
            |text: &str| load(&format!("node = \"a\"\n{text}")).map(|config| config.unhealthy_after.as_millis());
        assert_eq!(limit("replica_deadline_ms = 10000"), Ok(10_500));
        assert_eq!(limit("unhealthy_after_ms = 4001"), Ok(4_001));
        let refused = limit("replica_deadline_ms = 5000\nunhealthy_after_ms = 5000");
        assert!(refused.is_err_and(|error| error.starts_with("unhealthy_after_ms: 5000 is not more than 5000")));
    }

    #[test]
    fn plaintext_stays_on_loopback_unless_it_is_asked_for() {
        let node = "node = \"a\"\n";
        for key in ["grpc", "replica"] {
            let elsewhere = format!("{node}{key} = \"10.0.0.1:7000\"");
            let refused = error(&elsewhere);
            assert!(refused.starts_with(&format!("{key}: 10.0.0.1:7000 is not on loopback")), "{refused}");
            assert!(load(&format!("{elsewhere}\ninsecure = true")).is_ok_and(|config| config.insecure));
        }
        let peer = "[[peers]]\nname = \"b\"\ngrpc = \"127.0.0.1:1\"\nreplica = \"[fd00::1]:2\"\n";
        assert!(error(&format!("{node}{peer}")).starts_with("peers: [fd00::1]:2"));
        assert!(error(&format!("{node}grpc = \"0.0.0.0:7000\"")).starts_with("grpc:"));
        assert!(load(&format!("{node}grpc = \"[::1]:7000\"\nreplica = \"127.8.0.1:1\"")).is_ok());
    }

    #[test]
    fn with_certificates_any_address_is_good() {
        let tls = "[tls]\ncertificate = \"a.crt\"\nkey = \"/k/a.key\"\nca = \"ca.crt\"\n";
        let node = "node = \"a\"\ngrpc = \"10.0.0.1:7000\"\n";
        let config = load(&format!("{node}{tls}")).expect("good");
        let files = config.tls.expect("files");
        assert_eq!((files.key, files.crl), ("/k/a.key".into(), None));
        assert!(error(&format!("insecure = true\n{node}{tls}")).starts_with("insecure:"));
        assert!(error(&format!("{node}[tls]\nca = \"x\"")).contains("missing field"));
        let folder = folder_of(Some(Path::new("/etc/ashlar/node.toml")));
        assert_eq!((folder, folder_of(Some(Path::new("node.toml")))), (Path::new("/etc/ashlar"), Path::new("")));
    }

    #[test]
    fn hosts_are_told_addresses_that_they_can_connect_to() {
        let node = "node = \"a\"\n";
        let every = format!("{node}nvmf = [\"0.0.0.0:4420\", \"10.0.0.9:4421\"]\ndiscovery = [\"[::]:8009\"]\n");
        assert!(error(&every).starts_with("nvmf: 0.0.0.0:4420"));
        assert!(error(&format!("{node}discovery = [\"[::]:8009\"]")).starts_with("discovery:"));
        let config = load(&format!("{every}advertise = [\"10.0.0.1\", \"fd00::1\"]")).expect("good");
        let texts = |addresses| config.advertised(addresses).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(texts(&config.nvmf), ["10.0.0.1:4420", "10.0.0.9:4421"]);
        assert_eq!(texts(&config.discovery), ["10.0.0.1:8009", "[fd00::1]:8009"]);
        assert!(error(&format!("{every}advertise = [\"fd00::1\"]")).starts_with("nvmf:"), "no IPv6 comes in there");
        assert!(error(&format!("{every}advertise = [\"::\"]")).starts_with("advertise:"));
        assert!(error(&format!("{node}advertise = [\"10.0.0.1\"]")).starts_with("advertise:"));
        let flags = Arguments::parse_from(["ashlard", "--nvmf", "0.0.0.0:1", "--advertise", "10.0.0.2"]);
        let config = Config::merge(File::default(), &flags);
        assert_eq!(config.advertised(&config.nvmf), ["10.0.0.2:1".parse().expect("an address")]);
    }

    #[test]
    fn what_cannot_work_is_refused_by_key() {
        assert!(error("node = \"a b\"").starts_with("node:"));
        assert!(error("node = \"a\"\nreactors = 0").starts_with("reactors:"));
        assert!(error("node = \"a\"\nrebuilds = 0").starts_with("rebuilds:"));
        assert!(error("node = \"a\"\nnvmf = []").starts_with("nvmf:"));
        assert!(error("node = \"a\"\ngrpc = \"127.0.0.1:0\"").starts_with("grpc:"));
        assert!(error("node = \"a\"\ngrpc = \"127.0.0.1:4420\"").contains("used twice"));
        assert!(error("node = \"a\"\niscsi = [\"127.0.0.1:0\"]").starts_with("iscsi:"));
        assert!(error("node = \"a\"\niscsi = [\"0.0.0.0:3260\"]").contains("name each of them"));
        let peer = "[[peers]]\nname = \"a\"\ngrpc = \"127.0.0.1:1\"\nreplica = \"127.0.0.1:2\"\n";
        assert!(error(&format!("node = \"a\"\n{peer}")).contains("this node itself"));
        assert!(error(&format!("node = \"b\"\n{peer}{peer}")).contains("listed twice"));
    }
}
