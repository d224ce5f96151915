//! A volume as its host knows it: one path at a time to an engine, requests in flight, and what reads may bring.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use block_device::{BlockDevice, ErrorKind, Limits, Outcome as IoOutcome, Range, Request, Slice, execute};
use engine::Engine;
use reactor::simulated::{Observer, Random};
use reactor::{sleep, spawn};
use smallvec::smallvec;
use uuid::Uuid;

use super::behind::Behind;
use super::export::{Connection, Export};
use super::history::{EntryId, GHOSTS, History, Outcome};
use super::plan::{Mix, VolumePlan};
use crate::model::{Crash, Model, Value, Writing};

/// How long a path that was left is looked at for the next one's first acknowledgement, and how often.
const MOMENT: Duration = Duration::from_millis(20);
const HAUNTED: u32 = 500;

/// Bytes read at once when everything is read.
const STRETCH: u64 = 1 << 19;

/// A volume and its host. Both outlive engines and machines.
pub(super) struct Volume {
    pub(super) plan: VolumePlan,
    pub(super) id: Uuid,
    observer: Observer,
    /// Bytes that a power cut leaves whole.
    pub(super) unit: u64,
    /// Bytes that the host knows of.
    pub(super) size: Cell<u64>,
    pub(super) model: RefCell<Model>,
    history: RefCell<History>,
    /// Counts the paths to the volume. What comes back on an older one counts for nothing.
    path: Cell<u64>,
    /// The newest path on which a write was acknowledged.
    acknowledged_on: Cell<u64>,
    /// The engine of the newest path, once it has started.
    pub(super) engine: RefCell<Option<Rc<Engine>>>,
    /// How the host comes to it.
    pub(super) way: RefCell<Option<Way>>,
    /// Whether it does so through an export, and what it may do in a second then.
    pub(super) is_exported: bool,
    pub(super) limits: Cell<Limits>,
    /// Where the engine is to run; none while it is moved.
    pub(super) place: Cell<Option<usize>>,
    /// Requests that the host may still make.
    work: Cell<u32>,
    /// Requests of the newest path that are not answered.
    under_way: Cell<u32>,
    /// Of these the writes that came through a connection, by what that calls them, with their values.
    sent: RefCell<BTreeMap<u64, (Value, Writing)>>,
    drawn: Cell<u64>,
    pub(super) snapshots: RefCell<BTreeMap<Uuid, Snapshot>>,
    /// Counts snapshots that are known to be there.
    pub(super) taken: Cell<u64>,
    /// Counts how often it was to go back.
    pub(super) reverts: Cell<u64>,
    pub(super) clones: RefCell<Vec<CloneOf>>,
    /// How much is being done to it.
    pub(super) acts: Cell<u32>,
    /// The nodes on which a replica is being added.
    pub(super) adding: RefCell<BTreeSet<usize>>,
    /// What replicas that left may hold; none if no person will ask.
    pub(super) behind: Option<Behind>,
}

/// How a host comes to an engine.
#[derive(Clone)]
pub(super) struct Way {
    /// Where that is.
    pub(super) node: usize,
    pub(super) device: Rc<dyn BlockDevice>,
    /// What is between them, if anything is.
    pub(super) export: Option<(Rc<Export>, Rc<Connection>)>,
}

/// What its plan says of a volume beside its own part.
#[derive(Clone, Copy)]
pub(super) struct Told {
    /// Whether a person may make a replica count that left.
    pub(super) forced: bool,
    /// Whether its host comes through an export.
    pub(super) exported: bool,
}

/// A replica of a clone.
#[derive(Clone)]
pub(super) struct CloneOf {
    pub(super) node: usize,
    pub(super) replica: Uuid,
    pub(super) volume: Uuid,
    pub(super) snapshot: Uuid,
    /// What that held.
    pub(super) held: Snapshot,
}

