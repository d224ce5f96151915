//! `table`: the whole data path, from socket to disk and back, beside what the machine allows and what is promised.
//!
//! Contestants take turns in each case, and every figure is a median. The targets are in `docs/benchmarks.md`.

mod chart;
mod crowd;
mod file;
mod machine;
mod path;
mod replicas;
mod scaling;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum};
use reactor::Handle;

use crate::contestant::{Case, Contestant, Sample};
use crate::report::{Report, Row, median};
use crate::{iscsi, node};

/// Flags of `table`.
#[derive(Args, Debug)]
pub(crate) struct TableArguments {
    /// Only these groups
    #[arg(long, value_enum, value_delimiter = ',', value_name = "GROUPS")]
    only: Vec<Group>,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Measurements of each contestant in each case; the report has their medians
    #[arg(long, default_value_t = 5)]
    repeat: usize,
    /// Three measurements of 0.3 seconds each: whether it works, and roughly how well
    #[arg(long)]
    quick: bool,
    /// Exit with 1 if a target is missed, and name the rows
    #[arg(long)]
    check: bool,
    /// The folder for files that are measured, on a file system with O_DIRECT; removed at the end
    #[arg(long, value_name = "FOLDER", default_value_os_t = std::env::temp_dir())]
    folder: PathBuf,
    /// Writes the report as table.txt, table.json and table.svg into this folder
    #[arg(long, value_name = "FOLDER")]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Group {
    /// Copies and checksums: what the machine does by itself
    Machine,
    /// NVMe/TCP over a null device and over a volume in memory, against the echo server
    Path,
    /// A volume in a file, against fio on the same file
    File,
    /// Two and three replicas against one
    Replicas,
    /// Many connections and many volumes
    Crowd,
    /// Two reactors against one
    Scaling,
    /// The iSCSI target against our NVMe/TCP target and against tgt
    Iscsi,
    /// The memory of a daemon with 1,200 volumes, all of them attached
    Node,
}

/// How much is measured.
#[derive(Clone, Debug)]
struct Plan {
    time: Duration,
    repeat: usize,
    folder: PathBuf,
}

/// Measures, prints and writes what came of it.
///
/// # Errors
/// When a contestant cannot be started or fails an I/O, or with `--check` when a target is missed.
pub(crate) fn run(arguments: &TableArguments) -> anyhow::Result<()> {
    let (seconds, repeat) = if arguments.quick { (0.3, 3) } else { (arguments.seconds, arguments.repeat) };
    let time = Duration::try_from_secs_f64(seconds).context("--seconds")?;
    anyhow::ensure!(repeat > 0 && !time.is_zero(), "measuring nothing gives no figures");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    anyhow::ensure!(cores >= 2, "a server and its load need a core each");
    let plan = Plan { time, repeat, folder: arguments.folder.clone() };
    let groups = if arguments.only.is_empty() { Group::value_variants() } else { &arguments.only };
    let mut report = Report::new(time, repeat, 1);
    for group in groups {
        let rows = match group {
            Group::Machine => machine::measure(&plan),
            Group::Path => path::measure(&plan),
            Group::File => file::measure(&plan),
            Group::Replicas => replicas::measure(&plan),
            Group::Crowd => crowd::measure(&plan),
            Group::Scaling => scaling::measure(&plan),
            Group::Iscsi => iscsi::measure_volume(plan.time, plan.repeat),
            Group::Node => node::measure_memory(&plan.folder),
        };
        report.add(rows.with_context(|| format!("{group:?}"))?);
        // What was measured for minutes is not lost to a group that fails after it.
        if let Some(folder) = &arguments.output {
            write(&report, folder)?;
        }
    }
    let missed = report.missed();
    anyhow::ensure!(!arguments.check || missed.is_empty(), "missed:\n  {}", missed.join("\n  "));
    Ok(())
}

fn write(report: &Report, folder: &std::path::Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("no folder {}", folder.display()))?;
    let files = [
        ("table.txt", report.text()),
        ("table.json", serde_json::to_string_pretty(report.rows())?),
        ("table.svg", chart::draw(report.rows())),
    ];
    for (name, content) in files {
        let path = folder.join(name);
        std::fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Medians of what one contestant reached in one case.
#[derive(Clone, Copy, Debug)]
struct Figures {
    iops: f64,
    p50_us: f64,
    server_us: f64,
    server_user_ns: f64,
    allocations: f64,
    /// How much of its time the server's thread was on its core.
    busy: f64,
}

impl Figures {
    fn of(samples: &[Sample]) -> Self {
        let of = |value: fn(&Sample) -> f64| median(&samples.iter().map(value).collect::<Vec<_>>());
        Self {
            iops: of(|sample| sample.iops),
            p50_us: of(|sample| sample.p50_ns) / 1000.0,
            server_us: of(|sample| sample.server_ns) / 1000.0,
            server_user_ns: of(|sample| sample.server_user_ns),
            allocations: of(|sample| sample.allocations),
            busy: of(|sample| sample.iops * sample.server_ns / 1e9),
        }
    }

    /// What an I/O costs the server, for a note.
    fn costs(&self) -> String {
        format!(
            "{:.2} µs of the server, {:.2} of it work outside of the kernel",
            self.server_us,
            self.server_user_ns / 1000.0
        )
    }
}

/// Measures all contestants in one case, in turns.
fn in_turns(plan: &Plan, load: &Handle, contestants: &[(&Contestant, Case)]) -> anyhow::Result<Vec<Figures>> {
    let mut samples = vec![Vec::new(); contestants.len()];
    for _ in 0..plan.repeat {
        for ((contestant, case), samples) in contestants.iter().zip(&mut samples) {
            samples.push(contestant.measure(load, *case, plan.time)?);
        }
    }
    Ok(samples.iter().map(|samples| Figures::of(samples)).collect())
}

/// A row of two contestants' IOPS, with what each costs.
fn against(case: String, ours: &Figures, baseline: &Figures) -> Row {
    Row::compared(case, "IOPS", ours.iops, baseline.iops).note(format!(
        "{}; baseline: {:.2} µs",
        ours.costs(),
        baseline.server_us
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_medians_of_each_by_itself() {
        let sample = |iops: f64, p50_ns: f64| Sample {
            iops,
            p50_ns,
            server_ns: 1000.0,
            server_user_ns: 300.0,
            load_ns: 0.0,
            allocations: 0.0,
        };
        let figures = Figures::of(&[sample(1e5, 30e3), sample(3e5, 10e3), sample(2e5, 20e3)]);
        assert_eq!((figures.iops, figures.p50_us, figures.server_us), (2e5, 20.0, 1.0));
        assert_eq!(figures.busy, 0.2);
        assert_eq!(figures.costs(), "1.00 µs of the server, 0.30 of it work outside of the kernel");
    }
}
