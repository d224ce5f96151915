//! Loop devices for tests: real block devices over sparse files, where root may make some.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::Command;

/// A loop device, detached when it is dropped.
pub struct LoopDevice {
    path: PathBuf,
}

impl LoopDevice {
    /// A device over a new sparse file of `size` bytes, with sectors of `sector` bytes: 512 or 4096.
    ///
    /// # Errors
    /// Why there can be none here, in one line: for tests to say that they skip what needs it.
    pub fn over(file: &Path, size: u64, sector: u32) -> Result<Self, String> {
        let made = std::fs::File::create(file).and_then(|file| file.set_len(size));
        made.map_err(|error| format!("cannot make {}: {error}", file.display()))?;
        let mut command = Command::new("losetup");
        // Past the page cache, where the file system can: what a store makes stable should go as far as it does in life.
        command.args(["--find", "--show", "--direct-io=on", "--sector-size", &sector.to_string()]).arg(file);
        let output = command.output().map_err(|error| format!("no loop device: cannot run losetup: {error}"))?;
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
