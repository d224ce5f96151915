//! The deliberate bugs, and the search for each of them: proof that the simulator notices what it is for.

use crate::attempt::attempt;
use crate::scenarios::named;
use crate::{Options, Without};

/// Each bug is to be found by one of so many seeds.
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
    /// Where the search begins: a seed a little before one that finds it, so that the search is short.
    pub first: u64,
}

impl Bug {
    const fn from(self, first: u64) -> Self {
        Self { first, ..self }
    }
}

const fn in_cluster(name: &'static str, about: &'static str) -> Bug {
    Bug { name, about, scenario: "cluster", first: 0 }
}

const fn in_races(name: &'static str, about: &'static str) -> Bug {
    Bug { name, about, scenario: "races", first: 0 }
}

const fn in_store(name: &'static str, about: &'static str) -> Bug {
    Bug { name, about, scenario: "store", first: 0 }
}

const fn in_faulty_store(name: &'static str, about: &'static str) -> Bug {
    Bug { name, about, scenario: "store-faulty-disk", first: 0 }
}

/// Those that are looked for.
pub const ALL: &[Bug] = &[
    in_cluster("acknowledge-before-membership", "a write is acknowledged before the record says who lacks it (I1)")
        .from(402),
    in_cluster("record-the-last-in-sync-as-failed", "the last replica in sync is recorded as failed (I3)").from(95),
    in_cluster("flush-only-the-local-replica", "remote replicas say that they flushed (I4)").from(292),
    in_cluster("read-before-settling", "after a crash every replica in sync is read from at once (I7, I8)").from(13),
    in_cluster("write-without-an-intent", "writes do not wait until their regions are noted (I7)").from(286),
    in_cluster("equalize-nothing", "what differs after a crash or an outage stays so (I7, I17)"),
    in_cluster("read-from-replicas-on-their-way", "a replica that is settled or rebuilt is read from (I8)"),
    in_cluster("let-writes-overlap", "overlapping writes are sent as they come (I9)").from(18),
    in_cluster("forget-the-epoch", "a grant is not stored (I12)"),
    in_cluster("grant-any-epoch", "an epoch below the stored one is granted (I12)").from(170),
    in_cluster("let-ended-grants-go-on", "a new grant does not end those before it (I13, I16)"),
    in_cluster("go-on-with-the-record-of-another-engine", "a lost swap of the record does not stop an engine (I14)")
        .from(26),
    in_cluster(
        "withhold-writes-from-rebuilding-replicas",
        "new writes do not reach a replica whose head is copied (I17)",
    ),
    in_cluster("copy-without-the-lock", "a region is copied beside writes to it (I17)").from(10),
    in_cluster("copy-beside-earlier-writes", "the copier does not wait for writes that began before it (I17)").from(10),
    in_cluster("skip-zeroes-in-a-rebuild", "what the source has cleared is not cleared on the target (I18)"),
    in_cluster("look-only-at-what-the-source-has", "a rebuild leaves what only the target has (I18)"),
    in_cluster("follow-no-writes", "the map of what a replica lacks has no new writes (I23)").from(10),
    in_cluster("follow-from-the-failure-on", "the map has not what was not durable when the replica was lost (I23)")
        .from(216),
    in_cluster("let-regions-leave-before-the-maps-have-them", "the intent forgets what no map has yet (I23)").from(350),
    in_cluster("take-the-map-before-the-attach", "a copy misses what was written since it began (I17, I23)").from(10),
    in_cluster("trust-any-token", "a replica made anew counts as the one that left (I23)").from(273),
    in_cluster("grow-one-replica", "the others are smaller than the volume (I39)").from(177),
    in_cluster("remove-the-last-replica", "the last replica in sync is let go (I3)").from(22),
    in_cluster("snapshot-without-a-hold", "replicas are cut while writes go on (I24)").from(36),
    in_cluster("snapshot-one-replica", "the others stay in sync without the snapshot (I25)").from(27),
    in_cluster("change-the-record-without-the-copies", "replicas do not hear of who left (I1, I5)").from(306),
    in_cluster(
        "open-without-a-replica-that-may-know-more",
        "a lost record is made anew from some of the copies (I5, I6)",
    )
    .from(8),
    in_cluster("believe-an-old-copy", "a lost record is made anew from the oldest copy (I5)").from(201),
    in_cluster(
        "drop-what-waits-when-limits-change",
        "a command that waits for limits is dropped when they change (I34)",
    )
    .from(32),
    in_cluster("keep-what-is-cancelled", "what waits for limits goes on although its connection has ended (I16)")
        .from(13),
    in_cluster("fill-the-burst-with-other-limits", "each change of limits gives the whole burst once more").from(16),
    in_races("let-regions-in-use-leave", "regions leave the intent although writes are in flight there (I7)").from(155),
    in_races("grant-before-the-drain", "what is at the disk for an older grant lands after a new one (I13, I15)")
        .from(1400),
    in_races(
        "forget-writes-that-end-during-a-flush",
        "a write in flight when a flush began counts as durable after it (I23)",
    )
    .from(864),
    in_races(
        "forget-writes-in-flight-at-the-failure",
        "a flush that passed a write hides that a replica that fails then lacks it (I23)",
    )
    .from(662),
    in_races("trust-notes-after-a-power-cut", "intent and maps count although later ones may be lost (I23)").from(29),
    in_races("keep-the-maps-in-a-revert", "what going back to a snapshot changes is in no map (I23)").from(3),
    in_races("acknowledge-what-a-copy-lacks", "a write that fails on a replica on its way is forgotten (I17, I18)")
        .from(74),
    in_races("copy-across-a-snapshot", "a replica that is copied to joins without the snapshot (I24)").from(2128),
    in_races("forget-a-revert-under-way", "only some replicas go back to the snapshot (I7, I26)").from(414),
    in_races("read-after-the-lease", "an engine that was cut off goes on answering reads (I9, I14)").from(6),
    in_races(
        "take-over-without-waiting-for-the-lease",
        "an engine serves while the one before may still answer reads (I9, I14)",
    )
    .from(6),
    in_races("answer-beside-a-write", "a read shows what a write beside it has brought to one replica only (I9)")
        .from(994),
    in_races(
        "leave-the-old-intent-closed",
        "an engine begins to write while the notes say that the last one closed (I7)",
    )
    .from(20),
    in_races("mend-beside-writes", "a block is mended while it is written anew (I17, I22)").from(210),
    in_races("clean-without-a-flush", "an engine stops in order and has not flushed (I4)").from(92),
    in_faulty_store("ignore-failed-journal-writes", "a record whose write failed counts as written (I27)"),
    in_store("reuse-freed-clusters-at-once", "a freed cluster is used again before that is durable (I27)").from(716),
    in_store("trust-unflushed-blocks", "recovery takes blocks that were not flushed as they are (I27)").from(41),
    in_store("flush-without-a-marker", "a flush does not tell recovery what it covered (I4)"),
];

/// Those that no seed tried so far has found: a story in which they matter is missing, or something else keeps them harmless.
/// `--bug NAME --seed S` switches them on too.
pub const NOT_FOUND: &[Bug] = &[
    // Before the record says so the replica notes durably that it is complete, and with that goes all that its store has.
    in_races("in-sync-before-the-flush", "what was copied is not durable when the replica is in sync (I21)"),
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
    for (seeds, seed) in (1..=SEEDS).zip(bug.first..) {
        let options = Options { seed, log_lines: 0, without: Without::NOTHING };
        switch_on(bug.name);
        let failure = attempt(scenario, options).err();
        switch_off();
        if let Some(failure) = failure {
            let sound = attempt(scenario, options);
            assert!(sound.is_ok(), "{}: seed {seed} fails without a bug: {sound:?}", bug.scenario);
            return Some(Found { seed, seeds, failure });
        }
    }
    None
}

/// Switches a bug on for this thread; false when there is none of this name, or no bug at all in this build.
#[cfg(feature = "deliberate-bugs")]
pub fn switch_on(name: &str) -> bool {
    let bug = ALL.iter().chain(NOT_FOUND).find(|bug| bug.name == name);
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
