//! Which targets this process exports, and how their connections get to them.

use std::collections::BTreeMap;
use std::sync::Arc;

use iscsi_target_protocol::target::access::Access;
use iscsi_target_protocol::target::connection::Wanted;
use iscsi_target_protocol::wire::{LoginStatus, Name};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::handshake::Handover;

/// Connections that may wait for a target's reactor to take them over; a further one is told to try again.
const HANDOVERS_MAX: usize = 64;

/// Another target of this process has the same name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is exported already")]
pub struct AlreadyExported(pub String);

struct Export {
    access: Access,
    owner: mpsc::Sender<Handover>,
}

#[derive(Default)]
struct State {
    exports: BTreeMap<Name, Export>,
    /// Where initiators reach every target: `host:port,group`.
    portals: Vec<String>,
    /// Not all targets are there yet: one that is missing may still come.
    starting: bool,
}

/// The targets of this process by name. Shared by all reactors; a lock is taken to log in and to change, never for
/// an I/O.
pub struct Directory {
    state: Mutex<State>,
}

impl Directory {
    /// A directory without targets.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::default() })
    }

    /// Says whether targets are still to come, as after a start: initiators that look for one meanwhile are told to try
    /// again, where otherwise they would give up.
    pub fn set_starting(&self, starting: bool) {
        self.state.lock().starting = starting;
    }

    /// The names exported now.
    pub fn targets(&self) -> Vec<Name> {
        self.state.lock().exports.keys().cloned().collect()
    }

    pub(crate) fn export(&self, name: &Name, access: Access) -> Result<mpsc::Receiver<Handover>, AlreadyExported> {
        let (owner, receiver) = mpsc::channel(HANDOVERS_MAX);
        let mut state = self.state.lock();
        if state.exports.contains_key(name) {
            return Err(AlreadyExported(name.to_string()));
        }
        state.exports.insert(name.clone(), Export { access, owner });
        Ok(receiver)
    }

    pub(crate) fn withdraw(&self, name: &Name) {
        self.state.lock().exports.remove(name);
    }

    /// Replaces who may log in to a target from here on.
    pub(crate) fn set_access(&self, name: &Name, access: Access) {
        if let Some(export) = self.state.lock().exports.get_mut(name) {
            export.access = access;
        }
    }

    /// Who may log in to a target; none if it is gone.
    pub(crate) fn access(&self, name: &Name) -> Option<Access> {
        self.state.lock().exports.get(name).map(|export| export.access.clone())
    }

    pub(crate) fn add_portals(&self, portals: &[String]) {
        self.state.lock().portals.extend_from_slice(portals);
    }

    pub(crate) fn remove_portals(&self, portals: &[String]) {
        self.state.lock().portals.retain(|portal| !portals.contains(portal));
    }

    /// A place in the queue of connections to a target.
    ///
    /// # Errors
    /// The status to refuse the login with.
    pub(crate) fn route(&self, target: &Name) -> Result<mpsc::OwnedPermit<Handover>, LoginStatus> {
        let state = self.state.lock();
        let missing = if state.starting { LoginStatus::Unavailable } else { LoginStatus::NotFound };
        let export = state.exports.get(target).ok_or(missing)?;
        export.owner.clone().try_reserve_owned().map_err(|_| LoginStatus::OutOfResources)
    }

    /// The targets of `wanted` that `initiator` may log in to, and where; `own` is that of its session.
    pub(crate) fn visible(&self, initiator: &Name, wanted: &Wanted, own: Option<&Name>) -> Vec<(Name, Vec<String>)> {
        let state = self.state.lock();
        let is_wanted = |name: &Name| match wanted {
            Wanted::All => true,
            Wanted::Own => own == Some(name),
            Wanted::Named(one) => one == name,
        };
        let visible = state.exports.iter().filter(|(name, export)| is_wanted(name) && export.access.admits(initiator));
        visible.map(|(name, _)| (name.clone(), state.portals.clone())).collect()
    }
}
