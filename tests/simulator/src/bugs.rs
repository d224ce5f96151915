//! The deliberate bugs, and the search for each of them: proof that the simulator notices what it is for.

use crate::attempt::attempt;
use crate::scenarios::named;
use crate::{Options, Without};

/// Each bug is to be found by one of the first so many seeds.
pub const SEEDS: u64 = 1000;

/// A line of our code that can be made wrong: `bug!("name")` stands there.
#[derive(Clone, Copy, Debug)]
pub struct Bug {
    /// What the switch is called.
    pub name: &'static str,
    /// What is wrong when it is on.
    pub about: &'static str,
    /// The scenario that finds it.
    pub scenario: &'static str,
}

const fn in_cluster(name: &'static str, about: &'static str) -> Bug {
    Bug { name, about, scenario: "cluster" }
}

const fn in_store(name: &'static str, about: &'static str) -> Bug {
    Bug { name, about, scenario: "store" }
}

const fn in_faulty_store(name: &'static str, about: &'static str) -> Bug {
    Bug { name, about, scenario: "store-faulty-disk" }
}

/// All of them.
pub const ALL: &[Bug] = &[
    in_cluster("acknowledge-before-membership", "a write is acknowledged before the record says who lacks it (I1)"),
    in_cluster("record-the-last-in-sync-as-failed", "the last replica in sync is recorded as failed (I3)"),
    in_cluster("flush-only-the-local-replica", "remote replicas say that they flushed (I4)"),
    in_cluster("read-before-settling", "after a crash every replica in sync is read from at once (I7, I8)"),
    in_cluster("equalize-nothing", "what differs after a crash or an outage stays so (I7, I17)"),
    in_cluster("read-from-replicas-on-their-way", "a replica that is settled or rebuilt is read from (I8)"),
    in_cluster("let-writes-overlap", "overlapping writes are sent as they come (I9)"),
    in_cluster("forget-the-epoch", "a grant is not stored (I12)"),
    in_cluster("grant-any-epoch", "an epoch below the stored one is granted (I12)"),
    in_cluster("let-ended-grants-go-on", "a new grant does not end those before it (I13, I16)"),
    in_cluster("go-on-with-the-record-of-another-engine", "a lost swap of the record does not stop an engine (I14)"),
    in_cluster(
        "withhold-writes-from-rebuilding-replicas",
        "new writes do not reach a replica whose head is copied (I17)",
    ),
    in_cluster("copy-without-the-lock", "a region is copied beside writes to it (I17)"),
    in_cluster("copy-beside-earlier-writes", "the copier does not wait for writes that began before it (I17)"),
    in_cluster("skip-zeroes-in-a-rebuild", "what the source has cleared is not cleared on the target (I18)"),
    in_cluster("look-only-at-what-the-source-has", "a rebuild leaves what only the target has (I18)"),
    in_cluster("snapshot-without-a-hold", "replicas are cut while writes go on (I24)"),
    in_cluster("snapshot-one-replica", "the others stay in sync without the snapshot (I25)"),
    in_faulty_store("ignore-failed-journal-writes", "a record whose write failed counts as written (I27)"),
    in_store("reuse-freed-clusters-at-once", "a freed cluster is used again before that is durable (I27)"),
    in_store("trust-unflushed-blocks", "recovery takes blocks that were not flushed as they are (I27)"),
    in_store("flush-without-a-marker", "a flush does not tell recovery what it covered (I4)"),
];

/// The bug that was found, and how.
#[derive(Clone, Debug)]
pub struct Found {
    /// The seed.
    pub seed: u64,
    /// How many seeds were tried, this one too.
    pub seeds: u64,
    /// What it said.
    pub failure: String,
}

/// Runs the bug's scenario, seed after seed, until one fails that does not fail without the bug.
pub fn hunt(bug: &Bug) -> Option<Found> {
    let scenario = named(bug.scenario)?;
    for seed in 0..SEEDS {
        let options = Options { seed, log_lines: 0, without: Without::NOTHING };
        switch_on(bug.name);
        let failure = attempt(scenario, options).err();
        switch_off();
        if let Some(failure) = failure {
            let sound = attempt(scenario, options);
            assert!(sound.is_ok(), "{}: seed {seed} fails without a bug: {sound:?}", bug.scenario);
            return Some(Found { seed, seeds: seed + 1, failure });
        }
    }
    None
}

/// Switches a bug on for this thread; false when there is none of this name, or no bug at all in this build.
#[cfg(feature = "deliberate-bugs")]
pub fn switch_on(name: &str) -> bool {
    let bug = ALL.iter().find(|bug| bug.name == name);
    reactor::bugs::activate(bug.map(|bug| bug.name));
    bug.is_some()
}

/// Switches a bug on for this thread; false when there is none of this name, or no bug at all in this build.
#[cfg(not(feature = "deliberate-bugs"))]
pub fn switch_on(_name: &str) -> bool {
    false
}

/// Switches it off.
pub fn switch_off() {
    #[cfg(feature = "deliberate-bugs")]
    reactor::bugs::activate(None);
}
