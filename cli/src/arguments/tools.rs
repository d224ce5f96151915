//! `ashlar preflight`, `support-bundle` and `completions`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::size::Size;

#[derive(Args, Debug, Default)]
pub(crate) struct PreflightOptions {
    /// The configuration of the node; `/etc/ashlar/node.toml` if there is one, else what holds without any
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Where a store is to be: its file or device, or the folder for it (may be repeated)
    #[arg(long, value_name = "PATH", conflicts_with = "host")]
    pub(crate) store: Vec<PathBuf>,
    /// Check a machine that attaches volumes, instead of a node. With --config also against the time-outs of that node
    #[arg(long)]
    pub(crate) host: bool,
}

#[derive(Args, Debug)]
pub(crate) struct BundleOptions {
    /// The file to write; `ashlar-support-NODE-TIME.tar.gz` here if it is not told
    #[arg(long, value_name = "FILE")]
    pub(crate) to: Option<PathBuf>,
    /// The configuration of the node; `/etc/ashlar/node.toml` if there is one
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The file that the daemon logs to, if it does not log to the journal
    #[arg(long, value_name = "FILE")]
    pub(crate) log: Option<PathBuf>,
    /// How much of the end of the log to take
    #[arg(long, value_name = "SIZE", default_value = "4MiB")]
    pub(crate) log_size: Size,
    /// How long each part may take
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub(crate) timeout: u64,
}

/// Shells with completions.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shell {
    /// GNU bash
    Bash,
    /// Z shell
    Zsh,
    /// The friendly one
    Fish,
}
