//! Stores with 1 TiB mapped: what their maps take in memory, how long they take to open after a kill, how long a snapshot holds
//! writes up.
//!
//! They are written by the store itself, into a disk of memory that keeps no zeroes: the data is zeroes, the metadata is real. Then
//! nobody closes them, which is a kill, and what is not zero goes into a sparse file. A process of its own opens that, so that
//! its memory is the store's and nothing else.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use block_device::{BlockDevice, ErrorKind, Geometry, Range, Reply, Request};
use clap::Args;
use lvol::{Lvol, Store};
use reactor::simulated::Random;
use reactor::{Buffer, Disk, Slice};
use serde::{Deserialize, Serialize};

use super::load::{self, BLOCK, Load};
use super::rig::{self, CLUSTER, Counter, GIB, MIB};
use super::{Plan, on_a_reactor};
use crate::report::{Row, Target, median};

const TIB: u64 = 1 << 40;

/// A store to make.
#[derive(Clone, Copy)]
struct Shape {
    lvols: u64,
    /// Bytes mapped in all.
    mapped: u64,
    order: Order,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    /// One lvol after the other, from its start to its end, whole clusters.
    Sequential,
    /// One block in each cluster, all clusters of all lvols in random order.
    Random,
}

/// Flags of the process that opens a store to be measured.
#[derive(Args, Debug)]
pub(crate) struct OpenArguments {
    path: PathBuf,
}

/// What that process tells.
#[derive(Debug, Serialize, Deserialize)]
struct Opened {
    seconds: f64,
    /// Read from the disk to open it, in bytes.
    bytes_read: u64,
    /// Memory that opening the store took, in bytes.
    cold: u64,
    /// The same when all lvols are open, and all parts of their maps were asked for.
    warm: u64,
}

pub(super) async fn measure(plan: &Plan) -> anyhow::Result<Vec<Row>> {
    let mapped = TIB / plan.scale;
    let many = Shape { lvols: 1000, mapped, order: Order::Sequential };
    let few = Shape { lvols: 10, mapped, order: Order::Random };
    let mut rows = Vec::new();
    for (shape, how) in [(many, "in order"), (few, "at random")] {
        let made = make(shape).await?;
        let path = plan.folder.join("tebibyte");
        let mut opened = Vec::new();
        for _ in 0..plan.repeat.min(3) {
            export(&made, &path).await?;
            opened.push(open_in_another_process(&path)?);
        }
        std::fs::remove_file(&path)?;
        let middle = |value: fn(&Opened) -> f64| median(&opened.iter().map(value).collect::<Vec<_>>());
        let mib = |bytes: f64| bytes / mapped as f64 * (TIB / MIB) as f64;
        let lvols = shape.lvols;
        let read = middle(|opened| opened.bytes_read as f64) / MIB as f64;
        rows.extend([
            Row::alone(
                format!("open after a kill, {lvols} lvols, {} mapped", size_name(mapped)),
                "s",
                middle(|opened| opened.seconds),
            )
            .target(Target::AtMost(2.0))
            .note(format!("written {how}; {read:.0} MiB read")),
            Row::alone(
                format!("memory for 1 TiB mapped {how}, {lvols} lvols open"),
                "MiB",
                mib(middle(|opened| opened.warm as f64)),
            )
            .target(Target::AtMost(128.0)),
            Row::alone(
                format!("memory for 1 TiB mapped {how}, {lvols} lvols, none open"),
                "MiB",
                mib(middle(|opened| opened.cold as f64)),
            )
            .target(Target::AtMost(16.0))
            .note("the free clusters' bitmap and what lvols are called are there"),
        ]);
    }
    rows.extend(held_by_a_snapshot(plan, mapped).await?);
    Ok(rows)
}

fn size_name(bytes: u64) -> String {
    if bytes >= TIB { format!("{} TiB", bytes / TIB) } else { format!("{} GiB", bytes / GIB) }
}

