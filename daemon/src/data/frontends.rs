//! What hosts see of a volume: a subsystem (NVMe/TCP) and a target (iSCSI) over the same device.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use block_device::{BlockDevice, Error, ErrorKind, Standby};
use engine::{Engine, RegistryError};
use iscsi_target::{AccessState, ReservationStore, Reservations, Saved, Target, TargetOptions};
use nvmf_target::identity::NAMESPACE_ID;
use nvmf_target::{AnaState, Limits, Subsystem, SubsystemOptions};
use tokio::sync::{Mutex, Notify};
use uuid::Uuid;

use super::Inner;
use super::errors::{engine_error, registry_error};
use super::hidden::Hidden;
use super::room::room;
use crate::control::{Backoff, ControlError, Frontends, Iscsi, Nvmf};
use crate::failpoint;

/// How long the end of a frontend waits for what its hosts have sent before.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);
/// Between attempts to make the frontends those that are wanted.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The frontends of one volume.
///
/// ```text
///           set                        all is as wanted
///  (none) ───────▶ changing ──────────────────────────────▶ as wanted
///                   ▲   │ ▲                                     │
///                   │   │ └──────────────────── set ────────────┤
///                   │   ▼                                       │
///                  in trouble ◀───── what is reserved is ───────┘
///                  tried again       certain, and cannot be read
/// ```
pub(super) struct Shown {
    volume: Uuid,
    /// For people.
    name: String,
    device: Rc<Standby>,
    wanted: RefCell<Frontends>,
    nvmf: RefCell<Option<Rc<Subsystem>>>,
    iscsi: RefCell<Option<Rc<Target>>>,
    /// Held while the frontends are made those that are wanted.
    turn: Mutex<()>,
    /// What keeps them from being so, since the last attempt.
    trouble: RefCell<Option<Trouble>>,
    /// There is a task that tries again.
    is_retried: Cell<bool>,
    /// The engine is another node's now (I14).
    lost: Cell<bool>,
    /// A host has a persistent reservation over iSCSI, or may have: it cannot be said.
    reserved: Cell<bool>,
    /// What the registry's record said was reserved.
    recorded: RefCell<Vec<u8>>,
    /// The target has the engine's reservations, not those of the registry's record.
    is_settled: Cell<bool>,
    keeper: RefCell<Keeper>,
    keeper_changed: Notify,
}

/// Why the frontends are not those that are wanted.
struct Trouble {
    reason: String,
    /// An initiator that does not find its target tries again.
    _hidden: Option<Hidden>,
}

/// The engine as what keeps reservations, with the record of the volume and its copies (I38).
enum Keeper {
    Coming,
    Here(Rc<Engine>),
    Gone,
}

impl Shown {
    /// A volume that no host sees yet.
    pub(super) fn new(volume: Uuid, name: String, device: Rc<Standby>) -> Rc<Self> {
        Rc::new(Self {
            volume,
            name,
            device,
            wanted: RefCell::new(Frontends { nvmf: None, iscsi: None }),
            nvmf: RefCell::default(),
            iscsi: RefCell::default(),
            turn: Mutex::default(),
            trouble: RefCell::default(),
            is_retried: Cell::new(false),
            lost: Cell::new(false),
            reserved: Cell::new(false),
            recorded: RefCell::default(),
            is_settled: Cell::new(false),
            keeper: RefCell::new(Keeper::Coming),
            keeper_changed: Notify::new(),
        })
    }

    /// The engine serves: what is reserved is certain. A target that could not be shown before is shown now.
    pub(super) async fn serve(self: &Rc<Self>, inner: &Arc<Inner>, engine: &Rc<Engine>) {
        self.keeper.replace(Keeper::Here(Rc::clone(engine)));
        self.keeper_changed.notify_waiters();
        let is_wanted = self.wanted.borrow().iscsi.is_some();
        let settled = match is_wanted {
            true => failpoint::step("a target is shown", self.show_iscsi(inner)).await,
            false => self.forget_reservations().await,
        };
        if let Err(error) = settled {
            if is_wanted {
                self.doubt_reservations();
            }
            self.fell_short(inner, &error);
        }
        self.update_paths();
    }

    /// Makes the frontends those that are wanted. After an error it is tried again until they are.
    pub(super) async fn set(self: &Rc<Self>, inner: &Arc<Inner>, wanted: Frontends) -> Result<(), ControlError> {
        let _turn = self.turn.lock().await;
        self.wanted.replace(wanted);
        self.change(inner).await
    }

