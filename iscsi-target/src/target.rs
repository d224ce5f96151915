//! One exported volume: its logical unit, sessions and their connections, all on one reactor.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use block_device::{BlockDevice, Error, Geometry};
use iscsi_target_protocol::target::access::Access;
use iscsi_target_protocol::target::sessions::Sessions;
use reactor::spawn;
use scsi_protocol::log::Space;
use scsi_protocol::ports::{AccessState, Group, Port};
use scsi_protocol::reservation::Reservations;
use scsi_protocol::unit::{LogicalUnit, Medium};
use tokio::sync::Notify;

use crate::directory::{AlreadyExported, Directory};
use crate::gate::Gate;
use crate::identity::Identity;
use crate::login;
use crate::session::{Session, SessionInfo};
use crate::statistics::{Counters, Statistics};

/// The one target port group of a target on this node, and its one port: portals lead to the same port.
pub(crate) const PORT: Port = Port { relative: 1, group: 1 };

/// Bytes of the longest transfer. More than one request of the device has: initiators that do not ask for limits send as much.
const TRANSFER_MAX: u32 = 8 << 20;

/// Blocks of the longest WRITE SAME, which bounds the work of one command: as many as the 10 byte form can have.
const WRITE_SAME_MAX: u32 = 0xffff;

/// Bytes of a physical block: what the store writes as a whole.
const PHYSICAL_BLOCK: u32 = 4096;

/// Bytes written between two looks at the space that is left.
const SPACE_STEP: u64 = 64 << 20;

/// What a write of the reservations came to.
pub type Saved = Pin<Box<dyn Future<Output = Result<(), Error>>>>;

/// Where reservations outlive the daemon (I38).
pub trait ReservationStore {
    /// Makes them durable in place of those before.
    fn save(&self, record: Vec<u8>) -> Saved;
}

/// What a target is started with.
pub struct TargetOptions {
    /// Its names.
    pub identity: Identity,
    /// The volume.
    pub device: Rc<dyn BlockDevice>,
    /// Who may log in.
    pub access: Access,
    /// What this path can do.
    pub access_state: AccessState,
    /// The reservations that the volume has.
    pub reservations: Reservations,
    /// Where they are kept.
    pub store: Rc<dyn ReservationStore>,
}

/// A running target. It belongs to the reactor it was started on.
pub struct Target {
    directory: Arc<Directory>,
    identity: Identity,
    pub(crate) device: Rc<dyn BlockDevice>,
    pub(crate) unit: RefCell<LogicalUnit>,
    pub(crate) store: Rc<dyn ReservationStore>,
    /// Reservations are being made durable.
    pub(crate) saving: Cell<bool>,
    pub(crate) gate: Gate,
    pub(crate) table: RefCell<Sessions>,
    /// By handle, until their last request is answered.
    sessions: RefCell<BTreeMap<u16, Rc<Session>>>,
    stopped: Cell<bool>,
    /// A session is gone, a request was answered, or an aborted command has ended.
    pub(crate) drained: Notify,
    pub(crate) counters: Counters,
    /// Steps of [`SPACE_STEP`] written when the space was looked at last.
    space_step: Cell<u64>,
    /// Requests that the device has.
    in_flight: Cell<usize>,
}

impl Target {
    /// Starts a target on this reactor; initiators find it from here on.
    ///
    /// # Errors
    /// When the directory has one of the same name.
    pub fn start(directory: &Arc<Directory>, options: TargetOptions) -> Result<Rc<Self>, AlreadyExported> {
        let TargetOptions { identity, device, access, access_state, reservations, store } = options;
        let mut handovers = directory.export(&identity.name, access)?;
        let medium = medium_of(&device.geometry());
        let groups = vec![Group { id: PORT.group, state: access_state, ports: vec![PORT.relative] }];
        let unit = LogicalUnit::new(identity.scsi(), medium, groups, reservations);
        let target = Rc::new(Self {
            directory: Arc::clone(directory),
            identity,
            device,
            unit: RefCell::new(unit),
            store,
            saving: Cell::new(false),
            gate: Gate::default(),
            table: RefCell::new(Sessions::new(reactor::random() as u16)),
            sessions: RefCell::default(),
            stopped: Cell::new(false),
            drained: Notify::new(),
            counters: Counters::default(),
            space_step: Cell::new(0),
            in_flight: Cell::new(0),
        });
        let acceptor = Rc::clone(&target);
        spawn(async move {
            // Ends when the directory forgets the target.
            while let Some(handover) = handovers.recv().await {
                spawn(login::adopt(Rc::clone(&acceptor), handover));
            }
        });
        Ok(target)
    }

    /// The names.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Takes over the device's geometry, and tells the initiators if its size changed (I39: after it is durable).
    pub fn refresh(&self) {
        self.unit.borrow_mut().set_medium(medium_of(&self.device.geometry()));
    }

