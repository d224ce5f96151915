//! The replicas of an engine as the API tells them.

use std::time::Duration;

use proto::v1::{self, MemberState};

use crate::data::{MemberFacts, MemberSpec};

pub(super) fn describe_member(member: &MemberSpec, facts: Option<&MemberFacts>) -> v1::Member {
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
