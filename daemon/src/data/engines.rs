//! Engines and exports on their reactor.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use block_device::{BlockDevice, ErrorKind, Geometry, Limits, Meter, Space, SpaceOf, Standby};
use engine::{
    Engine, EngineConfig, EngineState, EngineStatus, MemberState, NewReplica, RebuildSettings, Registry, RegistryError,
    ReplicaStatus, VolumeRecord,
};
use proto::v1;
use replica::RemoteOptions;
use tokio::sync::Mutex;
use uuid::Uuid;

use super::errors::{engine_error, registry_error};
use super::frontends::Shown;
use super::happened;
use super::room::room;
use super::{EngineFacts, EngineSpec, ExportFacts, Inner, MemberFacts, MemberSpec, SnapshotFacts, VolumeChange};
use crate::control::{ControlError, Frontends};
use crate::failpoint;

/// A volume on its reactor: what hosts see, and the engine behind it.
pub(super) struct Export {
    shown: Rc<Shown>,
    device: Rc<Standby>,
    meter: Arc<Meter>,
    engine: RefCell<Option<Rc<Engine>>>,
    /// Held by a start until its engine is above, and by the end.
    starting: Mutex<()>,
}

/// Shows the volume to hosts. Their commands wait for the engine. The inner error is why some frontend is not as wanted yet.
pub(super) async fn export(
    inner: Arc<Inner>,
    spec: EngineSpec,
) -> Result<(Arc<Meter>, Result<(), ControlError>), ControlError> {
    if let Some(export) = find(spec.volume) {
        // The answer to the call before was lost, or it is asked for again.
        let shown = export.shown.set(&inner, spec.frontends).await;
        return Ok((Arc::clone(&export.meter), shown));
    }
    let geometry =
        Geometry::new(spec.size, spec.block_size).map_err(|error| ControlError::invalid("size_bytes", error))?;
    let meter = Arc::new(Meter::default());
    let device = Standby::new(geometry, spec.members.iter().find_map(space_of), Arc::clone(&meter));
    device.set_limits(spec.limits);
    let shown = Shown::new(spec.volume, spec.name, Rc::clone(&device));
    let export = Rc::new(Export {
        shown: Rc::clone(&shown),
        device,
        meter: Arc::clone(&meter),
        engine: RefCell::default(),
        starting: Mutex::default(),
    });
    // Before anything waits: whoever stops the volume meanwhile finds it.
    room().exports.borrow_mut().insert(spec.volume, export);
    let shown = failpoint::step("a volume is shown", shown.set(&inner, spec.frontends)).await;
    Ok((meter, shown))
}

/// What says how much space there is for a member on this reactor: its store. None for a member elsewhere.
fn space_of(member: &MemberSpec) -> Option<SpaceOf> {
    let (replica, store) = (member.replica, member.store?);
    Some(Box::new(move || {
        let room = room();
        let stores = room.stores.borrow();
        let server = stores.get(&store)?;
        Some(Space { used: server.info(replica)?.used_bytes, available: server.store().info().free })
    }))
}

/// Changes how hosts reach the volume.
pub(super) async fn set_frontends(inner: Arc<Inner>, volume: Uuid, wanted: Frontends) -> Result<(), ControlError> {
    let export = find(volume).ok_or_else(|| ControlError::not_found("export", volume))?;
    failpoint::step("frontends are changed", export.shown.set(&inner, wanted)).await
}

