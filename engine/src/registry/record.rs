//! What the registry keeps of a volume.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The most replicas of a volume: they are counted in masks.
pub const MAX_REPLICAS: usize = 16;

/// The most bytes of hosts' reservations.
pub const MAX_RESERVATIONS: usize = replica::MAX_ATTACHED as usize;

/// A volume's membership: who has what was acknowledged. `docs/replication.md` says what each change means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// Which volume.
    #[serde(with = "uuid_text")]
    pub volume: Uuid,
    /// Counts the changes of this record; the registry sets it.
    pub version: u64,
    /// The epoch of the newest engine; zero before the first.
    pub epoch: u64,
    /// The newest engine.
    #[serde(with = "uuid_text")]
    pub instance: Uuid,
    /// No write can have been in flight when the newest engine ended.
    pub clean: bool,
    /// Bytes.
    pub size: u64,
    /// 512 or 4096.
    pub block_size: u32,
    /// Its replicas, in the order in which they came.
    pub replicas: Vec<ReplicaRecord>,
    /// A change of all replicas that has begun. Whoever opens the volume next ends it before anything is served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<PendingChange>,
    /// The reservations that hosts have, as a frontend writes them (I38); empty without any.
    #[serde(default, with = "bytes_text", skip_serializing_if = "Vec::is_empty")]
    pub reservations: Vec<u8>,
}

/// A change that is made on one replica after the other, and has to be on all of them or on none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "is")]
pub enum PendingChange {
    /// The volume goes back to a snapshot.
    Revert {
        /// Which.
        #[serde(with = "uuid_text")]
        snapshot: Uuid,
    },
}

/// One replica of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaRecord {
    /// Which replica.
    #[serde(with = "uuid_text")]
    pub replica: Uuid,
    /// The name of its node.
    pub node: String,
    /// Where its node listens for engines.
    pub address: SocketAddr,
    /// What it has.
    pub state: MemberState,
    /// The token in its notes when it was in sync last: one made anew under its uuid has another.
    #[serde(default, with = "uuid_text::optional", skip_serializing_if = "Option::is_none")]
    pub token: Option<Uuid>,
    /// Names what it lacks, as the replicas in sync have it noted; none if it is in sync, or if that is not known.
    #[serde(default, with = "uuid_text::optional", skip_serializing_if = "Option::is_none")]
    pub changes: Option<Uuid>,
}

/// What a replica has of the acknowledged writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "is")]
pub enum MemberState {
    /// All of them: an acknowledgement waits for it.
    InSync,
    /// All of them, but where writes were in flight when an engine crashed it may differ from the one in sync.
    Settling,
    /// Not all; it is being made anew.
    Rebuilding,
    /// Not all.
    OutOfSync {
        /// Since when, in seconds since the Unix epoch.
        since: u64,
        /// Why, in words.
        reason: String,
    },
}

impl VolumeRecord {
    /// The record of a new volume, whose replicas were all just created and so are equal.
    pub fn new(volume: Uuid, size: u64, block_size: u32, replicas: impl IntoIterator<Item = NewReplica>) -> Self {
        Self {
            volume,
            version: 0,
            epoch: 0,
            instance: Uuid::nil(),
            clean: true,
            size,
            block_size,
            replicas: replicas.into_iter().map(|new| ReplicaRecord::new(new, MemberState::InSync)).collect(),
            pending: None,
            reservations: Vec::new(),
        }
    }

    /// Whether an engine can work with it. Something is always in sync (I3).
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.replicas.is_empty() || self.replicas.len() > MAX_REPLICAS {
            return Err(format!("{} replicas, not 1 to {MAX_REPLICAS}", self.replicas.len()));
        }
        if !self.replicas.iter().any(|replica| replica.state == MemberState::InSync) {
            return Err("no replica is in sync".to_owned());
        }
        if self.reservations.len() > MAX_RESERVATIONS {
            return Err(format!("{} bytes of reservations, not at most {MAX_RESERVATIONS}", self.reservations.len()));
        }
        Ok(())
    }
}

impl ReplicaRecord {
    /// One of which nothing else is known.
    pub(crate) fn new(new: NewReplica, state: MemberState) -> Self {
        let NewReplica { replica, node, address } = new;
        Self { replica, node, address, state, token: None, changes: None }
    }

    /// Which one it is, and where.
    pub(crate) fn named(&self) -> NewReplica {
        NewReplica { replica: self.replica, node: self.node.clone(), address: self.address }
    }
}

/// A replica of a new volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewReplica {
    /// Which replica.
    pub replica: Uuid,
    /// The name of its node.
    pub node: String,
    /// Where its node listens for engines.
    pub address: SocketAddr,
}

/// Bytes as text: two hexadecimal digits each.
mod bytes_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
        let text: String = digits.filter_map(|digit| char::from_digit(digit.into(), 16)).collect();
        serializer.serialize_str(&text)
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits: Option<Vec<u8>> = text.chars().map(|digit| digit.to_digit(16).map(|digit| digit as u8)).collect();
        let digits = digits.filter(|digits| digits.len() % 2 == 0);
        let digits = digits.ok_or_else(|| D::Error::custom("not an even number of hexadecimal digits"))?;
        Ok(digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
    }
}

/// UUIDs as text.
mod uuid_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use uuid::Uuid;

    pub(super) fn serialize<S: Serializer>(uuid: &Uuid, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(uuid)
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>>(deserializer: D) -> Result<Uuid, D::Error> {
        let text = String::deserialize(deserializer)?;
        Uuid::parse_str(&text).map_err(D::Error::custom)
    }

    pub(super) mod optional {
        use super::{Deserialize, Deserializer, Error, Serializer, Uuid};

        pub(in super::super) fn serialize<S: Serializer>(
            uuid: &Option<Uuid>,
            serializer: S,
        ) -> Result<S::Ok, S::Error> {
            match uuid {
                Some(uuid) => serializer.collect_str(uuid),
                None => serializer.serialize_none(),
            }
        }

        pub(in super::super) fn deserialize<'d, D: Deserializer<'d>>(
            deserializer: D,
        ) -> Result<Option<Uuid>, D::Error> {
            let text = Option::<String>::deserialize(deserializer)?;
            text.map(|text| Uuid::parse_str(&text).map_err(D::Error::custom)).transpose()
        }
    }
}
