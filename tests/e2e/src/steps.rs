//! The steps of a story, told and counted like the tests of a program of tests, so that whoever counts these counts us.

use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;

/// What the steps came to. After a failed one the others are left out: they need it.
#[derive(Debug)]
pub(crate) struct Steps {
    passed: usize,
    failed: usize,
    left_out: usize,
    start: Instant,
}

impl Steps {
    pub(crate) fn new() -> Self {
        Self { passed: 0, failed: 0, left_out: 0, start: Instant::now() }
    }

    /// Runs a step and returns what it gives; `None` if it failed or was left out.
    pub(crate) fn run<T>(&mut self, name: &str, step: impl FnOnce() -> Result<T>) -> Option<T> {
        if self.failed > 0 {
            println!("test {name} ... ignored, a step before it failed");
            self.left_out += 1;
            return None;
        }
        let start = Instant::now();
        let result = step();
        let seconds = start.elapsed().as_secs_f64();
        match result {
            Ok(value) => {
                println!("test {name} ... ok ({seconds:.1} s)");
                self.passed += 1;
                Some(value)
            }
            Err(error) => {
                println!("{error:#}\ntest {name} ... FAILED");
                self.failed += 1;
                None
            }
        }
    }

    /// Tells the sum; the exit code is 0 if nothing failed.
    pub(crate) fn close(&self) -> ExitCode {
        let Self { passed, failed, left_out, start } = self;
        let verdict = if *failed == 0 { "ok" } else { "FAILED" };
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "test result: {verdict}. {passed} passed; {failed} failed; {left_out} ignored; finished in {seconds:.2}s"
        );
        // Nobody is left to tell if this fails.
        let _ = std::io::stdout().flush();
        if *failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_after_a_failed_one_are_left_out() {
        let mut steps = Steps::new();
        assert_eq!(steps.run("one", || Ok(1)), Some(1));
        assert_eq!(steps.run("two", || -> Result<()> { anyhow::bail!("broken") }), None);
        assert_eq!(steps.run("three", || -> Result<()> { unreachable!("left out") }), None);
        assert_eq!((steps.passed, steps.failed, steps.left_out), (1, 1, 1));
    }
}
