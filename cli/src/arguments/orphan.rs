//! `ashlar orphan`.

use clap::{Args, Subcommand, ValueEnum};

use crate::output::Watch;

#[derive(Subcommand, Debug)]
pub(crate) enum OrphanCommand {
    /// Look for replicas, lvols and records without an owner
    ///
    /// Asks every peer whose they are. What cannot be judged because a node does not answer is `unknown`, not an orphan.
    #[command(verbatim_doc_comment)]
    List {
        #[command(flatten)]
        watch: Watch,
    },
    /// Make an orphan part of a volume of this node again
    Adopt {
        #[command(flatten)]
        which: WhichOrphan,
        /// The volume's name; the one that it had when left out
        #[arg(long)]
        name: Option<String>,
    },
    /// Delete an orphan, with the data that it holds
    Delete {
        #[command(flatten)]
        which: WhichOrphan,
        /// Delete it only if it is of the volume with this UUID
        #[arg(long, value_name = "UUID")]
        volume: Option<String>,
    },
}

#[derive(Args, Debug)]
pub(crate) struct WhichOrphan {
    /// Its UUID
    pub(crate) uuid: String,
    /// What it is, where orphans of several kinds have the UUID
    #[arg(long)]
    pub(crate) kind: Option<KindName>,
    /// Nodes that will never come back: it is done without asking them whether they own it
    #[arg(long, value_name = "NODE,NODE,…", value_delimiter = ',')]
    pub(crate) without_node: Vec<String>,
}

/// A kind of orphan.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KindName {
    /// A replica with its snapshots
    Replica,
    /// Snapshots of a replica without a head
    Remains,
    /// A volume's record without that of its engine
    Volume,
    /// An engine's record without that of its volume
    Engine,
    /// The record of who is in sync, without volume and engine
    Membership,
    /// A deletion that waits for a node which is no peer any more
    Deletion,
    /// A volume that hosts see without an engine's record
    Export,
}
