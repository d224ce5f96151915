//! A volume in a file behind NVMe/TCP, against fio on the very same blocks of the file.

use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use reactor::{Disk, DiskOptions, Handle, Reactor};

use super::{Figures, Plan};
use crate::contestant::{Case, Contestant, Kind, SERVER_CORE, config, load_reactor};
use crate::device::{self, DISK_SIZE, SIZE};
use crate::report::{Row, Target, median};
use crate::store::fio::{self, Measured};
use crate::store::load::Load;
use crate::store::rig;

/// Of fio's IOPS; or, where the server's core has no more to give, of the memory volume's.
const OF_FIO: f64 = 0.95;
const OF_MEMORY: f64 = 0.7;
/// A server whose core is that busy has no more to give.
const BUSY: f64 = 0.95;

/// Microseconds that a volume may add to the file's own latency.
const ADDED: Target = Target::MoreByAtMost(15.0);

pub(super) fn measure(plan: &Plan) -> anyhow::Result<Vec<Row>> {
    let folder = tempfile::Builder::new().prefix("ashlar-bench-").tempdir_in(&plan.folder)?;
    let path = folder.path().join("store");
    let made = path.clone();
    Reactor::run(&reactor::Config::default(), async move { rig::written_file(&made, DISK_SIZE).await })??;
    let store = path.clone();
    let file = Contestant::start_over(Kind::File, config("server", SERVER_CORE), move || async move {
        device::volume_on(open(&store).await?).await
    })?;
    let memory = Contestant::start(Kind::Volume)?;
    let mut superblock = [0; 4096];
    std::os::unix::fs::FileExt::read_exact_at(&std::fs::File::open(&path)?, &mut superblock, 0)?;
    // The volume was written in order, so its clusters are the first of the store.
    let data = rig::data_start_in(&superblock)?;
    let turns = Turns { file: &file, memory: &memory, path: &path, region: data..data + SIZE };
    let load = load_reactor()?;
    let mut rows = Vec::new();
    for depth in [32, 128, 1] {
        for writes in [false, true] {
            let case = Case::small(writes, depth);
            let (ours, in_memory, fio) = turns.measure(plan, &load.handle(), case)?;
            rows.push(match depth {
                1 => added(case, &ours, fio),
                _ => throughput(case, &ours, &in_memory, fio),
            });
        }
    }
    Ok(rows)
}

/// Opens the disk that the reactor which wrote it may still have: the kernel lets go of its files after it is gone.
async fn open(path: &Path) -> std::io::Result<Disk> {
    for _ in 0..1000 {
        match Disk::open(path, &DiskOptions::default()) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                reactor::sleep(Duration::from_millis(10)).await;
            }
            result => return result,
        }
    }
    Disk::open(path, &DiskOptions::default())
}

/// Who takes turns.
struct Turns<'a> {
    file: &'a Contestant,
    memory: &'a Contestant,
    path: &'a Path,
    /// Where the volume's blocks are in the file.
    region: Range<u64>,
}

impl Turns<'_> {
    /// Without fio if it is not installed.
    fn measure(&self, plan: &Plan, load: &Handle, case: Case) -> anyhow::Result<(Figures, Figures, Option<Measured>)> {
        let (mut file, mut memory, mut fio) = (Vec::new(), Vec::new(), Vec::new());
        let by_fio =
            Load { writes: case.writes, region: self.region.clone(), depth: case.depth.into(), time: plan.time };
        for _ in 0..plan.repeat {
            file.push(self.file.measure(load, case, plan.time)?);
            memory.push(self.memory.measure(load, case, plan.time)?);
            if fio::find().is_ok() {
                fio.push(fio::run(self.path, &by_fio)?);
            }
        }
        let of = |value: fn(&Measured) -> f64| median(&fio.iter().map(value).collect::<Vec<_>>());
        let fio = (!fio.is_empty())
            .then(|| Measured { iops: of(|measured| measured.iops), p50_us: of(|measured| measured.p50_us) });
        Ok((Figures::of(&file), Figures::of(&memory), fio))
    }
}

fn throughput(case: Case, ours: &Figures, memory: &Figures, fio: Option<Measured>) -> Row {
    let name = format!("{}, file volume against fio on the file", case.name());
    let Some(fio) = fio else { return Row::left_out(name, "IOPS", ours.iops, "fio is not installed") };
    let row = Row::compared(name, "IOPS", ours.iops, fio.iops).target(Target::RatioAtLeast(OF_FIO));
    let (busy, of_memory) = (ours.busy, ours.iops / memory.iops);
    let note = format!("{}; core {:.0} % busy, {:.0} % of memory", ours.costs(), busy * 100.0, of_memory * 100.0);
    let met = row.met.map(|met| met || busy >= BUSY && of_memory >= OF_MEMORY);
    Row { met, ..row.note(note) }
}

fn added(case: Case, ours: &Figures, fio: Option<Measured>) -> Row {
    let name = format!("{}, file volume: p50 against fio on the file", case.name());
    match fio {
        Some(fio) => Row::compared(name, "µs", ours.p50_us, fio.p50_us).target(ADDED).note(ours.costs()),
        None => Row::left_out(name, "µs", ours.p50_us, "fio is not installed"),
    }
}
