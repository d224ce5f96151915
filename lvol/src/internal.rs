//! Internal lvols: those that belong to another one and end with it, in the same batch of the journal (I26).
//!
//! On disk they are lvols like others: thin, recovered, damaged and checked like any. But users do not see them, cannot cut or
//! clone them, and their space is told apart.

use std::rc::Rc;

use uuid::Uuid;

use crate::catalog::{Catalog, Node};
use crate::core::Core;
use crate::error::StoreError;
use crate::format::record::{Damage, Internal, LvolRecord, Record};
use crate::info::{InternalInfo, LvolState, Role};
use crate::lvol::Lvol;
use crate::operations::{check_size, difference, to_the_end};
use crate::store::{Store, milliseconds_now};
use crate::volume::Volume;

impl Store {
    /// Makes the lvol that `owner` has for a role, thin. The same request again finds the same one (I30).
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when there is one of another size or block size; [`StoreError::NotFound`] and
    /// [`StoreError::Deleting`] when the owner is not there or is to go.
    pub async fn create_internal(
        &self,
        owner: Uuid,
        role: Role,
        size: u64,
        block_size: u32,
    ) -> Result<InternalInfo, StoreError> {
        let store = self.clone();
        to_the_end(async move { store.core.make_internal(&store, owner, role, size, block_size).await }).await
    }

    /// Opens the lvol that `owner` has for a role. Its owner can be deleted meanwhile: then it answers
    /// [`block_device::ErrorKind::Unavailable`].
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when there is none, [`StoreError::LvolDamaged`] when it is damaged.
    pub async fn open_internal(&self, owner: Uuid, role: Role) -> Result<Rc<Lvol>, StoreError> {
        if self.core.is_closed() {
            return Err(StoreError::Closed);
        }
        let found = self.core.catalog.borrow().internal(owner, role).map(|node| node.record.uuid);
        self.core.open_lvol(found.ok_or(StoreError::NotFound { uuid: owner })?).await.map(Rc::new)
    }

    /// Deletes the lvol that an owner has for a role, and frees its space. One that is not there is deleted already.
    pub async fn delete_internal(&self, owner: Uuid, role: Role) -> Result<(), StoreError> {
        let core = Rc::clone(&self.core);
        to_the_end(async move {
            let _one = core.control.lock().await;
            core.check_running()?;
            let found = core.catalog.borrow().internal(owner, role).map(|node| node.record.uuid);
            match found {
                Some(uuid) => core.drop_lvol(uuid).await,
                None => Ok(()),
            }
        })
        .await
    }

    /// The internal lvols of one owner.
    pub fn internal_lvols(&self, owner: Uuid) -> Vec<InternalInfo> {
        let catalog = self.core.catalog.borrow();
        catalog.internal_of(owner).filter_map(|node| internal_info(&catalog, node)).collect()
    }

    /// The internal lvol with this UUID.
    pub fn internal_info(&self, id: Uuid) -> Option<InternalInfo> {
        let catalog = self.core.catalog.borrow();
        internal_info(&catalog, catalog.lvols.get(&id)?)
    }

    /// An error if the UUID is that of an internal lvol.
    pub(crate) fn check_not_internal(&self, uuid: Uuid) -> Result<(), StoreError> {
        let catalog = self.core.catalog.borrow();
        match catalog.lvols.get(&uuid).and_then(|node| node.record.internal) {
            Some(_) => Err(StoreError::Conflict { uuid, differences: vec!["it is an internal lvol".to_owned()] }),
            None => Ok(()),
        }
    }
}

impl Core {
    async fn make_internal(
        self: &Rc<Self>,
        store: &Store,
        owner: Uuid,
        role: Role,
        size: u64,
        block_size: u32,
    ) -> Result<InternalInfo, StoreError> {
        check_size(size, block_size, self.layout().cluster_size)?;
        let _one = self.control.lock().await;
        match self.catalog.borrow().users_lvol(owner) {
            None => return Err(StoreError::NotFound { uuid: owner }),
            Some(node) if node.record.deletion.is_some() => return Err(StoreError::Deleting { uuid: owner }),
            Some(_) => {}
        }
        if let Some(found) = self.found_internal(owner, role) {
            return same_or_conflict(found, size, block_size);
        }
        let record = LvolRecord {
            uuid: Uuid::from_bytes(reactor::random_bytes()),
            parent: None,
            internal: Some(Internal { owner, role }),
            size,
            block_size,
            snapshot: false,
            damage: Damage::default(),
            deletion: None,
            created_at: milliseconds_now(),
            map: store.new_map()?,
            name: role.name().to_owned(),
            attributes: Default::default(),
        };
        self.put(record).await?;
        self.flush().await?;
        self.found_internal(owner, role).ok_or(StoreError::NotFound { uuid: owner })
    }

