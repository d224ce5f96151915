//! PERSISTENT RESERVE OUT (SPC 6.16).

use alloc::vec;
use alloc::vec::Vec;
use core::mem;

use super::{Nexus, PortName, REGISTRATIONS_MAX, Registration, Reservation, Reservations, Type};
use crate::attention::Attention;
use crate::bytes::{u16_at, u32_at, u64_at};
use crate::opcodes::Operation;
use crate::sense::Sense;

/// Bytes of the basic parameter list.
const LIST_LENGTH: usize = 24;
/// Flags in byte 20 of it.
const SPEC_I_PT: u8 = 0x08;
const ALL_TG_PT: u8 = 0x04;
const APTPL: u8 = 0x01;
/// Flags in byte 17 of REGISTER AND MOVE's.
const UNREG: u8 = 0x02;

/// A parameter list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parameters {
    /// RESERVATION KEY.
    key: u64,
    /// SERVICE ACTION RESERVATION KEY.
    action_key: u64,
    all_ports: bool,
    persist_through_power_loss: bool,
    /// REGISTER AND MOVE: to whom, and whether the mover unregisters.
    to: Option<(Nexus, bool)>,
}

/// Why a command came to nothing; nothing is changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// RESERVATION CONFLICT.
    Conflict,
    /// CHECK CONDITION.
    Check(Sense),
}

impl From<Sense> for Refusal {
    fn from(sense: Sense) -> Self {
        Self::Check(sense)
    }
}

/// What follows for other I_T nexuses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Effect {
    told: Vec<(Registration, Attention)>,
    /// Whose commands are aborted.
    aborted: Vec<Registration>,
}

impl Effect {
    fn tell(registrations: Vec<Registration>, attention: Attention) -> Self {
        let told = registrations.into_iter().map(|registration| (registration, attention)).collect();
        Self { told, aborted: Vec::new() }
    }

    /// What `nexus` is to be told.
    pub(crate) fn attention_for(&self, nexus: &Nexus) -> Option<Attention> {
        self.told.iter().find(|(registration, _)| registration.is_of(nexus)).map(|(_, attention)| *attention)
    }

    /// Whether the commands of `nexus` are aborted.
    pub(crate) fn aborts(&self, nexus: &Nexus) -> bool {
        self.aborted.iter().any(|registration| registration.is_of(nexus))
    }
}

impl Parameters {
    /// # Errors
    /// What CHECK CONDITION is to say.
    pub(crate) fn parse(operation: Operation, list: &[u8]) -> Result<Self, Sense> {
        if list.len() < LIST_LENGTH {
            return Err(Sense::PARAMETER_LIST_LENGTH);
        }
        let (key, action_key) = (u64_at(list, 0), u64_at(list, 8));
        if operation == Operation::RegisterAndMove {
            let name_length = u32_at(list, 20) as usize;
            if list.len() - LIST_LENGTH != name_length {
                return Err(Sense::PARAMETER_LIST_LENGTH);
            }
            let initiator = PortName::parse(&list[LIST_LENGTH..]).ok_or(Sense::parameter_field(24))?;
            let nexus = Nexus { initiator, port: u16_at(list, 18) };
            let persist_through_power_loss = list[17] & APTPL != 0;
            let to = Some((nexus, list[17] & UNREG != 0));
            return Ok(Self { key, action_key, all_ports: false, persist_through_power_loss, to });
        }
        let flags = list[20];
        if flags & SPEC_I_PT != 0 {
            return Err(Sense::parameter_field(20));
        }
        if list.len() != LIST_LENGTH {
            return Err(Sense::PARAMETER_LIST_LENGTH);
        }
        let persist_through_power_loss = flags & APTPL != 0;
        Ok(Self { key, action_key, all_ports: flags & ALL_TG_PT != 0, persist_through_power_loss, to: None })
    }
}

