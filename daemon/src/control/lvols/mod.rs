//! Single logical volumes. What there is, is asked of the stores each time, as with replicas; those that belong to a
//! replica are shown and not touched.

mod describe;
mod exported;
mod transfer;

use std::collections::BTreeMap;
use std::sync::Arc;

use lvol::{CreateLvol, LvolKind, SnapshotSpec};
use proto::v1;
use tokio::sync::{OwnedMutexGuard, Semaphore};
use uuid::Uuid;

use self::describe::describe;
use self::exported::Exported;
pub(crate) use self::transfer::Parts;
use super::error::{Comparison, ControlError};
use super::locks::KeyedLocks;
use super::request;
use super::stores::{OpenStore, Stores};
use crate::data::{DataPath, LvolChange, LvolFacts};

/// Exports and imports at one time: each holds a few MiB.
const MOST_TRANSFERS: usize = 8;

/// All lvols in open stores.
pub(crate) struct Lvols {
    data: DataPath,
    stores: Arc<Stores>,
    /// By name: two lvols of a store must not get the same one. Taken before that of a UUID.
    names: KeyedLocks<String>,
    /// By UUID: the same one must not be made in two stores, nor taken back when an export of it begins.
    uuids: KeyedLocks<Uuid>,
    /// Those that are being exported.
    exported: Exported,
    /// By UUID: an import of an lvol waits for the end of another one, which may have been cut off just now.
    imports: KeyedLocks<Uuid>,
    transfers: Arc<Semaphore>,
}

type Lock = OwnedMutexGuard<()>;

/// An lvol that a request names, and where it is.
struct Found {
    home: usize,
    facts: LvolFacts,
}

impl Lvols {
    pub(crate) fn new(data: DataPath, stores: Arc<Stores>) -> Self {
        let transfers = Arc::new(Semaphore::new(MOST_TRANSFERS));
        let (names, uuids, imports) = Default::default();
        Self { data, stores, names, uuids, exported: Exported::default(), imports, transfers }
    }

    /// Makes an lvol, or returns the one that is there (I30).
    pub(crate) async fn create(&self, request: v1::CreateLvolRequest) -> Result<v1::Lvol, ControlError> {
        let wanted = Wanted::parse(&request)?;
        let store = self.store(&wanted.store).await?;
        let _lock = self.lock(&wanted.name, wanted.uuid).await;
        let (spec, existing) = self.plan(&store, &wanted).await?;
        if existing.is_some_and(|existing| existing.info.incomplete) {
            return Err(incomplete(&wanted.name));
        }
        let uuid = spec.uuid;
        self.data.change_lvol(store.home, store.uuid, LvolChange::Create(spec)).await?;
        self.look(store.home, store.uuid, uuid).await
    }

    /// Nobody else makes an lvol of this name or UUID as long as the locks are held.
    async fn lock(&self, name: &str, uuid: Option<Uuid>) -> (Lock, Option<Lock>) {
        let name = self.names.lock(name.to_owned()).await;
        match uuid {
            Some(uuid) => (name, Some(self.uuids.lock(uuid).await)),
            None => (name, None),
        }
    }

    /// What to make for a request, and what is there in its place: nothing, or an lvol that is as wanted.
    async fn plan(&self, store: &OpenStore, wanted: &Wanted) -> Result<(CreateLvol, Option<LvolFacts>), ControlError> {
        let existing = self.existing(store.uuid, &wanted.name, wanted.uuid).await?;
        if let Some(facts) = &existing {
            let kind = |snapshot| if snapshot { "snapshot" } else { "head" };
            self.same(facts, store.uuid, &wanted.name, wanted.uuid)
                .field("kind", kind(facts.info.kind == LvolKind::Snapshot), kind(false))
                .field("size_bytes", facts.info.size, wanted.size)
                .field("block_size_bytes", facts.info.block_size, wanted.block_size)
                .finish("lvol", &wanted.name)?;
        }
        let uuid = existing.as_ref().map(|facts| facts.info.uuid).or(wanted.uuid).unwrap_or_else(Uuid::new_v4);
        let spec = CreateLvol {
            uuid,
            name: wanted.name.clone(),
            size: wanted.size,
            block_size: wanted.block_size,
            attributes: BTreeMap::new(),
        };
        Ok((spec, existing))
    }

