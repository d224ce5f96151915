//! Persistent reservations (SPC 5.12), and RESERVE (6) beside them (SPC-2 5.5).
//!
//! A registration belongs to an initiator port and a target port, not to a session: it outlives both the session and, as a
//! [`record`](Reservations::encode), the daemon (I38).

mod access;
mod out;
mod record;
mod report;
mod transport;

use alloc::vec::Vec;

pub(crate) use access::Class;
pub(crate) use out::{Effect, Parameters, Refusal};

pub use record::RecordError;
pub use transport::PortName;

/// Registrations of one unit at one time.
pub const REGISTRATIONS_MAX: usize = 256;

/// An I_T nexus by its lasting names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nexus {
    /// The initiator port.
    pub initiator: PortName,
    /// RELATIVE TARGET PORT IDENTIFIER.
    pub port: u16,
}

/// TYPE of a persistent reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Type {
    /// Write Exclusive.
    WriteExclusive = 1,
    /// Exclusive Access.
    ExclusiveAccess = 3,
    /// Write Exclusive – Registrants Only.
    WriteExclusiveRegistrantsOnly = 5,
    /// Exclusive Access – Registrants Only.
    ExclusiveAccessRegistrantsOnly = 6,
    /// Write Exclusive – All Registrants.
    WriteExclusiveAllRegistrants = 7,
    /// Exclusive Access – All Registrants.
    ExclusiveAccessAllRegistrants = 8,
}

impl Type {
    /// The type with this code.
    pub const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::WriteExclusive,
            3 => Self::ExclusiveAccess,
            5 => Self::WriteExclusiveRegistrantsOnly,
            6 => Self::ExclusiveAccessRegistrantsOnly,
            7 => Self::WriteExclusiveAllRegistrants,
            8 => Self::ExclusiveAccessAllRegistrants,
            _ => return None,
        })
    }

    /// Every registrant holds it.
    pub(crate) const fn is_of_all_registrants(self) -> bool {
        matches!(self, Self::WriteExclusiveAllRegistrants | Self::ExclusiveAccessAllRegistrants)
    }

    /// Every registrant may do what the holder may.
    const fn admits_registrants(self) -> bool {
        !matches!(self, Self::WriteExclusive | Self::ExclusiveAccess)
    }

    /// Others may read.
    const fn admits_readers(self) -> bool {
        matches!(self, Self::WriteExclusive | Self::WriteExclusiveRegistrantsOnly | Self::WriteExclusiveAllRegistrants)
    }
}

/// A registered I_T nexus, or an initiator port registered through all target ports.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Registration {
    initiator: PortName,
    /// None: through all target ports (ALL_TG_PT).
    port: Option<u16>,
    key: u64,
}

impl Registration {
    fn is_of(&self, nexus: &Nexus) -> bool {
        self.initiator == nexus.initiator && self.port.is_none_or(|port| port == nexus.port)
    }
}

/// A persistent reservation.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Reservation {
    kind: Type,
    /// The holder's place in the registrations; without meaning if all registrants hold it.
    holder: usize,
}

/// Reservations and registrations of one unit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reservations {
    registrations: Vec<Registration>,
    reservation: Option<Reservation>,
    /// PRGENERATION: counts changes of registrations.
    generation: u32,
    /// APTPL of the last registration: whether registrations and reservation are to outlive a loss of power.
    persist_through_power_loss: bool,
    /// The I_T nexus that has the unit by RESERVE (6). Lost with the session, and never recorded.
    exclusive: Option<Nexus>,
}

impl Reservations {
    /// Whether there is a persistent reservation.
    pub fn is_reserved(&self) -> bool {
        self.reservation.is_some()
    }

    /// Whether any nexus is registered.
    fn has_registrations(&self) -> bool {
        !self.registrations.is_empty()
    }

    fn place_of(&self, nexus: &Nexus) -> Option<usize> {
        self.registrations.iter().position(|registration| registration.is_of(nexus))
    }

    /// Whether the registration at `place` holds the reservation.
    fn holds(&self, place: usize) -> bool {
        self.reservation
            .as_ref()
            .is_some_and(|reservation| reservation.kind.is_of_all_registrants() || reservation.holder == place)
    }

    /// RESERVE (6) of `nexus`; false for a conflict. The caller has checked [`Self::refuses`].
    pub(crate) fn reserve(&mut self, nexus: &Nexus) {
        self.exclusive = Some(nexus.clone());
    }

    /// RELEASE (6) of `nexus`: without effect if it has nothing to release.
    pub(crate) fn release(&mut self, nexus: &Nexus) {
        if self.exclusive.as_ref() == Some(nexus) {
            self.exclusive = None;
        }
    }

    /// A reset of the unit releases RESERVE (6), and no persistent reservation.
    pub(crate) fn reset(&mut self) {
        self.exclusive = None;
    }
}
