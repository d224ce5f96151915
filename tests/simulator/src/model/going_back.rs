//! What a volume may read as when a person makes an older replica the one that counts.

use std::collections::BTreeSet;

use super::{Model, Unit, Value, Write};

impl Model {
    /// What a replica in sync may hold, unit by unit, also after a power cut.
    pub fn held_in_sync(&self) -> Vec<BTreeSet<Value>> {
        self.units.iter().map(Unit::held_in_sync).collect()
    }

    /// The volume holds any of these from now on, unit by unit; the first read settles it. What is in flight never happens.
    pub fn go_back(&mut self, possible: &[BTreeSet<Value>]) {
        self.reverting.clear();
        for (unit, possible) in self.units.iter_mut().zip(possible) {
            let only = possible.len() == 1;
            unit.power_cut = None;
            unit.writes.clear();
            for value in possible {
                self.now += 1;
                unit.writes.push(Write { flushed: only, acknowledged: only, ..Write::new(*value, self.now) });
            }
            self.now += 1;
            unit.writes.iter_mut().for_each(|write| write.end = Some(self.now));
        }
    }
}

impl Unit {
    fn held_in_sync(&self) -> BTreeSet<Value> {
        let flushed = || self.writes.iter().filter(|write| write.flushed);
        let held = |write: &&Write| !write.overwritten && !flushed().any(|later| later.follows(write));
        self.writes.iter().filter(held).map(|write| write.value).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Crash, Model, Value};

    fn write(model: &mut Model, value: Value) {
        let writing = model.start_write(0..1, value);
        model.end_write(writing, true);
    }

    fn flush(model: &mut Model) {
        let flushing = model.start_flush();
        model.end_flush(flushing);
    }

    fn read(model: &mut Model, value: Value) -> bool {
        let reading = model.start_read();
        model.end_read(reading, 0, &[value]).is_ok()
    }

    #[test]
    fn a_replica_in_sync_holds_what_is_flushed_or_newer() {
        let mut model = Model::new(1);
        write(&mut model, 1);
        flush(&mut model);
        write(&mut model, 2);
        let _in_flight = model.start_write(0..1, 3);
        assert_eq!(model.held_in_sync()[0].iter().copied().collect::<Vec<_>>(), [1, 2, 3]);
    }

    #[test]
    fn a_volume_that_went_back_is_settled_by_the_first_read_and_forgets_what_came_later() {
        let mut model = Model::new(2);
        write(&mut model, 1);
        let held = model.held_in_sync();
        write(&mut model, 2);
        flush(&mut model);
        let in_flight = model.start_write(0..1, 3);
        model.go_back(&held);
        model.end_write(in_flight, false);
        assert!(!read(&mut model, 2) && !read(&mut model, 3));
        assert!(read(&mut model, 0) && !read(&mut model, 1));
        // Not flushed: a power cut may bring the other one.
        model.crash(Crash::PowerCut);
        assert!(read(&mut model, 1));
        write(&mut model, 4);
        assert!(read(&mut model, 4) && !read(&mut model, 1));
    }
}
