//! The stories that the simulator tells.

mod device;

use crate::Scenario;

/// All of them.
pub const ALL: &[Scenario] = &[Scenario {
    name: "file-device",
    about: "a file as a block device under kills and power cuts: I4, I7, I9, I29",
    run: device::file,
}];

/// The scenario with this name.
pub fn named(name: &str) -> Option<&'static Scenario> {
    ALL.iter().find(|scenario| scenario.name == name)
}
