//! Replicas and a registry of plain memory, with faults to inject. Time and chance are the world's.

mod disk;
mod registry;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::time::Duration;

use block_device::{BlockDevice, Error, ErrorKind, Geometry, Outcome, Range, Reply, Request};
use engine::{Connector, EngineConfig, NewReplica, ReplicaRecord, Survey, VolumeRecord};
use reactor::{Instant, sleep, spawn};
use replica::{
    ChainEntry, DamagedRegion, Extents, Granted, LocalFuture, Membership, Note, OpenError, OpenReplica, Replica,
    ReplicaState,
};
use tokio::sync::Notify;
use uuid::Uuid;

pub(crate) use self::disk::{BLOCK, FakeDisk};
pub(crate) use self::registry::FakeRegistry;

pub(crate) const VOLUME: Uuid = Uuid::from_bytes([0xaa; 16]);

/// A fake node with one replica.
pub(crate) struct FakeNode {
    pub(crate) disk: RefCell<FakeDisk>,
    pub(crate) reachable: Cell<bool>,
    pub(crate) is_local: Cell<bool>,
    /// Each request takes up to this long.
    pub(crate) delay: Cell<Duration>,
    /// Requests wait for as long as this is set.
    pub(crate) stalled: Cell<bool>,
    /// What writes fail with.
    pub(crate) write_error: Cell<Option<ErrorKind>>,
    /// What reads fail with.
    pub(crate) read_error: Cell<Option<ErrorKind>>,
    /// What snapshots fail with.
    pub(crate) snapshot_error: Cell<Option<ErrorKind>>,
    /// What copies of the membership fail with.
    pub(crate) copy_error: Cell<Option<ErrorKind>>,
    /// There is no space for copies that need some.
    pub(crate) full_copies: Cell<bool>,
    /// The next write of blocks of this byte fails.
    pub(crate) refused: Cell<Option<u8>>,
    /// What notes fail with.
    pub(crate) note_error: Cell<Option<ErrorKind>>,
    /// How many requests are answered with Busy first.
    pub(crate) busy: Cell<u32>,
    pub(crate) writes_seen: Cell<u32>,
    pub(crate) reads_seen: Cell<u32>,
    pub(crate) notes_seen: Cell<u32>,
    /// How often a scrub found damage.
    findings: Cell<u32>,
    connections: RefCell<Vec<Weak<FakeReplica>>>,
    changed: Notify,
}

impl FakeNode {
    fn new(id: Uuid, size: u64, is_local: bool) -> Rc<Self> {
        Rc::new(Self {
            disk: RefCell::new(FakeDisk::new(id, size)),
            reachable: Cell::new(true),
            is_local: Cell::new(is_local),
            delay: Cell::new(Duration::ZERO),
            stalled: Cell::new(false),
            write_error: Cell::new(None),
            refused: Cell::new(None),
            read_error: Cell::new(None),
            snapshot_error: Cell::new(None),
            copy_error: Cell::new(None),
            full_copies: Cell::new(false),
            note_error: Cell::new(None),
            busy: Cell::new(0),
            writes_seen: Cell::new(0),
            reads_seen: Cell::new(0),
            notes_seen: Cell::new(0),
            findings: Cell::new(0),
            connections: RefCell::default(),
            changed: Notify::new(),
        })
    }

    /// The node is gone: connections die, and of the requests in flight each may have landed or not.
    pub(crate) fn kill(&self) {
        self.reachable.set(false);
        self.cut();
    }

    /// The node's machine loses power: what was not flushed may be lost.
    pub(crate) fn lose_power(&self) {
        self.kill();
        self.disk.borrow_mut().reboot();
    }

    /// Connections die; requests in flight may still land until the replica is opened again.
    pub(crate) fn cut(&self) {
        let connections: Vec<_> = self.connections.borrow().iter().filter_map(Weak::upgrade).collect();
        for connection in connections {
            connection.end(&Error::with_detail(ErrorKind::Unavailable, "the fake connection died"));
        }
    }

    /// The node is back.
    pub(crate) fn revive(&self) {
        self.reachable.set(true);
    }

    pub(crate) fn set_stalled(&self, stalled: bool) {
        self.stalled.set(stalled);
        self.changed.notify_waiters();
    }

    /// A scrub finds damage.
    pub(crate) fn find(&self) {
        self.findings.set(self.findings.get() + 1);
        self.changed.notify_waiters();
    }

    async fn unstalled(&self) {
        loop {
            let changed = self.changed.notified();
            if !self.stalled.get() {
                return;
            }
            changed.await;
        }
    }

    /// Whether it can be heard of.
    fn answers(&self) -> bool {
        self.reachable.get()
    }

