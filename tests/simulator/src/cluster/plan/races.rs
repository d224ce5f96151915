//! Short plans, each around one race that a course of everything hardly ever meets: one volume, little work, and a fault at the moment
//! that matters.

use std::time::Duration;

use block_device::Limits;
use reactor::simulated::Random;

use super::generate::{Course, timing};
use super::{Act, Mix, Plan, Timing, Trouble, VolumePlan};

/// Regions of a volume, in each of which some blocks are written again and again.
const REGIONS: u64 = 8;
const REGION: u64 = 1 << 20;

const MOMENT: Duration = Duration::from_millis(1);

/// Makes the plan of a seed.
pub(crate) fn races(seed: u64) -> Plan {
    let mut random = Random::new(seed ^ 0x0000_7ACE_5EED_0001);
    let nodes = 3;
    let sectors = (0..nodes).map(|_| if random.one_in(3) { 512 } else { 4096 }).collect();
    let race = random.index(RACES.len());
    let volume = volume(nodes, &mut random);
    let timing = timing(&mut random);
    // Chance of its own: the plans of all other seeds are what they were, and of those with which searches for deliberate bugs end.
    let mut more = Random::new(seed ^ 0x0000_7ACE_5EED_0002);
    let run =
        if more.one_in(3) && !KEPT.contains(&seed) { MORE_RACES[more.index(MORE_RACES.len())] } else { RACES[race] };
    let mut race = Race { course: Course::new(vec![volume], nodes, random), timing };
    run(&mut race);
    let Race { course: Course { volumes, steps, .. }, timing } = race;
    Plan { sectors, volumes, timing, steps }
}

/// Wide, with fewer regions noted than are written to.
fn volume(nodes: usize, random: &mut Random) -> VolumePlan {
    let count = 2 + random.index(2);
    let mut all: Vec<usize> = (0..nodes).collect();
    let replicas: Vec<usize> = (0..count).map(|_| all.swap_remove(random.index(all.len()))).collect();
    let block = if random.one_in(3) { 512 } else { 4096 };
    VolumePlan {
        number: 0,
        engine: replicas[0],
        replicas,
        block,
        size: REGIONS * REGION,
        workers: 3 + random.below(4) as u32,
        hot: REGIONS,
        stride: REGION / u64::from(block),
        noted: 4,
        mix: if random.one_in(3) { Mix::Flushes } else { Mix::Writes },
        seed: random.next_u64(),
        limits: Limits::default(),
    }
}

const RACES: &[fn(&mut Race)] = &[
    Race::late_places,
    Race::late_notes,
    Race::stopped_and_cut,
    Race::begun_and_cut,
    Race::writes_beside_a_flush,
    Race::back_without_a_replica,
    Race::half_way_back,
    Race::snapshots_of_a_copy,
    Race::late_at_the_disk,
];

/// Seeds that find a deliberate bug with a plan of [`RACES`], and little else would.
const KEPT: [u64; 7] = [4, 30, 156, 324, 336, 536, 647];

const MORE_RACES: &[fn(&mut Race)] = &[
    Race::reads_beside_a_write,
    Race::cut_off_with_readers,
    Race::first_note_and_cut,
    Race::stopped_on_slow_disks,
    Race::written_while_it_is_mended,
];

struct Race {
    course: Course,
    timing: Timing,
}

impl Race {
    fn engine(&self) -> usize {
        self.course.engines[0]
    }

    /// A replica beside the engine's.
    fn other(&mut self) -> usize {
        self.course.replica(0)
    }

    fn either(&mut self) -> usize {
        if self.course.random.one_in(2) { self.engine() } else { self.other() }
    }

    fn between(&mut self, low: u64, high: u64) -> Duration {
        self.course.between(low, high)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.course.random.below(limit)
    }

    fn push(&mut self, work: u64, after: Duration, act: Act) {
        self.course.push(work, after, act);
    }

    /// Every region has blocks, and everything is durable.
    fn begin(&mut self) {
        let after = self.between(60, 150);
        self.push(40, after, Act::Flush { volume: 0 });
    }

    fn slow_writes(&mut self, node: usize, low: u64, high: u64) {
        let (trouble, lasts) = (Trouble::SlowWrites(self.between(low, high)), self.between(500, 2000));
        self.push(0, 5 * MOMENT, Act::Disk { node, trouble, lasts });
    }

