//! Damage of what one replica holds, while another one has it whole (I22).

use std::rc::Rc;
use std::time::Duration;

use engine::Engine;
use reactor::simulated::{DiskFault, DiskFaultKind};
use reactor::sleep;
use uuid::Uuid;

use super::{Course, Due};
use crate::cluster::node::{DISK, DISK_SIZE, Node};
use crate::cluster::volume::{Snapshot, Volume};

/// What a disk loses at once.
const PLACE: u64 = 4096;

/// Bytes a second: no wait.
const AT_ONCE: u64 = 1 << 40;

/// How long hosts, hashes and repairs may take.
const LIMIT: Duration = Duration::from_secs(60);
const MOMENT: Duration = Duration::from_millis(20);
const TRIES: u32 = 500;

impl Course<'_> {
    /// Places of a disk that a volume uses cannot be read any more, until they are written anew or the fault is over.
    pub(super) fn lose_places(&mut self, number: usize, node: usize, count: usize, lasts: Duration) {
        let id = self.node(node).id;
        for place in self.some_places(number, node, count) {
            let fault = DiskFault::new(DiskFaultKind::LosePlaces).within(place..place + PLACE);
            self.cluster.world.add_disk_fault(id, DISK, fault);
        }
        self.later(lasts, Due::Repair(node));
    }

    /// Places of a disk with snapshots of a volume change by themselves. A scrub finds it, and the engine mends it.
    ///
    /// The fault atlas: what was not found yet is read as it is, and what one replica alone has right must stay. So it happens while nothing else
    /// does, to one of several replicas that are all in sync, and it is over before anything goes on.
    pub(super) fn rot(&mut self, number: usize, pick: usize, count: usize) {
        let cluster = self.cluster;
        let volume = &cluster.volumes[&number];
        if !self.is_quiet(volume) {
            return;
        }
        let Some((place, engine)) = volume.place.get().zip(volume.engine.borrow().clone()) else { return };
        let replicas = cluster.registry.replicas(volume.id);
        let (node, _) = replicas[pick % replicas.len()];
        if volume.clones.borrow().iter().any(|clone| clone.node == node) {
            return;
        }
        self.snapshots += 1;
        let id = Uuid::from_bytes([self.snapshots, number as u8, 0x50, 0x50, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3]);
        let (cut, serving) = (Rc::clone(volume), Rc::clone(&engine));
        // The head has nothing of its own then: nobody could tell what became of that.
        cluster.world.block_on(self.node(place).id, async move { cut.snapshot(&serving, id).await });
        let is_cut = matches!(volume.snapshots.borrow().get(&id), Some(Snapshot::Taken { .. }));
        if !is_cut || !cluster.registry.is_whole(volume.id) {
            return;
        }
        let damaged = Rc::clone(self.node(node));
        if !cluster.world.block_on(damaged.id, hash_all(Rc::clone(&damaged), volume.id)) {
            return;
        }
        for offset in self.some_places(number, node, count) {
            let within = cluster.random.borrow_mut().below(PLACE);
            cluster.world.flip_bits(damaged.id, DISK, offset + within, 0x10);
        }
        let found = cluster.world.block_on(damaged.id, scrub(Rc::clone(&damaged)));
        volume.note(format!("{found} regions of n{node} have rotted"));
        let mended = self.until_mended(&damaged);
        let told = told(&engine);
        assert!(
            mended,
            "I22 broken: v{number}: n{node} has damage that nobody mends although others have it whole: {told}"
        );
    }

    fn until_mended(&self, node: &Rc<Node>) -> bool {
        let limit = self.cluster.world.now() + LIMIT;
        while self.cluster.world.now() < limit {
            self.cluster.world.run_for(10 * MOMENT);
            if self.cluster.world.block_on(node.id, scrub(Rc::clone(node))) == 0 {
                return true;
            }
        }
        false
    }

    /// Nothing is wrong anywhere, nothing is about to be, and the volume has several replicas, all in sync, and nothing in flight.
    fn is_quiet(&self, volume: &Rc<Volume>) -> bool {
        let cluster = self.cluster;
        let sound = || {
            let running = cluster.nodes.values().all(|node| cluster.world.is_running(node.id));
            let acting = cluster.volumes.values().any(|volume| volume.acts.get() > 0);
            let whole = cluster.registry.is_whole(volume.id) && !cluster.registry.has_lost(volume.id);
            running && !acting && whole && self.due.is_empty()
        };
        let replicas = cluster.registry.replicas(volume.id).len();
        replicas > 1
            && sound()
            && cluster.world.run_until(|| !volume.has_work(), LIMIT)
            && self.until_idle(volume)
            && sound()
    }

    fn until_idle(&self, volume: &Rc<Volume>) -> bool {
        let limit = self.cluster.world.now() + LIMIT;
        while self.cluster.world.now() < limit {
            let Some((place, engine)) = volume.place.get().zip(volume.engine.borrow().clone()) else { return false };
            let node = self.node(place).id;
            if !self.cluster.world.is_running(node) {
                return false;
            }
            if self.cluster.world.block_on(node, async move { engine.status().in_flight }) == 0 && volume.is_idle() {
                return true;
            }
            self.cluster.world.run_for(MOMENT);
        }
        false
    }

    /// Some places of a disk that a volume wrote to, in use or not.
    fn some_places(&self, number: usize, node: usize, count: usize) -> Vec<u64> {
        let image = self.cluster.world.disk_image(self.node(node).id, DISK);
        let volume = &self.cluster.volumes[&number];
        let written = |place: &u64| volume.has_written(&image.bytes(*place, 16));
        let mut places: Vec<u64> = (0..DISK_SIZE).step_by(PLACE as usize).filter(written).collect();
        let mut random = self.cluster.random.borrow_mut();
        let count = count.min(places.len());
        (0..count).map(|_| places.swap_remove(random.index(places.len()))).collect()
    }
}

/// Hashes all snapshots of a node. Says whether all that a volume has there is its one replica's, and none of it on its way to somewhere else.
async fn hash_all(node: Rc<Node>, volume: Uuid) -> bool {
    let server = node.server().await;
    let store = server.store();
    store.set_hash_rate(AT_ONCE);
    let is_done = || {
        let status = store.scrub_status();
        status.hashed == status.snapshots && store.lvols().iter().all(|lvol| lvol.deletion.is_none())
    };
    for _ in 0..TRIES {
        if is_done() {
            break;
        }
        sleep(MOMENT).await;
    }
    store.set_hash_rate(0);
    is_done() && server.list().iter().filter(|replica| replica.spec.volume == volume).count() == 1
}

/// Scrubs a node: how many regions of snapshots are wrong.
async fn scrub(node: Rc<Node>) -> u64 {
    let server = node.server().await;
    let report = server.store().scrub(AT_ONCE).await.expect("nothing else is wrong");
    report.bad_lvols.values().sum()
}

/// What an engine says of repairs.
fn told(engine: &Engine) -> String {
    let replicas = engine.status().replicas.into_iter();
    let line = |replica: engine::ReplicaStatus| {
        format!("{}: {} mended, {} not", replica.node, replica.repaired, replica.unrepaired)
    };
    replicas.map(line).collect::<Vec<_>>().join(", ")
}
