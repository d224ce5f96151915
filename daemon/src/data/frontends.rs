//! What hosts see of a volume: a subsystem (NVMe/TCP) and a target (iSCSI) over the same device.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::time::Duration;

use block_device::{BlockDevice, Error, ErrorKind};
use engine::{Engine, RegistryError};
use iscsi_target::{AccessState, ReservationStore, Reservations, Saved, Target, TargetOptions};
use nvmf_target::identity::NAMESPACE_ID;
use nvmf_target::{AnaState, Limits, Subsystem, SubsystemOptions};
use tokio::sync::Notify;
use uuid::Uuid;

use super::Inner;
use super::errors::{engine_error, registry_error};
use super::room::room;
use super::standby::Standby;
use crate::control::{ControlError, Frontends, Iscsi, Nvmf};
use crate::failpoint;

/// How long the end of a frontend waits for what its hosts have sent before.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

/// The frontends of one volume.
pub(super) struct Shown {
    volume: Uuid,
    device: Rc<Standby>,
    nvmf: RefCell<Option<Rc<Subsystem>>>,
    iscsi: RefCell<Option<Rc<Target>>>,
    /// The engine is another node's now (I14).
    lost: Cell<bool>,
    /// A host has a persistent reservation over iSCSI.
    reserved: Cell<bool>,
    /// Shown over iSCSI as soon as the reservations are known.
    awaited: RefCell<Option<Iscsi>>,
    /// What the registry's record said was reserved.
    recorded: RefCell<Vec<u8>>,
    keeper: RefCell<Keeper>,
    keeper_changed: Notify,
}

/// The engine as what keeps reservations, with the record of the volume and its copies (I38).
enum Keeper {
    Coming,
    Here(Rc<Engine>),
    Gone,
}

impl Shown {
    /// A volume that no host sees yet.
    pub(super) fn new(volume: Uuid, device: Rc<Standby>) -> Rc<Self> {
        Rc::new(Self {
            volume,
            device,
            nvmf: RefCell::default(),
            iscsi: RefCell::default(),
            lost: Cell::new(false),
            reserved: Cell::new(false),
            awaited: RefCell::default(),
            recorded: RefCell::default(),
            keeper: RefCell::new(Keeper::Coming),
            keeper_changed: Notify::new(),
        })
    }

    /// The engine serves: what is reserved is certain.
    pub(super) async fn serve(self: &Rc<Self>, inner: &Inner, engine: &Rc<Engine>) -> Result<(), ControlError> {
        self.keeper.replace(Keeper::Here(Rc::clone(engine)));
        self.keeper_changed.notify_waiters();
        let awaited = self.awaited.take();
        if let Some(iscsi) = awaited {
            self.show_iscsi(inner, &iscsi).await?;
        }
        let target = self.iscsi.borrow().clone();
        match target {
            Some(_) if *self.recorded.borrow() == engine.reservations() => Ok(()),
            // The copies knew more than the registry.
            Some(target) => {
                let reservations = self.decode(&engine.reservations())?;
                self.reserved.set(reservations.is_reserved());
                target.set_reservations(reservations);
                self.update_paths();
                Ok(())
            }
            None => self.forget_reservations().await,
        }
    }

    /// Makes the frontends those that are wanted. The caller does not call it twice at once.
    pub(super) async fn set(self: &Rc<Self>, inner: &Inner, wanted: &Frontends) -> Result<(), ControlError> {
        // What goes first: a host that is told to use the other frontend has nothing under way at this one any more.
        failpoint::step("a target ends", self.end_iscsi_unless(wanted.iscsi.is_some())).await?;
        failpoint::step("a subsystem ends", self.end_nvmf_unless(wanted.nvmf.is_some())).await?;
        if wanted.iscsi.is_none() {
            // Nobody could release them.
            self.awaited.take();
            failpoint::step("reservations are forgotten", self.forget_reservations()).await?;
        }
        if let Some(iscsi) = &wanted.iscsi {
            failpoint::step("a target is shown", self.show_iscsi(inner, iscsi)).await?;
        }
        if let Some(nvmf) = &wanted.nvmf {
            failpoint::step("a subsystem is shown", async { self.show_nvmf(inner, nvmf) }).await?;
        }
        self.update_paths();
        Ok(())
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

    /// Withdraws the volume from hosts, and waits until everything that they have sent is answered.
    pub(super) async fn stop(&self) {
        let (subsystem, target) = (self.nvmf.take(), self.iscsi.take());
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

    fn show_nvmf(&self, inner: &Inner, wanted: &Nvmf) -> Result<(), ControlError> {
        if let Some(subsystem) = &*self.nvmf.borrow() {
            subsystem.set_hosts(wanted.hosts());
            return Ok(());
        }
        let identity = nvmf_target::Identity::of_volume(self.volume);
        let options = SubsystemOptions { identity: identity.clone(), hosts: wanted.hosts(), limits: Limits::default() };
        let subsystem = Subsystem::start(&inner.subsystems, options).map_err(already_exported)?;
        subsystem.attach(NAMESPACE_ID, self.device(), &identity, self.ana_state());
        self.nvmf.replace(Some(subsystem));
        Ok(())
    }

    async fn show_iscsi(self: &Rc<Self>, inner: &Inner, wanted: &Iscsi) -> Result<(), ControlError> {
        let access = wanted.access().map_err(|problem| ControlError::failed("STATE_DIRECTORY", problem))?;
        if let Some(target) = &*self.iscsi.borrow() {
            target.set_access(access);
            return Ok(());
        }
        let Some(record) = self.recorded_reservations(inner).await? else {
            self.awaited.replace(Some(wanted.clone()));
            return Ok(());
        };
        let reservations = self.decode(&record)?;
        self.recorded.replace(record);
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

    /// The reservations as far as they are known: before the engine serves those of the registry's record, if it has one.
    async fn recorded_reservations(&self, inner: &Inner) -> Result<Option<Vec<u8>>, ControlError> {
        if let Keeper::Here(engine) = &*self.keeper.borrow() {
            return Ok(Some(engine.reservations()));
        }
        match room().registry(inner).load(self.volume).await {
            Ok(record) => Ok(record.map(|record| record.reservations)),
            Err(RegistryError::Damaged { .. }) => Ok(None),
            Err(error) => Err(registry_error(error)),
        }
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
