//! `ashlar lvol`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::output::Watch;
use crate::size::Size;

#[derive(Subcommand, Debug)]
pub(crate) enum LvolCommand {
    /// Make an lvol, thin: it takes no space until it has data
    Create(CreateLvol),
    /// List the lvols of the node
    List {
        /// Only those of this store
        #[arg(long)]
        store: Option<String>,
        #[command(flatten)]
        watch: Watch,
    },
    /// One lvol in full, with what it takes
    #[command(alias = "get")]
    Show {
        /// Its name or UUID
        lvol: String,
        #[command(flatten)]
        watch: Watch,
    },
    /// Delete an lvol. What others read through it stays theirs: a snapshot is merged into the lvol that reads through it, in
    /// the background
    Delete {
        /// Its name or UUID
        lvol: String,
        /// Delete it only if it has this UUID
        #[arg(long, alias = "uuid", value_name = "UUID")]
        expected_uuid: Option<String>,
        /// Return when it is gone
        #[arg(long)]
        wait: bool,
    },
    /// Keep a snapshot that is to be deleted, as long as none of its blocks have moved
    CancelDelete {
        /// Its name or UUID
        lvol: String,
    },
    /// Take a snapshot of a head
    Snapshot {
        /// The head's name or UUID
        lvol: String,
        /// The snapshot's name
        name: String,
        /// The snapshot's UUID; the same one again is the same snapshot
        #[arg(long)]
        uuid: Option<String>,
    },
    /// Make a head that begins as a snapshot and shares its blocks
    Clone {
        /// The snapshot's name or UUID
        snapshot: String,
        /// The clone's name
        name: String,
        /// The clone's size, if it is to be larger
        #[arg(long)]
        size: Option<Size>,
        /// The clone's UUID
        #[arg(long)]
        uuid: Option<String>,
    },
    /// Make a head read as one of the snapshots that it reads through did: what was written since is gone
    Revert {
        /// The head's name or UUID
        lvol: String,
        /// The snapshot's name or UUID
        snapshot: String,
    },
    /// Make a head larger
    Grow {
        /// Its name or UUID
        lvol: String,
        /// The new size
        #[arg(long)]
        size: Size,
    },
    /// Give an lvol another name
    Rename {
        /// Its name or UUID
        lvol: String,
        /// The new name
        name: String,
    },
    /// Write the content of an lvol to a file; of a volume that of a snapshot
    Export {
        /// Its name or UUID
        lvol: String,
        /// A file that does not exist yet; it is sparse, and there when it is whole. `-` for standard output
        file: PathBuf,
    },
    /// Make an lvol of the content of a file or device. What is a hole or zeroes there takes no space
    ///
    /// An import that was cut off leaves an lvol that is incomplete: it can be deleted, or imported again with the same command.
    #[command(verbatim_doc_comment)]
    Import(ImportLvol),
}

#[derive(Args, Debug)]
pub(crate) struct CreateLvol {
    /// Its name
    pub(crate) name: String,
    /// The store to put it in
    #[arg(long)]
    pub(crate) store: String,
    /// Its size
    #[arg(long)]
    pub(crate) size: Size,
    /// Bytes a block: 512 or 4096
    #[arg(long, default_value_t = 4096)]
    pub(crate) block_size: u32,
    /// Its identity
    #[arg(long)]
    pub(crate) uuid: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct ImportLvol {
    /// A file or block device
    pub(crate) file: PathBuf,
    /// The lvol's name
    pub(crate) name: String,
    /// The store to put it in
    #[arg(long)]
    pub(crate) store: String,
    /// Its size, if it is to be larger than the file
    #[arg(long)]
    pub(crate) size: Option<Size>,
    /// Bytes a block: 512 or 4096
    #[arg(long, default_value_t = 4096)]
    pub(crate) block_size: u32,
    /// Its identity; with one, the same command again is a success when it was done already
    #[arg(long)]
    pub(crate) uuid: Option<String>,
}
