//! fio: what others measure disks with.

use std::ops::Range;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;

use super::load::{BLOCK, Load, WARM_UP};

/// Whether it is there, or why not.
pub(crate) fn find() -> Result<(), String> {
    match Command::new("fio").arg("--version").output() {
        Ok(output) if output.status.success() => Ok(()),
        _ => Err("fio is not installed".to_owned()),
    }
}

/// What fio measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    pub(crate) iops: f64,
    /// Median latency in microseconds, submitting included.
    pub(crate) p50_us: f64,
}

/// Runs a load on a file as our own loads run: random, after a short warm-up; on one core, or where the kernel puts it.
pub(crate) fn run(path: &Path, load: &Load, core: Option<usize>) -> anyhow::Result<Measured> {
    let Load { writes, region: Range { start, end }, depth, time } = load;
    let milliseconds = |time: &Duration| format!("{}ms", time.as_millis());
    let flags = [
        ("name", "bench".to_owned()),
        ("filename", path.display().to_string()),
        ("ioengine", "io_uring".to_owned()),
        ("rw", if *writes { "randwrite" } else { "randread" }.to_owned()),
        ("bs", BLOCK.to_string()),
        ("iodepth", depth.to_string()),
        ("offset", start.to_string()),
        ("size", (end - start).to_string()),
        ("runtime", milliseconds(time)),
        ("ramp_time", milliseconds(&WARM_UP)),
        ("output-format", "json".to_owned()),
    ];
    let mut command = Command::new("fio");
    command.args(flags.iter().map(|(name, value)| format!("--{name}={value}")));
    command.args(["--direct=1", "--time_based", "--norandommap", "--randrepeat=0", "--allow_file_create=0"]);
    command.arg("--lat_percentiles=1");
    command.args(core.map(|core| format!("--cpus_allowed={core}")));
    let output = command.output().context("cannot run fio")?;
    ensure!(output.status.success(), "fio failed: {}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).context("fio's report is no JSON")?;
    let figures = &report["jobs"][0][if *writes { "write" } else { "read" }];
    let iops = figures["iops"].as_f64().context("fio's report has no IOPS")?;
    let p50 = figures["lat_ns"]["percentile"]["50.000000"].as_f64().context("fio's report has no median")?;
    Ok(Measured { iops, p50_us: p50 / 1000.0 })
}
