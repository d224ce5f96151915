//! When the last fault is over: everything serves again, and everything is right.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use engine::{Engine, EngineState, EngineStatus, MemberState, ReplicaStatus};

use super::Cluster;
use super::course::Course;
use super::registry::{summary, word};
use super::volume::{Snapshot, Volume, short};

/// How long it may take until all volumes are served by all their replicas. Attempts to reach a replica that was away are up to
/// 45 s apart.
const LIMIT: Duration = Duration::from_secs(240);

/// Requests of each volume after the last fault.
const LAST_WORK: u32 = 24;

/// Bytes of a request at most.
const LONGEST: u64 = 1 << 20;

pub(super) fn check(cluster: &Cluster, course: &mut Course) {
    cluster.volumes.values().for_each(|volume| volume.add_work(LAST_WORK));
    // Whoever died at last is missed by now.
    course.pass(2 * cluster.plan.timing.silence + Duration::from_millis(500));
    for volume in cluster.volumes.values() {
        come_back(cluster, course, volume);
    }
    for volume in cluster.volumes.values() {
        end_work(cluster, course, volume);
        read_and_stop(cluster, volume);
    }
    for volume in cluster.volumes.values() {
        compare(cluster, volume);
    }
}

/// Waits until a volume is served with all replicas in sync. An engine that lost its volume is started again, as whoever
/// manages the cluster would.
fn come_back(cluster: &Cluster, course: &mut Course, volume: &Rc<Volume>) {
    let limit = cluster.world.now() + LIMIT;
    if cluster.registry.has_lost(volume.id) {
        // An engine that goes on without its record cannot change it any more.
        cluster.start_engine(volume, volume.place.get().unwrap_or(volume.plan.engine));
    }
    let all_there = Rc::new(Cell::new(false));
    let mut watched = 0;
    let mut status = None;
    while !all_there.get() {
        let place = volume.place.get().unwrap_or(volume.plan.engine);
        volume.place.set(Some(place));
        let engine = volume.engine.borrow().clone();
        let path = volume.path();
        let running = cluster.world.is_running(cluster.nodes[&place].id);
        match engine {
            Some(engine) if running && watched != path => {
                watched = path;
                let told = Rc::new(std::cell::RefCell::new(None));
                status = Some(Rc::clone(&told));
                let watching = watch(Rc::clone(volume), engine, path, Rc::clone(&all_there), told);
                cluster.world.spawn(cluster.nodes[&place].id, watching);
            }
            None if running && watched != path && volume.path() != u64::MAX => {
                // It starts, or nobody has started it.
                course.pass(Duration::from_millis(500));
                if volume.engine.borrow().is_none() && volume.path() == path {
                    cluster.start_engine(volume, place);
                }
            }
            _ => {}
        }
        course.pass(Duration::from_millis(50));
        let lost = status.as_ref().and_then(|told| told.borrow().clone());
        if lost.as_ref().is_some_and(|status: &EngineStatus| matches!(status.state, EngineState::Stopped { .. })) {
            status = None;
            cluster.start_engine(volume, place);
        }
        if cluster.world.now() > limit {
            panic!(
                "liveness broken: v{} is not whole {LIMIT:?} after the last fault\n  record: {}\n  engine on n{place}: {}",
                volume.plan.number,
                summary(&cluster.registry.record(volume.id)),
                lost.as_ref().map_or_else(|| "it has not started".to_owned(), told)
            );
        }
    }
    volume.note("all replicas are in sync".to_owned());
}

/// An engine's status in a few lines: itself, and each replica that is not as it should be.
fn told(status: &EngineStatus) -> String {
    let state = match &status.state {
        EngineState::Waiting { reason } => format!("waits: {reason}"),
        EngineState::Serving => "serves".to_owned(),
        EngineState::Stopping => "stops".to_owned(),
        EngineState::Stopped { reason } => format!("stopped: {reason}"),
    };
    let mut lines = vec![format!("epoch {}, {} in flight, {state}", status.epoch, status.in_flight)];
    let is_right = |replica: &ReplicaStatus| replica.connected && replica.state == MemberState::InSync;
    for replica in status.replicas.iter().filter(|replica| !is_right(replica)) {
        let mut line = format!("    {} {}: {}", replica.node, short(replica.replica), word(&replica.state));
        line += if replica.connected { ", connected" } else { ", not connected" };
        if let Some(copy) = &replica.copy {
            line += &format!(", {}: {} of {} bytes", copy.step, copy.done, copy.total);
        }
        if let Some(wait) = replica.next_try {
            line += &format!(", next try in {wait:.1?} after {} departures", replica.departures);
        }
        if let Some(trouble) = &replica.trouble {
            line += &format!(", trouble: {trouble}");
        }
        lines.push(line);
    }
    lines.join("\n")
}

