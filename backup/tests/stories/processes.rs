//! Real processes that are killed (kill -9) at random points of backup, restore and incremental restore, and are started again (L4).
//!
//! The process is this program once more, told by its environment what to do. The lock's two seconds are virtual there; all else is real: a folder as
//! target, files as volume and device.

use std::collections::BTreeSet;
use std::fs::{self, File, FileTimes, OpenOptions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use backup::create::{BackupJob, BackupRequest, Options, Outcome};
use backup::format::backup::BackupConfig;
use backup::restore::{self, Base, RestoreJob, RestoreRequest};
use backup::source::{Device, Extent, SnapshotInfo, Source};
use backup::target::{FolderStore, Store};
use backup::{Error, Kind, Result};

use crate::{BLOCK, MIB, Random, in_time, remove};

const SIZE: u64 = 12 * MIB;

/// What the snapshot's maps know of.
const CHUNK: u64 = 64 << 10;

/// What the process is to do, and in which folder.
const JOB: &str = "ASHLAR_TEST_JOB";
const FOLDER: &str = "ASHLAR_TEST_FOLDER";

/// What it says when it begins.
const BEGUN: &str = "begun";

/// How often a job's process is killed before it may come to its end.
const KILLS: u64 = 3;

/// A process lives no longer than this, in microseconds; a whole job takes about as long.
const LONGEST_LIFE: u64 = 50_000;

const JOBS: [&str; 4] = ["backup-1", "backup-2", "full", "incremental"];

#[test]
fn processes_that_are_killed_come_to_the_same_end() {
    if let Some(job) = std::env::var_os(JOB) {
        let folder = PathBuf::from(std::env::var_os(FOLDER).expect("a folder"));
        return work(job.to_str().expect("a job"), &folder);
    }
    let seed = std::env::var("ASHLAR_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = seed.map_or(0..if crate::long() { 100 } else { 5 }, |seed: u64| seed..seed + 1);
    let killed: u64 = seeds.map(run).sum();
    assert!(killed > 0, "no process was killed while it worked");
}

/// The whole way of a volume, with kills. Says how many of them found a process at work.
fn run(seed: u64) -> u64 {
    let (mut random, folder) = (Random::new(seed), crate::folder());
    let folder = folder.path();
    ["target", "jobs"].iter().for_each(|name| fs::create_dir(folder.join(name)).expect("made"));
    change(folder, None, "snap-1", &mut random);
    change(folder, Some("snap-1"), "snap-2", &mut random);
    fs::write(folder.join("device"), vec![0xa5; SIZE as usize]).expect("a device full of garbage");
    let mut killed = 0;
    for job in JOBS {
        killed += (0..KILLS).map(|_| u64::from(start(folder, job).live(random.below(LONGEST_LIFE)))).sum::<u64>();
        let (status, said) = start(folder, job).end();
        assert!(status.success(), "seed {seed}: {job}: {status}\n{said}");
        let snapshot = match job {
            "full" => "snap-1",
            "incremental" => "snap-2",
            _ => continue,
        };
        let (device, snapshot) = (fs::read(folder.join("device")), fs::read(folder.join(snapshot)));
        assert!(device.expect("read") == snapshot.expect("read"), "seed {seed}: {job}");
    }
    collected(folder, seed);
    killed
}

/// A snapshot is a file: the one before with some changes.
fn change(folder: &Path, before: Option<&str>, name: &str, random: &mut Random) {
    let mut bytes = before.map_or(vec![0; SIZE as usize], |before| fs::read(folder.join(before)).expect("read"));
    for _ in 0..3 + random.below(3) {
        let (at, content) = (random.below(SIZE / CHUNK) * CHUNK, random.below(3));
        bytes[at as usize..(at + CHUNK) as usize].fill(content as u8);
        bytes[at as usize..at as usize + 8].copy_from_slice(&content.to_le_bytes());
    }
    // What is unmapped vanishes from the next backup.
    let block = (random.below(SIZE / BLOCK) * BLOCK) as usize;
    bytes[block..block + BLOCK as usize].fill(0);
    fs::write(folder.join(name), bytes).expect("written");
}

/// After the next collection the store has what its backups refer to, and nothing else.
fn collected(folder: &Path, seed: u64) {
    let target = folder.join("target");
    // The locks of those who were killed run out, and what they left half written is abandoned.
    let long_ago = FileTimes::new().set_modified(SystemTime::now() - Duration::from_secs(48 * 3600));
    for path in files(&target).iter().filter(|path| is_lock(path) || is_temporary(path)) {
        OpenOptions::new().write(true).open(path).and_then(|file| file.set_times(long_ago)).expect("aged");
    }
    let removed = virtually(in_time(async { remove(&store(folder), "vol-1", Some("backup-1")).await }));
    assert_eq!(removed.postponed, None, "seed {seed}");
    let name = |path: &PathBuf| path.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let (mut stored, mut referred) = (BTreeSet::new(), BTreeSet::new());
    for path in files(&target) {
        assert!(!is_temporary(&path), "seed {seed}: {} is left", path.display());
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("blk") => drop(stored.insert(name(&path))),
            Some("cfg") if name(&path).starts_with("backup_") => {
                let file = BufReader::new(File::open(&path).expect("opened"));
                let (config, _) = BackupConfig::parse(file, &mut |block| {
                    referred.insert(block.checksum.to_string());
                    Ok(())
                })
                .expect("a backup");
                assert!(config.is_complete() && config.name == "backup-2", "seed {seed}: {}", config.name);
            }
            _ => {}
        }
    }
    assert_eq!(stored, referred, "seed {seed}: what is stored is what is referred to");
}

fn is_lock(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "lck")
}

