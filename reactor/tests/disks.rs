//! Disks and small files on the real file system.

mod support;

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::path::Path;
use std::rc::Rc;

use reactor::{Buffer, Config, Disk, DiskAction, DiskOptions, Slice, files, spawn};
use smallvec::SmallVec;

use support::{pattern, patterned, poll_once, run, run_with};

fn create(size: u64) -> DiskOptions {
    DiskOptions { create: Some(size), buffered: true, ..DiskOptions::default() }
}

/// Runs `body` with a new disk of 4 MiB in a folder of its own.
fn with_disk<F: Future<Output = ()> + 'static>(body: impl FnOnce(Disk, tempfile::TempDir) -> F + 'static) {
    run(async move {
        let folder = tempfile::tempdir().expect("a folder");
        let disk = Disk::open(&folder.path().join("disk"), &create(4 << 20)).expect("opened");
        body(disk, folder).await;
    });
}

async fn read(disk: &Disk, offset: u64, length: usize) -> Buffer {
    let (result, buffer) = disk.read(offset, Buffer::new(length)).await;
    result.expect("read");
    buffer
}

#[test]
fn what_was_written_is_read_back() {
    with_disk(|disk, _folder| async move {
        assert_eq!(disk.size(), 4 << 20);
        let unit = disk.atomic_write();
        assert!(unit.is_power_of_two() && (512..=4096).contains(&unit), "{unit}");
        disk.write(8192, Slice::from(&[5; 8192][..])).await.expect("written");
        disk.sync().await.expect("stable");
        let buffer = read(&disk, 4096, 16384).await;
        assert!(buffer[..4096].iter().all(|&byte| byte == 0));
        assert!(buffer[4096..12288].iter().all(|&byte| byte == 5));
        assert!(buffer[12288..].iter().all(|&byte| byte == 0));
    });
}

#[test]
fn discarded_and_zeroed_ranges_read_as_zeroes_and_others_stay() {
    // A memory file system punches holes but zeroes no ranges: there zeroes are written.
    for folder in [std::env::temp_dir(), "/dev/shm".into()] {
        run(async move {
            let Ok(folder) = tempfile::tempdir_in(&folder) else { return };
            let disk = Disk::open(&folder.path().join("disk"), &create(8 << 20)).expect("opened");
            disk.write(0, patterned(0..4 << 20)).await.expect("written");
            disk.discard(8192, 4096).await.expect("discarded");
            disk.write_zeroes(16384, 8192).await.expect("zeroed");
            disk.write_zeroes(1 << 20, (2 << 20) + 4096).await.expect("zeroed");
            let mut expected = patterned(0..4 << 20).to_vec();
            expected[8192..12288].fill(0);
            expected[16384..24576].fill(0);
            expected[1 << 20..(3 << 20) + 4096].fill(0);
            assert!(read(&disk, 0, 4 << 20).await[..] == expected[..]);
            assert_eq!(disk.size(), 8 << 20);
        });
    }
}

#[test]
fn discarding_gives_space_back() {
    use std::os::unix::fs::MetadataExt;
    with_disk(|disk, folder| async move {
        let blocks = || std::fs::metadata(folder.path().join("disk")).expect("there").blocks();
        disk.write(0, patterned(0..1 << 20)).await.expect("written");
        disk.sync().await.expect("stable");
        let full = blocks();
        disk.discard(0, 1 << 20).await.expect("discarded");
        assert!(blocks() < full, "{full} blocks before and {} after", blocks());
        assert_eq!(disk.size(), 4 << 20);
    });
}

#[test]
fn many_operations_go_through_a_tiny_ring() {
    let config = Config { ring_entries: 2, ..Config::default() };
    run_with(&config, async {
        let folder = tempfile::tempdir().expect("a folder");
        let disk = Disk::open(&folder.path().join("disk"), &create(4 << 20)).expect("opened");
        let write = |at: usize| {
            let disk = disk.clone();
            spawn(async move { disk.write(at as u64, patterned(at..at + 4096)).await })
        };
        let writes: Vec<_> = (0..4 << 20).step_by(4096).map(write).collect();
        for write in writes {
            write.await.expect("no panic").expect("written");
        }
        assert!(read(&disk, 0, 4 << 20).await.iter().enumerate().all(|(at, &byte)| byte == pattern(at)));
    });
}

