//! Crash points: everything a run did to a disk, and what the disk may hold had the power gone at any step of it.

use std::collections::VecDeque;
use std::sync::Arc;

use super::crash::{Fate, after_power_cut};
use super::image::{Change, DiskImage};
use super::random::Random;

/// Single writes of a crash point that [`Cut::survivals`] treats one by one, at most.
const SINGLES: usize = 24;

/// What was done to a disk since recording began: a list of steps, each the start or the end of a write or a sync.
#[derive(Clone, Debug)]
pub struct DiskHistory {
    base: DiskImage,
    steps: Vec<Step>,
}

#[derive(Clone, Debug)]
enum Step {
    Started(u64, Arc<Change>),
    /// A write ended, and which number of done writes it got.
    Done(u64, u64),
    /// Done writes with numbers below this are stable now.
    Synced(u64),
    Resized(u64),
}

impl DiskHistory {
    pub(crate) fn new(base: DiskImage) -> Self {
        Self { base, steps: Vec::new() }
    }

    pub(crate) fn started(&mut self, id: u64, change: &Arc<Change>) {
        self.steps.push(Step::Started(id, Arc::clone(change)));
    }

    pub(crate) fn done(&mut self, id: u64, number: u64) {
        self.steps.push(Step::Done(id, number));
    }

    pub(crate) fn synced(&mut self, below: u64) {
        self.steps.push(Step::Synced(below));
    }

    pub(crate) fn resized(&mut self, size: u64) {
        self.steps.push(Step::Resized(size));
    }

    /// How many steps there are.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Whether nothing was done.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Each point at which the power may go: before the first step, and after each of them. The cut after `n` steps is
    /// the `n`th element, counted from zero.
    pub fn cuts(&self) -> impl Iterator<Item = Cut> + '_ {
        let mut cut = Cut::new(self.base.clone());
        std::iter::once(cut.clone()).chain(self.steps.iter().map(move |step| {
            cut.advance(step);
            cut.clone()
        }))
    }

    /// The point after the first `steps` steps.
    ///
    /// # Panics
    /// When there are not so many.
    pub fn cut(&self, steps: usize) -> Cut {
        let mut cut = Cut::new(self.base.clone());
        for step in &self.steps[..steps] {
            cut.advance(step);
        }
        cut
    }
}

/// One point at which the power may go: what is stable, and the writes that may or may not be there.
#[derive(Clone, Debug)]
pub struct Cut {
    durable: DiskImage,
    /// Done but not synced, with their numbers in the order in which they were done.
    done: VecDeque<(u64, Arc<Change>)>,
    in_flight: Vec<(u64, Arc<Change>)>,
}

/// Which of the unsynced writes of a [`Cut`] survive. Writes count from zero: those done, in order, then those in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survival {
    /// None.
    AllLost,
    /// Those that were done, as after a kill of the process.
    Done,
    /// All.
    AllKept,
    /// This many, counted from the first.
    First(usize),
    /// Only this one: it overtook all others.
    Only(usize),
    /// All but this one.
    Without(usize),
    /// The writes before this one, and of this one the first sectors.
    Torn {
        /// The write.
        write: usize,
        /// How many of its sectors: units of the disk's alignment.
        sectors: u64,
    },
    /// Those whose bits are set, each whole.
    These(u64),
    /// Any mixture, sector by sector, from this seed.
    Random(u64),
}

impl Cut {
    fn new(base: DiskImage) -> Self {
        Self { durable: base, done: VecDeque::new(), in_flight: Vec::new() }
    }

    fn advance(&mut self, step: &Step) {
        match step {
            Step::Started(id, change) => self.in_flight.push((*id, Arc::clone(change))),
            Step::Done(id, number) => {
                if let Some(place) = self.in_flight.iter().position(|(started, _)| started == id) {
                    let (_, change) = self.in_flight.remove(place);
                    self.done.push_back((*number, change));
                }
            }
            Step::Synced(below) => {
                while let Some((_, change)) = self.done.pop_front_if(|(number, _)| *number < *below) {
                    change.apply(&mut self.durable);
                }
            }
            Step::Resized(size) => self.durable.resize(*size),
        }
    }

    /// How many writes may or may not be there.
    pub fn unsynced(&self) -> usize {
        self.done.len() + self.in_flight.len()
    }

    /// The disk as it may be found.
    pub fn image(&self, survival: Survival) -> DiskImage {
        let writes = self.writes();
        if let Survival::Random(seed) = survival {
            return after_power_cut(&self.durable, &writes, &mut Random::new(seed));
        }
        let mut image = self.durable.clone();
        for (number, change) in writes.iter().enumerate() {
            self.fate(survival, number).apply(change, &mut image);
        }
        image
    }

    /// A choice of survivals worth trying here: all lost, all kept, each write alone, missing, last or torn (some of them
    /// where there are many), and `random` mixtures.
    pub fn survivals(&self, random: usize, seed: u64) -> Vec<Survival> {
        let mut generator = Random::new(seed);
        let writes = self.writes();
        let mut survivals = vec![Survival::AllLost];
        if !writes.is_empty() {
            survivals.extend([Survival::Done, Survival::AllKept]);
        }
        for number in sample(writes.len(), &mut generator) {
            let sectors = writes[number].sectors();
            if writes.len() > 1 {
                survivals.extend([Survival::First(number), Survival::Only(number), Survival::Without(number)]);
            }
            for sectors in [1, sectors / 2, sectors.saturating_sub(1), 1 + generator.below(sectors)] {
                let torn = Survival::Torn { write: number, sectors };
                if (1..writes[number].sectors()).contains(&sectors) && !survivals.contains(&torn) {
                    survivals.push(torn);
                }
            }
        }
        if !writes.is_empty() {
            survivals.extend((0..random).map(|_| Survival::Random(generator.next_u64())));
        }
        survivals
    }

