//! A simulated disk: what a reader sees now, what survives a power cut, and what lies between.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::crash::{after_kill, after_power_cut};
use super::errno::{EIO, ENOSPC, error};
use super::fault::{DiskFault, DiskFaultKind, DiskLatency};
use super::history::DiskHistory;
use super::image::{Change, Content, DiskImage};
use super::random::Random;
use super::trace::hash_bytes;

/// How many done writes may wait for a sync; beyond that the oldest reach the medium by themselves, as they do in life.
const UNSYNCED: usize = 1 << 16;

/// The same in bytes.
const UNSYNCED_BYTES: u64 = 256 << 20;

/// One disk of one machine. It outlives processes and power cuts.
#[derive(Debug)]
pub(crate) struct Disk {
    live: DiskImage,
    durable: DiskImage,
    /// Writes done but not synced, with their numbers, in order.
    unsynced: VecDeque<(u64, Arc<Change>)>,
    unsynced_bytes: u64,
    /// The number of the next write to be done.
    next_done: u64,
    next_request: u64,
    alignment: u32,
    latency: DiskLatency,
    faults: Vec<DiskFault>,
    /// Bytes that may be allocated.
    space: Option<u64>,
    history: Option<DiskHistory>,
    /// The reactor that has it open.
    holder: Option<usize>,
    /// A sync failed since it was opened, and readers see writes that no later sync of this user covers.
    distrusted: bool,
}

/// What a disk is asked for.
#[derive(Clone, Debug)]
pub(crate) enum Want {
    Read { offset: u64, length: u64 },
    Change(Arc<Change>),
    Sync,
}

/// An operation the disk works on.
#[derive(Debug)]
pub(crate) struct Request {
    id: u64,
    want: Want,
    verdict: Verdict,
    /// Done writes with lower numbers are covered, for a sync.
    covers: u64,
    /// How long it takes; none while it hangs.
    pub(crate) delay: Option<Duration>,
}

