//! Volumes: replicas on named nodes, an engine here, and a record of it all.
//!
//! ```text
//!           record               replicas, engine              record            engine, replicas
//!  (none) ─────────▶ CREATING ────────────────────▶ CREATED ─────────▶ DELETING ─────────────────▶ (none)
//!                      │    ▲                                          ▲   │  ▲
//!                      └────┘ create again                             │   └──┘ delete again
//!                      └───────────────────────────────────────────────┘ delete
//! ```
//!
//! Each step can be repeated, and a call that failed half way goes on where it was when it is sent again.

mod adopting;
mod cloning;
mod members;
mod resuming;
mod watching;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::v1::{self, VolumeState};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::calls;
use crate::control::deletions::{DeletionRecord, Deletions};
use crate::control::engines::{EngineRecord, Engines, LimitsRecord, RebuildRecord};
use crate::control::error::{Comparison, ControlError};
use crate::control::frontends::Frontends;
use crate::control::locks::KeyedLocks;
use crate::control::pages::{self, Wanted as WantedPage};
use crate::control::peers::{self, Peers};
use crate::control::replicas::Replicas;
use crate::control::request;
use crate::control::versions::Versions;
use crate::state::{Loaded, Records, StateError, Unchanged};

pub(crate) use self::adopting::Adopted;

/// How long a creation waits for its engine, so that the volume can be attached when the call returns.
const START_LIMIT: Duration = Duration::from_secs(10);
/// A record with more would not be what somebody meant.
const MOST_REPLICAS: usize = 16;

/// A volume as the state directory knows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct VolumeRecord {
    uuid: Uuid,
    name: String,
    /// Bytes.
    size: u64,
    /// Bytes.
    block_size: u32,
    /// Milliseconds since the Unix epoch.
    created_at: i64,
    /// The store on each node; empty for each node's own choice.
    store: String,
    replicas: Vec<ReplicaRecord>,
    phase: Phase,
    /// What it was cloned from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    source: Option<SourceRecord>,
}

/// The snapshot that a volume began as; it may be gone.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct SourceRecord {
    volume: Uuid,
    volume_name: String,
    snapshot: Uuid,
    snapshot_name: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct ReplicaRecord {
    uuid: Uuid,
    node: String,
    /// What is being done with it, apart from the volume's own life.
    #[serde(default)]
    change: ReplicaChange,
    /// For one that was made as a clone: the replica on its node whose snapshot it began as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    origin: Option<Uuid>,
}

/// What becomes of a replica of a volume that exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ReplicaChange {
    /// Nothing: it belongs to the volume.
    #[default]
    Stays,
    /// It is being made and taken in.
    Joins,
    /// It goes when the one named is in sync.
    ReplacedBy(Uuid),
    /// It is being let go.
    Leaves,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Phase {
    Creating,
    Created,
    Deleting,
}

impl Phase {
    /// The arrows of the picture above.
    fn may_become(self, next: Self) -> bool {
        match self {
            Self::Creating => true,
            Self::Created => next != Self::Creating,
            Self::Deleting => next == Self::Deleting,
        }
    }
}

/// What the volumes need of the node.
pub(crate) struct Surroundings {
    pub(crate) node: String,
    pub(crate) peers: Arc<Peers>,
    pub(crate) replicas: Arc<Replicas>,
    pub(crate) engines: Arc<Engines>,
    pub(crate) deletions: Arc<Deletions>,
}

/// All volumes whose engine is on this node.
pub(crate) struct Volumes {
    here: Surroundings,
    records: Records<VolumeRecord>,
    entries: Mutex<BTreeMap<Uuid, Entry>>,
    /// Those whose records could not be read at the start.
    unreadable: BTreeSet<Uuid>,
    /// By name: it is what makes a creation the same as an earlier one.
    locks: KeyedLocks<String>,
    /// As they were seen last.
    versions: Arc<Versions<v1::Volume>>,
}

