//! One exported volume, or several: namespaces, controllers and their connections, all on one reactor.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use block_device::BlockDevice;
use nvmf_target_protocol::target::connection::{Limits, Queue};
use nvmf_target_protocol::target::controller::{Controller, IdentifyLimits, Service};
use nvmf_target_protocol::target::subsystem as protocol;
use nvmf_target_protocol::target::subsystem::NAMESPACES_MAX;
use nvmf_target_protocol::wire::fabrics::{ConnectCommand, ConnectData, InvalidParameter, connect_field};
use nvmf_target_protocol::wire::identify::ControllerType;
use nvmf_target_protocol::wire::log_page::{AnaState, Notice};
use nvmf_target_protocol::wire::{Completion, Status};
use reactor::{Instant, now, spawn, timeout};
use tokio::sync::Notify;

use crate::association::{Association, ControllerInfo, Home};
use crate::connection;
use crate::directory::{AlreadyExported, Directory, Hosts};
use crate::discovery::CONTROLLER_ID_MAX;
use crate::handshake::Handover;
use crate::identity::{FIRMWARE, Identity, MODEL};
use crate::namespace::Attached;
use crate::statistics::{Counters, Statistics, health};

/// Controllers of one subsystem at one time.
const CONTROLLERS_MAX: usize = 256;

/// How long a host that comes back waits for what its old connections left in flight (I16), before it is told to try
/// again. Less than the 60 s a Linux host gives a Connect.
const DRAIN_LIMIT: Duration = Duration::from_secs(20);

/// What a subsystem is started with.
#[derive(Clone, Debug)]
pub struct SubsystemOptions {
    /// Its names.
    pub identity: Identity,
    /// Which hosts may connect.
    pub hosts: Hosts,
    /// What its connections accept; the same as the listeners'.
    pub limits: Limits,
}

/// A running subsystem. It belongs to the reactor it was started on.
pub struct Subsystem {
    directory: Arc<Directory>,
    limits: Limits,
    /// What hosts are told; changes together with `namespaces`.
    described: RefCell<protocol::Subsystem>,
    /// By namespace identifier.
    namespaces: RefCell<[Option<Rc<Attached>>; NAMESPACES_MAX as usize + 1]>,
    /// By controller identifier, until their last request is answered.
    controllers: RefCell<BTreeMap<u16, Rc<Association>>>,
    last_id: Cell<u16>,
    stopped: Cell<bool>,
    /// A controller is gone, or a request of a namespace was answered.
    drained: Notify,
    pub(crate) counters: Counters,
    started: Instant,
}

impl Subsystem {
    /// Starts a subsystem without namespaces on this reactor; hosts find it from here on.
    ///
    /// # Errors
    /// When the directory has one of the same NQN.
    pub fn start(directory: &Arc<Directory>, options: SubsystemOptions) -> Result<Rc<Self>, AlreadyExported> {
        let Identity { nqn, serial, .. } = options.identity;
        let mut handovers = directory.export(&nqn, options.hosts)?;
        let subsystem = Rc::new(Self {
            directory: Arc::clone(directory),
            limits: options.limits,
            described: RefCell::new(protocol::Subsystem::new(nqn, serial, MODEL.to_owned(), FIRMWARE.to_owned())),
            namespaces: RefCell::new([const { None }; NAMESPACES_MAX as usize + 1]),
            controllers: RefCell::default(),
            // Paths of one volume on several nodes must differ in their controllers (I37).
            last_id: Cell::new((reactor::random() % u64::from(CONTROLLER_ID_MAX)) as u16),
            stopped: Cell::new(false),
            drained: Notify::new(),
            counters: Counters::default(),
            started: now(),
        });
        let acceptor = Rc::clone(&subsystem);
        spawn(async move {
            // Ends when the directory forgets the subsystem.
            while let Some(handover) = handovers.recv().await {
                spawn(Rc::clone(&acceptor).adopt(handover));
            }
        });
        Ok(subsystem)
    }

    /// NVM Subsystem NVMe Qualified Name.
    pub fn nqn(&self) -> String {
        self.described.borrow().nqn().to_owned()
    }

