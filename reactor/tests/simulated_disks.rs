//! Disks and small files of a simulated world: what a crash keeps, loses and tears, and faults on demand.

use std::cell::RefCell;
use std::io::ErrorKind;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use reactor::simulated::{DiskFault, DiskFaultKind, DiskImage, DiskLatency, NodeId, Survival, World};
use reactor::{Buffer, Disk, DiskOptions, Slice, files, sleep, timeout};

const SIZE: u64 = 1 << 20;
const PATH: &str = "/disk";

fn world(seed: u64) -> (World, NodeId) {
    let world = World::new(seed);
    let node = world.add_node([10, 0, 0, 1].into());
    world.add_disk(node, PATH, SIZE, 512);
    (world, node)
}

fn open() -> Disk {
    Disk::open(PATH.as_ref(), &DiskOptions::default()).unwrap()
}

fn filled(fill: u8, length: usize) -> Slice {
    Slice::from(&vec![fill; length][..])
}

async fn read(disk: &Disk, offset: u64, length: usize) -> Vec<u8> {
    let (result, buffer) = disk.read(offset, Buffer::new(length)).await;
    result.unwrap();
    buffer.to_vec()
}

/// Writes 1s and syncs, then writes 2s over the second half and 3s behind, unsynced.
async fn write_some(disk: &Disk) {
    disk.write(0, filled(1, 8192)).await.unwrap();
    disk.sync().await.unwrap();
    disk.write(4096, filled(2, 4096)).await.unwrap();
    disk.write(8192, filled(3, 4096)).await.unwrap();
}

#[test]
fn what_is_written_reads_back_and_holes_are_zero() {
    let (world, node) = world(1);
    world.block_on(node, async {
        let disk = open();
        assert_eq!((disk.size(), disk.alignment()), (SIZE, 512));
        write_some(&disk).await;
        assert_eq!(read(&disk, 0, 4096).await, [1; 4096]);
        assert_eq!(read(&disk, 4096, 4096).await, [2; 4096]);
        disk.discard(4096, 4096).await.unwrap();
        disk.write_zeroes(0, 512).await.unwrap();
        assert_eq!(read(&disk, 4096, 4096).await, [0; 4096]);
        assert_eq!(read(&disk, 0, 1024).await, [[0; 512], [1; 512]].concat());
        assert_eq!(read(&disk, SIZE - 4096, 4096).await, [0; 4096]);
    });
    assert_eq!(world.disk_image(node, PATH).allocated(), 8192);
}

#[test]
fn a_kill_keeps_everything_that_was_done() {
    for seed in 0..20 {
        let (world, node) = world(seed);
        world.block_on(node, async { write_some(&open()).await });
        world.kill(node);
        world.block_on(node, async {
            let disk = open();
            assert_eq!(read(&disk, 4096, 4096).await, [2; 4096]);
            assert_eq!(read(&disk, 8192, 4096).await, [3; 4096]);
        });
    }
}

#[test]
fn a_kill_may_or_may_not_finish_a_write_in_flight() {
    let mut seen = [0_u32; 3];
    for seed in 0..100 {
        let (world, node) = world(seed);
        let slow = Duration::from_secs(1)..=Duration::from_secs(1);
        world.set_disk_latency(node, PATH, DiskLatency { write: slow, ..DiskLatency::default() });
        world.spawn(node, async { open().write(0, filled(9, 4096)).await });
        world.run_for(Duration::from_millis(100));
        world.kill(node);
        let image = world.disk_image(node, PATH);
        match image.bytes(0, 4096).iter().filter(|&&byte| byte == 9).count() {
            0 => seen[0] += 1,
            4096 => seen[1] += 1,
            _ => seen[2] += 1,
        }
    }
    assert!(seen.iter().all(|&count| count > 0), "nothing, all, a part: {seen:?}");
}

#[test]
fn a_power_cut_keeps_what_was_synced_and_any_part_of_the_rest() {
    let mut outcomes = std::collections::BTreeSet::new();
    for seed in 0..200 {
        let (world, node) = world(seed);
        world.block_on(node, async { write_some(&open()).await });
        world.power_cut(node);
        let image = world.disk_image(node, PATH);
        assert_eq!(image, world.durable_image(node, PATH));
        assert_eq!(image.bytes(0, 4096), [1; 4096]);
        let mut torn = false;
        let mut firsts = Vec::new();
        for (offset, old, new) in [(4096, 1, 2), (8192, 0, 3)] {
            let bytes = image.bytes(offset, 4096);
            for sector in bytes.chunks(512) {
                assert!(sector.iter().all(|&byte| byte == sector[0]), "a sector is whole");
                assert!([old, new].contains(&sector[0]));
            }
            torn |= bytes.iter().any(|&byte| byte != bytes[0]);
            firsts.push(bytes[0] == new);
        }
        outcomes.insert((firsts, torn));
    }
    // Either write without the other (reordered), both, none, and torn ones.
    for firsts in [[false, false], [false, true], [true, false], [true, true]] {
        assert!(outcomes.contains(&(firsts.to_vec(), false)), "{outcomes:?}");
    }
    assert!(outcomes.iter().any(|(_, torn)| *torn));
}

