//! A store, as whoever manages it sees it.

use std::rc::Rc;
use std::time::Duration;

use block_device::Range;
use reactor::{Buffer, Disk};
use uuid::Uuid;

use crate::catalog::Catalog;
use crate::core::{Core, write_superblocks};
use crate::deletion::deletion_of;
use crate::error::StoreError;
use crate::family::Grouping;
use crate::format::BLOCK;
use crate::format::layout::{CLUSTER_SIZES, Layout, MIN_SIZE};
use crate::format::record::LvolRecord;
use crate::format::superblock::{CheckpointPointer, Features, MAX_NAME, PLACES, Superblock};
use crate::growth::make_room;
use crate::info::{Extent, FormatOptions, LvolInfo, LvolKind, LvolState, StoreInfo};
use crate::limits::{limits_of, told};
use crate::lvol::Lvol;
use crate::operations::to_the_end;
use crate::recovery;
use crate::transfer::INCOMPLETE;
use crate::volume::Volume;
use crate::work::StoreWork;

/// I29 on disks that promise little.
const TORN: &str = "a power cut leaves no more than this many bytes whole on the disk: blocks of 4096 bytes that are overwritten can \
    be torn, so volumes for which that matters need blocks of 512 bytes";

/// An open logical-volume store on a disk. Clones share it.
///
/// Control operations are done one after the other. Each that changes something is durable when it returns; one whose
/// future is dropped goes on to its end, and doing it again is safe (I30).
///
/// Dropping the last clone without [`Store::close`] is like a kill of the process: nothing that was acknowledged is
/// lost, and the next open replays the journal.
#[derive(Clone)]
pub struct Store {
    pub(crate) core: Rc<Core>,
}

