//! Bringing a replica back: rebuild and settle.

mod chain;
mod compare;
mod head;
mod own;
mod pace;
mod progress;
mod transfer;
mod walk;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use block_device::{Error, ErrorKind, Request};
use reactor::{bug, now};
use replica::{Replica, ReplicaState};
use tokio::sync::{Mutex, OwnedSemaphorePermit};

use self::progress::Speed;
pub(crate) use self::transfer::{perform, pieces, read_lvol, write};
use crate::core::Core;
use crate::members::Role;
use crate::members::bit;
use crate::noting::noted;
use crate::recording::NotRecorded;
use crate::regions::Regions;
use crate::registry::{MemberState, VolumeRecord};
use crate::session::Pause;

/// Bytes whose hashes are asked for at once.
const COMPARED_AT_ONCE: u64 = 4 << 20;

/// Extents asked for at once.
const EXTENTS: u32 = 512;

/// A replica that was in sync for so long has not just come to leave again.
const STEADY: Duration = Duration::from_secs(60);

/// How long a reset may take: it deletes a whole chain.
const RESET_LIMIT: Duration = Duration::from_secs(120);

/// One replica on its way back.
struct Job<'a> {
    core: &'a Rc<Core>,
    member: usize,
    target: Rc<dyn Replica>,
    /// Only what the target is known to lack is looked at.
    partial: Cell<bool>,
    /// Where the lvol being copied may differ from the target; none if that is not known.
    needs: RefCell<Option<Regions>>,
    /// The target was emptied: there is nothing to compare with.
    fresh: Cell<bool>,
    /// It is a rebuild. What settles has every acknowledged write, and is not kept from counting again.
    pausable: Cell<bool>,
    /// Its place among the copies of the node, while it has one. Held locked by whoever waits for a step.
    place: Mutex<Option<OwnedSemaphorePermit>>,
    speed: RefCell<Speed>,
}

/// Why a step of the head's copy ended early.
enum Interrupted {
    /// A snapshot of the volume was taken: the target does not receive writes any more, and copies that snapshot first.
    Snapshot,
    Failed(Error),
}

impl From<Error> for Interrupted {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl Core {
    /// Watches a replica, and brings it back whenever it is gone. Runs for a session.
    ///
    /// One that cannot be reached is tried again after pauses that grow until it is back. Those after it was back and left again
    /// grow until it stays: it would cost hosts a deadline, and everyone a copy, each time.
    pub(crate) async fn look_after(self: Rc<Self>, member: usize) {
        let (mut unreached, mut unsteady) = (Pause::new(), Pause::new());
        loop {
            if let Some(replica) = self.in_sync(member) {
                let since = now();
                let error = self.watch_replica(member, &*replica).await;
                self.member_failed(member, &error);
                self.until(|| (self.role(member) == Role::Absent).then_some(())).await;
                if self.departed(member, now() - since) == 1 {
                    unsteady = Pause::new();
                } else {
                    self.pause(member, unsteady.next()).await;
                }
            }
            match self.bring_back(member).await {
                Ok(()) => unreached = Pause::new(),
                Err(error) => {
                    self.drop_copy(member, &error);
                    self.pause(member, unreached.next()).await;
                }
            }
        }
    }

    /// Until a replica has failed; whenever damage was found there, that is looked at.
    async fn watch_replica(&self, member: usize, replica: &dyn Replica) -> Error {
        let mut seen = self.seen_findings(member);
        loop {
            match race(replica.failed(), replica.more_findings(seen)).await {
                Raced::First(error) => return error,
                Raced::Second(()) => {
                    seen = replica.findings();
                    self.signals.damage.notify_one();
                }
            }
        }
    }

    /// Counts how often a replica left; says how often since it was steady.
    fn departed(&self, member: usize, stayed: Duration) -> u32 {
        let mut members = self.members.borrow_mut();
        let Some(member) = members.0.get_mut(member) else { return 1 };
        member.departures = if stayed >= STEADY { 1 } else { member.departures.saturating_add(1) };
        member.departures
    }

    /// Leaves a replica alone for a while, and says until when.
    async fn pause(&self, member: usize, pause: Duration) {
        let set = |next| {
            if let Some(member) = self.members.borrow_mut().0.get_mut(member) {
                member.next_try = next;
            }
        };
        let end = now() + pause;
        set(Some(end));
        reactor::sleep_until(end).await;
        set(None);
    }

    fn role(&self, member: usize) -> Role {
        self.members.borrow().0.get(member).map_or(Role::Absent, |member| member.role)
    }

    fn in_sync(&self, member: usize) -> Option<Rc<dyn Replica>> {
        let members = self.members.borrow();
        members.0.get(member).filter(|member| member.role == Role::InSync)?.replica.clone()
    }