#[test]
fn one_write_of_many_slices_is_whole() {
    with_disk(|disk, _folder| async move {
        // More than the kernel takes in one operation (1024).
        let slices: SmallVec<[Slice; 1]> = (0..1500).map(|at| patterned(at * 512..(at + 1) * 512)).collect();
        if disk.alignment() > 512 {
            return;
        }
        disk.write_slices(0, slices).await.expect("written");
        assert!(read(&disk, 0, 1500 * 512).await.iter().enumerate().all(|(at, &byte)| byte == pattern(at)));
    });
}

#[test]
fn ranges_outside_or_not_aligned_are_refused_and_buffers_handed_back() {
    with_disk(|disk, _folder| async move {
        for (offset, length) in [(4 << 20, 4096), (1, 4096), (0, 4095), (u64::MAX - 4095, 4096)] {
            let (result, buffer) = disk.read(offset, Buffer::new(length)).await;
            assert_eq!(result.map_err(|error| error.kind()), Err(io::ErrorKind::InvalidInput));
            assert_eq!(buffer.len(), length);
            let data = Buffer::zeroed(length).freeze();
            let written = disk.write(offset, data).await.map_err(|error| error.kind());
            assert_eq!(written, Err(io::ErrorKind::InvalidInput));
        }
    });
}

#[test]
fn a_file_cut_short_behind_our_back_is_an_error_and_no_zeroes() {
    with_disk(|disk, folder| async move {
        File::options().write(true).open(folder.path().join("disk")).expect("opened").set_len(8192).expect("cut");
        let (result, _) = disk.read(4096, Buffer::new(8192)).await;
        assert_eq!(result.map_err(|error| error.kind()), Err(io::ErrorKind::UnexpectedEof));
        let (result, _) = disk.read(1 << 20, Buffer::new(4096)).await;
        assert_eq!(result.map_err(|error| error.kind()), Err(io::ErrorKind::UnexpectedEof));
    });
}

#[test]
fn a_disk_has_one_opener_at_a_time() {
    with_disk(|disk, folder| async move {
        let path = folder.path().join("disk");
        let error = Disk::open(&path, &create(1 << 20)).err().map(|error| (error.kind(), error.to_string()));
        let (kind, text) = error.expect("in use");
        assert_eq!(kind, io::ErrorKind::WouldBlock);
        assert!(
            text.contains(path.to_str().expect("a plain name")) && text.contains("in use by another process"),
            "{text}"
        );
        drop(disk);
        drop(Disk::open(&path, &DiskOptions::default()).expect("free again"));
        // As another process would hold it: a lock of another open file.
        let other = File::open(&path).expect("opened");
        other.try_lock().expect("locked");
        let refused = Disk::open(&path, &DiskOptions::default()).err().map(|error| error.kind());
        assert_eq!(refused, Some(io::ErrorKind::WouldBlock));
    });
}

#[test]
fn opening_keeps_what_is_there() {
    with_disk(|disk, folder| async move {
        disk.write(0, patterned(0..4096)).await.expect("written");
        drop(disk);
        let disk = Disk::open(&folder.path().join("disk"), &create(64 << 20)).expect("opened");
        assert_eq!(disk.size(), 4 << 20, "a size is for new files only");
        assert!(read(&disk, 0, 4096).await[..] == patterned(0..4096)[..]);
        drop(disk);
        let reader = DiskOptions { read_only: true, ..DiskOptions::default() };
        let disk = Disk::open(&folder.path().join("disk"), &reader).expect("opened");
        assert!(disk.write(0, patterned(0..4096)).await.is_err());
        assert!(disk.discard(0, 4096).await.is_err());
        assert!(read(&disk, 0, 4096).await[..] == patterned(0..4096)[..]);
    });
}

#[test]
fn what_is_no_disk_is_refused_by_name() {
    run(async {
        let folder = tempfile::tempdir().expect("a folder");
        for path in [folder.path(), Path::new("/dev/null"), &folder.path().join("absent")] {
            let error = Disk::open(path, &DiskOptions::default()).err().expect("refused").to_string();
            assert!(error.contains(path.to_str().expect("a plain name")), "{error}");
        }
    });
}

