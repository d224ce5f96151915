//! A file system of this machine's kernel on `iscsi://`, without a guest: qemu's initiator as an NBD server, that as a file, the file as a loop device.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::process::{Child, Command};

use crate::cunit::{Outcome, Test};
use crate::qemu::run;

const NAME: &str = "KernelFileSystem";
const FILES: usize = 64;
const FILE_SIZE: usize = 768 << 10;
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);

/// Makes a file system on the target at `url`, writes files, and finds them equal after it was mounted anew and checked.
pub(crate) async fn test(url: &str, folder: &Path) -> Test {
    let told = |name: &str, outcome| Test { name: name.to_owned(), short: NAME.to_owned(), outcome };
    if let Some(reason) = missing() {
        return told("a file system of the kernel", Outcome::Skipped(reason.to_owned()));
    }
    let mut disk = Disk::at(folder.join("kernel"));
    let result = match disk.attach(url).await {
        Ok(()) => files_stay(&disk).await,
        Err(error) => Err(error),
    };
    let detached = disk.detach().await;
    let outcome = match result.and(detached) {
        Ok(()) => Outcome::Passed,
        Err(error) => Outcome::Failed(format!("{error:#}")),
    };
    told("a file system of the kernel", outcome)
}

/// What this machine lacks for it.
fn missing() -> Option<&'static str> {
    let root = fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0);
    let devices = ["/dev/fuse", "/dev/loop-control"].iter().all(|device| Path::new(device).exists());
    match (root, devices) {
        (true, true) => None,
        (false, _) => Some("it needs root"),
        (true, false) => Some("there is no FUSE or no loop device here"),
    }
}

/// Files are there, and as they were written, after the file system was mounted again, and it is clean.
async fn files_stay(disk: &Disk) -> Result<()> {
    let device = disk.device()?;
    run("mkfs.ext4", &["-q", "-E", "nodiscard", device]).await?;
    let mounted = disk.folder.join("mounted");
    fs::create_dir(&mounted)?;
    let at = mounted.to_str().context("a folder that is no text")?;
    run("mount", &[device, at]).await?;
    let written = write_files(&mounted);
    run("umount", &[at]).await?;
    written?;

    run("mount", &["-o", "ro", device, at]).await?;
    let compared = compare_files(&mounted);
    run("umount", &[at]).await?;
    compared?;
    run("e2fsck", &["-fn", device]).await?;
    Ok(())
}

fn content(number: usize) -> Vec<u8> {
    (0..FILE_SIZE).map(|at| (at ^ (at >> 9) ^ (number * 151)) as u8).collect()
}

fn write_files(folder: &Path) -> Result<()> {
    for number in 0..FILES {
        let path = folder.join(number.to_string());
        fs::write(&path, content(number))?;
        // Some of them by fsync, the others by unmounting.
        if number % 16 == 0 {
            fs::File::open(&path)?.sync_all()?;
        }
    }
    // Space that is used a second time.
    for number in (0..FILES).step_by(3) {
        let path = folder.join(number.to_string());
        fs::remove_file(&path)?;
        fs::write(&path, content(number + FILES))?;
    }
    Ok(())
}

fn compare_files(folder: &Path) -> Result<()> {
    for number in 0..FILES {
        let expected = content(if number % 3 == 0 { number + FILES } else { number });
        ensure!(fs::read(folder.join(number.to_string()))? == expected, "file {number} is another");
    }
    Ok(())
}

/// A target as a block device of this machine, with what it takes.
struct Disk {
    folder: PathBuf,
    server: Option<Child>,
    file: Option<Child>,
    device: Option<String>,
}

impl Disk {
    fn at(folder: PathBuf) -> Self {
        Self { folder, server: None, file: None, device: None }
    }

    fn device(&self) -> Result<&str> {
        self.device.as_deref().context("no loop device")
    }

    async fn attach(&mut self, url: &str) -> Result<()> {
        let disk = self.folder.join("disk");
        fs::create_dir_all(&disk)?;
        let socket = self.folder.join("nbd");
        let mut server = Command::new("qemu-nbd");
        server.args(["-f", "raw", "-t", "--cache=none", "--discard=unmap", "-e", "4", "-k"]).arg(&socket).arg(url);
        self.server = Some(server.kill_on_drop(true).spawn().context("cannot run qemu-nbd")?);
        there(&socket).await?;
        let mut file = Command::new("nbdfuse");
        file.arg(&disk).arg("--unix").arg(&socket);
        self.file = Some(file.kill_on_drop(true).spawn().context("cannot run nbdfuse")?);
        let file = disk.join("nbd");
        there(&file).await?;
        let file = file.to_str().context("a file that is no text")?;
        self.device = Some(run("losetup", &["--find", "--show", "--direct-io=on", file]).await?.trim().to_owned());
        Ok(())
    }

    /// Takes apart whatever there is of it, and says what would not go.
    async fn detach(&mut self) -> Result<()> {
        let mut result = Ok(());
        let mounted = self.folder.join("mounted");
        // After a failure only.
        if fs::metadata(&mounted).and_then(|at| Ok(at.dev() != fs::metadata(&self.folder)?.dev())).unwrap_or(false) {
            result = run("umount", &[&mounted.display().to_string()]).await.map(drop);
        }
        if let Some(device) = self.device.take() {
            result = result.and(run("losetup", &["--detach", &device]).await.map(drop));
        }
        if let Some(file) = self.file.take() {
            let disk = self.folder.join("disk").display().to_string();
            // A loop device closes its file a moment after it is detached.
            let limit = Instant::now() + PATIENCE;
            while let Err(error) = run("fusermount3", &["-u", &disk]).await {
                if Instant::now() > limit {
                    result = result.and(Err(error));
                    break;
                }
                tokio::time::sleep(POLL).await;
            }
            result = result.and(end(file).await);
        }
        if let Some(server) = self.server.take() {
            result = result.and(end(server).await);
        }
        result
    }
}

/// Waits until `path` is there.
async fn there(path: &Path) -> Result<()> {
    let limit = Instant::now() + PATIENCE;
    while !path.exists() {
        ensure!(Instant::now() < limit, "{} does not appear", path.display());
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// Ends a program of ours, which is done by now.
async fn end(mut program: Child) -> Result<()> {
    program.kill().await.context("a program that does not end")
}
