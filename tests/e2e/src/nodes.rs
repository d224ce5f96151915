//! The daemons of the stories.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cli::cluster::{self, Cluster};
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};

use crate::wait::wait_until;

pub(crate) const NODES: [&str; 3] = ["node-a", "node-b", "node-c"];
/// The place in [`NODES`] of the one that runs the engine.
pub(crate) const ENGINE_NODE: usize = 0;

/// Copying what the scenario writes takes seconds; recording a replica out of sync at most its deadline.
const SETTLE_LIMIT: Duration = Duration::from_secs(180);

/// How long the daemon of the engine stays down: long enough for hosts to notice and to try in vain.
const OUTAGE: Duration = Duration::from_secs(5);

/// Three daemons, and the command line that asks them.
pub(crate) struct Nodes {
    cluster: Cluster,
    runtime: Runtime,
}

impl Nodes {
    pub(crate) fn start(logs: &Path) -> Result<Self> {
        let cluster = Cluster::prepare(&cluster::program("ashlard")?, logs, &NODES, "")?;
        let mut nodes = Self { cluster, runtime: Builder::new_current_thread().enable_all().build()? };
        nodes.runtime.block_on(nodes.cluster.start())?;
        for node in 0..NODES.len() {
            let path = nodes.cluster.nodes()[node].store_path().display().to_string();
            nodes.ashlar(node, &["store", "create", "main", "--path", &path, "--size", "4GiB"])?;
        }
        Ok(nodes)
    }

    pub(crate) fn restart(&mut self, node: usize) -> Result<()> {
        self.runtime.block_on(self.cluster.node(node).start())
    }

    pub(crate) fn kill(&mut self, node: usize) -> Result<()> {
        self.cluster.node(node).kill()
    }

    /// What `ashlar` says to `arguments` about `node`.
    pub(crate) fn ashlar(&self, node: usize, arguments: &[&str]) -> Result<Value> {
        let server = self.cluster.nodes()[node].server();
        let mut command = Command::new(cluster::program("ashlar")?);
        let output = command.args(["--server", &server, "--output", "json"]).args(arguments).output()?;
        let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "ashlar {} ({}): {complained}", arguments.join(" "), output.status);
        serde_json::from_str(&said).with_context(|| format!("ashlar {} did not say JSON: {said}", arguments.join(" ")))
    }

    pub(crate) fn nvmf_port(&self) -> u16 {
        self.cluster.nodes()[ENGINE_NODE].addresses().nvmf.port()
    }

    pub(crate) fn discovery_port(&self) -> u16 {
        self.cluster.nodes()[ENGINE_NODE].addresses().discovery.port()
    }

    /// What the stores of all nodes hold together, in bytes.
    pub(crate) fn used_bytes(&self) -> Result<u64> {
        let mut used = 0;
        for (node, name) in NODES.iter().enumerate() {
            let stores = self.ashlar(node, &["store", "list"])?;
            for store in stores.as_array().context("store list is no list")? {
                ensure!(store["state"] == "ready", "a store of {name} is {}", store["state"]);
                let bytes = |key: &str| store[key].as_u64().with_context(|| format!("store list: no {key}"));
                used += bytes("size_bytes")? - bytes("free_bytes")?;
            }
        }
        Ok(used)
    }

    /// The ports of the portals.
    pub(crate) fn portals(&self) -> [u16; 2] {
        self.cluster.nodes()[ENGINE_NODE].addresses().portals.map(|portal| portal.port())
    }

    /// Kills the daemon of the engine, and starts it again after a while.
    pub(crate) fn interrupt_the_engine(&mut self) -> Result<()> {
        self.kill(ENGINE_NODE)?;
        std::thread::sleep(OUTAGE);
        self.restart(ENGINE_NODE)
    }

    /// Waits until all replicas of a volume are in sync.
    pub(crate) fn wait_until_in_sync(&self, volume: &str) -> Result<()> {
        self.wait_for_members(volume, "all replicas are in sync", |states| {
            states.iter().all(|state| state == "in sync")
        })
    }

    /// Waits until the states of a volume's replicas, as its engine sees them, are as wanted.
    pub(crate) fn wait_for_members(&self, volume: &str, what: &str, wanted: impl Fn(&[String]) -> bool) -> Result<()> {
        let mut last = Value::Null;
        let outcome = wait_until(what, SETTLE_LIMIT, || {
            last = self.ashlar(ENGINE_NODE, &["volume", "show", volume])?;
            let members = last["engine"]["members"].as_array().cloned().unwrap_or_default();
            let states: Vec<_> =
                members.iter().filter_map(|member| member["state"].as_str().map(str::to_owned)).collect();
            Ok((states.len() == NODES.len() && wanted(&states)).then_some(()))
        });
        outcome.with_context(|| format!("the volume is now {last:#}"))
    }

    /// Waits until the stores of all nodes hold at most `limit` bytes together.
    pub(crate) fn wait_for_used(&self, what: &str, limit: u64) -> Result<()> {
        let mut last = 0;
        let outcome = wait_until(what, SETTLE_LIMIT, || {
            last = self.used_bytes()?;
            Ok((last <= limit).then_some(()))
        });
        outcome.with_context(|| format!("{} MiB used, wanted at most {} MiB", last >> 20, limit >> 20))
    }

    /// Ends the daemon of the engine in order, and starts it again after a while.
    pub(crate) fn restart_the_engine(&mut self) -> Result<()> {
        let status = self.runtime.block_on(self.cluster.node(ENGINE_NODE).stop())?;
        ensure!(status.success(), "the daemon ended with {status}");
        std::thread::sleep(OUTAGE);
        self.restart(ENGINE_NODE)
    }
}
