//! A replica is away while some of the volume changes.

use std::time::Instant;

use nvmf_initiator::load::{Job, Pattern};

use super::Plan;
use super::host::Host;
use super::stage::Stage;
use crate::report::{Row, Target};

const SIZE: u64 = 10 << 30;
const MIB: u64 = 1 << 20;
/// What changes: so many pieces of 1 MiB, spread over the volume, none where a region of the engine begins.
const PIECES: u64 = 100;

pub(super) async fn measure(plan: &Plan) -> anyhow::Result<Vec<Row>> {
    let mut stage = Stage::open(&plan.folder, 2 * SIZE).await?;
    let host = Host::new(stage.create_one(SIZE, 3).await?)?;
    // Of the volume, so much has been written before.
    host.run(Job { size: Some(plan.written.min(SIZE)), ..pass(128 << 10) }).await?;
    stage.cluster.node(2).kill()?;
    let left = Instant::now();
    let pieces = (0..PIECES).map(|piece| Job {
        offset: piece * (SIZE / PIECES / MIB * MIB) + MIB / 2,
        size: Some(MIB),
        ..pass(64 << 10)
    });
    host.run_all(pieces.collect()).await?;
    stage.degraded().await?;
    tokio::time::sleep(plan.away.saturating_sub(left.elapsed())).await;
    let (away, back) = (left.elapsed().as_secs_f64(), Instant::now());
    stage.cluster.node(2).start().await?;
    stage.healthy().await?;
    let copied = stage.copied()?;
    let note = format!(
        "away {away:.0} s, {:.0} MiB compared, in sync {:.1} s after its start",
        copied.compared as f64 / MIB as f64,
        back.elapsed().as_secs_f64()
    );
    let row = Row::alone("replica away, 100 MiB of 10 GiB changed: sent", "MiB", copied.sent as f64 / MIB as f64);
    Ok(vec![row.target(Target::AtMost(130.0)).note(note)])
}

/// One pass of writes in order.
pub(super) fn pass(block_size: u32) -> Job {
    Job { rw: Pattern::Write, block_size, depth: 16, loops: Some(1), runtime: None, ..Job::default() }
}
