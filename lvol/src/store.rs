//! A store, as whoever manages it sees it.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use block_device::{BlockDevice, Geometry};
use reactor::{Buffer, Disk};
use uuid::Uuid;

use crate::catalog::{Catalog, MAX_CHAIN};
use crate::core::{Core, write_superblocks};
use crate::error::StoreError;
use crate::format::BLOCK;
use crate::format::layout::{CLUSTER_SIZES, Layout, MIN_SIZE};
use crate::format::record::{Damage, LvolRecord, MAX_ATTRIBUTE_BYTES, MAX_ATTRIBUTES, Record};
use crate::format::superblock::{CheckpointPointer, Features, MAX_NAME, PLACES, Superblock};
use crate::info::{CreateLvol, Extent, FormatOptions, LvolInfo, LvolKind, LvolState, SnapshotSpec, StoreInfo};
use crate::lvol::Lvol;
use crate::recovery;
use crate::volume::Volume;

/// An open logical-volume store on a disk. Clones share it.
///
/// Control operations are done one after the other. Each that changes something is durable when it returns; one whose
/// future is dropped has happened or not, and doing it again is safe (I30).
///
/// Dropping the last clone without [`Store::close`] is like a kill of the process: nothing that was acknowledged is
/// lost, and the next open replays the journal.
#[derive(Clone)]
pub struct Store {
    core: Rc<Core>,
}

impl Store {
    /// Writes an empty store to a disk. A store of the same identity and parameters that is there already is left as it
    /// is, with all its lvols.
    ///
    /// # Errors
    /// [`StoreError::Occupied`] when another store is there, unless `force` is set; nothing is changed then.
    pub async fn format(disk: &Disk, options: &FormatOptions) -> Result<(), StoreError> {
        check_name(&options.name)?;
        let layout = plan(disk, options.cluster_size)?;
        if !options.force
            && let Some(found) = found_store(disk).await?
        {
            return already_formatted(&found, &layout, options);
        }
        let superblock = Superblock {
            generation: 1,
            format_id: reactor::random_bytes(),
            uuid: options.uuid,
            name: options.name.clone(),
            features: Features::default(),
            layout,
            created_at: milliseconds_now(),
            session: 0,
            boot_id: [0; 16],
            clean: true,
            damaged: false,
            // No checkpoint yet: nothing to read. The first batch is number 1.
            checkpoint: CheckpointPointer { area: 1, start_batch: 1, ..CheckpointPointer::default() },
            lvols: 0,
            next_map: 1,
        };
        // The old superblocks go first: a crash in between must not leave the second of a former store as the only one.
        for place in PLACES {
            let zeroes = Buffer::zeroed(BLOCK as usize).freeze();
            disk.write(place, zeroes).await.map_err(StoreError::io("wiping the superblock"))?;
        }
        disk.sync().await.map_err(StoreError::io("flushing the disk"))?;
        write_superblocks(disk, &superblock).await
    }

    /// Opens the store on a disk, recovering from whatever happened to it.
    pub async fn open(disk: Disk) -> Result<Self, StoreError> {
        Ok(Self { core: recovery::open(disk).await? })
    }

    /// The store now.
    pub fn info(&self) -> StoreInfo {
        let core = &self.core;
        let superblock = core.superblock.borrow();
        let catalog = core.catalog.borrow();
        let (free, pending) = (catalog.allocator.free(), core.reclaim.pending());
        let cluster = u64::from(core.layout.cluster_size);
        StoreInfo {
            uuid: superblock.uuid,
            name: superblock.name.clone(),
            cluster_size: core.layout.cluster_size,
            clusters: core.layout.clusters,
            free_clusters: free,
            pending_clusters: pending,
            size: core.layout.clusters * cluster,
            free: (free + pending) * cluster,
            lvols: catalog.lvols.len(),
            clean_open: core.clean_open,
            damaged: core.damaged.get(),
            failure: core.failure(),
        }
    }

    /// All lvols, by UUID, in one consistent view.
    pub fn lvols(&self) -> Vec<LvolInfo> {
        let catalog = self.core.catalog.borrow();
        let mut children: BTreeMap<Uuid, Vec<Uuid>> = BTreeMap::new();
        for node in catalog.lvols.values() {
            if let Some(parent) = node.record.parent {
                children.entry(parent).or_default().push(node.record.uuid);
            }
        }
        let ids = catalog.lvols.keys();
        ids.filter_map(|id| info_of(&catalog, *id, children.remove(id).unwrap_or_default())).collect()
    }

