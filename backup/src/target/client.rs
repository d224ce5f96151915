//! A store with patience: a request that fails is tried again a few times, and "not there" is believed only with a listing.

use std::fs::File;
use std::future::Future;
use std::io::{self, Read};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::mpsc;

use super::store::{Body, Content, Folder, ObjectInfo, Store};
use crate::backoff::{Backoff, Pauses};
use crate::error::{Error, Kind, Result, corrupt, local};
use crate::format::backup::{BackupConfig, BlockEntry, Blocks};
use crate::format::layout::{self, VolumeFolder};
use crate::format::volume::{self, VolumeConfig};
use crate::records::spool::Writer;

/// Attempts of one request before the attempt that it is part of ends.
const TRIES: u32 = 5;

/// Pauses between them.
const PAUSES: Pauses = Pauses { first: Duration::from_millis(200), longest: Duration::from_secs(5) };

/// How often something with wrong content is read before it is wrong.
const READS: u32 = 3;

/// Pieces of a body between the network and a parser.
const PIECES: usize = 4;

/// A store with patience.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    store: Arc<dyn Store>,
}

type Pending<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

impl Client {
    pub(crate) fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    pub(crate) const fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Tries something a few times. What is terminal is not tried again.
    async fn briefly<'a, T>(&'a self, mut attempt: impl FnMut() -> Pending<'a, T> + Send) -> Result<T> {
        let mut backoff = Backoff::new(PAUSES);
        for _ in 1..TRIES {
            match attempt().await {
                Err(error) if !error.is_terminal() => tokio::time::sleep(backoff.next()).await,
                other => return other,
            }
        }
        attempt().await
    }

    pub(crate) async fn head(&self, key: &str) -> Result<Option<ObjectInfo>> {
        self.briefly(|| self.store.head(key)).await
    }

    pub(crate) async fn put(&self, key: &str, content: Content) -> Result<()> {
        self.briefly(|| self.store.put(key, content.clone())).await
    }

    pub(crate) async fn delete(&self, key: &str) -> Result<()> {
        self.briefly(|| self.store.delete(key)).await
    }

    pub(crate) async fn folder(&self, folder: &str) -> Result<Folder> {
        self.briefly(|| self.store.folder(folder)).await
    }

    pub(crate) async fn sweep(&self, folder: &str) -> Result<()> {
        self.briefly(|| self.store.sweep(folder)).await
    }

    /// The content of a small object; None if a listing confirms that there is none.
    pub(crate) async fn find(&self, key: &str, largest: u64) -> Result<Option<Bytes>> {
        self.briefly(|| Box::pin(self.find_once(key, largest))).await
    }

    async fn find_once(&self, key: &str, largest: u64) -> Result<Option<Bytes>> {
        let body = match self.store.get(key).await {
            Err(error) if error.kind() == Kind::NotFound => {
                self.confirm_missing(key).await?;
                return Ok(None);
            }
            other => other?,
        };
        collect(body, key, largest).await.map(Some)
    }

    /// The content of a small object that should be there.
    ///
    /// `NotFound` means that it is not, though the store shows other things.
    pub(crate) async fn read(&self, key: &str, largest: u64) -> Result<Bytes> {
        match self.find(key, largest).await? {
            Some(bytes) => Ok(bytes),
            None => Err(self.missing(key).await?),
        }
    }

    /// The error for something that a listing does not have: `Empty` when the target shows nothing at all.
    async fn missing(&self, key: &str) -> Result<Error> {
        let mut all = self.store.list(layout::VOLUMES);
        while let Some(object) = all.next().await.transpose()? {
            // A lock may be our own, and says nothing.
            if layout::lock_of(&object.key).is_none() {
                return Ok(Error::new(Kind::NotFound, format!("{key}: the store does not have it")));
            }
        }
        Ok(Error::new(Kind::Empty, format!("{key}: the target lists nothing at all")))
    }

    /// Whether a listing, too, does not have `key`. That it has it is an error: one of two answers is wrong.
    async fn confirm_missing(&self, key: &str) -> Result<()> {
        let folder = key.rsplit_once('/').map_or("", |(folder, _)| folder);
        let listed = self.store.folder(folder).await?;
        if listed.objects.iter().any(|object| object.key == key) {
            return Err(Error::new(Kind::Server, format!("{key}: not found, but listed")));
        }
        Ok(())
    }

    /// Reads something until it is what it should be, a few times.
    async fn rightly<'a, T>(&'a self, mut read: impl FnMut() -> Pending<'a, T> + Send) -> Result<T> {
        let wrong = |error: &Error| matches!(error.kind(), Kind::Corrupt | Kind::Checksum);
        let mut backoff = Backoff::new(PAUSES);
        for _ in 1..READS {
            match read().await {
                Err(error) if wrong(&error) => tokio::time::sleep(backoff.next()).await,
                other => return other,
            }
        }
        read().await
    }

    /// The file of a volume; None if it has none.
    pub(crate) async fn find_volume(&self, folder: &VolumeFolder) -> Result<Option<VolumeConfig>> {
        let key = folder.config();
        let read = || -> Pending<'_, Option<VolumeConfig>> {
            let key = key.clone();
            Box::pin(async move {
                let bytes = self.find(&key, volume::LARGEST).await?;
                let config = bytes.map(|bytes| VolumeConfig::parse(&bytes)).transpose()?;
                match config {
                    Some(config) if config.name != folder.volume() => {
                        Err(corrupt(format!("{key}: it is that of volume {}", config.name)))
                    }
                    config => Ok(config),
                }
            })
        };
        self.rightly(read).await
    }

    /// The file of a volume that should be there.
    pub(crate) async fn volume(&self, folder: &VolumeFolder) -> Result<VolumeConfig> {
        match self.find_volume(folder).await? {
            Some(config) => Ok(config),
            None => Err(self.missing(&folder.config()).await?),
        }
    }

    /// The file of a backup that should be there. Its blocks go to the list at `list`, if that is given.
    pub(crate) async fn backup(
        &self,
        folder: &VolumeFolder,
        name: &str,
        list: Option<&Path>,
    ) -> Result<(BackupConfig, Blocks)> {
        let key = folder.backup(name)?;
        let read = || -> Pending<'_, (BackupConfig, Blocks)> {
            let key = key.clone();
            Box::pin(async move {
                let parsed = self.briefly(|| Box::pin(self.backup_once(key.clone(), list))).await;
                match parsed? {
                    None => Err(self.missing(&key).await?),
                    Some((config, _)) if config.name != name || config.volume != folder.volume() => {
                        Err(corrupt(format!("{key}: it is backup {} of volume {}", config.name, config.volume)))
                    }
                    Some(parsed) => Ok(parsed),
                }
            })
        };
        self.rightly(read).await
    }

    async fn backup_once(&self, key: String, list: Option<&Path>) -> Result<Option<(BackupConfig, Blocks)>> {
        let body = match self.store.get(&key).await {
            Err(error) if error.kind() == Kind::NotFound => {
                self.confirm_missing(&key).await?;
                return Ok(None);
            }
            other => other?,
        };
        let list = list.map(Path::to_owned);
        let parsed = parsing(body, move |input| match list {
            None => BackupConfig::parse(input, &mut |_| Ok(())),
            Some(path) => parse_into(input, &path),
        });
        parsed.await.map(Some).map_err(|error| error.during(key))
    }

    /// A block, verified.
    pub(crate) async fn block(
        &self,
        folder: &VolumeFolder,
        checksum: crate::block::Checksum,
        method: crate::block::Compression,
        length: u64,
    ) -> Result<Vec<u8>> {
        let key = folder.block(&checksum);
        // What is larger than this is no packed block.
        let largest = length + length / 8 + (1 << 16);
        let read = || -> Pending<'_, Vec<u8>> {
            let key = key.clone();
            Box::pin(async move {
                let packed = self.read(&key, largest).await?;
                let length = usize::try_from(length).unwrap_or(usize::MAX);
                off_thread(move || crate::block::unpack(&packed, method, length, &checksum)).await
            })
        };
        self.rightly(read).await
    }
}