impl Store {
    /// Writes an empty store to a disk. A store of the same identity and parameters that is there already is left as it
    /// is, with all its lvols.
    ///
    /// # Errors
    /// [`StoreError::Occupied`] when another store is there, unless `force` is set; nothing is changed then.
    pub async fn format(disk: &Disk, options: &FormatOptions) -> Result<(), StoreError> {
        check_name(&options.name)?;
        if !options.force
            && let Some(found) = found_store(disk).await?
        {
            return already_formatted(&found, disk, options);
        }
        let layout = plan(disk, options.cluster_size)?;
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
            limits: limits_of(&layout, options.limits)?,
        };
        // The old superblocks go first: a crash in between must not leave the second of a former store as the only one.
        for place in PLACES {
            let zeroes = Buffer::zeroed(BLOCK as usize).freeze();
            disk.write(place, zeroes).await.map_err(StoreError::io("wiping the superblock"))?;
        }
        // Gone for good before anything else is: a superblock that came back would have its store open as a damaged one.
        disk.sync().await.map_err(StoreError::io("flushing the disk"))?;
        for region in [layout.journal, layout.areas[0], layout.areas[1]] {
            make_room(disk, region).await?;
        }
        disk.sync().await.map_err(StoreError::io("flushing the disk"))?;
        write_superblocks(disk, &superblock).await
    }

    /// Opens the store on a disk, recovering from whatever happened to it.
    pub async fn open(disk: Disk) -> Result<Self, StoreError> {
        let core = recovery::open(disk).await?;
        if u64::from(core.disk.atomic_write()) < BLOCK {
            let (store, unit) = (core.superblock.borrow().uuid, core.disk.atomic_write());
            tracing::warn!(%store, unit, "{TORN}");
        }
        core.start_merges();
        Ok(Self { core })
    }

    /// The store now.
    pub fn info(&self) -> StoreInfo {
        let core = &self.core;
        let superblock = core.superblock.borrow();
        let catalog = core.catalog.borrow();
        let (free, pending) = (catalog.allocator.free(), core.reclaim.pending());
        let layout = core.layout();
        let cluster = u64::from(layout.cluster_size);
        let internal: Vec<_> = catalog.lvols.values().filter(|node| node.record.internal.is_some()).collect();
        StoreInfo {
            uuid: superblock.uuid,
            name: superblock.name.clone(),
            cluster_size: layout.cluster_size,
            created_at: Duration::from_millis(superblock.created_at),
            clusters: layout.data_clusters(),
            free_clusters: free,
            pending_clusters: pending,
            size: layout.data_clusters() * cluster,
            free: (free + pending) * cluster,
            disk_size: layout.size,
            provisioned: catalog.family.provisioned(),
            limits: told(&superblock.limits, layout.cluster_size),
            metadata: catalog.metadata_bytes(0),
            metadata_room: catalog.metadata_room(),
            lvols: catalog.lvols.len() - internal.len(),
            internal_lvols: internal.len(),
            internal_bytes: internal.iter().map(|node| catalog.used_bytes(node)).sum(),
            atomic_write: core.disk.atomic_write(),
            maps_in_memory: catalog.maps.in_memory().count(),
            map_bytes: catalog.maps.memory_bytes(),
            clean_open: core.clean_open,
            damaged: core.damaged.get(),
            failure: core.failure(),
            bad_blocks: core.marks.count() as u64,
        }
    }

    /// Its identity.
    pub fn uuid(&self) -> Uuid {
        self.core.superblock.borrow().uuid
    }

    /// What it has done since it was opened.
    pub fn work(&self) -> StoreWork {
        let (journal_used, journal_size) = self.core.journal.usage();
        StoreWork { journal_used, journal_size, ..self.core.work.done() }
    }

    /// All lvols but internal ones, by UUID, in one consistent view.
    pub fn lvols(&self) -> Vec<LvolInfo> {
        let catalog = self.core.catalog.borrow();
        catalog.lvols.keys().filter_map(|id| info_of(&self.core, &catalog, *id)).collect()
    }

    /// Those of them that are to be deleted.
    pub fn deleting(&self) -> Vec<LvolInfo> {
        let catalog = self.core.catalog.borrow();
        let marked = catalog.lvols.iter().filter(|(_, node)| node.record.deletion.is_some());
        marked.filter_map(|(id, _)| info_of(&self.core, &catalog, *id)).collect()
    }

    /// Groups the lvols by their attributes from now on, in place of the grouping before: see [`Store::group`].
    pub fn group_by(&self, grouping: Grouping) {
        let mut catalog = self.core.catalog.borrow_mut();
        let Catalog { lvols, family, .. } = &mut *catalog;
        family.group_by(grouping, lvols.values().map(|node| &node.record));
    }

    /// The lvols of a group, by UUID, in one consistent view: at the cost of these few, however many others there are.
    pub fn group(&self, group: Uuid) -> Vec<LvolInfo> {
        let catalog = self.core.catalog.borrow();
        catalog.family.group(group).filter_map(|id| info_of(&self.core, &catalog, id)).collect()
    }

    /// One lvol.
    pub fn lvol_info(&self, id: Uuid) -> Option<LvolInfo> {
        let catalog = self.core.catalog.borrow();
        info_of(&self.core, &catalog, id)
    }

    /// Opens an lvol for I/O. Opening it again gives another handle of the same lvol.
    ///
    /// # Errors
    /// [`StoreError::LvolDamaged`] when it or an ancestor is damaged (I28), [`StoreError::Deleting`] when it is to go.
    pub async fn open_lvol(&self, id: Uuid) -> Result<Rc<Lvol>, StoreError> {
        if self.core.is_closed() {
            return Err(StoreError::Closed);
        }
        match self.core.catalog.borrow().users_lvol(id) {
            None => return Err(StoreError::NotFound { uuid: id }),
            Some(node) if node.record.deletion.is_some() => return Err(StoreError::Deleting { uuid: id }),
            Some(node) if is_incomplete(&node.record) => return Err(StoreError::Incomplete { uuid: id }),
            Some(_) => {}
        }
        self.core.open_lvol(id).await.map(Rc::new)
    }

    /// Up to `max` extents that the lvol itself holds within a range, in order. What is not in them is read
    /// through the parent, or zero when there is none. Ancestors that are to be deleted do not count: what they hold is on its
    /// way into the lvol. What is long comes in parts.
    pub async fn extents(&self, id: Uuid, range: Range, max: usize) -> Result<Vec<Extent>, StoreError> {
        self.extents_of(id, range, max, |catalog| 1 + catalog.doomed_parents(id)).await
    }

    /// As [`Store::extents`], but of all that the lvol reads through as well: what is not in them is zero.
    pub async fn extents_of_chain(&self, id: Uuid, range: Range, max: usize) -> Result<Vec<Extent>, StoreError> {
        self.extents_of(id, range, max, |_| usize::MAX).await
    }

    /// Of an lvol and its nearest ancestors, as many together as `count` says.
    async fn extents_of(
        &self,
        id: Uuid,
        range: Range,
        max: usize,
        count: impl Fn(&Catalog) -> usize,
    ) -> Result<Vec<Extent>, StoreError> {
        let lineage = |catalog: &Catalog| {
            catalog.users_lvol(id).ok_or(StoreError::NotFound { uuid: id })?;
            let mut maps = catalog.usable_lineage(id)?;
            maps.truncate(count(catalog));
            Ok(maps)
        };
        let maps = self.core.hold_maps(lineage).await?;
        let size = self.core.catalog.borrow().lvols.get(&id).map(|node| node.record.size);
        self.core.residency.look();
        Ok(crate::extents::own_extents(&maps, size.ok_or(StoreError::NotFound { uuid: id })?, range, max))
    }

    /// Writes a checkpoint and lets go of all maps that nobody uses: done by itself some time after an lvol was closed, too.
    pub async fn trim(&self) -> Result<(), StoreError> {
        self.core.checkpoint().await?;
        self.core.release_maps(true);
        Ok(())
    }

    /// Bounds the memory of maps that nobody uses, instead of 32 MiB: what comes beyond goes when the next lvol is opened, at the
    /// latest.
    pub fn limit_unused_maps(&self, bytes: u64) {
        self.core.residency.limit(bytes);
    }

    /// Makes everything durable that was answered before.
    pub async fn flush(&self) -> Result<(), StoreError> {
        self.core.flush().await
    }

    /// Closes the store in order: waits for writes in flight, brings freed clusters back, writes a checkpoint and
    /// marks the store clean. Open lvols answer [`block_device::ErrorKind::Unavailable`] from then on.
    ///
    /// The disk itself is let go when the last handle of the store and of its lvols is dropped.
    pub async fn close(self) -> Result<(), StoreError> {
        to_the_end(async move { self.close_in_order().await }).await
    }

    async fn close_in_order(&self) -> Result<(), StoreError> {
        // They may wait for a control operation, and let the disk go before the next open.
        self.core.hashing.finish().await;
        self.core.scrubs.finish().await;
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
}

