//! `soak`: lesson L1's test. Very many volumes, a load on a tenth of them, no processor left over; then control threads that are stopped, and a disk that
//! hangs. See `docs/testing.md`.

mod burners;
mod load;
mod prober;
mod quota;
mod stage;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use integration::{Network, Stopped, probe, probe_until};

use self::burners::Burners;
use self::load::Loads;
use self::prober::Prober;
use self::quota::Quota;
use self::stage::Stage;
use crate::report::{Report, Row, Target};

/// The threads that serve gRPC, and the main one.
const CONTROL: [&str; 2] = ["control", "ashlard"];
/// In so long every volume under load has to get something done.
const WINDOW: Duration = Duration::from_secs(10);
/// How long the disk hangs.
const FROZEN: Duration = Duration::from_secs(12);
const NONE: Target = Target::AtMost(0.0);

/// Flags of `soak`.
#[derive(Args, Debug)]
pub(crate) struct SoakArguments {
    /// How many volumes the daemon has
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u32).range(20..=20_000))]
    volumes: u32,
    /// Minutes of load with every core saturated
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Seconds that the control threads are stopped
    #[arg(long, default_value_t = 60.0)]
    stopped: f64,
    /// Threads that take processor time from the daemon and its hosts; as many as there are cores if none are named
    #[arg(long)]
    burners: Option<usize>,
    /// Processor time that the daemon gets at most, in percent of one processor, as a container's limit holds it; as much as there is if none is named
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(10..=10_000))]
    quota: Option<u32>,
    /// The folder for the files, on a file system with O_DIRECT; removed at the end
    #[arg(long, value_name = "FOLDER", default_value_os_t = std::env::temp_dir())]
    folder: PathBuf,
    /// Also write the report as JSON to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs the test, and prints what came of it.
