//! The story that the end-to-end test tells, step by step.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::host::{COMPARE_FILES, Digests, Export, Host};
use crate::iscsi;
use crate::machine::Machine;
use crate::nodes::{ENGINE_NODE, NODES, Nodes};
use crate::steps::Steps;

/// The place in [`NODES`] of the one whose replica is lost.
const REPLICA_NODE: usize = 1;

const VOLUME: &str = "data";

const MIB: u64 = 1 << 20;

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
    iscsi::play(story.map(|story| (story.host, story.nodes)), steps);
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
        self.host.write_files()
    }

    fn kill_a_replica(&mut self) -> Result<()> {
        let before = self.host.written_bytes(&self.device)?;
        let load = self.host.start_load(96, 8)?;
        self.host.in_the_middle_of(&load, &self.device, before, 16)?;
        self.nodes.kill(REPLICA_NODE)?;
        self.nodes.wait_for_members(VOLUME, "the killed replica is recorded out of sync", |states| {
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
        self.nodes.interrupt_the_engine()?;
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
        self.nodes.wait_for_used("the stores have the files' space back", full - 3 * 96 * MIB)?;
        self.host.run("umount /mnt")?;
        Ok(())
    }

    fn use_xfs(&mut self) -> Result<()> {
        let device = &self.device;
        self.host.run(&format!("mkfs.xfs -q -f {device}\nmount {device} /mnt"))?;
        self.host.write_files()?;
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
        self.nodes.wait_for_used("the stores are as empty as before", self.used_when_empty + 3 * MIB)
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

    fn wait_until_in_sync(&self) -> Result<()> {
        self.nodes.wait_until_in_sync(VOLUME)
    }
}

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
