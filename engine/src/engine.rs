//! The handle of an engine.

use std::rc::Rc;

use block_device::{Allocations, BlockDevice, Error, ErrorKind, Geometry, Range, Reply, Request, Segments};
use reactor::{bug, now};
use replica::ChainEntry;
use uuid::Uuid;

use crate::config::{EngineConfig, EngineError, EngineStatus, MIN_DEADLINE, ReplicaStatus};
use crate::connector::{Connector, NodeConnector};
use crate::copy::perform;
use crate::core::{Core, Phase};
use crate::rebuilds::RebuildSettings;
use crate::recording::NotRecorded;
use crate::regions::REGION;
use crate::registry::{NewReplica, Registry};
use crate::session::Tasks;

/// The one writer of a volume, on the reactor of the volume's local replica. A [`BlockDevice`] for frontends.
///
/// Dropping it without [`Engine::stop`] is what a crash would be: the next engine finds the volume unclean and settles its
/// replicas.
pub struct Engine {
    core: Rc<Core>,
    /// Ended when the engine is dropped.
    _tasks: Tasks,
}

impl Engine {
    /// Starts an engine: reads the record and returns; opening the replicas goes on in the background, again and again until
    /// it succeeds. Requests are answered with Unavailable until then: see [`Engine::ready`] and [`Engine::status`].
    pub async fn start(config: EngineConfig, registry: Rc<dyn Registry>) -> Result<Rc<Self>, EngineError> {
        let connector = NodeConnector { local: config.local.clone(), remote: config.remote.clone() };
        Self::start_with(config, registry, Rc::new(connector)).await
    }

    /// Starts an engine that gets its replicas from `connector`.
    pub async fn start_with(
        config: EngineConfig,
        registry: Rc<dyn Registry>,
        connector: Rc<dyn Connector>,
    ) -> Result<Rc<Self>, EngineError> {
        if config.replica_deadline < MIN_DEADLINE {
            let text = format!("a replica deadline of {:?} is below {MIN_DEADLINE:?}", config.replica_deadline);
            return Err(EngineError::Config(text));
        }
        let silent = config.remote.silence_limit + config.remote.ping_interval;
        if silent >= config.lease {
            // I35: reads would stop whenever a replica does.
            let lease = config.lease;
            let text =
                format!("a silent replica is found out after up to {silent:?}, which has to be less than {lease:?}");
            return Err(EngineError::Config(text));
        }
        let record = registry.load(config.volume).await?.ok_or(EngineError::NoVolume(config.volume))?;
        let geometry = Geometry::new(record.size, record.block_size);
        let geometry = geometry.map_err(|error| EngineError::Config(error.to_string()))?;
        let core = Core::new(config, registry, connector, record, geometry);
        let mut tasks = Tasks::default();
        tasks.spawn(Rc::clone(&core).pump());
        tasks.spawn(Rc::clone(&core).retry_busy());
        tasks.spawn(Rc::clone(&core).hurry());
        tasks.spawn(Rc::clone(&core).run_sessions());
        Ok(Rc::new(Self { core, _tasks: tasks }))
    }

    /// Waits until the volume is served.
    ///
    /// # Errors
    /// When the engine has stopped instead.
    pub async fn ready(&self) -> Result<(), EngineError> {
        let served = self.core.until(|| match self.core.stopped() {
            Some(error) => Some(Err(EngineError::Stopped(error.to_string()))),
            None => self.core.is_serving().then_some(Ok(())),
        });
        served.await
    }

    /// Waits until the engine has stopped, and says why.
    pub async fn stopped(&self) -> Error {
        self.core.until(|| self.core.stopped()).await
    }

    /// The engine now.
    pub fn status(&self) -> EngineStatus {
        let record = self.core.record.borrow();
        let members = self.core.members.borrow();
        let replicas = record.replicas.iter().enumerate().map(|(index, replica)| {
            let member = members.0.get(index);
            let open = member.and_then(|member| member.replica.as_ref());
            let damage = member.map(|member| member.damage.counts()).unwrap_or_default();
            ReplicaStatus {
                replica: replica.replica,
                node: replica.node.clone(),
                state: replica.state.clone(),
                connected: open.is_some_and(|open| open.failure().is_none()),
                local: open.is_some_and(|open| open.is_local()),
                trouble: member.and_then(|member| member.trouble.clone()),
                departures: member.map_or(0, |member| member.departures),
                next_try: member.and_then(|member| Some(member.next_try? - now())),
                copy: member.and_then(|member| member.copy.clone()),
                changed: member.and_then(|member| Some(member.changes.as_ref()?.regions.count() * REGION)),
                repaired: damage.0,
                unrepaired: damage.1,
                oldest_request: open.and_then(|open| {
                    let own = open.oldest().map(|since| now() - since);
                    own.max(open.reported_age())
                }),
            }
        });
        EngineStatus {
            volume: self.core.config.volume,
            epoch: record.epoch,
            size: self.core.geometry.get().size(),
            state: self.core.phase.borrow().state(),
            replicas: replicas.collect(),
            in_flight: self.core.flight.borrow().in_flight(),
            noted_regions: self.core.intents.borrow().count(),
            rebuild: self.core.rebuild.get(),
        }
    }