///
/// # Errors
/// When it cannot be run, and when something is missed: what it was is named.
pub(crate) fn run(arguments: &SoakArguments) -> anyhow::Result<()> {
    let busy = Duration::try_from_secs_f64(arguments.minutes * 60.0).context("--minutes")?;
    let stopped = Duration::try_from_secs_f64(arguments.stopped).context("--stopped")?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let burners = arguments.burners.unwrap_or(cores);
    // Mounts of its own: everything that is started from here on sees them.
    let _network =
        Network::enter(0)?.context("a soak takes root: it mounts a file system of its own, and freezes it")?;
    let folder = tempfile::Builder::new().prefix("ashlar-soak-").tempdir_in(&arguments.folder);
    let folder = folder.with_context(|| format!("no folder in {}", arguments.folder.display()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut report = Report::new(busy, 1, 1);
    runtime.block_on(async {
        // A usize has 32 bits at least.
        let mut stage = Stage::open(folder.path(), arguments.volumes as usize).await?;
        // Once its volumes are made: what is measured is how it lives with that.
        let quota = arguments.quota.and_then(|percent| hold(stage.pid(), percent));
        let outcome = soak(&mut stage, &mut report, busy, stopped, burners, quota.as_ref()).await;
        outcome.with_context(|| format!("the daemon's log ends so:\n{}", stage.log_tail()))
    })?;
    if let Some(path) = &arguments.json {
        report.write(path)?;
    }
    let missed = report.missed();
    ensure!(missed.is_empty(), "missed:\n  {}", missed.join("\n  "));
    Ok(())
}

/// The limit that was asked for; where it cannot be had, that is said.
fn hold(pid: anyhow::Result<u32>, percent: u32) -> Option<Quota> {
    let held = pid.and_then(|pid| Quota::hold(pid, percent));
    held.inspect_err(|error| eprintln!("without --quota {percent}: {error:#}")).ok()
}

async fn soak(
    stage: &mut Stage,
    report: &mut Report,
    busy: Duration,
    stopped: Duration,
    burners: usize,
    quota: Option<&Quota>,
) -> anyhow::Result<()> {
    eprintln!("{} volumes are made, {} of them get a load", stage.volumes(), stage.loaded().len());
    let pid = stage.pid()?;
    let loads = Loads::start(stage.hosts_address(), stage.loaded()).await?;
    let prober = Prober::start(stage.health());

    let burning = Burners::start(burners);
    let idle = burners::idle_time()?;
    let stuck = stuck_during(&loads, busy).await?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
    let idle = (burners::idle_time()? - idle) / (busy.as_secs_f64() * cores) * 100.0;
    let busy_probes = prober.so_far();
    report.add(vec![
        Row::alone("busy: share of the cores that nobody used", "%", idle).target(Target::AtMost(5.0)),
        Row::alone("busy: liveness, p99.9", "ms", busy_probes.percentile(99.9))
            .target(Target::AtMost(1000.0))
            .note(format!("{} probes, the longest {:.1} ms", busy_probes.count(), busy_probes.percentile(100.0))),
        Row::alone("busy: volumes that got nothing done in 10 s, at some time", "", stuck as f64).target(NONE),
    ]);

    if let Some(throttled) = quota.map(Quota::throttled).transpose()? {
        let share = throttled.periods as f64 / (throttled.of.max(1) as f64) * 100.0;
        report.add(vec![Row::alone("busy: share of the time in which the daemon had used up its quota", "%", share)]);
    }

    let held = Stopped::threads(pid, &CONTROL)?;
    let stuck = stuck_during(&loads, stopped).await?;
    let unready = f64::from(u8::from(probe(stage.health(), "/readyz")?.status == 200));
    drop(held);
    let health = stage.health();
    tokio::task::spawn_blocking(move || probe_until(health, "/readyz", |page| page.status == 200)).await??;
    report.add(vec![
        Row::alone("control stopped: volumes that got nothing done in 10 s, at some time", "", stuck as f64)
            .target(NONE)
            .note(format!("for {:.0} s", stopped.as_secs_f64())),
        Row::alone("control stopped: called ready all the same", "", unready).target(NONE),
    ]);

    report.add(freeze(stage).await?);
    drop(burning);
    let probes = prober.end()?;
    let done = loads.end().await?;
    let same = stage.is_same_run(pid).await?;
    let unclean = f64::from(u8::from(!stage.stop().await?));
    report.add(vec![
        Row::alone("all the while: liveness, p99.9", "ms", probes.percentile(99.9))
            .target(Target::AtMost(1000.0))
            .note(format!("{} probes, the longest {:.1} ms", probes.count(), probes.percentile(100.0))),
        Row::alone("all the while: probes that were not answered well", "", probes.failed() as f64).target(NONE),
        Row::alone("all the while: I/O errors", "", done.errors as f64)
            .target(NONE)
            .note(format!("{} I/Os of 4 KiB, the longest {:.0} ms; {}", done.count, done.longest_ms, done.detail)),
        Row::alone("all the while: blocks that were not as written", "", done.faults as f64).target(NONE),
        Row::alone("all the while: connections that were lost", "", done.reconnects as f64).target(NONE),
        Row::alone("all the while: restarts of the daemon", "", f64::from(u8::from(!same))).target(NONE),
        Row::alone("stopped in order: not so", "", unclean).target(NONE),
    ]);
    Ok(())
}

/// How many volumes under load got nothing done in some [`WINDOW`].
async fn stuck_during(loads: &Loads, time: Duration) -> anyhow::Result<usize> {
    let (begun, mut stuck) = (Instant::now(), std::collections::BTreeSet::new());
    let mut before = loads.progress().await?;
    while begun.elapsed() < time {
        tokio::time::sleep(WINDOW.min(time)).await;
        let now = loads.progress().await?;
        stuck.extend((0..now.len()).filter(|place| now[*place] == before[*place]));
        before = now;
    }
    Ok(stuck.len())
}

/// Hangs one store's disk, and looks who is called unhealthy.
async fn freeze(stage: &Stage) -> anyhow::Result<Vec<Row>> {
    let (mut found, mut others) = (None, 0.0_f64);
    let hanging = stage.hanging();
    stage.disk().freeze()?;
    let begun = Instant::now();
    while begun.elapsed() < FROZEN {
        let unhealthy = stage.unhealthy()?;
        if found.is_none() && hanging.iter().all(|name| unhealthy.contains(name)) {
            found = Some(begun.elapsed().as_secs_f64());
        }
        others = others.max(unhealthy.iter().filter(|name| !stage.is_on_disk(name)).count() as f64);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let live = probe(stage.health(), "/livez")?.status == 200;
    stage.disk().thaw()?;
    let thawed = Instant::now();
    while !stage.unhealthy()?.is_empty() && thawed.elapsed() < Duration::from_secs(60) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let left = stage.unhealthy()?.len() as f64;
    let seconds = found.unwrap_or(FROZEN.as_secs_f64());
    Ok(vec![
        Row::alone("disk frozen: until its volumes with I/O are unhealthy", "s", seconds)
            .target(Target::AtMost(5.0))
            .note(format!("{} volumes with a load in that store", hanging.len())),
        Row::alone("disk frozen: volumes of other stores called unhealthy", "", others).target(NONE),
        Row::alone("disk frozen: called dead", "", f64::from(u8::from(!live))).target(NONE),
        Row::alone("disk works again: volumes still unhealthy", "", left).target(NONE),
    ])
}
