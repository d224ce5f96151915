//! The tests of formats and protocols under Miri, where a nightly toolchain has it: code that reads bytes of others, shown to
//! stay within the rules of the language whatever they are.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::libtest::{self, Tell};
use crate::process;
use crate::report::Report;
use crate::workspace::Workspace;

/// Miri is a few hundred times slower than the machine.
const LIMIT: Duration = Duration::from_secs(20 * 60);

/// How often tests of properties try, where they do not say it themselves.
const CASES: &str = "16";

/// What runs under Miri: a package, and which of its unit tests.
const RUNS: [(&str, &[&str]); 5] = [
    ("lvol", &["format::", "map::", "offline::"]),
    ("replica-protocol", &[]),
    ("nvmf-target-protocol", &[]),
    ("scsi-protocol", &[]),
    ("iscsi-target-protocol", &[]),
];

/// Runs them, or says why not.
pub(crate) fn run(workspace: &Workspace, report: &mut Report) {
    if let Err(reason) = available(workspace) {
        return report.skip("miri", reason);
    }
    for (package, filters) in RUNS {
        let name = format!("miri {package}");
        let mut command = cargo_nightly(workspace);
        command.args(["miri", "test", "--lib", "--package", package, "--target-dir"]);
        command.arg(workspace.target.join("miri")).arg("--").args(filters);
        // Tests of properties draw their seed from the system, and write failures down.
        command.env("MIRIFLAGS", "-Zmiri-disable-isolation").env("PROPTEST_CASES", CASES);
        match workspace.log(&format!("miri-{package}")) {
            Ok(log) => {
                libtest::run(&mut command, &name, &log, LIMIT, Tell::Sums, report);
            }
            Err(error) => report.fail(&name, &error),
        }
    }
}

/// Cargo of the nightly toolchain, with the lowest priority: tests beside it wait for real time to pass. Not the cargo that runs us: that
/// sets variables for its own.
fn cargo_nightly(workspace: &Workspace) -> Command {
    let mut command = Command::new("nice");
    command.args(["-n", "19", "cargo", "+nightly"]).current_dir(&workspace.root).env("CARGO_TERM_COLOR", "never");
    for variable in ["CARGO", "RUSTC", "RUSTDOC", "RUSTUP_TOOLCHAIN", "RUSTFLAGS"] {
        command.env_remove(variable);
    }
    command
}

fn available(workspace: &Workspace) -> Result<()> {
    let found = process::output(cargo_nightly(workspace).args(["miri", "--version"])).is_ok();
    ensure!(found, "not installed (rustup toolchain install nightly --component miri,rust-src)");
    Ok(())
}
