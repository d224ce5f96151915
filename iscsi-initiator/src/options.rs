//! How a target is logged in to.

use std::sync::Arc;
use std::time::Duration;

use iscsi_target_protocol::Digests;
use iscsi_target_protocol::initiator::login::Chap;
use iscsi_target_protocol::negotiation::Parameters;
use iscsi_target_protocol::wire::Name;

/// Options of a login to a target.
#[derive(Clone, Debug)]
pub struct Options {
    /// Who logs in. Without it a random name is made.
    pub initiator: Option<Name>,
    /// The logical unit number (LUN) to use, in the form that commands carry; the first disk without.
    pub lun: Option<u64>,
    /// Queues, each a TCP connection of its own.
    pub queues: u16,
    /// Commands in flight on each queue, at most 1000. The target's window may allow fewer: what it does not take yet waits.
    pub queue_depth: u16,
    /// How many queues share a session, if the target agrees (MaxConnections); each further session is an I_T nexus of its own.
    /// Commands of one session are carried out in one order, whatever connection they come through: one that is late holds up the others.
    pub connections_per_session: u16,
    /// Asks for a CRC-32C over each header (HeaderDigest).
    pub header_digest: bool,
    /// Asks for a CRC-32C over each PDU's data (DataDigest).
    pub data_digest: bool,
    /// What is proved to the target, and what it has to prove.
    pub chap: Option<Arc<Chap>>,
    /// A queue that heard nothing for half of this sends a ping. Zero turns it off.
    pub ping_interval: Duration,
    /// Time limit of one attempt to connect, all queues together.
    pub connect_timeout: Duration,
    /// Time limit of a command or ping; the connection is given up when one passes it. Checked about eight times as often.
    pub command_timeout: Duration,
    /// Whether to log in again after a connection was lost; without it commands in flight fail at once.
    pub reconnect: Option<Reconnect>,
}

/// When to give up a lost session. Until then commands in flight wait, and are sent again in the session that takes its place
/// (session reinstatement, RFC 7143 6.3.5). Commands that meet a passing state (busy, a path in transition, data that arrived damaged)
/// are sent again, too, for as long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reconnect {
    /// Pause before the first new attempt; each further one is twice as long.
    pub first_delay: Duration,
    /// Longest pause between two attempts.
    pub max_delay: Duration,
    /// From the loss of the connection, or the first such answer to a command, until it is given up.
    pub limit: Duration,
}

impl Reconnect {
    /// Tries for `limit`, first after 50 ms, then every second at the latest.
    pub const fn within(limit: Duration) -> Self {
        Self { first_delay: Duration::from_millis(50), max_delay: Duration::from_secs(1), limit }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            initiator: None,
            lun: None,
            queues: 1,
            queue_depth: 127,
            connections_per_session: 1,
            header_digest: false,
            data_digest: false,
            chap: None,
            ping_interval: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(10),
            command_timeout: Duration::from_secs(30),
            reconnect: None,
        }
    }
}

impl Options {
    /// The operational keys to offer: those of open-iscsi, but for bursts of 1 MiB.
    pub(crate) fn offer(&self) -> Parameters {
        Parameters {
            digests: Digests { header: self.header_digest, data: self.data_digest },
            max_connections: self.connections_per_session.max(1).into(),
            initial_r2t: false,
            immediate_data: true,
            receive_segment: 262_144,
            max_burst: 1 << 20,
            first_burst: 262_144,
            time_to_retain: 0,
            outstanding_r2t: 4,
            ..Parameters::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_offered_is_valid() {
        assert!(Options::default().offer().is_valid());
        assert!(Options { connections_per_session: 0, ..Options::default() }.offer().is_valid());
    }
}
