//! What must be true of a store as a whole, once its structures are read.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::findings::{Finding, Remedy, Severity, Structure};
use super::load::entries;
use super::state::State;
use crate::catalog::MAX_CHAIN;
use crate::format::BLOCK;
use crate::format::record::{LvolRecord, Stage};
use crate::info::LOST;
use crate::map::Held;

/// How many lvols a text names before it only counts.
const NAMED: usize = 8;

/// What each data cluster belongs to.
pub(super) struct Owners {
    /// The map of each cluster, 0 for none. Map ids begin with 1.
    maps: Vec<u32>,
    /// Clusters that several entries name: which maps, and which clusters of the lvol.
    pub(super) contested: BTreeMap<u64, BTreeSet<(u32, u32)>>,
    /// How many clusters have an owner.
    pub(super) used: u64,
}

impl Owners {
    pub(super) fn of(state: &State) -> Self {
        let layout = state.superblock.layout;
        let mut owners = Self { maps: vec![0; layout.clusters as usize], contested: BTreeMap::new(), used: 0 };
        for (&id, known) in &state.maps {
            known.map.each_cluster(|cluster| {
                // Maps load no cluster that is none.
                let owner = &mut owners.maps[(cluster - layout.first_cluster) as usize];
                if *owner == 0 {
                    *owner = id;
                    owners.used += 1;
                } else {
                    owners.contested.entry(cluster).or_default();
                }
            });
        }
        if !owners.contested.is_empty() {
            owners.find_claims(state);
        }
        owners
    }

    fn find_claims(&mut self, state: &State) {
        for (&id, known) in &state.maps {
            for index in entries(&known.map) {
                if let Held::Data(cluster) = known.map.kind(index)
                    && let Some(claims) = self.contested.get_mut(&cluster)
                {
                    claims.insert((id, index));
                }
            }
        }
    }
}

/// Checks a state. What several lvols claim becomes unknown to all of them.
pub(super) fn check(state: &mut State) -> Owners {
    let owners = Owners::of(state);
    check_claims(state, &owners);
    check_chains(state);
    check_marks(state);
    check_internal(state);
    check_maps(state);
    check_records(state);
    check_lost(state);
    check_bitmap(state, &owners);
    owners
}

/// Lvols in words, the first few of them.
fn list(lvols: &[Uuid]) -> String {
    let named: Vec<String> = lvols.iter().take(NAMED).map(Uuid::to_string).collect();
    let more = lvols.len().saturating_sub(NAMED);
    if more > 0 { format!("{} and {more} more", named.join(", ")) } else { named.join(", ") }
}

fn check_claims(state: &mut State, owners: &Owners) {
    // One finding for each group of lvols that claim the same clusters.
    let mut groups: BTreeMap<BTreeSet<u32>, u64> = BTreeMap::new();
    for claims in owners.contested.values() {
        *groups.entry(claims.iter().map(|(map, _)| *map).collect()).or_default() += 1;
        for &(map, index) in claims {
            let blocks = state.blocks_of(u64::from(index)..u64::from(index) + 1);
            state.map(map).unknown.insert(blocks);
        }
    }
    for (maps, clusters) in groups {
        let claim =
            |map: &u32| state.lvols.values().find(|known| known.record.map == *map).map(|known| known.record.uuid);
        let lvols: Vec<Uuid> = maps.iter().filter_map(claim).collect();
        let text = format!(
            "{clusters} clusters are claimed by several entries, of {}: whose data is in them nobody knows, and neither is served",
            list(&lvols)
        );
        let what = "each of them gives the clusters up; its blocks there become zeroes".to_owned();
        let remedy = Remedy::AcceptLoss { lvols, what };
        state.findings.push(Finding::new(Severity::Error, Structure::Map, text, remedy));
    }
    let mut shared: BTreeMap<u32, Vec<Uuid>> = BTreeMap::new();
    state.lvols.values().for_each(|known| shared.entry(known.record.map).or_default().push(known.record.uuid));
    for (map, lvols) in shared.into_iter().filter(|(_, lvols)| lvols.len() > 1) {
        let text = format!("map {map} belongs to several lvols: {}", list(&lvols));
        let remedy = Remedy::Impossible("export both, delete both, and import what is right".to_owned());
        state.findings.push(Finding::new(Severity::Error, Structure::Map, text, remedy));
    }
}

