//! `limit`: what the target reaches of what the machine allows, in one run.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use serde::Serialize;

use crate::contestant::{Case, Contestant, Kind, Sample, load_reactor};

/// Flags of `limit`.
#[derive(Args, Debug)]
pub(crate) struct LimitArguments {
    /// Seconds of each measurement
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Measurements of each contestant in each case; the report has their medians
    #[arg(long, default_value_t = 5)]
    repeat: usize,
    /// Only 4 KiB reads at depth 32
    #[arg(long)]
    quick: bool,
    /// Also write the report as JSON to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// 4 KiB is what is asked for most; 128 KiB fits no capsule, so writes of it need another round trip, which an echo
/// does not have.
const CASES: [Case; 8] = [
    case(false, 4096, 32, 1),
    case(false, 4096, 1, 1),
    case(false, 4096, 128, 1),
    case(false, 4096, 32, 8),
    case(true, 4096, 32, 1),
    case(true, 4096, 1, 1),
    case(false, 131_072, 32, 1),
    case(true, 131_072, 32, 1),
];

const fn case(writes: bool, block_size: u32, depth: u16, connections: u16) -> Case {
    Case { writes, block_size, depth, connections, data_digest: false }
}

/// One line of the report.
#[derive(Clone, Debug, Serialize)]
struct Row {
    case: String,
    contestant: &'static str,
    iops: f64,
    /// Of the echo's in the same case.
    ratio: f64,
    p50_us: f64,
    server_us_per_io: f64,
    /// The echo server's processor time for an I/O over this one's: the ratio that a server whose core has nothing else
    /// to do would show, and less disturbed by what else the machine does.
    server_ratio: f64,
    /// What of the server's time was work outside of the kernel.
    server_user_ns_per_io: f64,
    load_us_per_io: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    seconds: f64,
    repeat: usize,
    rows: Vec<Row>,
    /// Share of a core that an idle target uses, connections open.
    idle_share: f64,
    idle_connections: u16,
}

/// Connections of the idle measurement; with the admin queue one more.
const IDLE_CONNECTIONS: u16 = 64;

/// Measures, and prints what came of it.
///
/// # Errors
/// When a contestant cannot be started or fails an I/O.
pub(crate) fn run(arguments: &LimitArguments) -> anyhow::Result<()> {
    let runtime = Duration::try_from_secs_f64(arguments.seconds).context("--seconds")?;
    anyhow::ensure!(arguments.repeat > 0 && !runtime.is_zero(), "measuring nothing gives no figures");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    anyhow::ensure!(cores >= 2, "the limit needs two cores: one for the server, one for the load");
    let load = load_reactor()?;
    let contestants = Kind::ALL.into_iter().map(Contestant::start).collect::<anyhow::Result<Vec<_>>>()?;
    let cases = if arguments.quick { &CASES[..1] } else { &CASES };
    let mut rows = Vec::new();
    for &case in cases {
        let samples = measure(&contestants, &load.handle(), case, runtime, arguments.repeat)?;
        let new_rows = compare(case, &contestants, &samples);
        print!("{}", render(&new_rows));
        rows.extend(new_rows);
    }
    let target = &contestants[1];
    let idle_share = target.idle(&load.handle(), IDLE_CONNECTIONS, Duration::from_secs(5))?;
    println!("idle, {IDLE_CONNECTIONS} connections: {:.3} % of a core", idle_share * 100.0);
    if let Some(path) = &arguments.json {
        let report = Report {
            seconds: arguments.seconds,
            repeat: arguments.repeat,
            rows,
            idle_share,
            idle_connections: IDLE_CONNECTIONS,
        };
        std::fs::write(path, serde_json::to_vec_pretty(&report)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Samples by contestant. They take turns, so that what else the machine does hits all of them.
fn measure(
    contestants: &[Contestant],
    load: &reactor::Handle,
    case: Case,
    runtime: Duration,
    repeat: usize,
) -> anyhow::Result<Vec<Vec<Sample>>> {
    let mut samples = vec![Vec::new(); contestants.len()];
    for _ in 0..repeat {
        for (contestant, samples) in contestants.iter().zip(&mut samples) {
            samples.push(contestant.measure(load, case, runtime)?);
        }
    }
    Ok(samples)
}

fn compare(case: Case, contestants: &[Contestant], samples: &[Vec<Sample>]) -> Vec<Row> {
    let limit = median(&samples[0], |sample| sample.iops);
    let least_time = median(&samples[0], |sample| sample.server_ns);
    contestants
        .iter()
        .zip(samples)
        .map(|(contestant, samples)| {
            let iops = median(samples, |sample| sample.iops);
            let server_ns = median(samples, |sample| sample.server_ns);
            Row {
                case: case.name(),
                contestant: contestant.kind.name(),
                iops,
                ratio: iops / limit,
                p50_us: median(samples, |sample| sample.p50_ns) / 1000.0,
                server_us_per_io: server_ns / 1000.0,
                server_ratio: least_time / server_ns,
                server_user_ns_per_io: median(samples, |sample| sample.server_user_ns),
                load_us_per_io: median(samples, |sample| sample.load_ns) / 1000.0,
            }
        })
        .collect()
}

fn median(samples: &[Sample], value: impl Fn(&Sample) -> f64) -> f64 {
    let mut values: Vec<_> = samples.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

fn render(rows: &[Row]) -> String {
    let mut text = String::new();
    if let Some(first) = rows.first() {
        text.push_str(&first.case);
        text.push('\n');
    }
    for row in rows {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "  {:<16} {:>8.0} IOPS {:>4.0} %   p50 {:>6.1} µs   server {:>5.2} µs {:>4.0} %, {:>4.0} ns ours   load {:>5.2} µs",
            row.contestant,
            row.iops,
            row.ratio * 100.0,
            row.p50_us,
            row.server_us_per_io,
            row.server_ratio * 100.0,
            row.server_user_ns_per_io,
            row.load_us_per_io
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(iops: f64) -> Sample {
        Sample { iops, p50_ns: 0.0, server_ns: 0.0, server_user_ns: 0.0, load_ns: 0.0, allocations: 0.0 }
    }

    #[test]
    fn medians_ignore_outliers() {
        let odd = [9.0, 1.0, 2.0].map(sample);
        assert_eq!(median(&odd, |sample| sample.iops), 2.0);
        let even = [9.0, 1.0, 2.0, 4.0].map(sample);
        assert_eq!(median(&even, |sample| sample.iops), 3.0);
    }

    #[test]
    fn cases_say_what_they_are() {
        assert_eq!(CASES[0].name(), "4 KiB read, 1 × depth 32");
        assert_eq!(CASES[6].name(), "128 KiB read, 1 × depth 32");
    }
}
