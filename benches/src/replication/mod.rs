//! `replication`: volumes of real daemons on loopback, against what is promised of them.

mod crash;
mod depth;
mod host;
mod limits;
mod outage;
mod rebuild;
mod stage;
mod stall;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum};

use crate::report::Report;

/// Flags of `replication`.
#[derive(Args, Debug)]
pub(crate) struct ReplicationArguments {
    /// Only these cases
    #[arg(long, value_enum, value_delimiter = ',', value_name = "CASES")]
    only: Vec<Case>,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// Measurements that are compared with others are made so often, in turns
    #[arg(long, default_value_t = 3)]
    repeat: usize,
    /// Seconds that a replica is away
    #[arg(long, default_value_t = 5.0)]
    away: f64,
    /// Gibibytes that are written and rebuilt
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=64))]
    gib: u64,
    /// The folder for the files, on a file system with O_DIRECT; removed at the end
    #[arg(long, value_name = "FOLDER", default_value_os_t = std::env::temp_dir())]
    folder: PathBuf,
    /// Also write the report as JSON to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Case {
    /// An engine killed under load on 100 GiB
    Crash,
    /// A replica away while 100 MiB in 10 GiB change
    Outage,
    /// A rebuild of all, with idle hosts and with busy ones
    Rebuild,
    /// A replica killed, and one stopped, under writes
    Stall,
    /// Writes at depth 1 with three replicas and with one
    Depth,
}

/// How much is measured.
#[derive(Clone, Debug)]
struct Plan {
    time: Duration,
    repeat: usize,
    away: Duration,
    /// Bytes.
    written: u64,
    folder: PathBuf,
}

/// Measures, and prints what came of it.
///
/// # Errors
/// When a daemon does not do what it should. A target that is missed is no error.
pub(crate) fn run(arguments: &ReplicationArguments) -> anyhow::Result<()> {
    let time = Duration::try_from_secs_f64(arguments.seconds).context("--seconds")?;
    let away = Duration::try_from_secs_f64(arguments.away).context("--away")?;
    anyhow::ensure!(arguments.repeat > 0 && !time.is_zero(), "measuring nothing gives no figures");
    let plan = Plan { time, repeat: arguments.repeat, away, written: arguments.gib << 30, folder: PathBuf::new() };
    let cases = match arguments.only.as_slice() {
        [] => Case::value_variants(),
        only => only,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut report = Report::new(time, plan.repeat, 1);
    for case in cases {
        let folder = tempfile::Builder::new().prefix("ashlar-bench-").tempdir_in(&arguments.folder);
        let folder = folder.with_context(|| format!("no folder in {}", arguments.folder.display()))?;
        limits::settle(folder.path())?;
        let plan = Plan { folder: folder.path().to_owned(), ..plan.clone() };
        let rows = runtime.block_on(async {
            match case {
                Case::Crash => crash::measure(&plan).await,
                Case::Outage => outage::measure(&plan).await,
                Case::Rebuild => rebuild::measure(&plan).await,
                Case::Stall => stall::measure(&plan).await,
                Case::Depth => depth::measure(&plan).await,
            }
        });
        report.add(rows.with_context(|| format!("{case:?}"))?);
    }
    match &arguments.json {
        Some(path) => report.write(path),
        None => Ok(()),
    }
}