fn is_temporary(path: &Path) -> bool {
    path.to_string_lossy().contains(".tmp.")
}

/// All files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("listed").map(|entry| entry.expect("listed").path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// A process with a job.
struct Process {
    child: Child,
    said: BufReader<std::process::ChildStdout>,
}

fn start(folder: &Path, job: &str) -> Process {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", "processes::processes_that_are_killed_come_to_the_same_end", "--nocapture"]);
    command.env(JOB, job).env(FOLDER, folder).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("this program");
    let mut said = BufReader::new(child.stdout.take().expect("piped"));
    let mut line = String::new();
    while !line.contains(BEGUN) {
        line.clear();
        assert!(said.read_line(&mut line).expect("text") > 0, "it ended before it began");
    }
    Process { child, said }
}

impl Process {
    /// Lets it work for so many microseconds, and kills it. Says whether it was still at work.
    fn live(mut self, microseconds: u64) -> bool {
        std::thread::sleep(Duration::from_micros(microseconds));
        self.child.kill().expect("a child");
        !self.child.wait().expect("a child").success()
    }

    /// Lets it come to its end.
    fn end(mut self) -> (std::process::ExitStatus, String) {
        let said = self.said.lines().map_while(std::result::Result::ok).collect::<Vec<_>>().join("\n");
        (self.child.wait().expect("a child"), said)
    }
}

/// What the process does.
fn work(job: &str, folder: &Path) {
    println!("{BEGUN}");
    let state = folder.join("jobs").join(job);
    virtually(in_time(async {
        let store = store(folder);
        match job {
            "backup-1" | "backup-2" => {
                let name = job.replace("backup", "snap");
                let snapshot = Snapshot { folder: folder.to_owned(), name: name.clone() };
                let request = BackupRequest::new("test", "vol-1", job, &name);
                let mut job = BackupJob::create(&state, request, Options::default()).expect("a job");
                let outcome = job.run(&store, &snapshot).await;
                assert!(matches!(outcome, Ok(Outcome::Complete { .. })), "{outcome:?}");
            }
            _ => {
                let device = OpenOptions::new().read(true).write(true).open(folder.join("device")).expect("opened");
                let full = RestoreRequest::new("test", "vol-1", "backup-1", "device");
                let options = Options::default();
                let request = if job == "full" {
                    full
                } else {
                    let done =
                        RestoreJob::open(&folder.join("jobs/full"), options.clone()).expect("a record").expect("a job");
                    let base = Base { backup: "backup-1".to_owned(), block_size: BLOCK, list: done.list() };
                    RestoreRequest { backup: "backup-2".to_owned(), base: Some(base), ..full }
                };
                let mut job = RestoreJob::create(&state, request, options).expect("a job");
                let outcome = job.run(&store, &FileDevice(device)).await;
                assert!(matches!(outcome, Ok(restore::Outcome::Complete { .. })), "{outcome:?}");
            }
        }
    }));
}

/// Runs in virtual time: nobody waits two seconds for a lock. While a thread works on a file, time stands still.
fn virtually<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    runtime.expect("a runtime").block_on(future)
}

fn store(folder: &Path) -> Arc<dyn Store> {
    Arc::new(FolderStore::new(&folder.join("target"), Duration::from_secs(600)))
}

/// A snapshot in a file. What differs from another one is found by comparing both.
struct Snapshot {
    folder: PathBuf,
    name: String,
}

impl Snapshot {
    fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        fs::read(self.folder.join(name)).map_err(|error| Error::new(Kind::NotFound, error.to_string()))
    }
}

#[async_trait]
impl Source for Snapshot {
    async fn snapshot(&self) -> Result<SnapshotInfo> {
        let seconds = if self.name == "snap-1" { 1_600_000_001 } else { 1_600_000_002 };
        let created = UNIX_EPOCH + Duration::from_secs(seconds);
        Ok(SnapshotInfo { name: self.name.clone(), created, size: SIZE })
    }

    async fn has_snapshot(&self, name: &str) -> Result<bool> {
        Ok(self.folder.join(name).exists())
    }

    async fn extents(&self, since: Option<&str>, from: u64, most: usize) -> Result<Vec<Extent>> {
        let bytes = self.bytes(&self.name)?;
        let before = since.map_or_else(|| Ok(vec![0; SIZE as usize]), |since| self.bytes(since))?;
        let differs = |at: &u64| {
            let range = *at as usize..(at + CHUNK) as usize;
            bytes[range.clone()] != before[range]
        };
        let offsets = (0..SIZE).step_by(CHUNK as usize).filter(|at| at + CHUNK > from).filter(differs);
        Ok(offsets.take(most).map(|offset| Extent { offset, length: CHUNK }).collect())
    }

    async fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let read = File::open(self.folder.join(&self.name)).and_then(|file| file.read_exact_at(buffer, offset));
        read.map_err(|error| Error::new(Kind::SourceBusy, error.to_string()))
    }
}

/// A device in a file.
struct FileDevice(File);

fn device_error(error: std::io::Error) -> Error {
    Error::new(Kind::SourceBusy, error.to_string())
}

#[async_trait]
impl Device for FileDevice {
    async fn size(&self) -> Result<u64> {
        Ok(SIZE)
    }

    async fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.0.write_all_at(bytes, offset).map_err(device_error)
    }

    async fn zero(&self, offset: u64, length: u64) -> Result<()> {
        self.0.write_all_at(&vec![0; length as usize], offset).map_err(device_error)
    }

    async fn flush(&self) -> Result<()> {
        self.0.sync_data().map_err(device_error)
    }
}