/// Starts the engine and puts it behind the export as soon as it serves.
pub(super) async fn start(inner: Arc<Inner>, spec: EngineSpec) -> Result<(), ControlError> {
    let export = find(spec.volume).ok_or_else(|| ControlError::not_found("export", spec.volume))?;
    let starting = Rc::clone(&export);
    let _starting = starting.starting.lock().await;
    if !find(spec.volume).is_some_and(|found| Rc::ptr_eq(&found, &export)) {
        return Err(ControlError::not_found("export", spec.volume));
    }
    let runs =
        |engine: &Rc<Engine>| matches!(engine.status().state, EngineState::Waiting { .. } | EngineState::Serving);
    if export.engine.borrow().as_ref().is_some_and(runs) {
        // The answer to the call before was lost, or who asked has ended: another engine would end this one, and the path with it (I14).
        return Ok(());
    }
    let registry = room().registry(&inner);
    let config = EngineConfig { meter: Arc::clone(&export.meter), ..config(&inner, &spec) };
    failpoint::step("a lost membership is restored", restore_lost(&*registry, &config, &spec)).await?;
    failpoint::step("addresses are updated", update_addresses(&*registry, &spec)).await?;
    failpoint::pass("an engine starts", false)?;
    let engine = Engine::start(config, registry).await.map_err(|error| engine_error(&spec.name, error))?;
    *export.engine.borrow_mut() = Some(Rc::clone(&engine));
    reactor::spawn(happened::tell(inner.events.clone(), inner.touches.clone(), spec.name, Rc::clone(&engine)));
    reactor::spawn(serve_until_lost(inner, export, engine));
    Ok(failpoint::pass("an engine starts", true)?)
}

fn config(inner: &Inner, spec: &EngineSpec) -> EngineConfig {
    EngineConfig {
        replica_deadline: inner.replica_deadline,
        local: local_replicas(spec),
        remote: RemoteOptions {
            node: inner.node.clone(),
            security: inner.security.clone(),
            ..RemoteOptions::default()
        },
        rebuilds: Arc::clone(&inner.rebuilds),
        rebuild: spec.rebuild,
        rebuild_guard: inner.rebuild_guard,
        ..EngineConfig::new(spec.volume)
    }
}

/// Makes the membership's record anew where the registry has lost it, or has never had it because the engine was another node's:
/// from the copies of the replicas, if these are enough. Replicas that no engine has had yet are equal.
async fn restore_lost(registry: &dyn Registry, config: &EngineConfig, spec: &EngineSpec) -> Result<(), ControlError> {
    if recorded(registry, spec.volume).await?.is_some() {
        return Ok(());
    }
    failpoint::pass("replicas are asked", false)?;
    let survey = engine::survey(config, &new_replicas(spec)).await;
    let record = match survey.is_untouched() {
        true => VolumeRecord::new(spec.volume, spec.size, spec.block_size, new_replicas(spec)),
        false => survey.record().map_err(|error| engine_error(&spec.name, error))?,
    };
    let restored =
        async { engine::restore(registry, None, &record).await.map_err(|error| engine_error(&spec.name, error)) };
    failpoint::step("a membership is written", restored).await?;
    Ok(())
}

/// What the registry says; the outer error is one that a test asked for.
async fn load(
    registry: &dyn Registry,
    volume: Uuid,
) -> Result<Result<Option<VolumeRecord>, RegistryError>, ControlError> {
    failpoint::step("a membership is read", async { Ok(registry.load(volume).await) }).await
}

/// The record, if there is one that can be read as such.
async fn recorded(registry: &dyn Registry, volume: Uuid) -> Result<Option<VolumeRecord>, ControlError> {
    match load(registry, volume).await? {
        Ok(record) => Ok(record),
        Err(error @ RegistryError::Damaged { .. }) => {
            tracing::error!(%volume, %error, "the replicas' copies are asked");
            Ok(None)
        }
        Err(error) => Err(registry_error(error)),
    }
}

fn new_replicas(spec: &EngineSpec) -> Vec<NewReplica> {
    let replica = |member: &MemberSpec| NewReplica {
        replica: member.replica,
        node: member.node.clone(),
        address: member.address,
    };
    spec.members.iter().map(replica).collect()
}

/// What it would mean to make `replica` the one that counts where the registry's record is lost or out of date; with `force` it
/// is done. None where the record counts.
pub(super) async fn recover_lost(
    inner: Arc<Inner>,
    spec: EngineSpec,
    replica: Uuid,
    force: bool,
) -> Result<Option<String>, ControlError> {
    let registry = room().registry(&inner);
    let record = recorded(&*registry, spec.volume).await?;
    let version = record.as_ref().map(|record| record.version);
    let survey = engine::survey(&config(&inner, &spec), &new_replicas(&spec)).await;
    if record.is_some_and(|record| !survey.knows_more_than(&record)) {
        return Ok(None);
    }
    let forced = survey.forced(replica).map_err(|error| engine_error(&spec.name, error))?;
    if force {
        engine::restore(&*registry, version, &forced).await.map_err(|error| engine_error(&spec.name, error))?;
    }
    Ok(Some(survey.consequence(replica)))
}

