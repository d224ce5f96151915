//! `cargo xtask instructions`: how many instructions a command takes on its way through our code, counted by callgrind. Unlike
//! times, counts are the same on a busy machine, so that they can guard the hot path.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::debian::{self, Missing, Tool};
use crate::process;
use crate::programs;
use crate::report::Report;
use crate::workspace::Workspace;

/// Commands that are counted: enough that what is done once in a while is in it.
const COMMANDS: u64 = 2048;

/// Callgrind is some fifty times slower than the machine.
const LIMIT: Duration = Duration::from_secs(10 * 60);

/// What a command may cost more than it did, in percent.
const MARGIN: u64 = 5;

/// A function that is not named when it takes less than this, in instructions a command.
const SMALL: u64 = 10;

/// Ours on the path of a command. The host's side of the connection counts as well where it is the same code.
const CRATES: [&str; 8] =
    ["nvmf_target_protocol", "nvmf_target", "engine", "replica", "replica_protocol", "lvol", "block_device", "reactor"];

/// What stands for the machine in the simulator.
const NOT_OURS: [&str; 2] = ["simulated", "nvmf_initiator"];

const WORKS: [&str; 3] = ["reads", "writes", "replicated-writes"];

/// Instructions a command, by function.
type Counts = BTreeMap<String, u64>;

/// Compares with what is on record, or with `accept` records what is.
pub(crate) fn run(workspace: &Workspace, accept: bool, report: &mut Report) {
    match debian::provide(&[Tool { program: "valgrind", package: "valgrind" }]) {
        Ok(()) => {}
        Err(Missing::LeftOut(reason)) => return report.skip("instructions", reason),
        Err(Missing::Failed(error)) => return report.fail("instructions", &error),
    }
    for work in WORKS {
        let name = format!("instructions of {work}");
        match judged(workspace, work, accept) {
            Ok(Verdict::Good(line)) => {
                report.check(&name, || Ok(()));
                println!("    {line}");
            }
            Ok(Verdict::OtherCompiler(reason)) => report.skip(&name, reason),
            Err(error) => report.fail(&name, &error),
        }
    }
}

enum Verdict {
    Good(String),
    OtherCompiler(String),
}

fn judged(workspace: &Workspace, work: &str, accept: bool) -> Result<Verdict> {
    let counts = count(workspace, work)?;
    let now = Record { compiler: compiler()?, counts };
    let path = workspace.root.join("tests/simulator/instructions").join(format!("{work}.txt"));
    if accept {
        std::fs::write(&path, now.to_text(work)).with_context(|| format!("cannot write {}", path.display()))?;
        return Ok(Verdict::Good(format!("{} a command, on record now", now.total())));
    }
    let before = Record::read(&path)?;
    if before.compiler != now.compiler {
        return Ok(Verdict::OtherCompiler(format!("counted with {}, this is {}", before.compiler, now.compiler)));
    }
    compare(&before, &now).map(Verdict::Good)
}

/// What each function cost, and what it was built with.
#[derive(Debug, PartialEq, Eq)]
struct Record {
    compiler: String,
    counts: Counts,
}

impl Record {
    fn total(&self) -> u64 {
        self.counts.values().sum()
    }

    fn to_text(&self, work: &str) -> String {
        let mut lines: Vec<_> = self.counts.iter().collect();
        lines.sort_by_key(|(name, count)| (std::cmp::Reverse(**count), name.as_str()));
        let lines: String = lines.iter().map(|(name, count)| format!("{count:6} {name}\n")).collect();
        let head =
            format!("# Instructions of {work}, 4 KiB each. `cargo xtask instructions --accept` writes this file.");
        format!("{head}\n# {}\n{:6} a command\n{lines}", self.compiler, self.total())
    }

    fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    fn parse(text: &str) -> Result<Self> {
        let compiler = text.lines().nth(1).and_then(|line| line.strip_prefix("# ")).context("no compiler is named")?;
        let mut counts = Counts::new();
        for line in text.lines().skip(3) {
            let (count, name) = line.trim_start().split_once(' ').context("a line without a name")?;
            counts.insert(name.to_owned(), count.parse().with_context(|| format!("no count: {line}"))?);
        }
        Ok(Self { compiler: compiler.to_owned(), counts })
    }
}

/// Says what a command costs; an error names the functions that took more.
fn compare(before: &Record, now: &Record) -> Result<String> {
    let (was, is) = (before.total(), now.total());
    let line = format!("{is} a command in our code, {was} on record");
    if is * 100 <= was * (100 + MARGIN) {
        return Ok(line);
    }
    let mut more: Vec<(u64, u64, &str)> = now
        .counts
        .iter()
        .map(|(name, &is)| (before.counts.get(name).copied().unwrap_or(0), is, name.as_str()))
        .filter(|(was, is, _)| is > was)
        .collect();
    more.sort_by_key(|(was, is, _)| std::cmp::Reverse(is - was));
    let more: Vec<_> = more.iter().take(8).map(|(was, is, name)| format!("{was:6} → {is:6} {name}")).collect();
    bail!("{line}: over {MARGIN} % more\n{}\nIf it is worth that: cargo xtask instructions --accept", more.join("\n"))
}

