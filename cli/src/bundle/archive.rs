//! A tar archive of small files, compressed with gzip: the format `ustar` of POSIX.1-1988, with regular files only.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, ensure};
use flate2::Compression;
use flate2::write::GzEncoder;
use tempfile::NamedTempFile;

const BLOCK: usize = 512;
/// What the fields for a name and for the folder before it hold, with a zero byte behind.
const LONGEST_NAME: usize = 100;
const LONGEST_FOLDER: usize = 155;

pub(super) struct Archive {
    encoder: GzEncoder<NamedTempFile>,
    path: PathBuf,
    /// In seconds since the Unix epoch.
    made: u64,
}

impl Archive {
    /// An archive that gets its name when it is whole. Nobody else may read it.
    pub(super) fn create(path: &Path) -> anyhow::Result<Self> {
        let path = std::path::absolute(path)?;
        let folder = path.parent().context("it is no file")?;
        let file = NamedTempFile::with_prefix_in(".ashlar-support-", folder)?;
        let made = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        Ok(Self { encoder: GzEncoder::new(file, Compression::default()), path, made })
    }

    pub(super) fn add(&mut self, name: &str, content: &[u8]) -> anyhow::Result<()> {
        self.encoder.write_all(&header(name, content.len(), self.made)?)?;
        self.encoder.write_all(content)?;
        self.encoder.write_all(&[0; BLOCK][..content.len().next_multiple_of(BLOCK) - content.len()])?;
        Ok(())
    }

    /// # Errors
    /// Also where the file is there already: it is not written over.
    pub(super) fn finish(mut self) -> anyhow::Result<()> {
        // Two empty blocks are the end.
        self.encoder.write_all(&[0; 2 * BLOCK])?;
        let file = self.encoder.finish()?;
        file.as_file().sync_all()?;
        file.persist_noclobber(&self.path).map_err(|error| error.error)?;
        Ok(())
    }
}

/// The block before a file. Numbers are octal digits with a zero byte behind them.
fn header(name: &str, size: usize, made: u64) -> anyhow::Result<[u8; BLOCK]> {
    let (folder, name) = name.split_once('/').unwrap_or(("", name));
    ensure!(name.len() < LONGEST_NAME && folder.len() < LONGEST_FOLDER, "the name {folder}/{name} is too long");
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name.as_bytes());
    put(100, b"0000600\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, format!("{made:011o}\0").as_bytes());
    // The sum is made with spaces in its own place.
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\0" as &[u8]);
    put(263, b"00");
    put(345, folder.as_bytes());
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Ok(block)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use super::*;

    /// Read back by a program that is not ours.
    #[test]
    fn tar_reads_what_is_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("bundle.tar.gz");
        let mut archive = Archive::create(&path).expect("a file");
        archive.add("b/empty", b"").expect("written");
        archive.add("b/block", &[b'x'; BLOCK]).expect("written");
        archive.add("b/c/text", "grün\n".as_bytes()).expect("written");
        let long = format!("{}/{}", "f".repeat(120), "n".repeat(90));
        archive.add(&long, b"long").expect("written");
        assert!(archive.add(&"n".repeat(100), b"").is_err());
        assert!(!path.exists(), "it is not whole yet");
        archive.finish().expect("whole");
        assert_eq!(path.metadata().expect("it is there").permissions().mode() & 0o777, 0o600);

        let status = Command::new("tar").arg("-xzf").arg(&path).arg("-C").arg(folder.path()).status().expect("tar");
        assert!(status.success());
        let read = |name: &str| std::fs::read(folder.path().join(name)).expect("unpacked");
        assert_eq!(read("b/empty"), b"");
        assert_eq!(read("b/block"), [b'x'; BLOCK]);
        assert_eq!(read("b/c/text"), "grün\n".as_bytes());
        assert_eq!(read(&long), b"long");

        let again = Archive::create(&path).expect("a file");
        assert!(again.finish().is_err(), "what is there stays");
    }
}
