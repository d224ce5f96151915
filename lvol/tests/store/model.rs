//! Random operations on a store and on a plain reference: the contents must be the same, to the byte.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use block_device::{BlockDevice, Range, Request, Slice, execute};
use lvol::{CreateLvol, FormatOptions, Lvol, LvolKind, Store, StoreError};
use reactor::simulated::Random;
use reactor::{Disk, sleep};
use uuid::Uuid;

use crate::operations::settle;
use crate::reference::Reference;
use crate::rig::{Rig, check_space, disk, id, is_long, options, read, read_all, snapshot, stamped};
use crate::transfer::exported;

/// A run of the model test.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) steps: u32,
    pub(crate) block_size: u32,
    pub(crate) cluster_size: u32,
    pub(crate) lvol_size: u64,
}

/// A store and its reference, and the random numbers that drive both.
pub(crate) struct Model {
    plan: Plan,
    disk: Disk,
    store: Option<Store>,
    open: BTreeMap<Uuid, Rc<Lvol>>,
    reference: Reference,
    random: Random,
    next_id: u128,
}

/// What outlives a process.
pub(crate) struct Past {
    reference: Reference,
    random: Random,
    next_id: u128,
    closed: bool,
}

impl Model {
    pub(crate) async fn new(disk: Disk, plan: Plan) -> Self {
        Store::format(&disk, &FormatOptions { cluster_size: plan.cluster_size, ..options() }).await.expect("formatted");
        let store = Store::open(disk.clone()).await.expect("opened");
        let random = Random::new(plan.seed);
        let (open, reference) = (BTreeMap::new(), Reference::default());
        Self { plan, disk, store: Some(store), open, reference, random, next_id: 1 }
    }

    /// The store that an earlier life left on the disk, closed or not: nothing that was answered is lost.
    pub(crate) async fn resume(disk: Disk, plan: Plan, past: Past) -> Self {
        let store = Store::open(disk.clone()).await.expect("opened");
        assert_eq!(store.info().clean_open, past.closed);
        let Past { reference, random, next_id, .. } = past;
        let mut model = Self { plan, disk, store: Some(store), open: BTreeMap::new(), reference, random, next_id };
        model.open_all().await;
        model.check_all().await;
        model
    }

    pub(crate) async fn run(mut self) {
        self.steps().await;
        self.reopen().await;
        self.check_all().await;
        self.delete_all().await;
    }

    pub(crate) async fn steps(&mut self) {
        for step in 0..self.plan.steps {
            self.step().await;
            if step % 64 == 63 {
                // In long runs most of the time would go into comparing: what differs is found later, too.
                self.check(if is_long() { 0.25 } else { 1.0 }).await;
            }
        }
    }

    /// Ends this life: in order or, whoever is still at work, at once.
    pub(crate) async fn end(mut self, in_order: bool) -> Past {
        self.open.clear();
        if let Some(store) = self.store.take()
            && in_order
        {
            store.close().await.expect("closed");
        }
        Past { reference: self.reference, random: self.random, next_id: self.next_id, closed: in_order }
    }

    fn store(&self) -> Store {
        self.store.clone().expect("open but for a moment in reopen")
    }

    async fn step(&mut self) {
        let heads = self.reference.heads();
        if heads.is_empty() {
            return self.create().await;
        }
        if self.is_full() {
            // More lvols come to be than are deleted at random: in long runs they would fill any disk.
            self.delete().await;
            return settle(&self.store()).await;
        }
        let head = heads[self.random.index(heads.len())];
        match self.random.below(100) {
            0..=1 if heads.len() < 3 => self.create().await,
            0..=49 => self.write(head).await,
            50..=64 => self.read(head).await,
            65..=74 => self.unmap(head).await,
            75..=82 => self.write_zeroes(head).await,
            83..=85 => self.flush(head).await,
            86..=87 => self.cool().await,
            88..=89 => self.compare(head).await,
            90 => self.set_attributes().await,
            91..=93 => self.snapshot(head).await,
            94..=95 => self.delete().await,
            96 => self.clone_snapshot().await,
            97 => self.revert(head).await,
            98 if self.random.chance(0.5) => self.grow(head).await,
            98 => self.rename().await,
            99 if self.random.chance(0.3) => self.grow_store().await,
            _ => self.reopen().await,
        }
    }