    /// All subsets of the writes, each write whole, where there are at most `most` of them, and less than 64.
    pub fn subsets(&self, most: usize) -> impl Iterator<Item = Survival> + use<> {
        let count = self.unsynced();
        let subsets = if count <= most.min(63) { 1 << count } else { 0 };
        (0..subsets).map(Survival::These)
    }

    fn writes(&self) -> Vec<Arc<Change>> {
        self.done.iter().chain(&self.in_flight).map(|(_, change)| Arc::clone(change)).collect()
    }

    fn fate(&self, survival: Survival, number: usize) -> Fate {
        let kept = match survival {
            Survival::AllLost | Survival::Random(_) => false,
            Survival::Done => number < self.done.len(),
            Survival::AllKept => true,
            Survival::First(count) => number < count,
            Survival::Only(one) => number == one,
            Survival::Without(one) => number != one,
            Survival::These(subset) => subset.checked_shr(number as u32).is_some_and(|bits| bits & 1 == 1),
            Survival::Torn { write, sectors } if number == write => return Fate::Prefix(sectors),
            Survival::Torn { write, .. } => number < write,
        };
        if kept { Fate::Kept } else { Fate::Lost }
    }
}

/// All numbers below `count`, or [`SINGLES`] of them, spread over all.
fn sample(count: usize, random: &mut Random) -> Vec<usize> {
    if count <= SINGLES {
        return (0..count).collect();
    }
    (0..SINGLES).map(|part| (part * count + random.index(count)) / SINGLES).collect()
}

#[cfg(test)]
mod tests {
    use super::super::image::Content;
    use super::*;

    fn change(offset: u64, fill: u8, sectors: u64) -> Arc<Change> {
        let length = sectors * 512;
        Arc::new(Change { offset, length, sector: 512, content: Content::Bytes(vec![fill; length as usize].into()) })
    }

    /// Write 1 done and synced, write 2 done, write 3 in flight.
    fn history() -> DiskHistory {
        let mut history = DiskHistory::new(DiskImage::new(8192));
        history.started(1, &change(0, 1, 2));
        history.done(1, 0);
        history.started(2, &change(1024, 2, 2));
        history.synced(1);
        history.started(3, &change(2048, 3, 4));
        history.done(2, 1);
        history
    }

    fn firsts(image: &DiskImage) -> [u8; 3] {
        [image.bytes(0, 1)[0], image.bytes(1024, 1)[0], image.bytes(2048, 1)[0]]
    }

    #[test]
    fn synced_writes_are_in_every_image_of_a_later_cut() {
        let cut = history().cut(6);
        assert_eq!(cut.unsynced(), 2);
        for survival in cut.survivals(20, 5) {
            assert_eq!(cut.image(survival).bytes(0, 1024), [1; 1024], "{survival:?}");
        }
    }

    #[test]
    fn each_survival_is_what_it_says() {
        let cut = history().cut(6);
        let seen = |survival| firsts(&cut.image(survival));
        assert_eq!(seen(Survival::AllLost), [1, 0, 0]);
        assert_eq!(seen(Survival::Done), [1, 2, 0]);
        assert_eq!(seen(Survival::AllKept), [1, 2, 3]);
        assert_eq!(seen(Survival::First(1)), [1, 2, 0]);
        assert_eq!(seen(Survival::Only(1)), [1, 0, 3]);
        assert_eq!(seen(Survival::Without(0)), [1, 0, 3]);
        let subsets: Vec<_> = cut.subsets(2).map(seen).collect();
        assert_eq!(subsets, [[1, 0, 0], [1, 2, 0], [1, 0, 3], [1, 2, 3]]);
        assert_eq!(cut.subsets(1).count(), 0);
        let torn = cut.image(Survival::Torn { write: 1, sectors: 3 });
        assert_eq!(torn.bytes(2048, 1536), [3; 1536]);
        assert_eq!(torn.bytes(3584, 512), [0; 512]);
    }

    #[test]
    fn a_sync_covers_only_what_was_done_before_it_started() {
        let mut history = DiskHistory::new(DiskImage::new(8192));
        history.started(1, &change(0, 1, 1));
        history.started(2, &change(1024, 2, 1));
        history.done(2, 0);
        // The sync started here, with one write done.
        history.done(1, 1);
        history.synced(1);
        let image = history.cut(5).image(Survival::AllLost);
        assert_eq!(firsts(&image), [0, 2, 0]);
    }

    #[test]
    fn cuts_are_the_points_between_steps() {
        let history = history();
        let all: Vec<_> = history.cuts().map(|cut| cut.image(Survival::AllKept)).collect();
        assert_eq!(all.len(), history.len() + 1);
        assert_eq!(all[4], history.cut(4).image(Survival::AllKept));
        assert_eq!(firsts(&all[0]), [0, 0, 0]);
    }
}