/// What a snapshot holds, as far as the host knows.
#[derive(Clone)]
pub(super) enum Snapshot {
    /// It was asked for, and nobody knows whether it is there.
    Unknown,
    /// Which one it is of those that are known to be there, and what it holds by unit.
    Taken { order: u64, possible: Rc<Vec<BTreeSet<Value>>> },
    /// It was deleted.
    Deleted,
}

/// One request of a host.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Read,
    Write { fua: bool },
    Zero { unmap: bool },
    Unmap,
    Flush,
}

impl Volume {
    pub(super) fn new(plan: VolumePlan, observer: Observer, sector: u32, told: Told) -> Rc<Self> {
        let unit = u64::from(sector.min(plan.block));
        // The size of a simulated volume is small.
        let model = Model::new((plan.size / unit) as usize);
        Rc::new(Self {
            id: Uuid::from_bytes([0xa0 + plan.number as u8; 16]),
            place: Cell::new(Some(plan.engine)),
            size: Cell::new(plan.size),
            limits: Cell::new(plan.limits),
            is_exported: told.exported,
            plan,
            observer,
            unit,
            model: RefCell::new(model),
            history: RefCell::default(),
            path: Cell::new(0),
            acknowledged_on: Cell::new(0),
            engine: RefCell::new(None),
            way: RefCell::new(None),
            work: Cell::new(0),
            under_way: Cell::new(0),
            sent: RefCell::default(),
            drawn: Cell::new(0),
            snapshots: RefCell::default(),
            taken: Cell::new(0),
            reverts: Cell::new(0),
            clones: RefCell::default(),
            acts: Cell::new(0),
            adding: RefCell::default(),
            behind: told.forced.then(Behind::default),
        })
    }

    /// The name of a replica on a node: the first, or one that was added later.
    pub(super) fn replica_name(&self, node: usize, later: u8) -> Uuid {
        let mut bytes = [0x10 + self.plan.number as u8; 16];
        (bytes[14], bytes[15]) = (bytes[14] + (later << 4), node as u8);
        Uuid::from_bytes(bytes)
    }

    pub(super) fn add_work(&self, requests: u32) {
        self.work.set(self.work.get() + requests);
    }

    /// Requests that the host has not begun yet.
    pub(super) fn work(&self) -> u32 {
        self.work.get()
    }

    pub(super) fn has_work(&self) -> bool {
        self.work.get() > 0
    }

    /// Requests of the host that are not answered.
    pub(super) fn under_way(&self) -> u32 {
        self.under_way.get()
    }

    /// Whether the host has a way to an engine, and nothing of it waits for limits.
    pub(super) fn is_idle(&self) -> bool {
        let way = self.way.borrow();
        way.as_ref().is_some_and(|way| way.export.as_ref().is_none_or(|(export, _)| export.is_idle()))
    }

    /// The host leaves its path: everything in flight is cut off.
    pub(super) fn leave_path(&self) -> u64 {
        self.path.set(self.path.get() + 1);
        self.under_way.set(0);
        self.sent.borrow_mut().clear();
        self.crash(Crash::Kill);
        self.path.get()
    }

    pub(super) fn is_on(&self, path: u64) -> bool {
        self.path.get() == path
    }

    /// The newest path.
    pub(super) fn path(&self) -> u64 {
        self.path.get()
    }

    /// Requests in flight may have happened or not; after a power cut of all that had them, so may what was not flushed.
    pub(super) fn crash(&self, crash: Crash) {
        self.model.borrow_mut().crash(crash);
        self.begin_waiting_writes_anew();
        self.history.borrow_mut().crash(self.observer.now(), crash);
    }

    /// What in the model was in flight has come to its end, and what waits in front of the engine has not even begun.
    pub(super) fn begin_waiting_writes_anew(&self) {
        let Some(connection) = self.connection() else { return };
        let (mut sent, mut model) = (self.sent.borrow_mut(), self.model.borrow_mut());
        for (_, (value, writing)) in sent.iter_mut().filter(|(token, _)| connection.waits(**token)) {
            let anew = model.start_write(writing.units().clone(), *value);
            model.end_write(std::mem::replace(writing, anew), false);
        }
    }

