//! Counters of a subsystem, over all its controllers.

use std::cell::Cell;

use nvmf_target_protocol::wire::log_page::Health;
use reactor::Instant;

/// What a subsystem has done since it was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Bytes sent to hosts by reads.
    pub bytes_read: u64,
    /// Bytes written by hosts.
    pub bytes_written: u64,
    /// Successful Read and Compare commands.
    pub reads: u64,
    /// Successful Write commands.
    pub writes: u64,
    /// Successful Flush commands.
    pub flushes: u64,
    /// Successful Dataset Management and Write Zeroes commands.
    pub deallocations: u64,
    /// I/O commands that failed.
    pub errors: u64,
    /// Those of them that failed on the medium.
    pub media_errors: u64,
}

/// Counters that commands add to.
#[derive(Default)]
pub(crate) struct Counters(Cell<Statistics>);

impl Counters {
    pub(crate) fn update(&self, change: impl FnOnce(&mut Statistics)) {
        let mut statistics = self.0.get();
        change(&mut statistics);
        self.0.set(statistics);
    }

    pub(crate) fn get(&self) -> Statistics {
        self.0.get()
    }
}

/// The SMART / Health Information page of a subsystem that was started at `started`.
pub(crate) fn health(statistics: &Statistics, started: Instant, now: Instant) -> Health {
    Health {
        bytes_read: statistics.bytes_read,
        bytes_written: statistics.bytes_written,
        read_commands: statistics.reads,
        write_commands: statistics.writes,
        power_cycles: 1,
        power_on_hours: (now - started).as_secs() / 3600,
        media_errors: statistics.media_errors,
        ..Health::default()
    }
}
