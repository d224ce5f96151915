//! What can be typed.

mod backup;
mod lvol;
mod operation;
mod orphan;
mod store;
mod tools;
mod volume;

use std::path::PathBuf;

use clap::builder::FalseyValueParser;
use clap::{Args, Parser, Subcommand};
use tls::Files;

pub(crate) use self::backup::{
    BackupCommand, CreateBackup, CreateSchedule, RestoreBackup, ScheduleCommand, StandbyCommand, TargetCommand,
    WhichBackup,
};
pub(crate) use self::lvol::{CreateLvol, ImportLvol, LvolCommand};
pub(crate) use self::operation::OperationCommand;
pub(crate) use self::orphan::{KindName, OrphanCommand};
pub(crate) use self::store::{CheckStore, CreateStore, DumpStore, SetLimits, StoreCommand};
pub(crate) use self::tools::{BundleOptions, PreflightOptions, Shell};
pub(crate) use self::volume::{CreateVolume, ExportVolume, FrontendName, LimitVolume, RebuildCommand, VolumeCommand};
use crate::bench::BenchArguments;
use crate::client::Destination;
use crate::commands::Since;
use crate::output::{Output, Watch};
use crate::size::Size;

/// At the end of the help, and in the manual.
const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed, or refused; a preflight or a scrub found something
  2  wrong usage
  `store check` and `store dump` have those of fsck, as their help says.

With `-o json` or `-o yaml` errors are data too, on standard error: error, code, reason, details, hint.";

