//! Volumes and devices in files.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use ::backup::block::DEFAULT_SIZE as BLOCK;
use ::backup::source::{Device, Extent, SnapshotInfo, Source};
use ::backup::{Error, Kind, Result};
use rustix::fs::OFlags;

/// A snapshot whose mapped blocks are a file, with unmapped ones between them. All snapshots differ in all that is mapped.
pub(super) struct Snapshot {
    folder: PathBuf,
    name: String,
    file: Arc<File>,
    blocks: u64,
    stride: u64,
}

impl Snapshot {
    pub(super) fn new(folder: &Path, name: &str, stride: u64) -> anyhow::Result<Self> {
        let file = File::open(folder.join(name))?;
        let blocks = file.metadata()?.len() / BLOCK;
        Ok(Self { folder: folder.to_owned(), name: name.to_owned(), file: Arc::new(file), blocks, stride })
    }
}

fn failed(error: std::io::Error) -> Error {
    Error::new(Kind::SourceBusy, error.to_string())
}

#[async_trait::async_trait]
impl Source for Snapshot {
    async fn snapshot(&self) -> Result<SnapshotInfo> {
        let created = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        Ok(SnapshotInfo { name: self.name.clone(), created, size: self.blocks * self.stride * BLOCK })
    }

    async fn has_snapshot(&self, name: &str) -> Result<bool> {
        Ok(self.folder.join(name).is_file())
    }

    async fn extents(&self, _: Option<&str>, from: u64, most: usize) -> Result<Vec<Extent>> {
        let pitch = self.stride * BLOCK;
        let first = if from % pitch < BLOCK { from / pitch } else { from / pitch + 1 };
        let blocks = (first..self.blocks).take(most);
        Ok(blocks.map(|block| Extent { offset: block * pitch, length: BLOCK }).collect())
    }

    async fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let at = offset / (self.stride * BLOCK) * BLOCK;
        let (file, mut bytes) = (Arc::clone(&self.file), vec![0; buffer.len()]);
        let read = tokio::task::spawn_blocking(move || file.read_exact_at(&mut bytes, at).map(|()| bytes)).await;
        buffer.copy_from_slice(&read.map_err(|error| failed(error.into()))?.map_err(failed)?);
        Ok(())
    }
}

/// A device in a sparse file, written past the kernel's cache, as stores are.
pub(super) struct FileDevice {
    file: Arc<File>,
    size: u64,
    /// Memory of the last write, for the next one.
    spare: Mutex<Vec<u8>>,
}

/// What addresses of direct transfers are multiples of.
const ALIGNED: usize = 4096;

impl FileDevice {
    pub(super) fn new(path: &Path, size: u64) -> anyhow::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options
            .create(true)
            .truncate(true)
            .write(true)
            .custom_flags(OFlags::DIRECT.bits().cast_signed())
            .open(path)?;
        file.set_len(size)?;
        Ok(Self { file: Arc::new(file), size, spare: Mutex::default() })
    }

    async fn off_thread(&self, what: impl FnOnce(&File) -> std::io::Result<()> + Send + 'static) -> Result<()> {
        let file = Arc::clone(&self.file);
        let done = tokio::task::spawn_blocking(move || what(&file)).await;
        done.map_err(|error| failed(error.into()))?.map_err(failed)
    }
}

#[async_trait::async_trait]
impl Device for FileDevice {
    async fn size(&self) -> Result<u64> {
        Ok(self.size)
    }

    async fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut memory = self.spare.lock().map(|mut spare| std::mem::take(&mut *spare)).unwrap_or_default();
        memory.resize(bytes.len() + ALIGNED, 0);
        let start = memory.as_ptr().align_offset(ALIGNED);
        let end = start + bytes.len();
        memory[start..end].copy_from_slice(bytes);
        let file = Arc::clone(&self.file);
        let written =
            tokio::task::spawn_blocking(move || (file.write_all_at(&memory[start..end], offset), memory)).await;
        let (written, memory) = written.map_err(|error| failed(error.into()))?;
        if let Ok(mut spare) = self.spare.lock() {
            *spare = memory;
        }
        written.map_err(failed)
    }

    /// New files are zeroes.
    async fn zero(&self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }

    async fn flush(&self) -> Result<()> {
        self.off_thread(File::sync_data).await
    }
}
