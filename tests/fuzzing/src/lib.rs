//! What the fuzz targets run: any bytes in, and a panic when something is wrong with us.
//!
//! `fuzz/` drives these functions with libFuzzer (`cargo xtask fuzz`), the tests of this crate with a few thousand mutations
//! of their seeds. A target is total: whatever the bytes are, it ends soon, and holds no more memory than a small store or a
//! connection needs.

#![forbid(unsafe_code)]

mod backup_files;
mod iscsi;
mod iscsi_text;
mod mutation;
mod nvmf;
mod replica;
mod scsi;
mod store;

pub use mutation::mutate;

/// A function for a fuzzer.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name in `fuzz/fuzz_targets`.
    pub name: &'static str,
    /// What it does with bytes.
    pub run: fn(&[u8]),
    /// Bytes that are worth starting from.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: [Target; 8] = [
    Target { name: "store_image", run: store::image, seeds: store::image_seeds },
    Target { name: "store_structures", run: store::structures, seeds: store::structure_seeds },
    Target { name: "replica_frames", run: replica::frames, seeds: replica::seeds },
    Target { name: "nvmf_pdus", run: nvmf::pdus, seeds: nvmf::seeds },
    Target { name: "iscsi_pdus", run: iscsi::pdus, seeds: iscsi::seeds },
    Target { name: "iscsi_text", run: iscsi_text::text, seeds: iscsi_text::seeds },
    Target { name: "backup_files", run: backup_files::files, seeds: backup_files::seeds },
    Target { name: "scsi_commands", run: scsi::commands, seeds: scsi::seeds },
];

/// Runs the target of this name.
///
/// # Panics
/// When there is none, and when the bytes find a mistake of ours.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target of this name");
    (target.run)(bytes);
}
