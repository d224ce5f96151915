//! What volumes cost that nobody uses: nothing (L1).

use std::cell::Cell;
use std::future::pending;
use std::rc::Rc;
use std::time::Duration;

use engine::{Engine, EngineConfig, FileRegistry, NewReplica, Registry, VolumeRecord};
use reactor::simulated::World;
use replica::ReplicaSpec;
use uuid::Uuid;

use crate::cluster::{DISK, SIZE, address, start_replicas};
use crate::fakes::{BLOCK, VOLUME};

const VOLUMES: u8 = 20;
/// Longer than anything that is left to be done after a start: maps that leave memory, a checkpoint.
const SETTLED: Duration = Duration::from_secs(600);

#[test]
fn volumes_that_nobody_uses_wake_nobody() {
    let world = World::new(1);
    let node = world.add_node(address(0).ip());
    world.add_disk(node, DISK, 64 << 20, 4096);
    let served = Rc::new(Cell::new(false));
    let told = Rc::clone(&served);
    world.boot(node, move || async move {
        let (server, listener) = start_replicas(0).await;
        let registry = Rc::new(FileRegistry::new("/state/volumes"));
        let mut engines = Vec::new();
        for number in 0..VOLUMES {
            let (volume, replica) = (Uuid::from_bytes([100 + number; 16]), Uuid::from_bytes([200 + number; 16]));
            assert_ne!(volume, VOLUME);
            let block_size = BLOCK as u32;
            let spec = ReplicaSpec { replica, volume, name: "idle".to_owned(), size: SIZE, block_size };
            server.create(&spec).await.expect("created");
            let new = NewReplica { replica, node: "n0".to_owned(), address: address(0) };
            registry.store(None, &VolumeRecord::new(volume, SIZE, block_size, [new])).await.expect("stored");
            let config = EngineConfig { local: vec![(replica, server.clone())], ..EngineConfig::new(volume) };
            let engine = Engine::start(config, Rc::clone(&registry) as Rc<dyn Registry>).await.expect("started");
            engine.ready().await.expect("served");
            engines.push(engine);
        }
        told.set(true);
        pending::<()>().await;
        drop((server, listener, engines));
    });
    assert!(world.run_until(|| served.get(), Duration::from_secs(60)), "they are served soon");
    world.run_for(SETTLED);
    let before = world.events();
    world.run_for(Duration::from_secs(3600));
    assert_eq!(world.events() - before, 0, "nothing happens in an hour in which nobody wants anything");
}
