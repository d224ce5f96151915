//! The replicas of one store.

mod attached;
mod attribute;
mod hashing;
mod local;
mod notes;
mod owner;
mod unused;
mod view;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use block_device::{BlockDevice, Error, ErrorKind};
use lvol::{CreateLvol, LvolInfo, SnapshotSpec, Store, StoreError};
use reactor::bug;
use tokio::sync::{Mutex, mpsc};
use uuid::Uuid;

use self::attribute::{ATTACHED, Attribute, MEMBERSHIP, OWNER, REPLICA, SNAPSHOT_ID, SNAPSHOT_OF};
pub use self::local::LocalReplica;
use self::notes::Notes;
pub use self::owner::{Owner, owners};
use crate::directory::{Directory, Incoming};
use crate::gate::{Gate, superseded};
use crate::listener::{ReplicaHost, serve_incoming};
use crate::{
    ChainEntry, LocalFuture, MAX_ATTACHED, MAX_MEMBERSHIP, Membership, Note, OpenError, OpenReplica, Replica,
    ReplicaState,
};

/// A replica to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaSpec {
    /// Its uuid.
    pub replica: Uuid,
    /// The volume it is a replica of.
    pub volume: Uuid,
    /// A label for people.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// 512 or 4096.
    pub block_size: u32,
}

/// What a clone begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// A replica in the same store.
    pub replica: Uuid,
    /// A snapshot of its chain.
    pub snapshot: Uuid,
}

/// A replica now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaInfo {
    /// What it was created as.
    pub spec: ReplicaSpec,
    /// The highest epoch it granted; zero before the first.
    pub epoch: u64,
    /// The store it is in.
    pub store: Uuid,
    /// Whether its chain is whole.
    pub state: ReplicaState,
    /// Why it cannot be used, if its metadata is damaged (I28).
    pub damage: Option<String>,
    /// Its snapshots, oldest first.
    pub snapshots: Vec<ChainEntry>,
    /// Bytes of the clusters of its chain.
    pub used_bytes: u64,
}

/// Why the server did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// There is such a replica with other properties; nothing was changed (I30).
    #[error("replica {replica} exists already, but {}", differences.join(", "))]
    Conflict {
        /// Which.
        replica: Uuid,
        /// Each difference in words.
        differences: Vec<String>,
    },
    /// The replica belongs to another volume than the caller thinks; nothing was changed (I42).
    #[error("replica {replica} belongs to volume {volume}")]
    OtherVolume {
        /// Which.
        replica: Uuid,
        /// Whose it is.
        volume: Uuid,
    },
    /// An engine has it open, or had since the caller looked; nothing was changed (I42).
    #[error("an engine has replica {replica} open, or had it since it was looked at")]
    InUse {
        /// Which.
        replica: Uuid,
    },
    /// There is no such replica.
    #[error("there is no replica {replica}")]
    NotFound {
        /// Which was asked for.
        replica: Uuid,
    },
    /// The replica to clone has no such snapshot in this store.
    #[error("replica {} has no snapshot {} in this store", .0.replica, .0.snapshot)]
    NoOrigin(Origin),
    /// The store could not do it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The replicas of one store, on the store's reactor. Cheap to clone; the last clone ends it.
///
/// All it says is derived from the store's lvols each time: there is no list that could differ from the disk (I30, L2). What it
/// keeps is who may do I/O now.
#[derive(Clone)]
pub struct ReplicaServer {
    inner: Rc<Inner>,
}

struct Inner {
    store: Store,
    directory: Directory,
    incoming: mpsc::Sender<Incoming>,
    /// By replica, those created, opened or reset since the start.
    replicas: RefCell<BTreeMap<Uuid, Rc<Entry>>>,
}

/// What is kept of a replica in memory.
#[derive(Default)]
struct Entry {
    /// One change at a time: create, open, reset, delete.
    changing: Mutex<()>,
    /// The notes of its head, once someone asked for them.
    notes: RefCell<Option<Rc<Notes>>>,
    /// Every grant whose requests may still be at the disk, the current one last.
    gates: RefCell<Vec<Rc<Gate>>>,
}