/// Stores, volumes and replicas of Ashlar: replicated block storage over NVMe/TCP and iSCSI.
#[derive(Parser, Debug)]
#[command(name = "ashlar", version, arg_required_else_help = true, after_long_help = EXIT_CODES)]
pub(crate) struct Arguments {
    /// The daemon to talk to
    #[arg(long, global = true, env = "ASHLAR_SERVER", default_value = "http://127.0.0.1:9500", value_name = "URL")]
    pub(crate) server: String,
    /// Allow a server with `http` beyond this machine: whoever is on the way reads and changes what is asked
    #[arg(long, global = true, env = "ASHLAR_INSECURE", value_parser = FalseyValueParser::new())]
    pub(crate) insecure: bool,
    #[command(flatten)]
    pub(crate) tls: TlsOptions,
    /// How to print
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Arguments {
    /// Whom to ask.
    pub(crate) fn destination(&self) -> Destination {
        Destination { server: self.server.clone(), certificate: self.tls.files(), insecure: self.insecure }
    }
}

/// Who calls, for servers with `https`.
#[derive(Args, Debug)]
pub(crate) struct TlsOptions {
    /// Your certificate (PEM)
    #[arg(long, global = true, env = "ASHLAR_TLS_CERT", value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// Its private key (PEM), which nobody else may read
    #[arg(long, global = true, env = "ASHLAR_TLS_KEY", value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// The authority of the daemons' certificates (PEM)
    #[arg(long, global = true, env = "ASHLAR_TLS_CA", value_name = "FILE")]
    tls_ca: Option<PathBuf>,
}

impl TlsOptions {
    /// The files, if all of them are named.
    fn files(&self) -> Option<Files> {
        let (certificate, key, ca) = (self.tls_cert.clone()?, self.tls_key.clone()?, self.tls_ca.clone()?);
        Some(Files { certificate, key, ca, crl: None })
    }
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    #[command(flatten)]
    OfDaemon(DaemonCommand),
    /// Three daemons on this machine, a replicated volume, a verified load, and nodes killed in the middle of it
    Demo(DemoOptions),
    /// Measure a volume, or any other NVMe/TCP or iSCSI target, with a load in fio's terms
    Bench(BenchArguments),
    /// Check whether this machine can be a node, or a host, and say what to do where not
    ///
    /// Of a node it checks the configuration, kernel, io_uring, limits, ports, time-outs, names, peers, clock, state directory and
    /// the file systems of stores; of a host (--host) the modules, tools and time-outs that attaching needs. It changes nothing.
    ///
    /// Exit code 1 if a check fails; warnings are no failure.
    #[command(verbatim_doc_comment)]
    Preflight(PreflightOptions),
    /// Collect in one file what helps to find out what is wrong with a node, without secrets
    ///
    /// What cannot be got is noted in the bundle, and the rest goes on. It has lists and events, metrics and health, the log, the
    /// ends of the last runs, the configuration, and the state of the machine. No data of volumes and no credentials are in it.
    #[command(verbatim_doc_comment)]
    SupportBundle(BundleOptions),
    /// Print the completions of a shell
    ///
    /// For bash: `ashlar completions bash > /etc/bash_completion.d/ashlar`. The Debian package has them.
    #[command(verbatim_doc_comment)]
    Completions {
        /// Which
        shell: Shell,
    },
    /// Write the manual, a page for each command
    Man {
        /// The folder
        #[arg(long, value_name = "FOLDER")]
        to: PathBuf,
    },
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
    /// Replicated volumes that hosts attach over NVMe/TCP or iSCSI
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Read-only cuts of volumes
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// This node's copies of volumes
    #[command(subcommand)]
    Replica(ReplicaCommand),
    /// Where this node keeps backups: object stores and folders
    #[command(subcommand, name = "backup-target")]
    Target(TargetCommand),
    /// Backups of volumes, in the format of Longhorn's backup store
    #[command(subcommand)]
    Backup(BackupCommand),
    /// Volumes that follow the backups of others, for when those are lost
    #[command(subcommand)]
    Standby(StandbyCommand),
    /// Snapshots and backups that are made again and again
    #[command(subcommand)]
    Schedule(ScheduleCommand),
    /// Long work that goes on by itself: merges, scrubs, rebuilds, backups, restores, late deletions
    #[command(subcommand)]
    Operation(OperationCommand),
    /// What is on the node and belongs to nobody
    #[command(subcommand)]
    Orphan(OrphanCommand),
    /// What happened on the node, before its last restarts too
    Events {
        /// Go on with what comes, until interrupted
        #[arg(long, short)]
        follow: bool,
        /// Leave out what is older: so long ago, as 90s, 30m, 12h or 7d, or a time as 2026-11-21T03:00:00Z
        #[arg(long, value_name = "TIME")]
        since: Option<Since>,
    },
}

#[derive(Subcommand, Debug)]
pub(crate) enum NodeCommand {
    /// Who the node is, where it listens, which peers it knows, how its last run ended
    #[command(alias = "info")]
    Show {
        #[command(flatten)]
        watch: Watch,
    },
    /// Show what the daemon logs, or change it until its next start
    Log {
        /// A level, or levels by part as in `info,engine=debug`
        filter: Option<String>,
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
        #[command(flatten)]
        watch: Watch,
    },
    /// One snapshot
    Show {
        /// The volume's name or UUID
        volume: String,
        /// The snapshot's name or UUID
        snapshot: String,
        #[command(flatten)]
        watch: Watch,
    },
    /// Delete a snapshot from all replicas; its space comes back in the background
    Delete {
        /// The volume's name or UUID
        volume: String,
        /// The snapshot's name or UUID
        snapshot: String,
        /// Delete it only if it has this UUID
        #[arg(long, value_name = "UUID")]
        expected_uuid: Option<String>,
    },
}

#[derive(Subcommand, Debug)]
pub(crate) enum ReplicaCommand {
    /// List the replicas of the node
    List {
        /// Only those of the volume with this UUID
        #[arg(long)]
        volume: Option<String>,
        #[command(flatten)]
        watch: Watch,
    },
    /// One replica in full
    Show {
        /// Its UUID
        replica: String,
        #[command(flatten)]
        watch: Watch,
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

    /// Where it may be typed: nothing that lists or shows is left out, and nothing that changes is repeated.
    #[test]
    fn lists_and_shows_can_be_watched_and_nothing_else() {
        let command = Arguments::command();
        for noun in command.get_subcommands().filter(|noun| noun.get_name() != "help") {
            for verb in noun.get_subcommands() {
                let can = verb.get_arguments().any(|argument| argument.get_id() == "watch");
                let should = matches!(verb.get_name(), "list" | "show");
                assert_eq!(can, should, "{} {}", noun.get_name(), verb.get_name());
            }
        }
        assert!(Arguments::try_parse_from(["ashlar", "volume", "list", "--watch"]).is_ok());
        assert!(Arguments::try_parse_from(["ashlar", "volume", "show", "-w=0.5", "v"]).is_ok());
        assert!(Arguments::try_parse_from(["ashlar", "volume", "list", "--watch=x"]).is_err());
    }

    /// What a stranger guesses after one noun holds for the others.
    #[test]
    fn nouns_have_the_same_verbs_and_everything_says_what_it_is() {
        let command = Arguments::command();
        let has = |noun: &str, verb: &str| {
            command.find_subcommand(noun).is_some_and(|noun| noun.find_subcommand(verb).is_some())
        };
        for noun in ["store", "lvol", "volume", "snapshot", "backup-target", "standby", "schedule"] {
            for verb in ["create", "list", "show", "delete"] {
                assert!(has(noun, verb), "{noun} {verb}");
            }
        }
        for verb in ["create", "list", "inspect", "delete", "verify", "restore"] {
            assert!(has("backup", verb), "{verb}");
        }
        assert!(has("replica", "list") && has("replica", "show") && has("node", "show"));
        check_help(&command);
    }

    fn check_help(command: &clap::Command) {
        assert!(command.get_about().is_some(), "{} has no help", command.get_name());
        for argument in command.get_arguments() {
            assert!(argument.get_help().is_some(), "{} {} has no help", command.get_name(), argument.get_id());
        }
        command.get_subcommands().for_each(check_help);
    }

    #[test]
    fn an_unknown_command_is_wrong_usage() {
        let error = Arguments::try_parse_from(["ashlar", "volum", "list"]).expect_err("no such command");
        assert_eq!(error.exit_code(), 2);
    }
}
