//! What a correct volume may answer: each unit of it as a register, across crashes.
//!
//! The model sees when requests start and end, in one order. From that it knows for each read which values are allowed: a
//! value is out as soon as a write that started after it had ended has itself ended, or was seen by an earlier read. A write that
//! failed or was cut off by a crash may have happened or not, but from the first read on it is settled (I7, I10).
//! A power cut takes back what no flush covered (I4).

mod going_back;

use std::collections::BTreeSet;

/// A place in the order of all that happened; each event has its own.
type Moment = u64;

/// What a unit holds: the number of the write that put it there, zero for zeroes.
pub type Value = u64;

/// Which of the writes that are not flushed a crash takes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// Of the process: none.
    Kill,
    /// Of the power of every machine that has the data: any.
    PowerCut,
}

/// A volume of numbered units.
#[derive(Debug)]
pub struct Model {
    now: Moment,
    next_value: Value,
    units: Vec<Unit>,
    /// The starts of reads on their way.
    reading: BTreeSet<Moment>,
    /// Ways back that are not over.
    reverting: Vec<Reverting>,
}

/// A write on its way.
#[derive(Debug)]
pub struct Writing {
    start: Moment,
    units: std::ops::Range<usize>,
}

impl Writing {
    /// Where it writes.
    pub fn units(&self) -> &std::ops::Range<usize> {
        &self.units
    }
}

/// A read on its way. It ends with [`Model::end_read`] or [`Model::fail_read`].
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    start: Moment,
}

/// A way back to a snapshot, as one write to every unit.
#[derive(Clone, Copy, Debug)]
pub struct Reverting {
    from: Moment,
    to: Moment,
}

/// A flush on its way.
#[derive(Clone, Copy, Debug)]
pub struct Flushing {
    start: Moment,
}

/// A read that no correct volume answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The unit.
    pub unit: usize,
    /// What was read.
    pub found: Value,
    /// What would have been right.
    pub allowed: BTreeSet<Value>,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "unit {} reads as {}, allowed: {:?}", self.unit, self.found, self.allowed)
    }
}

#[derive(Debug)]
struct Unit {
    writes: Vec<Write>,
    /// When a power cut happened of which no read has told yet what it left here.
    power_cut: Option<Moment>,
}

/// One write to one unit.
#[derive(Clone, Copy, Debug)]
struct Write {
    value: Value,
    /// Tells it from others, too.
    start: Moment,
    /// Acknowledged, failed, or cut off by a crash.
    end: Option<Moment>,
    acknowledged: bool,
    /// It failed, and nothing has settled yet whether it happened.
    open: bool,
    /// The end of the first read that saw it.
    seen: Option<Moment>,
    gone: Option<Gone>,
    /// A flush that covers it was acknowledged.
    flushed: bool,
    /// No crash brings it back.
    overwritten: bool,
}

/// Why no read sees a write any more: a later one was seen.
#[derive(Clone, Copy, Debug)]
struct Gone {
    since: Moment,
    /// The start of the later one; none if it was one of several writes of zeroes.
    later: Option<Moment>,
}

impl Write {
    fn new(value: Value, start: Moment) -> Self {
        Self {
            value,
            start,
            end: None,
            acknowledged: false,
            open: false,
            seen: None,
            gone: None,
            flushed: false,
            overwritten: false,
        }
    }

    /// From when on it must have happened, if it happened at all.
    fn settled(&self) -> Option<Moment> {
        match (self.end, self.seen) {
            (Some(end), Some(seen)) => Some(end.min(seen)),
            (end, seen) => end.or(seen),
        }
    }

    /// Whether it is known to have happened by `moment`.
    fn happened_by(&self, moment: Moment) -> bool {
        self.seen.is_some_and(|seen| seen < moment) || self.acknowledged && self.ended_by(moment)
    }

    fn ended_by(&self, moment: Moment) -> bool {
        self.end.is_some_and(|end| end < moment)
    }

