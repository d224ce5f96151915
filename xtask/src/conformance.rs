//! `cargo xtask conformance iscsi`: provides libiscsi's tests, and runs the program in `tests/conformance`, which runs them.

use std::process::Command;
use std::time::Duration;

use crate::debian::{self, Missing, Tool};
use crate::libtest::{self, Tell};
use crate::programs::test_programs;
use crate::report::Report;
use crate::workspace::Workspace;

/// The tests take a minute or two.
const LIMIT: Duration = Duration::from_secs(10 * 60);

const TOOLS: &[Tool] = &[
    Tool { program: "iscsi-test-cu", package: "libiscsi-bin" },
    Tool { program: "qemu-img", package: "qemu-utils" },
    Tool { program: "nbdfuse", package: "libnbd-bin" },
    Tool { program: "fusermount3", package: "fuse3" },
    Tool { program: "mkfs.ext4", package: "e2fsprogs" },
    Tool { program: "losetup", package: "mount" },
    // No program, but what makes the others know iSCSI.
    Tool { program: QEMU_MODULE, package: "qemu-block-extra" },
];

#[cfg(target_arch = "x86_64")]
const QEMU_MODULE: &str = "/usr/lib/x86_64-linux-gnu/qemu/block-iscsi.so";
#[cfg(not(target_arch = "x86_64"))]
const QEMU_MODULE: &str = "/usr/lib/aarch64-linux-gnu/qemu/block-iscsi.so";

/// Runs the tests with the programs that are built already, and counts them.
pub(crate) fn iscsi(workspace: &Workspace, report: &mut Report) {
    let name = "conformance iscsi";
    match debian::provide(TOOLS) {
        Ok(()) => {}
        Err(Missing::LeftOut(reason)) => return report.skip(name, reason),
        Err(Missing::Failed(error)) => return report.fail(name, &error),
    }
    let directory = workspace.logs().join("conformance");
    if let Err(error) = workspace.empty(&directory) {
        return report.fail(name, &error);
    }
    let mut tests = Command::new(test_programs(workspace).join("conformance"));
    tests.arg("iscsi").arg(&directory).env("ASHLAR_BIN_DIR", test_programs(workspace));
    let good = libtest::run(&mut tests, name, &directory.join("tests.log"), LIMIT, Tell::Sums, report);
    if good && let Err(error) = workspace.remove_stores(&directory) {
        report.fail(name, &error);
    }
}