    /// The lvol that has this UUID, wherever it is, or this name in that store. Not one of a replica.
    async fn existing(&self, store: Uuid, name: &str, uuid: Option<Uuid>) -> Result<Option<LvolFacts>, ControlError> {
        let mut all = self.facts().await?;
        if let Some(uuid) = uuid {
            let with_uuid = |all: &[LvolFacts]| all.iter().find(|facts| facts.info.uuid == uuid).cloned();
            if with_uuid(&all).is_none() {
                // A store that nobody has read yet may have it.
                self.stores.none_opening().await?;
                all = self.facts().await?;
            }
            self.check_not_internal(uuid).await?;
            if let Some(facts) = with_uuid(&all) {
                check_free(&facts)?;
                return Ok(Some(facts));
            }
        }
        let named = |facts: &LvolFacts| facts.store == store && facts.info.name == name && facts.owner.is_none();
        Ok(all.into_iter().find(named))
    }

    /// What an lvol has otherwise than asked for in identity and place.
    fn same(&self, facts: &LvolFacts, store: Uuid, name: &str, uuid: Option<Uuid>) -> Comparison {
        Comparison::default()
            .field("store", self.stores.name(facts.store), self.stores.name(store))
            .field("name", facts.info.name.as_str(), name)
            .optional("uuid", facts.info.uuid, uuid)
    }

    /// All lvols in open stores, in order of store and name.
    pub(crate) async fn all(&self) -> Result<Vec<v1::Lvol>, ControlError> {
        Ok(self.in_order(&self.facts().await?))
    }

    /// Those of one store, in order of name.
    pub(super) async fn all_of(&self, store: &OpenStore) -> Result<Vec<v1::Lvol>, ControlError> {
        Ok(self.in_order(&self.data.lvols_of(store.home, store.uuid).await?))
    }

    fn in_order(&self, found: &[LvolFacts]) -> Vec<v1::Lvol> {
        let mut lvols: Vec<_> = found.iter().map(|facts| describe(facts, self.stores.name(facts.store))).collect();
        lvols.sort_by(|one, other| (&one.store, &one.name, &one.uuid).cmp(&(&other.store, &other.name, &other.uuid)));
        lvols
    }

    /// Those that are to be deleted, in open stores.
    pub(super) async fn deleting(&self) -> Result<Vec<v1::Lvol>, ControlError> {
        let mut found = Vec::new();
        for home in 0..self.data.reactors() {
            found.extend(self.data.deleting(home).await?);
        }
        Ok(found.iter().map(|facts| describe(facts, self.stores.name(facts.store))).collect())
    }

    /// One lvol in full.
    pub(crate) async fn get(&self, lvol: &str, with_usage: bool) -> Result<v1::Lvol, ControlError> {
        let Found { home, facts } = self.find(lvol).await?;
        let found = self.data.lvol(home, facts.store, facts.info.uuid, with_usage).await?;
        let found = found.ok_or_else(|| ControlError::not_found("lvol", lvol))?;
        Ok(describe(&found, self.stores.name(found.store)))
    }

    /// Deletes an lvol; what is left of it is returned. An absent one is a success, but only when every store has been
    /// looked into (I42).
    pub(crate) async fn delete(&self, request: v1::DeleteLvolRequest) -> Result<Option<v1::Lvol>, ControlError> {
        let expected = request::optional_uuid("expected_uuid", &request.expected_uuid)?;
        let Some(Found { home, facts }) = self.search(&request.lvol).await? else {
            return self.stores.all_open().await.map(|()| None);
        };
        let uuid = facts.info.uuid;
        if expected.is_some_and(|expected| expected != uuid) {
            return Err(ControlError::other_uuid("lvol", &request.lvol, uuid));
        }
        check_free(&facts)?;
        self.data.change_lvol(home, facts.store, LvolChange::Delete(uuid)).await?;
        let left = self.data.lvol(home, facts.store, uuid, false).await?;
        Ok(left.map(|left| describe(&left, self.stores.name(left.store))))
    }

    /// Takes the deletion of a snapshot back.
    pub(crate) async fn cancel_delete(&self, request: v1::CancelDeleteLvolRequest) -> Result<v1::Lvol, ControlError> {
        let found = self.find_free(&request.lvol).await?;
        self.change(&found, LvolChange::CancelDelete(found.facts.info.uuid)).await
    }

