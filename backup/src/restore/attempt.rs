//! One attempt of a restore: from where the last one came to.

use std::pin::pin;

use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use tokio::sync::mpsc;

use super::{DONE, LIST, Outcome, PLAN, Planned, RestoreJob};
use crate::error::{Error, Kind, Result, corrupt, invalid, local};
use crate::format::layout::VolumeFolder;
use crate::lock::{Lock, LockType};
use crate::pace::Pace;
use crate::plan::{self, Step};
use crate::progress::Progress;
use crate::records::files;
use crate::records::spool::Reader;
use crate::records::watermark::Watermark;
use crate::source::{Device, OpenStore};
use crate::target::client::{Client, off_thread};

/// A step that can be done: its block is here, if it has one.
enum Ready {
    Write { offset: u64, block: Vec<u8> },
    Zero { offset: u64, length: u64 },
}

/// What an attempt works with.
struct Work<'a> {
    client: &'a Client,
    folder: &'a VolumeFolder,
    lock: &'a Lock,
    device: &'a dyn Device,
    pace: Pace,
}

impl RestoreJob {
    /// Comes to the end, which is recorded, or says why not.
    pub(crate) async fn attempt(&mut self, target: &dyn OpenStore, device: &dyn Device) -> Result<()> {
        let client = Client::new(target.open().await?);
        let folder = VolumeFolder::new(&self.record.request.volume)?;
        // Nothing is written to a target that shows nothing: it may be a folder that is not mounted.
        client.volume(&folder).await?;
        let lock = Lock::acquire(&client, &folder, LockType::Shared).await?;
        let pace = Pace::new(self.options.rate, self.options.shared.clone());
        let work = Work { client: &client, folder: &folder, lock: &lock, device, pace };
        let done = self.under_lock(&work).await;
        lock.release().await;
        let planned = done?;
        let Planned { incremental, block_size, .. } = planned;
        self.end(Outcome::Complete { incremental, block_size })
    }

    async fn under_lock(&mut self, work: &Work<'_>) -> Result<Planned> {
        let planned = match self.record.planned.clone() {
            Some(planned) if self.plan().await?.is_some() => planned,
            _ => self.make_plan(work).await?,
        };
        self.carry_out(work, &planned).await?;
        Ok(planned)
    }

    async fn plan(&self) -> Result<Option<Reader<Step>>> {
        let path = self.folder.join(PLAN);
        off_thread(move || plan::open_plan(&path)).await
    }

    /// Reads the backup's file and plans the steps. Nothing is written to the device before the plan is recorded.
    async fn make_plan(&mut self, work: &Work<'_>) -> Result<Planned> {
        let request = &self.record.request;
        let list = self.folder.join(LIST);
        let (config, blocks) = work.client.backup(work.folder, &request.backup, Some(&list)).await?;
        if !config.is_complete() {
            return Err(invalid(format!("backup {} is not complete", config.name)));
        }
        let volume = work.client.volume(work.folder).await?;
        if !volume.backing_image().is_empty() {
            let text = format!("volume {} stands on image {}, which is not here", volume.name, volume.backing_image());
            return Err(invalid(text));
        }
        let (block_size, size) = (config.block_size()?, work.device.size().await?);
        if size < volume.size {
            return Err(invalid(format!("a device of {size} bytes is too small for a volume of {}", volume.size)));
        }
        if blocks.count > 0 && blocks.last.saturating_add(block_size) > volume.size {
            return Err(corrupt(format!("backup {}: a block beyond the end of the volume", config.name)));
        }
        // Once something was written the device no longer holds the base.
        let untouched = self.record.planned.is_none();
        let base = request.base.as_ref().filter(|base| untouched && base.block_size == block_size);
        let base = base.map(|base| base.list.clone());
        // A list that was lost is no reason to stop: a full restore needs none.
        let base = match base {
            Some(path) => {
                let found = path.clone();
                let whole =
                    off_thread(move || Ok(Reader::<crate::format::backup::BlockEntry>::open(&found)?.is_some()));
                whole.await?.then_some(path)
            }
            None => None,
        };
        let planned = Planned { compression: config.compression()?, block_size, incremental: base.is_some() };
        files::remove(&self.folder.join(DONE))?;
        let path = self.folder.join(PLAN);
        off_thread(move || plan::make(&path, &list, base.as_deref(), size, block_size)).await?;
        self.record.planned = Some(planned.clone());
        self.save()?;
        Ok(planned)
    }

