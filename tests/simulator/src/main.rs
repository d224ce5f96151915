//! Runs scenarios: one seed in full, or many fresh ones on all cores.

#![forbid(unsafe_code)]

use std::num::NonZero;
use std::panic::catch_unwind;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Instant, SystemTime};

use simulator::scenarios::{ALL, named};
use simulator::{Options, Scenario};

const USAGE: &str = "\
usage: simulator [--seed S | --seeds N] [--scenario NAME] [--log LINES]
       simulator --list

  --seed S         one seed, and its trace hash
  --seeds N        N fresh seeds for each scenario, on all cores (the default: 100)
  --from S         not fresh ones: those from S on
  --scenario NAME  only this one
  --log LINES      how many lines of the event log a failure prints (200)
  --list           the scenarios";

fn main() -> ExitCode {
    let arguments = match Arguments::parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(message) => {
            eprintln!("{message}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let good = match arguments.seeds {
        Seeds::List => {
            ALL.iter().for_each(|scenario| println!("{:<14} {}", scenario.name, scenario.about));
            true
        }
        Seeds::One(seed) => arguments.scenarios.iter().all(|scenario| run_one(scenario, seed, arguments.log_lines)),
        Seeds::Fresh(count) => {
            let first = arguments.from.unwrap_or_else(fresh_seed);
            arguments.scenarios.iter().all(|scenario| run_many(scenario, first, count, arguments.log_lines))
        }
    };
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

struct Arguments {
    seeds: Seeds,
    from: Option<u64>,
    scenarios: Vec<&'static Scenario>,
    log_lines: usize,
}

enum Seeds {
    List,
    One(u64),
    Fresh(u64),
}

impl Arguments {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut parsed = Self { seeds: Seeds::Fresh(100), from: None, scenarios: ALL.iter().collect(), log_lines: 200 };
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
            match argument.as_str() {
                "--list" => parsed.seeds = Seeds::List,
                "--seed" => parsed.seeds = Seeds::One(number(&value()?)?),
                "--seeds" => parsed.seeds = Seeds::Fresh(number(&value()?)?),
                "--from" => parsed.from = Some(number(&value()?)?),
                "--log" => parsed.log_lines = number(&value()?)? as usize,
                "--scenario" => {
                    let name = value()?;
                    parsed.scenarios = vec![named(&name).ok_or(format!("there is no scenario {name}: see --list"))?];
                }
                _ => return Err(format!("unknown argument {argument}")),
            }
        }
        Ok(parsed)
    }
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text} is not a number"))
}

fn run_one(scenario: &Scenario, seed: u64, log_lines: usize) -> bool {
    let report = catch_unwind(|| (scenario.run)(Options { log_lines, ..Options::seed(seed) }));
    match report {
        Ok(report) => {
            let (hash, events) = (report.trace_hash, report.events);
            println!("{}: seed {seed} is good, {events} events, trace hash {hash:016x}", scenario.name);
        }
        Err(_) => println!("{}: seed {seed} FAILED; replay: --scenario {} --seed {seed}", scenario.name, scenario.name),
    }
    report.is_ok()
}

fn run_many(scenario: &Scenario, first: u64, count: u64, log_lines: usize) -> bool {
    let started = Instant::now();
    let (next, events) = (AtomicU64::new(0), AtomicU64::new(0));
    let failed = AtomicBool::new(false);
    let worker = || {
        while !failed.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return;
            }
            let seed = first.wrapping_add(number);
            match catch_unwind(|| (scenario.run)(Options { log_lines, ..Options::seed(seed) })) {
                Ok(report) => drop(events.fetch_add(report.events, Ordering::Relaxed)),
                Err(_) => {
                    failed.store(true, Ordering::Relaxed);
                    println!("{}: FAILED; replay: --scenario {} --seed {seed}", scenario.name, scenario.name);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, NonZero::get) {
            scope.spawn(worker);
        }
    });
    let failed = failed.into_inner();
    if !failed {
        let (events, seconds) = (events.into_inner(), started.elapsed().as_secs_f64());
        println!("{}: {count} seeds from {first} are good, {events} events in {seconds:.1} s", scenario.name);
    }
    !failed
}

/// Where fresh seeds begin: the time, so that each run tries others.
fn fresh_seed() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    // Nine digits: short enough to type.
    (since.as_millis() % 1_000_000_000) as u64
}
