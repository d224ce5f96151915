//! A folder as a target, local or mounted.
//!
//! Calls run on blocking threads, each with a time limit: a mount that hangs holds a thread and one of a few permits, and
//! whoever waits longer gets `TimedOut`.
//!
//! A folder whose file system is not mounted is a folder all the same, on the disk below. A **mark**, a file that is made once, tells
//! them apart: a store that knows of one does nothing where it is missing.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::{Semaphore, mpsc};

use super::store::{Body, Content, Folder, LARGEST_FOLDER, Listing, ObjectInfo, Store};
use crate::error::{Error, Kind, Result};
use crate::format::layout;

/// Calls at once.
const CALLS: usize = 32;

/// Bytes of a piece of a body.
const PIECE: usize = 1 << 18;

/// What is in the name of a file that is being written.
const TEMPORARY: &str = ".tmp.";

/// Age from which a temporary file is one that a crash left.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);

/// A folder.
#[derive(Clone, Debug)]
pub struct FolderStore {
    root: Arc<PathBuf>,
    /// The file that has to be there.
    mark: Option<Arc<PathBuf>>,
    timeout: Duration,
    calls: Arc<Semaphore>,
}

impl FolderStore {
    /// The store in `root`, which is not made.
    pub fn new(root: &Path, timeout: Duration) -> Self {
        Self { root: Arc::new(root.to_owned()), mark: None, timeout, calls: Arc::new(Semaphore::new(CALLS)) }
    }

    /// The same, which does nothing unless the folder has this mark.
    #[must_use]
    pub fn marked(mut self, mark: Option<&str>) -> Self {
        self.mark = mark.map(|mark| Arc::new(self.root.join(layout::ROOT).join(mark)));
        self
    }

    /// The mark that the folder has, which is made if it has none.
    ///
    /// # Errors
    /// `Auth` where nothing may be written, and outages.
    pub async fn mark(&self) -> Result<String> {
        self.call("marking", layout::ROOT, mark).await
    }

    /// Runs `call` with the path of `key` on a blocking thread.
    async fn call<T: Send + 'static>(
        &self,
        what: &'static str,
        key: &str,
        call: impl FnOnce(&Path, &Path) -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let (root, mark, path) = (Arc::clone(&self.root), self.mark.clone(), self.root.join(key));
        let shown = path.clone();
        let late = || Error::new(Kind::TimedOut, format!("{what} {}: no answer", shown.display()));
        let work = async {
            let permit = Arc::clone(&self.calls).acquire_owned().await;
            let run = move || {
                let _permit = permit;
                let mark = mark.as_deref().map(PathBuf::as_path);
                must_be_there(&root, mark)?;
                let done = call(&root, &path).map_err(Failure::Call)?;
                // What was unmounted meanwhile says nothing of what is in there.
                must_be_there(&root, mark)?;
                Ok(done)
            };
            tokio::task::spawn_blocking(run).await
        };
        match tokio::time::timeout(self.timeout, work).await {
            Err(_) => Err(late()),
            Ok(Err(_)) => Err(Error::new(Kind::Interrupted, format!("{what} {}: stopped", shown.display()))),
            Ok(Ok(result)) => result.map_err(|failure: Failure| failure.into_error(what, &shown)),
        }
    }
}

/// A call that failed.
enum Failure {
    /// The root itself is not there.
    Unreachable(io::Error),
    /// The root is there without its mark.
    NotMounted(PathBuf),
    Call(io::Error),
}

impl Failure {
    fn into_error(self, what: &str, path: &Path) -> Error {
        let shown = path.display();
        match self {
            Self::Unreachable(error) => Error::new(Kind::Connect, format!("{what} {shown}: {error}")),
            Self::Call(error) => Error::new(kind_of(&error), format!("{what} {shown}: {error}")),
            Self::NotMounted(mark) => {
                let text = format!(
                    "{what} {shown}: not mounted: there is no {}, which was there before. If the folder was emptied on purpose, make this \
                     file again",
                    mark.display()
                );
                Error::new(Kind::NotMounted, text)
            }
        }
    }
}

/// A root that is not there is a mount that is missing: it is neither empty nor to be made. The same is true of one without its mark.
fn must_be_there(root: &Path, mark: Option<&Path>) -> Result<(), Failure> {
    fs::metadata(root).map_err(Failure::Unreachable)?;
    let Some(mark) = mark else { return Ok(()) };
    match fs::metadata(mark) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Failure::NotMounted(mark.to_owned())),
        Err(error) => Err(Failure::Unreachable(error)),
    }
}

/// What the name of a mark begins and ends with.
const MARK: (&str, &str) = ("ashlar-", ".mark");

