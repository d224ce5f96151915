//! What the process of a node does: a store, its replicas, a listener, and engines when it is told to.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::pending;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use block_device::BlockDevice;
use engine::{Connector, Engine, EngineConfig, EngineError, NewReplica, ReplicaRecord};
use lvol::{FormatOptions, Store, StoreError};
use reactor::simulated::{NodeId, Observer, Random};
use reactor::{Disk, DiskOptions, sleep};
use replica::{
    Directory, LocalFuture, OpenError, OpenReplica, RemoteOptions, RemoteReplica, Replica, ReplicaListener,
    ReplicaServer, ReplicaSpec,
};
use uuid::Uuid;

use super::export::Export;
use super::plan::Timing;
use super::registry::{NodeRegistry, SharedRegistry};
use super::volume::{Volume, Way};

pub(super) const DISK: &str = "/disk";

/// Bytes of each node's disk.
pub(super) const DISK_SIZE: u64 = 128 << 20;

/// How long a process whose store has stopped goes on before it is started again.
const SUPERVISION: Duration = Duration::from_millis(400);

/// A node, as the test sees it. It outlives its processes.
pub(super) struct Node {
    pub(super) index: usize,
    pub(super) id: NodeId,
    pub(super) address: SocketAddr,
    pub(super) observer: Observer,
    pub(super) registry: Rc<SharedRegistry>,
    pub(super) timing: Timing,
    /// The highest epoch that each replica was seen to grant, on any node.
    pub(super) grants: Rc<RefCell<BTreeMap<Uuid, u64>>>,
    pub(super) volumes: Vec<Rc<Volume>>,
    /// Its disk has lied and lost its power: nobody counts on what is there.
    pub(super) distrusted: Cell<bool>,
    /// The replicas of the process that runs.
    server: RefCell<Option<ReplicaServer>>,
    /// The process that runs now is this one.
    process: Cell<u64>,
}

/// What every node knows.
#[derive(Clone)]
pub(super) struct Around {
    pub(super) observer: Observer,
    pub(super) registry: Rc<SharedRegistry>,
    pub(super) timing: Timing,
    pub(super) volumes: Vec<Rc<Volume>>,
    /// The highest epoch that each replica was seen to grant, on any node.
    pub(super) grants: Rc<RefCell<BTreeMap<Uuid, u64>>>,
}

pub(super) fn address(index: usize) -> SocketAddr {
    ([10, 0, 0, index as u8 + 1], 9601).into()
}

impl Node {
    /// A node that the registry and its volumes know of already.
    pub(super) fn new(index: usize, id: NodeId, around: &Around) -> Rc<Self> {
        let Around { observer, registry, timing, volumes, grants } = around.clone();
        Rc::new(Self {
            index,
            id,
            address: address(index),
            observer,
            registry,
            timing,
            volumes,
            grants,
            distrusted: Cell::new(false),
            server: RefCell::new(None),
            process: Cell::new(0),
        })
    }

    /// Formats the disk, whatever is there, and makes the replicas: before the first fault, or as a replacement.
    pub(super) async fn install(self: Rc<Self>) {
        let disk = open_disk();
        let uuid = Uuid::from_bytes([0x50 + self.index as u8; 16]);
        let options = FormatOptions { force: true, ..FormatOptions::new(uuid, "simulated") };
        Store::format(&disk, &options).await.expect("the disk is sound");
        let store = Store::open(disk).await.expect("it was just formatted");
        let server = ReplicaServer::new(store, &Directory::new());
        for volume in &self.volumes {
            volume.clones.borrow_mut().retain(|clone| clone.node != self.index);
            let Some(replica) = self.registry.replica_on(volume.id, self.index) else { continue };
            let spec = ReplicaSpec {
                replica,
                volume: volume.id,
                name: format!("v{}", volume.plan.number),
                size: volume.plan.size,
                block_size: volume.plan.block,
            };
            server.create(&spec).await.expect("the disk is sound");
            self.registry.keeps_copy(replica, false);
            volume.behind.iter().for_each(|behind| behind.forget(replica));
        }
        server.store().flush().await.expect("the disk is sound");
    }

    /// A process, from its start on.
    pub(super) async fn run(self: Rc<Self>) {
        let process = self.process.get() + 1;
        self.process.set(process);
        if self.distrusted.get() {
            self.observer.log(format!("n{}: made anew after its disk had lied", self.index));
            Rc::clone(&self).install().await;
            self.distrusted.set(false);
        }
        let store = self.open_store().await;
        let directory = Directory::new();
        let server = ReplicaServer::new(store.clone(), &directory);
        for info in server.list() {
            let granted = self.grants.borrow().get(&info.spec.replica).copied().unwrap_or(0);
            let (replica, epoch) = (info.spec.replica, info.epoch);
            assert!(epoch >= granted, "I12 broken: replica {replica} granted epoch {granted} and knows of {epoch}");
        }
        let _listener = ReplicaListener::bind(self.address, &directory, "n").expect("the port is free");
        *self.server.borrow_mut() = Some(server);
        self.registry.set_up(self.index, true);
        let _guard = Guard { node: Rc::clone(&self), process };
        self.observer.log(format!("n{} is ready", self.index));
        while store.info().failure.is_none() {
            sleep(SUPERVISION / 2).await;
        }
        // What a supervisor does with a daemon whose store has stopped.
        sleep(SUPERVISION).await;
        self.observer.log(format!("n{}: the store has stopped, the process is started again", self.index));
        self.observer.kill(self.id);
        pending::<()>().await;
    }

