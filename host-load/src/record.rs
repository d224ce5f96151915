//! What a verified load knows of each block: the truth that a device is held to.

use std::fmt;

use super::stamp::{Content, Stamp};

/// Which writes of a region were issued and which were acknowledged.
///
/// A region is divided into units of the load's block size; each write covers one unit, and gives it the next
/// generation. A unit has at most one write in flight. A read may return a generation from `acknowledged` when it was
/// issued to `issued` when it completed; what one read returned, no later read may fall behind (I7 to I10). A record
/// outlives runs: after a crash the same record tells what must still be there.
#[derive(Debug)]
pub struct Record {
    run: u64,
    /// Bytes of a unit and of a block of the device, a divisor of it.
    unit_size: u32,
    block_size: u32,
    /// First block of the region.
    first_block: u64,
    units: Vec<Unit>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Unit {
    /// Least generation that a read may return; zero before the first acknowledged write.
    acknowledged: u32,
    /// Last generation sent, shifted by one; bit 0 tells that it is in flight.
    issued_and_busy: u32,
}

/// A block that is not what it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Number of the block on the device.
    pub block: u64,
    /// What is wrong.
    pub kind: FaultKind,
}

/// What is wrong with a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// It holds an older write than one that was acknowledged or read before; zero stands for none of this run.
    Stale {
        /// The generation found.
        found: u64,
        /// The least generation allowed.
        expected: u64,
    },
    /// It holds a later write than was ever sent.
    Unissued {
        /// The generation found.
        found: u64,
        /// The last generation sent.
        issued: u64,
    },
    /// It holds what was written to another block.
    Misplaced {
        /// That block.
        written_to: u64,
    },
    /// Its beginning and its end come from different writes.
    Torn,
    /// Its checksum does not match.
    Damaged,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block {}: ", self.block)?;
        match self.kind {
            FaultKind::Stale { found: 0, expected } => write!(f, "lost, generation {expected} was acknowledged"),
            FaultKind::Stale { found, expected } => {
                write!(f, "stale, generation {found} where {expected} was acknowledged")
            }
            FaultKind::Unissued { found, issued } => {
                write!(f, "generation {found} where only {issued} were written")
            }
            FaultKind::Misplaced { written_to } => write!(f, "holds what was written to block {written_to}"),
            FaultKind::Torn => f.write_str("torn, its two ends come from different writes"),
            FaultKind::Damaged => f.write_str("damaged, its checksum does not match"),
        }
    }
}

impl Record {
    /// A record of nothing written yet to `units` units of `unit_size` bytes from `offset` on; `run` tells this load's
    /// blocks from those of others.
    ///
    /// # Panics
    /// When `unit_size` or `offset` is not a multiple of the device's `block_size`.
    pub fn new(run: u64, offset: u64, units: u64, unit_size: u32, block_size: u32) -> Self {
        assert!(unit_size.is_multiple_of(block_size) && offset.is_multiple_of(u64::from(block_size)));
        let first_block = offset / u64::from(block_size);
        let units = vec![Unit::default(); usize::try_from(units).expect("a record fits in memory")];
        Self { run, unit_size, block_size, first_block, units }
    }

    /// How many units there are.
    pub fn units(&self) -> u64 {
        self.units.len() as u64
    }

    /// Bytes of one unit.
    pub fn unit_size(&self) -> u32 {
        self.unit_size
    }

    /// Whether the record is of this region and these sizes.
    pub fn fits(&self, offset: u64, units: u64, unit_size: u32, block_size: u32) -> bool {
        self.first_block * u64::from(self.block_size) == offset
            && self.units() == units
            && (self.unit_size, self.block_size) == (unit_size, block_size)
    }

    /// How many units have an acknowledged write.
    pub fn written_units(&self) -> u64 {
        self.units.iter().filter(|unit| unit.acknowledged > 0).count() as u64
    }

    /// Whether a write of `unit` was ever sent.
    pub fn was_issued(&self, unit: u64) -> bool {
        self.units[unit as usize].issued() > 0
    }

