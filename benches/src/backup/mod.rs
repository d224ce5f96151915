//! Backups and restores to and from a folder, beside what the same bytes take with nothing in between.
//!
//! Each job runs in a process of its own, so that its memory is the job's. Its rate is without the two seconds that a lock waits, whatever the size
//! of a volume.

mod volume;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::backup::block::{self, Checksum, Compression};
use ::backup::create::{BackupJob, BackupRequest, Options, Outcome};
use ::backup::restore::{self, RestoreJob, RestoreRequest};
use ::backup::target::{FolderStore, Store};
use anyhow::{Context, bail, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};

use self::volume::{FileDevice, Snapshot};
use crate::report::{Report, Row, Target, median};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// What a lock waits before it is had.
const LOCK: Duration = Duration::from_secs(2);

/// Flags of `backup`.
#[derive(Args, Debug)]
pub(crate) struct BackupArguments {
    /// Measurements of each; the report has their medians
    #[arg(long, default_value_t = 3)]
    repeat: usize,
    /// A sixteenth of the sizes, once: whether it works, not how well
    #[arg(long)]
    quick: bool,
    /// The folder for volumes and target, up to 6 GiB, removed at the end
    #[arg(long, value_name = "FOLDER", default_value_os_t = std::env::temp_dir())]
    folder: PathBuf,
    /// Also write the report as JSON to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Flags of the process with one job.
#[derive(Args, Debug)]
pub(crate) struct JobArguments {
    /// What it does
    #[arg(long)]
    job: String,
    /// The snapshot's file in the folder
    #[arg(long)]
    snapshot: String,
    /// A block of the volume is mapped, and so many behind it are not
    #[arg(long)]
    stride: u64,
    folder: PathBuf,
}

/// What that process tells.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Told {
    seconds: f64,
    /// The most memory that it had, in bytes.
    peak: u64,
}

/// A folder with files of random bytes: `one` and `two`.
struct Bench {
    folder: tempfile::TempDir,
    bytes: u64,
    repeat: usize,
}

pub(crate) fn run(arguments: &BackupArguments) -> anyhow::Result<()> {
    let (scale, repeat) = if arguments.quick { (16, 1) } else { (1, arguments.repeat.max(1)) };
    let folder = tempfile::tempdir_in(&arguments.folder)?;
    let bench = Bench { folder, bytes: GIB / scale, repeat };
    for name in ["one", "two"] {
        bench.make(name)?;
    }
    let mut report = Report::new(Duration::ZERO, repeat, scale);
    report.add(bench.full()?);
    report.add(bench.incremental()?);
    let missed = report.missed();
    if !missed.is_empty() {
        println!("missed: {}", missed.join(", "));
    }
    arguments.json.as_ref().map_or(Ok(()), |path| report.write(path))
}

impl Bench {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A file of bytes that nothing packs.
    fn make(&self, name: &str) -> anyhow::Result<()> {
        let (mut random, mut file) = (File::open("/dev/urandom")?, File::create(self.path(name))?);
        std::io::copy(&mut (&mut random).take(self.bytes), &mut file)?;
        Ok(file.sync_all()?)
    }

    fn mib(&self) -> f64 {
        self.bytes as f64 / MIB as f64
    }

