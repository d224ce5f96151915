//! One running guest: qemu's process, and the agent in the guest (`tests/e2e/guest/init.sh`) that runs our scripts.
//!
//! With user-mode networking the guest finds this machine's loopback at [`HOST`].

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// The address at which the guest finds the loopback of the machine it runs on.
pub(crate) const HOST: &str = "10.0.2.2";

/// Booting takes 6 s under emulation on an idle machine, and up to a minute on one that compiles meanwhile.
const BOOT_LIMIT: Duration = Duration::from_secs(180);

/// A machine with working KVM boots in 2 s. One whose KVM is broken may hang without a word.
const KVM_BOOT_LIMIT: Duration = Duration::from_secs(20);

/// How long after its own limit in the guest a step may take to be reported.
const REPORT_GRACE: Duration = Duration::from_secs(30);

/// A running guest. Dropping it ends it; the kernel does so if this process dies first.
#[derive(Debug)]
pub(crate) struct Machine {
    qemu: Child,
    requests: ChildStdin,
    reports: Receiver<Report>,
    /// Steps that ended before somebody asked.
    ended: HashMap<u32, i32>,
    last_step: u32,
    share: PathBuf,
}

/// A step that was started in the guest; [`Machine::wait`] gives its outcome.
#[derive(Debug)]
#[must_use = "a step that nobody waits for tells nothing"]
pub(crate) struct Step {
    number: u32,
    deadline: Instant,
}

/// What the agent says, a line each.
#[derive(Debug, PartialEq)]
enum Report {
    Ready,
    Ended { step: u32, code: i32 },
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Accelerator {
    Kvm,
    /// qemu's own, on as many threads as the guest has processors.
    Emulation,
}

impl Machine {
    /// Boots the guest whose kernel and disk are in the folder `guest`. Its console, qemu's messages and the steps' output are kept in `directory`.
    pub(crate) fn boot(guest: &Path, directory: &Path) -> Result<Self> {
        // Where a machine has KVM it may still be broken, and only a boot tells.
        if works(Path::new("/dev/kvm"))
            && let Ok(machine) = Self::boot_with(guest, directory, Accelerator::Kvm, KVM_BOOT_LIMIT)
        {
            return Ok(machine);
        }
        Self::boot_with(guest, directory, Accelerator::Emulation, BOOT_LIMIT)
    }

