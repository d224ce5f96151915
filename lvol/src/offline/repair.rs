//! Making a store right again, on paper first, then on the disk in steps that a crash may end anywhere.
//!
//! 1. Both superblocks are made the same, first the one that does not serve: one is whole at every moment.
//! 2. Blocks that become zeroes in clusters that stay are written: no map that the disk has so far names them.
//! 3. All metadata goes into the checkpoint area that the last one did not use.
//! 4. The superblock names it. Before that, everything is as it was; after it, everything is as it should be.
//!
//! As long as an lvol has lost pages and nobody accepted that, no new checkpoint is written: the old one still tells which
//! bytes they were.

use std::collections::BTreeSet;
use std::ops::Range;

use reactor::Disk;
use uuid::Uuid;

use super::CheckOptions;
use super::findings::{Finding, Remedy, Severity};
use super::rules::{Owners, new_name};
use super::state::State;
use crate::catalog::Catalog;
use crate::core::{Core, Opened, write_superblock_copy};
use crate::error::StoreError;
use crate::format::record::{LvolRecord, MAX_ATTRIBUTES};
use crate::format::superblock::{PLACES, Superblock};
use crate::format::{BLOCK, Flaw};
use crate::info::{LOST, Role};
use crate::journal::{Journal, ReplayStart};
use crate::map::Held;

/// What a repair is about to do.
struct Plan {
    state: State,
    /// Blocks of clusters to be written with zeroes, in bytes of the disk.
    zeroes: Vec<Range<u64>>,
    /// Maps that stay damaged.
    damaged: BTreeSet<u32>,
    /// What was decided, in words.
    steps: Vec<String>,
}

/// Repairs what can be repaired. Returns what was done, in words; nothing when nothing was written.
pub(super) async fn repair(
    disk: &Disk,
    state: State,
    copies: &[Result<Superblock, Flaw>; 2],
    findings: &[Finding],
    options: &CheckOptions,
) -> Result<Vec<String>, StoreError> {
    let accepted = &options.accept_loss;
    let can = |finding: &Finding| match &finding.remedy {
        Remedy::Repair(_) => true,
        Remedy::AcceptLoss { lvols, .. } => lvols.iter().all(|lvol| accepted.contains(lvol)),
        Remedy::ServeZeroes { lvols, .. } => options.serve_zeroes && lvols.iter().all(|lvol| accepted.contains(lvol)),
        _ => false,
    };
    let beyond_repair = |finding: &Finding| {
        finding.severity == Severity::Fatal && matches!(finding.remedy, Remedy::Impossible(_)) || state.unreadable
    };
    if !findings.iter().any(can) || findings.iter().any(beyond_repair) {
        return Ok(Vec::new());
    }
    let mut done = Vec::new();
    let mut superblock = state.superblock.clone();
    if let [Ok(first), Ok(second)] = copies {
        superblock.generation = first.generation.max(second.generation);
    }
    if copies.iter().any(|copy| copy.as_ref().ok() != Some(&superblock)) {
        superblock.generation += 1;
        // The one that serves comes last: until the other is whole it is the only one.
        let serves = copies[0].as_ref().ok() == Some(&state.superblock);
        let [first, second] = PLACES;
        for place in if serves { [second, first] } else { [first, second] } {
            write_superblock_copy(disk, &superblock, place).await?;
        }
        done.push("both superblocks were written anew".to_owned());
    }
    let needs_checkpoint = |finding: &Finding| can(finding) && finding.structure != super::Structure::Superblock;
    if !findings.iter().any(needs_checkpoint) {
        return Ok(done);
    }
    let mut plan = Plan { state, zeroes: Vec::new(), damaged: BTreeSet::new(), steps: Vec::new() };
    plan.state.superblock = superblock;
    plan.decide(accepted, options.serve_zeroes);
    let fresh = |map: &u32| plan.state.maps.get(map).is_some_and(|known| !known.damaged_before);
    if plan.damaged.iter().any(fresh) {
        return Ok(done);
    }
    plan.write(disk).await?;
    done.append(&mut plan.steps);
    done.push("a new checkpoint was written".to_owned());
    Ok(done)
}

impl Plan {
    fn decide(&mut self, accepted: &[Uuid], serve_zeroes: bool) {
        self.remove_unowned();
        let disputed = self.disputed(accepted);
        let lvols: Vec<Uuid> = self.state.lvols.keys().copied().collect();
        for uuid in lvols {
            if !self.state.lvols.contains_key(&uuid) {
                // Hashes of what was given up.
                continue;
            }
            self.name(uuid);
            self.cut_beyond(uuid);
            if accepted.contains(&uuid) && self.can_mark(uuid) {
                let cut = self.cut_parent(uuid);
                let zeroed = self.zero_unknown(uuid, &disputed);
                if cut || zeroed > 0 {
                    self.note_loss(uuid, zeroed, !serve_zeroes);
                }
            }
            let record = &self.state.lvols[&uuid].record;
            if !self.state.unknown_bytes(record).is_empty() {
                self.damaged.insert(record.map);
            }
        }
        if serve_zeroes {
            accepted.iter().for_each(|uuid| self.unmark(*uuid));
        }
        if self.state.lost_lvols > 0 && accepted.contains(&Uuid::nil()) {
            self.steps.push(format!("{} lvols without a name were given up", self.state.lost_lvols));
            self.state.lost_lvols = 0;
        }
    }

