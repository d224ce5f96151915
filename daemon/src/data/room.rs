//! What lives on one reactor's thread.

use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use engine::{FileRegistry, Registry};
use nvmf_target::{Listener, ListenerOptions};
use reactor::Disk;
use replica::{ReplicaListener, ReplicaServer};
use uuid::Uuid;

use super::Inner;
use super::engines::Export;
use super::scrubs::Runs;
use crate::config::Config;

/// How long ports and locks of a process that was killed may stay taken: the kernel first ends what that has at a disk, which takes tens of
/// seconds while a file system gives much space back.
const RELEASE_LIMIT: Duration = Duration::from_secs(45);
const RELEASE_PAUSE: Duration = Duration::from_millis(10);

thread_local! {
    static ROOM: Rc<Room> = Rc::default();
}

/// Everything of this reactor, by its UUID.
#[derive(Default)]
pub(super) struct Room {
    /// Open stores with their replicas.
    pub(super) stores: RefCell<BTreeMap<Uuid, ReplicaServer>>,
    /// The disks of stores in memory: their content lasts from format to close.
    pub(super) memory: RefCell<BTreeMap<Uuid, Disk>>,
    /// The last scrub of each open store.
    pub(super) scrubs: RefCell<Runs>,
    /// Exports and engines by volume.
    pub(super) exports: RefCell<BTreeMap<Uuid, Rc<Export>>>,
    /// Membership records of the volumes whose engine is here.
    registry: OnceCell<Rc<FileRegistry>>,
    hosts: RefCell<Vec<Listener>>,
    portals: RefCell<Vec<iscsi_target::Listener>>,
    engines: RefCell<Option<ReplicaListener>>,
}

impl Room {
    /// The membership records. Each reactor has its own view of the folder: a volume's record is only used by the one
    /// that has its engine.
    pub(super) fn registry(&self, inner: &Inner) -> Rc<dyn Registry> {
        let registry = self.registry.get_or_init(|| Rc::new(FileRegistry::new(&inner.registry)));
        Rc::clone(registry) as Rc<dyn Registry>
    }
}

/// The room of the current thread.
pub(super) fn room() -> Rc<Room> {
    ROOM.with(Rc::clone)
}

/// Opens the doors: to engines of other nodes, and to hosts.
pub(super) async fn listen(inner: Arc<Inner>, config: Config) -> anyhow::Result<()> {
    let room = room();
    let security = &inner.security;
    let bind = || ReplicaListener::bind_with(config.replica, &inner.replicas, &inner.node, security.clone());
    let listener = while_released(io::ErrorKind::AddrInUse, bind)
        .await
        .with_context(|| format!("cannot serve replicas at {} (replica)", config.replica))?;
    *room.engines.borrow_mut() = Some(listener);
    for (key, addresses, serves_volumes) in [("nvmf", &config.nvmf, true), ("discovery", &config.discovery, false)] {
        for address in addresses {
            let advertised = if serves_volumes { config.advertised(&[*address]) } else { Vec::new() };
            let options = ListenerOptions { advertised, advertise_own: false, ..ListenerOptions::new(*address) };
            let bind = || Listener::bind(&inner.subsystems, options.clone());
            let listener = while_released(io::ErrorKind::AddrInUse, bind)
                .await
                .with_context(|| format!("cannot serve NVMe/TCP at {address} ({key})"))?;
            room.hosts.borrow_mut().push(listener);
        }
    }
    for address in &config.iscsi {
        let options = iscsi_target::ListenerOptions::new(*address);
        let bind = || iscsi_target::Listener::bind(&inner.targets, options.clone());
        let listener = while_released(io::ErrorKind::AddrInUse, bind)
            .await
            .with_context(|| format!("cannot serve iSCSI at {address} (iscsi)"))?;
        room.portals.borrow_mut().push(listener);
    }
    Ok(())
}

/// Tries again while `attempt` fails with `taken`, for [`RELEASE_LIMIT`] at most.
///
/// When a process is killed the kernel lets go of what it had in its rings after the process is gone: its ports and locks
/// stay taken for some 30 ms, and for seconds while the kernel frees the blocks of large deleted files on a slow disk.
pub(super) async fn while_released<T>(
    taken: io::ErrorKind,
    mut attempt: impl FnMut() -> io::Result<T>,
) -> io::Result<T> {
    let limit = reactor::now() + RELEASE_LIMIT;
    loop {
        match attempt() {
            Err(error) if error.kind() == taken && reactor::now() < limit => reactor::sleep(RELEASE_PAUSE).await,
            result => return result,
        }
    }
}

/// Closes the door to hosts.
pub(super) fn stop_hosts() {
    room().hosts.take();
    room().portals.take();
}

/// Closes the door to engines.
pub(super) fn stop_replicas() {
    room().engines.take();
}
