//! What a load measured.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::histogram::Histogram;
use super::job::Job;
use super::record::Fault;
use super::seconds;

/// How many faults a report names; the rest is counted only.
const FAULTS_NAMED: usize = 16;

/// The outcome of a load.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What was done.
    pub job: Job,
    /// Length of the measurement, ramp not included.
    #[serde(rename = "elapsed_seconds", with = "seconds")]
    pub elapsed: Duration,
    /// Reads.
    pub read: Figures,
    /// Writes.
    pub write: Figures,
    /// Flushes.
    pub flush: Figures,
    /// Failed commands by the name of their status; during the ramp too.
    pub errors: BTreeMap<String, u64>,
    /// What verifying found; during the ramp too.
    pub verify: Verified,
    /// How many times the connection was lost and made again.
    pub reconnects: u64,
    /// Why the load ended early, if it did.
    pub aborted: Option<String>,
}

/// The figures of one kind of I/O.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Successful I/Os.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
    /// I/Os per second.
    pub iops: f64,
    /// Bytes per second.
    #[serde(rename = "bytes_per_second")]
    pub bandwidth: f64,
    /// From submission to completion.
    #[serde(rename = "latency_ns")]
    pub latency: Latency,
}

/// A distribution of latencies in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Least.
    pub min: u64,
    /// Mean.
    pub mean: f64,
    /// Median.
    pub p50: u64,
    /// 90 of 100 are not over it.
    pub p90: u64,
    /// 99 of 100.
    pub p99: u64,
    /// 999 of 1000.
    pub p99_9: u64,
    /// 9,999 of 10,000.
    pub p99_99: u64,
    /// Greatest.
    pub max: u64,
}

/// What verifying found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Verified {
    /// I/Os whose content was checked.
    pub checked: u64,
    /// I/Os with a wrong block.
    pub failed: u64,
    /// The first of them in words.
    pub faults: Vec<String>,
}

impl Report {
    /// Whether every I/O succeeded and everything read was right.
    pub fn is_clean(&self) -> bool {
        self.errors.is_empty() && self.verify.failed == 0 && self.aborted.is_none()
    }

    /// I/Os per second, reads and writes together.
    pub fn iops(&self) -> f64 {
        self.read.iops + self.write.iops
    }
}

impl Figures {
    pub(crate) fn new(histogram: &Histogram, block_size: u64, elapsed: Duration) -> Self {
        let seconds = elapsed.as_secs_f64();
        let per_second = |value: u64| if seconds > 0.0 { value as f64 / seconds } else { 0.0 };
        let (count, bytes) = (histogram.count(), histogram.count() * block_size);
        Self { count, bytes, iops: per_second(count), bandwidth: per_second(bytes), latency: Latency::new(histogram) }
    }
}

impl Latency {
    fn new(histogram: &Histogram) -> Self {
        Self {
            min: histogram.min(),
            mean: histogram.mean(),
            p50: histogram.percentile(50.0),
            p90: histogram.percentile(90.0),
            p99: histogram.percentile(99.0),
            p99_9: histogram.percentile(99.9),
            p99_99: histogram.percentile(99.99),
            max: histogram.max(),
        }
    }
}

impl Verified {
    pub(crate) fn failure(&mut self, fault: &Fault) {
        self.failed += 1;
        if self.faults.len() < FAULTS_NAMED {
            self.faults.push(fault.to_string());
        }
    }
}

impl fmt::Display for Report {
    /// Several lines in the manner of fio's summary.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Job { rw, block_size, depth, jobs, .. } = self.job;
        writeln!(
            f,
            "{rw}: bs={}, iodepth={depth}, numjobs={jobs}, {:.1} s",
            Bytes(block_size.into()),
            self.elapsed.as_secs_f64()
        )?;
        for (name, figures) in [("read", &self.read), ("write", &self.write), ("flush", &self.flush)] {
            if figures.count > 0 {
                write_figures(f, name, figures)?;
            }
        }
        if self.reconnects > 0 {
            writeln!(f, "  reconnects: {}", self.reconnects)?;
        }
        for (status, count) in &self.errors {
            writeln!(f, "  errors: {count} × {status}")?;
        }
        if self.verify.checked > 0 {
            writeln!(f, "  verify: {} checked, {} failed", self.verify.checked, self.verify.failed)?;
        }
        for fault in &self.verify.faults {
            writeln!(f, "    {fault}")?;
        }
        if let Some(reason) = &self.aborted {
            writeln!(f, "  ended early: {reason}")?;
        }
        Ok(())
    }
}

