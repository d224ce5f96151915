//! Unit attentions: what an initiator has to be told once (SAM 5.14).

use crate::sense::{Key, Sense};

/// Something that happened to the logical unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Attention {
    /// POWER ON, RESET, OR BUS DEVICE RESET OCCURRED: a new I_T nexus knows nothing yet.
    PowerOn,
    /// BUS DEVICE RESET FUNCTION OCCURRED: a task management function reset the unit or the target.
    Reset,
    /// COMMANDS CLEARED BY ANOTHER INITIATOR.
    CommandsCleared,
    /// RESERVATIONS PREEMPTED.
    ReservationsPreempted,
    /// RESERVATIONS RELEASED.
    ReservationsReleased,
    /// REGISTRATIONS PREEMPTED.
    RegistrationsPreempted,
    /// MODE PARAMETERS CHANGED.
    ModeParametersChanged,
    /// ASYMMETRIC ACCESS STATE CHANGED.
    AccessStateChanged,
    /// CAPACITY DATA HAS CHANGED (I39: after it is durable).
    CapacityChanged,
    /// THIN PROVISIONING SOFT THRESHOLD REACHED.
    ThinThreshold,
}

impl Attention {
    /// From the most to the least urgent (SAM 5.14.2: resets come first).
    const ORDER: [Self; 10] = [
        Self::PowerOn,
        Self::Reset,
        Self::CommandsCleared,
        Self::ReservationsPreempted,
        Self::ReservationsReleased,
        Self::RegistrationsPreempted,
        Self::ModeParametersChanged,
        Self::AccessStateChanged,
        Self::CapacityChanged,
        Self::ThinThreshold,
    ];

    /// What the initiator is told.
    pub const fn sense(self) -> Sense {
        let code = match self {
            Self::PowerOn => 0x2900,
            Self::Reset => 0x2903,
            Self::CommandsCleared => 0x2f00,
            Self::ReservationsPreempted => 0x2a03,
            Self::ReservationsReleased => 0x2a04,
            Self::RegistrationsPreempted => 0x2a05,
            Self::ModeParametersChanged => 0x2a01,
            Self::AccessStateChanged => 0x2a06,
            Self::CapacityChanged => 0x2a09,
            Self::ThinThreshold => 0x3807,
        };
        Sense::new(Key::UnitAttention, code)
    }
}

/// Attentions that one I_T nexus has not been told. Each at most once: what happened twice is told once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pending(u16);

impl Pending {
    pub(crate) fn raise(&mut self, attention: Attention) {
        if matches!(attention, Attention::PowerOn | Attention::Reset) {
            // Whoever starts anew need not know what was before.
            self.0 = 0;
        }
        self.0 |= 1 << attention as u8;
    }

    /// The most urgent one, which is told by that.
    pub(crate) fn take(&mut self) -> Option<Attention> {
        if self.0 == 0 {
            return None;
        }
        let first = Attention::ORDER.into_iter().find(|attention| self.0 & 1 << *attention as u8 != 0)?;
        self.0 &= !(1 << first as u8);
        Some(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_told_once_and_the_most_urgent_first() {
        let mut pending = Pending::default();
        assert_eq!(pending.take(), None);
        pending.raise(Attention::CapacityChanged);
        pending.raise(Attention::ReservationsReleased);
        pending.raise(Attention::CapacityChanged);
        assert_eq!(pending.take(), Some(Attention::ReservationsReleased));
        assert_eq!(pending.take(), Some(Attention::CapacityChanged));
        assert_eq!(pending.take(), None);
    }

    #[test]
    fn a_reset_replaces_what_was_before_it() {
        let mut pending = Pending::default();
        pending.raise(Attention::ModeParametersChanged);
        pending.raise(Attention::Reset);
        pending.raise(Attention::CapacityChanged);
        assert_eq!(pending.take(), Some(Attention::Reset));
        assert_eq!(pending.take(), Some(Attention::CapacityChanged));
        assert_eq!(pending.take(), None);
    }
}
