//! Records: one JSON file for each object of a kind, with the version of its format.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::file;
use crate::failpoint;

/// The version this daemon writes and the only one it reads. A change that older daemons would misread raises it.
const FORMAT: u32 = 1;

/// The records of one kind, a file `UUID.json` each.
pub(crate) struct Records<T> {
    folder: PathBuf,
    content: PhantomData<fn() -> T>,
}

/// What a file holds around its record.
#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    format: u32,
    record: T,
}

/// The part of a file that every version has.
#[derive(Deserialize)]
struct VersionOnly {
    format: u32,
}

/// Why a record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    #[error("cannot read the state file {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write the state file {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("the state file {} is damaged: {source}", path.display())]
    Damaged { path: PathBuf, source: serde_json::Error },
    #[error(
        "the state file {} has format {found}, this version of ashlard knows format {FORMAT} only: run the \
         version that wrote it", path.display()
    )]
    Unknown { path: PathBuf, found: u32 },
}

/// Why a record was not changed.
#[derive(Debug)]
pub(crate) struct Unchanged {
    pub(crate) error: StateError,
    /// What was before could not be put back either: nobody knows which of the two is there.
    pub(crate) in_doubt: bool,
}

/// The records of a kind as found at start.
pub(crate) struct Loaded<T> {
    /// Those that could be read.
    pub(crate) records: BTreeMap<Uuid, T>,
    /// Those that could not. They are left as they are.
    pub(crate) failed: Vec<StateError>,
    /// Whose those are.
    pub(crate) unreadable: BTreeSet<Uuid>,
}

impl<T> Records<T> {
    pub(crate) fn open(folder: PathBuf) -> Result<Self, StateError> {
        file::make_folder(&folder).map_err(|source| StateError::Write { path: folder.clone(), source })?;
        Ok(Self { folder, content: PhantomData })
    }

    fn path(&self, id: Uuid) -> PathBuf {
        self.folder.join(format!("{id}.json"))
    }
}

impl<T: Serialize + DeserializeOwned> Records<T> {
    /// Reads all records. One that cannot be read fails alone (compare I28).
    pub(crate) fn load(&self) -> Result<Loaded<T>, StateError> {
        let unreadable = |source| StateError::Read { path: self.folder.clone(), source };
        let mut loaded = Loaded { records: BTreeMap::new(), failed: Vec::new(), unreadable: BTreeSet::new() };
        for entry in fs::read_dir(&self.folder).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            if name.ends_with(file::TEMPORARY) {
                // Cut off by a crash before it counted.
                file::remove(&path).map_err(|source| StateError::Write { path: path.clone(), source })?;
                continue;
            }
            let Some(id) = name.strip_suffix(".json").and_then(|name| Uuid::try_parse(name).ok()) else { continue };
            match read(&path) {
                Ok(Some(record)) => drop(loaded.records.insert(id, record)),
                Ok(None) => {}
                Err(error) => {
                    loaded.failed.push(error);
                    loaded.unreadable.insert(id);
                }
            }
        }
        Ok(loaded)
    }

    /// Makes or replaces a record; durable when this returns.
    pub(crate) async fn store(&self, id: Uuid, record: &T) -> Result<(), StateError> {
        let path = self.path(id);
        let content = encode(&path, record)?;
        off_the_runtime(std::any::type_name::<T>(), path, move |path| file::replace(path, &content)).await
    }

    /// Replaces `old` by `new`, or makes it where there was none. A write that failed may have happened all the same, which the next start
    /// would find: so what was before is put back.
    pub(crate) async fn change(&self, id: Uuid, old: Option<&T>, new: &T) -> Result<(), Unchanged> {
        let Err(error) = self.store(id, new).await else { return Ok(()) };
        let put_back = match old {
            Some(old) => self.store(id, old).await,
            None => self.remove(id).await,
        };
        Err(Unchanged { error, in_doubt: put_back.is_err() })
    }

    /// Removes a record; durable when this returns. An absent one is a success.
    pub(crate) async fn remove(&self, id: Uuid) -> Result<(), StateError> {
        off_the_runtime(std::any::type_name::<T>(), self.path(id), file::remove).await
    }

    /// When a record was written last, in milliseconds since the Unix epoch; 0 if there is none.
    pub(crate) async fn changed_at(&self, id: Uuid) -> i64 {
        changed_at(self.path(id)).await
    }
}