#[derive(Clone)]
struct Entry {
    record: VolumeRecord,
    /// Why the last call did not get to its end.
    reason: String,
    /// The state directory may have this record or the one before.
    in_doubt: bool,
}

/// The volumes as the state directory has them at a start.
pub(crate) struct Recorded {
    records: Records<VolumeRecord>,
    loaded: Loaded<VolumeRecord>,
}

impl Recorded {
    /// Reads the records.
    pub(crate) fn load(records: Records<VolumeRecord>) -> Result<Self, StateError> {
        let loaded = records.load()?;
        Ok(Self { records, loaded })
    }

    /// Those whose deletion was cut off.
    pub(crate) fn ending(&self) -> BTreeSet<Uuid> {
        let ending = self.loaded.records.values().filter(|record| record.phase == Phase::Deleting);
        ending.map(|record| record.uuid).collect()
    }
}

impl Volumes {
    /// Takes the records over. The engines are brought back by [`Engines`].
    pub(crate) fn start(here: Surroundings, recorded: Recorded, run: u64) -> Self {
        let Recorded { records, loaded } = recorded;
        for error in loaded.failed {
            tracing::error!(%error, "a volume's record is left out");
        }
        let cut_off = |record: &VolumeRecord| match record.phase {
            Phase::Created => String::new(),
            Phase::Creating => "the daemon ended in the middle; send the command again".to_owned(),
            Phase::Deleting => "the daemon ended in the middle; it goes on".to_owned(),
        };
        let entries = loaded.records.into_iter();
        let entries = entries.map(|(uuid, mut record)| {
            // What the engine knows of a grow may be newer.
            record.size = here.engines.size_of(uuid).unwrap_or(record.size);
            (uuid, Entry { reason: cut_off(&record), record, in_doubt: false })
        });
        let entries = entries.collect();
        let versions = Versions::new(run);
        let (entries, unreadable) = (Mutex::new(entries), loaded.unreadable);
        Self { here, records, entries, unreadable, locks: KeyedLocks::default(), versions }
    }

    /// Makes a volume, or returns the one that is there, or goes on with one that is half made (I30).
    pub(crate) async fn create(&self, request: v1::CreateVolumeRequest) -> Result<v1::Volume, ControlError> {
        let wanted = self.parse(request)?;
        calls::about_volume(&wanted.name);
        let _lock = self.locks.lock(wanted.name.clone()).await;
        let existing = self.entries().values().find(|entry| entry.record.name == wanted.name).cloned();
        let record = match existing {
            Some(entry) => {
                wanted.compare(&entry.record)?;
                entry.record
            }
            None => self.begin(wanted).await?,
        };
        self.complete(record).await
    }

    /// Goes on with a volume that is begun, until it is served.
    async fn complete(&self, record: VolumeRecord) -> Result<v1::Volume, ControlError> {
        let uuid = record.uuid;
        match record.phase {
            Phase::Created => {}
            Phase::Creating => {
                // Nothing is made of which the record may be lost.
                if self.entries().get(&uuid).is_some_and(|entry| entry.in_doubt) {
                    self.keep(&record).await?;
                }
                self.noting_failure(uuid, self.build(record).await)?;
            }
            Phase::Deleting => {
                let text = format!("volume `{}` is being deleted: send the delete again first", record.name);
                return Err(ControlError::precondition("DELETING", text));
            }
        }
        self.here.engines.wait_until_served(uuid, START_LIMIT).await?;
        self.describe(uuid).await
    }

    fn parse(&self, request: v1::CreateVolumeRequest) -> Result<Wanted, ControlError> {
        let (size, block_size) = request::geometry(request.size_bytes, request.block_size_bytes)?;
        Ok(Wanted {
            uuid: request::optional_uuid("uuid", &request.uuid)?,
            name: request::name("name", &request.name)?,
            size,
            block_size,
            store: request.store,
            nodes: self.choose_nodes(request.nodes, request.replica_count)?,
        })
    }

