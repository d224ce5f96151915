//! One entry for people and CI: `cargo xtask test|tidy|api|e2e|conformance|fuzz|miri|instructions|demo|simulate|bench|soak|package`. docs/testing.md tells what each does.
#![forbid(unsafe_code)]

mod conformance;
mod debian;
mod e2e;
mod fuzz;
mod guest;
mod instructions;
mod libtest;
mod miri;
mod package;
mod process;
mod programs;
mod report;
mod suite;
mod tidy;
mod workspace;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, ValueEnum};

use report::Report;
use workspace::Workspace;

/// Checks, tests, shows and measures Ashlar.
#[derive(Parser)]
#[command(name = "xtask")]
enum Task {
    /// Run every check and test; ends with `N passed, N failed, N skipped`
    Test {
        /// Leave out the tests with a real Linux host
        #[arg(long)]
        fast: bool,
        /// Try all that tests could try instead of a part: hours
        #[arg(long)]
        long: bool,
    },
    /// Check the rules of the house that the compiler does not know
    Tidy,
    /// Write the reference of the API (docs/api.md) anew from the contract
    Api,
    /// Test with a real Linux host, in a guest under qemu
    E2e,
    /// Test with the test programs of others; ends with `N passed, N failed, N skipped`
    Conformance {
        /// What to test
        what: Conformance,
        /// With a second server of S3, which is built from source where it is missing
        #[arg(long)]
        long: bool,
    },
    /// Fuzz the parsers and the opening of stores with libFuzzer
    Fuzz {
        /// One of the targets in `fuzz/fuzz_targets`; all of them if none is named
        target: Option<String>,
        /// How long each runs
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
    /// Run the tests of formats and protocols under Miri
    Miri,
    /// Count the instructions that a command takes on its way, and compare with what is on record
    Instructions {
        /// Put on record what they are now
        #[arg(long)]
        accept: bool,
    },
    /// Show the main job: three nodes, a volume with three replicas, a node killed (arguments as `ashlar demo`)
    Demo {
        /// Passed on
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Run clusters in simulated worlds: `--seed S`, `--seeds N` (see docs/simulator.md)
    Simulate {
        /// Passed on
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Measure: `table` if none is named, whose report is kept in docs/benchmarks (arguments as the benchmarks': try `limit --help`)
    Bench {
        /// Passed on
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Keep a daemon with very many volumes short of everything for a long time (lesson L1): `--volumes N --minutes M --json F`, see docs/testing.md
    Soak {
        /// Passed on
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Build a Debian package of the release build, with manual and completions (needs cargo-deb)
    Package,
}

/// What test programs of others are there for.
#[derive(ValueEnum, Clone, Copy, Debug)]
enum Conformance {
    /// iSCSI and SCSI, with libiscsi's tests
    Iscsi,
    /// Backups, with Ceph's object gateway
    S3,
}

fn main() -> Result<ExitCode> {
    let workspace = Workspace::find();
    match Task::parse() {
        Task::Test { fast, long } => suite::run(&workspace, fast, long),
        Task::Tidy => {
            let violations = tidy::check(&workspace)?;
            violations.iter().for_each(|violation| println!("{violation}"));
            Ok(if violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Task::Api => programs::write_reference(&workspace),
        Task::E2e => {
            let mut report = Report::default();
            if report.check("build", || programs::build(&workspace)).is_some() {
                e2e::run(&workspace, &mut report);
            }
            Ok(report.close())
        }
        Task::Conformance { what: Conformance::Iscsi, .. } => {
            let mut report = Report::default();
            if report.check("build", || programs::build(&workspace)).is_some() {
                conformance::iscsi(&workspace, &mut report);
            }
            Ok(report.close())
        }
        Task::Conformance { what: Conformance::S3, long } => {
            let mut report = Report::default();
            conformance::s3(&workspace, long, &mut report);
            Ok(report.close())
        }
        Task::Fuzz { target, seconds } => fuzz::run(&workspace, target.as_deref(), seconds),
        Task::Miri => {
            let mut report = Report::default();
            miri::run(&workspace, &mut report);
            Ok(report.close())
        }
        Task::Instructions { accept } => {
            let mut report = Report::default();
            if report.check("simulator", || programs::build_simulator_with_bugs(&workspace)).is_some() {
                instructions::run(&workspace, accept, &mut report);
            }
            Ok(report.close())
        }
        Task::Package => package::run(&workspace).map(|()| ExitCode::SUCCESS),
        Task::Demo { arguments } => programs::demo(&workspace, &arguments),
        Task::Simulate { arguments } => programs::simulate(&workspace, &arguments),
        Task::Soak { arguments } => {
            let arguments: Vec<OsString> = std::iter::once("soak".into()).chain(arguments).collect();
            programs::bench(&workspace, &arguments)
        }
        Task::Bench { arguments } => {
            let arguments = programs::with_table(&workspace, arguments);
            programs::provide_for_bench(arguments.first().and_then(|bench| bench.to_str()));
            programs::bench(&workspace, &arguments)
        }
    }
}