    /// Begins a write of the first unit at or after `unit` (round the end) that has none in flight: the unit, and its
    /// content in `data`, which has one unit's bytes. `None` when all have one.
    pub fn begin_write(&mut self, unit: u64, data: &mut [u8]) -> Option<u64> {
        let count = self.units.len();
        let free = (0..count).map(|step| (unit as usize + step) % count).find(|&at| !self.units[at].is_busy())?;
        let generation = self.units[free].begin();
        let first = self.first_block + free as u64 * self.blocks_per_unit();
        for (at, block) in data.chunks_exact_mut(self.block_size as usize).enumerate() {
            Stamp { run: self.run, block: first + at as u64, generation: u64::from(generation) }.fill(block);
        }
        Some(free as u64)
    }

    /// Ends a write. One that was not acknowledged may have landed all the same, in part or in full (I10).
    pub fn end_write(&mut self, unit: u64, acknowledged: bool) {
        let unit = &mut self.units[unit as usize];
        unit.issued_and_busy &= !1;
        if acknowledged {
            unit.acknowledged = unit.issued();
        }
    }

    /// Begins a read of a unit: the generation that it must at least return.
    pub fn begin_read(&self, unit: u64) -> u32 {
        self.units[unit as usize].acknowledged
    }

    /// Ends a read: holds `data` against what may be there, and remembers it.
    ///
    /// # Errors
    /// The first block that is wrong.
    pub fn end_read(&mut self, unit: u64, least: u32, data: &[u8]) -> Result<(), Fault> {
        let first = self.first_block + unit * self.blocks_per_unit();
        let issued = self.units[unit as usize].issued();
        let mut oldest = u32::MAX;
        for (at, bytes) in data.chunks_exact(self.block_size as usize).enumerate() {
            let block = first + at as u64;
            let generation = self.judge(block, bytes, least, issued).map_err(|kind| Fault { block, kind })?;
            oldest = oldest.min(generation);
        }
        let unit = &mut self.units[unit as usize];
        unit.acknowledged = unit.acknowledged.max(oldest.min(issued));
        Ok(())
    }

    fn judge(&self, block: u64, bytes: &[u8], least: u32, issued: u32) -> Result<u32, FaultKind> {
        let found = match Stamp::read(bytes) {
            Content::Torn => return Err(FaultKind::Torn),
            Content::Damaged => return Err(FaultKind::Damaged),
            Content::Stamped(stamp) if stamp.run == self.run && stamp.block != block => {
                return Err(FaultKind::Misplaced { written_to: stamp.block });
            }
            Content::Stamped(stamp) if stamp.run == self.run => stamp.generation,
            // What was there before this load.
            Content::Stamped(_) | Content::Zero | Content::Foreign => 0,
        };
        if found < u64::from(least) {
            return Err(FaultKind::Stale { found, expected: least.into() });
        }
        match u32::try_from(found) {
            Ok(generation) if generation <= issued => Ok(generation),
            _ => Err(FaultKind::Unissued { found, issued: issued.into() }),
        }
    }

    fn blocks_per_unit(&self) -> u64 {
        u64::from(self.unit_size / self.block_size)
    }
}

impl Unit {
    fn issued(self) -> u32 {
        self.issued_and_busy >> 1
    }

    fn is_busy(self) -> bool {
        self.issued_and_busy & 1 == 1
    }

