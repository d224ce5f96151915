//! What can be done with lvols: each operation is one batch of the journal, so it happens as a whole or not at all (I26).
//!
//! Operations run one after the other, in tasks of their own: whoever asked for one may stop waiting, but it goes on to
//! its end. Otherwise one that is dropped half way would hold the writes of its lvol for good.

use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;

use block_device::{BlockDevice, Geometry, Range};
use reactor::spawn;
use uuid::Uuid;

use crate::catalog::MAX_CHAIN;
use crate::error::StoreError;
use crate::extents::own_extents;
use crate::format::BLOCK;
use crate::format::record::{Damage, LvolRecord, MAX_ATTRIBUTE_BYTES, MAX_ATTRIBUTES, Record};
use crate::info::{CreateLvol, LvolInfo, LvolKind, LvolState, SnapshotSpec};
use crate::lvol::Lvol;
use crate::store::{Store, check_name, milliseconds_now};

impl Store {
    /// Makes an lvol, thin: it takes no space until it is written. The same request again finds the same lvol (I30).
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when the UUID is taken by an lvol of another name, size or block size;
    /// [`StoreError::Overcommitted`] beyond the store's limit.
    pub async fn create(&self, spec: &CreateLvol) -> Result<LvolInfo, StoreError> {
        let (store, spec) = (self.clone(), spec.clone());
        to_the_end(async move { store.create_under(None, None, &spec).await }).await
    }

    /// The same for an lvol that is made to take the place of another, which is deleted next: both together do not count as
    /// more than the larger one.
    pub async fn create_in_place_of(&self, old: Uuid, spec: &CreateLvol) -> Result<LvolInfo, StoreError> {
        let (store, spec) = (self.clone(), spec.clone());
        to_the_end(async move { store.create_under(None, Some(old), &spec).await }).await
    }

    /// Makes a head that reads through a snapshot: it begins with the snapshot's content, and takes no space until it is
    /// written. Its size is the snapshot's or larger. A snapshot can have any number of clones.
    ///
    /// # Errors
    /// As for [`Store::create`]; also when `snapshot` is a head.
    pub async fn clone_snapshot(&self, snapshot: Uuid, spec: &CreateLvol) -> Result<LvolInfo, StoreError> {
        let (store, spec) = (self.clone(), spec.clone());
        to_the_end(async move { store.create_under(Some(snapshot), None, &spec).await }).await
    }

    /// Takes a snapshot of a head: the snapshot gets all blocks that the head had, the head keeps its UUID and reads through it.
    ///
    /// Writes that were answered before the call are in the snapshot, writes submitted after it returns are not (I24).
    /// Writes of this head wait for those in flight and for one write of the journal; the time does not depend on
    /// the size of anything. Durable when it returns, with its content.
    pub async fn snapshot(&self, head: Uuid, spec: &SnapshotSpec) -> Result<LvolInfo, StoreError> {
        let (store, spec) = (self.clone(), spec.clone());
        to_the_end(async move { store.take_snapshot(head, None, &spec).await }).await
    }

    /// The same, with a size of the snapshot's own: as if the head had been of that size when it was cut, and grown since.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] when the head is smaller, or has blocks beyond that size.
    pub async fn snapshot_of_size(&self, head: Uuid, size: u64, spec: &SnapshotSpec) -> Result<LvolInfo, StoreError> {
        let (store, spec) = (self.clone(), spec.clone());
        to_the_end(async move { store.take_snapshot(head, Some(size), &spec).await }).await
    }

    /// Makes a head read as one of the snapshots that it reads through did: what was written since is dropped. The
    /// snapshots in between stay.
    ///
    /// Done again it drops what was written since the first time as well: it is for whoever knows that nothing was.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] when the head does not read through that snapshot.
    pub async fn revert(&self, head: Uuid, snapshot: Uuid) -> Result<LvolInfo, StoreError> {
        let store = self.clone();
        to_the_end(async move { store.revert_to(head, snapshot).await }).await
    }

    /// Makes a head larger; durable when it returns (I39). What is new reads as zeroes. A size that it has already is
    /// fine (I30). Writes wait as they do for [`Store::snapshot`].
    ///
    /// # Errors
    /// [`StoreError::Invalid`] for a smaller size: nothing is ever cut off.
    pub async fn grow(&self, id: Uuid, size: u64) -> Result<LvolInfo, StoreError> {
        let store = self.clone();
        to_the_end(async move { store.grow_to(id, size).await }).await
    }