    /// Attaches `device` as namespace `id`, or replaces the device there, and tells the hosts.
    ///
    /// # Panics
    /// If `id` is not 1 to 32.
    pub fn attach(&self, id: u32, device: Rc<dyn BlockDevice>, identity: &Identity, ana_state: AnaState) {
        assert!((1..=NAMESPACES_MAX).contains(&id), "namespace {id}");
        let attached = Rc::new(Attached::new(device, identity.clone(), ana_state));
        self.described.borrow_mut().attach(id, attached.description());
        self.namespaces.borrow_mut()[id as usize] = Some(attached);
        self.notify(Notice::NamespaceChanged, id);
    }

    /// Detaches namespace `id` and tells the hosts. Requests in flight end as they would have.
    pub fn detach(&self, id: u32) {
        if self.described.borrow_mut().detach(id).is_some() {
            self.namespaces.borrow_mut()[id as usize] = None;
            self.notify(Notice::NamespaceChanged, id);
        }
    }

    /// Takes over the geometry of namespace `id`'s device, and tells the hosts if it changed (I39: after it is durable).
    pub fn refresh(&self, id: u32) {
        if let Some(attached) = self.attached(id)
            && attached.refresh()
        {
            self.described.borrow_mut().attach(id, attached.description());
            self.notify(Notice::NamespaceChanged, id);
        }
    }

    /// Sets what this path can do for namespace `id`, and tells the hosts.
    pub fn set_ana_state(&self, id: u32, ana_state: AnaState) {
        let differs = |attached: &Rc<Attached>| attached.description().ana_state != ana_state;
        if let Some(attached) = self.attached(id).filter(differs) {
            attached.set_ana_state(ana_state);
            self.described.borrow_mut().attach(id, attached.description());
            self.notify(Notice::AnaChanged, 0);
        }
    }

    /// Waits until the device of namespace `id` has answered every request (I36: after the path became inaccessible).
    pub async fn drained(&self, id: u32) {
        let Some(attached) = self.attached(id) else { return };
        self.wait_until(|| attached.in_flight.get() == 0).await;
    }

    /// Replaces which hosts may connect. Those that are connected and may not any more are disconnected.
    pub fn set_hosts(&self, hosts: Hosts) {
        self.directory.set_hosts(&self.nqn(), hosts);
        let controllers: Vec<_> = self.controllers.borrow().values().cloned().collect();
        let strangers = controllers.iter().filter(|association| !self.allows(&association.info().host_nqn));
        strangers.for_each(|association| association.end());
    }

    fn allows(&self, host_nqn: &str) -> bool {
        self.directory.allows(&self.nqn(), host_nqn)
    }

    /// The connected hosts.
    pub fn controllers(&self) -> Vec<ControllerInfo> {
        let controllers = self.controllers.borrow();
        controllers
            .values()
            .filter(|association| !association.has_ended())
            .map(|association| association.info())
            .collect()
    }

    /// The counters.
    pub fn statistics(&self) -> Statistics {
        self.counters.get()
    }

    /// Withdraws the subsystem, closes its connections and waits until every request is answered.
    pub async fn stop(&self) {
        self.stopped.set(true);
        self.directory.withdraw(&self.nqn());
        let controllers: Vec<_> = self.controllers.borrow().values().cloned().collect();
        controllers.iter().for_each(|association| association.end());
        self.wait_until(|| self.controllers.borrow().is_empty()).await;
    }

    /// Whether it has been stopped, or is about to.
    pub fn is_stopped(&self) -> bool {
        self.stopped.get()
    }