    fn begin(&mut self) -> u32 {
        let generation = self.issued() + 1;
        self.issued_and_busy = generation << 1 | 1;
        generation
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: usize = 8192;

    /// Four units of two blocks, from block 16 on.
    fn record() -> Record {
        Record::new(77, 16 * 4096, 4, UNIT as u32, 4096)
    }

    /// Writes `unit` and returns what was written.
    fn write(record: &mut Record, unit: u64) -> Vec<u8> {
        let data = begin(record, unit);
        record.end_write(unit, true);
        data
    }

    fn begin(record: &mut Record, unit: u64) -> Vec<u8> {
        let mut data = vec![0; UNIT];
        assert_eq!(record.begin_write(unit, &mut data), Some(unit));
        data
    }

    fn read(record: &mut Record, unit: u64, data: &[u8]) -> Result<(), Fault> {
        let least = record.begin_read(unit);
        record.end_read(unit, least, data)
    }

    #[test]
    fn the_last_acknowledged_write_is_right_and_older_ones_are_stale() {
        let mut record = record();
        let first = write(&mut record, 1);
        assert_eq!(read(&mut record, 1, &first), Ok(()));
        let second = write(&mut record, 1);
        assert_eq!(read(&mut record, 1, &second), Ok(()));
        let stale = Fault { block: 18, kind: FaultKind::Stale { found: 1, expected: 2 } };
        assert_eq!(read(&mut record, 1, &first), Err(stale));
        let lost = Fault { block: 18, kind: FaultKind::Stale { found: 0, expected: 2 } };
        assert_eq!(read(&mut record, 1, &[0; UNIT]), Err(lost));
        assert_eq!(read(&mut record, 1, &[9; UNIT]), Err(lost));
    }

    #[test]
    fn unwritten_units_may_hold_anything_but_blocks_of_this_run() {
        let mut record = record();
        assert_eq!(read(&mut record, 0, &[0; UNIT]), Ok(()));
        assert_eq!(read(&mut record, 0, &[3; UNIT]), Ok(()));
        let older_run = write(&mut Record::new(76, 16 * 4096, 4, UNIT as u32, 4096), 0);
        assert_eq!(read(&mut record, 0, &older_run), Ok(()));
        let twin = write(&mut Record::new(77, 16 * 4096, 4, UNIT as u32, 4096), 0);
        let unissued = Fault { block: 16, kind: FaultKind::Unissued { found: 1, issued: 0 } };
        assert_eq!(read(&mut record, 0, &twin), Err(unissued));
    }

    #[test]
    fn a_block_of_another_place_is_named() {
        let mut record = record();
        let (zero, three) = (write(&mut record, 0), write(&mut record, 3));
        let misplaced = Fault { block: 22, kind: FaultKind::Misplaced { written_to: 16 } };
        assert_eq!(read(&mut record, 3, &zero), Err(misplaced));
        let half = [&three[..4096], &three[..4096]].concat();
        let misplaced = Fault { block: 23, kind: FaultKind::Misplaced { written_to: 22 } };
        assert_eq!(read(&mut record, 3, &half), Err(misplaced));
    }

    /// I7, I9, I10: a write without acknowledgement may be there or not, block by block; what a read saw stays.
    #[test]
    fn an_unacknowledged_write_is_old_or_new_until_a_read_has_seen_it() {
        let mut record = record();
        let old = write(&mut record, 2);
        let new = begin(&mut record, 2);
        record.end_write(2, false);
        let half = [&new[..4096], &old[4096..]].concat();
        assert_eq!(read(&mut record, 2, &old), Ok(()));
        assert_eq!(read(&mut record, 2, &half), Ok(()));
        assert_eq!(read(&mut record, 2, &new), Ok(()));
        let back = Fault { block: 20, kind: FaultKind::Stale { found: 1, expected: 2 } };
        assert_eq!(read(&mut record, 2, &old), Err(back));
    }

    #[test]
    fn a_read_is_held_to_what_was_acknowledged_when_it_began() {
        let mut record = record();
        let old = write(&mut record, 0);
        let least = record.begin_read(0);
        write(&mut record, 0);
        assert_eq!(record.end_read(0, least, &old), Ok(()));
        assert!(read(&mut record, 0, &old).is_err());
    }

    #[test]
    fn torn_and_damaged_blocks_are_told_apart() {
        let mut record = record();
        let (old, new) = (write(&mut record, 0), write(&mut record, 0));
        let torn = [&new[..512], &old[512..]].concat();
        assert_eq!(read(&mut record, 0, &torn), Err(Fault { block: 16, kind: FaultKind::Torn }));
        let mut damaged = new;
        damaged[5000] ^= 1;
        assert_eq!(read(&mut record, 0, &damaged), Err(Fault { block: 17, kind: FaultKind::Damaged }));
    }

    #[test]
    fn a_unit_has_one_write_in_flight() {
        let mut record = record();
        let mut data = vec![0; UNIT];
        let begun: Vec<_> = (0..5).map(|_| record.begin_write(2, &mut data)).collect();
        assert_eq!(begun, [Some(2), Some(3), Some(0), Some(1), None]);
        record.end_write(0, true);
        assert_eq!(record.begin_write(2, &mut data), Some(0));
        assert_eq!(record.written_units(), 1);
    }
}