#[test]
fn a_sync_covers_only_writes_that_were_done_before_it() {
    let mut lost = 0;
    for seed in 0..50 {
        let (world, node) = world(seed);
        world.block_on(node, async {
            let disk = Rc::new(open());
            let other = Rc::clone(&disk);
            let sync = reactor::spawn(async move { other.sync().await });
            reactor::yield_now().await;
            disk.write(0, filled(1, 512)).await.unwrap();
            sync.await.unwrap().unwrap();
        });
        world.power_cut(node);
        lost += u32::from(world.disk_image(node, PATH).bytes(0, 1) == [0]);
    }
    assert!(lost > 0);
}

#[test]
fn only_one_may_have_a_disk_open_until_its_last_operation_is_done() {
    let (world, node) = world(2);
    world.block_on(node, async {
        let disk = open();
        let again = Disk::open(PATH.as_ref(), &DiskOptions::default()).err().unwrap();
        assert_eq!(again.kind(), ErrorKind::WouldBlock);
        drop(disk);
        drop(open());
        let missing = Disk::open("/none".as_ref(), &DiskOptions::default()).err().unwrap();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
    });
    world.boot(node, || async {
        let _held = open();
        std::future::pending::<()>().await;
    });
    world.run_for(Duration::from_secs(1));
    world.kill(node);
    world.block_on(node, async { drop(open()) });
}

