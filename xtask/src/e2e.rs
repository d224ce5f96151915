//! `cargo xtask e2e`: prepares the guest, and runs the program in `tests/e2e`, which tells the story.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::debian::{self, Missing, Tool};
use crate::libtest::Tell;
use crate::programs::test_programs;
use crate::report::Report;
use crate::workspace::Workspace;
use crate::{guest, libtest};

/// The story takes a few minutes under emulation.
const LIMIT: Duration = Duration::from_secs(20 * 60);

/// What running the guest needs.
const RUN: &[Tool] = &[
    Tool { program: "qemu-system-x86_64", package: "qemu-system-x86" },
    Tool { program: "setpriv", package: "util-linux" },
];

/// What building the guest needs besides.
const BUILD: &[Tool] = &[
    Tool { program: "mmdebstrap", package: "mmdebstrap" },
    Tool { program: "mke2fs", package: "e2fsprogs" },
    Tool { program: "xz", package: "xz-utils" },
];

/// Runs the story with the programs that are built already, and counts its steps.
pub(crate) fn run(workspace: &Workspace, report: &mut Report) {
    let guest = match guest(workspace) {
        Ok(guest) => guest,
        Err(Missing::LeftOut(reason)) => return report.skip("e2e", reason),
        Err(Missing::Failed(error)) => return report.fail("e2e: the guest", &error),
    };
    let directory = workspace.logs().join("e2e");
    if let Err(error) = workspace.empty(&directory) {
        return report.fail("e2e: the folder for its logs", &error);
    }
    let mut story = Command::new(test_programs(workspace).join("e2e"));
    story.arg(guest).arg(&directory).env("ASHLAR_BIN_DIR", test_programs(workspace));
    let good = libtest::run(&mut story, "e2e", &directory.join("story.log"), LIMIT, Tell::Everything, report);
    if good && let Err(error) = workspace.remove_stores(&directory) {
        report.fail("e2e: its stores", &error);
    }
}

/// The guest, built now if there is none yet.
fn guest(workspace: &Workspace) -> Result<PathBuf, Missing> {
    if let Some(guest) = guest::find(workspace).map_err(Missing::Failed)? {
        debian::provide(RUN)?;
        return Ok(guest);
    }
    debian::provide(&[RUN, BUILD].concat())?;
    if !debian::is_root() {
        return Err(Missing::LeftOut("the guest is not built yet, and building it needs root".to_owned()));
    }
    println!("building the guest of e2e (half a minute)");
    guest::build(workspace).map_err(Missing::Failed)
}