fn compiler() -> Result<String> {
    Ok(process::output(Command::new("rustc").arg("--version"))?.trim().to_owned())
}

/// Runs the work under callgrind.
fn count(workspace: &Workspace, work: &str) -> Result<Counts> {
    let output = workspace.logs().join(format!("callgrind-{work}.out"));
    let mut command = Command::new("valgrind");
    command
        .args(["--tool=callgrind", "--collect-atstart=no", "--toggle-collect=*instructions*counted*"])
        .args(["--compress-strings=no", "--compress-pos=no"])
        .arg(format!("--callgrind-out-file={}", output.display()))
        .arg(programs::simulator(workspace).get_program())
        .args(["--instructions", work, &COMMANDS.to_string()]);
    process::run_quietly(&mut command, &workspace.log(&format!("instructions-{work}"))?, LIMIT)?;
    let counts = of_ours(&sums(&std::fs::read_to_string(&output)?)?);
    remove(output)?;
    ensure!(!counts.is_empty(), "callgrind saw none of our functions");
    Ok(counts)
}

fn remove(path: PathBuf) -> Result<()> {
    std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
}

/// What each function took itself, without those it called, from the output of callgrind.
fn sums(text: &str) -> Result<Counts> {
    let mut sums = Counts::new();
    let (mut function, mut called) = (String::new(), false);
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("fn=") {
            name.clone_into(&mut function);
        } else if line.starts_with("calls=") {
            called = true;
        } else if line.starts_with(|first: char| first.is_ascii_digit()) {
            // The line after a call has what the called one took.
            if std::mem::take(&mut called) {
                continue;
            }
            let cost = line.split_whitespace().nth(1).unwrap_or("0");
            let cost: u64 = cost.parse().with_context(|| format!("callgrind wrote: {line}"))?;
            *sums.entry(function.clone()).or_default() += cost;
        }
    }
    Ok(sums)
}

/// Ours of them, for one command.
fn of_ours(sums: &Counts) -> Counts {
    let mut ours = Counts::new();
    for (name, sum) in sums {
        if is_ours(name) {
            *ours.entry(plain(name)).or_default() += sum;
        }
    }
    let per_command = |sum: u64| sum.div_ceil(COMMANDS);
    let mut named: Counts = ours.into_iter().map(|(name, sum)| (name, per_command(sum))).collect();
    let small: u64 = named.values().filter(|count| **count < SMALL).sum();
    named.retain(|_, count| *count >= SMALL);
    if small > 0 {
        named.insert("(others)".to_owned(), small);
    }
    named
}

fn is_ours(name: &str) -> bool {
    let has = |part: &&str| name.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == *part);
    CRATES.iter().any(&has) && !NOT_OURS.iter().any(has)
}

/// A name without the hash that older mangling puts at its end, and without the copies that recursion makes.
fn plain(name: &str) -> String {
    let name = name.split('\'').next().unwrap_or(name);
    match name.rsplit_once("::h") {
        Some((front, hash)) if hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            front.to_owned()
        }
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_is_charged_with_its_own_instructions() {
        let text = "\
version: 1
events: Ir
fn=engine::write::h0123456789abcdef
fl=a.rs
10 5
fi=b.rs
11 7
cfn=lvol::write
calls=2 20
12 1000
13 1
fn=lvol::write
20 500
totals: 1513
";
        let sums = sums(text).expect("well formed");
        assert_eq!(sums["engine::write::h0123456789abcdef"], 13);
        assert_eq!(sums["lvol::write"], 500);
        assert_eq!(plain("engine::write::h0123456789abcdef"), "engine::write");
        assert!(is_ours("<lvol::Store as core::ops::Drop>::drop"));
        assert!(!is_ours("reactor::driver::simulated::State::step"));
        assert!(!is_ours("lvolution::engines"));
    }

    fn record(counts: &[(&str, u64)]) -> Record {
        let counts = counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        Record { compiler: "rustc 1.2.3".to_owned(), counts }
    }

    #[test]
    fn what_takes_over_five_percent_more_is_named() {
        let before = record(&[("engine::a", 100), ("lvol::b", 900)]);
        assert!(compare(&before, &record(&[("engine::a", 150), ("lvol::b", 900)])).is_ok());
        let error = compare(&before, &record(&[("engine::a", 151), ("lvol::b", 900)])).expect_err("51 of 1,000 more");
        assert!(error.to_string().contains("100 →    151 engine::a"), "{error}");
        assert!(!error.to_string().contains("lvol::b"), "{error}");
    }

    #[test]
    fn a_record_reads_as_it_was_written() {
        let record = record(&[("engine::a<b, c>", 100), ("lvol::b", 900)]);
        assert_eq!(Record::parse(&record.to_text("reads")).expect("well formed"), record);
    }
}
