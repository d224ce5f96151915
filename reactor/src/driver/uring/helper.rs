//! A thread for the few things that block: small files of the control side, so that an fsync of a state file never
//! stalls the data path.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use parking_lot::Mutex;

use super::waiting::Doorbell;
use crate::driver::{Operation, Output};

/// Larger files are not state files; reading one would only be a way to run out of memory.
const MOST_CONTENT: u64 = 64 << 20;

/// What the helper can do.
pub(super) enum Job {
    Read(PathBuf),
    Replace(PathBuf, Vec<u8>),
    Remove(PathBuf),
    List(PathBuf),
}

/// What a job came to.
pub(super) enum Outcome {
    Done,
    Content(Vec<u8>),
    Names(Vec<String>),
}

impl From<Outcome> for Output {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Done => Self::Done,
            Outcome::Content(content) => Self::Content(content),
            Outcome::Names(names) => Self::Names(names),
        }
    }
}

type Results = Arc<Mutex<VecDeque<(u64, io::Result<Outcome>)>>>;

struct Running {
    /// Closed to end the thread.
    jobs: mpsc::Sender<(u64, Job)>,
    thread: JoinHandle<()>,
}

/// The thread, started with the first job. Jobs are as many as tasks wait for one; they run one after the other.
pub(super) struct Helper {
    doorbell: Arc<Doorbell>,
    results: Results,
    running: Option<Running>,
}

impl Helper {
    pub(super) fn new(doorbell: Arc<Doorbell>) -> Self {
        Self { doorbell, results: Results::default(), running: None }
    }

    /// Starts a job; the bell rings when its result can be taken under the same key.
    pub(super) fn start(&mut self, key: u64, job: Job) -> io::Result<()> {
        let running = match &self.running {
            Some(running) => running,
            None => self.running.insert(Running::start(Arc::clone(&self.doorbell), Arc::clone(&self.results))?),
        };
        running.jobs.send((key, job)).map_err(|_| io::Error::other("the helper thread has panicked"))
    }

    /// The next result.
    pub(super) fn take_result(&self) -> Option<(u64, io::Result<Outcome>)> {
        self.results.lock().pop_front()
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        if let Some(Running { jobs, thread }) = self.running.take() {
            drop(jobs);
            if thread.join().is_err() {
                tracing::error!("the helper thread panicked");
            }
        }
    }
}

impl Running {
    fn start(doorbell: Arc<Doorbell>, results: Results) -> io::Result<Self> {
        let (sender, jobs) = mpsc::channel::<(u64, Job)>();
        let name = format!("{}-files", thread::current().name().unwrap_or("reactor"));
        let thread = thread::Builder::new().name(name).spawn(move || {
            for (key, job) in jobs {
                let result = job.run();
                results.lock().push_back((key, result));
                doorbell.ring();
            }
        })?;
        Ok(Self { jobs: sender, thread })
    }
}

impl Job {
    /// The job that performs an operation, if the helper does; it takes the content to write along.
    pub(super) fn of(operation: &mut Operation) -> Option<Self> {
        match operation {
            Operation::ReadFile { path } => Some(Self::Read(path.clone())),
            Operation::ReplaceFile { path, content } => Some(Self::Replace(path.clone(), std::mem::take(content))),
            Operation::RemoveFile { path } => Some(Self::Remove(path.clone())),
            Operation::ListFolder { path } => Some(Self::List(path.clone())),
            _ => None,
        }
    }

    fn run(self) -> io::Result<Outcome> {
        match self {
            Self::Read(path) => named(&path, read(&path)).map(Outcome::Content),
            Self::Replace(path, content) => named(&path, replace(&path, &content)).map(|()| Outcome::Done),
            Self::Remove(path) => named(&path, remove(&path)).map(|()| Outcome::Done),
            Self::List(path) => named(&path, list(&path)).map(Outcome::Names),
        }
    }
}

fn named<T>(path: &Path, result: io::Result<T>) -> io::Result<T> {
    result.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

/// What is read was not always made by a [`replace`] that ended: the name gets durable before anyone acts on it.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    make_durable(folder_of(path))?;
    let mut content = Vec::new();
    File::open(path)?.take(MOST_CONTENT + 1).read_to_end(&mut content)?;
    if content.len() as u64 > MOST_CONTENT {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("over {MOST_CONTENT} bytes")));
    }
    Ok(content)
}