    /// One lvol.
    pub fn lvol_info(&self, id: Uuid) -> Option<LvolInfo> {
        let catalog = self.core.catalog.borrow();
        let children = catalog.lvols.values().filter(|node| node.record.parent == Some(id));
        info_of(&catalog, id, children.map(|node| node.record.uuid).collect())
    }

    /// Makes an lvol, thin: it takes no space until it is written. The same request again finds the same lvol (I30).
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when the UUID is taken by an lvol of another name, size or block size.
    pub async fn create(&self, spec: &CreateLvol) -> Result<LvolInfo, StoreError> {
        check_spec(&spec.name, &spec.attributes, spec.uuid)?;
        Geometry::new(spec.size, spec.block_size).map_err(|error| StoreError::invalid(error.to_string()))?;
        if spec.size.div_ceil(u64::from(self.core.layout.cluster_size)) > u64::from(u32::MAX) {
            return Err(StoreError::invalid("the size is beyond what one lvol can have with this cluster size"));
        }
        let _one = self.core.control.lock().await;
        if let Some(found) = self.lvol_info(spec.uuid) {
            let differences = [
                (found.kind == LvolKind::Snapshot).then(|| "it is a snapshot".to_owned()),
                difference("name", &found.name, &spec.name),
                difference("size", &found.size, &spec.size),
                difference("block size", &found.block_size, &spec.block_size),
            ];
            return same_or_conflict(found, differences);
        }
        let record = LvolRecord {
            uuid: spec.uuid,
            parent: None,
            size: spec.size,
            block_size: spec.block_size,
            snapshot: false,
            damage: Damage::default(),
            created_at: milliseconds_now(),
            map: self.new_map()?,
            name: spec.name.clone(),
            attributes: spec.attributes.clone(),
        };
        self.core.commit(vec![Record::LvolPut(Box::new(record))]).await?;
        self.core.flush().await?;
        self.expect_info(spec.uuid)
    }

    /// Takes a snapshot of a head: the snapshot gets all blocks that the head had, the head keeps its UUID and reads through it.
    ///
    /// Writes that were answered before the call are in the snapshot, writes submitted after it returns are not (I24).
    /// Writes of this head wait for those in flight and for one write of the journal; the time does not depend on
    /// the size of anything. Durable when it returns, with its content.
    pub async fn snapshot(&self, head: Uuid, spec: &SnapshotSpec) -> Result<LvolInfo, StoreError> {
        check_spec(&spec.name, &spec.attributes, spec.uuid)?;
        let _one = self.core.control.lock().await;
        if let Some(found) = self.lvol_info(spec.uuid) {
            let differences = [
                (found.kind == LvolKind::Head).then(|| "it is a head".to_owned()),
                difference("name", &found.name, &spec.name),
                (!self.descends(head, spec.uuid)).then(|| format!("it is no snapshot of {head}")),
            ];
            return same_or_conflict(found, differences);
        }
        let lvol = self.open_lvol(head)?;
        if lvol.geometry().read_only {
            return Err(StoreError::invalid(format!("{head} is a snapshot already")));
        }
        if lvol.volume().with_chain(<[_]>::len) >= MAX_CHAIN {
            return Err(StoreError::invalid(format!("the chain of {head} is at its longest, {MAX_CHAIN}")));
        }
        // Most of what has to become durable does so before writes are held.
        self.core.flush().await?;
        lvol.volume().hold().await;
        let result = self.cut(head, spec).await;
        for (request, reply) in lvol.volume().release() {
            lvol.submit(request, reply);
        }
        result?;
        self.core.flush().await?;
        self.expect_info(spec.uuid)
    }

    async fn cut(&self, head: Uuid, spec: &SnapshotSpec) -> Result<(), StoreError> {
        let old = {
            let catalog = self.core.catalog.borrow();
            let node = catalog.lvols.get(&head).ok_or(StoreError::NotFound { uuid: head })?;
            node.record.clone()
        };
        let snapshot = LvolRecord {
            uuid: spec.uuid,
            snapshot: true,
            created_at: milliseconds_now(),
            name: spec.name.clone(),
            attributes: spec.attributes.clone(),
            ..old.clone()
        };
        let new = LvolRecord { parent: Some(spec.uuid), map: self.new_map()?, ..old };
        self.core.commit(vec![Record::LvolPut(Box::new(snapshot)), Record::LvolPut(Box::new(new))]).await
    }