#[test]
fn a_read_only_disk_refuses_writes_and_ranges_are_checked() {
    let (world, node) = world(3);
    world.block_on(node, async {
        let disk = Disk::open(PATH.as_ref(), &DiskOptions { read_only: true, ..Default::default() }).unwrap();
        assert!(disk.write(0, filled(1, 512)).await.is_err());
        assert_eq!(read(&disk, 0, 512).await, [0; 512]);
        assert!(disk.resize(2 * SIZE).is_err());
        assert_eq!(disk.write(100, filled(1, 512)).await.unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(disk.sync().await.map_err(|error| error.kind()), Ok(()));
    });
}

#[test]
fn the_buffer_of_a_dropped_read_is_safe_and_its_memory_comes_back() {
    let (world, node) = world(4);
    world.block_on(node, async {
        let disk = open();
        disk.write(0, filled(7, 4096)).await.unwrap();
        for wait in 0..50 {
            let before = reactor::buffer::lent();
            let buffer = Buffer::try_new(4096).unwrap();
            let read = timeout(Duration::from_micros(wait), disk.read(0, buffer)).await;
            if let Ok((result, buffer)) = read {
                result.unwrap();
                assert_eq!(&buffer[..], &[7; 4096]);
            } else {
                // The driver still owns the memory and will fill it: nobody else may get it meanwhile.
                let mut mine = Buffer::new(4096);
                mine.fill(1);
                sleep(Duration::from_millis(20)).await;
                assert!(mine.iter().all(|&byte| byte == 1));
                drop(mine);
            }
            assert_eq!(reactor::buffer::lent(), before);
        }
    });
}

#[test]
fn faults_fail_what_they_touch_until_they_are_lifted() {
    let (world, node) = world(5);
    world.add_disk_fault(node, PATH, DiskFault::new(DiskFaultKind::FailReads).within(4096..8192));
    world.add_disk_fault(node, PATH, DiskFault::new(DiskFaultKind::FailWrites).within(8192..8193));
    world.block_on(node, async {
        let disk = open();
        assert_eq!(read(&disk, 0, 4096).await, [0; 4096]);
        let (result, buffer) = disk.read(4096, Buffer::new(512)).await;
        assert_eq!((result.unwrap_err().raw_os_error(), buffer.len()), (Some(5), 512));
        disk.write(4096, filled(1, 4096)).await.unwrap();
        assert_eq!(disk.write(8192, filled(1, 512)).await.unwrap_err().raw_os_error(), Some(5));
    });
    world.clear_disk_faults(node, PATH);
    world.block_on(node, async { assert_eq!(read(&open(), 4096, 4096).await, [1; 4096]) });
}

#[test]
fn a_lost_place_reads_again_once_all_of_it_was_written() {
    let (world, node) = world(5);
    world.add_disk_fault(node, PATH, DiskFault::new(DiskFaultKind::LosePlaces).within(4096..8192));
    world.block_on(node, async {
        let disk = open();
        assert_eq!(read(&disk, 0, 4096).await, [0; 4096]);
        for part in [4096, 7680] {
            disk.write(part, filled(1, 512)).await.unwrap();
            assert_eq!(disk.read(part, Buffer::new(512)).await.0.unwrap_err().raw_os_error(), Some(5));
        }
        disk.write(0, filled(2, 8192)).await.unwrap();
        assert_eq!(read(&disk, 4096, 4096).await, [2; 4096]);
    });
}

#[test]
fn a_disk_that_hangs_goes_on_when_the_fault_is_lifted() {
    let (world, node) = world(6);
    world.add_disk_fault(node, PATH, DiskFault::new(DiskFaultKind::Hang));
    let write = world.spawn(node, async { open().write(0, filled(1, 512)).await.is_ok() });
    world.run_for(Duration::from_secs(3600));
    assert!(!write.is_done());
    world.clear_disk_faults(node, PATH);
    world.run_for(Duration::from_secs(1));
    assert_eq!(write.take(), Some(true));
}

#[test]
fn a_slow_disk_is_slow_and_a_probable_fault_is_probable() {
    let (world, node) = world(7);
    world.add_disk_fault(node, PATH, DiskFault::new(DiskFaultKind::Slow(Duration::from_secs(5))));
    world.add_disk_fault(node, PATH, DiskFault::new(DiskFaultKind::FailReads).with_probability(0.5));
    let failed = world.block_on(node, async {
        let disk = open();
        let start = reactor::now();
        disk.write(0, filled(1, 512)).await.unwrap();
        assert!(reactor::now() - start >= Duration::from_secs(5));
        let mut failed = 0;
        for _ in 0..200 {
            failed += u32::from(disk.read(0, Buffer::new(512)).await.0.is_err());
        }
        failed
    });
    assert!((50..150).contains(&failed), "{failed}");
}

#[test]
fn a_full_disk_says_so_and_still_takes_overwrites() {
    let (world, node) = world(8);
    world.limit_disk_space(node, PATH, Some(8192));
    world.block_on(node, async {
        let disk = open();
        disk.write(0, filled(1, 8192)).await.unwrap();
        assert_eq!(disk.write(8192, filled(2, 512)).await.unwrap_err().kind(), ErrorKind::StorageFull);
        disk.write(0, filled(2, 8192)).await.unwrap();
        disk.discard(0, 4096).await.unwrap();
        disk.write(8192, filled(3, 512)).await.unwrap();
    });
}

#[test]
fn lying_and_failing_syncs_lose_what_they_should_have_kept() {
    let mut lost = [0, 0];
    for seed in 0..40 {
        for (place, kind) in [DiskFaultKind::LoseSyncs, DiskFaultKind::FailSyncs].into_iter().enumerate() {
            let (world, node) = world(seed);
            world.add_disk_fault(node, PATH, DiskFault::new(kind));
            // The disk stays open, so that a later sync that succeeds does not bring back what a failed one gave up.
            let disk = Rc::new(RefCell::new(None));
            let opened = Rc::clone(&disk);
            let synced = world.block_on(node, async move {
                let disk = open();
                disk.write(0, filled(1, 512)).await.unwrap();
                let synced = disk.sync().await.is_ok();
                *opened.borrow_mut() = Some(disk);
                synced
            });
            assert_eq!(synced, kind == DiskFaultKind::LoseSyncs);
            world.clear_disk_faults(node, PATH);
            if kind == DiskFaultKind::FailSyncs {
                let disk = Rc::clone(&disk);
                world.block_on(node, async move {
                    let disk: Option<Disk> = disk.borrow().clone();
                    disk.unwrap().sync().await.unwrap();
                });
            }
            world.power_cut(node);
            lost[place] += u32::from(world.disk_image(node, PATH).bytes(0, 1) == [0]);
        }
    }
    assert!(lost.iter().all(|&count| (1..40).contains(&count)), "{lost:?}");
}

#[test]
fn syncs_can_be_trusted_again_once_the_disk_is_reopened() {
    for seed in 0..40 {
        let (world, node) = world(seed);
        world.add_disk_fault(node, PATH, DiskFault::new(DiskFaultKind::FailSyncs));
        world.block_on(node, async {
            let disk = open();
            disk.write(512, filled(1, 512)).await.unwrap();
            disk.sync().await.unwrap_err();
            disk.write(1024, filled(2, 512)).await.unwrap();
        });
        world.clear_disk_faults(node, PATH);
        world.block_on(node, async {
            let disk = open();
            assert_eq!(read(&disk, 512, 512).await, [1; 512]);
            disk.sync().await.unwrap();
        });
        world.power_cut(node);
        assert_eq!(world.disk_image(node, PATH).bytes(512, 1024), [[1; 512], [2; 512]].concat());
    }
}

#[test]
fn corrupt_reads_and_flipped_bits_change_one_bit() {
    let (world, node) = world(9);
    world.flip_bits(node, PATH, 600, 0x10);
    world.block_on(node, async { assert_eq!(read(&open(), 512, 512).await[88], 0x10) });
    world.add_disk_fault(node, PATH, DiskFault::new(DiskFaultKind::CorruptReads));
    let bytes = world.block_on(node, async { read(&open(), 4096, 4096).await });
    assert_eq!(bytes.iter().map(|byte| byte.count_ones()).sum::<u32>(), 1);
}

#[test]
fn images_can_be_carried_to_another_world() {
    let (world, node) = world(10);
    world.block_on(node, async { write_some(&open()).await });
    let image: DiskImage = world.disk_image(node, PATH);
    let other = World::new(11);
    let node = other.add_node([10, 0, 0, 9].into());
    other.set_disk_image(node, PATH, image);
    other.block_on(node, async { assert_eq!(read(&open(), 8192, 4096).await, [3; 4096]) });
}

#[test]
fn every_cut_of_a_recorded_run_keeps_what_was_synced_by_then() {
    let (world, node) = world(12);
    world.record_disk(node, PATH);
    let observer = world.observer();
    let synced_at = world.block_on(node, async move {
        let disk = open();
        disk.write(0, filled(1, 4096)).await.unwrap();
        disk.write(4096, filled(2, 4096)).await.unwrap();
        disk.sync().await.unwrap();
        let steps = observer.disk_steps(node, PATH);
        disk.write(0, filled(3, 4096)).await.unwrap();
        disk.write(4096, filled(4, 4096)).await.unwrap();
        steps
    });
    let history = world.disk_history(node, PATH);
    assert_eq!(synced_at, 5);
    assert_eq!(history.len(), 9);
    let mut images = 0;
    for (steps, cut) in history.cuts().enumerate() {
        for survival in cut.survivals(10, 1) {
            let image = cut.image(survival);
            images += 1;
            let firsts = [image.bytes(0, 1)[0], image.bytes(4096, 1)[0]];
            if steps < synced_at {
                assert!(firsts[0] <= 1 && [0, 2].contains(&firsts[1]), "after {steps}, {survival:?}");
            } else {
                assert!([1, 3].contains(&firsts[0]) && [2, 4].contains(&firsts[1]), "after {steps}, {survival:?}");
            }
        }
    }
    assert!(images > 50);
    let last = history.cut(history.len());
    assert_eq!(last.image(Survival::Only(1)).bytes(0, 4097), [vec![1; 4096], vec![4; 1]].concat());
}

#[test]
fn small_files_are_old_or_new_after_a_crash_and_stable_once_seen() {
    let path = Path::new("/state/epoch");
    let mut seen = [0, 0];
    for seed in 0..60 {
        let (world, node) = world(seed);
        world.block_on(node, async move {
            assert_eq!(files::read(path).await.unwrap_err().kind(), ErrorKind::NotFound);
            files::replace(path, b"old".to_vec()).await.unwrap();
            assert_eq!(files::list("/state".as_ref()).await.unwrap(), ["epoch"]);
        });
        world.spawn(node, async move { files::replace(path, b"new".to_vec()).await });
        world.run_for(Duration::from_micros(50));
        world.kill(node);
        let first = world.block_on(node, async move { files::read(path).await.unwrap() });
        world.power_cut(node);
        let second = world.block_on(node, async move { files::read(path).await.unwrap() });
        assert_eq!(first, second);
        seen[usize::from(first == b"new")] += 1;
        world.block_on(node, async move { files::remove(path).await.unwrap() });
        world.power_cut(node);
        world.block_on(node, async move { assert!(files::read(path).await.is_err()) });
    }
    assert!(seen.iter().all(|&count| count > 0), "old and new: {seen:?}");
}

#[test]
fn operations_on_files_fail_on_demand() {
    let (world, node) = world(13);
    world.fail_files(node, 1.0);
    world.block_on(node, async { assert!(files::replace("/a".as_ref(), vec![1]).await.is_err()) });
    world.fail_files(node, 0.0);
    world.block_on(node, async { assert!(files::list("/".as_ref()).await.unwrap().iter().all(|name| name != "a")) });
}