    /// From out of sync, or settling, to in sync.
    async fn bring_back(self: &Rc<Self>, member: usize) -> Result<(), Error> {
        let record = self.record.borrow().replicas[member].clone();
        let open = self.members.borrow().0[member].replica.clone();
        let target = match open {
            Some(target) => target,
            None => match self.open(&record).await {
                Ok(target) => target,
                Err(error) => {
                    self.meet(&record, &error).await;
                    return Err(Error::with_detail(ErrorKind::Unavailable, error));
                }
            },
        };
        self.catch_up_size(&*target).await?;
        if let Some(reason) = self.unfit(&*target, false) {
            return Err(Error::with_detail(ErrorKind::Internal, reason));
        }
        let partial = Cell::new(self.is_known(member, &*target).await?);
        let early = partial.get() && bug!("take-the-map-before-the-attach");
        let needs =
            self.members.borrow().0[member].changes.as_ref().filter(|_| early).map(|changes| changes.regions.clone());
        let job = Job {
            core: self,
            member,
            target: Rc::clone(&target),
            partial,
            needs: RefCell::new(needs),
            fresh: Cell::default(),
            pausable: Cell::default(),
            place: Mutex::default(),
            speed: RefCell::default(),
        };
        let failed = target.failed();
        // Dropping the job at any step is safe: until the last one the record says that the replica is not in sync (I20).
        match race(job.run(&record.state), failed).await {
            Raced::First(result) => result,
            Raced::Second(error) => Err(error),
        }
    }

    /// Whether what a replica lacks is known: it was followed since it was in sync, and this is still the one that was (I23).
    async fn is_known(&self, member: usize, target: &dyn Replica) -> Result<bool, Error> {
        let followed = self.members.borrow().0[member].changes.is_some();
        let expected = self.record.borrow().replicas[member].token;
        let found = if followed { noted(target).await? } else { None };
        let found = found.and_then(|noted| noted.token(member));
        Ok(followed && (found.is_some() && found == expected || bug!("trust-any-token")))
    }

    /// Forgets a replica whose copy failed.
    fn drop_copy(&self, member: usize, error: &Error) {
        tracing::info!(volume = %self.config.volume, member, %error, "a replica did not come back, trying again");
        if self.role(member) != Role::Absent {
            self.member_failed(member, error);
        }
        let mut members = self.members.borrow_mut();
        if let Some(member) = members.0.get_mut(member) {
            member.trouble = Some(error.to_string());
            member.copy = None;
        }
    }
}

impl Job<'_> {
    async fn run(&self, state: &MemberState) -> Result<(), Error> {
        let settles = *state == MemberState::Settling;
        if settles {
            // What was acknowledged is there, and new writes keep it so.
            self.attach(Role::Settling);
        }
        if settles && self.same_snapshots().await? {
            return match self.copy_head("settling").await {
                Ok(()) => self.join().await.map_err(interrupted),
                Err(error) => Err(interrupted(error)),
            };
        }
        self.rebuild().await
    }

    /// A rebuild: `docs/replication.md` has the reason for each step's place.
    async fn rebuild(&self) -> Result<(), Error> {
        self.detach();
        self.pausable.set(true);
        *self.place.lock().await = None;
        drop(self.step().await);
        self.begin_rebuild().await?;
        self.prepare().await?;
        loop {
            self.copy_snapshots().await?;
            if !self.attach_at_same_snapshots().await? {
                continue;
            }
            let joined = match self.copy_head("copying the head").await {
                Ok(()) => self.join().await,
                Err(error) => Err(error),
            };
            match joined {
                Ok(()) => return Ok(()),
                Err(Interrupted::Snapshot) => {}
                Err(Interrupted::Failed(error)) => return Err(error),
            }
        }
    }

    /// Records it. What is not known to be all that it lacks is not followed any longer.
    async fn begin_rebuild(&self) -> Result<(), NotRecorded> {
        let partial = self.partial.get();
        let begun = |record: &mut VolumeRecord| {
            let replica = &mut record.replicas[self.member];
            replica.state = MemberState::Rebuilding;
            replica.changes = replica.changes.filter(|_| partial);
            true
        };
        self.core.change_record(begun).await?;
        if !partial {
            // Not before the record says so: a map that it names is complete.
            self.core.members.borrow_mut().stop_following(bit(self.member));
        }
        Ok(())
    }

    /// Starts over with an empty target.
    async fn empty(&self) -> Result<(), Error> {
        self.partial.set(false);
        self.begin_rebuild().await?;
        self.progress(|copy| copy.step = "emptying".to_owned());
        let reset = reactor::timeout(RESET_LIMIT, self.target.reset()).await;
        reset.map_err(|_| Error::with_detail(ErrorKind::TimedOut, "emptying the replica took too long"))??;
        self.fresh.set(true);
        Ok(())
    }

    /// Where to copy from.
    fn source(&self) -> Result<Rc<dyn Replica>, Error> {
        let members = self.core.members.borrow();
        let source = members.source(0).and_then(|member| members.replica(member));
        source.ok_or_else(|| Error::with_detail(ErrorKind::Unavailable, "no replica in sync to copy from"))
    }

