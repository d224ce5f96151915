//! What hosts see of a volume: a subsystem (NVMe/TCP) and a target (iSCSI) over the same device.

use std::cell::{Cell, RefCell};
use std::io;
use std::path::PathBuf;
use std::rc::{Rc, Weak};
use std::time::Duration;

use block_device::{BlockDevice, Error};
use iscsi_target::{AccessState, ReservationStore, Reservations, Saved, Target, TargetOptions};
use nvmf_target::identity::NAMESPACE_ID;
use nvmf_target::{AnaState, Limits, Subsystem, SubsystemOptions};
use reactor::files;
use uuid::Uuid;

use super::Inner;
use super::standby::Standby;
use crate::control::{ControlError, Frontends, Iscsi, Nvmf};

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
        })
    }

    /// Makes the frontends those that are wanted. The caller does not call it twice at once.
    pub(super) async fn set(self: &Rc<Self>, inner: &Inner, wanted: &Frontends) -> Result<(), ControlError> {
        // What goes first: a host that is told to use the other frontend has nothing under way at this one any more.
        self.end_iscsi_unless(wanted.iscsi.is_some()).await?;
        self.end_nvmf_unless(wanted.nvmf.is_some()).await?;
        if wanted.iscsi.is_none() {
            // Nobody could release them.
            self.forget_reservations(inner).await?;
        }
        if let Some(iscsi) = &wanted.iscsi {
            self.show_iscsi(inner, iscsi).await?;
        }
        if let Some(nvmf) = &wanted.nvmf {
            self.show_nvmf(inner, nvmf)?;
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
        let path = self.reservations_path(inner);
        let reservations = match files::read(&path).await {
            Ok(record) => Reservations::decode(&record).map_err(|error| self.unreadable(format_args!("{error:?}")))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Reservations::default(),
            Err(error) => return Err(self.unreadable(error)),
        };
        self.reserved.set(reservations.is_reserved());
        let options = TargetOptions {
            identity: iscsi_target::Identity::of_volume(self.volume),
            device: self.device(),
            access,
            access_state: self.access_state(),
            reservations,
            store: Rc::new(Kept { path, shown: Rc::downgrade(self) }),
        };
        self.iscsi.replace(Some(Target::start(&inner.targets, options).map_err(already_exported)?));
        Ok(())
    }

    fn unreadable(&self, error: impl std::fmt::Display) -> ControlError {
        let text = format!("the reservations of volume {} cannot be read: {error}", self.volume);
        ControlError::failed("STATE_DIRECTORY", text)
    }

    fn device(&self) -> Rc<dyn BlockDevice> {
        Rc::clone(&self.device) as Rc<dyn BlockDevice>
    }

    fn reservations_path(&self, inner: &Inner) -> PathBuf {
        inner.reservations.join(self.volume.to_string())
    }

    /// Forgets what hosts have reserved.
    async fn forget_reservations(&self, inner: &Inner) -> Result<(), ControlError> {
        self.reserved.set(false);
        remove_reservations(inner, self.volume).await
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

/// Forgets what hosts have reserved of a volume. Nothing to forget is a success.
pub(super) async fn remove_reservations(inner: &Inner, volume: Uuid) -> Result<(), ControlError> {
    let removed = files::remove(&inner.reservations.join(volume.to_string())).await;
    removed.map_err(|error| ControlError::failed("STATE_DIRECTORY", format!("cannot forget the reservations: {error}")))
}

/// Waits for the end of a frontend, for a while.
async fn drained(stop: impl Future<Output = ()>) -> Result<(), ControlError> {
    let text = "no host gets in any more, but what was sent before is not answered yet: send it again soon";
    reactor::timeout(DRAIN_LIMIT, stop).await.map_err(|_| ControlError::unavailable("DRAINING", text))
}

fn already_exported(error: impl std::fmt::Display) -> ControlError {
    ControlError::precondition("ALREADY_EXPORTED", error)
}

/// A volume's reservations in a file of the state directory.
struct Kept {
    path: PathBuf,
    shown: Weak<Shown>,
}

impl ReservationStore for Kept {
    fn save(&self, record: Vec<u8>) -> Saved {
        let (path, shown) = (self.path.clone(), self.shown.clone());
        Box::pin(async move {
            // What the unit has just written.
            let reserved = Reservations::decode(&record).is_ok_and(|reservations| reservations.is_reserved());
            files::replace(&path, record).await.map_err(|error| Error::write_failed(&error))?;
            if let Some(shown) = shown.upgrade() {
                shown.follow_reservation(reserved).await;
            }
            Ok(())
        })
    }
}
