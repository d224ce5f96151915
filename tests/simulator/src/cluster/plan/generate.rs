//! Plans from seeds. Faults come alone and in the combinations that have lost data elsewhere.

use std::time::Duration;

use block_device::Limits;
use reactor::simulated::Random;

use super::limits::limit;
use super::{Act, Mix, Plan, Step, Timing, Trouble, VolumePlan};

/// Steps after which no story begins any more.
const STEPS: u64 = 14;

/// Makes the plan of a seed.
pub(crate) fn generate(seed: u64) -> Plan {
    let mut random = Random::new(seed ^ 0x0000_91A2_B3C4_D5E6);
    let nodes = 3 + random.index(3);
    let sectors = (0..nodes).map(|_| if random.one_in(3) { 512 } else { 4096 }).collect();
    let count = 1 + random.index(3);
    let volumes: Vec<_> = (0..count).map(|number| volume(number, nodes, &mut random)).collect();
    let timing = timing(&mut random);
    // Chance of its own: the plans of all other seeds are what they were.
    let mut more = Random::new(seed ^ 0x0000_1057_4EC0_4D00);
    let (may_lose, may_cut_off) = (more.one_in(4), more.one_in(6));
    let mut last = Random::new(seed ^ 0x0000_0F0C_E000_0001);
    let (may_force, may_damage) = (last.one_in(5), last.one_in(5));
    let mut course = Course::new(volumes, nodes, random);
    let length = 3 + course.random.below(STEPS - 3);
    while (course.steps.len() as u64) < length {
        if may_force && last.one_in(3) {
            course.given_up();
            continue;
        }
        if may_damage && last.one_in(3) {
            if last.one_in(3) {
                course.rotten()
            } else {
                course.unreadable()
            }
            continue;
        }
        match (may_lose && more.one_in(3), may_cut_off && more.one_in(4)) {
            (true, _) => course.lost_record(),
            (false, true) => course.cut_off(timing.lease),
            (false, false) => course.story(),
        }
    }
    let Course { volumes, steps, .. } = course;
    let mut plan = Plan { sectors, volumes, timing, steps };
    limit(&mut plan, seed);
    plan
}

fn volume(number: usize, nodes: usize, random: &mut Random) -> VolumePlan {
    // Three replicas have the most to go wrong.
    let count = [1, 2, 2, 3, 3, 3][random.index(6)];
    let mut all: Vec<usize> = (0..nodes).collect();
    let replicas: Vec<usize> = (0..count).map(|_| all.swap_remove(random.index(all.len()))).collect();
    let engine = if random.one_in(4) { random.index(nodes) } else { replicas[0] };
    let block = if random.one_in(3) { 512 } else { 4096 };
    let most = [4, 32][random.index(2)];
    let hot = 1 + random.below(most);
    // A wide one has more regions than are noted at a time.
    let is_wide = random.one_in(2);
    let size = match (is_wide, block) {
        (true, _) => (5 + random.below(4)) << 20,
        (false, 512) => 768 << 10,
        (false, _) => [1 << 20, 2 << 20, 5 << 19][random.index(3)],
    };
    let stride = if is_wide { size / u64::from(block) / hot } else { 1 };
    let noted = [4, 4, 8, 1000][random.index(4)];
    VolumePlan {
        number,
        replicas,
        engine,
        block,
        size,
        workers: 1 + random.below(6) as u32,
        hot,
        stride,
        noted,
        mix: Mix::Everything,
        seed: random.next_u64(),
        limits: Limits::default(),
    }
}

pub(super) fn timing(random: &mut Random) -> Timing {
    let milliseconds = Duration::from_millis;
    let slow = random.one_in(8);
    let mut timing = Timing {
        deadline: milliseconds(if slow { 4000 } else { 500 + random.below(700) }),
        open_wait: milliseconds(if slow { 5000 } else { 100 + random.below(1000) }),
        open_limit: milliseconds(if slow { 3000 } else { 300 + random.below(700) }),
        ping: milliseconds(if slow { 1000 } else { 100 + random.below(200) }),
        silence: milliseconds(if slow { 4000 } else { 500 + random.below(500) }),
        lease: Duration::ZERO,
    };
    timing.lease = timing.ping + timing.silence * 5 / 4;
    timing
}

