//! The store as a whole, on simulated disks, on memory and on real files.

mod basics;
mod clusters;
mod cold;
mod control;
mod crash;
mod damage;
mod files;
mod growth;
mod hashes;
mod history;
mod internal;
mod journal;
mod late_reads;
mod lifecycle;
mod model;
mod operations;
mod real_disks;
mod reference;
mod rig;
mod space;
mod transfer;
