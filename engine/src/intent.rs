//! Where writes may be in flight: which regions are noted with the replicas, and which have to be before a write goes out.
//!
//! A region is noted on every replica in sync before the first write to it is sent to any. It stays noted until its place is
//! needed and no write is in flight there: a region that is written again costs nothing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use block_device::Range;
use reactor::bug;

use crate::notes::CAPACITY;
use crate::regions::Regions;

/// Regions of one write that are listed at most, and half of all; with more the note says "everywhere" for as long as it takes.
const WIDE: usize = 64;

/// The part of all regions that leaves at once when room is needed, so that not each new one costs a look at what absent replicas
/// lack.
const LEAVE_AT_ONCE: usize = 8;

/// Below this a note could not take in a write to a boundary of regions.
const LEAST_CAPACITY: usize = 4;

/// A noted region.
#[derive(Default)]
struct Held {
    /// Writes in flight.
    writes: u32,
    /// When the last one began.
    used: u64,
}

/// What is noted, and what is to be.
pub(crate) struct Intents {
    /// Regions that one note lists at most.
    capacity: usize,
    noted: BTreeMap<u32, Held>,
    /// Writes too wide to be listed: in flight, and whether the note says so.
    wide: u32,
    everywhere: bool,
    wide_wanted: bool,
    /// To be noted, in the order in which they were asked for.
    wanted: VecDeque<u32>,
    is_wanted: BTreeSet<u32>,
    /// Every place is taken by writes in flight: none starts until some have ended.
    full: bool,
    /// Places of writes that wait, in order.
    waiting: VecDeque<usize>,
    clock: u64,
}

/// The next note.
pub(crate) struct Plan {
    /// All its regions.
    pub(crate) regions: Vec<u32>,
    pub(crate) everywhere: bool,
    /// Some that are noted now are not in it.
    pub(crate) leaves: bool,
    added: Vec<u32>,
}

impl Intents {
    /// Nothing is noted yet.
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            capacity: capacity.clamp(LEAST_CAPACITY, CAPACITY),
            noted: BTreeMap::new(),
            wide: 0,
            everywhere: false,
            wide_wanted: false,
            wanted: VecDeque::new(),
            is_wanted: BTreeSet::new(),
            full: false,
            waiting: VecDeque::new(),
            clock: 0,
        }
    }

    /// Whether a write may be sent now; if so it counts as in flight. If not it waits, and its regions are wanted.
    pub(crate) fn begin(&mut self, ranges: &[Range], place: usize) -> bool {
        let noted = self.is_noted(ranges);
        if self.full || !noted {
            self.want(ranges);
            self.waiting.push_back(place);
            return false;
        }
        self.clock += 1;
        match self.is_wide(ranges) {
            true => self.wide += 1,
            false => {
                for region in regions(ranges) {
                    let held = self.noted.entry(region).or_default();
                    held.writes += 1;
                    held.used = self.clock;
                }
            }
        }
        true
    }

    fn is_noted(&self, ranges: &[Range]) -> bool {
        match self.is_wide(ranges) {
            true => self.everywhere,
            false => regions(ranges).all(|region| self.noted.contains_key(&region)),
        }
    }

    fn want(&mut self, ranges: &[Range]) {
        if self.is_wide(ranges) {
            self.wide_wanted = true;
            return;
        }
        for region in regions(ranges) {
            if !self.noted.contains_key(&region) && self.is_wanted.insert(region) {
                self.wanted.push_back(region);
            }
        }
    }

    /// A write that began has been answered. Says whether someone may want to know.
    pub(crate) fn end(&mut self, ranges: &[Range]) -> bool {
        match self.is_wide(ranges) {
            true => self.wide = self.wide.saturating_sub(1),
            false => regions(ranges).for_each(|region| {
                if let Some(held) = self.noted.get_mut(&region) {
                    held.writes = held.writes.saturating_sub(1);
                }
            }),
        }
        !self.waiting.is_empty() || (self.everywhere && self.wide == 0)
    }

    /// The note to be made next, if one is needed. From here on what it leaves out is not noted any more.
    pub(crate) fn plan(&mut self) -> Option<Plan> {
        let missing = (self.noted.len() + self.wanted.len()).saturating_sub(self.capacity);
        let leaves = missing > 0 && self.let_leave(missing.max(self.capacity / LEAVE_AT_ONCE));
        let added: Vec<u32> = self.wanted.iter().copied().take(self.capacity - self.noted.len()).collect();
        self.full = added.is_empty() && !self.wanted.is_empty();
        let everywhere = self.wide > 0 || self.wide_wanted;
        if added.is_empty() && everywhere == self.everywhere {
            return None;
        }
        let mut regions: Vec<u32> = self.noted.keys().copied().chain(added.iter().copied()).collect();
        regions.sort_unstable();
        Some(Plan { regions, everywhere, leaves, added })
    }

    /// Those without writes in flight that were not used for longest.
    fn let_leave(&mut self, count: usize) -> bool {
        let mut idle: Vec<(u64, u32)> = self
            .noted
            .iter()
            .filter(|(_, held)| held.writes == 0 || bug!("let-regions-in-use-leave"))
            .map(age)
            .collect();
        idle.sort_unstable();
        idle.truncate(count);
        for (_, region) in &idle {
            self.noted.remove(region);
        }
        !idle.is_empty()
    }

    /// The note is with every replica in sync. Gives the places of writes that may be able to begin, in order.
    pub(crate) fn done(&mut self, plan: &Plan) {
        for region in &plan.added {
            self.wanted.pop_front();
            self.is_wanted.remove(region);
            self.noted.insert(*region, Held { writes: 0, used: self.clock });
        }
        self.everywhere = plan.everywhere;
        self.wide_wanted = false;
    }

    /// Takes out those that wait, to be tried again in order.
    pub(crate) fn take_waiting(&mut self) -> VecDeque<usize> {
        std::mem::take(&mut self.waiting)
    }

    /// What the note says now.
    pub(crate) fn current(&self) -> (Vec<u32>, bool) {
        (self.noted.keys().copied().collect(), self.everywhere)
    }

    fn is_wide(&self, ranges: &[Range]) -> bool {
        let count = |range: &Range| Regions::of(*range).end - Regions::of(*range).start;
        ranges.iter().map(count).sum::<u64>() > WIDE.min(self.capacity / 2) as u64
    }

    /// How many regions are noted.
    pub(crate) fn count(&self) -> usize {
        self.noted.len()
    }
}

