//! How much of a plan is done: a count in two slots, written in turn, so that a torn write loses the newest count only.
//!
//! A count survives the end of the process at once, and a power cut when it is synced, which the next ones do now and then: a sync for each would take as
//! long as the step itself. One that is lost means that some steps are done again.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// Bytes of a slot: a sector, which a power cut tears alone.
const SLOT: u64 = 512;

/// Counts between two syncs.
const SYNC_EVERY: u32 = 16;

/// Count (8), CRC-32C of it (4).
const USED: usize = 12;

/// The count, open for higher ones.
pub(crate) struct Watermark {
    file: File,
    count: u64,
    slot: u64,
    unsynced: u32,
}

impl Watermark {
    /// Opens the file, makes it if there is none: then the count is 0.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(path)?;
        let first = read_slot(&file, 0)?;
        let second = read_slot(&file, 1)?;
        let slot = u64::from(second > first);
        Ok(Self { file, count: first.max(second).unwrap_or(0), slot, unsynced: 0 })
    }

    pub(crate) const fn count(&self) -> u64 {
        self.count
    }

    /// Records that `count` steps are done; they must be durable.
    pub(crate) fn set(&mut self, count: u64) -> io::Result<()> {
        let slot = 1 - self.slot;
        let mut bytes = [0; USED];
        bytes[..8].copy_from_slice(&count.to_le_bytes());
        let checksum = crc_fast::crc32_iscsi(&bytes[..8]);
        bytes[8..].copy_from_slice(&checksum.to_le_bytes());
        self.file.write_all_at(&bytes, slot * SLOT)?;
        self.unsynced += 1;
        if self.unsynced >= SYNC_EVERY {
            self.file.sync_data()?;
            self.unsynced = 0;
        }
        (self.slot, self.count) = (slot, count);
        Ok(())
    }
}

/// The count in a slot; None if there is none that is whole.
fn read_slot(file: &File, slot: u64) -> io::Result<Option<u64>> {
    let mut bytes = [0; USED];
    match file.read_exact_at(&mut bytes, slot * SLOT) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let mut count = [0; 8];
    count.copy_from_slice(&bytes[..8]);
    // Zeroes are what a file system shows of a slot that was never written; their checksum is not zero.
    let whole = bytes[8..] == crc_fast::crc32_iscsi(&count).to_le_bytes();
    Ok(whole.then(|| u64::from_le_bytes(count)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_whole_count_is_found() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("done");
        assert_eq!(Watermark::open(&path).expect("opened").count(), 0);
        for count in 1..10 {
            Watermark::open(&path).expect("opened").set(count).expect("written");
            assert_eq!(Watermark::open(&path).expect("opened").count(), count);
            let good = std::fs::read(&path).expect("read");
            let newest = Watermark::open(&path).expect("opened").slot as usize * SLOT as usize;
            let mut torn = good.clone();
            torn[newest + 2] ^= 1;
            std::fs::write(&path, torn).expect("torn");
            assert_eq!(Watermark::open(&path).expect("opened").count(), count - 1);
            std::fs::write(&path, good).expect("mended");
        }
    }
}