#[test]
fn resizing_is_seen_at_once() {
    with_disk(|disk, folder| async move {
        disk.resize(8 << 20).expect("grown");
        let path = folder.path().join("disk");
        assert_eq!(std::fs::metadata(&path).expect("there").len(), 8 << 20);
        let other = std::fs::OpenOptions::new().write(true).open(&path).expect("opened");
        other.set_len(12 << 20).expect("larger");
        assert_eq!((disk.size(), disk.measure().expect("measured"), disk.size()), (8 << 20, 12 << 20, 12 << 20));
        disk.write(7 << 20, patterned(0..4096)).await.expect("written");
        disk.resize(4 << 20).expect("shrunk");
        assert!(disk.read(7 << 20, Buffer::new(4096)).await.0.is_err());
    });
}

/// The driver holds the memory of a dropped operation until the kernel is done with it.
#[test]
fn memory_of_dropped_operations_is_lent_until_they_complete() {
    with_disk(|disk, _folder| async move {
        for at in 0..64 {
            let buffer = Buffer::try_new(65_536).expect("within the limit");
            let mut reading = Box::pin(disk.read(at * 65_536, buffer));
            assert!(poll_once(&mut reading).await.is_pending());
        }
        assert_eq!(reactor::buffer::lent(), 64 * 65_536, "no turn has passed");
        support::until(|| reactor::buffer::lent() == 0).await;
    });
}

#[test]
fn small_files_are_replaced_listed_and_removed() {
    run(async {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("b.json");
        assert_eq!(files::read(&path).await.map_err(|error| error.kind()), Err(io::ErrorKind::NotFound));
        files::replace(&path, b"one".to_vec()).await.expect("made");
        files::replace(&path, b"two".to_vec()).await.expect("replaced");
        files::replace(&folder.path().join("a.json"), Vec::new()).await.expect("made");
        std::fs::write(folder.path().join("c.json.unfinished"), b"left by a crash").expect("written");
        assert_eq!(files::read(&path).await.expect("read"), b"two");
        assert_eq!(files::list(folder.path()).await.expect("listed"), ["a.json", "b.json"]);
        files::remove(&path).await.expect("removed");
        files::remove(&path).await.expect("again is fine");
        assert_eq!(files::list(folder.path()).await.expect("listed"), ["a.json"]);
        assert!(files::list(&folder.path().join("absent")).await.expect("listed").is_empty());
        let error = files::replace(Path::new("/proc/no/such"), Vec::new()).await.expect_err("refused");
        assert!(error.to_string().contains("/proc/no/such"), "{error}");
    });
}

#[test]
fn memory_disks_behave_like_others() {
    run(async {
        let disk = Disk::memory(1 << 20).expect("memory");
        disk.write(4096, patterned(0..8192)).await.expect("written");
        disk.discard(4096, 4096).await.expect("discarded");
        disk.sync().await.expect("nothing to do");
        let buffer = read(&disk, 4096, 8192).await;
        assert!(buffer[..4096].iter().all(|&byte| byte == 0));
        assert!(buffer[4096..] == patterned(4096..8192)[..]);
        assert!(disk.read(1 << 20, Buffer::new(512)).await.0.is_err());
    });
}

#[test]
fn sparse_memory_holds_disks_larger_than_memory() {
    run(async {
        let disk = Disk::sparse_memory(1 << 50);
        disk.write((1 << 50) - 8192, patterned(0..8192)).await.expect("written");
        assert!(read(&disk, (1 << 50) - 8192, 8192).await[..] == patterned(0..8192)[..]);
        disk.write_zeroes(1 << 20, 1 << 49).await.expect("zeroed");
        disk.discard(0, 1 << 50).await.expect("discarded");
        assert!(read(&disk, (1 << 50) - 8192, 8192).await.iter().all(|&byte| byte == 0));
        assert!(disk.read(1 << 50, Buffer::new(512)).await.0.is_err());
    });
}

