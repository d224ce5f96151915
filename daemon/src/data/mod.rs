//! The data path as the control side sees it.
//!
//! Stores, replicas, engines and exports live on reactors and never leave their thread. Each call here is a message to
//! the reactor that owns the thing, and the answer is plain values ([`facts`]). What runs on the other side of the
//! message is in [`room`], [`stores`], [`engines`] and [`frontends`].

mod backups;
mod engines;
mod errors;
mod facts;
mod frontends;
mod happened;
mod hidden;
mod lvols;
mod orphans;
mod paths;
mod reactors;
mod room;
mod scrubs;
mod stores;

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use block_device::{Meter, Range};
use engine::RebuildSettings;
use tokio::sync::Notify;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

pub(crate) use self::facts::{
    Backing, CopyFacts, EngineFacts, EngineSpec, ExportFacts, ExportIdentity, LvolChange, LvolFacts, LvolPiece,
    MemberFacts, MemberSpec, ReplicaFacts, ReplicaOrigin, ReplicaSpec, ScrubFacts, ScrubRun, SnapshotFacts, StoreFacts,
    StoreSpec, SuspectFacts, VolumeChange, WantedLimits,
};
pub(crate) use self::hidden::Hidden;
pub(crate) use self::reactors::Reactors;

use crate::config::Config;
use crate::control::{ControlError, EventSender, Frontends, Happened, Touches};
use crate::failpoint;
use crate::state::changed_at;

/// The reactor that listens, and keeps the membership records. Connections move on to the reactor of their volume.
const FIRST: usize = 0;

/// Reaches what lives on the reactors.
#[derive(Clone)]
pub(crate) struct DataPath {
    inner: Arc<Inner>,
}

struct Inner {
    /// In the order of their numbers; at least one.
    handles: Vec<reactor::Handle>,
    replicas: replica::Directory,
    subsystems: Arc<nvmf_target::Directory>,
    targets: Arc<iscsi_target::Directory>,
    /// Volumes that hosts should see and do not see yet.
    hidden: Arc<hidden::HiddenCount>,
    registry: PathBuf,
    node: String,
    /// How connections to and from replicas of other nodes are kept private; none for plaintext.
    security: Option<Arc<dyn replica::Security>>,
    replica_deadline: Duration,
    /// Bytes a second at which each store hashes its snapshots; 0 for not at all.
    hash_rate: u64,
    /// A scrub of some store has ended.
    scrub_ended: Notify,
    rebuilds: Arc<engine::Rebuilds>,
    rebuild_guard: bool,
    /// Where reactors tell what happened.
    events: EventSender,
    /// Where they tell which volumes may have changed.
    touches: Touches,
    /// Where that comes out, until somebody takes it.
    told: Mutex<Option<mpsc::Receiver<Happened>>>,
}