    /// Whether all lvols together are as large as they should become: comparing them should not be all that happens.
    fn is_full(&self) -> bool {
        let all: usize = self.reference.lvols.values().map(|lvol| lvol.content.len()).sum();
        let most = (self.store().info().size / 2).min((64 << 20).max(12 * self.plan.lvol_size));
        all as u64 > most
    }

    fn new_id(&mut self) -> Uuid {
        self.next_id += 1;
        id(self.next_id)
    }

    async fn create(&mut self) {
        let uuid = self.new_id();
        let Plan { lvol_size: size, block_size, .. } = self.plan;
        let spec = CreateLvol { uuid, name: uuid.to_string(), size, block_size, attributes: BTreeMap::new() };
        let first = self.store().create(&spec).await.expect("created");
        assert_eq!(self.store().create(&spec).await.expect("the same again"), first, "I30");
        self.reference.create(uuid, size);
        self.reopen_lvol(uuid).await;
    }

    async fn reopen_lvol(&mut self, uuid: Uuid) {
        let lvol = self.store().open_lvol(uuid).await.expect("opened");
        self.open.insert(uuid, lvol);
    }

    /// An lvol, opened if it is not.
    async fn lvol(&mut self, uuid: Uuid) -> Rc<Lvol> {
        if !self.open.contains_key(&uuid) {
            self.reopen_lvol(uuid).await;
        }
        Rc::clone(&self.open[&uuid])
    }

    /// Closes some lvols, and most of the time lets go of their maps.
    async fn cool(&mut self) {
        let random = &mut self.random;
        let part = random.below(4) as f64 / 3.0;
        self.open.retain(|_, _| !random.chance(part));
        if self.random.chance(0.7) {
            self.trim().await;
        }
    }

    /// Lets go of the maps that nobody uses.
    async fn trim(&mut self) {
        for _ in 0..100 {
            self.store().trim().await.expect("a checkpoint");
            if !self.open.is_empty() || self.store().info().maps_in_memory == 0 || self.is_merging() {
                return;
            }
            // A merge that has just ended has its maps for a moment more.
            sleep(Duration::from_millis(10)).await;
        }
        panic!("nobody uses them, and {} maps stay in memory", self.store().info().maps_in_memory);
    }

    /// Whether something has maps in use besides the lvols that are open.
    fn is_merging(&self) -> bool {
        self.store().lvols().iter().any(|lvol| lvol.deletion.is_some())
    }

    /// A random range: often small, sometimes over several clusters, sometimes all of it; sometimes at the very end.
    fn range(&mut self, head: Uuid, longest: u64) -> Range {
        let block = u64::from(self.plan.block_size);
        let blocks = self.reference.lvols[&head].content.len() as u64 / block;
        let most = match self.random.below(10) {
            0..=4 => 1,
            5..=7 => 24,
            _ => longest / block,
        };
        let mut start = self.random.below(blocks);
        let count = (1 + self.random.below(most)).min(blocks - start);
        if self.random.chance(0.1) {
            // The last block and cluster may be cut short.
            start = blocks - count;
        }
        Range { offset: start * block, length: count * block }
    }

    async fn write(&mut self, head: Uuid) {
        let range = self.range(head, 1 << 20);
        let data = stamped(self.random.next_u64(), range.length as usize);
        let fua = self.random.chance(0.1);
        let request = Request::Write { offset: range.offset, data: data.clone(), fua };
        execute(&*self.lvol(head).await, request).await.expect("written");
        self.reference.write(head, range.offset, &data);
    }

    async fn read(&mut self, head: Uuid) {
        let range = self.range(head, 1 << 20);
        let found = read(&self.lvol(head).await, range.offset, range.length).await.expect("read");
        let content = &self.reference.lvols[&head].content;
        assert!(found == content[range.offset as usize..range.end() as usize], "{head} differs in {range:?}");
    }

