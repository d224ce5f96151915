//! Stores and replicas on their reactor.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use lvol::{FormatOptions, Store, StoreError, StoreLimits};
use reactor::{Buffer, Disk, DiskOptions};
use replica::{Origin, ReplicaInfo, ReplicaServer};
use uuid::Uuid;

use super::errors::{change_error, disk_error, replica_error, store_error};
use super::room::{room, while_released};
use super::scrubs;
use super::{Backing, Inner, ReplicaFacts, ReplicaOrigin, ReplicaSpec, ScrubRun, StoreFacts, StoreSpec, WantedLimits};
use crate::control::ControlError;
use crate::failpoint;

/// How many bytes of what is to be formatted must be zero: where file systems and partition tables have their marks.
const PROBED: u64 = 128 << 10;

/// Looks whether what the store is to live in is unused.
pub(super) async fn check(spec: StoreSpec, limits: WantedLimits) -> Result<(), ControlError> {
    let Backing::Path { path, create } = &spec.backing else { return Ok(()) };
    let checked = async { check_unused(&spec, limits, &open_disk(path, *create).await?, path).await };
    failpoint::step("a disk is looked at", checked).await
}

/// Formats what the store lives in, or finishes that.
pub(super) async fn format(spec: StoreSpec, limits: WantedLimits) -> Result<(), ControlError> {
    let disk = match &spec.backing {
        Backing::Memory { size } => memory(spec.uuid, *size)?,
        Backing::Path { path, create } => open_disk(path, *create).await?,
    };
    let options = FormatOptions {
        cluster_size: spec.cluster_size,
        limits: limits.over(StoreLimits::default()),
        ..FormatOptions::new(spec.uuid, spec.name.clone())
    };
    let formatted = async { Store::format(&disk, &options).await.map_err(|error| store_error(&spec, error)) };
    failpoint::step("a store is formatted", formatted).await
}

/// Refuses what holds something else: a mistyped device must not cost somebody's file system. A store is left to the
/// format, which knows whether it is the same one; but not with other limits than are asked for.
async fn check_unused(spec: &StoreSpec, limits: WantedLimits, disk: &Disk, path: &Path) -> Result<(), ControlError> {
    if is_empty(disk).await.map_err(|error| disk_error(path, &error))? {
        return Ok(());
    }
    match Store::open(disk.clone()).await {
        Ok(store) => {
            let found = store.info();
            store.close().await.map_err(|error| store_error(spec, error))?;
            match found.uuid == spec.uuid {
                true => limits.compare(&spec.name, found.limits, found.cluster_size),
                false => Ok(()),
            }
        }
        Err(StoreError::NotAStore { .. }) => {
            let text = format!(
                "{path} is not empty, and what it holds is not a store: nothing was changed. If its content can go, \
                 empty it first (`truncate -s 0 {path}` for a file, `wipefs -a {path}` for a device)",
                path = path.display()
            );
            Err(ControlError::precondition("NOT_EMPTY", text))
        }
        Err(error) => Err(store_error(spec, error)),
    }
}

async fn is_empty(disk: &Disk) -> io::Result<bool> {
    let alignment = u64::from(disk.alignment());
    let length = disk.size().min(PROBED) / alignment * alignment;
    // At most PROBED.
    let (result, buffer) = disk.read(0, Buffer::new(length as usize)).await;
    result.map(|()| buffer.iter().all(|byte| *byte == 0))
}

