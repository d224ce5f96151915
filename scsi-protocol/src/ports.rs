//! Target port groups and their asymmetric access states (ALUA, SPC 5.15).

use alloc::vec;
use alloc::vec::Vec;

use crate::bytes::put;
use crate::sense::Sense;

/// A target port: one way to the unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// RELATIVE TARGET PORT IDENTIFIER, from 1.
    pub relative: u16,
    /// TARGET PORT GROUP.
    pub group: u16,
}

/// ASYMMETRIC ACCESS STATE of a target port group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum AccessState {
    /// Active/optimized.
    Optimized = 0x0,
    /// Active/non-optimized.
    NonOptimized = 0x1,
    /// Standby.
    Standby = 0x2,
    /// Unavailable: another node serves the volume, or none does now.
    Unavailable = 0x3,
    /// Transitioning.
    Transitioning = 0xf,
}

impl AccessState {
    /// What commands that need the medium are told, if they are not served (SPC 5.15.2.4).
    pub const fn refusal(self) -> Option<Sense> {
        match self {
            Self::Optimized | Self::NonOptimized => None,
            Self::Standby => Some(Sense::PORT_STANDBY),
            Self::Unavailable => Some(Sense::PORT_UNAVAILABLE),
            Self::Transitioning => Some(Sense::ACCESS_TRANSITION),
        }
    }
}

/// A target port group as REPORT TARGET PORT GROUPS shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// TARGET PORT GROUP.
    pub id: u16,
    /// What its ports can do.
    pub state: AccessState,
    /// Its ports' relative identifiers.
    pub ports: Vec<u16>,
}

/// AO_SUP, AN_SUP, S_SUP, U_SUP and T_SUP: the states above can be met.
const SUPPORTED_STATES: u8 = 0x80 | 0x08 | 0x04 | 0x02 | 0x01;

/// STATUS CODE: the state was altered by implicit asymmetric access.
const IMPLICITLY: u8 = 2;

/// Parameter data of REPORT TARGET PORT GROUPS (SPC 6.37).
pub(crate) fn report(groups: &[Group], extended: bool) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    if extended {
        // FORMAT TYPE 001b, no implicit transition time.
        bytes.extend([0x10, 0, 0, 0]);
    }
    for group in groups {
        bytes.extend([group.state as u8, SUPPORTED_STATES]);
        bytes.extend(group.id.to_be_bytes());
        bytes.extend([0, IMPLICITLY, 0, group.ports.len() as u8]);
        group.ports.iter().for_each(|port| {
            bytes.extend([0, 0]);
            bytes.extend(port.to_be_bytes());
        });
    }
    let length = bytes.len() as u32 - 4;
    put(&mut bytes, 0, length.to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_with_their_ports() {
        let group = |id, state, ports: &[u16]| Group { id, state, ports: ports.to_vec() };
        let groups = [group(1, AccessState::Optimized, &[1, 2]), group(2, AccessState::Unavailable, &[])];
        let bytes = report(&groups, false);
        assert_eq!(bytes[..4], [0, 0, 0, 24]);
        assert_eq!(bytes[4..20], [0, 0x8f, 0, 1, 0, 2, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2]);
        assert_eq!(bytes[20..], [3, 0x8f, 0, 2, 0, 2, 0, 0]);
        assert_eq!(report(&groups, true)[..8], [0, 0, 0, 28, 0x10, 0, 0, 0]);
    }
}
