//! The course of a plan: what begins at its time, and what ends when its own time is over.

mod connections;
mod damage;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use engine::Engine;
use reactor::simulated::{DiskFault, DiskFaultKind, DiskLatency, Link};
use replica::Origin;
use uuid::Uuid;

use super::Cluster;
use super::administration::{Adding, add_replica, clone_replica, delete_replica, make_replica, remove_replica};
use super::behind::Forcing;
use super::node::{DISK, Node};
use super::plan::{Act, Step, Trouble};
use super::volume::{CloneOf, Snapshot, Volume};

/// How long the course looks away at most: a process that ended by itself is found dead after this.
const LOOK: Duration = Duration::from_millis(50);

/// How often the course looks for something that it waits for.
const MOMENT: Duration = Duration::from_micros(200);

/// How long a process that ended by itself stays down.
const RESTART: Duration = Duration::from_millis(100);

/// How likely an operation of a failing disk fails.
const FAILURES: f64 = 0.2;

/// What is due at some time.
#[derive(Clone, Copy, Debug)]
enum Due {
    Boot(usize),
    Resume(usize),
    Unblock { from: usize, to: usize },
    Relink { one: usize, other: usize },
    RegistryBack(usize),
    RegistrySpeaks,
    Repair(usize),
    StartEngine { volume: usize, node: usize },
}

/// A plan on its way.
pub(super) struct Course<'a> {
    cluster: &'a Cluster,
    /// By time in nanoseconds and then in order.
    due: BTreeMap<(u64, u64), Due>,
    /// Partitions in force, by direction: each ends by itself.
    blocked: BTreeMap<(usize, usize), u32>,
    order: u64,
    /// Counts snapshots and clones, whose uuids are made of it.
    snapshots: u8,
    /// Counts replicas that were added, as well.
    added: u8,
}

/// Something is being done to a volume while it lives.
struct UnderWay(Rc<Volume>);

impl UnderWay {
    fn new(volume: &Rc<Volume>) -> Self {
        volume.acts.set(volume.acts.get() + 1);
        Self(Rc::clone(volume))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.acts.set(self.0.acts.get() - 1);
    }
}

impl<'a> Course<'a> {
    pub(super) fn new(cluster: &'a Cluster) -> Self {
        Self { cluster, due: BTreeMap::new(), blocked: BTreeMap::new(), order: 0, snapshots: 0, added: 0 }
    }

    /// All steps of the plan.
    pub(super) fn run(&mut self) {
        for step in self.cluster.plan.steps.clone() {
            self.step(&step);
        }
    }

    fn step(&mut self, step: &Step) {
        self.cluster.volumes.values().for_each(|volume| volume.add_work(step.work));
        self.pass(step.after);
        self.cluster.world.log(format!("step {}: {}", step.number, step.act));
        self.act(&step.act);
        self.cluster.look_for_copies();
    }

    /// Lets time pass, and whatever is due in it happen.
    pub(super) fn pass(&mut self, duration: Duration) {
        let end = self.now() + nanoseconds(duration);
        while self.now() < end {
            let next = self.due.keys().next().map_or(u64::MAX, |(at, _)| *at);
            let until = next.min(end).min(self.now() + nanoseconds(LOOK));
            self.cluster.world.run_for(Duration::from_nanos(until.saturating_sub(self.now())));
            let now = self.now();
            while let Some(entry) = self.due.first_entry().filter(|entry| entry.key().0 <= now) {
                let due = entry.remove();
                self.happen(due);
            }
            self.find_dead();
        }
    }

    /// Ends every fault now, starts whatever is down, and gives each volume an engine.
    pub(super) fn end_all(&mut self) {
        let cluster = self.cluster;
        cluster.world.log("every fault ends");
        for due in std::mem::take(&mut self.due).into_values() {
            self.happen(due);
        }
        cluster.world.heal_all();
        cluster.registry.everyone_reaches_it();
        let nodes: Vec<usize> = cluster.nodes.keys().copied().collect();
        nodes.iter().for_each(|&node| self.happen(Due::Repair(node)));
        nodes.iter().for_each(|&node| self.happen(Due::Resume(node)));
        cluster.nodes.values().for_each(|node| cluster.boot(node));
    }

