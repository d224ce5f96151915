//! The simulated cluster: one seed, one thread, faults, invariants checked by number. `docs/simulator.md` tells how to
//! read a failure and replay it.

#![forbid(unsafe_code)]

pub mod cluster;
pub mod host;
pub mod model;
pub mod scenarios;

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

/// Parts of a plan that are left out. Scenarios without a plan ignore it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Without {
    steps: u128,
    volumes: u8,
    /// How often the hosts' work is halved.
    pub halvings: u8,
}

impl Without {
    /// Whether a step is left out.
    pub const fn step(&self, number: usize) -> bool {
        number < 128 && self.steps >> number & 1 != 0
    }

    /// Whether a volume is left out.
    pub const fn volume(&self, number: usize) -> bool {
        number < 8 && self.volumes >> number & 1 != 0
    }

    /// This, and a step less.
    #[must_use]
    pub const fn and_step(mut self, number: usize) -> Self {
        self.steps |= 1 << number;
        self
    }

    /// This, and a volume less.
    #[must_use]
    pub const fn and_volume(mut self, number: usize) -> Self {
        self.volumes |= 1 << number;
        self
    }
}

impl Options {
    /// A seed, with the usual log.
    pub const fn seed(seed: u64) -> Self {
        Self { seed, log_lines: 200, without: Without { steps: 0, volumes: 0, halvings: 0 } }
    }
}
