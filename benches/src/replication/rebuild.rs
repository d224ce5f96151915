//! All of a volume is copied to a new replica: how fast, and what hosts feel of it.

use std::time::Instant;

use nvmf_initiator::load::{Job, Pattern};
use proto::v1::MemberState;

use super::host::Host;
use super::outage::pass;
use super::stage::Stage;
use super::{Plan, limits};
use crate::report::{Row, Target, median};

const MIB: f64 = 1_048_576.0;

pub(super) async fn measure(plan: &Plan) -> anyhow::Result<Vec<Row>> {
    let stage = Stage::open(&plan.folder, 2 * plan.written + (1 << 30)).await?;
    let host = Host::new(stage.create_one(plan.written, 2).await?)?;
    host.run(pass(128 << 10)).await?;
    let mut rows = alone(plan, &stage).await?;
    rows.extend(beside_hosts(plan, &stage, &host).await?);
    Ok(rows)
}

/// With idle hosts.
async fn alone(plan: &Plan, stage: &Stage) -> anyhow::Result<Vec<Row>> {
    let (mut ours, mut disk, mut loopback) = (Vec::new(), Vec::new(), Vec::new());
    let from = plan.folder.join("source");
    limits::make_file(&from, plan.written)?;
    for _ in 0..plan.repeat {
        disk.push(limits::disk_copy(&from, &plan.folder.join("copy"), plan.written)? / MIB);
        loopback.push(limits::loopback_copy(plan.written)? / MIB);
        let begun = Instant::now();
        stage.add_third().await?;
        stage.healthy().await?;
        ours.push(plan.written as f64 / begun.elapsed().as_secs_f64() / MIB);
        stage.remove_third().await?;
    }
    let (ours, disk, loopback) = (median(&ours), median(&disk), median(&loopback));
    let row = Row::compared("rebuild of a written volume, hosts idle", "MiB/s", ours, disk.min(loopback));
    let note = format!("disk copy {disk:.0}, loopback {loopback:.0} MiB/s");
    Ok(vec![row.target(Target::RatioAtLeast(0.7)).note(note)])
}

/// With hosts that read and write.
async fn beside_hosts(plan: &Plan, stage: &Stage, host: &Host) -> anyhow::Result<Vec<Row>> {
    let job = Job {
        rw: Pattern::RandRw,
        read_percent: 70,
        block_size: 4096,
        depth: 4,
        runtime: Some(plan.time),
        ..Job::default()
    };
    let (mut with, mut without, mut rates) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()], Vec::new());
    let mut ended = 0;
    for _ in 0..plan.repeat {
        let report = host.run(job.clone()).await?;
        without[0].push(report.read.latency.p99 as f64 / 1e3);
        without[1].push(report.write.latency.p99 as f64 / 1e3);
        stage.add_third().await?;
        let report = host.run(job.clone()).await?;
        with[0].push(report.read.latency.p99 as f64 / 1e3);
        with[1].push(report.write.latency.p99 as f64 / 1e3);
        match stage.third().await? {
            Some(member) if member.state() != MemberState::InSync => {
                let sent = member.rebuild.map_or(0, |rebuild| rebuild.sent_bytes);
                rates.push(sent as f64 / plan.time.as_secs_f64() / MIB);
            }
            _ => ended += 1,
        }
        stage.remove_third().await?;
    }
    let mut rows = Vec::new();
    for (what, (with, without)) in ["reads", "writes"].into_iter().zip(with.iter().zip(&without)) {
        let case = format!("p99 of 4 KiB {what} at depth 4 during a rebuild, against without");
        let row = Row::compared(case, "µs", median(with), median(without)).target(Target::RatioAtMost(2.0));
        rows.push(match rates.as_slice() {
            [] => row.note("the rebuild had ended before the load"),
            rates => row.note(format!("rebuild {:.0} MiB/s meanwhile, {ended} ended early", median(rates))),
        });
    }
    Ok(rows)
}
