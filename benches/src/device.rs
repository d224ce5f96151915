//! What stands behind the protocol: made on the reactor that serves it.

use std::rc::Rc;

use anyhow::Context;
use block_device::{BlockDevice, Buffer, Geometry, MemoryDevice, NullDevice, Request, execute};
use lvol::{CreateLvol, FormatOptions, Store};
use reactor::Disk;
use uuid::Uuid;

/// Bytes of each device: more than the processor's caches hold.
pub(crate) const SIZE: u64 = 512 << 20;

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

/// A thin volume in a store in memory, all of it written.
pub(crate) async fn volume() -> anyhow::Result<Rc<dyn BlockDevice>> {
    let disk = Disk::memory(SIZE + STORE_OVERHEAD)?;
    let [store, volume] = [1, 2].map(Uuid::from_u128);
    Store::format(&disk, &FormatOptions::new(store, "bench")).await?;
    let store = Store::open(disk).await?;
    let spec = CreateLvol { uuid: volume, name: "bench".into(), size: SIZE, block_size: 4096, attributes: [].into() };
    store.create(&spec).await?;
    let device = store.open_lvol(volume)?;
    fill(&*device).await?;
    Ok(device)
}

fn geometry() -> anyhow::Result<Geometry> {
    Ok(Geometry::new(SIZE, 4096)?)
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
