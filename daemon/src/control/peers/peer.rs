//! One peer: its connection, and the task that keeps it.
//!
//! ```text
//!            connected                 closed, broken, silent
//!  CONNECTING ───────▶ CONNECTED ─────────────────────────────▶ WAITING
//!     ▲   │ refused, or no answer                                 ▲  │
//!     │   └───────────────────────────────────────────────────────┘  │
//!     └──────────────────────────────────────────────────────────────┘
//!        the pause is over, or a call wants the peer and the budget allows a try before that
//! ```

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use proto::v1::{self, PeerState};
use tls::Certificates;
use tokio::sync::{Notify, Semaphore, watch};
use tonic::transport::Channel;

use super::connection;
use crate::config::PeerConfig;
use crate::control::error::ControlError;
use crate::control::request;
use crate::control::retry::Backoff;

/// Pauses between attempts to connect.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Attempts ahead of time that calls may cause: so many at once, and one more each second.
const EARLY_TRIES: u32 = 10;
/// Calls under way to one peer; more wait.
const MOST_CALLS: usize = 64;

/// A node of the configuration.
pub(super) struct Peer {
    pub(super) config: PeerConfig,
    certificates: Option<Arc<Certificates>>,
    line: Mutex<Line>,
    /// Sent to when the line's state changes.
    changed: watch::Sender<()>,
    /// A call wants an attempt now.
    wanted: Notify,
    /// One for each call under way.
    pub(super) calls: Semaphore,
    connects: AtomicU64,
    failed_connects: AtomicU64,
    calls_made: AtomicU64,
    failed_calls: AtomicU64,
}

struct Line {
    state: State,
    /// When it got into that state, in milliseconds since the Unix epoch.
    since: i64,
    /// Attempts in a row that failed.
    attempts: u32,
    /// Why the last attempt or call failed; empty when it went well.
    last_error: String,
    /// Whether a call was answered over this connection.
    answered: bool,
    budget: Budget,
}

enum State {
    Connecting,
    Connected(Channel),
    Waiting { until: Instant },
}

impl Peer {
    pub(super) fn new(config: PeerConfig, certificates: Option<Arc<Certificates>>) -> Arc<Self> {
        let line = Line {
            state: State::Connecting,
            since: request::unix_milliseconds(),
            attempts: 0,
            last_error: String::new(),
            answered: false,
            budget: Budget::new(EARLY_TRIES),
        };
        Arc::new(Self {
            config,
            certificates,
            line: Mutex::new(line),
            changed: watch::Sender::new(()),
            wanted: Notify::new(),
            calls: Semaphore::new(MOST_CALLS),
            connects: AtomicU64::new(0),
            failed_connects: AtomicU64::new(0),
            calls_made: AtomicU64::new(0),
            failed_calls: AtomicU64::new(0),
        })
    }