/// What is in a mark, for people.
const MARK_TEXT: &[u8] =
    b"While this file is here, Ashlar knows that the file system of its backups is mounted. Leave it.\n";

/// The mark in `folder`; of several, which nodes made at the same time, the first.
fn mark(root: &Path, folder: &Path) -> io::Result<String> {
    let mut found = None;
    each_entry(folder, &mut |name, metadata| {
        let is_mark = metadata.is_file() && name.starts_with(MARK.0) && name.ends_with(MARK.1);
        if is_mark && found.as_ref().is_none_or(|found| name < *found) {
            found = Some(name);
        }
        Ok(())
    })?;
    match found {
        Some(found) => Ok(found),
        None => {
            let name = format!("{}{}{}", MARK.0, uuid::Uuid::new_v4().simple(), MARK.1);
            write(root, &folder.join(&name), &Content::Bytes(Bytes::from_static(MARK_TEXT)), true)?;
            Ok(name)
        }
    }
}

fn kind_of(error: &io::Error) -> Kind {
    use io::ErrorKind as K;
    match error.kind() {
        K::NotFound => Kind::NotFound,
        K::PermissionDenied | K::ReadOnlyFilesystem => Kind::Auth,
        K::StorageFull | K::QuotaExceeded => Kind::NoSpace,
        K::TimedOut => Kind::TimedOut,
        K::HostUnreachable | K::NetworkUnreachable | K::NetworkDown | K::NotConnected | K::StaleNetworkFileHandle => {
            Kind::Connect
        }
        K::Interrupted | K::UnexpectedEof => Kind::Interrupted,
        _ => Kind::Server,
    }
}

#[async_trait]
impl Store for FolderStore {
    async fn get(&self, key: &str) -> Result<Body> {
        let mut file = self.call("opening", key, |_, path| File::open(path)).await?;
        let (pieces, receiver) = mpsc::channel(2);
        let shown = key.to_owned();
        tokio::task::spawn_blocking(move || {
            loop {
                let mut piece = Vec::with_capacity(PIECE);
                let piece = match (&mut file).take(PIECE as u64).read_to_end(&mut piece) {
                    Ok(0) => return,
                    Ok(_) => Ok(Bytes::from(piece)),
                    Err(error) => Err(Error::new(kind_of(&error), format!("reading {shown}: {error}"))),
                };
                let last = piece.is_err();
                // Nobody wants more of it when the receiver is gone.
                if pieces.blocking_send(piece).is_err() || last {
                    return;
                }
            }
        });
        Ok(receiving(receiver, self.timeout))
    }

    async fn put(&self, key: &str, content: Content) -> Result<()> {
        self.call("writing", key, move |root, path| write(root, path, &content, false).map(|_| ())).await
    }

    async fn create(&self, key: &str, bytes: Bytes) -> Result<bool> {
        self.call("making", key, move |root, path| write(root, path, &Content::Bytes(bytes), true)).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        let remove = |_: &Path, path: &Path| match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        };
        self.call("removing", key, remove).await
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>> {
        let shown = key.to_owned();
        let look = move |_: &Path, path: &Path| match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other.and_then(|metadata| info(shown, &metadata)).map(Some),
        };
        self.call("looking at", key, look).await
    }

    async fn folder(&self, folder: &str) -> Result<Folder> {
        let shown = folder.to_owned();
        self.call("listing", folder, move |_, path| read_folder(path, &shown)).await
    }

    fn list(&self, folder: &str) -> Listing {
        let (sender, receiver) = mpsc::channel(256);
        let (store, folder) = (self.clone(), folder.to_owned());
        let walk = async move {
            // Only whether the root is there has a time limit: a walk lasts as long as its reader takes.
            if let Err(error) = store.call("listing", &folder, |_, _| Ok(())).await {
                let _ = sender.send(Err(error)).await;
                return;
            }
            let path = store.root.join(&folder);
            let walked = {
                let (sender, folder) = (sender.clone(), folder.clone());
                tokio::task::spawn_blocking(move || walk(&path, &folder, &sender)).await
            };
            let ended = match walked {
                Ok(Err(error)) => Err(Error::new(kind_of(&error), format!("listing {folder}: {error}"))),
                // Again, since what is unmounted in the middle lists no more.
                _ => store.call("listing", &folder, |_, _| Ok(())).await,
            };
            if let Err(error) = ended {
                let _ = sender.send(Err(error)).await;
            }
        };
        tokio::spawn(walk);
        receiving(receiver, self.timeout)
    }

    async fn sweep(&self, folder: &str) -> Result<()> {
        self.call("sweeping", folder, |_, path| sweep(path)).await
    }
}