    fn open(self: &Rc<Self>, open: OpenReplica) -> Result<Rc<dyn Replica>, OpenError> {
        if !self.reachable.get() {
            return Err(OpenError::Unreachable("the fake node is down".to_owned()));
        }
        if open.epoch == 0 {
            return Ok(self.connection(open));
        }
        // What older connections have in flight ends first: it lands or is dropped (I13, I15).
        let older: Vec<_> = self.connections.borrow_mut().drain(..).filter_map(|old| old.upgrade()).collect();
        self.disk.borrow_mut().grant(&open)?;
        for old in older {
            old.supersede(open.instance);
        }
        let replica = self.connection(open);
        self.connections.borrow_mut().push(Rc::downgrade(&replica));
        Ok(replica)
    }

    fn connection(self: &Rc<Self>, open: OpenReplica) -> Rc<FakeReplica> {
        let granted = self.disk.borrow().granted(open.epoch);
        Rc::new_cyclic(|me| FakeReplica {
            me: Weak::clone(me),
            node: Rc::clone(self),
            open,
            granted,
            flight: RefCell::default(),
            next: Cell::new(0),
            failure: RefCell::new(None),
            over: Cell::new(open.epoch == 0),
            confirmed: Cell::new(reactor::now()),
            failed: Notify::new(),
        })
    }
}

/// A connection to a fake node.
struct FakeReplica {
    me: Weak<Self>,
    node: Rc<FakeNode>,
    open: OpenReplica,
    granted: Granted,
    flight: RefCell<BTreeMap<u64, (Reply, Instant)>>,
    next: Cell<u64>,
    failure: RefCell<Option<Error>>,
    /// A newer grant came: nothing of this one has an effect any more.
    over: Cell<bool>,
    confirmed: Cell<Instant>,
    failed: Notify,
}

impl FakeReplica {
    fn end(&self, error: &Error) {
        if self.failure.borrow().is_some() {
            return;
        }
        *self.failure.borrow_mut() = Some(error.clone());
        self.failed.notify_waiters();
        for (_, (reply, _)) in self.flight.take() {
            reply.fail(error.clone());
        }
    }

    fn supersede(&self, instance: Uuid) {
        self.over.set(true);
        let kind = if instance == self.open.instance { ErrorKind::Aborted } else { ErrorKind::Fenced };
        self.end(&kind.into());
    }

    fn answer(&self, id: u64, outcome: Outcome) {
        let waiting = self.flight.borrow_mut().remove(&id);
        if let Some((reply, _)) = waiting {
            reply.complete(outcome);
        }
    }

    fn perform(&self, request: &Request) -> Outcome {
        let node = &self.node;
        if node.busy.get() > 0 {
            node.busy.set(node.busy.get() - 1);
            return Err(ErrorKind::Busy.into());
        }
        let injected = match request {
            Request::Read { .. } => node.read_error.get(),
            Request::Flush => None,
            Request::Write { data, .. }
                if node.refused.get().is_some_and(|byte| data.iter().all(|other| *other == byte)) =>
            {
                node.refused.take();
                Some(ErrorKind::ReadFailed)
            }
            _ => node.write_error.get(),
        };
        match injected {
            Some(kind) => Err(kind.into()),
            None => node.disk.borrow_mut().perform(request),
        }
    }

    fn control<T: 'static>(
        &self,
        act: impl FnOnce(&FakeNode) -> Result<T, Error> + 'static,
    ) -> LocalFuture<'_, Result<T, Error>> {
        Box::pin(async move {
            if let Some(error) = self.failure() {
                return Err(error);
            }
            self.pass_time().await;
            match self.failure() {
                Some(error) => Err(error),
                None => act(&self.node),
            }
        })
    }

    /// A change of the chain, which may fail as snapshots do.
    fn change(
        &self,
        change: impl FnOnce(&mut FakeDisk) -> Result<(), ErrorKind> + 'static,
    ) -> LocalFuture<'_, Result<(), Error>> {
        self.control(move |node| match node.snapshot_error.get() {
            Some(kind) => Err(kind.into()),
            None => Ok(change(&mut node.disk.borrow_mut())?),
        })
    }

    async fn pass_time(&self) {
        let most = self.node.delay.get().as_nanos() as u64;
        if most > 0 {
            sleep(Duration::from_nanos(reactor::random() % most)).await;
        }
        self.node.unstalled().await;
    }
}

impl BlockDevice for FakeReplica {
    fn geometry(&self) -> Geometry {
        self.granted.geometry
    }

