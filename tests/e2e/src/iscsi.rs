//! The same over iSCSI: open-iscsi, multipath and a volume that is no NVMe subsystem any more.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::host::{COMPARE_FILES, Host};
use crate::machine::HOST;
use crate::nodes::{ENGINE_NODE, NODES, Nodes};
use crate::steps::Steps;
use crate::wait::wait_until;

const VOLUME: &str = "target";
const GIB: u64 = 1 << 30;

/// Enough for a device to appear under emulation.
const LIMIT: Duration = Duration::from_secs(120);

/// What initiator and target know of each other.
const INITIATOR_SECRET: &str = "what-the-guest-knows";
const TARGET_SECRET: &str = "what-the-volume-knows";

/// A step of the story, and what it shows.
type Step = (&'static str, fn(&mut Story) -> Result<()>);

const STEPS: [Step; 17] = [
    ("iscsi: discovery names the target", Story::discover),
    ("iscsi: login, the disk is the volume", Story::log_in),
    ("iscsi: mkfs.ext4, mount, files, fio verifies", Story::use_ext4),
    ("iscsi: a grown volume is seen after a rescan", Story::grow),
    ("iscsi: fio verifies while the engine's daemon is killed and restarted", Story::kill_the_engine),
    ("iscsi: fio verifies while the engine's daemon is stopped and restarted", Story::stop_the_engine),
    ("iscsi: umount, fsck is clean, files are equal after a new login", Story::log_in_again),
    ("iscsi: fstrim gives space back", Story::trim),
    ("iscsi: without the secret there is no login", Story::refuse),
    ("iscsi: login with each algorithm of CHAP", Story::log_in_with_each_algorithm),
    ("iscsi: login with mutual CHAP and digests", Story::log_in_with_chap),
    ("iscsi: no I/O error in the kernel's log", Story::no_io_errors),
    ("iscsi: logout", Story::log_out),
    ("iscsi: multipath over two portals", Story::multipath),
    ("iscsi: fio verifies while a path goes and comes back", Story::lose_a_path),
    ("iscsi: umount, fsck is clean on the multipath device", Story::check_multipath),
    ("iscsi: logout of both paths", Story::end_multipath),
];

/// Plays the story with the host and the daemons of the one before.
pub(crate) fn play(begun: Option<(Host, Nodes)>, steps: &mut Steps) {
    let mut story = begun.and_then(|(host, nodes)| {
        steps.run("iscsi: a volume with three replicas is exported", || Story::begin(host, nodes))
    });
    for (name, step) in STEPS {
        steps.run(name, || step(story.as_mut().context("the story did not begin")?));
    }
}

/// What the steps share.
struct Story {
    host: Host,
    nodes: Nodes,
    iqn: String,
    naa: String,
    /// The path of the disk in the guest; empty before it is there.
    device: String,
}

impl Story {
    fn begin(mut host: Host, nodes: Nodes) -> Result<Self> {
        let replicas = NODES.join(",");
        nodes.ashlar(ENGINE_NODE, &["volume", "create", VOLUME, "--size", "1GiB", "--replicas", &replicas])?;
        nodes.ashlar(ENGINE_NODE, &["volume", "unexport", VOLUME, "--frontend", "nvmf"])?;
        let volume = nodes.ashlar(ENGINE_NODE, &["volume", "export", VOLUME, "--frontend", "iscsi"])?;
        let target = &volume["engine"]["iscsi"];
        let text = |key: &str| target[key].as_str().map(str::to_owned).with_context(|| format!("{key}: {volume:#}"));
        let (iqn, naa) = (text("iqn")?, text("naa")?);
        nodes.wait_until_in_sync(VOLUME)?;
        // As Debian's services prepare it, with every time-out as Debian has it.
        host.run(&format!(
            "modprobe -a iscsi_tcp dm-multipath sd_mod\n\
             mkdir -p /run/lock/iscsi\n\
             echo InitiatorName=iqn.2026-01.org.example:guest >/etc/iscsi/initiatorname.iscsi\n\
             printf %s '{INITIATOR_SECRET}' >/tmp/initiator-secret\n\
             printf %s '{TARGET_SECRET}' >/tmp/target-secret\n\
             iscsid"
        ))?;
        Ok(Self { host, nodes, iqn, naa, device: String::new() })
    }

    fn discover(&mut self) -> Result<()> {
        let [port, _] = self.nodes.portals();
        let said = self.host.run(&format!("iscsiadm -m discovery -t sendtargets -p {HOST}:{port}"))?;
        ensure!(said.contains(&self.iqn), "the target is not among\n{said}");
        // What discovery names is this machine's loopback, which is another one in the guest.
        self.host.run(&format!("iscsiadm -m node -T {} -o delete", self.iqn))?;
        Ok(())
    }

    fn log_in(&mut self) -> Result<()> {
        self.attach(1)?;
        let disks = self.disks(1)?;
        self.device = format!("/dev/{}", disks[0]);
        let size = self.host.run(&format!("blockdev --getsize64 {}", self.device))?;
        ensure!(size.trim() == GIB.to_string(), "{size}");
        let model = self.host.run(&format!("cat /sys/block/{}/device/vendor /sys/block/{0}/device/model", disks[0]))?;
        let words: Vec<_> = model.split_whitespace().collect();
        ensure!(words == ["ASHLAR", "Volume"], "{model}");
        Ok(())
    }

    fn use_ext4(&mut self) -> Result<()> {
        let device = &self.device;
        self.host.run(&format!("mkfs.ext4 -q {device}\nmount {device} /mnt"))?;
        self.host.write_files()?;
        let load = self.host.start_load(64, 64)?;
        self.host.finish_load(&load)
    }

    fn grow(&mut self) -> Result<()> {
        self.nodes.ashlar(ENGINE_NODE, &["volume", "grow", VOLUME, "--size", "2GiB"])?;
        self.host.run("iscsiadm -m session --rescan")?;
        let device = self.device.clone();
        let wanted = (2 * GIB).to_string();
        wait_until("the disk has grown", LIMIT, || {
            let size = self.host.run(&format!("blockdev --getsize64 {device}"))?;
            Ok((size.trim() == wanted).then_some(()))
        })?;
        self.host.run(&format!(
            "resize2fs {device}\ndf --output=size -B1M /mnt | awk 'NR == 2 && $1 < 1500 {{ exit 1 }}'"
        ))?;
        Ok(())
    }

    fn kill_the_engine(&mut self) -> Result<()> {
        self.interrupted(Nodes::interrupt_the_engine)
    }

    fn stop_the_engine(&mut self) -> Result<()> {
        self.interrupted(Nodes::restart_the_engine)
    }

    /// A load goes on over what is done to the daemons.
    fn interrupted(&mut self, interrupt: fn(&mut Nodes) -> Result<()>) -> Result<()> {
        let before = self.host.written_bytes(&self.device)?;
        let load = self.host.start_load(96, 8)?;
        self.host.in_the_middle_of(&load, &self.device, before, 16)?;
        interrupt(&mut self.nodes)?;
        self.host.finish_load(&load)?;
        self.nodes.wait_until_in_sync(VOLUME)
    }

    fn log_in_again(&mut self) -> Result<()> {
        self.host.run(&format!("umount /mnt\ne2fsck -f -n {}", self.device))?;
        self.log_out()?;
        self.attach(1)?;
        self.device = format!("/dev/{}", self.disks(1)?[0]);
        self.host.run(&format!("mount {} /mnt\n{COMPARE_FILES}", self.device))?;
        Ok(())
    }

    fn trim(&mut self) -> Result<()> {
        let full = self.nodes.used_bytes()?;
        self.host.run("rm -r /mnt/*\nsync\nfstrim -v /mnt")?;
        // Three replicas each got back the load's 96 MiB at least.
        self.nodes.wait_for_used("the stores have the files' space back", full - 3 * (96 << 20))?;
        self.host.run("umount /mnt")?;
        self.log_out()
    }

    fn refuse(&mut self) -> Result<()> {
        let folder = std::env::temp_dir().join(format!("ashlar-e2e-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let file = |name: &str, secret: &str| -> Result<String> {
            let path = folder.join(name);
            std::fs::write(&path, secret)?;
            // `ashlar` takes no secret that others may read.
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
            Ok(path.display().to_string())
        };
        let (secret, mutual) = (file("initiator", INITIATOR_SECRET)?, file("target", TARGET_SECRET)?);
        let export = ["volume", "export", VOLUME, "--frontend", "iscsi", "--chap-user", "guest", "--chap-secret-file"];
        let rest = [secret.as_str(), "--mutual-user", "volume", "--mutual-secret-file", &mutual];
        let exported = self.nodes.ashlar(ENGINE_NODE, &[&export[..], &rest].concat());
        std::fs::remove_dir_all(&folder)?;
        exported?;
        let [port, _] = self.nodes.portals();
        let node = format!("iscsiadm -m node -T {} -p {HOST}:{port}", self.iqn);
        let result = self.host.run(&format!("{node} -o new\n{node} --login"));
        let error = result.err().context("the host logged in without a secret")?;
        ensure!(format!("{error:#}").contains("authorization failure"), "{error:#}");
        Ok(())
    }

    /// Mutual, and with nothing else on offer each time.
    fn log_in_with_each_algorithm(&mut self) -> Result<()> {
        let [port, _] = self.nodes.portals();
        let node = format!("iscsiadm -m node -T {} -p {HOST}:{port}", self.iqn);
        for algorithm in ["MD5", "SHA1", "SHA256", "SHA3-256"] {
            let offer = format!("{node} -o update -n node.session.auth.chap_algs -v {algorithm}");
            let commands =
                self.attach_commands(1)?.replace(&format!("{node} --login"), &format!("{offer}\n{node} --login"));
            self.host.run(&commands).with_context(|| algorithm)?;
            self.disks(1)?;
            self.log_out()?;
        }
        Ok(())
    }

    fn log_in_with_chap(&mut self) -> Result<()> {
        let [port, _] = self.nodes.portals();
        let node = format!("iscsiadm -m node -T {} -p {HOST}:{port}", self.iqn);
        let digests = format!(
            "{node} -o update -n node.conn[0].iscsi.HeaderDigest -v CRC32C\n\
             {node} -o update -n node.conn[0].iscsi.DataDigest -v CRC32C"
        );
        let commands =
            self.attach_commands(1)?.replace(&format!("{node} --login"), &format!("{digests}\n{node} --login"));
        self.host.run(&commands)?;
        self.device = format!("/dev/{}", self.disks(1)?[0]);
        let agreed = self
            .host
            .run("cat /sys/class/iscsi_connection/*/header_digest /sys/class/iscsi_connection/*/data_digest")?;
        ensure!(agreed.split_whitespace().eq(["1", "1"]), "digests: {agreed}");
        let device = &self.device;
        self.host.run(&format!("mount {device} /mnt"))?;
        let load = self.host.start_load(32, 64)?;
        self.host.finish_load(&load)?;
        self.host.run("umount /mnt")?;
        Ok(())
    }

    fn no_io_errors(&mut self) -> Result<()> {
        self.host.no_io_errors()
    }

    fn log_out(&mut self) -> Result<()> {
        // udev looks into a device that was written to; reads of its that find the device gone are told as errors.
        self.host.run(&format!(
            "udevadm settle\niscsiadm -m node -T {} --logout\niscsiadm -m node -T {0} -o delete",
            self.iqn
        ))?;
        let left = self.host.run("iscsiadm -m session 2>&1 || true")?;
        ensure!(left.contains("No active sessions"), "{left}");
        Ok(())
    }

    fn multipath(&mut self) -> Result<()> {
        self.host.run(
            "printf 'defaults {\\n user_friendly_names yes\\n find_multipaths no\\n}\\n' >/etc/multipath.conf\n\
             mkdir -p /etc/multipath\n\
             multipathd",
        )?;
        self.attach(2)?;
        let disks = self.disks(2)?;
        let map = wait_until("both disks are one map", LIMIT, || {
            let said = self.host.run("multipathd show paths format '%d %m' | tail -n +2 || true")?;
            let maps: Vec<_> = said
                .lines()
                .filter_map(|line| {
                    let (disk, map) = line.split_once(' ')?;
                    disks.contains(&disk.to_owned()).then(|| map.trim().to_owned())
                })
                .filter(|map| map.starts_with("mpath"))
                .collect();
            Ok((maps.len() == 2 && maps[0] == maps[1]).then(|| maps[0].clone()))
        })?;
        self.device = format!("/dev/mapper/{map}");
        let (device, number) = (&self.device, self.host.run(&format!("readlink -f /dev/mapper/{map}"))?);
        self.host.run(&format!("mkfs.ext4 -q {device}\nmount {device} /mnt"))?;
        // Block statistics know it by its number.
        self.device = number.trim().to_owned();
        Ok(())
    }

    fn lose_a_path(&mut self) -> Result<()> {
        let [port, _] = self.nodes.portals();
        let node = format!("iscsiadm -m node -T {} -p {HOST}:{port}", self.iqn);
        let before = self.host.written_bytes(&self.device)?;
        let load = self.host.start_load(96, 8)?;
        self.host.in_the_middle_of(&load, &self.device, before, 8)?;
        self.host.run(&format!("{node} --logout"))?;
        self.host.in_the_middle_of(&load, &self.device, before, 24)?;
        self.host.run(&format!("{node} --login"))?;
        self.disks(2)?;
        self.host.finish_load(&load)
    }

    fn check_multipath(&mut self) -> Result<()> {
        self.host.run(&format!("umount /mnt\ne2fsck -f -n {}", self.device))?;
        Ok(())
    }

    fn end_multipath(&mut self) -> Result<()> {
        // It may be gone before it has answered.
        self.host.run("multipathd shutdown || true\nwhile pidof multipathd; do sleep 0.1; done\nmultipath -F")?;
        self.log_out()
    }

    /// Types what `ashlar volume attach-command` prints, for the first portals.
    fn attach(&mut self, portals: usize) -> Result<()> {
        let commands = self.attach_commands(portals)?;
        self.host.run(&commands)?;
        Ok(())
    }

    /// The lines for the first portals. The guest finds this machine's loopback at another address.
    fn attach_commands(&self, portals: usize) -> Result<String> {
        let ways = self.nodes.ashlar(ENGINE_NODE, &["volume", "attach-command", VOLUME, "--frontend", "iscsi"])?;
        let lines = ways[0]["commands"].as_array().context("no commands")?;
        let ports = &self.nodes.portals()[..portals];
        let of_portal = |line: &&str| ports.iter().any(|port| line.contains(&format!("-p 127.0.0.1:{port} ")));
        let lines: Vec<_> = lines.iter().filter_map(Value::as_str).filter(of_portal).collect();
        ensure!(lines.len() >= 2 * portals, "{ways:#}");
        Ok(lines.join("\n").replace("127.0.0.1", HOST))
    }

    /// The names of the volume's disks once there are `count` of them, known by what the daemon says they are.
    fn disks(&mut self, count: usize) -> Result<Vec<String>> {
        // Of several designators the kernel shows one as the disk's wwid, and not this one.
        let find = format!(
            "for disk in $(ls /sys/block | grep ^sd); do\n\
             od -An -v -tx1 /sys/block/$disk/device/vpd_pg83 | tr -d ' \\n' | grep -q {} && echo $disk\ndone; true",
            self.naa
        );
        let disks = wait_until("the disks appear", LIMIT, || {
            let disks: Vec<_> = self.host.run(&find)?.lines().map(str::to_owned).collect();
            Ok((disks.len() == count).then_some(disks))
        })?;
        self.host.run("udevadm settle")?;
        Ok(disks)
    }
}
