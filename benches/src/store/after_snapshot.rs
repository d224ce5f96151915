//! Random writes right after a snapshot, against those right before it, and what they cost the disk.

use block_device::{BlockDevice, Request};
use reactor::simulated::Random;

use super::Plan;
use super::load::{self, BLOCK, Load};
use super::rig::{self, Counter, GIB, MIB, OVERHEAD};
use crate::report::{Row, Target, median};

const DEPTH: usize = 32;

/// Batches of writes whose metadata is counted, each of as many writes as are in flight otherwise.
const BATCHES: u64 = 200;

/// The head of all snapshots.
const HEAD: u64 = 1;

pub(super) async fn measure(plan: &Plan) -> anyhow::Result<Vec<Row>> {
    let size = GIB / plan.scale;
    // Each snapshot keeps all blocks of the lvol; clusters that were never discarded, so that the file stays as it is.
    let repeat = plan.repeat.min(5);
    let disk = rig::written_file(&plan.folder.join("snapshot"), size * (repeat as u64 + 2) + OVERHEAD).await?;
    let store = rig::format(&disk).await?;
    let lvol = rig::create(&store, HEAD, size).await?;
    let counter = Counter::start(&disk, rig::data_start(&disk).await?);
    let load = Load { writes: true, region: 0..size, depth: DEPTH, time: plan.time };
    let (mut before, mut after, mut longest) = (Vec::new(), Vec::new(), Vec::new());
    let mut overwrite_cost = Vec::new();
    for number in 0..repeat as u64 {
        load::fill(&*lvol, 0..size, MIB).await?;
        load::flush(&*lvol).await?;
        load::random(&*lvol, &Load { time: load::WARM_UP.min(plan.time), ..load.clone() }).await?;
        counter.take();
        let reached = load::random(&*lvol, &load).await?;
        let counted = counter.take();
        let bytes = reached.latency.count() * BLOCK;
        overwrite_cost.push((counted.data_written + counted.metadata_written) as f64 / bytes as f64);
        before.push(reached.iops());
        rig::snapshot(&store, HEAD, 100 + number).await?;
        let reached = load::random(&*lvol, &load).await?;
        after.push(reached.iops());
        longest.push(reached.longest_ms());
    }
    load::fill(&*lvol, 0..size, MIB).await?;
    rig::snapshot(&store, HEAD, 99).await?;
    let per_batch = metadata_per_batch(&*lvol, &counter).await?;
    let mean = per_batch.iter().sum::<f64>() / per_batch.len() as f64;
    let rows = [
        Row::compared(
            "random 4 KiB write right after a snapshot, against before",
            "IOPS",
            median(&after),
            median(&before),
        )
        .target(Target::RatioAtLeast(0.7))
        .note(format!("depth {DEPTH}, file; longest write {:.1} ms", median(&longest))),
        Row::alone("device bytes for a byte written where mapped", "bytes", median(&overwrite_cost))
            .target(Target::AtMost(1.2)),
        Row::alone("metadata writes for a batch of writes where not mapped", "writes", median(&per_batch))
            .target(Target::AtMost(2.0))
            .note(format!("{DEPTH} random writes submitted together; of {BATCHES} batches, mean {mean:.3}")),
    ];
    Ok(rows.into())
}

/// How often something that is no data is written, for so many first writes that are submitted together.
async fn metadata_per_batch(device: &dyn BlockDevice, counter: &Counter) -> anyhow::Result<Vec<f64>> {
    let mut random = Random::new(1);
    let blocks = device.geometry().size() / BLOCK;
    let data = load::incompressible(BLOCK as usize, &mut random);
    // Each block once: a prime step visits them all.
    let mut block = random.below(blocks);
    let mut next = || {
        block = (block + 1_000_003) % blocks;
        Request::write(block * BLOCK, data.clone())
    };
    counter.take();
    let mut writes = Vec::new();
    for _ in 0..BATCHES {
        load::batch(device, (0..DEPTH).map(|_| next()).collect()).await?;
        writes.push(counter.take().metadata_writes as f64);
    }
    Ok(writes)
}