    #[inline]
    pub(crate) fn attached(&self, id: u32) -> Option<Rc<Attached>> {
        self.namespaces.borrow().get(id as usize)?.clone()
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(crate) fn with_service<T>(&self, run: impl FnOnce(&Service<'_>) -> T) -> T {
        let health = health(&self.counters.get(), self.started, now());
        run(&Service::Nvm { subsystem: &self.described.borrow(), health: &health })
    }

    /// A controller's last request is answered.
    pub(crate) fn remove(&self, id: u16) {
        self.controllers.borrow_mut().remove(&id);
        self.drained.notify_waiters();
    }

    /// A device answered a request, and has no other.
    pub(crate) fn namespace_idle(&self) {
        self.drained.notify_waiters();
    }

    fn notify(&self, notice: Notice, namespace: u32) {
        self.controllers.borrow().values().for_each(|association| association.notify(notice, namespace));
    }

    async fn wait_until(&self, condition: impl Fn() -> bool) {
        loop {
            let notified = self.drained.notified();
            if condition() {
                return;
            }
            notified.await;
        }
    }

    /// Serves a connection whose Connect named this subsystem, to its end.
    async fn adopt(self: Rc<Self>, handover: Handover) {
        let Ok(mut greeted) = handover.attach() else { return };
        let peer = greeted.link.stream.peer_address();
        let admitted = if greeted.command.queue_id == 0 {
            self.connect(&greeted.command, &greeted.data, peer).await
        } else {
            self.connect_queue(&greeted.command, &greeted.data)
        };
        let slot = greeted.slot;
        match admitted {
            Ok((association, queue)) => {
                greeted.link.accept(slot, queue, &association);
                connection::serve(greeted.link, association, queue).await;
            }
            Err(completion) => greeted.link.refuse(slot, completion).await,
        }
    }

    /// Makes a controller, once everything of this host's older, broken connections has been answered (I16).
    async fn connect(
        self: &Rc<Self>,
        command: &ConnectCommand,
        data: &ConnectData,
        peer: SocketAddr,
    ) -> Result<(Rc<Association>, Queue), Completion> {
        let left_nothing = || {
            let controllers = self.controllers.borrow();
            !controllers.values().any(|old| old.has_ended() && old.is_of_host(&data.host_id, &data.host_nqn))
        };
        let waited = timeout(DRAIN_LIMIT, self.wait_until(left_nothing)).await;
        if waited.is_err() || self.controllers.borrow().len() >= CONTROLLERS_MAX {
            return Err(Status::ConnectControllerBusy.into());
        }
        if self.stopped.get() {
            return Err(unknown(InvalidParameter::data(connect_field::SUBSYSTEM_NQN)));
        }
        // It may have changed on the connection's way here.
        if !self.allows(&data.host_nqn) {
            return Err(Status::ConnectInvalidHost.into());
        }
        let id = self.next_id();
        let limits = IdentifyLimits { transfer: self.limits.transfer, io_capsule_data: self.limits.io_capsule_data };
        let kind = ControllerType::Io;
        let (controller, queue) = Controller::connect(id, kind, limits, command, data, now().as_nanos())?;
        let association = Association::new(Home::Subsystem(Rc::clone(self)), controller, data.host_id, peer);
        self.controllers.borrow_mut().insert(id, Rc::clone(&association));
        tracing::info!(subsystem = self.nqn(), controller = id, host = data.host_nqn, %peer, "host connected");
        Ok((association, queue))
    }

    fn connect_queue(
        &self,
        command: &ConnectCommand,
        data: &ConnectData,
    ) -> Result<(Rc<Association>, Queue), Completion> {
        let controllers = self.controllers.borrow();
        let association = controllers
            .get(&data.controller_id)
            .filter(|association| !association.has_ended())
            .ok_or_else(|| unknown(InvalidParameter::data(connect_field::CONTROLLER_ID)))?;
        let queue = association.controller.borrow_mut().connect_queue(command, data)?;
        Ok((Rc::clone(association), queue))
    }

    fn next_id(&self) -> u16 {
        let controllers = self.controllers.borrow();
        loop {
            // Ends: at most `CONTROLLERS_MAX` identifiers are taken.
            let id = self.last_id.get() % CONTROLLER_ID_MAX + 1;
            self.last_id.set(id);
            if !controllers.contains_key(&id) {
                return id;
            }
        }
    }
}

fn unknown(parameter: InvalidParameter) -> Completion {
    Completion { result: parameter.to_result(), status: Status::ConnectInvalidParameters }
}
