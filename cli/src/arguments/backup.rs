//! `ashlar backup-target`, `backup`, `standby` and `schedule`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use crate::output::Watch;
use crate::size::Size;

#[derive(Subcommand, Debug)]
pub(crate) enum TargetCommand {
    /// Make a target known, after it was tried out
    ///
    /// URLs: s3://BUCKET@REGION/PATH/, azblob://CONTAINER@SUFFIX/PATH/, gs://BUCKET/PATH/, and vfs:///FOLDER, also for NFS and
    /// CIFS that is mounted there.
    #[command(verbatim_doc_comment)]
    Create {
        /// Its name
        name: String,
        /// Where it is
        #[arg(long)]
        url: String,
        /// The file on the node with the credentials, lines of NAME=value as in Longhorn's secrets; only the daemon may read it
        #[arg(long, value_name = "FILE")]
        credentials: Option<PathBuf>,
        /// Make it although it fails the check
        #[arg(long)]
        unchecked: bool,
        /// Its UUID
        #[arg(long)]
        uuid: Option<String>,
    },
    /// List the targets of the node
    List {
        #[command(flatten)]
        watch: Watch,
    },
    /// One target
    Show {
        /// Its name or UUID
        target: String,
        #[command(flatten)]
        watch: Watch,
    },
    /// Forget a target; what is stored there stays
    Delete {
        /// Its name or UUID
        target: String,
        /// Delete it only if it has this UUID
        #[arg(long)]
        uuid: Option<String>,
    },
    /// Try a target out: resolve, connect, list, put, get, delete; its clock; conditional PUT
    ///
    /// Exit code 1 if a step fails.
    #[command(verbatim_doc_comment)]
    Check {
        /// Its name or UUID
        target: String,
    },
}

#[derive(Subcommand, Debug)]
pub(crate) enum BackupCommand {
    /// Back up a snapshot: what changed since the volume's newest backup, or all of it
    Create(CreateBackup),
    /// List the backups of a volume, or the volumes that a target has
    List {
        /// The volume as it is called in the target; all volumes when left out
        volume: Option<String>,
        /// The target's name or UUID
        #[arg(long)]
        target: String,
        #[command(flatten)]
        watch: Watch,
    },
    /// One backup in full
    Inspect(WhichBackup),
    /// Delete a backup, and the blocks that no other one needs
    Delete {
        #[command(flatten)]
        which: WhichBackup,
        /// Delete it only if it has this UUID
        #[arg(long)]
        uuid: Option<String>,
        /// Wait until its blocks are gone, too
        #[arg(long)]
        wait: bool,
    },
    /// Read all blocks of a backup and compare them with their checksums
    ///
    /// With --wait the exit code is 1 if something is damaged.
    #[command(verbatim_doc_comment)]
    Verify {
        #[command(flatten)]
        which: WhichBackup,
        /// Wait for its end, and show how far it is
        #[arg(long)]
        wait: bool,
    },
    /// Restore a backup to a new volume, or onto one that is there
    Restore(RestoreBackup),
}

/// A backup in a target.
#[derive(Args, Debug)]
pub(crate) struct WhichBackup {
    /// The volume as it is called in the target
    pub(crate) volume: String,
    /// The backup's name
    pub(crate) backup: String,
    /// The target's name or UUID
    #[arg(long)]
    pub(crate) target: String,
}

#[derive(Args, Debug)]
pub(crate) struct CreateBackup {
    /// The volume's name or UUID
    pub(crate) volume: String,
    /// The snapshot's name or UUID
    pub(crate) snapshot: String,
    /// The target's name or UUID
    #[arg(long)]
    pub(crate) target: String,
    /// The backup's name; made of the snapshot's UUID when left out
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// What the volume is called in the target, instead of its name
    #[arg(long = "as", value_name = "VOLUME")]
    pub(crate) backup_volume: Option<String>,
    /// A label of the backup; may be given again
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = label)]
    pub(crate) labels: Vec<(String, String)>,
    #[command(flatten)]
    pub(crate) blocks: Blocks,
    /// Store all blocks again, whether they are there or not
    #[arg(long)]
    pub(crate) full: bool,
    /// The UUID of the operation; the same one again is the same backup
    #[arg(long)]
    pub(crate) uuid: Option<String>,
    /// Wait for its end, and show how far it is
    #[arg(long)]
    pub(crate) wait: bool,
}

/// How a volume's blocks are stored.
#[derive(Args, Debug)]
pub(crate) struct Blocks {
    /// How blocks are packed, if this is the volume's first backup in the target
    #[arg(long)]
    pub(crate) compression: Option<Compression>,
    /// Bytes a block: 2MiB or 16MiB
    #[arg(long, default_value = "2MiB")]
    pub(crate) block_size: Size,
}

/// How blocks are packed.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    /// Quick; what is used when nothing is said
    Lz4,
    /// Smaller and slower
    Gzip,
    /// Not at all
    None,
}

impl Compression {
    /// Its word in the API.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Lz4 => "lz4",
            Self::Gzip => "gzip",
            Self::None => "none",
        }
    }
}