    async fn unmap(&mut self, head: Uuid) {
        let ranges = [self.range(head, u64::MAX / 2), self.range(head, 1 << 16)];
        let request = Request::Unmap { ranges: ranges.into_iter().collect() };
        execute(&*self.lvol(head).await, request).await.expect("unmapped");
        ranges.into_iter().for_each(|range| self.reference.zero(head, range));
    }

    async fn write_zeroes(&mut self, head: Uuid) {
        let range = self.range(head, u64::MAX / 2);
        let (unmap, fua) = (self.random.chance(0.5), self.random.chance(0.2));
        execute(&*self.lvol(head).await, Request::WriteZeroes { range, unmap, fua }).await.expect("zeroed");
        self.reference.zero(head, range);
    }

    async fn flush(&mut self, head: Uuid) {
        execute(&*self.lvol(head).await, Request::Flush).await.expect("flushed");
    }

    async fn compare(&mut self, head: Uuid) {
        let range = self.range(head, 1 << 16);
        let content = &self.reference.lvols[&head].content[range.offset as usize..range.end() as usize];
        let data = Slice::from(content);
        execute(&*self.lvol(head).await, Request::Compare { offset: range.offset, data }).await.expect("equal");
    }

    async fn snapshot(&mut self, head: Uuid) {
        if self.reference.depth(head) > 6 {
            return self.delete_one(head).await;
        }
        self.next_id += 1;
        let spec = snapshot(self.next_id);
        let first = self.store().snapshot(head, &spec).await.expect("cut");
        let again = self.store().snapshot(head, &spec).await.expect("the same again");
        assert_eq!((again.uuid, again.created_at), (first.uuid, first.created_at), "I30");
        self.reference.snapshot(head, spec.uuid, spec.name);
        self.reopen_lvol(spec.uuid).await;
    }

    async fn clone_snapshot(&mut self) {
        let snapshots = self.reference.snapshots();
        if snapshots.is_empty() || self.reference.heads().len() > 3 {
            return;
        }
        let snapshot = snapshots[self.random.index(snapshots.len())];
        let uuid = self.new_id();
        let (block_size, name) = (self.plan.block_size, uuid.to_string());
        let size = self.larger(self.reference.lvols[&snapshot].content.len() as u64, 20);
        let spec = CreateLvol { uuid, name, size, block_size, attributes: BTreeMap::new() };
        let first = self.store().clone_snapshot(snapshot, &spec).await.expect("cloned");
        let again = self.store().clone_snapshot(snapshot, &spec).await.expect("the same again");
        assert_eq!((again.uuid, again.created_at), (first.uuid, first.created_at), "I30");
        self.reference.clone_snapshot(snapshot, uuid, size);
        self.reopen_lvol(uuid).await;
    }

    async fn revert(&mut self, head: Uuid) {
        let ancestors = self.reference.ancestors(head);
        let Some(snapshot) = ancestors.get(self.random.index(ancestors.len())) else { return };
        self.store().revert(head, *snapshot).await.expect("reverted");
        self.reference.revert(head, *snapshot);
    }

    async fn grow(&mut self, head: Uuid) {
        let block = u64::from(self.plan.block_size);
        let size = self.reference.lvols[&head].content.len() as u64;
        let larger = self.larger(size, 30);
        self.store().grow(head, larger).await.expect("grown");
        assert_eq!(self.lvol(head).await.geometry().size(), larger);
        assert!(matches!(self.store().grow(head, larger - block).await, Err(StoreError::Invalid { .. })));
        self.reference.grow(head, larger);
    }

    /// Up to so many blocks more, but not for ever: in long runs lvols would become so large that comparing them is all that happens.
    fn larger(&mut self, size: u64, blocks: u64) -> u64 {
        let most = size.max(4 * self.plan.lvol_size);
        (size + u64::from(self.plan.block_size) * self.random.below(blocks)).min(most)
    }