/// Changes a file on a thread where waiting for the disk holds nobody up.
async fn off_the_runtime(
    what: &'static str,
    path: PathBuf,
    change: impl FnOnce(&Path) -> io::Result<()> + Send + 'static,
) -> Result<(), StateError> {
    let there = path.clone();
    let changed = async {
        let changed = tokio::task::spawn_blocking(move || change(&there)).await;
        changed.unwrap_or_else(|ended| Err(io::Error::other(ended)))
    };
    failpoint::step(what, changed).await.map_err(|source| StateError::Write { path, source })
}

/// When a file was written last, in milliseconds since the Unix epoch; 0 if that cannot be said.
pub(crate) async fn changed_at(path: PathBuf) -> i64 {
    let modified = tokio::task::spawn_blocking(move || fs::metadata(path).and_then(|found| found.modified()).ok());
    let since = modified.await.ok().flatten().and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
    since.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// Reads one versioned file; nothing if there is none.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StateError> {
    let content = match fs::read(path) {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(StateError::Read { path: path.to_owned(), source }),
    };
    let damaged = |source| StateError::Damaged { path: path.to_owned(), source };
    let VersionOnly { format } = serde_json::from_slice(&content).map_err(damaged)?;
    if format != FORMAT {
        return Err(StateError::Unknown { path: path.to_owned(), found: format });
    }
    let versioned: Versioned<T> = serde_json::from_slice(&content).map_err(damaged)?;
    Ok(Some(versioned.record))
}

/// Writes one versioned file; durable when this returns. Blocks for a disk flush: for the time before the runtime.
pub(crate) fn write<T: Serialize>(path: &Path, record: &T) -> Result<(), StateError> {
    let content = encode(path, record)?;
    file::replace(path, &content).map_err(|source| StateError::Write { path: path.to_owned(), source })
}

fn encode<T: Serialize>(path: &Path, record: &T) -> Result<Vec<u8>, StateError> {
    let mut content = serde_json::to_vec_pretty(&Versioned { format: FORMAT, record })
        .map_err(|error| StateError::Write { path: path.to_owned(), source: error.into() })?;
    content.push(b'\n');
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(folder: &Path) -> Records<Vec<u32>> {
        Records::open(folder.join("things")).expect("a folder")
    }

    #[tokio::test]
    async fn what_was_stored_is_loaded() {
        let folder = tempfile::tempdir().expect("a folder");
        let (first, second) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let records = records(folder.path());
        records.store(first, &vec![1, 2]).await.expect("stored");
        records.store(second, &vec![3]).await.expect("stored");
        records.store(first, &vec![4]).await.expect("replaced");
        records.remove(second).await.expect("removed");
        records.remove(second).await.expect("absent is fine");
        let loaded = records.load().expect("readable");
        assert_eq!(loaded.records, BTreeMap::from([(first, vec![4])]));
        assert!(loaded.failed.is_empty());
    }

    #[tokio::test]
    async fn a_damaged_record_fails_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let records = records(folder.path());
        records.store(Uuid::from_u128(1), &vec![1]).await.expect("stored");
        let damaged = records.path(Uuid::from_u128(2));
        fs::write(&damaged, "{\"format\": 1, \"rec").expect("written");
        let future = records.path(Uuid::from_u128(3));
        fs::write(&future, "{\"format\": 2, \"other\": {}}").expect("written");
        let loaded = records.load().expect("readable");
        assert_eq!(loaded.records.len(), 1);
        let mut texts: Vec<_> = loaded.failed.iter().map(ToString::to_string).collect();
        texts.sort();
        assert_eq!(texts.len(), 2);
        assert!(texts[0].contains("has format 2") || texts[1].contains("has format 2"), "{texts:?}");
        assert!(texts[0].contains("is damaged") || texts[1].contains("is damaged"), "{texts:?}");
        assert!(damaged.exists() && future.exists(), "left as they are");
    }

    #[test]
    fn a_temporary_file_of_a_crash_does_not_count() {
        let folder = tempfile::tempdir().expect("a folder");
        let records = records(folder.path());
        let leftover = records.folder.join(format!("{}.json{}", Uuid::from_u128(1), file::TEMPORARY));
        fs::write(&leftover, "half").expect("written");
        assert!(records.load().expect("readable").records.is_empty());
        assert!(!leftover.exists());
    }
}