/// A course while it is made.
pub(super) struct Course {
    pub(super) volumes: Vec<VolumePlan>,
    /// Where each volume's engine runs by now.
    pub(super) engines: Vec<usize>,
    nodes: usize,
    pub(super) random: Random,
    pub(super) steps: Vec<Step>,
}

impl Course {
    /// Nothing happens yet.
    pub(super) fn new(volumes: Vec<VolumePlan>, nodes: usize, random: Random) -> Self {
        let engines = volumes.iter().map(|volume| volume.engine).collect();
        Self { engines, volumes, nodes, random, steps: Vec::new() }
    }

    /// One fault, or several that belong together.
    fn story(&mut self) {
        match self.random.below(34) {
            0..5 => self.anything(),
            5 | 6 => self.replica_then_engine(),
            7..10 => self.second_engine(),
            10 => self.blackout(),
            11 => self.stopped_and_blackout(),
            12 | 13 => self.rebuild_under_work(),
            14 => self.rebuild_behind_a_slow_write(),
            15 => self.rebuild_and_blackout(),
            16 => self.snapshots(),
            17 => self.liar(),
            18 => self.crash_and_fail_over(),
            19 => self.unmap_under_a_snapshot(),
            20 | 21 => self.late_writes(),
            22 | 23 => self.whole_and_blackout(),
            24 => self.moved_and_blackout(),
            25..28 => self.outages(),
            28..30 => self.administration(),
            30 | 31 => self.back_to_a_snapshot(),
            _ => self.replacement(),
        }
    }

    pub(super) fn push(&mut self, work: u64, after: Duration, act: Act) {
        let number = self.steps.len();
        match act {
            Act::Move { volume, to, .. } | Act::TakeOver { volume, to } => self.engines[volume] = to,
            _ => {}
        }
        // A number of requests that a person could count.
        self.steps.push(Step { number, work: work as u32, after, act });
    }

    /// Moments, or so long that limits pass; few are in between.
    fn pause(&mut self) -> Duration {
        let limit = Duration::from_micros(100) * (1 << self.random.below(9));
        match self.random.below(6) {
            0 => self.random.duration(&(Duration::from_millis(100)..=Duration::from_millis(2500))),
            _ => self.random.duration(&(Duration::ZERO..=limit)),
        }
    }

    fn moment(&mut self) -> Duration {
        let limit = Duration::from_micros(50) * (1 << self.random.below(9));
        self.random.duration(&(Duration::ZERO..=limit))
    }

    pub(super) fn between(&mut self, low: u64, high: u64) -> Duration {
        self.random.duration(&(Duration::from_millis(low)..=Duration::from_millis(high)))
    }

    fn work(&mut self) -> u64 {
        let limit = 1 << (2 + self.random.below(6));
        self.random.below(limit)
    }

    fn node(&mut self) -> usize {
        self.random.index(self.nodes)
    }

    fn other(&mut self, node: usize) -> usize {
        (node + 1 + self.random.index(self.nodes - 1)) % self.nodes
    }

    /// A volume, with several replicas if there is one.
    fn replicated(&mut self) -> usize {
        let several: Vec<usize> =
            self.volumes.iter().filter(|volume| volume.replicas.len() > 1).map(|volume| volume.number).collect();
        if several.is_empty() {
            self.random.index(self.volumes.len())
        } else {
            several[self.random.index(several.len())]
        }
    }

    /// The node of a replica of the volume, another one than that of the engine if there is one.
    pub(super) fn replica(&mut self, volume: usize) -> usize {
        let engine = self.engines[volume];
        let mut nodes = self.volumes[volume].replicas.clone();
        if nodes.len() > 1 {
            nodes.retain(|node| *node != engine);
        }
        nodes[self.random.index(nodes.len())]
    }

    fn end(&mut self, node: usize, low: u64, high: u64) -> Act {
        let down = self.between(low, high);
        if self.random.one_in(2) { Act::Kill { node, down } } else { Act::PowerCut { node, down } }
    }