/// Opens the store and serves its replicas.
pub(super) async fn open(inner: Arc<Inner>, spec: StoreSpec, last_scrub: Option<ScrubRun>) -> Result<(), ControlError> {
    if room().stores.borrow().contains_key(&spec.uuid) {
        // The answer to the call before was lost.
        return Ok(());
    }
    let disk = match &spec.backing {
        Backing::Memory { size } => memory(spec.uuid, *size)?,
        Backing::Path { path, .. } => failpoint::step("a disk is opened", open_disk(path, None)).await?,
    };
    failpoint::pass("a store is opened", false)?;
    let store = Store::open(disk).await.map_err(|error| store_error(&spec, error))?;
    let found = store.info();
    if found.uuid != spec.uuid {
        store.close().await.map_err(|error| store_error(&spec, error))?;
        let text = format!("it holds another store: {} (`{}`), not {}", found.uuid, found.name, spec.uuid);
        return Err(ControlError::precondition("OTHER_STORE", text).with("uuid", found.uuid));
    }
    store.set_hash_rate(inner.hash_rate);
    let server = ReplicaServer::new(store.clone(), &inner.replicas);
    if let Some(last) = last_scrub {
        scrubs::recall(Arc::clone(&inner), spec.uuid, &store, last);
    }
    room().stores.borrow_mut().insert(spec.uuid, server);
    Ok(failpoint::pass("a store is opened", true)?)
}

/// Closes a store in order. An absent one is a success.
pub(super) async fn close(store: Uuid) -> Result<(), ControlError> {
    let room = room();
    let server = room.stores.borrow_mut().remove(&store);
    let result = match server {
        None => Ok(()),
        Some(server) => {
            let store = server.store().clone();
            // Ends what its connections still do.
            drop(server);
            let closed = async { store.close().await.map_err(|error| ControlError::failed("STORE", error)) };
            failpoint::step("a store is closed", closed).await
        }
    };
    room.memory.borrow_mut().remove(&store);
    room.scrubs.borrow_mut().remove(&store);
    result
}

/// Makes a store as large as its file or device has become, or a part of it.
pub(super) async fn grow(store: Uuid, size: Option<u64>) -> Result<(), ControlError> {
    let store = server(store)?.store().clone();
    let grown = async { store.grow_store(size).await.map(drop).map_err(change_error) };
    failpoint::step("a store is grown", grown).await
}

/// Sets the limits of a store that are given.
pub(super) async fn set_limits(store: Uuid, limits: WantedLimits) -> Result<(), ControlError> {
    let store = server(store)?.store().clone();
    let now = store.info().limits;
    let set = async { store.set_limits(limits.over(now)).await.map(drop).map_err(change_error) };
    failpoint::step("the limits of a store are set", set).await
}

/// Closes all stores of this reactor. Those that fail to are logged; the next start recovers them.
pub(super) async fn close_all() {
    let stores: Vec<_> = room().stores.borrow().keys().copied().collect();
    for store in stores {
        if let Err(error) = close(store).await {
            tracing::error!(%store, %error, "a store was not closed in order");
        }
    }
}

/// The open stores of this reactor.
pub(super) fn facts() -> BTreeMap<Uuid, StoreFacts> {
    let room = room();
    let stores = room.stores.borrow();
    let facts = stores.iter().map(|(uuid, server)| {
        let info = server.store().info();
        let facts = StoreFacts {
            size: info.size,
            free: info.free,
            cluster_size: info.cluster_size,
            lvols: u32::try_from(info.lvols).unwrap_or(u32::MAX),
            disk_size: info.disk_size,
            provisioned: info.provisioned,
            limits: info.limits,
            metadata: info.metadata,
            metadata_room: info.metadata_room,
            failure: info.failure,
            scrub: scrubs::facts(*uuid, server.store()),
            work: server.store().work(),
        };
        (*uuid, facts)
    });
    facts.collect()
}

/// Makes a replica, or finds that it is there.
pub(super) async fn create_replica(
    store: Uuid,
    spec: ReplicaSpec,
    origin: Option<ReplicaOrigin>,
) -> Result<ReplicaFacts, ControlError> {
    let server = server(store)?;
    let spec = replica::ReplicaSpec {
        replica: spec.uuid,
        volume: spec.volume,
        name: spec.name,
        size: spec.size,
        block_size: spec.block_size,
    };
    let created = async {
        let created = match origin {
            None => server.create(&spec).await,
            Some(ReplicaOrigin { replica, snapshot }) => server.create_clone(&spec, Origin { replica, snapshot }).await,
        };
        created.map(describe).map_err(replica_error)
    };
    failpoint::step("a replica is made", created).await
}