    /// Looks at the space again after each [`SPACE_STEP`] that was written: little left is told without being asked.
    #[inline]
    pub(crate) fn watch_space(&self, written: u64) {
        let step = written / SPACE_STEP;
        if self.space_step.replace(step) != step {
            self.update_space();
        }
    }

    /// Takes over what space there is behind the device, if it tells.
    pub(crate) fn update_space(&self) {
        let block = u64::from(self.device.geometry().block_size);
        if let Some(block_device::Space { used, available }) = self.device.space() {
            self.unit.borrow_mut().set_space(Space { used: used / block, available: available / block });
        }
    }

    /// Takes over what is reserved, where that became known after the start.
    pub fn set_reservations(&self, reservations: Reservations) {
        self.unit.borrow_mut().restore_reservations(reservations);
    }

    /// Sets what this path can do, and tells the initiators.
    pub fn set_access_state(&self, state: AccessState) {
        self.unit.borrow_mut().set_access_state(PORT.group, state);
    }

    /// Replaces who may log in. Sessions of initiators that may not any more end; others stay, whatever they have proved.
    pub fn set_access(&self, access: Access) {
        for session in self.all_sessions() {
            if !access.admits(&session.initiator) {
                session.end();
            }
        }
        self.directory.set_access(&self.identity.name, access);
    }

    /// Who is logged in.
    pub fn sessions(&self) -> Vec<SessionInfo> {
        self.sessions.borrow().values().filter(|session| !session.has_ended()).map(|session| session.info()).collect()
    }

    /// The counters.
    pub fn statistics(&self) -> Statistics {
        self.counters.get()
    }

    /// Waits until the device has answered every request (I36: after the path became inaccessible).
    pub async fn drained(&self) {
        self.wait_until(|| self.in_flight.get() == 0).await;
    }

    /// Withdraws the target and closes its connections, for good. What the device answers from here on reaches nobody.
    pub fn close(&self) {
        if !self.stopped.replace(true) {
            self.directory.withdraw(&self.identity.name);
        }
        self.all_sessions().iter().for_each(|session| session.end());
    }

    /// Closes the target and waits until every request is answered.
    pub async fn stop(&self) {
        self.close();
        self.wait_until(|| self.sessions.borrow().is_empty()).await;
    }

    /// Whether it has been closed.
    pub fn is_stopped(&self) -> bool {
        self.stopped.get()
    }

    pub(crate) fn directory(&self) -> &Directory {
        &self.directory
    }

    pub(crate) fn add(&self, session: Rc<Session>) {
        self.sessions.borrow_mut().insert(session.handle, session);
    }

    pub(crate) fn session(&self, handle: u16) -> Option<Rc<Session>> {
        self.sessions.borrow().get(&handle).cloned()
    }

    pub(crate) fn all_sessions(&self) -> Vec<Rc<Session>> {
        self.sessions.borrow().values().cloned().collect()
    }

    /// A session's last request is answered.
    pub(crate) fn remove(&self, session: &Session) {
        self.sessions.borrow_mut().remove(&session.handle);
        self.table.borrow_mut().close_session(session.handle);
        self.unit.borrow_mut().detach(session.nexus);
    }

    /// Something that someone may wait for has happened.
    pub(crate) fn changed(&self) {
        self.drained.notify_waiters();
    }

    /// The device gets a request.
    #[inline]
    pub(crate) fn request_begins(&self) {
        self.in_flight.set(self.in_flight.get() + 1);
    }

    /// The device has answered one.
    #[inline]
    pub(crate) fn request_ends(&self) {
        self.in_flight.set(self.in_flight.get() - 1);
        if self.in_flight.get() == 0 {
            self.drained.notify_waiters();
        }
    }

    /// Wakes all connections: writes may go on.
    pub(crate) fn wake_all(&self) {
        for session in self.sessions.borrow().values() {
            session.lines().iter().for_each(|line| line.wake.raise());
        }
    }

    pub(crate) async fn wait_until(&self, condition: impl Fn() -> bool) {
        loop {
            let notified = self.drained.notified();
            if condition() {
                return;
            }
            notified.await;
        }
    }
}

fn medium_of(geometry: &Geometry) -> Medium {
    let blocks_of = |bytes: u32| bytes / geometry.block_size;
    Medium {
        blocks: geometry.blocks,
        block_size: geometry.block_size,
        physical_exponent: PHYSICAL_BLOCK.max(geometry.block_size).ilog2() as u8 - geometry.block_size.ilog2() as u8,
        allocation_blocks: blocks_of(geometry.allocation_unit).max(1),
        transfer_max: blocks_of(TRANSFER_MAX),
        write_same_max: WRITE_SAME_MAX,
        read_only: geometry.read_only,
    }
}
