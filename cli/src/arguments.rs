//! What can be typed.

mod lvol;
mod orphan;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;
use uuid::Uuid;

pub(crate) use self::lvol::{CreateLvol, ImportLvol, LvolCommand};
pub(crate) use self::orphan::{KindName, OrphanCommand};
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
    /// Single logical volumes: what stores are made of, without replication
    #[command(subcommand)]
    Lvol(LvolCommand),
    /// Replicated volumes that hosts attach over NVMe/TCP
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Read-only cuts of volumes
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// This node's copies of volumes
    #[command(subcommand)]
    Replica(ReplicaCommand),
    /// What is on the node and belongs to nobody
    #[command(subcommand)]
    Orphan(OrphanCommand),
    /// What happened on the node since it was started
    Events {
        /// Go on with what comes
        #[arg(long, short)]
        follow: bool,
    },
}

#[derive(Subcommand, Debug)]
pub(crate) enum NodeCommand {
    /// Who the node is, where it listens, which peers it knows, how its last run ended
    Info,
    /// Show what the daemon logs, or change it until its next start
    Log {
        /// A level, or levels by part as in `info,engine=debug`
        filter: Option<String>,
    },
}

#[derive(Subcommand, Debug)]
pub(crate) enum StoreCommand {
    /// Format a file or block device, and open it
    Create(CreateStore),
    /// List the stores of the node
    List,
    /// Make a store as large as its file or device has become, in use
    Grow {
        /// Its name or UUID
        store: String,
        /// Make the file this large first; of a device use that much
        #[arg(long)]
        size: Option<Size>,
    },
    /// Show how far the space of a store may be used, or set it
    Limits {
        /// Its name or UUID
        store: String,
        /// How large all volumes in it together may be, in percent of its size; 0 for any size
        #[arg(long, value_name = "PERCENT")]
        overcommit: Option<u32>,
        /// Space that writes of hosts leave for the store's own work
        #[arg(long)]
        reserve: Option<Size>,
    },
    /// Read all snapshots of a store again and compare them with their hashes
    ///
    /// What differs is marked: reads of it fail from then on instead of returning wrong data. Without --wait the scrub goes on in the
    /// background, and --show tells how far it is. With --wait the exit code is 1 if damage was found, or if it was not through.
    #[command(verbatim_doc_comment)]
    Scrub {
        /// Its name or UUID
        store: String,
        /// How much to read in a second; what the daemon's configuration says when left out
        #[arg(long, conflicts_with_all = ["stop", "show"])]
        rate: Option<Size>,
        /// Wait for its end
        #[arg(long, conflicts_with_all = ["stop", "show"])]
        wait: bool,
        /// End the scrub under way
        #[arg(long, conflicts_with = "show")]
        stop: bool,
        /// Only show how the scrub is, or the last one was
        #[arg(long)]
        show: bool,
    },
    /// Check a store that is not open, and repair it
    ///
    /// Needs no daemon: reads the file or device itself, and refuses one that is in use. Without --repair nothing is written.
    ///
    /// Each finding says what is wrong, where on the disk, what it means for which lvol, and what a repair does about it.
    /// Findings are notes (all is well), warnings (nothing is lost, the store works), errors (an lvol is not served, or space
    /// is lost, until a repair) and fatal (the store does not open).
    ///
    /// Exit codes are those of fsck: 0 nothing is wrong, 1 everything that was wrong is repaired, 4 errors are left, 8 the
    /// check itself failed, as when the disk cannot be read or is in use.
    #[command(verbatim_doc_comment)]
    Check(CheckStore),
    /// Print what is in a store that is not open, or export the data of one of its lvols
    ///
    /// Needs no daemon: reads the file or device itself, and refuses one that is in use. Nothing is written to it.
    ///
    /// Without --lvol it prints the superblocks, all pages of the last checkpoint and the batches of the journal that an open
    /// would replay, damaged ones too; with `-o json` one JSON object a line. Stores of any size are printed as they are read.
    ///
    /// With --lvol and --to it writes the content of an lvol to a new sparse file, also of one that is damaged and not
    /// served any more. Ranges that nobody knows become holes and are listed on stderr.
    ///
    /// Exit codes: 0 all of it, 4 something is damaged or unknown, 8 it failed.
    #[command(verbatim_doc_comment)]
    Dump(DumpStore),
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
pub(crate) struct CheckStore {
    /// The file or block device
    pub(crate) disk: PathBuf,
    /// Repair what can be repaired without losing what could be read before
    #[arg(long)]
    pub(crate) repair: bool,
    /// Repair this lvol also where that costs it something; can be given several times. The findings say what it costs:
    /// which bytes become zeroes. `unnamed` stands for lvols of which not even the UUID is left
    #[arg(long, value_name = "LVOL", requires = "repair", value_parser = lvol_id)]
    pub(crate) accept_loss: Vec<Uuid>,
    /// What is given up counts as data from now on, also in a replica. Only where no other replica has it: without this a replica that
    /// lost something is never opened again
    #[arg(long, requires = "accept_loss")]
    pub(crate) serve_zeroes: bool,
    /// Read all data of all lvols too, and compare that of snapshots with their hashes
    #[arg(long)]
    pub(crate) data: bool,
}

#[derive(Args, Debug)]
pub(crate) struct DumpStore {
    /// The file or block device
    pub(crate) disk: PathBuf,
    /// Export the data of this lvol
    #[arg(long, value_name = "UUID", requires = "to")]
    pub(crate) lvol: Option<Uuid>,
    /// Where to: a file that does not exist yet
    #[arg(long, value_name = "FILE", requires = "lvol")]
    pub(crate) to: Option<PathBuf>,
}

/// The UUID of an lvol, or the word for those that have none.
fn lvol_id(text: &str) -> Result<Uuid, String> {
    match text {
        "unnamed" => Ok(Uuid::nil()),
        _ => text.parse().map_err(|_| "neither a UUID nor `unnamed`".to_owned()),
    }
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
    /// The unit of allocation: a power of two from 16KiB to 4MiB; 64KiB when left out
    #[arg(long)]
    pub(crate) cluster_size: Option<Size>,
    /// How large all volumes in it together may be, in percent of its size; 0, or left out, for any size
    #[arg(long, value_name = "PERCENT")]
    pub(crate) overcommit: Option<u32>,
    /// Space that writes of hosts leave for the store's own work
    #[arg(long)]
    pub(crate) reserve: Option<Size>,
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
    /// Make a volume that begins as a snapshot of another one and shares its blocks
    Clone {
        /// The name or UUID of the volume to begin with
        volume: String,
        /// The name or UUID of its snapshot
        snapshot: String,
        /// The new volume's name
        name: String,
        /// The new volume's size, if it is to be larger
        #[arg(long)]
        size: Option<Size>,
        /// The nodes to place replicas on, among those with one in sync; all of them when left out
        #[arg(long, value_name = "NODE", value_delimiter = ',')]
        replicas: Vec<String>,
        /// The new volume's UUID
        #[arg(long)]
        uuid: Option<String>,
    },
    /// Make the volume larger while it is in use; hosts are told
    Grow {
        /// Its name or UUID
        volume: String,
        /// The new size
        #[arg(long)]
        size: Size,
    },
    /// Make the volume read as one of its snapshots did: what was written since is gone. Unmount it first
    Revert {
        /// Its name or UUID
        volume: String,
        /// The snapshot's name or UUID
        snapshot: String,
        /// Delete the snapshots that are newer than that one
        #[arg(long)]
        discard_newer: bool,
    },
    /// Make a replica on one more node; it is rebuilt while the volume is in use
    AddReplica {
        /// The volume's name or UUID
        volume: String,
        /// The node
        #[arg(long)]
        node: String,
    },
    /// Let the replica on a node go and delete it
    RemoveReplica {
        /// The volume's name or UUID
        volume: String,
        /// The node
        #[arg(long)]
        node: String,
    },
    /// Add a replica on one node, and remove that on another once the new one is in sync
    ReplaceReplica {
        /// The volume's name or UUID
        volume: String,
        /// The node whose replica is to go
        #[arg(long)]
        node: String,
        /// The node that gets one
        #[arg(long)]
        by: String,
    },
    /// Pause the copying to replicas on their way back, let it go on, or limit its rate
    #[command(subcommand)]
    Rebuild(RebuildCommand),
    /// Show the volume to hosts over a frontend, or change who may attach there; what is not given stays as it was
    ///
    /// Hosts of both frontends can attach it, but what a host reserves over iSCSI keeps hosts of NVMe/TCP out meanwhile.
    #[command(verbatim_doc_comment)]
    Export(ExportVolume),
    /// Take the volume from hosts at one frontend, or at all: their connections end. The data stays
    Unexport {
        /// Its name or UUID
        volume: String,
        /// Over what
        #[arg(long)]
        frontend: Option<FrontendName>,
    },
    /// Print the lines that attach the volume to a Linux host, with nvme-cli or open-iscsi
    AttachCommand {
        /// Its name or UUID
        volume: String,
        /// Over what
        #[arg(long)]
        frontend: Option<FrontendName>,
    },
    /// Open a volume whose replicas in sync will not come back with one that is out of sync: writes are lost. Without
    /// --force it only says which
    Recover {
        /// The volume's name or UUID
        volume: String,
        /// The node whose replica is to count
        #[arg(long)]
        node: String,
        /// Do it
        #[arg(long)]
        force: bool,
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

/// How hosts reach a volume.
#[derive(ValueEnum, Serialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum FrontendName {
    /// NVMe over TCP
    Nvmf,
    /// iSCSI
    Iscsi,
}

#[derive(Args, Debug)]
pub(crate) struct ExportVolume {
    /// Its name or UUID
    pub(crate) volume: String,
    /// Over what
    #[arg(long)]
    pub(crate) frontend: FrontendName,
    /// Only hosts with these names may attach: NQNs, or names of iSCSI initiators
    #[arg(long, value_delimiter = ',', value_name = "NAME,NAME,…", conflicts_with = "allow_any")]
    pub(crate) allow: Vec<String>,
    /// Any host may attach
    #[arg(long)]
    pub(crate) allow_any: bool,
    /// iSCSI: the name that initiators give (CHAP)
    #[arg(long, value_name = "NAME", requires = "chap_secret_file", conflicts_with = "no_chap")]
    pub(crate) chap_user: Option<String>,
    /// The file with the secret that initiators know, `-` for standard input: 12 bytes at least, in one line
    #[arg(long, value_name = "FILE", requires = "chap_user")]
    pub(crate) chap_secret_file: Option<PathBuf>,
    /// iSCSI: the name that the target gives to initiators that ask it to prove itself too (mutual CHAP)
    #[arg(long, value_name = "NAME", requires_all = ["mutual_secret_file", "chap_user"])]
    pub(crate) mutual_user: Option<String>,
    /// The file with the secret that the target knows; another one than the initiators'
    #[arg(long, value_name = "FILE", requires = "mutual_user")]
    pub(crate) mutual_secret_file: Option<PathBuf>,
    /// What CHAP may use, of sha3-256, sha256, sha1, md5; all of them when left out
    #[arg(long, value_delimiter = ',', value_name = "ALGORITHM,…", requires = "chap_user")]
    pub(crate) chap_algorithms: Vec<String>,
    /// iSCSI: initiators prove nothing
    #[arg(long)]
    pub(crate) no_chap: bool,
}

#[derive(Subcommand, Debug)]
pub(crate) enum RebuildCommand {
    /// Stay where it is, and begin no other, also after a restart
    Pause {
        /// The volume's name or UUID
        volume: String,
    },
    /// Go on from where it is
    Resume {
        /// The volume's name or UUID
        volume: String,
    },
    /// Compare or send no more than this in a second
    Limit {
        /// The volume's name or UUID
        volume: String,
        /// How much; 0 for no limit but that of the node
        #[arg(long, value_name = "SIZE")]
        rate: Size,
    },
}

#[derive(Subcommand, Debug)]
pub(crate) enum SnapshotCommand {
    /// Cut a volume, on all its replicas at the same point
    Create {
        /// The volume's name or UUID
        volume: String,
        /// The snapshot's name
        #[arg(long)]
        name: Option<String>,
        /// The snapshot's UUID; the same one again is the same snapshot
        #[arg(long)]
        uuid: Option<String>,
    },
    /// List the snapshots of a volume, oldest first
    List {
        /// The volume's name or UUID
        volume: String,
    },
    /// Delete a snapshot from all replicas; its space comes back in the background
    Delete {
        /// The volume's name or UUID
        volume: String,
        /// The snapshot's name or UUID
        snapshot: String,
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
    fn an_accepted_loss_is_of_an_lvol_and_needs_a_repair() {
        let parse = |rest: &[&str]| Arguments::try_parse_from(["ashlar", "store", "check", "/disk"].iter().chain(rest));
        let uuid = "00000000-0000-0000-0000-000000000001";
        assert!(parse(&["--repair", "--accept-loss", uuid, "--accept-loss", "unnamed"]).is_ok());
        assert!(parse(&["--accept-loss", uuid]).is_err());
        assert!(parse(&["--repair", "--accept-loss", "all"]).is_err());
    }

    #[test]
    fn secrets_come_with_names_and_mutual_ones_after_the_others() {
        let parse = |rest: &[&str]| {
            let first = ["ashlar", "volume", "export", "v", "--frontend", "iscsi"];
            Arguments::try_parse_from(first.iter().chain(rest))
        };
        assert!(parse(&["--chap-user", "h", "--chap-secret-file", "-", "--allow", "iqn.2026-01.org:h"]).is_ok());
        assert!(parse(&["--chap-user", "h"]).is_err());
        assert!(parse(&["--mutual-user", "t", "--mutual-secret-file", "f"]).is_err());
        assert!(parse(&["--no-chap", "--chap-user", "h", "--chap-secret-file", "f"]).is_err());
        assert!(parse(&["--allow-any", "--allow", "iqn.2026-01.org:h"]).is_err());
    }

    #[test]
    fn an_unknown_command_is_wrong_usage() {
        let error = Arguments::try_parse_from(["ashlar", "volum", "list"]).expect_err("no such command");
        assert_eq!(error.exit_code(), 2);
    }
}
