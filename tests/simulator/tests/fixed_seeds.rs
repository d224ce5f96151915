//! Each scenario with a fixed range of seeds, so that a change that breaks one fails the same way everywhere.

use simulator::Options;
use simulator::scenarios::ALL;

const SEEDS: u64 = 20;

#[test]
fn every_scenario_ends_well_for_the_first_seeds() {
    for scenario in ALL {
        for seed in 0..SEEDS {
            (scenario.run)(Options::seed(seed));
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for scenario in ALL {
        let (first, second) = ((scenario.run)(Options::seed(7)), (scenario.run)(Options::seed(7)));
        assert_eq!(first, second, "{}: something depends on more than the seed", scenario.name);
        assert_ne!(first.trace_hash, (scenario.run)(Options::seed(8)).trace_hash, "{}", scenario.name);
    }
}