impl Request {
    /// A hash of what is written, for traces.
    pub(crate) fn written_hash(&self) -> u64 {
        match &self.want {
            Want::Change(change) => match &change.content {
                Content::Bytes(data) => hash_bytes(data) ^ change.offset,
                Content::Zeroes | Content::Hole => hash_bytes(&[]) ^ change.offset,
            },
            Want::Read { .. } | Want::Sync => 0,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Good,
    Fail,
    NoSpace,
    /// A sync that lies, or a read that flips a bit.
    Wrong,
}

impl Disk {
    pub(crate) fn new(size: u64, alignment: u32) -> Self {
        Self::with_image(DiskImage::new(size), alignment)
    }

    pub(crate) fn with_image(image: DiskImage, alignment: u32) -> Self {
        Self {
            live: image.clone(),
            durable: image,
            unsynced: VecDeque::new(),
            unsynced_bytes: 0,
            next_done: 0,
            next_request: 0,
            alignment,
            latency: DiskLatency::default(),
            faults: Vec::new(),
            space: None,
            history: None,
            holder: None,
            distrusted: false,
        }
    }

    pub(crate) fn size(&self) -> u64 {
        self.live.size()
    }

    pub(crate) fn alignment(&self) -> u32 {
        self.alignment
    }

    /// Lets one reactor have it.
    pub(crate) fn lock(&mut self, reactor: usize) -> bool {
        let free = self.holder.is_none();
        self.holder.get_or_insert(reactor);
        free
    }

    /// Its user closed it, or died. The next one may make stable what it finds.
    pub(crate) fn unlock(&mut self) {
        self.holder = None;
        if std::mem::take(&mut self.distrusted) {
            self.unsynced.clear();
            self.unsynced_bytes = 0;
            for change in self.live.changes_from(&self.durable, u64::from(self.alignment)) {
                self.land(Arc::new(change));
            }
        }
    }

    /// Takes an operation on: decides now what becomes of it.
    pub(crate) fn start(&mut self, want: Want, random: &mut Random) -> Request {
        self.next_request += 1;
        let id = self.next_request;
        let verdict = self.verdict(&want, random);
        let delay = self.delay(&want, random);
        if let (Some(history), Want::Change(change)) = (&mut self.history, &want) {
            history.started(id, change);
        }
        Request { id, want, verdict, covers: self.next_done, delay }
    }

    /// Ends an operation: this is when it takes effect. A read's bytes go to `into`.
    pub(crate) fn finish(&mut self, request: Request, into: &mut [u8], random: &mut Random) -> io::Result<()> {
        match (request.want, request.verdict) {
            (Want::Read { .. }, Verdict::Fail | Verdict::NoSpace) => return Err(error(EIO)),
            (Want::Read { offset, .. }, verdict) => {
                self.live.read(offset, into);
                if verdict == Verdict::Wrong && !into.is_empty() {
                    let place = random.index(into.len());
                    into[place] ^= 1 << random.below(8);
                }
            }
            (Want::Change(_), Verdict::NoSpace) => return Err(error(ENOSPC)),
            (Want::Change(change), Verdict::Fail) => {
                // I10: a failed write may have landed in part.
                if let Some(landed) = after_kill(&change, random) {
                    self.land(landed);
                }
                return Err(error(EIO));
            }
            (Want::Change(change), _) => self.change(request.id, change),
            (Want::Sync, Verdict::Fail) => {
                if random.one_in(2) {
                    self.distrust();
                }
                return Err(error(EIO));
            }
            (Want::Sync, Verdict::Wrong) => {}
            (Want::Sync, _) => self.settle(request.covers),
        }
        Ok(())
    }

    /// The process that issued these is dead: each may still happen, in any order.
    pub(crate) fn kill(&mut self, mut in_flight: Vec<Request>, random: &mut Random) {
        while !in_flight.is_empty() {
            let request = in_flight.swap_remove(random.index(in_flight.len()));
            if let Want::Change(change) = request.want
                && request.verdict == Verdict::Good
                && let Some(landed) = after_kill(&change, random)
            {
                self.land(landed);
            }
        }
        self.unlock();
    }

    /// The machine lost its power: of what was not synced and of what was in flight any part may be there.
    pub(crate) fn power_cut(&mut self, mut in_flight: Vec<Request>, random: &mut Random) {
        let mut changes: Vec<Arc<Change>> = self.unsynced.drain(..).map(|(_, change)| change).collect();
        while !in_flight.is_empty() {
            let request = in_flight.swap_remove(random.index(in_flight.len()));
            if let Want::Change(change) = request.want {
                changes.push(change);
            }
        }
        self.durable = after_power_cut(&self.durable, &changes, random);
        self.live = self.durable.clone();
        self.unsynced_bytes = 0;
        self.holder = None;
        self.distrusted = false;
    }

    /// Changes the size at once and for good.
    pub(crate) fn resize(&mut self, size: u64) {
        // A shorter disk must not meet older, longer writes when it is synced or cut.
        self.settle(u64::MAX);
        self.live.resize(size);
        self.durable.resize(size);
        if let Some(history) = &mut self.history {
            history.resized(size);
        }
    }

    pub(crate) fn image(&self) -> &DiskImage {
        &self.live
    }

    pub(crate) fn durable_image(&self) -> &DiskImage {
        &self.durable
    }

    /// Replaces the content by hand, keeping faults and latency.
    pub(crate) fn set_image(&mut self, image: DiskImage) {
        self.unsynced.clear();
        self.unsynced_bytes = 0;
        self.live = image.clone();
        self.durable = image;
    }

    /// Turns bits on the medium.
    pub(crate) fn flip(&mut self, offset: u64, mask: u8) {
        self.settle(u64::MAX);
        self.live.flip(offset, mask);
        self.durable.flip(offset, mask);
    }

    pub(crate) fn set_latency(&mut self, latency: DiskLatency) {
        self.latency = latency;
    }

    pub(crate) fn limit_space(&mut self, bytes: Option<u64>) {
        self.space = bytes;
    }

    pub(crate) fn add_fault(&mut self, fault: DiskFault) {
        self.faults.push(fault);
    }

    pub(crate) fn clear_faults(&mut self) {
        self.faults.clear();
    }

    /// Begins a history at this point.
    pub(crate) fn record(&mut self) {
        let mut history = DiskHistory::new(self.durable.clone());
        for (number, change) in &self.unsynced {
            // Requests count from one, so zero is nobody else's.
            history.started(0, change);
            history.done(0, *number);
        }
        self.history = Some(history);
    }

    pub(crate) fn history(&self) -> Option<&DiskHistory> {
        self.history.as_ref()
    }

    /// Applies what happened of a change that was not done as asked.
    fn land(&mut self, change: Arc<Change>) {
        self.next_request += 1;
        if let Some(history) = &mut self.history {
            history.started(self.next_request, &change);
        }
        self.change(self.next_request, change);
    }

    /// Applies a change as done.
    fn change(&mut self, id: u64, change: Arc<Change>) {
        change.apply(&mut self.live);
        let end = change.offset + change.length;
        let covers = |range: &Range<u64>| change.offset <= range.start && range.end <= end;
        self.faults.retain(|fault| fault.kind != DiskFaultKind::LosePlaces || !covers(&fault.range));
        if let Some(history) = &mut self.history {
            history.done(id, self.next_done);
        }
        self.unsynced_bytes += change.length;
        self.unsynced.push_back((self.next_done, change));
        self.next_done += 1;
        while self.unsynced.len() > UNSYNCED || self.unsynced_bytes > UNSYNCED_BYTES {
            let Some((oldest, _)) = self.unsynced.front() else { break };
            let below = oldest + 1;
            self.settle(below);
        }
    }

    /// Makes done writes with lower numbers stable.
    fn settle(&mut self, below: u64) {
        while let Some((_, change)) = self.unsynced.pop_front_if(|(number, _)| *number < below) {
            self.unsynced_bytes -= change.length;
            change.apply(&mut self.durable);
        }
        if let Some(history) = &mut self.history {
            history.synced(below);
        }
    }

    /// A sync failed. What readers see stays, but no later sync of the same user makes it stable.
    fn distrust(&mut self) {
        self.distrusted = true;
        self.unsynced.clear();
        self.unsynced_bytes = 0;
    }

    fn verdict(&self, want: &Want, random: &mut Random) -> Verdict {
        if let Want::Change(change) = want
            && change.content != Content::Hole
            && let Some(space) = self.space
            && self.live.allocated() + self.live.growth(change.offset, change.length) > space
        {
            return Verdict::NoSpace;
        }
        let mut verdict = Verdict::Good;
        for fault in &self.faults {
            let met = match (fault.kind, want) {
                (DiskFaultKind::FailReads | DiskFaultKind::LosePlaces, Want::Read { .. })
                | (DiskFaultKind::FailWrites, Want::Change(_))
                | (DiskFaultKind::FailSyncs, Want::Sync) => Verdict::Fail,
                (DiskFaultKind::LoseSyncs, Want::Sync) | (DiskFaultKind::CorruptReads, Want::Read { .. }) => {
                    Verdict::Wrong
                }
                _ => continue,
            };
            if touches(fault, want) && random.chance(fault.probability) {
                verdict = met;
            }
        }
        verdict
    }

    fn delay(&self, want: &Want, random: &mut Random) -> Option<Duration> {
        let range = match want {
            Want::Read { .. } => &self.latency.read,
            Want::Change(_) => &self.latency.write,
            Want::Sync => &self.latency.sync,
        };
        let mut delay = random.duration(range);
        // A few take much longer, so that what usually comes first sometimes comes last.
        if random.one_in(64) {
            delay *= 16;
        }
        for fault in &self.faults {
            match fault.kind {
                DiskFaultKind::Hang if touches(fault, want) && random.chance(fault.probability) => return None,
                DiskFaultKind::Slow(more) if touches(fault, want) && random.chance(fault.probability) => delay += more,
                _ => {}
            }
        }
        Some(delay)
    }
}

fn touches(fault: &DiskFault, want: &Want) -> bool {
    let (offset, length) = match want {
        Want::Read { offset, length } => (*offset, *length),
        Want::Change(change) => (change.offset, change.length),
        Want::Sync => return true,
    };
    offset < fault.range.end && offset.saturating_add(length) > fault.range.start
}
