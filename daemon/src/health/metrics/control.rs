//! The control side: its peers, and what must come back to where it was (I40).

use proto::v1::{Peer, PeerState};

use super::text::{Family, Text, counter, gauge};
use crate::control::Load;

/// What the control threads said last.
pub(super) fn write(text: &mut Text, load: &Load) {
    text.single(gauge("ashlar_control_tasks", "Tasks of the control threads."), load.control_tasks);
    text.single(gauge("ashlar_reactor_tasks", "Tasks of all reactors."), load.reactor_tasks);
    let help = "Replicas on other nodes that wait to be deleted.";
    text.single(gauge("ashlar_pending_deletions", help), load.pending_deletions);
    let family = gauge("ashlar_orphans", "What the last look found without an owner, by how certain that is.");
    text.family(family);
    for (state, count) in
        [("orphan", load.orphans.orphans), ("unknown", load.orphans.unknown), ("in use", load.orphans.in_use)]
    {
        text.sample(family, &[("state", state)], count);
    }
    let up = |peer: &Peer| u64::from(peer.state() == PeerState::Connected);
    let mut each = |family: Family, value: &dyn Fn(&Peer) -> u64| {
        text.family(family);
        for peer in &load.peers {
            text.sample(family, &[("peer", &peer.name)], value(peer));
        }
    };
    each(gauge("ashlar_peer_up", "Whether the connection to the peer is there."), &up);
    each(gauge("ashlar_peer_failed_attempts", "Attempts to connect in a row that failed."), &|peer| {
        u64::from(peer.attempts)
    });
    each(gauge("ashlar_peer_calls_in_flight", "Calls to it that are under way."), &|peer| {
        u64::from(peer.calls_in_flight)
    });
    each(counter("ashlar_peer_calls_total", "Calls to it."), &|peer| peer.calls);
    each(counter("ashlar_peer_call_failures_total", "Calls to it that failed."), &|peer| peer.failed_calls);
    each(counter("ashlar_peer_connects_total", "Connections made to it."), &|peer| peer.connects);
    each(counter("ashlar_peer_connect_failures_total", "Attempts to connect that failed."), &|peer| {
        peer.failed_connects
    });
}