impl ReplicaServer {
    /// Serves the replicas in `store`, to engines on this reactor and, through `directory`, to connections.
    pub fn new(store: Store, directory: &Directory) -> Self {
        store.group_by(view::group_of);
        let inner = Rc::new_cyclic(|weak| Inner {
            store,
            directory: directory.clone(),
            incoming: serve_incoming(weak.clone()),
            replicas: RefCell::default(),
        });
        let server = Self { inner };
        for info in server.list() {
            server.inner.announce(info.spec.replica);
        }
        server
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    /// Creates a replica, or finds that it is there already with the same volume and sizes (I30).
    pub async fn create(&self, spec: &ReplicaSpec) -> Result<ReplicaInfo, ReplicaError> {
        self.inner.create(spec, None).await
    }

    /// Creates a replica that begins as a snapshot of another one in the same store, and shares its blocks. A repeat finds it, like
    /// [`ReplicaServer::create`].
    pub async fn create_clone(&self, spec: &ReplicaSpec, origin: Origin) -> Result<ReplicaInfo, ReplicaError> {
        self.inner.create(spec, Some(origin)).await
    }

    /// Deletes a replica with its snapshots; those that clones begin with go when these do not need them any more. It finds nothing to do when there is none (I42). With `volume` given, only a replica of that
    /// volume. An engine that has it open is cut off.
    pub async fn delete(&self, replica: Uuid, volume: Option<Uuid>) -> Result<(), ReplicaError> {
        self.inner.delete(replica, volume).await
    }

    /// All replicas, in the order of their uuids.
    pub fn list(&self) -> Vec<ReplicaInfo> {
        view::replicas(self.inner.store.lvols(), self.inner.store.uuid())
    }

    /// One replica.
    pub fn info(&self, replica: Uuid) -> Option<ReplicaInfo> {
        self.inner.info(replica)
    }

    /// Opens a replica for an engine on this reactor (I12, I13).
    pub async fn open_local(&self, open: OpenReplica) -> Result<Rc<LocalReplica>, OpenError> {
        self.inner.grant(open).await
    }
}

impl ReplicaHost for Inner {
    fn open(self: Rc<Self>, open: OpenReplica) -> LocalFuture<'static, Result<Rc<dyn Replica>, OpenError>> {
        Box::pin(async move { Ok(self.grant(open).await? as Rc<dyn Replica>) })
    }
}

impl Inner {
    fn entry(&self, replica: Uuid) -> Rc<Entry> {
        Rc::clone(self.replicas.borrow_mut().entry(replica).or_default())
    }

    fn announce(&self, replica: Uuid) {
        self.directory.insert(replica, self.incoming.clone());
    }

    /// The lvols of a replica: its heads and snapshots.
    fn lvols_of(&self, replica: Uuid) -> Vec<LvolInfo> {
        self.store.group(replica)
    }

    fn head(&self, replica: Uuid) -> Option<(LvolInfo, Attribute)> {
        view::head(&self.lvols_of(replica), replica)
    }

    fn chain(&self, replica: Uuid) -> Vec<LvolInfo> {
        view::chain(&self.lvols_of(replica), replica)
    }

    fn info(&self, replica: Uuid) -> Option<ReplicaInfo> {
        let found = view::replica(&self.lvols_of(replica), self.store.uuid(), replica, |id| self.store.lvol_info(id));
        found.map(|(info, _)| info)
    }

    /// Why an lvol must not be served, although it can be read.
    fn lost(&self, lvol: Uuid) -> Option<String> {
        view::lost(lvol, |id| self.store.lvol_info(id))
    }

    async fn create(&self, spec: &ReplicaSpec, origin: Option<Origin>) -> Result<ReplicaInfo, ReplicaError> {
        let entry = self.entry(spec.replica);
        let _changing = entry.changing.lock().await;
        if self.head(spec.replica).is_none() {
            let attribute = Attribute {
                state: ReplicaState::Complete,
                replica: spec.replica,
                volume: spec.volume,
                generation: 0,
                epoch: 0,
                instance: Uuid::nil(),
            };
            let created = match origin {
                None => self.create_head(None, &attribute, spec).await.map_err(ReplicaError::from),
                Some(origin) => self.clone_head(origin, &attribute, spec).await,
            };
            created.inspect_err(|_| self.forget(spec.replica, &entry))?;
        }
        let info = self.info(spec.replica).ok_or(ReplicaError::NotFound { replica: spec.replica })?;
        let differences = differences(&info.spec, spec);
        if !differences.is_empty() {
            return Err(ReplicaError::Conflict { replica: spec.replica, differences });
        }
        self.announce(spec.replica);
        Ok(info)
    }