    /// The disk becomes larger, and the store with it; some of the time to no more than it is.
    async fn grow_store(&mut self) {
        let before = self.store().info();
        // Each time as large that the areas of the times before are large enough for nothing but data.
        if before.disk_size < 512 << 20 {
            let more = (self.disk.size() / 8192 + self.random.below(256)) << 12;
            // A block device stays as large as it is.
            let _ = self.disk.resize(self.disk.size() + more);
        }
        let after = self.store().grow_store(None).await.expect("grown");
        assert_eq!(after.disk_size, self.disk.size());
        assert!(after.size >= before.size);
        check_space(&self.store());
        assert_eq!(self.store().grow_store(Some(after.disk_size)).await.expect("the same again").size, after.size);
    }

    async fn rename(&mut self) {
        let all: Vec<Uuid> = self.reference.lvols.keys().copied().collect();
        let uuid = all[self.random.index(all.len())];
        let name = format!("renamed-{}", self.random.below(1000));
        assert_eq!(self.store().rename(uuid, &name).await.expect("renamed").name, name);
        self.reference.rename(uuid, name);
    }

    /// Several attributes at once; or more than fit, which changes nothing.
    async fn set_attributes(&mut self) {
        let all: Vec<Uuid> = self.reference.lvols.keys().copied().collect();
        let uuid = all[self.random.index(all.len())];
        let too_long = self.random.chance(0.2);
        let mut changes = Vec::new();
        for key in 0..=self.random.below(3) {
            let length = if too_long { 4096 } else { self.random.below(300) };
            let value = self.random.chance(0.8).then(|| vec![key as u8; length as usize]);
            changes.push((format!("key-{key}"), value));
        }
        let refused = too_long && changes.iter().any(|(_, value)| value.is_some());
        let result = self.store().set_attributes(uuid, &changes).await;
        match refused {
            true => assert!(matches!(result, Err(StoreError::Invalid { .. })), "{result:?}"),
            false => {
                result.expect("set");
                self.reference.set_attributes(uuid, changes);
            }
        }
    }

    async fn delete(&mut self) {
        let all: Vec<Uuid> = self.reference.lvols.keys().copied().collect();
        let uuid = all[self.random.index(all.len())];
        self.delete_one(uuid).await;
    }

    async fn delete_one(&mut self, uuid: Uuid) {
        if self.random.chance(0.3) {
            return self.delete_and_measure(uuid).await;
        }
        self.store().delete(uuid).await.expect("gone, or marked");
        self.open.remove(&uuid);
        self.reference.delete(uuid);
        // Most merges go on while everything else does.
        if self.random.chance(0.3) {
            settle(&self.store()).await;
        }
    }

    /// What is said before of the space that comes back is what comes back.
    async fn delete_and_measure(&mut self, uuid: Uuid) {
        let store = self.store();
        settle(&store).await;
        let alone = store.lvols().iter().all(|lvol| lvol.deletion.is_none());
        let usage = store.usage(uuid).await.expect("looked up");
        let content = &self.reference.lvols[&uuid].content;
        let data = content.chunks(4096).filter(|block| block.iter().any(|byte| *byte != 0)).count() as u64 * 4096;
        assert!(usage.referenced + 4096 > data && usage.referenced <= content.len() as u64, "{usage:?}");
        let before = store.info().free;
        store.delete(uuid).await.expect("gone, or marked");
        self.open.remove(&uuid);
        self.reference.delete(uuid);
        settle(&store).await;
        // One that waited for this one goes with it.
        assert!(!alone || store.info().free - before == usage.unique, "{usage:?}");
    }

    async fn reopen(&mut self) {
        self.open.clear();
        if let Some(store) = self.store.take() {
            store.close().await.expect("closed");
        }
        let store = Store::open(self.disk.clone()).await.expect("opened");
        assert!(store.info().clean_open);
        self.store = Some(store);
        // The others are opened when they are used.
        if self.random.chance(0.5) {
            self.open_all().await;
        }
    }

    async fn open_all(&mut self) {
        for uuid in self.reference.lvols.keys().copied().collect::<Vec<_>>() {
            self.reopen_lvol(uuid).await;
        }
    }

    async fn check_all(&mut self) {
        self.check(1.0).await;
    }

