//! A real Linux host on a volume of three real daemons.
//!
//! `e2e GUEST LOGS`, as `cargo xtask e2e` runs it: GUEST is the folder of the built guest, LOGS an empty one for whatever
//! the guest and the daemons say. It tells its steps like a program of tests does. docs/testing.md has the rest.
#![forbid(unsafe_code)]

mod host;
mod iscsi;
mod machine;
mod nodes;
mod scenario;
mod steps;
mod wait;

use std::path::absolute;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [guest, logs] = arguments.as_slice() else {
        eprintln!("e2e GUEST LOGS: run it through `cargo xtask e2e`, which builds the guest");
        return ExitCode::from(2);
    };
    // qemu works in a folder of its own.
    let (Ok(guest), Ok(logs)) = (absolute(guest), absolute(logs)) else {
        eprintln!("e2e: GUEST and LOGS are folders");
        return ExitCode::from(2);
    };
    let mut steps = steps::Steps::new();
    scenario::play(&guest, &logs, &mut steps);
    steps.close()
}
