//! What was asked of a store, from which step of its disk on and up to which it was answered; and what may be found after the
//! power went at one of these steps.

use std::cell::RefCell;
use std::rc::Rc;

use lvol::{Lvol, Store};
use reactor::simulated::{NodeId, Observer};
use uuid::Uuid;

use crate::rig::{DISK, Rig, flush, id, read_all, snapshot, stamped, unmap, write};

pub(crate) const BLOCK: u64 = 4096;

/// The attribute that [`Log::label`] sets.
const LABEL: &str = "label";

/// Something that was asked of the store.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    /// Steps of the disk when it was asked for and when it was answered.
    pub(crate) start: usize,
    pub(crate) end: usize,
    /// Of a flush, that of any lvol: it is one of all.
    pub(crate) lvol: Uuid,
    pub(crate) what: What,
}

#[derive(Clone, Debug)]
pub(crate) enum What {
    Create,
    /// The head's blocks from the first to before the second become the stamp; zero after an unmap.
    Write(u64, u64, u64),
    Flush,
    /// The head is cut into this snapshot.
    Snapshot(Uuid),
    /// The lvol's label is this number.
    Label(u64),
    Delete,
}

/// All that happened, in the order in which it began.
#[derive(Clone)]
pub(crate) struct Log {
    pub(crate) events: Rc<RefCell<Vec<Event>>>,
    observer: Observer,
    node: NodeId,
}

impl Log {
    pub(crate) fn new(rig: &Rig) -> Self {
        Self { events: Rc::default(), observer: rig.world.observer(), node: rig.node }
    }

    /// Notes an operation as begun; it is answered when [`Log::end`] is called.
    pub(crate) fn begin(&self, lvol: u128, what: What) -> usize {
        let mut events = self.events.borrow_mut();
        let start = self.observer.disk_steps(self.node, DISK);
        events.push(Event { start, end: usize::MAX, lvol: id(lvol), what });
        events.len() - 1
    }

    pub(crate) fn end(&self, event: usize) {
        self.events.borrow_mut()[event].end = self.observer.disk_steps(self.node, DISK);
    }

    /// Writes the stamp to blocks of an lvol; unmaps them if it is zero.
    pub(crate) async fn write(&self, number: u128, lvol: &Rc<Lvol>, first: u64, last: u64, stamp: u64) {
        let event = self.begin(number, What::Write(first, last, stamp));
        let (offset, length) = (first * BLOCK, (last - first) * BLOCK);
        match stamp {
            0 => unmap(lvol, offset, length).await.expect("unmapped"),
            _ => write(lvol, offset, stamped(stamp, length as usize)).await.expect("written"),
        }
        self.end(event);
    }

    pub(crate) async fn flush(&self, number: u128, lvol: &Rc<Lvol>) {
        let event = self.begin(number, What::Flush);
        flush(lvol).await.expect("flushed");
        self.end(event);
    }

    /// A checkpoint makes durable what was answered before it, as a flush does.
    pub(crate) async fn trim(&self, store: &Store) {
        let event = self.begin(0, What::Flush);
        store.trim().await.expect("a checkpoint");
        self.end(event);
    }

    pub(crate) async fn snapshot(&self, store: &Store, head: u128, number: u128) {
        let event = self.begin(head, What::Snapshot(id(number)));
        store.snapshot(id(head), &snapshot(number)).await.expect("cut");
        self.end(event);
    }

    pub(crate) async fn label(&self, store: &Store, number: u128, label: u64) {
        let event = self.begin(number, What::Label(label));
        let value = Some(label.to_le_bytes().to_vec());
        store.set_attributes(id(number), &[(LABEL.to_owned(), value)]).await.expect("set");
        self.end(event);
    }

    pub(crate) async fn delete(&self, store: &Store, number: u128) {
        let event = self.begin(number, What::Delete);
        store.delete(id(number)).await.expect("deleted");
        self.end(event);
    }
}

/// What may be found after the power went at step `at`.
pub(crate) struct Expectation<'a> {
    pub(crate) events: &'a [Event],
    /// Bytes that a power cut leaves whole (I29).
    pub(crate) unit: u64,
    pub(crate) at: usize,
}

