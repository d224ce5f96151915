//! `cargo xtask e2e`: a real Linux host, in a guest, on a volume of three real daemons on this machine.

mod scenario;

use std::fs;
use std::path::Path;

use anyhow::Result;

use crate::debian::{self, Missing, Tool};
use crate::guest::Image;
use crate::report::Report;
use crate::workspace::Workspace;

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

/// Plays the scenario with the programs that are built already, and counts its steps.
pub(crate) fn run(workspace: &Workspace, report: &mut Report) {
    let image = match guest(workspace) {
        Ok(image) => image,
        Err(Missing::LeftOut(reason)) => return report.skip("e2e", reason),
        Err(Missing::Failed(error)) => return report.fail("e2e: the guest", &error),
    };
    let directory = workspace.logs().join("e2e");
    if let Err(error) = empty(&directory) {
        return report.fail("e2e: the folder for its logs", &error);
    }
    if scenario::play(&image, &directory, report).is_none() {
        println!("    logs of the daemons and of the guest: {}", workspace.display(&directory));
    }
}

/// The guest, built now if there is none yet.
fn guest(workspace: &Workspace) -> Result<Image, Missing> {
    if let Some(image) = Image::find(workspace).map_err(Missing::Failed)? {
        debian::provide(RUN)?;
        return Ok(image);
    }
    debian::provide(&[RUN, BUILD].concat())?;
    if !debian::is_root() {
        return Err(Missing::LeftOut("the guest is not built yet, and building it needs root".to_owned()));
    }
    println!("building the guest of e2e (half a minute)");
    Image::build(workspace).map_err(Missing::Failed)
}

fn empty(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory)?;
    }
    Ok(fs::create_dir_all(directory)?)
}
