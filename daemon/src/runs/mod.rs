//! Why the last run ended: docs/health.md, "Why the last run ended".

mod judge;
mod notes;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use anyhow::Context;
use serde::{Deserialize, Serialize};

pub(crate) use self::notes::{note_panic, panics};

use self::judge::{Machine, judge};
use self::notes::Notes;
use crate::state;

/// Runs before this one that are remembered.
const EARLIER: usize = 16;
const FILE: &str = "runs.json";

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum End {
    /// In order, because it was asked to.
    Clean,
    /// With an error.
    Failed,
    /// By a panic.
    Panic,
    /// By a fatal signal.
    Signal,
    /// By SIGKILL.
    Killed,
    /// The machine stopped under it.
    Power,
    /// What it left cannot be read.
    Unknown,
}

/// One run of the daemon on this state directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Run {
    number: u64,
    version: String,
    pid: u32,
    boot_id: String,
    /// Milliseconds since the Unix epoch.
    started_at: i64,
    /// Processes that the machine had killed for want of memory.
    oom_kills: u64,
    ended: Option<Ended>,
}

/// The end of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ended {
    pub(crate) how: End,
    /// For people: the signal, the error.
    pub(crate) detail: String,
    /// Its last panic with the backtrace, if it had one.
    pub(crate) panic: String,
    /// Milliseconds since the Unix epoch; none where nobody could note it.
    pub(crate) at: Option<i64>,
}

#[derive(Serialize, Deserialize)]
struct Runs {
    current: Run,
    /// The latest first.
    earlier: Vec<Run>,
}

/// The run before this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LastRun {
    /// None if this is the first.
    pub(crate) ended: Option<Ended>,
    pub(crate) number: u64,
    pub(crate) version: String,
    pub(crate) pid: u32,
    /// Milliseconds since the Unix epoch.
    pub(crate) started_at: i64,
}

/// This run's record.
pub(crate) struct ThisRun {
    path: PathBuf,
    runs: Mutex<Runs>,
    pub(crate) last: LastRun,
}

impl ThisRun {
    /// Judges how the last run ended, and notes durably that another one has begun. The state directory is locked.
    pub(crate) fn begin(state: &Path) -> anyhow::Result<Self> {
        let machine = Machine::here().context("cannot tell this boot of the machine from others")?;
        let (this, notes) = Self::begin_on(state, &machine)?;
        notes.take_over().context("cannot note fatal signals")?;
        this.last.log();
        Ok(this)
    }

    fn begin_on(state: &Path, machine: &Machine) -> anyhow::Result<(Self, Notes)> {
        let folder = state.join("runs");
        let failed = || format!("cannot keep a record of runs in {}", folder.display());
        fs::create_dir_all(&folder).with_context(failed)?;
        let path = folder.join(FILE);
        let (last, earlier) = read(&path, machine);
        let current = Run {
            number: last.number + 1,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            boot_id: machine.boot_id.clone(),
            started_at: now(),
            oom_kills: machine.oom_kills,
            ended: None,
        };
        let notes = Notes::begin(&folder, current.number).with_context(failed)?;
        let runs = Runs { current, earlier };
        state::write(&path, &runs)?;
        // Only now nobody needs them any more.
        notes::remove_others(&folder, runs.current.number);
        Ok((Self { path, runs: Mutex::new(runs), last }, notes))
    }

    /// Notes durably how this run ends.
    pub(crate) fn end(&self, how: End, detail: &str) {
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        // A panic is in the notes.
        runs.current.ended = Some(Ended { how, detail: detail.to_owned(), panic: String::new(), at: Some(now()) });
        if let Err(error) = state::write(&self.path, &*runs) {
            tracing::warn!(%error, "the next start will not know how this run ended");
        }
    }
}

impl LastRun {
    fn first() -> Self {
        Self { ended: None, number: 0, version: String::new(), pid: 0, started_at: 0 }
    }

    fn log(&self) {
        let Some(ended) = &self.ended else { return };
        let (run, how, detail) = (self.number, ended.how.word(), &ended.detail);
        match ended.how {
            End::Clean => tracing::info!(run, how, %detail, "the last run ended"),
            _ => tracing::warn!(run, how, %detail, panic = %ended.panic, "the last run ended"),
        }
    }

    /// How it ended, for people.
    pub(crate) fn sentence(&self) -> String {
        match &self.ended {
            None => "for the first time here".to_owned(),
            Some(ended) => format!("the last run ended: {} ({})", ended.how.word(), ended.detail),
        }
    }

    /// How it ended, in a word.
    pub(crate) fn word(&self) -> &'static str {
        self.ended.as_ref().map_or("first", |ended| ended.how.word())
    }
}

