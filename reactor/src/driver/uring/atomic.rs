//! What a disk writes whole or not at all when the power goes, as far as the kernel knows.

use std::path::{Path, PathBuf};

use super::disks::{LEAST_ALIGNMENT, MOST_ALIGNMENT};

/// Where the kernel tells of block devices, by major and minor number.
pub(super) const DEVICES: &str = "/sys/dev/block";

/// How many devices may lie on top of each other.
const DEPTH: u32 = 8;

/// Bytes that the device with this number writes whole or not at all, when aligned: 512 to 4096. 512, the least of all drives, where
/// the kernel does not say: devices of network and copying file systems are none.
///
/// That is its physical block, or its unit of atomic writes if it has one. A device made of others is as good as the worst of them.
/// What does not begin at a physical block's start would have its units cross two.
pub(super) fn unit_of(devices: &Path, major: u32, minor: u32) -> u32 {
    match devices.join(format!("{major}:{minor}")).canonicalize() {
        Ok(device) => unit_of_device(&device, DEPTH),
        Err(_) => LEAST_ALIGNMENT,
    }
}

fn unit_of_device(device: &Path, depth: u32) -> u32 {
    let is_partition = device.join("partition").exists();
    let whole = if is_partition { device.parent().unwrap_or(device) } else { device };
    let physical = number(whole.join("queue/physical_block_size")).unwrap_or(0);
    let atomic = number(whole.join("queue/atomic_write_unit_max_bytes")).unwrap_or(0);
    let mut unit = physical.max(atomic).clamp(u64::from(LEAST_ALIGNMENT), u64::from(MOST_ALIGNMENT));
    // In units of 512 bytes, whatever the sectors are.
    let start = if is_partition { number(device.join("start")).unwrap_or(1) * 512 } else { 0 };
    // Absent for whole drives on old kernels, -1 for what is made of drives that disagree.
    let is_aligned = std::fs::read_to_string(device.join("alignment_offset")).map_or(true, |text| text.trim() == "0");
    if !unit.is_power_of_two() || !start.is_multiple_of(unit) || !is_aligned {
        unit = u64::from(LEAST_ALIGNMENT);
    }
    // At most 4096.
    let mut unit = unit as u32;
    let parts = std::fs::read_dir(whole.join("slaves")).into_iter().flatten().flatten();
    for part in parts.filter_map(|part| part.path().canonicalize().ok()) {
        unit = unit.min(if depth == 0 { LEAST_ALIGNMENT } else { unit_of_device(&part, depth - 1) });
    }
    unit
}

/// A number in a file of its own.
fn number(path: PathBuf) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder as the kernel makes it for a device.
    fn device(root: &Path, name: &str, number: &str, attributes: &[(&str, &str)]) -> PathBuf {
        let folder = root.join("devices").join(name);
        for (file, content) in attributes {
            let path = folder.join(file);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            std::fs::write(path, format!("{content}\n")).expect("written");
        }
        let by_number = root.join("block");
        std::fs::create_dir_all(&by_number).expect("made");
        std::os::unix::fs::symlink(&folder, by_number.join(number)).expect("linked");
        folder
    }

    #[test]
    fn what_the_kernel_says_of_a_drive_counts_and_nothing_is_the_least() {
        let root = tempfile::tempdir().expect("a folder");
        let unit = |minor| unit_of(&root.path().join("block"), 8, minor);
        device(root.path(), "a", "8:0", &[("queue/physical_block_size", "4096")]);
        device(root.path(), "b", "8:1", &[("queue/physical_block_size", "512")]);
        let atomic = [("queue/physical_block_size", "512"), ("queue/atomic_write_unit_max_bytes", "65536")];
        device(root.path(), "c", "8:2", &atomic);
        device(root.path(), "d", "8:3", &[("queue/physical_block_size", "16384"), ("alignment_offset", "0")]);
        device(root.path(), "e", "8:4", &[("queue/physical_block_size", "4096"), ("alignment_offset", "-1")]);
        device(root.path(), "f", "8:5", &[("alignment_offset", "3584"), ("queue/physical_block_size", "4096")]);
        assert_eq!((0..7).map(unit).collect::<Vec<_>>(), [4096, 512, 4096, 4096, 512, 512, 512]);
    }

    #[test]
    fn a_partition_must_begin_with_a_physical_block() {
        let root = tempfile::tempdir().expect("a folder");
        let unit = |minor| unit_of(&root.path().join("block"), 8, minor);
        device(root.path(), "a", "8:0", &[("queue/physical_block_size", "4096")]);
        device(root.path(), "a/a1", "8:1", &[("partition", "1"), ("start", "2048")]);
        device(root.path(), "a/a2", "8:2", &[("partition", "2"), ("start", "4097")]);
        assert_eq!((0..3).map(unit).collect::<Vec<_>>(), [4096, 4096, 512]);
    }

    #[test]
    fn a_device_of_several_is_as_good_as_the_worst() {
        let root = tempfile::tempdir().expect("a folder");
        let good = device(root.path(), "a", "8:0", &[("queue/physical_block_size", "4096")]);
        let bad = device(root.path(), "b", "8:1", &[("queue/physical_block_size", "512")]);
        for (name, number, parts) in [("m", "9:0", [&good, &good]), ("n", "9:1", [&good, &bad])] {
            let folder = device(root.path(), name, number, &[("queue/physical_block_size", "4096")]);
            std::fs::create_dir(folder.join("slaves")).expect("made");
            for (place, part) in parts.into_iter().enumerate() {
                std::os::unix::fs::symlink(part, folder.join("slaves").join(place.to_string())).expect("linked");
            }
        }
        let unit = |minor| unit_of(&root.path().join("block"), 9, minor);
        assert_eq!((unit(0), unit(1)), (4096, 512));
    }
}
