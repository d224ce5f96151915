//! Replicas in a simulated world: real stores on simulated disks, and the simulated network.

mod clones;
mod damage;
mod hashes;
mod membership;
mod neighbours;
mod node;
mod notes;
mod remote;
mod repaired;
mod secure;
mod server;
