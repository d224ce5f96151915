//! A volume in a file behind NVMe/TCP, against fio on the very same blocks of the file, and against a relay over a file of that size.
//!
//! fio runs on the servers' core, as a disk with one queue interrupts one core, and whoever waits on another is told later: in a
//! guest by tens of microseconds. What it reaches where the kernel puts it is in
//! the rows' notes.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use reactor::{Disk, DiskOptions, Handle, Reactor};
use tempfile::TempDir;

use super::{Figures, Plan, against};
use crate::contestant::{Case, Contestant, Kind, SERVER_CORE, config, load_reactor};
use crate::device::{self, DISK_SIZE, SIZE};
use crate::relay;
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
    let path = written(&folder, "store", DISK_SIZE)?;
    let store = path.clone();
    let file = Contestant::start_over(Kind::File, config("server", SERVER_CORE), move || async move {
        device::volume_on(open(&store).await?).await
    })?;
    // A file of its own: it writes anywhere, and a store must not lose what it knows of its volume.
    let relayed = written(&folder, "relayed", SIZE)?;
    let relay = Contestant::start_with(Kind::Relay, config("server", SERVER_CORE), move || async move {
        Ok((relay::serve(([127, 0, 0, 1], 0).into(), open(&relayed).await?)?, String::new()))
    })?;
    let memory = Contestant::start(Kind::Volume)?;
    let mut superblock = [0; 4096];
    std::os::unix::fs::FileExt::read_exact_at(&std::fs::File::open(&path)?, &mut superblock, 0)?;
    // The volume was written in order, so its clusters are the first of the store.
    let data = rig::data_start_in(&superblock)?;
    let turns = Turns { file: &file, relay: &relay, memory: &memory, path: &path, region: data..data + SIZE };
    let load = load_reactor()?;
    let mut rows = Vec::new();
    for depth in [32, 128, 1] {
        for writes in [false, true] {
            let case = Case::small(writes, depth);
            let measured = turns.measure(plan, &load.handle(), case)?;
            rows.extend(if depth == 1 { added(case, &measured) } else { throughput(case, &measured) });
        }
    }
    Ok(rows)
}

/// A file of this size in a folder, all of it written.
fn written(folder: &TempDir, name: &str, size: u64) -> anyhow::Result<PathBuf> {
    let path = folder.path().join(name);
    let made = path.clone();
    Reactor::run(&reactor::Config::default(), async move { rig::written_file(&made, size).await })??;
    Ok(path)
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
    relay: &'a Contestant,
    memory: &'a Contestant,
    path: &'a Path,
    /// Where the volume's blocks are in the file.
    region: Range<u64>,
}

/// What came of them.
struct Turned {
    file: Figures,
    relay: Figures,
    memory: Figures,
    /// None if it is not installed.
    fio: Option<ByFio>,
}

/// What fio reaches.
#[derive(Clone, Copy)]
struct ByFio {
    on_core: Measured,
    anywhere: Measured,
}

impl Turns<'_> {
    fn measure(&self, plan: &Plan, load: &Handle, case: Case) -> anyhow::Result<Turned> {
        let (mut file, mut relay, mut memory) = (Vec::new(), Vec::new(), Vec::new());
        let (mut on_core, mut anywhere) = (Vec::new(), Vec::new());
        let by_fio =
            Load { writes: case.writes, region: self.region.clone(), depth: case.depth.into(), time: plan.time };
        for _ in 0..plan.repeat {
            file.push(self.file.measure(load, case, plan.time)?);
            relay.push(self.relay.measure(load, case, plan.time).context("the relay")?);
            memory.push(self.memory.measure(load, case, plan.time)?);
            if fio::find().is_ok() {
                on_core.push(fio::run(self.path, &by_fio, Some(SERVER_CORE))?);
                anywhere.push(fio::run(self.path, &by_fio, None)?);
            }
        }
        let fio = (!on_core.is_empty()).then(|| ByFio { on_core: middle(&on_core), anywhere: middle(&anywhere) });
        Ok(Turned { file: Figures::of(&file), relay: Figures::of(&relay), memory: Figures::of(&memory), fio })
    }
}

fn middle(measured: &[Measured]) -> Measured {
    let of = |value: fn(&Measured) -> f64| median(&measured.iter().map(value).collect::<Vec<_>>());
    Measured { iops: of(|measured| measured.iops), p50_us: of(|measured| measured.p50_us) }
}

const WITHOUT_FIO: &str = "fio is not installed";

