//! How long a write waits when a replica goes.

use nvmf_initiator::load::{Job, Pattern};

use super::Plan;
use super::host::Host;
use super::stage::Stage;
use crate::report::{Row, Target};

const SIZE: u64 = 1 << 30;
/// The daemon's default.
const DEADLINE_MS: f64 = 4_000.0;

pub(super) async fn measure(plan: &Plan) -> anyhow::Result<Vec<Row>> {
    let mut stage = Stage::open(&plan.folder, 2 * SIZE).await?;
    let host = Host::new(stage.create_one(SIZE, 3).await?)?;
    let quiet = longest_ms(&host, plan, |_| Ok(()), &mut stage).await?;
    let killed = longest_ms(&host, plan, |stage| stage.cluster.node(2).kill(), &mut stage).await?;
    stage.cluster.node(2).start().await?;
    stage.healthy().await?;
    let stopped = longest_ms(&host, plan, |stage| stage.cluster.node(2).pause(), &mut stage).await?;
    stage.cluster.node(2).resume()?;
    stage.healthy().await?;
    let note = format!("the longest without a fault: {quiet:.1} ms");
    let killed = Row::alone("longest write at depth 1 while a replica's process is killed", "ms", killed);
    let stopped = Row::alone("… while it is stopped (SIGSTOP), deadline 4 s", "ms", stopped);
    Ok(vec![killed.target(Target::AtMost(100.0)).note(note), stopped.target(Target::AtMost(DEADLINE_MS + 100.0))])
}

/// The longest of writes one after the other, of which some are in flight when something is done.
async fn longest_ms(
    host: &Host,
    plan: &Plan,
    fault: impl FnOnce(&mut Stage) -> anyhow::Result<()>,
    stage: &mut Stage,
) -> anyhow::Result<f64> {
    let job =
        Job { rw: Pattern::RandWrite, block_size: 4096, depth: 1, runtime: Some(plan.time * 2), ..Job::default() };
    let later = async {
        tokio::time::sleep(plan.time / 4).await;
        fault(stage)
    };
    let (report, done) = tokio::join!(host.run(job), later);
    done?;
    Ok(report?.write.latency.max as f64 / 1e6)
}