    /// Whether it came after `other` for certain.
    fn follows(&self, other: &Self) -> bool {
        other.settled().is_some_and(|settled| settled < self.start)
    }
}

impl Model {
    /// A volume of this many units, all zeroes.
    pub fn new(units: usize) -> Self {
        Self {
            now: 0,
            next_value: 0,
            units: (0..units).map(|_| Unit::zeroes()).collect(),
            reading: BTreeSet::new(),
            reverting: Vec::new(),
        }
    }

    /// How many units there are.
    pub fn units(&self) -> usize {
        self.units.len()
    }

    /// A value that no write had before.
    pub fn fresh_value(&mut self) -> Value {
        self.next_value += 1;
        self.next_value
    }

    /// A write of one value to some units starts.
    pub fn start_write(&mut self, units: std::ops::Range<usize>, value: Value) -> Writing {
        let start = self.tick();
        for unit in &mut self.units[units.clone()] {
            unit.writes.push(Write::new(value, start));
        }
        Writing { start, units }
    }

    /// A write ends: acknowledged, or with an error that says nothing about what happened.
    pub fn end_write(&mut self, writing: Writing, acknowledged: bool) {
        let now = self.tick();
        for unit in &mut self.units[writing.units] {
            if let Some(write) = unit.writes.iter_mut().find(|write| write.start == writing.start) {
                write.end.get_or_insert(now);
                write.acknowledged |= acknowledged;
            }
        }
    }

    /// A write failed at the medium: whether it happened is open until the next crash. A store whose journal failed
    /// finds out when it is opened again.
    pub fn end_write_at_the_medium(&mut self, writing: Writing) {
        let (start, units) = (writing.start, writing.units.clone());
        self.end_write(writing, false);
        for unit in &mut self.units[units] {
            if let Some(write) = unit.writes.iter_mut().find(|write| write.start == start) {
                write.open = true;
            }
        }
    }

    /// An acknowledged write is on stable media by itself (FUA).
    pub fn end_durable_write(&mut self, writing: Writing) {
        let (start, units) = (writing.start, writing.units.clone());
        self.end_write(writing, true);
        for unit in &mut self.units[units] {
            if let Some(write) = unit.writes.iter_mut().find(|write| write.start == start) {
                write.flushed = true;
            }
            unit.mark_overwritten();
        }
    }

    /// A flush starts.
    pub fn start_flush(&mut self) -> Flushing {
        Flushing { start: self.tick() }
    }

    /// A flush was acknowledged: it covers what had happened when it started.
    pub fn end_flush(&mut self, flushing: Flushing) {
        let oldest = self.oldest_read();
        for unit in &mut self.units {
            unit.flush(flushing.start);
            unit.forget(oldest);
        }
    }

    /// A read starts.
    pub fn start_read(&mut self) -> Reading {
        let start = self.tick();
        self.reading.insert(start);
        Reading { start }
    }

    /// A read brought an error.
    pub fn fail_read(&mut self, reading: Reading) {
        self.reading.remove(&reading.start);
    }

    /// A read ends with these values, from the unit `first` on.
    pub fn end_read(&mut self, reading: Reading, first: usize, values: &[Value]) -> Result<(), Violation> {
        let now = self.tick();
        self.reading.remove(&reading.start);
        for (unit, &found) in (first..).zip(values) {
            let allowed = self.units[unit].allowed(reading.start);
            if !allowed.contains(&found) {
                return Err(Violation { unit, found, allowed });
            }
            self.units[unit].see(found, reading.start, now);
        }
        Ok(())
    }

    /// What a copy that was made since the read started may hold, unit by unit: an immutable copy holds one of these.
    pub fn possible_since(&self, reading: Reading) -> Vec<BTreeSet<Value>> {
        self.units.iter().map(|unit| unit.allowed(reading.start)).collect()
    }

    /// Everything in flight is cut off.
    pub fn crash(&mut self, crash: Crash) {
        self.reading.clear();
        self.reverting.clear();
        for unit in &mut self.units {
            self.now += 1;
            unit.crash(crash, &mut self.now);
        }
    }