impl Core {
    /// Opens an lvol, also one that is to be deleted.
    pub(crate) async fn open_lvol(self: &Rc<Self>, id: Uuid) -> Result<Lvol, StoreError> {
        // Held until the volume holds them.
        let _maps = self.hold_maps(|catalog| catalog.usable_lineage(id)).await?;
        let mut catalog = self.catalog.borrow_mut();
        let chain = catalog.chain(id).map_err(|reason| StoreError::LvolDamaged { uuid: id, reason })?;
        let node = catalog.lvols.get_mut(&id).ok_or(StoreError::NotFound { uuid: id })?;
        let record = &node.record;
        let volume = node.volume.get_or_insert_with(|| Rc::new(Volume::new(record, chain)));
        Ok(Lvol::new(Rc::clone(self), Rc::clone(volume)))
    }
}

fn plan(disk: &Disk, cluster_size: u32) -> Result<Layout, StoreError> {
    Layout::plan(disk.size(), cluster_size).ok_or_else(|| {
        let (low, high) = (CLUSTER_SIZES.start() >> 10, CLUSTER_SIZES.end() >> 10);
        StoreError::invalid(format!(
            "a store needs at least {} MiB (the disk has {} bytes) and a cluster size between {low} KiB and {high} KiB, a power of two, \
             that makes at most 2^32 clusters",
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

/// The size is not compared: a store may have grown since, or its disk.
fn already_formatted(found: &Superblock, disk: &Disk, options: &FormatOptions) -> Result<(), StoreError> {
    let same = found.uuid == options.uuid
        && found.name == options.name
        && found.layout.cluster_size == options.cluster_size
        && found.layout.size <= disk.size();
    match same {
        true => Ok(()),
        false => Err(StoreError::Occupied { uuid: found.uuid, name: found.name.clone() }),
    }
}

fn is_incomplete(record: &LvolRecord) -> bool {
    record.attributes.contains_key(INCOMPLETE)
}

fn info_of(core: &Core, catalog: &Catalog, id: Uuid) -> Option<LvolInfo> {
    let children: Vec<Uuid> = catalog.family.children(id).collect();
    let node = catalog.users_lvol(id)?;
    let record = &node.record;
    let deletion = deletion_of(core, catalog, id, children.len());
    Some(LvolInfo {
        uuid: id,
        name: record.name.clone(),
        size: record.size,
        block_size: record.block_size,
        kind: if record.snapshot { LvolKind::Snapshot } else { LvolKind::Head },
        parent: record.parent,
        children,
        created_at: Duration::from_millis(record.created_at),
        used_bytes: catalog.used_bytes(node),
        attributes: record.attributes.clone(),
        state: match catalog.damage(id) {
            None => LvolState::Ready,
            Some(reason) => LvolState::Damaged { reason },
        },
        incomplete: is_incomplete(record),
        deletion,
    })
}

pub(crate) fn check_name(name: &str) -> Result<(), StoreError> {
    match name.len() {
        1..=MAX_NAME => Ok(()),
        length => Err(StoreError::invalid(format!("a name has 1 to {MAX_NAME} bytes, not {length}"))),
    }
}

pub(crate) fn milliseconds_now() -> u64 {
    u64::try_from(reactor::wall_clock().as_millis()).unwrap_or(u64::MAX)
}
