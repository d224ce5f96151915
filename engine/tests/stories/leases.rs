//! Two engines of one volume, the older one cut off with a replica: it answers no read that misses a write of the newer one.

use std::cell::{Cell, RefCell};
use std::future::pending;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use block_device::{Error, ErrorKind, Request, execute};
use engine::{Engine, EngineConfig, MemberState, NewReplica, Registry, RegistryError, VolumeRecord};
use reactor::simulated::{NodeId, World};
use reactor::{now, sleep};
use replica::{LocalFuture, ReplicaServer};
use uuid::Uuid;

use crate::cluster::{DISK, SIZE, address, replica_id, start_replicas};
use crate::fakes::{BLOCK, FakeRegistry, VOLUME};
use crate::model::write;

/// The registry as one node reaches it, or not.
struct Reached {
    shared: Rc<FakeRegistry>,
    cut: Rc<Cell<bool>>,
}

impl Reached {
    async fn unless_cut<T>(&self, call: LocalFuture<'_, Result<T, RegistryError>>) -> Result<T, RegistryError> {
        match self.cut.get() {
            true => Err(io::Error::other("the registry is on the other side").into()),
            false => call.await,
        }
    }
}

impl Registry for Reached {
    fn load(&self, volume: Uuid) -> LocalFuture<'_, Result<Option<VolumeRecord>, RegistryError>> {
        Box::pin(self.unless_cut(self.shared.load(volume)))
    }

    fn store(&self, expected: Option<u64>, record: &VolumeRecord) -> LocalFuture<'_, Result<u64, RegistryError>> {
        Box::pin(self.unless_cut(self.shared.store(expected, record)))
    }

    fn set_aside(&self, volume: Uuid) -> LocalFuture<'_, Result<(), RegistryError>> {
        Box::pin(self.unless_cut(self.shared.set_aside(volume)))
    }

    fn remove(&self, volume: Uuid) -> LocalFuture<'_, Result<(), RegistryError>> {
        Box::pin(self.unless_cut(self.shared.remove(volume)))
    }

    fn list(&self) -> LocalFuture<'_, Result<Vec<Uuid>, RegistryError>> {
        Box::pin(self.unless_cut(self.shared.list()))
    }
}

type Shared<T> = Rc<RefCell<Option<T>>>;

/// Two nodes, each with a replica; an engine may run on either.
struct Pair {
    world: World,
    nodes: [NodeId; 2],
    registry: Rc<FakeRegistry>,
    /// Whether each node is cut off from the registry.
    cut: [Rc<Cell<bool>>; 2],
    servers: [Shared<ReplicaServer>; 2],
}

impl Pair {
    fn new(seed: u64) -> Self {
        let world = World::new(seed);
        let nodes = [0, 1].map(|node| world.add_node(address(node).ip()));
        let servers = [Shared::default(), Shared::default()];
        let replicas = (0..2).map(|node| NewReplica {
            replica: replica_id(node),
            node: format!("n{node}"),
            address: address(node),
        });
        let registry = FakeRegistry::with(VolumeRecord::new(VOLUME, SIZE, BLOCK as u32, replicas));
        let pair = Self { world, nodes, registry, cut: Default::default(), servers };
        for node in 0..2 {
            pair.world.add_disk(pair.nodes[node], DISK, 64 << 20, 4096);
            let shared = Rc::clone(&pair.servers[node]);
            pair.world.boot(pair.nodes[node], move || async move {
                let (server, _listener) = start_replicas(node).await;
                *shared.borrow_mut() = Some(server);
                pending::<()>().await;
            });
            let server = &pair.servers[node];
            assert!(pair.world.run_until(|| server.borrow().is_some(), Duration::from_secs(60)));
        }
        pair
    }

    /// Starts an engine on a node; whether it serves is another question.
    fn start(&self, node: usize) -> Rc<Engine> {
        let server = self.servers[node].borrow().clone().expect("the node runs");
        let registry = Rc::new(Reached { shared: Rc::clone(&self.registry), cut: Rc::clone(&self.cut[node]) });
        let config = EngineConfig {
            local: vec![(replica_id(node), server)],
            open_wait: Duration::from_millis(500),
            ..EngineConfig::new(VOLUME)
        };
        self.world.block_on(self.nodes[node], async move { Engine::start(config, registry).await.expect("started") })
    }

    /// Cuts the first node off: from the second, and from the registry.
    fn part(&self) {
        self.world.partition(self.nodes[0], self.nodes[1]);
        self.cut[0].set(true);
    }

    fn heal(&self) {
        self.world.heal_all();
        self.cut[0].set(false);
    }
}

async fn read(engine: &Engine) -> Result<u8, Error> {
    Ok(execute(engine, Request::read(0, BLOCK)).await?.to_vec()[0])
}

/// The newest byte that was acknowledged, by any engine.
type Newest = Rc<Cell<u8>>;

/// Reads through an engine until it stops: never less than what was acknowledged when the read began (I9). Counts the answers.
async fn read_on(engine: Rc<Engine>, newest: Newest, answered: Rc<Cell<u32>>) {
    loop {
        let known = newest.get();
        match read(&engine).await {
            Ok(byte) => {
                assert!(byte >= known, "I9 broken: read {byte}, and {known} had been acknowledged");
                answered.set(answered.get() + 1);
            }
            Err(error) if error.kind() == ErrorKind::Fenced => return,
            Err(_) => {}
        }
        sleep(Duration::from_millis(3)).await;
    }
}