    /// Deletes an lvol that nobody reads through, and frees its space. One that is not there is deleted already.
    ///
    /// # Errors
    /// [`StoreError::InUse`] for a snapshot with children.
    pub async fn delete(&self, id: Uuid) -> Result<(), StoreError> {
        let _one = self.core.control.lock().await;
        let (map, volume) = {
            let catalog = self.core.catalog.borrow();
            let Some(node) = catalog.lvols.get(&id) else { return Ok(()) };
            if let Some(needed_by) = catalog.child(id) {
                return Err(StoreError::InUse { uuid: id, needed_by });
            }
            (node.record.map, node.volume.clone())
        };
        self.core.check_running()?;
        if let Some(volume) = &volume {
            // No write may land in a cluster that is another lvol's by then.
            volume.hold().await;
        }
        let result = self.core.commit(vec![Record::LvolRemove { uuid: id }, Record::MapDrop { map }]).await;
        if result.is_err()
            && let Some(volume) = volume
        {
            let lvol = Lvol::new(Rc::clone(&self.core), volume);
            for (request, reply) in lvol.volume().release() {
                lvol.submit(request, reply);
            }
        }
        result?;
        self.core.flush().await
    }

    /// Sets attributes (or removes those given as `None`), all at once; durable when it returns.
    pub async fn set_attributes(&self, id: Uuid, changes: &[(String, Option<Vec<u8>>)]) -> Result<(), StoreError> {
        let _one = self.core.control.lock().await;
        let mut record = {
            let catalog = self.core.catalog.borrow();
            if let Some(reason) = catalog.damage(id) {
                return Err(StoreError::LvolDamaged { uuid: id, reason });
            }
            catalog.lvols.get(&id).ok_or(StoreError::NotFound { uuid: id })?.record.clone()
        };
        for (key, value) in changes.iter().cloned() {
            match value {
                Some(value) => record.attributes.insert(key, value),
                None => record.attributes.remove(&key),
            };
        }
        check_attributes(&record.attributes)?;
        self.core.commit(vec![Record::LvolPut(Box::new(record))]).await?;
        self.core.flush().await
    }

    /// Opens an lvol for I/O. Opening it again gives another handle of the same lvol.
    ///
    /// # Errors
    /// [`StoreError::LvolDamaged`] when it or an ancestor is damaged (I28).
    pub fn open_lvol(&self, id: Uuid) -> Result<Rc<Lvol>, StoreError> {
        if self.core.is_closed() {
            return Err(StoreError::Closed);
        }
        let mut catalog = self.core.catalog.borrow_mut();
        if let Some(reason) = catalog.damage(id) {
            return Err(StoreError::LvolDamaged { uuid: id, reason });
        }
        let chain = catalog.chain(id);
        let node = catalog.lvols.get_mut(&id).ok_or(StoreError::NotFound { uuid: id })?;
        let record = &node.record;
        let chain = chain.map_err(|reason| StoreError::LvolDamaged { uuid: id, reason })?;
        let volume = node
            .volume
            .get_or_insert_with(|| Rc::new(Volume::new(record.size, record.block_size, record.snapshot, chain)));
        Ok(Rc::new(Lvol::new(Rc::clone(&self.core), Rc::clone(volume))))
    }

    /// Up to `max` extents that the lvol itself holds, in order, from byte `from` on. What is not in them is read
    /// through the parent, or zero when there is none.
    pub fn extents(&self, id: Uuid, from: u64, max: usize) -> Result<Vec<Extent>, StoreError> {
        let catalog = self.core.catalog.borrow();
        let node = catalog.lvols.get(&id).ok_or(StoreError::NotFound { uuid: id })?;
        if let Some(reason) = catalog.damage(id) {
            return Err(StoreError::LvolDamaged { uuid: id, reason });
        }
        let map = catalog.maps.get(&node.record.map).ok_or(StoreError::NotFound { uuid: id })?;
        Ok(crate::extents::own_extents(map, node.record.size, from, max))
    }

    /// Makes everything durable that was answered before.
    pub async fn flush(&self) -> Result<(), StoreError> {
        self.core.flush().await
    }

