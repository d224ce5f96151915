//! What is answered, and what runs beside it.

use std::cell::RefCell;
use std::fmt::Write;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use reactor::monotonic_now;
use tokio::net::UnixStream;
use tokio::sync::watch;

use super::board::Board;
use super::http::{Answer, Site};
use super::link::{FACTS, PING, READY, SERVING, STOPPING, UNREADY};
use super::log::Log;
use super::notify::Notifier;
use super::ticks::Ticks;
use super::watchdog::Finding;
use super::{Phase, watchdog_interval};

/// For the control threads to answer. Probes wait a second.
const ANSWER_LIMIT: Duration = Duration::from_millis(500);

/// The pages of the thread.
pub(super) struct Pages {
    pub(super) board: RefCell<Board>,
    control: UnixStream,
    pings: Questions,
    facts: Questions,
    notifier: Notifier,
    log: Log,
}

/// Questions of one kind: one at a time is under way, for all who want to know.
struct Questions {
    byte: u8,
    counted: watch::Sender<Counted>,
}

#[derive(Clone, Copy, Default)]
struct Counted {
    asked: u64,
    answered: u64,
}

impl Questions {
    fn new(byte: u8) -> Self {
        Self { byte, counted: watch::Sender::new(Counted::default()) }
    }

    /// Asks, and says whether the answer came in time.
    async fn ask(&self, control: &UnixStream) -> bool {
        let Counted { asked, answered } = *self.counted.borrow();
        if asked == answered {
            // Without room for a byte nobody has read for long.
            if control.try_write(&[self.byte]).is_err() {
                return false;
            }
            self.counted.send_modify(|counted| counted.asked += 1);
        }
        let wanted = answered + 1;
        let mut counted = self.counted.subscribe();
        let came = counted.wait_for(|counted| counted.answered >= wanted);
        tokio::time::timeout(ANSWER_LIMIT, came).await.is_ok_and(|came| came.is_ok())
    }

    fn answered(&self) {
        self.counted.send_modify(|counted| counted.answered = counted.asked.min(counted.answered + 1));
    }
}

impl Pages {
    pub(super) fn new(board: Board, control: UnixStream, notifier: Notifier, log: Log) -> Self {
        let (pings, facts) = (Questions::new(PING), Questions::new(FACTS));
        Self { board: RefCell::new(board), control, pings, facts, notifier, log }
    }

    /// Hears what the control threads say, for ever.
    pub(super) async fn hear(self: Rc<Self>) {
        let mut bytes = [0; 64];
        while self.control.readable().await.is_ok() {
            let length = match self.control.try_read(&mut bytes) {
                Ok(0) => return,
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(_) => return,
            };
            for byte in &bytes[..length] {
                match *byte {
                    PING => self.pings.answered(),
                    FACTS => self.facts.answered(),
                    SERVING => self.enter(Phase::Serving, "READY=1\nSTATUS=serving"),
                    STOPPING => self.enter(Phase::Stopping, "STOPPING=1\nSTATUS=stopping"),
                    _ => {}
                }
            }
        }
    }

    fn enter(&self, phase: Phase, line: &str) {
        self.board.borrow_mut().phase = phase;
        self.notifier.tell(line);
    }

    /// Watches the reactors, for ever.
    pub(super) async fn watch(self: Rc<Self>, ticks: Ticks) {
        let mut told = READY;
        while ticks.next().await.is_ok() {
            let found = self.board.borrow_mut().look(monotonic_now());
            for (reactor, finding) in found {
                self.log.say(move || match finding {
                    Finding::Stalls { task } => tracing::error!(%reactor, task, "a reactor stalls"),
                    Finding::GoesOn { after } => tracing::warn!(%reactor, ?after, "a reactor goes on"),
                    Finding::Ended => tracing::error!(%reactor, "a reactor has ended; the daemon is not live any more"),
                });
            }
            let is_ready = self.board.borrow().not_ready(monotonic_now()).is_empty();
            let verdict = if is_ready { READY } else { UNREADY };
            // Without room for a byte it is said at the next look.
            if verdict != told && self.control.try_write(&[verdict]).is_ok() {
                told = verdict;
            }
        }
    }

    /// Tells systemd that the daemon is live, as often as it wants to hear.
    pub(super) async fn tell_systemd(self: Rc<Self>) {
        let Some(limit) = self.notifier.watchdog else { return };
        loop {
            if self.board.borrow().not_live().is_empty() {
                self.notifier.tell("WATCHDOG=1");
            }
            tokio::time::sleep(watchdog_interval(limit)).await;
        }
    }

    /// The reasons why the API does not answer.
    pub(super) async fn not_ready(&self) -> Vec<String> {
        self.board.borrow_mut().prompt(monotonic_now());
        let serving = self.board.borrow().phase == Phase::Serving;
        let deaf = serving && !self.pings.ask(&self.control).await;
        let mut reasons = self.board.borrow().not_ready(monotonic_now());
        if deaf {
            let limit = ANSWER_LIMIT.as_millis();
            reasons.push(format!("the control threads did not answer within {limit} ms"));
        }
        reasons
    }

    /// Has the control threads tell new facts; without an answer in time those before stay.
    pub(super) async fn ask_for_facts(&self) {
        self.facts.ask(&self.control).await;
    }

    async fn livez(&self, answer: Answer<'_>) -> io::Result<()> {
        let reasons = self.board.borrow().not_live();
        verdict(answer, "live", &reasons).await
    }

    async fn readyz(&self, answer: Answer<'_>) -> io::Result<()> {
        let reasons = self.not_ready().await;
        verdict(answer, "ready", &reasons).await
    }

    async fn volumes(&self, answer: Answer<'_>) -> io::Result<()> {
        let (mut text, mut all_healthy) = (String::new(), true);
        {
            let mut board = self.board.borrow_mut();
            let now = monotonic_now();
            for volume in board.volumes() {
                let progress = board.progress(&volume, now);
                all_healthy &= progress.is_healthy;
                let state = if progress.is_healthy { "ok" } else { "unhealthy" };
                // Writing to a String cannot fail.
                let _ = writeln!(
                    text,
                    "{state} {} {} in-flight={} oldest-ms={}",
                    volume.name,
                    volume.uuid,
                    progress.in_flight,
                    progress.age.as_millis()
                );
            }
        }
        answer.text(if all_healthy { "200 OK" } else { UNAVAILABLE }, &text).await
    }
}

const UNAVAILABLE: &str = "503 Service Unavailable";

async fn verdict(answer: Answer<'_>, good: &str, reasons: &[String]) -> io::Result<()> {
    match reasons {
        [] => answer.text("200 OK", &format!("{good}\n")).await,
        reasons => answer.text(UNAVAILABLE, &format!("{}\n", reasons.join("\n"))).await,
    }
}

impl Site for Pages {
    async fn get(&self, path: &str, answer: Answer<'_>) -> io::Result<()> {
        match path {
            "/livez" => self.livez(answer).await,
            "/readyz" => self.readyz(answer).await,
            "/volumes" => self.volumes(answer).await,
            "/metrics" => self.metrics(answer).await,
            _ => answer.text("404 Not Found", "there are /livez, /readyz, /volumes and /metrics\n").await,
        }
    }
}
