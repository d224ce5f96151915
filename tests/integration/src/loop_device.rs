//! A loop device over a file: a real block device for stores, where root may make one.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A loop device, detached when it is dropped.
pub struct LoopDevice {
    path: PathBuf,
}

impl LoopDevice {
    /// A device over a new sparse file of this size.
    ///
    /// # Errors
    /// Why there can be none here, in one line.
    pub fn over(file: &Path, size: u64) -> Result<Self, String> {
        let made = std::fs::File::create(file).and_then(|file| file.set_len(size));
        made.map_err(|error| format!("cannot make {}: {error}", file.display()))?;
        let mut command = Command::new("losetup");
        // What a store sees as its disk should not be the page cache.
        command.args(["--find", "--show", "--direct-io=on"]).arg(file);
        let output = command.output().map_err(|error| format!("cannot run losetup: {error}"))?;
        match output.status.success() {
            true => Ok(Self { path: PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()) }),
            false => Err(format!("no loop device: {}", String::from_utf8_lossy(&output.stderr).trim())),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let detached = Command::new("losetup").arg("--detach").arg(&self.path).status();
        if !detached.is_ok_and(|status| status.success()) {
            eprintln!("{} stays attached", self.path.display());
        }
    }
}
