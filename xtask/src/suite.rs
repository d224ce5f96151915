//! `cargo xtask test`: everything that must hold before a change lands, in one command.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::debian::{self, Missing, Tool};
use crate::libtest::Tell;
use crate::process::Beside;
use crate::programs::{self, cargo, test_programs};
use crate::report::Report;
use crate::tidy::metadata;
use crate::workspace::Workspace;
use crate::{conformance, e2e, instructions, libtest, miri, process, tidy};

/// No single check may take longer; the whole is to be done in 30 minutes on two cores.
const LIMIT: Duration = Duration::from_secs(25 * 60);

/// The same for long tests.
const LONG_LIMIT: Duration = Duration::from_secs(12 * 3600);

/// For `cargo test`: daemons that are tested wait for each other most of the time.
const DAEMONS_AT_ONCE: [&str; 2] = ["--", "--test-threads=4"];

/// How long fresh seeds of the simulator run on all cores, in seconds, beside tests that wait more than they work; shorter with `--fast`.
const SIMULATED: u64 = 300;
const SIMULATED_FAST: u64 = 60;

/// Runs every check and test, those with a guest only without `fast`, tests at their full length with `long`.
pub(crate) fn run(workspace: &Workspace, fast: bool, long: bool) -> Result<ExitCode> {
    println!("logs are in {}", workspace.display(&workspace.logs()));

    let mut report = Report::default();
    check_with(workspace, "fmt", &["--all", "--check"], &mut report);
    report.check("tidy", || tidy_check(workspace));
    check_with(
        workspace,
        "clippy",
        &["--workspace", "--all-targets", "--keep-going", "--", "-D", "warnings"],
        &mut report,
    );
    check_fuzz_targets(workspace, &mut report);
    check_with(workspace, "doc", &["--workspace", "--no-deps", "--keep-going"], &mut report);
    if report.check("build", || programs::build_with_tests(workspace)).is_some() {
        provide_for_scenarios(&mut report);
        provide_tshark(&mut report);
        provide_ceph(&mut report);
        let seeds = simulate(workspace, if fast { SIMULATED_FAST } else { SIMULATED }, &mut report);
        test(workspace, fast, long, &mut report);
        if let Some(seeds) = seeds {
            report.check("fresh seeds", || seeds.end(|line| println!("\n    {line}")));
        }
    }
    Ok(report.close())
}

/// Runs the tests of the crates and the test programs of others; beside them those of whole daemons and of a real host, which wait more than
/// they work; and Miri with what that leaves. Tests are told apart by their names: for each choice of packages cargo would build anew, as their
/// features differ.
fn test(workspace: &Workspace, fast: bool, long: bool, report: &mut Report) {
    let Some((daemons, crates)) = report.check("test targets", || metadata::tests_apart(workspace, "integration"))
    else {
        return;
    };
    let named = |names: BTreeSet<String>| names.into_iter().map(|name| format!("--test={name}"));
    let daemons: Vec<_> = named(daemons).chain(DAEMONS_AT_ONCE.map(str::to_owned)).collect();
    let crates: Vec<_> = ["--lib", "--bins"].map(str::to_owned).into_iter().chain(named(crates)).collect();
    let (mut of_daemons, mut of_miri) = (Report::default(), Report::default());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            cargo_test(workspace, "tests of daemons", &daemons, long, &mut of_daemons);
            if fast {
                of_daemons.skip("e2e", "left out by --fast");
            } else {
                e2e::run(workspace, &mut of_daemons);
            }
        });
        scope.spawn(|| miri::run(workspace, &mut of_miri));
        cargo_test(workspace, "tests of crates", &crates, long, report);
        cargo_test(workspace, "tests of documentation", &["--doc".to_owned()], long, report);
        conformance::iscsi(workspace, report);
        if long {
            conformance::second_s3(workspace, report);
        }
    });
    report.take_in(of_daemons);
    report.take_in(of_miri);
}

/// Runs `cargo test` with some targets of the workspace.
fn cargo_test(workspace: &Workspace, name: &str, targets: &[String], long: bool, report: &mut Report) {
    let mut tests = cargo(workspace);
    tests.args(["test", "--workspace", "--no-fail-fast"]).args(targets).env("ASHLAR_BIN_DIR", test_programs(workspace));
    if long {
        // What runs all night is built to run.
        tests.env("ASHLAR_LONG_TESTS", "1").args(["--profile", "simulator"]);
    }
    let limit = if long { LONG_LIMIT } else { LIMIT };
    match workspace.log(&name.replace(' ', "-")) {
        Ok(log) => {
            libtest::run(&mut tests, name, &log, limit, Tell::Sums, report);
        }
        Err(error) => report.fail(name, &error),
    }
}

