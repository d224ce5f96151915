//! What the simulator is asked for.

use std::time::Duration;

use simulator::instructions::Work;
use simulator::scenarios::{ALL, named};
use simulator::{Scenario, Without};

pub(crate) const USAGE: &str = "\
usage: simulator [--seed S | --seeds N | --seconds T | --bugs] [--scenario NAME] [--log LINES]
       simulator --instructions reads|writes|replicated-writes N
       simulator --list

  --seed S         one seed, and its trace hash; a failure is made smaller, then told in full
  --without PARTS  with --seed: leave out parts of its plan, such as 3,5-9,v1,/4,limits (steps, a volume, all but a quarter of the work, limits)
  --plan           with --seed: only print the plan
  --seeds N        N fresh seeds for each scenario, on all cores (the default: 100)
  --from S         with --seeds: not fresh ones, those from S on
  --seconds T      fresh seeds of all scenarios in turn, on all cores, for that long
  --bugs           switch each deliberate bug on, and see that it is found (needs the feature deliberate-bugs)
  --bug NAME       only this bug; with --seed: switched on for that run
  --instructions reads|writes|replicated-writes N
                   so many commands, for a profiler to count (see docs/performance.md)
  --scenario NAME  only this one
  --log LINES      how many lines of the event log a failure prints (200)
  --list           the scenarios, and the bugs";

pub(crate) struct Arguments {
    pub(crate) what: What,
    pub(crate) from: Option<u64>,
    pub(crate) scenarios: Vec<&'static Scenario>,
    pub(crate) bug: Option<String>,
    pub(crate) without: Without,
    pub(crate) plan: bool,
    pub(crate) log_lines: usize,
}

pub(crate) enum What {
    List,
    One(u64),
    Many(u64),
    For(Duration),
    Bugs,
    /// So many commands, whose instructions somebody counts.
    Instructions(Work, u64),
}

impl Arguments {
    pub(crate) fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut parsed = Self {
            what: What::Many(100),
            from: None,
            scenarios: ALL.iter().collect(),
            bug: None,
            without: Without::default(),
            plan: false,
            log_lines: 200,
        };
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
            match argument.as_str() {
                "--list" => parsed.what = What::List,
                "--seed" => parsed.what = What::One(number(&value()?)?),
                "--seeds" => parsed.what = What::Many(number(&value()?)?),
                "--seconds" => parsed.what = What::For(Duration::from_secs(number(&value()?)?)),
                "--instructions" => {
                    let work = value()?.parse()?;
                    parsed.what = What::Instructions(work, number(&value()?)?);
                }
                "--bugs" => parsed.what = What::Bugs,
                "--bug" => parsed.bug = Some(value()?),
                "--from" => parsed.from = Some(number(&value()?)?),
                "--without" => parsed.without = value()?.parse()?,
                "--plan" => parsed.plan = true,
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