    /// Takes a snapshot of a head, or returns the one that is there (I30).
    pub(crate) async fn snapshot(&self, request: v1::SnapshotLvolRequest) -> Result<v1::Lvol, ControlError> {
        let (name, wanted) = (request::name("name", &request.name)?, request::optional_uuid("uuid", &request.uuid)?);
        let Found { home, facts } = self.find_free(&request.lvol).await?;
        let _lock = self.lock(&name, wanted).await;
        if let Some(existing) = self.existing(facts.store, &name, wanted).await? {
            self.same(&existing, facts.store, &name, wanted).finish("lvol", &name)?;
            if wanted.is_none() {
                return Err(name_taken(&name, &existing));
            }
        }
        let uuid = wanted.unwrap_or_else(Uuid::new_v4);
        let spec = SnapshotSpec { uuid, name, attributes: BTreeMap::new() };
        let change = LvolChange::Snapshot { head: facts.info.uuid, spec };
        self.data.change_lvol(home, facts.store, change).await?;
        self.look(home, facts.store, uuid).await
    }

    /// Makes a head that begins as a snapshot, or returns the one that is there (I30).
    pub(crate) async fn clone_snapshot(&self, request: v1::CloneLvolRequest) -> Result<v1::Lvol, ControlError> {
        let name = request::name("name", &request.name)?;
        let uuid = request::optional_uuid("uuid", &request.uuid)?;
        let Found { home, facts } = self.find_free(&request.snapshot).await?;
        let size = if request.size_bytes == 0 { facts.info.size } else { request.size_bytes };
        let store = OpenStore { uuid: facts.store, home };
        let wanted = Wanted { name, store: String::new(), size, block_size: facts.info.block_size, uuid };
        let _lock = self.lock(&wanted.name, wanted.uuid).await;
        let (spec, _) = self.plan(&store, &wanted).await?;
        let uuid = spec.uuid;
        let change = LvolChange::Clone { snapshot: facts.info.uuid, spec };
        self.data.change_lvol(home, facts.store, change).await?;
        self.look(home, facts.store, uuid).await
    }

    /// Makes a head read as one of its snapshots did.
    pub(crate) async fn revert(&self, request: v1::RevertLvolRequest) -> Result<v1::Lvol, ControlError> {
        let head = self.find_free(&request.lvol).await?;
        let _lock = self.uuids.lock(head.facts.info.uuid).await;
        if self.exported.contains(head.facts.info.uuid) {
            let text = format!("lvol `{}` is being exported: what was sent would be of no single moment", request.lvol);
            return Err(ControlError::precondition("IN_USE", text));
        }
        let snapshot = self.find(&request.snapshot).await?.facts.info.uuid;
        self.change(&head, LvolChange::Revert { head: head.facts.info.uuid, snapshot }).await
    }

    /// Makes a head larger.
    pub(crate) async fn grow(&self, request: v1::GrowLvolRequest) -> Result<v1::Lvol, ControlError> {
        let found = self.find_free(&request.lvol).await?;
        self.change(&found, LvolChange::Grow { id: found.facts.info.uuid, size: request.size_bytes }).await
    }

    /// Gives an lvol another name.
    pub(crate) async fn rename(&self, request: v1::RenameLvolRequest) -> Result<v1::Lvol, ControlError> {
        let name = request::name("name", &request.name)?;
        let found = self.find_free(&request.lvol).await?;
        let id = found.facts.info.uuid;
        let _lock = self.lock(&name, None).await;
        match self.existing(found.facts.store, &name, None).await? {
            Some(existing) if existing.info.uuid != id => Err(name_taken(&name, &existing)),
            _ => self.change(&found, LvolChange::Rename { id, name }).await,
        }
    }

    async fn change(&self, found: &Found, change: LvolChange) -> Result<v1::Lvol, ControlError> {
        let (home, store) = (found.home, found.facts.store);
        self.data.change_lvol(home, store, change).await?;
        self.look(home, store, found.facts.info.uuid).await
    }

    async fn look(&self, home: usize, store: Uuid, uuid: Uuid) -> Result<v1::Lvol, ControlError> {
        let found = self.data.lvol(home, store, uuid, false).await?;
        let found = found.ok_or_else(|| ControlError::not_found("lvol", uuid))?;
        Ok(describe(&found, self.stores.name(found.store)))
    }

    async fn store(&self, store: &str) -> Result<OpenStore, ControlError> {
        self.stores.open_store_soon(store).await
    }

    /// An lvol that can be changed here.
    async fn find_free(&self, lvol: &str) -> Result<Found, ControlError> {
        let found = self.find(lvol).await?;
        check_free(&found.facts)?;
        Ok(found)
    }