    /// Does the steps in order, with blocks fetched ahead, also while the device writes. What is done is durable before it is recorded.
    async fn carry_out(&mut self, work: &Work<'_>, planned: &Planned) -> Result<()> {
        let done = self.folder.join(DONE);
        let watermark = Watermark::open(&done).map_err(local(done.display()))?;
        let path = self.folder.join(PLAN);
        let (steps, block_size) = (watermark.count(), planned.block_size);
        let (before, total) = off_thread(move || plan::bytes_of(&path, steps, block_size)).await?;
        self.progress.begin(before, total);
        let lost = || Error::new(Kind::Interrupted, "the plan is lost");
        let mut plan = self.plan().await?.ok_or_else(lost)?;
        plan.skip_entries(steps).map_err(local(PLAN))?;
        let (ready, next) = mpsc::channel(1);
        let at_once = self.options.blocks_at_once(block_size);
        let mut applying = pin!(apply_all(work, watermark, next, &self.progress));
        tokio::select! {
            // Nothing is under way at the device when it ends; what is fetched in vain has changed nothing.
            applied = &mut applying => applied,
            () = fetch_all(work, plan, planned, at_once, ready) => applying.await,
        }
    }
}

/// Fetches the blocks of a plan, some at once, and hands them on in order; after an error nothing more. It has a block only when there is room for it.
async fn fetch_all(
    work: &Work<'_>,
    mut plan: Reader<Step>,
    planned: &Planned,
    at_once: usize,
    ready: mpsc::Sender<Result<Ready>>,
) {
    let mut fetching = FuturesOrdered::new();
    loop {
        while fetching.len() < at_once {
            let Some(step) = plan.next() else { break };
            fetching.push_back(async move { fetch(work, step.map_err(local(PLAN))?, planned).await });
        }
        let Ok(room) = ready.reserve().await else { return };
        let Some(fetched) = fetching.next().await else { return };
        let is_last = fetched.is_err();
        room.send(fetched);
        if is_last {
            return;
        }
    }
}

/// What the device took, and does not yet keep for certain.
struct Taken {
    length: u64,
    moved: u64,
}

/// Does what comes, and records each step once the device keeps it. While it makes one step durable, it takes the next one, and no
/// more: so at most these two are done again after a kill. All that it began at the device has ended when this ends.
async fn apply_all(
    work: &Work<'_>,
    watermark: Watermark,
    next: mpsc::Receiver<Result<Ready>>,
    progress: &Progress,
) -> Result<()> {
    let (taken, to_record) = mpsc::channel(1);
    let (written, recorded) =
        tokio::join!(write_all(work, next, taken), record_all(work, watermark, to_record, progress));
    recorded.and(written)
}

/// Writes what comes, when there is room for one more that is not durable; until the other end is gone.
async fn write_all(work: &Work<'_>, mut next: mpsc::Receiver<Result<Ready>>, taken: mpsc::Sender<Taken>) -> Result<()> {
    while let Ok(room) = taken.reserve().await {
        let ready = tokio::select! {
            ready = next.recv() => ready,
            () = taken.closed() => None,
        };
        let Some(ready) = ready.transpose()? else { break };
        work.lock.check()?;
        room.send(apply(work.device, &ready).await?);
    }
    Ok(())
}

/// Makes durable what was written, and counts it.
async fn record_all(
    work: &Work<'_>,
    mut watermark: Watermark,
    mut taken: mpsc::Receiver<Taken>,
    progress: &Progress,
) -> Result<()> {
    while let Some(Taken { length, moved }) = taken.recv().await {
        work.device.flush().await?;
        let record = move || {
            watermark.set(watermark.count() + 1).map_err(local(DONE))?;
            Ok(watermark)
        };
        watermark = off_thread(record).await?;
        progress.add(length, moved);
    }
    Ok(())
}

async fn fetch(work: &Work<'_>, step: Step, planned: &Planned) -> Result<Ready> {
    let Planned { block_size, compression, .. } = *planned;
    match step {
        Step::Zero { offset, length } => Ok(Ready::Zero { offset, length }),
        Step::Write(entry) => {
            work.pace.take(block_size).await;
            let block = work.client.block(work.folder, entry.checksum, compression, block_size).await?;
            Ok(Ready::Write { offset: entry.offset, block })
        }
    }
}

async fn apply(device: &dyn Device, ready: &Ready) -> Result<Taken> {
    match ready {
        Ready::Write { offset, block } => {
            device.write(*offset, block).await?;
            let length = block.len() as u64;
            Ok(Taken { length, moved: length })
        }
        Ready::Zero { offset, length } => {
            device.zero(*offset, *length).await?;
            Ok(Taken { length: *length, moved: 0 })
        }
    }
}
