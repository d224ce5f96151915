//! All interleavings that one slow or killed request makes: two daemons, of which one backs up and one removes, and a client that is not ours, on one
//! volume. Whichever request is late, by whatever matters to the locks, and wherever a daemon dies: no block that a complete backup refers to is lost.
//!
//! This is delay-bounded exploration: time is virtual and requests take none, so a run without delays is one order of events; each delay makes
//! another. One delay at a time is tried exhaustively in the long run, two at a time from seeds.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use backup::create::{BackupJob, BackupRequest, Options, Outcome};
use backup::format::backup::BackupConfig;
use backup::target::{Body, Content, Folder, Listing, ObjectInfo, Store};
use backup::{Result, remove};
use bytes::Bytes;
use tokio::sync::Notify;

use crate::locks::foreign_backup;
use crate::memory::MemoryStore;
use crate::volume::{Snapshot, Volume};
use crate::{BLOCK, MIB, Random, back_up, in_time, target};

/// Who takes part: a daemon that backs up, a daemon that removes, and a client that is not ours.
const ACTORS: usize = 3;
const BACKUP: usize = 0;
const REMOVAL: usize = 1;
const FOREIGN: usize = 2;

/// What becomes of a request that is picked.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// It is sent so much later.
    Late(Duration),
    /// It is done, and its answer comes so much later.
    Unheard(Duration),
    /// It is done, and who sent it is killed.
    Killed,
}

/// Less than the pause of a lock, more than it, and all that somebody may be late by who has a lock: a request takes less than the
/// 50 s between the last use of a lock and its end.
const DELAYS: [Duration; 3] = [Duration::from_millis(1100), Duration::from_millis(2900), Duration::from_secs(45)];

/// One request, by its actor and its number, and what becomes of it.
type Pick = (usize, u64, Fate);

/// One actor's way to the store.
#[derive(Debug)]
struct Delayed {
    inner: Arc<MemoryStore>,
    picks: Vec<(u64, Fate)>,
    requests: AtomicU64,
    killed: Notify,
}

impl Delayed {
    fn new(inner: &Arc<MemoryStore>, actor: usize, picks: &[Pick]) -> Arc<Self> {
        let picks = picks.iter().filter(|pick| pick.0 == actor).map(|pick| (pick.1, pick.2)).collect();
        let (inner, requests) = (Arc::clone(inner), AtomicU64::new(0));
        Arc::new(Self { inner, picks, requests, killed: Notify::new() })
    }

    async fn at_its_time<T>(&self, request: impl Future<Output = T>) -> T {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let fate = self.picks.iter().find(|pick| pick.0 == number).map(|pick| pick.1);
        if let Some(Fate::Late(delay)) = fate {
            tokio::time::sleep(delay).await;
        }
        let answer = request.await;
        match fate {
            Some(Fate::Unheard(delay)) => tokio::time::sleep(delay).await,
            Some(Fate::Killed) => {
                self.killed.notify_one();
                std::future::pending::<()>().await;
            }
            _ => {}
        }
        answer
    }
}

#[async_trait]
impl Store for Delayed {
    async fn get(&self, key: &str) -> Result<Body> {
        self.at_its_time(self.inner.get(key)).await
    }

    async fn put(&self, key: &str, content: Content) -> Result<()> {
        self.at_its_time(self.inner.put(key, content)).await
    }