    fn anything(&mut self) {
        let (work, after) = (self.work(), self.pause());
        let (node, lasts) = (self.node(), self.between(1, 3000));
        let other = self.other(node);
        let volume = self.random.index(self.volumes.len());
        let act = match self.random.below(16) {
            0 => Act::Kill { node, down: lasts },
            1 => Act::PowerCut { node, down: lasts },
            2 => Act::Pause { node, lasts },
            3 => Act::Partition { from: node, to: other, both: self.random.one_in(2), lasts },
            4 => self.isolation(node, lasts),
            5 => Act::Reset { one: node, other },
            6 => Act::Delay { one: node, other, delay: self.between(1, 200), lasts },
            7 => Act::RegistryAway { node, lasts },
            8 => Act::RegistryMute { lasts },
            9 | 10 => Act::Disk { node, trouble: self.trouble(), lasts },
            11 => Act::ClockJump { node, seconds: self.random.below(200_000) as i64 - 100_000 },
            12 => Act::Move { volume, to: other, off: self.between(1, 300) },
            13 => Act::Snapshot { volume, count: 1 },
            _ => self.administrative(volume),
        };
        self.push(work, after, act);
    }

    fn isolation(&mut self, node: usize, lasts: Duration) -> Act {
        let ways = self.random.below(4);
        Act::Isolate { node, inbound: ways != 1, outbound: ways != 2, lasts }
    }

    fn trouble(&mut self) -> Trouble {
        match self.random.below(8) {
            0 => Trouble::FailReads,
            1 => Trouble::FailWrites,
            2 => Trouble::FailSyncs,
            3 => Trouble::Hang,
            4 => Trouble::Slow(self.between(1, 700)),
            5 => Trouble::SlowWrites(self.between(1, 400)),
            6 => Trouble::Full,
            _ => Trouble::LoseSyncs,
        }
    }

    /// I1: a replica is lost, the engine soon after it, and the replica is the first to be back.
    fn replica_then_engine(&mut self) {
        let volume = self.replicated();
        let (replica, engine) = (self.replica(volume), self.engines[volume]);
        let (work, after, lasts) = (self.work() + 8, self.pause(), self.between(5, 80));
        let act = match self.random.below(5) {
            0 => Act::Pause { node: replica, lasts },
            1 => self.isolation(replica, lasts),
            2 => Act::Reset { one: engine, other: replica },
            _ => self.end(replica, 1, 40),
        };
        self.push(work, after, act);
        let (after, act) = (self.moment(), self.end(engine, 20, 1500));
        self.push(8, after, act);
        let after = self.moment();
        self.push(4, after, Act::TakeOver { volume, to: replica });
    }

    /// I14, I15: an engine is slow or cut off, another takes over, and the first comes back.
    fn second_engine(&mut self) {
        let volume = self.replicated();
        let engine = self.engines[volume];
        let to = if self.random.one_in(3) { self.other(engine) } else { self.replica(volume) };
        let (work, after, lasts) = (self.work() + 8, self.pause(), self.between(5, 1500));
        let slow = self.replica(volume);
        let act = match self.random.below(7) {
            0 | 1 => Act::Pause { node: engine, lasts },
            2 => self.isolation(engine, lasts),
            3 => Act::Disk { node: slow, trouble: Trouble::Hang, lasts },
            4 => Act::Disk { node: slow, trouble: Trouble::SlowWrites(self.between(5, 400)), lasts },
            5 => Act::RegistryAway { node: engine, lasts },
            _ => Act::Nothing,
        };
        self.push(work, after, act);
        let after = self.moment();
        self.push(8, after, Act::TakeOver { volume, to });
        if self.random.one_in(3) {
            let (after, node) = (self.pause(), self.replica(volume));
            let act = self.end(node, 1, 100);
            self.push(8, after, act);
        }
        if self.random.one_in(3) {
            let (after, to) = (self.moment(), self.replica(volume));
            self.push(8, after, Act::TakeOver { volume, to });
        }
    }

    /// I4: everything loses its power, and an engine starts anywhere.
    fn blackout(&mut self) {
        let (work, after, down) = (self.work() + 8, self.pause(), self.between(1, 400));
        self.push(work, after, Act::Blackout { down });
        self.start_anywhere();
    }