fn age((region, held): (&u32, &Held)) -> (u64, u32) {
    (held.used, *region)
}

/// Regions are numbered in 32 bits: a volume has less than 4 EiB.
fn regions(ranges: &[Range]) -> impl Iterator<Item = u32> {
    ranges.iter().flat_map(|range| Regions::of(*range)).map(|region| region as u32)
}

/// Where writes may not be durable on every replica: what one that loses power may lack.
#[derive(Default)]
pub(crate) struct Unflushed {
    /// Nobody knows: an engine before wrote, and nothing was flushed since.
    anywhere: bool,
    now: Regions,
    /// A flush is under way for these: `anywhere`, and where.
    flushing: Option<(bool, Regions)>,
}

impl Unflushed {
    /// At the start of a session.
    pub(crate) fn new(anywhere: bool) -> Self {
        Self { anywhere, ..Self::default() }
    }

    /// A write begins, or has ended: one in flight while a flush began counts with those after it.
    pub(crate) fn wrote(&mut self, ranges: &[Range]) {
        for range in ranges {
            self.now.insert_range(*range);
        }
    }

    /// A flush of every replica begins. Says whether its end is to be told; of several at once only the first counts.
    pub(crate) fn begin_flush(&mut self) -> bool {
        if self.flushing.is_some() {
            return false;
        }
        self.flushing = Some((std::mem::take(&mut self.anywhere), std::mem::take(&mut self.now)));
        true
    }

    /// It has ended, on all replicas or not.
    pub(crate) fn end_flush(&mut self, everywhere: bool) {
        let Some((anywhere, regions)) = self.flushing.take() else { return };
        if !everywhere {
            self.anywhere |= anywhere;
            self.now.add(&regions);
        }
    }

