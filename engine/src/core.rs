//! What an engine is made of, and the path of a request through it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use std::time::Duration;

use block_device::{Error, ErrorKind, Geometry, Kind, Outcome, Range, Reply, ReplySink, Request, Segments};
use reactor::{Instant, bug};
use replica::Replica;
use smallvec::SmallVec;
use tokio::sync::{Mutex, Notify};
use uuid::Uuid;

use crate::config::{EngineConfig, EngineState};
use crate::connector::Connector;
use crate::flight::{Flight, Slot, Stage};
use crate::guard::Guard;
use crate::intent::{Intents, Unflushed};
use crate::members::{Mask, Members, Role, bit};
use crate::reading::{as_sent, is_read};
use crate::rebuilds::{Bucket, RebuildSettings};
use crate::registry::{Registry, VolumeRecord};
use crate::session::Tasks;

/// How long a replica that is busy is left alone before a request is tried again (I33).
const BUSY_PAUSE: Duration = Duration::from_millis(1);

/// What the engine does; decides what becomes of requests.
#[derive(Clone, Debug)]
pub(crate) enum Phase {
    /// Not serving yet, or not any more until a replica in sync is back.
    Waiting(String),
    Serving,
    /// Requests in flight end in order, new ones are refused.
    Stopping,
    /// For good. The error is what every request gets.
    Stopped(Error),
}

impl Phase {
    /// What a new request is refused with.
    fn refusal(&self) -> Option<Error> {
        match self {
            Self::Serving => None,
            Self::Waiting(reason) => Some(Error::with_detail(ErrorKind::Unavailable, reason)),
            Self::Stopping => Some(Error::with_detail(ErrorKind::Unavailable, "the engine is stopping")),
            Self::Stopped(error) => Some(error.clone()),
        }
    }

    pub(crate) fn state(&self) -> EngineState {
        match self {
            Self::Waiting(reason) => EngineState::Waiting { reason: reason.clone() },
            Self::Serving => EngineState::Serving,
            Self::Stopping => EngineState::Stopping,
            Self::Stopped(error) => EngineState::Stopped { reason: error.to_string() },
        }
    }
}

/// The engine, shared by its handle, its tasks and the requests at replicas.
pub(crate) struct Core {
    /// Itself, for the replies it hands out.
    me: Weak<Self>,
    pub(crate) config: EngineConfig,
    pub(crate) registry: Rc<dyn Registry>,
    pub(crate) connector: Rc<dyn Connector>,
    /// Names this engine to replicas and in the registry.
    pub(crate) instance: Uuid,
    pub(crate) geometry: Cell<Geometry>,
    /// The record as it is durable.
    pub(crate) record: RefCell<VolumeRecord>,
    pub(crate) phase: RefCell<Phase>,
    pub(crate) members: RefCell<Members>,
    pub(crate) flight: RefCell<Flight>,
    /// Requests to be sent again after a pause: place and member.
    busy: RefCell<Vec<(usize, usize)>>,
    /// Reads to be tried on another member.
    pub(crate) again: RefCell<Vec<usize>>,
    /// Ranges that a replica could not read, to be mended.
    pub(crate) damaged: RefCell<VecDeque<(Uuid, Range)>>,
    /// Someone looks for reads that take too long.
    pub(crate) hurrying: Cell<bool>,
    /// Held while the record is changed.
    pub(crate) recording: Mutex<()>,
    /// Held by what cuts chains or joins members: one at a time.
    pub(crate) administration: Mutex<()>,
    pub(crate) rebuild: Cell<RebuildSettings>,
    /// The rate of the volume's own copies.
    pub(crate) bucket: Bucket,
    pub(crate) guard: RefCell<Guard>,
    /// The deadline is being watched: somebody looks at what is in flight before it passes.
    pub(crate) watched: Cell<bool>,
    /// One for each member while a session lasts: [`Core::look_after`].
    pub(crate) watchers: RefCell<Tasks>,
    /// Until when reads may be answered, as was found out last.
    pub(crate) leased: Cell<reactor::Instant>,
    /// This engine has served: older ones are over.
    pub(crate) has_served: Cell<bool>,
    /// Counts the sessions.
    pub(crate) session: Cell<u64>,
    pub(crate) intents: RefCell<Intents>,
    pub(crate) unflushed: RefCell<Unflushed>,
    /// Held while the intent is noted, before `saving`.
    pub(crate) noting: Mutex<()>,
    /// Held while what absent members lack is noted.
    pub(crate) saving: Mutex<()>,
    pub(crate) signals: Signals,
}