    /// Why the frontends are not those that are wanted.
    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.borrow().as_ref().map(|trouble| trouble.reason.clone())
    }

    /// One attempt; the caller has the turn.
    async fn change(self: &Rc<Self>, inner: &Arc<Inner>) -> Result<(), ControlError> {
        let changed = self.attempt(inner).await;
        match &changed {
            Err(error) => self.fell_short(inner, error),
            Ok(()) if self.trouble.take().is_some() => {
                tracing::info!(volume = %self.name, "hosts can attach the volume as wanted again");
                inner.touches.touch(self.volume);
            }
            Ok(()) => {}
        }
        changed
    }

    async fn attempt(self: &Rc<Self>, inner: &Arc<Inner>) -> Result<(), ControlError> {
        let (iscsi, nvmf) = {
            let wanted = self.wanted.borrow();
            (wanted.iscsi.is_some(), wanted.nvmf.is_some())
        };
        // What goes first: a host that is told to use the other frontend has nothing under way at this one any more.
        failpoint::step("a target ends", self.end_iscsi_unless(iscsi)).await.map_err(of_iscsi)?;
        failpoint::step("a subsystem ends", self.end_nvmf_unless(nvmf)).await.map_err(of_nvmf)?;
        if !iscsi {
            // Nobody could release them.
            failpoint::step("reservations are forgotten", self.forget_reservations()).await.map_err(of_iscsi)?;
        }
        // One that cannot be shown does not keep hosts from the other.
        let target = match iscsi {
            true => failpoint::step("a target is shown", self.show_iscsi(inner)).await.map_err(of_iscsi),
            false => Ok(()),
        };
        if target.is_err() {
            self.doubt_reservations();
        }
        let subsystem = match nvmf {
            true => failpoint::step("a subsystem is shown", async { self.show_nvmf(inner) }).await.map_err(of_nvmf),
            false => Ok(()),
        };
        self.update_paths();
        target.and(subsystem)
    }

    /// Notes what is in the way, and sees to it that it is tried again.
    fn fell_short(self: &Rc<Self>, inner: &Arc<Inner>, error: &ControlError) {
        tracing::warn!(volume = %self.name, %error, "hosts cannot attach the volume as wanted yet");
        let is_missing = self.wanted.borrow().iscsi.is_some() && self.iscsi.borrow().is_none();
        let hidden = is_missing.then(|| inner.hidden.hide());
        self.trouble.replace(Some(Trouble { reason: error.to_string(), _hidden: hidden }));
        inner.touches.touch(self.volume);
        if !self.is_retried.replace(true) {
            reactor::spawn(Rc::clone(self).keep_trying(Arc::clone(inner)));
        }
    }

    /// Tries again until the frontends are those that are wanted, or the volume is stopped.
    async fn keep_trying(self: Rc<Self>, inner: Arc<Inner>) {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            // Either is the end of the pause.
            let _ = reactor::timeout(backoff.pause(), self.gone()).await;
            let _turn = self.turn.lock().await;
            let is_over = self.trouble.borrow().is_none() || self.is_gone();
            if is_over || self.change(&inner).await.is_ok() {
                self.is_retried.set(false);
                return;
            }
        }
    }

    /// The device has another size, or may have: hosts are told (I39).
    pub(super) fn refresh(&self) {
        if let Some(subsystem) = &*self.nvmf.borrow() {
            subsystem.refresh(NAMESPACE_ID);
        }
        if let Some(target) = &*self.iscsi.borrow() {
            target.refresh();
        }
    }

    /// The engine is another node's now: this path leads nowhere any more.
    pub(super) fn set_lost(&self) {
        self.lost.set(true);
        self.update_paths();
    }

    /// Ends the connections of initiators. An answer that says that nothing serves any more would be an I/O error to them; that a
    /// connection is gone makes them try again.
    pub(super) fn disconnect(&self) {
        self.keeper.replace(Keeper::Gone);
        self.keeper_changed.notify_waiters();
        if let Some(target) = &*self.iscsi.borrow() {
            target.close();
        }
    }

    /// Withdraws the volume from hosts, and waits until everything that they have sent is answered. After [`Shown::disconnect`].
    pub(super) async fn stop(&self) {
        // An attempt that is under way shows nothing after this.
        let _turn = self.turn.lock().await;
        let (subsystem, target) = (self.nvmf.take(), self.iscsi.take());
        self.trouble.take();
        if let Some(target) = target {
            target.stop().await;
        }
        if let Some(subsystem) = subsystem {
            subsystem.stop().await;
        }
    }

    async fn end_iscsi_unless(&self, wanted: bool) -> Result<(), ControlError> {
        let ending = self.iscsi.borrow().clone().filter(|target| !wanted || target.is_stopped());
        if let Some(target) = ending {
            drained(target.stop()).await?;
            self.iscsi.take();
        }
        Ok(())
    }

    async fn end_nvmf_unless(&self, wanted: bool) -> Result<(), ControlError> {
        let ending = self.nvmf.borrow().clone().filter(|subsystem| !wanted || subsystem.is_stopped());
        if let Some(subsystem) = ending {
            drained(subsystem.stop()).await?;
            self.nvmf.take();
        }
        Ok(())
    }

    fn show_nvmf(&self, inner: &Inner) -> Result<(), ControlError> {
        self.check_not_gone()?;
        let Some(hosts) = self.wanted.borrow().nvmf.as_ref().map(Nvmf::hosts) else { return Ok(()) };
        if let Some(subsystem) = &*self.nvmf.borrow() {
            subsystem.set_hosts(hosts);
            return Ok(());
        }
        let identity = nvmf_target::Identity::of_volume(self.volume);
        let options = SubsystemOptions { identity: identity.clone(), hosts, limits: Limits::default() };
        let subsystem = Subsystem::start(&inner.subsystems, options).map_err(already_exported)?;
        subsystem.attach(NAMESPACE_ID, self.device(), &identity, self.ana_state());
        self.nvmf.replace(Some(subsystem));
        Ok(())
    }

    /// Shows the target, if what is reserved is known; otherwise the engine is waited for.
    async fn show_iscsi(self: &Rc<Self>, inner: &Inner) -> Result<(), ControlError> {
        let access = self.wanted.borrow().iscsi.as_ref().map(Iscsi::access).transpose();
        let Some(access) = access.map_err(|problem| ControlError::failed("STATE_DIRECTORY", problem))? else {
            return Ok(());
        };
        let is_there = self.iscsi.borrow().is_some();
        let record = match is_there {
            true => Vec::new(),
            false => match self.known_reservations(inner).await? {
                Some(record) => record,
                None => return Ok(()),
            },
        };
        // The engine may have come meanwhile, and the target with it.
        if let Some(target) = &*self.iscsi.borrow() {
            target.set_access(access);
            return self.settle(target);
        }
        self.check_not_gone()?;
        let reservations = self.decode(&record)?;
        self.recorded.replace(record);
        self.is_settled.set(matches!(*self.keeper.borrow(), Keeper::Here(_)));
        self.reserved.set(reservations.is_reserved());
        let options = TargetOptions {
            identity: iscsi_target::Identity::of_volume(self.volume),
            device: self.device(),
            access,
            access_state: self.access_state(),
            reservations,
            store: Rc::new(Kept { shown: Rc::downgrade(self) }),
        };
        self.iscsi.replace(Some(Target::start(&inner.targets, options).map_err(already_exported)?));
        Ok(())
    }

    /// The target gets the engine's reservations: the copies may know more than the registry did.
    fn settle(&self, target: &Target) -> Result<(), ControlError> {
        let record = match &*self.keeper.borrow() {
            Keeper::Here(engine) if !self.is_settled.get() => engine.reservations(),
            _ => return Ok(()),
        };
        if *self.recorded.borrow() != record {
            let reservations = self.decode(&record)?;
            self.reserved.set(reservations.is_reserved());
            target.set_reservations(reservations);
        }
        self.is_settled.set(true);
        Ok(())
    }

    /// The reservations as far as they are known: before the engine serves those of the registry's record, if it has one.
    async fn known_reservations(&self, inner: &Inner) -> Result<Option<Vec<u8>>, ControlError> {
        let of_engine = || match &*self.keeper.borrow() {
            Keeper::Here(engine) => Some(engine.reservations()),
            Keeper::Coming | Keeper::Gone => None,
        };
        if let Some(record) = of_engine() {
            return Ok(Some(record));
        }
        let loaded = room().registry(inner).load(self.volume).await;
        match of_engine() {
            Some(record) => Ok(Some(record)),
            None => match loaded {
                Ok(record) => Ok(record.map(|record| record.reservations)),
                Err(RegistryError::Damaged { .. }) => Ok(None),
                Err(error) => Err(registry_error(error)),
            },
        }
    }

    /// There is no target, or not with what is reserved: whether something is, the engine knows, if anybody does. Until then hosts of the other
    /// frontend stay out (I38).
    fn doubt_reservations(&self) {
        let record = match &*self.keeper.borrow() {
            Keeper::Here(engine) => Some(engine.reservations()),
            Keeper::Coming | Keeper::Gone => None,
        };
        let known = record.and_then(|record| self.decode(&record).ok());
        self.reserved.set(known.is_none_or(|reservations| reservations.is_reserved()));
    }

    fn decode(&self, record: &[u8]) -> Result<Reservations, ControlError> {
        if record.is_empty() {
            return Ok(Reservations::default());
        }
        let unreadable = |error| {
            let text = format!("the reservations of volume {} cannot be read: {error:?}", self.volume);
            ControlError::failed("REGISTRY", text)
        };
        Reservations::decode(record).map_err(unreadable)
    }

    fn device(&self) -> Rc<dyn BlockDevice> {
        Rc::clone(&self.device) as Rc<dyn BlockDevice>
    }

    /// Forgets what hosts have reserved; before the engine serves, as soon as it does.
    async fn forget_reservations(&self) -> Result<(), ControlError> {
        self.reserved.set(false);
        let engine = match &*self.keeper.borrow() {
            Keeper::Here(engine) if !engine.reservations().is_empty() => Rc::clone(engine),
            _ => return Ok(()),
        };
        engine.set_reservations(Vec::new()).await.map_err(|error| engine_error(&self.volume.to_string(), error))
    }

    fn is_gone(&self) -> bool {
        matches!(*self.keeper.borrow(), Keeper::Gone)
    }

    fn check_not_gone(&self) -> Result<(), ControlError> {
        let stopping = || ControlError::unavailable("REACTOR", "the volume is being stopped");
        (!self.is_gone()).then_some(()).ok_or_else(stopping)
    }

    /// Returns when the volume is being stopped.
    async fn gone(&self) {
        while !self.is_gone() {
            let changed = self.keeper_changed.notified();
            if !self.is_gone() {
                changed.await;
            }
        }
    }

    /// The engine, once it serves.
    async fn keeper(&self) -> Result<Rc<Engine>, Error> {
        loop {
            let changed = self.keeper_changed.notified();
            match &*self.keeper.borrow() {
                Keeper::Coming => {}
                Keeper::Here(engine) => return Ok(Rc::clone(engine)),
                Keeper::Gone => return Err(ErrorKind::Unavailable.into()),
            }
            changed.await;
        }
    }

    /// Tells the hosts of each frontend what this path can do.
    fn update_paths(&self) {
        if let Some(subsystem) = &*self.nvmf.borrow() {
            subsystem.set_ana_state(NAMESPACE_ID, self.ana_state());
        }
        if let Some(target) = &*self.iscsi.borrow() {
            target.set_access_state(self.access_state());
        }
    }

    /// A reservation holds for NVMe hosts too (I38): they can have none, so nothing of theirs gets in.
    fn ana_state(&self) -> AnaState {
        if self.lost.get() || self.reserved.get() { AnaState::Inaccessible } else { AnaState::Optimized }
    }

    fn access_state(&self) -> AccessState {
        if self.lost.get() { AccessState::Unavailable } else { AccessState::Optimized }
    }

    /// Keeps NVMe hosts out while a host has a reservation over iSCSI: when this returns, nothing of theirs is under way.
    async fn follow_reservation(&self, reserved: bool) {
        if self.reserved.replace(reserved) == reserved {
            return;
        }
        self.update_paths();
        let subsystem = self.nvmf.borrow().clone().filter(|_| reserved);
        if let Some(subsystem) = subsystem {
            subsystem.drained(NAMESPACE_ID).await;
        }
    }
}