#[derive(Args, Debug)]
pub(crate) struct RestoreBackup {
    #[command(flatten)]
    pub(crate) which: WhichBackup,
    /// The volume to restore to; made if it is not there
    #[arg(long, value_name = "VOLUME")]
    pub(crate) to: String,
    /// Restore onto a volume that is there: all that it holds is replaced, and its snapshots stay
    #[arg(long)]
    pub(crate) replace: bool,
    #[command(flatten)]
    pub(crate) placement: Placement,
    /// The UUID of a new volume; of one that is there, what it must be
    #[arg(long)]
    pub(crate) uuid: Option<String>,
    /// Wait for its end, and show how far it is
    #[arg(long)]
    pub(crate) wait: bool,
}

/// Where the replicas of a new volume are.
#[derive(Args, Debug)]
pub(crate) struct Placement {
    /// The nodes for its replicas, one each
    #[arg(long, value_delimiter = ',', value_name = "NODE,NODE,…", conflicts_with = "replica_count")]
    pub(crate) nodes: Vec<String>,
    /// How many replicas, this node first, then its peers
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) replica_count: u32,
    /// The store to use on each node, instead of the one with the most free space
    #[arg(long)]
    pub(crate) store: Option<String>,
}

#[derive(Subcommand, Debug)]
pub(crate) enum StandbyCommand {
    /// Make a volume that follows the newest backup of another one, until it is activated
    Create {
        /// Its name, and that of its volume
        name: String,
        /// The target's name or UUID
        #[arg(long)]
        target: String,
        /// The volume to follow, as it is called in the target
        #[arg(long, value_name = "VOLUME")]
        follow: String,
        /// Seconds between two looks for a newer backup
        #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=86_400))]
        interval: u32,
        #[command(flatten)]
        placement: Placement,
        /// Its UUID, and that of its volume
        #[arg(long)]
        uuid: Option<String>,
    },
    /// List the standbys of the node: what each has, and what it waits for
    List {
        #[command(flatten)]
        watch: Watch,
    },
    /// One standby
    Show {
        /// Its name or UUID
        standby: String,
        #[command(flatten)]
        watch: Watch,
    },
    /// Make a standby a volume like others, with the content of the last complete backup; needs no target
    Activate {
        /// Its name or UUID
        standby: String,
    },
    /// End a standby; its volume is deleted, unless it was activated
    Delete {
        /// Its name or UUID
        standby: String,
        /// Delete it only if it has this UUID
        #[arg(long)]
        uuid: Option<String>,
    },
}

#[derive(Subcommand, Debug)]
pub(crate) enum ScheduleCommand {
    /// Make snapshots of a volume, or backups, again and again
    Create(CreateSchedule),
    /// List the schedules of the node: when each is due, and how its last run was
    List {
        #[command(flatten)]
        watch: Watch,
    },
    /// One schedule
    Show {
        /// Its name or UUID
        schedule: String,
        #[command(flatten)]
        watch: Watch,
    },
    /// End a schedule; what it has made stays
    Delete {
        /// Its name or UUID
        schedule: String,
        /// Delete it only if it has this UUID
        #[arg(long)]
        uuid: Option<String>,
    },
}

#[derive(Args, Debug)]
pub(crate) struct CreateSchedule {
    /// Its name
    pub(crate) name: String,
    /// The volume's name or UUID
    pub(crate) volume: String,
    /// When, in UTC: minute, hour, day of month, month, day of week as in a crontab, or @hourly, @daily, @weekly, @monthly
    #[arg(long, value_name = "\"M H D M W\"")]
    pub(crate) cron: String,
    /// How many of its backups are kept, or of its snapshots if it makes no backups
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) keep: u32,
    /// The target's name or UUID; snapshots only when left out
    #[arg(long)]
    pub(crate) target: Option<String>,
    /// What the volume is called in the target, instead of its name
    #[arg(long = "as", value_name = "VOLUME", requires = "target")]
    pub(crate) backup_volume: Option<String>,
    /// A label of the backups; may be given again
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = label, requires = "target")]
    pub(crate) labels: Vec<(String, String)>,
    #[command(flatten)]
    pub(crate) blocks: Blocks,
    /// Its UUID
    #[arg(long)]
    pub(crate) uuid: Option<String>,
}

fn label(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write a label like NAME=VALUE")?;
    if name.is_empty() { Err("a label has a name".to_owned()) } else { Ok((name.to_owned(), value.to_owned())) }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::arguments::{Arguments, Command, DaemonCommand};

    fn parse(line: &str) -> Result<Command, clap::Error> {
        Arguments::try_parse_from(line.split(' ')).map(|arguments| arguments.command)
    }

    #[test]
    fn labels_have_a_name_and_any_value() {
        let line = "ashlar backup create v s --target t --label a=b --label c=d=e --label x=";
        let Ok(Command::OfDaemon(DaemonCommand::Backup(BackupCommand::Create(create)))) = parse(line) else {
            panic!("{line}");
        };
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(create.labels, [pair("a", "b"), pair("c", "d=e"), pair("x", "")]);
        assert!(parse("ashlar backup create v s --target t --label a").is_err());
        assert!(parse("ashlar backup create v s --target t --label =b").is_err());
    }

    #[test]
    fn what_only_backups_have_needs_a_target() {
        assert!(parse("ashlar schedule create n v --cron @daily --keep 7").is_ok());
        assert!(parse("ashlar schedule create n v --cron @daily --keep 7 --as w").is_err());
        assert!(parse("ashlar schedule create n v --cron @daily --keep 7 --as w --target t").is_ok());
        assert!(parse("ashlar schedule create n v --cron @daily --keep 0").is_err());
        assert!(parse("ashlar backup list").is_err(), "of which target?");
    }
}
