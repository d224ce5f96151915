//! Engines in a simulated world.
//!
//! `fakes` are replicas and a registry of memory with faults to inject; `model` knows what each block may read as;
//! `writing` and `rebuilding` are stories about them. `cluster` has real replicas on simulated nodes.

mod cluster;
mod fakes;
mod model;
mod rebuilding;
mod writing;