    /// Internal lvols whose owner is gone go too, if it is sure to be gone.
    fn remove_unowned(&mut self) {
        let lvols = &self.state.lvols;
        let unowned =
            |record: &LvolRecord| record.internal.is_some_and(|internal| !lvols.contains_key(&internal.owner));
        let gone: Vec<(Uuid, u32)> = lvols
            .values()
            .filter(|known| self.state.lost_lvols == 0 && unowned(&known.record))
            .map(|known| (known.record.uuid, known.record.map))
            .collect();
        for (uuid, map) in gone {
            self.state.lvols.remove(&uuid);
            self.state.maps.remove(&map);
            self.steps.push(format!("lvol {uuid}, which belonged to one that is gone, was removed"));
        }
    }

    /// Entries of clusters that several claim, unless all of these give them up: map, and cluster of the lvol.
    fn disputed(&self, accepted: &[Uuid]) -> BTreeSet<(u32, u32)> {
        let given_up: BTreeSet<u32> = self
            .state
            .lvols
            .values()
            .filter(|known| accepted.contains(&known.record.uuid))
            .map(|known| known.record.map)
            .collect();
        let claims = Owners::of(&self.state).contested.into_values();
        let kept = claims.filter(|claims| !claims.iter().all(|(map, _)| given_up.contains(map)));
        kept.flatten().collect()
    }

    fn name(&mut self, uuid: Uuid) {
        let Some(known) = self.state.lvols.get_mut(&uuid).filter(|known| known.nameless) else { return };
        known.nameless = false;
        known.record.name = new_name(&known.record);
        self.steps.push(format!("lvol {uuid} was named {}", known.record.name));
    }

    /// Entries beyond the size of an lvol go.
    fn cut_beyond(&mut self, uuid: Uuid) {
        let record = &self.state.lvols[&uuid].record;
        let (map, clusters) = (record.map, record.size.div_ceil(u64::from(self.state.superblock.layout.cluster_size)));
        let beyond = self.state.blocks_of(clusters..1 << 32);
        if let Some(known) = self.state.maps.get_mut(&map) {
            let mut freed = Vec::new();
            known.map.clear(beyond.start, beyond.end - beyond.start, &mut freed);
            known.unknown.remove(beyond);
        }
    }

    /// An lvol whose parent cannot be has none.
    fn cut_parent(&mut self, uuid: Uuid) -> bool {
        let chain = self.state.chain(uuid);
        let Some(parent) = self.state.lvols[&uuid].record.parent else { return false };
        let above = self.state.lvols.get(&parent);
        let ends = |last: &Uuid| self.state.lvols[last].record.parent.is_none_or(|next| !chain.contains(&next));
        let fits = above.is_some_and(|above| {
            let (above, own) = (&above.record, &self.state.lvols[&uuid].record);
            above.snapshot && above.size <= own.size && above.block_size == own.block_size
        });
        if fits && chain.last().is_none_or(ends) {
            return false;
        }
        if let Some(known) = self.state.lvols.get_mut(&uuid) {
            known.record.parent = None;
            self.steps.push(format!("lvol {uuid} reads through {parent} no more"));
        }
        true
    }

    /// What is unknown of an lvol becomes zeroes, but for what others claim too.
    fn zero_unknown(&mut self, uuid: Uuid, disputed: &BTreeSet<(u32, u32)>) -> u64 {
        let (layout, blocks) = (self.state.superblock.layout, u64::from(self.state.shape.blocks()));
        let record = &self.state.lvols[&uuid].record;
        let (map, end) = (record.map, record.size.div_ceil(BLOCK));
        let contested = Owners::of(&self.state).contested;
        let Some(known) = self.state.maps.get_mut(&map) else { return 0 };
        let runs: Vec<Range<u64>> = known.unknown.below(end).collect();
        let mut zeroed = 0;
        for run in runs {
            let mut at = run.start;
            while at < run.end {
                let (index, first) = ((at / blocks) as u32, at % blocks);
                // Whole entries without a cluster, as many as there are in a row, are one step.
                let whole = known.map.next_used(index).map_or(run.end, |used| u64::from(used) * blocks);
                let next = run.end.min(whole.max((u64::from(index) + 1) * blocks));
                let count = next - at;
                if !disputed.contains(&(map, index)) {
                    match known.map.kind(index) {
                        Held::Data(cluster) if !contested.contains_key(&cluster) => {
                            let offset = layout.cluster_offset(cluster) + first * BLOCK;
                            self.zeroes.push(offset..offset + count * BLOCK);
                            known.map.set(index, cluster, first as u32, count as u32, &mut Vec::new());
                        }
                        _ => known.map.zero(at, count, &mut Vec::new()),
                    }
                    known.unknown.remove(at..next);
                    zeroed += count * BLOCK;
                }
                at = next;
            }
        }
        if zeroed > 0 {
            self.steps.push(format!("{zeroed} bytes of lvol {uuid} that were unknown are zeroes"));
        }
        zeroed
    }

