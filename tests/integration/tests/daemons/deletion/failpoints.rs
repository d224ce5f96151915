//! Steps of a daemon that fail, or at which it dies, when a test says so: `daemon/src/failpoint.rs`.

use std::cell::Cell;
use std::fs;
use std::path::PathBuf;

use anyhow::ensure;
use integration::House;

/// The steps of one daemon.
pub(crate) struct Failpoints {
    file: PathBuf,
    armed: Cell<u64>,
}

impl Failpoints {
    /// Of a daemon that is not started yet.
    pub(crate) fn of(house: &mut House, index: usize) -> Self {
        let node = house.cluster.node(index);
        let file = node.folder().join("failpoints");
        node.launch_with(vec!["env".to_owned(), format!("ASHLAR_FAILPOINTS={}", file.display())]);
        Self { file, armed: Cell::new(0) }
    }

    /// Says what becomes of steps from now on: `count`, `fail`, `kill` or `every`.
    pub(crate) fn arm(&self, what: &str, number: usize) -> anyhow::Result<()> {
        self.plan(&format!("{what} {number}"))
    }

    /// Each step with `text` in its name fails from now on.
    pub(crate) fn fail_only(&self, text: &str) -> anyhow::Result<()> {
        self.plan(&format!("only {text}"))
    }

    fn plan(&self, plan: &str) -> anyhow::Result<()> {
        self.armed.set(self.armed.get() + 1);
        // As a whole: half of it would be another plan.
        let new = self.file.with_extension("new");
        fs::write(&new, format!("{} {plan}", self.armed.get()))?;
        Ok(fs::rename(new, &self.file)?)
    }

    /// Nothing becomes of them any more. Returns those that were passed since.
    pub(crate) fn disarm(&self) -> anyhow::Result<Vec<String>> {
        fs::remove_file(&self.file)?;
        let log = self.file.with_extension("passed");
        let passed = fs::read_to_string(&log).unwrap_or_default();
        if !passed.is_empty() {
            fs::remove_file(log)?;
        }
        let number = |line: &str| line.split(' ').next().and_then(|number| number.parse::<usize>().ok());
        let passed: Vec<String> = passed.lines().map(str::to_owned).collect();
        ensure!(passed.iter().all(|line| number(line).is_some()), "no list of steps: {passed:?}");
        Ok(passed)
    }
}

/// Whether tests try all there is.
pub(crate) fn is_long() -> bool {
    std::env::var_os("ASHLAR_LONG_TESTS").is_some()
}

/// Those of `1..=last` that this run tries: all, or a few that are not always the same.
pub(crate) fn tried(last: usize, few: usize) -> Vec<usize> {
    if is_long() {
        return (1..=last).collect();
    }
    let pace = last.div_ceil(few).max(1);
    let first = 1 + std::process::id() as usize % pace;
    (first..=last).step_by(pace).collect()
}
