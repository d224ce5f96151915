//! Where things are: the workspace's root and its target directory.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The directories that every sub-command works with.
#[derive(Clone, Debug)]
pub(crate) struct Workspace {
    /// The folder of the workspace's Cargo.toml.
    pub(crate) root: PathBuf,
    /// Cargo's target directory; everything that xtask writes is in here.
    pub(crate) target: PathBuf,
}

impl Workspace {
    /// The workspace that this binary was built from.
    pub(crate) fn find() -> Self {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
        // The manifest's folder is always a folder of the root.
        let root = manifest.parent().unwrap_or(manifest).to_path_buf();
        let target = match std::env::var_os("CARGO_TARGET_DIR") {
            Some(directory) => root.join(directory),
            None => root.join("target"),
        };
        Self { root, target }
    }

    /// Where the logs of the checks and scenarios are kept.
    pub(crate) fn logs(&self) -> PathBuf {
        self.target.join("xtask-logs")
    }

    /// The log of the check `name`, in a folder that is there.
    pub(crate) fn log(&self, name: &str) -> Result<PathBuf> {
        let logs = self.logs();
        std::fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
        Ok(logs.join(format!("{name}.log")))
    }

    /// Makes `directory`, without what is left in it of an earlier run.
    pub(crate) fn empty(&self, directory: &Path) -> Result<()> {
        if directory.exists() {
            std::fs::remove_dir_all(directory).with_context(|| format!("cannot remove {}", directory.display()))?;
        }
        std::fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))
    }

    /// Removes the stores of the nodes that ran in `directory`: they are large, and of use only to whoever looks into a failure.
    pub(crate) fn remove_stores(&self, directory: &Path) -> Result<()> {
        let read = || format!("cannot read {}", directory.display());
        for node in std::fs::read_dir(directory).with_context(read)? {
            let store = node.with_context(read)?.path().join("store.img");
            if store.is_file() {
                std::fs::remove_file(&store).with_context(|| format!("cannot remove {}", store.display()))?;
            }
        }
        Ok(())
    }

    /// `path` as people write it: relative to the root where it is in there.
    pub(crate) fn display<'a>(&self, path: &'a Path) -> std::path::Display<'a> {
        path.strip_prefix(&self.root).unwrap_or(path).display()
    }
}