    /// The volume begins to go back to what it held once, of which only this much is known, unit by unit; from there on zeroes.
    pub fn start_revert(&mut self, possible: &[BTreeSet<Value>]) -> Reverting {
        let from = self.now + 1;
        let zeroes = BTreeSet::from([0]);
        for (place, unit) in self.units.iter_mut().enumerate() {
            for value in possible.get(place).unwrap_or(&zeroes) {
                self.now += 1;
                unit.writes.push(Write::new(*value, self.now));
            }
        }
        let reverting = Reverting { from, to: self.tick() };
        self.reverting.push(reverting);
        reverting
    }

    /// It has gone back, or an error says nothing about whether it has.
    pub fn end_revert(&mut self, reverting: Reverting, acknowledged: bool) {
        let now = self.tick();
        self.reverting.retain(|other| other.to != reverting.to);
        let all = self.units.iter_mut().flat_map(|unit| &mut unit.writes);
        for write in all.filter(|write| (reverting.from..=reverting.to).contains(&write.start)) {
            write.end.get_or_insert(now);
            write.acknowledged |= acknowledged;
        }
    }

    /// The volume is larger: it reads as zeroes there, and does so again if it goes back meanwhile.
    pub fn grow(&mut self, units: usize) {
        let more = units.saturating_sub(self.units.len());
        let reverting = &self.reverting;
        self.units.extend((0..more).map(|_| {
            let mut unit = Unit::zeroes();
            unit.writes.extend(reverting.iter().map(|reverting| Write::new(0, reverting.to)));
            unit
        }));
    }

    fn oldest_read(&self) -> Moment {
        self.reading.first().copied().unwrap_or(self.now + 1)
    }

    fn tick(&mut self) -> Moment {
        self.now += 1;
        self.now
    }
}

impl Unit {
    /// As it was made.
    fn zeroes() -> Self {
        let zeroes = Write { end: Some(0), acknowledged: true, flushed: true, ..Write::new(0, 0) };
        Self { writes: vec![zeroes], power_cut: None }
    }

    /// What a read that started at `start` and ends now may see.
    fn allowed(&self, start: Moment) -> BTreeSet<Value> {
        let possible = self.writes.iter().filter(|write| self.is_allowed(write, start));
        possible.map(|write| write.value).collect()
    }

    fn is_allowed(&self, write: &Write, start: Moment) -> bool {
        let overwritten = self.writes.iter().any(|later| later.follows(write) && later.happened_by(start));
        !overwritten && write.gone.is_none_or(|gone| gone.since > start)
    }

    /// A read from `start` to `now` saw a value.
    fn see(&mut self, value: Value, start: Moment, now: Moment) {
        let fits = |write: &Write| write.value == value && self.is_allowed(write, start);
        let places: Vec<usize> = (0..self.writes.len()).filter(|&place| fits(&self.writes[place])).collect();
        // Of several writes of zeroes nobody can tell which was seen.
        let seen = if let &[place] = &places[..] { Some(place) } else { None };
        let later = seen.map(|place| self.writes[place].start);
        if let Some(place) = seen {
            self.writes[place].seen.get_or_insert(now);
        }
        for (place, write) in self.writes.iter_mut().enumerate() {
            let other = if seen.is_some() { Some(place) != seen } else { write.value != value };
            // I9: what an earlier read saw is older than this. I7, I10: a write that had ended before the read began has
            // happened by then, or never will: acknowledged, failed, or cut off by a crash.
            if other && (write.seen.is_some_and(|earlier| earlier < start) || write.ended_by(start) && !write.open) {
                write.gone.get_or_insert(Gone { since: now, later });
            }
        }
        let power_cut = self.power_cut.take();
        if let (Some(place), Some(moment), Some(later)) = (seen, power_cut, later)
            && later <= moment
        {
            // What is found after a power cut is on the medium, and nothing else of that time is.
            self.writes[place].flushed = true;
            self.writes.retain(|write| write.start == later || write.start > moment);
        }
    }

