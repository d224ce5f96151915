//! The story that the end-to-end test tells, step by step.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cli::cluster::{self, Cluster};
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};

use crate::host::{Digests, Export, Host};
use crate::machine::Machine;
use crate::steps::Steps;
use crate::wait::wait_until;

const NODES: [&str; 3] = ["node-a", "node-b", "node-c"];
/// The place in [`NODES`] of the one that runs the engine.
const ENGINE_NODE: usize = 0;
/// The place in [`NODES`] of the one whose replica is lost.
const REPLICA_NODE: usize = 1;

const VOLUME: &str = "data";

const MIB: u64 = 1 << 20;

/// Copying what the scenario writes takes seconds; recording a replica out of sync at most its deadline.
const SETTLE_LIMIT: Duration = Duration::from_secs(180);

/// How long the daemon of the engine stays down: long enough for hosts to notice and to try in vain.
const OUTAGE: Duration = Duration::from_secs(5);

/// A step of the story, and what it shows.
type Step = (&'static str, fn(&mut Story) -> Result<()>);

const STEPS: [Step; 18] = [
    ("nvme discover", Story::discover),
    ("nvme connect to a volume that does not exist is refused", Story::connect_to_nothing),
    ("nvme connect", Story::connect),
    ("nvme list, id-ctrl and id-ns show the volume", Story::identify),
    ("mkfs.ext4, mount, files", Story::use_ext4),
    ("fio verifies while a replica is killed", Story::kill_a_replica),
    ("the replica comes back into sync while fio verifies", Story::bring_the_replica_back),
    ("fio verifies while the engine's daemon is killed and restarted", Story::kill_the_engine),
    ("the volume is the same one to the host", Story::identify),
    ("umount, fsck is clean", Story::check_ext4),
    ("files are equal after a reconnect", Story::reconnect_ext4),
    ("fstrim gives space back", Story::trim),
    ("nvme connect with digests", Story::reconnect_with_digests),
    ("mkfs.xfs, fio verifies", Story::use_xfs),
    ("umount, xfs_repair is clean, files are equal after a reconnect", Story::check_xfs),
    ("blkdiscard gives all space back", Story::discard),
    ("no I/O error in the kernel's log", Story::no_io_errors),
    ("nvme disconnect", Story::disconnect),
];

/// Plays the story with the guest in the folder `guest`; what guest and daemons say goes to `logs`.
pub(crate) fn play(guest: &Path, logs: &Path, steps: &mut Steps) {
    let host = steps.run("boot the guest", || Host::new(Machine::boot(guest, logs)?));
    let nodes = steps.run("three daemons with a store each", || Nodes::start(logs));
    let volume = |(host, nodes)| steps.run("a volume with three replicas", || Story::begin(host, nodes));
    let mut story = host.zip(nodes).and_then(volume);
    for (name, step) in STEPS {
        steps.run(name, || step(story.as_mut().context("the story did not begin")?));
    }
}

/// Three daemons, and the command line that asks them.
struct Nodes {
    cluster: Cluster,
    runtime: Runtime,
}

/// What the steps share.
struct Story {
    host: Host,
    nodes: Nodes,
    export: Export,
    /// The volume's block device in the guest; empty before it is connected.
    device: String,
    /// What the stores held before the volume was written to, in bytes.
    used_when_empty: u64,
}

impl Nodes {
    fn start(logs: &Path) -> Result<Self> {
        let cluster = Cluster::prepare(&cluster::program("ashlard")?, logs, &NODES, "")?;
        let mut nodes = Self { cluster, runtime: Builder::new_current_thread().enable_all().build()? };
        nodes.runtime.block_on(nodes.cluster.start())?;
        for node in 0..NODES.len() {
            let path = nodes.cluster.nodes()[node].store_path().display().to_string();
            nodes.ashlar(node, &["store", "create", "main", "--path", &path, "--size", "4GiB"])?;
        }
        Ok(nodes)
    }

    fn restart(&mut self, node: usize) -> Result<()> {
        self.runtime.block_on(self.cluster.node(node).start())
    }

    fn kill(&mut self, node: usize) -> Result<()> {
        self.cluster.node(node).kill()
    }

    /// What `ashlar` says to `arguments` about `node`.
    fn ashlar(&self, node: usize, arguments: &[&str]) -> Result<Value> {
        let server = self.cluster.nodes()[node].server();
        let mut command = Command::new(cluster::program("ashlar")?);
        let output = command.args(["--server", &server, "--output", "json"]).args(arguments).output()?;
        let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "ashlar {} ({}): {complained}", arguments.join(" "), output.status);
        serde_json::from_str(&said).with_context(|| format!("ashlar {} did not say JSON: {said}", arguments.join(" ")))
    }

    fn nvmf_port(&self) -> u16 {
        self.cluster.nodes()[ENGINE_NODE].addresses().nvmf.port()
    }

    fn discovery_port(&self) -> u16 {
        self.cluster.nodes()[ENGINE_NODE].addresses().discovery.port()
    }

    /// What the stores of all nodes hold together, in bytes.
    fn used_bytes(&self) -> Result<u64> {
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
}

impl Story {
    fn begin(host: Host, nodes: Nodes) -> Result<Self> {
        let replicas = NODES.join(",");
        let create = ["volume", "create", VOLUME, "--size", "1GiB", "--replicas", &replicas];
        let volume = nodes.ashlar(ENGINE_NODE, &create)?;
        let export = export(&volume)?;
        let mut story = Self { host, nodes, export, device: String::new(), used_when_empty: 0 };
        story.wait_until_in_sync()?;
        story.used_when_empty = story.nodes.used_bytes()?;
        Ok(story)
    }

    fn discover(&mut self) -> Result<()> {
        let ports = [self.nodes.discovery_port(), self.nodes.nvmf_port()];
        for port in ports {
            let said = self.host.discover(port)?;
            ensure!(said.contains(&self.export.nqn), "port {port} does not offer {}:\n{said}", self.export.nqn);
        }
        Ok(())
    }

    fn connect_to_nothing(&mut self) -> Result<()> {
        let nqn = "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-4000-8000-000000000000";
        let result = self.host.connect(nqn, self.nodes.nvmf_port(), Digests::None);
        ensure!(result.is_err(), "the host connected to {nqn}");
        // Linux says so when the status points at the NQN in the data of the Connect command.
        let said = self.host.run("dmesg | tail")?;
        ensure!(said.contains("Connect Invalid Data Parameter, subsysnqn"), "the host does not see why:\n{said}");
        Ok(())
    }

    fn connect(&mut self) -> Result<()> {
        self.connect_with(Digests::None)
    }

    fn connect_with(&mut self, digests: Digests) -> Result<()> {
        self.device = self.host.connect(&self.export.nqn, self.nodes.nvmf_port(), digests)?;
        Ok(())
    }

    fn reconnect_with_digests(&mut self) -> Result<()> {
        self.disconnect()?;
        self.connect_with(Digests::Both)
    }

    fn identify(&mut self) -> Result<()> {
        let shown = self.host.identify(&self.device)?;
        ensure!(shown == self.export, "the host reads {shown:?}, the daemon says {:?}", self.export);
        Ok(())
    }

    fn use_ext4(&mut self) -> Result<()> {
        let device = &self.device;
        self.host.run(&format!("mkfs.ext4 -q {device}\nmount {device} /mnt"))?;
        self.write_files()
    }

    fn kill_a_replica(&mut self) -> Result<()> {
        let before = self.host.written_bytes(&self.device)?;
        let load = self.host.start_load(96, 8)?;
        self.host.in_the_middle_of(&load, &self.device, before, 16)?;
        self.nodes.kill(REPLICA_NODE)?;
        self.wait_for_members("the killed replica is recorded out of sync", |states| {
            states.iter().filter(|state| *state == "out of sync").count() == 1
        })?;
        self.host.finish_load(&load)
    }

    fn bring_the_replica_back(&mut self) -> Result<()> {
        let load = self.host.start_load(64, 8)?;
        self.nodes.restart(REPLICA_NODE)?;
        self.wait_until_in_sync()?;
        self.host.finish_load(&load)
    }

    fn kill_the_engine(&mut self) -> Result<()> {
        let before = self.host.written_bytes(&self.device)?;
        let load = self.host.start_load(96, 8)?;
        self.host.in_the_middle_of(&load, &self.device, before, 16)?;
        self.nodes.kill(ENGINE_NODE)?;
        std::thread::sleep(OUTAGE);
        self.nodes.restart(ENGINE_NODE)?;
        self.host.finish_load(&load)?;
        self.wait_until_in_sync()
    }

    fn check_ext4(&mut self) -> Result<()> {
        self.host.run(&format!("umount /mnt\ne2fsck -f -n {}", self.device))?;
        Ok(())
    }

    fn reconnect_ext4(&mut self) -> Result<()> {
        self.reconnect()?;
        self.host.run(&format!("mount {} /mnt\n{COMPARE_FILES}", self.device))?;
        Ok(())
    }

    fn trim(&mut self) -> Result<()> {
        let full = self.nodes.used_bytes()?;
        self.host.run("rm -r /mnt/*\nsync\nfstrim -v /mnt")?;
        // Three replicas each got back the loads' 96 MiB at least.
        self.wait_for_used("the stores have the files' space back", full - 3 * 96 * MIB)?;
        self.host.run("umount /mnt")?;
        Ok(())
    }

    fn use_xfs(&mut self) -> Result<()> {
        let device = &self.device;
        self.host.run(&format!("mkfs.xfs -q -f {device}\nmount {device} /mnt"))?;
        self.write_files()?;
        let load = self.host.start_load(64, 64)?;
        self.host.finish_load(&load)
    }

    fn check_xfs(&mut self) -> Result<()> {
        self.host.run(&format!("umount /mnt\nxfs_repair -n {}", self.device))?;
        self.reconnect()?;
        self.host.run(&format!("mount {} /mnt\n{COMPARE_FILES}\numount /mnt", self.device))?;
        Ok(())
    }

    fn discard(&mut self) -> Result<()> {
        self.host.run(&format!("blkdiscard --force {}", self.device))?;
        // The map itself may stay.
        self.wait_for_used("the stores are as empty as before", self.used_when_empty + 3 * MIB)
    }

    fn no_io_errors(&mut self) -> Result<()> {
        self.host.no_io_errors()
    }

    fn disconnect(&mut self) -> Result<()> {
        self.host.disconnect(&self.export.nqn)
    }

    fn reconnect(&mut self) -> Result<()> {
        self.disconnect()?;
        self.connect()
    }

    /// Files of random content in /mnt, and their checksums where no reconnect can touch them.
    fn write_files(&mut self) -> Result<()> {
        self.host.run(
            "mkdir /mnt/files\n\
             for file in 1 2 3 4; do head -c 8M /dev/urandom >/mnt/files/$file; done\n\
             sync\n\
             sha256sum /mnt/files/* >/tmp/checksums",
        )?;
        Ok(())
    }

    fn wait_until_in_sync(&self) -> Result<()> {
        self.wait_for_members("all replicas are in sync", |states| states.iter().all(|state| state == "in sync"))
    }

    /// Waits until the states of the volume's replicas, as its engine sees them, are as wanted.
    fn wait_for_members(&self, what: &str, wanted: impl Fn(&[String]) -> bool) -> Result<()> {
        let mut last = Value::Null;
        let outcome = wait_until(what, SETTLE_LIMIT, || {
            last = self.nodes.ashlar(ENGINE_NODE, &["volume", "show", VOLUME])?;
            let members = last["engine"]["members"].as_array().cloned().unwrap_or_default();
            let states: Vec<_> =
                members.iter().filter_map(|member| member["state"].as_str().map(str::to_owned)).collect();
            Ok((states.len() == NODES.len() && wanted(&states)).then_some(()))
        });
        outcome.with_context(|| format!("the volume is now {last:#}"))
    }

    /// Waits until the stores of all nodes hold at most `limit` bytes together.
    fn wait_for_used(&self, what: &str, limit: u64) -> Result<()> {
        let mut last = 0;
        let outcome = wait_until(what, SETTLE_LIMIT, || {
            last = self.nodes.used_bytes()?;
            Ok((last <= limit).then_some(()))
        });
        outcome.with_context(|| format!("{} MiB used, wanted at most {} MiB", last / MIB, limit / MIB))
    }
}

const COMPARE_FILES: &str = "sha256sum --check --quiet /tmp/checksums";

/// What the daemon says a host will see.
fn export(volume: &Value) -> Result<Export> {
    let text = |value: &Value, key: &str| {
        value[key].as_str().map(str::to_owned).with_context(|| format!("the volume has no {key}: {volume:#}"))
    };
    let nvmf = &volume["engine"]["nvmf"];
    Ok(Export {
        nqn: text(nvmf, "nqn")?,
        serial: text(nvmf, "serial")?,
        nguid: text(nvmf, "nguid")?,
        uuid: text(volume, "uuid")?,
        size_bytes: volume["size_bytes"].as_u64().context("the volume has no size")?,
    })
}