    /// Where; none if that is not known.
    pub(crate) fn regions(&self) -> Option<Regions> {
        let mut regions = self.now.clone();
        let mut known = !self.anywhere;
        if let Some((anywhere, flushing)) = &self.flushing {
            known &= !anywhere;
            regions.add(flushing);
        }
        known.then_some(regions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::regions::REGION;

    fn write(region: u64) -> [Range; 1] {
        [Range { offset: region * REGION, length: 4096 }]
    }

    fn note(intents: &mut Intents) -> Vec<u32> {
        let plan = intents.plan().expect("something is wanted");
        intents.done(&plan);
        plan.regions
    }

    #[test]
    fn a_write_waits_until_its_regions_are_noted_and_the_next_one_does_not() {
        let mut intents = Intents::new(CAPACITY);
        let across = [Range { offset: 3 * REGION - 4096, length: 8192 }];
        assert!(!intents.begin(&across, 7));
        assert_eq!(note(&mut intents), [2, 3]);
        assert_eq!(intents.take_waiting(), [7]);
        assert!(intents.begin(&across, 7) && intents.begin(&write(3), 8));
        assert!(intents.plan().is_none(), "a region in use costs nothing");
        assert!(!intents.begin(&write(4), 9));
        assert_eq!(note(&mut intents), [2, 3, 4]);
    }

    #[test]
    fn regions_leave_when_room_is_needed_but_never_under_a_write() {
        let mut intents = Intents::new(CAPACITY);
        for region in 0..CAPACITY as u64 {
            assert!(!intents.begin(&write(region), 0));
        }
        assert_eq!(note(&mut intents).len(), CAPACITY);
        // Region 0 is in use, the next ones were used last.
        for region in (0..10).rev() {
            assert!(intents.begin(&write(region), 0));
        }
        (1..10).for_each(|region| assert!(intents.end(&write(region)) || intents.waiting.is_empty()));
        assert!(!intents.begin(&write(5000), 0));
        let plan = intents.plan().expect("one is wanted");
        assert!(plan.leaves && plan.regions.len() == CAPACITY + 1 - CAPACITY / LEAVE_AT_ONCE);
        assert!((0..10).chain([5000]).all(|region| plan.regions.contains(&region)), "in use, or used last");
        assert!(!intents.begin(&write(20), 0), "what leaves is not noted from the plan on");
    }

    #[test]
    fn when_writes_take_every_place_none_starts_until_some_have_ended() {
        let mut intents = Intents::new(CAPACITY);
        for region in 0..CAPACITY as u64 {
            assert!(!intents.begin(&write(region), 0));
        }
        note(&mut intents);
        intents.take_waiting();
        (0..CAPACITY as u64).for_each(|region| assert!(intents.begin(&write(region), 0)));
        assert!(!intents.begin(&write(5000), 1));
        assert!(intents.plan().is_none());
        assert!(!intents.begin(&write(3), 2), "or those that go on would keep it out for ever");
        assert!(intents.end(&write(3)), "someone waits for that");
        assert!(note(&mut intents).contains(&5000));
        assert_eq!(intents.take_waiting(), [1, 2]);
    }

    #[test]
    fn a_write_too_wide_to_list_is_noted_as_anywhere_for_as_long_as_it_takes() {
        let mut intents = Intents::new(CAPACITY);
        let wide = [Range { offset: 0, length: 1000 * REGION }];
        assert!(!intents.begin(&wide, 0));
        let plan = intents.plan().expect("wanted");
        assert!(plan.everywhere && plan.regions.is_empty());
        intents.done(&plan);
        assert!(intents.begin(&wide, 0));
        assert!(intents.plan().is_none());
        assert!(intents.end(&wide));
        let plan = intents.plan().expect("it is not so any more");
        assert!(!plan.everywhere);
        intents.done(&plan);
        assert!(intents.plan().is_none());
    }

    #[test]
    fn only_what_ended_before_a_flush_began_is_durable_after_it() {
        let mut unflushed = Unflushed::new(true);
        let known = |unflushed: &Unflushed| unflushed.regions().map(|regions| regions.iter().collect::<Vec<_>>());
        unflushed.wrote(&write(1));
        assert_eq!(known(&unflushed), None, "an engine before may have written anywhere");
        unflushed.wrote(&write(2));
        assert!(unflushed.begin_flush());
        assert!(!unflushed.begin_flush(), "one at a time counts");
        assert_eq!(known(&unflushed), None);
        // In flight when the flush began; it ends during it.
        unflushed.wrote(&write(2));
        unflushed.wrote(&write(3));
        unflushed.end_flush(true);
        assert_eq!(known(&unflushed), Some(vec![2, 3]));
        assert!(unflushed.begin_flush());
        assert_eq!(known(&unflushed), Some(vec![2, 3]), "not before it has ended");
        unflushed.wrote(&write(4));
        unflushed.end_flush(false);
        assert_eq!(known(&unflushed), Some(vec![2, 3, 4]));
    }
}
