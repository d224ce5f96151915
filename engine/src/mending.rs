//! Mending what one replica cannot read, with what another one in sync has (I22). `docs/replication.md`, "Damage", has the rules.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use block_device::{Error, ErrorKind, Range, Request, Segments};
use reactor::{Instant, bug, now, timeout};
use replica::{LvolKind, REPAIR_REGION, Replica};
use uuid::Uuid;

use crate::copy::{perform, pieces, read_lvol, write};
use crate::core::Core;
use crate::members::{Mask, bit};

/// How long what could not be mended is left alone, and a replica that did not say what it found.
const PAUSE: Duration = Duration::from_secs(60);
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// What the medium loses at once.
const BLOCK: u64 = 4096;

/// Ranges that wait to be mended; one more is found again when it is read again.
const MOST_WAITING: usize = 64;

/// Places that are remembered as not mended.
const MOST_OPEN: usize = 1000;

/// Repairs that may fail one after the other before the replica goes.
const FAILURES: u32 = 3;

/// Where a replica is damaged: in a snapshot, or in what the volume reads as now; bytes from the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    snapshot: Option<Uuid>,
    offset: u64,
}

/// What is known of a replica's damage.
#[derive(Debug, Default)]
pub(crate) struct Damage {
    /// Blocks and regions mended so far.
    repaired: u64,
    /// Those for which there is no good copy, or that could not be written, when it was tried last.
    open: BTreeSet<Place>,
    /// Repairs that failed on the replica itself, one after the other.
    failures: u32,
    /// What the replica had found when it was asked last.
    findings: u32,
    /// When what is open is tried again, or the replica is asked again.
    again: Option<Instant>,
}

impl Damage {
    /// The replica is in sync again: all of it was compared, or is what it was.
    pub(crate) fn rejoined(&mut self) {
        self.open.clear();
        (self.failures, self.again) = (0, None);
    }

    /// For people: what was mended, and what cannot be.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.repaired, self.open.len() as u64)
    }
}

/// What came of a repair.
enum Outcome {
    /// It reads well now.
    Mended,
    /// The replica is not in sync any more, or the snapshot is gone: nobody's concern.
    Moot,
    /// No other replica in sync has it, or none that can be proven right.
    NoCopy(Error),
    /// The replica did not take it.
    Failed(Error),
}

impl Core {
    /// A member could not read a range for a host.
    pub(crate) fn want_mended(&self, member: usize, range: Range) {
        let replica = self.record.borrow().replicas.get(member).map(|replica| replica.replica);
        replica.into_iter().for_each(|replica| self.want_mended_at(replica, range));
    }

    /// A replica could not read a range of its head, or of a snapshot that may show there.
    pub(crate) fn want_mended_at(&self, replica: Uuid, range: Range) {
        let mut waiting = self.damaged.borrow_mut();
        if waiting.len() < MOST_WAITING && !waiting.contains(&(replica, range)) {
            waiting.push_back((replica, range));
            self.signals.damage.notify_one();
        }
    }

    /// Mends what reads met, and what replicas found by themselves. Runs for a session; sleeps while there is nothing to mend.
    pub(crate) async fn keep_mending(self: Rc<Self>) {
        loop {
            let news = self.signals.damage.notified();
            match self.mend_again_at() {
                Some(again) => drop(timeout(again - now(), news).await),
                None => news.await,
            }
            while let Some((replica, range)) = self.next_damaged() {
                self.mend_range(replica, range).await;
            }
            self.mend_findings().await;
        }
    }

    fn next_damaged(&self) -> Option<(Uuid, Range)> {
        self.damaged.borrow_mut().pop_front()
    }