/// Deletes a replica with its snapshots.
pub(super) async fn delete_replica(store: Uuid, replica: Uuid) -> Result<(), ControlError> {
    let server = server(store)?;
    let deleted = async { server.delete(replica, None).await.map_err(replica_error) };
    failpoint::step("a replica is deleted", deleted).await
}

/// The replicas in the open stores of this reactor.
pub(super) fn replicas() -> Vec<ReplicaFacts> {
    let room = room();
    let stores = room.stores.borrow();
    stores.values().flat_map(replicas_of).collect()
}

/// A replica in one of them; none if there is none.
pub(super) fn replica(uuid: Uuid) -> Option<ReplicaFacts> {
    let room = room();
    let stores = room.stores.borrow();
    let (server, info) = stores.values().find_map(|server| Some((server, server.info(uuid)?)))?;
    describe_all(server, vec![info]).pop()
}

fn replicas_of(server: &ReplicaServer) -> Vec<ReplicaFacts> {
    describe_all(server, server.list())
}

fn describe_all(server: &ReplicaServer, infos: Vec<ReplicaInfo>) -> Vec<ReplicaFacts> {
    let store = server.store();
    let bad = store.bad_regions();
    let owners = if bad.is_empty() { BTreeMap::new() } else { replica::owners(&store.lvols()) };
    let bad_of = |replica: Uuid| {
        let of_it = bad.iter().filter(|(lvol, _)| owners.get(lvol).is_some_and(|owner| owner.replica == Some(replica)));
        of_it.map(|(_, regions)| regions).sum()
    };
    let facts = infos.into_iter().map(describe);
    facts.map(|facts| ReplicaFacts { bad_regions: bad_of(facts.spec.uuid), ..facts }).collect()
}

pub(super) fn server(store: Uuid) -> Result<ReplicaServer, ControlError> {
    let server = room().stores.borrow().get(&store).cloned();
    server.ok_or_else(|| ControlError::not_found("open store", store))
}

fn describe(info: ReplicaInfo) -> ReplicaFacts {
    let spec = info.spec;
    ReplicaFacts {
        spec: ReplicaSpec {
            uuid: spec.replica,
            volume: spec.volume,
            name: spec.name,
            size: spec.size,
            block_size: spec.block_size,
        },
        store: info.store,
        epoch: info.epoch,
        snapshots: u32::try_from(info.snapshots.len()).unwrap_or(u32::MAX),
        used: info.used_bytes,
        failure: info.damage,
        bad_regions: 0,
    }
}

/// The memory of a store: made by the first call, the same for each further one.
fn memory(store: Uuid, size: u64) -> Result<Disk, ControlError> {
    let room = room();
    let mut disks = room.memory.borrow_mut();
    if let Some(disk) = disks.get(&store) {
        return Ok(disk.clone());
    }
    let disk =
        Disk::memory(size).map_err(|error| ControlError::exhausted(format!("{size} bytes of memory: {error}")))?;
    disks.insert(store, disk.clone());
    Ok(disk)
}

/// Opens a path. With `create` a file that does not exist is made, and one that does must have that size.
async fn open_disk(path: &Path, create: Option<u64>) -> Result<Disk, ControlError> {
    let options = DiskOptions { create, ..DiskOptions::default() };
    let opened = while_released(io::ErrorKind::WouldBlock, || Disk::open(path, &options)).await;
    let disk = opened.map_err(|error| disk_error(path, &error))?;
    match create {
        Some(size) if size != disk.size() => {
            let text = format!("{} has {} bytes, not {size}: leave the size out", path.display(), disk.size());
            Err(ControlError::precondition("OTHER_SIZE", text))
        }
        _ => Ok(disk),
    }
}
