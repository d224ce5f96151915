//! The stories that the simulator tells.

mod device;
mod store;

use crate::{Scenario, cluster};

/// All of them.
pub const ALL: &[Scenario] = &[
    Scenario {
        name: "file-device",
        about: "a file as a block device under kills and power cuts: I4, I7, I9, I29",
        run: device::file,
        planner: None,
    },
    Scenario {
        name: "store",
        about: "volumes and snapshots of a store under kills and power cuts: I4, I7, I9, I24, I26, I27, I29",
        run: store::sound,
        planner: None,
    },
    Scenario {
        name: "store-faulty-disk",
        about: "the same on a disk that fails now and then",
        run: store::faulty,
        planner: None,
    },
    Scenario {
        name: "races",
        about: "a cluster, one race and a fault at the moment that matters: I4, I7, I13, I15, I23 to I26",
        run: |options| cluster::RACES.run(options),
        planner: Some(cluster::RACES),
    },
    Scenario {
        name: "cluster",
        about: "engines, replicas and hosts under everything that goes wrong: I1 to I25",
        run: |options| cluster::EVERYTHING.run(options),
        planner: Some(cluster::EVERYTHING),
    },
];

/// The scenario with this name.
pub fn named(name: &str) -> Option<&'static Scenario> {
    ALL.iter().find(|scenario| scenario.name == name)
}
