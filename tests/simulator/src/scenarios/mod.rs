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
    },
    Scenario {
        name: "store",
        about: "volumes and snapshots of a store under kills and power cuts: I4, I7, I9, I24, I26, I27, I29",
        run: store::sound,
    },
    Scenario { name: "store-faulty-disk", about: "the same on a disk that fails now and then", run: store::faulty },
    Scenario {
        name: "cluster",
        about: "engines, replicas and hosts under everything that goes wrong: I1 to I25",
        run: cluster::run,
    },
];

/// The scenario with this name.
pub fn named(name: &str) -> Option<&'static Scenario> {
    ALL.iter().find(|scenario| scenario.name == name)
}