    fn start_anywhere(&mut self) {
        for volume in 0..self.volumes.len() {
            let (after, to) = (self.moment(), self.replica(volume));
            self.push(2, after, Act::TakeOver { volume, to });
        }
    }

    /// An engine that stopped in order says that nothing has to be settled: also after a power cut.
    fn stopped_and_blackout(&mut self) {
        let volume = self.replicated();
        let (to, work, after) = (self.replica(volume), self.work() + 8, self.pause());
        self.push(work, after, Act::Move { volume, to, off: Duration::from_millis(600) });
        let (after, down) = (self.between(20, 550), self.between(1, 100));
        self.push(0, after, Act::Blackout { down });
        self.push(8, Duration::from_millis(700), Act::Nothing);
    }

    /// I17: writes beside the copy of a rebuild, which faults end now and then.
    fn rebuild_under_work(&mut self) {
        let volume = self.replicated();
        let (node, work, after) = (self.replica(volume), self.work() + 8, self.pause());
        let act = self.end(node, 1, 200);
        self.push(work, after, act);
        for _ in 0..2 + self.random.below(4) {
            let after = self.between(20, 400);
            self.push(24, after, Act::Nothing);
        }
        let victim = if self.random.one_in(2) { self.engines[volume] } else { self.replica(volume) };
        let after = self.moment();
        let act = match self.random.below(6) {
            0 => self.end(victim, 1, 300),
            1 => Act::Snapshot { volume, count: 1 },
            2 => Act::TakeOver { volume, to: node },
            3 => Act::Disk { node: victim, trouble: Trouble::FailWrites, lasts: self.between(1, 500) },
            _ => Act::Nothing,
        };
        self.push(16, after, act);
    }

    /// I17: writes that take long are in flight when the copy begins.
    fn rebuild_behind_a_slow_write(&mut self) {
        let volume = self.replicated();
        let (node, engine) = (self.replica(volume), self.engines[volume]);
        let (work, after) = (self.work(), self.pause());
        let act = self.end(node, 1, 50);
        self.push(work, after, act);
        let trouble = Trouble::SlowWrites(self.between(20, 300));
        let lasts = self.between(1000, 3000);
        let source = if self.volumes[volume].replicas.contains(&engine) { engine } else { self.replica(volume) };
        self.push(4, Duration::from_millis(20), Act::Disk { node: source, trouble, lasts });
        for _ in 0..6 {
            let after = self.between(50, 300);
            self.push(6, after, Act::Nothing);
        }
    }

    /// I21: a replica is just in sync again when the power fails, and becomes the source.
    fn rebuild_and_blackout(&mut self) {
        let volume = self.replicated();
        let node = self.replica(volume);
        let (work, after) = (self.work() + 8, self.pause());
        let act = self.end(node, 1, 20);
        self.push(work, after, act);
        let after = self.between(5, 200);
        self.push(48, after, Act::Nothing);
        let (after, down) = (self.between(200, 700), self.between(1, 100));
        self.push(0, after, Act::Blackout { down });
        let after = self.moment();
        self.push(0, after, Act::TakeOver { volume, to: node });
        self.push(24, Duration::from_millis(400), Act::Nothing);
    }

    /// I13, I15: writes are late at a disk when the replica is granted anew.
    fn late_writes(&mut self) {
        let volume = self.replicated();
        let (node, work, after) = (self.replica(volume), self.work(), self.pause());
        let trouble = Trouble::SlowWrites(self.between(50, 400));
        let lasts = self.between(500, 2000);
        self.push(work, after, Act::Disk { node, trouble, lasts });
        for _ in 0..2 + self.random.below(3) {
            let after = self.between(2, 60);
            let engine = self.engines[volume];
            let act = match self.random.below(4) {
                0 => Act::Reset { one: engine, other: node },
                1 => Act::Kill { node: engine, down: self.between(1, 20) },
                _ => Act::TakeOver { volume, to: if self.random.one_in(2) { engine } else { self.replica(volume) } },
            };
            self.push(16, after, act);
        }
        self.push(16, Duration::from_millis(400), Act::Nothing);
    }

