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

/// The C library of the oldest system that packages are for: Debian 12.
const OLDEST: Version = (2, 36);

/// Of the C library.
type Version = (u32, u32);

/// Builds the programs, makes what goes with them, and packs it; prints where the package is.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let tool = Command::new("cargo-deb").arg("--version").output();
    ensure!(tool.is_ok(), "cargo-deb is missing: `cargo install cargo-deb`");
    programs::build_release(workspace, &["cli", "daemon"])?;
    for program in ["ashlar", "ashlard"] {
        check_libraries(&workspace.target.join("release").join(program))?;
    }
    let folder = workspace.target.join("release/package");
    write_documents(&workspace.target.join("release/ashlar"), &folder)?;
    let mut deb = programs::cargo(workspace);
    // The fast level of xz takes seconds where the other one takes minutes, for a package that is a fifth larger.
    let deb = deb.args(["deb", "--package", "daemon", "--no-build", "--locked", "--fast"]);
    let text = process::output(deb)?;
    print!("{text}");
    Ok(())
}

/// Says which version of the C library a program needs, and if packages are to be for systems that do not have it.
fn check_libraries(program: &Path) -> Result<()> {
    let bytes = fs::read(program).with_context(|| program.display().to_string())?;
    let (major, minor) = glibc_of(&bytes).with_context(|| format!("{} names no glibc", program.display()))?;
    let name = program.file_name().unwrap_or_default().display();
    eprintln!("{name} needs glibc {major}.{minor} or newer");
    if (major, minor) > OLDEST {
        let (major, minor) = OLDEST;
        eprintln!(
            "warning: Debian 12 has {major}.{minor}: this package is for systems as new as this machine. One for all is made on \
             Debian 12 (docs/packaging.md)"
        );
    }
    Ok(())
}

/// The newest version among those that the symbols of a program ask for, as in `GLIBC_2.34`.
fn glibc_of(program: &[u8]) -> Option<Version> {
    const PREFIX: &[u8] = b"GLIBC_";
    let number = |text: &[u8]| std::str::from_utf8(text).ok()?.parse::<u32>().ok();
    let version = |name: &[u8]| {
        let mut parts = name.split(|byte| *byte == b'.');
        Some((number(parts.next()?)?, number(parts.next()?)?))
    };
    let places = (0..program.len()).filter(|at| program[*at..].starts_with(PREFIX));
    places.filter_map(|at| version(program[at + PREFIX.len()..].split(|byte| *byte == 0).next()?)).max()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_symbol_tells_what_a_program_needs() {
        let names = b"\x7fELF\0libc.so.6\0GLIBC_2.2.5\0GLIBC_2.34\0GLIBC_2.9\0GLIBC_PRIVATE\0GLIBC_2.x\0GLIBC_";
        assert_eq!(glibc_of(names), Some((2, 34)));
        assert_eq!(glibc_of(b"\x7fELF\0GLIBCXX_3.4\0"), None);
    }
}
