//! Replicas as the store's lvols show them: pure functions over one reading of the store.
//!
//! Most look at the lvols of one replica, which the store finds by [`group_of`]: what it costs to ask for one replica does not depend on how many
//! others there are.

use std::collections::{BTreeMap, BTreeSet};

use lvol::{LvolInfo, LvolState};
use uuid::Uuid;

use super::attribute::{Attribute, REPLICA, SNAPSHOT_ID, SNAPSHOT_OF};
use super::{ReplicaInfo, ReplicaSpec};
use crate::{ChainEntry, DamagedRegion, LvolKind};

/// The store has no circles; a chain longer than this, which is more than it allows, would be one.
const LONGEST_CHAIN: usize = 4096;

/// The replica that an lvol with these attributes is of: its head, or one of its snapshots.
pub(super) fn group_of(attributes: &BTreeMap<String, Vec<u8>>) -> Option<Uuid> {
    match attributes.get(REPLICA) {
        Some(value) => Attribute::decode(value).map(|attribute| attribute.replica),
        None => Uuid::from_slice(attributes.get(SNAPSHOT_OF)?).ok(),
    }
}

/// The head of a replica: of several, the one a reset made last.
pub(super) fn head(lvols: &[LvolInfo], replica: Uuid) -> Option<(LvolInfo, Attribute)> {
    let (lvol, attribute) = heads(lvols, replica).max_by_key(|(_, attribute)| attribute.generation)?;
    Some((lvol.clone(), attribute))
}

fn heads(lvols: &[LvolInfo], replica: Uuid) -> impl Iterator<Item = (&LvolInfo, Attribute)> {
    lvols
        .iter()
        .filter_map(|lvol| Some((lvol, attribute_of(lvol)?)))
        .filter(move |(_, attribute)| attribute.replica == replica)
}

fn attribute_of(lvol: &LvolInfo) -> Option<Attribute> {
    (lvol.kind == lvol::LvolKind::Head).then(|| Attribute::decode(lvol.attributes.get(REPLICA)?)).flatten()
}

/// Every lvol of a replica: all its heads and snapshots, but for those that the store is about to delete anyway.
pub(super) fn of_replica(lvols: &[LvolInfo], replica: Uuid) -> Vec<Uuid> {
    let snapshots = lvols.iter().filter(|lvol| is_snapshot_of(lvol, replica));
    heads(lvols, replica).map(|(lvol, _)| lvol).chain(snapshots).map(|lvol| lvol.uuid).collect()
}

fn is_snapshot_of(lvol: &LvolInfo, replica: Uuid) -> bool {
    lvol.deletion.is_none() && belongs_to(lvol, replica)
}

/// Whether a snapshot was cut from this replica. What a clone begins with was not.
fn belongs_to(snapshot: &LvolInfo, replica: Uuid) -> bool {
    snapshot.attributes.get(SNAPSHOT_OF).is_some_and(|value| value == replica.as_bytes())
}

/// Whether an lvol is no snapshot of the volume, of whatever replica. One whose replica has no head any more is being deleted with it.
pub(super) fn is_something_else(lvol: &LvolInfo, volume: Uuid, group: impl Fn(Uuid) -> Vec<LvolInfo>) -> bool {
    let owner = lvol.attributes.get(SNAPSHOT_OF).and_then(|owner| Uuid::from_slice(owner).ok());
    let is_other = |owner| head(&group(owner), owner).is_some_and(|(_, owner)| owner.volume != volume);
    lvol.deletion.is_none() && owner.is_none_or(is_other)
}

/// What engines call an lvol of a chain: the same snapshot has the same name on all replicas, whatever its lvol is called.
pub(super) fn id_of(lvol: &LvolInfo) -> Uuid {
    lvol.attributes.get(SNAPSHOT_ID).and_then(|value| Uuid::from_slice(value).ok()).unwrap_or(lvol.uuid)
}

/// An lvol of a replica's chain, by what engines call it.
pub(super) fn in_chain(chain: &[LvolInfo], id: Uuid) -> Option<&LvolInfo> {
    chain.iter().find(|lvol| id_of(lvol) == id)
}

/// What an interrupted reset left behind: lvols of the replica outside its chain.
pub(super) fn leftovers(lvols: &[LvolInfo], replica: Uuid) -> Vec<Uuid> {
    let chain: BTreeSet<Uuid> = chain(lvols, replica).iter().map(|lvol| lvol.uuid).collect();
    of_replica(lvols, replica).into_iter().filter(|id| !chain.contains(id)).collect()
}