    /// I24, I25: snapshots beside writes and crashes.
    fn snapshots(&mut self) {
        let volume = self.replicated();
        for _ in 0..1 + self.random.below(3) {
            let (work, after, count) = (self.work() + 8, self.moment(), 1 + self.random.below(2) as u32);
            self.push(work, after, Act::Snapshot { volume, count });
        }
        if self.random.one_in(2) {
            let node = if self.random.one_in(2) { self.engines[volume] } else { self.replica(volume) };
            let (after, act) = (self.moment(), self.end(node, 1, 800));
            self.push(8, after, act);
        }
    }

    /// A disk whose cache lies, and a power cut of it: what its replica has is not to be trusted.
    fn liar(&mut self) {
        let volume = self.replicated();
        let node = self.replica(volume);
        let (work, after, lasts) = (self.work(), self.pause(), self.between(500, 2000));
        self.push(work, after, Act::Disk { node, trouble: Trouble::LoseSyncs, lasts });
        let (work, after, down) = (self.work() + 8, self.between(10, 400), self.between(1, 200));
        self.push(work, after, Act::PowerCut { node, down });
    }

    /// I7: an engine dies with writes in flight; reads of the next one settle them.
    fn crash_and_fail_over(&mut self) {
        let volume = self.replicated();
        let engine = self.engines[volume];
        let (work, after) = (self.work() + 8, self.moment());
        let act = self.end(engine, 100, 1500);
        self.push(work, after, act);
        for _ in 0..1 + self.random.below(2) {
            let (after, to) = (self.pause(), self.replica(volume));
            self.push(16, after, Act::TakeOver { volume, to });
        }
    }

    /// I18: what was unmapped since a snapshot stays so on a replica made anew.
    fn unmap_under_a_snapshot(&mut self) {
        let volume = self.replicated();
        let work = self.work() + 16;
        let after = self.pause();
        self.push(work, after, Act::Snapshot { volume, count: 1 });
        let (node, after) = (self.replica(volume), self.between(5, 60));
        let act = self.end(node, 1, 50);
        self.push(40, after, act);
        let after = self.between(300, 1500);
        self.push(8, after, Act::Nothing);
    }

    /// I21: all replicas are in sync since a moment when the power fails, and little was written meanwhile. The last to come back
    /// becomes the source.
    fn whole_and_blackout(&mut self) {
        let volume = self.replicated();
        let node = self.replica(volume);
        let (work, after) = (self.work() + 24, self.pause());
        let act = self.end(node, 1, 20);
        self.push(work, after, act);
        let (work, after, limit) = (self.work(), self.between(1, 100), Duration::from_secs(8));
        self.push(work, after, Act::Whole { volume, limit });
        let (work, after, down) = (self.random.below(4), self.moment(), self.between(1, 100));
        self.push(work, after, Act::Blackout { down });
        let after = self.moment();
        self.push(2, after, Act::TakeOver { volume, to: node });
        self.push(16, Duration::from_millis(400), Act::Nothing);
    }

    /// I23: an engine stopped in order, and the next one has written little when the power fails.
    fn moved_and_blackout(&mut self) {
        let volume = self.replicated();
        let (to, work, after) = (self.replica(volume), self.work() + 8, self.pause());
        self.push(work, after, Act::Move { volume, to, off: Duration::from_millis(30) });
        let (work, after, down) = (1 + self.random.below(6), self.between(50, 250), self.between(1, 100));
        self.push(work, after, Act::Blackout { down });
        let (after, to) = (self.moment(), self.replica(volume));
        self.push(2, after, Act::TakeOver { volume, to });
        self.push(8, Duration::from_millis(700), Act::Nothing);
    }

