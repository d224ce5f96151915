//! The guest of the end-to-end tests: its kernel and disk, built once from Debian packages.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::process;
use crate::workspace::Workspace;

/// The Debian release of the guest.
const RELEASE: &str = "bookworm";

/// Building took 30 s on two cores; a slow mirror may take longer.
const BUILD_LIMIT: Duration = Duration::from_secs(600);

/// The folder with `vmlinuz`, `initrd.cpio` and `root.img`; `None` if there is none of today's recipe.
pub(crate) fn find(workspace: &Workspace) -> Result<Option<PathBuf>> {
    let directory = directory(workspace);
    let built_from = fs::read_to_string(directory.join("recipe")).unwrap_or_default();
    Ok((built_from == recipe(workspace)?).then_some(directory))
}

/// Builds the guest in place of an older one, and returns its folder. Needs root.
pub(crate) fn build(workspace: &Workspace) -> Result<PathBuf> {
    let directory = directory(workspace);
    let unfinished = directory.with_extension("unfinished");
    for old in [&directory, &unfinished] {
        if old.exists() {
            fs::remove_dir_all(old).with_context(|| format!("cannot remove {}", old.display()))?;
        }
    }
    fs::create_dir_all(&unfinished)?;
    let sources = unfinished.join("sources.list");
    fs::write(&sources, apt_sources()?)?;
    let mut build = Command::new("sh");
    build.arg(recipe_folder(workspace).join("build.sh")).arg(&unfinished).arg(&sources);
    process::run_quietly(&mut build, &workspace.log("guest-build")?, BUILD_LIMIT).context("building the guest")?;
    fs::write(unfinished.join("recipe"), recipe(workspace)?)?;
    fs::rename(&unfinished, &directory)?;
    Ok(directory)
}

fn directory(workspace: &Workspace) -> PathBuf {
    workspace.target.join("guest")
}

fn recipe_folder(workspace: &Workspace) -> PathBuf {
    workspace.root.join("tests/e2e/guest")
}

/// Everything that decides what the image is: the scripts that build it and run in it.
fn recipe(workspace: &Workspace) -> Result<String> {
    let folder = recipe_folder(workspace);
    let entries = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    paths.iter().map(|path| Ok(format!("== {}\n{}", path.display(), fs::read_to_string(path)?))).collect()
}

/// The Debian sources of this machine for the guest's release, as apt itself knows them.
fn apt_sources() -> Result<String> {
    let sources = process::output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "deb $(REPO_URI) $(RELEASE) $(COMPONENT)",
        "Created-By: Packages",
        "Origin: Debian",
    ]))?;
    let of_release = |line: &&str| line.split_whitespace().nth(2).is_some_and(|suite| suite.starts_with(RELEASE));
    let sources: Vec<_> = sources.lines().filter(of_release).collect();
    if sources.is_empty() {
        bail!("the apt sources of this machine offer no Debian {RELEASE}");
    }
    Ok(sources.join("\n") + "\n")
}
