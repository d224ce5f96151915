//! Programs of tests, counted from what each says about itself: those of `cargo test`, and others that speak like them.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::anyhow;

use crate::process;
use crate::report::Report;

/// What to tell of a run while it goes on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Tell {
    /// Each program's sum, and failures.
    Sums,
    /// Every line.
    Everything,
}

/// Runs `command`, which runs programs of tests, and adds what these say to `report`. `name` is its own. Says whether all is well.
pub(crate) fn run(
    command: &mut Command,
    name: &str,
    log: &Path,
    limit: Duration,
    tell: Tell,
    report: &mut Report,
) -> bool {
    println!("{name}:");
    let start = Instant::now();
    let mut count = Count { program: name.to_owned(), ..Count::default() };
    let result = process::run_logged(command, log, limit, |line| {
        let sum = count.read(line);
        match tell {
            Tell::Everything => println!("    {line}"),
            Tell::Sums => sum.iter().for_each(|sum| println!("    {sum}")),
        }
    });
    // A program of tests that dies says nothing about itself; only cargo knows.
    let problem = match result {
        Ok(status) if status.success() || !count.failures.is_empty() => None,
        Ok(status) => Some(anyhow!("{status}, see {}", log.display())),
        Err(error) => Some(error.context(format!("see {}", log.display()))),
    };
    println!("    {name}: {} passed in {:.1} s", count.passed, start.elapsed().as_secs_f64());
    let good = count.failures.is_empty() && problem.is_none();
    report.add(count.passed, count.failures, count.ignored);
    if let Some(problem) = problem {
        report.fail(name, &problem);
    }
    good
}

/// What the programs of tests have said so far.
#[derive(Debug, Default)]
struct Count {
    passed: u64,
    ignored: u64,
    /// The names of failed tests, with the program that they are in.
    failures: Vec<String>,
    program: String,
    /// How many more lines of what a failed test said are told: whoever reads only our output learns why it failed.
    of_failure: usize,
}

/// Lines of a failed test that are told.
const FAILURE_LINES: usize = 30;

impl Count {
    /// Takes in a line of the output, and returns what is worth telling of it.
    fn read(&mut self, line: &str) -> Option<String> {
        if let Some(program) = program(line) {
            self.program = program;
        } else if let Some(name) = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED")) {
            let failure = format!("{}: {name}", self.program);
            self.failures.push(failure.clone());
            return Some(format!("FAILED {failure}"));
        } else if line.starts_with("---- ") && line.ends_with(" ----") {
            self.of_failure = FAILURE_LINES;
            return Some(line.to_owned());
        } else if let Some(result) = line.strip_prefix("test result: ") {
            self.of_failure = 0;
            let (passed, failed, ignored) =
                (counted(result, "passed"), counted(result, "failed"), counted(result, "ignored"));
            self.passed += passed;
            self.ignored += ignored;
            if passed + failed + ignored > 0 {
                let more = if ignored > 0 { format!(", {ignored} ignored") } else { String::new() };
                return Some(format!("{}: {passed} passed, {failed} failed{more}", self.program));
            }
        } else if line == "failures:" || line.eq_ignore_ascii_case("stack backtrace:") {
            self.of_failure = 0;
        } else if self.of_failure > 0 && !line.is_empty() {
            self.of_failure -= 1;
            return Some(format!("    {line}"));
        }
        None
    }
}

/// The program whose tests begin with this line of cargo's: its crate, and its file if it is not the crate's own.
fn program(line: &str) -> Option<String> {
    let line = line.trim_start();
    if let Some(name) = line.strip_prefix("Doc-tests ") {
        return Some(format!("{name} (documentation)"));
    }
    let (source, binary) = line.strip_prefix("Running ")?.split_once(" (")?;
    let binary = binary.trim_end_matches(')').rsplit('/').next()?;
    let name = binary.rsplit_once('-').map_or(binary, |(name, _hash)| name);
    Some(if source.starts_with("unittests") { name.to_owned() } else { format!("{name} ({source})") })
}

/// The number before `what` in `ok. 12 passed; 0 failed; 1 ignored; …`.
fn counted(result: &str, what: &str) -> u64 {
    let words: Vec<_> = result.split([' ', ';']).filter(|word| !word.is_empty()).collect();
    let number = words.windows(2).find(|pair| pair[1] == what).and_then(|pair| pair[0].parse().ok());
    number.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_counted_by_what_they_say() {
        let output = "\
   Compiling lvol v0.1.0 (/house/lvol)
     Running unittests src/lib.rs (target/debug/deps/block_device-8630ad8d0c8a4afe)
running 3 tests
test file::tests::reads ... ok
test file::tests::writes ... FAILED
failures:
---- file::tests::writes stdout ----
thread 'file::tests::writes' panicked at a line of ours

failures:
    file::tests::writes
test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 1.09s
     Running tests/damage.rs (target/debug/deps/damage-2e1f)
test result: ok. 40 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.09s
   Doc-tests lvol
test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
     Running unittests src/main.rs (target/debug/deps/ashlar-1f)
test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        let mut count = Count::default();
        let told: Vec<_> = output.lines().filter_map(|line| count.read(line)).collect();
        assert_eq!((count.passed, count.ignored), (43, 1));
        assert_eq!(count.failures, ["block_device: file::tests::writes"]);
        let expected = [
            "FAILED block_device: file::tests::writes",
            "---- file::tests::writes stdout ----",
            "    thread 'file::tests::writes' panicked at a line of ours",
            "block_device: 1 passed, 1 failed, 1 ignored",
            "damage (tests/damage.rs): 40 passed, 0 failed",
            "lvol (documentation): 2 passed, 0 failed",
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn a_test_that_speaks_like_a_result_is_not_one() {
        let mut count = Count::default();
        assert_eq!(count.read("the test result: ok. 5 passed"), None);
        assert_eq!(count.read("test result: what?"), None);
        assert_eq!(count.passed, 0);
    }
}