    async fn find(&self, lvol: &str) -> Result<Found, ControlError> {
        self.search(lvol).await?.ok_or_else(|| ControlError::not_found("lvol", lvol))
    }

    /// The lvol that a request names, by UUID or by a name that only one has.
    async fn search(&self, lvol: &str) -> Result<Option<Found>, ControlError> {
        if lvol.is_empty() {
            return Err(ControlError::invalid("lvol", "a UUID or a name is needed"));
        }
        let uuid = Uuid::try_parse(lvol).ok();
        let mut found = match uuid {
            // A UUID is that of one lvol: for stores that are not read yet there is no need to wait.
            Some(uuid) => self.matching(|facts| facts.info.uuid == uuid).await?,
            None => Vec::new(),
        };
        if found.is_empty() {
            self.stores.none_opening().await?;
            found = self.matching(|facts| uuid.map_or(facts.info.name == lvol, |uuid| facts.info.uuid == uuid)).await?;
        }
        if found.len() > 1 {
            return Err(ambiguous(lvol, &found));
        }
        let Some(facts) = found.pop() else {
            if let Some(uuid) = uuid {
                self.check_not_internal(uuid).await?;
            }
            return Ok(None);
        };
        Ok(self.stores.home(facts.store).map(|home| Found { home, facts }))
    }

    async fn matching(&self, wanted: impl Fn(&LvolFacts) -> bool) -> Result<Vec<LvolFacts>, ControlError> {
        let mut found = self.facts().await?;
        found.retain(wanted);
        Ok(found)
    }

    async fn facts(&self) -> Result<Vec<LvolFacts>, ControlError> {
        let mut found = Vec::new();
        for home in 0..self.data.reactors() {
            found.extend(self.data.lvols(home).await?);
        }
        Ok(found)
    }

    /// An error for what a store keeps for itself.
    async fn check_not_internal(&self, uuid: Uuid) -> Result<(), ControlError> {
        for home in 0..self.data.reactors() {
            if let Some(owner) = self.data.owner_of_internal(home, uuid).await? {
                let text = format!("lvol {uuid} is kept by the store itself for lvol {owner}, and goes with it");
                return Err(ControlError::precondition("INTERNAL_LVOL", text).with("lvol", owner));
            }
        }
        Ok(())
    }
}

/// An error for what belongs to a replica, which its engine changes.
fn check_free(facts: &LvolFacts) -> Result<(), ControlError> {
    let Some(owner) = facts.owner else { return Ok(()) };
    let shown = |uuid: Option<Uuid>| uuid.map_or_else(|| "unknown".to_owned(), |uuid| uuid.to_string());
    let (replica, volume) = (shown(owner.replica), shown(owner.volume));
    let text = format!(
        "lvol `{}` ({}) belongs to replica {replica} of volume {volume}: change the volume",
        facts.info.name, facts.info.uuid
    );
    Err(ControlError::precondition("REPLICA_LVOL", text).with("replica_uuid", replica).with("volume_uuid", volume))
}

fn incomplete(name: &str) -> ControlError {
    let text = format!("lvol `{name}` is there, but its import did not end: import it again, or delete it first");
    ControlError::precondition("INCOMPLETE", text)
}

fn name_taken(name: &str, existing: &LvolFacts) -> ControlError {
    let text = format!("the store has an lvol `{name}` already: {}", existing.info.uuid);
    ControlError::precondition("CONFLICT", text).with("uuid", existing.info.uuid)
}

fn ambiguous(name: &str, found: &[LvolFacts]) -> ControlError {
    let uuids: Vec<_> = found.iter().map(|facts| facts.info.uuid.to_string()).collect();
    let text = format!("{} lvols are called `{name}`: name one by its UUID, {}", found.len(), uuids.join(" or "));
    ControlError::precondition("AMBIGUOUS", text).with("uuids", uuids.join(" "))
}

/// A checked request.
struct Wanted {
    name: String,
    /// Name or UUID.
    store: String,
    size: u64,
    block_size: u32,
    uuid: Option<Uuid>,
}

impl Wanted {
    fn parse(request: &v1::CreateLvolRequest) -> Result<Self, ControlError> {
        let (size, block_size) = request::geometry(request.size_bytes, request.block_size_bytes)?;
        Ok(Self {
            name: request::name("name", &request.name)?,
            store: request.store.clone(),
            size,
            block_size,
            uuid: request::optional_uuid("uuid", &request.uuid)?,
        })
    }
}