fn write_figures(f: &mut fmt::Formatter<'_>, name: &str, figures: &Figures) -> fmt::Result {
    let latency = &figures.latency;
    write!(f, "  {name}: IOPS={}", Count(figures.iops))?;
    if figures.bytes > 0 {
        write!(f, ", BW={}/s ({} in all)", Bytes(figures.bandwidth as u64), Bytes(figures.bytes))?;
    }
    writeln!(f, ", {} I/Os", figures.count)?;
    let [min, mean, max] = [latency.min as f64, latency.mean, latency.max as f64].map(Nanoseconds);
    writeln!(f, "    lat: min={min}, avg={mean}, max={max}")?;
    let [p50, p90, p99, p99_9, p99_99] =
        [latency.p50, latency.p90, latency.p99, latency.p99_9, latency.p99_99].map(|value| Nanoseconds(value as f64));
    writeln!(f, "    percentiles: 50th={p50}, 90th={p90}, 99th={p99}, 99.9th={p99_9}, 99.99th={p99_99}")
}

/// A number with a decimal prefix.
struct Count(f64);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            value if value >= 1e6 => write!(f, "{:.2}M", value / 1e6),
            value if value >= 1e4 => write!(f, "{:.1}k", value / 1e3),
            value => write!(f, "{value:.0}"),
        }
    }
}

/// Bytes with a binary prefix.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        match UNITS.into_iter().find(|(size, _)| self.0 >= *size) {
            Some((size, unit)) if self.0.is_multiple_of(size) => write!(f, "{}{unit}", self.0 / size),
            Some((size, unit)) => write!(f, "{:.1}{unit}", self.0 as f64 / size as f64),
            None => write!(f, "{}B", self.0),
        }
    }
}

/// A time in the unit that suits it.
struct Nanoseconds(f64);

impl fmt::Display for Nanoseconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            value if value >= 1e9 => write!(f, "{:.2}s", value / 1e9),
            value if value >= 1e7 => write!(f, "{:.1}ms", value / 1e6),
            value => write!(f, "{:.1}us", value / 1e3),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::FaultKind;

    fn report() -> Report {
        let mut histogram = Histogram::default();
        (0..2000).for_each(|_| histogram.record(25_000));
        let elapsed = Duration::from_millis(500);
        Report {
            job: Job { depth: 32, ..Job::default() },
            elapsed,
            read: Figures::new(&histogram, 4096, elapsed),
            write: Figures::default(),
            flush: Figures::default(),
            errors: BTreeMap::new(),
            verify: Verified::default(),
            reconnects: 0,
            aborted: None,
        }
    }

    #[test]
    fn text_has_the_figures_of_what_was_done_only() {
        let text = report().to_string();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "randread: bs=4KiB, iodepth=32, numjobs=1, 0.5 s",
                "  read: IOPS=4000, BW=15.6MiB/s (7.8MiB in all), 2000 I/Os",
                "    lat: min=25.0us, avg=25.0us, max=25.0us",
                "    percentiles: 50th=25.0us, 90th=25.0us, 99th=25.0us, 99.9th=25.0us, 99.99th=25.0us",
            ]
        );
    }

    #[test]
    fn errors_and_faults_are_told_and_make_a_report_unclean() {
        let mut report = report();
        assert!(report.is_clean());
        report.errors.insert("Capacity Exceeded".into(), 3);
        report.verify.checked = 40;
        let fault = Fault { block: 9, kind: FaultKind::Stale { found: 1, expected: 2 } };
        (0..20).for_each(|_| report.verify.failure(&fault));
        let text = report.to_string();
        assert!(text.contains("errors: 3 × Capacity Exceeded"), "{text}");
        assert!(text.contains("verify: 40 checked, 20 failed"), "{text}");
        assert_eq!(text.matches("block 9: stale, generation 1 where 2 was acknowledged").count(), FAULTS_NAMED);
        assert!(!report.is_clean());
    }

    #[test]
    fn an_empty_measurement_divides_by_nothing() {
        let figures = Figures::new(&Histogram::default(), 4096, Duration::ZERO);
        assert_eq!((figures.iops, figures.latency.p99), (0.0, 0));
    }

    #[test]
    fn numbers_for_people() {
        assert_eq!(Count(1_234_567.0).to_string(), "1.23M");
        assert_eq!(Count(45_678.0).to_string(), "45.7k");
        assert_eq!(Bytes(131_072).to_string(), "128KiB");
        assert_eq!(Bytes(1 << 31).to_string(), "2GiB");
        assert_eq!(Nanoseconds(9_400.0).to_string(), "9.4us");
        assert_eq!(Nanoseconds(36_000_000.0).to_string(), "36.0ms");
    }
}
