//! `ashlar bench`: a load on any NVMe/TCP or iSCSI target, in fio's terms.

mod iscsi;
mod nvmf;

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use host_load::{Host, Job, Pattern, Report};
use reactor::{Config, Reactor};
use serde::Serialize;

use crate::output::Output;
use crate::size::Size;

/// Flags of `ashlar bench`; names and defaults are fio's where fio has one.
#[derive(Args, Clone, Debug)]
pub(crate) struct BenchArguments {
    /// What the target speaks
    #[arg(long, value_enum, default_value_t = Protocol::Nvmf)]
    protocol: Protocol,
    /// Where the target listens; 127.0.0.1:4420 for nvmf, 127.0.0.1:3260 for iscsi if it is not told
    #[arg(long, value_name = "ADDRESS:PORT")]
    address: Option<SocketAddr>,
    /// The subsystem's NQN, or the target's IQN; not needed if there is only one
    #[arg(long, visible_alias = "nqn", value_name = "NAME")]
    target: Option<String>,
    /// The logical unit of an iSCSI target; its first disk if it is not told
    #[arg(long, value_name = "NUMBER")]
    lun: Option<u16>,
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

/// What hosts and targets speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Protocol {
    /// NVMe/TCP
    Nvmf,
    /// iSCSI
    Iscsi,
}

/// What is printed, as it is in JSON.
#[derive(Serialize)]
struct Measured {
    address: SocketAddr,
    /// NQN or IQN.
    target: String,
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
    output.print(&outcome, |outcome, _| {
        let check = outcome.check.as_ref().map(|check| format!("What was written, read back:\n{check}"));
        format!("{} at {}\n{}{}", outcome.target, outcome.address, outcome.load, check.unwrap_or_default())
    })?;
    let clean = outcome.load.is_clean() && outcome.check.as_ref().is_none_or(Report::is_clean);
    if !clean {
        bail!("I/Os failed or returned wrong data, see above");
    }
    Ok(())
}

async fn measure(arguments: &BenchArguments) -> anyhow::Result<Measured> {
    let job = arguments.job()?;
    match arguments.protocol {
        Protocol::Nvmf if arguments.lun.is_some() => bail!("--lun is for --protocol iscsi"),
        Protocol::Nvmf => nvmf::measure(arguments, arguments.address.unwrap_or(nvmf::ADDRESS.into()), &job).await,
        Protocol::Iscsi => iscsi::measure(arguments, arguments.address.unwrap_or(iscsi::ADDRESS.into()), &job).await,
    }
}

/// Runs the load, and reads back what it wrote if it is verified.
async fn drive<H: Host>(host: &Rc<H>, job: &Job) -> anyhow::Result<(Report, Option<Report>)> {
    let record = if job.verify { Some(host_load::new_record(host, job)?) } else { None };
    let report = host_load::run(host, job, record.clone()).await?;
    let check = match record {
        Some(record) if job.rw.writes() && report.aborted.is_none() => {
            Some(host_load::check(host, job, &record).await?)
        }
        _ => None,
    };
    Ok((report, check))
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
    fn a_target_is_named_by_either_name_and_speaks_nvme_unless_told() {
        let bench = |line: &str| {
            let words = std::iter::once("bench").chain(line.split_whitespace());
            Line::try_parse_from(words).expect("a good line").bench
        };
        assert_eq!(bench("--nqn nqn.v").target.as_deref(), Some("nqn.v"));
        assert_eq!(bench("").protocol, Protocol::Nvmf);
        let iscsi = bench("--protocol iscsi --target iqn.v --address 10.0.0.1:3261 --lun 1");
        assert_eq!((iscsi.protocol, iscsi.target.as_deref(), iscsi.lun), (Protocol::Iscsi, Some("iqn.v"), Some(1)));
        assert_eq!(iscsi.address, Some(([10, 0, 0, 1], 3261).into()));
    }
}