    /// Gives an lvol another label.
    pub async fn rename(&self, id: Uuid, name: &str) -> Result<LvolInfo, StoreError> {
        check_name(name)?;
        let (store, name) = (self.clone(), name.to_owned());
        to_the_end(async move {
            store
                .change_record(id, |record| {
                    record.name = name;
                    Ok(())
                })
                .await
        })
        .await
    }

    /// Sets attributes (or removes those given as `None`), all at once; durable when it returns.
    pub async fn set_attributes(&self, id: Uuid, changes: &[(String, Option<Vec<u8>>)]) -> Result<(), StoreError> {
        let (store, changes) = (self.clone(), changes.to_vec());
        let change = move |record: &mut LvolRecord| {
            for (key, value) in changes {
                match value {
                    Some(value) => record.attributes.insert(key, value),
                    None => record.attributes.remove(&key),
                };
            }
            check_attributes(&record.attributes)
        };
        to_the_end(async move { store.change_record(id, change).await.map(drop) }).await
    }

    async fn create_under(
        &self,
        parent: Option<Uuid>,
        replaced: Option<Uuid>,
        spec: &CreateLvol,
    ) -> Result<LvolInfo, StoreError> {
        check_spec(&spec.name, &spec.attributes, spec.uuid)?;
        check_size(spec.size, spec.block_size, self.core.layout().cluster_size)?;
        let _one = self.core.control_turn().await?;
        self.check_not_internal(spec.uuid)?;
        if let Some(found) = self.lvol_info(spec.uuid) {
            let of_parent = parent.is_none_or(|parent| self.descends(spec.uuid, parent));
            let differences = [
                (found.kind == LvolKind::Snapshot).then(|| "it is a snapshot".to_owned()),
                (!of_parent).then(|| "it does not read through that snapshot".to_owned()),
                difference("name", &found.name, &spec.name),
                difference("size", &found.size, &spec.size),
                difference("block size", &found.block_size, &spec.block_size),
            ];
            return same_or_conflict(found, differences);
        }
        if let Some(parent) = parent {
            self.check_parent(parent, spec).await?;
        }
        let replaced = replaced.and_then(|old| self.lvol_info(old)).map_or(0, |old| old.size);
        self.core.check_overcommit(spec.size.saturating_sub(replaced))?;
        let record = LvolRecord {
            uuid: spec.uuid,
            parent,
            internal: None,
            size: spec.size,
            block_size: spec.block_size,
            snapshot: false,
            damage: Damage::default(),
            deletion: None,
            created_at: milliseconds_now(),
            map: self.new_map()?,
            name: spec.name.clone(),
            attributes: spec.attributes.clone(),
        };
        self.core.commit(vec![Record::LvolPut(Box::new(record))]).await?;
        self.core.flush().await?;
        self.expect_info(spec.uuid)
    }

    async fn check_parent(&self, parent: Uuid, spec: &CreateLvol) -> Result<(), StoreError> {
        let found = self.open_lvol(parent).await?;
        let geometry = found.geometry();
        if !geometry.read_only {
            return Err(StoreError::invalid(format!("{parent} is no snapshot")));
        }
        if spec.size < geometry.size() || spec.block_size != geometry.block_size {
            return Err(StoreError::invalid(format!(
                "a clone has the block size of its snapshot, {}, and at least its size, {}",
                geometry.block_size,
                geometry.size()
            )));
        }
        check_depth(&found, parent)
    }