    fn flush(&mut self, start: Moment) {
        if self.is_settled() {
            return;
        }
        for write in &mut self.writes {
            write.flushed |= write.ended_by(start) && write.happened_by(start);
        }
        // What a read had ruled out, and what took its place is stable.
        let flushed: BTreeSet<Moment> =
            self.writes.iter().filter(|write| write.flushed).map(|write| write.start).collect();
        let lost = |gone: Gone| gone.since < start && gone.later.is_some_and(|later| flushed.contains(&later));
        for write in &mut self.writes {
            write.overwritten |= write.gone.is_some_and(lost);
        }
        self.mark_overwritten();
    }

    /// Whether it holds one value and nothing else can come back, as most units do.
    fn is_settled(&self) -> bool {
        matches!(&self.writes[..], [only] if only.flushed && only.gone.is_none())
    }

    /// No crash brings back what a flushed write follows.
    fn mark_overwritten(&mut self) {
        let flushed: Vec<Write> = self.writes.iter().filter(|write| write.flushed).copied().collect();
        for write in &mut self.writes {
            write.overwritten |= flushed.iter().any(|later| later.follows(write));
        }
    }

    /// Forgets what neither a crash brings back nor a read sees that started at `oldest_read` or later.
    fn forget(&mut self, oldest_read: Moment) {
        if self.is_settled() {
            return;
        }
        let over = |write: &Write| write.overwritten && !self.is_allowed(write, oldest_read);
        let kept: Vec<Write> = self.writes.iter().filter(|write| !over(write)).copied().collect();
        self.writes = kept;
    }

