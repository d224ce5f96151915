//! The node's engines and their exports: a record each, and a task each that brings the engine up.
//!
//! ```text
//!          create                 first start that works
//!  (none) ───────▶ STARTING ─────────────────────────────▶ RUNNING (healthy, degraded or failed, by the engine itself)
//!    start ──────────▲ │ ▲                                     │
//!                      └─┘ tried again, with the reason shown  │
//!                      ├──────────▶ STOPPING ◀─────────────────┘  delete
//!                      └─▶ BROKEN ────▲ │  a panic in its task     ▲
//!                            └─────────────────────────────────────┘  start: STARTING again
//! ```
//! [`Phase::may_become`] has the arrows. What is not among them does not happen: a task that comes too late changes nothing.

mod describing;
mod keeping;
mod limits;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::v1::{self, EventSubject};
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedMutexGuard, watch};
use tokio::task::{JoinHandle, JoinSet};
use uuid::Uuid;

pub(crate) use self::limits::LimitsRecord;
use super::error::{Comparison, ControlError};
use super::events::{Events, Happened};
use super::frontends::Frontends;
use super::locks::KeyedLocks;
use super::peers::{self, Peers};
use super::replicas::Replicas;
use super::request;
use super::stores::Stores;
use crate::data::{DataPath, EngineSpec, MemberSpec};
use crate::health::{Feed, News};
use crate::state::{Records, Unchanged};

/// Volumes that are shown to hosts at once during a start: enough for nobody to wait for another thread's answer.
const SHOWN_AT_ONCE: usize = 64;

/// An engine as the state directory knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EngineRecord {
    pub(crate) volume: Uuid,
    pub(crate) name: String,
    /// Bytes.
    pub(crate) size: u64,
    /// Bytes.
    pub(crate) block_size: u32,
    pub(crate) members: Vec<MemberRecord>,
    #[serde(default)]
    pub(crate) rebuild: RebuildRecord,
    #[serde(default, skip_serializing_if = "LimitsRecord::is_empty")]
    pub(crate) limits: LimitsRecord,
    #[serde(default)]
    pub(crate) frontends: Frontends,
    /// A volume of this node has it. Without: an orchestrator made it over replicas of its own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) of_volume: bool,
}

/// How the rebuilds of a volume work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RebuildRecord {
    pub(crate) paused: bool,
    /// Bytes a second; 0 for no limit.
    pub(crate) rate: u64,
}

impl From<RebuildRecord> for engine::RebuildSettings {
    fn from(RebuildRecord { paused, rate }: RebuildRecord) -> Self {
        Self { paused, rate }
    }
}

/// One replica of an engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MemberRecord {
    pub(crate) replica: Uuid,
    pub(crate) node: String,
    pub(crate) address: SocketAddr,
    /// The store it is in, if that is one of this node's.
    pub(crate) store: Option<Uuid>,
}

/// What the engines need of the node.
pub(crate) struct Surroundings {
    pub(crate) node: String,
    pub(crate) replica_address: SocketAddr,
    /// Replicas elsewhere are reached without TLS, so that only loopback is allowed.
    pub(crate) plaintext_stays_here: bool,
    pub(crate) nvmf_addresses: Vec<SocketAddr>,
    pub(crate) discovery_addresses: Vec<SocketAddr>,
    pub(crate) portals: Vec<SocketAddr>,
    pub(crate) data: DataPath,
    pub(crate) stores: Arc<Stores>,
    pub(crate) replicas: Arc<Replicas>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) feed: Arc<Feed>,
    pub(crate) events: Arc<Events>,
}

/// All engines of the node.
pub(crate) struct Engines {
    here: Surroundings,
    records: Records<EngineRecord>,
    entries: Mutex<BTreeMap<Uuid, Entry>>,
    /// Those whose records could not be read at the start.
    unreadable: BTreeSet<Uuid>,
    locks: KeyedLocks<Uuid>,
}

struct Entry {
    record: EngineRecord,
    home: usize,
    phase: watch::Sender<Phase>,
    /// Brings the engine up. None before it was spawned and after it was ended.
    keeper: Option<JoinHandle<()>>,
}

/// How far an engine has come.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    Starting(String),
    Running,
    /// The task that brings it up has ended by a panic: it is taken up again when somebody asks for it.
    Broken(String),
    Stopping,
}