    /// Makes a range of a replica's head readable, block by block. Nothing is cut or joined meanwhile, and no write is in flight there: so what
    /// another replica in sync has is what this one should have.
    async fn mend_range(&self, replica: Uuid, range: Range) {
        let _administration = self.administration.lock().await;
        let size = self.geometry.get().size();
        let start = range.offset - range.offset % BLOCK;
        let end = range.end().next_multiple_of(BLOCK).min(size);
        let whole = Range { offset: start, length: end.saturating_sub(start) };
        let kept = if bug!("mend-beside-writes") { Range { length: 0, ..whole } } else { whole };
        let _locked = self.lock_region(kept).await;
        for coarse in pieces(whole, REPAIR_REGION) {
            if self.reads_well(replica, coarse).await {
                self.read_well(replica, coarse);
                continue;
            }
            for block in pieces(coarse, BLOCK) {
                match self.reads_well(replica, block).await {
                    true => self.read_well(replica, block),
                    false => self.mend_block(replica, block).await,
                }
            }
        }
    }

    /// Whether a replica can read a range of its head; also if it is not in sync any more, and nobody's concern.
    async fn reads_well(&self, replica: Uuid, range: Range) -> bool {
        let Some((_, damaged)) = self.damaged_one(replica) else { return true };
        let read = self.in_time(perform(&*damaged, Request::Read { range })).await;
        !matches!(read, Err(error) if error.kind() == ErrorKind::ReadFailed)
    }

    async fn mend_block(&self, replica: Uuid, block: Range) {
        let Some((_, damaged)) = self.damaged_one(replica) else { return };
        match self.in_time(owner(&*damaged, block)).await {
            Ok(Some(snapshot)) => {
                let offset = block.offset - block.offset % REPAIR_REGION;
                self.mend_region(replica, snapshot, offset).await;
            }
            Ok(None) => {
                let outcome = self.rewrite(replica, block).await;
                self.tell(replica, Place { snapshot: None, offset: block.offset }, outcome);
            }
            Err(error) => self.tell(replica, Place { snapshot: None, offset: block.offset }, Outcome::Failed(error)),
        }
    }

    /// Writes a block of the head anew. Its range is kept from writes.
    async fn rewrite(&self, replica: Uuid, block: Range) -> Outcome {
        let Some((member, _)) = self.damaged_one(replica) else { return Outcome::Moot };
        let request = Request::Read { range: block };
        let data = match self.ask_others(bit(member), |other| perform_on(other, request.clone())).await {
            Ok(data) => data,
            Err(error) => return Outcome::NoCopy(error),
        };
        // It may have left meanwhile, and come back as another.
        let Some((_, damaged)) = self.damaged_one(replica) else { return Outcome::Moot };
        // However long it takes: given up it might land after a newer write (I15). A replica that never answers fails at the deadline.
        if let Err(error) = write(&*damaged, block.offset, data.clone()).await {
            return Outcome::Failed(error);
        }
        match self.in_time(perform(&*damaged, request)).await {
            Ok(read) if read.to_vec() == data.to_vec() => Outcome::Mended,
            Ok(_) => {
                Outcome::Failed(Error::with_detail(ErrorKind::ReadFailed, "it reads wrong after it was written anew"))
            }
            Err(error) => Outcome::Failed(error),
        }
    }

    /// Asks replicas for damage of snapshots that they found since they were asked last, and tries again what is open.
    async fn mend_findings(&self) {
        let count = self.members.borrow().0.len();
        for member in 0..count {
            let Some((replica, findings)) = self.news_of(member) else { continue };
            let Some((_, damaged)) = self.damaged_one(replica) else { continue };
            let Ok(found) = self.in_time(damaged.damage()).await else {
                self.with_damage(replica, |damage| damage.again = Some(now() + ASK_AGAIN));
                continue;
            };
            let found = found.iter().map(|region| Place { snapshot: Some(region.snapshot), offset: region.offset });
            let open: BTreeSet<Place> = found.chain(self.open_places(replica, findings)).collect();
            for place in open {
                match place.snapshot {
                    Some(snapshot) => {
                        let _administration = self.administration.lock().await;
                        self.mend_region(replica, snapshot, place.offset).await;
                    }
                    None => self.mend_range(replica, Range { offset: place.offset, length: BLOCK }).await,
                }
            }
        }
    }

    /// When something is to be tried again without news.
    fn mend_again_at(&self) -> Option<Instant> {
        let members = self.members.borrow();
        let readable = members.readable();
        let looked_at = members.0.iter().enumerate().filter(|(member, _)| readable & bit(*member) != 0);
        looked_at.filter_map(|(_, member)| member.damage.again).min()
    }