    async fn create_head(
        &self,
        old: Option<&LvolInfo>,
        attribute: &Attribute,
        spec: &ReplicaSpec,
    ) -> Result<LvolInfo, StoreError> {
        let mut lvol = head_lvol(attribute, spec);
        match old {
            Some(old) => {
                // What it knows of the membership, and whose it is, does not depend on what it holds.
                let known = |key: &str| Some((key.to_owned(), old.attributes.get(key)?.clone()));
                lvol.attributes.extend([MEMBERSHIP, OWNER].into_iter().filter_map(known));
                self.store.create_in_place_of(old.uuid, &lvol).await
            }
            None => self.store.create(&lvol).await,
        }
    }

    async fn clone_head(
        &self,
        origin: Origin,
        attribute: &Attribute,
        spec: &ReplicaSpec,
    ) -> Result<LvolInfo, ReplicaError> {
        let chain = self.chain(origin.replica);
        let base = view::in_chain(&chain, origin.snapshot).filter(|lvol| lvol.kind == lvol::LvolKind::Snapshot);
        let base = base.ok_or(ReplicaError::NoOrigin(origin))?.uuid;
        if let Some(reason) = self.lost(base) {
            return Err(StoreError::LvolDamaged { uuid: base, reason }.into());
        }
        Ok(self.store.clone_snapshot(base, &head_lvol(attribute, spec)).await?)
    }

    async fn delete(&self, replica: Uuid, volume: Option<Uuid>) -> Result<(), ReplicaError> {
        let entry = self.entry(replica);
        let _changing = entry.changing.lock().await;
        let found = self.head(replica);
        if let (Some(volume), Some((_, found))) = (volume, found)
            && found.volume != volume
        {
            return Err(ReplicaError::OtherVolume { replica, volume: found.volume });
        }
        self.delete_locked(replica, &entry).await
    }

    async fn delete_locked(&self, replica: Uuid, entry: &Rc<Entry>) -> Result<(), ReplicaError> {
        let lvols = self.lvols_of(replica);
        self.directory.remove(replica);
        entry.end(&Error::with_detail(ErrorKind::Unavailable, "the replica was deleted")).await;
        entry.notes.take();
        self.delete_lvols(view::of_replica(&lvols, replica)).await?;
        self.forget(replica, entry);
        Ok(())
    }

    /// Deletes heads, then snapshots from the newest to the oldest, which is in the order that no child is left behind. Those that
    /// clones hang on are marked: the store lets them go when it can.
    async fn delete_lvols(&self, mut doomed: Vec<Uuid>) -> Result<(), StoreError> {
        while !doomed.is_empty() {
            // The store takes care of those that are to be deleted already.
            let stays = |id: &Uuid| self.store.lvol_info(*id).is_some_and(|lvol| lvol.deletion.is_none());
            let childless = |id: &Uuid| self.store.lvol_info(*id).is_none_or(|lvol| !lvol.children.iter().any(stays));
            let (now, later): (Vec<_>, Vec<_>) = doomed.into_iter().partition(childless);
            // None of them: clones hang on all that is left.
            let (now, later) = if now.is_empty() { (later, now) } else { (now, later) };
            for id in now {
                self.store.delete(id).await?;
            }
            doomed = later;
        }
        Ok(())
    }

    /// Grants an epoch: stores it (I12), then ends and drains what was granted before (I13, I16).
    async fn grant(self: &Rc<Self>, open: OpenReplica) -> Result<Rc<LocalReplica>, OpenError> {
        let entry = self.entry(open.replica);
        let _changing = entry.changing.lock().await;
        let lvols = self.lvols_of(open.replica);
        let Some((head, mut attribute)) = view::head(&lvols, open.replica) else {
            self.forget(open.replica, &entry);
            return Err(OpenError::NotFound);
        };
        if attribute.volume != open.volume {
            return Err(OpenError::Mismatch(format!("it is a replica of volume {}", attribute.volume)));
        }
        if open.epoch == 0 {
            return self.look(open, &head, &attribute).await;
        }
        if let Some(reason) = self.lost(head.uuid) {
            return Err(failed(StoreError::LvolDamaged { uuid: head.uuid, reason }));
        }
        let same_engine = attribute.instance == open.instance;
        let stale = open.epoch < attribute.epoch || (open.epoch == attribute.epoch && !same_engine);
        if stale && !bug!("grant-any-epoch") {
            return Err(OpenError::Fenced { stored: attribute.epoch });
        }
        if (open.epoch, open.instance) == (attribute.epoch, attribute.instance) {
            // An attempt that failed may have left it in memory only.
            self.store.flush().await.map_err(failed)?;
        } else if !bug!("forget-the-epoch") {
            (attribute.epoch, attribute.instance) = (open.epoch, open.instance);
            self.store_attribute(head.uuid, &attribute).await.map_err(failed)?;
        }
        entry.end(&superseded(same_engine, open.epoch)).await;
        // What the disk has counts, not what an earlier grant remembers.
        entry.notes.take();
        self.delete_lvols(view::leftovers(&lvols, open.replica)).await.map_err(failed)?;
        let device = self.store.open_lvol(head.uuid).await.map_err(failed)?;
        let gate = Gate::new(device as Rc<dyn BlockDevice>);
        entry.gates.borrow_mut().push(Rc::clone(&gate));
        Ok(LocalReplica::new(Rc::clone(self), open, gate, attribute.state))
    }