impl Engines {
    /// Reads the records, exports every volume, and starts to bring the engines up, all at once. Returns when the
    /// exports are there: hosts that were attached before find their volume, and their commands wait for its engine. The volumes
    /// that are `ending` are being deleted: no host sees them again.
    pub(crate) async fn start(
        here: Surroundings,
        records: Records<EngineRecord>,
        ending: &BTreeSet<Uuid>,
    ) -> Result<Arc<Self>, ControlError> {
        let loaded = records.load()?;
        for error in loaded.failed {
            tracing::error!(%error, "an engine's record is left out");
        }
        let (entries, unreadable) = (Mutex::default(), loaded.unreadable);
        let engines = Arc::new(Self { here, records, entries, unreadable, locks: KeyedLocks::default() });
        let (mut coming, starting) = (JoinSet::new(), engines.here.data.hide());
        for record in loaded.records.into_values() {
            if ending.contains(&record.volume) {
                engines.insert(record, Phase::Stopping);
                continue;
            }
            if coming.len() == SHOWN_AT_ONCE {
                // A panic is logged.
                let _ = coming.join_next().await;
            }
            coming.spawn(Arc::clone(&engines).bring_back(record));
        }
        while coming.join_next().await.is_some() {}
        // One that hosts do not find from here on is not there, but for those that are still tried.
        drop(starting);
        Ok(engines)
    }

    /// Brings up what was there before the daemon ended.
    async fn bring_back(self: Arc<Self>, mut record: EngineRecord) {
        let name = record.name.clone();
        // A grow may have been recorded, and the daemon ended before it was noted here.
        match self.here.data.recorded_size(record.volume).await {
            Ok(recorded) => record.size = recorded.unwrap_or(record.size),
            Err(error) => tracing::warn!(volume = %name, %error, "its size on record cannot be read"),
        }
        if let Err(error) = self.bring_up(record).await {
            tracing::error!(volume = %name, %error, "a volume cannot be exported yet; the others go on");
        }
    }

    /// Records, exports and starts an engine, or returns the one that is there (I30).
    pub(crate) async fn create(self: &Arc<Self>, request: v1::CreateEngineRequest) -> Result<v1::Engine, ControlError> {
        let record = self.parse(&request).await?;
        let volume = record.volume;
        // Of replicas that somebody names nobody knows who is in sync: their copies of the membership are asked at the start.
        self.create_record(record, false).await?;
        self.take_up(volume).await?;
        self.get(volume).await
    }

    /// The same for a record that has been checked. `fresh`: its replicas were just made, and so are equal.
    pub(crate) async fn create_record(
        self: &Arc<Self>,
        record: EngineRecord,
        fresh: bool,
    ) -> Result<v1::Engine, ControlError> {
        let volume = record.volume;
        let _lock = self.locks.lock(volume).await;
        let existing = self.entries().get(&volume).map(|entry| (entry.record.clone(), entry.keeper.is_some()));
        match existing {
            Some((existing, is_kept)) => {
                compare(&existing, &record)?;
                // The call before may have failed to export it: nobody has to wait for the next attempt.
                match is_kept {
                    true => self.show(volume).await?,
                    false => self.bring_up(existing).await?,
                }
            }
            None => {
                // First who is in sync, then that there is an engine: a start without the former would have to guess (I5).
                if fresh {
                    self.here.data.record_membership(self.home(&record), self.spec(&record)).await?;
                }
                self.records.change(volume, None, &record).await.map_err(|unchanged| unchanged.error)?;
                self.here.events.note(Happened::of(EventSubject::Volume, &record.name, volume, "created", ""));
                self.bring_up(record).await?;
            }
        }
        self.get(volume).await
    }

    async fn parse(&self, request: &v1::CreateEngineRequest) -> Result<EngineRecord, ControlError> {
        let (size, block_size) = request::geometry(request.size_bytes, request.block_size_bytes)?;
        if request.replicas.is_empty() {
            return Err(ControlError::invalid("replicas", "at least one is needed"));
        }
        let mut members = Vec::new();
        for placement in &request.replicas {
            members.push(self.member(placement).await?);
        }
        Ok(EngineRecord {
            volume: request::uuid("volume_uuid", &request.volume_uuid)?,
            name: request::name("name", &request.name)?,
            size,
            block_size,
            members,
            rebuild: RebuildRecord::default(),
            limits: LimitsRecord::default(),
            frontends: Frontends::default(),
            of_volume: false,
        })
    }

