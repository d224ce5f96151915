//! A simulated node with a store and its replicas.

use std::cell::RefCell;
use std::future::pending;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use block_device::{BlockDevice, Error, ErrorKind, Outcome, Range, Request, Slice, execute};
use lvol::{FormatOptions, Store, StoreError};
use reactor::simulated::{NodeId, World};
use reactor::{Disk, DiskOptions};
use replica::{Directory, OpenReplica, ReplicaListener, ReplicaServer, ReplicaSpec, Security};
use uuid::Uuid;

pub(crate) const DISK: &str = "/disk";
pub(crate) const VOLUME: Uuid = Uuid::from_bytes([0xaa; 16]);
pub(crate) const REPLICA: Uuid = Uuid::from_bytes([1; 16]);
pub(crate) const SIZE: u64 = 4 << 20;
pub(crate) const BLOCK: u64 = 4096;
pub(crate) const EVERYWHERE: Range = Range { offset: 0, length: u64::MAX };

pub(crate) fn address() -> SocketAddr {
    ([10, 0, 0, 1], 9601).into()
}

pub(crate) fn spec() -> ReplicaSpec {
    ReplicaSpec { replica: REPLICA, volume: VOLUME, name: "data".to_owned(), size: SIZE, block_size: BLOCK as u32 }
}

pub(crate) fn open(epoch: u64, instance: u8) -> OpenReplica {
    OpenReplica { replica: REPLICA, volume: VOLUME, epoch, instance: Uuid::from_bytes([instance; 16]) }
}

/// The server of a node, once it runs.
pub(crate) type Server = Rc<RefCell<Option<ReplicaServer>>>;

/// A world with a node that has a disk (10.0.0.1) and one that has none.
pub(crate) fn world(seed: u64) -> (World, NodeId, NodeId) {
    let world = World::new(seed);
    let node = world.add_node([10, 0, 0, 1].into());
    let engine = world.add_node([10, 0, 0, 2].into());
    world.add_disk(node, DISK, 64 << 20, 4096);
    (world, node, engine)
}

/// Starts the node's process: opens the store, or formats it, and listens.
pub(crate) fn boot(world: &World, node: NodeId) -> Server {
    boot_with(world, node, None)
}

/// The same, for connections that are kept private.
pub(crate) fn boot_with(world: &World, node: NodeId, security: Option<Arc<dyn Security>>) -> Server {
    let server = Server::default();
    let shared = Rc::clone(&server);
    world.boot(node, move || async move {
        let directory = Directory::new();
        let running = ReplicaServer::new(open_store().await, &directory);
        let _listener = ReplicaListener::bind_with(address(), &directory, "b", security).expect("the port is free");
        *shared.borrow_mut() = Some(running);
        pending::<()>().await;
    });
    assert!(world.run_until(|| server.borrow().is_some(), Duration::from_secs(60)), "the node starts");
    server
}

pub(crate) async fn open_store() -> Store {
    let disk = Disk::open(DISK.as_ref(), &DiskOptions::default()).expect("the disk is there");
    match Store::open(disk.clone()).await {
        Ok(store) => store,
        Err(StoreError::NotAStore { .. }) => {
            Store::format(&disk, &FormatOptions::new(Uuid::from_bytes([0x5e; 16]), "store")).await.expect("formatted");
            Store::open(disk).await.expect("just formatted")
        }
        Err(error) => panic!("the store does not open: {error}"),
    }
}

pub(crate) async fn write(device: &dyn BlockDevice, block: u64, byte: u8) -> Outcome {
    execute(device, Request::write(block * BLOCK, Slice::from(&vec![byte; BLOCK as usize][..]))).await
}

pub(crate) async fn read(device: &dyn BlockDevice, block: u64) -> Result<u8, Error> {
    let data = execute(device, Request::read(block * BLOCK, BLOCK)).await?.to_vec();
    assert!(data.len() == BLOCK as usize && data.iter().all(|byte| *byte == data[0]));
    Ok(data[0])
}

pub(crate) fn kind<T>(outcome: Result<T, Error>) -> Option<ErrorKind> {
    outcome.err().map(|error| error.kind())
}
