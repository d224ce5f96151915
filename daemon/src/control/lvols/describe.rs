//! An lvol as the API shows it.

use block_device::Range;
use lvol::{Deletion, InternalInfo, LvolKind, WaitsFor};
use proto::v1::{self, LvolState};
use uuid::Uuid;

use crate::data::LvolFacts;

pub(super) fn describe(facts: &LvolFacts, store: String) -> v1::Lvol {
    let info = &facts.info;
    let (state, reason) = state(facts);
    let optional = |uuid: Option<Uuid>| uuid.map_or_else(String::new, |uuid| uuid.to_string());
    let owner = facts.owner.unwrap_or_default();
    v1::Lvol {
        uuid: info.uuid.to_string(),
        name: info.name.clone(),
        store,
        store_uuid: facts.store.to_string(),
        size_bytes: info.size,
        block_size_bytes: info.block_size,
        is_snapshot: info.kind == LvolKind::Snapshot,
        parent_uuid: optional(info.parent),
        children_uuids: info.children.iter().map(Uuid::to_string).collect(),
        created_at_unix_ms: i64::try_from(info.created_at.as_millis()).unwrap_or(i64::MAX),
        used_bytes: info.used_bytes,
        state: state.into(),
        reason,
        replica_uuid: optional(owner.replica),
        volume_uuid: optional(owner.volume),
        deletion: info.deletion.as_ref().map(deletion),
        usage: facts
            .usage
            .map(|usage| v1::LvolUsage { unique_bytes: usage.unique, referenced_bytes: usage.referenced }),
        internal: facts.internal.iter().map(internal).collect(),
        bad_regions: facts.bad_regions,
        damaged: facts.damaged.iter().map(range).collect(),
    }
}

fn state(facts: &LvolFacts) -> (LvolState, String) {
    let info = &facts.info;
    match &info.state {
        lvol::LvolState::Damaged { reason } => (LvolState::Damaged, reason.clone()),
        lvol::LvolState::Ready if info.deletion.is_some() => (LvolState::Deleting, "it is being deleted".to_owned()),
        lvol::LvolState::Ready if info.incomplete => {
            (LvolState::Incomplete, "an import of it is under way or did not end".to_owned())
        }
        lvol::LvolState::Ready => {
            let told = |bytes| format!("a repair gave up {bytes} bytes of what it reads: they are zeroes now");
            (LvolState::Ready, info.lost_bytes().map_or_else(String::new, told))
        }
    }
}

fn deletion(deletion: &Deletion) -> v1::LvolDeletion {
    let waits_for = match deletion.waits_for {
        Some(WaitsFor::Children) => "several lvols read through it: it goes when it is one at most".to_owned(),
        Some(WaitsFor::Users) => "it is being read".to_owned(),
        Some(WaitsFor::Repair) => "an lvol that reads through it, or one that it reads through, is damaged".to_owned(),
        None => deletion.error.as_ref().map_or_else(String::new, |error| format!("another attempt, after: {error}")),
    };
    let done = deletion.total.saturating_sub(deletion.left);
    let percent = u128::from(done) * 100 / u128::from(deletion.total.max(1));
    v1::LvolDeletion {
        is_merging: deletion.merging,
        // At most 100.
        percent: percent as u32,
        left_bytes: deletion.left,
        waits_for,
        total_bytes: deletion.total,
    }
}

fn range(range: &Range) -> v1::LvolRange {
    v1::LvolRange { offset_bytes: range.offset, length_bytes: range.length }
}

fn internal(info: &InternalInfo) -> v1::InternalLvol {
    let reason = match &info.state {
        lvol::LvolState::Ready => String::new(),
        lvol::LvolState::Damaged { reason } => reason.clone(),
    };
    v1::InternalLvol {
        uuid: info.uuid.to_string(),
        role: info.role.name().to_owned(),
        size_bytes: info.size,
        used_bytes: info.used_bytes,
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deletion_tells_how_far_it_is_and_what_it_waits_for() {
        let of = |left, total, waits_for, error: Option<&str>| {
            deletion(&Deletion { merging: true, left, total, waits_for, error: error.map(str::to_owned) })
        };
        let half = of(50, 100, None, None);
        assert_eq!((half.percent, half.left_bytes, half.waits_for.as_str()), (50, 50, ""));
        assert_eq!(of(0, 0, None, None).percent, 0);
        assert_eq!(of(u64::MAX / 4, u64::MAX, None, None).percent, 75);
        assert!(of(1, 1, Some(WaitsFor::Children), None).waits_for.contains("several"));
        assert!(of(1, 1, None, Some("the disk failed")).waits_for.contains("the disk failed"));
    }
}