    /// Compares what is said of all lvols, and this part of them with their content.
    async fn check(&mut self, part: f64) {
        let found = self.store().lvols();
        let parents: BTreeMap<Uuid, Option<Uuid>> = found.iter().map(|info| (info.uuid, info.parent)).collect();
        let there: Vec<_> = found.into_iter().filter(|info| info.deletion.is_none()).collect();
        assert_eq!(there.len(), self.reference.lvols.len());
        for info in there {
            let expected = &self.reference.lvols[&info.uuid];
            assert_eq!(info.kind == LvolKind::Snapshot, expected.snapshot);
            assert_eq!((&info.name, &info.attributes), (&expected.name, &expected.attributes));
            // What is being deleted may still be in between.
            let ancestors = std::iter::successors(info.parent, |parent| parents[parent]);
            let mut there = ancestors.filter(|parent| self.reference.lvols.contains_key(parent));
            assert_eq!(there.next(), expected.parent);
            if !self.random.chance(part) {
                continue;
            }
            let open = self.lvol(info.uuid).await;
            let expected = &self.reference.lvols[&info.uuid];
            let found = read_all(&open).await;
            assert_eq!(found.len(), expected.content.len(), "the size of {}", info.uuid);
            let wrong = found.chunks(512).zip(expected.content.chunks(512)).enumerate().filter(|(_, (a, b))| a != b);
            let wrong: Vec<_> =
                wrong.map(|(sector, (found, expected))| (sector, word(found), word(expected))).collect();
            assert!(wrong.is_empty(), "{} differs: (sector, found, expected) {wrong:?}", info.uuid);
            if info.kind == LvolKind::Snapshot {
                assert!(exported(&self.store(), info.uuid).await.0 == expected.content, "{} differs", info.uuid);
            }
        }
        check_space(&self.store());
    }

    async fn delete_all(&mut self) {
        self.open.clear();
        while !self.reference.lvols.is_empty() {
            for uuid in self.reference.lvols.keys().copied().collect::<Vec<_>>() {
                self.delete_one(uuid).await;
            }
        }
        settle(&self.store()).await;
        let info = self.store().info();
        assert_eq!(info.free, info.size);
    }
}

/// The stamp of a sector.
fn word(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |first| u64::from_le_bytes(*first))
}

fn simulated(plan: Plan, disk_size: u64, alignment: u32) {
    let rig = Rig::with_disk(plan.seed, disk_size, alignment);
    rig.run(async move { Model::new(disk(), plan).await.run().await });
}

#[test]
fn volumes_of_4_kib_blocks_on_a_simulated_disk() {
    for seed in 0..12 {
        let plan = Plan { seed, steps: 500, block_size: 4096, cluster_size: 64 << 10, lvol_size: 3 << 20 };
        simulated(plan, 128 << 20, 4096);
    }
}

#[test]
fn volumes_of_512_byte_blocks_on_a_disk_of_512_byte_blocks() {
    for seed in 100..106 {
        let plan = Plan { seed, steps: 400, block_size: 512, cluster_size: 64 << 10, lvol_size: (2 << 20) + 1536 };
        simulated(plan, 128 << 20, 512);
    }
}

#[test]
fn volumes_of_512_byte_blocks_on_a_disk_of_4_kib_blocks() {
    for seed in 200..206 {
        let plan = Plan { seed, steps: 400, block_size: 512, cluster_size: 16 << 10, lvol_size: (1 << 20) + 512 };
        simulated(plan, 128 << 20, 4096);
    }
}

#[test]
fn clusters_larger_than_an_entry_of_eight_bytes() {
    for (seed, cluster_size) in [(300, 128 << 10), (301, 1 << 20), (302, 4 << 20)] {
        let lvol_size = 3 * cluster_size + (20 << 10);
        let plan = Plan { seed, steps: 300, block_size: 4096, cluster_size, lvol_size: u64::from(lvol_size) };
        simulated(plan, 1 << 30, 512);
    }
}

#[test]
fn a_store_in_memory() {
    let rig = Rig::new(400);
    let steps = if is_long() { 200_000 } else { 2000 };
    let plan = Plan { seed: 400, steps, block_size: 4096, cluster_size: 64 << 10, lvol_size: 3 << 20 };
    rig.run(async move { Model::new(Disk::memory(128 << 20).expect("memory"), plan).await.run().await });
}
