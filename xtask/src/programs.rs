//! The programs of the workspace: built here, found here, run in our place.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::debian::{self, Missing, Tool};
use crate::process;
use crate::workspace::Workspace;

/// A first build takes a few minutes on two cores.
const BUILD_LIMIT: Duration = Duration::from_secs(25 * 60);

/// A command for the cargo that runs us, in the workspace.
pub(crate) fn cargo(workspace: &Workspace) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // What `cargo run` says of us is no setting. Some build scripts look at it, and what they made would be made again, with all that
    // depends on it, whenever somebody builds with cargo alone or with us in turn.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_of_a_package)) {
        command.env_remove(name);
    }
    command.current_dir(&workspace.root).env("CARGO_TERM_COLOR", "never");
    command
}

/// Whether a variable describes a package to its programs.
fn is_of_a_package(name: &str) -> bool {
    ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"]
        .iter()
        .any(|of| name.starts_with(of))
}

/// Builds `ashlar` and `ashlard` for tests that start them.
pub(crate) fn build(workspace: &Workspace) -> Result<()> {
    build_targets(workspace, &["--bins"])
}

/// Builds the programs and all tests: together, because cargo would otherwise build what they share twice.
pub(crate) fn build_with_tests(workspace: &Workspace) -> Result<()> {
    build_targets(workspace, &["--bins", "--tests"])
}

fn build_targets(workspace: &Workspace, targets: &[&str]) -> Result<()> {
    let mut command = cargo(workspace);
    command.args(["build", "--workspace"]).args(targets);
    process::run_quietly(&mut command, &workspace.log("build")?, BUILD_LIMIT)
}

