//! `cargo xtask conformance iscsi`: provides libiscsi's tests, and runs the program in `tests/conformance`, which runs them.
//! `cargo xtask conformance s3`: provides Ceph's object gateway, and runs the stories of `backup` against it; with `--long` a second server, too.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::debian::{self, Missing, Tool};
use crate::libtest::{self, Tell};
use crate::process;
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

/// Another one, which keeps objects in files, and its version.
const S3S_FS: (&str, &str) = ("s3s-fs", "0.14.1");

/// To build it takes some minutes on two cores.
const INSTALL_LIMIT: Duration = Duration::from_secs(25 * 60);

/// Runs the stories of backups to Ceph, which start one, and counts them; in a `long` run those to a second server, too.
pub(crate) fn s3(workspace: &Workspace, long: bool, report: &mut Report) {
    let name = "conformance s3";
    match debian::provide(CEPH) {
        Ok(()) => stories(workspace, name, "radosgw::", None, report),
        Err(Missing::LeftOut(reason)) => report.skip(name, reason),
        Err(Missing::Failed(error)) => report.fail(name, &error),
    }
    if long {
        second_s3(workspace, report);
    }
}

/// Installs the second server where it is missing, and runs the stories that start it.
pub(crate) fn second_s3(workspace: &Workspace, report: &mut Report) {
    if let Some(program) = report.check(S3S_FS.0, || install_s3s_fs(workspace)) {
        stories(workspace, "conformance s3s-fs", "s3s::", Some(("ASHLAR_S3S_FS", program)), report);
    }
}

/// Runs stories of the package `backup`.
fn stories(workspace: &Workspace, name: &str, filter: &str, program: Option<(&str, PathBuf)>, report: &mut Report) {
    let log = match workspace.log(&name.replace(' ', "-")) {
        Ok(log) => log,
        Err(error) => return report.fail(name, &error),
    };
    let mut tests = cargo(workspace);
    tests.args(["test", "--package=backup", "--test=stories", "--", filter]).envs(program);
    libtest::run(&mut tests, name, &log, LIMIT, Tell::Sums, report);
}

/// The program of the second server, in a folder of the target directory. One of this version that is there is not built again.
fn install_s3s_fs(workspace: &Workspace) -> Result<PathBuf> {
    let (name, version) = S3S_FS;
    let root = workspace.target.join("tools").join(format!("{name}-{version}"));
    let program = root.join("bin").join(name);
    if !program.is_file() {
        println!("    building {name} {version}");
        let mut install = cargo(workspace);
        install.args(["install", name, "--version", version, "--locked", "--features=binary", "--root"]).arg(&root);
        // Beside our own artefacts, which are for other flags.
        install.arg("--target-dir").arg(root.join("build"));
        process::run_quietly(&mut install, &workspace.log("install-s3s-fs")?, INSTALL_LIMIT)?;
        std::fs::remove_dir_all(root.join("build"))?;
    }
    Ok(program)
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
