//! Locks on a volume, by the format's rules: written, waited for, judged by a listing.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep};

use crate::error::{Error, Kind, Result};
use crate::format::layout::{self, VolumeFolder};
use crate::format::lock::{self as file, LockFile};
use crate::target::client::Client;
use crate::target::{Content, ObjectInfo};

pub use crate::format::lock::LockType;

/// How long a lock waits before it is judged: others that were written meanwhile are listed by then.
const SETTLE: Duration = Duration::from_secs(2);

/// Age from which a lock counts no more, by the store's clock.
const EXPIRY: Duration = Duration::from_secs(150);

/// How often a lock is written again.
const REFRESH: Duration = Duration::from_secs(60);

/// The pause after a refresh that failed.
const REFRESH_AGAIN: Duration = Duration::from_secs(5);

/// How long a lock is good after a refresh began. The last request that it covers ends before others may take the lock.
const GOOD_FOR: Duration = Duration::from_secs(100);

/// Longest time that getting one may take.
const LONGEST_ATTEMPT: Duration = Duration::from_secs(60);

/// A lock that is held. Dropped without [`Lock::release`] it is left to expire, as a killed process leaves it.
#[derive(Debug)]
pub(crate) struct Lock {
    client: Client,
    key: String,
    good_until: Arc<Mutex<Instant>>,
    refreshing: tokio::task::JoinHandle<()>,
}

impl Lock {
    /// Gets a lock, or says why not.
    pub(crate) async fn acquire(client: &Client, folder: &VolumeFolder, kind: LockType) -> Result<Self> {
        let random = uuid::Uuid::new_v4().simple().to_string();
        let name = format!("lock-{}", &random[..16]);
        let mut candidate = Candidate {
            client,
            folder,
            file: LockFile { name, kind: kind.number(), acquired: false },
            written: Instant::now(),
        };
        match candidate.acquire().await {
            Ok(since) => Ok(Self::held(client, folder, candidate.file, since)),
            Err(error) => {
                // What cannot be removed expires.
                let _ = client.store().delete(&candidate.key()).await;
                Err(error.during(format!("lock on volume {}", folder.volume())))
            }
        }
    }

    fn held(client: &Client, folder: &VolumeFolder, file: LockFile, since: Instant) -> Self {
        let key = folder.lock(&file.name);
        let good_until = Arc::new(Mutex::new(since + GOOD_FOR));
        let refresh = refresh(client.clone(), key.clone(), file, Arc::clone(&good_until));
        Self { client: client.clone(), key, good_until, refreshing: tokio::spawn(refresh) }
    }

    /// Whether it still holds, and will until a request that begins now has ended.
    ///
    /// # Errors
    /// `LockLost`.
    pub(crate) fn check(&self) -> Result<()> {
        let good = self.good_until.lock().is_ok_and(|until| Instant::now() < *until);
        if good { Ok(()) } else { Err(Error::new(Kind::LockLost, format!("{}: not refreshed in time", self.key))) }
    }

    /// Gives it up.
    pub(crate) async fn release(self) {
        self.refreshing.abort();
        // What cannot be removed expires.
        let _ = self.client.store().delete(&self.key).await;
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.refreshing.abort();
    }
}

/// Writes a lock again and again, until it is too late for that.
async fn refresh(client: Client, key: String, file: LockFile, good_until: Arc<Mutex<Instant>>) {
    let mut pause = REFRESH;
    loop {
        sleep(pause).await;
        let begin = Instant::now();
        // A lock that ran out is not revived: somebody else may have begun.
        if good_until.lock().is_ok_and(|until| begin >= *until) {
            return;
        }
        pause = match client.store().put(&key, Content::from(file.to_bytes())).await {
            Err(_) => REFRESH_AGAIN,
            Ok(()) => {
                if let Ok(mut until) = good_until.lock() {
                    *until = begin + GOOD_FOR;
                }
                REFRESH
            }
        };
    }
}

/// A lock that somebody wants.
struct Candidate<'a> {
    client: &'a Client,
    folder: &'a VolumeFolder,
    file: LockFile,
    /// When it was last written.
    written: Instant,
}

impl Candidate<'_> {
    fn key(&self) -> String {
        self.folder.lock(&self.file.name)
    }

    /// Returns since when it is held.
    async fn acquire(&mut self) -> Result<Instant> {
        let begin = Instant::now();
        self.write().await?;
        sleep(SETTLE).await;
        self.judge().await?;
        self.file.acquired = true;
        let since = Instant::now();
        self.write().await?;
        // Whoever slept long enough to expire finds those who came meanwhile.
        self.judge().await?;
        if begin.elapsed() > LONGEST_ATTEMPT {
            return Err(Error::new(Kind::Locked, "it took too long to get it"));
        }
        Ok(since)
    }

    async fn write(&mut self) -> Result<()> {
        self.client.put(&self.key(), Content::from(self.file.to_bytes())).await?;
        self.written = Instant::now();
        Ok(())
    }

    /// Whether another lock goes first. An error means that nobody knows, which is not "no".
    async fn judge(&self) -> Result<()> {
        let listed = self.client.folder(&self.folder.locks()).await?.objects;
        let own = listed.iter().find(|object| object.key == self.key());
        let own = own.ok_or_else(|| Error::new(Kind::Locked, "our own lock is not listed"))?;
        // Later than this it is at the store: who is not expired now may be in truth, never the other way round.
        let now = own.modified + self.written.elapsed();
        for other in &listed {
            let Some(name) = layout::lock_of(&other.key).filter(|name| *name != self.file.name) else { continue };
            if other.modified + EXPIRY < now {
                continue;
            }
            self.judge_against(own, other, name).await?;
        }
        Ok(())
    }

    async fn judge_against(&self, own: &ObjectInfo, other: &ObjectInfo, name: &str) -> Result<()> {
        let Some(bytes) = self.client.find(&other.key, file::LARGEST).await? else {
            // It was removed since it was listed.
            return Ok(());
        };
        let lock = LockFile::parse(&bytes);
        let lock = lock.map_err(|error| Error::new(Kind::Locked, format!("{name} cannot be read: {error}")))?;
        let order = |acquired: bool, modified: SystemTime, name: &str| (!acquired, modified, name.to_owned());
        let theirs = order(lock.acquired, other.modified, name);
        if lock.kind != self.file.kind && theirs < order(self.file.acquired, own.modified, &self.file.name) {
            return Err(Error::new(Kind::Locked, format!("{name} of type {} goes first: try again", lock.kind)));
        }
        Ok(())
    }
}