#[test]
fn a_watcher_is_told_of_everything_that_is_asked_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("disk");
    run(async move {
        let options = DiskOptions { create: Some(1 << 20), buffered: true, ..DiskOptions::default() };
        for disk in [Disk::memory(1 << 20).expect("memory"), Disk::open(&path, &options).expect("opened")] {
            let told = Rc::new(RefCell::new(Vec::new()));
            let watcher = Rc::clone(&told);
            disk.watch(move |action| watcher.borrow_mut().push(action));
            disk.watch(|_| unreachable!("there is one already"));
            disk.write(4096, patterned(0..8192)).await.expect("written");
            read(&disk.clone(), 0, 4096).await;
            disk.write_zeroes(4096, 4096).await.expect("zeroed");
            disk.discard(8192, 4096).await.expect("discarded");
            disk.sync().await.expect("synced");
            assert!(disk.read(1, Buffer::new(512)).await.0.is_err(), "not asked of the disk");
            let expected = [
                DiskAction::Write { offset: 4096, length: 8192 },
                DiskAction::Read { offset: 0, length: 4096 },
                DiskAction::WriteZeroes { offset: 4096, length: 4096 },
                DiskAction::Discard { offset: 8192, length: 4096 },
                DiskAction::Sync,
            ];
            assert_eq!(*told.borrow(), expected);
        }
    });
}

/// A reactor that ends waits for the kernel: what it frees is not written to afterwards.
#[test]
fn memory_of_an_ended_reactor_is_the_kernels_no_more() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("disk");
    std::fs::write(&path, vec![0xAB; 16 << 20]).expect("written");
    for _ in 0..20 {
        let path = path.clone();
        run(async move {
            let disk = Disk::open(&path, &DiskOptions { buffered: true, ..DiskOptions::default() }).expect("opened");
            for at in 0..16 {
                let disk = disk.clone();
                spawn(async move { disk.read(at << 20, Buffer::new(1 << 20)).await.0 });
            }
            reactor::yield_now().await;
        });
        // The very blocks that the reads had.
        let buffers: Vec<Buffer> = (0..16).map(|_| Buffer::zeroed(1 << 20)).collect();
        std::thread::sleep(std::time::Duration::from_millis(5));
        assert!(buffers.iter().all(|buffer| buffer.iter().all(|&byte| byte == 0)));
    }
}

/// More than the kernel gets at once of one disk: the others wait, whoever gives up is taken out, and the disk closes after them all.
#[test]
fn a_disk_takes_more_operations_than_the_kernel_gets_at_once() {
    const BLOCKS: u64 = 1024;
    with_disk(|disk, folder| async move {
        let write = |block: u64, byte: u8| {
            let disk = disk.clone();
            spawn(async move { disk.write(block * 4096, Slice::from(&[byte; 4096][..])).await })
        };
        for write in (0..BLOCKS).map(|block| write(block, block as u8)).collect::<Vec<_>>() {
            write.await.expect("not aborted").expect("written");
        }
        let mut writes: Vec<_> = (0..BLOCKS).map(|block| write(block, 0xee)).collect();
        // All of them begin, and the last ones are far from their turn when whoever wanted them gives up.
        reactor::yield_now().await;
        let given_up = writes.split_off(BLOCKS as usize - 100);
        given_up.iter().for_each(|write| write.abort());
        for write in writes {
            write.await.expect("not aborted").expect("written");
        }
        let content = read(&disk, 0, BLOCKS as usize * 4096).await;
        for (block, bytes) in content.chunks(4096).enumerate() {
            let expected = if block < BLOCKS as usize - 100 { 0xee } else { block as u8 };
            assert!(bytes.iter().all(|byte| *byte == expected), "{block}");
        }
        for write in (0..BLOCKS).map(|block| write(block, 7)).collect::<Vec<_>>() {
            write.await.expect("not aborted").expect("written");
        }
        assert!(read(&disk, 0, BLOCKS as usize * 4096).await.iter().all(|byte| *byte == 7));
        drop(disk);
        let again = Disk::open(&folder.path().join("disk"), &create(4 << 20));
        assert!(again.is_ok(), "nothing holds it any more");
    });
}
