//! One machine with a store: volumes in use, volumes and snapshots that come and go, crashes, recovery; over and over.
//!
//! After each crash the store opens (I27), has every lvol whose creation was acknowledged and none whose deletion was (I26),
//! each of them reads as the model allows (I4, I7), and each snapshot as it did before (I24). In the end everything is
//! deleted, and no space is missing (I26).

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use block_device::BlockDevice;
use lvol::{CreateLvol, FormatOptions, LvolInfo, LvolState, SnapshotSpec, Store, StoreError};
use reactor::simulated::{DiskFault, DiskFaultKind, NodeId, Observer, Random, World};
use reactor::{Disk, DiskOptions, sleep, spawn};
use uuid::Uuid;

use crate::host::{Errors, Frozen, Host, Overlaps, Shape};
use crate::model::Crash;
use crate::{Options, Report};

const DISK: &str = "/store";
const DISK_SIZE: u64 = 64 << 20;

/// Blocks a volume. They are few, so that requests meet.
const BLOCKS: u64 = 48;

/// How many lvols there are at most: each keeps its clusters.
const LVOLS: usize = 16;

const CRASHES: u32 = 6;

/// A healthy disk.
pub(super) fn sound(options: Options) -> Report {
    run(options, Errors::Forbidden)
}

/// A disk whose reads, writes and syncs fail now and then.
pub(super) fn faulty(options: Options) -> Report {
    run(options, Errors::Expected)
}

fn run(options: Options, errors: Errors) -> Report {
    let world = World::new(options.seed);
    world.keep_log(options.log_lines);
    let node = world.add_node([10, 0, 0, 1].into());
    let mut random = world.random();
    let sector = if random.one_in(2) { 512 } else { 4096 };
    world.add_disk(node, DISK, DISK_SIZE, sector);
    let story =
        Rc::new(Story { observer: world.observer(), sector: u64::from(sector), errors, lvols: RefCell::default() });
    world.block_on(node, Rc::clone(&story).begin());
    for _ in 0..CRASHES {
        if errors == Errors::Expected {
            break_disk(&world, node, &mut random);
        }
        world.spawn(node, Rc::clone(&story).life(Random::new(random.next_u64())));
        let limit = Duration::from_millis(2) * (1_u32 << random.below(9));
        world.run_for(random.duration(&(Duration::ZERO..=limit)));
        let crash = if random.one_in(2) { Crash::Kill } else { Crash::PowerCut };
        match crash {
            Crash::Kill => world.kill(node),
            Crash::PowerCut => world.power_cut(node),
        }
        story.crash(crash);
    }
    world.clear_disk_faults(node, DISK);
    world.block_on(node, Rc::clone(&story).end());
    Report { trace_hash: world.trace_hash(), events: world.events() }
}

fn break_disk(world: &World, node: NodeId, random: &mut Random) {
    world.clear_disk_faults(node, DISK);
    for kind in [DiskFaultKind::FailReads, DiskFaultKind::FailWrites, DiskFaultKind::FailSyncs] {
        if random.one_in(2) {
            world.add_disk_fault(node, DISK, DiskFault::new(kind).with_probability(0.01));
        }
    }
}

/// What the world outside of the machine knows.
struct Story {
    observer: Observer,
    /// Bytes that a power cut leaves whole.
    sector: u64,
    errors: Errors,
    lvols: RefCell<BTreeMap<Uuid, Lvol>>,
}

#[derive(Clone)]
struct Lvol {
    content: Content,
    existence: Existence,
    /// A volume that is used all the time; the others come and go.
    permanent: bool,
    /// The snapshots that it reads through.
    chain: Vec<Uuid>,
}

#[derive(Clone)]
enum Content {
    Head(Host),
    Snapshot(Frozen),
}

/// Whether an lvol is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Existence {
    Certain,
    /// Its creation or deletion was asked for and not answered: a crash decides.
    Open,
}

impl Story {
    async fn begin(self: Rc<Self>) {
        let disk = open_disk();
        let uuid = Uuid::from_bytes(reactor::random_bytes());
        Store::format(&disk, &FormatOptions::new(uuid, "simulated")).await.expect("the disk is empty and sound");
        let store = Store::open(disk).await.expect("the store was just formatted");
        for block_size in [512, 4096] {
            self.create(&store, block_size, true).await;
        }
    }

    /// From the start of the process to its end.
    async fn life(self: Rc<Self>, mut random: Random) {
        let Some(store) = self.open().await else { return };
        self.verify(&store).await;
        let heads: Vec<(Uuid, Host)> = self.heads(|lvol| lvol.permanent);
        for (uuid, host) in heads {
            let Some(device) = self.open_lvol(&store, uuid).await else { return };
            let (workers, requests) = (1 + random.below(4) as u32, random.below(100) as u32);
            spawn(async move { host.work(device, workers, requests).await });
        }
        loop {
            sleep(Duration::from_micros(random.below(20_000))).await;
            self.administer(&store, &mut random).await;
        }
    }

