//! The journal: changes wait in a queue, one batch at a time is written, and what a batch says takes effect in memory when
//! it is on disk.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use reactor::{Buffer, bug, spawn};
use tokio::sync::oneshot;

use crate::core::Core;
use crate::error::StoreError;
use crate::format::batch::{self, BATCH_HEADER, BatchHead, MAX_BATCH};
use crate::format::layout::Region;
use crate::format::record::Record;
use crate::ring::Ring;

/// What one caller wants to become true at once.
struct Commit {
    records: Vec<Record>,
    bytes: usize,
    done: oneshot::Sender<Result<(), StoreError>>,
}

/// The journal of an open store.
pub(crate) struct Journal {
    region: Region,
    session: u64,
    state: RefCell<State>,
}

struct State {
    ring: Ring,
    /// Bounded by the requests in flight: each waits for its commit.
    queue: VecDeque<Commit>,
    /// A task writes batches.
    running: bool,
    /// The number of the next batch.
    next: u64,
    /// The batch being written, and where.
    in_flight: Option<u64>,
    /// The last batch that is on disk and in memory.
    completed: u64,
    /// The last batch with newly valid blocks.
    last_set: u64,
    /// Blocks that became valid since the last durable marker.
    unmarked_blocks: u64,
    /// What the next batch says about durability.
    durable_through: u64,
    /// Up to which batch a marker, or a checkpoint, is durable itself.
    marked: u64,
}

/// Where replay would start now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReplayStart {
    pub(crate) batch: u64,
    pub(crate) position: u64,
}

/// How many blocks may become valid before a flush is made without being asked for: what recovery has to read and verify
/// after a power cut stays bounded.
const MAX_UNMARKED_BLOCKS: u64 = 32 << 10;

impl Journal {
    pub(crate) fn new(region: Region, session: u64, start: ReplayStart) -> Self {
        let completed = start.batch - 1;
        let state = State {
            ring: Ring::new(region.length, start.position),
            queue: VecDeque::new(),
            running: false,
            next: start.batch,
            in_flight: None,
            completed,
            last_set: completed,
            unmarked_blocks: 0,
            durable_through: completed,
            marked: completed,
        };
        Self { region, session, state: RefCell::new(state) }
    }

    /// The last batch that is on disk and in memory.
    pub(crate) fn completed(&self) -> u64 {
        self.state.borrow().completed
    }

    /// Whether some block became valid that no durable marker covers.
    pub(crate) fn needs_marker(&self) -> bool {
        let state = self.state.borrow();
        state.last_set > state.marked
    }

    /// Whether it is time for a flush that nobody asked for.
    pub(crate) fn has_many_unmarked(&self) -> bool {
        self.state.borrow().unmarked_blocks > MAX_UNMARKED_BLOCKS
    }

    /// Batches from now on say that those up to `batch` are durable with their data. To be called when a sync that started after
    /// `batch` completed is done.
    pub(crate) fn set_durable(&self, batch: u64) {
        let mut state = self.state.borrow_mut();
        state.durable_through = state.durable_through.max(batch);
    }

    /// The marker for `batch` is durable itself.
    pub(crate) fn set_marked(&self, batch: u64) {
        let mut state = self.state.borrow_mut();
        state.marked = state.marked.max(batch);
        if state.marked >= state.last_set {
            state.unmarked_blocks = 0;
        }
    }

    /// Where a replay must start to find everything that is not in memory yet.
    pub(crate) fn replay_start(&self) -> ReplayStart {
        let state = self.state.borrow();
        ReplayStart { batch: state.completed + 1, position: state.in_flight.unwrap_or(state.ring.head()) }
    }

    /// A checkpoint from `start` on is durable: the journal before it is free.
    pub(crate) fn release_to(&self, start: ReplayStart) {
        self.state.borrow_mut().ring.release_to(start.position);
    }

    fn next_batch(&self) -> Option<Vec<Commit>> {
        let mut state = self.state.borrow_mut();
        let mut bytes = BATCH_HEADER;
        let mut commits = Vec::new();
        while let Some(commit) = state.queue.pop_front() {
            if bytes + commit.bytes > MAX_BATCH && !commits.is_empty() {
                state.queue.push_front(commit);
                break;
            }
            bytes += commit.bytes;
            commits.push(commit);
        }
        state.running = !commits.is_empty();
        state.running.then_some(commits)
    }

