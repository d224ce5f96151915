//! Which subsystems this process exports, and how their connections get to them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use nvmf_target_protocol::target::controller::ADMIN_QUEUE_ENTRIES;
use nvmf_target_protocol::wire::Completion;
use nvmf_target_protocol::wire::Status;
use nvmf_target_protocol::wire::discovery::{DiscoveryEntry, SubsystemType};
use nvmf_target_protocol::wire::fabrics::{ConnectData, InvalidParameter, connect_field};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use crate::handshake::Handover;

/// Connections that may wait for a subsystem's reactor to take them over; a further one is told to try again.
const HANDOVERS_MAX: usize = 64;

/// Which hosts may connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hosts {
    /// Every host.
    Any,
    /// Only hosts with these NQNs.
    Named(BTreeSet<String>),
}

impl Hosts {
    fn allow(&self, host_nqn: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Named(names) => names.contains(host_nqn),
        }
    }
}

/// Another subsystem of this process has the same NQN.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is exported already")]
pub struct AlreadyExported(pub String);

struct Export {
    hosts: Hosts,
    owner: mpsc::Sender<Handover>,
}

#[derive(Default)]
struct State {
    exports: BTreeMap<String, Export>,
    /// Where hosts reach every subsystem, with port identifiers that are never used again.
    addresses: Vec<(u16, SocketAddr)>,
    ports: u16,
}

/// The subsystems of this process by NQN. Shared by all reactors; a lock is taken to connect and to change, never for
/// an I/O.
pub struct Directory {
    state: Mutex<State>,
    /// Generation counter of the discovery log: changes whenever its content may have.
    generation: watch::Sender<u64>,
}

impl Directory {
    /// A directory without subsystems.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), generation: watch::Sender::new(1) })
    }

    /// The NQNs exported now.
    pub fn subsystems(&self) -> Vec<String> {
        self.state.lock().exports.keys().cloned().collect()
    }

    pub(crate) fn export(&self, nqn: &str, hosts: Hosts) -> Result<mpsc::Receiver<Handover>, AlreadyExported> {
        let (owner, receiver) = mpsc::channel(HANDOVERS_MAX);
        let mut state = self.state.lock();
        if state.exports.contains_key(nqn) {
            return Err(AlreadyExported(nqn.to_owned()));
        }
        state.exports.insert(nqn.to_owned(), Export { hosts, owner });
        drop(state);
        self.changed();
        Ok(receiver)
    }

    pub(crate) fn withdraw(&self, nqn: &str) {
        if self.state.lock().exports.remove(nqn).is_some() {
            self.changed();
        }
    }

    /// Replaces who may connect to a subsystem from here on.
    pub(crate) fn set_hosts(&self, nqn: &str, hosts: Hosts) {
        if let Some(export) = self.state.lock().exports.get_mut(nqn) {
            export.hosts = hosts;
        }
        self.changed();
    }

    /// Whether a host may connect to a subsystem that is exported.
    pub(crate) fn allows(&self, nqn: &str, host_nqn: &str) -> bool {
        self.state.lock().exports.get(nqn).is_some_and(|export| export.hosts.allow(host_nqn))
    }

    pub(crate) fn add_addresses(&self, addresses: &[SocketAddr]) {
        let mut state = self.state.lock();
        for address in addresses {
            state.ports = state.ports.wrapping_add(1);
            let port = state.ports;
            state.addresses.push((port, *address));
        }
        drop(state);
        self.changed();
    }

    pub(crate) fn remove_addresses(&self, addresses: &[SocketAddr]) {
        self.state.lock().addresses.retain(|(_, address)| !addresses.contains(address));
        self.changed();
    }

    /// A place in the queue of connections to the subsystem that a Connect names.
    ///
    /// # Errors
    /// The completion to answer the Connect with.
    pub(crate) fn route(&self, connect: &ConnectData) -> Result<mpsc::OwnedPermit<Handover>, Completion> {
        let state = self.state.lock();
        let Some(export) = state.exports.get(&connect.subsystem_nqn) else {
            let parameter = InvalidParameter::data(connect_field::SUBSYSTEM_NQN);
            return Err(Completion { result: parameter.to_result(), status: Status::ConnectInvalidParameters });
        };
        if !export.hosts.allow(&connect.host_nqn) {
            return Err(Status::ConnectInvalidHost.into());
        }
        export.owner.clone().try_reserve_owned().map_err(|_| Status::ConnectControllerBusy.into())
    }

    /// The discovery log of a host: generation counter and entries.
    pub(crate) fn discovery_log(&self, host_nqn: &str) -> (u64, Vec<DiscoveryEntry>) {
        let state = self.state.lock();
        let generation = *self.generation.borrow();
        let visible = state.exports.iter().filter(|(_, export)| export.hosts.allow(host_nqn));
        let entries = visible
            .flat_map(|(nqn, _)| state.addresses.iter().map(move |(port, address)| entry(nqn, *port, *address)))
            .collect();
        (generation, entries)
    }

    /// Tells of every change of the discovery log.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    fn changed(&self) {
        self.generation.send_modify(|generation| *generation += 1);
    }
}

fn entry(nqn: &str, port_id: u16, address: SocketAddr) -> DiscoveryEntry {
    DiscoveryEntry {
        subsystem_type: SubsystemType::Nvm,
        port_id,
        admin_queue_entries: ADMIN_QUEUE_ENTRIES,
        subsystem_nqn: nqn.to_owned(),
        address,
    }
}
