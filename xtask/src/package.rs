//! `cargo xtask package`: a Debian package of the release build, with manual and completions (docs/packaging.md).

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::process;
use crate::programs;
use crate::workspace::Workspace;

/// Shells, and the names of their files in `target/release/package`, as the package has them.
const COMPLETIONS: [(&str, &str); 3] = [("bash", "ashlar.bash"), ("zsh", "_ashlar"), ("fish", "ashlar.fish")];

/// Builds the programs, makes what goes with them, and packs it; prints where the package is.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let tool = Command::new("cargo-deb").arg("--version").output();
    ensure!(tool.is_ok(), "cargo-deb is missing: `cargo install cargo-deb`");
    programs::build_release(workspace, &["cli", "daemon"])?;
    let folder = workspace.target.join("release/package");
    write_documents(&workspace.target.join("release/ashlar"), &folder)?;
    let mut deb = programs::cargo(workspace);
    let deb = deb.args(["deb", "--package", "daemon", "--no-build", "--locked"]);
    let text = process::output(deb)?;
    print!("{text}");
    Ok(())
}

/// The manual, a page for each command, and the completions of shells.
fn write_documents(program: &Path, folder: &Path) -> Result<()> {
    // Pages of commands that are gone would stay.
    let pages = folder.join("man1");
    if pages.exists() {
        fs::remove_dir_all(&pages)?;
    }
    process::output(Command::new(program).arg("man").arg("--to").arg(&pages))?;
    for (shell, file) in COMPLETIONS {
        let text = process::output(Command::new(program).args(["completions", shell]))?;
        let path = folder.join(file);
        fs::write(&path, text).with_context(|| path.display().to_string())?;
    }
    Ok(())
}
