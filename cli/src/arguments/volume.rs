//! `ashlar volume`.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use serde::Serialize;

use crate::output::Watch;
use crate::size::Size;

#[derive(Subcommand, Debug)]
pub(crate) enum VolumeCommand {
    /// Make replicas, start an engine here and export it over NVMe/TCP
    Create(CreateVolume),
    /// List the volumes of the node
    List {
        #[command(flatten)]
        watch: Watch,
    },
    /// One volume in full, with the lines to attach it to a host
    Show {
        /// Its name or UUID
        volume: String,
        #[command(flatten)]
        watch: Watch,
    },
    /// Take a volume up again whose task on this node ended by a panic
    Start {
        /// Its name or UUID
        volume: String,
    },
    /// Wait until all replicas of a volume are in sync, and show how far their rebuilds are
    Wait {
        /// Its name or UUID
        volume: String,
    },
    /// Cut the volume, on all its replicas at the same point: `snapshot create`
    #[command(hide = true)]
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
        #[arg(long, alias = "replicas", value_name = "NODE,NODE,…", value_delimiter = ',')]
        nodes: Vec<String>,
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
        /// The replica's UUID; the same one again is the same replica
        #[arg(long)]
        uuid: Option<String>,
        /// Wait until it is in sync
        #[arg(long)]
        wait: bool,
    },
    /// Let the replica on a node go and delete it
    RemoveReplica {
        /// The volume's name or UUID
        volume: String,
        /// The node
        #[arg(long)]
        node: String,
        /// Remove it only if it has this UUID
        #[arg(long, value_name = "UUID")]
        expected_uuid: Option<String>,
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
        /// Replace it only if it has this UUID
        #[arg(long, value_name = "UUID")]
        expected_uuid: Option<String>,
        /// The new replica's UUID; the same one again is the same replica
        #[arg(long)]
        uuid: Option<String>,
        /// Wait until the new one is in sync and the old one gone
        #[arg(long)]
        wait: bool,
    },
    /// Pause the copying to replicas on their way back, let it go on, or limit its rate
    #[command(subcommand)]
    Rebuild(RebuildCommand),
    /// Hold hosts to so many commands and bytes a second, reads and writes together; what is not given stays as it was
    Limit(LimitVolume),
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
        #[arg(long, alias = "uuid", value_name = "UUID")]
        expected_uuid: Option<String>,
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

#[derive(Args, Debug)]
#[command(group = ArgGroup::new("limits").required(true).multiple(true))]
pub(crate) struct LimitVolume {
    /// Its name or UUID
    pub(crate) volume: String,
    /// Commands a second, 10 or more; 0 for no limit
    #[arg(long, value_name = "N", group = "limits")]
    pub(crate) iops: Option<u64>,
    /// Bytes a second, 1MiB or more; 0 for no limit
    #[arg(long, value_name = "SIZE", group = "limits")]
    pub(crate) bytes_per_second: Option<Size>,
    /// How much may be saved up while less is used: what accrues in so many milliseconds
    #[arg(long, value_name = "N", group = "limits")]
    pub(crate) burst_ms: Option<u64>,
    /// No limits any more
    #[arg(long, group = "limits", conflicts_with_all = ["iops", "bytes_per_second", "burst_ms"])]
    pub(crate) unlimited: bool,
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

#[derive(Args, Debug)]
pub(crate) struct CreateVolume {
    /// Its name
    pub(crate) name: String,
    /// Its size
    #[arg(long)]
    pub(crate) size: Size,
    /// The nodes for its replicas, one each
    #[arg(
        long,
        alias = "replicas",
        value_delimiter = ',',
        value_name = "NODE,NODE,…",
        conflicts_with = "replica_count"
    )]
    pub(crate) nodes: Vec<String>,
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::arguments::Arguments;

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
    fn a_limit_says_what_it_limits() {
        let parse = |rest: &[&str]| Arguments::try_parse_from(["ashlar", "volume", "limit", "v"].iter().chain(rest));
        assert!(parse(&["--iops", "1000", "--bytes-per-second", "50MiB", "--burst-ms", "2000"]).is_ok());
        assert!(parse(&["--unlimited"]).is_ok());
        assert!(parse(&[]).is_err());
        assert!(parse(&["--unlimited", "--iops", "1000"]).is_err());
        assert!(parse(&["--iops", "many"]).is_err());
    }
}