    /// What a replica had found when it was looked at last.
    pub(crate) fn seen_findings(&self, member: usize) -> u32 {
        self.members.borrow().0.get(member).map_or(0, |member| member.damage.findings)
    }

    /// The replica of a member that has something to be looked at, and what it has found by now.
    fn news_of(&self, member: usize) -> Option<(Uuid, u32)> {
        let members = self.members.borrow();
        let findings = members.replica(member)?.findings();
        let damage = &members.0.get(member)?.damage;
        let news = findings != damage.findings || damage.again.is_some_and(|again| again <= now());
        news.then(|| Some((self.record.borrow().replicas.get(member)?.replica, findings))).flatten()
    }

    fn open_places(&self, replica: Uuid, findings: u32) -> BTreeSet<Place> {
        let found = self.with_damage(replica, |damage| {
            (damage.findings, damage.again) = (findings, None);
            damage.open.clone()
        });
        found.unwrap_or_default()
    }

    /// Mends a region of a snapshot, which does not change: the replica itself knows by its hash whether the bytes are right.
    async fn mend_region(&self, replica: Uuid, snapshot: Uuid, offset: u64) {
        let outcome = self.restore(replica, snapshot, offset).await;
        self.tell(replica, Place { snapshot: Some(snapshot), offset }, outcome);
    }

    async fn restore(&self, replica: Uuid, snapshot: Uuid, offset: u64) -> Outcome {
        let Some((_, damaged)) = self.damaged_one(replica) else { return Outcome::Moot };
        if matches!(self.in_time(damaged.chain()).await, Ok(chain) if chain.iter().all(|lvol| lvol.id != snapshot)) {
            return Outcome::Moot;
        }
        let mut said = Error::with_detail(ErrorKind::Unavailable, "no other replica is in sync");
        let mut tried = 0;
        while let Some((member, damaged)) = self.damaged_one(replica) {
            tried |= bit(member);
            let Some((other, source)) = self.another(tried) else { break };
            tried |= bit(other);
            let data = match self.in_time(read_region(&*source, snapshot, offset)).await {
                Ok(Some(data)) => data,
                // Deleted meanwhile.
                Ok(None) => return Outcome::Moot,
                Err(error) => {
                    said = error;
                    continue;
                }
            };
            match self.in_time(damaged.repair(snapshot, offset, data.to_vec())).await {
                Ok(()) => return Outcome::Mended,
                // That copy is not what was hashed; or nobody can tell.
                Err(error) if matches!(error.kind(), ErrorKind::CompareMismatch | ErrorKind::InvalidField) => {
                    said = error
                }
                Err(error) => return Outcome::Failed(error),
            }
        }
        match self.damaged_one(replica) {
            Some(_) => Outcome::NoCopy(said),
            None => Outcome::Moot,
        }
    }

    /// What another member in sync answers, the first that can.
    async fn ask_others<F>(&self, mut tried: Mask, ask: impl Fn(Rc<dyn Replica>) -> F) -> Result<Segments, Error>
    where
        F: Future<Output = Result<Segments, Error>>,
    {
        let mut said = Error::with_detail(ErrorKind::Unavailable, "no other replica is in sync");
        while let Some((member, other)) = self.another(tried) {
            tried |= bit(member);
            match self.in_time(ask(other)).await {
                Ok(data) => return Ok(data),
                Err(error) => said = error,
            }
        }
        Err(said)
    }

    fn another(&self, tried: Mask) -> Option<(usize, Rc<dyn Replica>)> {
        let members = self.members.borrow();
        let member = members.source(tried)?;
        Some((member, members.replica(member)?))
    }

    /// A replica that is in sync and works, and its member.
    fn damaged_one(&self, replica: Uuid) -> Option<(usize, Rc<dyn Replica>)> {
        let member = self.record.borrow().replicas.iter().position(|member| member.replica == replica)?;
        let members = self.members.borrow();
        (members.readable() & bit(member) != 0).then(|| Some((member, members.replica(member)?))).flatten()
    }

