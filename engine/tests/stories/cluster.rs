//! Real stores, replicas and connections on simulated nodes.

use std::cell::RefCell;
use std::future::pending;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use block_device::execute;
use engine::{
    Engine, EngineConfig, EngineState, EngineStatus, FileRegistry, MemberState, NewReplica, Registry, VolumeRecord,
};
use lvol::{FormatOptions, Store, StoreError};
use reactor::simulated::{NodeId, World};
use reactor::{Disk, DiskOptions};
use replica::{Directory, ReplicaListener, ReplicaServer, ReplicaSpec};
use uuid::Uuid;

use crate::fakes::{BLOCK, VOLUME};
use crate::model::{Model, write};

pub(crate) const SIZE: u64 = 4 << 20;
const BLOCKS: u64 = SIZE / BLOCK;
pub(crate) const DISK: &str = "/disk";

/// What a node's process has, once it runs.
type Shared<T> = Rc<RefCell<Option<T>>>;

pub(crate) fn replica_id(node: usize) -> Uuid {
    Uuid::from_bytes([node as u8 + 1; 16])
}

pub(crate) fn address(node: usize) -> SocketAddr {
    ([10, 0, 0, node as u8 + 1], 9601).into()
}

async fn open_store() -> Store {
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

/// What every node does when it starts.
pub(crate) async fn start_replicas(node: usize) -> (ReplicaServer, ReplicaListener) {
    let directory = Directory::new();
    let server = ReplicaServer::new(open_store().await, &directory);
    let spec = ReplicaSpec {
        replica: replica_id(node),
        volume: VOLUME,
        name: "data".to_owned(),
        size: SIZE,
        block_size: BLOCK as u32,
    };
    // It may have grown since.
    if server.info(spec.replica).is_none() {
        server.create(&spec).await.expect("created");
    }
    let listener = ReplicaListener::bind(address(node), &directory, "n").expect("the port is free");
    (server, listener)
}

/// What the first node does besides: registry and engine.
async fn start_engine(server: &ReplicaServer) -> Rc<Engine> {
    let registry = Rc::new(FileRegistry::new("/state/volumes"));
    if registry.load(VOLUME).await.expect("readable").is_none() {
        let replicas = (0..3).map(|node| NewReplica {
            replica: replica_id(node),
            node: format!("n{node}"),
            address: address(node),
        });
        registry.store(None, &VolumeRecord::new(VOLUME, SIZE, BLOCK as u32, replicas)).await.expect("stored");
    }
    let config = EngineConfig { local: vec![(replica_id(0), server.clone())], ..EngineConfig::new(VOLUME) };
    Engine::start(config, registry).await.expect("started")
}

/// Tells the test how the engine is, for as long as it runs.
async fn report(engine: Shared<Rc<Engine>>, status: Shared<EngineStatus>) {
    loop {
        let now = engine.borrow().as_ref().map(|engine| engine.status());
        *status.borrow_mut() = now;
        reactor::sleep(Duration::from_millis(5)).await;
    }
}

/// Three nodes; the first runs the engine.
struct Cluster {
    world: World,
    nodes: Vec<NodeId>,
    engine: Shared<Rc<Engine>>,
    /// The engine's, a few milliseconds old.
    status: Shared<EngineStatus>,
}

impl Cluster {
    fn new(seed: u64) -> Self {
        let world = World::new(seed);
        let nodes: Vec<_> = (0..3).map(|node| world.add_node(address(node).ip())).collect();
        let cluster = Self { world, nodes, engine: Shared::default(), status: Shared::default() };
        for node in 0..3 {
            cluster.world.add_disk(cluster.nodes[node], DISK, 64 << 20, 4096);
            cluster.boot(node);
        }
        cluster.serve();
        cluster
    }

    fn boot(&self, node: usize) {
        let (engine, status) = (Rc::clone(&self.engine), Rc::clone(&self.status));
        self.world.boot(self.nodes[node], move || async move {
            let (server, _listener) = start_replicas(node).await;
            if node == 0 {
                *engine.borrow_mut() = Some(start_engine(&server).await);
                report(engine, status).await;
            }
            pending::<()>().await;
        });
    }

    fn engine(&self) -> Rc<Engine> {
        self.engine.borrow().clone().expect("the engine runs")
    }

    fn is_serving(&self) -> bool {
        self.status().is_some_and(|status| status.state == EngineState::Serving)
    }

    fn serve(&self) {
        assert!(self.world.run_until(|| self.is_serving(), Duration::from_secs(120)), "it serves: {:?}", self.status());
    }

    fn status(&self) -> Option<EngineStatus> {
        self.status.borrow().clone()
    }

    fn all_in_sync(&self) {
        let in_sync = || {
            let status = self.status();
            status.is_some_and(|status| {
                status.replicas.iter().all(|replica| replica.state == MemberState::InSync && replica.connected)
            })
        };
        assert!(self.world.run_until(in_sync, Duration::from_secs(1200)), "all in sync: {:?}", self.status());
    }

    /// Ends a node's process, the engine with it on the first.
    fn end(&self, node: usize, power: bool) {
        if power {
            self.world.power_cut(self.nodes[node])
        } else {
            self.world.kill(self.nodes[node])
        }
        if node == 0 {
            self.engine.borrow_mut().take();
            self.status.borrow_mut().take();
        }
    }

    /// Runs requests of the model on the engine's node until they end, or the node does.
    fn run(&self, model: &Rc<Model>, count: u64) {
        let (engine, model) = (self.engine(), Rc::clone(model));
        self.world.block_on(self.nodes[0], async move { model.run(&engine, 6, count).await });
    }

    /// Stops in order, and compares what the stores hold, replica by replica.
    fn compare(&self, model: &Rc<Model>) {
        let (engine, checked) = (self.engine(), Rc::clone(model));
        self.world.block_on(self.nodes[0], async move {
            checked.check_all(&engine).await;
            engine.stop().await;
        });
        let contents: Vec<_> = (0..3).map(|node| self.content(node)).collect();
        assert!(contents.windows(2).all(|pair| pair[0] == pair[1]), "replicas in sync are equal");
        model.check_content(&contents[0][0]);
    }

    /// Does something to a store whose node does not run.
    fn on_store(&self, node: usize, act: impl AsyncFnOnce(ReplicaServer) + 'static) {
        self.world.block_on(self.nodes[node], async move {
            act(ReplicaServer::new(open_store().await, &Directory::new())).await;
        });
        self.end(node, false);
    }

    /// What a node's store holds of the replica, the newest if there are several: the head and each snapshot.
    fn content(&self, node: usize) -> Vec<Vec<u8>> {
        self.end(node, false);
        self.world.block_on(self.nodes[node], async {
            let store = open_store().await;
            let server = ReplicaServer::new(store.clone(), &Directory::new());
            let head = server.list().pop().expect("a replica").spec.replica;
            let mut contents = Vec::new();
            let mut next = Some(head);
            while let Some(lvol) = next {
                let device = store.open_lvol(lvol).await.expect("it opens");
                contents
                    .push(execute(&*device, block_device::Request::read(0, SIZE)).await.expect("readable").to_vec());
                next = store.lvols().into_iter().find(|info| info.uuid == lvol).and_then(|info| info.parent);
            }
            contents
        })
    }
}

#[test]
fn a_volume_on_three_nodes_survives_the_loss_of_one_and_takes_it_back() {
    for seed in crate::seeds(4) {
        let cluster = Cluster::new(seed);
        let model = Model::new(BLOCKS);
        cluster.run(&model, 200);
        cluster.end(2, seed % 2 == 0);
        cluster.run(&model, 200);
        let status = cluster.status().expect("it runs");
        assert!(matches!(status.replicas[2].state, MemberState::OutOfSync { .. }), "{status:?}");
        cluster.boot(2);
        cluster.run(&model, 200);
        cluster.all_in_sync();
        cluster.run(&model, 100);
        cluster.compare(&model);
    }
}

#[test]
fn killed_with_writes_in_flight_the_engine_comes_back_with_everything_acknowledged() {
    // I1, I7
    for seed in crate::seeds(4) {
        let cluster = Cluster::new(seed);
        let model = Model::new(BLOCKS);
        for _ in 0..3 {
            let (engine, running) = (cluster.engine(), Rc::clone(&model));
            cluster.world.spawn(cluster.nodes[0], async move { running.run(&engine, 8, 4000).await });
            cluster.world.run_for(Duration::from_millis(50 + 37 * seed));
            cluster.end(0, false);
            model.crashed();
            cluster.boot(0);
            cluster.serve();
            let (engine, checked) = (cluster.engine(), Rc::clone(&model));
            cluster.world.block_on(cluster.nodes[0], async move { checked.check_some(&engine, 200).await });
        }
        cluster.all_in_sync();
        cluster.compare(&model);
    }
}

#[test]
fn what_was_flushed_survives_a_power_cut_of_every_node() {
    // I4
    for seed in crate::seeds(4) {
        let cluster = Cluster::new(seed);
        let engine = cluster.engine();
        cluster.world.block_on(cluster.nodes[0], async move {
            for block in 0..50 {
                write(&*engine, block, 7).await.expect("acknowledged");
            }
            execute(&*engine, block_device::Request::Flush).await.expect("flushed");
            for block in 50..60 {
                write(&*engine, block, 8).await.expect("acknowledged");
            }
        });
        (0..3).rev().for_each(|node| cluster.end(node, true));
        (0..3).rev().for_each(|node| cluster.boot(node));
        cluster.serve();
        let engine = cluster.engine();
        cluster.world.block_on(cluster.nodes[0], async move {
            for block in 0..60 {
                let request = block_device::Request::read(block * BLOCK, BLOCK);
                let data = execute(&*engine, request).await.expect("readable").to_vec();
                assert!(data.iter().all(|byte| *byte == 7) || block >= 50, "block {block}");
            }
        });
        cluster.all_in_sync();
    }
}

#[test]
fn a_node_that_falls_silent_costs_no_more_than_the_deadline() {
    let cluster = Cluster::new(3);
    cluster.world.partition(cluster.nodes[0], cluster.nodes[1]);
    let engine = cluster.engine();
    let took = cluster.world.block_on(cluster.nodes[0], async move {
        let start = reactor::now();
        write(&*engine, 0, 7).await.expect("acknowledged");
        reactor::now() - start
    });
    assert!(took <= EngineConfig::new(VOLUME).replica_deadline * 5 / 4, "{took:?}");
    cluster.world.heal_all();
    cluster.all_in_sync();
}

#[test]
fn snapshots_and_rebuilds_leave_real_stores_equal() {
    // I17, I18, I24
    for seed in crate::seeds(4) {
        let cluster = Cluster::new(seed);
        let model = Model::new(BLOCKS);
        for number in 0..3 {
            cluster.run(&model, 100);
            let engine = cluster.engine();
            let id = Uuid::from_bytes([0x50 + number; 16]);
            cluster.world.block_on(cluster.nodes[0], async move { engine.snapshot(id, "s").await.expect("cut") });
            if number == 1 {
                cluster.end(1, seed % 2 == 0);
            }
        }
        cluster.run(&model, 100);
        cluster.boot(1);
        cluster.run(&model, 400);
        cluster.all_in_sync();
        cluster.compare(&model);
    }
}

#[test]
fn nodes_that_die_at_random_lose_nothing_that_was_acknowledged() {
    for seed in crate::seeds(4) {
        let cluster = Cluster::new(seed);
        let model = Model::new(BLOCKS);
        let mut random = cluster.world.random();
        for _ in 0..6 {
            let (engine, running) = (cluster.engine(), Rc::clone(&model));
            let writers = cluster.world.spawn(cluster.nodes[0], async move { running.run(&engine, 6, 300).await });
            cluster.world.run_for(Duration::from_millis(random.below(400)));
            let victim = random.below(3) as usize;
            match random.below(3) {
                0 => cluster.world.reset_connections(cluster.nodes[0], cluster.nodes[victim.max(1)]),
                _ => cluster.end(victim, false),
            }
            if victim == 0 && cluster.engine.borrow().is_none() {
                model.crashed();
            }
            cluster.world.run_for(Duration::from_millis(random.below(6000)));
            if !cluster.world.is_running(cluster.nodes[victim]) {
                cluster.boot(victim);
            }
            cluster.serve();
            if victim != 0 {
                cluster.world.run_until(|| writers.is_done(), Duration::from_secs(600));
            }
        }
        cluster.all_in_sync();
        cluster.compare(&model);
    }
}

#[test]
fn real_stores_go_back_delete_and_grow_together_and_stay_equal() {
    // I24, I26, I39
    for seed in crate::seeds(4) {
        let cluster = Cluster::new(seed);
        let model = Model::new(BLOCKS);
        let snapshot = |number: u8| Uuid::from_bytes([0x50 + number; 16]);
        for number in 0..3 {
            cluster.run(&model, 100);
            let engine = cluster.engine();
            cluster
                .world
                .block_on(cluster.nodes[0], async move { engine.snapshot(snapshot(number), "s").await.expect("cut") });
        }
        // From here on nothing is written before the volume goes back: the model stays what it is.
        let engine = cluster.engine();
        let kept = Rc::clone(&model);
        cluster.world.block_on(cluster.nodes[0], async move {
            kept.check_all(&engine).await;
            engine.delete_snapshot(snapshot(1)).await.expect("deleted");
            kept.check_all(&engine).await;
            for block in 0..40 {
                write(&*engine, block, 7).await.expect("acknowledged");
            }
            engine.snapshot(snapshot(5), "newer").await.expect("cut");
            engine.revert(snapshot(2), true).await.expect("done");
            kept.check_all(&engine).await;
            engine.grow(2 * SIZE).await.expect("grown");
            write(&*engine, BLOCKS + 3, 9).await.expect("in the new part");
        });
        match seed % 4 {
            0 => cluster.end(1, true),
            1 => cluster.end(0, false),
            2 => cluster.end(0, true),
            _ => cluster.end(2, false),
        }
        cluster.world.run_for(Duration::from_secs(6));
        (0..3).filter(|node| !cluster.world.is_running(cluster.nodes[*node])).for_each(|node| cluster.boot(node));
        cluster.serve();
        cluster.all_in_sync();
        assert_eq!(cluster.status().map(|status| status.replicas.len()), Some(3));
        cluster.run(&model, 100);
        cluster.compare(&model);
    }
}

#[test]
fn a_store_with_a_replica_that_was_let_go_takes_a_new_one() {
    // I24, I42, L2: both have the volume's snapshot, each its own.
    let new = Uuid::from_bytes([9; 16]);
    for seed in crate::seeds(4) {
        let cluster = Cluster::new(seed);
        let model = Model::new(BLOCKS);
        cluster.run(&model, 100);
        let engine = cluster.engine();
        cluster.world.block_on(cluster.nodes[0], async move {
            engine.snapshot(Uuid::from_bytes([0x50; 16]), "s").await.expect("cut");
        });
        cluster.run(&model, 100);
        // Its node is away: nobody deletes it.
        cluster.end(2, seed % 2 == 0);
        let engine = cluster.engine();
        cluster.world.block_on(cluster.nodes[0], async move {
            engine.remove_replica(replica_id(2)).await.expect("removed");
        });
        cluster.on_store(2, async move |server| {
            let old = server.info(replica_id(2)).expect("it is there still").spec;
            server.create(&ReplicaSpec { replica: new, ..old }).await.expect("created");
        });
        cluster.boot(2);
        let engine = cluster.engine();
        cluster.world.block_on(cluster.nodes[0], async move {
            let new = NewReplica { replica: new, node: "n2".to_owned(), address: address(2) };
            engine.add_replica(new).await.expect("added");
        });
        cluster.run(&model, 100);
        cluster.all_in_sync();
        cluster.end(2, false);
        cluster.on_store(2, async |server| server.delete(replica_id(2), None).await.expect("deleted"));
        cluster.boot(2);
        cluster.run(&model, 100);
        cluster.all_in_sync();
        cluster.compare(&model);
    }
}
