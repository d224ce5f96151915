//! `node`: one daemon with very many volumes, against what is promised of it.

mod attach;
mod connections;
mod files;
mod idle;
mod list;
mod process;
mod stage;
mod start;
mod watch;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum};
use cli::cluster::program;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use self::stage::Stage;
use crate::report::{Report, Row};

/// Flags of `node`.
#[derive(Args, Debug)]
pub(crate) struct NodeArguments {
    /// How many volumes the daemon has
    #[arg(long, default_value_t = 1200, value_parser = clap::value_parser!(u32).range(4..=20_000))]
    volumes: u32,
    /// Only these cases
    #[arg(long, value_enum, value_delimiter = ',', value_name = "CASES")]
    only: Vec<Case>,
    /// Seconds that an idle daemon is watched
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    /// How often starts are measured; what takes milliseconds is measured ten times as often
    #[arg(long, default_value_t = 3)]
    repeat: usize,
    /// Exit with 1 if a target is missed, and name the rows
    #[arg(long)]
    check: bool,
    /// The folder for the files, on a file system with O_DIRECT; removed at the end
    #[arg(long, value_name = "FOLDER", default_value_os_t = std::env::temp_dir())]
    folder: PathBuf,
    /// Also write the report as JSON to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Case {
    /// Starts after a stop in order and after a kill
    Start,
    /// What the daemon uses while nobody wants anything
    Idle,
    /// What the daemon uses while somebody watches and nothing changes
    Watch,
    /// A list of all volumes
    List,
    /// One more volume shown and attached
    Attach,
    /// Hosts that are attached to all volumes and want nothing
    Connections,
}

/// Volumes of the table's daemon.
const VOLUMES: usize = 1200;

/// How long hosts of the table want nothing before its memory is looked at: two keep alives of each.
const SETTLED: Duration = Duration::from_secs(5);

/// How much is measured.
#[derive(Clone, Copy, Debug)]
struct Plan {
    idle: Duration,
    repeat: usize,
    /// Of what takes milliseconds.
    often: usize,
}

/// Measures, and prints what came of it.
///
/// # Errors
/// When the daemon does not do what it should, or with `--check` when a target is missed.
pub(crate) fn run(arguments: &NodeArguments) -> anyhow::Result<()> {
    let idle = Duration::try_from_secs_f64(arguments.seconds).context("--seconds")?;
    anyhow::ensure!(arguments.repeat > 0 && !idle.is_zero(), "measuring nothing gives no figures");
    let plan = Plan { idle, repeat: arguments.repeat, often: 10 * arguments.repeat };
    let cases = if arguments.only.is_empty() { Case::value_variants() } else { &arguments.only };
    // A usize has 32 bits at least.
    let volumes = arguments.volumes as usize;
    if cases.contains(&Case::Connections) {
        files::allow(connections::files(volumes))?;
    }
    let folder = temporary(&arguments.folder)?;
    let mut report = Report::new(idle, plan.repeat, 1);
    runtime()?.block_on(async {
        let mut stage = Stage::open(folder.path(), volumes).await?;
        report.add(stage.create_all().await?);
        for case in cases {
            let rows = match case {
                Case::Start => start::measure(&mut stage, &plan).await,
                Case::Idle => idle::measure(&mut stage, &plan).await,
                Case::Watch => watch::measure(&mut stage, &plan).await,
                Case::List => list::measure(&stage, &plan).await,
                Case::Attach => attach::measure(&stage, &plan).await,
                Case::Connections => connections::measure(&mut stage, &plan).await,
            };
            report.add(rows.with_context(|| format!("{case:?}\n{}", stage.log_tail()))?);
        }
        anyhow::Ok(())
    })?;
    if let Some(path) = &arguments.json {
        report.write(path)?;
    }
    let missed = report.missed();
    anyhow::ensure!(!arguments.check || missed.is_empty(), "missed:\n  {}", missed.join("\n  "));
    Ok(())
}

/// The memory of a daemon with 1,200 volumes and hosts on all of them, for the table. Where that cannot be measured the row says why.
///
/// # Errors
/// When the daemon does not do what it should.
pub(crate) fn measure_memory(folder: &Path) -> anyhow::Result<Vec<Row>> {
    if let Err(reason) = program("ashlard").and_then(|_| files::allow(connections::files(VOLUMES))) {
        return Ok(vec![connections::memory_row(VOLUMES, None).note(format!("{reason:#}"))]);
    }
    let folder = temporary(folder)?;
    runtime()?.block_on(async {
        let mut stage = Stage::open(folder.path(), VOLUMES).await?;
        stage.create_all().await?;
        let row = connections::memory(&mut stage, SETTLED).await;
        Ok(vec![row.with_context(|| stage.log_tail())?])
    })
}

/// A folder in `folder` that is removed at the end.
fn temporary(folder: &Path) -> anyhow::Result<TempDir> {
    let made = tempfile::Builder::new().prefix("ashlar-bench-").tempdir_in(folder);
    made.with_context(|| format!("no folder in {}", folder.display()))
}

fn runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}