    /// Completes a placement: the address of a configured node, the store of a replica of this one.
    pub(crate) async fn member(&self, placement: &v1::ReplicaPlacement) -> Result<MemberRecord, ControlError> {
        let replica = request::uuid("replicas.replica_uuid", &placement.replica_uuid)?;
        let node = request::name("replicas.node", &placement.node)?;
        if node == self.here.node {
            let found = self.here.replicas.find(replica).await?;
            let facts = found.ok_or_else(|| ControlError::not_found("replica", replica))?;
            return Ok(MemberRecord { replica, node, address: self.here.replica_address, store: Some(facts.store) });
        }
        let given = (!placement.address.is_empty()).then(|| placement.address.parse());
        let address = match given.transpose().map_err(|error| ControlError::invalid("replicas.address", error))? {
            Some(address) => address,
            None => self.here.peers.replica_address(&node).ok_or_else(|| peers::unknown(&node))?,
        };
        if self.here.plaintext_stays_here && !address.ip().is_loopback() {
            let text = format!("{address} is not on loopback, and there is no TLS here: docs/security.md");
            return Err(ControlError::invalid("replicas.address", text));
        }
        Ok(MemberRecord { replica, node, address, store: None })
    }

    /// Notes an engine that nothing is done for yet. Returns its reactor.
    fn insert(&self, record: EngineRecord, phase: Phase) -> usize {
        let (volume, home) = (record.volume, self.home(&record));
        let entry = Entry { record, home, phase: watch::Sender::new(phase), keeper: None };
        self.entries().insert(volume, entry);
        home
    }

    /// The reactor that owns the store of the local replica; without one, any, but always the same.
    fn home(&self, record: &EngineRecord) -> usize {
        let local = record.members.iter().find_map(|member| self.here.stores.home(member.store?));
        // The remainder is below the number of reactors.
        local.unwrap_or_else(|| (record.volume.as_u128() % self.here.data.reactors() as u128) as usize)
    }

    fn spec(&self, record: &EngineRecord) -> EngineSpec {
        let members = record.members.iter().map(|member| self.member_spec(member));
        EngineSpec {
            volume: record.volume,
            name: record.name.clone(),
            size: record.size,
            block_size: record.block_size,
            members: members.collect(),
            rebuild: record.rebuild.into(),
            limits: record.limits.into(),
            frontends: record.frontends.clone(),
        }
    }

    pub(super) fn member_spec(&self, member: &MemberRecord) -> MemberSpec {
        MemberSpec {
            replica: member.replica,
            node: member.node.clone(),
            // The configuration knows better where a node is now than the record.
            address: self.here.peers.replica_address(&member.node).unwrap_or(member.address),
            store: member.store,
        }
    }

    /// Ends the export and the engine. An absent one is a success (I42).
    ///
    /// Which replicas are in sync stays on record: another engine over the same replicas must know it (I5).
    pub(crate) async fn delete(&self, volume: Uuid) -> Result<(), ControlError> {
        let _lock = self.locks.lock(volume).await;
        let name = self.entries().get(&volume).map(|entry| entry.record.name.clone());
        self.stop_one(volume).await?;
        // Also where there is no engine: a record of which it is not known that it was written may be there.
        self.records.remove(volume).await?;
        if let Some(name) = name {
            self.entries().remove(&volume);
            self.here.data.touches().touch(volume);
            self.here.events.note(Happened::of(EventSubject::Volume, &name, volume, "deleted", ""));
        }
        Ok(())
    }

    /// Forgets which replicas of a deleted volume were in sync.
    pub(crate) async fn forget_membership(&self, volume: Uuid) -> Result<(), ControlError> {
        self.here.data.forget_membership(volume).await
    }

    /// Drains and stops all engines, for the end of the daemon. Those that fail to are logged.
    pub(crate) async fn stop(self: &Arc<Self>) {
        let mut stops = JoinSet::new();
        let volumes: Vec<_> = self.entries().keys().copied().collect();
        for volume in volumes {
            let engines = Arc::clone(self);
            stops.spawn(async move {
                let _lock = engines.locks.lock(volume).await;
                if let Err(error) = engines.stop_one(volume).await {
                    tracing::error!(%volume, %error, "an engine did not stop in order");
                }
            });
        }
        while stops.join_next().await.is_some() {}
    }

    async fn stop_one(&self, volume: Uuid) -> Result<(), ControlError> {
        let Some((home, keeper)) = self.entries().get_mut(&volume).map(|entry| (entry.home, entry.keeper.take()))
        else {
            return Ok(());
        };
        self.set_phase(volume, Phase::Stopping);
        if let Some(keeper) = keeper {
            keeper.abort();
            // Cancelled is what it was asked to be; a panic has been logged.
            let _ = keeper.await;
        }
        self.here.data.stop_engine(home, volume).await?;
        self.here.feed.tell(News::Gone(volume));
        Ok(())
    }

