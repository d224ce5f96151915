//! The model test through the kernel: on a real file and on loop devices, with the real reactor.
//!
//! A run has several lives. Each is a reactor of its own; some end in order, others with whatever is under way, as a process
//! that is killed. The next one finds everything that was answered.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use loop_device::LoopDevice;
use reactor::simulated::Random;
use reactor::{Config, Disk, DiskOptions, Reactor, sleep};

use crate::model::{Model, Past, Plan};
use crate::rig::is_long;

const DISK_SIZE: u64 = 256 << 20;

/// Steps of one life.
const LIFE: u32 = 500;

/// Lives of a run. In long tests all runs here have more than a million steps together.
fn lives() -> u32 {
    if is_long() { 700 } else { 4 }
}

fn plan(seed: u64) -> Plan {
    Plan { seed, steps: LIFE, block_size: 4096, cluster_size: 64 << 10, lvol_size: 3 << 20 }
}

fn live_again_and_again(path: &Path, options: &DiskOptions, plan: Plan) {
    let start = Instant::now();
    let mut ends = Random::new(plan.seed);
    let mut past = None;
    for life in 0..lives() {
        let in_order = life + 1 < lives() && ends.chance(0.3);
        past = Some(live(path.to_owned(), options.clone(), plan, past, in_order));
        if life % 50 == 49 {
            println!("{}: {} steps in {:.1} s", path.display(), (life + 1) * LIFE, start.elapsed().as_secs_f64());
        }
    }
    let (path, options) = (path.to_owned(), options.clone());
    on_a_reactor(async move {
        let disk = opened(&path, &options).await;
        let past = past.expect("at least one life");
        Model::resume(disk, plan, past).await.run().await;
    });
    println!("{} steps in {:.1} s", (lives() + 1) * LIFE, start.elapsed().as_secs_f64());
}

fn live(path: PathBuf, options: DiskOptions, plan: Plan, past: Option<Past>, in_order: bool) -> Past {
    on_a_reactor(async move {
        let disk = opened(&path, &options).await;
        let mut model = match past {
            None => Model::new(disk, plan).await,
            Some(past) => Model::resume(disk, plan, past).await,
        };
        model.steps().await;
        model.end(in_order).await
    })
}

/// Opens the disk that a life before this one may still have: the kernel ends what a reactor left under way after it is gone.
async fn opened(path: &Path, options: &DiskOptions) -> Disk {
    for _ in 0..1000 {
        match Disk::open(path, options) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => sleep(Duration::from_millis(10)).await,
            result => return result.expect("opened"),
        }
    }
    panic!("{} stays in use", path.display());
}

fn on_a_reactor<T: 'static>(future: impl Future<Output = T> + 'static) -> T {
    Reactor::run(&Config::default(), future).expect("a reactor")
}

#[test]
fn the_model_on_a_file() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("store");
    // Build machines may have their temporary folder on tmpfs, which has no O_DIRECT.
    let options = DiskOptions { create: Some(DISK_SIZE), buffered: true, ..DiskOptions::default() };
    live_again_and_again(&path, &options, plan(500));
}

#[test]
fn the_model_on_loop_devices() {
    for (sector, block_size) in [(512, 512), (4096, 4096), (4096, 512)] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        match LoopDevice::over(&folder.path().join("backing"), DISK_SIZE, sector) {
            Ok(device) => {
                let plan = Plan { block_size, ..plan(600 + u64::from(sector + block_size)) };
                live_again_and_again(device.path(), &DiskOptions::default(), plan);
            }
            Err(reason) => return println!("skipped: {reason}"),
        }
    }
}
