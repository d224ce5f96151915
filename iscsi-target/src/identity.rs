//! What a host knows a volume by. All of it derives from the volume's UUID: equal after any restart or move, never
//! reused (I37).

use iscsi_target_protocol::wire::Name;
use uuid::Uuid;

/// PRODUCT REVISION LEVEL: the first four characters of the version of this software.
pub const REVISION: &str = env!("CARGO_PKG_VERSION");

/// The names of one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The volume's UUID.
    pub uuid: Uuid,
    /// The target's iSCSI name.
    pub name: Name,
}

impl Identity {
    /// The names of the volume `uuid`.
    pub fn of_volume(uuid: Uuid) -> Self {
        let text = format!("iqn.2026-01.io.ashlar:volume:{}", uuid.hyphenated());
        let Some(name) = Name::parse(&text) else { panic!("{text} is a name") };
        Self { uuid, name }
    }

    /// The unit's serial number: its VPD page 80h.
    pub fn serial(&self) -> String {
        self.scsi().serial
    }

    /// The unit's NAA identifier, in its VPD page 83h.
    pub fn naa(&self) -> [u8; 8] {
        self.scsi().naa()
    }

    /// As the logical unit tells them.
    pub(crate) fn scsi(&self) -> scsi_protocol::inquiry::Identity {
        scsi_protocol::inquiry::Identity {
            uuid: *self.uuid.as_bytes(),
            serial: self.uuid.simple().to_string(),
            revision: REVISION.to_owned(),
            target: self.name.as_str().to_owned(),
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
        assert_eq!(identity.name.as_str(), "iqn.2026-01.io.ashlar:volume:01234567-89ab-4def-8123-456789abcdef");
        assert_eq!(identity.scsi().serial, "0123456789ab4def8123456789abcdef");
        assert_eq!(identity.scsi().naa(), [0x31, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef]);
    }
}
