//! The discovery service of one listener.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use nvmf_target_protocol::target::connection::Queue;
use nvmf_target_protocol::target::controller::{Controller, IdentifyLimits, Service};
use nvmf_target_protocol::wire::fabrics::{ConnectCommand, ConnectData};
use nvmf_target_protocol::wire::identify::ControllerType;
use nvmf_target_protocol::wire::log_page::Notice;
use nvmf_target_protocol::wire::{Completion, Status};
use reactor::now;

use crate::Directory;
use crate::association::{Association, Home};

/// Discovery controllers of one listener at one time.
const CONTROLLERS_MAX: usize = 1024;

/// Greatest controller identifier that may be given out (Base 3.1.1, FFF0h and up are reserved).
pub(crate) const CONTROLLER_ID_MAX: u16 = 0xffef;

pub(crate) struct Discovery {
    directory: Arc<Directory>,
    limits: IdentifyLimits,
    controllers: RefCell<BTreeMap<u16, Rc<Association>>>,
    last_id: Cell<u16>,
}

impl Discovery {
    pub(crate) fn new(directory: Arc<Directory>, limits: IdentifyLimits) -> Rc<Self> {
        Rc::new(Self { directory, limits, controllers: RefCell::default(), last_id: Cell::new(0) })
    }

    /// Makes a discovery controller.
    ///
    /// # Errors
    /// The completion to answer the Connect with.
    pub(crate) fn connect(
        self: &Rc<Self>,
        command: &ConnectCommand,
        data: &ConnectData,
        peer: std::net::SocketAddr,
    ) -> Result<(Rc<Association>, Queue), Completion> {
        if self.controllers.borrow().len() >= CONTROLLERS_MAX {
            return Err(Status::ConnectControllerBusy.into());
        }
        let id = self.next_id();
        let kind = ControllerType::Discovery;
        let (controller, queue) = Controller::connect(id, kind, self.limits, command, data, now().as_nanos())?;
        let association = Association::new(Home::Discovery(Rc::clone(self)), controller, data.host_id, peer);
        self.controllers.borrow_mut().insert(id, Rc::clone(&association));
        Ok((association, queue))
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

    pub(crate) fn remove(&self, id: u16) {
        self.controllers.borrow_mut().remove(&id);
    }

    pub(crate) fn close(&self) {
        let controllers: Vec<_> = self.controllers.borrow().values().cloned().collect();
        controllers.iter().for_each(|association| association.end());
    }

    pub(crate) fn with_service<T>(&self, host_nqn: &str, run: impl FnOnce(&Service<'_>) -> T) -> T {
        let (generation, entries) = self.directory.discovery_log(host_nqn);
        run(&Service::Discovery { generation, entries: &entries })
    }

    /// Tells every discovery controller of changes, for as long as the directory exists.
    pub(crate) async fn watch(self: Rc<Self>) {
        let mut changes = self.directory.watch();
        while changes.changed().await.is_ok() {
            for association in self.controllers.borrow().values() {
                association.notify(Notice::DiscoveryChanged, 0);
            }
        }
    }
}
