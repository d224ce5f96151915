//! Looks whether reactors turn: see docs/health.md, "Reactors".

use std::time::Duration;

use reactor::{Instant, Pulse, monotonic_now};

/// How often it looks: a reactor that is in the same turn at two looks stalls.
pub(super) const INTERVAL: Duration = Duration::from_secs(3);

/// Said of a reactor that sleeps and does not wake.
const ASLEEP: &str = "asleep, and does not wake";

/// One reactor under watch.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) name: String,
    pub(super) pulse: Pulse,
    last: Option<Look>,
    prompted: Option<Prompt>,
    stall: Option<Stall>,
    told_of_end: bool,
    /// The largest busy time that was told: it never goes back.
    busy: Duration,
    started: Instant,
}

/// What a look saw.
#[derive(Clone, Copy, Debug)]
struct Look {
    turns: u64,
    sleeps: u64,
    is_busy: bool,
    at: Instant,
}

/// It was asked to turn.
#[derive(Clone, Copy, Debug)]
struct Prompt {
    turns: u64,
    at: Instant,
}

/// A turn without an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stall {
    /// It stalls since then at least.
    pub(super) since: Instant,
    /// What it does meanwhile.
    pub(super) task: &'static str,
}

/// What a look has found out.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Finding {
    Stalls { task: &'static str },
    GoesOn { after: Duration },
    Ended,
}

impl Watched {
    pub(super) fn new(name: String, pulse: Pulse) -> Self {
        let (last, prompted, stall) = (None, None, None);
        let (busy, started) = (Duration::ZERO, monotonic_now());
        Self { name, pulse, last, prompted, stall, told_of_end: false, busy, started }
    }

    /// Compares with the look before.
    pub(super) fn look(&mut self, now: Instant) -> Option<Finding> {
        let stats = self.pulse.stats();
        if stats.has_ended() {
            return (!std::mem::replace(&mut self.told_of_end, true)).then_some(Finding::Ended);
        }
        // In this order: a sleep that has ended before is counted then.
        let activity = stats.activity();
        let look = Look { sleeps: stats.sleeps(), turns: stats.turns(), is_busy: activity.is_some(), at: now };
        let last = self.last.replace(look)?;
        if let Some(stall) = self.stall {
            let sleeps = activity.is_none() && stall.task != ASLEEP;
            if (look.turns, look.sleeps) == (last.turns, last.sleeps) && !sleeps {
                return None;
            }
            self.stall = None;
            self.prompted = None;
            return Some(Finding::GoesOn { after: now - stall.since });
        }
        self.prompted = self.prompted.filter(|prompt| prompt.turns == look.turns);
        let overdue = self.prompted.filter(|prompt| now - prompt.at >= INTERVAL).map(|prompt| prompt.at);
        let same_turn = look.is_busy && last.is_busy && (look.turns, look.sleeps) == (last.turns, last.sleeps);
        let since = if same_turn { Some(last.at) } else { overdue }?;
        let task = activity.unwrap_or(ASLEEP);
        self.stall = Some(Stall { since, task });
        Some(Finding::Stalls { task })
    }

    /// Asks it to turn, also if it sleeps. The next looks see whether it does.
    pub(super) fn prompt(&mut self, now: Instant) {
        if self.prompted.is_none() && !self.has_ended() {
            self.prompted = Some(Prompt { turns: self.pulse.stats().turns(), at: now });
            self.pulse.prompt();
        }
    }

    /// The turn that does not end, as far as was seen.
    pub(super) fn stall(&self) -> Option<Stall> {
        self.stall
    }

    pub(super) fn has_ended(&self) -> bool {
        self.pulse.stats().has_ended()
    }

