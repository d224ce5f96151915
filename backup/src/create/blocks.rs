//! Blocks on their way from the source to the store: several at a time, recorded in order.

use std::collections::HashSet;
use std::io;
use std::iter::Peekable;
use std::sync::{Arc, Mutex};

use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use tokio::sync::Notify;

use super::offsets::Offsets;
use crate::block::{self, Checksum, Compression};
use crate::delta::{Done, Fate, Sums};
use crate::error::{Result, local};
use crate::format::backup::BlockEntry;
use crate::format::layout::VolumeFolder;
use crate::lock::Lock;
use crate::pace::Pace;
use crate::progress::Progress;
use crate::records::journal::Journal;
use crate::records::spool::Reader;
use crate::source::Source;
use crate::target::Content;
use crate::target::client::{Client, off_thread};

/// All that a block needs on its way.
pub(super) struct Mover<'a> {
    pub(super) client: &'a Client,
    pub(super) folder: &'a VolumeFolder,
    pub(super) lock: &'a Lock,
    pub(super) source: &'a dyn Source,
    pub(super) progress: &'a Progress,
    pub(super) pace: Pace,
    pub(super) compression: Compression,
    pub(super) block_size: u64,
    /// Store blocks that are there, too.
    pub(super) full: bool,
    pub(super) at_once: usize,
    pub(super) under_way: UnderWay,
}

impl Mover<'_> {
    /// Moves the blocks at `offsets`, and appends each to `journal` when it is done.
    pub(super) async fn run(
        &self,
        mut offsets: Offsets<'_>,
        base: Option<Reader<BlockEntry>>,
        journal: &mut Journal,
        sums: &mut Sums,
    ) -> Result<()> {
        let mut base = base.map(Iterator::peekable);
        let mut moving = FuturesOrdered::new();
        let mut ended = false;
        loop {
            while !ended && moving.len() < self.at_once {
                match offsets.next().await? {
                    None => ended = true,
                    Some(offset) => {
                        let before = base.as_mut().map_or(Ok(None), |base| at(base, offset));
                        moving.push_back(self.one(offset, before.map_err(local("base.list"))?));
                    }
                }
            }
            let Some(done) = moving.next().await else { break };
            let done = done?;
            journal.push(&done).map_err(local("delta"))?;
            sums.add(&done);
            self.progress.add(self.block_size, u64::from(done.stored));
        }
        journal.sync().map_err(local("delta"))
    }

    async fn one(&self, offset: u64, base: Option<Checksum>) -> Result<Done> {
        self.pace.take(self.block_size).await;
        let mut block = vec![0; usize::try_from(self.block_size).unwrap_or(0)];
        self.source.read(offset, &mut block).await?;
        let hash = move || {
            let checksum = Checksum::of(&block);
            Ok((block, checksum))
        };
        let (block, checksum) = off_thread(hash).await?;
        let there = Done { block: BlockEntry { offset, checksum }, fate: Fate::There, stored: 0 };
        if base == Some(checksum) && !self.full {
            return Ok(there);
        }
        // The same content twice at once would be stored, and counted, twice.
        let _claim = self.under_way.claim(checksum).await;
        let key = self.folder.block(&checksum);
        self.lock.check()?;
        // An empty object is what some file systems leave of a write that a crash cut off.
        let exists = self.client.head(&key).await?.is_some_and(|found| found.size > 0);
        if exists && !self.full {
            return Ok(there);
        }
        let compression = self.compression;
        let packed = off_thread(move || block::pack(&block, compression)).await?;
        let stored = u32::try_from(packed.len()).unwrap_or(u32::MAX);
        self.lock.check()?;
        self.client.put(&key, Content::from(packed)).await?;
        let fate = if exists { Fate::Again } else { Fate::New };
        Ok(Done { fate, stored, ..there })
    }
}

/// The checksum that a list has at `offset`; lists are asked in order.
fn at(list: &mut Peekable<Reader<BlockEntry>>, offset: u64) -> io::Result<Option<Checksum>> {
    while list.next_if(|entry| entry.as_ref().is_ok_and(|entry| entry.offset < offset)).is_some() {}
    match list.peek() {
        Some(Ok(entry)) if entry.offset == offset => Ok(Some(entry.checksum)),
        Some(Err(error)) => Err(io::Error::from(error.kind())),
        _ => Ok(None),
    }
}

/// Contents that are being stored.
#[derive(Clone, Debug, Default)]
pub(super) struct UnderWay {
    contents: Arc<Mutex<HashSet<Checksum>>>,
    ended: Arc<Notify>,
}

/// One content that only its owner stores.
struct Claim<'a> {
    all: &'a UnderWay,
    checksum: Checksum,
}

impl UnderWay {
    async fn claim(&self, checksum: Checksum) -> Claim<'_> {
        loop {
            let ended = self.ended.notified();
            // A lock is never poisoned: nothing panics while it is held.
            let claimed = self.contents.lock().is_ok_and(|mut contents| contents.insert(checksum));
            if claimed {
                return Claim { all: self, checksum };
            }
            ended.await;
        }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if let Ok(mut contents) = self.all.contents.lock() {
            contents.remove(&self.checksum);
        }
        self.all.ended.notify_waiters();
    }
}
