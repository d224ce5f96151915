//! Disks on block devices: a loop device over a file, which takes root. Without it these tests say so and pass.

mod support;

use std::path::{Path, PathBuf};

use loop_device::LoopDevice;
use reactor::{Buffer, Disk, DiskOptions};

use support::{patterned, run};

const SIZE: u64 = 8 << 20;

/// A loop device and the file behind it, until dropped.
struct Loop {
    device: LoopDevice,
    _folder: tempfile::TempDir,
    file: PathBuf,
}

impl Loop {
    fn new(sector: u32) -> Option<Self> {
        let folder = tempfile::tempdir().ok()?;
        let file = folder.path().join("backing");
        match LoopDevice::over(&file, SIZE, sector) {
            Ok(device) => Some(Self { device, _folder: folder, file }),
            Err(reason) => {
                println!("skipped: {reason}");
                None
            }
        }
    }
}

fn open(path: &Path) -> std::io::Result<Disk> {
    Disk::open(path, &DiskOptions::default())
}

#[test]
fn a_block_device_is_read_written_and_discarded() {
    use std::os::unix::fs::MetadataExt;
    for sector in [512, 4096] {
        let Some(device) = Loop::new(sector) else { return };
        let path = device.device.path().to_owned();
        let file = device.file.clone();
        run(async move {
            let disk = open(&path).expect("opened");
            assert_eq!((disk.size(), disk.alignment()), (SIZE, sector));
            // The physical blocks of a loop device are its sectors.
            assert_eq!(disk.atomic_write(), sector);
            disk.write(1 << 20, patterned(0..1 << 20)).await.expect("written");
            disk.sync().await.expect("stable");
            let full = std::fs::metadata(&file).expect("there").blocks();
            disk.discard(1 << 20, 1 << 19).await.expect("discarded");
            disk.write_zeroes((1 << 20) + (1 << 19), 1 << 18).await.expect("zeroed");
            assert!(std::fs::metadata(&file).expect("there").blocks() < full, "space came back");
            let (result, buffer) = disk.read(1 << 20, Buffer::new(1 << 20)).await;
            result.expect("read");
            assert!(buffer[..768 << 10].iter().all(|&byte| byte == 0));
            assert!(buffer[768 << 10..] == patterned(768 << 10..1 << 20)[..]);
            assert!(disk.resize(SIZE * 2).is_err(), "it keeps its size");
        });
    }
}

#[test]
fn a_block_device_has_one_opener_at_a_time() {
    let Some(device) = Loop::new(512) else { return };
    let path = device.device.path().to_owned();
    run(async move {
        let disk = open(&path).expect("opened");
        let error = open(&path).err().expect("in use").to_string();
        assert!(error.contains("in use by another process"), "{error}");
        drop(disk);
        open(&path).expect("free again");
    });
}