/// A disk with a store of this shape that nobody closed.
async fn make(shape: Shape) -> anyhow::Result<Disk> {
    let disk = Disk::sparse_memory(shape.mapped + shape.mapped / 16 + GIB);
    let store = rig::format(&disk).await?;
    write_all(&store, shape).await?;
    store.flush().await?;
    Ok(disk)
}

/// Makes and maps all lvols, seen as one device from there on.
async fn write_all(store: &Store, shape: Shape) -> anyhow::Result<Joined> {
    let size = shape.mapped / shape.lvols / MIB * MIB;
    let mut parts = Vec::new();
    for number in 0..shape.lvols {
        parts.push(rig::create(store, number, size).await?);
    }
    let all = Joined { parts, size };
    match shape.order {
        Order::Sequential => {
            let places = (0..size * shape.lvols).step_by(MIB as usize);
            load::write_at(&all, places, &zeroes(MIB), 8).await?;
        }
        Order::Random => {
            let mut clusters: Vec<u32> = (0..u32::try_from(size * shape.lvols / CLUSTER)?).collect();
            let mut random = Random::new(1);
            for place in (1..clusters.len()).rev() {
                clusters.swap(place, random.index(place + 1));
            }
            let places = clusters.into_iter().map(|cluster| u64::from(cluster) * CLUSTER);
            load::write_at(&all, places, &zeroes(BLOCK), 32).await?;
        }
    }
    Ok(all)
}

fn zeroes(length: u64) -> Slice {
    Buffer::zeroed(length as usize).freeze()
}

/// Lvols of one size, one after the other.
struct Joined {
    parts: Vec<Rc<Lvol>>,
    size: u64,
}

impl BlockDevice for Joined {
    fn geometry(&self) -> Geometry {
        let first = self.parts[0].geometry();
        Geometry { blocks: first.blocks * self.parts.len() as u64, ..first }
    }

    fn submit(&self, mut request: Request, reply: Reply) {
        let (Request::Write { offset, .. } | Request::Read { range: Range { offset, .. } }) = &mut request else {
            return reply.fail(ErrorKind::Internal);
        };
        let part = &self.parts[(*offset / self.size) as usize];
        *offset %= self.size;
        part.submit(request, reply);
    }
}

/// Copies all metadata of a store into a new sparse file; the data is zeroes.
async fn export(from: &Disk, path: &Path) -> anyhow::Result<()> {
    if path.exists() {
        std::fs::remove_file(path)?;
    }
    let to = rig::open_file(path, Some(from.size()))?;
    for offset in (0..rig::data_start(from).await?).step_by(MIB as usize) {
        let (result, bytes) = from.read(offset, Buffer::new(MIB as usize)).await;
        result?;
        if bytes.iter().any(|&byte| byte != 0) {
            to.write(offset, bytes.freeze()).await.context("cannot write the file")?;
        }
    }
    Ok(to.sync().await?)
}

fn open_in_another_process(path: &Path) -> anyhow::Result<Opened> {
    let program = std::env::current_exe().context("where am I?")?;
    let output = Command::new(program).arg("store-open").arg(path).output().context("cannot run myself")?;
    ensure!(output.status.success(), "opening the store failed: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).context("no figures")
}

/// Opens a store, measures, and ends without closing it.
///
/// # Errors
/// When the store does not open or cannot be read.
pub(crate) fn open_in_this_process(arguments: &OpenArguments) -> anyhow::Result<()> {
    let path = arguments.path.clone();
    let opened = on_a_reactor(async move {
        let disk = rig::open_file(&path, None)?;
        let counter = Counter::start(&disk, u64::MAX);
        let before = memory()?;
        let start = Instant::now();
        let store = Store::open(disk.clone()).await?;
        let seconds = start.elapsed().as_secs_f64();
        let bytes_read = counter.take().metadata_read;
        // Maps that only recovery needed are freed by now, and given back to the system beside what follows.
        reactor::sleep(Duration::from_secs(1)).await;
        let cold = memory()?.saturating_sub(before);
        let mut parts = Vec::new();
        for lvol in store.lvols() {
            parts.push(rig::open_id(&store, lvol.uuid).await?);
        }
        let size = parts.first().context("a store without lvols")?.geometry().size();
        let all = Joined { parts, size };
        // Every leaf of every map has 64 clusters.
        load::read_at(&all, (0..all.geometry().size()).step_by(64 * CLUSTER as usize)).await?;
        let warm = memory()?.saturating_sub(before);
        anyhow::Ok(Opened { seconds, bytes_read, cold, warm })
    })?;
    println!("{}", serde_json::to_string(&opened)?);
    Ok(())
}

/// Memory of this process that is no file's, in bytes.
fn memory() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let kib =
        status.lines().find_map(|line| line.strip_prefix("RssAnon:")?.strip_suffix("kB")?.trim().parse::<u64>().ok());
    Ok(kib.context("/proc/self/status has no RssAnon")? << 10)
}

