//! What works on the disk of a store that no daemon has open.

pub(crate) mod check;
pub(crate) mod dump;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use reactor::{Config, Disk, DiskOptions, Reactor};

/// The exit codes of fsck.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Nothing is wrong.
    Clean = 0,
    /// What was wrong is repaired.
    Repaired = 1,
    /// Something is wrong still.
    ErrorsLeft = 4,
    /// The tool itself failed.
    Failed = 8,
}

/// Runs work with a disk on a reactor of its own, and turns what comes of it into an exit code.
fn with_disk<F>(path: &Path, read_only: bool, work: impl FnOnce(Disk) -> F + 'static) -> ExitCode
where
    F: Future<Output = anyhow::Result<Exit>> + 'static,
{
    let outcome = run(path, read_only, work);
    let exit = outcome.unwrap_or_else(|error| {
        // Nobody reads on: not a failure of this program.
        if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
            return Exit::Clean;
        }
        eprintln!("ashlar: {error:#}");
        Exit::Failed
    });
    ExitCode::from(exit as u8)
}

fn run<F>(path: &Path, read_only: bool, work: impl FnOnce(Disk) -> F + 'static) -> anyhow::Result<Exit>
where
    F: Future<Output = anyhow::Result<Exit>> + 'static,
{
    let path = path.to_owned();
    Reactor::run(&Config::default(), async move {
        let disk = open(&path, read_only)?;
        work(disk).await
    })
    .context("no reactor")?
}

/// Opens a disk as a store does, with its lock; without O_DIRECT where the file system has none.
fn open(path: &Path, read_only: bool) -> anyhow::Result<Disk> {
    let options = DiskOptions { read_only, ..DiskOptions::default() };
    let opened = match Disk::open(path, &options) {
        Err(error) if error.kind() == io::ErrorKind::Unsupported || error.raw_os_error() == Some(22) => {
            Disk::open(path, &DiskOptions { buffered: true, ..options })
        }
        other => other,
    };
    opened.with_context(|| path.display().to_string())
}

/// Writes to stdout what may be long: whoever reads it may stop.
fn print(text: &str) -> io::Result<()> {
    io::stdout().lock().write_all(text.as_bytes())
}
