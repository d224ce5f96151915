//! Snapshots of volumes: the engine of one knows them, whichever nodes its replicas are on. Each volume is a list of its own, which is looked at
//! when somebody lists it and while somebody watches it.
//!
//! ```text
//!              list, watch                    somebody watches
//!   (none) ───────────────▶ known, not looked at ◀──────────▶ looked at
//!      ▲                            │
//!      └── others were asked for ───┘
//! ```

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use proto::v1;
use tokio::sync::watch;
use uuid::Uuid;

use super::told;
use crate::control::error::ControlError;
use crate::control::streams::ChangeStream;
use crate::control::watched::{Seen, Source, Watched};
use crate::control::{Control, Volumes, pages};

/// Volumes whose snapshots are known, besides those that somebody watches.
const MOST: usize = 64;

pub(super) struct SnapshotLists {
    volumes: Arc<Volumes>,
    run: u64,
    asked: watch::Receiver<()>,
    lists: Mutex<Lists>,
}

#[derive(Default)]
struct Lists {
    /// Last is who was asked for last.
    known: VecDeque<(Uuid, Arc<Watched<SnapshotList>>)>,
    /// How many there have been.
    made: u64,
    is_over: bool,
}

/// Those of one volume.
struct SnapshotList {
    volumes: Arc<Volumes>,
    volume: Uuid,
}

impl SnapshotLists {
    pub(super) fn new(volumes: Arc<Volumes>, run: u64, asked: watch::Receiver<()>) -> Self {
        Self { volumes, run, asked, lists: Mutex::default() }
    }

    /// Ends all watches.
    pub(super) fn end(&self) {
        let mut lists = self.lists();
        lists.is_over = true;
        lists.known.iter().for_each(|(_, list)| list.end());
    }

    fn of(&self, volume: Uuid) -> Arc<Watched<SnapshotList>> {
        let mut lists = self.lists();
        let place = lists.known.iter().position(|(known, _)| *known == volume);
        let list = match place.and_then(|place| lists.known.remove(place)) {
            Some((_, list)) => list,
            None => {
                lists.made += 1;
                lists.forget_old();
                let source = SnapshotList { volumes: Arc::clone(&self.volumes), volume };
                // Versions of one that was forgotten are not those of its successor.
                Watched::new(source, (self.run << 32) + lists.made, self.asked.clone())
            }
        };
        if lists.is_over {
            list.end();
        }
        lists.known.push_back((volume, Arc::clone(&list)));
        list
    }

    fn lists(&self) -> MutexGuard<'_, Lists> {
        // Poisoned or not, it is whole: nothing in a change of it panics half way.
        self.lists.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lists {
    /// Makes room for one more; those that somebody watches stay.
    fn forget_old(&mut self) {
        let mut surplus = (self.known.len() + 1).saturating_sub(MOST);
        self.known.retain(|(_, list)| {
            let goes = surplus > 0 && !list.is_followed();
            surplus -= usize::from(goes);
            !goes
        });
    }
}

impl Control {
    /// A page of the snapshots of a volume, oldest first.
    pub(crate) async fn list_snapshots(
        &self,
        request: v1::ListSnapshotsRequest,
    ) -> Result<v1::ListSnapshotsResponse, ControlError> {
        let volume = self.volumes.uuid_of(&request.volume)?;
        let (Seen { objects, .. }, resource_version) = self.watches.snapshots.of(volume).look().await?;
        let wanted = pages::Wanted { size: request.page_size, token: request.page_token };
        let list = format!("snapshots of {volume}");
        let (snapshots, next_page_token) = pages::page_in_order(&list, objects, |snapshot| &snapshot.uuid, &wanted)?;
        Ok(v1::ListSnapshotsResponse { snapshots, next_page_token, resource_version })
    }

    /// The snapshots of a volume, and what becomes of them.
    pub(crate) async fn watch_snapshots(
        &self,
        request: v1::WatchSnapshotsRequest,
    ) -> Result<ChangeStream<v1::SnapshotChange>, ControlError> {
        let volume = self.volumes.uuid_of(&request.volume)?;
        let message = |kind, snapshot, resource_version| v1::SnapshotChange { kind, snapshot, resource_version };
        let tell = move |change| told(change, |_| true, message);
        self.watches.snapshots.of(volume).watch(&request.resource_version, tell).await
    }
}

#[tonic::async_trait]
impl Source for SnapshotList {
    type Object = v1::Snapshot;

    const WHAT: &'static str = "snapshots";

    async fn look(&self) -> Result<Seen<v1::Snapshot>, ControlError> {
        let objects = match self.volumes.snapshots(self.volume).await {
            // They went with it.
            Err(_) if !self.volumes.contains(self.volume) => Vec::new(),
            snapshots => snapshots?,
        };
        Ok(Seen { objects, unopened: Vec::new() })
    }

    fn key(snapshot: &v1::Snapshot) -> Cow<'_, str> {
        snapshot.uuid.as_str().into()
    }
}