    /// Waits until the engine's state, or that of a replica, may have become another one after this was called.
    pub fn changed(&self) -> impl Future<Output = ()> + '_ {
        self.core.signals.told.notified()
    }

    /// Snapshots the volume on all replicas in sync at one point between acknowledged writes (I24). The same uuid again is no error.
    pub async fn snapshot(&self, id: Uuid, name: &str) -> Result<(), EngineError> {
        let (core, name) = (Rc::clone(&self.core), name.to_owned());
        to_the_end(async move { core.snapshot(id, &name).await }).await
    }

    /// The volume's snapshots, oldest first.
    pub async fn snapshots(&self) -> Result<Vec<ChainEntry>, EngineError> {
        self.core.snapshots().await
    }

    /// Runs that a snapshot has data in, or in which it differs from the snapshot `since`: at most `max` that end after byte `from`, in order; none
    /// at the end. Maps tell; nothing is read. The outer None: there is no such snapshot.
    ///
    /// # Errors
    /// When no replica in sync can say so now, or there is no snapshot `since`.
    pub async fn snapshot_extents(
        &self,
        snapshot: Uuid,
        since: Option<Uuid>,
        from: u64,
        max: usize,
    ) -> Result<Option<Vec<Range>>, EngineError> {
        self.core.snapshot_extents(snapshot, since, from, max).await
    }

    /// Reads a range of a snapshot, in steps between which hosts go first. None: there is no such snapshot.
    pub async fn read_snapshot(&self, snapshot: Uuid, range: Range) -> Result<Option<Segments>, EngineError> {
        self.core.read_snapshot(snapshot, range).await
    }

    /// Deletes a snapshot from all replicas. One that is not there is no error (I42). The space comes back in the
    /// background.
    pub async fn delete_snapshot(&self, id: Uuid) -> Result<(), EngineError> {
        let core = Rc::clone(&self.core);
        to_the_end(async move { core.delete_snapshot(id).await }).await
    }

    /// Makes the volume read as one of its snapshots did: what was written since is gone. No host should have it mounted.
    /// Requests wait meanwhile. After an error it is as before, or it is done when the engine serves again.
    ///
    /// # Errors
    /// When newer snapshots would be lost, unless `discard_newer` is set.
    pub async fn revert(&self, snapshot: Uuid, discard_newer: bool) -> Result<(), EngineError> {
        let core = Rc::clone(&self.core);
        to_the_end(async move { core.revert(snapshot, discard_newer).await }).await
    }

    /// Makes the volume larger while it is in use; durable on every replica in sync when it returns (I39). A size that it
    /// has already is fine (I30). Whoever shows the volume to hosts tells them afterwards.
    pub async fn grow(&self, size: u64) -> Result<(), EngineError> {
        let core = Rc::clone(&self.core);
        to_the_end(async move { core.grow(size).await }).await
    }

    /// Takes in a replica that was just made on a node: it is rebuilt in the background and counts once it is in sync. The
    /// same again is no error.
    pub async fn add_replica(&self, new: NewReplica) -> Result<(), EngineError> {
        let core = Rc::clone(&self.core);
        to_the_end(async move { core.add_replica(new).await }).await
    }

    /// Lets a replica go for good. One that does not belong to the volume is no error (I42).
    ///
    /// # Errors
    /// For the last replica that is in sync and in reach (I3).
    pub async fn remove_replica(&self, replica: Uuid) -> Result<(), EngineError> {
        let core = Rc::clone(&self.core);
        to_the_end(async move { core.remove_replica(replica).await }).await
    }

    /// Makes a replica that is out of sync the one that counts, because those in sync will not come back (I5, I6). What was
    /// acknowledged since it left is lost.
    ///
    /// # Errors
    /// When the volume is served, or that replica is in sync already, was being rebuilt, or does not answer.
    pub async fn recover(&self, replica: Uuid) -> Result<(), EngineError> {
        let core = Rc::clone(&self.core);
        to_the_end(async move { core.recover(replica).await }).await
    }

    /// The reservations of hosts, as they were left last; empty if there were none. Certain once the engine serves.
    pub fn reservations(&self) -> Vec<u8> {
        self.core.record.borrow().reservations.clone()
    }

    /// Keeps the reservations of hosts in place of those before, at most [`crate::MAX_RESERVATIONS`] bytes: when it returns the registry has them, and
    /// every replica in sync has a copy (I38).
    ///
    /// # Errors
    /// When nothing could be changed, or nobody knows: then the next engine has these or those before.
    pub async fn set_reservations(&self, reservations: Vec<u8>) -> Result<(), EngineError> {
        let core = Rc::clone(&self.core);
        to_the_end(async move { core.set_reservations(reservations).await }).await
    }

    /// Pauses rebuilds or lets them go on, and sets their rate. What runs follows at once. Not kept: the next start has what its
    /// configuration says.
    pub fn set_rebuild(&self, settings: RebuildSettings) {
        self.core.rebuild.set(settings);
        self.core.bucket.set_rate(settings.rate);
        self.core.signals.announce_change();
    }

    /// Ends in order: new requests are refused, those in flight end, everything is flushed, and the next start finds the
    /// volume clean. Waits for at most the replica deadline for requests in flight; what is left then is cut off, and
    /// the volume is not clean.
    pub async fn stop(&self) {
        if self.core.stopped().is_none() {
            let was_serving = self.core.is_serving();
            self.core.set_phase(if was_serving { Phase::Stopping } else { stopped() });
            if was_serving {
                self.core.end_in_order().await;
            }
        }
        // The session's end lets go of the replicas.
        self.core.until(|| self.core.members.borrow().0.is_empty().then_some(())).await;
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // They hold what holds them.
        self.core.watchers.take();
    }
}

