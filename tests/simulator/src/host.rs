//! A host that uses a volume and knows what it may answer.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use block_device::{BlockDevice, Outcome, Range, Request, Slice, execute};
use reactor::simulated::{Observer, Random};
use smallvec::smallvec;

use crate::model::{Crash, Model, Reading, Value, Writing};

/// The longest request, in blocks.
const LONGEST: u64 = 8;

/// What a host thinks of errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errors {
    /// There are no faults: each one is a bug.
    Forbidden,
    /// They happen: the request may have happened or not (I10).
    Expected,
}

/// How a host's requests may meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overlaps {
    /// None starts that overlaps a write in flight: so an engine uses its replicas.
    Avoided,
    /// They may, and each write is one event to all readers.
    Made,
}

/// A host. It outlives the machines whose volume it uses.
#[derive(Clone)]
pub struct Host {
    /// What the event log calls the volume.
    name: Rc<str>,
    model: Rc<RefCell<Model>>,
    observer: Observer,
    /// Bytes that are written whole or not at all.
    unit: u64,
    /// Bytes that requests are multiples of.
    block: u64,
    errors: Errors,
    overlaps: Overlaps,
    /// The units of writes in flight.
    in_flight: Rc<RefCell<Vec<std::ops::Range<usize>>>>,
}

/// What a volume looks like to a host.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Bytes.
    pub size: u64,
    /// Bytes that requests are multiples of.
    pub block: u64,
    /// Bytes that crashes leave whole.
    pub unit: u64,
}

/// What a snapshot may hold: after it was read once, exactly that.
#[derive(Clone)]
pub struct Frozen {
    host: Host,
    /// By unit; an empty set for anything.
    possible: Rc<RefCell<Vec<BTreeSet<Value>>>>,
}

impl Frozen {
    /// Reads all of the snapshot.
    pub async fn verify(&self, device: &dyn BlockDevice) {
        let host = &self.host;
        for (block, count) in host.stretches() {
            let outcome = execute(device, Request::read(block * host.block, count * host.block)).await;
            if !host.judge("read of a snapshot", &outcome) {
                continue;
            }
            let first = host.units(block, count).start;
            for (unit, found) in (first..).zip(host.values(outcome, first)) {
                let possible = &mut self.possible.borrow_mut()[unit];
                let right = possible.is_empty() || possible.contains(&found);
                assert!(right, "I24 broken: unit {unit} of a snapshot reads as {found}, allowed: {possible:?}");
                *possible = BTreeSet::from([found]);
            }
        }
    }
}

impl Host {
    /// A host of a volume of zeroes.
    pub fn new(observer: Observer, name: &str, shape: Shape, errors: Errors, overlaps: Overlaps) -> Self {
        let Shape { size, block, unit } = shape;
        assert!(block.is_multiple_of(unit), "units lie within blocks");
        // The size of a simulated volume is small.
        let model = Model::new((size / unit) as usize);
        Self {
            name: name.into(),
            model: Rc::new(RefCell::new(model)),
            observer,
            unit,
            block,
            errors,
            overlaps,
            in_flight: Rc::default(),
        }
    }

    /// Uses the volume with `workers` requests at a time until each has made `requests`.
    pub async fn work(&self, device: Rc<dyn BlockDevice>, workers: u32, requests: u32) {
        let tasks: Vec<_> = (0..workers)
            .map(|_| {
                let (host, device) = (self.clone(), Rc::clone(&device));
                let random = Random::new(reactor::random());
                reactor::spawn(async move { host.worker(&*device, random, requests).await })
            })
            .collect();
        for task in tasks {
            task.await.expect("a worker that panics fails the run at once");
        }
    }

    /// Reads everything. What a crash left open is settled by it.
    pub async fn verify(&self, device: &dyn BlockDevice) {
        for (block, count) in self.stretches() {
            self.read(device, block, count).await;
        }
    }

    /// Makes everything acknowledged durable.
    pub async fn flush(&self, device: &dyn BlockDevice) {
        let flushing = self.model.borrow_mut().start_flush();
        if self.judge("flush", &execute(device, Request::Flush).await) {
            self.model.borrow_mut().end_flush(flushing);
        }
    }

    /// A snapshot is asked for.
    pub fn start_snapshot(&self) -> Reading {
        self.model.borrow_mut().start_read()
    }

    /// The snapshot was taken: it has what was acknowledged when it was asked for, and nothing that starts from now on (I24).
    pub fn end_snapshot(&self, reading: Reading) -> Frozen {
        let mut model = self.model.borrow_mut();
        let possible = model.possible_since(reading);
        model.fail_read(reading);
        Frozen { host: self.clone(), possible: Rc::new(RefCell::new(possible)) }
    }

    /// A snapshot of which nobody knows when it was taken: what it holds is not checked, that it stays the same is.
    pub fn found_snapshot(&self) -> Frozen {
        let anything = vec![BTreeSet::new(); self.model.borrow().units()];
        Frozen { host: self.clone(), possible: Rc::new(RefCell::new(anything)) }
    }

    /// Everything in flight is cut off.
    pub fn crash(&self, crash: Crash) {
        self.in_flight.borrow_mut().clear();
        self.model.borrow_mut().crash(crash);
    }

    /// The values that a read brought, the first of them of the unit `first`.
    fn values(&self, outcome: Outcome, first: usize) -> Vec<Value> {
        let segments = outcome.unwrap_or_default();
        let bytes = segments.iter().map(|slice| &slice[..]).collect::<Vec<_>>().concat();
        bytes.chunks(self.unit as usize).zip(first..).map(|(bytes, unit)| self.decode(bytes, unit)).collect()
    }

