//! Volumes made of what orphans know: docs/orphans.md.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use proto::v1;
use uuid::Uuid;

use super::{Phase, ReplicaChange, ReplicaRecord, VolumeRecord, Volumes};
use crate::control::engines::{EngineRecord, LimitsRecord, RebuildRecord};
use crate::control::error::{Comparison, ControlError};
use crate::control::frontends::Frontends;
use crate::control::request;

/// A volume as an orphan knows it.
pub(crate) struct Adopted {
    pub(crate) uuid: Uuid,
    pub(crate) name: String,
    /// Bytes.
    pub(crate) size: u64,
    /// Bytes.
    pub(crate) block_size: u32,
    /// Replicas, nodes and, where it is known, where these listen.
    pub(crate) members: Vec<(Uuid, String, Option<SocketAddr>)>,
}

/// What records say of a volume, for whoever looks for its owner.
pub(crate) struct VolumeFacts {
    pub(crate) uuid: Uuid,
    pub(crate) name: String,
    /// Bytes.
    pub(crate) size: u64,
    /// Its creation is through, and no deletion has begun.
    pub(crate) is_created: bool,
    pub(crate) replicas: Vec<Uuid>,
}

impl Volumes {
    /// What the records of all volumes say, and those that could not be read.
    pub(crate) fn all_records(&self) -> (Vec<VolumeFacts>, &BTreeSet<Uuid>) {
        let entries = self.entries();
        let facts = entries.values().map(|entry| VolumeFacts {
            uuid: entry.record.uuid,
            name: entry.record.name.clone(),
            size: entry.record.size,
            is_created: entry.record.phase == Phase::Created,
            replicas: entry.record.replicas.iter().map(|replica| replica.uuid).collect(),
        });
        (facts.collect(), &self.unreadable)
    }

    /// Whether there is a volume with this UUID whose creation is through, and whose deletion has not begun.
    pub(crate) fn is_created(&self, volume: Uuid) -> bool {
        self.entries().get(&volume).is_some_and(|entry| entry.record.phase == Phase::Created)
    }

    /// Since when a volume's record is as it is, in milliseconds since the Unix epoch.
    pub(crate) async fn since(&self, volume: Uuid) -> i64 {
        self.records.changed_at(volume).await
    }

    /// Makes a volume of replicas that are there. Its engine asks them who is in sync: nothing is guessed here (I5).
    pub(crate) async fn adopt(&self, adopted: Adopted) -> Result<(), ControlError> {
        let name = request::name("name", &adopted.name)?;
        let _lock = self.locks.lock(name.clone()).await;
        let named = self.entries().values().find(|entry| entry.record.name == name).map(|entry| entry.record.uuid);
        if let Some(other) = named {
            Comparison::default().field("uuid", other, adopted.uuid).finish("volume", &name)?;
            return self.make_engine(adopted.uuid, &adopted.members).await;
        }
        self.unused_uuid(Some(adopted.uuid), &name)?;
        let replica = |(uuid, node, _): &(Uuid, String, Option<SocketAddr>)| ReplicaRecord {
            uuid: *uuid,
            node: node.clone(),
            change: ReplicaChange::Stays,
            origin: None,
        };
        let record = VolumeRecord {
            uuid: adopted.uuid,
            name,
            size: adopted.size,
            block_size: adopted.block_size,
            created_at: request::unix_milliseconds(),
            store: String::new(),
            replicas: adopted.members.iter().map(replica).collect(),
            // Not half made: what a creation would go on with takes its replicas for new, and so for equal.
            phase: Phase::Created,
            source: None,
        };
        self.keep(&record).await?;
        self.make_engine(adopted.uuid, &adopted.members).await
    }

    /// Gives a volume its engine again.
    pub(crate) async fn adopt_record(&self, volume: Uuid) -> Result<(), ControlError> {
        let (_lock, _) = self.lock_created(&volume.to_string()).await?;
        self.make_engine(volume, &[]).await
    }

    async fn make_engine(
        &self,
        volume: Uuid,
        known: &[(Uuid, String, Option<SocketAddr>)],
    ) -> Result<(), ControlError> {
        if self.here.engines.contains(volume) {
            return Ok(());
        }
        let record = self.find(&volume.to_string())?.record;
        let mut members = Vec::new();
        for replica in &record.replicas {
            let address = known.iter().find(|(uuid, ..)| *uuid == replica.uuid).and_then(|(.., address)| *address);
            let address = address.map_or_else(String::new, |address| address.to_string());
            let placement = v1::ReplicaPlacement { address, ..replica.placement() };
            members.push(self.here.engines.member(&placement).await?);
        }
        let engine = EngineRecord {
            volume,
            name: record.name,
            size: record.size,
            block_size: record.block_size,
            members,
            rebuild: RebuildRecord::default(),
            limits: LimitsRecord::default(),
            frontends: Frontends::default(),
            of_volume: true,
        };
        self.here.engines.create_record(engine, false).await.map(drop)
    }
}
