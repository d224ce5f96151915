//! `cargo xtask fuzz`: the targets of `fuzz/` with libFuzzer, on stable Rust, one after the other.

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::process;
use crate::programs::cargo;
use crate::workspace::Workspace;

/// What libFuzzer needs of the compiler, all of it stable: counters at each edge, and what comparisons compare.
const COVERAGE: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1";

/// One input may not take longer: seconds.
const INPUT_LIMIT: u64 = 30;

/// Memory that a target may take: MiB.
const MEMORY_LIMIT: u64 = 2048;

/// Fuzzes one target, or all of them, for so many seconds each.
pub(crate) fn run(workspace: &Workspace, target: Option<&str>, seconds: u64) -> Result<ExitCode> {
    ensure!(has_cpp_compiler(), "libFuzzer is built with a C++ compiler, and there is none: install g++ or clang");
    let targets = targets(workspace)?;
    let chosen: Vec<&String> = targets.iter().filter(|name| target.is_none_or(|target| target == *name)).collect();
    if chosen.is_empty() {
        bail!("there is no such target: {}", targets.join(", "));
    }
    let programs = build(workspace)?;
    let corpus = workspace.root.join("fuzz/corpus");
    let mut seeds = cargo(workspace);
    seeds.args(["run", "--quiet", "--package", "fuzzing", "--"]).arg(&corpus);
    ensure!(seeds.status()?.success(), "the seeds could not be written");
    let mut found = false;
    for name in chosen {
        println!("{name}:");
        found |= !fuzz(workspace, name, &programs, seconds)?;
    }
    Ok(if found { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Whether libFuzzer can be built here.
fn has_cpp_compiler() -> bool {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    Command::new(compiler).arg("--version").output().is_ok_and(|output| output.status.success())
}

/// The names of the targets: those of the files.
fn targets(workspace: &Workspace) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(workspace.root.join("fuzz/fuzz_targets")).context("fuzz/fuzz_targets")? {
        let path = entry?.path();
        names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

/// Builds all targets. Returns the folder that they are in.
fn build(workspace: &Workspace) -> Result<PathBuf> {
    // With a target named, the flags are not those of build scripts, which do not link libFuzzer.
    let triple = host_triple()?;
    let folder = workspace.target.join("fuzz");
    let mut command = cargo(workspace);
    command.args(["build", "--release", "--manifest-path", "fuzz/Cargo.toml", "--target", &triple, "--target-dir"]);
    command.arg(&folder).env("RUSTFLAGS", COVERAGE);
    ensure!(command.status()?.success(), "the targets could not be built");
    Ok(folder.join(triple).join("release"))
}

fn host_triple() -> Result<String> {
    let said = process::output(Command::new("rustc").arg("-vV"))?;
    let triple = said.lines().find_map(|line| line.strip_prefix("host: "));
    triple.map(str::to_owned).context("rustc does not say what it is for")
}

/// Runs one target; false when it found something.
fn fuzz(workspace: &Workspace, name: &str, programs: &std::path::Path, seconds: u64) -> Result<bool> {
    let artifacts = workspace.root.join("fuzz/artifacts").join(name);
    let corpus = workspace.root.join("fuzz/corpus").join(name);
    std::fs::create_dir_all(&artifacts)?;
    let mut command = Command::new(programs.join(name));
    command
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={INPUT_LIMIT}"))
        .arg(format!("-rss_limit_mb={MEMORY_LIMIT}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .args(["-print_final_stats=1", "-verbosity=1"])
        .arg(&corpus);
    let log = workspace.log(&format!("fuzz-{name}"))?;
    // Beyond its own limit only when it is stuck.
    let limit = Duration::from_secs(seconds + 10 * INPUT_LIMIT);
    let status = process::run_logged(&mut command, &log, limit, |line| {
        let matters = ["stat::", "panicked", "ERROR", "SUMMARY", "Test unit written", "DONE"];
        if matters.iter().any(|word| line.contains(word)) {
            println!("    {line}");
        }
    })?;
    if !status.success() {
        println!("    {name} found something; the input is in {}", workspace.display(&artifacts));
    }
    Ok(status.success())
}
