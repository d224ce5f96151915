//! `ashlar operation`.

use clap::Subcommand;

use crate::output::Watch;

#[derive(Subcommand, Debug)]
pub(crate) enum OperationCommand {
    /// List the long work that is under way, and how what has ended did
    List {
        /// Only what is under way
        #[arg(long)]
        active: bool,
        /// Only that of this volume, by UUID
        #[arg(long, value_name = "UUID")]
        volume: Option<String>,
        #[command(flatten)]
        watch: Watch,
    },
    /// One operation in full
    Show {
        /// Its id
        operation: String,
        #[command(flatten)]
        watch: Watch,
    },
    /// Tell what becomes of an operation until it ends, or of all of them until interrupted
    ///
    /// Of one operation the exit code is 1 if it did not succeed.
    #[command(verbatim_doc_comment)]
    Watch {
        /// Its id; all of them when left out
        operation: Option<String>,
    },
    /// End an operation before it is through, where that can be done
    Cancel {
        /// Its id
        operation: String,
    },
}
