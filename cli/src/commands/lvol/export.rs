//! `ashlar lvol export`.

use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use proto::chunk::Transfer;
use proto::v1::export_lvol_response::Part;
use proto::v1::{ExportLvolRequest, ExportLvolResponse, Lvol};
use serde_json::json;
use tempfile::NamedTempFile;
use tonic::{Response, Streaming};

use crate::client::{Client, answer};
use crate::output::{Output, Progress};
use crate::size::Size;

/// How many zeroes are written at once to what cannot have holes.
const ZEROES: usize = 64 << 10;

pub(super) async fn run(client: &Client, lvol: &str, file: &Path, output: Output) -> anyhow::Result<()> {
    let mut target = Target::open(file)?;
    let request = ExportLvolRequest { lvol: lvol.to_owned() };
    let mut parts = answer(client.transfers().export(request).await)?;
    let Some(Part::Lvol(lvol)) = next(&mut parts).await? else { bail!("the daemon does not say what it exports") };
    let bytes = receive(&lvol, &mut parts, &mut target).await?;
    if target.finish(lvol.size_bytes)? {
        return Ok(());
    }
    output.print(&json!({"lvol": lvol, "file": file, "data_bytes": bytes}), |_, _| {
        let (data, size) = (Size(bytes), Size(lvol.size_bytes));
        format!("lvol {} is in {}: {data} of data, {size} with its holes\n", lvol.name, file.display())
    })
}

async fn receive(lvol: &Lvol, parts: &mut Streaming<ExportLvolResponse>, target: &mut Target) -> anyhow::Result<u64> {
    let mut transfer = Transfer::new(lvol.size_bytes, lvol.block_size_bytes);
    let mut progress = Progress::new("exported");
    loop {
        match next(parts).await? {
            Some(Part::Chunk(chunk)) => {
                transfer.take(&chunk)?;
                target.write(chunk.offset, &chunk.data)?;
                progress.show(transfer.position(), lvol.size_bytes);
            }
            Some(Part::End(end)) => {
                transfer.end(&end)?;
                return Ok(transfer.bytes());
            }
            Some(Part::Lvol(_)) => bail!("the daemon began anew in the middle of the export"),
            None => bail!("the export was cut off: the daemon ended, or the connection was too slow"),
        }
    }
}

async fn next(parts: &mut Streaming<ExportLvolResponse>) -> anyhow::Result<Option<Part>> {
    match answer(parts.message().await.map(Response::new))? {
        None => Ok(None),
        Some(message) => Ok(Some(message.part.context("the daemon is of another version than this command")?)),
    }
}

/// Where an export goes.
enum Target {
    /// A file that gets its name when it is whole: one that is cut off leaves nothing.
    File { file: NamedTempFile, path: PathBuf },
    /// Standard output, and how many bytes it has.
    Stdout { written: u64 },
}

impl Target {
    fn open(path: &Path) -> anyhow::Result<Self> {
        if path == Path::new("-") {
            return Ok(Self::Stdout { written: 0 });
        }
        ensure!(!path.exists(), "{} exists already: choose a file that does not", path.display());
        let path = std::path::absolute(path)?;
        let folder = path.parent().with_context(|| format!("{} is no file", path.display()))?;
        let file =
            NamedTempFile::with_prefix_in(".ashlar-export-", folder).with_context(|| folder.display().to_string())?;
        Ok(Self::File { file, path })
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> anyhow::Result<()> {
        match self {
            Self::File { file, path } => {
                file.as_file().write_all_at(data, offset).with_context(|| path.display().to_string())
            }
            Self::Stdout { written } => {
                zeroes_to(offset, written)?;
                *written += data.len() as u64;
                Ok(io::stdout().lock().write_all(data)?)
            }
        }
    }

    /// It is whole. True if nothing else may go to standard output.
    fn finish(self, size: u64) -> anyhow::Result<bool> {
        match self {
            Self::File { file, path } => {
                let shown = || path.display().to_string();
                file.as_file().set_len(size).with_context(shown)?;
                file.as_file().sync_all().with_context(shown)?;
                file.persist_noclobber(&path).map_err(|error| error.error).with_context(shown)?;
                Ok(false)
            }
            Self::Stdout { mut written } => {
                zeroes_to(size, &mut written)?;
                io::stdout().lock().flush()?;
                Ok(true)
            }
        }
    }
}

/// Standard output has no holes.
fn zeroes_to(end: u64, written: &mut u64) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    while *written < end {
        // At most ZEROES.
        let length = (end - *written).min(ZEROES as u64) as usize;
        stdout.write_all(&[0; ZEROES][..length])?;
        *written += length as u64;
    }
    Ok(())
}