    /// How long it has been at work, which is neither sleep nor spinning.
    pub(super) fn busy(&mut self, now: Instant) -> Duration {
        let stats = self.pulse.stats();
        let busy = (now - self.started).saturating_sub(stats.slept_until(now) + stats.spun());
        self.busy = self.busy.max(busy);
        self.busy
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use reactor::{Config, Reactor};

    use super::*;

    fn reactor() -> (Reactor, Watched) {
        let config = Config { name: "reactor-7".to_owned(), busy_poll: Duration::ZERO, ..Config::default() };
        let reactor = Reactor::start(config).expect("io_uring");
        let watched = Watched::new("reactor-7".to_owned(), reactor.pulse());
        sleeps(&reactor);
        (reactor, watched)
    }

    /// Waits until the reactor has begun and sleeps.
    fn sleeps(reactor: &Reactor) {
        let (sender, receiver) = mpsc::channel();
        reactor.handle().post(move || sender.send(()).expect("awaited")).expect("it runs");
        receiver.recv().expect("it turns");
        while reactor.stats().activity().is_some() {
            std::thread::yield_now();
        }
    }

    /// Waits on the reactor's thread, which no task may.
    async fn a_task_that_waits(begun: mpsc::Sender<()>, end: mpsc::Receiver<()>) {
        begun.send(()).expect("the test waits");
        end.recv().expect("the test goes on");
    }

    #[test]
    fn the_task_that_stalls_is_named_until_it_ends() {
        let (reactor, mut watched) = reactor();
        let ((begun, is_begun), (end, is_ended)) = (mpsc::channel(), mpsc::channel());
        let job = move || drop(reactor::spawn(a_task_that_waits(begun, is_ended)));
        reactor.handle().post(job).expect("it runs");
        is_begun.recv().expect("begun");
        let begin = monotonic_now();
        assert_eq!(watched.look(begin), None);
        let Some(Finding::Stalls { task }) = watched.look(begin + INTERVAL) else { panic!("{watched:?}") };
        assert!(task.contains("a_task_that_waits"), "{task}");
        assert_eq!(watched.stall(), Some(Stall { since: begin, task }));
        assert_eq!(watched.look(begin + INTERVAL * 2), None, "told once");
        end.send(()).expect("it waits");
        sleeps(&reactor);
        let after = INTERVAL * 3;
        assert_eq!(watched.look(begin + after), Some(Finding::GoesOn { after }));
        assert_eq!(watched.stall(), None);
    }

    #[test]
    fn one_that_sleeps_is_well_and_wakes_when_it_is_asked_to() {
        let (_reactor, mut watched) = reactor();
        let begin = monotonic_now();
        for look in 0..5 {
            assert_eq!(watched.look(begin + INTERVAL * look), None);
        }
        let turns = watched.pulse.stats().turns();
        watched.prompt(begin + INTERVAL * 5);
        while watched.pulse.stats().turns() == turns {
            std::thread::yield_now();
        }
        assert_eq!(watched.look(begin + INTERVAL * 7), None);
    }

    #[test]
    fn one_that_does_not_wake_stalls() {
        let (_reactor, mut watched) = reactor();
        let begin = monotonic_now();
        watched.look(begin);
        // As if the system had stopped its thread: nobody rings.
        watched.prompted = Some(Prompt { turns: watched.pulse.stats().turns(), at: begin });
        assert_eq!(watched.look(begin + INTERVAL / 2), None, "too early to say");
        assert_eq!(watched.look(begin + INTERVAL), Some(Finding::Stalls { task: ASLEEP }));
    }

    #[test]
    fn the_end_of_one_is_told_once() {
        let (reactor, mut watched) = reactor();
        assert!(!watched.has_ended());
        reactor.stop().expect("in order");
        assert!(watched.has_ended());
        assert_eq!(watched.look(monotonic_now()), Some(Finding::Ended));
        assert_eq!(watched.look(monotonic_now()), None);
    }

    #[test]
    fn time_at_work_is_neither_sleep_nor_goes_it_back() {
        let (reactor, mut watched) = reactor();
        let now = monotonic_now();
        let asleep = watched.busy(now);
        assert_eq!(watched.busy(now + Duration::from_secs(3600)), asleep, "an hour of sleep is none of work");
        drop(reactor);
        assert!(watched.busy(now) >= asleep);
    }
}