    fn submit(&self, request: Request, reply: Reply) {
        if let Some(error) = self.failure() {
            return reply.fail(error);
        }
        let counter = if request.is_write() { &self.node.writes_seen } else { &self.node.reads_seen };
        counter.set(counter.get() + 1);
        let id = self.next.replace(self.next.get() + 1);
        self.flight.borrow_mut().insert(id, (reply, reactor::now()));
        let me = self.me.upgrade().expect("submitted through it");
        spawn(async move {
            me.pass_time().await;
            // A dead connection's request is a matter of chance (I10, I15), one of a replaced grant has no effect.
            let alive = me.failure().is_none();
            if me.over.get() || (!alive && reactor::random().is_multiple_of(2)) {
                return;
            }
            let outcome = me.perform(&request);
            me.answer(id, outcome);
        });
    }
}

impl Replica for FakeReplica {
    fn id(&self) -> Uuid {
        self.open.replica
    }

    fn granted(&self) -> Granted {
        Granted { geometry: self.node.disk.borrow().granted(0).geometry, ..self.granted }
    }

    fn is_local(&self) -> bool {
        self.node.is_local.get()
    }

    fn failure(&self) -> Option<Error> {
        self.failure.borrow().clone()
    }

    fn failed(&self) -> LocalFuture<'_, Error> {
        Box::pin(async move {
            loop {
                let failed = self.failed.notified();
                if let Some(error) = self.failure() {
                    return error;
                }
                failed.await;
            }
        })
    }

    fn fail(&self, error: Error) {
        self.end(&error);
    }

    fn oldest(&self) -> Option<Instant> {
        self.flight.borrow().values().map(|(_, since)| *since).min()
    }

    fn reported_age(&self) -> Option<Duration> {
        None
    }

    fn chain(&self) -> LocalFuture<'_, Result<Vec<ChainEntry>, Error>> {
        self.control(|node| Ok(node.disk.borrow().chain()))
    }

    fn snapshot(&self, id: Uuid, size: u64, name: &str) -> LocalFuture<'_, Result<(), Error>> {
        let name = name.to_owned();
        self.control(move |node| match node.snapshot_error.get() {
            Some(kind) => Err(kind.into()),
            None => {
                node.disk.borrow_mut().snapshot(id, size, name);
                Ok(())
            }
        })
    }

    fn delete_snapshot(&self, id: Uuid) -> LocalFuture<'_, Result<(), Error>> {
        self.change(move |disk| {
            disk.delete_snapshot(id);
            Ok(())
        })
    }

    fn revert(&self, snapshot: Uuid) -> LocalFuture<'_, Result<(), Error>> {
        self.change(move |disk| disk.revert(snapshot))
    }

    fn grow(&self, size: u64) -> LocalFuture<'_, Result<(), Error>> {
        self.change(move |disk| {
            disk.grow(size);
            Ok(())
        })
    }

    fn extents(&self, lvol: Uuid, range: Range, max: u32) -> LocalFuture<'_, Result<Extents, Error>> {
        self.control(move |node| Ok(node.disk.borrow().extents(lvol, range, max)))
    }

    fn read_lvol(&self, lvol: Uuid, range: Range) -> LocalFuture<'_, Outcome> {
        self.control(move |node| node.disk.borrow().try_read(lvol, range))
    }

    fn hashes(&self, lvol: Uuid, range: Range, granule: u32) -> LocalFuture<'_, Result<Vec<u128>, Error>> {
        self.control(move |node| {
            let data = node.disk.borrow().try_read(lvol, range)?.to_vec();
            Ok(data.chunks(granule as usize).map(replica::content_hash).collect())
        })
    }

    fn findings(&self) -> u32 {
        self.node.findings.get()
    }

    fn more_findings(&self, seen: u32) -> LocalFuture<'_, ()> {
        Box::pin(async move {
            loop {
                let changed = self.node.changed.notified();
                if self.findings() != seen {
                    return;
                }
                changed.await;
            }
        })
    }

    fn damage(&self) -> LocalFuture<'_, Result<Vec<DamagedRegion>, Error>> {
        self.control(|node| Ok(node.disk.borrow().damage()))
    }

    fn repair(&self, snapshot: Uuid, offset: u64, data: Vec<u8>) -> LocalFuture<'_, Result<(), Error>> {
        self.control(move |node| Ok(node.disk.borrow_mut().repair(snapshot, offset, &data)?))
    }

    fn set_note(&self, place: u8, content: &[u8], durable: bool) -> LocalFuture<'_, Result<(), Error>> {
        let content = content.to_vec();
        self.control(move |node| match node.note_error.get() {
            Some(kind) => Err(kind.into()),
            None => {
                node.notes_seen.set(node.notes_seen.get() + 1);
                node.disk.borrow_mut().set_note(place, content, durable);
                Ok(())
            }
        })
    }

    fn notes(&self) -> LocalFuture<'_, Result<Vec<Note>, Error>> {
        self.control(|node| match node.note_error.get() {
            Some(kind) => Err(kind.into()),
            None => Ok(node.disk.borrow().notes()),
        })
    }

    fn set_membership(&self, content: &[u8], attached: &[u8]) -> LocalFuture<'_, Result<(), Error>> {
        let (content, attached) = (content.to_vec(), attached.to_vec());
        self.control(move |node| match node.copy_error.get() {
            Some(kind) => Err(kind.into()),
            None if node.full_copies.get() && replica::needs_space(content.len(), attached.len()) => {
                Err(ErrorKind::NoSpace.into())
            }
            None => {
                let mut disk = node.disk.borrow_mut();
                (disk.membership, disk.attached) = (Some(content), Some(attached));
                Ok(())
            }
        })
    }

    fn membership(&self) -> LocalFuture<'_, Result<Membership, Error>> {
        self.control(|node| {
            let disk = node.disk.borrow();
            Ok(Membership { epoch: disk.epoch, content: disk.membership.clone(), attached: disk.attached.clone() })
        })
    }

    fn confirmed(&self) -> Instant {
        if self.failure().is_none() && self.node.answers() {
            self.confirmed.set(reactor::now());
        }
        self.confirmed.get()
    }

    fn reset(&self) -> LocalFuture<'_, Result<(), Error>> {
        self.control(|node| {
            node.disk.borrow_mut().reset();
            Ok(())
        })
    }

    fn set_state(&self, state: ReplicaState) -> LocalFuture<'_, Result<(), Error>> {
        self.control(move |node| {
            node.disk.borrow_mut().state = state;
            Ok(())
        })
    }

    fn close(&self) {
        self.end(&ErrorKind::Aborted.into());
    }
}