    /// The nodes named, or this one and as many peers as needed.
    fn choose_nodes(&self, named: Vec<String>, count: u32) -> Result<Vec<String>, ControlError> {
        if named.is_empty() {
            let here = std::iter::once(self.here.node.as_str());
            let known: Vec<_> = here.chain(self.here.peers.names()).map(str::to_owned).collect();
            let count = usize::try_from(count.max(1)).unwrap_or(usize::MAX);
            if count > known.len() {
                let problem = format!("there are {} nodes: {}", known.len(), known.join(", "));
                return Err(ControlError::invalid("replica_count", problem));
            }
            return Ok(known[..count].to_vec());
        }
        if named.len() > MOST_REPLICAS {
            return Err(ControlError::invalid("nodes", format!("more than {MOST_REPLICAS}")));
        }
        for (index, node) in named.iter().enumerate() {
            if named[..index].contains(node) {
                return Err(ControlError::invalid("nodes", format!("`{node}` is named twice")));
            }
            if *node != self.here.node && self.here.peers.replica_address(node).is_none() {
                return Err(peers::unknown(node));
            }
        }
        Ok(named)
    }

    async fn begin(&self, wanted: Wanted) -> Result<VolumeRecord, ControlError> {
        let uuid = self.unused_uuid(wanted.uuid, &wanted.name)?;
        let replicas = wanted.nodes.into_iter().map(ReplicaRecord::new);
        let record = VolumeRecord {
            uuid,
            name: wanted.name,
            size: wanted.size,
            block_size: wanted.block_size,
            created_at: request::unix_milliseconds(),
            store: wanted.store,
            replicas: replicas.collect(),
            phase: Phase::Creating,
            source: None,
        };
        self.keep(&record).await?;
        Ok(record)
    }

    /// The UUID of a volume that is not there by name, random unless one was asked for.
    fn unused_uuid(&self, wanted: Option<Uuid>, name: &str) -> Result<Uuid, ControlError> {
        let uuid = wanted.unwrap_or_else(Uuid::new_v4);
        match self.entries().get(&uuid) {
            None => Ok(uuid),
            Some(other) => {
                let differs =
                    Comparison::default().field("name", other.record.name.as_str(), name).finish("volume", uuid);
                let unexpected = || ControlError::failed("STATE", "a volume was found by UUID but not by name");
                Err(differs.err().unwrap_or_else(unexpected))
            }
        }
    }

    /// From a record to a volume that is served.
    async fn build(&self, mut record: VolumeRecord) -> Result<(), ControlError> {
        self.create_replicas(&record).await?;
        let mut members = Vec::new();
        for replica in &record.replicas {
            members.push(self.here.engines.member(&replica.placement()).await?);
        }
        let engine = EngineRecord {
            volume: record.uuid,
            name: record.name.clone(),
            size: record.size,
            block_size: record.block_size,
            members,
            rebuild: RebuildRecord::default(),
            limits: LimitsRecord::default(),
            frontends: Frontends::default(),
            of_volume: true,
        };
        self.here.engines.create_record(engine, true).await?;
        record.phase = Phase::Created;
        self.keep(&record).await?;
        Ok(())
    }

    /// All at once; the error of the first node that fails, after all have answered.
    async fn create_replicas(&self, record: &VolumeRecord) -> Result<(), ControlError> {
        let mut calls = JoinSet::new();
        for replica in &record.replicas {
            calls.spawn(self.create_replica(record, replica));
        }
        let mut result = Ok(());
        while let Some(call) = calls.join_next().await {
            let answer = call.unwrap_or_else(|ended| Err(ControlError::failed("PANIC", ended)));
            result = result.and(answer);
        }
        result.map_err(|error| {
            let name = &record.name;
            error.while_doing(format!("volume `{name}` is half made; create it again to go on, or delete it. Cause"))
        })
    }

