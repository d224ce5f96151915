//! From a record to a volume that serves, and back when every replica in sync is lost.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use block_device::{Completions, Error, ErrorKind, Reply, Request};
use reactor::{Instant, JoinHandle, bug, now, random, sleep, sleep_until, spawn, timeout, wall_clock};
use replica::{OpenError, OpenReplica, Replica, ReplicaState};
use tokio::sync::Notify;

use crate::admission::Admission;
use crate::config::EngineError;
use crate::core::{Core, Phase};
use crate::intent::{Intents, Unflushed};
use crate::members::{Member, Members, Role};
use crate::recording::NotRecorded;
use crate::registry::{MemberState, RegistryError, ReplicaRecord, VolumeRecord};
use crate::spreading::is_newer;

/// Pauses between attempts to open a replica, at first and at most. Each is varied by up to a half.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Between attempts while the volume waits for a replica in sync: hosts wait too.
pub(crate) const URGENT_PAUSE: Duration = Duration::from_millis(200);

/// How often the last member in sync is looked at while it is late: another one may have joined.
const LAST_PAUSE: Duration = Duration::from_millis(100);

/// A pause that grows, with jitter.
pub(crate) struct Pause(Duration);

impl Pause {
    pub(crate) const fn new() -> Self {
        Self(FIRST_PAUSE)
    }

    /// The next one.
    pub(crate) fn next(&mut self) -> Duration {
        let half = self.0 / 2;
        let jitter = Duration::from_nanos(random() % (half.as_nanos().max(1) as u64));
        self.0 = (self.0 * 2).min(LONGEST_PAUSE);
        half + jitter
    }
}

/// Replicas opened for a session, by member.
pub(crate) type Opened = Vec<Option<Rc<dyn Replica>>>;

/// Ends tasks with their owner.
#[derive(Default)]
pub(crate) struct Tasks(Vec<JoinHandle<()>>);