    /// Removes internal lvols whose owner is gone: nobody would ever do it. No crash leaves one (I26), but a repair, or an error of
    /// an older version may. Where something is damaged the owner may be among what is lost, and they stay.
    pub(crate) async fn drop_unowned(self: &Rc<Self>) {
        let _one = self.control.lock().await;
        let unowned = self.catalog.borrow().unowned();
        for (lvol, owner) in unowned {
            if self.damaged.get() {
                tracing::warn!(%lvol, %owner, "the owner of an internal lvol is not there; it stays as long as the store is damaged");
                continue;
            }
            match self.drop_lvol(lvol).await {
                Ok(()) => tracing::warn!(%lvol, %owner, "an internal lvol whose owner is gone was removed"),
                Err(error) => {
                    tracing::error!(%lvol, %owner, %error, "an internal lvol whose owner is gone was not removed")
                }
            }
        }
    }

    fn found_internal(&self, owner: Uuid, role: Role) -> Option<InternalInfo> {
        let catalog = self.catalog.borrow();
        catalog.internal(owner, role).and_then(|node| internal_info(&catalog, node))
    }

    /// Commits records that remove an lvol, and with them the end of all that belongs to it: no crash leaves one without the
    /// other (I26).
    pub(crate) async fn commit_removal(
        self: &Rc<Self>,
        owner: Uuid,
        mut records: Vec<Record>,
    ) -> Result<(), StoreError> {
        let maps: Vec<u32> = self.catalog.borrow().internal_of(owner).map(|node| node.record.map).collect();
        let mut held = Vec::new();
        for map in maps {
            // Its clusters are known only from its map.
            held.push(self.hold_to_drop(map).await?);
        }
        let mut volumes: Vec<Rc<Volume>> = Vec::new();
        for node in self.catalog.borrow().internal_of(owner) {
            records.extend([Record::LvolRemove { uuid: node.record.uuid }, Record::MapDrop { map: node.record.map }]);
            volumes.extend(node.volume.clone());
        }
        for volume in &volumes {
            // No write may land in a cluster that is another lvol's by then.
            volume.hold().await;
        }
        let result = self.commit(records).await;
        if result.is_err() {
            volumes.into_iter().for_each(|volume| self.release(volume));
        }
        result
    }
}

impl Catalog {
    /// The internal lvols of an owner.
    pub(crate) fn internal_of(&self, owner: Uuid) -> impl Iterator<Item = &Node> {
        self.family.internal(owner).filter_map(|uuid| self.lvols.get(&uuid))
    }

    /// Internal lvols whose owner is not there, and that owner.
    fn unowned(&self) -> Vec<(Uuid, Uuid)> {
        let internal = self.lvols.values().filter_map(|node| Some((node.record.uuid, node.record.internal?.owner)));
        internal.filter(|(_, owner)| self.users_lvol(*owner).is_none()).collect()
    }

    /// The internal lvol that an owner has for a role.
    pub(crate) fn internal(&self, owner: Uuid, role: Role) -> Option<&Node> {
        self.internal_of(owner).find(|node| node.record.internal.is_some_and(|internal| internal.role == role))
    }
}

fn internal_info(catalog: &Catalog, node: &Node) -> Option<InternalInfo> {
    let Internal { owner, role } = node.record.internal?;
    let uuid = node.record.uuid;
    Some(InternalInfo {
        uuid,
        owner,
        role,
        size: node.record.size,
        block_size: node.record.block_size,
        used_bytes: catalog.used_bytes(node),
        state: match catalog.damage(uuid) {
            None => LvolState::Ready,
            Some(reason) => LvolState::Damaged { reason },
        },
    })
}

fn same_or_conflict(found: InternalInfo, size: u64, block_size: u32) -> Result<InternalInfo, StoreError> {
    if let LvolState::Damaged { reason } = found.state {
        return Err(StoreError::LvolDamaged { uuid: found.uuid, reason });
    }
    let differences =
        [difference("size", &found.size, &size), difference("block size", &found.block_size, &block_size)];
    let differences: Vec<String> = differences.into_iter().flatten().collect();
    match differences.is_empty() {
        true => Ok(found),
        false => Err(StoreError::Conflict { uuid: found.uuid, differences }),
    }
}
