//! Entries that are appended as work is done, each with its own checksum: what a crash leaves half of is dropped.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::spool::Entry;

/// Bytes of a checksum: CRC-32C, little-endian.
const CHECKSUM: usize = 4;

/// Largest entry with its checksum.
const LARGEST: usize = 68;

/// Entries between two syncs. A power cut loses no more of them; what they say was done is done again.
const SYNC_EVERY: u32 = 32;

/// A journal that is open for more entries.
pub(crate) struct Journal {
    file: File,
    unsynced: u32,
}

impl Journal {
    /// Opens a journal, makes it if there is none, gives each entry to `each`, and cuts off what is no entry.
    pub(crate) fn open<E: Entry>(path: &Path, mut each: impl FnMut(E)) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).read(true).append(true).mode(0o600).open(path)?;
        let mut good = 0;
        for entry in entries::<E>(&file)? {
            each(entry?);
            good += (E::BYTES + CHECKSUM) as u64;
        }
        file.set_len(good)?;
        Ok(Self { file, unsynced: 0 })
    }

    pub(crate) fn push<E: Entry>(&mut self, entry: &E) -> io::Result<()> {
        let mut bytes = [0; LARGEST];
        entry.put(&mut bytes[..E::BYTES]);
        let checksum = crc_fast::crc32_iscsi(&bytes[..E::BYTES]).to_le_bytes();
        bytes[E::BYTES..E::BYTES + CHECKSUM].copy_from_slice(&checksum);
        self.file.write_all(&bytes[..E::BYTES + CHECKSUM])?;
        self.unsynced += 1;
        if self.unsynced >= SYNC_EVERY { self.sync() } else { Ok(()) }
    }

    pub(crate) fn sync(&mut self) -> io::Result<()> {
        self.unsynced = 0;
        self.file.sync_data()
    }

    /// Empties the journal durably.
    pub(crate) fn clear(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.sync_all()
    }
}

/// The entries of the journal at `path`, up to the first that is none.
pub(crate) fn read<E: Entry>(path: &Path) -> io::Result<impl Iterator<Item = io::Result<E>> + use<E>> {
    entries(&File::open(path)?)
}

fn entries<E: Entry>(file: &File) -> io::Result<impl Iterator<Item = io::Result<E>> + use<E>> {
    let mut file = file.try_clone()?;
    file.rewind()?;
    let mut reader = BufReader::new(file);
    Ok(std::iter::from_fn(move || next_entry(&mut reader).transpose()))
}

fn next_entry<E: Entry>(reader: &mut impl Read) -> io::Result<Option<E>> {
    let mut bytes = [0; LARGEST];
    match reader.read_exact(&mut bytes[..E::BYTES + CHECKSUM]) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let (entry, checksum) = bytes[..E::BYTES + CHECKSUM].split_at(E::BYTES);
    let whole = *checksum == crc_fast::crc32_iscsi(entry).to_le_bytes();
    Ok(if whole { E::take(entry) } else { None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Checksum;
    use crate::format::backup::BlockEntry;

    fn entry(n: u64) -> BlockEntry {
        BlockEntry { offset: n, checksum: Checksum::of(&n.to_le_bytes()) }
    }

    fn reopen(path: &Path) -> (Journal, Vec<BlockEntry>) {
        let mut found = Vec::new();
        let journal = Journal::open(path, |entry| found.push(entry)).expect("opened");
        (journal, found)
    }

    #[test]
    fn a_torn_end_is_dropped_and_written_over() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("delta");
        let (mut journal, found) = reopen(&path);
        assert_eq!(found, []);
        (0..3).for_each(|n| journal.push(&entry(n)).expect("room"));
        journal.sync().expect("synced");
        let whole = std::fs::read(&path).expect("read");
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).expect("cut");
            let (mut journal, found) = reopen(&path);
            let kept = cut / 44;
            assert_eq!(found, (0..kept as u64).map(entry).collect::<Vec<_>>(), "{cut}");
            journal.push(&entry(9)).expect("room");
            assert_eq!(reopen(&path).1.last(), Some(&entry(9)), "{cut}");
        }
    }

    #[test]
    fn nothing_after_damage_counts() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("delta");
        (0..3).for_each(|n| reopen(&path).0.push(&entry(n)).expect("room"));
        let mut bytes = std::fs::read(&path).expect("read");
        bytes[50] ^= 1;
        std::fs::write(&path, &bytes).expect("damaged");
        assert_eq!(reopen(&path).1, [entry(0)]);
        reopen(&path).0.clear().expect("emptied");
        assert_eq!(reopen(&path).1, []);
    }
}
