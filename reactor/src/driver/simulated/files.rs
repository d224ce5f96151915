//! Small files of simulated machines: old or new after a crash, never in between.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::random::Random;

/// The small files of one machine.
#[derive(Debug, Default)]
pub(crate) struct Files {
    files: BTreeMap<PathBuf, File>,
    /// How likely each operation is to fail with EIO.
    failure: f64,
}

/// One file; none: there is no such file.
#[derive(Debug, Default)]
struct File {
    live: Option<Vec<u8>>,
    durable: Option<Vec<u8>>,
}

impl Files {
    pub(crate) fn set_failure(&mut self, probability: f64) {
        self.failure = probability;
    }

    /// Whether the next operation fails.
    pub(crate) fn fails(&self, random: &mut Random) -> bool {
        random.chance(self.failure)
    }

    /// Reads a file. What a reader has seen is stable (see the contract of [`super::super::Operation::ReadFile`]).
    pub(crate) fn read(&mut self, path: &Path) -> io::Result<Vec<u8>> {
        let file = self.files.get_mut(path).ok_or(io::ErrorKind::NotFound)?;
        file.durable.clone_from(&file.live);
        Ok(file.live.clone().ok_or(io::ErrorKind::NotFound)?)
    }

    /// Replaces or (with none) removes a file, durably.
    pub(crate) fn put(&mut self, path: &Path, content: Option<Vec<u8>>) {
        let file = File { live: content.clone(), durable: content };
        self.files.insert(path.to_owned(), file);
    }

    /// The process died while it replaced or removed a file: readers see the old or the new, and a later power cut
    /// decides again.
    pub(crate) fn put_by_chance(&mut self, path: &Path, content: Option<Vec<u8>>, random: &mut Random) {
        let file = self.files.entry(path.to_owned()).or_default();
        if random.one_in(2) {
            file.live = content;
        }
    }

    /// The machine lost its power.
    pub(crate) fn power_cut(&mut self, random: &mut Random) {
        for file in self.files.values_mut() {
            if file.live != file.durable && random.one_in(2) {
                file.durable.clone_from(&file.live);
            }
            file.live.clone_from(&file.durable);
        }
    }

    /// The names in a folder, sorted.
    pub(crate) fn list(&mut self, folder: &Path) -> Vec<String> {
        let inside = self.files.iter_mut().filter(|(path, file)| path.parent() == Some(folder) && file.live.is_some());
        inside
            .filter_map(|(path, file)| {
                file.durable.clone_from(&file.live);
                Some(path.file_name()?.to_string_lossy().into_owned())
            })
            .collect()
    }
}