    /// Keeps the connection: makes it, waits for its end, pauses, and so on. `connected` is told of each that was made.
    pub(super) async fn keep(self: Arc<Self>, connected: watch::Sender<u64>) {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            let reason = match connection::open(&self.config, self.certificates.as_ref()).await {
                Ok(connection::Connection { channel, closed }) => {
                    let since = Instant::now();
                    self.connected(channel);
                    connected.send_modify(|count| *count += 1);
                    // An error is what it ends with.
                    let _ = closed.await;
                    // A connection that nobody answers on is no better than none.
                    if self.line().answered || since.elapsed() > LONGEST_PAUSE {
                        backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
                    }
                    format!("the connection to {} was lost", self.config.grpc)
                }
                Err(reason) => {
                    self.failed_connects.fetch_add(1, Ordering::Relaxed);
                    reason
                }
            };
            let pause = backoff.pause();
            self.lost(reason, pause);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.wanted.notified() => {}
            }
            self.enter(State::Connecting);
        }
    }

    fn connected(&self, channel: Channel) {
        self.connects.fetch_add(1, Ordering::Relaxed);
        tracing::info!(peer = %self.config.name, address = %self.config.grpc, "connected");
        {
            let mut line = self.line();
            (line.attempts, line.answered) = (0, false);
            line.last_error.clear();
        }
        self.enter(State::Connected(channel));
    }

    fn lost(&self, reason: String, pause: Duration) {
        {
            let mut line = self.line();
            if line.attempts == 0 {
                tracing::warn!(peer = %self.config.name, %reason, "not reachable; it is tried again and again");
            }
            line.attempts = line.attempts.saturating_add(1);
            line.last_error = reason;
        }
        self.enter(State::Waiting { until: Instant::now() + pause });
    }

    fn enter(&self, state: State) {
        {
            let mut line = self.line();
            let was_up = matches!(line.state, State::Connected(_));
            // Between attempts it is the same as before: not there, since then.
            if was_up || matches!(state, State::Connected(_)) {
                line.since = request::unix_milliseconds();
            }
            line.state = state;
        }
        self.changed.send_replace(());
    }

    /// The connection. Waits for an attempt under way; of a peer that is waited for one is made now, if the budget allows that.
    pub(super) async fn channel(&self) -> Result<Channel, ControlError> {
        let mut changed = self.changed.subscribe();
        let mut asked = false;
        loop {
            {
                let mut line = self.line();
                match &line.state {
                    State::Connected(channel) => return Ok(channel.clone()),
                    State::Connecting => {}
                    State::Waiting { until } => {
                        let until = *until;
                        if asked || !line.budget.take(Instant::now()) {
                            return Err(self.unreachable(&line, until));
                        }
                        asked = true;
                        self.wanted.notify_one();
                    }
                }
            }
            if changed.changed().await.is_err() {
                return Err(ControlError::unavailable("PEER_UNREACHABLE", "the daemon is stopping"));
            }
        }
    }

    fn unreachable(&self, line: &Line, until: Instant) -> ControlError {
        let (name, attempts, error) = (&self.config.name, line.attempts, &line.last_error);
        let next = until.saturating_duration_since(Instant::now()).as_secs_f64();
        let text = format!("node `{name}`: {error} ({attempts} attempts, the next one in {next:.1} s)");
        ControlError::unavailable("PEER_UNREACHABLE", text).with("node", name).with("attempts", attempts)
    }

    /// The peer said something over this connection.
    pub(super) fn answered(&self) {
        self.line().answered = true;
    }

    /// Notes how a call ended.
    pub(super) fn note(&self, error: Option<&ControlError>) {
        self.calls_made.fetch_add(1, Ordering::Relaxed);
        self.failed_calls.fetch_add(u64::from(error.is_some()), Ordering::Relaxed);
        let mut line = self.line();
        // What is said of the connection counts more while there is none.
        if matches!(line.state, State::Connected(_)) {
            line.last_error = error.map(ToString::to_string).unwrap_or_default();
        }
    }

    pub(super) fn describe(&self) -> v1::Peer {
        let line = self.line();
        let (state, next_try_ms) = match &line.state {
            State::Connecting => (PeerState::Connecting, None),
            State::Connected(_) => (PeerState::Connected, None),
            State::Waiting { until } => {
                let left = until.saturating_duration_since(Instant::now()).as_millis();
                (PeerState::Waiting, Some(u64::try_from(left).unwrap_or(u64::MAX)))
            }
        };
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        v1::Peer {
            name: self.config.name.clone(),
            grpc_address: self.config.grpc.to_string(),
            replica_address: self.config.replica.to_string(),
            last_error: line.last_error.clone(),
            state: state.into(),
            since_unix_ms: line.since,
            attempts: line.attempts,
            next_try_ms,
            // At most MOST_CALLS.
            calls_in_flight: (MOST_CALLS - self.calls.available_permits()) as u32,
            calls: count(&self.calls_made),
            failed_calls: count(&self.failed_calls),
            connects: count(&self.connects),
            failed_connects: count(&self.failed_connects),
        }
    }

    pub(super) fn replica_address(&self) -> SocketAddr {
        self.config.replica
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        // Poisoned or not, what is said of the line is whole: no change of it has several steps that can panic.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What may be done ahead of time: so much at once, and one more each second.
#[derive(Debug)]
struct Budget {
    most: u32,
    left: u32,
    /// When the last one came back.
    since: Option<Instant>,
}

impl Budget {
    fn new(most: u32) -> Self {
        Self { most, left: most, since: None }
    }

    fn take(&mut self, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        let seconds = now.saturating_duration_since(since).as_secs();
        self.left = self.left.saturating_add(u32::try_from(seconds).unwrap_or(u32::MAX)).min(self.most);
        self.since = Some(since + Duration::from_secs(seconds));
        let is_left = self.left > 0;
        self.left -= u32::from(is_left);
        is_left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_spent_and_comes_back_by_the_second() {
        let (mut budget, start) = (Budget::new(3), Instant::now());
        let mut taken = |milliseconds| budget.take(start + Duration::from_millis(milliseconds));
        assert_eq!([taken(0), taken(1), taken(2), taken(3), taken(999)], [true, true, true, false, false]);
        assert_eq!([taken(1_100), taken(1_900), taken(2_000), taken(2_001)], [true, false, true, false]);
        assert_eq!((0..10).filter(|n| taken(1_000_000 + n)).count(), 3, "no more than the most");
    }
}
