//! `ashlar lvol import`.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use proto::chunk::{MAX_CHUNK, chunks};
use proto::v1::import_lvol_request::Part;
use proto::v1::{CreateLvolRequest, ImportLvolRequest, LvolEnd};
use tokio::sync::{mpsc, oneshot};
use tonic::codegen::tokio_stream::Stream;

use super::{optional, told};
use crate::arguments::ImportLvol;
use crate::client::{Client, answer};
use crate::output::{Output, Progress};
use crate::size::Size;

/// Chunks that are on their way at one time.
const CHUNKS: usize = 4;
/// How long the reader may take to notice that nobody takes its chunks any more.
const READER_LIMIT: Duration = Duration::from_secs(1);

pub(super) async fn run(client: &Client, options: &ImportLvol, output: Output) -> anyhow::Result<()> {
    let source = Source::open(options)?;
    let lvol = CreateLvolRequest {
        name: options.name.clone(),
        store: options.store.clone(),
        size_bytes: source.size,
        block_size_bytes: options.block_size,
        uuid: optional(&options.uuid),
    };
    let (parts, taken) = mpsc::channel(CHUNKS);
    let reader = source.start(lvol, parts)?;
    let imported = client.transfers().import(Parts(taken)).await;
    // What was read wrong is told rather than what the daemon made of it.
    let bytes = match tokio::time::timeout(READER_LIMIT, reader).await {
        Ok(Ok(read)) => read.with_context(|| options.file.display().to_string())?,
        _ => 0,
    };
    let imported = answer(imported)?;
    output.print(&imported, |imported, _| {
        let lvol = imported.lvol.clone().unwrap_or_default();
        match imported.existed {
            true => format!("{} is there already: nothing was imported\n", told(&lvol)),
            false => format!("{}: {} of data, {}\n", told(&lvol), Size(bytes), Size(lvol.size_bytes)),
        }
    })
}

/// The messages of an import as they are read.
struct Parts(mpsc::Receiver<ImportLvolRequest>);

impl Stream for Parts {
    type Item = ImportLvolRequest;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<ImportLvolRequest>> {
        self.0.poll_recv(cx)
    }
}

/// What is imported.
struct Source {
    file: File,
    /// Bytes of the file.
    length: u64,
    /// Bytes of the lvol.
    size: u64,
    block_size: u32,
}

impl Source {
    fn open(options: &ImportLvol) -> anyhow::Result<Self> {
        let shown = || options.file.display().to_string();
        ensure!(matches!(options.block_size, 512 | 4096), "blocks have 512 or 4096 bytes, not {}", options.block_size);
        let mut file = File::open(&options.file).with_context(shown)?;
        // Of a device the metadata do not have it.
        let length = file.seek(SeekFrom::End(0)).with_context(shown)?;
        let size = match options.size {
            Some(size) => size.0,
            None => length.next_multiple_of(options.block_size.into()),
        };
        ensure!(size >= length, "{} has {length} bytes, more than the {size} of --size", shown());
        Ok(Self { file, length, size, block_size: options.block_size })
    }

    /// Reads it on a thread of its own, which tells in the end how many bytes were data.
    fn start(
        self,
        lvol: CreateLvolRequest,
        parts: mpsc::Sender<ImportLvolRequest>,
    ) -> io::Result<oneshot::Receiver<io::Result<u64>>> {
        let (done, told) = oneshot::channel();
        let reader = std::thread::Builder::new().name("reader".to_owned());
        // An error means that nobody waits any more.
        reader.spawn(move || drop(done.send(self.send(lvol, &parts))))?;
        Ok(told)
    }

    /// Without an end when something cannot be read: the daemon does not take it for the whole then.
    fn send(&self, lvol: CreateLvolRequest, parts: &mpsc::Sender<ImportLvolRequest>) -> io::Result<u64> {
        let mut progress = Progress::new("imported");
        let send = |part| parts.blocking_send(ImportLvolRequest { part: Some(part) }).is_ok();
        let mut taken = send(Part::Lvol(lvol));
        let (mut at, mut bytes) = (0, 0);
        let mut buffer = vec![0; MAX_CHUNK];
        while taken && let Some(data) = next_data(&self.file, at)?.filter(|data| *data < self.length) {
            // Chunks begin at blocks, wherever the file has its data.
            let start = (data - data % MAX_CHUNK as u64).max(at);
            let length = (self.length - start).min(MAX_CHUNK as u64);
            // At most MAX_CHUNK.
            let read = &mut buffer[..length as usize];
            self.file.read_exact_at(read, start)?;
            let whole = (length as usize).next_multiple_of(self.block_size as usize);
            buffer[length as usize..whole].fill(0);
            for chunk in chunks(start, &buffer[..whole]) {
                bytes += chunk.data.len() as u64;
                taken = taken && send(Part::Chunk(chunk));
            }
            at = start + length;
            progress.show(at, self.length);
        }
        // If it is not taken the daemon has an answer already.
        let _ = taken && send(Part::End(LvolEnd { data_bytes: bytes }));
        Ok(bytes)
    }
}

/// Where the next data of a file is, from `at` on; none up to its end. Where holes cannot be told all is data.
fn next_data(file: &File, at: u64) -> io::Result<Option<u64>> {
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)) {
        Ok(data) => Ok(Some(data)),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => Ok(Some(at)),
        Err(error) => Err(error.into()),
    }
}
