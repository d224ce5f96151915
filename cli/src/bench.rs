//! `ashlar bench`: a load on any NVMe/TCP target, in fio's terms.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use nvmf_initiator::load::{self, Job, Pattern, Report};
use nvmf_initiator::{Controller, DiscoveryEntry, Options, Reconnect, SubsystemType, discover};
use reactor::{Config, Reactor};
use serde::Serialize;

use crate::arguments::Output;
use crate::output::print_json;
use crate::size::Size;

/// Flags of `ashlar bench`; names and defaults are fio's where fio has one.
#[derive(Args, Clone, Debug)]
pub(crate) struct BenchArguments {
    /// Where the target listens
    #[arg(long, default_value = "127.0.0.1:4420", value_name = "ADDRESS:PORT")]
    address: SocketAddr,
    /// The subsystem; not needed if the target has only one
    #[arg(long)]
    nqn: Option<String>,
    /// What to do: read, write, randread, randwrite, rw, randrw
    #[arg(long, default_value = "randread")]
    rw: Pattern,
    /// Bytes of each I/O
    #[arg(long, default_value = "4k")]
    bs: Size,
    /// I/Os in flight for each job
    #[arg(long, default_value_t = 32)]
    iodepth: u16,
    /// How many times the load runs at once, each on a connection of its own
    #[arg(long, default_value_t = 1)]
    numjobs: u16,
    /// Seconds; 10 without --loops
    #[arg(long, value_parser = seconds, value_name = "SECONDS")]
    runtime: Option<Duration>,
    /// Passes over the region
    #[arg(long)]
    loops: Option<u32>,
    /// Seconds before the measurement begins
    #[arg(long, value_parser = seconds, default_value = "0", value_name = "SECONDS")]
    ramp: Duration,
    /// First byte of the region to use
    #[arg(long, default_value = "0")]
    offset: Size,
    /// Bytes of the region; the rest of the volume without it
    #[arg(long)]
    size: Option<Size>,
    /// Reads in a hundred I/Os of rw and randrw
    #[arg(long, default_value_t = 50)]
    rwmixread: u8,
    /// Give writes a checksum, their place and a generation, check reads, and read back all that was written
    #[arg(long)]
    verify: bool,
    /// Most I/Os per second, of all jobs together
    #[arg(long)]
    rate_iops: Option<u64>,
    /// Flush after this many writes of a job
    #[arg(long, default_value_t = 0)]
    fsync: u32,
    /// The same load for the same seed
    #[arg(long, default_value_t = 1)]
    randseed: u64,
    /// CRC-32C over headers
    #[arg(long)]
    header_digest: bool,
    /// CRC-32C over data
    #[arg(long)]
    data_digest: bool,
    /// When the connection is lost, try to get it back for so many seconds
    #[arg(long, value_parser = seconds, value_name = "SECONDS")]
    reconnect: Option<Duration>,
    /// Spin for at most so long before sleeping
    #[arg(long, default_value_t = 50)]
    busy_poll_us: u64,
    /// Run on this core
    #[arg(long)]
    core: Option<usize>,
    /// TCP congestion control of this end, such as cubic
    #[arg(long)]
    congestion: Option<String>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let text = text.strip_suffix('s').unwrap_or(text);
    let seconds: f64 = text.parse().map_err(|_| "write seconds, as in 10 or 0.5".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// What is printed as JSON.
#[derive(Serialize)]
struct Outcome {
    address: SocketAddr,
    nqn: String,
    load: Report,
    /// Reading back what was written, with --verify.
    check: Option<Report>,
}

/// Runs the load and prints what it measured.
///
/// # Errors
/// No connection, a job that does not fit, and after printing: I/Os that failed or blocks that were wrong.
pub(crate) fn run(arguments: &BenchArguments, output: Output) -> anyhow::Result<()> {
    let config = Config {
        core: arguments.core,
        busy_poll: Duration::from_micros(arguments.busy_poll_us),
        congestion: arguments.congestion.clone(),
        ..Config::default()
    };
    let arguments = arguments.clone();
    let outcome = Reactor::run(&config, async move { measure(&arguments).await }).context("no reactor")??;
    match output {
        Output::Json => print_json(&outcome)?,
        Output::Table => {
            println!("{} at {}", outcome.nqn, outcome.address);
            print!("{}", outcome.load);
            if let Some(check) = &outcome.check {
                print!("What was written, read back:\n{check}");
            }
        }
    }
    let clean = outcome.load.is_clean() && outcome.check.as_ref().is_none_or(Report::is_clean);
    if !clean {
        bail!("I/Os failed or returned wrong data, see above");
    }
    Ok(())
}

async fn measure(arguments: &BenchArguments) -> anyhow::Result<Outcome> {
    let job = arguments.job()?;
    let options = Options {
        header_digest: arguments.header_digest,
        data_digest: arguments.data_digest,
        reconnect: arguments.reconnect.map(Reconnect::within),
        ..load::options(&job)
    };
    let (address, nqn) = match &arguments.nqn {
        Some(nqn) => (arguments.address, nqn.clone()),
        None => only_subsystem(arguments.address, &options).await?,
    };
    let controller = Controller::connect(address, &nqn, options)
        .await
        .with_context(|| format!("cannot connect to {nqn} at {address}"))?;
    let record = if job.verify { Some(load::new_record(&controller, &job)?) } else { None };
    let report = load::run(&controller, &job, record.clone()).await?;
    let check = match record {
        Some(record) if job.rw.writes() && report.aborted.is_none() => {
            Some(load::check(&controller, &job, &record).await?)
        }
        _ => None,
    };
    controller.disconnect().await;
    Ok(Outcome { address, nqn, load: report, check })
}

impl BenchArguments {
    fn job(&self) -> anyhow::Result<Job> {
        let runtime = match (self.runtime, self.loops) {
            (None, None) => Some(Duration::from_secs(10)),
            (runtime, _) => runtime,
        };
        Ok(Job {
            rw: self.rw,
            block_size: u32::try_from(self.bs.0).with_context(|| format!("--bs {} is too large", self.bs))?,
            depth: self.iodepth,
            jobs: self.numjobs,
            read_percent: self.rwmixread,
            offset: self.offset.0,
            size: self.size.map(|size| size.0),
            runtime,
            loops: self.loops,
            ramp: self.ramp,
            verify: self.verify,
            rate: self.rate_iops,
            flush_every: self.fsync,
            seed: self.randseed,
        })
    }
}

/// The one subsystem of a target that was not named.
async fn only_subsystem(address: SocketAddr, options: &Options) -> anyhow::Result<(SocketAddr, String)> {
    let entries =
        discover(address, options).await.with_context(|| format!("cannot ask {address} for its subsystems"))?;
    choose(address, &entries)
}

fn choose(address: SocketAddr, entries: &[DiscoveryEntry]) -> anyhow::Result<(SocketAddr, String)> {
    let volumes = entries.iter().filter(|entry| entry.subsystem_type == SubsystemType::Nvm);
    let mut names: Vec<_> = volumes.clone().map(|entry| entry.subsystem_nqn.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    match names[..] {
        [] => bail!("{address} has no subsystem"),
        [name] => {
            // At the address that was asked, if it is there too.
            let mut addresses = volumes.map(|entry| entry.address);
            let first = addresses.clone().next().unwrap_or(address);
            let chosen = addresses.find(|found| *found == address).unwrap_or(first);
            Ok((chosen, name.to_owned()))
        }
        _ => bail!("{address} has several subsystems; choose one with --nqn:\n  {}", names.join("\n  ")),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        bench: BenchArguments,
    }

    fn job(line: &str) -> Job {
        let words = std::iter::once("bench").chain(line.split_whitespace());
        Line::try_parse_from(words).expect("a good line").bench.job().expect("a good job")
    }

    fn entry(nqn: &str, port: u16, subsystem_type: SubsystemType) -> DiscoveryEntry {
        DiscoveryEntry {
            subsystem_type,
            port_id: 0,
            admin_queue_entries: 32,
            subsystem_nqn: nqn.into(),
            address: ([127, 0, 0, 1], port).into(),
        }
    }

    #[test]
    fn flags_in_the_terms_of_fio() {
        let line =
            "--rw randrw --rwmixread 70 --bs 128k --iodepth 8 --numjobs 4 --runtime 2.5s --size 1g --verify --fsync 9";
        let expected = Job {
            rw: Pattern::RandRw,
            read_percent: 70,
            block_size: 128 << 10,
            depth: 8,
            jobs: 4,
            runtime: Some(Duration::from_millis(2500)),
            size: Some(1 << 30),
            verify: true,
            flush_every: 9,
            ..Job::default()
        };
        assert_eq!(job(line), expected);
    }

    #[test]
    fn every_load_ends() {
        assert_eq!(job("").runtime, Some(Duration::from_secs(10)));
        assert_eq!((job("--loops 2").runtime, job("--loops 2").loops), (None, Some(2)));
    }

    #[test]
    fn the_only_subsystem_needs_no_name() {
        let asked = ([127, 0, 0, 1], 4420).into();
        let (volume, discovery) = (SubsystemType::Nvm, SubsystemType::CurrentDiscovery);
        let one = [entry("nqn.d", 4420, discovery), entry("nqn.v", 4421, volume), entry("nqn.v", 4420, volume)];
        assert_eq!(choose(asked, &one).expect("one"), (asked, "nqn.v".to_owned()));
        let elsewhere = choose(asked, &one[..2]).expect("one");
        assert_eq!(elsewhere, (([127, 0, 0, 1], 4421).into(), "nqn.v".to_owned()));
        let two = [entry("nqn.v", 4420, volume), entry("nqn.w", 4420, volume)];
        let error = choose(asked, &two).expect_err("two").to_string();
        assert!(error.contains("nqn.v") && error.contains("nqn.w") && error.contains("--nqn"), "{error}");
        assert!(choose(asked, &one[..1]).is_err());
    }
}
