//! Real stores in files, real connections over loopback, three reactors of the kernel.

use std::future::pending;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use engine::{Engine, EngineConfig, FileRegistry, MemberState, NewReplica, Registry, VolumeRecord};
use lvol::{FormatOptions, Store, StoreError};
use reactor::{Config, Disk, DiskOptions, Reactor};
use replica::{Directory, ReplicaListener, ReplicaServer, ReplicaSpec};
use uuid::Uuid;

use crate::fakes::{BLOCK, VOLUME};
use crate::model::Model;

const SIZE: u64 = 8 << 20;

fn replica_id(node: usize) -> Uuid {
    Uuid::from_bytes([node as u8 + 1; 16])
}

async fn start_replicas(path: PathBuf, node: usize, address: SocketAddr) -> (ReplicaServer, ReplicaListener) {
    let options = DiskOptions { create: Some(64 << 20), buffered: true, ..DiskOptions::default() };
    let disk = Disk::open(&path, &options).expect("a file");
    let store = match Store::open(disk.clone()).await {
        Ok(store) => store,
        Err(StoreError::NotAStore { .. }) => {
            Store::format(&disk, &FormatOptions::new(replica_id(node), "store")).await.expect("formatted");
            Store::open(disk).await.expect("just formatted")
        }
        Err(error) => panic!("the store does not open: {error}"),
    };
    let directory = Directory::new();
    let server = ReplicaServer::new(store, &directory);
    let name = "data".to_owned();
    let spec = ReplicaSpec { replica: replica_id(node), volume: VOLUME, name, size: SIZE, block_size: BLOCK as u32 };
    server.create(&spec).await.expect("created, or found");
    let listener = ReplicaListener::bind(address, &directory, "n").expect("a free port");
    (server, listener)
}

/// A node with a thread of its own; its replicas serve until it is dropped.
fn start_node(folder: &Path, node: usize, address: SocketAddr) -> (Reactor, SocketAddr) {
    let reactor = Reactor::start(Config { name: format!("n{node}"), ..Config::default() }).expect("io_uring");
    let path = folder.join(format!("{node}.store"));
    let (sender, receiver) = std::sync::mpsc::channel();
    let serve = move || async move {
        let (_server, listener) = start_replicas(path, node, address).await;
        sender.send(listener.local_address()).expect("the test waits");
        pending::<()>().await;
    };
    // Nobody waits for the end of serving.
    drop(reactor.handle().call(serve));
    let address = receiver.recv_timeout(Duration::from_secs(60)).expect("the node starts");
    (reactor, address)
}

async fn until_in_sync(engine: &Engine, count: usize) {
    let in_sync = || engine.status().replicas.iter().filter(|replica| replica.state == MemberState::InSync).count();
    let waiting = async {
        while in_sync() != count {
            reactor::sleep(Duration::from_millis(10)).await;
        }
    };
    reactor::timeout(Duration::from_secs(120), waiting).await.unwrap_or_else(|_| panic!("{:?}", engine.status()));
}

#[test]
fn three_reactors_over_loopback_lose_one_and_take_it_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
    let (one, first) = start_node(folder.path(), 1, any_port);
    let (two, second) = start_node(folder.path(), 2, any_port);
    let path = folder.path().to_owned();
    let ran = Reactor::run(&Config::default(), async move {
        let (server, listener) = start_replicas(path.join("0.store"), 0, any_port).await;
        let addresses = [listener.local_address(), first, second];
        let replicas = addresses.into_iter().enumerate().map(|(node, address)| NewReplica {
            replica: replica_id(node),
            node: format!("n{node}"),
            address,
        });
        std::fs::create_dir(path.join("volumes")).expect("the folder is new");
        let registry = Rc::new(FileRegistry::new(path.join("volumes")));
        registry.store(None, &VolumeRecord::new(VOLUME, SIZE, BLOCK as u32, replicas)).await.expect("stored");
        let local = vec![(replica_id(0), server)];
        let config = EngineConfig { local, open_wait: Duration::from_secs(1), ..EngineConfig::new(VOLUME) };
        let engine = Engine::start(config.clone(), Rc::clone(&registry) as Rc<_>).await.expect("started");
        engine.ready().await.expect("it serves");
        let model = Model::new(SIZE / BLOCK);
        model.run(&engine, 16, 2000).await;
        engine.snapshot(Uuid::from_bytes([0x51; 16]), "s").await.expect("cut");
        drop(two);
        model.run(&engine, 16, 2000).await;
        until_in_sync(&engine, 2).await;
        let (two, _) = start_node(&path, 2, second);
        model.run(&engine, 16, 2000).await;
        until_in_sync(&engine, 3).await;
        model.check_all(&engine).await;
        engine.stop().await;
        // All three are equal and clean: any of them alone has everything.
        drop(one);
        let engine = Engine::start(config, registry).await.expect("started");
        engine.ready().await.expect("it serves");
        model.check_all(&engine).await;
        engine.stop().await;
        drop(two);
    });
    ran.expect("io_uring");
}
