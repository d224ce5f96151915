//! `cargo xtask conformance iscsi`: provides libiscsi's tests, and runs the program in `tests/conformance`, which runs them.
//! `cargo xtask conformance s3`: provides Ceph's object gateway, and runs the stories of `backup` against it.

use std::process::Command;
use std::time::Duration;

use crate::debian::{self, Missing, Tool};
use crate::libtest::{self, Tell};
use crate::programs::{cargo, test_programs};
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

/// An object store that speaks S3: its monitor, its store of objects, its gateway.
pub(crate) const CEPH: &[Tool] = &[
    Tool { program: "ceph-mon", package: "ceph-mon" },
    Tool { program: "ceph-osd", package: "ceph-osd" },
    Tool { program: "radosgw", package: "radosgw" },
];

/// Runs the stories of backups to Ceph, which start one, and counts them.
pub(crate) fn s3(workspace: &Workspace, report: &mut Report) {
    let name = "conformance s3";
    match debian::provide(CEPH) {
        Ok(()) => {}
        Err(Missing::LeftOut(reason)) => return report.skip(name, reason),
        Err(Missing::Failed(error)) => return report.fail(name, &error),
    }
    let log = match workspace.log("conformance-s3") {
        Ok(log) => log,
        Err(error) => return report.fail(name, &error),
    };
    let mut tests = cargo(workspace);
    tests.args(["test", "--package=backup", "--test=stories", "--", "radosgw::"]);
    libtest::run(&mut tests, name, &log, LIMIT, Tell::Sums, report);
}

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
