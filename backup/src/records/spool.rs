//! Files of entries of one length, made once and then read: with a count and a checksum at their end, so that half of one
//! is none.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use crc_fast::{CrcAlgorithm, Digest};

use super::files;
use crate::error::{Result, local};

/// Something with a fixed form.
pub(crate) trait Entry: Sized {
    /// Bytes of one.
    const BYTES: usize;
    /// What their files end with.
    const MAGIC: [u8; 8];

    /// Its form, in `bytes` of that length.
    fn put(&self, bytes: &mut [u8]);

    /// Back from it; None if it is none.
    fn take(bytes: &[u8]) -> Option<Self>;
}

/// Largest entry.
const LARGEST: usize = 64;

/// Magic, count, checksum (CRC-32C of all entries), zero.
const TRAILER: usize = 24;

/// Buffer of a reader or writer.
const BUFFER: usize = 1 << 16;

/// A file that is being made.
pub(crate) struct Writer<E> {
    path: PathBuf,
    temporary: PathBuf,
    file: BufWriter<File>,
    digest: Digest,
    count: u64,
    entries: PhantomData<E>,
}

impl<E: Entry> Writer<E> {
    /// Begins the file that will be `path`.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let temporary = files::temporary(path);
        let file = BufWriter::with_capacity(BUFFER, files::create(&temporary)?);
        let digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
        Ok(Self { path: path.to_owned(), temporary, file, digest, count: 0, entries: PhantomData })
    }

    pub(crate) fn push(&mut self, entry: &E) -> io::Result<()> {
        let mut bytes = [0; LARGEST];
        let bytes = &mut bytes[..E::BYTES];
        entry.put(bytes);
        self.digest.update(bytes);
        self.count += 1;
        self.file.write_all(bytes)
    }

    /// Gives the file its end and its name. A crash before this returns leaves none, or all of it.
    pub(crate) fn finish(mut self) -> io::Result<u64> {
        let mut trailer = [0; TRAILER];
        trailer[..8].copy_from_slice(&E::MAGIC);
        trailer[8..16].copy_from_slice(&self.count.to_le_bytes());
        trailer[16..20].copy_from_slice(&checksum(&self.digest).to_le_bytes());
        self.file.write_all(&trailer)?;
        self.file.flush()?;
        self.file.get_ref().sync_all()?;
        files::publish(&self.temporary, &self.path)?;
        Ok(self.count)
    }
}

impl<E> Drop for Writer<E> {
    fn drop(&mut self) {
        // No file has this name once it is finished. What cannot be removed is removed when the folder is opened next.
        let _ = fs::remove_file(&self.temporary);
    }
}

/// A file that is whole, read from its first entry on.
pub(crate) struct Reader<E> {
    file: BufReader<File>,
    left: u64,
    entries: PhantomData<E>,
}

impl<E: Entry> Reader<E> {
    /// Opens a file and reads all of it once, for its checksum; None if there is none, or none that is whole.
    pub(crate) fn open(path: &Path) -> Result<Option<Self>> {
        match Self::try_open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other.map_err(local(path.display())),
        }
    }

    fn try_open(path: &Path) -> io::Result<Option<Self>> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        let Some(body) = length.checked_sub(TRAILER as u64) else { return Ok(None) };
        if body % E::BYTES as u64 != 0 {
            return Ok(None);
        }
        let mut reader = BufReader::with_capacity(BUFFER, file);
        let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
        let count = body / E::BYTES as u64;
        let mut bytes = [0; LARGEST];
        for _ in 0..count {
            reader.read_exact(&mut bytes[..E::BYTES])?;
            digest.update(&bytes[..E::BYTES]);
        }
        let mut trailer = [0; TRAILER];
        reader.read_exact(&mut trailer)?;
        let whole = trailer[..8] == E::MAGIC
            && trailer[8..16] == count.to_le_bytes()
            && trailer[16..20] == checksum(&digest).to_le_bytes();
        if !whole {
            return Ok(None);
        }
        let file = BufReader::with_capacity(BUFFER, File::open(path)?);
        Ok(Some(Self { file, left: count, entries: PhantomData }))
    }

    /// Leaves out the next `entries`.
    pub(crate) fn skip_entries(&mut self, entries: u64) -> io::Result<()> {
        let skipped = entries.min(self.left);
        self.left -= skipped;
        let bytes = i64::try_from(skipped * E::BYTES as u64).map_err(io::Error::other)?;
        self.file.seek_relative(bytes)
    }
}

impl<E: Entry> Iterator for Reader<E> {
    type Item = io::Result<E>;

    fn next(&mut self) -> Option<io::Result<E>> {
        self.left = self.left.checked_sub(1)?;
        let mut bytes = [0; LARGEST];
        let bytes = &mut bytes[..E::BYTES];
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, "an entry is none");
        Some(self.file.read_exact(bytes).and_then(|()| E::take(bytes).ok_or_else(wrong)))
    }
}

fn checksum(digest: &Digest) -> u32 {
    // CRC-32C has 32 bits.
    digest.finalize() as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Checksum;
    use crate::format::backup::BlockEntry;

    fn entries(count: u64) -> Vec<BlockEntry> {
        (0..count).map(|n| BlockEntry { offset: n << 21, checksum: Checksum::of(&n.to_le_bytes()) }).collect()
    }

    fn write(path: &Path, entries: &[BlockEntry]) {
        let mut writer = Writer::create(path).expect("a file");
        entries.iter().for_each(|entry| writer.push(entry).expect("room"));
        assert_eq!(writer.finish().expect("finished"), entries.len() as u64);
    }

    #[test]
    fn entries_come_back_and_can_be_left_out() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("list");
        write(&path, &entries(5000));
        let mut reader = Reader::<BlockEntry>::open(&path).expect("read").expect("whole");
        reader.skip_entries(4990).expect("left out");
        let rest: Vec<_> = reader.map(|entry| entry.expect("an entry")).collect();
        assert_eq!(rest, entries(5000)[4990..]);
    }

    #[test]
    fn half_a_file_or_a_damaged_one_is_none() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("list");
        write(&path, &entries(3));
        let good = fs::read(&path).expect("read");
        for length in 0..good.len() {
            fs::write(&path, &good[..length]).expect("cut");
            assert!(Reader::<BlockEntry>::open(&path).expect("read").is_none(), "{length}");
        }
        for at in 0..good.len() - 4 {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).expect("damaged");
            assert!(Reader::<BlockEntry>::open(&path).expect("read").is_none(), "{at}");
        }
        assert!(Reader::<BlockEntry>::open(&folder.path().join("none")).expect("read").is_none());
    }

    #[test]
    fn one_that_is_not_finished_leaves_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("list");
        let mut writer = Writer::create(&path).expect("a file");
        writer.push(&entries(1)[0]).expect("room");
        drop(writer);
        assert_eq!(fs::read_dir(folder.path()).expect("listed").count(), 0);
    }
}