/// Has the test that checks the reference of the API write it.
pub(crate) fn write_reference(workspace: &Workspace) -> Result<ExitCode> {
    let mut command = cargo(workspace);
    command.args(["test", "--quiet", "-p", "proto", "the_reference_is_that_of_the_contract"]);
    let status = command.env("ASHLAR_WRITE_REFERENCE", "1").status().context("cannot run cargo")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The folder with `ashlar` and `ashlard` as the tests use them: the development profile, with its assertions.
pub(crate) fn test_programs(workspace: &Workspace) -> PathBuf {
    workspace.target.join("debug")
}

/// Builds `ashlar` and `ashlard` in release and becomes `ashlar demo`.
pub(crate) fn demo(workspace: &Workspace, arguments: &[OsString]) -> Result<ExitCode> {
    build_release(workspace, &["cli", "daemon"])?;
    let mut demo = Command::new(workspace.target.join("release/ashlar"));
    become_program(demo.arg("demo").args(arguments))
}

/// Without the name of a benchmark it is `table`. A whole run of that is what the documentation has; one with flags writes where they say.
pub(crate) fn with_table(workspace: &Workspace, mut arguments: Vec<OsString>) -> Vec<OsString> {
    if arguments.is_empty() {
        let output = workspace.root.join("docs/benchmarks").into_os_string();
        return vec!["table".into(), "--output".into(), output];
    }
    if arguments[0].as_encoded_bytes().starts_with(b"--") {
        arguments.insert(0, "table".into());
    }
    arguments
}

/// Installs what a benchmark compares with, where that is possible. Without it the report says what it left out.
pub(crate) fn provide_for_bench(bench: Option<&str>) {
    const FIO: &[Tool] = &[Tool { program: "fio", package: "fio" }];
    const TGT: &[Tool] =
        &[Tool { program: "tgtd", package: "tgt" }, Tool { program: "taskset", package: "util-linux" }];
    const ISCSI_PERF: &[Tool] = &[Tool { program: "iscsi-perf", package: "libiscsi-bin" }];
    let wanted: &[(&str, &[Tool])] = match bench {
        Some("store") => &[("fio", FIO)],
        Some("table") => &[("fio", FIO), ("tgt", TGT)],
        Some("iscsi") => &[("tgt", TGT), ("iscsi-perf", ISCSI_PERF)],
        _ => &[],
    };
    for (name, tools) in wanted {
        match debian::provide(tools) {
            Ok(()) => {}
            Err(Missing::LeftOut(reason)) => eprintln!("without {name}: {reason}"),
            Err(Missing::Failed(error)) => eprintln!("without {name}: {error:#}"),
        }
    }
}

/// Builds the benchmarks in release, and the daemon for those that measure it, and becomes them.
pub(crate) fn bench(workspace: &Workspace, arguments: &[OsString]) -> Result<ExitCode> {
    let packages: &[&str] = match arguments.first().and_then(|bench| bench.to_str()) {
        Some("node") => &["benches", "daemon", "cli"],
        Some("table" | "replication" | "soak") => &["benches", "daemon"],
        _ => &["benches"],
    };
    build_release(workspace, packages)?;
    become_program(Command::new(workspace.target.join("release/benches")).args(arguments))
}

/// Builds the simulator and becomes it.
pub(crate) fn simulate(workspace: &Workspace, arguments: &[OsString]) -> Result<ExitCode> {
    let asks_for_bugs = arguments.iter().any(|argument| argument == "--bugs" || argument == "--bug");
    eprintln!("building the simulator (the first time takes a minute or two)");
    let status = build_simulator(workspace, asks_for_bugs).status();
    ensure!(status.context("cannot run cargo")?.success(), "the build failed");
    become_program(simulator(workspace).args(arguments))
}

/// Builds the simulator with the deliberate bugs, for checks.
pub(crate) fn build_simulator_with_bugs(workspace: &Workspace) -> Result<()> {
    process::run_quietly(&mut build_simulator(workspace, true), &workspace.log("simulator")?, BUILD_LIMIT)
}

/// Deliberate bugs are in no other build than this one.
fn build_simulator(workspace: &Workspace, with_bugs: bool) -> Command {
    let mut command = cargo(workspace);
    command.args(["build", "--profile", "simulator", "--package", "simulator"]);
    if with_bugs {
        command.args(["--features", "deliberate-bugs"]);
    } else {
        command.arg("--quiet");
    }
    command
}

/// The simulator as it was built last.
pub(crate) fn simulator(workspace: &Workspace) -> Command {
    Command::new(workspace.target.join("simulator/simulator"))
}

/// Builds packages in release.
pub(crate) fn build_release(workspace: &Workspace, packages: &[&str]) -> Result<()> {
    eprintln!("building {} (release; the first time takes minutes)", packages.join(", "));
    let packages = packages.iter().flat_map(|package| ["--package", package]);
    let status = cargo(workspace).args(["build", "--release", "--quiet"]).args(packages).status();
    ensure!(status.context("cannot run cargo")?.success(), "the build failed");
    Ok(())
}

/// Replaces this process, so that signals and the exit code are the program's own.
fn become_program(command: &mut Command) -> Result<ExitCode> {
    let error = command.exec();
    Err(error).with_context(|| format!("cannot run {command:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_stay_and_what_describes_a_package_goes() {
        let workspace = Workspace::find();
        // Of the package of this test.
        assert!(std::env::var_os("CARGO_PKG_NAME").is_some() && std::env::var_os("CARGO_MANIFEST_DIR").is_some());
        let command = cargo(&workspace);
        let removed: Vec<_> = command.get_envs().filter(|(_, value)| value.is_none()).map(|(name, _)| name).collect();
        for name in ["CARGO_PKG_NAME", "CARGO_MANIFEST_DIR"] {
            assert!(removed.iter().any(|known| *known == name), "{removed:?}");
        }
        for name in ["CARGO_HOME", "CARGO_TARGET_DIR", "CARGO_BUILD_JOBS", "CARGO_NET_OFFLINE"] {
            assert!(!is_of_a_package(name), "{name}");
        }
    }
}
