//! The command line, and the parts of it that the integration tests use too: [`cluster`] and [`client`].
//!
//! `ashlar` is a gRPC client and nothing else: whatever it can do, any other client of `proto/ashlar/v1` can do. The
//! exceptions need no running daemon: `bench` drives any NVMe/TCP or iSCSI target, `demo` starts daemons of its own, `store check` and
//! `store dump` work on the disk of a store that no daemon has open (docs/decisions), `preflight` and `support-bundle` look at the machine.

#![forbid(unsafe_code)]

mod arguments;
mod bench;
mod bundle;
pub mod client;
pub mod cluster;
mod commands;
mod demo;
mod documents;
mod hints;
mod offline;
mod output;
mod ports;
mod preflight;
mod size;

use std::io;
use std::process::ExitCode;

use clap::Parser;

use crate::arguments::{Arguments, Command, DaemonCommand, StoreCommand};
use crate::output::{Output, to_yaml};

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
            // Nobody reads on: not a failure of this program.
            if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
                return ExitCode::SUCCESS;
            }
            match arguments.output {
                Output::Json => eprintln!("{:#}", client::describe(&error)),
                Output::Yaml => eprint!("{}", to_yaml(&client::describe(&error))),
                Output::Table | Output::Wide => eprintln!("ashlar: {error:#}"),
            }
            ExitCode::FAILURE
        }
    }
}

fn execute(arguments: &Arguments) -> anyhow::Result<()> {
    match &arguments.command {
        Command::OfDaemon(command) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(commands::run(&arguments.destination(), command, arguments.output))
        }
        Command::Demo(options) => demo::run(options),
        Command::Bench(bench) => bench::run(bench, arguments.output),
        Command::Preflight(options) => preflight::run(options, arguments.output),
        Command::SupportBundle(options) => bundle::run(&arguments.destination(), options, arguments.output),
        Command::Completions { shell } => documents::completions(*shell),
        Command::Man { to } => documents::man(to),
    }
}
