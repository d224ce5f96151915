//! Disks on real files.

use reactor::{Buffer, Config, Disk, DiskOptions, Reactor, Slice};

fn run<F: Future<Output: 'static> + 'static>(future: F) -> F::Output {
    Reactor::run(&Config::default(), future).expect("a reactor")
}

fn create(size: u64) -> DiskOptions {
    DiskOptions { create: Some(size), buffered: true, ..DiskOptions::default() }
}

#[test]
fn what_was_written_is_read_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("disk");
    run(async move {
        let disk = Disk::open(&path, &create(1 << 20)).expect("opened");
        assert_eq!(disk.size(), 1 << 20);
        disk.write(8192, Slice::from(&[5; 8192][..])).await.expect("written");
        disk.sync().await.expect("stable");
        let (result, buffer) = disk.read(4096, Buffer::new(16384)).await;
        result.expect("read");
        assert!(buffer[..4096].iter().all(|&byte| byte == 0));
        assert!(buffer[4096..12288].iter().all(|&byte| byte == 5));
        disk.discard(8192, 4096).await.expect("discarded");
        disk.write_zeroes(12288, 4096).await.expect("zeroed");
        let (result, buffer) = disk.read(8192, Buffer::new(8192)).await;
        result.expect("read");
        assert!(buffer.iter().all(|&byte| byte == 0));
    });
}

#[test]
fn a_disk_has_one_opener_at_a_time() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("disk");
    run(async move {
        let disk = Disk::open(&path, &create(1 << 20)).expect("opened");
        let error = Disk::open(&path, &create(1 << 20)).err().expect("in use");
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
        assert!(error.to_string().contains("disk: in use by another process"), "{error}");
        drop(disk);
        Disk::open(&path, &DiskOptions::default()).expect("free again");
    });
}