impl Reservations {
    /// Carries out a command of `nexus`.
    ///
    /// # Errors
    /// Why not; nothing is changed then.
    pub(crate) fn out(
        &mut self,
        nexus: &Nexus,
        operation: Operation,
        scope_and_type: u8,
        parameters: &Parameters,
    ) -> Result<Effect, Refusal> {
        if matches!(operation, Operation::Register | Operation::RegisterAndIgnore) {
            return self.register(nexus, operation == Operation::Register, parameters);
        }
        let place = self.place_of(nexus).filter(|place| self.registrations[*place].key == parameters.key);
        let place = place.ok_or(Refusal::Conflict)?;
        match operation {
            Operation::Reserve => self.reserve_persistently(place, type_of(scope_and_type)?),
            Operation::Release => self.release_persistently(place, scope_and_type),
            Operation::Clear => Ok(self.clear(place)),
            Operation::Preempt => self.preempt(place, scope_and_type, parameters.action_key),
            Operation::PreemptAndAbort => {
                let mut effect = self.preempt(place, scope_and_type, parameters.action_key)?;
                let preempted = effect.told.iter().filter(|(_, what)| *what == Attention::RegistrationsPreempted);
                effect.aborted = preempted.map(|(registration, _)| registration.clone()).collect();
                Ok(effect)
            }
            _ => self.move_to(place, nexus, parameters),
        }
    }

    /// REGISTER and REGISTER AND IGNORE EXISTING KEY (SPC 5.12.7).
    fn register(&mut self, nexus: &Nexus, checks_key: bool, parameters: &Parameters) -> Result<Effect, Refusal> {
        let place = self.place_of(nexus);
        let current = place.map_or(0, |place| self.registrations[place].key);
        if checks_key && parameters.key != current {
            return Err(Refusal::Conflict);
        }
        let effect = match (place, parameters.action_key) {
            (None, 0) => return Ok(Effect::default()),
            (Some(place), 0) => self.unregister(place),
            (Some(place), key) => {
                self.registrations[place].key = key;
                Effect::default()
            }
            (None, key) => {
                let port = (!parameters.all_ports).then_some(nexus.port);
                self.add(Registration { initiator: nexus.initiator.clone(), port, key })?;
                Effect::default()
            }
        };
        self.persist_through_power_loss = parameters.persist_through_power_loss;
        self.generation = self.generation.wrapping_add(1);
        Ok(effect)
    }

    fn add(&mut self, registration: Registration) -> Result<usize, Refusal> {
        if self.registrations.len() == REGISTRATIONS_MAX {
            return Err(Sense::REGISTRATION_RESOURCES.into());
        }
        if registration.port.is_none() {
            // One through all ports replaces those through single ones.
            self.remove(|other| other.initiator == registration.initiator);
        }
        self.registrations.push(registration);
        Ok(self.registrations.len() - 1)
    }

    /// SPC 5.12.11.2.3: what the holder's unregistration does to the reservation.
    fn unregister(&mut self, place: usize) -> Effect {
        let leaver = self.registrations[place].clone();
        let kind_before = self.reservation.as_ref().filter(|_| self.holds(place)).map(|reservation| reservation.kind);
        self.remove(|registration| *registration == leaver);
        match kind_before {
            Some(kind) if kind.admits_registrants() && self.reservation.is_none() => {
                Effect::tell(self.registrations.clone(), Attention::ReservationsReleased)
            }
            _ => Effect::default(),
        }
    }

    /// Removes registrations, and with its holder the reservation; one of all registrants goes with the last.
    fn remove(&mut self, which: impl Fn(&Registration) -> bool) -> Vec<Registration> {
        let holder = self.reservation.as_ref().map(|reservation| self.registrations[reservation.holder].clone());
        let all = mem::take(&mut self.registrations);
        let (removed, kept): (Vec<_>, Vec<_>) = all.into_iter().partition(which);
        self.registrations = kept;
        if let Some(reservation) = &mut self.reservation {
            let place = self.registrations.iter().position(|registration| Some(registration) == holder.as_ref());
            match place {
                Some(place) => reservation.holder = place,
                None if reservation.kind.is_of_all_registrants() && !self.registrations.is_empty() => {
                    reservation.holder = 0;
                }
                None => self.reservation = None,
            }
        }
        removed
    }

    /// RESERVE (SPC 5.12.9).
    fn reserve_persistently(&mut self, place: usize, kind: Type) -> Result<Effect, Refusal> {
        match &self.reservation {
            None => self.reservation = Some(Reservation { kind, holder: place }),
            Some(reservation) if self.holds(place) && reservation.kind == kind => {}
            Some(_) => return Err(Refusal::Conflict),
        }
        Ok(Effect::default())
    }

    /// RELEASE (SPC 5.12.11.2.2).
    fn release_persistently(&mut self, place: usize, scope_and_type: u8) -> Result<Effect, Refusal> {
        let Some(reservation) = self.reservation.as_ref().filter(|_| self.holds(place)) else {
            return Ok(Effect::default());
        };
        let kind = reservation.kind;
        if scope_and_type != kind as u8 {
            return Err(Sense::INVALID_RELEASE.into());
        }
        self.reservation = None;
        let others = if kind.admits_registrants() { self.others_than(place) } else { Vec::new() };
        Ok(Effect::tell(others, Attention::ReservationsReleased))
    }