    /// Epoch zero, which is nobody's: a handle that has ended already. It tells what the replica knows and does nothing.
    async fn look(
        self: &Rc<Self>,
        open: OpenReplica,
        head: &LvolInfo,
        attribute: &Attribute,
    ) -> Result<Rc<LocalReplica>, OpenError> {
        let device = self.store.open_lvol(head.uuid).await.map_err(failed)?;
        let gate = Gate::new(device as Rc<dyn BlockDevice>);
        gate.end(Error::with_detail(ErrorKind::InvalidField, "the replica was opened to be looked at only"));
        Ok(LocalReplica::new(Rc::clone(self), open, gate, attribute.state))
    }

    async fn store_attribute(&self, head: Uuid, attribute: &Attribute) -> Result<(), StoreError> {
        self.store.set_attributes(head, &[(REPLICA.to_owned(), Some(attribute.encode()))]).await
    }

    /// Starts the replica anew behind its gate: `docs/replication.md`, "Rebuild".
    async fn reset(&self, replica: Uuid, gate: &Gate) -> Result<(), Error> {
        let entry = self.entry(replica);
        let _changing = entry.changing.lock().await;
        let (old, attribute) = self.still_granted(replica, gate)?;
        gate.drained().await;
        let new = Attribute { state: ReplicaState::Rebuilding, generation: attribute.generation + 1, ..attribute };
        let spec = ReplicaSpec {
            replica,
            volume: attribute.volume,
            name: old.name.clone(),
            size: old.size,
            block_size: old.block_size,
        };
        let head = self.create_head(Some(&old), &new, &spec).await?;
        gate.replace(self.store.open_lvol(head.uuid).await? as Rc<dyn BlockDevice>);
        self.delete_lvols(view::leftovers(&self.lvols_of(replica), replica)).await?;
        Ok(())
    }

    async fn set_state(&self, replica: Uuid, gate: &Gate, state: ReplicaState) -> Result<(), Error> {
        let entry = self.entry(replica);
        let _changing = entry.changing.lock().await;
        let (head, attribute) = self.still_granted(replica, gate)?;
        Ok(self.store_attribute(head.uuid, &Attribute { state, ..attribute }).await?)
    }

    async fn snapshot(&self, replica: Uuid, gate: &Gate, id: Uuid, size: u64, name: &str) -> Result<(), Error> {
        let entry = self.entry(replica);
        let _changing = entry.changing.lock().await;
        let (head, attribute) = self.still_granted(replica, gate)?;
        let mut attributes = BTreeMap::from([(SNAPSHOT_OF.to_owned(), replica.as_bytes().to_vec())]);
        let uuid = self.snapshot_uuid(replica, attribute.generation, id);
        if uuid != id {
            attributes.insert(SNAPSHOT_ID.to_owned(), id.as_bytes().to_vec());
        }
        let spec = SnapshotSpec { uuid, name: name.to_owned(), attributes };
        self.store.snapshot_of_size(head.uuid, size, &spec).await?;
        Ok(())
    }

    /// What the lvol of a snapshot is called: as the snapshot, unless an lvol of that name is there already. A clone may need an earlier
    /// copy of it, and another replica of the volume may have it: one that was let go and is not deleted yet.
    fn snapshot_uuid(&self, replica: Uuid, generation: u64, id: Uuid) -> Uuid {
        if let Some(there) = view::in_chain(&self.chain(replica), id) {
            return there.uuid;
        }
        match self.store.lvol_info(id) {
            Some(_) => Uuid::new_v5(&id, &[replica.as_bytes().as_slice(), &generation.to_le_bytes()].concat()),
            None => id,
        }
    }

