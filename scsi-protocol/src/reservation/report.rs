//! PERSISTENT RESERVE IN (SPC 6.15).

use alloc::vec;
use alloc::vec::Vec;

use super::Reservations;
use crate::bytes::put;

impl Reservations {
    /// READ KEYS.
    pub(crate) fn keys(&self) -> Vec<u8> {
        let keys: Vec<u8> = self.registrations.iter().flat_map(|registration| registration.key.to_be_bytes()).collect();
        self.report(&keys)
    }

    /// READ RESERVATION.
    pub(crate) fn reservation(&self) -> Vec<u8> {
        let Some(reservation) = &self.reservation else { return self.report(&[]) };
        let mut descriptor = [0; 16];
        if !reservation.kind.is_of_all_registrants() {
            put(&mut descriptor, 0, self.registrations[reservation.holder].key.to_be_bytes());
        }
        // SCOPE 0, the logical unit.
        descriptor[13] = reservation.kind as u8;
        self.report(&descriptor)
    }

    /// REPORT CAPABILITIES: ATP_C, PTPL_C, TMV and all types.
    pub(crate) fn capabilities(&self) -> Vec<u8> {
        vec![0, 8, 0x04 | 0x01, 0x80 | u8::from(self.persist_through_power_loss), 0xea, 0x01, 0, 0]
    }

    /// READ FULL STATUS.
    pub(crate) fn full_status(&self) -> Vec<u8> {
        let mut descriptors = Vec::new();
        for (place, registration) in self.registrations.iter().enumerate() {
            let name = registration.initiator.encode();
            let mut descriptor = vec![0; 24];
            put(&mut descriptor, 0, registration.key.to_be_bytes());
            let holds = self.holds(place);
            // ALL_TG_PT and R_HOLDER.
            descriptor[12] = u8::from(registration.port.is_none()) << 1 | u8::from(holds);
            if let Some(reservation) = self.reservation.as_ref().filter(|_| holds) {
                descriptor[13] = reservation.kind as u8;
            }
            put(&mut descriptor, 18, registration.port.unwrap_or(0).to_be_bytes());
            put(&mut descriptor, 20, (name.len() as u32).to_be_bytes());
            descriptors.extend(descriptor);
            descriptors.extend(name);
        }
        self.report(&descriptors)
    }

    /// PRGENERATION, ADDITIONAL LENGTH, content.
    fn report(&self, content: &[u8]) -> Vec<u8> {
        let mut bytes = self.generation.to_be_bytes().to_vec();
        bytes.extend((content.len() as u32).to_be_bytes());
        bytes.extend(content);
        bytes
    }
}
