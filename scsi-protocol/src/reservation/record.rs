//! Registrations and reservation as bytes that outlive the daemon (I38).
//!
//! ```text
//! version u8 = 1 · flags u8 (bit 0: APTPL) · type u8 (0: no reservation) · 0 · generation u32 · holder u16 · count u16 ·
//! count × ( key u64 · port u16 (0: all ports) · length u16 · name )                                        big-endian
//! ```
//! Whoever stores it guards it with a checksum of its own.

use alloc::vec::Vec;

use super::{PortName, REGISTRATIONS_MAX, Registration, Reservation, Reservations, Type};
use crate::bytes::{u16_at, u32_at, u64_at};

const VERSION: u8 = 1;
const HEADER_LENGTH: usize = 12;
const ENTRY_LENGTH: usize = 12;
const APTPL: u8 = 1;

/// A record that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordError {
    /// Written by a version of the format that this one does not know.
    Version(u8),
    /// Cut off, or with contradictions.
    Damaged,
}

impl Reservations {
    /// What is to be kept.
    pub fn encode(&self) -> Vec<u8> {
        let kind = self.reservation.as_ref().map_or(0, |reservation| reservation.kind as u8);
        let holder = self.reservation.as_ref().map_or(0, |reservation| reservation.holder as u16);
        let flags = if self.persist_through_power_loss { APTPL } else { 0 };
        let mut bytes = Vec::from([VERSION, flags, kind, 0]);
        bytes.extend(self.generation.to_be_bytes());
        bytes.extend(holder.to_be_bytes());
        bytes.extend((self.registrations.len() as u16).to_be_bytes());
        for registration in &self.registrations {
            let name = registration.initiator.as_str();
            bytes.extend(registration.key.to_be_bytes());
            bytes.extend(registration.port.unwrap_or(0).to_be_bytes());
            bytes.extend((name.len() as u16).to_be_bytes());
            bytes.extend(name.bytes());
        }
        bytes
    }

    /// What was kept.
    ///
    /// # Errors
    /// If it is no record, or one of a newer version.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let (header, mut rest) = bytes.split_at_checked(HEADER_LENGTH).ok_or(RecordError::Damaged)?;
        if header[0] != VERSION {
            return Err(RecordError::Version(header[0]));
        }
        let count = usize::from(u16_at(header, 10));
        let mut registrations = Vec::new();
        for _ in 0..count.min(REGISTRATIONS_MAX) {
            let (entry, after) = rest.split_at_checked(ENTRY_LENGTH).ok_or(RecordError::Damaged)?;
            let (name, after) = after.split_at_checked(usize::from(u16_at(entry, 10))).ok_or(RecordError::Damaged)?;
            let name = core::str::from_utf8(name).map_err(|_| RecordError::Damaged)?;
            let initiator = PortName::from_text(name).ok_or(RecordError::Damaged)?;
            let port = Some(u16_at(entry, 8)).filter(|port| *port != 0);
            registrations.push(Registration { initiator, port, key: u64_at(entry, 0) });
            rest = after;
        }
        let reservation = match header[2] {
            0 => None,
            code => {
                let kind = Type::from_code(code).ok_or(RecordError::Damaged)?;
                Some(Reservation { kind, holder: usize::from(u16_at(header, 8)) })
            }
        };
        let holder_is_there = reservation.as_ref().is_none_or(|reservation| reservation.holder < registrations.len());
        if !rest.is_empty() || !holder_is_there || registrations.len() != count {
            return Err(RecordError::Damaged);
        }
        let persist_through_power_loss = header[1] & APTPL != 0;
        Ok(Self {
            registrations,
            reservation,
            generation: u32_at(header, 4),
            persist_through_power_loss,
            exclusive: None,
        })
    }

    /// Whether they are to be there after a loss of power (APTPL). Without, only a restart or move of the daemon that
    /// serves the unit keeps them, which no host can tell from an interruption.
    pub fn persists_through_power_loss(&self) -> bool {
        self.persist_through_power_loss
    }
}
