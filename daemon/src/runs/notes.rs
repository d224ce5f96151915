//! What a run can still say when it dies: a file that is appended to with single writes.

use std::backtrace::Backtrace;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::judge::PANIC;

/// Panics that are noted in a run; the others are in the log.
const MOST_PANICS: u64 = 16;
/// Bytes of each.
const LONGEST_PANIC: usize = 16 << 10;
/// Bytes that are read of a file at most.
const LONGEST: u64 = MOST_PANICS * LONGEST_PANIC as u64 + 4096;
const ENDING: &str = ".notes";

/// The notes of this process, once it has a run.
static NOTES: OnceLock<File> = OnceLock::new();
static PANICS: AtomicU64 = AtomicU64::new(0);

/// The notes of one run.
pub(super) struct Notes {
    file: File,
}

impl Notes {
    /// Begins empty ones.
    pub(super) fn begin(folder: &Path, number: u64) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.create(true).append(true).mode(0o600).open(path(folder, number))?;
        file.set_len(0)?;
        Ok(Self { file })
    }

    /// Has panics and fatal signals of this process written to them from now on.
    pub(super) fn take_over(self) -> io::Result<()> {
        reactor::note_fatal_signals(self.file.try_clone()?)?;
        NOTES.set(self.file).map_err(|_| io::Error::other("this process has notes already"))
    }

    #[cfg(test)]
    pub(super) fn append(&self, text: &str) {
        (&self.file).write_all(text.as_bytes()).expect("written");
    }
}

/// Notes a panic. Called by the thread that panics, so with one write and no lock.
pub(crate) fn note_panic(text: &str, backtrace: &Backtrace) {
    let before = PANICS.fetch_add(1, Ordering::Relaxed);
    let mut note = format!("{PANIC}{text}\n{backtrace}");
    let length = (0..=LONGEST_PANIC.min(note.len())).rev().find(|end| note.is_char_boundary(*end));
    note.truncate(length.unwrap_or(0));
    note.push('\n');
    if before < MOST_PANICS
        && let Some(mut file) = NOTES.get()
    {
        // Nothing can be done about a full disk here; the log has it, too.
        let _ = file.write_all(note.as_bytes());
    }
}

/// How many panics this process has had, also those that only ended a task.
pub(crate) fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

/// What a run has left; nothing if it cannot be read.
pub(super) fn read(folder: &Path, number: u64) -> String {
    let read = || {
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(File::open(path(folder, number))?, LONGEST), &mut bytes)?;
        Ok::<_, io::Error>(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_default()
}

/// The highest number of a run that has left notes.
pub(super) fn highest(folder: &Path) -> u64 {
    numbers(folder).map(|(number, _)| number).max().unwrap_or(0)
}

/// Removes the notes of all runs but this one.
pub(super) fn remove_others(folder: &Path, number: u64) {
    for (_, path) in numbers(folder).filter(|(other, _)| *other != number) {
        // Tried again at the next start.
        let _ = fs::remove_file(path);
    }
}

fn numbers(folder: &Path) -> impl Iterator<Item = (u64, PathBuf)> {
    fs::read_dir(folder).into_iter().flatten().flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        Some((name.strip_suffix(ENDING)?.parse().ok()?, entry.path()))
    })
}

fn path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number}{ENDING}"))
}
