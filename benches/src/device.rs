//! What stands behind the protocol: made on the reactor that serves it.

use std::rc::Rc;

use anyhow::Context;
use block_device::{BlockDevice, Buffer, Geometry, MemoryDevice, NullDevice, Request, execute};
use engine::{Engine, EngineConfig, FileRegistry, NewReplica, Registry, VolumeRecord};
use lvol::{FormatOptions, Store};
use reactor::Disk;
use replica::{Directory, ReplicaServer, ReplicaSpec};
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

/// A volume as `ashlard` serves it: an engine over one local replica in a store in memory, all of it written.
pub(crate) async fn volume() -> anyhow::Result<Rc<dyn BlockDevice>> {
    let [store, volume, replica] = [1, 2, 3].map(Uuid::from_u128);
    let disk = Disk::memory(SIZE + STORE_OVERHEAD)?;
    Store::format(&disk, &FormatOptions::new(store, "bench")).await?;
    let server = ReplicaServer::new(Store::open(disk).await?, &Directory::new());
    let spec = ReplicaSpec { replica, volume, name: "bench".into(), size: SIZE, block_size: BLOCK_SIZE };
    server.create(&spec).await?;
    // The record changes when the engine starts, never with an I/O.
    let folder = tempfile::tempdir().context("no folder for the registry")?;
    let registry = FileRegistry::new(folder.path());
    let nowhere = ([127, 0, 0, 1], 1).into();
    let new = NewReplica { replica, node: "bench".into(), address: nowhere };
    registry.store(None, &VolumeRecord::new(volume, SIZE, BLOCK_SIZE, [new])).await?;
    let config = EngineConfig { local: vec![(replica, server)], ..EngineConfig::new(volume) };
    let engine = Engine::start(config, Rc::new(registry)).await?;
    engine.ready().await?;
    fill(&*engine).await?;
    Ok(engine)
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
