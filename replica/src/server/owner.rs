//! Which replica an lvol belongs to, for whoever looks at a store's lvols one by one.

use std::collections::BTreeMap;

use lvol::LvolInfo;
use uuid::Uuid;

use super::attribute::{Attribute, REPLICA, SNAPSHOT_OF};

/// The replica that an lvol belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// None when the lvol says so in a way that this version does not know.
    pub replica: Option<Uuid>,
    /// The replica's volume; None when the replica has no head any more.
    pub volume: Option<Uuid>,
}

/// The lvols of a store that belong to replicas, by UUID. The others are whoever's made them.
pub fn owners(lvols: &[LvolInfo]) -> BTreeMap<Uuid, Owner> {
    let attribute = |lvol: &LvolInfo| lvol.attributes.get(REPLICA).map(|value| Attribute::decode(value));
    let volumes: BTreeMap<Uuid, Uuid> =
        lvols.iter().filter_map(|lvol| attribute(lvol)?.map(|found| (found.replica, found.volume))).collect();
    let owner = |lvol: &LvolInfo| {
        if let Some(found) = attribute(lvol) {
            return Some(Owner { replica: found.map(|found| found.replica), volume: found.map(|found| found.volume) });
        }
        let replica = Uuid::from_slice(lvol.attributes.get(SNAPSHOT_OF)?).ok();
        Some(Owner { replica, volume: replica.and_then(|replica| volumes.get(&replica).copied()) })
    };
    lvols.iter().filter_map(|lvol| Some((lvol.uuid, owner(lvol)?))).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lvol::{LvolKind, LvolState};

    use super::*;
    use crate::ReplicaState;

    fn lvol(uuid: u128, attributes: &[(&str, Vec<u8>)]) -> LvolInfo {
        LvolInfo {
            uuid: Uuid::from_u128(uuid),
            name: "v".to_owned(),
            size: 4096,
            block_size: 4096,
            kind: LvolKind::Head,
            parent: None,
            children: Vec::new(),
            created_at: Duration::ZERO,
            used_bytes: 0,
            attributes: attributes.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect(),
            state: LvolState::Ready,
            incomplete: false,
            deletion: None,
        }
    }

    #[test]
    fn heads_and_snapshots_belong_to_their_replica_and_others_to_nobody() {
        let (replica, gone, volume) = (Uuid::from_u128(10), Uuid::from_u128(11), Uuid::from_u128(20));
        let head = Attribute {
            state: ReplicaState::Complete,
            replica,
            volume,
            generation: 0,
            epoch: 0,
            instance: Uuid::nil(),
        };
        let of = |replica: Uuid| (SNAPSHOT_OF, replica.as_bytes().to_vec());
        let lvols = [
            lvol(1, &[(REPLICA, head.encode())]),
            lvol(2, &[of(replica)]),
            lvol(3, &[of(gone)]),
            lvol(4, &[(REPLICA, vec![1, 2, 3])]),
            lvol(5, &[("color", vec![1])]),
        ];
        let found: Vec<_> = owners(&lvols).into_iter().map(|(uuid, owner)| (uuid.as_u128(), owner)).collect();
        let whole = Owner { replica: Some(replica), volume: Some(volume) };
        let orphan = Owner { replica: Some(gone), volume: None };
        assert_eq!(found, [(1, whole), (2, whole), (3, orphan), (4, Owner::default())]);
    }
}
