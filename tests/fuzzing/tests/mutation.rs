//! A short run of every target without a fuzzer: its seeds, and mutations of them. `ASHLAR_LONG_TESTS=1` makes it a long one.

use fuzzing::{TARGETS, mutate};
use reactor::simulated::Random;

/// Runs one target: `runs` mutations, a hundred times as many in a long test.
fn run(name: &str, runs: u64) {
    let long = std::env::var_os("ASHLAR_LONG_TESTS").is_some_and(|value| value == "1");
    let runs = if long { runs * 100 } else { runs };
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target of this name");
    let mut corpus = (target.seeds)();
    assert!(!corpus.is_empty());
    corpus.iter().for_each(|seed| (target.run)(seed));
    let mut random = Random::new(1);
    for number in 0..runs {
        let bytes = mutate(&corpus[random.index(corpus.len())], &mut random);
        // Told only when the target panics.
        println!("{name}, run {number}: {bytes:02x?}");
        (target.run)(&bytes);
        // Mutations of mutations get further.
        if number % 8 == 0 && corpus.len() < 1000 {
            corpus.push(bytes);
        }
    }
}

#[test]
fn store_images() {
    run("store_image", 60);
}

#[test]
fn store_structures() {
    run("store_structures", 4000);
}

#[test]
fn replica_frames() {
    run("replica_frames", 4000);
}

#[test]
fn nvmf_pdus() {
    run("nvmf_pdus", 4000);
}

#[test]
fn scsi_commands() {
    run("scsi_commands", 4000);
}

#[test]
fn iscsi_pdus() {
    run("iscsi_pdus", 4000);
}

#[test]
fn iscsi_text() {
    run("iscsi_text", 4000);
}

#[test]
fn backup_files() {
    run("backup_files", 4000);
}