    fn boot_with(guest: &Path, directory: &Path, accelerator: Accelerator, limit: Duration) -> Result<Self> {
        let log = directory.join(format!("qemu-{}.log", accelerator.name()));
        let share = directory.join("share");
        match fs::remove_dir_all(&share) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                bail!("cannot remove {}: {error}", share.display())
            }
            _ => fs::create_dir_all(&share)?,
        }
        let mut qemu = Command::new("setpriv")
            // The kernel kills it when this thread ends, however it ends.
            .args(["--pdeathsig", "KILL", "--", "qemu-system-x86_64"])
            .args(arguments(guest, accelerator))
            .current_dir(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&log)?)
            .spawn()
            .context("cannot run qemu-system-x86_64")?;
        let pipes = (qemu.stdin.take(), qemu.stdout.take());
        // Both were asked for as pipes just above.
        let (Some(requests), Some(stdout)) = pipes else { bail!("qemu has no pipes") };
        let mut machine =
            Self { qemu, requests, reports: read_reports(stdout), ended: HashMap::new(), last_step: 0, share };
        match machine.reports.recv_timeout(limit) {
            Ok(Report::Ready) => Ok(machine),
            Ok(report) => bail!("the guest's agent began with {report:?}"),
            Err(RecvTimeoutError::Timeout) => {
                bail!("the guest did not boot within {} s, see {}", limit.as_secs(), directory.display())
            }
            Err(RecvTimeoutError::Disconnected) => {
                let status = machine.qemu.wait()?;
                bail!("qemu ended ({status}), see {}", log.display())
            }
        }
    }

    /// Starts the shell script `script` in the guest, for at most `limit`, and does not wait for it.
    pub(crate) fn start(&mut self, script: &str, limit: Duration) -> Result<Step> {
        self.last_step += 1;
        let number = self.last_step;
        fs::write(self.share.join(format!("{number}.sh")), script)?;
        writeln!(self.requests, "{number} {}", limit.as_secs()).context("the guest is gone")?;
        self.requests.flush().context("the guest is gone")?;
        Ok(Step { number, deadline: Instant::now() + limit + REPORT_GRACE })
    }

    /// Waits for `step` and returns its output.
    ///
    /// Fails if it exits with anything but 0 or is out of time; the error then ends with its output.
    pub(crate) fn wait(&mut self, step: &Step) -> Result<String> {
        let code = loop {
            if let Some(code) = self.ended.remove(&step.number) {
                break code;
            }
            match self.reports.recv_timeout(step.deadline.saturating_duration_since(Instant::now())) {
                Ok(Report::Ended { step, code }) => {
                    self.ended.insert(step, code);
                }
                Ok(Report::Ready) => bail!("the guest has booted again"),
                Err(RecvTimeoutError::Timeout) => {
                    bail!("the guest does not answer\n{}", self.output(step))
                }
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("the guest is gone\n{}", self.output(step))
                }
            }
        };
        let output = self.output(step);
        ensure!(code != 124, "out of time\n{output}");
        ensure!(code == 0, "exit code {code}\n{output}");
        Ok(output)
    }

    /// Runs `script` in the guest and returns its output: [`start`](Self::start) and [`wait`](Self::wait).
    pub(crate) fn run(&mut self, script: &str, limit: Duration) -> Result<String> {
        let step = self.start(script, limit)?;
        self.wait(&step)
    }

    /// True once `step` has ended, without waiting for it.
    pub(crate) fn has_ended(&mut self, step: &Step) -> bool {
        while let Ok(Report::Ended { step, code }) = self.reports.try_recv() {
            self.ended.insert(step, code);
        }
        self.ended.contains_key(&step.number)
    }

    /// What `step` has written so far.
    pub(crate) fn output(&self, step: &Step) -> String {
        let bytes = fs::read(self.share.join(format!("{}.out", step.number))).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Fails only if it has ended already.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

fn works(device: &Path) -> bool {
    File::options().read(true).write(true).open(device).is_ok()
}

fn arguments(guest: &Path, accelerator: Accelerator) -> Vec<String> {
    let file = |name: &str| guest.join(name).display().to_string();
    let processor = match accelerator {
        Accelerator::Kvm => "host",
        // The oldest one with the CRC32C instruction: newer ones have more to emulate and are slower.
        Accelerator::Emulation => "Nehalem",
    };
    let arguments = [
        ["-accel", accelerator.name()],
        ["-cpu", processor],
        ["-smp", "2"],
        ["-m", "1024"],
        ["-display", "none"],
        ["-serial", "file:console.log"],
        ["-kernel", &file("vmlinuz")],
        ["-initrd", &file("initrd.cpio")],
        ["-append", "console=ttyS0 panic=-1 net.ifnames=0 mitigations=off quiet loglevel=5"],
        ["-drive", &format!("file={},format=raw,if=virtio,snapshot=on", file("root.img"))],
        ["-nic", "user,model=virtio-net-pci"],
        ["-virtfs", "local,path=share,mount_tag=share,security_model=none"],
        ["-device", "virtio-serial-pci"],
        ["-chardev", "stdio,id=agent,signal=off"],
        ["-device", "virtserialport,chardev=agent,name=agent"],
    ];
    let words = arguments.into_iter().flatten().map(str::to_owned);
    words.chain(["-nodefaults".to_owned(), "-no-reboot".to_owned()]).collect()
}

/// Reads the agent's reports on a thread of its own, until qemu ends.
fn read_reports(stdout: ChildStdout) -> Receiver<Report> {
    let (sender, receiver) = mpsc::sync_channel(64);
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if let Some(report) = Report::parse(&line)
                && sender.send(report).is_err()
            {
                break;
            }
        }
    });
    receiver
}

impl Accelerator {
    /// Its name for qemu.
    fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Emulation => "tcg",
        }
    }
}

impl Report {
    fn parse(line: &str) -> Option<Self> {
        if line == "ready" {
            return Some(Self::Ready);
        }
        let (step, code) = line.split_once(' ')?;
        Some(Self::Ended { step: step.parse().ok()?, code: code.parse().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_parsed_and_noise_is_not() {
        assert_eq!(Report::parse("ready"), Some(Report::Ready));
        assert_eq!(Report::parse("7 124"), Some(Report::Ended { step: 7, code: 124 }));
        assert_eq!(Report::parse("7"), None);
        assert_eq!(Report::parse("seven 0"), None);
        assert_eq!(Report::parse(""), None);
    }

    #[test]
    fn a_device_that_cannot_be_opened_does_not_work() {
        assert!(!works(Path::new("/nonexistent/kvm")));
    }
}