impl DataPath {
    /// What reactors tell, for the first who asks.
    pub(crate) fn events(&self) -> Option<mpsc::Receiver<Happened>> {
        self.inner.told.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Where it is told which volumes may have changed.
    pub(crate) fn touches(&self) -> &Touches {
        &self.inner.touches
    }

    /// How many reactors there are.
    pub(crate) fn reactors(&self) -> usize {
        self.inner.handles.len()
    }

    /// An error if what a store is to live in holds something else, which a format must leave as it is.
    pub(crate) async fn check_unused(
        &self,
        home: usize,
        spec: &StoreSpec,
        limits: WantedLimits,
    ) -> Result<(), ControlError> {
        let spec = spec.clone();
        paths::reach(&spec.backing).await;
        self.on(home, move |_| stores::check(spec, limits)).await?
    }

    /// Formats a store, or finishes a format that was cut off. A store that is there already is left as it is.
    pub(crate) async fn format_store(
        &self,
        home: usize,
        spec: &StoreSpec,
        limits: WantedLimits,
    ) -> Result<(), ControlError> {
        let spec = spec.clone();
        paths::reach(&spec.backing).await;
        self.on(home, move |_| stores::format(spec, limits)).await?
    }

    /// Opens a store and serves its replicas. Its last scrub goes on if it had not ended.
    pub(crate) async fn open_store(
        &self,
        home: usize,
        spec: &StoreSpec,
        last_scrub: Option<ScrubRun>,
    ) -> Result<(), ControlError> {
        let spec = spec.clone();
        paths::reach(&spec.backing).await;
        self.on(home, move |inner| stores::open(inner, spec, last_scrub)).await?
    }

    /// Closes a store in order.
    pub(crate) async fn close_store(&self, home: usize, store: Uuid) -> Result<(), ControlError> {
        self.on(home, move |_| stores::close(store)).await?
    }

    /// Makes an open store as large as its file or device has become, or `size` bytes of it.
    pub(crate) async fn grow_store(&self, home: usize, store: Uuid, size: Option<u64>) -> Result<(), ControlError> {
        self.on(home, move |_| stores::grow(store, size)).await?
    }

    /// Sets those limits of an open store that are given.
    pub(crate) async fn set_store_limits(
        &self,
        home: usize,
        store: Uuid,
        limits: WantedLimits,
    ) -> Result<(), ControlError> {
        self.on(home, move |_| stores::set_limits(store, limits)).await?
    }

    /// Begins a scrub of an open store, if none is under way.
    pub(crate) async fn start_scrub(
        &self,
        home: usize,
        store: Uuid,
        bytes_per_second: u64,
    ) -> Result<(), ControlError> {
        self.on(home, move |inner| async move { scrubs::start(inner, store, bytes_per_second) }).await?
    }

    /// Returns when a scrub of some store has ended since the last time.
    pub(crate) async fn scrub_ended(&self) {
        self.inner.scrub_ended.notified().await;
    }

    /// Ends the scrub of an open store soon, if one is under way.
    pub(crate) async fn stop_scrub(&self, home: usize, store: Uuid) -> Result<(), ControlError> {
        self.on(home, move |_| async move { scrubs::stop(store) }).await?
    }

    /// The open stores of a reactor.
    pub(crate) async fn stores(&self, home: usize) -> Result<BTreeMap<Uuid, StoreFacts>, ControlError> {
        self.on(home, |_| async { stores::facts() }).await
    }

    /// Makes a replica in a store, or finds that it is there.
    pub(crate) async fn create_replica(
        &self,
        home: usize,
        store: Uuid,
        spec: ReplicaSpec,
        origin: Option<ReplicaOrigin>,
    ) -> Result<ReplicaFacts, ControlError> {
        self.on(home, move |_| stores::create_replica(store, spec, origin)).await?
    }

    /// Deletes a replica with its snapshots.
    pub(crate) async fn delete_replica(&self, home: usize, store: Uuid, replica: Uuid) -> Result<(), ControlError> {
        self.on(home, move |_| stores::delete_replica(store, replica)).await?
    }

    /// The replicas in the open stores of a reactor.
    pub(crate) async fn replicas(&self, home: usize) -> Result<Vec<ReplicaFacts>, ControlError> {
        self.on(home, |_| async { stores::replicas() }).await
    }

    /// A replica in an open store of a reactor; none if there is none.
    pub(crate) async fn replica(&self, home: usize, replica: Uuid) -> Result<Option<ReplicaFacts>, ControlError> {
        self.on(home, move |_| async move { stores::replica(replica) }).await
    }

    /// What replicas that may belong to nobody say of themselves; nothing of those that are gone.
    pub(crate) async fn suspects(
        &self,
        home: usize,
        store: Uuid,
        replicas: Vec<Uuid>,
    ) -> Result<Vec<SuspectFacts>, ControlError> {
        self.on(home, move |_| async move { orphans::suspects(store, &replicas) }).await
    }

    /// Notes whose volume a replica is of.
    pub(crate) async fn set_owner_node(
        &self,
        home: usize,
        store: Uuid,
        replica: Uuid,
        node: String,
    ) -> Result<(), ControlError> {
        self.on(home, move |_| orphans::set_owner_node(store, replica, node)).await?
    }

    /// Deletes a replica, but not from under an engine.
    pub(crate) async fn delete_unused(
        &self,
        home: usize,
        store: Uuid,
        replica: Uuid,
        volume: Uuid,
        epoch: u64,
    ) -> Result<(), ControlError> {
        self.on(home, move |_| orphans::delete_unused(store, replica, volume, epoch)).await?
    }

    /// Deletes the lvols of a replica that has no head any more.
    pub(crate) async fn delete_remains(&self, home: usize, store: Uuid, replica: Uuid) -> Result<(), ControlError> {
        self.on(home, move |_| orphans::delete_remains(store, replica)).await?
    }

    /// The volumes of which it is on record who is in sync.
    pub(crate) async fn memberships(&self) -> Result<Vec<Uuid>, ControlError> {
        self.on(FIRST, orphans::memberships).await?
    }

    /// Who has the volume, by that record; none without one.
    pub(crate) async fn membership(&self, volume: Uuid) -> Result<Option<CopyFacts>, ControlError> {
        self.on(FIRST, move |inner| orphans::membership(inner, volume)).await?
    }

    /// When that record was written last.
    pub(crate) async fn membership_changed_at(&self, volume: Uuid) -> i64 {
        changed_at(self.inner.registry.join(format!("{volume}.json"))).await
    }

    /// The volumes that hosts see at a reactor.
    pub(crate) async fn exports(&self, home: usize) -> Result<Vec<Uuid>, ControlError> {
        self.on(home, |_| async { orphans::exports() }).await
    }

    /// How many tasks the reactors have.
    pub(crate) async fn tasks(&self) -> Result<usize, ControlError> {
        let mut tasks = 0;
        for home in 0..self.reactors() {
            // Without the one that asks.
            tasks += self.on(home, |_| async { reactor::task_count().saturating_sub(1) }).await?;
        }
        Ok(tasks)
    }

    /// The lvols in the open stores of a reactor.
    pub(crate) async fn lvols(&self, home: usize) -> Result<Vec<LvolFacts>, ControlError> {
        self.on(home, |_| async { lvols::facts() }).await
    }

    /// Those of one store.
    pub(crate) async fn lvols_of(&self, home: usize, store: Uuid) -> Result<Vec<LvolFacts>, ControlError> {
        self.on(home, move |_| async move { lvols::facts_in(store) }).await?
    }

    /// Those in the open stores of a reactor that are to be deleted.
    pub(crate) async fn deleting(&self, home: usize) -> Result<Vec<LvolFacts>, ControlError> {
        self.on(home, |_| async { lvols::deleting() }).await
    }

    /// The lvol that an internal one of a reactor's stores belongs to.
    pub(crate) async fn owner_of_internal(&self, home: usize, id: Uuid) -> Result<Option<Uuid>, ControlError> {
        self.on(home, move |_| async move { lvols::owner_of_internal(id) }).await
    }

    /// One lvol in full; none if it is gone.
    pub(crate) async fn lvol(
        &self,
        home: usize,
        store: Uuid,
        id: Uuid,
        with_usage: bool,
    ) -> Result<Option<LvolFacts>, ControlError> {
        self.on(home, move |_| lvols::look(store, id, with_usage)).await?
    }

    /// Changes an lvol, or makes one.
    pub(crate) async fn change_lvol(&self, home: usize, store: Uuid, change: LvolChange) -> Result<(), ControlError> {
        self.on(home, move |_| lvols::change(store, change)).await?
    }

    /// Sends an lvol's data, in order, until the end or until nobody takes it any more.
    pub(crate) async fn export_lvol(
        &self,
        home: usize,
        store: Uuid,
        id: Uuid,
        pieces: mpsc::Sender<LvolPiece>,
    ) -> Result<(), ControlError> {
        self.on(home, move |_| lvols::export(store, id, pieces)).await?
    }

    /// Makes an lvol of the pieces that come, if `whole` says in the end that they were all. False if it was there and complete.
    pub(crate) async fn import_lvol(
        &self,
        home: usize,
        store: Uuid,
        spec: lvol::CreateLvol,
        pieces: mpsc::Receiver<LvolPiece>,
        whole: oneshot::Receiver<()>,
    ) -> Result<bool, ControlError> {
        self.on(home, move |_| lvols::import(store, spec, pieces, whole)).await?
    }

    /// Notes that the replicas of a new volume are all in sync.
    pub(crate) async fn record_membership(&self, home: usize, spec: EngineSpec) -> Result<(), ControlError> {
        self.on(home, move |inner| engines::record_membership(inner, spec)).await?
    }

    /// Shows a volume to hosts. Their commands wait until its engine is started. Returns what counts them, and why some frontend of
    /// it is not as wanted yet: that is tried again.
    pub(crate) async fn export(
        &self,
        home: usize,
        spec: EngineSpec,
    ) -> Result<(Arc<Meter>, Result<(), ControlError>), ControlError> {
        self.on(home, move |inner| engines::export(inner, spec)).await?
    }

    /// Changes how hosts reach an exported volume.
    pub(crate) async fn set_frontends(
        &self,
        home: usize,
        volume: Uuid,
        frontends: Frontends,
    ) -> Result<(), ControlError> {
        self.on(home, move |inner| engines::set_frontends(inner, volume, frontends)).await?
    }

    /// Something is not shown to hosts yet, until what is returned is dropped: who does not find it shall try again.
    pub(crate) fn hide(&self) -> Hidden {
        self.inner.hidden.hide()
    }

    /// Starts the engine of an exported volume.
    pub(crate) async fn start_engine(&self, home: usize, spec: EngineSpec) -> Result<(), ControlError> {
        self.on(home, move |inner| engines::start(inner, spec)).await?
    }

    /// Waits until a volume is served, or its engine has ended, or `limit` is over.
    pub(crate) async fn wait_until_served(
        &self,
        home: usize,
        volume: Uuid,
        limit: Duration,
    ) -> Result<(), ControlError> {
        self.on(home, move |_| engines::wait_until_served(volume, limit)).await
    }

    /// Ends the export and the engine of a volume, in order. An absent one is a success.
    pub(crate) async fn stop_engine(&self, home: usize, volume: Uuid) -> Result<(), ControlError> {
        self.on(home, move |_| engines::stop(volume)).await
    }

    /// Forgets which replicas of a volume are in sync.
    pub(crate) async fn forget_membership(&self, volume: Uuid) -> Result<(), ControlError> {
        self.on(FIRST, move |inner| engines::forget_membership(inner, volume)).await?
    }

    /// How an export and its engine are; none if it is not there.
    pub(crate) async fn engine(&self, home: usize, volume: Uuid) -> Result<Option<ExportFacts>, ControlError> {
        self.on(home, move |_| async move { engines::facts_of(volume) }).await
    }

    /// How all exports of a reactor and their engines are.
    pub(crate) async fn engines(&self, home: usize) -> Result<BTreeMap<Uuid, ExportFacts>, ControlError> {
        self.on(home, |_| async { engines::facts() }).await
    }

    /// Cuts all in-sync replicas of a volume at one point.
    pub(crate) async fn snapshot(
        &self,
        home: usize,
        volume: Uuid,
        snapshot: Uuid,
        name: String,
    ) -> Result<(), ControlError> {
        self.on(home, move |_| engines::snapshot(volume, snapshot, name)).await?
    }

    /// Changes a volume on all its replicas; hosts are told of a new size.
    pub(crate) async fn change(
        &self,
        home: usize,
        volume: Uuid,
        name: String,
        change: VolumeChange,
    ) -> Result<(), ControlError> {
        self.on(home, move |_| engines::change(volume, name, change)).await?
    }

    /// Makes a replica of a volume that is out of sync the one that counts.
    pub(crate) async fn force(
        &self,
        home: usize,
        volume: Uuid,
        name: String,
        replica: Uuid,
    ) -> Result<(), ControlError> {
        self.on(home, move |_| engines::force(volume, name, replica)).await?
    }

    /// Pauses the rebuilds of a volume or lets them go on, and sets their rate. An absent engine is a success: it starts with this.
    pub(crate) async fn set_rebuild(
        &self,
        home: usize,
        volume: Uuid,
        settings: RebuildSettings,
    ) -> Result<(), ControlError> {
        self.on(home, move |_| async move { engines::set_rebuild(volume, settings) }).await
    }

    /// What hosts may do with a volume in a second from now on.
    pub(crate) async fn set_limits(
        &self,
        home: usize,
        volume: Uuid,
        limits: block_device::Limits,
    ) -> Result<(), ControlError> {
        self.on(home, move |_| async move { engines::set_limits(volume, limits) }).await
    }

    /// What it means, where the registry has no record of a volume that counts, to make one replica the one that does; with `force` it
    /// is done. None where the record counts.
    pub(crate) async fn recover_lost(
        &self,
        home: usize,
        spec: EngineSpec,
        replica: Uuid,
        force: bool,
    ) -> Result<Option<String>, ControlError> {
        self.on(home, move |inner| engines::recover_lost(inner, spec, replica, force)).await?
    }

    /// Runs that a snapshot of a volume has data in, or in which it differs from the snapshot `since`: at most `most` that end after `from`; none at the
    /// end. The outer None: there is no such snapshot.
    pub(crate) async fn snapshot_extents(
        &self,
        home: usize,
        (volume, snapshot): (Uuid, Uuid),
        since: Option<Uuid>,
        from: u64,
        most: usize,
    ) -> Result<Option<Vec<Range>>, ControlError> {
        self.on(home, move |_| backups::extents(volume, snapshot, since, from, most)).await?
    }

    /// A range of a snapshot of a volume. None: there is no such snapshot.
    pub(crate) async fn read_snapshot(
        &self,
        home: usize,
        (volume, snapshot): (Uuid, Uuid),
        range: Range,
    ) -> Result<Option<Vec<u8>>, ControlError> {
        self.on(home, move |_| backups::read(volume, snapshot, range)).await?
    }

    /// Writes to a volume that no host has.
    pub(crate) async fn write_volume(
        &self,
        home: usize,
        volume: Uuid,
        offset: u64,
        data: Vec<u8>,
    ) -> Result<(), ControlError> {
        self.on(home, move |_| backups::write(volume, offset, data)).await?
    }

    /// Makes a range of such a volume read as zeroes.
    pub(crate) async fn zero_volume(&self, home: usize, volume: Uuid, range: Range) -> Result<(), ControlError> {
        self.on(home, move |_| backups::zero(volume, range)).await?
    }

    /// Makes durable what was written to it.
    pub(crate) async fn flush_volume(&self, home: usize, volume: Uuid) -> Result<(), ControlError> {
        self.on(home, move |_| backups::flush(volume)).await?
    }

    /// The snapshots of a volume, oldest first.
    pub(crate) async fn snapshots(
        &self,
        home: usize,
        volume: Uuid,
        name: String,
    ) -> Result<Vec<SnapshotFacts>, ControlError> {
        self.on(home, move |_| engines::snapshots(volume, name)).await?
    }

    /// The size on record of a volume, in bytes; none if nothing is on record.
    pub(crate) async fn recorded_size(&self, volume: Uuid) -> Result<Option<u64>, ControlError> {
        self.on(FIRST, move |inner| engines::recorded_size(inner, volume)).await?
    }

    /// Lets engines of other nodes and hosts in.
    pub(crate) async fn listen(&self, config: &Config) -> anyhow::Result<()> {
        let config = config.clone();
        let listening = self.on(FIRST, move |inner| room::listen(inner, config)).await;
        listening.context("the first reactor does not answer")?
    }

    /// Lets no more hosts in. Those that are connected stay until their volume's engine stops.
    pub(crate) async fn stop_hosts(&self) {
        self.ending(FIRST, |_| async { room::stop_hosts() }).await;
    }

    /// Lets no more engines in, and closes all stores in order.
    pub(crate) async fn stop_replicas_and_stores(&self) {
        self.ending(FIRST, |_| async { room::stop_replicas() }).await;
        for home in 0..self.reactors() {
            self.ending(home, |_| stores::close_all()).await;
        }
    }

    /// Runs `work` on a reactor's thread.
    async fn on<F>(
        &self,
        home: usize,
        work: impl FnOnce(Arc<Inner>) -> F + Send + 'static,
    ) -> Result<F::Output, ControlError>
    where
        F: Future + 'static,
        F::Output: Send + 'static,
    {
        let inner = Arc::clone(&self.inner);
        let called = async { self.inner.handles[home].call(move || work(inner)).await.map_err(ControlError::from) };
        failpoint::step(std::any::type_name::<F>(), called).await
    }

    /// The same while the daemon ends: a reactor that does not answer any more has ended before.
    async fn ending<F>(&self, home: usize, work: impl FnOnce(Arc<Inner>) -> F + Send + 'static)
    where
        F: Future<Output = ()> + 'static,
    {
        if let Err(error) = self.on(home, work).await {
            tracing::error!(reactor = home, %error, "not stopped in order");
        }
    }
}