    /// CLEAR (SPC 5.12.11.2.6).
    fn clear(&mut self, place: usize) -> Effect {
        let others = self.others_than(place);
        self.registrations.clear();
        self.reservation = None;
        self.generation = self.generation.wrapping_add(1);
        Effect::tell(others, Attention::ReservationsPreempted)
    }

    /// PREEMPT (SPC 5.12.11.2.4).
    fn preempt(&mut self, place: usize, scope_and_type: u8, key: u64) -> Result<Effect, Refusal> {
        let own = self.registrations[place].clone();
        let before = self.reservation.as_ref().map(|reservation| {
            let holder_key = self.registrations[reservation.holder].key;
            (reservation.kind, holder_key)
        });
        let takes_reservation = match before {
            Some((kind, _)) if kind.is_of_all_registrants() => key == 0,
            Some((_, holder_key)) => key == holder_key,
            None => false,
        };
        if !takes_reservation {
            return self.preempt_registrations(&own, key);
        }
        let kind = type_of(scope_and_type)?;
        let of_all = before.is_some_and(|(kind, _)| kind.is_of_all_registrants());
        let removed = self.remove(|registration| *registration != own && (of_all || registration.key == key));
        // `own` is never removed.
        let holder = self.registrations.iter().position(|registration| *registration == own).unwrap_or(0);
        self.reservation = Some(Reservation { kind, holder });
        self.generation = self.generation.wrapping_add(1);
        let mut effect = Effect::tell(removed, Attention::RegistrationsPreempted);
        if before.is_some_and(|(before, _)| before != kind) {
            let released = self.others_than(holder).into_iter();
            effect.told.extend(released.map(|registration| (registration, Attention::ReservationsReleased)));
        }
        Ok(effect)
    }

    /// PREEMPT of registrations only: the reservation stays with whom it is.
    fn preempt_registrations(&mut self, own: &Registration, key: u64) -> Result<Effect, Refusal> {
        if key == 0 {
            return Err(Sense::parameter_field(8).into());
        }
        if self.registrations.iter().all(|registration| registration.key != key) {
            return Err(Refusal::Conflict);
        }
        let removed = self.remove(|registration| registration != own && registration.key == key);
        self.generation = self.generation.wrapping_add(1);
        Ok(Effect::tell(removed, Attention::RegistrationsPreempted))
    }

    /// REGISTER AND MOVE (SPC 5.12.8).
    fn move_to(&mut self, place: usize, nexus: &Nexus, parameters: &Parameters) -> Result<Effect, Refusal> {
        // Parsed with it.
        let Some((to, unregisters)) = &parameters.to else { return Err(Sense::PARAMETER_LIST_LENGTH.into()) };
        let Some(kind) = self.reservation.as_ref().map(|reservation| reservation.kind) else {
            return Err(Refusal::Conflict);
        };
        if kind.is_of_all_registrants() || !self.holds(place) {
            return Err(Refusal::Conflict);
        }
        if parameters.action_key == 0 {
            return Err(Sense::parameter_field(8).into());
        }
        if to == nexus {
            return Err(Sense::parameter_field(24).into());
        }
        let mover = self.registrations[place].clone();
        let receiver = match self.place_of(to) {
            Some(receiver) => {
                self.registrations[receiver].key = parameters.action_key;
                receiver
            }
            None => {
                let (initiator, port) = (to.initiator.clone(), Some(to.port));
                self.add(Registration { initiator, port, key: parameters.action_key })?
            }
        };
        self.reservation = Some(Reservation { kind, holder: receiver });
        if *unregisters {
            self.remove(|registration| *registration == mover);
        }
        self.persist_through_power_loss = parameters.persist_through_power_loss;
        self.generation = self.generation.wrapping_add(1);
        Ok(Effect::default())
    }

    fn others_than(&self, place: usize) -> Vec<Registration> {
        let mut others = vec![];
        others.extend(
            self.registrations.iter().enumerate().filter(|(other, _)| *other != place).map(|(_, it)| it.clone()),
        );
        others
    }
}

/// SCOPE 0 (the logical unit) and a TYPE that there is.
fn type_of(scope_and_type: u8) -> Result<Type, Sense> {
    Type::from_code(scope_and_type).ok_or(Sense::cdb_field(2, None))
}