    /// Makes one replica on its node.
    fn create_replica(
        &self,
        record: &VolumeRecord,
        replica: &ReplicaRecord,
    ) -> impl Future<Output = Result<(), ControlError>> + Send + use<> {
        let request =
            v1::CreateReplicaRequest { owner_node: self.here.node.clone(), ..record.replica_request(replica) };
        let node = replica.node.clone();
        let here = (node == self.here.node).then(|| Arc::clone(&self.here.replicas));
        let peers = Arc::clone(&self.here.peers);
        async move {
            match here {
                Some(replicas) => replicas.create(request).await.map(drop),
                None => peers.create_replica(&node, request).await.map(drop),
            }
        }
    }

    /// Ends a volume. An absent one is a success (I42).
    pub(crate) async fn delete(&self, request: v1::DeleteVolumeRequest) -> Result<Vec<String>, ControlError> {
        let expected = request::optional_uuid("expected_uuid", &request.expected_uuid)?;
        let Ok(found) = self.find(&request.volume) else { return Ok(Vec::new()) };
        let _lock = self.locks.lock(found.record.name.clone()).await;
        // It may have changed, or gone, while this waited for the lock.
        let Ok(entry) = self.find(&request.volume) else { return Ok(Vec::new()) };
        let mut record = entry.record;
        if expected.is_some_and(|expected| expected != record.uuid) {
            return Err(ControlError::other_uuid("volume", &record.name, record.uuid));
        }
        record.phase = Phase::Deleting;
        self.keep(&record).await?;
        self.delete_noted(&record).await
    }

    /// Ends a volume whose record says that it is to end.
    async fn delete_noted(&self, record: &VolumeRecord) -> Result<Vec<String>, ControlError> {
        let ended = async {
            let pending = self.tear_down(record).await?;
            self.records.remove(record.uuid).await?;
            Ok(pending)
        };
        let pending = self.noting_failure(record.uuid, ended.await)?;
        self.entries().remove(&record.uuid);
        self.touch(record.uuid);
        Ok(pending)
    }

    /// Returns the nodes whose replicas are deleted later.
    async fn tear_down(&self, record: &VolumeRecord) -> Result<Vec<String>, ControlError> {
        self.here.engines.delete(record.uuid).await?;
        let mut calls = JoinSet::new();
        for replica in &record.replicas {
            let deletions = Arc::clone(&self.here.deletions);
            let deletion = DeletionRecord { replica: replica.uuid, volume: record.uuid, node: replica.node.clone() };
            calls.spawn(async move {
                let result = deletions.delete_now(&deletion).await;
                (deletion, result)
            });
        }
        let mut pending = Vec::new();
        while let Some(call) = calls.join_next().await {
            let (deletion, result) = call.map_err(|ended| ControlError::failed("PANIC", ended))?;
            if let Err(error) = result {
                tracing::warn!(volume = %record.name, %error, "a replica is deleted later");
                pending.push(deletion.node.clone());
                self.here.deletions.delete_later(deletion, &error).await?;
            }
        }
        self.here.engines.forget_membership(record.uuid).await?;
        pending.sort();
        Ok(pending)
    }

    pub(super) fn engines(&self) -> &Arc<Engines> {
        &self.here.engines
    }

    /// The identity of a volume, by name or UUID.
    pub(super) fn uuid_of(&self, volume: &str) -> Result<Uuid, ControlError> {
        Ok(self.find(volume)?.record.uuid)
    }

    /// Whether a volume can have this size from now on.
    pub(super) fn check_size(&self, volume: Uuid, size: u64) -> Result<(), ControlError> {
        let record = self.find(&volume.to_string())?.record;
        request::geometry(size, record.block_size)?;
        if size < record.size {
            let problem = format!("volume `{}` has {} bytes; nothing is ever cut off", record.name, record.size);
            return Err(ControlError::invalid("size_bytes", problem));
        }
        Ok(())
    }

