//! Error kinds on the wire and back, and the words of lists.

use block_device::{Error, ErrorKind, Range};
use replica_protocol as wire;
use replica_protocol::Status;
use uuid::Uuid;

use crate::{ChainEntry, DamagedRegion, Extent, ExtentKind, Extents, LvolKind, Note, ReplicaState};

/// The status of an error kind.
pub(crate) const fn status_of(kind: ErrorKind) -> Status {
    match kind {
        ErrorKind::InvalidRange => Status::InvalidRange,
        ErrorKind::InvalidField => Status::InvalidField,
        ErrorKind::NoSpace => Status::NoSpace,
        ErrorKind::ReadFailed => Status::ReadFailed,
        ErrorKind::WriteFailed => Status::WriteFailed,
        ErrorKind::CompareMismatch => Status::CompareMismatch,
        ErrorKind::ReadOnly => Status::ReadOnly,
        ErrorKind::Fenced => Status::Fenced,
        ErrorKind::Unavailable => Status::Unavailable,
        ErrorKind::Busy => Status::Busy,
        ErrorKind::TimedOut => Status::TimedOut,
        ErrorKind::Aborted => Status::Aborted,
        ErrorKind::Internal => Status::Internal,
    }
}

/// The error of a status; none for a good one.
pub(crate) fn error_of(status: Status, text: Option<String>) -> Option<Error> {
    let kind = match status {
        Status::Good => return None,
        Status::InvalidRange => ErrorKind::InvalidRange,
        Status::InvalidField | Status::NotFound | Status::Conflict => ErrorKind::InvalidField,
        Status::NoSpace => ErrorKind::NoSpace,
        Status::ReadFailed => ErrorKind::ReadFailed,
        Status::WriteFailed => ErrorKind::WriteFailed,
        Status::CompareMismatch => ErrorKind::CompareMismatch,
        Status::ReadOnly => ErrorKind::ReadOnly,
        Status::Fenced => ErrorKind::Fenced,
        Status::Unavailable => ErrorKind::Unavailable,
        Status::Busy => ErrorKind::Busy,
        Status::TimedOut => ErrorKind::TimedOut,
        Status::Aborted => ErrorKind::Aborted,
        Status::Internal => ErrorKind::Internal,
    };
    Some(match text.filter(|text| !text.is_empty()) {
        Some(text) => Error::with_detail(kind, text),
        None => Error::new(kind),
    })
}

impl From<ReplicaState> for wire::State {
    fn from(state: ReplicaState) -> Self {
        match state {
            ReplicaState::Complete => Self::Complete,
            ReplicaState::Rebuilding => Self::Rebuilding,
        }
    }
}

impl From<wire::State> for ReplicaState {
    fn from(state: wire::State) -> Self {
        match state {
            wire::State::Complete => Self::Complete,
            wire::State::Rebuilding => Self::Rebuilding,
        }
    }
}

pub(crate) fn chain_to_wire(chain: &[ChainEntry]) -> wire::Chain {
    let entry = |entry: &ChainEntry| wire::ChainEntry {
        id: entry.id.into_bytes(),
        created: entry.created,
        size: entry.size,
        kind: match entry.kind {
            LvolKind::Head => wire::LvolKind::Head,
            LvolKind::Snapshot => wire::LvolKind::Snapshot,
        },
        name: entry.name.clone(),
    };
    wire::Chain(chain.iter().map(entry).collect())
}

pub(crate) fn chain_from_wire(chain: wire::Chain) -> Vec<ChainEntry> {
    let entry = |entry: wire::ChainEntry| ChainEntry {
        id: Uuid::from_bytes(entry.id),
        created: entry.created,
        size: entry.size,
        kind: match entry.kind {
            wire::LvolKind::Head => LvolKind::Head,
            wire::LvolKind::Snapshot => LvolKind::Snapshot,
        },
        name: entry.name,
    };
    chain.0.into_iter().map(entry).collect()
}

pub(crate) fn extents_to_wire(extents: &Extents) -> wire::Extents {
    let extent = |extent: &Extent| wire::Extent {
        offset: extent.range.offset,
        length: extent.range.length,
        kind: match extent.kind {
            ExtentKind::Data => wire::ExtentKind::Data,
            ExtentKind::Zero => wire::ExtentKind::Zero,
        },
    };
    wire::Extents { list: extents.list.iter().map(extent).collect(), next: extents.next }
}

pub(crate) fn extents_from_wire(extents: wire::Extents) -> Extents {
    let extent = |extent: wire::Extent| Extent {
        range: Range { offset: extent.offset, length: extent.length },
        kind: match extent.kind {
            wire::ExtentKind::Data => ExtentKind::Data,
            wire::ExtentKind::Zero => ExtentKind::Zero,
        },
    };
    Extents { list: extents.list.into_iter().map(extent).collect(), next: extents.next }
}

pub(crate) fn damage_to_wire(damage: &[DamagedRegion]) -> wire::Damage {
    let region =
        |region: &DamagedRegion| wire::DamagedRegion { snapshot: region.snapshot.into_bytes(), offset: region.offset };
    wire::Damage(damage.iter().map(region).collect())
}

pub(crate) fn damage_from_wire(damage: wire::Damage) -> Vec<DamagedRegion> {
    let region = |region: wire::DamagedRegion| DamagedRegion {
        snapshot: Uuid::from_bytes(region.snapshot),
        offset: region.offset,
    };
    damage.0.into_iter().map(region).collect()
}

pub(crate) fn notes_to_wire(notes: Vec<Note>) -> wire::Notes {
    let note = |Note { place, current, content }| wire::Note { place, current, content };
    wire::Notes(notes.into_iter().map(note).collect())
}

pub(crate) fn notes_from_wire(notes: wire::Notes) -> Vec<Note> {
    let note = |wire::Note { place, current, content }| Note { place, current, content };
    notes.0.into_iter().map(note).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_kind_comes_back_as_itself() {
        for kind in ErrorKind::ALL {
            let error = error_of(status_of(kind), None).expect("an error has a bad status");
            assert_eq!(error.kind(), kind);
        }
        assert_eq!(ErrorKind::ALL.len() + 3, Status::ALL.len(), "good, not found and conflict are the others");
    }

    #[test]
    fn fenced_has_a_status_of_its_own() {
        let same = ErrorKind::ALL.into_iter().filter(|kind| status_of(*kind) == Status::Fenced);
        assert_eq!(same.collect::<Vec<_>>(), [ErrorKind::Fenced]);
    }

    #[test]
    fn the_words_of_an_error_survive() {
        let error = error_of(Status::NoSpace, Some("12 clusters missing".into())).expect("an error");
        assert!(error.to_string().ends_with("12 clusters missing"), "{error}");
    }
}