    async fn open_store(self: &Rc<Self>) -> Store {
        loop {
            match Store::open(open_disk()).await {
                Ok(store) => return store,
                Err(error @ (StoreError::Io { .. } | StoreError::Stopped { .. })) => {
                    self.observer.log(format!("n{}: {error}", self.index))
                }
                Err(error) => panic!("I27 broken: the store of n{} does not open: {error}", self.index),
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// The replicas, once the process has opened its store.
    pub(super) async fn server(&self) -> ReplicaServer {
        loop {
            if let Some(server) = &*self.server.borrow() {
                return server.clone();
            }
            sleep(Duration::from_millis(2)).await;
        }
    }

    /// Starts an engine and lets the volume's host use it until the host goes elsewhere.
    pub(super) async fn run_engine(self: Rc<Self>, volume: Rc<Volume>, path: u64) {
        let server = self.server().await;
        let registry = Rc::new(NodeRegistry {
            shared: Rc::clone(&self.registry),
            node: self.index,
            random: RefCell::new(Random::new(reactor::random())),
        });
        let remote = RemoteOptions {
            open_limit: self.timing.open_limit,
            ping_interval: self.timing.ping,
            silence_limit: self.timing.silence,
            node: format!("n{}", self.index),
            security: None,
        };
        let export = volume.is_exported.then(|| Export::new(&volume.plan, volume.size.get(), volume.limits.get()));
        let config = EngineConfig {
            meter: export.as_ref().map_or_else(Arc::default, |export| Arc::clone(&export.meter)),
            replica_deadline: self.timing.deadline,
            open_wait: self.timing.open_wait,
            lease: self.timing.lease,
            noted_regions: volume.plan.noted,
            remote: remote.clone(),
            ..EngineConfig::new(volume.id)
        };
        let connector = Rc::new(Watched { node: Rc::clone(&self), local: server, remote });
        let engine = loop {
            if !volume.is_on(path) {
                return;
            }
            match Engine::start_with(config.clone(), registry.clone(), connector.clone()).await {
                Ok(engine) => break engine,
                Err(EngineError::Registry(_)) => sleep(Duration::from_millis(20)).await,
                Err(EngineError::NoVolume(_)) => self.make_record_anew(&volume, &config, &registry, &connector).await,
                Err(error) => panic!("an engine of v{} does not start: {error}", volume.plan.number),
            }
        };
        if !volume.is_on(path) {
            return;
        }
        volume.note(format!("an engine has started on n{}: path {path}", self.index));
        *volume.engine.borrow_mut() = Some(Rc::clone(&engine));
        let device = Rc::clone(&engine) as Rc<dyn BlockDevice>;
        let way = match &export {
            Some(export) => self.way_through(export),
            None => Way { node: self.index, device, export: None },
        };
        volume.use_way(way, path, self.replacement(&volume, &engine));
        let error = match export {
            Some(export) => export.serve_until_lost(engine).await,
            None => engine.stopped().await.to_string(),
        };
        volume.log(&format!("the engine of path {path} has stopped: {error}"));
    }
}

impl Node {
    /// A way for the host of an exported volume that connects now.
    pub(super) fn way_through(&self, export: &Rc<Export>) -> Way {
        let connection = export.connect();
        let device = Rc::clone(&connection) as Rc<dyn BlockDevice>;
        Way { node: self.index, device, export: Some((Rc::clone(export), connection)) }
    }

    /// Tells whether a newer epoch is recorded than the engine's.
    pub(super) fn replacement(&self, volume: &Volume, engine: &Rc<Engine>) -> Rc<dyn Fn() -> bool> {
        let (record, late, id) = (Rc::clone(&self.registry), Rc::clone(engine), volume.id);
        Rc::new(move || record.record(id).epoch > late.status().epoch)
    }

    /// The registry has lost the record: what the replicas' copies say is put there, if that is certain.
    async fn make_record_anew(
        &self,
        volume: &Volume,
        config: &EngineConfig,
        registry: &NodeRegistry,
        connector: &Rc<Watched>,
    ) {
        let before = self.registry.record(volume.id);
        let members = before.replicas.iter().map(|known| NewReplica {
            replica: known.replica,
            node: known.node.clone(),
            address: known.address,
        });
        let away = self.registry.away_in_sync(volume.id);
        let survey = engine::survey_with(config, &members.collect::<Vec<_>>(), Rc::clone(connector) as Rc<_>).await;
        match survey.record() {
            Ok(record) => {
                let still_away = self.registry.away_in_sync(volume.id);
                let missing: Vec<_> = away.iter().filter(|(node, since)| still_away.get(node) == Some(since)).collect();
                // Whoever was in sync may be all there is of what was acknowledged.
                assert!(
                    missing.is_empty() || !self.registry.has_lost(volume.id),
                    "I6 broken: v{}: its record was made anew without {missing:?}",
                    volume.plan.number
                );
                let result = engine::restore(registry, None, &record).await;
                volume.note(format!("its record was made anew: {:?}", result.err()));
            }
            Err(error) => {
                volume.log(&error.to_string());
                sleep(Duration::from_millis(100)).await;
            }
        }
    }

    /// Sees which replicas of this node keep a copy of their volume's record: from then on they always will.
    pub(super) async fn look_for_copies(self: Rc<Self>) {
        let server = self.server().await;
        for volume in &self.volumes {
            let Some(replica) = self.registry.replica_on(volume.id, self.index) else { continue };
            if self.registry.has_copy(replica) {
                continue;
            }
            let open = OpenReplica { replica, volume: volume.id, epoch: 0, instance: Uuid::nil() };
            let known = match server.open_local(open).await {
                Ok(looked) => looked.membership().await,
                Err(_) => continue,
            };
            if known.is_ok_and(|known| known.content.is_some()) {
                self.registry.keeps_copy(replica, true);
            }
        }
    }
}

/// Lets go of what the process had, with the process.
struct Guard {
    node: Rc<Node>,
    process: u64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.node.process.get() == self.process {
            self.node.server.borrow_mut().take();
            self.node.registry.set_up(self.node.index, false);
        }
    }
}

/// Opens replicas as an engine does by itself, and looks at what is granted.
struct Watched {
    node: Rc<Node>,
    local: ReplicaServer,
    remote: RemoteOptions,
}

impl Connector for Watched {
    fn open(&self, record: &ReplicaRecord, open: OpenReplica) -> LocalFuture<'_, Result<Rc<dyn Replica>, OpenError>> {
        let address = record.address;
        Box::pin(async move {
            let known = self.node.grants.borrow().get(&open.replica).copied().unwrap_or(0);
            let replica = match address == self.node.address {
                true => self.local.open_local(open).await? as Rc<dyn Replica>,
                false => RemoteReplica::connect(address, &open, &self.remote).await? as Rc<dyn Replica>,
            };
            let epoch = open.epoch;
            if epoch == 0 {
                // It is looked at only.
                return Ok(replica);
            }
            let replica_id = open.replica;
            assert!(
                epoch >= known,
                "I12 broken: replica {replica_id} granted {epoch} although it had granted {known} before"
            );
            self.node.observer.log(format!("n{}: replica {replica_id} granted epoch {epoch}", self.node.index));
            let mut grants = self.node.grants.borrow_mut();
            let highest = grants.entry(replica_id).or_default();
            *highest = epoch.max(*highest);
            Ok(replica)
        })
    }
}

pub(super) fn open_disk() -> Disk {
    Disk::open(DISK.as_ref(), &DiskOptions::default()).expect("the disk is there and free")
}

/// What a replica holds: its head, then each snapshot with its uuid.
pub(super) struct Content {
    pub(super) head: Vec<u8>,
    pub(super) snapshots: Vec<(Uuid, Vec<u8>)>,
}

impl Node {
    /// Reads all that a replica of this size holds, at a new epoch.
    pub(super) async fn content(self: Rc<Self>, replica: Uuid, volume: Uuid, size: u64, epoch: u64) -> Content {
        let server = self.server().await;
        let open = OpenReplica { replica, volume, epoch, instance: Uuid::from_bytes([0xee; 16]) };
        let replica = server.open_local(open).await.expect("nothing is wrong any more, and the epoch is higher");
        let found = replica.granted().geometry.size();
        assert!(found >= size, "I39 broken: a replica in sync has {found} bytes, the volume {size}");
        let chain = replica.chain().await.expect("nothing is wrong any more");
        let mut content = Content { head: Vec::new(), snapshots: Vec::new() };
        for entry in chain {
            let mut bytes = Vec::new();
            let size = size.min(entry.size);
            for offset in (0..size).step_by(1 << 20) {
                let range = block_device::Range { offset, length: (1 << 20).min(size - offset) };
                let data = replica.read_lvol(entry.id, range).await.expect("nothing is wrong any more");
                bytes.extend(data.to_vec());
            }
            match entry.kind {
                replica::LvolKind::Head => content.head = bytes,
                replica::LvolKind::Snapshot => content.snapshots.push((entry.id, bytes)),
            }
        }
        content
    }
}
