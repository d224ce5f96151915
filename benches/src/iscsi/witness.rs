//! iscsi-perf of libiscsi: another initiator on the same targets. It only reads.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::contestant::{Contestant, Kind};
use super::tgt::Tgt;
use crate::contestant::LOAD_CORE;
use crate::report::{Row, Target, median};

const DEPTH: u16 = 32;

/// Random reads of 4 KiB from our volume and from tgt, in turns; no rows without tgt.
pub(super) fn measure(contestants: &[Contestant], runtime: Duration, repeat: usize) -> anyhow::Result<Vec<Row>> {
    let find = |kind| contestants.iter().find(|contestant| contestant.kind == kind);
    let (Some(ours), Some(theirs)) = (find(Kind::IscsiVolume), find(Kind::Tgt)) else { return Ok(Vec::new()) };
    let (mut our_iops, mut their_iops) = (Vec::new(), Vec::new());
    for _ in 0..repeat {
        // Blocks of 4 KiB here, of 512 bytes there.
        our_iops.push(run(ours, 0, 1, runtime)?);
        their_iops.push(run(theirs, Tgt::LUN, 8, runtime)?);
    }
    let case = format!("4 KiB read, depth {DEPTH}, memory volume: against tgt, by iscsi-perf");
    let row = Row::compared(case, "IOPS", median(&our_iops), median(&their_iops)).target(Target::RatioAtLeast(3.0));
    Ok(vec![row.note("iscsi-perf has one core, and may be what limits ours")])
}

fn run(contestant: &Contestant, lun: u8, blocks: u32, runtime: Duration) -> anyhow::Result<f64> {
    let url = format!("iscsi://{}/{}/{lun}", contestant.address, contestant.name);
    let mut command = Command::new("taskset");
    command.args(["-c", &LOAD_CORE.to_string(), "iscsi-perf", "-r", "-m", &DEPTH.to_string()]);
    // In whole seconds; it tells nothing before the second one.
    let seconds = runtime.as_secs().max(2);
    command.args(["-b", &blocks.to_string(), "-t", &seconds.to_string(), &url]);
    let output = command.output().context("cannot run iscsi-perf")?;
    let told = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "iscsi-perf failed: {told}{}", String::from_utf8_lossy(&output.stderr));
    parse(&told).with_context(|| format!("iscsi-perf told no IOPS: {told}"))
}

/// The last average that it tells: `iops average 13609 (53 MB/s)`.
fn parse(told: &str) -> Option<f64> {
    let (_, after) = told.rsplit_once("iops average ")?;
    after.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_at_the_end_counts() {
        let told = "00:00:01 - lba 234945, iops current 11835 (46 MB/s), iops average 13292 (51 MB/s), in_flight 32, busy 0  \r\
            iops average 13609 (53 MB/s)      \r\nfinished.\n";
        assert_eq!(parse(told), Some(13_609.0));
        assert_eq!(parse("Login Failed."), None);
    }
}