    async fn create(&self, key: &str, bytes: Bytes) -> Result<bool> {
        self.at_its_time(self.inner.create(key, bytes)).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.at_its_time(self.inner.delete(key)).await
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>> {
        self.at_its_time(self.inner.head(key)).await
    }

    async fn folder(&self, folder: &str) -> Result<Folder> {
        self.at_its_time(self.inner.folder(folder)).await
    }

    fn list(&self, folder: &str) -> Listing {
        self.inner.list(folder)
    }
}

/// Where every run begins: a store with one backup, and a snapshot that shares blocks with it.
struct Begin {
    memory: MemoryStore,
    snapshot: Snapshot,
    folder: String,
    template: String,
}

async fn begin() -> Begin {
    let memory = Arc::new(MemoryStore::new());
    let volume = Volume::new(8 * MIB);
    (0..3).for_each(|block| volume.write(block * BLOCK, block));
    let request = BackupRequest::new("test", "vol-1", "backup-1", "snap-1");
    in_time(back_up(&target(&memory), &volume.snapshot("snap-1"), request)).await;
    volume.write(BLOCK, 7);
    let snapshot = volume.snapshot("snap-2");
    // The second backup is a full one, which finds blocks of the first instead of listing them: what it finds must stay.
    volume.delete_snapshot("snap-1");
    let folder = memory.key("volume.cfg").trim_end_matches("/volume.cfg").to_owned();
    let template = memory.content(&memory.key("backup_backup-1.cfg")).expect("a file").to_vec();
    let template = String::from_utf8(template).expect("text");
    Begin { memory: memory.copy(), snapshot, folder, template }
}

/// One run: all three at once, with these delays. Says how many requests each made.
async fn run(begin: &Begin, picks: &[Pick]) -> [u64; ACTORS] {
    let memory = Arc::new(begin.memory.copy());
    let ways = [BACKUP, REMOVAL, FOREIGN].map(|actor| Delayed::new(&memory, actor, picks));
    let state = crate::folder();
    let (job, scratch) = (state.path().join("job"), state.path().join("scratch"));
    let backup = restarted(&ways[BACKUP], || async {
        let request = BackupRequest::new("test", "vol-1", "backup-2", "snap-2");
        let mut job = BackupJob::create(&job, request, Options::default()).expect("a job");
        Some(job.run(&target(&ways[BACKUP]), &begin.snapshot).await.expect("its record"))
    });
    let removal = restarted(&ways[REMOVAL], || async {
        match remove::remove(&target(&ways[REMOVAL]), "vol-1", Some("backup-1"), &scratch).await {
            Ok(_) => Some(()),
            Err(error) => {
                assert!(!error.is_terminal(), "{picks:?}: {error}");
                None
            }
        }
    });
    let mut random = Random::new(1);
    let foreign = async {
        let backup = foreign_backup(&*ways[FOREIGN], &begin.folder, "foreign-1", &mut random, &begin.template);
        tokio::select! {
            done = backup => drop(done.expect("a sound store")),
            () = ways[FOREIGN].killed.notified() => {}
        }
    };
    let (outcome, (), ()) = in_time(async { tokio::join!(backup, removal, foreign) }).await;
    assert!(matches!(outcome, Outcome::Complete { .. }), "{picks:?}: {outcome:?}");
    nothing_is_lost(&memory, picks);
    ways.map(|way| way.requests.load(Ordering::Relaxed))
}

/// Does something until it is done: again after a while if it was in vain, and anew if who does it is killed.
async fn restarted<T, F: Future<Output = Option<T>>>(way: &Delayed, mut life: impl FnMut() -> F) -> T {
    loop {
        tokio::select! {
            done = life() => if let Some(done) = done {
                return done;
            },
            () = way.killed.notified() => {}
        }
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
}

/// Every block that a complete backup refers to is there.
fn nothing_is_lost(memory: &MemoryStore, picks: &[Pick]) {
    let name = |key: &String| key.rsplit('/').next().unwrap_or_default().trim_end_matches(".blk").to_owned();
    let stored: BTreeSet<_> = memory.keys(".blk").iter().map(name).collect();
    for key in memory.keys("/backup_") {
        let mut referred = BTreeSet::new();
        let file = memory.content(&key).expect("a file");
        let (config, _) = BackupConfig::parse(&file[..], &mut |block| {
            referred.insert(block.checksum.to_string());
            Ok(())
        })
        .expect("a backup");
        let lost: Vec<_> = referred.difference(&stored).collect();
        assert!(!config.is_complete() || lost.is_empty(), "{picks:?}: {} lost {lost:?}", config.name);
    }
}

fn fates() -> Vec<Fate> {
    let late = DELAYS.map(Fate::Late).into_iter();
    late.chain(DELAYS.map(Fate::Unheard)).chain([Fate::Killed]).collect()
}

#[tokio::test(start_paused = true)]
async fn no_single_delay_or_death_loses_a_block() {
    let begin = begin().await;
    let requests = run(&begin, &[]).await;
    assert!(requests.iter().all(|requests| *requests > 5), "{requests:?}");
    let all = (0..ACTORS).flat_map(|actor| (0..requests[actor]).map(move |request| (actor, request)));
    let picks: Vec<Pick> =
        all.flat_map(|(actor, request)| fates().into_iter().map(move |fate| (actor, request, fate))).collect();
    // The short run tries every fourth.
    for pick in picks.into_iter().step_by(if crate::long() { 1 } else { 4 }) {
        run(&begin, &[pick]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn no_two_delays_or_deaths_lose_a_block() {
    let begin = begin().await;
    let requests = run(&begin, &[]).await;
    let (mut random, fates) = (Random::new(8), fates());
    for _ in 0..if crate::long() { 20_000 } else { 30 } {
        let mut pick = || {
            let actor = random.below(ACTORS as u64) as usize;
            (actor, random.below(requests[actor] + 10), fates[random.below(fates.len() as u64) as usize])
        };
        let picks = [pick(), pick()];
        run(&begin, &picks).await;
    }
}