    fn crash(&mut self, crash: Crash, now: &mut Moment) {
        for write in &mut self.writes {
            write.end.get_or_insert(*now);
            write.open = false;
        }
        if crash == Crash::PowerCut {
            self.mark_overwritten();
            self.writes.retain(|write| !write.overwritten);
            let only = self.writes.len() == 1;
            // Any of the rest may be what is left: as if all had been in flight together.
            for write in &mut self.writes {
                *now += 1;
                *write = Write { flushed: only, acknowledged: only, ..Write::new(write.value, *now) };
            }
            *now += 1;
            for write in &mut self.writes {
                write.end = Some(*now);
            }
            self.power_cut = (self.writes.len() > 1).then_some(*now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(model: &mut Model, value: Value) {
        let writing = model.start_write(0..1, value);
        model.end_write(writing, true);
    }

    fn flush(model: &mut Model) {
        let flushing = model.start_flush();
        model.end_flush(flushing);
    }

    /// Which of these values a read may return now.
    fn allowed(model: &Model, values: std::ops::Range<Value>) -> Vec<Value> {
        let allowed = model.units[0].allowed(model.now + 1);
        values.filter(|value| allowed.contains(value)).collect()
    }

    fn read(model: &mut Model, value: Value) -> Result<(), Violation> {
        let reading = model.start_read();
        model.end_read(reading, 0, &[value])
    }

    #[test]
    fn the_last_acknowledged_write_is_read_and_nothing_else() {
        let mut model = Model::new(1);
        assert_eq!(allowed(&model, 0..5), [0]);
        write(&mut model, 1);
        write(&mut model, 2);
        assert_eq!(allowed(&model, 0..5), [2]);
        let violation = read(&mut model, 1).unwrap_err();
        assert_eq!(violation.to_string(), "unit 0 reads as 1, allowed: {2}");
    }

    #[test]
    fn a_write_in_flight_may_be_seen_and_then_stays_seen() {
        let mut model = Model::new(1);
        write(&mut model, 1);
        let writing = model.start_write(0..1, 2);
        assert_eq!(allowed(&model, 0..5), [1, 2]);
        read(&mut model, 1).unwrap();
        assert_eq!(allowed(&model, 0..5), [1, 2]);
        read(&mut model, 2).unwrap();
        // I9.
        assert_eq!(allowed(&model, 0..5), [2]);
        model.end_write(writing, true);
        assert_eq!(allowed(&model, 0..5), [2]);
    }

    #[test]
    fn a_read_beside_a_write_may_see_either_and_rules_out_nothing_for_reads_beside_it() {
        let mut model = Model::new(1);
        write(&mut model, 1);
        let (early, late) = (model.start_read(), model.start_read());
        let writing = model.start_write(0..1, 2);
        model.end_read(early, 0, &[2]).unwrap();
        model.end_write(writing, true);
        model.end_read(late, 0, &[1]).unwrap();
        assert_eq!(allowed(&model, 0..5), [2]);
    }

    #[test]
    fn a_read_that_began_long_ago_may_see_what_was_overwritten_and_flushed_since() {
        let mut model = Model::new(1);
        write(&mut model, 1);
        let reading = model.start_read();
        write(&mut model, 2);
        flush(&mut model);
        flush(&mut model);
        model.end_read(reading, 0, &[1]).unwrap();
        assert_eq!(allowed(&model, 0..5), [2]);
    }

    #[test]
    fn overlapping_writes_end_in_any_order_but_in_one() {
        let mut model = Model::new(1);
        let (first, second) = (model.start_write(0..1, 1), model.start_write(0..1, 2));
        model.end_write(second, true);
        model.end_write(first, true);
        assert_eq!(allowed(&model, 0..5), [1, 2]);
        // Both are over: what the first read sees came last.
        read(&mut model, 1).unwrap();
        assert_eq!(allowed(&model, 0..5), [1]);
    }

    #[test]
    fn a_failed_write_is_settled_by_the_first_read_after_it() {
        // I10
        for seen in [1, 2] {
            let mut model = Model::new(1);
            write(&mut model, 1);
            let failing = model.start_write(0..1, 2);
            model.end_write(failing, false);
            assert_eq!(allowed(&model, 0..5), [1, 2]);
            read(&mut model, seen).unwrap();
            assert_eq!(allowed(&model, 0..5), [seen]);
        }
    }

    #[test]
    fn a_kill_keeps_what_was_acknowledged_and_settles_the_rest_at_the_first_read() {
        let mut model = Model::new(1);
        write(&mut model, 1);
        let _cut_off = model.start_write(0..1, 2);
        model.crash(Crash::Kill);
        assert_eq!(allowed(&model, 0..5), [1, 2]);
        // I7.
        read(&mut model, 1).unwrap();
        assert_eq!(allowed(&model, 0..5), [1]);
        assert!(read(&mut model, 2).is_err());
    }

    #[test]
    fn a_power_cut_takes_back_what_was_not_flushed() {
        let mut model = Model::new(1);
        write(&mut model, 1);
        write(&mut model, 2);
        flush(&mut model);
        write(&mut model, 3);
        write(&mut model, 4);
        model.crash(Crash::PowerCut);
        assert_eq!(allowed(&model, 0..6), [2, 3, 4]);
        read(&mut model, 3).unwrap();
        write(&mut model, 5);
        // What the first power cut took does not come back at the second.
        model.crash(Crash::PowerCut);
        assert_eq!(allowed(&model, 0..6), [3, 5]);
    }

    #[test]
    fn a_flush_covers_only_what_was_acknowledged_before_it() {
        let mut model = Model::new(1);
        write(&mut model, 1);
        let writing = model.start_write(0..1, 2);
        let flushing = model.start_flush();
        model.end_write(writing, true);
        model.end_flush(flushing);
        model.crash(Crash::PowerCut);
        assert_eq!(allowed(&model, 0..5), [1, 2]);
    }

    #[test]
    fn a_flush_keeps_what_is_seen_but_not_acknowledged_out_of_its_promise() {
        let mut model = Model::new(1);
        write(&mut model, 1);
        flush(&mut model);
        let _in_flight = model.start_write(0..1, 2);
        read(&mut model, 2).unwrap();
        flush(&mut model);
        model.crash(Crash::PowerCut);
        assert_eq!(allowed(&model, 0..5), [1, 2]);
    }

    #[test]
    fn a_write_through_is_stable_by_itself() {
        let mut model = Model::new(1);
        write(&mut model, 1);
        let writing = model.start_write(0..1, 2);
        model.end_durable_write(writing);
        model.crash(Crash::PowerCut);
        assert_eq!(allowed(&model, 0..5), [2]);
    }

    #[test]
    fn after_a_kill_older_data_still_needs_a_flush() {
        let mut model = Model::new(1);
        write(&mut model, 1);
        flush(&mut model);
        write(&mut model, 2);
        model.crash(Crash::Kill);
        read(&mut model, 2).unwrap();
        model.crash(Crash::PowerCut);
        assert_eq!(allowed(&model, 0..5), [1, 2]);
        read(&mut model, 1).unwrap();
        assert_eq!(allowed(&model, 0..5), [1]);
    }

    #[test]
    fn a_failed_write_counts_as_over_so_that_a_ghost_of_it_is_found() {
        let mut model = Model::new(1);
        let writing = model.start_write(0..1, 1);
        model.end_write(writing, false);
        assert_eq!(allowed(&model, 0..5), [0, 1]);
        write(&mut model, 2);
        // I15.
        assert_eq!(allowed(&model, 0..5), [2]);
    }

    #[test]
    fn a_volume_that_went_back_reads_as_its_snapshot_may_and_then_as_that() {
        let mut model = Model::new(2);
        write(&mut model, 1);
        let snapshot = [BTreeSet::from([0, 1])];
        write(&mut model, 2);
        flush(&mut model);
        let reverting = model.start_revert(&snapshot);
        assert_eq!(allowed(&model, 0..5), [0, 1, 2]);
        model.end_revert(reverting, true);
        assert_eq!(allowed(&model, 0..5), [0, 1]);
        read(&mut model, 0).unwrap();
        assert_eq!(allowed(&model, 0..5), [0]);
        // Not flushed since.
        model.crash(Crash::PowerCut);
        assert_eq!(allowed(&model, 0..5), [0, 1, 2]);
    }

    #[test]
    fn a_way_back_that_was_cut_off_is_settled_by_the_first_read() {
        let mut model = Model::new(1);
        write(&mut model, 1);
        let _cut_off = model.start_revert(&[BTreeSet::from([0])]);
        model.crash(Crash::Kill);
        assert_eq!(allowed(&model, 0..5), [0, 1]);
        read(&mut model, 1).unwrap();
        assert_eq!(allowed(&model, 0..5), [1]);
    }

    #[test]
    fn a_volume_that_grew_has_zeroes_there() {
        let mut model = Model::new(1);
        model.grow(3);
        model.grow(2);
        let reading = model.start_read();
        assert!(model.units() == 3 && model.end_read(reading, 1, &[0, 0]).is_ok());
    }

    #[test]
    fn what_a_volume_gains_while_it_goes_back_may_be_gone_after_it() {
        for acknowledged in [true, false] {
            let mut model = Model::new(0);
            let reverting = model.start_revert(&[]);
            model.grow(1);
            write(&mut model, 1);
            assert_eq!(allowed(&model, 0..5), [0, 1]);
            model.end_revert(reverting, acknowledged);
            read(&mut model, 0).unwrap();
            assert_eq!(allowed(&model, 0..5), [0]);
            // Of a way back that was over nothing comes any more.
            model.grow(2);
            let writing = model.start_write(1..2, 2);
            model.end_write(writing, true);
            let reading = model.start_read();
            assert!(model.end_read(reading, 1, &[0]).is_err());
        }
    }

    #[test]
    fn writes_of_zeroes_are_not_told_apart() {
        let mut model = Model::new(1);
        let writing = model.start_write(0..1, 1);
        let zeroing = model.start_write(0..1, 0);
        for seen in [0, 1, 0] {
            read(&mut model, seen).unwrap();
        }
        model.end_write(writing, true);
        model.end_write(zeroing, true);
        assert_eq!(allowed(&model, 0..5), [0]);
    }
}
