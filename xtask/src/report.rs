//! What passed, what failed, what was left out: printed as it happens, and counted.

use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Error, Result};

/// The tally of a run. Each check and each test counts as one.
#[derive(Debug, Default)]
pub(crate) struct Report {
    passed: u64,
    skipped: u64,
    failures: Vec<String>,
}

impl Report {
    /// Runs one check and returns what it gives; `None` if it failed, which is printed and counted.
    pub(crate) fn check<T>(&mut self, name: &str, run: impl FnOnce() -> Result<T>) -> Option<T> {
        print!("{name} ... ");
        // Only to show the name while the check runs.
        let _ = std::io::stdout().flush();
        let start = Instant::now();
        match run() {
            Ok(value) => {
                println!("ok ({:.1} s)", start.elapsed().as_secs_f64());
                self.passed += 1;
                Some(value)
            }
            Err(error) => {
                println!("FAILED ({:.1} s)", start.elapsed().as_secs_f64());
                self.count_failure(name, &error);
                None
            }
        }
    }

    /// Tells of something that failed, and counts it.
    pub(crate) fn fail(&mut self, name: &str, error: &Error) {
        println!("{name} ... FAILED");
        self.count_failure(name, error);
    }

    /// Leaves something out, and says why in one line.
    pub(crate) fn skip(&mut self, name: &str, reason: impl std::fmt::Display) {
        println!("{name} ... skipped: {reason}");
        self.skipped += 1;
    }

    /// Adds what programs of tests have told and counted by themselves; `failures` are the names of failed tests.
    pub(crate) fn add(&mut self, passed: u64, failures: Vec<String>, skipped: u64) {
        self.passed += passed;
        self.failures.extend(failures);
        self.skipped += skipped;
    }

    /// Adds what another run counted.
    pub(crate) fn take_in(&mut self, other: Self) {
        self.add(other.passed, other.failures, other.skipped);
    }

    /// Lists the failures, prints the closing line, and gives the exit code: 0 if something passed and nothing failed.
    pub(crate) fn close(&self) -> ExitCode {
        if !self.failures.is_empty() {
            println!("\nFailed:");
            self.failures.iter().for_each(|name| println!("    {name}"));
        }
        println!("{}", self.closing_line());
        if self.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    fn count_failure(&mut self, name: &str, error: &Error) {
        for line in format!("{error:#}").lines() {
            println!("    {line}");
        }
        self.failures.push(name.to_owned());
    }

    fn closing_line(&self) -> String {
        format!("{} passed, {} failed, {} skipped", self.passed, self.failures.len(), self.skipped)
    }

    fn is_good(&self) -> bool {
        self.passed > 0 && self.failures.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_good_if_something_passed_and_nothing_failed() {
        let mut report = Report::default();
        assert!(!report.is_good(), "nothing ran");
        report.skip("one", "no reason");
        assert!(!report.is_good(), "nothing ran but what was left out");
        assert_eq!(report.check("two", || Ok(7)), Some(7));
        assert!(report.is_good());
        assert_eq!(report.check("three", || -> Result<()> { anyhow::bail!("broken") }), None);
        assert!(!report.is_good());
        report.add(5, vec!["four".to_owned()], 2);
        report.fail("five", &anyhow::anyhow!("broken"));
        assert_eq!(report.closing_line(), "6 passed, 3 failed, 3 skipped");
    }
}
