//! The command line, and the parts of it that the integration tests use too: [`cluster`] and [`client`].
//!
//! `ashlar` is a gRPC client and nothing else: whatever it can do, any other client of `proto/ashlar/v1` can do. The
//! exceptions need no running daemon: `bench` drives any NVMe/TCP target, `demo` starts daemons of its own.

#![forbid(unsafe_code)]

mod arguments;
mod bench;
pub mod client;
pub mod cluster;
mod commands;
mod demo;
mod output;
mod size;

use std::process::ExitCode;

use clap::Parser;

use crate::arguments::{Arguments, Command};

pub use crate::size::Size;

/// Runs the command line of this process. Exit codes: 0 done, 1 failed, 2 wrong usage (from clap).
pub fn run() -> ExitCode {
    let arguments = Arguments::parse();
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
            runtime.block_on(commands::run(&arguments.server, command, arguments.output))
        }
        Command::Demo(options) => demo::run(options),
        Command::Bench(bench) => bench::run(bench, arguments.output),
    }
}