    /// Waits until the volume is served, for about `limit` at most: less than twice.
    pub(crate) async fn wait_until_served(&self, volume: Uuid, limit: Duration) -> Result<(), ControlError> {
        let entry = self.entries().get(&volume).map(|entry| (entry.home, entry.phase.subscribe()));
        let Some((home, mut phase)) = entry else { return Ok(()) };
        let started = phase.wait_for(|phase| !matches!(phase, Phase::Starting(_)));
        // Neither the limit nor the engine's end is an error here: the caller looks at the state.
        let _ = tokio::time::timeout(limit, started).await;
        self.here.data.wait_until_served(home, volume, limit).await
    }

    /// The name of the volume whose engine has this replica, if there is one here.
    pub(crate) fn user_of(&self, replica: Uuid) -> Option<String> {
        let entries = self.entries();
        let uses = |entry: &&Entry| entry.record.members.iter().any(|member| member.replica == replica);
        entries.values().find(uses).map(|entry| entry.record.name.clone())
    }

    /// The records of all engines, and those that could not be read.
    pub(crate) fn all_records(&self) -> (Vec<EngineRecord>, &BTreeSet<Uuid>) {
        (self.entries().values().map(|entry| entry.record.clone()).collect(), &self.unreadable)
    }

    /// Whether a volume has an engine here.
    pub(crate) fn contains(&self, volume: Uuid) -> bool {
        self.entries().contains_key(&volume)
    }

    /// Since when an engine's record is as it is, in milliseconds since the Unix epoch.
    pub(crate) async fn since(&self, volume: Uuid) -> i64 {
        self.records.changed_at(volume).await
    }

    /// One engine.
    pub(crate) async fn get(&self, volume: Uuid) -> Result<v1::Engine, ControlError> {
        let (record, home, phase) = self.entry(volume).ok_or_else(|| ControlError::not_found("engine", volume))?;
        let facts = self.here.data.engine(home, volume).await?;
        Ok(self.describe(&record, home, &phase, facts.as_ref()))
    }

    /// All engines by volume.
    pub(crate) async fn all(&self) -> Result<BTreeMap<Uuid, v1::Engine>, ControlError> {
        let mut facts = BTreeMap::new();
        for home in 0..self.here.data.reactors() {
            facts.extend(self.here.data.engines(home).await?);
        }
        let entries = self.entries();
        let described = entries.iter().map(|(volume, entry)| {
            let phase = entry.phase.borrow().clone();
            (*volume, self.describe(&entry.record, entry.home, &phase, facts.get(volume)))
        });
        Ok(described.collect())
    }

    /// Cuts all in-sync replicas of a volume at one point. Without a UUID or a name it makes them up.
    pub(crate) async fn snapshot(&self, volume: Uuid, uuid: &str, name: &str) -> Result<v1::Snapshot, ControlError> {
        let snapshot = request::optional_uuid("uuid", uuid)?.unwrap_or_else(Uuid::new_v4);
        let name = match name {
            "" => format!("snapshot-{}", request::unix_milliseconds()),
            name => request::name("name", name)?,
        };
        let (_lock, _, home) = self.lock_running(volume).await?;
        self.here.data.snapshot(home, volume, snapshot, name.clone()).await?;
        let (uuid, volume_uuid) = (snapshot.to_string(), volume.to_string());
        Ok(v1::Snapshot { uuid, name, volume_uuid, ..v1::Snapshot::default() })
    }

    /// A volume that is served, and keeps others from changing it meanwhile.
    pub(super) async fn lock_running(
        &self,
        volume: Uuid,
    ) -> Result<(OwnedMutexGuard<()>, EngineRecord, usize), ControlError> {
        let lock = self.locks.lock(volume).await;
        let (record, home, phase) = self.entry(volume).ok_or_else(|| ControlError::not_found("engine", volume))?;
        if let Phase::Broken(reason) = phase {
            return Err(ControlError::precondition("ENGINE", format!("volume `{}`: {reason}", record.name)));
        }
        if phase != Phase::Running {
            let text = format!("volume `{}` is not served yet; try again soon", record.name);
            return Err(ControlError::unavailable("ENGINE_STARTING", text));
        }
        Ok((lock, record, home))
    }

    /// What it means, where there is no record of the membership that counts, to make one replica the one that does; with `force` it is done,
    /// and the engine starts anew if it had stopped over it. None where the record counts.
    pub(super) async fn recover_lost(
        self: &Arc<Self>,
        volume: Uuid,
        replica: Uuid,
        force: bool,
    ) -> Result<Option<String>, ControlError> {
        let _lock = self.locks.lock(volume).await;
        let (record, home, phase) = self.entry(volume).ok_or_else(|| ControlError::not_found("engine", volume))?;
        let consequence = self.here.data.recover_lost(home, self.spec(&record), replica, force).await?;
        if consequence.is_some() && force && phase == Phase::Running {
            self.stop_one(volume).await?;
            self.bring_up(record).await?;
        }
        Ok(consequence)
    }

