//! Many runs on all cores.

use std::num::NonZero;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use simulator::attempt::attempt;
use simulator::{Options, Scenario, bugs, shrink};

use crate::leaving_out;

/// Of the runs of all scenarios, this many of one in the last of them: it is the one with everything in it.
const TURNS: u64 = 5;

/// `count` seeds of one scenario, until one fails.
pub(crate) fn seeds(scenario: &Scenario, first: u64, count: u64) -> bool {
    let started = Instant::now();
    let (next, events) = (AtomicU64::new(0), AtomicU64::new(0));
    let failed = AtomicBool::new(false);
    on_all_cores(|| {
        while !failed.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return;
            }
            events.fetch_add(run(scenario, first.wrapping_add(number), &failed), Ordering::Relaxed);
        }
    });
    let failed = failed.into_inner();
    if !failed {
        let (events, seconds) = (events.into_inner(), started.elapsed().as_secs_f64());
        println!(
            "{}: {count} seeds from {first} are good, {events} events in {seconds:.1} s ({:.1} seeds a second)",
            scenario.name,
            count as f64 / seconds
        );
    }
    !failed
}

/// Fresh seeds of all scenarios for a while, until one fails.
pub(crate) fn for_a_while(scenarios: &[&Scenario], duration: Duration) -> bool {
    let started = Instant::now();
    let first = fresh_seed();
    let next = AtomicU64::new(0);
    let counts: Vec<AtomicU64> = scenarios.iter().map(|_| AtomicU64::new(0)).collect();
    let events = AtomicU64::new(0);
    let failed = AtomicBool::new(false);
    on_all_cores(|| {
        while !failed.load(Ordering::Relaxed) && started.elapsed() < duration {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let turn = match number % TURNS {
                // Below the number of scenarios, which is small.
                0 => (number / TURNS % scenarios.len() as u64) as usize,
                _ => scenarios.len() - 1,
            };
            events.fetch_add(run(scenarios[turn], first.wrapping_add(number), &failed), Ordering::Relaxed);
            counts[turn].fetch_add(1, Ordering::Relaxed);
        }
    });
    let seconds = started.elapsed().as_secs_f64();
    let counts: Vec<u64> = counts.into_iter().map(AtomicU64::into_inner).collect();
    for (scenario, count) in scenarios.iter().zip(&counts) {
        println!("{:<18} {count} seeds", scenario.name);
    }
    let total: u64 = counts.iter().sum();
    let rate = total as f64 / seconds;
    println!("{total} fresh seeds, {} events in {seconds:.1} s ({rate:.1} seeds a second)", events.into_inner());
    !failed.into_inner()
}

/// One run among many: how many events it had. A failure is told with what it takes to replay it.
fn run(scenario: &Scenario, seed: u64, failed: &AtomicBool) -> u64 {
    let options = Options { log_lines: 0, ..Options::seed(seed) };
    let failure = match attempt(scenario, options) {
        Ok(report) => return report.events,
        Err(failure) => failure,
    };
    if failed.swap(true, Ordering::Relaxed) {
        return 0;
    }
    println!("{}: seed {seed} FAILED: {failure}", scenario.name);
    println!("replay: cargo xtask simulate --scenario {} --seed {seed}", scenario.name);
    if scenario.planner.is_some() {
        let shrunk = shrink::shrink(scenario, options, failure);
        let options = Options { without: shrunk.without, ..options };
        println!("smaller: {}{}", shrunk.failure, leaving_out(options));
    }
    0
}

/// Looks for each deliberate bug, or for one.
pub(crate) fn bugs(only: Option<&str>) -> bool {
    let named = only.map_or(bugs::ALL.iter().chain(&[]), |_| bugs::ALL.iter().chain(bugs::NOT_FOUND));
    let wanted: Vec<_> = named.filter(|bug| only.is_none_or(|name| name == bug.name)).collect();
    if wanted.is_empty() || !bugs::switch_on(wanted[0].name) {
        println!("there are no such bugs in this build: see --list, and the feature deliberate-bugs");
        return false;
    }
    bugs::switch_off();
    let started = Instant::now();
    let next = AtomicUsize::new(0);
    let (missed, seeds) = (Mutex::new(Vec::new()), AtomicU64::new(0));
    on_all_cores(|| {
        while let Some(bug) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
            let found = bugs::hunt(bug);
            seeds.fetch_add(found.as_ref().map_or(bugs::SEEDS, |found| found.seeds), Ordering::Relaxed);
            match found {
                Some(found) => {
                    let said = found.failure.lines().next().unwrap_or_default();
                    let said: String = said.chars().take(110).collect();
                    println!("{:<44} seed {:>4}, {:>4} seeds: {said}", bug.name, found.seed, found.seeds);
                }
                None => {
                    println!("{:<44} MISSED by {} seeds of {}", bug.name, bugs::SEEDS, bug.scenario);
                    if let Ok(mut missed) = missed.lock() {
                        missed.push(bug.name);
                    }
                }
            }
        }
    });
    let missed = missed.into_inner().unwrap_or_default();
    let (seconds, seeds) = (started.elapsed().as_secs_f64(), seeds.into_inner());
    println!("{} of {} bugs found in {seconds:.1} s, {seeds} seeds", wanted.len() - missed.len(), wanted.len());
    missed.is_empty()
}

fn on_all_cores(work: impl Fn() + Sync) {
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, NonZero::get) {
            scope.spawn(&work);
        }
    });
}

/// Where fresh seeds begin: the time, so that each run tries others.
pub(crate) fn fresh_seed() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    // Nine digits: short enough to type.
    (since.as_millis() % 1_000_000_000) as u64
}