    /// Engine and replica end at once, and an engine starts on either.
    fn kill_both(&mut self, work: u64, after: Duration, other: usize) {
        let (engine, to) = (self.engine(), self.either());
        let (down, other_down) = (self.between(1, 50), self.between(1, 50));
        self.push(work, after, Act::Kill { node: engine, down });
        let at_once = Duration::from_micros(self.below(100));
        self.push(0, at_once, Act::Kill { node: other, down: other_down });
        let after = self.between(0, 20);
        self.push(1, after, Act::TakeOver { volume: 0, to });
    }

    fn cut_all(&mut self, work: u64, after: Duration) {
        let (down, to) = (self.between(1, 60), self.either());
        self.push(work, after, Act::Blackout { down });
        let after = self.between(0, 20);
        self.push(1, after, Act::TakeOver { volume: 0, to });
    }

    /// I7: writes take so long at one replica that every place of the intent is wanted while they are in flight.
    fn late_places(&mut self) {
        self.begin();
        let other = self.other();
        self.slow_writes(other, 50, 400);
        let after = self.between(5, 80);
        self.kill_both(30, after, other);
    }

    /// I7, I23: regions that were noted just before a power cut.
    fn late_notes(&mut self) {
        self.begin();
        let (work, after) = (2 + self.below(6), self.between(1, 15));
        self.cut_all(work, after);
    }

    /// I4, I7: an engine that stopped in order, and writes of which nobody asked for a flush.
    fn stopped_and_cut(&mut self) {
        self.begin();
        let (to, work) = (self.either(), 2 + self.below(6));
        self.push(work, Duration::from_millis(20), Act::Move { volume: 0, to, off: Duration::from_millis(300) });
        let (after, down) = (self.between(15, 200), self.between(1, 60));
        self.push(0, after, Act::Blackout { down });
        self.push(1, Duration::from_millis(500), Act::Nothing);
    }

    /// I23: the first writes of the engine after one that stopped in order.
    fn begun_and_cut(&mut self) {
        self.begin();
        let to = self.either();
        self.push(0, Duration::from_millis(20), Act::Move { volume: 0, to, off: Duration::from_millis(30) });
        let (work, after) = (1 + self.below(5), self.between(45, 150));
        self.cut_all(work, after);
    }

    /// I23: writes that end while a flush is under way, at a replica that loses its power then.
    fn writes_beside_a_flush(&mut self) {
        self.course.volumes[0].mix = Mix::Flushes;
        self.begin();
        let node = self.other();
        self.slow_writes(node, 5, 60);
        let (work, after, down) = (6 + self.below(8), self.between(5, 80), self.between(1, 100));
        self.push(work, after, Act::PowerCut { node, down });
        self.until_whole();
    }

    /// I23: what a volume gains and loses on its way back while a replica is away.
    fn back_without_a_replica(&mut self) {
        self.begin();
        self.push(0, MOMENT, Act::Snapshot { volume: 0, count: 1 });
        self.push(40, Duration::from_millis(100), Act::Flush { volume: 0 });
        let (node, after, down) = (self.other(), self.between(5, 30), self.between(200, 800));
        self.push(0, after, Act::Kill { node, down });
        let (work, after) = (self.below(3), self.between(20, 100));
        self.push(work, after, Act::Revert { volume: 0, pick: 0 });
        self.until_whole();
    }

    /// I7, I26: the engine ends between the first replica that goes back to a snapshot and the last.
    fn half_way_back(&mut self) {
        self.begin();
        self.push(0, MOMENT, Act::Snapshot { volume: 0, count: 1 });
        self.push(30, Duration::from_millis(80), Act::Flush { volume: 0 });
        let other = self.other();
        self.slow_writes(other, 100, 400);
        self.push(0, MOMENT, Act::Revert { volume: 0, pick: 0 });
        let after = self.between(3, 40);
        self.kill_both(0, after, other);
    }

    /// I24, I25: a volume is cut again and again while one of its replicas is copied to.
    fn snapshots_of_a_copy(&mut self) {
        self.begin();
        let (node, down) = (self.other(), self.between(10, 40));
        self.push(0, 5 * MOMENT, Act::Kill { node, down });
        self.push(60, Duration::from_millis(150), Act::Nothing);
        self.slow_writes(node, 2, 30);
        for _ in 0..8 + self.below(8) {
            let after = self.between(15, 80);
            self.push(2, after, Act::Snapshot { volume: 0, count: 1 });
        }
        self.until_whole();
    }