    /// The whole volume in requests of the longest kind: first block and blocks.
    fn stretches(&self) -> impl Iterator<Item = (u64, u64)> + use<> {
        let blocks = self.blocks();
        (0..blocks).step_by(LONGEST as usize).map(move |block| (block, LONGEST.min(blocks - block)))
    }

    fn blocks(&self) -> u64 {
        self.model.borrow().units() as u64 * self.unit / self.block
    }

    async fn worker(&self, device: &dyn BlockDevice, mut random: Random, requests: u32) {
        for _ in 0..requests {
            let block = random.below(self.blocks());
            let count = (1 + random.below(LONGEST)).min(self.blocks() - block);
            let kind = random.below(32);
            if kind < 29 && self.overlaps == Overlaps::Avoided && self.meets_a_write(block, count) {
                reactor::yield_now().await;
                continue;
            }
            match kind {
                0..10 => self.read(device, block, count).await,
                10..24 => self.write(device, block, count, false).await,
                24..26 => self.write(device, block, count, true).await,
                26 | 27 => self.zero(device, block, count, random.one_in(2)).await,
                28 => self.unmap(device, block, count).await,
                29 => reactor::sleep(Duration::from_micros(random.below(5_000))).await,
                _ => self.flush(device).await,
            }
        }
    }

    async fn read(&self, device: &dyn BlockDevice, block: u64, count: u64) {
        let reading = self.model.borrow_mut().start_read();
        self.log(format!("read from block {block}, {count} of them"));
        let outcome = execute(device, Request::read(block * self.block, count * self.block)).await;
        if !self.judge("read", &outcome) {
            return self.model.borrow_mut().fail_read(reading);
        }
        let first = self.units(block, count).start;
        let values = self.values(outcome, first);
        assert_eq!(values.len(), self.units(block, count).len(), "a read brings what was asked for");
        self.log(format!("read block {block}: {values:?}"));
        if let Err(violation) = self.model.borrow_mut().end_read(reading, first, &values) {
            panic!("I4, I7, I9 or I15 broken: volume {}: {violation}", self.name);
        }
    }

    async fn write(&self, device: &dyn BlockDevice, block: u64, count: u64, fua: bool) {
        let value = self.model.borrow_mut().fresh_value();
        let units = self.units(block, count);
        let bytes = units.clone().map(|unit| self.encode(value, unit)).collect::<Vec<_>>().concat();
        let writing = self.start(units, value);
        self.log(format!("write {value} to block {block}, {count} of them, fua {fua}"));
        let request = Request::Write { offset: block * self.block, data: Slice::from(&bytes[..]), fua };
        let done = self.judge("write", &execute(device, request).await);
        self.log(format!("wrote {value}: {done}"));
        self.end(writing, done, fua);
    }

    async fn zero(&self, device: &dyn BlockDevice, block: u64, count: u64, unmap: bool) {
        let range = Range { offset: block * self.block, length: count * self.block };
        self.clear(device, block, count, Request::WriteZeroes { range, unmap, fua: false }).await;
    }

    async fn unmap(&self, device: &dyn BlockDevice, block: u64, count: u64) {
        let range = Range { offset: block * self.block, length: count * self.block };
        self.clear(device, block, count, Request::Unmap { ranges: smallvec![range] }).await;
    }

    async fn clear(&self, device: &dyn BlockDevice, block: u64, count: u64, request: Request) {
        let writing = self.start(self.units(block, count), 0);
        self.log(format!("clear block {block}, {count} of them"));
        let done = self.judge("clear", &execute(device, request).await);
        self.log(format!("cleared block {block}: {done}"));
        self.end(writing, done, false);
    }

    fn meets_a_write(&self, block: u64, count: u64) -> bool {
        let units = self.units(block, count);
        self.in_flight.borrow().iter().any(|other| other.start < units.end && units.start < other.end)
    }

    fn start(&self, units: std::ops::Range<usize>, value: Value) -> Writing {
        self.in_flight.borrow_mut().push(units.clone());
        self.model.borrow_mut().start_write(units, value)
    }

    fn end(&self, writing: Writing, done: bool, durable: bool) {
        let mut in_flight = self.in_flight.borrow_mut();
        if let Some(place) = in_flight.iter().position(|units| *units == *writing.units()) {
            in_flight.swap_remove(place);
        }
        let mut model = self.model.borrow_mut();
        match (done, durable) {
            (true, true) => model.end_durable_write(writing),
            (true, false) => model.end_write(writing, true),
            (false, _) => model.end_write_at_the_medium(writing),
        }
    }

    /// Whether a request went well.
    fn judge(&self, what: &str, outcome: &Outcome) -> bool {
        match outcome {
            Ok(_) => true,
            Err(error) if self.errors == Errors::Forbidden => panic!("{what} failed without a fault: {error}"),
            Err(error) => {
                self.log(format!("{what} failed: {error}"));
                false
            }
        }
    }

    fn log(&self, text: String) {
        self.observer.log(format!("{}: {text}", self.name));
    }

    fn units(&self, block: u64, count: u64) -> std::ops::Range<usize> {
        let per_block = self.block / self.unit;
        (block * per_block) as usize..((block + count) * per_block) as usize
    }

    /// The bytes of a unit with this value: the value and the unit's number, over and over.
    fn encode(&self, value: Value, unit: usize) -> Vec<u8> {
        let word = [value.to_le_bytes(), (unit as u64).to_le_bytes()].concat();
        word.repeat(self.unit as usize / word.len())
    }

    fn decode(&self, bytes: &[u8], unit: usize) -> Value {
        if bytes.iter().all(|&byte| byte == 0) {
            return 0;
        }
        let value =
            u64::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5], bytes[6], bytes[7]]);
        assert!(bytes == self.encode(value, unit), "I29 broken: unit {unit} is a mixture that begins with {value}");
        value
    }
}