    /// Notes the size that a volume has grown to.
    pub(super) async fn note_size(&self, volume: Uuid, size: u64) -> Result<(), ControlError> {
        self.note(volume, |record| record.size = size).await
    }

    /// Notes which replicas a volume has.
    pub(super) async fn note_members(
        &self,
        volume: Uuid,
        change: impl FnOnce(&mut Vec<MemberRecord>),
    ) -> Result<(), ControlError> {
        self.note(volume, |record| change(&mut record.members)).await
    }

    /// Notes how the rebuilds of a volume work, and tells its engine.
    pub(super) async fn set_rebuild(
        &self,
        volume: Uuid,
        change: impl FnOnce(&mut RebuildRecord),
    ) -> Result<(), ControlError> {
        let _lock = self.locks.lock(volume).await;
        self.note(volume, |record| change(&mut record.rebuild)).await?;
        let (record, home, _) = self.entry(volume).ok_or_else(|| ControlError::not_found("engine", volume))?;
        self.here.data.set_rebuild(home, volume, record.rebuild.into()).await
    }

    pub(super) async fn note(&self, volume: Uuid, change: impl FnOnce(&mut EngineRecord)) -> Result<(), ControlError> {
        let Some((old, ..)) = self.entry(volume) else { return Ok(()) };
        let mut record = old.clone();
        change(&mut record);
        let result = match self.records.change(volume, Some(&old), &record).await {
            Err(Unchanged { error, in_doubt: false }) => return Err(error.into()),
            // The next start may find the new one.
            Err(Unchanged { error, in_doubt: true }) => Err(error.into()),
            Ok(()) => Ok(()),
        };
        if let Some(entry) = self.entries().get_mut(&volume) {
            entry.record = record;
        }
        self.here.data.touches().touch(volume);
        result
    }

    /// Keeps others from changing a volume meanwhile.
    pub(super) async fn lock(&self, volume: Uuid) -> OwnedMutexGuard<()> {
        self.locks.lock(volume).await
    }

    /// An engine's record, and its reactor.
    pub(super) fn record_of(&self, volume: Uuid) -> Option<(EngineRecord, usize)> {
        self.entry(volume).map(|(record, home, _)| (record, home))
    }

    /// Whether hosts can attach a volume over some frontend.
    pub(super) fn is_exported(&self, volume: Uuid) -> bool {
        let entries = self.entries();
        let frontends = entries.get(&volume).map(|entry| &entry.record.frontends);
        frontends.is_some_and(|frontends| frontends.nvmf.is_some() || frontends.iscsi.is_some())
    }

    /// Whether there is a door for initiators.
    pub(super) fn has_portals(&self) -> bool {
        !self.here.portals.is_empty()
    }

    /// The size of a volume in bytes, if it has an engine here.
    pub(super) fn size_of(&self, volume: Uuid) -> Option<u64> {
        self.entries().get(&volume).map(|entry| entry.record.size)
    }

    /// All there are.
    pub(super) fn uuids(&self) -> Vec<Uuid> {
        self.entries().keys().copied().collect()
    }

    pub(super) fn data(&self) -> &DataPath {
        &self.here.data
    }

    fn entry(&self, volume: Uuid) -> Option<(EngineRecord, usize, Phase)> {
        let entries = self.entries();
        let entry = entries.get(&volume)?;
        let phase = entry.phase.borrow().clone();
        Some((entry.record.clone(), entry.home, phase))
    }

    fn set_phase(&self, volume: Uuid, phase: Phase) {
        if let Some(entry) = self.entries().get(&volume) {
            entry.phase.send_if_modified(|now| {
                let becomes = now.may_become(&phase);
                if becomes {
                    *now = phase;
                }
                becomes
            });
        }
        self.here.data.touches().touch(volume);
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<Uuid, Entry>> {
        // Poisoned or not, the map is whole: no change of it has several steps.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn compare(existing: &EngineRecord, wanted: &EngineRecord) -> Result<(), ControlError> {
    let replicas = |record: &EngineRecord| {
        let mut members: Vec<_> =
            record.members.iter().map(|member| format!("{} on {}", member.replica, member.node)).collect();
        members.sort();
        members.join(", ")
    };
    Comparison::default()
        .field("name", &existing.name, &wanted.name)
        .field("size_bytes", existing.size, wanted.size)
        .field("block_size_bytes", existing.block_size, wanted.block_size)
        .field("replicas", replicas(existing), replicas(wanted))
        .finish("engine", wanted.volume)
}