    /// I13, I15: writes are at a slow disk when another engine is granted the replica.
    fn late_at_the_disk(&mut self) {
        self.begin();
        let node = self.other();
        self.slow_writes(node, 50, 400);
        for to in [node, self.either()] {
            let after = self.between(5, 60);
            self.push(10, after, Act::TakeOver { volume: 0, to });
        }
        self.push(8, Duration::from_millis(400), Act::Nothing);
    }

    /// I9: reads meet a write that is late at another replica, whose process ends with the engine's.
    fn reads_beside_a_write(&mut self) {
        self.on_one_block();
        self.begin();
        let (engine, other) = (self.engine(), self.other());
        // Later than writes, and not so late that another replica is asked.
        let (trouble, lasts) = (Trouble::SlowReads(self.between(1, 5)), self.between(500, 2000));
        self.push(0, 5 * MOMENT, Act::Disk { node: engine, trouble, lasts });
        self.slow_writes(other, 100, 400);
        let after = self.between(2, 60);
        self.kill_both(20, after, other);
    }

    /// I9, I14: an engine is cut off with its replica while nothing is in flight, and another one takes the volume. The older one still has
    /// readers when the newer one has acknowledged something.
    fn cut_off_with_readers(&mut self) {
        // So short that only the lease keeps the newer one waiting.
        self.timing.open_wait = self.between(20, 100);
        self.begin();
        let (node, to, lease) = (self.engine(), self.other(), self.timing.lease);
        let (after, lasts) = (self.between(100, 250), 4 * lease);
        self.push(0, after, Act::Isolate { node, inbound: true, outbound: true, lasts });
        let after = self.between(0, 20);
        self.push(0, after, Act::TakeOver { volume: 0, to });
        // A host whose engine does not serve yet uses up its requests in no time.
        for _ in 0..48 {
            self.push(2, lease / 16, Act::Nothing);
        }
    }

    /// I7, I23: the first region that an engine writes to after one that stopped in order. Its note and its writes are all that a power cut
    /// can take.
    fn first_note_and_cut(&mut self) {
        // All in one region, and more than the host writes to in the end.
        let volume = &mut self.course.volumes[0];
        (volume.hot, volume.stride, volume.mix) = (48, 1, Mix::Writes);
        self.begin();
        self.push(60, 100 * MOMENT, Act::Flush { volume: 0 });
        let to = self.either();
        self.push(0, 20 * MOMENT, Act::Move { volume: 0, to, off: 30 * MOMENT });
        // Until it serves.
        let after = self.between(90, 200);
        self.push(0, after, Act::Nothing);
        let (work, after) = (1 + self.below(5), self.between(2, 15));
        self.cut_all(work, after);
    }

    /// I4, I7: an engine stops in order, and every disk is so slow that the power goes before all has become durable after the record said
    /// that nothing is left to settle.
    fn stopped_on_slow_disks(&mut self) {
        self.course.volumes[0].mix = Mix::Writes;
        self.begin();
        let late = self.between(20, 40);
        for node in self.course.volumes[0].replicas.clone() {
            let lasts = self.between(500, 2000);
            self.push(0, MOMENT, Act::Disk { node, trouble: Trouble::Slow(late), lasts });
        }
        let (to, work, after) = (self.either(), 2 + self.below(6), self.between(20, 100));
        self.push(work, after, Act::Move { volume: 0, to, off: 300 * MOMENT });
        let (after, down) = (self.between(20, 250), self.between(1, 60));
        self.push(0, after, Act::Blackout { down });
        self.push(1, 500 * MOMENT, Act::Nothing);
    }

    /// I17, I22: a block that one replica cannot read gets what another one has, while it is written anew.
    fn written_while_it_is_mended(&mut self) {
        self.on_one_block();
        self.begin();
        let node = self.engine();
        self.slow_writes(node, 5, 60);
        for _ in 0..6 {
            let (after, lasts) = (self.between(10, 60), self.between(500, 1500));
            self.push(6, after, Act::LosePlaces { volume: 0, node, count: 4, lasts });
        }
        self.push(8, 200 * MOMENT, Act::Nothing);
    }

    /// As many reads as writes of one block: they meet.
    fn on_one_block(&mut self) {
        let volume = &mut self.course.volumes[0];
        (volume.hot, volume.mix) = (1, Mix::Reads);
    }

    fn until_whole(&mut self) {
        let limit = Duration::from_secs(5);
        self.push(2, 20 * MOMENT, Act::Whole { volume: 0, limit });
    }
}
