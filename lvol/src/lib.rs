//! The logical-volume store: thin lvols with snapshots on a file or block device, safe against kills and power cuts.
//!
//! `docs/on-disk-format.md` tells what is on disk and what a crash at each step leaves. The modules, from the bytes up:
//! `format` (no I/O), `map`, `maps`, `allocator` and `ring` (memory only), `catalog` (what records change), `journal`, `flush`,
//! `checkpoint` and `reclaim` (how changes reach the disk and space comes back), `reading`, `recovery` and `residency` (the way
//! back: all of it, or a map when it is needed), `volume`, `lvol`, `write`, `erase`, `chain`, `hints` and `io` (the data path), `store` and
//! `operations` (what can be asked for), `internal` (lvols that belong to others), `merge` and `deletion` (what becomes of snapshots
//! that others read through), `offline` (a store that is not open).

#![forbid(unsafe_code)]

mod allocator;
mod catalog;
mod chain;
mod checkpoint;
mod core;
mod deletion;
mod erase;
mod error;
mod extents;
mod family;
mod flush;
mod format;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod grace;
mod growth;
mod hashes;
mod hints;
mod info;
mod internal;
mod io;
mod journal;
mod limits;
mod locks;
mod lvol;
mod map;
mod maps;
mod marks;
mod merge;
pub mod offline;
mod operations;
mod reading;
mod reclaim;
mod recovery;
mod residency;
mod ring;
mod rounds;
mod store;
mod transfer;
mod usage;
mod volume;
mod work;
mod write;

pub use crate::error::StoreError;
pub use crate::family::Grouping;
pub use crate::hashes::{BadRegion, Hash, REGION, ScrubPosition, ScrubReport, ScrubStatus};
pub use crate::info::{
    CreateLvol, Deletion, Extent, ExtentKind, FormatOptions, InternalInfo, LOST, LvolInfo, LvolKind, LvolState, Role,
    SnapshotSpec, StoreInfo, StoreLimits, Usage, WaitsFor,
};
pub use crate::lvol::Lvol;
pub use crate::store::Store;
pub use crate::transfer::{Export, ExportPiece, Import};
pub use crate::work::StoreWork;