    /// Notes the size that a volume has grown to.
    pub(super) async fn note_size(&self, volume: Uuid, size: u64) -> Result<(), ControlError> {
        let record = self.find(&volume.to_string())?.record;
        Ok(self.keep(&VolumeRecord { size, ..record }).await?)
    }

    /// Cuts a volume.
    pub(crate) async fn snapshot(&self, request: v1::SnapshotVolumeRequest) -> Result<v1::Snapshot, ControlError> {
        let record = self.find(&request.volume)?.record;
        self.here.engines.snapshot(record.uuid, &request.uuid, &request.name).await
    }

    /// One volume by name or UUID.
    pub(crate) async fn get(&self, volume: &str) -> Result<v1::Volume, ControlError> {
        let uuid = self.find(volume)?.record.uuid;
        self.describe(uuid).await
    }

    /// A page of all volumes, in order of their names.
    pub(crate) async fn list(&self, request: v1::ListVolumesRequest) -> Result<v1::ListVolumesResponse, ControlError> {
        // Before the look: what changes meanwhile is told to who watches from here.
        let resource_version = self.versions.version();
        let mut volumes = self.all().await?;
        volumes.iter_mut().for_each(|volume| volume.resource_version.clone_from(&resource_version));
        let wanted = WantedPage { size: request.page_size, token: request.page_token };
        let (volumes, next_page_token) =
            pages::page("volumes", volumes, |volume| [&volume.name, &volume.uuid], &wanted)?;
        Ok(v1::ListVolumesResponse { volumes, next_page_token, resource_version })
    }

    async fn all(&self) -> Result<Vec<v1::Volume>, ControlError> {
        let mut engines = self.here.engines.all().await?;
        let entries: Vec<_> = self.entries().values().cloned().collect();
        let mut volumes: Vec<_> = entries
            .into_iter()
            .map(|entry| {
                let engine = engines.remove(&entry.record.uuid);
                entry.describe(engine)
            })
            .collect();
        volumes.sort_by(|one, other| (&one.name, &one.uuid).cmp(&(&other.name, &other.uuid)));
        Ok(volumes)
    }

    /// Whether there is a volume with this UUID.
    pub(crate) fn contains(&self, uuid: Uuid) -> bool {
        self.entries().contains_key(&uuid)
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.entries().len()
    }

    async fn describe(&self, uuid: Uuid) -> Result<v1::Volume, ControlError> {
        let resource_version = self.versions.version();
        let entry = self.find(&uuid.to_string())?;
        // Absent while it is created or deleted.
        let engine = self.here.engines.get(uuid).await.ok();
        Ok(v1::Volume { resource_version, ..entry.describe(engine) })
    }

    fn find(&self, volume: &str) -> Result<Entry, ControlError> {
        let uuid = Uuid::try_parse(volume).ok();
        let entries = self.entries();
        let matches = |entry: &&Entry| Some(entry.record.uuid) == uuid || entry.record.name == volume;
        let found = entries.values().find(matches).cloned();
        let entry = found.ok_or_else(|| ControlError::not_found("volume", volume))?;
        calls::about_volume(&entry.record.name);
        Ok(entry)
    }

    /// Writes the record, then shows it. After an error it is as before; where that is not certain the new one is shown, with the error.
    async fn keep(&self, record: &VolumeRecord) -> Result<(), StateError> {
        let old = self.entries().get(&record.uuid).map(|entry| entry.record.clone());
        if let Some(known) = &old {
            let (from, to) = (known.phase, record.phase);
            debug_assert!(from.may_become(to), "volume {} cannot get from {from:?} to {to:?}", record.name);
        }
        let kept = self.records.change(record.uuid, old.as_ref(), record).await;
        let (reason, in_doubt, result) = match kept {
            Ok(()) => (String::new(), false, Ok(())),
            Err(Unchanged { error, in_doubt: false }) => return Err(error),
            Err(Unchanged { error, in_doubt: true }) => (error.to_string(), true, Err(error)),
        };
        self.entries().insert(record.uuid, Entry { record: record.clone(), reason, in_doubt });
        self.touch(record.uuid);
        result
    }