/// Whose parents are missing or run in a circle.
fn check_chains(state: &mut State) {
    let mut found = Vec::new();
    for (uuid, known) in &state.lvols {
        let Some(parent) = known.record.parent else { continue };
        let above = state.lvols.get(&parent);
        let chain = state.chain(*uuid);
        // Told of once: of the lvol whose own parent it is.
        let endless = chain.last().and_then(|last| state.lvols.get(last)).and_then(|last| last.record.parent);
        let circle = endless.is_some_and(|next| chain.contains(&next)) || chain.len() == MAX_CHAIN && endless.is_some();
        let problem = match above {
            None => Some("is missing: what it does not hold itself is lost".to_owned()),
            Some(_) if circle => Some("leads to a chain that is too long or has no end".to_owned()),
            Some(above) if !above.record.snapshot => {
                Some("is no snapshot: what is read through it may have changed since".to_owned())
            }
            Some(above)
                if above.record.size > known.record.size || above.record.block_size != known.record.block_size =>
            {
                Some("has another block size or is larger".to_owned())
            }
            Some(_) => None,
        };
        if let Some(problem) = problem {
            let what = "it reads through nobody any more: what it does not hold itself becomes zeroes".to_owned();
            let remedy = Remedy::AcceptLoss { lvols: vec![*uuid], what };
            let text = format!("its parent {parent} {problem}");
            let mut finding = Finding::new(Severity::Error, Structure::Chain, text, remedy).at(known.offset).of(*uuid);
            finding.unknown = not_held(state, *uuid);
            found.push(finding);
        }
    }
    state.findings.append(&mut found);
}

/// The bytes of an lvol that its own map does not hold.
fn not_held(state: &State, uuid: Uuid) -> Vec<std::ops::Range<u64>> {
    let Some(known) = state.lvols.get(&uuid) else { return Vec::new() };
    let Some(own) = state.maps.get(&known.record.map) else { return Vec::new() };
    let mut absent = super::ranges::Ranges::default();
    absent.insert(0..known.record.size.div_ceil(BLOCK));
    let blocks = state.shape.blocks();
    for index in entries(&own.map) {
        let mut at = 0;
        while at < blocks {
            let run = own.map.run(index, at, blocks - at);
            let start = u64::from(index) * u64::from(blocks) + u64::from(at);
            if run.held != Held::Nothing {
                absent.remove(start..start + u64::from(run.count));
            }
            at += run.count;
        }
    }
    let end = known.record.size.div_ceil(BLOCK);
    absent.below(end).map(|run| run.start * BLOCK..(run.end * BLOCK).min(known.record.size)).collect()
}

/// Deletion marks that cannot be.
fn check_marks(state: &mut State) {
    let mut children: BTreeMap<Uuid, u32> = BTreeMap::new();
    state
        .lvols
        .values()
        .filter_map(|known| known.record.parent)
        .for_each(|parent| *children.entry(parent).or_default() += 1);
    let mut found = Vec::new();
    for (uuid, known) in &state.lvols {
        let children = children.get(uuid).copied().unwrap_or(0);
        let problem = match known.record.deletion {
            Some(Stage::Merging) if children > 1 => "is half merged into its child, but several read through it",
            Some(_) if !known.record.snapshot => {
                "is marked for deletion in the background, which only snapshots can be"
            }
            _ => continue,
        };
        let remedy = Remedy::Impossible("export what is needed, then delete it and its children".to_owned());
        let finding = Finding::new(Severity::Error, Structure::Record, problem, remedy);
        found.push(finding.at(known.offset).of(*uuid));
    }
    state.findings.append(&mut found);
}

/// Internal lvols whose owner is gone: nobody will ever delete them.
fn check_internal(state: &mut State) {
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    for (uuid, known) in &state.lvols {
        let Some(internal) = known.record.internal else { continue };
        let owner = internal.owner;
        let owned = state.lvols.get(&owner).is_some_and(|owner| owner.record.internal.is_none());
        let (text, remedy) = if !owned && state.lost_lvols > 0 {
            (format!("it belongs to {owner}, of which nothing is left"), Remedy::Nothing)
        } else if !owned {
            (format!("it belongs to {owner}, which is not there"), Remedy::Repair("it is removed".to_owned()))
        } else if !seen.insert((owner, internal.role.number())) {
            let text = format!("{owner} has several internal lvols for {}", internal.role.name());
            (text, Remedy::Impossible("delete the owner, and let replicas elsewhere rebuild it".to_owned()))
        } else {
            continue;
        };
        let finding = Finding::new(Severity::Warning, Structure::Record, text, remedy);
        found.push(finding.at(known.offset).of(*uuid));
    }
    state.findings.append(&mut found);
}