    /// From here on the target gets every new write.
    fn attach(&self, role: Role) {
        let mut members = self.core.members.borrow_mut();
        let member = &mut members.0[self.member];
        member.replica = Some(Rc::clone(&self.target));
        if member.failing.is_none() {
            member.role = role;
        }
    }

    fn detach(&self) {
        let mut members = self.core.members.borrow_mut();
        let member = &mut members.0[self.member];
        if member.failing.is_none() {
            member.role = Role::Absent;
        }
    }

    /// Whether it still gets every new write; a snapshot of the volume ends that.
    fn check_attached(&self) -> Result<(), Interrupted> {
        let members = self.core.members.borrow();
        let member = &members.0[self.member];
        match member.role {
            Role::Settling | Role::Rebuilding if member.failing.is_none() => Ok(()),
            Role::Absent if self.target.failure().is_none() => Err(Interrupted::Snapshot),
            _ => Err(Error::with_detail(ErrorKind::Aborted, "the replica failed meanwhile").into()),
        }
    }

    /// The last step: durable, marked whole, waited for, and then in sync (I20, I21).
    async fn join(&self) -> Result<(), Interrupted> {
        // Most of what is not durable yet, without holding anyone up.
        self.flush_target().await?;
        let _administration = self.core.administration.lock().await;
        let token;
        {
            let _held = self.core.hold_writes().await;
            self.check_attached()?;
            self.flush_target().await?;
            // What is noted from here on reaches it too.
            let _noting = self.core.noting.lock().await;
            let _saving = self.core.saving.lock().await;
            token = self.core.in_time(self.core.note_all_with(self.member, &*self.target)).await?;
            self.core.in_time(self.target.set_state(ReplicaState::Complete)).await?;
            self.check_attached()?;
            // From here on acknowledgements wait for it, or for the record to say that it is out of sync. So the
            // record may say "in sync" at any moment from now, and a registry that is away holds nobody up.
            self.attach(Role::Settling);
            self.core.members.borrow_mut().0[self.member].noted = token.is_some();
        }
        let recorded = self.core.change_record(|record| {
            let replica = &mut record.replicas[self.member];
            (replica.state, replica.token, replica.changes) = (MemberState::InSync, token, None);
            self.check_attached().is_ok()
        });
        recorded.await.map_err(Error::from)?;
        self.in_sync();
        Ok(())
    }

    async fn flush_target(&self) -> Result<(), Error> {
        match bug!("in-sync-before-the-flush") {
            true => Ok(()),
            false => self.core.in_time(perform(&*self.target, Request::Flush)).await.map(drop),
        }
    }

    /// The record says so. If the target failed while it was written, it is in sync and failing: recorded before the next
    /// acknowledgement.
    fn in_sync(&self) {
        let copy;
        let failure = {
            let mut members = self.core.members.borrow_mut();
            let member = &mut members.0[self.member];
            member.role = Role::InSync;
            copy = member.copy.take().unwrap_or_default();
            (member.changes, member.unsound) = (None, false);
            member.damage.rejoined();
            member.replica = Some(Rc::clone(&self.target));
            member.failing = self.target.failure();
            if member.failing.is_none() {
                member.trouble = None;
            }
            member.failing.is_some()
        };
        self.core.take_limits();
        if failure {
            self.core.signals.failing.notify_one();
        }
        let (volume, replica, compared, sent) =
            (self.core.config.volume, self.target.id(), copy.compared, copy.written);
        tracing::info!(%volume, %replica, compared, sent, "a replica is in sync again");
    }
}

fn interrupted(error: Interrupted) -> Error {
    match error {
        Interrupted::Snapshot => Error::with_detail(ErrorKind::Aborted, "a snapshot was taken meanwhile"),
        Interrupted::Failed(error) => error,
    }
}

/// Writes are held while it lives.
pub(crate) struct Held<'a>(&'a Core);

impl Core {
    /// Keeps new writes waiting, and waits until those in flight are answered.
    pub(crate) async fn hold_writes(&self) -> Held<'_> {
        self.flight.borrow_mut().hold();
        let held = Held(self);
        self.until_ended(|| (!self.flight.borrow().has_active_writes() || !self.is_running()).then_some(())).await;
        held
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.flight.borrow_mut().release();
        self.0.signals.pump.notify_one();
    }
}

/// Which of two futures ended first.
enum Raced<A, B> {
    First(A),
    Second(B),
}

async fn race<A: Future, B: Future>(first: A, second: B) -> Raced<A::Output, B::Output> {
    let (mut first, mut second) = (std::pin::pin!(first), std::pin::pin!(second));
    std::future::poll_fn(|context| {
        use std::task::Poll;
        if let Poll::Ready(output) = first.as_mut().poll(context) {
            return Poll::Ready(Raced::First(output));
        }
        second.as_mut().poll(context).map(Raced::Second)
    })
    .await
}