    async fn take_snapshot(&self, head: Uuid, size: Option<u64>, spec: &SnapshotSpec) -> Result<LvolInfo, StoreError> {
        check_spec(&spec.name, &spec.attributes, spec.uuid)?;
        let _one = self.core.control_turn().await?;
        self.check_not_internal(spec.uuid)?;
        if let Some(found) = self.lvol_info(spec.uuid) {
            let differences = [
                (found.kind == LvolKind::Head).then(|| "it is a head".to_owned()),
                difference("name", &found.name, &spec.name),
                found.deletion.is_some().then(|| "it is being deleted".to_owned()),
                (!self.descends(head, spec.uuid)).then(|| format!("it is no snapshot of {head}")),
            ];
            return same_or_conflict(found, differences);
        }
        let lvol = self.open_head(head).await?;
        check_depth(&lvol, head)?;
        // Most of what has to become durable does so before writes are held.
        self.core.flush().await?;
        let old = self.record(head)?;
        let size = size.unwrap_or(old.size);
        self.check_cut(&lvol, &old, size)?;
        let snapshot = LvolRecord {
            uuid: spec.uuid,
            snapshot: true,
            size,
            created_at: milliseconds_now(),
            name: spec.name.clone(),
            attributes: spec.attributes.clone(),
            ..old.clone()
        };
        let new = LvolRecord { parent: Some(spec.uuid), map: self.new_map()?, ..old };
        let cut = vec![Record::LvolPut(Box::new(snapshot)), Record::LvolPut(Box::new(new))];
        self.commit_between_writes(&lvol, cut).await?;
        self.core.flush().await?;
        self.core.start_hashing();
        self.expect_info(spec.uuid)
    }

    /// A snapshot of this size has all that the head has.
    fn check_cut(&self, lvol: &Lvol, head: &LvolRecord, size: u64) -> Result<(), StoreError> {
        if size == head.size {
            return Ok(());
        }
        check_size(size, head.block_size, self.core.layout().cluster_size)?;
        if size > head.size {
            return Err(StoreError::invalid(format!("{} has {} bytes, less than {size}", head.uuid, head.size)));
        }
        let beyond = Range { offset: size.next_multiple_of(BLOCK), length: head.size - size };
        match own_extents(&[lvol.volume().map()], head.size, beyond, 1).is_empty() {
            true => Ok(()),
            false => Err(StoreError::invalid(format!("{} has blocks beyond {size} bytes", head.uuid))),
        }
    }

    async fn revert_to(&self, head: Uuid, snapshot: Uuid) -> Result<LvolInfo, StoreError> {
        let _one = self.core.control_turn().await?;
        if !self.descends(head, snapshot) {
            return Err(StoreError::invalid(format!("{head} does not read through {snapshot}")));
        }
        // What is to be deleted may have given some of its blocks away already.
        drop(self.open_lvol(snapshot).await?);
        let lvol = self.open_head(head).await?;
        let old = self.record(head)?;
        // In memory, since the head is open.
        let dropped = old.map;
        let new = LvolRecord { parent: Some(snapshot), map: self.new_map()?, ..old };
        let records = vec![Record::LvolPut(Box::new(new)), Record::MapDrop { map: dropped }];
        self.commit_between_writes(&lvol, records).await?;
        self.core.flush().await?;
        // The snapshots that it read through before have a child less.
        self.core.start_merges();
        self.expect_info(head)
    }

    async fn grow_to(&self, id: Uuid, size: u64) -> Result<LvolInfo, StoreError> {
        let _one = self.core.control_turn().await?;
        let lvol = self.open_head(id).await?;
        let old = self.record(id)?;
        check_size(size, old.block_size, self.core.layout().cluster_size)?;
        if size < old.size {
            return Err(StoreError::invalid(format!("{id} has {} bytes and cannot have {size}", old.size)));
        }
        self.core.check_overcommit(size - old.size)?;
        // What erases the end of an lvol erases the rest of the last cluster too: nothing may be there yet.
        let record = LvolRecord { size, ..old };
        self.commit_between_writes(&lvol, vec![Record::LvolPut(Box::new(record))]).await?;
        self.core.flush().await?;
        self.expect_info(id)
    }

    /// Changes an lvol's record, durably.
    async fn change_record(
        &self,
        id: Uuid,
        change: impl FnOnce(&mut LvolRecord) -> Result<(), StoreError>,
    ) -> Result<LvolInfo, StoreError> {
        let info = {
            let _one = self.core.control_turn().await?;
            let mut record = self.record(id)?;
            change(&mut record)?;
            self.core.commit(vec![Record::LvolPut(Box::new(record))]).await?;
            self.expect_info(id)?
        };
        // Others take their turn meanwhile: at a start a thousand lvols change at once, and share a few syncs of the disk.
        self.core.flush().await?;
        Ok(info)
    }

    /// Commits while no write of the lvol is under way.
    async fn commit_between_writes(&self, lvol: &Lvol, records: Vec<Record>) -> Result<(), StoreError> {
        lvol.volume().hold().await;
        let result = self.core.commit(records).await;
        self.core.release(Rc::clone(lvol.volume()));
        result
    }