    /// Leaves the reason of a failure with the volume.
    fn noting_failure<T>(&self, uuid: Uuid, result: Result<T, ControlError>) -> Result<T, ControlError> {
        if let (Err(error), Some(entry)) = (&result, self.entries().get_mut(&uuid)) {
            entry.reason = error.to_string();
        }
        self.touch(uuid);
        result
    }

    fn touch(&self, uuid: Uuid) {
        self.here.engines.data().touches().touch(uuid);
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<Uuid, Entry>> {
        // Poisoned or not, the map is whole: no change of it has several steps.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn describe(self, engine: Option<v1::Engine>) -> v1::Volume {
        let state = match self.record.phase {
            Phase::Creating => VolumeState::Creating,
            Phase::Created => VolumeState::Created,
            Phase::Deleting => VolumeState::Deleting,
        };
        let replicas = self.record.replicas.iter().map(|replica| {
            let uuid = replica.uuid.to_string();
            let members = engine.iter().flat_map(|engine| &engine.members);
            let address = members.into_iter().find(|member| member.replica_uuid == uuid);
            let address = address.map_or_else(String::new, |member| member.address.clone());
            v1::ReplicaPlacement { address, ..replica.placement() }
        });
        v1::Volume {
            uuid: self.record.uuid.to_string(),
            name: self.record.name.clone(),
            size_bytes: self.record.size,
            block_size_bytes: self.record.block_size,
            created_at_unix_ms: self.record.created_at,
            state: state.into(),
            reason: self.reason,
            replicas: replicas.collect(),
            engine,
            source: self.record.source.map(SourceRecord::describe),
            resource_version: String::new(),
        }
    }
}

impl VolumeRecord {
    fn replica_request(&self, replica: &ReplicaRecord) -> v1::CreateReplicaRequest {
        let origin = replica.origin.zip(self.source.as_ref().map(|source| source.snapshot));
        v1::CreateReplicaRequest {
            uuid: replica.uuid.to_string(),
            volume_uuid: self.uuid.to_string(),
            name: self.name.clone(),
            store: self.store.clone(),
            size_bytes: self.size,
            block_size_bytes: self.block_size,
            source_replica_uuid: origin.map_or_else(String::new, |(replica, _)| replica.to_string()),
            source_snapshot_uuid: origin.map_or_else(String::new, |(_, snapshot)| snapshot.to_string()),
            owner_node: String::new(),
        }
    }
}

impl ReplicaRecord {
    fn new(node: String) -> Self {
        Self { uuid: Uuid::new_v4(), node, change: ReplicaChange::Stays, origin: None }
    }

    /// Without an address: the configuration knows it.
    fn placement(&self) -> v1::ReplicaPlacement {
        v1::ReplicaPlacement { replica_uuid: self.uuid.to_string(), node: self.node.clone(), address: String::new() }
    }
}

/// A checked request.
struct Wanted {
    uuid: Option<Uuid>,
    name: String,
    size: u64,
    block_size: u32,
    store: String,
    nodes: Vec<String>,
}

impl Wanted {
    fn compare(&self, existing: &VolumeRecord) -> Result<(), ControlError> {
        let nodes = |mut nodes: Vec<&str>| {
            nodes.sort_unstable();
            nodes.join(", ")
        };
        let there = existing.replicas.iter().map(|replica| replica.node.as_str()).collect();
        Comparison::default()
            .optional("uuid", existing.uuid, self.uuid)
            .field("size_bytes", existing.size, self.size)
            .field("block_size_bytes", existing.block_size, self.block_size)
            .field("store", &existing.store, &self.store)
            .field("replicas", nodes(there), nodes(self.nodes.iter().map(String::as_str).collect()))
            .finish("volume", &self.name)
    }
}