/// The replicas of the spec that are in stores of this reactor.
fn local_replicas(spec: &EngineSpec) -> Vec<(Uuid, replica::ReplicaServer)> {
    let room = room();
    let stores = room.stores.borrow();
    let local = spec.members.iter().filter_map(|member| Some((member.replica, stores.get(&member.store?)?.clone())));
    local.collect()
}

async fn serve_until_lost(inner: Arc<Inner>, export: Rc<Export>, engine: Rc<Engine>) {
    // An error means that it was stopped: its status says so.
    if engine.ready().await.is_ok() {
        // First what is reserved, then the commands that wait.
        export.shown.serve(&inner, &engine).await;
        export.device.serve(Rc::clone(&engine) as Rc<dyn BlockDevice>);
        // Its size may be another one than hosts were shown meanwhile.
        export.shown.refresh();
    }
    let stopped = engine.stopped().await;
    export.device.lift();
    if stopped.kind() == ErrorKind::Fenced {
        // Another engine has the volume (I14): this path leads nowhere any more, and hosts that have another one take that. What they
        // had sent is answered so too, not with an error of the data.
        export.shown.set_lost();
        export.device.end_waiting();
    }
}

/// Waits until the volume is served, or its engine has ended, or `limit` is over.
pub(super) async fn wait_until_served(volume: Uuid, limit: Duration) {
    let engine = find(volume).and_then(|export| export.engine.borrow().clone());
    if let Some(engine) = engine {
        // Whatever ends the wait, the caller looks at the state.
        let _ = reactor::timeout(limit, engine.ready()).await;
    }
}

/// Ends the export and the engine, in order. An absent one is a success.
pub(super) async fn stop(volume: Uuid) {
    let Some(export) = room().exports.borrow_mut().remove(&volume) else { return };
    export.shown.disconnect();
    // What waits for the engine is answered, so that connections can drain. What waits for limits is cancelled with its connection.
    export.device.end_waiting();
    export.shown.stop().await;
    // One that starts right now notes things of the volume: not after its end.
    let _starting = export.starting.lock().await;
    let engine = export.engine.take();
    if let Some(engine) = engine {
        engine.stop().await;
    }
    export.device.end();
}

/// Notes that the replicas of a volume are all in sync, since they were just made. One that is noted already stays as it is.
pub(super) async fn record_membership(inner: Arc<Inner>, spec: EngineSpec) -> Result<(), ControlError> {
    let record = VolumeRecord::new(spec.volume, spec.size, spec.block_size, new_replicas(&spec));
    let registry = room().registry(&inner);
    let recorded = async {
        match registry.store(None, &record).await {
            Ok(_) | Err(RegistryError::Conflict { .. }) => Ok(()),
            Err(error) => Err(registry_error(error)),
        }
    };
    failpoint::step("a membership is recorded", recorded).await
}

/// Takes addresses that the configuration has changed over into the record.
async fn update_addresses(registry: &dyn Registry, spec: &EngineSpec) -> Result<(), ControlError> {
    // An absent record is for the engine to complain about.
    let loaded = load(registry, spec.volume).await?;
    let Some(mut record) = loaded.map_err(registry_error)? else { return Ok(()) };
    let before = record.clone();
    for replica in &mut record.replicas {
        if let Some(member) = spec.members.iter().find(|member| member.replica == replica.replica) {
            replica.address = member.address;
        }
    }
    if record != before {
        let stored = async { registry.store(Some(before.version), &record).await.map_err(registry_error) };
        failpoint::step("a membership is written", stored).await?;
    }
    Ok(())
}

/// Forgets which replicas of a volume are in sync, and what hosts have reserved of it.
pub(super) async fn forget_membership(inner: Arc<Inner>, volume: Uuid) -> Result<(), ControlError> {
    let registry = room().registry(&inner);
    let removed = async { registry.remove(volume).await.map_err(registry_error) };
    failpoint::step("a membership is forgotten", removed).await
}

