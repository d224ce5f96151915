//! What can be typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::bench::BenchArguments;
use crate::size::Size;

/// Stores, volumes and replicas of Ashlar: replicated block storage over NVMe/TCP.
#[derive(Parser, Debug)]
#[command(name = "ashlar", version, arg_required_else_help = true)]
pub(crate) struct Arguments {
    /// The daemon to talk to
    #[arg(long, global = true, env = "ASHLAR_SERVER", default_value = "http://127.0.0.1:9500", value_name = "URL")]
    pub(crate) server: String,
    /// How to print
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// For people
    Table,
    /// For programs
    Json,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    #[command(flatten)]
    OfDaemon(DaemonCommand),
    /// Three daemons on this machine, a replicated volume, a verified load, and nodes killed in the middle of it
    Demo(DemoOptions),
    /// Measure a volume, or any other NVMe/TCP target, with a load in fio's terms
    Bench(BenchArguments),
}

/// What a daemon is asked.
#[derive(Subcommand, Debug)]
pub(crate) enum DaemonCommand {
    /// The node itself
    #[command(subcommand)]
    Node(NodeCommand),
    /// Formatted files and block devices that hold replicas
    #[command(subcommand)]
    Store(StoreCommand),
    /// Replicated volumes that hosts attach over NVMe/TCP
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// This node's copies of volumes
    #[command(subcommand)]
    Replica(ReplicaCommand),
}

#[derive(Subcommand, Debug)]
pub(crate) enum NodeCommand {
    /// Who the node is, where it listens, which peers it knows
    Info,
}

#[derive(Subcommand, Debug)]
pub(crate) enum StoreCommand {
    /// Format a file or block device, and open it
    Create(CreateStore),
    /// List the stores of the node
    List,
    /// Close a store and forget it; its file or device keeps its content
    Delete {
        /// Its name or UUID
        store: String,
        /// Delete it only if it has this UUID
        #[arg(long)]
        uuid: Option<String>,
    },
}

#[derive(Args, Debug)]
pub(crate) struct CreateStore {
    /// Its name
    pub(crate) name: String,
    /// A file, a block device, or `memory:` for a store that is gone when the daemon ends
    #[arg(long)]
    pub(crate) path: String,
    /// For a new file or memory: how large (files are sparse)
    #[arg(long)]
    pub(crate) size: Option<Size>,
    /// The unit of allocation
    #[arg(long)]
    pub(crate) cluster_size: Option<Size>,
    /// Its identity; to take in a path that holds a store already, give the UUID of that store
    #[arg(long)]
    pub(crate) uuid: Option<String>,
}

#[derive(Subcommand, Debug)]
pub(crate) enum VolumeCommand {
    /// Make replicas, start an engine here and export it over NVMe/TCP
    Create(CreateVolume),
    /// List the volumes of the node
    List,
    /// One volume in full, with the lines to attach it to a host
    Show {
        /// Its name or UUID
        volume: String,
    },
    /// Cut the volume, on all its replicas at the same point
    Snapshot {
        /// The volume's name or UUID
        volume: String,
        /// The snapshot's name
        #[arg(long)]
        name: Option<String>,
        /// The snapshot's UUID; the same one again is the same snapshot
        #[arg(long)]
        uuid: Option<String>,
    },
    /// End the export, stop the engine and delete the replicas
    Delete {
        /// Its name or UUID
        volume: String,
        /// Delete it only if it has this UUID
        #[arg(long)]
        uuid: Option<String>,
    },
}

#[derive(Args, Debug)]
pub(crate) struct CreateVolume {
    /// Its name
    pub(crate) name: String,
    /// Its size
    #[arg(long)]
    pub(crate) size: Size,
    /// The nodes for its replicas, one each
    #[arg(long, value_delimiter = ',', value_name = "NODE,NODE,…", conflicts_with = "replica_count")]
    pub(crate) replicas: Vec<String>,
    /// How many replicas, this node first, then its peers
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) replica_count: u32,
    /// Bytes a block: 512 or 4096
    #[arg(long, default_value_t = 4096)]
    pub(crate) block_size: u32,
    /// The store to use on each node, instead of the one with the most free space
    #[arg(long)]
    pub(crate) store: Option<String>,
    /// Its identity
    #[arg(long)]
    pub(crate) uuid: Option<String>,
}

#[derive(Subcommand, Debug)]
pub(crate) enum ReplicaCommand {
    /// List the replicas of the node
    List {
        /// Only those of the volume with this UUID
        #[arg(long)]
        volume: Option<String>,
    },
}

#[derive(Args, Debug)]
pub(crate) struct DemoOptions {
    /// Leave the daemons running at the end
    #[arg(long)]
    pub(crate) keep: bool,
    /// Where to put stores, state and logs, instead of a temporary folder
    #[arg(long, value_name = "FOLDER")]
    pub(crate) dir: Option<PathBuf>,
    /// The volume's size
    #[arg(long, default_value = "1GiB")]
    pub(crate) size: Size,
    /// How long each of the two loads runs
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(4..=600))]
    pub(crate) seconds: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn an_unknown_command_is_wrong_usage() {
        let error = Arguments::try_parse_from(["ashlar", "volum", "list"]).expect_err("no such command");
        assert_eq!(error.exit_code(), 2);
    }
}
