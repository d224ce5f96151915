//! `iscsi`: the iSCSI target beside our NVMe/TCP target and beside tgt, in one run.

mod contestant;
mod tgt;
mod witness;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use reactor::Handle;

use self::contestant::{Contestant, Kind};
use crate::contestant::{Case, Sample, load_reactor};
use crate::report::{Report, Row, Target, median};

/// Flags of `iscsi`.
#[derive(Args, Debug)]
pub(crate) struct IscsiArguments {
    /// Seconds of each measurement
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Measurements of each contestant in each case; the report has their medians
    #[arg(long, default_value_t = 5)]
    repeat: usize,
    /// Only depth 32
    #[arg(long)]
    quick: bool,
    /// Also write the report as JSON to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

const CASES: [Case; 4] = [Case::small(false, 32), Case::small(true, 32), Case::small(false, 1), Case::small(true, 1)];

/// The cases with a queue.
const QUEUED: usize = 2;

fn name(case: Case) -> String {
    format!("4 KiB {}, depth {}, iSCSI", if case.writes { "write" } else { "read" }, case.depth)
}

/// Measures, and prints what came of it.
///
/// # Errors
/// When a contestant of ours cannot be started, or any fails an I/O.
pub(crate) fn run(arguments: &IscsiArguments) -> anyhow::Result<()> {
    let runtime = Duration::try_from_secs_f64(arguments.seconds).context("--seconds")?;
    anyhow::ensure!(arguments.repeat > 0 && !runtime.is_zero(), "measuring nothing gives no figures");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    anyhow::ensure!(cores >= 2, "a server and its load need a core each");
    let load = load_reactor()?;
    let field = Field::start(&Kind::OURS)?;
    let mut report = Report::new(runtime, arguments.repeat, 1);
    for case in CASES.into_iter().take(if arguments.quick { QUEUED } else { CASES.len() }) {
        report.add(field.measure(&load.handle(), case, runtime, arguments.repeat)?);
    }
    let witnessed = witness::measure(&field.contestants, runtime, arguments.repeat);
    report.add(witnessed.unwrap_or_else(|error| {
        eprintln!("iscsi-perf left out: {error:#}");
        Vec::new()
    }));
    match &arguments.json {
        Some(path) => report.write(path),
        None => Ok(()),
    }
}

/// The rows of the memory volume with a queue, for the table.
///
/// # Errors
/// As [`run`].
pub(crate) fn measure_volume(runtime: Duration, repeat: usize) -> anyhow::Result<Vec<Row>> {
    let load = load_reactor()?;
    let field = Field::start(&[Kind::NvmfVolume, Kind::IscsiVolume])?;
    let mut rows = Vec::new();
    for case in CASES.into_iter().take(QUEUED) {
        rows.extend(field.measure(&load.handle(), case, runtime, repeat)?);
    }
    Ok(rows)
}

/// Who takes turns.
struct Field {
    contestants: Vec<Contestant>,
    /// Why tgt is not among them.
    without_tgt: Option<String>,
}

impl Field {
    /// These of ours, and tgt where it can be had.
    fn start(ours: &[Kind]) -> anyhow::Result<Self> {
        let mut contestants = ours.iter().copied().map(Contestant::ours).collect::<anyhow::Result<Vec<_>>>()?;
        let without_tgt = match tgt::Tgt::start() {
            Ok(tgt) => {
                contestants.push(Contestant::tgt(tgt));
                None
            }
            Err(error) => Some(format!("tgt left out: {error:#}")),
        };
        Ok(Self { contestants, without_tgt })
    }