/// A volume's fake nodes; the first is the engine's own.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Rc<FakeNode>>,
    pub(crate) registry: Rc<FakeRegistry>,
}

impl Cluster {
    /// `count` replicas of `size` bytes, equal and empty.
    pub(crate) fn new(count: usize, size: u64) -> Rc<Self> {
        Self::with_spares(count, 0, size)
    }

    /// The same, and nodes with replicas that do not belong to the volume yet.
    pub(crate) fn with_spares(count: usize, spares: usize, size: u64) -> Rc<Self> {
        let nodes = (0..count + spares).map(|index| FakeNode::new(new_replica(index).replica, size, index == 0));
        let nodes: Vec<_> = nodes.collect();
        let replicas = (0..count).map(new_replica);
        let registry = FakeRegistry::with(VolumeRecord::new(VOLUME, size, BLOCK as u32, replicas));
        Rc::new(Self { nodes, registry })
    }

    /// Starts an engine without waiting for it to serve.
    pub(crate) async fn start(self: &Rc<Self>) -> Rc<engine::Engine> {
        self.start_with(config()).await
    }

    async fn start_with(self: &Rc<Self>, config: EngineConfig) -> Rc<engine::Engine> {
        let connector = Rc::new(FakeConnector(Rc::clone(self)));
        engine::Engine::start_with(config, Rc::clone(&self.registry) as Rc<_>, connector).await.expect("it starts")
    }

    /// Asks the replicas of these nodes, and those that they name, what they know.
    pub(crate) async fn survey(self: &Rc<Self>, nodes: &[usize]) -> Survey {
        let members: Vec<_> = nodes.iter().map(|node| new_replica(*node)).collect();
        engine::survey_with(&config(), &members, Rc::new(FakeConnector(Rc::clone(self)))).await
    }

    /// Starts an engine and waits until it serves.
    pub(crate) async fn serve(self: &Rc<Self>) -> Rc<engine::Engine> {
        self.serve_with(config()).await
    }

    /// The same with another configuration.
    pub(crate) async fn serve_with(self: &Rc<Self>, config: EngineConfig) -> Rc<engine::Engine> {
        let engine = self.start_with(config).await;
        engine.ready().await.expect("it serves");
        engine
    }
}

/// The replica of a node.
pub(crate) fn new_replica(index: usize) -> NewReplica {
    NewReplica {
        replica: Uuid::from_bytes([index as u8 + 1; 16]),
        node: format!("n{index}"),
        address: ([10, 0, 0, index as u8 + 1], 9601).into(),
    }
}

pub(crate) fn config() -> EngineConfig {
    EngineConfig { open_wait: Duration::from_secs(1), ..EngineConfig::new(VOLUME) }
}

struct FakeConnector(Rc<Cluster>);

impl Connector for FakeConnector {
    fn open(&self, record: &ReplicaRecord, open: OpenReplica) -> LocalFuture<'_, Result<Rc<dyn Replica>, OpenError>> {
        let node = self.0.nodes.iter().find(|node| node.disk.borrow().id == record.replica);
        let node = Rc::clone(node.expect("the record names the cluster's replicas"));
        Box::pin(async move {
            sleep(Duration::from_millis(1)).await;
            node.open(open)
        })
    }
}