/// The volume against fio, and what lies between them: the relay against fio, the volume against the relay.
fn throughput(case: Case, measured: &Turned) -> Vec<Row> {
    let Turned { file, relay, memory, fio } = measured;
    let name = case.name();
    let against_fio = |who: &str, figures: &Figures| {
        let case = format!("{name}, {who} against fio on the file");
        match fio {
            Some(fio) => Row::compared(case, "IOPS", figures.iops, fio.on_core.iops),
            None => Row::left_out(case, "IOPS", figures.iops, WITHOUT_FIO),
        }
    };
    let core = |figures: &Figures| format!("core {:.0} % busy", figures.busy * 100.0);
    let mut volume = against_fio("file volume", file);
    if let Some(fio) = fio {
        let of_memory = file.iops / memory.iops;
        volume = volume.target(Target::RatioAtLeast(OF_FIO));
        volume.met = volume.met.map(|met| met || file.busy >= BUSY && of_memory >= OF_MEMORY);
        volume = volume.note(format!("{}; {}, {:.0} % of memory", file.costs(), core(file), of_memory * 100.0));
        volume.note += &format!("; fio on any core {:.0}", fio.anywhere.iops);
    }
    let mut limit = against_fio("relay over the file", relay);
    if fio.is_some() {
        limit = limit.note(format!("{}; {}", relay.costs(), core(relay)));
    }
    vec![volume, limit, against(format!("{name}, file volume against the relay"), file, relay)]
}

/// The same at depth 1, where what counts is the median latency.
fn added(case: Case, measured: &Turned) -> Vec<Row> {
    let Turned { file, relay, fio, .. } = measured;
    let name = case.name();
    let against_fio = |who: &str, figures: &Figures| {
        let case = format!("{name}, {who}: p50 against fio on the file");
        match fio {
            Some(fio) => Row::compared(case, "µs", figures.p50_us, fio.on_core.p50_us).note(figures.costs()),
            None => Row::left_out(case, "µs", figures.p50_us, WITHOUT_FIO),
        }
    };
    let more = file.p50_us - relay.p50_us;
    let against_relay =
        Row::compared(format!("{name}, file volume: p50 against the relay"), "µs", file.p50_us, relay.p50_us);
    let mut volume = against_fio("file volume", file).target(ADDED);
    if let Some(fio) = fio {
        volume.note += &format!("; fio on any core {:.1} µs", fio.anywhere.p50_us);
    }
    vec![
        volume,
        against_fio("relay over the file", relay),
        against_relay.note(format!("{more:+.1} µs; {}; baseline: {:.2} µs", file.costs(), relay.server_us)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(iops: f64, busy: f64) -> Figures {
        Figures { iops, p50_us: 1e6 / iops, server_us: 5.0, server_user_ns: 500.0, allocations: 0.0, busy }
    }

    fn measured(busy: f64, fio: Option<f64>) -> Turned {
        Turned {
            file: figures(75e3, busy),
            relay: figures(80e3, 0.5),
            memory: figures(100e3, 1.0),
            fio: fio.map(|iops| {
                let measured = Measured { iops, p50_us: 1e6 / iops };
                ByFio { on_core: measured, anywhere: Measured { iops: 2.0 * iops, ..measured } }
            }),
        }
    }

    #[test]
    fn the_volume_has_a_target_and_the_relay_tells_what_lies_between() {
        let rows = throughput(Case::small(false, 32), &measured(0.5, Some(100e3)));
        assert_eq!(rows.iter().map(|row| row.met).collect::<Vec<_>>(), [Some(false), None, None]);
        assert_eq!(rows.iter().map(|row| row.ratio).collect::<Vec<_>>(), [Some(0.75), Some(0.8), Some(75.0 / 80.0)]);
        assert!(rows[0].note.ends_with("; fio on any core 200000"), "{}", rows[0].note);
        let rows = added(Case::small(false, 1), &measured(0.5, Some(100e3)));
        // 13.3 µs, 12.5 and 10.
        assert_eq!(rows.iter().map(|row| row.met).collect::<Vec<_>>(), [Some(true), None, None]);
        assert!(rows[2].note.starts_with("+0.8 µs; "), "{}", rows[2].note);
    }

    #[test]
    fn a_server_with_nothing_more_to_give_is_compared_with_memory() {
        let rows = throughput(Case::small(false, 32), &measured(0.99, Some(100e3)));
        assert_eq!(rows[0].met, Some(true));
    }

    #[test]
    fn without_fio_the_relay_is_still_there() {
        let all = measured(0.5, None);
        for rows in [throughput(Case::small(false, 32), &all), added(Case::small(false, 1), &all)] {
            assert_eq!(rows.iter().map(|row| row.ratio.is_some()).collect::<Vec<_>>(), [false, false, true]);
            assert!(rows.iter().all(|row| row.met.is_none()));
            assert!(rows[..2].iter().all(|row| row.note == WITHOUT_FIO && row.ours.is_some()));
        }
    }
}