    /// The rows of a case.
    fn measure(&self, load: &Handle, case: Case, runtime: Duration, repeat: usize) -> anyhow::Result<Vec<Row>> {
        let mut samples = vec![Vec::new(); self.contestants.len()];
        for _ in 0..repeat {
            for (contestant, samples) in self.contestants.iter().zip(&mut samples) {
                samples.push(contestant.measure(load, case, runtime)?);
            }
        }
        let results: Vec<_> = self.contestants.iter().map(|contestant| contestant.kind).zip(samples).collect();
        Ok(compare(case, &results, self.without_tgt.as_deref()))
    }
}

/// The rows of a case: IOPS where there is a queue, and the median latency where there is none.
fn compare(case: Case, results: &[(Kind, Vec<Sample>)], without_tgt: Option<&str>) -> Vec<Row> {
    let of = |wanted: Kind, value: fn(&Sample) -> f64| {
        let samples = results.iter().find(|(kind, _)| *kind == wanted).map(|(_, samples)| samples);
        samples.map(|samples| median(&samples.iter().map(value).collect::<Vec<_>>()))
    };
    let name = name(case);
    let value: fn(&Sample) -> f64 = if case.depth > 1 { |sample| sample.iops } else { |sample| sample.p50_ns / 1000.0 };
    let unit = if case.depth > 1 { "IOPS" } else { "µs p50" };
    let mut rows = Vec::new();
    let devices = [
        (Kind::IscsiVolume, Kind::NvmfVolume, "memory volume", Target::RatioAtLeast(5.0)),
        (Kind::IscsiMemory, Kind::NvmfMemory, "plain memory", Target::RatioAtLeast(3.0)),
    ];
    for (iscsi, nvmf, device, against_tgt) in devices {
        let Some(ours) = of(iscsi, value) else { continue };
        let costs = |kind| {
            let time = |value: fn(&Sample) -> f64| of(kind, value).unwrap_or_default() / 1000.0;
            let (server, user) = (time(|sample| sample.server_ns), time(|sample| sample.server_user_ns));
            format!("{server:.2} µs of the server, {user:.2} of it not in the kernel")
        };
        let (for_nvmf, for_tgt) =
            if case.depth > 1 { (Target::RatioAtLeast(0.5), against_tgt) } else { (Target::None, Target::None) };
        if let Some(theirs) = of(nvmf, value) {
            let row = Row::compared(format!("{name}, {device}: against NVMe/TCP"), unit, ours, theirs);
            rows.push(row.target(for_nvmf).note(format!("{}; NVMe/TCP: {}", costs(iscsi), costs(nvmf))));
        }
        let case = format!("{name}, {device}: against tgt");
        rows.push(match of(Kind::Tgt, value) {
            Some(theirs) => Row::compared(case, unit, ours, theirs).target(for_tgt).note(costs(Kind::Tgt)),
            None => Row::left_out(case, unit, ours, without_tgt.unwrap_or_default()).target(for_tgt),
        });
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(iops: f64) -> Vec<Sample> {
        vec![Sample { iops, p50_ns: 20_000.0, server_ns: 900.0, server_user_ns: 300.0, load_ns: 0.0, allocations: 0.0 }]
    }

    #[test]
    fn ours_is_compared_with_nvme_and_tgt_on_each_device() {
        let ours = [
            (Kind::NvmfVolume, samples(600.0)),
            (Kind::IscsiVolume, samples(290.0)),
            (Kind::NvmfMemory, samples(700.0)),
            (Kind::IscsiMemory, samples(400.0)),
        ];
        let mut all = ours.to_vec();
        all.push((Kind::Tgt, samples(100.0)));
        let met = |rows: Vec<Row>| rows.iter().map(|row| row.met).collect::<Vec<_>>();
        assert_eq!(met(compare(CASES[0], &all, None)), [Some(false), Some(false), Some(true), Some(true)]);
        assert_eq!(met(compare(CASES[0], &ours, Some("no tgt"))), [Some(false), None, Some(true), None]);
        assert_eq!(met(compare(CASES[2], &all, None)), [None; 4], "at depth 1 latencies are told");
        let volume = compare(CASES[0], &ours[..2], Some("no tgt"));
        assert_eq!(volume.len(), 2, "only what was measured");
        assert_eq!((volume[1].note.as_str(), volume[1].baseline), ("no tgt", None));
    }
}
