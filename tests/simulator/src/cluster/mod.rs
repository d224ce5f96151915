//! A whole cluster in one world: stores, replicas, engines, a registry, hosts; a course of faults; and in the end everything
//! has to be right. `docs/simulator.md` tells how to read what it says.

mod administration;
mod allowance;
mod behind;
mod course;
mod export;
mod finish;
mod history;
mod node;
mod plan;
mod registry;
mod volume;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use engine::{NewReplica, VolumeRecord};
use reactor::simulated::{Random, World};

use self::course::Course;
use self::node::{Around, DISK, DISK_SIZE, Node, address};
use self::plan::{Plan, generate, races};
use self::registry::SharedRegistry;
use self::volume::{Told, Volume};
use crate::model::Crash;
use crate::{Options, Report};

/// Events of one run at most. Hardly one needs a tenth of it.
const MOST_EVENTS: u64 = 3_000_000;

/// Makes plans from seeds.
#[derive(Clone, Copy, Debug)]
pub struct Planner(fn(u64) -> Plan);

/// Plans with everything in them.
pub(crate) const EVERYTHING: Planner = Planner(generate);

/// Plans around one race each.
pub(crate) const RACES: Planner = Planner(races);

impl Planner {
    fn plan(self, options: Options) -> Plan {
        self.0(options.seed).without(&options.without)
    }

    /// The plan of a seed in words.
    pub fn describe(self, options: Options) -> String {
        self.plan(options).to_string()
    }

    /// The numbers of the steps and volumes that are left of a seed's plan.
    pub fn parts(self, options: Options) -> (Vec<usize>, Vec<usize>) {
        let plan = self.plan(options);
        (plan.step_numbers(), plan.volumes.iter().map(|volume| volume.number).collect())
    }

    /// Whether any volume has limits in what is left of a seed's plan.
    pub fn has_limits(self, options: Options) -> bool {
        self.plan(options).has_limits()
    }

    /// Runs the plan of a seed.
    pub(crate) fn run(self, options: Options) -> Report {
        let plan = self.plan(options);
        let world = World::new(options.seed);
        world.keep_log(options.log_lines);
        world.limit_events(MOST_EVENTS);
        let cluster = Cluster::new(world, plan);
        cluster.install();
        let mut course = Course::new(&cluster);
        course.run();
        course.end_all();
        finish::check(&cluster, &mut course);
        Report { trace_hash: cluster.world.trace_hash(), events: cluster.world.events() }
    }
}

/// Everything but the course.
struct Cluster {
    world: World,
    plan: Plan,
    nodes: BTreeMap<usize, Rc<Node>>,
    volumes: BTreeMap<usize, Rc<Volume>>,
    registry: Rc<SharedRegistry>,
    /// Chance of the course, apart from that of the world.
    random: RefCell<Random>,
    /// Nodes whose disk has lied: after a power cut nobody knows what they have.
    liars: RefCell<BTreeSet<usize>>,
}

impl Cluster {
    fn new(world: World, plan: Plan) -> Self {
        let observer = world.observer();
        let registry = SharedRegistry::new(observer.clone());
        let sector = plan.sectors.iter().copied().min().unwrap_or(512);
        let volume = |volume: &plan::VolumePlan| {
            let told = Told { forced: plan.forces(volume.number), exported: plan.exports(volume) };
            (volume.number, Volume::new(volume.clone(), observer.clone(), sector, told))
        };
        let volumes: BTreeMap<usize, Rc<Volume>> = plan.volumes.iter().map(volume).collect();
        let by_id: BTreeMap<_, _> = volumes.values().map(|volume| (volume.id, Rc::clone(volume))).collect();
        let members = by_id.clone();
        registry.on_loss(move |volume| by_id[&volume].crash(Crash::PowerCut));
        registry.on_member(move |volume, replica, came| members[&volume].member_came(replica, came));
        let around = Around {
            observer: observer.clone(),
            registry: Rc::clone(&registry),
            timing: plan.timing.clone(),
            volumes: volumes.values().cloned().collect(),
            grants: Rc::default(),
        };
        let mut nodes = BTreeMap::new();
        for index in (0..plan.sectors.len()).filter(|&index| plan.uses(index)) {
            let id = world.add_node(address(index).ip());
            world.add_disk(id, DISK, DISK_SIZE, plan.sectors[index]);
            nodes.insert(index, Node::new(index, id, &around));
        }
        let random = RefCell::new(world.random());
        Self { world, plan, nodes, volumes, registry, random, liars: RefCell::default() }
    }

