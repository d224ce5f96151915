//! tgt: the iSCSI target in user space that Debian has.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tempfile::TempDir;

use crate::contestant::SERVER_CORE;
use crate::device::SIZE;
use crate::thread::ProcessorTime;

/// How long it may take until it listens.
const START_LIMIT: Duration = Duration::from_secs(5);

/// Where its two processes meet: a socket for each control port.
const CONTROL_FOLDER: &str = "/var/run/tgtd";

/// The highest control port that it takes.
const CONTROL_MAX: u32 = 32_767;

/// A tgtd that runs until this is dropped, with one logical unit: a file in memory.
pub(super) struct Tgt {
    daemon: Child,
    control: u32,
    address: SocketAddr,
    _folder: TempDir,
}

impl Tgt {
    /// Its target.
    pub(super) const NAME: &str = "iqn.2026-01.io.ashlar:bench:tgt";
    /// Its logical unit; 0 is one that is no disk.
    pub(super) const LUN: u8 = 1;

    /// Starts it on the servers' core, on ports of its own.
    pub(super) fn start() -> anyhow::Result<Self> {
        ensure!(fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0), "it needs root");
        let version = Command::new("tgtd").arg("--version").output();
        ensure!(version.is_ok_and(|output| output.status.success()), "it is not installed");
        let folder = tempfile::Builder::new().prefix("ashlar-bench-").tempdir_in("/dev/shm").context("no tmpfs")?;
        let file = folder.path().join("unit");
        // All of it written: nobody is measured on memory that is not there.
        fs::write(&file, vec![0x5a; SIZE as usize]).context("cannot fill a file in memory")?;
        // Free a moment ago; a port that somebody takes meanwhile shows below.
        let address = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?;
        let control = std::process::id() % CONTROL_MAX + 1;
        let daemon = Command::new("taskset")
            .args(["-c", &SERVER_CORE.to_string(), "tgtd", "-f", "-C", &control.to_string()])
            .args(["--iscsi", &format!("portal={address}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot run tgtd")?;
        let mut tgt = Self { daemon, control, address, _folder: folder };
        tgt.wait()?;
        let path = file.to_str().context("a path that is text")?;
        let lun = Self::LUN.to_string();
        tgt.administer(&["target", "--op", "new", "--tid", "1", "--targetname", Self::NAME])?;
        tgt.administer(&["logicalunit", "--op", "new", "--tid", "1", "--lun", &lun, "--backing-store", path])?;
        tgt.administer(&["target", "--op", "bind", "--tid", "1", "--initiator-address", "127.0.0.1"])?;
        Ok(tgt)
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// What all of its threads have used.
    pub(super) fn processor_time(&self) -> anyhow::Result<ProcessorTime> {
        let mut sum = ProcessorTime::default();
        for thread in fs::read_dir(format!("/proc/{}/task", self.daemon.id()))? {
            sum = sum + ProcessorTime::of_thread(&thread?.path())?;
        }
        Ok(sum)
    }

    /// Waits until it listens.
    fn wait(&mut self) -> anyhow::Result<()> {
        let start = Instant::now();
        while TcpStream::connect(self.address).is_err() {
            if let Some(status) = self.daemon.try_wait()? {
                bail!("tgtd ended: {status}");
            }
            ensure!(start.elapsed() < START_LIMIT, "tgtd does not listen");
            sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn administer(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let mut command = Command::new("tgtadm");
        command.args(["-C", &self.control.to_string(), "--lld", "iscsi", "--mode"]).args(arguments);
        let output = command.output().context("cannot run tgtadm")?;
        ensure!(output.status.success(), "tgtadm: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(())
    }
}

impl Drop for Tgt {
    fn drop(&mut self) {
        // It ends by no signal that it could catch, and leaves its sockets behind.
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        let socket = PathBuf::from(CONTROL_FOLDER).join(format!("socket.{}", self.control));
        let _ = fs::remove_file(socket.with_extension(format!("{}.lock", self.control)));
        let _ = fs::remove_file(socket);
    }
}
