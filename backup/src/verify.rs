//! Reads all of a backup, and says what of it is damaged.

use std::path::Path;

use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;

use crate::block::Checksum;
use crate::create::Options;
use crate::error::{Error, Kind, Result, local};
use crate::format::backup::BlockEntry;
use crate::format::layout::VolumeFolder;
use crate::lock::{Lock, LockType};
use crate::pace::Pace;
use crate::progress::{Phase, Progress};
use crate::records::files;
use crate::records::spool::Reader;
use crate::source::OpenStore;
use crate::target::client::{Client, off_thread};

/// Most damaged blocks that are named.
const MOST_NAMED: usize = 1000;

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Blocks of the backup.
    pub blocks: u64,
    /// How many of them are damaged or missing.
    pub bad: u64,
    /// The first of these: offset, checksum and what is wrong.
    pub named: Vec<(u64, Checksum, Error)>,
}

/// Reads all blocks of a backup. Its list is kept in `scratch` meanwhile. One attempt: after an outage it begins again.
///
/// # Errors
/// Any but damage of blocks, which the report has.
pub async fn verify(
    target: &dyn OpenStore,
    volume: &str,
    backup: &str,
    scratch: &Path,
    options: &Options,
    progress: &Progress,
) -> Result<Report> {
    let client = Client::new(target.open().await?);
    let folder = VolumeFolder::new(volume)?;
    files::open_folder(scratch)?;
    // Nothing is written to a target that shows nothing: it may be a folder that is not mounted.
    client.volume(&folder).await?;
    let lock = Lock::acquire(&client, &folder, LockType::Shared).await?;
    let report = read_all(&client, &folder, &lock, backup, scratch, options, progress).await;
    lock.release().await;
    files::remove_folder(scratch)?;
    let report = report?;
    progress.set(Phase::Complete);
    Ok(report)
}

async fn read_all(
    client: &Client,
    folder: &VolumeFolder,
    lock: &Lock,
    backup: &str,
    scratch: &Path,
    options: &Options,
    progress: &Progress,
) -> Result<Report> {
    let path = scratch.join("verify.list");
    let (config, blocks) = client.backup(folder, backup, Some(&path)).await?;
    let (block_size, compression) = (config.block_size()?, config.compression()?);
    progress.begin(0, blocks.count * block_size);
    let pace = Pace::new(options.rate, options.shared.clone());
    let damaged = || Error::new(Kind::Local, "the list was damaged while it was read");
    let opened = path.clone();
    let mut list = off_thread(move || Reader::<BlockEntry>::open(&opened)).await?.ok_or_else(damaged)?;
    let mut report = Report { blocks: blocks.count, ..Report::default() };
    let mut reading = FuturesOrdered::new();
    loop {
        while reading.len() < options.blocks_at_once(block_size) {
            let Some(entry) = list.next() else { break };
            let entry = entry.map_err(local(path.display()))?;
            let pace = &pace;
            reading.push_back(async move {
                pace.take(block_size).await;
                (entry, client.block(folder, entry.checksum, compression, block_size).await.map(|_| ()))
            });
        }
        let Some((entry, read)) = reading.next().await else { return Ok(report) };
        lock.check()?;
        progress.add(block_size, block_size);
        match read {
            Err(error) if matches!(error.kind(), Kind::Checksum | Kind::Corrupt | Kind::NotFound) => {
                report.bad += 1;
                if report.named.len() < MOST_NAMED {
                    report.named.push((entry.offset, entry.checksum, error));
                }
            }
            other => other?,
        }
    }
}