    /// An lvol and those that read through it.
    fn with_readers(&self, uuid: Uuid) -> Vec<Uuid> {
        [vec![uuid], self.state.readers(uuid)].concat()
    }

    /// Whether there is room for one more attribute.
    fn can_mark(&self, uuid: Uuid) -> bool {
        self.with_readers(uuid).iter().all(|lvol| {
            let attributes = &self.state.lvols[lvol].record.attributes;
            attributes.contains_key(LOST) || attributes.len() < MAX_ATTRIBUTES
        })
    }

    /// Marks an lvol that lost something, and those that read through it: zeroes in the place of data must not pass for data, unless
    /// a person says so. Hashes of what was there are hashes of nothing now.
    fn note_loss(&mut self, uuid: Uuid, bytes: u64, mark: bool) {
        for lvol in self.with_readers(uuid) {
            self.drop_hashes(lvol);
            if let Some(known) = self.state.lvols.get_mut(&lvol).filter(|_| mark) {
                let before = known.record.attributes.get(LOST).and_then(|value| value.as_slice().try_into().ok());
                let lost = before.map_or(0, u64::from_le_bytes).saturating_add(bytes);
                known.record.attributes.insert(LOST.to_owned(), lost.to_le_bytes().to_vec());
            }
        }
    }

    /// The zeroes in the place of what an lvol lost are its content from now on.
    fn unmark(&mut self, uuid: Uuid) {
        let Some(known) = self.state.lvols.get_mut(&uuid) else { return };
        if known.record.attributes.remove(LOST).is_some() {
            self.steps.push(format!("what lvol {uuid} lost is served as zeroes"));
        }
    }

    fn drop_hashes(&mut self, owner: Uuid) {
        let is_table = |record: &LvolRecord| {
            record.internal.is_some_and(|internal| internal.owner == owner && internal.role == Role::Hashes)
        };
        let tables = self.state.lvols.values().filter(|known| is_table(&known.record));
        let tables: Vec<(Uuid, u32)> = tables.map(|known| (known.record.uuid, known.record.map)).collect();
        for (table, map) in tables {
            self.state.lvols.remove(&table);
            self.state.maps.remove(&map);
        }
    }

    /// Writes what was decided.
    async fn write(&mut self, disk: &Disk) -> Result<(), StoreError> {
        let state = &self.state;
        let unwritten = state.zeroes.iter().map(|&(cluster, block)| {
            let offset = state.superblock.layout.cluster_offset(cluster) + u64::from(block) * BLOCK;
            offset..offset + BLOCK
        });
        for range in unwritten.chain(self.zeroes.iter().cloned()) {
            let result = disk.write_zeroes(range.start, range.end - range.start).await;
            result.map_err(StoreError::io("zeroing what is unknown"))?;
        }
        let damaged = !self.damaged.is_empty() || state.lost_lvols > 0;
        let catalog = self.catalog(damaged);
        let (batch, position) = state.end;
        let start = ReplayStart { batch, position };
        let journal = Journal::new(state.superblock.layout.journal, state.superblock.session + 1, start);
        let opened = Opened { clean: state.superblock.clean, damaged };
        let core = Core::new(disk.clone(), state.superblock.clone(), catalog, journal, opened);
        {
            let mut superblock = core.superblock.borrow_mut();
            superblock.session += 1;
            superblock.boot_id = reactor::boot_id();
            superblock.clean = true;
        }
        core.checkpoint().await?;
        core.close();
        Ok(())
    }

    /// What was decided as a store has it.
    fn catalog(&self, damaged: bool) -> Catalog {
        let state = &self.state;
        let layout = state.superblock.layout;
        let mut catalog = Catalog::new(layout);
        catalog.next_map = state.superblock.next_map.max(1);
        for (&id, known) in &state.maps {
            catalog.add_map(id);
            let mut leaf = 0;
            while let Some(segment) = known.map.next_segment(leaf) {
                leaf = segment.leaf + 1;
                // What a map gave out it takes in.
                let _ = catalog.maps.change(id, |map| map.load(&segment, |cluster| layout.is_data(cluster)));
            }
            known.map.each_cluster(|cluster| {
                catalog.allocator.claim(cluster);
            });
            if self.damaged.contains(&id) {
                catalog.maps.damage(id, "its map was found damaged earlier");
            }
        }
        for known in state.lvols.values() {
            catalog.insert(known.record.clone(), None);
        }
        if damaged {
            for place in 0..layout.clusters {
                if state.bitmap[(place / 64) as usize] >> (place % 64) & 1 == 1 {
                    catalog.allocator.claim(layout.first_cluster + place);
                }
            }
        }
        state.marks.runs().into_iter().for_each(|run| catalog.marks.set(run, true));
        catalog.drop_old_marks();
        catalog
    }
}