    fn connection(&self) -> Option<Rc<Connection>> {
        self.way.borrow().as_ref().and_then(|way| way.export.as_ref()).map(|(_, connection)| Rc::clone(connection))
    }

    pub(super) fn note(&self, text: String) {
        self.log(&text);
        self.history.borrow_mut().note(self.observer.now(), text);
    }

    /// The host has a way to an engine: its workers begin, and so does who looks whether the engine goes on without the volume.
    pub(super) fn use_way(self: &Rc<Self>, way: Way, path: u64, is_replaced: Rc<dyn Fn() -> bool>) {
        let device = Rc::clone(&way.device);
        *self.way.borrow_mut() = Some(way);
        for _ in 0..self.plan.workers {
            spawn(Rc::clone(self).work_on(Rc::clone(&device), path));
        }
        spawn(Rc::clone(self).haunt(device, path, is_replaced));
    }

    /// Uses the volume on one path until the host leaves it.
    async fn work_on(self: Rc<Self>, device: Rc<dyn BlockDevice>, path: u64) {
        while self.is_on(path) {
            let Some(mut random) = self.draw() else {
                sleep(Duration::from_millis(2 + reactor::random() % 20)).await;
                continue;
            };
            self.under_way.set(self.under_way.get() + 1);
            let good = self.request(&*device, path, &mut random).await;
            if self.is_on(path) {
                self.under_way.set(self.under_way.get() - 1);
            }
            if !good {
                sleep(Duration::from_micros(random.below(20_000))).await;
            } else if random.one_in(4) {
                let limit = if random.one_in(8) { 50_000 } else { 1_000 };
                sleep(Duration::from_micros(random.below(limit))).await;
            }
        }
    }

    /// Waits until the host is on another path that has acknowledged something, and uses this one as if nothing had happened. `is_replaced`
    /// tells whether a newer epoch is recorded than the engine's: one that began later than the next one is not replaced by it.
    async fn haunt(self: Rc<Self>, device: Rc<dyn BlockDevice>, path: u64, is_replaced: Rc<dyn Fn() -> bool>) {
        let mut left = HAUNTED;
        while left > 0 && self.acknowledged_on.get() <= path {
            sleep(MOMENT).await;
            left -= u32::from(!self.is_on(path));
        }
        if self.acknowledged_on.get() > path {
            // Each by itself: some wait behind what the host had in flight.
            for number in 0..8 {
                spawn(Rc::clone(&self).haunt_block(Rc::clone(&device), path, number, Rc::clone(&is_replaced)));
            }
        }
    }

    /// I14: an engine that lost its volume acknowledges nothing that is submitted after the next one's first acknowledgement, none of it is
    /// ever read, and no read of it is answered.
    async fn haunt_block(
        self: Rc<Self>,
        device: Rc<dyn BlockDevice>,
        path: u64,
        number: u64,
        is_replaced: Rc<dyn Fn() -> bool>,
    ) {
        let block = number % self.plan.hot;
        let read = execute(&*device, Request::read(block * self.block(), self.block())).await;
        if !is_replaced() {
            return;
        }
        assert!(read.is_err(), "I14 broken: v{}: an engine that was replaced answers reads", self.plan.number);
        let value = GHOSTS | path << 8 | number;
        let data = Slice::from(&self.encode(value, self.units(block, 1))[..]);
        let write = execute(&*device, Request::write(block * self.block(), data)).await;
        self.log(&format!("a write to the engine of path {path}, which is lost: {:?}", write.as_ref().err()));
        assert!(write.is_err(), "I14 broken: v{}: two engines acknowledge writes", self.plan.number);
    }

