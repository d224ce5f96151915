//! Looks at volumes that may have changed, and only at those: what watches and operations know comes from here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::v1::{self, MemberState};
use tokio::sync::Notify;
use tokio::time::Instant;
use uuid::Uuid;

use super::engines::Engines;
use super::panics;
use super::touches::{Batch, Touched};
use super::volumes::Volumes;

/// Changes that come within this are one.
const GATHERED: Duration = Duration::from_millis(50);
/// Between two looks at a volume that is being rebuilt, whose progress nobody tells.
const PROGRESS: Duration = Duration::from_secs(1);

/// How long a reactor may take to answer.
const PROMPT: Duration = Duration::from_secs(1);

/// What was seen.
pub(crate) struct Observer {
    engines: Arc<Engines>,
    volumes: Arc<Volumes>,
    /// Engines with a replica that is not in sync, by volume.
    unsettled: Mutex<BTreeMap<Uuid, v1::Engine>>,
    /// Something was seen.
    pub(crate) seen: Arc<Notify>,
}

impl Observer {
    /// Sets a task on what is touched.
    pub(crate) fn start(engines: Arc<Engines>, volumes: Arc<Volumes>, touched: Option<Touched>) -> Arc<Self> {
        let observer = Arc::new(Self { engines, volumes, unsettled: Mutex::default(), seen: Arc::default() });
        if let Some(touched) = touched {
            tokio::spawn(Arc::clone(&observer).work(touched));
        }
        observer
    }

    /// Engines with a replica that is not in sync, as they were seen last.
    pub(crate) fn unsettled(&self) -> Vec<v1::Engine> {
        self.seen_unsettled().values().cloned().collect()
    }

    /// Looks at those again.
    pub(crate) async fn look_closely(&self) {
        let volumes = self.seen_unsettled().keys().copied().collect();
        self.look_at(volumes).await;
    }

    async fn work(self: Arc<Self>, mut touched: Touched) {
        let mut late = self.look_at(self.all()).await;
        let mut looked_again = Instant::now();
        loop {
            let again: BTreeSet<_> = self.moving().union(&late).copied().collect();
            let volumes = tokio::select! {
                batch = touched.next() => match batch {
                    Some(Batch::Some(volumes)) => volumes,
                    Some(Batch::All) => self.all(),
                    None => return,
                },
                // Also while others are told all the time.
                () = tokio::time::sleep_until(looked_again + PROGRESS), if !again.is_empty() => {
                    looked_again = Instant::now();
                    again
                }
            };
            late.retain(|volume| !volumes.contains(volume));
            // A panic over one volume is logged, and does not end the looks at all others.
            late.append(&mut panics::caught(self.look_at(volumes)).await.unwrap_or_default());
            self.seen.notify_one();
            tokio::time::sleep(GATHERED).await;
        }
    }

    fn all(&self) -> BTreeSet<Uuid> {
        let mut volumes: BTreeSet<_> = self.volumes.uuids().into_iter().collect();
        volumes.extend(self.engines.uuids());
        volumes.extend(self.seen_unsettled().keys());
        volumes
    }

    /// Returns those whose reactor does not answer now: others do not wait for them.
    async fn look_at(&self, volumes: BTreeSet<Uuid>) -> BTreeSet<Uuid> {
        let (mut late, mut deaf) = (BTreeSet::new(), BTreeSet::new());
        for volume in volumes {
            let home = self.engines.record_of(volume).map(|(_, home)| home);
            if home.is_some_and(|home| deaf.contains(&home)) {
                late.insert(volume);
                continue;
            }
            match tokio::time::timeout(PROMPT, self.engines.get(volume)).await {
                // An error: it is being made or deleted.
                Ok(engine) => self.take_in(volume, engine.ok()),
                Err(_) => {
                    late.insert(volume);
                    deaf.extend(home);
                }
            }
        }
        late
    }

    fn take_in(&self, volume: Uuid, engine: Option<v1::Engine>) {
        {
            let mut unsettled = self.seen_unsettled();
            match engine.as_ref().filter(|engine| has_work(engine)) {
                Some(engine) => drop(unsettled.insert(volume, engine.clone())),
                None => drop(unsettled.remove(&volume)),
            }
        }
        self.volumes.seen(volume, engine);
    }

    /// Volumes with a replica that is copied to now.
    fn moving(&self) -> BTreeSet<Uuid> {
        let unsettled = self.seen_unsettled();
        let moves = |engine: &&v1::Engine| engine.members.iter().any(|member| member.rebuild.is_some());
        unsettled.iter().filter(|(_, engine)| moves(engine)).map(|(volume, _)| *volume).collect()
    }

    fn seen_unsettled(&self) -> MutexGuard<'_, BTreeMap<Uuid, v1::Engine>> {
        // Poisoned or not, the map is whole: no change of it has several steps.
        self.unsettled.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a replica is not in sync, as far as is known.
fn has_work(engine: &v1::Engine) -> bool {
    let settled = [MemberState::InSync, MemberState::Unspecified];
    engine.members.iter().any(|member| !settled.contains(&member.state()))
}