impl End {
    /// Every word.
    pub(crate) const WORDS: [&'static str; 8] =
        ["first", "clean", "failed", "panic", "signal", "killed", "power", "unknown"];

    fn word(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Failed => "failed",
            Self::Panic => "panic",
            Self::Signal => "signal",
            Self::Killed => "killed",
            Self::Power => "power",
            Self::Unknown => "unknown",
        }
    }
}

/// The last run, judged, and the runs before this one.
fn read(path: &Path, machine: &Machine) -> (LastRun, Vec<Run>) {
    let Runs { mut current, mut earlier } = match state::read::<Runs>(path) {
        Ok(Some(runs)) => runs,
        Ok(None) => return (LastRun::first(), Vec::new()),
        Err(error) => {
            // No reason not to serve.
            tracing::error!(%error, "how the last run ended is not known");
            let (at, panic) = (None, String::new());
            let ended = Ended { how: End::Unknown, detail: error.to_string(), panic, at };
            let number = notes::highest(path.parent().unwrap_or(path));
            return (LastRun { ended: Some(ended), number, ..LastRun::first() }, Vec::new());
        }
    };
    let notes = notes::read(path.parent().unwrap_or(path), current.number);
    let ended = judge(&current, &notes, machine);
    current.ended = Some(ended.clone());
    let last = LastRun {
        ended: Some(ended),
        number: current.number,
        version: current.version.clone(),
        pid: current.pid,
        started_at: current.started_at,
    };
    earlier.insert(0, current);
    earlier.truncate(EARLIER);
    (last, earlier)
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Runs the daemon, and notes how that ends.
pub(crate) fn noted(this: &ThisRun, run: impl FnOnce() -> anyhow::Result<&'static str>) -> anyhow::Result<()> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
        Ok(Ok(signal)) => {
            this.end(End::Clean, signal);
            Ok(())
        }
        Ok(Err(error)) => {
            this.end(End::Failed, &format!("{error:#}"));
            Err(error)
        }
        Err(panic) => {
            this.end(End::Panic, "the daemon's own thread panicked");
            std::panic::resume_unwind(panic)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(boot: &str) -> Machine {
        Machine { boot_id: boot.to_owned(), oom_kills: 0 }
    }

    fn begin(folder: &Path, boot: &str) -> (ThisRun, Notes) {
        ThisRun::begin_on(folder, &machine(boot)).expect("begun")
    }

    fn last(folder: &Path, boot: &str) -> (&'static str, Ended) {
        let (this, _) = begin(folder, boot);
        (this.last.word(), this.last.ended.expect("not the first"))
    }

    #[test]
    fn each_run_knows_how_the_one_before_ended() {
        let folder = tempfile::tempdir().expect("a folder");
        let (first, _) = begin(folder.path(), "a");
        assert_eq!((first.last.word(), first.last.number), ("first", 0));
        first.end(End::Clean, "SIGTERM");
        let (word, ended) = last(folder.path(), "a");
        assert_eq!((word, ended.detail.as_str(), ended.at.is_some()), ("clean", "SIGTERM", true));
        // That one said nothing.
        assert_eq!(last(folder.path(), "a").0, "killed");
        assert_eq!(last(folder.path(), "b").0, "power");
        let (this, notes) = begin(folder.path(), "b");
        assert_eq!((this.last.word(), this.last.number), ("killed", 4));
        notes.append("signal SIGSEGV\n");
        assert_eq!(last(folder.path(), "b").0, "signal");
    }

    #[test]
    fn a_damaged_record_keeps_nobody_from_serving() {
        let folder = tempfile::tempdir().expect("a folder");
        drop(begin(folder.path(), "a"));
        drop(begin(folder.path(), "a"));
        fs::write(folder.path().join("runs").join(FILE), "{\"format\": 1, \"rec").expect("written");
        let (this, _) = begin(folder.path(), "a");
        assert_eq!((this.last.word(), this.last.number), ("unknown", 2));
        this.end(End::Failed, "no room");
        assert_eq!(last(folder.path(), "a").0, "failed");
    }

    #[test]
    fn only_so_many_are_remembered_and_no_notes_of_others_stay() {
        let folder = tempfile::tempdir().expect("a folder");
        (0..EARLIER + 5).for_each(|_| drop(begin(folder.path(), "a")));
        let runs: Runs = state::read(&folder.path().join("runs").join(FILE)).expect("good").expect("there");
        assert_eq!(runs.earlier.len(), EARLIER);
        assert_eq!(runs.earlier[0].number + 1, runs.current.number);
        assert_eq!(fs::read_dir(folder.path().join("runs")).expect("there").count(), 2);
    }

    #[test]
    fn a_panic_that_ends_the_run_is_noted_as_its_end() {
        let folder = tempfile::tempdir().expect("a folder");
        let (this, _) = begin(folder.path(), "a");
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| noted(&this, || panic!("on purpose"))));
        assert!(caught.is_err());
        assert_eq!(last(folder.path(), "a").0, "panic");
    }
}