    async fn open_head(&self, id: Uuid) -> Result<Rc<Lvol>, StoreError> {
        let lvol = self.open_lvol(id).await?;
        match lvol.geometry().read_only {
            true => Err(StoreError::invalid(format!("{id} is a snapshot"))),
            false => Ok(lvol),
        }
    }

    /// The record of an lvol that is not damaged.
    fn record(&self, id: Uuid) -> Result<LvolRecord, StoreError> {
        let catalog = self.core.catalog.borrow();
        if let Some(reason) = catalog.damage(id) {
            return Err(StoreError::LvolDamaged { uuid: id, reason });
        }
        Ok(catalog.users_lvol(id).ok_or(StoreError::NotFound { uuid: id })?.record.clone())
    }

    /// A map id that was never used, if there is room for one more lvol.
    pub(crate) fn new_map(&self) -> Result<u32, StoreError> {
        let catalog = self.core.catalog.borrow();
        if !catalog.has_metadata_room(0) || catalog.next_map == u32::MAX {
            return Err(StoreError::NoSpace { detail: "there is no room for the metadata of another lvol" });
        }
        Ok(catalog.next_map)
    }

    /// Whether an lvol reads through `ancestor`.
    fn descends(&self, id: Uuid, ancestor: Uuid) -> bool {
        self.core.catalog.borrow().descends(id, ancestor)
    }

    fn expect_info(&self, id: Uuid) -> Result<LvolInfo, StoreError> {
        self.lvol_info(id).ok_or(StoreError::NotFound { uuid: id })
    }
}

/// Runs an operation in a task of its own: it goes on also when nobody waits for it any more.
pub(crate) async fn to_the_end<T: 'static>(
    operation: impl Future<Output = Result<T, StoreError>> + 'static,
) -> Result<T, StoreError> {
    spawn(operation).await.unwrap_or(Err(StoreError::Closed))
}

pub(crate) fn difference<T: PartialEq + std::fmt::Display>(what: &str, is: &T, asked: &T) -> Option<String> {
    (is != asked).then(|| format!("{what} is {is}, not {asked}"))
}

fn same_or_conflict<const N: usize>(found: LvolInfo, differences: [Option<String>; N]) -> Result<LvolInfo, StoreError> {
    if let LvolState::Damaged { reason } = found.state {
        return Err(StoreError::LvolDamaged { uuid: found.uuid, reason });
    }
    let differences: Vec<String> = differences.into_iter().flatten().collect();
    match differences.is_empty() {
        true => Ok(found),
        false => Err(StoreError::Conflict { uuid: found.uuid, differences }),
    }
}

fn check_spec(name: &str, attributes: &BTreeMap<String, Vec<u8>>, uuid: Uuid) -> Result<(), StoreError> {
    if uuid.is_nil() {
        return Err(StoreError::invalid("the nil UUID names nothing"));
    }
    check_name(name)?;
    check_attributes(attributes)
}

pub(crate) fn check_size(size: u64, block_size: u32, cluster_size: u32) -> Result<(), StoreError> {
    Geometry::new(size, block_size).map_err(|error| StoreError::invalid(error.to_string()))?;
    match size.div_ceil(u64::from(cluster_size)) > u64::from(u32::MAX) {
        true => Err(StoreError::invalid("the size is beyond what one lvol can have with this cluster size")),
        false => Ok(()),
    }
}

fn check_depth(lvol: &Lvol, id: Uuid) -> Result<(), StoreError> {
    match lvol.volume().with_chain(<[_]>::len) >= MAX_CHAIN {
        true => Err(StoreError::invalid(format!("the chain of {id} is at its longest, {MAX_CHAIN}"))),
        false => Ok(()),
    }
}

fn check_attributes(attributes: &BTreeMap<String, Vec<u8>>) -> Result<(), StoreError> {
    let bytes: usize = attributes.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > MAX_ATTRIBUTE_BYTES || attributes.len() > MAX_ATTRIBUTES {
        return Err(StoreError::invalid(format!(
            "at most {MAX_ATTRIBUTES} attributes of {MAX_ATTRIBUTE_BYTES} bytes together, not {} of {bytes}",
            attributes.len()
        )));
    }
    Ok(())
}
