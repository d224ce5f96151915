//! Random reads and overwrites of an lvol whose blocks are all there, against fio on the very same blocks of the file.

use block_device::{BlockDevice, FileDevice};

use super::load::{self, BLOCK, Load};
use super::rig::{self, GIB, MIB, OVERHEAD};
use super::{Plan, fio};
use crate::report::{Row, Target, median};

const DEPTH: usize = 32;

pub(super) async fn measure(plan: &Plan) -> anyhow::Result<Vec<Row>> {
    let size = 2 * GIB / plan.scale;
    let path = plan.folder.join("overwrite");
    let disk = rig::written_file(&path, size + OVERHEAD).await?;
    let store = rig::format(&disk).await?;
    let lvol = rig::create(&store, 1, size).await?;
    // In order, so that the lvol's clusters are the first of the store.
    load::fill(&*lvol, 0..size, MIB).await?;
    load::flush(&*lvol).await?;
    let data = rig::data_start(&disk).await?;
    let bare = FileDevice::new(disk.clone(), BLOCK as u32)?;
    let fio = fio::find();
    let mut rows = Vec::new();
    for writes in [false, true] {
        let of = |region| Load { writes, region, depth: DEPTH, time: plan.time };
        let (ours, below) = (of(0..size), of(data..data + size));
        let (mut store_iops, mut bare_iops, mut fio_iops) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..plan.repeat {
            store_iops.push(load::warmed(&*lvol, &ours).await?.iops());
            bare_iops.push(load::warmed(&bare as &dyn BlockDevice, &below).await?.iops());
            if fio.is_ok() {
                fio_iops.push(fio::run(&path, &below, None)?.iops);
            }
        }
        let what = if writes { "overwrite" } else { "read" };
        let case = format!("random 4 KiB {what}, depth {DEPTH}, file, against fio");
        let (ours, bare) = (median(&store_iops), median(&bare_iops));
        rows.push(
            match &fio {
                Ok(()) => Row::compared(case, "IOPS", ours, median(&fio_iops)).note("fio: io_uring, O_DIRECT"),
                Err(reason) => Row::left_out(case, "IOPS", ours, reason),
            }
            .target(Target::RatioAtLeast(0.95)),
        );
        let case = format!("random 4 KiB {what}, depth {DEPTH}, file, against no store");
        rows.push(Row::compared(case, "IOPS", ours, bare).note("the same reactor, without a store"));
    }
    Ok(rows)
}