    /// I23: replicas go and come back, one after the other, and only what they lack is copied.
    fn outages(&mut self) {
        let volume = self.replicated();
        for _ in 0..1 + self.random.below(3) {
            let (node, work, after) = (self.replica(volume), self.work() + 8, self.pause());
            let lasts = self.between(5, 900);
            let act = match self.random.below(6) {
                0 => Act::Pause { node, lasts },
                1 => self.isolation(node, lasts),
                2 => Act::Reset { one: self.engines[volume], other: node },
                3 => Act::Kill { node, down: lasts },
                _ => Act::PowerCut { node, down: lasts },
            };
            self.push(work, after, act);
            let work = self.work() + 8;
            let after = self.between(1, 1500);
            let engine = self.engines[volume];
            let act = match self.random.below(8) {
                0 => Act::Snapshot { volume, count: 1 },
                1 => self.end(engine, 1, 200),
                2 => Act::TakeOver { volume, to: self.replica(volume) },
                3 => self.administrative(volume),
                _ => Act::Nothing,
            };
            self.push(work, after, act);
            let work = self.work();
            let limit = self.between(500, 5000);
            self.push(work, Duration::from_millis(1), Act::Whole { volume, limit });
        }
    }

    /// I24 to I26, I39: what people do to volumes, beside writes and crashes.
    fn administration(&mut self) {
        let volume = self.replicated();
        let (work, after) = (self.work() + 8, self.moment());
        self.push(work, after, Act::Snapshot { volume, count: 1 });
        for _ in 0..2 + self.random.below(4) {
            let (work, after) = (self.work() + 4, self.pause());
            let act = match self.random.below(5) {
                0 => Act::Snapshot { volume, count: 1 },
                _ => self.administrative(volume),
            };
            self.push(work, after, act);
            if self.random.one_in(3) {
                let node = if self.random.one_in(2) { self.engines[volume] } else { self.replica(volume) };
                let (after, act) = (self.moment(), self.end(node, 1, 800));
                self.push(4, after, act);
            }
        }
    }

    /// I7, I23: a volume goes back to a snapshot while a replica is away, or its engine ends.
    fn back_to_a_snapshot(&mut self) {
        let volume = self.replicated();
        let (work, after) = (self.work() + 8, self.moment());
        self.push(work, after, Act::Snapshot { volume, count: 1 });
        let (away, work, after) = (self.replica(volume), self.work() + 16, self.between(20, 200));
        let act = if self.random.one_in(3) { Act::Nothing } else { self.end(away, 200, 1500) };
        self.push(work, after, act);
        let (work, after, pick) = (self.work(), self.pause(), self.random.index(8));
        self.push(work, after, Act::Revert { volume, pick });
        let engine = self.engines[volume];
        let (after, act) = match self.random.below(3) {
            0 => (self.moment(), self.end(engine, 1, 400)),
            1 => (self.moment(), Act::TakeOver { volume, to: self.replica(volume) }),
            _ => (self.between(1, 100), Act::Nothing),
        };
        self.push(8, after, act);
        let limit = self.between(500, 5000);
        self.push(8, Duration::from_millis(20), Act::Whole { volume, limit });
    }

    /// A replica takes the place of another one, which goes before or after it is there.
    fn replacement(&mut self) {
        let volume = self.replicated();
        let (node, work, after) = (self.node(), self.work(), self.pause());
        self.push(work, after, Act::Add { volume, node });
        if self.random.one_in(2) {
            let (work, limit) = (self.work(), self.between(100, 5000));
            self.push(work, Duration::from_millis(30), Act::Whole { volume, limit });
        }
        let (work, after, pick) = (self.work(), self.pause(), self.random.index(8));
        self.push(work, after, Act::Remove { volume, pick });
        if self.random.one_in(2) {
            let node = if self.random.one_in(2) { self.engines[volume] } else { self.replica(volume) };
            let (after, act) = (self.moment(), self.end(node, 1, 400));
            self.push(8, after, act);
        }
    }

    /// I1, I5, I6: the registry has no record of a volume any more, and what the replicas' copies say counts: some of them are old, and
    /// some are away. The engine that served goes on, dies with the record, or is replaced.
    fn lost_record(&mut self) {
        let volume = self.replicated();
        let (node, work, after) = (self.replica(volume), self.work() + 8, self.pause());
        let lasts = self.between(20, 2500);
        let act = match self.random.below(6) {
            0 => Act::Pause { node, lasts },
            1 => self.isolation(node, lasts),
            2 => Act::Nothing,
            _ => self.end(node, 20, 2500),
        };
        self.push(work, after, act);
        let engine = self.engines[volume];
        let (work, after) = (self.work() + 12, self.between(1, 1500));
        let act = match self.random.below(8) {
            0 => Act::Blackout { down: self.between(1, 1500) },
            1 => self.administrative(volume),
            2 | 3 => Act::Nothing,
            _ => self.end(engine, 1, 1500),
        };
        self.push(work, after, act);
        let (work, after) = (self.work(), self.moment());
        self.push(work, after, Act::LoseRecord { volume });
        for _ in 0..1 + self.random.below(2) {
            let (after, to) = (self.pause(), if self.random.one_in(2) { node } else { self.replica(volume) });
            self.push(8, after, Act::TakeOver { volume, to });
        }
        let limit = self.between(500, 5000);
        self.push(16, Duration::from_millis(20), Act::Whole { volume, limit });
    }