    /// Everything is there, and everything goes.
    async fn end(self: Rc<Self>) {
        let Some(store) = self.open().await else { panic!("I27 broken: a sound disk, and the store does not open") };
        self.verify(&store).await;
        // Heads before the snapshots that they read through, the youngest of those first.
        while !self.lvols.borrow().is_empty() {
            let free = self.childless();
            assert!(!free.is_empty(), "some lvol has no children");
            for uuid in free {
                store.delete(uuid).await.expect("nobody reads through it");
                self.lvols.borrow_mut().remove(&uuid);
            }
        }
        store.flush().await.expect("the disk is sound");
        sleep(Duration::from_secs(1)).await;
        let info = store.info();
        let there = info.free_clusters + info.pending_clusters;
        assert_eq!(there, info.clusters, "I26 broken: nothing is left, and space is missing");
        store.close().await.expect("the disk is sound");
    }

    async fn open(&self) -> Option<Store> {
        match Store::open(open_disk()).await {
            Ok(store) => Some(store),
            Err(error) => {
                assert!(self.tolerates(&error), "I27 broken: the store does not open: {error}");
                self.observer.log(format!("the store does not open: {error}"));
                None
            }
        }
    }

    /// Compares what is there with what must be, and reads all of it.
    async fn verify(&self, store: &Store) {
        let found: BTreeMap<Uuid, LvolInfo> = store.lvols().into_iter().map(|info| (info.uuid, info)).collect();
        self.observer.log(format!("{} lvols are there", found.len()));
        for (uuid, info) in &found {
            assert!(self.lvols.borrow().contains_key(uuid), "I26 broken: nobody knows of lvol {uuid}");
            let damaged = matches!(info.state, LvolState::Damaged { .. });
            assert!(!damaged || self.errors == Errors::Expected, "I27 broken: {:?}", info.state);
        }
        self.lvols.borrow_mut().retain(|uuid, lvol| {
            assert!(lvol.existence == Existence::Open || found.contains_key(uuid), "I26 broken: lvol {uuid} is gone");
            lvol.existence = Existence::Certain;
            found.contains_key(uuid)
        });
        self.learn_chains(&found);
        let lvols: Vec<(Uuid, Lvol)> = self.lvols.borrow().iter().map(|(uuid, lvol)| (*uuid, lvol.clone())).collect();
        for (uuid, lvol) in lvols {
            let Some(device) = self.open_lvol(store, uuid).await else { continue };
            match lvol.content {
                Content::Head(host) => host.verify(&*device).await,
                Content::Snapshot(frozen) => frozen.verify(&*device).await,
            }
        }
    }

    fn learn_chains(&self, found: &BTreeMap<Uuid, LvolInfo>) {
        for (uuid, lvol) in self.lvols.borrow_mut().iter_mut() {
            let mut next = found.get(uuid).and_then(|info| info.parent);
            lvol.chain.clear();
            while let Some(parent) = next {
                lvol.chain.push(parent);
                next = found.get(&parent).and_then(|info| info.parent);
            }
        }
    }

    /// One thing that an administrator does.
    async fn administer(&self, store: &Store, random: &mut Random) {
        let many = self.lvols.borrow().len() >= LVOLS;
        match random.below(6) {
            0 | 1 if !many => {
                let block_size = if random.one_in(2) { 512 } else { 4096 };
                self.create(store, block_size, false).await;
            }
            2 | 3 if !many => self.snapshot(store, random).await,
            4 => self.use_briefly(store, random).await,
            _ => self.delete(store, random).await,
        }
    }

    async fn create(&self, store: &Store, block_size: u32, permanent: bool) {
        let uuid = Uuid::from_bytes(reactor::random_bytes());
        let size = BLOCKS * u64::from(block_size);
        let spec = CreateLvol { uuid, name: uuid.to_string(), size, block_size, attributes: BTreeMap::new() };
        // A block of 4 KiB is as atomic as the sectors of the disk.
        let unit = self.sector.min(u64::from(block_size));
        let shape = Shape { size, block: u64::from(block_size), unit };
        let name = &uuid.to_string()[..8];
        let host = Host::new(self.observer.clone(), name, shape, self.errors, Overlaps::Avoided);
        let (content, existence) = (Content::Head(host), Existence::Open);
        self.lvols.borrow_mut().insert(uuid, Lvol { content, existence, permanent, chain: Vec::new() });
        self.observer.log(format!("create {uuid}"));
        let created = store.create(&spec).await;
        self.judge("create", created.map(drop), || self.settle(uuid));
    }

