//! Who may do what while there is a reservation (SPC table 65, SBC table 15, SPC-2 table 10).

use super::{Nexus, Reservations};
use crate::command::{Access, Command};

/// How reservations see a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Never in conflict.
    Free,
    /// Never in conflict with a persistent reservation; is with a RESERVE (6) of another nexus.
    Harmless,
    /// PERSISTENT RESERVE OUT decides by itself about persistent reservations.
    Registers,
    /// Looks at the medium or at settings.
    Reads,
    /// All else.
    Writes,
    /// RESERVE (6).
    Reserve,
    /// RELEASE (6).
    Release,
}

impl Class {
    pub(crate) const fn of(command: &Command) -> Self {
        match command {
            Command::Inquiry { .. } | Command::ReportLuns { .. } | Command::RequestSense { .. } => Self::Free,
            Command::TestUnitReady
            | Command::ReadCapacity10
            | Command::ReadCapacity16 { .. }
            | Command::ReportTargetPortGroups { .. }
            | Command::LogSense { .. }
            | Command::PersistentReserveIn { .. } => Self::Harmless,
            Command::PersistentReserveOut { .. } => Self::Registers,
            Command::Access(Access::Read(_) | Access::Verify { .. } | Access::Status { .. })
            | Command::Prefetch
            | Command::ModeSense(_)
            | Command::ReportOperationCodes { .. }
            | Command::ReceiveCopyParameters { .. } => Self::Reads,
            Command::Reserve6 => Self::Reserve,
            Command::Release6 => Self::Release,
            Command::Access(_)
            | Command::Unmap { .. }
            | Command::ModeSelect { .. }
            | Command::ExtendedCopy { .. }
            | Command::ReceiveCopyStatus { .. } => Self::Writes,
        }
    }
}

impl Reservations {
    /// Whether a command of `class` that `nexus` sends ends with RESERVATION CONFLICT.
    #[inline]
    pub(crate) fn refuses(&self, nexus: &Nexus, class: Class) -> bool {
        if self.exclusive.is_none() && self.registrations.is_empty() {
            return false;
        }
        self.refuses_beside(nexus, class)
    }

    #[cold]
    fn refuses_beside(&self, nexus: &Nexus, class: Class) -> bool {
        // SPC-2 reservations and persistent ones exclude each other (SPC 5.12.3).
        if matches!(class, Class::Reserve | Class::Release) && self.has_registrations() {
            return true;
        }
        let taken = self.exclusive.as_ref().is_some_and(|holder| holder != nexus);
        if taken && !matches!(class, Class::Free | Class::Release) {
            return true;
        }
        // Also the holder of a RESERVE (6) may register only without it.
        if self.exclusive.is_some() && class == Class::Registers {
            return true;
        }
        let Some(reservation) = &self.reservation else { return false };
        let place = self.place_of(nexus);
        let is_admitted = place.is_some_and(|place| reservation.kind.admits_registrants() || self.holds(place));
        match class {
            _ if is_admitted => false,
            Class::Reads => !reservation.kind.admits_readers(),
            Class::Writes => true,
            Class::Free | Class::Harmless | Class::Registers | Class::Reserve | Class::Release => false,
        }
    }
}