    /// Closes the store in order: waits for writes in flight, brings freed clusters back, writes a checkpoint and
    /// marks the store clean. Open lvols answer [`block_device::ErrorKind::Unavailable`] from then on.
    pub async fn close(self) -> Result<(), StoreError> {
        let _one = self.core.control.lock().await;
        self.core.check_running()?;
        let volumes: Vec<Rc<Volume>> =
            self.core.catalog.borrow().lvols.values().filter_map(|node| node.volume.clone()).collect();
        for volume in &volumes {
            volume.hold().await;
        }
        self.core.finish_reclaim().await;
        let result = match self.core.checkpoint().await {
            Ok(()) => self.core.write_superblock(|superblock| superblock.clean = true).await,
            Err(error) => Err(error),
        };
        self.core.close();
        volumes.iter().for_each(|volume| volume.retire());
        result
    }

    /// A map id that was never used, if there is room for one more lvol.
    fn new_map(&self) -> Result<u32, StoreError> {
        let catalog = self.core.catalog.borrow();
        if !catalog.has_metadata_room(0) || catalog.next_map == u32::MAX {
            return Err(StoreError::NoSpace { detail: "there is no room for the metadata of another lvol" });
        }
        Ok(catalog.next_map)
    }

    /// Whether an lvol reads through `ancestor`.
    fn descends(&self, id: Uuid, ancestor: Uuid) -> bool {
        let catalog = self.core.catalog.borrow();
        let parent = |id: &Uuid| catalog.lvols.get(id).and_then(|node| node.record.parent);
        std::iter::successors(parent(&id), parent).take(MAX_CHAIN).any(|at| at == ancestor)
    }

    fn expect_info(&self, id: Uuid) -> Result<LvolInfo, StoreError> {
        self.lvol_info(id).ok_or(StoreError::NotFound { uuid: id })
    }
}

fn plan(disk: &Disk, cluster_size: u32) -> Result<Layout, StoreError> {
    Layout::plan(disk.size(), cluster_size).ok_or_else(|| {
        let (low, high) = (CLUSTER_SIZES.start() >> 10, CLUSTER_SIZES.end() >> 10);
        StoreError::invalid(format!(
            "a store needs at least {} MiB (the disk has {} bytes) and a cluster size between {low} KiB and {high} KiB, a power of two",
            MIN_SIZE >> 20,
            disk.size()
        ))
    })
}

/// The store that is on a disk, damaged or not.
async fn found_store(disk: &Disk) -> Result<Option<Superblock>, StoreError> {
    let [first, second] = recovery::read_superblocks(disk).await?;
    Ok(first.or(second).ok())
}

fn already_formatted(found: &Superblock, layout: &Layout, options: &FormatOptions) -> Result<(), StoreError> {
    let same = found.uuid == options.uuid && found.name == options.name && found.layout == *layout;
    match same {
        true => Ok(()),
        false => Err(StoreError::Occupied { uuid: found.uuid, name: found.name.clone() }),
    }
}

fn info_of(catalog: &Catalog, id: Uuid, children: Vec<Uuid>) -> Option<LvolInfo> {
    let record = &catalog.lvols.get(&id)?.record;
    let clusters = catalog.maps.get(&record.map).map_or(0, |map| map.clusters());
    Some(LvolInfo {
        uuid: id,
        name: record.name.clone(),
        size: record.size,
        block_size: record.block_size,
        kind: if record.snapshot { LvolKind::Snapshot } else { LvolKind::Head },
        parent: record.parent,
        children,
        created_at: Duration::from_millis(record.created_at),
        used_bytes: clusters * u64::from(catalog.layout().cluster_size),
        attributes: record.attributes.clone(),
        state: match catalog.damage(id) {
            None => LvolState::Ready,
            Some(reason) => LvolState::Damaged { reason },
        },
    })
}

fn difference<T: PartialEq + std::fmt::Display>(what: &str, is: &T, asked: &T) -> Option<String> {
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

fn check_name(name: &str) -> Result<(), StoreError> {
    match name.len() {
        1..=MAX_NAME => Ok(()),
        length => Err(StoreError::invalid(format!("a name has 1 to {MAX_NAME} bytes, not {length}"))),
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

fn milliseconds_now() -> u64 {
    u64::try_from(reactor::wall_clock().as_millis()).unwrap_or(u64::MAX)
}