/// What tasks of the engine wait for.
#[derive(Default)]
pub(crate) struct Signals {
    /// A request that waited may start, or a read has to be tried elsewhere.
    pub(crate) pump: Notify,
    /// A busy replica is to be tried again.
    pub(crate) busy: Notify,
    /// A read was sent, and nobody looks whether it takes too long.
    pub(crate) reading: Notify,
    /// A read waits for the lease.
    pub(crate) lease: Notify,
    /// A write waits until its regions are noted, or one that might give its place has ended.
    pub(crate) intent: Notify,
    /// A replica could not read something.
    pub(crate) damage: Notify,
    /// A member failed and has to be recorded.
    pub(crate) failing: Notify,
    /// A request came while nothing was in flight and the deadline slept.
    pub(crate) arrived: Notify,
    /// A step of a copy ended: another one may begin.
    pub(crate) step_ended: Notify,
    /// The phase or a member changed: whoever waits for such a thing looks again.
    pub(crate) changed: Notify,
    /// The phase or the record changed, for who only looks: nothing of the engine waits for it.
    pub(crate) told: Notify,
    /// `changed`, or a write ended. Apart, so that a write wakes only those few that wait for writes.
    pub(crate) ended: Notify,
}

impl Signals {
    pub(crate) fn announce_change(&self) {
        self.changed.notify_waiters();
        self.ended.notify_waiters();
    }
}