/// Cuts all in-sync replicas of a volume at one point.
pub(super) async fn snapshot(volume: Uuid, snapshot: Uuid, name: String) -> Result<(), ControlError> {
    let (_, engine) = running(volume)?;
    let cut = async { engine.snapshot(snapshot, &name).await.map_err(|error| engine_error(&name, error)) };
    failpoint::step("a volume is cut", cut).await
}

/// Changes a volume on all its replicas, and tells the hosts when its size is another one then.
pub(super) async fn change(volume: Uuid, name: String, change: VolumeChange) -> Result<(), ControlError> {
    let (export, engine) = running(volume)?;
    let changed = async {
        let done = match change {
            VolumeChange::DeleteSnapshot(snapshot) => engine.delete_snapshot(snapshot).await,
            VolumeChange::Revert { snapshot, discard_newer } => engine.revert(snapshot, discard_newer).await,
            VolumeChange::Grow(size) => engine.grow(size).await,
            VolumeChange::AddReplica(member) => {
                let MemberSpec { replica, node, address, .. } = member;
                engine.add_replica(NewReplica { replica, node, address }).await
            }
            VolumeChange::RemoveReplica(replica) => engine.remove_replica(replica).await,
        };
        done.map_err(|error| engine_error(&name, error))
    };
    failpoint::step("a volume is changed", changed).await?;
    // I39: it is durable on every replica in sync.
    export.shown.refresh();
    Ok(())
}

/// Makes a replica that is out of sync the one that counts.
pub(super) async fn force(volume: Uuid, name: String, replica: Uuid) -> Result<(), ControlError> {
    let (_, engine) = running(volume)?;
    let forced = async { engine.recover(replica).await.map_err(|error| engine_error(&name, error)) };
    failpoint::step("a volume is recovered", forced).await
}

/// How the rebuilds of a volume work from now on.
pub(super) fn set_rebuild(volume: Uuid, settings: RebuildSettings) {
    let engine = find(volume).and_then(|export| export.engine.borrow().clone());
    if let Some(engine) = engine {
        engine.set_rebuild(settings);
    }
}

/// What hosts may do with the volume in a second from now on. An absent export is a success: it begins with this.
pub(super) fn set_limits(volume: Uuid, limits: Limits) {
    if let Some(export) = find(volume) {
        export.device.set_limits(limits);
    }
}

/// The snapshots of a volume, oldest first.
pub(super) async fn snapshots(volume: Uuid, name: String) -> Result<Vec<SnapshotFacts>, ControlError> {
    let (_, engine) = running(volume)?;
    let listed = async { engine.snapshots().await.map_err(|error| engine_error(&name, error)) };
    let snapshots = failpoint::step("snapshots are listed", listed).await?;
    let facts = |entry: replica::ChainEntry| SnapshotFacts {
        uuid: entry.id,
        name: entry.name,
        created: entry.created,
        size: entry.size,
    };
    Ok(snapshots.into_iter().map(facts).collect())
}

pub(super) fn running(volume: Uuid) -> Result<(Rc<Export>, Rc<Engine>), ControlError> {
    let export = find(volume);
    let engine = export.as_ref().and_then(|export| export.engine.borrow().clone());
    export.zip(engine).ok_or_else(|| ControlError::not_found("engine", volume))
}

/// The size on record, which a grow may have changed when the daemon had no time left to note it; none without a record.
pub(super) async fn recorded_size(inner: Arc<Inner>, volume: Uuid) -> Result<Option<u64>, ControlError> {
    let record = load(&*room().registry(&inner), volume).await?.map_err(registry_error)?;
    Ok(record.map(|record| record.size))
}

/// How an export and its engine are; none if it is not there.
pub(super) fn facts_of(volume: Uuid) -> Option<ExportFacts> {
    let export = find(volume)?;
    let engine = export.engine.borrow().as_ref().map(|engine| describe(engine.status()));
    Some(ExportFacts { trouble: export.shown.trouble(), engine })
}

