//! Volumes for stories: with snapshots to back up, and with a device that can lose its power.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use async_trait::async_trait;
use backup::source::{Device, Extent, SnapshotInfo, Source, Standby};
use backup::{Error, Kind, Result};
use tokio::task::yield_now;

use crate::Random;

/// Bytes of what is mapped at once.
pub(crate) const CHUNK: u64 = 64 << 10;

type Chunks = BTreeMap<u64, Arc<Vec<u8>>>;

/// A thin volume with snapshots.
#[derive(Debug, Default)]
pub(crate) struct Volume {
    size: u64,
    head: Mutex<Chunks>,
    snapshots: Mutex<BTreeMap<String, Chunks>>,
}

impl Volume {
    pub(crate) fn new(size: u64) -> Arc<Self> {
        Arc::new(Self { size, ..Self::default() })
    }

    /// Writes a chunk that says what it is.
    pub(crate) fn write(&self, offset: u64, content: u64) {
        let mut chunk = vec![0; CHUNK as usize];
        chunk[..8].copy_from_slice(&content.to_le_bytes());
        chunk[4096..4104].copy_from_slice(&content.rotate_left(7).to_le_bytes());
        self.put(offset, chunk);
    }

    /// Writes a chunk.
    pub(crate) fn put(&self, offset: u64, chunk: Vec<u8>) {
        assert!(offset.is_multiple_of(CHUNK) && offset < self.size && chunk.len() as u64 == CHUNK);
        self.head.lock().expect("no panic").insert(offset, Arc::new(chunk));
    }

    pub(crate) fn unmap(&self, offset: u64, length: u64) {
        self.head.lock().expect("no panic").retain(|at, _| *at < offset || *at >= offset + length);
    }

    pub(crate) fn snapshot(self: &Arc<Self>, name: &str) -> Snapshot {
        let chunks = self.head.lock().expect("no panic").clone();
        self.snapshots.lock().expect("no panic").insert(name.to_owned(), chunks);
        Snapshot { volume: Arc::clone(self), name: name.to_owned() }
    }

    pub(crate) fn delete_snapshot(&self, name: &str) {
        self.snapshots.lock().expect("no panic").remove(name);
    }

    /// Changes some chunks at random, and unmaps some blocks.
    pub(crate) fn change(&self, random: &mut Random, block: u64) {
        for _ in 0..1 + random.below(4) {
            let at = random.below(self.size / CHUNK) * CHUNK;
            // Few contents: some blocks are equal.
            self.write(at, random.below(3));
        }
        if random.below(2) == 0 {
            self.unmap(random.below(self.size / block) * block, block);
        }
    }

    fn chunks(&self, snapshot: &str) -> Result<Chunks> {
        let gone = || Error::new(Kind::NotFound, format!("snapshot {snapshot} is gone"));
        self.snapshots.lock().expect("no panic").get(snapshot).cloned().ok_or_else(gone)
    }

    /// All bytes of a snapshot.
    pub(crate) fn bytes(&self, snapshot: &str) -> Vec<u8> {
        let mut bytes = vec![0; self.size as usize];
        for (offset, chunk) in self.chunks(snapshot).expect("a snapshot") {
            bytes[offset as usize..(offset + CHUNK) as usize].copy_from_slice(&chunk);
        }
        bytes
    }
}

/// A snapshot of a volume.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) volume: Arc<Volume>,
    name: String,
}

impl Snapshot {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.volume.bytes(&self.name)
    }
}

#[async_trait]
impl Source for Snapshot {
    async fn snapshot(&self) -> Result<SnapshotInfo> {
        self.volume.chunks(&self.name)?;
        // Later names are later snapshots.
        let seconds = self.name.bytes().fold(0, |sum, byte| sum * 10 + u64::from(byte)) % 1_000_000;
        let created = UNIX_EPOCH + Duration::from_secs(1_600_000_000 + seconds);
        Ok(SnapshotInfo { name: self.name.clone(), created, size: self.volume.size })
    }

    async fn has_snapshot(&self, name: &str) -> Result<bool> {
        Ok(self.volume.chunks(name).is_ok())
    }

    async fn extents(&self, since: Option<&str>, from: u64, most: usize) -> Result<Vec<Extent>> {
        yield_now().await;
        let chunks = self.volume.chunks(&self.name)?;
        let before = since.map_or_else(|| Ok(Chunks::new()), |since| self.volume.chunks(since))?;
        let mut offsets: Vec<u64> = chunks.keys().chain(before.keys()).copied().collect();
        offsets.sort_unstable();
        offsets.dedup();
        let same = |one: Option<&Arc<Vec<u8>>>, other: Option<&Arc<Vec<u8>>>| match (one, other) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (one, other) => one.is_none() && other.is_none(),
        };
        let changed = offsets.into_iter().filter(|at| !same(chunks.get(at), before.get(at)) && at + CHUNK > from);
        // Few at once, so that there are pages.
        Ok(changed.map(|offset| Extent { offset, length: CHUNK }).take(most.min(3)).collect())
    }

    async fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        yield_now().await;
        let chunks = self.volume.chunks(&self.name)?;
        buffer.fill(0);
        for (at, chunk) in chunks.range(offset..offset + buffer.len() as u64) {
            let at = (at - offset) as usize;
            buffer[at..at + CHUNK as usize].copy_from_slice(chunk);
        }
        Ok(())
    }
}