    /// Removes the target and what jobs know of it.
    fn forget(&self, names: &[&str]) -> anyhow::Result<()> {
        for name in names {
            match fs::remove_dir_all(self.path(name)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }

    /// Runs a job in a process of its own.
    fn job(&self, job: &str, snapshot: &str, stride: u64) -> anyhow::Result<Told> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["backup-job", "--job", job, "--snapshot", snapshot, "--stride", &stride.to_string()]);
        let output = command.arg(self.folder.path()).output()?;
        ensure!(output.status.success(), "{job}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// A full backup and a restore of it, against a copy, and what is packed unpacked, with a checksum of each.
    fn full(&self) -> anyhow::Result<Vec<Row>> {
        let (mut backups, mut copies, mut restores, mut unpacked) = (vec![], vec![], vec![], vec![]);
        for _ in 0..self.repeat {
            copies.push(self.copy_and_hash()?);
            self.forget(&["target", "jobs"])?;
            fs::create_dir(self.path("target"))?;
            backups.push(self.job("backup", "one", 1)?);
            unpacked.push(self.unpack_and_hash()?);
            restores.push(self.job("restore", "one", 1)?);
            ensure!(equal(&self.path("one"), &self.path("device"))?, "what was restored is not what was backed up");
            fs::remove_file(self.path("device"))?;
        }
        let rate = |seconds: Vec<f64>| self.mib() / median(&seconds);
        let ours = |told: &[Told]| rate(told.iter().map(|told| told.seconds).collect());
        let peak = |told: &[Told]| told.iter().map(|told| told.peak as f64 / MIB as f64).fold(0.0, f64::max);
        let at_least = Target::RatioAtLeast(0.6);
        Ok(vec![
            Row::compared("backup, incompressible, to a folder", "MiB/s", ours(&backups), rate(copies))
                .target(at_least)
                .note("cp and SHA-512 of the same bytes, one after the other"),
            Row::compared("restore, verified, from a folder", "MiB/s", ours(&restores), rate(unpacked))
                .target(at_least)
                .note("the same blocks read, unpacked, and their SHA-512"),
            Row::alone("most memory of the backup", "MiB", peak(&backups)).target(Target::AtMost(128.0)),
            Row::alone("most memory of the restore", "MiB", peak(&restores)).target(Target::AtMost(128.0)),
        ])
    }

    /// All that is mapped changes: in a volume of that size, and spread over one that is 1,024 times as large.
    fn incremental(&self) -> anyhow::Result<Vec<Row>> {
        let mut told = [vec![], vec![]];
        for _ in 0..self.repeat {
            for (told, stride) in told.iter_mut().zip([1, 1024]) {
                self.forget(&["target", "jobs"])?;
                fs::create_dir(self.path("target"))?;
                self.job("backup", "one", stride)?;
                told.push(self.job("backup", "two", stride)?);
            }
        }
        let [small, large] = told.map(|told: Vec<Told>| {
            let seconds: Vec<_> = told.iter().map(|told| told.seconds).collect();
            let peaks: Vec<_> = told.iter().map(|told| told.peak as f64 / MIB as f64).collect();
            (median(&seconds), median(&peaks))
        });
        let twice = Target::RatioAtMost(2.0);
        let what = "incremental backup of all that is mapped, volume 1,024 times as large";
        Ok(vec![
            Row::compared(what, "s", large.0, small.0).target(twice).note("in a volume of the size of the change"),
            Row::compared("most memory of it", "MiB", large.1, small.1).target(twice),
        ])
    }

    fn copy_and_hash(&self) -> anyhow::Result<f64> {
        let begin = Instant::now();
        let copied = Command::new("cp").arg("--reflink=never").args([self.path("one"), self.path("copy")]).status()?;
        ensure!(copied.success(), "cp: {copied}");
        each_block(&self.path("copy"), |block| {
            std::hint::black_box(Checksum::of(block));
            Ok(())
        })?;
        let seconds = begin.elapsed().as_secs_f64();
        fs::remove_file(self.path("copy"))?;
        Ok(seconds)
    }

    /// Reads, unpacks and hashes all blocks of the target.
    fn unpack_and_hash(&self) -> anyhow::Result<f64> {
        let mut folders = vec![self.path("target")];
        let mut blocks = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder)? {
                let path = entry?.path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|extension| extension == "blk") {
                    blocks.push(path);
                }
            }
        }
        let begin = Instant::now();
        for path in blocks {
            let name = path.file_stem().and_then(|name| name.to_str()).and_then(Checksum::parse);
            let name = name.with_context(|| format!("{} is no block", path.display()))?;
            // It compares the checksum, too.
            block::unpack(&fs::read(path)?, Compression::Lz4, block::DEFAULT_SIZE as usize, &name)?;
        }
        Ok(begin.elapsed().as_secs_f64())
    }
}

fn each_block(path: &Path, mut each: impl FnMut(&[u8]) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let (mut file, mut block) = (File::open(path)?, vec![0; block::DEFAULT_SIZE as usize]);
    for _ in 0..file.metadata()?.len() / block::DEFAULT_SIZE {
        file.read_exact(&mut block)?;
        each(&block)?;
    }
    Ok(())
}

fn equal(one: &Path, other: &Path) -> anyhow::Result<bool> {
    let (mut other, mut theirs) = (File::open(other)?, vec![0; block::DEFAULT_SIZE as usize]);
    let mut same = true;
    each_block(one, |block| {
        other.read_exact(&mut theirs)?;
        same &= block == theirs;
        Ok(())
    })?;
    Ok(same)
}

/// One job, in this process.
pub(crate) fn run_job(arguments: &JobArguments) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let begin = Instant::now();
    runtime.block_on(work(arguments))?;
    let seconds = begin.elapsed().saturating_sub(LOCK).as_secs_f64();
    let told = Told { seconds, peak: peak()? };
    Ok(std::io::stdout().write_all(&serde_json::to_vec(&told)?)?)
}

async fn work(arguments: &JobArguments) -> anyhow::Result<()> {
    let JobArguments { job, snapshot, stride, folder } = arguments;
    let store: Arc<dyn Store> = Arc::new(FolderStore::new(&folder.join("target"), Duration::from_secs(60)));
    let (state, name) = (folder.join("jobs").join(format!("{job}-{snapshot}")), format!("backup-{snapshot}"));
    match job.as_str() {
        "backup" => {
            let request = BackupRequest::new("bench", "volume", &name, snapshot);
            let source = Snapshot::new(folder, snapshot, *stride)?;
            let outcome = BackupJob::create(&state, request, Options::default())?.run(&store, &source).await?;
            ensure!(matches!(outcome, Outcome::Complete { .. }), "{outcome:?}");
        }
        "restore" => {
            let request = RestoreRequest::new("bench", "volume", &name, "device");
            let size = fs::metadata(folder.join(snapshot))?.len() * stride;
            let device = FileDevice::new(&folder.join("device"), size)?;
            let outcome = RestoreJob::create(&state, request, Options::default())?.run(&store, &device).await?;
            ensure!(matches!(outcome, restore::Outcome::Complete { .. }), "{outcome:?}");
        }
        other => bail!("{other} is no job"),
    }
    Ok(())
}

/// The most memory that this process had.
fn peak() -> anyhow::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kib: u64 = line.split_whitespace().next().context("no number")?.parse()?;
    Ok(kib << 10)
}