/// Entries that are lost, and entries that nobody can reach.
fn check_maps(state: &mut State) {
    let mut found = Vec::new();
    for (uuid, known) in &state.lvols {
        let unknown = state.unknown_bytes(&known.record);
        if !unknown.is_empty() {
            let readers = state.readers(*uuid);
            let seen = match readers.is_empty() {
                true => String::new(),
                false => format!("; {} read through it and are not served either", list(&readers)),
            };
            let lost: u64 = unknown.iter().map(|range| range.end - range.start).sum();
            let text = format!("what its map had for {lost} bytes is not known: it is not served{seen}");
            let what = "these bytes become zeroes, and the rest can be read again".to_owned();
            let remedy = Remedy::AcceptLoss { lvols: vec![*uuid], what };
            let finding = Finding::new(Severity::Error, Structure::Map, text, remedy).of(*uuid);
            found.push(Finding { unknown, ..finding });
        }
        let Some(own) = state.maps.get(&known.record.map) else { continue };
        let clusters = known.record.size.div_ceil(u64::from(state.superblock.layout.cluster_size));
        let beyond = entries(&own.map).into_iter().filter(|index| u64::from(*index) >= clusters).count();
        if beyond > 0 {
            let text = format!("its map has {beyond} entries beyond its size: they only take space");
            let remedy = Remedy::Repair("they are removed, and their clusters are free".to_owned());
            found.push(Finding::new(Severity::Warning, Structure::Map, text, remedy).of(*uuid));
        }
    }
    state.findings.append(&mut found);
}

/// Lvols whose name and attributes are gone.
fn check_records(state: &mut State) {
    let mut found = Vec::new();
    for (uuid, known) in state.lvols.iter().filter(|(_, known)| known.nameless) {
        let text = "its record is lost, and with it its name and attributes; what it holds is not";
        let what = format!("it is called {} from then on, and has no attributes", new_name(&known.record));
        let finding = Finding::new(Severity::Error, Structure::Record, text, Remedy::Repair(what));
        found.push(finding.at(known.offset).of(*uuid));
    }
    state.findings.append(&mut found);
}

/// Lvols of which an earlier repair gave something up.
fn check_lost(state: &mut State) {
    let mut found = Vec::new();
    for (uuid, known) in state.lvols.iter().filter(|(_, known)| known.record.attributes.contains_key(LOST)) {
        let text = "a repair gave up some of what it reads, which reads as zeroes: no replica with it is opened";
        let what = "the zeroes count as its data; only where no other replica has the data".to_owned();
        let remedy = Remedy::ServeZeroes { lvols: vec![*uuid], what };
        let finding = Finding::new(Severity::Note, Structure::Record, text, remedy);
        found.push(finding.at(known.offset).of(*uuid));
    }
    state.findings.append(&mut found);
}

/// The name of an lvol that lost its own.
pub(super) fn new_name(record: &LvolRecord) -> String {
    match record.internal {
        Some(internal) => internal.role.name().to_owned(),
        None => format!("recovered-{}", record.uuid),
    }
}

/// The bitmap counts as long as something is damaged; otherwise only the maps do, and it must agree with them once the
/// store was closed in order.
fn check_bitmap(state: &mut State, owners: &Owners) {
    let superblock = &state.superblock;
    let layout = superblock.layout;
    let clusters = layout.clusters;
    // Those of checkpoint areas are in use, and nobody's.
    let is_data = |place: u64| layout.is_data(layout.first_cluster + place);
    let used = |place: u64| state.bitmap[(place / 64) as usize] >> (place % 64) & 1 == 1;
    let owned = |place: u64| owners.maps[place as usize] != 0;
    let leaked = (0..clusters).filter(|place| is_data(*place) && used(*place) && !owned(*place)).count();
    let missing = (0..clusters).filter(|place| !used(*place) && owned(*place)).count();
    if superblock.damaged {
        let text = format!(
            "the store was found damaged when it was opened: {leaked} clusters that no lvol is known to have are kept, as lost parts may have been in them"
        );
        let what = "once no lvol is damaged any more, they are free".to_owned();
        state.findings.push(Finding::new(Severity::Error, Structure::Bitmap, text, Remedy::Repair(what)));
    } else if superblock.clean && superblock.checkpoint.length > 0 && leaked + missing > 0 && !has_errors(state) {
        let text = format!(
            "the bitmap disagrees with the maps: {leaked} clusters in use belong to nobody, {missing} that belong to somebody are not in use. The maps count"
        );
        let what = "it is written anew from the maps".to_owned();
        state.findings.push(Finding::new(Severity::Warning, Structure::Bitmap, text, Remedy::Repair(what)));
    }
}

fn has_errors(state: &State) -> bool {
    state.findings.iter().any(|finding| finding.severity >= Severity::Error)
}
