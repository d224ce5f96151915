//! What stands behind the protocol: made on the reactor that serves it.

use std::rc::Rc;

use anyhow::Context;
use block_device::{BlockDevice, Buffer, Geometry, MemoryDevice, NullDevice, Request, execute};
use engine::{Engine, EngineConfig, FileRegistry, NewReplica, Registry, VolumeRecord};
use lvol::{FormatOptions, Store};
use reactor::Disk;
use replica::{Directory, ReplicaListener, ReplicaServer, ReplicaSpec};
use uuid::Uuid;

/// Bytes of each device: more than the processor's caches hold.
pub(crate) const SIZE: u64 = 512 << 20;

const BLOCK_SIZE: u32 = 4096;

/// Room of a store beside its volume: superblocks, journal, checkpoints.
const STORE_OVERHEAD: u64 = 256 << 20;

/// Bytes of the writes that fill a device.
const FILL: usize = 1 << 20;

/// A device that keeps nothing.
pub(crate) fn null() -> anyhow::Result<Rc<dyn BlockDevice>> {
    Ok(Rc::new(NullDevice::new(geometry()?)))
}

/// Plain memory, all of it touched.
pub(crate) async fn memory() -> anyhow::Result<Rc<dyn BlockDevice>> {
    let device: Rc<dyn BlockDevice> = Rc::new(MemoryDevice::new(geometry()?)?);
    fill(&*device).await?;
    Ok(device)
}

/// A volume as `ashlard` serves it: an engine over one local replica in a store in memory, all of it written. `remote` more replicas
/// are on the same reactor, and reached over loopback.
pub(crate) async fn volume(remote: u128) -> anyhow::Result<Rc<dyn BlockDevice>> {
    let nowhere = ([127, 0, 0, 1], 1).into();
    let (replica, server) = replica(0, Disk::memory(SIZE + STORE_OVERHEAD)?, &Directory::new()).await?;
    let mut replicas = vec![NewReplica { replica, node: "bench".into(), address: nowhere }];
    for number in 1..=remote {
        let directory = Directory::new();
        let (replica, server) = self::replica(number, Disk::memory(SIZE + STORE_OVERHEAD)?, &directory).await?;
        let listener = ReplicaListener::bind(([127, 0, 0, 1], 0).into(), &directory, "bench")?;
        replicas.push(NewReplica { replica, node: format!("bench-{number}"), address: listener.local_address() });
        keep((server, listener));
    }
    engine((replica, server), replicas).await
}

/// The same over one local replica in a store on `disk`.
pub(crate) async fn volume_on(disk: Disk) -> anyhow::Result<Rc<dyn BlockDevice>> {
    let (replica, server) = replica(0, disk, &Directory::new()).await?;
    let nowhere = ([127, 0, 0, 1], 1).into();
    engine((replica, server), vec![NewReplica { replica, node: "bench".into(), address: nowhere }]).await
}

/// Bytes of a disk that has room for a volume.
pub(crate) const DISK_SIZE: u64 = SIZE + STORE_OVERHEAD;

const VOLUME: Uuid = Uuid::from_u128(2);

/// An empty replica in a new store.
async fn replica(number: u128, disk: Disk, directory: &Directory) -> anyhow::Result<(Uuid, ReplicaServer)> {
    Store::format(&disk, &FormatOptions::new(Uuid::from_u128(100 + number), "bench")).await?;
    let server = ReplicaServer::new(Store::open(disk).await?, directory);
    let replica = Uuid::from_u128(200 + number);
    let spec = ReplicaSpec { replica, volume: VOLUME, name: "bench".into(), size: SIZE, block_size: BLOCK_SIZE };
    server.create(&spec).await?;
    Ok((replica, server))
}

/// An engine, and all of its volume written.
async fn engine(local: (Uuid, ReplicaServer), replicas: Vec<NewReplica>) -> anyhow::Result<Rc<dyn BlockDevice>> {
    // The record changes when the engine starts, never with an I/O.
    let folder = tempfile::tempdir().context("no folder for the registry")?;
    let registry = FileRegistry::new(folder.path());
    registry.store(None, &VolumeRecord::new(VOLUME, SIZE, BLOCK_SIZE, replicas)).await?;
    let config = EngineConfig { local: vec![local], ..EngineConfig::new(VOLUME) };
    let engine = Engine::start(config, Rc::new(registry)).await?;
    engine.ready().await?;
    fill(&*engine).await?;
    keep(folder);
    Ok(engine)
}

/// Keeps something for as long as the reactor runs.
fn keep<T: 'static>(something: T) {
    reactor::spawn(async move {
        let _kept = something;
        std::future::pending::<()>().await;
    });
}

fn geometry() -> anyhow::Result<Geometry> {
    Ok(Geometry::new(SIZE, BLOCK_SIZE)?)
}

/// Writes all of a device, so that no read is answered from what was never written.
async fn fill(device: &dyn BlockDevice) -> anyhow::Result<()> {
    let mut data = Buffer::new(FILL);
    data.fill(0x5a);
    let data = data.freeze();
    for offset in (0..SIZE).step_by(FILL) {
        execute(device, Request::write(offset, data.clone())).await.context("cannot fill the device")?;
    }
    Ok(())
}
