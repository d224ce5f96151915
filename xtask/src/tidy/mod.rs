//! The rules of the house that the compiler does not know.
//!
//! `cargo xtask tidy` reads the workspace's manifests (through `cargo metadata`) and its text files, and
//! reports each violation as `file:line: rule: what to do`. A rule is a function from a [`Tree`], or from one file
//! in it, to violations; it touches nothing else, so that each can be shown a violation in its tests.

mod bugs;
mod dependencies;
mod documents;
pub(crate) mod metadata;
mod reasons;
mod rust_text;
mod sources;
mod tree;

use std::fmt;

use anyhow::Result;

use crate::workspace::Workspace;
use tree::Tree;

/// One place that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Violation {
    /// Relative to the workspace's root.
    file: String,
    /// Counted from 1.
    line: usize,
    rule: &'static str,
    advice: String,
}

impl Violation {
    fn new(file: &str, line: usize, rule: &'static str, advice: impl Into<String>) -> Self {
        Self { file: file.to_owned(), line, rule, advice: advice.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, rule, advice } = self;
        write!(formatter, "{file}:{line}: {rule}: {advice}")
    }
}

/// Checks the whole workspace; the violations come sorted by file and line.
pub(crate) fn check(workspace: &Workspace) -> Result<Vec<Violation>> {
    let tree = Tree::read(workspace)?;
    let mut violations = dependencies::check(&tree);
    violations.extend(sources::check(&tree));
    violations.extend(documents::check(&tree));
    violations.extend(bugs::check(&tree));
    violations.extend(reasons::check(&tree));
    violations.sort();
    violations.dedup();
    Ok(violations)
}