impl Tasks {
    pub(crate) fn spawn(&mut self, future: impl Future<Output = ()> + 'static) {
        self.0.push(spawn(future));
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

impl Core {
    /// Opens and serves, again and again, until the engine stops. Runs for as long as the engine.
    pub(crate) async fn run_sessions(self: Rc<Self>) {
        while self.stopped().is_none() {
            if let Err(error) = self.session().await {
                tracing::warn!(volume = %self.config.volume, %error, "the volume cannot be served, trying again");
                self.wait_for(error.to_string());
                sleep(URGENT_PAUSE).await;
            }
        }
        self.end_session();
    }

    /// One session: until the last replica in sync is lost, or the engine stops.
    async fn session(self: &Rc<Self>) -> Result<(), SessionError> {
        let copies = self.look().await?;
        let was_clean = self.raise_epoch(&copies).await?;
        let opened = self.open_in_sync(was_clean).await?;
        let mut opened = self.end_pending_change(opened).await?;
        let admission = self.judge(&mut opened, was_clean).await?;
        self.admit(&opened, &admission).await?;
        self.spread_among(&opened, &admission).await?;
        self.open_notes(&opened, &admission).await?;
        if let Some(error) = self.stopped() {
            return Err(SessionError::Stopped(error));
        }
        let mut tasks = Tasks::default();
        self.begin(&mut tasks, opened, admission);
        self.until(|| (!self.is_running()).then_some(())).await;
        drop(tasks);
        self.end_session();
        Ok(())
    }

    pub(crate) fn wait_for(&self, reason: String) {
        if self.stopped().is_none() {
            self.set_phase(Phase::Waiting(reason));
        }
    }

    /// Takes the volume over: from the swap on no older engine can change the record. Says whether the last engine ended in order.
    async fn raise_epoch(&self, copies: &[VolumeRecord]) -> Result<bool, SessionError> {
        let _recording = self.recording.lock().await;
        let loaded = match self.registry.load(self.config.volume).await? {
            Some(loaded) => {
                self.check_taken_over(&loaded)?;
                loaded
            }
            None => self.restored_record().await?,
        };
        if let Some(copy) = copies.iter().find(|copy| is_newer(copy, &loaded)) {
            self.stop_fenced(&format!("the registry's record is out of date: replicas know of epoch {}", copy.epoch));
            return Err(SessionError::Fenced);
        }
        let was_clean = loaded.clean;
        let mut record = loaded;
        let expected = record.version;
        (record.epoch, record.instance, record.clean) = (record.epoch + 1, self.instance, false);
        record.version = self.registry.store(Some(expected), &record).await?;
        // A grow whose record was written, but whose end was not heard of.
        if let Ok(geometry) = self.geometry.get().with_size(record.size) {
            self.geometry.set(geometry);
        }
        *self.record.borrow_mut() = record;
        self.signals.told.notify_waiters();
        Ok(was_clean)
    }

    /// Whether another engine has followed this one.
    pub(crate) fn check_taken_over(&self, loaded: &VolumeRecord) -> Result<(), SessionError> {
        let ours = self.record.borrow().instance == self.instance;
        if ours && loaded.instance != self.instance {
            self.stop_fenced("another engine has taken the volume");
            return Err(SessionError::Fenced);
        }
        Ok(())
    }

    /// Opens the replicas in sync: all of them, or at least one and those that come within the waiting time. If one is missing an older
    /// engine may go on reading there until its lease is over: nothing is recorded or served before.
    async fn open_in_sync(self: &Rc<Self>, was_clean: bool) -> Result<Opened, SessionError> {
        let record = self.record.borrow().clone();
        let wanted = record.replicas.iter().filter(|replica| replica.state == MemberState::InSync).count();
        let opened: Rc<RefCell<Opened>> = Rc::new(RefCell::new(record.replicas.iter().map(|_| None).collect()));
        let came = Rc::new(Notify::new());
        let first = Rc::new(Cell::new(None));
        let mut tasks = Tasks::default();
        for (index, replica) in record.replicas.iter().enumerate() {
            if replica.state == MemberState::InSync {
                let (core, opened, came, replica) = (Rc::clone(self), opened.clone(), came.clone(), replica.clone());
                let first = Rc::clone(&first);
                tasks.spawn(async move {
                    let replica = core.open_until_open(&replica).await;
                    first.set(first.get().or(Some(now())));
                    opened.borrow_mut()[index] = Some(replica);
                    came.notify_one();
                });
            }
        }
        let patience = now() + self.config.open_wait;
        loop {
            let here = opened.borrow().iter().flatten().count();
            if let Some(error) = self.stopped() {
                return Err(SessionError::Stopped(error));
            }
            if self.record.borrow().version != record.version {
                return Err(SessionError::Recovered);
            }
            let alone = was_clean || self.has_served.get();
            let over = first.get().is_some_and(|first: Instant| alone || now() >= first + self.take_over());
            if here == wanted || (here > 0 && now() >= patience && over) {
                return Ok(opened.take());
            }
            if here == 0 && now() >= patience {
                self.wait_for(waiting_for(&record));
            }
            // Also without news there is something to look at: whether patience is over.
            let _news_or_pause = timeout(URGENT_PAUSE, came.notified()).await;
        }
    }

    /// Tries until a replica that counts as in sync is open, or the engine stops (then for ever).
    async fn open_until_open(&self, record: &ReplicaRecord) -> Rc<dyn Replica> {
        loop {
            match self.open(record).await {
                Ok(replica) => match self.unfit_in_sync(&*replica).await {
                    None => return replica,
                    Some(reason) => {
                        tracing::error!(replica = %record.replica, reason, "a replica in sync cannot be used")
                    }
                },
                Err(error) => self.meet(record, &error).await,
            }
            sleep(URGENT_PAUSE).await;
        }
    }

    /// Why a replica that counts as in sync cannot be used. The only one may be too small when it was made that by force: then it has missed
    /// a grow with all the rest.
    async fn unfit_in_sync(&self, replica: &dyn Replica) -> Option<String> {
        let in_sync = |member: &&ReplicaRecord| member.state == MemberState::InSync;
        if self.record.borrow().replicas.iter().filter(in_sync).count() == 1
            && let Err(error) = self.catch_up_size(replica).await
        {
            return Some(format!("it cannot grow: {error}"));
        }
        self.unfit(replica, true)
    }

    /// Opens a replica at the epoch, within the time that opening may take.
    pub(crate) async fn open(&self, record: &ReplicaRecord) -> Result<Rc<dyn Replica>, OpenError> {
        let open = OpenReplica {
            replica: record.replica,
            volume: self.config.volume,
            epoch: self.record.borrow().epoch,
            instance: self.instance,
        };
        let limit = self.config.remote.open_limit;
        let opening = self.connector.open(record, open);
        timeout(limit, opening)
            .await
            .unwrap_or_else(|_| Err(OpenError::Unreachable(format!("it did not open within {limit:?}"))))
    }

    /// What an error of opening means: a newer epoch is another engine's.
    pub(crate) async fn meet(&self, record: &ReplicaRecord, error: &OpenError) {
        tracing::debug!(replica = %record.replica, %error, "a replica does not open");
        if let OpenError::Fenced { stored } = error {
            let ours = match self.registry.load(self.config.volume).await {
                Ok(Some(record)) => record.instance == self.instance,
                Ok(None) => false,
                // Not known: the next attempt asks again.
                Err(_) => return,
            };
            if ours && *stored < self.record.borrow().epoch {
                return;
            }
            self.stop_fenced(&format!("replica {} has granted epoch {stored} to another engine", record.replica));
        }
    }

    /// Why a replica that opened cannot be used for this volume.
    pub(crate) fn unfit(&self, replica: &dyn Replica, in_sync: bool) -> Option<String> {
        let (own, volume) = (replica.granted(), self.geometry.get());
        if own.geometry.size() < volume.size() || own.geometry.block_size != volume.block_size {
            // I39: never a smaller one. A larger one took part in a grow that did not come to its end.
            return Some(format!("it has {} bytes, not {}", own.geometry.size(), volume.size()));
        }
        let disagrees = in_sync && own.state != ReplicaState::Complete;
        disagrees.then(|| "it says that it is being rebuilt, although it is recorded in sync".to_owned())
    }

    /// Records who is in sync in this session, before the first request is served (I1, I7). Whoever may differ from the source settles, and is
    /// not read from (I8).
    async fn admit(&self, opened: &Opened, admission: &Admission) -> Result<(), SessionError> {
        let since = wall_clock().as_secs();
        let admit = |record: &mut VolumeRecord| {
            // Somebody may have recovered the volume by force meanwhile: then others are to be opened.
            if !record
                .replicas
                .iter()
                .zip(opened)
                .any(|(replica, open)| replica.state == MemberState::InSync && open.is_some())
            {
                return false;
            }
            for (index, replica) in record.replicas.iter_mut().enumerate() {
                replica.changes = admission.changes[index].as_ref().map(|changes| changes.generation);
                if replica.state != MemberState::InSync {
                    continue;
                }
                if opened[index].is_none() {
                    let reason = "it could not be reached when the volume was opened".to_owned();
                    replica.state = MemberState::OutOfSync { since, reason };
                    continue;
                }
                replica.token = admission.tokens[index];
                if !admission.is_in_sync(index, opened) && !bug!("read-before-settling") {
                    replica.state = MemberState::Settling;
                }
            }
            record.pending = None;
            true
        };
        // Under the lock: a change that is under way, as by force, is seen or waits.
        let _recording = self.recording.lock().await;
        let before = self.record.borrow().clone();
        let mut after = before.clone();
        if self.stopped().is_none() && admit(&mut after) && after == before {
            // The record that raised the epoch says so already, durably. After a start of a thousand volumes in order that is how all of them are.
            return Ok(());
        }
        self.change_locked_record(admit).await?;
        Ok(())
    }

    /// Serves: members, and the tasks that look after them.
    fn begin(self: &Rc<Self>, tasks: &mut Tasks, opened: Opened, mut admission: Admission) {
        let record = self.record.borrow().clone();
        let mut members = Vec::new();
        for (index, (replica, record)) in opened.into_iter().zip(&record.replicas).enumerate() {
            let mut member = Member::absent();
            member.changes = admission.changes[index].take();
            member.noted = record.state == MemberState::InSync && admission.tokens[index].is_some();
            if let MemberState::OutOfSync { reason, .. } = &record.state {
                member.trouble = Some(reason.clone());
            }
            member.role = match (&replica, &record.state) {
                (Some(_), MemberState::InSync) => Role::InSync,
                (Some(_), MemberState::Settling) => Role::Settling,
                _ => Role::Absent,
            };
            member.replica = replica;
            members.push(member);
        }
        *self.members.borrow_mut() = Members(members);
        self.take_limits();
        self.session.set(self.session.get() + 1);
        *self.intents.borrow_mut() = Intents::new(self.config.noted_regions);
        *self.unflushed.borrow_mut() = Unflushed::new(!admission.was_clean);
        self.has_served.set(true);
        self.set_phase(Phase::Serving);
        self.watch_members();
        if !admission.was_clean {
            // What the engine before wrote is known to be durable from its end on.
            self.submit(Request::Flush, Reply::new(Completions::new(), 0));
        }
        let core = Rc::clone(self);
        tasks.spawn(async move { core.record_failures().await });
        let core = Rc::clone(self);
        tasks.spawn(async move { core.keep_noting().await });
        let core = Rc::clone(self);
        tasks.spawn(async move { core.keep_lease().await });
        let core = Rc::clone(self);
        tasks.spawn(async move { core.enforce_deadline().await });
        tasks.spawn(Rc::clone(self).keep_mending());
        tracing::info!(volume = %self.config.volume, epoch = record.epoch, "the volume is served");
    }

    /// Sets a task on each member; those before end, and with them what was being copied.
    pub(crate) fn watch_members(self: &Rc<Self>) {
        let count = self.members.borrow().0.len();
        let mut watchers = Tasks::default();
        (0..count).for_each(|index| watchers.spawn(Rc::clone(self).look_after(index)));
        self.watchers.replace(watchers);
    }

    /// The volume can do what each replica can.
    pub(crate) fn take_limits(&self) {
        let mut geometry = self.geometry.get();
        let members = self.members.borrow();
        for (_, replica) in members.replicas(members.receiving()) {
            let own = replica.granted().geometry;
            geometry.atomic_write = geometry.atomic_write.min(own.atomic_write);
            geometry.allocation_unit = geometry.allocation_unit.max(own.allocation_unit);
        }
        self.geometry.set(geometry);
    }

    /// Lets go of every replica; what was in flight ends with what the phase says.
    pub(crate) fn end_session(&self) {
        let error =
            self.stopped().unwrap_or_else(|| Error::with_detail(ErrorKind::Unavailable, "the volume was closed"));
        self.watchers.take();
        let members = std::mem::take(&mut self.members.borrow_mut().0);
        for replica in members.into_iter().filter_map(|member| member.replica) {
            replica.fail(error.clone());
        }
        self.conclude_recorded();
        self.end_unsent(&error);
        self.signals.pump.notify_one();
        self.signals.announce_change();
    }

    /// Fails replicas that do not answer in time. Runs for a session; sleeps while the volume is idle.
    async fn enforce_deadline(&self) {
        let deadline = self.config.replica_deadline;
        // What was in flight before.
        let mut next = now();
        self.watched.set(true);
        loop {
            sleep_until(next).await;
            if self.flight.borrow().in_flight() == 0 && self.due(deadline).is_empty() {
                self.watched.set(false);
                self.signals.arrived.notified().await;
            }
            next = now() + deadline;
            for (index, due) in self.due(deadline) {
                // The last one is left to stall (I3).
                if due > now() {
                    next = next.min(due);
                } else if !self.members.borrow().is_last(index) {
                    let text = format!("no answer within {deadline:?}");
                    self.member_failed(index, &Error::with_detail(ErrorKind::TimedOut, text));
                } else {
                    next = next.min(now() + LAST_PAUSE);
                }
            }
        }
    }

    /// When each member that has something in flight is late.
    fn due(&self, deadline: Duration) -> Vec<(usize, Instant)> {
        let members = self.members.borrow();
        let receiving = members.replicas(members.receiving());
        receiving.filter_map(|(index, replica)| Some((index, replica.oldest()? + deadline))).collect()
    }
}

pub(crate) fn waiting_for(record: &VolumeRecord) -> String {
    let in_sync = record.replicas.iter().filter(|replica| replica.state == MemberState::InSync);
    let names: Vec<_> = in_sync.map(|replica| format!("{} on {}", replica.replica, replica.node)).collect();
    // I5, I6: the others are not asked, however reachable they are.
    format!("no replica in sync can be reached: waiting for {}", names.join(" or "))
}

/// Why a session did not begin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    #[error("{0}")]
    Lost(EngineError),
    #[error("another engine has the volume")]
    Fenced,
    #[error("the volume was recovered by force")]
    Recovered,
    #[error("no replica could end the change that was under way: {0}")]
    Change(Error),
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error("no replica keeps a copy of the record: {0}")]
    Copies(Error),
    #[error("the notes of the replicas failed: {0}")]
    Notes(Error),
    #[error("{0}")]
    Stopped(Error),
}

impl From<NotRecorded> for SessionError {
    fn from(reason: NotRecorded) -> Self {
        Self::Stopped(reason.into())
    }
}