/// The ending of a file that is being written; one left by a crash is overwritten by the next replace.
const UNFINISHED: &str = ".unfinished";

fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(UNFINISHED);
    let unfinished = PathBuf::from(unfinished);
    let mut file = File::create(&unfinished)?;
    file.write_all(content)?;
    file.sync_all()?;
    change(folder_of(path), || fs::rename(&unfinished, path))?;
    make_durable(folder_of(path))
}

fn remove(path: &Path) -> io::Result<()> {
    match change(folder_of(path), || fs::remove_file(path)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Also when it was gone: whoever removed it may have been killed before this.
    match make_durable(folder_of(path)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        synced => synced,
    }
}

fn list(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    // As for a read.
    make_durable(folder)?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        // A name that is not UTF-8 is none of ours.
        if let (true, Ok(name)) = (entry.file_type()?.is_file(), entry.file_name().into_string())
            && !name.ends_with(UNFINISHED)
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Changes of a folder's names by this process, whichever reactor made them. The first is what a process before may have left.
#[derive(Clone, Copy, Debug)]
struct Changes {
    begun: u64,
    /// Those of them that are over, however they ended.
    over: u64,
    /// So many are known to be durable.
    durable: u64,
}

/// By folder: a thousand records are read at a start, and one sync makes all their names durable.
static FOLDERS: Mutex<BTreeMap<PathBuf, Changes>> = Mutex::new(BTreeMap::new());

fn with_changes<T>(folder: &Path, body: impl FnOnce(&mut Changes) -> T) -> T {
    let mut folders = FOLDERS.lock();
    body(folders.entry(folder.to_owned()).or_insert(Changes { begun: 1, over: 1, durable: 0 }))
}

/// Changes a name of the folder.
fn change(folder: &Path, work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    with_changes(folder, |changes| changes.begun += 1);
    let result = work();
    with_changes(folder, |changes| changes.over += 1);
    result
}

/// Makes all names of the folder durable, unless they are known to be.
fn make_durable(folder: &Path) -> io::Result<()> {
    let changes = with_changes(folder, |changes| *changes);
    if changes.durable == changes.begun {
        return Ok(());
    }
    File::open(folder)?.sync_all()?;
    if changes.over == changes.begun {
        // A change that was under way may have come too late for the sync.
        with_changes(folder, |now| now.durable = now.durable.max(changes.over));
    }
    Ok(())
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_durable(folder: &Path) -> bool {
        with_changes(folder, |changes| changes.durable == changes.begun)
    }

    #[test]
    fn names_are_durable_before_anyone_acts_on_them() {
        let folder = std::env::temp_dir().join(format!("reactor-helper-{}", std::process::id()));
        let path = folder.join("record");
        assert!(read(&path).is_err() && !is_durable(&folder), "there is no such folder");
        fs::create_dir_all(&folder).expect("a folder");
        assert!(read(&path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound));
        assert!(is_durable(&folder), "that it is not there is something to act on, too");
        replace(&path, b"one").expect("written");
        assert_eq!(read(&path).expect("there"), b"one");
        assert!(is_durable(&folder));

        // A change that failed may have happened all the same: the next look makes sure of whatever there is.
        fs::create_dir(folder.join("folder")).expect("a folder");
        assert!(replace(&folder.join("folder"), b"two").is_err(), "a file is no folder");
        assert!(!is_durable(&folder));
        assert_eq!(list(&folder).expect("listed"), ["record"]);
        assert!(is_durable(&folder));

        // While somebody changes a name no look knows that it is durable.
        let looked = change(&folder, || read(&path).map(|_| assert!(!is_durable(&folder))));
        looked.expect("read");
        assert!(!is_durable(&folder), "it ended after the look");
        remove(&path).expect("removed");
        assert!(is_durable(&folder));
        remove(&path).expect("nothing to do");
        fs::remove_dir_all(&folder).expect("removed");
    }
}