/// What comes through a channel, with a limit for each piece.
fn receiving<T: Send + 'static>(
    receiver: mpsc::Receiver<Result<T>>,
    timeout: Duration,
) -> futures_util::stream::BoxStream<'static, Result<T>> {
    futures_util::stream::unfold(Some(receiver), move |receiver| async move {
        let mut receiver = receiver?;
        match tokio::time::timeout(timeout, receiver.recv()).await {
            Ok(None) => None,
            Ok(Some(item)) => Some((item, Some(receiver))),
            Err(_) => Some((Err(Error::new(Kind::TimedOut, "reading a folder: no answer")), None)),
        }
    })
    .boxed()
}

/// Writes beside the file's place and gives it its name. False if it should be new and is not.
fn write(root: &Path, path: &Path, content: &Content, new: bool) -> io::Result<bool> {
    let folder = path.parent().unwrap_or(root);
    make_folders(root, folder)?;
    let (temporary, mut file) = create_temporary(path)?;
    let written = match content {
        Content::Bytes(bytes) => file.write_all(bytes),
        Content::File(source) => File::open(source).and_then(|mut source| io::copy(&mut source, &mut file)).map(|_| ()),
    };
    let named = written.and_then(|()| file.sync_all()).and_then(|()| {
        if !new {
            return fs::rename(&temporary, path).map(|()| true);
        }
        // A link fails where a rename replaces.
        let linked = fs::hard_link(&temporary, path);
        fs::remove_file(&temporary)?;
        match linked {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            other => other.map(|()| true),
        }
    });
    if named.is_err() {
        // It may be gone; if not, a sweep finds it.
        let _ = fs::remove_file(&temporary);
    }
    let named = named?;
    File::open(folder)?.sync_all()?;
    Ok(named)
}

fn create_temporary(path: &Path) -> io::Result<(PathBuf, File)> {
    let mut nanoseconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos());
    loop {
        let mut name = path.as_os_str().to_owned();
        name.push(format!("{TEMPORARY}{nanoseconds}"));
        let name = PathBuf::from(name);
        match OpenOptions::new().write(true).create_new(true).mode(0o644).open(&name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => nanoseconds += 1,
            other => return Ok((name, other?)),
        }
    }
}

/// Makes the folders between the root and `folder`, each durably.
fn make_folders(root: &Path, folder: &Path) -> io::Result<()> {
    if folder == root || folder.is_dir() {
        return Ok(());
    }
    let parent = folder.parent().unwrap_or(root);
    make_folders(root, parent)?;
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
        Ok(()) => File::open(parent)?.sync_all(),
    }
}

fn info(key: String, metadata: &fs::Metadata) -> io::Result<ObjectInfo> {
    Ok(ObjectInfo { key, size: metadata.len(), modified: metadata.modified()? })
}

fn read_folder(path: &Path, folder: &str) -> io::Result<Folder> {
    let mut found = Folder::default();
    each_entry(path, &mut |name, metadata| {
        if found.objects.len() + found.folders.len() == LARGEST_FOLDER {
            return Err(io::Error::other("too many files"));
        }
        if metadata.is_dir() {
            found.folders.push(name);
        } else {
            found.objects.push(info(format!("{folder}/{name}"), metadata)?);
        }
        Ok(())
    })?;
    Ok(found)
}

/// Files and folders in a folder, but those that are being written; nothing if there is no folder.
fn each_entry(path: &Path, each: &mut dyn FnMut(String, &fs::Metadata) -> io::Result<()>) -> io::Result<()> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        // A name that is no text is none of ours.
        let Ok(name) = entry.file_name().into_string() else { continue };
        let metadata = match entry.metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        if !name.contains(TEMPORARY) && !metadata.is_symlink() {
            each(name, &metadata)?;
        }
    }
    Ok(())
}

/// Sends all files below a folder; ends early when nobody listens.
fn walk(path: &Path, folder: &str, sender: &mpsc::Sender<Result<ObjectInfo>>) -> io::Result<()> {
    let mut folders = vec![(path.to_owned(), folder.to_owned())];
    while let Some((path, folder)) = folders.pop() {
        let mut closed = false;
        each_entry(&path, &mut |name, metadata| {
            let key = format!("{folder}/{name}");
            if metadata.is_dir() {
                folders.push((path.join(&name), key));
            } else if !closed {
                closed = sender.blocking_send(Ok(info(key, metadata)?)).is_err();
            }
            Ok(())
        })?;
        if closed {
            return Ok(());
        }
    }
    Ok(())
}

/// Removes temporary files that nobody writes any more.
fn sweep(path: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        let metadata = entry.metadata()?;
        let temporary = entry.file_name().to_string_lossy().contains(TEMPORARY);
        let age = SystemTime::now().duration_since(metadata.modified()?).unwrap_or_default();
        if metadata.is_dir() {
            sweep(&entry.path())?;
        } else if temporary && age > ABANDONED {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