/// Bytes that are written while snapshots are taken.
const REGION: u64 = 64 * MIB;

/// The longest write beside a snapshot of a volume that is wholly mapped, against the longest without one.
async fn held_by_a_snapshot(plan: &Plan, mapped: u64) -> anyhow::Result<Vec<Row>> {
    let made = make(Shape { lvols: 1, mapped, order: Order::Sequential }).await?;
    let path = plan.folder.join("tebibyte");
    export(&made, &path).await?;
    let mut rows = Vec::new();
    for (disk, backing) in [(made, "memory"), (rig::open_file(&path, None)?, "sparse file")] {
        let store = Store::open(disk).await?;
        let lvol = rig::open(&store, 0).await?;
        let load = Load { writes: true, region: 0..REGION, depth: 8, time: plan.time.min(Duration::from_secs(1)) };
        let (mut with, mut without, mut flushed) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..plan.repeat.max(3) as u64 {
            load::fill(&*lvol, load.region.clone(), MIB).await?;
            load::flush(&*lvol).await?;
            without.push(load::random(&*lvol, &load).await?.longest_ms());
            flushed.push(longest_beside(&lvol, &load, async { Ok(store.flush().await?) }).await?);
            with.push(longest_beside(&lvol, &load, rig::snapshot(&store, 0, 100 + number)).await?);
        }
        let case = format!("longest write beside a snapshot, {} mapped, {backing}", size_name(mapped));
        rows.push(
            Row::compared(case, "ms", median(&with), median(&without)).target(Target::MoreByAtMost(5.0)).note(format!(
                "against none; beside a flush {:.2} ms; depth {}",
                median(&flushed),
                load.depth
            )),
        );
    }
    std::fs::remove_file(&path)?;
    Ok(rows)
}

/// The longest latency of a load while something is done in its middle.
async fn longest_beside(
    lvol: &Rc<Lvol>,
    load: &Load,
    action: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<f64> {
    let later = async {
        reactor::sleep(load.time / 3).await;
        action.await
    };
    let (reached, done) = load::beside(load::random(&**lvol, load), later).await;
    done?;
    Ok(reached?.longest_ms())
}

#[cfg(test)]
mod tests {
    use reactor::Reactor;

    use super::*;

    #[test]
    fn what_is_exported_is_the_store() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("store");
        Reactor::run(&reactor::Config::default(), async move {
            for order in [Order::Sequential, Order::Random] {
                let made = make(Shape { lvols: 3, mapped: 96 * MIB, order }).await.expect("made");
                export(&made, &path).await.expect("exported");
                let store = Store::open(rig::open_file(&path, None).expect("there")).await.expect("a store");
                assert!(!store.info().clean_open);
                let lvols = store.lvols();
                assert_eq!(lvols.iter().map(|lvol| lvol.used_bytes).collect::<Vec<_>>(), [32 * MIB; 3]);
            }
        })
        .expect("a reactor");
    }

    #[test]
    fn this_process_has_memory() {
        assert!(memory().expect("Linux") > 0);
    }
}