impl Expectation<'_> {
    fn of(&self, lvol: Uuid) -> impl Iterator<Item = &Event> {
        self.events.iter().filter(move |event| event.lvol == lvol)
    }

    /// The stamps that a block may have, of an lvol that got no write begun at `until` or later and has every write that
    /// was answered at `settled` or earlier.
    fn stamps(&self, lvol: Uuid, block: u64, settled: usize, until: usize) -> Vec<u64> {
        let mut stamps = vec![0];
        for event in self.of(lvol) {
            let What::Write(first, last, stamp) = event.what else { continue };
            if !(first..last).contains(&block) || event.start >= until.min(self.at + 1) {
                continue;
            }
            if event.end <= settled {
                stamps.clear();
            }
            stamps.push(stamp);
        }
        stamps
    }

    /// The start of the latest flush that was answered before the cut.
    fn flushed(&self) -> usize {
        let done = self.events.iter().filter(|event| matches!(event.what, What::Flush) && event.end <= self.at);
        done.map(|event| event.start).max().unwrap_or(0)
    }

    /// Whether something must have happened to an lvol, may have happened.
    fn state(&self, lvol: Uuid, find: impl Fn(&What) -> bool) -> (bool, bool) {
        let event = self.of(lvol).find(|event| find(&event.what));
        event.map_or((false, false), |event| (event.end <= self.at, event.start <= self.at))
    }

    fn check_content(&self, lvol: Uuid, content: &[u8], settled: usize, until: usize, what: &str) {
        for (block, bytes) in content.chunks_exact(BLOCK as usize).enumerate() {
            let stamps = self.stamps(lvol, block as u64, settled, until);
            for unit in bytes.chunks_exact(self.unit as usize) {
                let stamp = u64::from_le_bytes(unit[..8].try_into().expect("eight bytes"));
                assert!(unit == &stamped(stamp, unit.len())[..], "{what}: block {block} is a mixture (I29)");
                assert!(stamps.contains(&stamp), "{what}: block {block} holds {stamp}, not one of {stamps:?}");
            }
        }
    }

    /// A head: there or not, with one of its labels, and its content.
    pub(crate) async fn check_head(&self, store: &Store, number: u128) {
        let head = id(number);
        let (created, maybe_created) = self.state(head, |what| matches!(what, What::Create));
        let (deleted, maybe_deleted) = self.state(head, |what| matches!(what, What::Delete));
        let Ok(lvol) = store.open_lvol(head).await else {
            assert!(!created || maybe_deleted, "head {number} is gone");
            return;
        };
        assert!(maybe_created && !deleted, "head {number} is there");
        self.check_label(store, head);
        self.check_content(head, &read_all(&lvol).await, self.flushed(), usize::MAX, &format!("head {number}"));
    }

    /// Attributes are durable when they are answered, and change as a whole.
    fn check_label(&self, store: &Store, lvol: Uuid) {
        let attributes = store.lvol_info(lvol).expect("it is open").attributes;
        let found = attributes.get(LABEL).map(|value| u64::from_le_bytes(value[..].try_into().expect("eight bytes")));
        let mut labels = vec![None];
        for event in self.of(lvol).filter(|event| event.start <= self.at) {
            let What::Label(label) = event.what else { continue };
            if event.end <= self.at {
                labels.clear();
            }
            labels.push(Some(label));
        }
        assert!(labels.contains(&found), "{lvol} is labelled {found:?}, not one of {labels:?}");
    }

    /// Snapshots are there or not, but whole; those that were answered are there until they are deleted.
    pub(crate) async fn check_snapshots(&self, store: &Store) {
        for event in self.events {
            let What::Snapshot(uuid) = event.what else { continue };
            let (deleted, maybe_deleted) = self.state(uuid, |what| matches!(what, What::Delete));
            let Ok(lvol) = store.open_lvol(uuid).await else {
                assert!(event.end > self.at || maybe_deleted, "snapshot {uuid} is gone");
                continue;
            };
            assert!(event.start <= self.at, "snapshot {uuid} is there before it was asked for");
            assert!(!deleted, "snapshot {uuid} is there after it was deleted");
            // One that was answered is durable with all that was answered before it was asked for.
            let settled = if event.end <= self.at { event.start } else { self.flushed().min(event.start) };
            self.check_content(event.lvol, &read_all(&lvol).await, settled, event.end, "a snapshot");
        }
    }
}
