//! How far a job is, for whoever wants to know.

use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::error::{Error, Kind};

/// What a job does.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Phase {
    /// It works.
    #[default]
    Running,
    /// It waits for its next attempt.
    Waiting(Waiting),
    /// It is done.
    Complete,
    /// It has ended without success.
    Failed(Error),
}

/// Why and until when a job waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// What kind of failure it was.
    pub kind: Kind,
    /// What was tried and why it failed.
    pub reason: String,
    /// How many attempts failed since the last one that came further.
    pub attempt: u32,
    /// When the next one is.
    pub next_try: SystemTime,
}

/// How far a job is.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct State {
    /// What it does.
    pub phase: Phase,
    /// Bytes of the volume that it has to deal with; 0 until that is known.
    pub total: u64,
    /// Bytes that it has dealt with.
    pub done: u64,
    /// Packed bytes that it stored or fetched in this run.
    pub moved: u64,
    /// How long the rest takes at the rate of this attempt.
    pub remaining: Option<Duration>,
}

/// Tells how far a job is. Clones tell of the same job.
#[derive(Clone, Debug)]
pub struct Progress {
    state: watch::Sender<State>,
    begin: std::sync::Arc<std::sync::Mutex<(Instant, u64)>>,
}

impl Default for Progress {
    fn default() -> Self {
        let begin = std::sync::Arc::new(std::sync::Mutex::new((Instant::now(), 0)));
        Self { state: watch::Sender::new(State::default()), begin }
    }
}

impl Progress {
    /// What is told from now on.
    pub fn subscribe(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// What was told last.
    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// An attempt begins with so much done of so much.
    pub(crate) fn begin(&self, done: u64, total: u64) {
        if let Ok(mut begin) = self.begin.lock() {
            *begin = (Instant::now(), done);
        }
        self.state.send_modify(|state| {
            (state.phase, state.done, state.total, state.remaining) = (Phase::Running, done, total, None);
        });
    }

    /// More is done.
    pub(crate) fn add(&self, done: u64, moved: u64) {
        let begin = self.begin.lock().map(|begin| *begin).ok();
        self.state.send_modify(|state| {
            state.done += done;
            state.moved += moved;
            state.remaining = begin.and_then(|(since, from)| estimate(state, since.elapsed(), from));
        });
    }

    pub(crate) fn set(&self, phase: Phase) {
        self.state.send_modify(|state| (state.phase, state.remaining) = (phase, None));
    }

    /// Shows why it waits, and waits.
    pub(crate) async fn wait(&self, backoff: &mut Backoff, error: &Error) {
        let pause = if error.is_terminal() { backoff.longest() } else { backoff.next() };
        let (kind, reason) = (error.kind(), error.reason().to_owned());
        tracing::info!(%kind, reason, attempt = backoff.attempt(), pause = pause.as_secs(), "waiting");
        let next_try = SystemTime::now() + pause;
        self.set(Phase::Waiting(Waiting { kind, reason, attempt: backoff.attempt(), next_try }));
        tokio::time::sleep(pause).await;
        self.set(Phase::Running);
    }
}

/// The time for the rest at the rate of this attempt.
fn estimate(state: &State, elapsed: Duration, from: u64) -> Option<Duration> {
    let done = state.done.checked_sub(from).filter(|done| *done > 0)?;
    let left = state.total.saturating_sub(state.done);
    Some(elapsed.mul_f64(left as f64 / done as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_is_reckoned_from_the_rate_of_this_attempt() {
        let state = State { total: 1000, done: 600, ..State::default() };
        assert_eq!(estimate(&state, Duration::from_secs(10), 500), Some(Duration::from_secs(40)));
        assert_eq!(estimate(&state, Duration::from_secs(10), 600), None);
    }
}
