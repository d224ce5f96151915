//! What a load counts while it runs.

use std::collections::BTreeMap;
use std::fmt;

use super::histogram::Histogram;
use super::record::Fault;
use super::report::Verified;

/// The kinds of I/O that are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    Flush,
}

/// Counts and latencies of all workers of a load.
#[derive(Default)]
pub(crate) struct Statistics {
    pub(crate) read: Histogram,
    pub(crate) write: Histogram,
    pub(crate) flush: Histogram,
    pub(crate) errors: BTreeMap<String, u64>,
    pub(crate) error_count: u64,
    pub(crate) verified: Verified,
}

impl Statistics {
    /// Forgets the latencies, for the end of the ramp. Errors and faults stay.
    pub(crate) fn restart(&mut self) {
        [&mut self.read, &mut self.write, &mut self.flush].into_iter().for_each(Histogram::clear);
    }

    #[inline]
    pub(crate) fn success(&mut self, kind: Kind, nanoseconds: u64) {
        let histogram = match kind {
            Kind::Read => &mut self.read,
            Kind::Write => &mut self.write,
            Kind::Flush => &mut self.flush,
        };
        histogram.record(nanoseconds);
    }

    pub(crate) fn error(&mut self, error: impl fmt::Display) {
        self.error_count += 1;
        *self.errors.entry(error.to_string()).or_default() += 1;
    }

    pub(crate) fn checked(&mut self, result: Result<(), Fault>) {
        self.verified.checked += 1;
        if let Err(fault) = result {
            self.verified.failure(&fault);
        }
    }
}
