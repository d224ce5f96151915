//! The state directory: what this daemon runs, so that a restart brings all of it back.
//!
//! ```text
//! lock            held while a daemon uses the directory
//! node.json       whose directory it is
//! stores/         a record for each store
//! scrubs/         a record for the last scrub of each store
//! engines/        a record for each engine, with its export
//! volumes/        a record for each volume
//! deletions/      a record for each replica elsewhere that waits to be deleted
//! operations/     a record for each operation that has ended, up to 256
//! registry/       the engines' membership records (crate engine)
//! events/         what happened, the last 4,096 events at least
//! ```
//!
//! Every file but those of events, which are appended to, is replaced as a whole: a temporary file, fsync, rename, fsync of the folder. After a crash a file has its
//! old content or its new one.

mod file;
mod log;
mod modes;
mod records;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub(crate) use log::{Kept, Log};
pub(crate) use records::{Loaded, Records, StateError, Unchanged, changed_at, read, write};

const REGISTRY: &str = "registry";
/// What reactors add to the name of a file that they replace, until it is whole.
const UNFINISHED: &str = "unfinished";

/// How long a lock is waited for: a daemon that was just killed holds it until the kernel has taken its memory apart.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// The state directory, locked for this process.
pub(crate) struct StateDirectory {
    path: PathBuf,
    node_uuid: Uuid,
    /// Locked as long as it is open; the system lets go of it however the process ends.
    _lock: File,
}

/// Content of `node.json`.
#[derive(Serialize, Deserialize)]
struct NodeRecord {
    uuid: Uuid,
    name: String,
}

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("cannot use the state directory {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "the state directory {} is in use by another ashlard{}: stop that one first, or give this one a \
         directory of its own with --state-dir",
        path.display(), holder.as_ref().map(|pid| format!(" (process {pid})")).unwrap_or_default()
    )]
    InUse { path: PathBuf, holder: Option<String> },
    #[error(
        "the state directory {} belongs to node `{owner}`, and this is node `{node}`: start with --node {owner}, or \
         give this node a directory of its own with --state-dir", path.display()
    )]
    OtherNode { path: PathBuf, owner: String, node: String },
    #[error("the state directory holds secrets: {}: {problem}", path.display())]
    NotPrivate { path: PathBuf, problem: String },
    #[error(transparent)]
    Record(#[from] StateError),
}

impl StateDirectory {
    /// Makes the directory if there is none, locks it, and checks that it is this node's.
    pub(crate) fn open(path: &Path, node: &str) -> Result<Self, OpenError> {
        let failed = |source| OpenError::Io { path: path.to_owned(), source };
        modes::make(path).map_err(failed)?;
        let path = path.canonicalize().map_err(failed)?;
        modes::close(&path)?;
        let lock = lock(&path)?;
        let node_uuid = claim(&path, node)?;
        file::make_folder(&path.join(REGISTRY)).map_err(failed)?;
        remove_unfinished(&path.join(REGISTRY)).map_err(failed)?;
        Ok(Self { path, node_uuid, _lock: lock })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The node's identity, made with the directory.
    pub(crate) fn node_uuid(&self) -> Uuid {
        self.node_uuid
    }

    /// The records of one kind.
    pub(crate) fn records<T>(&self, kind: &'static str) -> Result<Records<T>, StateError> {
        Records::open(self.path.join(kind))
    }

    /// The log of one kind, with what is in it; each of its files takes `most` lines.
    pub(crate) fn log(&self, kind: &'static str, most: usize) -> io::Result<(Log, Kept)> {
        Log::open(&self.path.join(kind), most)
    }

    /// Where the engines keep their membership records.
    pub(crate) fn registry(&self) -> PathBuf {
        self.path.join(REGISTRY)
    }
}

/// Locks the file, trying again for a while if another process has it.
fn try_lock_for(file: &File, patience: Duration) -> Result<(), TryLockError> {
    let end = Instant::now() + patience;
    loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if Instant::now() < end => std::thread::sleep(LOCK_PAUSE),
            result => return result,
        }
    }
}

/// Takes the lock, and leaves the process id in it for whoever is refused.
fn lock(folder: &Path) -> Result<File, OpenError> {
    let failed = |source| OpenError::Io { path: folder.to_owned(), source };
    let path = folder.join("lock");
    let mut file =
        OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path).map_err(failed)?;
    match try_lock_for(&file, LOCK_PATIENCE) {
        Ok(()) => {
            file.set_len(0).map_err(failed)?;
            writeln!(file, "{}", std::process::id()).map_err(failed)?;
            Ok(file)
        }
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let known = file.read_to_string(&mut holder).is_ok() && !holder.trim().is_empty();
            let holder = known.then(|| holder.trim().to_owned());
            Err(OpenError::InUse { path: folder.to_owned(), holder })
        }
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// Removes what a kill has left of files that a reactor was replacing. What has replaced nothing counts for nothing.
fn remove_unfinished(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == UNFINISHED) {
            file::remove(&path)?;
        }
    }
    Ok(())
}

/// Writes the node's name into a new directory; compares it in one that exists.
fn claim(folder: &Path, node: &str) -> Result<Uuid, OpenError> {
    let path = folder.join("node.json");
    match records::read::<NodeRecord>(&path)? {
        Some(record) if record.name == node => Ok(record.uuid),
        Some(record) => {
            Err(OpenError::OtherNode { path: folder.to_owned(), owner: record.name, node: node.to_owned() })
        }
        None => {
            let record = NodeRecord { uuid: Uuid::new_v4(), name: node.to_owned() };
            records::write(&path, &record)?;
            Ok(record.uuid)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_locked_while_it_is_used() {
        let folder = tempfile::tempdir().expect("a folder");
        let first = StateDirectory::open(folder.path(), "a").expect("free");
        let error = StateDirectory::open(folder.path(), "a").err().expect("in use").to_string();
        assert!(error.contains(&folder.path().display().to_string()), "{error}");
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        let uuid = first.node_uuid();
        drop(first);
        let again = StateDirectory::open(folder.path(), "a").expect("free again");
        assert_eq!(again.node_uuid(), uuid);
    }

    #[test]
    fn what_a_kill_left_of_a_record_of_the_registry_goes() {
        let folder = tempfile::tempdir().expect("a folder");
        let registry = folder.path().join(REGISTRY);
        fs::create_dir_all(&registry).expect("made");
        for name in ["a.json", "a.json.unfinished", "a.damaged"] {
            fs::write(registry.join(name), "{").expect("written");
        }
        drop(StateDirectory::open(folder.path(), "a").expect("free"));
        let names = fs::read_dir(registry).expect("a folder").map(|entry| entry.expect("an entry").file_name());
        let mut names: Vec<_> = names.collect();
        names.sort();
        assert_eq!(names, ["a.damaged", "a.json"]);
    }

    #[test]
    fn another_nodes_directory_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        drop(StateDirectory::open(folder.path(), "a").expect("free"));
        let error = StateDirectory::open(folder.path(), "b").err().expect("another node's").to_string();
        assert!(error.contains("belongs to node `a`"), "{error}");
    }

    #[test]
    fn a_path_that_is_a_file_is_refused() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let error = StateDirectory::open(file.path(), "a").err().expect("not a folder").to_string();
        assert!(error.contains("cannot use the state directory"), "{error}");
    }
}
