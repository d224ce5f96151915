//! The simulated cluster: one seed, one thread, faults, invariants checked by number. `docs/simulator.md` tells how to
//! read a failure and replay it.

#![forbid(unsafe_code)]

pub mod attempt;
pub mod bugs;
pub mod cluster;
pub mod host;
pub mod instructions;
pub mod model;
pub mod scenarios;
pub mod shrink;
mod without;

pub use crate::without::Without;

/// What a scenario that found nothing wrong says about its run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Equal for equal runs.
    pub trace_hash: u64,
    /// How many events happened.
    pub events: u64,
}

/// One story, told differently by each seed.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// What `--scenario` calls it.
    pub name: &'static str,
    /// What it does and checks, in a line.
    pub about: &'static str,
    /// Tells it. Panics, naming the invariant, when it ends badly.
    pub run: fn(Options) -> Report,
    /// Where its plans come from, if it has any.
    pub planner: Option<cluster::Planner>,
}

/// How to tell a scenario.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Everything that happens follows from it.
    pub seed: u64,
    /// How many lines of the event log a failure prints.
    pub log_lines: usize,
    /// What of the seed's plan is left out.
    pub without: Without,
}

impl Options {
    /// A seed, with the usual log.
    pub const fn seed(seed: u64) -> Self {
        Self { seed, log_lines: 200, without: Without::NOTHING }
    }
}
