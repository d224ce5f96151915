//! Engines, their replicas and frontends as the API tells them.

use std::net::SocketAddr;
use std::time::Duration;

use proto::v1::{self, EngineState, MemberState};
use uuid::Uuid;

use super::{EngineRecord, Engines, Phase};
use crate::control::frontends::{Iscsi, Nvmf};
use crate::data::{ExportFacts, ExportIdentity, MemberFacts, MemberSpec};

impl Engines {
    pub(super) fn describe(
        &self,
        record: &EngineRecord,
        home: usize,
        phase: &Phase,
        export: Option<&ExportFacts>,
    ) -> v1::Engine {
        let facts = export.and_then(|export| export.engine.as_ref());
        let (state, reason) = match (phase, facts) {
            (Phase::Stopping, _) => (EngineState::Stopping, String::new()),
            (Phase::Running, Some(facts)) => (facts.state, facts.reason.clone()),
            (Phase::Broken(reason), _) => (EngineState::Failed, reason.clone()),
            (Phase::Starting(reason), _) => (EngineState::Starting, reason.clone()),
            (Phase::Running, None) => (EngineState::Failed, "it has ended".to_owned()),
        };
        let spec = self.spec(record);
        let members = spec.members.iter().map(|member| {
            let facts = facts.and_then(|facts| facts.members.iter().find(|known| known.replica == member.replica));
            describe_member(member, facts)
        });
        v1::Engine {
            volume_uuid: record.volume.to_string(),
            name: record.name.clone(),
            size_bytes: facts.map_or(record.size, |facts| facts.size),
            block_size_bytes: record.block_size,
            state: state.into(),
            reason,
            epoch: facts.map_or(0, |facts| facts.epoch),
            members: members.collect(),
            // Far fewer than u32 can count.
            reactor: home as u32,
            nvmf: record.frontends.nvmf.as_ref().map(|nvmf| self.describe_nvmf(record.volume, nvmf)),
            rebuild: Some(v1::RebuildSettings { paused: record.rebuild.paused, bytes_per_second: record.rebuild.rate }),
            iscsi: record.frontends.iscsi.as_ref().map(|iscsi| self.describe_iscsi(record.volume, iscsi)),
            limits: Some(record.limits.describe()),
            frontends_reason: export.and_then(|export| export.trouble.clone()).unwrap_or_default(),
        }
    }

    fn describe_nvmf(&self, volume: Uuid, nvmf: &Nvmf) -> v1::NvmfExport {
        let identity = ExportIdentity::of(volume);
        v1::NvmfExport {
            nqn: identity.nqn,
            serial: identity.serial,
            nguid: identity.nguid,
            addresses: texts(&self.here.nvmf_addresses),
            discovery_addresses: texts(&self.here.discovery_addresses),
            hosts: nvmf.describe_hosts(),
        }
    }

    fn describe_iscsi(&self, volume: Uuid, iscsi: &Iscsi) -> v1::IscsiExport {
        let identity = ExportIdentity::of(volume);
        v1::IscsiExport {
            iqn: identity.iqn,
            serial: identity.unit_serial,
            naa: identity.naa,
            portals: texts(&self.here.portals),
            initiators: iscsi.describe_initiators(),
            chap: iscsi.describe_chap(),
        }
    }
}

fn texts(addresses: &[SocketAddr]) -> Vec<String> {
    addresses.iter().map(ToString::to_string).collect()
}

fn describe_member(member: &MemberSpec, facts: Option<&MemberFacts>) -> v1::Member {
    let copy = facts.and_then(|facts| facts.copy.as_ref());
    v1::Member {
        replica_uuid: member.replica.to_string(),
        node: member.node.clone(),
        address: member.address.to_string(),
        state: facts.map_or(MemberState::Unspecified, |facts| facts.state).into(),
        reason: facts.map_or_else(String::new, |facts| facts.reason.clone()),
        rebuilt_bytes: copy.map_or(0, |copy| copy.done),
        rebuild_total_bytes: copy.map_or(0, |copy| copy.total),
        connected: facts.is_some_and(|facts| facts.connected),
        repaired: facts.map_or(0, |facts| facts.repaired),
        unrepaired: facts.map_or(0, |facts| facts.unrepaired),
        rebuild: copy.map(describe_rebuild),
        next_try_ms: facts.and_then(|facts| Some(milliseconds(facts.next_try?))),
        departures: facts.map_or(0, |facts| facts.departures),
        lag_bytes: facts.map_or(0, |facts| facts.lag),
        oldest_request_ms: facts.and_then(|facts| Some(milliseconds(facts.oldest_request?))),
    }
}

fn describe_rebuild(copy: &engine::CopyProgress) -> v1::RebuildProgress {
    v1::RebuildProgress {
        step: copy.step.clone(),
        waiting: copy.waiting.clone().unwrap_or_default(),
        compared_bytes: copy.compared,
        sent_bytes: copy.written,
        bytes_per_second: copy.rate,
        remaining_ms: copy.remaining.map(milliseconds),
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