/// The chain of a replica, oldest first, the head last. What is to be deleted is not in it: the store counts its blocks as those
/// of whoever reads through it. Nor is what the replica was cloned from, whose blocks count as those of the oldest.
pub(super) fn chain(lvols: &[LvolInfo], replica: Uuid) -> Vec<LvolInfo> {
    let by_id: BTreeMap<Uuid, &LvolInfo> = lvols.iter().map(|lvol| (lvol.uuid, lvol)).collect();
    let mut chain = Vec::new();
    let mut next = head(lvols, replica).map(|(lvol, _)| lvol.uuid);
    while let Some(lvol) = next.and_then(|id| by_id.get(&id)) {
        if !chain.is_empty() && !belongs_to(lvol, replica) {
            break;
        }
        chain.push((*lvol).clone());
        // The store has no circles; a chain longer than the store would be one.
        next = lvol.parent.filter(|_| chain.len() <= lvols.len());
    }
    chain.retain(|lvol| lvol.deletion.is_none());
    chain.reverse();
    chain
}

/// A chain as engines and people see it.
pub(super) fn entries(chain: &[LvolInfo]) -> Vec<ChainEntry> {
    let entry = |lvol: &LvolInfo| ChainEntry {
        id: id_of(lvol),
        created: lvol.created_at.as_secs(),
        size: lvol.size,
        kind: match lvol.kind {
            lvol::LvolKind::Head => LvolKind::Head,
            lvol::LvolKind::Snapshot => LvolKind::Snapshot,
        },
        name: lvol.name.clone(),
    };
    chain.iter().map(entry).collect()
}

/// What is damaged of a chain's snapshots.
pub(super) fn damage(chain: &[LvolInfo], bad: &[lvol::BadRegion]) -> Vec<DamagedRegion> {
    let named = |bad: &lvol::BadRegion| {
        let lvol = chain.iter().find(|lvol| lvol.uuid == bad.lvol)?;
        Some(DamagedRegion { snapshot: id_of(lvol), offset: bad.offset })
    };
    bad.iter().filter_map(named).collect()
}

/// One replica, of its own lvols; `find` gives others.
pub(super) fn replica(
    lvols: &[LvolInfo],
    store: Uuid,
    replica: Uuid,
    find: impl Fn(Uuid) -> Option<LvolInfo>,
) -> Option<(ReplicaInfo, Attribute)> {
    let (lvol, attribute) = head(lvols, replica)?;
    let chain = chain(lvols, replica);
    let mut snapshots = entries(&chain);
    snapshots.pop();
    let damage = chain.iter().find_map(|lvol| match &lvol.state {
        LvolState::Ready => None,
        LvolState::Damaged { reason } => Some(reason.clone()),
    });
    let damage = damage.or_else(|| lost(lvol.uuid, find));
    let spec = ReplicaSpec {
        replica,
        volume: attribute.volume,
        name: lvol.name,
        size: lvol.size,
        block_size: lvol.block_size,
    };
    let used_bytes = chain.iter().map(|lvol| lvol.used_bytes).sum();
    let info =
        ReplicaInfo { spec, epoch: attribute.epoch, store, state: attribute.state, damage, snapshots, used_bytes };
    Some((info, attribute))
}

/// Why a head that reads through one of which a repair gave something up must not be served: zeroes would pass for data.
pub(super) fn lost(head: Uuid, find: impl Fn(Uuid) -> Option<LvolInfo>) -> Option<String> {
    let mut next = Some(head);
    for _ in 0..LONGEST_CHAIN {
        let lvol = find(next?)?;
        if let Some(bytes) = lvol.lost_bytes() {
            return Some(format!("a repair of its store gave up {bytes} bytes of it: replace it by another replica"));
        }
        next = lvol.parent;
    }
    None
}

/// All replicas, in the order of their uuids, of all lvols, which are in the order of theirs.
pub(super) fn replicas(lvols: Vec<LvolInfo>, store: Uuid) -> Vec<ReplicaInfo> {
    let mut groups: BTreeMap<Uuid, Vec<LvolInfo>> = BTreeMap::new();
    for lvol in &lvols {
        if let Some(group) = group_of(&lvol.attributes) {
            groups.entry(group).or_default().push(lvol.clone());
        }
    }
    let find = |id| lvols.binary_search_by_key(&id, |lvol| lvol.uuid).ok().map(|place| lvols[place].clone());
    groups.iter().filter_map(|(id, own)| replica(own, store, *id, find)).map(|(info, _)| info).collect()
}