impl Core {
    pub(crate) fn new(
        config: EngineConfig,
        registry: Rc<dyn Registry>,
        connector: Rc<dyn Connector>,
        record: VolumeRecord,
        geometry: Geometry,
    ) -> Rc<Self> {
        let rebuild = config.rebuild;
        Rc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            intents: RefCell::new(Intents::new(config.noted_regions)),
            config,
            registry,
            connector,
            instance: uuid::Builder::from_random_bytes(reactor::random_bytes()).into_uuid(),
            geometry: Cell::new(geometry),
            record: RefCell::new(record),
            phase: RefCell::new(Phase::Waiting("starting".to_owned())),
            members: RefCell::default(),
            flight: RefCell::default(),
            busy: RefCell::default(),
            again: RefCell::default(),
            damaged: RefCell::default(),
            hurrying: Cell::new(false),
            recording: Mutex::new(()),
            administration: Mutex::new(()),
            rebuild: Cell::new(rebuild),
            bucket: Bucket::new(rebuild.rate),
            guard: RefCell::new(Guard::new()),
            watched: Cell::new(false),
            watchers: RefCell::default(),
            leased: Cell::new(reactor::Instant::default()),
            has_served: Cell::new(false),
            session: Cell::new(0),
            unflushed: RefCell::default(),
            noting: Mutex::new(()),
            saving: Mutex::new(()),
            signals: Signals::default(),
        })
    }

    pub(crate) fn is_serving(&self) -> bool {
        matches!(*self.phase.borrow(), Phase::Serving)
    }

    /// Why the engine ended, once it has.
    pub(crate) fn stopped(&self) -> Option<Error> {
        match &*self.phase.borrow() {
            Phase::Stopped(error) => Some(error.clone()),
            _ => None,
        }
    }

    pub(crate) fn set_phase(&self, phase: Phase) {
        tracing::debug!(volume = %self.config.volume, ?phase, "engine");
        *self.phase.borrow_mut() = phase;
        self.signals.told.notify_waiters();
        self.signals.announce_change();
    }

    /// Waits until `condition` gives something; it is asked again whenever something changed.
    pub(crate) async fn until<T>(&self, condition: impl FnMut() -> Option<T>) -> T {
        until(&self.signals.changed, condition).await
    }

    /// The same, for a condition that the end of a write can bring about too.
    pub(crate) async fn until_ended<T>(&self, condition: impl FnMut() -> Option<T>) -> T {
        until(&self.signals.ended, condition).await
    }

    pub(crate) fn submit(&self, request: Request, reply: Reply) {
        let refusal = self.phase.borrow().refusal();
        if let Some(error) = refusal.or_else(|| self.geometry.get().check(&request).err()) {
            return reply.fail(error);
        }
        let now = reactor::now();
        let inserted = {
            let mut flight = self.flight.borrow_mut();
            let inserted = flight.insert(request, reply, now);
            if let Ok((index, _)) = inserted {
                self.config.meter.begin(flight.slot(index).sequence, now);
            }
            inserted
        };
        if !self.watched.replace(true) {
            self.signals.arrived.notify_one();
        }
        match inserted {
            Ok((index, true)) => self.start(index, now),
            Ok((_, false)) => {}
            Err(reply) => reply.fail(ErrorKind::Busy),
        }
    }

    /// Sends a request to replicas: a read to one, anything else to all that receive writes, flushes too (I4).
    pub(crate) fn start(&self, index: usize, now: Instant) {
        let (is_write, is_flush) = {
            let mut flight = self.flight.borrow_mut();
            let request = &flight.slot(index).request;
            (request.is_write(), matches!(request, Request::Flush))
        };
        if is_flush {
            self.begin_flush(index);
        } else if !is_write {
            return self.start_read(index, now);
        } else if !self.may_send(index) {
            return;
        }
        let targets: SmallVec<[(usize, Rc<dyn Replica>); 4]> = {
            let members = self.members.borrow();
            let receiving = match bug!("withhold-writes-from-rebuilding-replicas") {
                true => members.recorded() & members.receiving(),
                false => members.receiving(),
            };
            members.replicas(receiving).map(|(member, replica)| (member, Rc::clone(replica))).collect()
        };
        let request = {
            let mut flight = self.flight.borrow_mut();
            let slot = flight.slot(index);
            slot.sent = targets.iter().fold(0, |mask, (member, _)| mask | bit(*member));
            slot.pending = slot.sent;
            slot.request.clone()
        };
        if targets.is_empty() {
            return self.conclude(index);
        }
        for (member, replica) in targets {
            replica.submit(request.clone(), self.reply(index, member));
        }
    }

    fn begin_flush(&self, index: usize) {
        self.flight.borrow_mut().slot(index).tells = self.unflushed.borrow_mut().begin_flush();
    }

    pub(crate) fn rc(&self) -> Rc<Self> {
        self.me.upgrade().expect("whoever calls a method holds it")
    }

    /// The token is the place and the member.
    pub(crate) fn reply(&self, index: usize, member: usize) -> Reply {
        Reply::new(self.rc() as Rc<dyn ReplySink>, (index as u64) << 8 | member as u64)
    }

    /// One member has answered.
    fn answered(&self, index: usize, member: usize, outcome: Outcome) {
        let (is_read, retry) = {
            let mut flight = self.flight.borrow_mut();
            let slot = flight.slot(index);
            let busy = matches!(&outcome, Err(error) if error.kind() == ErrorKind::Busy);
            (is_read(&slot.request), busy && slot.reply.is_some() && self.may_retry(slot))
        };
        if retry {
            self.busy.borrow_mut().push((index, member));
            return self.signals.busy.notify_one();
        }
        if matches!(&outcome, Err(error) if error.kind() == ErrorKind::Fenced) {
            // I14: whoever meets a newer epoch acknowledges nothing any more.
            self.stop_fenced("a replica serves a newer epoch");
        }
        if is_read {
            return self.read_answered(index, member, outcome);
        }
        let last = {
            let mut flight = self.flight.borrow_mut();
            let slot = flight.slot(index);
            match outcome {
                Ok(_) => slot.done |= bit(member),
                Err(error) => slot.errors.push((member, error)),
            }
            slot.pending &= !bit(member);
            slot.pending == 0
        };
        if last {
            self.conclude(index);
        }
    }

    /// A replica may be busy for as long as it may be silent, no longer.
    fn may_retry(&self, slot: &Slot) -> bool {
        self.is_running() && reactor::now() - slot.since < self.config.replica_deadline
    }

    /// Whether requests in flight still end in order.
    pub(crate) fn is_running(&self) -> bool {
        matches!(*self.phase.borrow(), Phase::Serving | Phase::Stopping)
    }

    /// All members have answered a write or flush: acknowledge it if the record allows it now (I1).
    pub(crate) fn conclude(&self, index: usize) {
        let next = {
            let mut flight = self.flight.borrow_mut();
            let slot = flight.slot(index);
            let members = self.members.borrow();
            verdict(slot, &members, &self.phase.borrow())
        };
        match next {
            Verdict::Acknowledge => {
                self.fail_lacking_copies(index);
                self.end_flush(index, true);
                self.finish(index, Ok(Segments::none()));
            }
            Verdict::Fail(error) => {
                self.fail_copies(index);
                self.finish(index, Err(error));
            }
            Verdict::Record(missing) => {
                let errors = {
                    let mut flight = self.flight.borrow_mut();
                    let slot = flight.slot(index);
                    slot.stage = Stage::Recording;
                    slot.errors.clone()
                };
                for member in (0..u32::BITS as usize).filter(|&member| missing & bit(member) != 0) {
                    let said = errors.iter().find(|(who, _)| *who == member).map(|(_, error)| error.clone());
                    let unsent = || Error::with_detail(ErrorKind::Unavailable, "it was not connected");
                    self.member_failed(member, &said.unwrap_or_else(unsent));
                }
                self.signals.failing.notify_one();
            }
            Verdict::Settle(error) => {
                self.fail_copies(index);
                self.flight.borrow_mut().slot(index).stage = Stage::Settling;
                self.settle_failed(index, error);
            }
            Verdict::Lost => {
                let error = Error::with_detail(ErrorKind::Unavailable, "every replica in sync was lost");
                self.finish(index, Err(error));
                self.lose();
            }
        }
    }

    /// A flush has ended: with each replica that is in sync, or not.
    fn end_flush(&self, index: usize, everywhere: bool) {
        if std::mem::take(&mut self.flight.borrow_mut().slot(index).tells) {
            self.unflushed.borrow_mut().end_flush(everywhere);
        }
    }

    /// A write failed on the source, and may have landed there in part: what is being copied from it begins anew (I10).
    fn fail_copies(&self, index: usize) {
        let copies = {
            let mut flight = self.flight.borrow_mut();
            let slot = flight.slot(index);
            let members = self.members.borrow();
            if slot.request.is_write() { slot.sent & members.receiving() & !members.in_sync() } else { 0 }
        };
        let error = Error::with_detail(ErrorKind::Aborted, "a write failed on the source of the copy");
        for member in (0..u32::BITS as usize).filter(|&member| copies & bit(member) != 0) {
            self.member_failed(member, &error);
        }
    }

    /// A replica on its way lacks what is acknowledged now: the copy has passed the place, perhaps. It begins anew (I17, I18).
    fn fail_lacking_copies(&self, index: usize) {
        if bug!("acknowledge-what-a-copy-lacks") {
            return;
        }
        let lacking: SmallVec<[(usize, Error); 1]> = {
            let mut flight = self.flight.borrow_mut();
            let slot = flight.slot(index);
            if slot.errors.is_empty() {
                return;
            }
            let members = self.members.borrow();
            let on_their_way = members.receiving() & !members.recorded();
            slot.errors.iter().filter(|(member, _)| on_their_way & bit(*member) != 0).cloned().collect()
        };
        for (member, error) in lacking {
            self.member_failed(member, &error);
        }
    }

    /// Looks again at what waited for the record.
    pub(crate) fn conclude_recorded(&self) {
        let recording = self.flight.borrow().at(Stage::Recording);
        for index in recording {
            self.conclude(index);
        }
    }

    /// Answers a request and lets those that waited for it go.
    pub(crate) fn finish(&self, index: usize, outcome: Outcome) {
        self.finish_at(index, outcome, reactor::now());
    }

    /// The same by who has just looked at the clock: that costs more than most of what is done for a request here.
    pub(crate) fn finish_at(&self, index: usize, outcome: Outcome, now: Instant) {
        let (slot, waiting, awaited) = {
            let mut flight = self.flight.borrow_mut();
            let (slot, freed) = flight.remove(index);
            // Few wait for the end of writes, and nobody for that of reads but who has frozen all.
            let awaited = slot.request.is_write() || flight.is_frozen() || !self.is_serving();
            (slot, freed && flight.has_waiting(), awaited)
        };
        if waiting {
            self.signals.pump.notify_one();
        }
        if awaited {
            self.signals.ended.notify_waiters();
        }
        self.guard.borrow_mut().observe(slot.since, now);
        self.sent_is_over(&slot.request, slot.session);
        if slot.request.is_write() {
            self.beside_is_over(&slot.request, &outcome);
        }
        if slot.tells {
            self.unflushed.borrow_mut().end_flush(false);
        }
        // I14: whatever came of it, an engine that has stopped acknowledges nothing.
        let outcome = self.stopped().map_or(outcome, Err);
        if let Some(reply) = slot.reply {
            // One that was answered early has ended then.
            self.config.meter.end(slot.sequence);
            self.measure(&slot.request, now - slot.since, &outcome);
            reply.complete(outcome);
        }
    }

    /// Notes how a request was answered.
    pub(crate) fn measure(&self, request: &Request, took: Duration, outcome: &Outcome) {
        let bytes = outcome.is_ok().then(|| request.transfer());
        self.config.meter.answer(Kind::of(request), took, bytes);
    }

    /// A member cannot be used any more. In sync or settling it stays recorded until the record says otherwise.
    pub(crate) fn member_failed(&self, member: usize, error: &Error) {
        if error.kind() == ErrorKind::Fenced {
            return self.stop_fenced("a replica was opened with a newer epoch");
        }
        let replica = {
            let mut members = self.members.borrow_mut();
            // None when the session has ended meanwhile.
            let Some(member) = members.0.get_mut(member) else { return };
            if member.role == Role::Absent || member.failing.is_some() {
                return;
            }
            member.trouble = Some(error.to_string());
            match member.role {
                Role::InSync | Role::Settling => member.failing = Some(error.clone()),
                Role::Rebuilding | Role::Absent => member.role = Role::Absent,
            }
            if member.role == Role::Absent { member.replica.take() } else { member.replica.clone() }
        };
        if let Some(replica) = replica {
            replica.fail(error.clone());
        }
        self.signals.failing.notify_one();
        self.signals.announce_change();
    }

    /// Every member in sync is gone: nothing is recorded (I3), and the engine starts again.
    pub(crate) fn lose(&self) {
        if self.is_serving() {
            self.set_phase(Phase::Waiting("every replica in sync was lost".to_owned()));
        }
    }

    /// Another engine has the volume (I14).
    pub(crate) fn stop_fenced(&self, reason: &str) {
        if self.stopped().is_none() {
            tracing::error!(volume = %self.config.volume, reason, "the engine lost its volume and stops");
            self.set_phase(Phase::Stopped(Error::with_detail(ErrorKind::Fenced, reason)));
        }
    }

    /// Starts what waited, and reads that have to be tried elsewhere. Runs for as long as the engine.
    pub(crate) async fn pump(self: Rc<Self>) {
        loop {
            self.signals.pump.notified().await;
            for index in self.again.take() {
                self.read_again(index);
            }
            loop {
                let ready = self.flight.borrow_mut().next_ready();
                let Some(index) = ready else { break };
                // Taken out of the match: a start may find that the volume is lost, and change the phase.
                let refusal = self.phase.borrow().refusal().filter(|_| !self.is_running());
                match refusal {
                    Some(error) => self.finish(index, Err(error)),
                    None => self.start(index, reactor::now()),
                }
            }
        }
    }

    /// Tries busy replicas again. Runs for as long as the engine.
    pub(crate) async fn retry_busy(self: Rc<Self>) {
        loop {
            self.signals.busy.notified().await;
            reactor::sleep(BUSY_PAUSE).await;
            for (index, member) in self.busy.take() {
                self.send_again(index, member);
            }
        }
    }

    fn send_again(&self, index: usize, member: usize) {
        let request = as_sent(&self.flight.borrow_mut().slot(index).request);
        let replica = self.members.borrow().replica(member);
        match replica {
            Some(replica) => replica.submit(request, self.reply(index, member)),
            None => self.answered(index, member, Err(ErrorKind::Unavailable.into())),
        }
    }
}

