//! A small file system for one test: for disks that hang or are full.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

/// An ext4 in a file, mounted for this thread and what it starts (see [`crate::Network::enter`]). Unmounted when it is dropped.
#[derive(Debug)]
pub struct Mounted {
    path: PathBuf,
}

impl Mounted {
    /// Makes one of `size` bytes in the file `image` and mounts it at `path`.
    pub fn make(image: &Path, path: &Path, size: u64) -> anyhow::Result<Self> {
        File::create(image)?.set_len(size)?;
        fs::create_dir_all(path)?;
        run("mkfs.ext4", ["-q".as_ref(), "-F".as_ref(), image.as_os_str()])?;
        run("mount", ["-o".as_ref(), "loop".as_ref(), image.as_os_str(), path.as_os_str()])?;
        Ok(Self { path: path.to_owned() })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// From now on nothing that is written to it ends.
    pub fn freeze(&self) -> anyhow::Result<()> {
        run("fsfreeze", ["--freeze".as_ref(), self.path.as_os_str()])
    }

    /// Lets everything that was held up by [`Mounted::freeze`] go on.
    pub fn thaw(&self) -> anyhow::Result<()> {
        run("fsfreeze", ["--unfreeze".as_ref(), self.path.as_os_str()])
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // An error means that it was not frozen.
        let _ = self.thaw();
        if let Err(error) = run("umount", ["--lazy".as_ref(), self.path.as_os_str()]) {
            eprintln!("{} stays mounted: {error:#}", self.path.display());
        }
    }
}

pub(crate) fn run<const N: usize>(program: &str, arguments: [&OsStr; N]) -> anyhow::Result<()> {
    let output = Command::new(program).args(arguments).output().with_context(|| format!("cannot run {program}"))?;
    ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