    /// Deletes a snapshot of the replica's chain; the store gives its blocks to whoever reads through it.
    async fn delete_snapshot(&self, replica: Uuid, gate: &Gate, id: Uuid) -> Result<(), Error> {
        let entry = self.entry(replica);
        let _changing = entry.changing.lock().await;
        let (head, attribute) = self.still_granted(replica, gate)?;
        let ours = view::in_chain(&self.chain(replica), id).map(|lvol| lvol.uuid);
        let is_something_else = |lvol| view::is_something_else(&lvol, attribute.volume, |other| self.lvols_of(other));
        match ours.filter(|uuid| *uuid != head.uuid) {
            Some(uuid) => Ok(self.store.delete(uuid).await?),
            None if self.store.lvol_info(id).is_some_and(is_something_else) => {
                Err(Error::with_detail(ErrorKind::InvalidField, format_args!("{id} is no snapshot of {replica}")))
            }
            None => Ok(()),
        }
    }

    /// The snapshots after the one that the head goes back to are not in its chain any more: they are deleted, here or,
    /// after a crash, when the replica is opened next.
    async fn revert(&self, replica: Uuid, gate: &Gate, snapshot: Uuid) -> Result<(), Error> {
        let entry = self.entry(replica);
        let _changing = entry.changing.lock().await;
        let (head, _) = self.still_granted(replica, gate)?;
        let chain = self.chain(replica);
        let Some(snapshot) = view::in_chain(&chain, snapshot).map(|lvol| lvol.uuid) else {
            let text = format_args!("no snapshot {snapshot} in the chain of {replica}");
            return Err(Error::with_detail(ErrorKind::InvalidField, text));
        };
        self.store.revert(head.uuid, snapshot).await?;
        Ok(self.delete_lvols(view::leftovers(&self.lvols_of(replica), replica)).await?)
    }

    /// Under the lock that a newer grant waits for: nothing of an older one is mended after it (I13).
    async fn repair(&self, replica: Uuid, gate: &Gate, snapshot: Uuid, offset: u64, data: &[u8]) -> Result<(), Error> {
        let entry = self.entry(replica);
        let _changing = entry.changing.lock().await;
        self.still_granted(replica, gate)?;
        let chain = self.chain(replica);
        let found = view::in_chain(&chain, snapshot).filter(|lvol| lvol.kind == lvol::LvolKind::Snapshot);
        let missing =
            || Error::with_detail(ErrorKind::InvalidField, format_args!("no snapshot {snapshot} in the chain"));
        Ok(self.store.repair_region(found.ok_or_else(missing)?.uuid, offset, data).await?)
    }

    async fn grow(&self, replica: Uuid, gate: &Gate, size: u64) -> Result<(), Error> {
        let entry = self.entry(replica);
        let _changing = entry.changing.lock().await;
        let (head, _) = self.still_granted(replica, gate)?;
        if head.size < size {
            self.store.grow(head.uuid, size).await?;
        }
        Ok(())
    }

    async fn set_note(
        &self,
        replica: Uuid,
        gate: &Gate,
        place: u8,
        content: &[u8],
        durable: bool,
    ) -> Result<(), Error> {
        let entry = self.entry(replica);
        // A newer grant waits for it: nothing of an older one is noted after it (I13).
        let _changing = entry.changing.lock().await;
        self.notes(&entry, replica, gate).await?.set(place, content, durable).await
    }

    async fn list_notes(&self, replica: Uuid, gate: &Gate) -> Result<Vec<Note>, Error> {
        let entry = self.entry(replica);
        let _changing = entry.changing.lock().await;
        Ok(self.notes(&entry, replica, gate).await?.list())
    }

    /// The notes of the head: a reset, which makes a new one, leaves none.
    async fn notes(&self, entry: &Entry, replica: Uuid, gate: &Gate) -> Result<Rc<Notes>, Error> {
        let (head, _) = self.still_granted(replica, gate)?;
        let open = entry.notes.borrow().clone();
        if let Some(open) = open.filter(|open| open.head == head.uuid) {
            return Ok(open);
        }
        let opened = Rc::new(Notes::open(&self.store, head.uuid).await?);
        *entry.notes.borrow_mut() = Some(Rc::clone(&opened));
        Ok(opened)
    }