/// All of a body that is not too large.
async fn collect(mut body: Body, key: &str, largest: u64) -> Result<Bytes> {
    let mut bytes = Vec::new();
    while let Some(piece) = body.next().await {
        let piece = piece?;
        if bytes.len() as u64 + piece.len() as u64 > largest {
            return Err(corrupt(format!("{key}: more than {largest} bytes")));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes.into())
}

/// Runs what takes a processor for long.
pub(crate) async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let stopped = |_| Error::new(Kind::Interrupted, "the runtime is ending");
    tokio::task::spawn_blocking(work).await.map_err(stopped)?
}

/// Runs a parser on a blocking thread, fed with a body as it comes.
async fn parsing<T: Send + 'static>(
    mut body: Body,
    parse: impl FnOnce(Pieces) -> Result<T> + Send + 'static,
) -> Result<T> {
    let (sender, receiver) = mpsc::channel(PIECES);
    let parser = off_thread(move || parse(Pieces { receiver, piece: Bytes::new() }));
    let feeder = async move {
        let mut failure = None;
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(|error| {
                failure = Some(error.clone());
                io::Error::from(io::ErrorKind::ConnectionReset)
            });
            // A parser that has ended needs no more.
            if sender.send(piece).await.is_err() || failure.is_some() {
                break;
            }
        }
        failure
    };
    let (failure, parsed) = tokio::join!(feeder, parser);
    // The outage is why the parser failed, and says more.
    failure.map_or(parsed, Err)
}

/// Pieces of a body as a parser reads them.
struct Pieces {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    piece: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.receiver.blocking_recv() {
                None => return Ok(0),
                Some(piece) => self.piece = piece?,
            }
        }
        let length = buffer.len().min(self.piece.len());
        buffer[..length].copy_from_slice(&self.piece.split_to(length));
        Ok(length)
    }
}

/// Reads a backup's file, with its blocks into the list at `path`.
fn parse_into(input: impl Read, path: &Path) -> Result<(BackupConfig, Blocks)> {
    let mut writer = Writer::<BlockEntry>::create(path).map_err(local(path.display()))?;
    let mut failure = None;
    let parsed = BackupConfig::parse(input, &mut |entry| {
        writer.push(&entry).map_err(|error| {
            let kind = error.kind();
            failure = Some(error);
            kind.into()
        })
    });
    if let Some(failure) = failure {
        return Err(local(path.display())(failure));
    }
    let parsed = parsed?;
    writer.finish().map_err(local(path.display()))?;
    Ok(parsed)
}

/// Bytes of a local file.
pub(crate) fn length_of(path: &Path) -> Result<u64> {
    File::open(path).and_then(|file| file.metadata()).map(|metadata| metadata.len()).map_err(local(path.display()))
}
