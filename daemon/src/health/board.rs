//! What the thread `health` knows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use reactor::{Instant, Pulse};
use tls::Certificates;
use uuid::Uuid;

use super::feed::{Facts, Follower, News, Volume};
use super::watchdog::{Finding, Watched};
use super::{Phase, Progress};
use crate::runs::LastRun;

/// What stays as it is.
pub(super) struct About {
    pub(super) node: String,
    pub(super) started: SystemTime,
    /// The age of a request at which its volume is unhealthy.
    pub(super) unhealthy_after: Duration,
    pub(super) last_run: LastRun,
    /// Of which only numbers are read: no lock.
    pub(super) certificates: Option<Arc<Certificates>>,
}

/// Everything that is known.
pub(super) struct Board {
    pub(super) about: About,
    pub(super) phase: Phase,
    pub(super) reactors: Vec<Watched>,
    pub(super) facts: Arc<Facts>,
    volumes: BTreeMap<Uuid, Arc<Volume>>,
    follower: Follower,
}

impl Board {
    pub(super) fn new(about: About, follower: Follower, reactors: Vec<(String, Pulse)>) -> Self {
        Self {
            about,
            phase: Phase::Starting,
            reactors: reactors.into_iter().map(|(name, pulse)| Watched::new(name, pulse)).collect(),
            facts: Arc::default(),
            volumes: BTreeMap::new(),
            follower,
        }
    }

    /// Takes in what was told since.
    pub(super) fn catch_up(&mut self) {
        while let Some(news) = self.follower.next() {
            match news {
                News::Shown(volume) => drop(self.volumes.insert(volume.uuid, Arc::clone(volume))),
                News::Gone(uuid) => drop(self.volumes.remove(uuid)),
                News::Facts(facts) => self.facts = Arc::clone(facts),
            }
        }
    }

    /// The volumes, by their UUIDs.
    pub(super) fn volumes(&mut self) -> Vec<Arc<Volume>> {
        self.catch_up();
        self.volumes.values().cloned().collect()
    }

    /// Whether a volume's I/O comes to an end.
    pub(super) fn progress(&self, volume: &Volume, now: Instant) -> Progress {
        let age = volume.meter.oldest().map_or(Duration::ZERO, |since| now - since);
        Progress { in_flight: volume.meter.in_flight(), age, is_healthy: age < self.about.unhealthy_after }
    }

    /// Looks at all reactors.
    pub(super) fn look(&mut self, now: Instant) -> Vec<(String, Finding)> {
        self.catch_up();
        let found = self.reactors.iter_mut().filter_map(|reactor| Some((reactor.look(now)?, reactor.name.clone())));
        found.map(|(finding, name)| (name, finding)).collect()
    }

    /// Asks all reactors to turn.
    pub(super) fn prompt(&mut self, now: Instant) {
        self.reactors.iter_mut().for_each(|reactor| reactor.prompt(now));
    }

    /// Why the daemon is not live: nothing if it is.
    pub(super) fn not_live(&self) -> Vec<String> {
        let ended = self.reactors.iter().filter(|reactor| reactor.has_ended() && self.phase != Phase::Stopping);
        ended.map(|reactor| format!("{} has ended: its volumes are not served any more", reactor.name)).collect()
    }

    /// Why the daemon is not ready, as far as it is known without asking.
    pub(super) fn not_ready(&self, now: Instant) -> Vec<String> {
        let mut reasons = self.not_live();
        match self.phase {
            Phase::Starting => reasons.push("the daemon is starting".to_owned()),
            Phase::Serving => {}
            Phase::Stopping => reasons.push("the daemon is stopping".to_owned()),
        }
        for reactor in &self.reactors {
            if let Some(stall) = reactor.stall() {
                let age = (now - stall.since).as_secs_f64();
                reasons.push(format!("{} has been at one step for {age:.1} s: {}", reactor.name, stall.task));
            }
        }
        reasons
    }
}