    async fn snapshot(&self, store: &Store, random: &mut Random) {
        let heads = self.heads(|lvol| lvol.existence == Existence::Certain);
        let (head, host) = heads[random.index(heads.len())].clone();
        let uuid = Uuid::from_bytes(reactor::random_bytes());
        let spec = SnapshotSpec { uuid, name: uuid.to_string(), attributes: BTreeMap::new() };
        let (content, existence) = (Content::Snapshot(host.found_snapshot()), Existence::Open);
        self.lvols.borrow_mut().insert(uuid, Lvol { content, existence, permanent: true, chain: Vec::new() });
        self.observer.log(format!("snapshot {uuid} of {head}"));
        let reading = host.start_snapshot();
        let taken = store.snapshot(head, &spec).await;
        self.judge("snapshot", taken.map(drop), || {
            let mut lvols = self.lvols.borrow_mut();
            let before = lvols.get(&head).map(|lvol| lvol.chain.clone()).unwrap_or_default();
            if let Some(lvol) = lvols.get_mut(&head) {
                lvol.chain.insert(0, uuid);
            }
            if let Some(lvol) = lvols.get_mut(&uuid) {
                lvol.content = Content::Snapshot(host.end_snapshot(reading));
                lvol.existence = Existence::Certain;
                lvol.chain = before;
            }
        });
    }

    /// Some requests to a volume that is not in use all the time.
    async fn use_briefly(&self, store: &Store, random: &mut Random) {
        let heads = self.heads(|lvol| !lvol.permanent && lvol.existence == Existence::Certain);
        if heads.is_empty() {
            return;
        }
        let (uuid, host) = heads[random.index(heads.len())].clone();
        if let Some(device) = self.open_lvol(store, uuid).await {
            host.work(device, 2, 10).await;
        }
    }

    async fn delete(&self, store: &Store, random: &mut Random) {
        let free: Vec<Uuid> = {
            let lvols = self.lvols.borrow();
            let wanted = |uuid: &Uuid| {
                lvols.get(uuid).is_some_and(|lvol| matches!(lvol.content, Content::Snapshot(_)) || !lvol.permanent)
            };
            self.childless().into_iter().filter(wanted).collect()
        };
        if free.is_empty() {
            return;
        }
        let uuid = free[random.index(free.len())];
        if let Some(lvol) = self.lvols.borrow_mut().get_mut(&uuid) {
            lvol.existence = Existence::Open;
        }
        self.observer.log(format!("delete {uuid}"));
        let deleted = store.delete(uuid).await;
        self.judge("delete", deleted, || drop(self.lvols.borrow_mut().remove(&uuid)));
    }

    fn settle(&self, uuid: Uuid) {
        if let Some(lvol) = self.lvols.borrow_mut().get_mut(&uuid) {
            lvol.existence = Existence::Certain;
        }
    }

    /// Takes note of a success; after a failure nobody knows before the next start.
    fn judge(&self, what: &str, result: Result<(), StoreError>, succeeded: impl FnOnce()) {
        match result {
            Ok(()) => succeeded(),
            Err(error) => {
                assert!(self.tolerates(&error), "{what} failed without a fault: {error}");
                self.observer.log(format!("{what} failed: {error}"));
            }
        }
    }

    fn tolerates(&self, error: &StoreError) -> bool {
        self.errors == Errors::Expected && matches!(error, StoreError::Io { .. } | StoreError::Stopped { .. })
    }

    async fn open_lvol(&self, store: &Store, uuid: Uuid) -> Option<Rc<dyn BlockDevice>> {
        match store.open_lvol(uuid).await {
            Ok(lvol) => {
                // Hosts look for mixtures within such a unit.
                let geometry = lvol.geometry();
                let unit = self.sector.min(u64::from(geometry.block_size));
                assert_eq!(u64::from(geometry.atomic_write), unit, "I29 broken: another unit is announced");
                Some(lvol)
            }
            Err(error) => {
                assert!(self.errors == Errors::Expected, "{uuid} does not open: {error}");
                None
            }
        }
    }

    fn heads(&self, which: impl Fn(&Lvol) -> bool) -> Vec<(Uuid, Host)> {
        let lvols = self.lvols.borrow();
        let heads = lvols.iter().filter(|(_, lvol)| which(lvol)).filter_map(|(uuid, lvol)| match &lvol.content {
            Content::Head(host) => Some((*uuid, host.clone())),
            Content::Snapshot(_) => None,
        });
        heads.collect()
    }

    /// What nothing reads through and nobody is deleting.
    fn childless(&self) -> Vec<Uuid> {
        let lvols = self.lvols.borrow();
        let parents: BTreeSet<Uuid> = lvols.values().flat_map(|lvol| lvol.chain.iter().copied()).collect();
        let certain = lvols.iter().filter(|(_, lvol)| lvol.existence == Existence::Certain);
        certain.map(|(uuid, _)| *uuid).filter(|uuid| !parents.contains(uuid)).collect()
    }

    fn crash(&self, crash: Crash) {
        for lvol in self.lvols.borrow().values() {
            if let Content::Head(host) = &lvol.content {
                host.crash(crash);
            }
        }
    }
}

fn open_disk() -> Disk {
    Disk::open(DISK.as_ref(), &DiskOptions::default()).expect("the disk is there and free")
}