impl ReplySink for Core {
    fn complete(&self, token: u64, outcome: Outcome) {
        self.answered((token >> 8) as usize, (token & 0xff) as usize, outcome);
    }
}

async fn until<T>(signal: &Notify, mut condition: impl FnMut() -> Option<T>) -> T {
    loop {
        let signalled = signal.notified();
        if let Some(found) = condition() {
            return found;
        }
        signalled.await;
    }
}

/// What becomes of a write or flush that all members have answered.
enum Verdict {
    Acknowledge,
    Fail(Error),
    /// These lack it and are to be recorded first.
    Record(Mask),
    /// Nobody in sync could do it for lack of space, and several stay in sync: what they may have done in part is settled, then the
    /// error is returned.
    Settle(Error),
    /// Nobody in sync is left.
    Lost,
}

fn verdict(slot: &Slot, members: &Members, phase: &Phase) -> Verdict {
    match phase {
        Phase::Stopped(error) => return Verdict::Fail(error.clone()),
        Phase::Waiting(reason) => return Verdict::Fail(Error::with_detail(ErrorKind::Unavailable, reason)),
        Phase::Serving | Phase::Stopping => {}
    }
    let in_sync = members.in_sync();
    let mut missing = members.recorded() & !slot.done;
    if !slot.request.is_write() {
        // Who joined while a flush was under way was made durable when it joined.
        missing &= slot.sent | members.failing();
    }
    if missing == 0 {
        return Verdict::Acknowledge;
    }
    if bug!("acknowledge-before-membership") && in_sync & slot.done != 0 {
        return Verdict::Acknowledge;
    }
    if in_sync & slot.done != 0 {
        return Verdict::Record(missing);
    }
    // Nobody in sync has it. Those still there said why.
    let answered = |member: usize| slot.errors.iter().find(|(who, _)| *who == member).map(|(_, error)| error);
    let readable = members.readable();
    let present = (0..u32::BITS as usize).filter(|&member| readable & bit(member) != 0);
    let present: SmallVec<[(usize, Option<&Error>); 4]> = present.map(|member| (member, answered(member))).collect();
    let Some((survivor, error)) = present.first().cloned() else { return Verdict::Lost };
    let error = error.cloned().unwrap_or_else(|| Error::new(ErrorKind::Unavailable));
    if in_sync == bit(survivor) {
        return Verdict::Fail(error);
    }
    let no_space = |error: &Option<&Error>| error.is_some_and(|error| error.kind() == ErrorKind::NoSpace);
    match slot.request.is_write() && present.iter().all(|(_, error)| no_space(error)) {
        true => Verdict::Settle(error),
        false => Verdict::Record(missing & !bit(survivor)),
    }
}
