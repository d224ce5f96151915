//! Packages of Debian that tests need: found, or installed when we may.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use crate::process;

/// A program that tests need, and the Debian package that it comes in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tool {
    pub(crate) program: &'static str,
    pub(crate) package: &'static str,
}

/// Why a program that tests need is not there.
#[derive(Debug)]
pub(crate) enum Missing {
    /// It cannot be installed here; the reason, in one line.
    LeftOut(String),
    /// It should have been possible, and was not.
    Failed(anyhow::Error),
}

/// Makes sure that all `tools` are there, installing what is missing where that is possible: as root on Debian.
pub(crate) fn provide(tools: &[Tool]) -> Result<(), Missing> {
    let missing: Vec<_> = tools.iter().filter(|tool| !is_there(tool.program)).map(|tool| tool.package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let missing_names = missing.join(", ");
    if !Path::new("/etc/debian_version").exists() || !is_there("apt-get") {
        return Err(Missing::LeftOut(format!("{missing_names} missing, and this is not Debian")));
    }
    if !is_root() {
        return Err(Missing::LeftOut(format!("{missing_names} missing, and only root can install packages")));
    }
    println!("    installing {missing_names}");
    let installed = install(&missing);
    // The package lists of a fresh machine are empty, those of an old one outdated.
    let installed = installed.or_else(|_| apt_get(&["update"]).and_then(|()| install(&missing)));
    installed.map_err(Missing::Failed)
}

/// Whether we have all rights of the machine.
pub(crate) fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

fn install(packages: &[&str]) -> anyhow::Result<()> {
    apt_get(&[&["install", "--yes", "--no-install-recommends"], packages].concat())
}

fn apt_get(arguments: &[&str]) -> anyhow::Result<()> {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").args(["-o", "DPkg::Lock::Timeout=120", "--quiet=2"]);
    process::output(command.args(arguments)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_needs_nothing() {
        assert!(provide(&[Tool { program: "sh", package: "no-such-package-of-ours" }]).is_ok());
        assert!(!is_there("no-such-program-of-ours"));
    }
}