    async fn set_membership(&self, replica: Uuid, gate: &Gate, content: Vec<u8>, attached: &[u8]) -> Result<(), Error> {
        check_copy(&content, attached)?;
        let entry = self.entry(replica);
        // As with notes: a newer grant waits for it.
        let _changing = entry.changing.lock().await;
        let (head, _) = self.still_granted(replica, gate)?;
        let attached = attached::place(&self.store, &head, content.len(), attached).await?;
        let changes = [(MEMBERSHIP.to_owned(), Some(content)), (ATTACHED.to_owned(), Some(attached))];
        Ok(self.store.set_attributes(head.uuid, &changes).await?)
    }

    async fn membership(&self, replica: Uuid) -> Result<Membership, Error> {
        let entry = self.entry(replica);
        // What is attached does not change while it is read.
        let _changing = entry.changing.lock().await;
        let gone = || Error::with_detail(ErrorKind::Unavailable, "the replica was deleted");
        let (head, attribute) = self.head(replica).ok_or_else(gone)?;
        let attached = attached::read(&self.store, &head).await?;
        Ok(Membership { epoch: attribute.epoch, content: head.attributes.get(MEMBERSHIP).cloned(), attached })
    }

    /// Under the lock that a newer grant needs too: whether this one still counts (I12), and the head.
    fn still_granted(&self, replica: Uuid, gate: &Gate) -> Result<(LvolInfo, Attribute), Error> {
        gate.ended().map_or(Ok(()), Err)?;
        let gone = || Error::with_detail(ErrorKind::Unavailable, "the replica was deleted");
        self.head(replica).ok_or_else(gone)
    }

    /// Forgets a replica that is not there, unless someone is about to make it.
    fn forget(&self, replica: Uuid, entry: &Rc<Entry>) {
        // The map's owner, and the caller.
        if Rc::strong_count(entry) == 2 {
            self.replicas.borrow_mut().remove(&replica);
        }
    }
}

impl Entry {
    /// Ends every grant and waits until nothing of them is at the disk.
    async fn end(&self, error: &Error) {
        let gates: Vec<_> = self.gates.borrow().clone();
        if bug!("let-ended-grants-go-on") {
            return;
        }
        gates.iter().for_each(|gate| gate.end(error.clone()));
        for gate in gates.iter().filter(|_| !bug!("grant-before-the-drain")) {
            gate.drained().await;
        }
        self.gates.borrow_mut().retain(|gate| !gates.iter().any(|ended| Rc::ptr_eq(ended, gate)));
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for info in view::replicas(self.store.lvols(), Uuid::nil()) {
            self.directory.remove(info.spec.replica);
        }
    }
}

/// Whether an engine may leave such a copy.
pub(crate) fn check_copy(content: &[u8], attached: &[u8]) -> Result<(), Error> {
    let fits = content.len() <= MAX_MEMBERSHIP as usize && attached.len() <= MAX_ATTACHED as usize;
    if content.is_empty() || !fits { Err(ErrorKind::InvalidField.into()) } else { Ok(()) }
}

fn failed(error: StoreError) -> OpenError {
    OpenError::Failed(error.into())
}

/// The uuid of a replica's head: the first is named like the replica, those after a reset are derived, so that a repeated
/// reset finds what the first one made.
fn head_uuid(replica: Uuid, generation: u64) -> Uuid {
    match generation {
        0 => replica,
        later => Uuid::new_v5(&replica, &later.to_le_bytes()),
    }
}

fn head_lvol(attribute: &Attribute, spec: &ReplicaSpec) -> CreateLvol {
    CreateLvol {
        uuid: head_uuid(attribute.replica, attribute.generation),
        name: spec.name.clone(),
        size: spec.size,
        block_size: spec.block_size,
        attributes: BTreeMap::from([(REPLICA.to_owned(), attribute.encode())]),
    }
}

fn differences(found: &ReplicaSpec, asked: &ReplicaSpec) -> Vec<String> {
    let mut differences = Vec::new();
    if found.volume != asked.volume {
        differences.push(format!("its volume is {}, not {}", found.volume, asked.volume));
    }
    if found.size != asked.size {
        differences.push(format!("its size is {} bytes, not {}", found.size, asked.size));
    }
    if found.block_size != asked.block_size {
        differences.push(format!("its blocks have {} bytes, not {}", found.block_size, asked.block_size));
    }
    differences
}