    /// Formats, makes the replicas and the records, and starts everything.
    fn install(&self) {
        for volume in self.volumes.values() {
            let replicas = volume.plan.replicas.iter().map(|&node| NewReplica {
                replica: volume.replica_name(node, 0),
                node: format!("n{node}"),
                address: address(node),
            });
            let record = VolumeRecord::new(volume.id, volume.plan.size, volume.plan.block, replicas);
            self.registry.insert(record);
        }
        for node in self.nodes.values() {
            self.world.block_on(node.id, Rc::clone(node).install());
            self.world.kill(node.id);
        }
        self.nodes.values().for_each(|node| self.boot(node));
        self.world.run_for(Duration::from_millis(100));
    }

    /// Starts a node's process, and the engines that belong there.
    fn boot(&self, node: &Rc<Node>) {
        if self.world.is_running(node.id) {
            return;
        }
        self.world.boot(node.id, || Rc::clone(node).run());
        for volume in self.volumes.values().filter(|volume| volume.place.get() == Some(node.index)) {
            self.start_engine(volume, node.index);
        }
    }

    /// Starts an engine on a node, if it runs, and leads the volume's host there.
    fn start_engine(&self, volume: &Rc<Volume>, node: usize) {
        volume.place.set(Some(node));
        let path = self.leave(volume);
        let node = &self.nodes[&node];
        if self.world.is_running(node.id) {
            let running = Rc::clone(node).run_engine(Rc::clone(volume), path);
            self.world.spawn(node.id, running);
        }
    }

    /// The volume's host leaves its engine, which goes on as long as someone uses it.
    fn leave(&self, volume: &Rc<Volume>) -> u64 {
        let path = volume.leave_path();
        volume.engine.borrow_mut().take();
        let export = volume.way.borrow_mut().take().and_then(|way| Some((way.node, way.export?)));
        if let Some((node, (export, connection))) = export {
            let node = self.nodes[&node].id;
            // The target may not hear of it: then what waits for limits goes to an engine that may have lost the volume. What waits for the
            // engine is always taken back, because that may get the volume after all, when others have acknowledged more (docs/simulator.md).
            if self.world.is_running(node) && (!export.has_served() || self.random.borrow_mut().one_in(2)) {
                self.world.spawn(node, async move { connection.cut() });
            }
        }
        path
    }

    /// A node's process is gone, and with it the paths to its engines.
    fn forget(&self, node: usize) {
        for volume in self.volumes.values().filter(|volume| volume.place.get() == Some(node)) {
            self.leave(volume);
        }
    }

    /// Sees which replicas keep a copy of their volume's record.
    fn look_for_copies(&self) {
        for node in self.nodes.values().filter(|node| self.world.is_running(node.id)) {
            self.world.spawn(node.id, Rc::clone(node).look_for_copies());
        }
    }

    fn kill(&self, node: usize) {
        self.world.kill(self.nodes[&node].id);
        self.forget(node);
    }

    fn power_cut(&self, node: usize) {
        self.world.power_cut(self.nodes[&node].id);
        self.forget(node);
        for volume in self.volumes.values() {
            if let Some(replica) = self.registry.replica_on(volume.id, node) {
                self.registry.lost_power(volume.id, replica);
            }
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Engines refer to tasks of the world, which ends after this.
        for volume in self.volumes.values() {
            volume.engine.borrow_mut().take();
            volume.way.borrow_mut().take();
        }
    }
}
