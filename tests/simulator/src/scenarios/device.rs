//! One machine, one disk, one block device: requests, a crash, recovery, and everything is read; over and over.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use block_device::{BlockDevice, FileDevice};
use reactor::simulated::{NodeId, World};
use reactor::{Disk, DiskOptions};

use crate::host::{Errors, Host, Overlaps, Shape};
use crate::model::Crash;
use crate::{Options, Report};

/// How many crashes one run has.
const CRASHES: u32 = 12;

const DISK: &str = "/disk";

/// Opens the device on the machine, which has just started.
type Open = fn() -> Pin<Box<dyn Future<Output = Rc<dyn BlockDevice>>>>;

/// A file as a device.
pub(super) fn file(options: Options) -> Report {
    on_disk(options, open_file, |_, _| ())
}

fn open_file() -> Pin<Box<dyn Future<Output = Rc<dyn BlockDevice>>>> {
    Box::pin(async {
        let disk = Disk::open(DISK.as_ref(), &DiskOptions::default()).expect("the disk is there and free");
        Rc::new(FileDevice::new(disk, 4096).expect("the disk has whole blocks")) as Rc<dyn BlockDevice>
    })
}

fn on_disk(options: Options, open: Open, prepare: fn(&World, NodeId)) -> Report {
    let size = 64 * 4096;
    let world = World::new(options.seed);
    world.keep_log(options.log_lines);
    let node = world.add_node([10, 0, 0, 1].into());
    world.add_disk(node, DISK, size, 4096);
    prepare(&world, node);
    let shape = Shape { size, block: 4096, unit: 4096 };
    let host = Host::new(world.observer(), "file", shape, Errors::Forbidden, Overlaps::Made);
    crash_again_and_again(&world, node, &host, open)
}

fn crash_again_and_again(world: &World, node: NodeId, host: &Host, open: Open) -> Report {
    let mut random = world.random();
    for _ in 0..CRASHES {
        let user = host.clone();
        let (workers, requests) = (1 + random.below(8) as u32, random.below(200) as u32);
        world.spawn(node, async move {
            let device = open().await;
            user.verify(&*device).await;
            user.work(device, workers, requests).await;
        });
        // Sometimes the crash comes before recovery is done, sometimes when all has been quiet for long.
        let limit = Duration::from_millis(1) * (1_u32 << random.below(8));
        world.run_for(random.duration(&(Duration::ZERO..=limit)));
        match random.one_in(2) {
            true => {
                world.kill(node);
                host.crash(Crash::Kill);
            }
            false => {
                world.power_cut(node);
                host.crash(Crash::PowerCut);
            }
        }
    }
    let reader = host.clone();
    world.block_on(node, async move { reader.verify(&*open().await).await });
    Report { trace_hash: world.trace_hash(), events: world.events() }
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use reactor::simulated::{DiskFault, DiskFaultKind};

    use super::*;

    /// How many of 20 seeds end badly on a disk that is prepared like this.
    fn found(prepare: fn(&World, NodeId)) -> usize {
        let run = |seed| catch_unwind(|| on_disk(Options { log_lines: 0, ..Options::seed(seed) }, open_file, prepare));
        (0..20).filter(|&seed| run(seed).is_err()).count()
    }

    #[test]
    fn a_disk_whose_cache_lies_is_found_out() {
        let lying = |world: &World, node| world.add_disk_fault(node, DISK, DiskFault::new(DiskFaultKind::LoseSyncs));
        assert!(found(lying) > 0);
    }

    #[test]
    fn a_disk_that_turns_a_bit_now_and_then_is_found_out() {
        let rotten = |world: &World, node| {
            let fault = DiskFault::new(DiskFaultKind::CorruptReads).with_probability(0.01);
            world.add_disk_fault(node, DISK, fault);
        };
        assert!(found(rotten) > 0);
    }
}
