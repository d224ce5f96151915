//! What a host knows a volume by. All of it derives from the volume's UUID: equal after any restart or move, never
//! reused (I37).

use uuid::Uuid;

/// Model Number (MN) of every volume.
pub const MODEL: &str = "Ashlar Volume";

/// Firmware Revision (FR): the version of this software.
pub const FIRMWARE: &str = env!("CARGO_PKG_VERSION");

/// The namespace identifier under which a volume is found in its subsystem.
pub const NAMESPACE_ID: u32 = 1;

/// The names of one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The volume's UUID, also that of its namespace.
    pub uuid: Uuid,
    /// NVM Subsystem NVMe Qualified Name.
    pub nqn: String,
    /// Serial Number: 20 characters.
    pub serial: String,
    /// Namespace Globally Unique Identifier.
    pub nguid: [u8; 16],
}

impl Identity {
    /// The names of the volume `uuid`.
    pub fn of_volume(uuid: Uuid) -> Self {
        let mut serial = uuid.simple().to_string();
        serial.truncate(20);
        Self {
            uuid,
            nqn: format!("nqn.2026-01.io.ashlar:volume:{}", uuid.hyphenated()),
            serial,
            nguid: *uuid.as_bytes(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hosts keep these names: a change would make every volume another one for them.
    #[test]
    fn names_are_what_they_always_were() {
        let identity = Identity::of_volume(Uuid::from_u128(0x0123_4567_89ab_4def_8123_4567_89ab_cdef));
        assert_eq!(identity.nqn, "nqn.2026-01.io.ashlar:volume:01234567-89ab-4def-8123-456789abcdef");
        assert_eq!(identity.serial, "0123456789ab4def8123");
        assert_eq!(identity.nguid[..4], [0x01, 0x23, 0x45, 0x67]);
    }
}
