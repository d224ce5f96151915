//! Runs scenarios: one seed in full, many fresh ones on all cores, or the list of deliberate bugs.

#![forbid(unsafe_code)]

mod arguments;
mod many;

use std::process::ExitCode;

use simulator::attempt::attempt;
use simulator::{Options, Scenario, bugs, scenarios, shrink};

use crate::arguments::{Arguments, USAGE, What};

fn main() -> ExitCode {
    let arguments = match Arguments::parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(message) => {
            eprintln!("{message}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let good = match arguments.what {
        What::List => list(),
        What::One(seed) => arguments.scenarios.iter().all(|scenario| one(scenario, seed, &arguments)),
        What::Many(count) => {
            let first = arguments.from.unwrap_or_else(many::fresh_seed);
            arguments.scenarios.iter().all(|scenario| many::seeds(scenario, first, count))
        }
        What::For(duration) => many::for_a_while(&arguments.scenarios, duration),
        What::Instructions(work, commands) => {
            simulator::instructions::run(work, commands);
            true
        }
        What::Bugs => many::bugs(arguments.bug.as_deref()),
    };
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn list() -> bool {
    scenarios::ALL.iter().for_each(|scenario| println!("{:<18} {}", scenario.name, scenario.about));
    println!("\ndeliberate bugs:");
    bugs::ALL.iter().for_each(|bug| println!("{:<44} {}", bug.name, bug.about));
    println!("\ndeliberate bugs that no seed has found so far:");
    bugs::NOT_FOUND.iter().for_each(|bug| println!("{:<44} {}", bug.name, bug.about));
    true
}

/// One seed: its hash, or all there is to know about its failure.
fn one(scenario: &Scenario, seed: u64, arguments: &Arguments) -> bool {
    let options = Options { without: arguments.without, log_lines: 0, ..Options::seed(seed) };
    if let Some(planner) = scenario.planner.filter(|_| arguments.plan) {
        print!("{}", planner.describe(options));
        return true;
    }
    if let Some(bug) = arguments.bug.as_deref()
        && !bugs::switch_on(bug)
    {
        println!("there is no bug {bug} in this build: see --list, and the feature deliberate-bugs");
        return false;
    }
    let mut failure = match attempt(scenario, options) {
        Ok(report) => {
            let (hash, events) = (report.trace_hash, report.events);
            println!("{}: seed {seed} is good, {events} events, trace hash {hash:016x}", scenario.name);
            return true;
        }
        Err(failure) => failure,
    };
    println!("{}: seed {seed} FAILED: {failure}", scenario.name);
    let mut options = options;
    if let Some(planner) = scenario.planner {
        println!("\nthe plan:\n{}", planner.describe(options));
        if options.without == simulator::Without::NOTHING {
            let shrunk = shrink::shrink(scenario, options, failure);
            options.without = shrunk.without;
            failure = shrunk.failure;
            println!("made smaller in {} runs:\n{}\n{failure}", shrunk.runs, planner.describe(options));
        }
    }
    println!("\nthe events (times of the world, in seconds):");
    // The same run once more; this time it tells what it does.
    let told = attempt(scenario, Options { log_lines: arguments.log_lines, ..options });
    println!("\n{}: seed {seed} FAILED: {}", scenario.name, told.err().unwrap_or(failure));
    println!("replay: cargo xtask simulate --scenario {} --seed {seed}{}", scenario.name, leaving_out(options));
    false
}

/// How to ask for the same run again.
pub(crate) fn leaving_out(options: Options) -> String {
    match options.without == simulator::Without::NOTHING {
        true => String::new(),
        false => format!(" --without {}", options.without),
    }
}
