//! `ashlar store`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use uuid::Uuid;

use crate::output::Watch;
use crate::size::Size;

#[derive(Subcommand, Debug)]
pub(crate) enum StoreCommand {
    /// Format a file or block device, and open it
    Create(CreateStore),
    /// List the stores of the node
    List {
        #[command(flatten)]
        watch: Watch,
    },
    /// One store in full: its space, its limits, its last scrub
    Show {
        /// Its name or UUID
        store: String,
        #[command(flatten)]
        watch: Watch,
    },
    /// Make a store as large as its file or device has become, in use
    Grow {
        /// Its name or UUID
        store: String,
        /// Make the file this large first; of a device use that much
        #[arg(long)]
        size: Option<Size>,
    },
    /// Set how far the space of a store may be used; what is not given stays
    SetLimits(SetLimits),
    /// Read all snapshots of a store again and compare them with their hashes
    ///
    /// What differs is marked: reads of it fail from then on instead of returning wrong data. Without --wait the scrub goes on in the
    /// background, and `store show` tells how far it is. With --wait the exit code is 1 if damage was found, or if it was not through.
    #[command(verbatim_doc_comment)]
    Scrub {
        /// Its name or UUID
        store: String,
        /// How much to read in a second; what the daemon's configuration says when left out
        #[arg(long)]
        rate: Option<Size>,
        /// Wait for its end
        #[arg(long)]
        wait: bool,
    },
    /// End the scrub under way; what it found stays
    CancelScrub {
        /// Its name or UUID
        store: String,
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
        #[arg(long, alias = "uuid", value_name = "UUID")]
        expected_uuid: Option<String>,
    },
}

#[derive(Args, Debug)]
pub(crate) struct SetLimits {
    /// Its name or UUID
    pub(crate) store: String,
    /// How large all volumes in it together may be, in percent of its size; 0 for any size
    #[arg(long, value_name = "PERCENT", required_unless_present = "reserve")]
    pub(crate) overcommit: Option<u32>,
    /// Space that writes of hosts leave for the store's own work
    #[arg(long, value_name = "SIZE", required_unless_present = "overcommit")]
    pub(crate) reserve: Option<Size>,
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::arguments::Arguments;

    #[test]
    fn an_accepted_loss_is_of_an_lvol_and_needs_a_repair() {
        let parse = |rest: &[&str]| Arguments::try_parse_from(["ashlar", "store", "check", "/disk"].iter().chain(rest));
        let uuid = "00000000-0000-0000-0000-000000000001";
        assert!(parse(&["--repair", "--accept-loss", uuid, "--accept-loss", "unnamed"]).is_ok());
        assert!(parse(&["--accept-loss", uuid]).is_err());
        assert!(parse(&["--repair", "--accept-loss", "all"]).is_err());
    }

    #[test]
    fn limits_are_set_by_at_least_one_flag() {
        let parse =
            |rest: &[&str]| Arguments::try_parse_from(["ashlar", "store", "set-limits", "s"].iter().chain(rest));
        assert!(parse(&["--overcommit", "200"]).is_ok());
        assert!(parse(&["--reserve", "1GiB", "--overcommit", "0"]).is_ok());
        assert!(parse(&[]).is_err());
    }
}