async fn watch(
    volume: Rc<Volume>,
    engine: Rc<Engine>,
    path: u64,
    all_there: Rc<Cell<bool>>,
    told: Rc<std::cell::RefCell<Option<EngineStatus>>>,
) {
    while volume.is_on(path) {
        let status = engine.status();
        let whole = status.replicas.iter().all(|replica| replica.state == MemberState::InSync && replica.connected);
        all_there.set(whole && status.state == EngineState::Serving);
        *told.borrow_mut() = Some(status);
        if all_there.get() {
            return;
        }
        reactor::sleep(Duration::from_millis(20)).await;
    }
}

/// The host's last requests end.
fn end_work(cluster: &Cluster, course: &mut Course, volume: &Rc<Volume>) {
    let limit = cluster.world.now() + LIMIT + limited(volume);
    while volume.has_work() {
        course.pass(Duration::from_millis(20));
        let late = cluster.world.now() > limit;
        assert!(!late, "liveness broken: v{}: requests do not end although nothing is wrong", volume.plan.number);
    }
    course.pass(Duration::from_millis(100));
    while volume.under_way() > 0 {
        course.pass(Duration::from_millis(20));
        let (late, number, left) = (cluster.world.now() > limit, volume.plan.number, volume.under_way());
        assert!(!late, "I34 broken: v{number}: {left} requests are never answered although nothing is wrong");
    }
}

/// For how long limits may hold up what a host still has to do, and the last request for which something is owed.
fn limited(volume: &Volume) -> Duration {
    let limits = volume.limits.get();
    let requests = u64::from(volume.work() + volume.under_way() + 1);
    let time = |count: u64, rate: u64| Duration::from_secs(if rate > 0 { count.div_ceil(rate) } else { 0 });
    time(requests, limits.iops).max(time(requests * LONGEST, limits.bytes_per_second))
}

fn read_and_stop(cluster: &Cluster, volume: &Rc<Volume>) {
    let place = volume.place.get().unwrap_or_default();
    let engine = volume.engine.borrow().clone().expect("it serves");
    let way = volume.way.borrow().clone().expect("its host has done its work");
    let reading = Rc::clone(volume);
    cluster.world.block_on(cluster.nodes[&place].id, async move {
        reading.read_all(&*way.device).await;
        engine.stop().await;
    });
    let record = cluster.registry.record(volume.id);
    assert!(
        record.clean,
        "liveness broken: v{}: an engine stopped in order and left its volume unclean",
        volume.plan.number
    );
    volume.leave_path();
}

/// I24, I25 and the equality of replicas, from what the stores hold.
fn compare(cluster: &Cluster, volume: &Rc<Volume>) {
    let epoch = cluster.registry.record(volume.id).epoch + 1;
    let mut heads = Vec::new();
    let mut chains = Vec::new();
    let size = cluster.registry.record(volume.id).size;
    assert!(
        size >= volume.size.get(),
        "I39 broken: the record says {size} bytes, the host knows of {}",
        volume.size.get()
    );
    for (place, replica) in cluster.registry.replicas(volume.id) {
        let node = &cluster.nodes[&place];
        let content =
            cluster.world.block_on(node.id, Rc::clone(node).content(replica, volume.id, volume.size.get(), epoch));
        heads.push((place, content.head));
        chains.push((place, content.snapshots));
    }
    volume.check_content(&heads);
    let number = volume.plan.number;
    let ids = |chain: &[(uuid::Uuid, Vec<u8>)]| chain.iter().map(|(id, _)| *id).collect::<Vec<_>>();
    let wanted = ids(&chains[0].1);
    for (node, chain) in &chains {
        let same = ids(chain) == wanted;
        assert!(same, "I25 broken: v{number}: n{node} has other snapshots than n{}", chains[0].0);
    }
    for (id, snapshot) in volume.snapshots.borrow().iter() {
        let there = wanted.contains(id);
        let back = there && matches!(snapshot, Snapshot::Deleted);
        assert!(!back, "I26 broken: v{number}: snapshot {} was deleted and is there", short(*id));
        assert!(
            there || !matches!(snapshot, Snapshot::Taken { .. }),
            "I24 broken: v{number}: snapshot {} was acknowledged and is gone",
            short(*id)
        );
    }
    for (place, id) in wanted.iter().enumerate() {
        let contents: Vec<_> = chains.iter().map(|(node, chain)| (*node, chain[place].1.clone())).collect();
        let known = volume.snapshots.borrow().get(id).cloned();
        volume.check_snapshot(*id, known, &contents);
    }
    compare_clones(cluster, volume);
}

/// Clones hold what their snapshot held, whatever became of that.
fn compare_clones(cluster: &Cluster, volume: &Rc<Volume>) {
    let clones = volume.clones.borrow().clone();
    for clone in clones {
        let node = &cluster.nodes[&clone.node];
        let reading = Rc::clone(node).content(clone.replica, clone.volume, volume.plan.size, 1);
        let content = cluster.world.block_on(node.id, reading);
        volume.log(&format!("clone {} on n{} is looked at", clone.replica, clone.node));
        volume.check_snapshot(clone.snapshot, Some(clone.held.clone()), &[(clone.node, content.head)]);
    }
}