/// Runs a change of all replicas in a task of its own: it goes on also when whoever asked stops waiting, since half of it on
/// some replicas would be worse than either end.
async fn to_the_end<T: 'static>(
    change: impl Future<Output = Result<T, EngineError>> + 'static,
) -> Result<T, EngineError> {
    let ended = |_| EngineError::Unavailable("the change was ended".to_owned());
    reactor::spawn(change).await.unwrap_or_else(|error| Err(ended(error)))
}

fn stopped() -> Phase {
    Phase::Stopped(Error::with_detail(ErrorKind::Unavailable, "the engine was stopped"))
}

impl Core {
    async fn end_in_order(&self) {
        let empty = self.until_ended(|| (self.flight.borrow().in_flight() == 0).then_some(()));
        let in_time = reactor::timeout(self.config.replica_deadline, empty).await.is_ok();
        let flushed =
            in_time && matches!(reactor::timeout(self.config.replica_deadline, self.flush_all()).await, Ok(true));
        if flushed {
            // Without it the next start knows less.
            let _closed_or_late = reactor::timeout(self.config.replica_deadline, self.close_notes()).await;
            let recorded = reactor::timeout(self.config.replica_deadline, self.record_clean()).await;
            if !matches!(recorded, Ok(Ok(()))) {
                // The next start settles, which is slower and as right.
                tracing::warn!(volume = %self.config.volume, "the volume could not be recorded clean");
            }
        }
        if self.stopped().is_none() {
            self.set_phase(stopped());
        }
    }

    async fn record_clean(&self) -> Result<(), NotRecorded> {
        self.change_record(|record| {
            record.clean = self.members.borrow().failing() == 0;
            record.clean
        })
        .await
    }

    async fn flush_all(&self) -> bool {
        if bug!("clean-without-a-flush") {
            return true;
        }
        let targets: Vec<_> = {
            let members = self.members.borrow();
            members.replicas(members.recorded()).map(|(_, replica)| Rc::clone(replica)).collect()
        };
        for replica in targets {
            if perform(&*replica, Request::Flush).await.is_err() {
                return false;
            }
        }
        true
    }
}

impl BlockDevice for Engine {
    fn geometry(&self) -> Geometry {
        self.core.geometry.get()
    }

    fn submit(&self, request: Request, reply: Reply) {
        self.core.submit(request, reply);
    }

    fn allocation(&self, from: u64, max: usize) -> Allocations<'_> {
        Box::pin(async move { self.core.allocation(from, max).await.ok() })
    }
}
