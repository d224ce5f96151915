//! The command line, and the parts of it that the integration tests use too: [`cluster`] and [`client`].
//!
//! `ashlar` is a gRPC client and nothing else: whatever it can do, any other client of `proto/ashlar/v1` can do. The
//! exceptions need no running daemon: `bench` drives any NVMe/TCP or iSCSI target, `demo` starts daemons of its own, `store check` and
//! `store dump` work on the disk of a store that no daemon has open (docs/decisions).

#![forbid(unsafe_code)]

mod arguments;
mod bench;
pub mod client;
pub mod cluster;
mod commands;
mod demo;
mod offline;
mod output;
mod ports;
mod size;

use std::process::ExitCode;

use clap::Parser;

use crate::arguments::{Arguments, Command, DaemonCommand, StoreCommand};

pub use crate::size::Size;

/// Runs the command line of this process. Exit codes: 0 done, 1 failed, 2 wrong usage (from clap); `store check` and
/// `store dump` have those of fsck.
pub fn run() -> ExitCode {
    let arguments = Arguments::parse();
    if let Command::OfDaemon(DaemonCommand::Store(command)) = &arguments.command {
        match command {
            StoreCommand::Check(options) => return offline::check::run(options, arguments.output),
            StoreCommand::Dump(options) => return offline::dump::run(options, arguments.output),
            _ => {}
        }
    }
    match execute(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ashlar: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(arguments: &Arguments) -> anyhow::Result<()> {
    match &arguments.command {
        Command::OfDaemon(command) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let certificate = arguments.tls.files();
            runtime.block_on(commands::run(&arguments.server, certificate.as_ref(), command, arguments.output))
        }
        Command::Demo(options) => demo::run(options),
        Command::Bench(bench) => bench::run(bench, arguments.output),
    }
}