    /// The chance of the next request, if there is work: what it does depends on its number alone.
    fn draw(&self) -> Option<Random> {
        self.work.set(self.work.get().checked_sub(1)?);
        let number = self.drawn.replace(self.drawn.get() + 1);
        Some(Random::new(self.plan.seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15)))
    }

    /// One request. Says whether it went well.
    async fn request(&self, device: &dyn BlockDevice, path: u64, random: &mut Random) -> bool {
        let (kind, block, count) = match self.plan.mix {
            Mix::Everything => self.any_request(random),
            mix => self.hot_request(mix, random),
        };
        match kind {
            Kind::Read => self.read(device, path, block, count).await,
            Kind::Flush => self.flush(device, path).await,
            Kind::Write { .. } | Kind::Zero { .. } | Kind::Unmap => self.change(device, path, kind, block, count).await,
        }
    }

    fn hot_request(&self, mix: Mix, random: &mut Random) -> (Kind, u64, u64) {
        let block = random.below(self.plan.hot) * self.plan.stride;
        let kind = match random.below(8) {
            0 => Kind::Read,
            1 | 2 if mix == Mix::Flushes => Kind::Flush,
            1..4 if mix == Mix::Reads => Kind::Read,
            _ => Kind::Write { fua: false },
        };
        (kind, block, 1 + random.below(2))
    }

    fn any_request(&self, random: &mut Random) -> (Kind, u64, u64) {
        let blocks = self.size.get() / self.block();
        let count = match random.below(64) {
            0 => random.below((1 << 20) / self.block()),
            1..8 => random.below((64 << 10) / self.block()),
            _ => random.below(4),
        };
        let block =
            if random.one_in(5) { random.below(blocks) } else { random.below(self.plan.hot) * self.plan.stride };
        let count = (1 + count).min(blocks - block);
        let kind = match random.below(32) {
            0..9 => Kind::Read,
            9..22 => Kind::Write { fua: false },
            22..24 => Kind::Write { fua: true },
            24 | 25 => Kind::Zero { unmap: random.one_in(2) },
            26 | 27 => Kind::Unmap,
            _ => Kind::Flush,
        };
        (kind, block, count)
    }

    async fn read(&self, device: &dyn BlockDevice, path: u64, block: u64, count: u64) -> bool {
        let (reading, start) = (self.model.borrow_mut().start_read(), self.observer.now());
        let outcome = execute(device, Request::read(block * self.block(), count * self.block())).await;
        if !self.is_on(path) {
            return false;
        }
        if !self.judge("read", &outcome) {
            self.model.borrow_mut().fail_read(reading);
            return false;
        }
        let first = self.units(block, count).start;
        let values = self.decode(&outcome.unwrap_or_default().to_vec(), first);
        assert_eq!(values.len(), self.units(block, count).len(), "a read brings what was asked for");
        self.log(&format!("read block {block}, {count}: {}", brief(&values)));
        let checked = self.model.borrow_mut().end_read(reading, first, &values);
        if let Err(violation) = checked {
            panic!("v{}: {}", self.plan.number, self.history.borrow().explain(&violation));
        }
        self.history.borrow_mut().read(start, self.observer.now(), first, &values);
        true
    }

    pub(super) async fn flush(&self, device: &dyn BlockDevice, path: u64) -> bool {
        let flushing = self.model.borrow_mut().start_flush();
        let entry = self.history.borrow_mut().flush(self.observer.now());
        let outcome = execute(device, Request::Flush).await;
        if !self.is_on(path) {
            return false;
        }
        self.end_entry(entry, &outcome);
        let good = self.judge("flush", &outcome);
        if good {
            self.log("flushed");
            self.model.borrow_mut().end_flush(flushing);
        }
        good
    }

    async fn change(&self, device: &dyn BlockDevice, path: u64, kind: Kind, block: u64, count: u64) -> bool {
        let (units, range) =
            (self.units(block, count), Range { offset: block * self.block(), length: count * self.block() });
        let is_write = matches!(kind, Kind::Write { .. });
        let value = if is_write { self.model.borrow_mut().fresh_value() } else { 0 };
        let (name, request, fua) = match kind {
            Kind::Write { fua } => {
                let data = Slice::from(&self.encode(value, units.clone())[..]);
                (if fua { "write (fua)" } else { "write" }, Request::Write { offset: range.offset, data, fua }, fua)
            }
            Kind::Zero { unmap } => ("zero", Request::WriteZeroes { range, unmap, fua: false }, false),
            _ => ("unmap", Request::Unmap { ranges: smallvec![range] }, false),
        };
        let writing = self.model.borrow_mut().start_write(units.clone(), value);
        self.behind.iter().for_each(|behind| behind.wrote(units.clone(), value));
        let entry = self.history.borrow_mut().write(self.observer.now(), name, units, value);
        self.log(&format!("{name} {value} to block {block}, {count}"));
        let token = self.connection().map(|connection| connection.next());
        let mut writing = Some(writing);
        if let Some((token, writing)) = token.zip(writing.take_if(|_| token.is_some())) {
            self.sent.borrow_mut().insert(token, (value, writing));
        }
        let outcome = execute(device, request).await;
        if !self.is_on(path) {
            return false;
        }
        let sent = token.and_then(|token| self.sent.borrow_mut().remove(&token));
        let writing = sent.map(|(_, writing)| writing).or(writing).expect("the host is on the same path still");
        self.end_entry(entry, &outcome);
        let good = self.judge(name, &outcome);
        let at_the_medium = outcome.is_err_and(|error| error.kind() == ErrorKind::WriteFailed);
        match at_the_medium {
            true => self.model.borrow_mut().end_write_at_the_medium(writing),
            false => self.end_write(writing, path, good, fua),
        }
        if good {
            self.log(&format!("{name} {value}: acknowledged"));
        }
        good
    }

    fn end_write(&self, writing: Writing, path: u64, good: bool, fua: bool) {
        if good {
            self.acknowledged_on.set(self.acknowledged_on.get().max(path));
        }
        match good && fua {
            true => self.model.borrow_mut().end_durable_write(writing),
            false => self.model.borrow_mut().end_write(writing, good),
        }
    }

    fn end_entry(&self, entry: EntryId, outcome: &IoOutcome) {
        let result = match outcome {
            Ok(_) => Outcome::Acknowledged,
            Err(error) => Outcome::Failed(error.to_string()),
        };
        self.history.borrow_mut().end(entry, self.observer.now(), result);
    }

    /// Whether a request went well. An error has to be one that faults bring.
    fn judge(&self, what: &str, outcome: &IoOutcome) -> bool {
        let Err(error) = outcome else { return true };
        let ours = matches!(
            error.kind(),
            ErrorKind::Internal | ErrorKind::InvalidField | ErrorKind::InvalidRange | ErrorKind::ReadOnly
        );
        assert!(!ours, "I33 broken: v{}: {what} failed, and no fault explains it: {error}", self.plan.number);
        self.log(&format!("{what} failed: {error}"));
        false
    }

    /// Reads everything from a device that serves: nothing may fail, nothing may be wrong.
    pub(super) async fn read_all(&self, device: &dyn BlockDevice) {
        let path = self.path();
        let (blocks, stretch) = (self.size.get() / self.block(), STRETCH / self.block());
        for block in (0..blocks).step_by(stretch as usize) {
            let good = self.read(device, path, block, stretch.min(blocks - block)).await;
            assert!(good, "liveness broken: v{}: a read fails although nothing is wrong any more", self.plan.number);
        }
    }

    /// Compares what replicas hold with one another and with what reads may bring.
    pub(super) fn check_content(&self, contents: &[(usize, Vec<u8>)]) {
        let Some(((first_node, first), others)) = contents.split_first() else { return };
        for (node, content) in others {
            let differs =
                (first.chunks(self.unit as usize)).zip(content.chunks(self.unit as usize)).position(|(a, b)| a != b);
            if let Some(unit) = differs {
                let value =
                    |content: &[u8]| self.decode(&content[unit * self.unit as usize..][..self.unit as usize], unit)[0];
                panic!(
                    "I1, I17, I18 broken: v{}: replicas in sync differ: unit {unit} is {} on n{first_node} and {} on n{node}",
                    self.plan.number,
                    value(first),
                    value(content)
                );
            }
        }
        let reading = self.model.borrow_mut().start_read();
        let values = self.decode(first, 0);
        if let Err(violation) = self.model.borrow_mut().end_read(reading, 0, &values) {
            panic!("v{}: n{first_node}: {}", self.plan.number, self.history.borrow().explain(&violation));
        }
    }

    /// Compares what replicas hold of a snapshot.
    pub(super) fn check_snapshot(&self, id: Uuid, known: Option<Snapshot>, contents: &[(usize, Vec<u8>)]) {
        let Some(((first_node, first), others)) = contents.split_first() else { return };
        for (node, content) in others {
            let unit = self.unit as usize;
            let differs = || first.chunks(unit).zip(content.chunks(unit)).position(|(one, other)| one != other);
            assert!(
                first == content,
                "I24 broken: v{}: snapshot {} differs on n{first_node} and n{node} in unit {:?}: {} and {} bytes",
                self.plan.number,
                short(id),
                differs(),
                first.len(),
                content.len()
            );
        }
        let Some(Snapshot::Taken { possible, .. }) = known else { return };
        for (unit, (value, possible)) in self.decode(first, 0).into_iter().zip(&*possible).enumerate() {
            assert!(
                possible.contains(&value),
                "I24 broken: v{}: unit {unit} of snapshot {} is {value}, allowed: {possible:?}",
                self.plan.number,
                short(id)
            );
        }
    }

    pub(super) fn log(&self, text: &str) {
        self.observer.log(format!("v{}: {text}", self.plan.number));
    }

    fn block(&self) -> u64 {
        u64::from(self.plan.block)
    }

    fn units(&self, block: u64, count: u64) -> std::ops::Range<usize> {
        let per_block = self.block() / self.unit;
        (block * per_block) as usize..((block + count) * per_block) as usize
    }

    /// The bytes of units with this value: the value and the unit's own name, over and over.
    fn encode(&self, value: Value, units: std::ops::Range<usize>) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(units.len() * self.unit as usize);
        for unit in units {
            let word = [value.to_le_bytes(), self.name_of(unit).to_le_bytes()].concat();
            (0..self.unit as usize / word.len()).for_each(|_| bytes.extend_from_slice(&word));
        }
        bytes
    }

    fn name_of(&self, unit: usize) -> u64 {
        (self.plan.number as u64 + 1) << 40 | unit as u64
    }

    /// Whether bytes begin as those that the host writes.
    pub(super) fn has_written(&self, bytes: &[u8]) -> bool {
        let Some((value, rest)) = bytes.split_first_chunk::<8>() else { return false };
        let name = rest.first_chunk::<8>().map_or(0, |name| u64::from_le_bytes(*name));
        *value != [0; 8] && name >> 40 == self.plan.number as u64 + 1
    }

    fn decode(&self, bytes: &[u8], first: usize) -> Vec<Value> {
        let units = bytes.chunks(self.unit as usize).zip(first..);
        units.map(|(bytes, unit)| self.decode_unit(bytes, unit)).collect()
    }

    fn decode_unit(&self, bytes: &[u8], unit: usize) -> Value {
        let (words, _) = bytes.as_chunks::<16>();
        let Some(first) = words.first() else { return 0 };
        let (value, name) = first.split_at(8);
        let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap_or_default());
        let (value, name) = (number(value), number(name));
        let whole = words.iter().all(|word| word == first);
        let number = self.plan.number;
        assert!(whole, "I29 broken: v{number}: unit {unit} is a mixture that begins with {value}");
        let own = name == self.name_of(unit) || (value, name) == (0, 0);
        assert!(own, "I19 broken: v{number}: unit {unit} has {value} of unit {:#x}", name);
        value
    }
}

/// The first characters of a uuid.
pub(super) fn short(id: Uuid) -> String {
    id.to_string()[..8].to_owned()
}

/// Values in runs.
fn brief(values: &[Value]) -> String {
    let runs = values.chunk_by(|a, b| a == b).map(|run| match run.len() {
        1 => run[0].to_string(),
        length => format!("{}x{length}", run[0]),
    });
    runs.collect::<Vec<_>>().join(" ")
}