async fn write_on(engine: Rc<Engine>, newest: Newest) {
    loop {
        let next = newest.get() + 1;
        if write(&*engine, 0, next).await.is_ok() {
            newest.set(next);
        }
        sleep(Duration::from_millis(200)).await;
    }
}

#[test]
fn an_engine_cut_off_with_a_replica_answers_no_stale_read() {
    // I9, I14
    for seed in crate::seeds(6) {
        let pair = Pair::new(seed);
        let (newest, answered) = (Newest::default(), Rc::default());
        let older = pair.start(0);
        let ready = Rc::clone(&older);
        pair.world.block_on(pair.nodes[0], async move { ready.ready().await.expect("it serves") });
        let (first, last) = (Rc::clone(&older), Rc::clone(&newest));
        pair.world.block_on(pair.nodes[0], async move { write(&*first, 0, 1).await.expect("acknowledged") });
        last.set(1);
        let reading =
            pair.world.spawn(pair.nodes[0], read_on(Rc::clone(&older), Rc::clone(&newest), Rc::clone(&answered)));
        pair.world.run_for(Duration::from_millis(300 * seed));
        pair.part();
        pair.world.run_for(Duration::from_millis(100));
        // It is killed at any moment while it takes over, and another one follows at once.
        for _ in 0..seed % 3 {
            let first = pair.start(1);
            pair.world.run_for(Duration::from_millis(700 * seed));
            drop(first);
        }
        let newer = pair.start(1);
        let (ready, start) = (Rc::clone(&newer), pair.world.now());
        pair.world.block_on(pair.nodes[1], async move { ready.ready().await.expect("it serves") });
        assert!(pair.world.now() - start <= Duration::from_secs(8));
        pair.world.spawn(pair.nodes[1], write_on(Rc::clone(&newer), Rc::clone(&newest)));
        let before = answered.get();
        pair.world.run_for(Duration::from_secs(20));
        assert_eq!(answered.get(), before, "seed {seed}: nobody confirms the older epoch any more");
        assert!(before > 100 && newest.get() > 50, "both were at it");
        pair.heal();
        assert!(pair.world.run_until(|| reading.is_done(), Duration::from_secs(10)), "the older one hears of its end");
        let registry = &pair.registry;
        let both = || (0..2).all(|node| registry.state(node) == MemberState::InSync);
        assert!(pair.world.run_until(both, Duration::from_secs(120)));
    }
}

#[test]
fn an_engine_that_was_paused_answers_nothing_stale_when_it_goes_on() {
    // I9, I14: its clock is what tells, not its timers.
    for seed in crate::seeds(4) {
        let pair = Pair::new(seed);
        let (newest, answered) = (Newest::default(), Rc::default());
        let older = pair.start(0);
        let ready = Rc::clone(&older);
        pair.world.block_on(pair.nodes[0], async move { ready.ready().await.expect("it serves") });
        for _ in 0..4 {
            pair.world.spawn(pair.nodes[0], read_on(Rc::clone(&older), Rc::clone(&newest), Rc::clone(&answered)));
        }
        pair.world.run_for(Duration::from_millis(1000 + 70 * seed));
        pair.world.pause(pair.nodes[0]);
        let newer = pair.start(1);
        let ready = Rc::clone(&newer);
        pair.world.block_on(pair.nodes[1], async move { ready.ready().await.expect("it serves") });
        pair.world.spawn(pair.nodes[1], write_on(Rc::clone(&newer), Rc::clone(&newest)));
        pair.world.run_for(Duration::from_secs(5));
        assert!(newest.get() > 10);
        pair.world.resume(pair.nodes[0]);
        pair.world.run_for(Duration::from_secs(20));
        assert!(matches!(older.status().state, engine::EngineState::Stopped { .. }), "{:?}", older.status());
    }
}

#[test]
fn who_opens_every_replica_in_sync_or_follows_an_orderly_end_waits_for_no_lease() {
    let pair = Pair::new(1);
    let older = pair.start(0);
    let ready = Rc::clone(&older);
    pair.world.block_on(pair.nodes[0], async move { ready.ready().await.expect("it serves") });
    // Both replicas are there, and the older engine lives.
    let newer = pair.start(1);
    let took = pair.world.block_on(pair.nodes[1], async move {
        let start = now();
        newer.ready().await.expect("it serves");
        newer.stop().await;
        now() - start
    });
    assert!(took < Duration::from_secs(1), "{took:?}");
    let error = pair.world.block_on(pair.nodes[0], async move { older.stopped().await });
    assert_eq!(error.kind(), ErrorKind::Fenced);
    // It has stopped in order: that its node is gone costs the time that opening waits, no more.
    pair.world.kill(pair.nodes[0]);
    let newer = pair.start(1);
    let took = pair.world.block_on(pair.nodes[1], async move {
        let start = now();
        newer.ready().await.expect("it serves");
        now() - start
    });
    assert!(took < Duration::from_secs(2), "{took:?}");
}
