//! What a replica keeps on its head lvol, as one attribute that changes as a whole: `docs/replication.md`.

use uuid::Uuid;

use crate::ReplicaState;

/// The attribute of a head.
pub(crate) const REPLICA: &str = "replica";

/// The attribute of a head: the engine's copy of the membership record, its bytes.
pub(crate) const MEMBERSHIP: &str = "membership";

/// The attribute of a head: what is kept with that copy, or where it is.
pub(crate) const ATTACHED: &str = "attached";

/// The attribute of a head: the name of the node whose volume it is of, for whoever looks for its owner.
pub(crate) const OWNER: &str = "owner";

/// The attribute of a snapshot: the uuid of the replica whose it is.
pub(crate) const SNAPSHOT_OF: &str = "snapshot-of";

/// The attribute of a snapshot whose lvol could not have the snapshot's uuid: that uuid.
pub(crate) const SNAPSHOT_ID: &str = "snapshot-id";

const VERSION: u16 = 1;
const SIZE: usize = 80;

/// The content of the attribute [`REPLICA`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attribute {
    pub(crate) state: ReplicaState,
    pub(crate) replica: Uuid,
    pub(crate) volume: Uuid,
    /// Which head of this replica it is: a reset makes a new one.
    pub(crate) generation: u64,
    /// The highest epoch granted; zero before the first.
    pub(crate) epoch: u64,
    /// The engine it was granted to; nil before the first.
    pub(crate) instance: Uuid,
}

impl Attribute {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; SIZE];
        bytes[0..2].copy_from_slice(&VERSION.to_le_bytes());
        bytes[2] = match self.state {
            ReplicaState::Complete => 0,
            ReplicaState::Rebuilding => 1,
        };
        bytes[8..24].copy_from_slice(self.replica.as_bytes());
        bytes[24..40].copy_from_slice(self.volume.as_bytes());
        bytes[40..48].copy_from_slice(&self.generation.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[56..72].copy_from_slice(self.instance.as_bytes());
        bytes
    }

    /// None for an attribute that this version did not write.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; SIZE] = bytes.try_into().ok()?;
        let state = match bytes[2] {
            0 => ReplicaState::Complete,
            1 => ReplicaState::Rebuilding,
            _ => return None,
        };
        let known = bytes[0..2] == VERSION.to_le_bytes() && bytes[3..8] == [0; 5] && bytes[72..] == [0; 8];
        known.then(|| Self {
            state,
            replica: Uuid::from_bytes(part(bytes, 8)),
            volume: Uuid::from_bytes(part(bytes, 24)),
            generation: u64::from_le_bytes(part(bytes, 40)),
            epoch: u64::from_le_bytes(part(bytes, 48)),
            instance: Uuid::from_bytes(part(bytes, 56)),
        })
    }
}

fn part<const N: usize>(bytes: &[u8; SIZE], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute() -> Attribute {
        Attribute {
            state: ReplicaState::Rebuilding,
            replica: Uuid::from_bytes([1; 16]),
            volume: Uuid::from_bytes([2; 16]),
            generation: 3,
            epoch: 0x0405,
            instance: Uuid::from_bytes([6; 16]),
        }
    }

    #[test]
    fn the_bytes_are_pinned() {
        let mut expected = vec![1, 0, 1, 0, 0, 0, 0, 0];
        expected.extend([1; 16]);
        expected.extend([2; 16]);
        expected.extend([3, 0, 0, 0, 0, 0, 0, 0, 5, 4, 0, 0, 0, 0, 0, 0]);
        expected.extend([6; 16]);
        expected.extend([0; 8]);
        assert_eq!(attribute().encode(), expected);
        assert_eq!(Attribute::decode(&expected), Some(attribute()));
    }

    #[test]
    fn what_another_version_wrote_is_not_guessed_at() {
        for (at, value) in [(0, 2), (2, 2), (3, 1), (79, 1)] {
            let mut bytes = attribute().encode();
            bytes[at] = value;
            assert_eq!(Attribute::decode(&bytes), None, "byte {at}");
        }
        assert_eq!(Attribute::decode(&attribute().encode()[..79]), None);
    }
}
