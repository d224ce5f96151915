//! What three replicas cost a write, against one.

use nvmf_initiator::load::{Job, Pattern};

use super::Plan;
use super::host::Host;
use super::outage::pass;
use super::stage::Stage;
use crate::report::{Row, Target, median};

const SIZE: u64 = 1 << 30;

pub(super) async fn measure(plan: &Plan) -> anyhow::Result<Vec<Row>> {
    let stage = Stage::open(&plan.folder, 4 * SIZE).await?;
    let hosts = [Host::new(stage.create("three", SIZE, 3).await?)?, Host::new(stage.create("one", SIZE, 1).await?)?];
    for host in &hosts {
        host.run(pass(128 << 10)).await?;
    }
    let job =
        Job { rw: Pattern::RandWrite, block_size: 4096, depth: 1, runtime: Some(plan.time / 2), ..Job::default() };
    let mut p50 = [Vec::new(), Vec::new()];
    for _ in 0..plan.repeat {
        for (host, p50) in hosts.iter().zip(&mut p50) {
            p50.push(host.run(job.clone()).await?.write.latency.p50 as f64 / 1e3);
        }
    }
    let row =
        Row::compared("4 KiB write at depth 1, 3 replicas against 1: p50", "µs", median(&p50[0]), median(&p50[1]));
    Ok(vec![row.target(Target::RatioAtMost(2.5)).note("all written before; three daemons on this machine")])
}
