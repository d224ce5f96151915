//! Deletes of snapshots whose child overwrote nothing: pointers move, data does not.

use std::time::Instant;

use super::Plan;
use super::load;
use super::rig::{self, Counter, GIB, MIB, OVERHEAD};
use crate::report::{Row, Target};

const HEAD: u64 = 1;

pub(super) async fn measure(plan: &Plan) -> anyhow::Result<Vec<Row>> {
    let size = GIB / plan.scale;
    let disk = rig::open_file(&plan.folder.join("merge"), Some(2 * size + OVERHEAD))?;
    let store = rig::format(&disk).await?;
    let lvol = rig::create(&store, HEAD, 2 * size).await?;
    load::fill(&*lvol, 0..size, MIB).await?;
    let counter = Counter::start(&disk, rig::data_start(&disk).await?);
    let mut rows = Vec::new();
    for (number, writes) in [(100, false), (101, true)] {
        rig::snapshot(&store, HEAD, number).await?;
        if writes {
            // Elsewhere: the maps have to be merged, entry by entry.
            load::fill(&*lvol, size..2 * size, MIB).await?;
        }
        load::flush(&*lvol).await?;
        counter.take();
        let start = Instant::now();
        store.delete(rig::id(number)).await?;
        store.deleted(rig::id(number)).await?;
        let elapsed = start.elapsed();
        let counted = counter.take();
        let child = if writes { "wrote elsewhere" } else { "wrote nothing" };
        rows.push(
            Row::alone(
                format!("delete of a snapshot whose child {child}: data moved"),
                "bytes",
                (counted.data_read + counted.data_written) as f64,
            )
            .target(Target::AtMost(0.0))
            .note(format!(
                "{} MiB in the snapshot; {:.0} ms, {} KiB of metadata",
                size / MIB,
                elapsed.as_secs_f64() * 1000.0,
                counted.metadata_written >> 10
            )),
        );
    }
    Ok(rows)
}
