//! A disk whose power can be cut: a file system on a loop device. What programs wrote and did not sync is in the memory of the kernel only;
//! a copy of what the device has got by then is what a machine finds after the cut.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::mounted::run;

/// How long a program that was killed may hold files of the disk.
const RELEASE_LIMIT: Duration = Duration::from_secs(20);
/// What is written after the daemon was killed, and so never synced.
const CANARY: &str = "canary";

/// How much the file system does by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    /// A sync of one file takes changes of names before it along.
    Journal,
    /// A sync is for the file or folder that it is called for and nothing else.
    NoJournal,
}

/// A file system, mounted for this thread and what it starts (see [`crate::Network::enter`]).
#[derive(Debug)]
pub struct PoweredDisk {
    kind: FileSystem,
    images: PathBuf,
    path: PathBuf,
    cuts: u32,
}

impl PoweredDisk {
    /// Makes an ext4 of `size` bytes, with its images in the folder `images`, and mounts it at `path`.
    pub fn make(kind: FileSystem, images: &Path, path: &Path, size: u64) -> anyhow::Result<Self> {
        let disk = Self { kind, images: images.to_owned(), path: path.to_owned(), cuts: 0 };
        File::create(disk.image(0))?.set_len(size)?;
        fs::create_dir_all(path)?;
        let journal = match kind {
            FileSystem::Journal => "has_journal",
            FileSystem::NoJournal => "^has_journal",
        };
        let words = ["-q", "-F", "-O", journal, "-E", "lazy_itable_init=0,nodiscard"];
        let mut mkfs = Command::new("mkfs.ext4");
        let made = mkfs.args(words).arg(disk.image(0)).output().context("cannot run mkfs.ext4")?;
        ensure!(made.status.success(), "mkfs.ext4: {}", String::from_utf8_lossy(&made.stderr));
        disk.mount()?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes all durable that is there now, as a machine that has been up for a while has it.
    pub fn settle(&self) -> anyhow::Result<()> {
        run("sync", ["--file-system".as_ref(), self.path.as_os_str()])
    }

    /// The power goes and comes back. Nobody may use the disk; whoever did was killed.
    pub fn cut(&mut self) -> anyhow::Result<()> {
        // What shows that something is lost at all.
        fs::write(self.path.join(CANARY), "not synced")?;
        let (before, after) = (self.image(self.cuts), self.image(self.cuts + 1));
        run("cp", ["--sparse=always".as_ref(), before.as_os_str(), after.as_os_str()])?;
        self.unmount()?;
        fs::remove_file(before)?;
        self.cuts += 1;
        if self.kind == FileSystem::NoJournal {
            check(&after)?;
        }
        self.mount()?;
        ensure!(!self.path.join(CANARY).exists(), "nothing is lost: this is no power cut");
        Ok(())
    }

    fn image(&self, number: u32) -> PathBuf {
        self.images.join(format!("{number}.ext4"))
    }

    fn mount(&self) -> anyhow::Result<()> {
        // Nothing is written by itself as long as a test takes, also not to make up for programs that forget to sync.
        let options = match self.kind {
            FileSystem::Journal => "loop,noauto_da_alloc,commit=3600",
            FileSystem::NoJournal => "loop,noauto_da_alloc",
        };
        let image = self.image(self.cuts);
        run("mount", ["-o".as_ref(), options.as_ref(), image.as_os_str(), self.path.as_os_str()])
    }

    fn unmount(&self) -> anyhow::Result<()> {
        let limit = Instant::now() + RELEASE_LIMIT;
        while let Err(error) = run("umount", [self.path.as_os_str()]) {
            ensure!(Instant::now() < limit, "{error:#}");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for PoweredDisk {
    fn drop(&mut self) {
        if let Err(error) = run("umount", ["--lazy".as_ref(), self.path.as_os_str()]) {
            eprintln!("{} stays mounted: {error:#}", self.path.display());
        }
    }
}

/// Puts a file system without a journal in order, as a machine does when it starts.
fn check(image: &Path) -> anyhow::Result<()> {
    let output = Command::new("e2fsck").args(["-f", "-y"]).arg(image).output().context("cannot run e2fsck")?;
    // 1 and 2: it has repaired what it found.
    let is_mended = matches!(output.status.code(), Some(0..=2));
    ensure!(
        is_mended,
        "e2fsck: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
