//! A host that uses a volume and knows what it may answer.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use block_device::{BlockDevice, Outcome, Range, Request, Slice, execute};
use reactor::simulated::{Observer, Random};
use smallvec::smallvec;

use crate::model::{Crash, Model, Value};

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

/// A host. It outlives the machines whose volume it uses.
#[derive(Clone)]
pub struct Host {
    model: Rc<RefCell<Model>>,
    observer: Observer,
    /// Bytes that are written whole or not at all.
    unit: u64,
    /// Bytes that requests are multiples of.
    block: u64,
    errors: Errors,
}

impl Host {
    /// A host of a volume of `size` bytes in blocks of `block`, all zeroes, of which crashes leave each `unit` whole.
    pub fn new(observer: Observer, size: u64, block: u64, unit: u64, errors: Errors) -> Self {
        assert!(block.is_multiple_of(unit), "units lie within blocks");
        // The size of a simulated volume is small.
        let model = Model::new((size / unit) as usize);
        Self { model: Rc::new(RefCell::new(model)), observer, unit, block, errors }
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
        let blocks = self.blocks();
        let mut block = 0;
        while block < blocks {
            let count = LONGEST.min(blocks - block);
            self.read(device, block, count).await;
            block += count;
        }
    }

    /// Makes everything acknowledged durable.
    pub async fn flush(&self, device: &dyn BlockDevice) {
        let flushing = self.model.borrow_mut().start_flush();
        if self.judge("flush", &execute(device, Request::Flush).await) {
            self.model.borrow_mut().end_flush(flushing);
        }
    }

    /// Everything in flight is cut off.
    pub fn crash(&self, crash: Crash) {
        self.model.borrow_mut().crash(crash);
    }

    fn blocks(&self) -> u64 {
        self.model.borrow().units() as u64 * self.unit / self.block
    }

    async fn worker(&self, device: &dyn BlockDevice, mut random: Random, requests: u32) {
        for _ in 0..requests {
            let block = random.below(self.blocks());
            let count = (1 + random.below(LONGEST)).min(self.blocks() - block);
            match random.below(32) {
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
        let outcome = execute(device, Request::read(block * self.block, count * self.block)).await;
        if !self.judge("read", &outcome) {
            return;
        }
        let bytes = outcome.map(|segments| segments.iter().map(|slice| &slice[..]).collect::<Vec<_>>().concat());
        let bytes = bytes.unwrap_or_default();
        assert_eq!(bytes.len() as u64, count * self.block, "a read brings what was asked for");
        let first = self.units(block, count).start;
        let values: Vec<Value> =
            bytes.chunks(self.unit as usize).zip(first..).map(|(bytes, unit)| self.decode(bytes, unit)).collect();
        self.observer.log(format!("read block {block}: {values:?}"));
        if let Err(violation) = self.model.borrow_mut().end_read(reading, first, &values) {
            panic!("I4, I7, I9 or I15 broken: {violation}");
        }
    }

    async fn write(&self, device: &dyn BlockDevice, block: u64, count: u64, fua: bool) {
        let value = self.model.borrow_mut().fresh_value();
        let units = self.units(block, count);
        let bytes = units.clone().map(|unit| self.encode(value, unit)).collect::<Vec<_>>().concat();
        let writing = self.model.borrow_mut().start_write(units, value);
        self.observer.log(format!("write {value} to block {block}, {count} of them, fua {fua}"));
        let request = Request::Write { offset: block * self.block, data: Slice::from(&bytes[..]), fua };
        let done = self.judge("write", &execute(device, request).await);
        self.observer.log(format!("wrote {value}: {done}"));
        let mut model = self.model.borrow_mut();
        match done && fua {
            true => model.end_durable_write(writing),
            false => model.end_write(writing, done),
        }
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
        let writing = self.model.borrow_mut().start_write(self.units(block, count), 0);
        self.observer.log(format!("clear block {block}, {count} of them"));
        let done = self.judge("clear", &execute(device, request).await);
        self.observer.log(format!("cleared block {block}: {done}"));
        self.model.borrow_mut().end_write(writing, done);
    }

    /// Whether a request went well.
    fn judge(&self, what: &str, outcome: &Outcome) -> bool {
        match outcome {
            Ok(_) => true,
            Err(error) if self.errors == Errors::Forbidden => panic!("{what} failed without a fault: {error}"),
            Err(error) => {
                self.observer.log(format!("{what} failed: {error}"));
                false
            }
        }
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
