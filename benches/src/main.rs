//! Benchmarks: the limits of the machine, and what the project reaches of them. See `docs/benchmarks.md`.

#![forbid(unsafe_code)]

mod backup;
mod contestant;
mod device;
mod echo;
mod iscsi;
mod limit;
mod node;
mod relay;
mod replication;
mod report;
mod soak;
mod store;
mod table;
mod thread;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use reactor::CountingAllocator;

/// Rows tell what servers allocate; it costs an addition for an allocation.
#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Benchmarks of Ashlar
#[derive(Parser, Debug)]
#[command(name = "bench", arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand, Debug)]
enum Bench {
    /// The whole data path beside what the machine allows, with a target for each row
    Table(table::TableArguments),
    /// The NVMe/TCP target beside an echo server on the same reactor: the share of the machine's limit that it reaches
    Limit(limit::LimitArguments),
    /// The logical-volume store beside what it is to be compared with: overwrites, snapshots, chains, 1 TiB mapped
    Store(store::StoreArguments),
    /// The iSCSI target beside our NVMe/TCP target and beside tgt
    Iscsi(iscsi::IscsiArguments),
    /// Volumes of real daemons on loopback: crashes, outages, rebuilds, stalls, and what replicas cost
    Replication(replication::ReplicationArguments),
    /// One daemon with 1,200 volumes: starts, what it uses while idle, lists, attaches, memory
    Node(node::NodeArguments),
    /// A daemon with very many volumes that is short of everything: is it called dead, and does I/O go on?
    Soak(soak::SoakArguments),
    /// Backups and restores to and from a folder, beside a copy of the same bytes and its checksums
    Backup(backup::BackupArguments),
    /// Opens a store and tells what that took, for `store`
    #[command(hide = true)]
    StoreOpen(store::OpenArguments),
    /// Runs one job and tells what that took, for `backup`
    #[command(hide = true)]
    BackupJob(backup::JobArguments),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().bench {
        Bench::Table(arguments) => table::run(&arguments),
        Bench::Limit(arguments) => limit::run(&arguments),
        Bench::Store(arguments) => store::run(&arguments),
        Bench::Iscsi(arguments) => iscsi::run(&arguments),
        Bench::Replication(arguments) => replication::run(&arguments),
        Bench::Node(arguments) => node::run(&arguments),
        Bench::Soak(arguments) => soak::run(&arguments),
        Bench::Backup(arguments) => backup::run(&arguments),
        Bench::BackupJob(arguments) => backup::run_job(&arguments),
        Bench::StoreOpen(arguments) => store::open_in_this_process(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
