//! Engines in a simulated world, and once on the kernel's.
//!
//! `fakes` are replicas and a registry of memory with faults to inject; `model` knows what each block may read as;
//! `writing`, `reading`, `rebuilding`, `pacing`, `lacking`, `changes`, `cuts`, `membership`, `registry_lost` and `reservations` are stories about
//! them. `cluster`, `idle` and
//! `leases` have real replicas on simulated nodes, `loopback` on reactors of the kernel.

mod changes;
mod cluster;
mod cuts;
mod fakes;
mod idle;
mod lacking;
mod leases;
mod loopback;
mod membership;
mod mending;
mod model;
mod pacing;
mod reading;
mod rebuilding;
mod registry_lost;
mod reservations;
mod writing;

/// The seeds of a story that chance has a part in: `count` of them, or as many as `ASHLAR_SEEDS` says.
fn seeds(count: u64) -> std::ops::Range<u64> {
    let more = std::env::var("ASHLAR_SEEDS").ok().and_then(|seeds| seeds.parse().ok());
    0..more.unwrap_or(count)
}