/// What `tests/integration/tests/scenarios` needs. Without it they leave themselves out.
fn provide_for_scenarios(report: &mut Report) {
    let tools = [
        Tool { program: "ip", package: "iproute2" },
        Tool { program: "mkfs.ext4", package: "e2fsprogs" },
        Tool { program: "losetup", package: "mount" },
    ];
    let missing = if debian::is_root() {
        debian::provide(&tools).err()
    } else {
        Some(Missing::LeftOut("they need root".to_owned()))
    };
    match missing {
        None => {}
        Some(Missing::LeftOut(reason)) => report.skip("scenarios", reason),
        Some(Missing::Failed(error)) => report.skip("scenarios", format_args!("{error:#}")),
    }
}

/// What the recorded sessions of `iscsi-target/tests/initiator` are decoded with. Without it they are not.
fn provide_tshark(report: &mut Report) {
    match debian::provide(&[Tool { program: "tshark", package: "tshark" }]) {
        Ok(()) => {}
        Err(Missing::LeftOut(reason)) => report.skip("recorded sessions", reason),
        Err(Missing::Failed(error)) => report.skip("recorded sessions", format_args!("{error:#}")),
    }
}

/// The S3 that `backup/tests/stories/radosgw.rs` starts. Without it that story leaves itself out.
fn provide_ceph(report: &mut Report) {
    match debian::provide(conformance::CEPH) {
        Ok(()) => {}
        Err(Missing::LeftOut(reason)) => report.skip("backups to Ceph", reason),
        Err(Missing::Failed(error)) => report.skip("backups to Ceph", format_args!("{error:#}")),
    }
}

/// The programs of `fuzz/`, which are no part of the workspace. Without libFuzzer itself, which needs a C++ compiler.
fn check_fuzz_targets(workspace: &Workspace, report: &mut Report) {
    if process::output(cargo(workspace).args(["clippy", "-h"])).is_err() {
        return report.skip("fuzz targets", "not installed (rustup component add clippy)");
    }
    report.check("fuzz targets", || {
        let mut cargo = cargo(workspace);
        cargo.args(["clippy", "--manifest-path", "fuzz/Cargo.toml", "--no-default-features", "--bins", "--target-dir"]);
        cargo.arg(workspace.target.join("fuzz")).args(["--", "-D", "warnings"]);
        process::run_quietly(&mut cargo, &workspace.log("fuzz-targets")?, LIMIT)
    });
}

/// Runs `cargo COMMAND ARGUMENTS` as a check. Toolchains of the minimal profile lack some of cargo's commands.
fn check_with(workspace: &Workspace, command: &str, arguments: &[&str], report: &mut Report) {
    let name = format!("cargo {command}");
    if process::output(cargo(workspace).args([command, "-h"])).is_err() {
        return report.skip(&name, format_args!("not installed (rustup component add {command})"));
    }
    report.check(&name, || {
        let mut cargo = cargo(workspace);
        cargo.arg(command).args(arguments).env("RUSTDOCFLAGS", "-D warnings");
        process::run_quietly(&mut cargo, &workspace.log(command)?, LIMIT)
    });
}

/// Looks for each deliberate bug in the simulator, counts instructions with it, and starts fresh seeds of whole clusters: they take what time the rest leaves
/// them. One build does for all of it: switched off, a deliberate bug is a comparison.
fn simulate(workspace: &Workspace, seconds: u64, report: &mut Report) -> Option<Beside> {
    report.check("simulator", || programs::build_simulator_with_bugs(workspace))?;
    report.check("deliberate bugs", || {
        let log = workspace.log("deliberate-bugs")?;
        let mut simulator = programs::simulator(workspace);
        let status = process::run_logged(simulator.arg("--bugs"), &log, LIMIT, |line| println!("\n    {line}"))?;
        match status.success() {
            true => Ok(()),
            false => bail!("a deliberate bug was not found: {}", workspace.display(&log)),
        }
    });
    instructions::run(workspace, false, report);
    let mut seeds = programs::simulator(workspace);
    seeds.args(["--seconds", &seconds.to_string()]);
    match workspace.log("fresh-seeds").and_then(|log| Beside::start(&seeds, log)) {
        Ok(seeds) => Some(seeds),
        Err(error) => {
            report.fail("fresh seeds", &error);
            None
        }
    }
}

fn tidy_check(workspace: &Workspace) -> Result<()> {
    let violations = tidy::check(workspace)?;
    if !violations.is_empty() {
        let lines: Vec<_> = violations.iter().map(ToString::to_string).collect();
        bail!("{}", lines.join("\n"));
    }
    Ok(())
}