    fn with_damage<T>(&self, replica: Uuid, change: impl FnOnce(&mut Damage) -> T) -> Option<T> {
        let member = self.record.borrow().replicas.iter().position(|member| member.replica == replica)?;
        self.members.borrow_mut().0.get_mut(member).map(|member| change(&mut member.damage))
    }

    fn settled(&self, replica: Uuid, place: Place) {
        self.with_damage(replica, |damage| damage.open.remove(&place));
    }

    /// A range of the head reads: the host may have written it anew.
    fn read_well(&self, replica: Uuid, range: Range) {
        let is_there = |place: &Place| place.snapshot.is_none() && (range.offset..range.end()).contains(&place.offset);
        self.with_damage(replica, |damage| damage.open.retain(|place| !is_there(place)));
    }

    /// Counts what came of a repair, and lets a replica go whose disk takes none.
    fn tell(&self, replica: Uuid, place: Place, outcome: Outcome) {
        let volume = self.config.volume;
        let (text, error) = match outcome {
            Outcome::Mended => {
                tracing::warn!(%volume, %replica, ?place, "damage was mended with what another replica has");
                self.with_damage(replica, |damage| {
                    damage.open.remove(&place);
                    damage.repaired += 1;
                    damage.failures = 0;
                });
                return;
            }
            Outcome::Moot => return self.settled(replica, place),
            Outcome::NoCopy(error) => ("damage cannot be mended: no other copy", error),
            Outcome::Failed(error) => {
                if error.kind() == ErrorKind::Fenced {
                    // I14: a newer grant was met.
                    return self.stop_fenced("a replica serves a newer epoch");
                }
                // A connection that died, or a queue that is full, says nothing about the disk (I33).
                let disk = matches!(error.kind(), ErrorKind::ReadFailed | ErrorKind::WriteFailed);
                self.with_damage(replica, |damage| damage.failures += u32::from(disk));
                ("damage could not be mended", error)
            }
        };
        let known = self.with_damage(replica, |damage| {
            let new = damage.open.len() < MOST_OPEN && damage.open.insert(place);
            damage.again = Some(now() + PAUSE);
            (new, damage.failures)
        });
        let Some((new, failures)) = known else { return };
        if new {
            tracing::error!(%volume, %replica, ?place, %error, "{text}");
        }
        if failures >= FAILURES {
            self.let_go(replica, &error);
        }
    }

    /// A replica that takes no repairs counts as failed, unless it is the last (I3). It comes back when all of it could be compared.
    fn let_go(&self, replica: Uuid, error: &Error) {
        let Some((member, _)) = self.damaged_one(replica) else { return };
        if self.members.borrow().is_last(member) {
            return;
        }
        if let Some(member) = self.members.borrow_mut().0.get_mut(member) {
            member.unsound = true;
        }
        let text = format!("its disk has damage that could not be mended {FAILURES} times: {error}");
        self.member_failed(member, &Error::with_detail(ErrorKind::WriteFailed, text));
    }
}

async fn perform_on(replica: Rc<dyn Replica>, request: Request) -> Result<Segments, Error> {
    perform(&*replica, request).await
}

/// The snapshot that a block of the head is read through to; none if it is the head's own, or nobody's.
async fn owner(replica: &dyn Replica, block: Range) -> Result<Option<Uuid>, Error> {
    for lvol in replica.chain().await?.iter().rev() {
        let own = replica.extents(lvol.id, block, 1).await?;
        if !own.list.is_empty() {
            return Ok((lvol.kind == LvolKind::Snapshot).then_some(lvol.id));
        }
    }
    Ok(None)
}

/// A region as it is read through a snapshot; none if there is no such snapshot.
async fn read_region(replica: &dyn Replica, snapshot: Uuid, offset: u64) -> Result<Option<Segments>, Error> {
    let chain = replica.chain().await?;
    let Some(entry) = chain.iter().find(|entry| entry.id == snapshot) else { return Ok(None) };
    let length = REPAIR_REGION.min(entry.size.saturating_sub(offset));
    match length {
        0 => Ok(None),
        length => read_lvol(replica, snapshot, Range { offset, length }).await.map(Some),
    }
}
