//! iSCSI as others test it: libiscsi's `iscsi-test-cu` against volumes of three real daemons.
//!
//! `conformance iscsi LOGS`, as `cargo xtask conformance iscsi` runs it: LOGS is an empty folder for what the daemons and
//! the tests say. It tells each test like a program of tests does. docs/iscsi.md lists what is left out, and why.
#![forbid(unsafe_code)]

mod cunit;
mod kernel;
mod qemu;
mod skips;
mod volumes;

use std::fs::File;
use std::path::{Path, PathBuf, absolute};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use tokio::process::Command;
use tokio::task::JoinSet;

use crate::cunit::{Outcome, Test};
use crate::volumes::{Variant, Volumes};

/// All tests of one variant take two minutes, some of them waiting; a machine that compiles meanwhile needs more.
const LIMIT: Duration = Duration::from_secs(540);

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let logs = match arguments.as_slice() {
        [what, logs] if what == "iscsi" => absolute(logs),
        _ => {
            eprintln!("conformance iscsi LOGS: run it through `cargo xtask conformance iscsi`");
            return ExitCode::from(2);
        }
    };
    let start = Instant::now();
    match logs.map_err(Into::into).and_then(|logs| run(&logs)) {
        Ok(tests) => tell(&tests, start.elapsed()),
        Err(error) => {
            println!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs all variants at once, each against a volume of its own.
fn run(logs: &Path) -> Result<Vec<Test>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let volumes = Volumes::make(logs).await?;
        let mut runs = JoinSet::new();
        for variant in Variant::OF_LIBISCSI {
            let command = volumes.command(variant)?;
            runs.spawn(test(variant, command, logs.join(format!("{}.log", variant.name()))));
        }
        let url = volumes.url(Variant::Qemu)?;
        let mut tests = qemu::test(&url, logs).await;
        tests.push(kernel::test(&url, logs).await);
        while let Some(run) = runs.join_next().await {
            tests.extend(run??);
        }
        Ok(tests)
    })
}

async fn test(variant: Variant, mut command: Command, log: PathBuf) -> Result<Vec<Test>> {
    let name = variant.name();
    let file = File::create(&log)?;
    let mut running = command.kill_on_drop(true).stdout(file.try_clone()?).stderr(file).spawn();
    let running = running.as_mut().map_err(|error| anyhow!("cannot run iscsi-test-cu: {error}"))?;
    let ended = tokio::time::timeout(LIMIT, running.wait()).await;
    ended.with_context(|| format!("{name}: not done in {} s, see {}", LIMIT.as_secs(), log.display()))??;
    let said = std::fs::read(&log)?;
    let said = String::from_utf8_lossy(&said);
    let tests = cunit::read(&said, name);
    let total = cunit::total(&said).with_context(|| format!("{name}: no summary, see {}", log.display()))?;
    ensure!(tests.len() == total, "{name}: {} of {total} tests told, see {}", tests.len(), log.display());
    Ok(tests)
}

/// Tells the tests and their sum; the exit code is 0 if something passed and nothing failed.
fn tell(tests: &[Test], taken: Duration) -> ExitCode {
    let (mut passed, mut failed, mut left_out) = (0, 0, 0);
    for test in tests {
        let name = &test.name;
        match &test.outcome {
            Outcome::Passed => {
                println!("test {name} ... ok");
                passed += 1;
            }
            Outcome::Skipped(said) => match skips::reason(&test.short) {
                Some(reason) => {
                    println!("test {name} ... ignored, {reason}");
                    left_out += 1;
                }
                None => {
                    println!("it skips itself, which nobody has given a reason for: {said}\ntest {name} ... FAILED");
                    failed += 1;
                }
            },
            Outcome::Failed(said) => {
                println!("{said}\ntest {name} ... FAILED");
                failed += 1;
            }
        }
    }
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    let seconds = taken.as_secs_f64();
    println!("test result: {verdict}. {passed} passed; {failed} failed; {left_out} ignored; finished in {seconds:.2}s");
    if passed > 0 && failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