    fn now(&self) -> u64 {
        self.cluster.world.now().as_nanos()
    }

    fn later(&mut self, after: Duration, due: Due) {
        self.order += 1;
        self.due.insert((self.now() + nanoseconds(after), self.order), due);
    }

    fn node(&self, node: usize) -> &'a Rc<Node> {
        &self.cluster.nodes[&node]
    }

    fn find_dead(&mut self) {
        for (&index, node) in &self.cluster.nodes {
            let awaited = self.due.values().any(|due| matches!(due, Due::Boot(node) if *node == index));
            if !awaited && !self.cluster.world.is_running(node.id) {
                self.cluster.forget(index);
                self.later(RESTART, Due::Boot(index));
            }
        }
    }

    fn act(&mut self, act: &Act) {
        let cluster = self.cluster;
        match *act {
            Act::Nothing => {}
            Act::Kill { node, down } => {
                cluster.kill(node);
                self.later(down, Due::Boot(node));
            }
            Act::PowerCut { node, down } => {
                self.power_cut(node);
                self.later(down, Due::Boot(node));
            }
            Act::Blackout { down } => self.blackout(down),
            Act::Pause { node, lasts } => {
                cluster.world.pause(self.node(node).id);
                self.later(lasts, Due::Resume(node));
            }
            Act::Partition { from, to, both, lasts } => {
                self.block(from, to, lasts);
                if both {
                    self.block(to, from, lasts);
                }
            }
            Act::Isolate { node, inbound, outbound, lasts } => self.isolate(node, inbound, outbound, lasts),
            Act::Reset { one, other } => cluster.world.reset_connections(self.node(one).id, self.node(other).id),
            Act::Delay { one, other, delay, lasts } => {
                self.link(one, other, Link { delay: Duration::ZERO..=delay, ..Link::default() });
                self.later(lasts, Due::Relink { one, other });
            }
            Act::RegistryAway { node, lasts } => {
                cluster.registry.set_away(node, true);
                self.later(lasts, Due::RegistryBack(node));
            }
            Act::RegistryMute { lasts } => {
                cluster.registry.mute.set(true);
                self.later(lasts, Due::RegistrySpeaks);
            }
            Act::LoseRecord { volume } => self.lose_record(volume),
            Act::Force { volume, down } => self.force(volume, down),
            Act::LosePlaces { volume, node, count, lasts } => self.lose_places(volume, node, count, lasts),
            Act::Rot { volume, pick, count } => self.rot(volume, pick, count),
            Act::Disk { node, trouble, lasts } => {
                self.trouble(node, trouble);
                self.later(lasts, Due::Repair(node));
            }
            Act::ClockJump { node, seconds } => cluster.world.jump_clock(self.node(node).id, seconds),
            Act::Flush { volume } => self.flush(volume),
            Act::Snapshot { volume, count } => (0..count).for_each(|_| self.snapshot(volume)),
            Act::Delete { volume, pick } => self.delete_snapshot(volume, pick),
            Act::Revert { volume, pick } => self.revert(volume, pick),
            Act::CloneOf { volume, pick } => self.clone_snapshot(volume, pick),
            Act::Grow { volume, eighths } => self.grow(volume, eighths),
            Act::Add { volume, node } => self.add(volume, node),
            Act::Remove { volume, pick } => self.remove(volume, pick),
            Act::Whole { volume, limit } => self.until_whole(volume, limit),
            Act::Limit { volume, limits } => self.limit(volume, limits),
            Act::Disconnect { volume } => self.disconnect(volume),
            Act::Abort { volume } => self.abort(volume),
            Act::Move { volume, to, off } => self.move_engine(volume, to, off),
            Act::TakeOver { volume, to } => cluster.start_engine(&cluster.volumes[&volume], to),
        }
    }

    fn happen(&mut self, due: Due) {
        let cluster = self.cluster;
        cluster.world.log(format!("due: {due:?}"));
        match due {
            Due::Boot(node) => cluster.boot(self.node(node)),
            Due::Resume(node) => cluster.world.resume(self.node(node).id),
            Due::Unblock { from, to } => self.unblock(from, to),
            Due::Relink { one, other } => self.link(one, other, Link::default()),
            Due::RegistryBack(node) => cluster.registry.set_away(node, false),
            Due::RegistrySpeaks => cluster.registry.mute.set(false),
            Due::Repair(node) => {
                let id = self.node(node).id;
                cluster.world.clear_disk_faults(id, DISK);
                cluster.world.limit_disk_space(id, DISK, None);
                cluster.world.set_disk_latency(id, DISK, DiskLatency::default());
            }
            Due::StartEngine { volume, node } => {
                let volume = &cluster.volumes[&volume];
                if volume.place.get().is_none() {
                    cluster.start_engine(volume, node);
                }
            }
        }
    }

    fn block(&mut self, from: usize, to: usize, lasts: Duration) {
        *self.blocked.entry((from, to)).or_default() += 1;
        self.cluster.world.partition_one_way(self.node(from).id, self.node(to).id);
        self.later(lasts, Due::Unblock { from, to });
    }

    fn unblock(&mut self, from: usize, to: usize) {
        let count = self.blocked.entry((from, to)).or_insert(1);
        *count -= 1;
        if *count == 0 {
            self.cluster.world.heal_one_way(self.node(from).id, self.node(to).id);
        }
    }

    fn isolate(&mut self, node: usize, inbound: bool, outbound: bool, lasts: Duration) {
        let others: Vec<usize> = self.cluster.nodes.keys().copied().filter(|other| *other != node).collect();
        for other in others {
            if inbound {
                self.block(other, node, lasts);
            }
            if outbound {
                self.block(node, other, lasts);
            }
        }
        self.cluster.registry.set_away(node, true);
        self.later(lasts, Due::RegistryBack(node));
    }

    fn link(&self, one: usize, other: usize, link: Link) {
        let (one, other) = (self.node(one).id, self.node(other).id);
        self.cluster.world.set_link(one, other, link.clone());
        self.cluster.world.set_link(other, one, link);
    }

    fn blackout(&mut self, down: Duration) {
        let nodes: Vec<usize> = self.cluster.nodes.keys().copied().collect();
        for node in nodes {
            if self.cluster.liars.borrow().contains(&node) {
                self.cluster.kill(node);
            } else {
                self.cluster.power_cut(node);
            }
            let down = self.cluster.random.borrow_mut().duration(&(Duration::ZERO..=down));
            self.later(down, Due::Boot(node));
        }
    }

    /// The fault atlas: a disk that has lied may lose its power only when nothing else is wrong and another replica in sync is there,
    /// and nothing else happens until everyone knows that its replicas are out of sync. Until then they would be taken for good.
    fn power_cut(&mut self, node: usize) {
        let cluster = self.cluster;
        if !cluster.liars.borrow().contains(&node) {
            return cluster.power_cut(node);
        }
        if !self.may_lose_a_copy(node) {
            return cluster.kill(node);
        }
        cluster.liars.borrow_mut().remove(&node);
        cluster.power_cut(node);
        self.happen(Due::Repair(node));
        // What it granted may be lost with the rest.
        let replicas: Vec<(Uuid, Uuid)> = self.replicas_on(node).collect();
        replicas.iter().for_each(|(_, replica)| _ = self.node(node).grants.borrow_mut().remove(replica));
        self.node(node).distrusted.set(true);
        let in_sync = || replicas.iter().any(|(volume, replica)| cluster.registry.is_in_sync(*volume, *replica));
        let known = cluster.world.run_until(|| !in_sync(), Duration::from_secs(30));
        assert!(known, "liveness broken: a machine is gone, and is not recorded out of sync");
    }

    /// The replicas on a node, with their volumes.
    fn replicas_on(&self, node: usize) -> impl Iterator<Item = (Uuid, Uuid)> {
        let registry = &self.cluster.registry;
        let volumes = self.cluster.volumes.values();
        volumes.filter_map(move |volume| Some((volume.id, registry.replica_on(volume.id, node)?)))
    }

    fn may_lose_a_copy(&self, node: usize) -> bool {
        let cluster = self.cluster;
        let repairs_only = |due: &Due| matches!(due, Due::Repair(other) if *other == node);
        let quiet =
            self.due.values().all(repairs_only) && cluster.volumes.values().all(|volume| volume.acts.get() == 0);
        let running = cluster.nodes.values().all(|node| cluster.world.is_running(node.id));
        let mut volumes = cluster.volumes.values();
        quiet
            && running
            && cluster.volumes.values().all(|volume| !cluster.registry.has_lost(volume.id))
            && volumes.all(|volume| {
                let replicas = cluster.registry.replicas(volume.id);
                let concerned = replicas.iter().any(|(place, _)| *place == node);
                let mut others = replicas.iter().filter(|(place, _)| *place != node);
                let spare = others.any(|(_, replica)| cluster.registry.is_in_sync(volume.id, *replica));
                !concerned
                    || (spare
                        && volume.place.get().is_some_and(|place| place != node)
                        && volume.engine.borrow().is_some())
            })
    }

    /// The fault atlas: with a replica that has no copy of the record nobody could ever know whether it went on alone. What a person said is
    /// with no replica until the volume is served.
    fn lose_record(&self, volume: usize) {
        let volume = &self.cluster.volumes[&volume];
        let registry = &self.cluster.registry;
        let trusted =
            |(node, replica): &(usize, Uuid)| registry.has_copy(*replica) && !self.node(*node).distrusted.get();
        if volume.behind.is_none() && registry.replicas(volume.id).iter().all(trusted) {
            volume.note("its record is lost".to_owned());
            registry.lose(volume.id);
        }
    }

    /// The fault atlas: only a replica that was in sync once and whose node runs, while all that are in sync can be lost with everything newer.
    fn force(&mut self, number: usize, down: Duration) {
        let cluster = self.cluster;
        let (volume, registry) = (&cluster.volumes[&number], &cluster.registry);
        let (newest, old): (Vec<_>, Vec<_>) =
            registry.replicas(volume.id).into_iter().partition(|(_, replica)| registry.is_in_sync(volume.id, *replica));
        let is_fit = |(node, replica): &(usize, Uuid)| {
            let node = self.node(*node);
            let left = volume.behind.as_ref().is_some_and(|behind| behind.has(*replica));
            left && registry.is_out_of_sync(volume.id, *replica)
                && cluster.world.is_running(node.id)
                && !node.distrusted.get()
        };
        let running = |(node, _): &(usize, Uuid)| cluster.world.is_running(self.node(*node).id);
        let Some((place, replica)) = old.into_iter().find(is_fit) else { return };
        if registry.has_lost(volume.id) || !newest.iter().all(running) {
            return;
        }
        for (node, _) in newest {
            match cluster.liars.borrow().contains(&node) || cluster.random.borrow_mut().one_in(2) {
                true => cluster.kill(node),
                false => cluster.power_cut(node),
            }
            self.later(down, Due::Boot(node));
        }
        cluster.start_engine(volume, place);
        let forcing = Forcing::new(registry, volume, replica);
        cluster.world.spawn(self.node(place).id, forcing.run(volume.path()));
    }

    fn trouble(&mut self, node: usize, trouble: Trouble) {
        let (world, id) = (&self.cluster.world, self.node(node).id);
        let fault = match trouble {
            Trouble::FailReads => DiskFault::new(DiskFaultKind::FailReads).with_probability(FAILURES),
            Trouble::FailWrites => DiskFault::new(DiskFaultKind::FailWrites).with_probability(FAILURES),
            Trouble::FailSyncs => DiskFault::new(DiskFaultKind::FailSyncs).with_probability(FAILURES),
            Trouble::Hang => DiskFault::new(DiskFaultKind::Hang),
            Trouble::Slow(more) => DiskFault::new(DiskFaultKind::Slow(more)),
            Trouble::SlowWrites(limit) => {
                let usual = DiskLatency::default();
                return world.set_disk_latency(id, DISK, DiskLatency { write: *usual.write.start()..=limit, ..usual });
            }
            Trouble::SlowReads(limit) => {
                let usual = DiskLatency::default();
                return world.set_disk_latency(id, DISK, DiskLatency { read: *usual.read.start()..=limit, ..usual });
            }
            Trouble::LoseSyncs => {
                self.cluster.liars.borrow_mut().insert(node);
                DiskFault::new(DiskFaultKind::LoseSyncs)
            }
            Trouble::Full => {
                let allocated = world.disk_image(id, DISK).allocated();
                return world.limit_disk_space(id, DISK, Some(allocated));
            }
        };
        world.add_disk_fault(id, DISK, fault);
    }

    /// Lets something be done to a volume that is served, where its engine is.
    fn administer<F>(&self, volume: usize, act: impl FnOnce(Rc<Volume>, Rc<Engine>) -> F)
    where
        F: Future<Output = ()> + 'static,
    {
        let volume = &self.cluster.volumes[&volume];
        let Some(engine) = volume.engine.borrow().clone() else { return };
        let running = |place: &usize| self.cluster.world.is_running(self.node(*place).id);
        let Some(place) = volume.place.get().filter(running) else { return };
        let act = act(Rc::clone(volume), engine);
        let under_way = UnderWay::new(volume);
        self.cluster.world.spawn(self.node(place).id, async move {
            act.await;
            drop(under_way);
        });
    }

    fn flush(&self, volume: usize) {
        self.administer(volume, |volume, _| async move {
            let way = volume.way.borrow().clone();
            if let Some(way) = way {
                volume.flush(&*way.device, volume.path()).await;
            }
        });
    }

    fn snapshot(&mut self, volume: usize) {
        self.snapshots += 1;
        let mut id = [0x50; 16];
        (id[0], id[1]) = (self.snapshots, volume as u8);
        self.administer(volume, |volume, engine| async move { volume.snapshot(&engine, Uuid::from_bytes(id)).await });
    }

    /// One of the snapshots that are known to be there.
    fn pick_snapshot(&self, volume: usize, pick: usize) -> Option<(Uuid, Snapshot)> {
        let snapshots = self.cluster.volumes[&volume].snapshots.borrow();
        let there: Vec<_> =
            snapshots.iter().filter(|(_, snapshot)| matches!(snapshot, Snapshot::Taken { .. })).collect();
        there.get(pick % there.len().max(1)).map(|(id, snapshot)| (**id, (*snapshot).clone()))
    }

    fn delete_snapshot(&self, volume: usize, pick: usize) {
        if let Some((id, _)) = self.pick_snapshot(volume, pick) {
            self.administer(volume, |volume, engine| async move { volume.delete_snapshot(&engine, id).await });
        }
    }

    fn revert(&self, volume: usize, pick: usize) {
        if let Some((id, _)) = self.pick_snapshot(volume, pick) {
            self.administer(volume, |volume, engine| async move { volume.revert(&engine, id).await });
        }
    }

    fn grow(&self, volume: usize, eighths: u64) {
        let step = 64 << 10;
        let size = (self.cluster.volumes[&volume].plan.size * eighths / 8).next_multiple_of(step);
        self.administer(volume, |volume, engine| async move { volume.grow(&engine, size).await });
    }

    /// On every node with a replica in sync.
    fn clone_snapshot(&mut self, volume: usize, pick: usize) {
        let Some((snapshot, held)) = self.pick_snapshot(volume, pick) else { return };
        self.snapshots += 1;
        let volume = &self.cluster.volumes[&volume];
        let name =
            |node: usize| Uuid::from_bytes([0xc0, self.snapshots, node as u8, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]);
        let registry = &self.cluster.registry;
        let in_sync = |(_, replica): &(usize, Uuid)| registry.is_in_sync(volume.id, *replica);
        for (place, replica) in registry.replicas(volume.id).into_iter().filter(in_sync) {
            let node = Rc::clone(self.node(place));
            let clone = CloneOf { node: place, replica: name(place), volume: name(0xff), snapshot, held: held.clone() };
            if self.cluster.world.is_running(node.id) {
                let making = clone_replica(Rc::clone(&node), Rc::clone(volume), Origin { replica, snapshot }, clone);
                self.cluster.world.spawn(node.id, making);
            }
        }
    }

    /// Makes a replica on a node that has none, and takes it in.
    fn add(&mut self, number: usize, place: usize) {
        let volume = &self.cluster.volumes[&number];
        let members = self.cluster.registry.replicas(volume.id);
        let node = Rc::clone(self.node(place));
        let has_one = members.iter().any(|(other, _)| *other == place);
        if has_one || members.len() > 3 || !self.cluster.world.is_running(node.id) {
            return;
        }
        let Some(adding) = Adding::new(volume, place) else { return };
        self.added += 1;
        let replica = volume.replica_name(place, self.added);
        let made = Rc::new(Cell::new(false));
        let making = make_replica(Rc::clone(&node), Rc::clone(volume), replica, Rc::clone(&made));
        self.cluster.world.spawn(node.id, making);
        self.administer(number, |_, engine| add_replica(engine, adding, replica, made));
    }

    fn remove(&self, number: usize, pick: usize) {
        let volume = &self.cluster.volumes[&number];
        let members = self.cluster.registry.replicas(volume.id);
        let (place, replica) = members[pick % members.len()];
        let node = Rc::clone(self.node(place));
        let gone = Rc::new(Cell::new(false));
        if self.cluster.world.is_running(node.id) {
            let deleting = delete_replica(Rc::clone(&node), Rc::clone(volume), replica, Rc::clone(&gone));
            self.cluster.world.spawn(node.id, deleting);
        }
        self.administer(number, |volume, engine| remove_replica(engine, volume, replica, gone));
    }

    fn until_whole(&mut self, volume: usize, limit: Duration) {
        let volume = self.cluster.volumes[&volume].id;
        let end = self.now() + nanoseconds(limit);
        while !self.cluster.registry.is_whole(volume) && self.now() < end {
            self.pass(MOMENT);
        }
    }

    /// Stops an engine in order, and starts another later, whether the first has ended by then or not.
    fn move_engine(&mut self, volume: usize, to: usize, off: Duration) {
        let cluster = self.cluster;
        let number = volume;
        let volume = &cluster.volumes[&volume];
        let place = volume.place.take().filter(|place| cluster.world.is_running(self.node(*place).id));
        let engine = volume.engine.borrow().clone();
        let way = volume.way.borrow_mut().take();
        cluster.leave(volume);
        if let (Some(place), Some(engine)) = (place, engine) {
            let log = Rc::clone(volume);
            cluster.world.spawn(self.node(place).id, async move {
                let export = way.and_then(|way| way.export);
                if let Some((_, connection)) = &export {
                    connection.cut();
                }
                engine.stop().await;
                if let Some((export, _)) = export {
                    export.end();
                }
                log.note("the engine was stopped in order".to_owned());
            });
        }
        self.later(off, Due::StartEngine { volume: number, node: to });
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    // A course takes seconds.
    duration.as_nanos() as u64
}