/// How all exports of this reactor and their engines are.
pub(super) fn facts() -> BTreeMap<Uuid, ExportFacts> {
    let volumes: Vec<_> = room().exports.borrow().keys().copied().collect();
    volumes.into_iter().filter_map(|volume| Some((volume, facts_of(volume)?))).collect()
}

fn find(volume: Uuid) -> Option<Rc<Export>> {
    room().exports.borrow().get(&volume).cloned()
}

pub(super) fn describe(status: EngineStatus) -> EngineFacts {
    let missing = status.replicas.iter().filter(|replica| replica.state != MemberState::InSync).count();
    let (state, reason) = match status.state {
        EngineState::Waiting { reason } => (v1::EngineState::Starting, reason),
        EngineState::Serving if missing == 0 => (v1::EngineState::Healthy, String::new()),
        EngineState::Serving => {
            let reason = format!("{missing} of {} replicas not in sync", status.replicas.len());
            (v1::EngineState::Degraded, reason)
        }
        EngineState::Stopping => (v1::EngineState::Stopping, String::new()),
        EngineState::Stopped { reason } => (v1::EngineState::Failed, reason),
    };
    let members = status.replicas.into_iter().map(|replica| describe_member(replica, status.size)).collect();
    EngineFacts { state, reason, epoch: status.epoch, size: status.size, members }
}

fn describe_member(status: ReplicaStatus, size: u64) -> MemberFacts {
    let lag = lag(&status, size);
    let (state, recorded) = match status.state {
        MemberState::InSync => (v1::MemberState::InSync, None),
        MemberState::Settling => (v1::MemberState::Settling, None),
        MemberState::Rebuilding => (v1::MemberState::Rebuilding, None),
        MemberState::OutOfSync { reason, .. } => (v1::MemberState::OutOfSync, Some(reason)),
    };
    MemberFacts {
        replica: status.replica,
        state,
        reason: status.trouble.or(recorded).unwrap_or_default(),
        copy: status.copy,
        next_try: status.next_try,
        departures: status.departures,
        connected: status.connected,
        repaired: status.repaired,
        unrepaired: status.unrepaired,
        lag,
        oldest_request: status.oldest_request,
    }
}

/// Bytes in which a replica may lack something that was acknowledged. All of the volume where nobody knows: then all of it is compared.
fn lag(status: &ReplicaStatus, size: u64) -> u64 {
    let copied = status.copy.as_ref().filter(|copy| copy.total > 0);
    match (&status.state, copied) {
        (MemberState::InSync | MemberState::Settling, _) => 0,
        (MemberState::Rebuilding, Some(copy)) => copy.total.saturating_sub(copy.done),
        _ => status.changed.unwrap_or(size).min(size),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(state: MemberState) -> ReplicaStatus {
        ReplicaStatus {
            replica: Uuid::nil(),
            node: "b".to_owned(),
            state,
            connected: true,
            local: false,
            trouble: None,
            departures: 0,
            next_try: None,
            changed: None,
            copy: None,
            repaired: 0,
            unrepaired: 0,
            oldest_request: None,
        }
    }

    #[test]
    fn a_replica_lags_by_what_it_may_lack() {
        const SIZE: u64 = 1 << 30;
        assert_eq!(lag(&status(MemberState::InSync), SIZE), 0);
        assert_eq!(lag(&status(MemberState::Settling), SIZE), 0, "it has all that was acknowledged");
        let away = status(MemberState::OutOfSync { reason: "no answer".to_owned(), since: 0 });
        assert_eq!(lag(&away, SIZE), SIZE, "nobody knows");
        let away = ReplicaStatus { changed: Some(3 << 20), ..away };
        assert_eq!(lag(&away, SIZE), 3 << 20);
        assert_eq!(lag(&away, 2 << 20), 2 << 20, "regions end behind the volume");
        let copy = |done, total| Some(engine::CopyProgress { done, total, ..engine::CopyProgress::default() });
        let back = ReplicaStatus { copy: copy(0, 0), changed: Some(5), ..status(MemberState::Rebuilding) };
        assert_eq!(lag(&back, SIZE), 5, "it has not begun");
        assert_eq!(lag(&ReplicaStatus { copy: copy(10, 30), ..back }, SIZE), 20);
    }
}