    fn reserve(&self, bytes: u64) -> Option<u64> {
        let mut state = self.state.borrow_mut();
        let place = state.ring.reserve(bytes)?;
        state.in_flight = Some(place);
        Some(place)
    }

    /// Bytes in use, of how many.
    pub(crate) fn usage(&self) -> (u64, u64) {
        (self.state.borrow().ring.used(), self.region.length)
    }

    fn is_half_used(&self) -> bool {
        self.state.borrow().ring.is_half_used()
    }

    fn head(&self) -> BatchHead {
        let state = self.state.borrow();
        BatchHead { sequence: state.next, session: self.session, durable_through: state.durable_through }
    }

    fn complete(&self, newly_valid: u64) {
        let mut state = self.state.borrow_mut();
        state.completed = state.next;
        state.next += 1;
        state.in_flight = None;
        if newly_valid > 0 {
            state.last_set = state.completed;
            state.unmarked_blocks += newly_valid;
        }
    }
}

impl Core {
    /// Makes all `records` true at once: when this returns they are in the journal and in memory; a kill of the
    /// process loses none of them, a power cut none once a [`Core::flush`] is done.
    pub(crate) async fn commit(self: &Rc<Self>, records: Vec<Record>) -> Result<(), StoreError> {
        self.check_running()?;
        let bytes = records.iter().map(Record::length).sum();
        assert!(BATCH_HEADER + bytes <= MAX_BATCH, "callers split what is longer than a batch");
        let (done, finished) = oneshot::channel();
        let start = {
            let mut state = self.journal.state.borrow_mut();
            state.queue.push_back(Commit { records, bytes, done });
            !std::mem::replace(&mut state.running, true)
        };
        if start {
            spawn(write_batches(Rc::clone(self)));
        }
        finished.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Writes one batch and makes it true in memory.
    async fn write_batch(self: &Rc<Self>, commits: Vec<Commit>, bytes: &mut Vec<u8>) {
        let result = self.write_records(&commits, bytes).await;
        match result {
            Ok(()) => self.finish_batch(commits),
            Err(_) if bug!("ignore-failed-journal-writes") => self.finish_batch(commits),
            Err(error) => {
                let detail = error.to_string();
                self.stop(&detail);
                for commit in commits {
                    let _ = commit.done.send(Err(StoreError::Stopped { detail: detail.clone() }));
                }
            }
        }
    }

    async fn write_records(self: &Rc<Self>, commits: &[Commit], bytes: &mut Vec<u8>) -> Result<(), StoreError> {
        self.check_running()?;
        let length = commits.iter().map(|commit| commit.bytes).sum::<usize>() + BATCH_HEADER;
        let length = (length as u64).next_multiple_of(crate::format::BLOCK);
        let place = loop {
            if let Some(place) = self.journal.reserve(length) {
                break place;
            }
            // Only a checkpoint makes room, and it needs none in the journal itself.
            self.checkpoint().await?;
        };
        let address = self.journal.region.offset + place;
        let records = commits.iter().flat_map(|commit| &commit.records);
        batch::encode(&self.journal.head(), self.format_id, address, records, bytes);
        debug_assert_eq!(bytes.len() as u64, length);
        let write = self.disk.write(address, Buffer::copy_of(bytes).freeze()).await;
        self.work.wrote_batch(length);
        write.map_err(StoreError::io("writing the journal"))
    }

    fn finish_batch(self: &Rc<Self>, commits: Vec<Commit>) {
        let mut freed = Vec::new();
        let mut newly_valid = 0;
        for record in commits.iter().flat_map(|commit| &commit.records) {
            newly_valid += match record {
                Record::MapSet { checksums, .. } => checksums.len() as u64,
                Record::MapSetZeroed { count, .. } => u64::from(*count),
                _ => 0,
            };
            let applied = self.catalog.borrow_mut().apply(record, &mut freed);
            assert_eq!(applied, Ok(()), "a record made here fits the maps here");
        }
        self.journal.complete(newly_valid);
        self.free_later(freed);
        for commit in commits {
            let _ = commit.done.send(Ok(()));
        }
        if self.journal.is_half_used() {
            self.start_checkpoint();
        }
        if self.journal.has_many_unmarked() {
            self.start_flush();
        }
    }
}

/// Writes batches as long as someone waits for one.
async fn write_batches(core: Rc<Core>) {
    let mut bytes = Vec::new();
    while let Some(commits) = core.journal.next_batch() {
        core.write_batch(commits, &mut bytes).await;
    }
}