    /// I5, I6: a replica is left behind, those that have everything newer are lost, and a person makes the old one count. They come back after
    /// all.
    fn given_up(&mut self) {
        let volume = self.replicated();
        let (node, work, after) = (self.replica(volume), self.work() + 8, self.pause());
        let act = self.end(node, 1, 150);
        self.push(work, after, act);
        // After a departure a replica is left alone for a while.
        let (work, after, down) = (self.work() + 8, self.between(100, 450), self.between(500, 6000));
        self.push(work, after, Act::Force { volume, down });
        let limit = self.between(500, 5000);
        self.push(16, Duration::from_millis(20), Act::Whole { volume, limit });
    }

    /// I22: one copy of some blocks cannot be read, while others are written, copied, lost and cut.
    fn unreadable(&mut self) {
        let volume = self.replicated();
        let engine = self.engines[volume];
        let is_there = self.volumes[volume].replicas.contains(&engine) && !self.random.one_in(3);
        let node = if is_there { engine } else { self.replica(volume) };
        for _ in 0..1 + self.random.below(3) {
            let (work, after) = (self.work() + 8, self.pause());
            let (count, lasts) = (1 + self.random.index(6), self.between(50, 2500));
            self.push(work, after, Act::LosePlaces { volume, node, count, lasts });
        }
        let (work, after, victim) = (self.work() + 8, self.pause(), self.replica(volume));
        let act = match self.random.below(6) {
            0 => self.end(victim, 1, 300),
            1 => self.end(engine, 1, 300),
            2 => Act::Snapshot { volume, count: 1 },
            3 => self.administrative(volume),
            _ => Act::Nothing,
        };
        self.push(work, after, act);
    }

    /// I22: bits of snapshots turn with one replica, and a scrub tells.
    fn rotten(&mut self) {
        let volume = self.replicated();
        let (work, after) = (self.work() + 8, self.moment());
        self.push(work, after, Act::Snapshot { volume, count: 1 });
        let (work, limit) = (self.work() + 8, self.between(1000, 5000));
        self.push(work, Duration::from_millis(30), Act::Whole { volume, limit });
        let (after, pick, count) = (self.between(500, 3500), self.random.index(8), 1 + self.random.index(6));
        self.push(0, after, Act::Rot { volume, pick, count });
    }

    /// I9, I14: an engine is cut off with a replica of its node for longer than its reads may go on, and another one serves without it.
    fn cut_off(&mut self, lease: Duration) {
        let volume = self.replicated();
        let (engine, to) = (self.engines[volume], self.replica(volume));
        let (work, after, lasts) = (self.work() + 8, self.pause(), 3 * lease + self.between(0, 3000));
        self.push(work, after, Act::Isolate { node: engine, inbound: true, outbound: true, lasts });
        let after = self.between(1, 300);
        self.push(4, after, Act::TakeOver { volume, to });
        for _ in 0..3 {
            let after = lease / 2 + self.between(1, 500);
            self.push(8, after, Act::Nothing);
        }
    }

    fn administrative(&mut self, volume: usize) -> Act {
        let (node, pick) = (self.node(), self.random.index(8));
        match self.random.below(6) {
            0 => Act::Delete { volume, pick },
            1 => Act::Revert { volume, pick },
            2 => Act::CloneOf { volume, pick },
            3 => Act::Grow { volume, eighths: 8 + self.random.below(6) },
            4 => Act::Add { volume, node },
            _ => Act::Remove { volume, pick },
        }
    }
}