/// Waits for the end of a frontend, for a while.
async fn drained(stop: impl Future<Output = ()>) -> Result<(), ControlError> {
    let text = "no host gets in any more, but what was sent before is not answered yet: send it again soon";
    reactor::timeout(DRAIN_LIMIT, stop).await.map_err(|_| ControlError::unavailable("DRAINING", text))
}

fn of_iscsi(error: ControlError) -> ControlError {
    error.while_doing("iscsi")
}

fn of_nvmf(error: ControlError) -> ControlError {
    error.while_doing("nvmf")
}

fn already_exported(error: impl std::fmt::Display) -> ControlError {
    ControlError::precondition("ALREADY_EXPORTED", error)
}

/// A volume's reservations, kept by its engine.
struct Kept {
    shown: Weak<Shown>,
}

impl ReservationStore for Kept {
    fn save(&self, record: Vec<u8>) -> Saved {
        let shown = self.shown.clone();
        Box::pin(async move {
            let shown = shown.upgrade().ok_or(ErrorKind::Unavailable)?;
            let engine = shown.keeper().await?;
            // What the unit has just written.
            let reserved = Reservations::decode(&record).is_ok_and(|reservations| reservations.is_reserved());
            let kept = engine.set_reservations(record).await;
            kept.map_err(|error| Error::with_detail(ErrorKind::WriteFailed, error))?;
            shown.follow_reservation(reserved).await;
            Ok(())
        })
    }
}