/// A device that is restored to. It keeps only what was flushed when its power is cut.
#[derive(Debug)]
pub(crate) struct TestDevice {
    state: Mutex<DeviceState>,
}

#[derive(Debug, Default)]
struct DeviceState {
    bytes: Vec<u8>,
    stable: Vec<u8>,
    unflushed: Vec<(u64, u64)>,
    marks: BTreeMap<String, Vec<u8>>,
    active: bool,
    /// Whether it answers nothing now.
    busy: bool,
    written: u64,
}

impl TestDevice {
    /// A device full of garbage.
    pub(crate) fn garbage(size: u64) -> Self {
        let bytes = vec![0xa5; size as usize];
        Self { state: Mutex::new(DeviceState { stable: bytes.clone(), bytes, ..DeviceState::default() }) }
    }

    fn with<T>(&self, what: impl FnOnce(&mut DeviceState) -> T) -> T {
        what(&mut self.state.lock().expect("no panic"))
    }

    fn change(&self, what: impl FnOnce(&mut DeviceState)) -> Result<()> {
        self.with(|state| {
            if state.busy {
                return Err(Error::new(Kind::SourceBusy, "no replica in sync"));
            }
            what(state);
            Ok(())
        })
    }

    pub(crate) fn cut_power(&self) {
        self.with(|state| {
            state.bytes = state.stable.clone();
            state.unflushed.clear();
        });
    }

    pub(crate) fn set_busy(&self, busy: bool) {
        self.with(|state| state.busy = busy);
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.with(|state| state.bytes.clone())
    }

    /// Bytes written since this was asked last.
    pub(crate) fn take_written(&self) -> u64 {
        self.with(|state| std::mem::take(&mut state.written))
    }

    pub(crate) fn is_active(&self) -> bool {
        self.with(|state| state.active)
    }

    pub(crate) fn marks(&self) -> Vec<String> {
        self.with(|state| state.marks.keys().cloned().collect())
    }
}

#[async_trait]
impl Device for TestDevice {
    async fn size(&self) -> Result<u64> {
        Ok(self.with(|state| state.bytes.len() as u64))
    }

    async fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        yield_now().await;
        self.change(|state| {
            assert!(!state.active, "a write to an active volume");
            state.bytes[offset as usize..offset as usize + bytes.len()].copy_from_slice(bytes);
            state.unflushed.push((offset, bytes.len() as u64));
            state.written += bytes.len() as u64;
        })?;
        yield_now().await;
        Ok(())
    }

    async fn zero(&self, offset: u64, length: u64) -> Result<()> {
        yield_now().await;
        self.change(|state| {
            assert!(!state.active, "zeroes to an active volume");
            state.bytes[offset as usize..(offset + length) as usize].fill(0);
            state.unflushed.push((offset, length));
        })
    }

    async fn flush(&self) -> Result<()> {
        yield_now().await;
        self.change(|state| {
            for (offset, length) in std::mem::take(&mut state.unflushed) {
                let range = offset as usize..(offset + length) as usize;
                state.stable[range.clone()].copy_from_slice(&state.bytes[range]);
            }
        })?;
        yield_now().await;
        Ok(())
    }
}

#[async_trait]
impl Standby for TestDevice {
    async fn mark(&self, backup: &str) -> Result<()> {
        yield_now().await;
        self.change(|state| {
            let stable = state.stable.clone();
            state.marks.entry(backup.to_owned()).or_insert(stable);
        })?;
        yield_now().await;
        Ok(())
    }

    async fn keep_only(&self, backup: &str) -> Result<()> {
        yield_now().await;
        self.change(|state| state.marks.retain(|name, _| name == backup))
    }

    async fn revert(&self, backup: &str) -> Result<()> {
        yield_now().await;
        self.change(|state| {
            let bytes = state.marks.get(backup).unwrap_or_else(|| panic!("no mark of {backup}")).clone();
            (state.bytes, state.stable) = (bytes.clone(), bytes);
            state.unflushed.clear();
        })?;
        yield_now().await;
        Ok(())
    }

    async fn activate(&self) -> Result<()> {
        yield_now().await;
        self.change(|state| state.active = true)?;
        yield_now().await;
        Ok(())
    }
}
