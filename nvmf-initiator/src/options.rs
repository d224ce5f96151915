//! How a controller is connected to.

use std::time::Duration;

use uuid::Uuid;

/// Options of a connection to a controller.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Who connects. Without it a name is made from `host_id`.
    pub host_nqn: Option<String>,
    /// Host identifier (HOSTID): the same for all controllers of one host. Random without it.
    pub host_id: Option<Uuid>,
    /// I/O queues, each a TCP connection of its own; none for administration only.
    pub io_queues: u16,
    /// Commands in flight on each I/O queue, at most 1022.
    pub queue_depth: u16,
    /// Asks for a CRC-32C over each PDU header.
    pub header_digest: bool,
    /// Asks for a CRC-32C over each PDU's data.
    pub data_digest: bool,
    /// Keep Alive Timeout (KATO); the controller ends a connection that was silent for so long. Zero turns it off.
    pub keep_alive: Duration,
    /// Time limit of one attempt to connect, all queues together.
    pub connect_timeout: Duration,
    /// Time limit of a command; the connection is given up when one passes it. Checked about eight times as often.
    pub command_timeout: Duration,
    /// Whether to connect again after the connection was lost; without it commands in flight fail at once.
    pub reconnect: Option<Reconnect>,
}

/// When to give up a lost connection. Until then commands in flight wait, and are sent again on the new connection, as
/// the Linux host does. Commands that a controller answers with a passing state (a path that is not accessible, a
/// namespace that is not ready, an interrupted command) are sent again, too, for as long.
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
            host_nqn: None,
            host_id: None,
            io_queues: 1,
            queue_depth: 127,
            header_digest: false,
            data_digest: false,
            keep_alive: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(10),
            command_timeout: Duration::from_secs(30),
            reconnect: None,
        }
    }
}
