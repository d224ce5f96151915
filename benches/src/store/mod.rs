//! `store`: what the logical-volume store promises, measured against what it is to be compared with, in one run.

mod after_snapshot;
mod chain;
pub(crate) mod fio;
pub(crate) mod load;
mod merge;
mod overwrite;
pub(crate) mod rig;
mod tebibyte;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum};
use reactor::Reactor;

pub(crate) use self::tebibyte::{OpenArguments, open_in_this_process};
use crate::report::Report;

/// Flags of `store`.
#[derive(Args, Debug)]
pub(crate) struct StoreArguments {
    /// Only these cases
    #[arg(long, value_enum, value_delimiter = ',', value_name = "CASES")]
    only: Vec<Case>,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Measurements of each contestant in each case; the report has their medians
    #[arg(long, default_value_t = 5)]
    repeat: usize,
    /// A sixteenth of the sizes, half a second, three measurements: whether it works, not how well
    #[arg(long)]
    quick: bool,
    /// The folder for the files, on a file system with O_DIRECT: up to 8 GiB, removed at the end
    #[arg(long, value_name = "FOLDER", default_value_os_t = std::env::temp_dir())]
    folder: PathBuf,
    /// Also write the report as JSON to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Case {
    /// Random overwrites and reads, against fio on the same blocks
    Overwrite,
    /// Random writes right after a snapshot, against before it
    AfterSnapshot,
    /// Random reads through a chain of 250, against a chain of one
    Chain,
    /// Memory, open and snapshot of stores with 1 TiB mapped
    Tebibyte,
    /// Deletes of snapshots that copy nothing
    Merge,
}

/// How much is measured.
#[derive(Clone, Debug)]
struct Plan {
    time: Duration,
    repeat: usize,
    /// What sizes are divided by.
    scale: u64,
    folder: PathBuf,
}

/// Measures, and prints what came of it.
///
/// # Errors
/// When a store cannot be made or fails an I/O. A target that is missed is no error.
pub(crate) fn run(arguments: &StoreArguments) -> anyhow::Result<()> {
    let time = Duration::try_from_secs_f64(arguments.seconds).context("--seconds")?;
    anyhow::ensure!(arguments.repeat > 0 && !time.is_zero(), "measuring nothing gives no figures");
    let mut plan = Plan { time, repeat: arguments.repeat, scale: 1, folder: PathBuf::new() };
    if arguments.quick {
        plan = Plan { time: Duration::from_millis(500), repeat: plan.repeat.min(3), scale: 16, ..plan };
    }
    let cases = match arguments.only.as_slice() {
        [] => Case::value_variants(),
        only => only,
    };
    let mut report = Report::new(plan.time, plan.repeat, plan.scale);
    for case in cases {
        // Of its own: what one case wrote is gone when the next begins.
        let folder = tempfile::Builder::new().prefix("ashlar-bench-").tempdir_in(&arguments.folder);
        let folder = folder.with_context(|| format!("no folder in {}", arguments.folder.display()))?;
        let plan = Plan { folder: folder.path().to_owned(), ..plan.clone() };
        let case = *case;
        let rows = on_a_reactor(async move {
            match case {
                Case::Overwrite => overwrite::measure(&plan).await,
                Case::AfterSnapshot => after_snapshot::measure(&plan).await,
                Case::Chain => chain::measure(&plan).await,
                Case::Tebibyte => tebibyte::measure(&plan).await,
                Case::Merge => merge::measure(&plan).await,
            }
        })
        .with_context(|| format!("{case:?}"))?;
        report.add(rows);
    }
    match &arguments.json {
        Some(path) => report.write(path),
        None => Ok(()),
    }
}

/// Runs one case. Its reactor ends with it, and lets go of all its files.
fn on_a_reactor<T: 'static>(case: impl Future<Output = anyhow::Result<T>> + 'static) -> anyhow::Result<T> {
    Reactor::run(&reactor::Config::default(), case).context("no reactor")?
}
