//! `ashlard`: one process a node. It reads its configuration, locks its state directory, starts the reactors, brings back
//! what it ran before, serves the API, and stops in order when it is told to.

#![forbid(unsafe_code)]

mod calls;
mod config;
mod control;
mod data;
mod failpoint;
mod health;
mod lifecycle;
mod listening;
mod logging;
mod names;
mod runs;
mod security;
mod services;
mod serving;
mod state;

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;

use crate::config::{Arguments, Config};
use crate::data::Reactors;
use crate::logging::LogFilter;
use crate::runs::{LastRun, ThisRun};
use crate::state::StateDirectory;

/// Threads of the control side. It is never busy; two keep a blocked one from stopping the API.
const CONTROL_THREADS: usize = 2;

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ashlard: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config = Config::load(arguments)?;
    if arguments.check {
        security::load(&config)?;
        println!("the configuration of node `{}` is good", config.node);
        return Ok(());
    }
    if arguments.show_config {
        println!("{:#}", config.describe());
        return Ok(());
    }
    let log = logging::start(&config.log)?;
    logging::log_panics();
    let state = StateDirectory::open(&config.state_dir, &config.node)?;
    let this_run = ThisRun::begin(state.path())?;
    runs::noted(&this_run, || serve(&config, &state, this_run.last.clone(), log))
}

/// Runs until a signal, whose name it returns.
fn serve(config: &Config, state: &StateDirectory, last_run: LastRun, log: LogFilter) -> anyhow::Result<&'static str> {
    let certificates = security::load(config)?;
    security::warn(config, certificates.as_ref());
    let reactors = Reactors::start(config)?;
    let health = health::start(config, last_run.clone(), reactors.pulses(), certificates.clone())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("control")
        .enable_all()
        .build()
        .context("cannot start the control threads")?;
    let data = reactors.data_path(state, certificates.as_ref());
    let result = runtime.block_on(lifecycle::run(config, state, data, health, last_run, log, certificates));
    // What is left on the runtime waits for nothing that matters now.
    runtime.shutdown_background();
    reactors.stop();
    result
}
