//! Get Features and Set Features (Base 5.15, 5.27). Nothing is saveable: every Connect starts from the defaults.

use super::{AdminCommand, Controller, IO_QUEUES_MAX, Outcome};
use crate::wire::feature::{self, CAPABILITY_CHANGEABLE, Select};
use crate::wire::identify::ControllerType;
use crate::wire::{Completion, Status, Submission};

/// CDW10 bit 31 of Set Features: Save (SV).
const SAVE: u32 = 1 << 31;
/// CDW11 of Volatile Write Cache: Enable (WCE).
const WRITE_CACHE_ENABLED: u32 = 1;
/// CDW11 of Host Identifier: Enable Extended Host Identifier (EXHID), 16 bytes; required over Fabrics.
const EXTENDED_HOST_ID: u32 = 1;
/// Over and under temperature thresholds that nothing crosses, in kelvin.
const TEMPERATURE_DEFAULTS: [u32; 2] = [0xffff, 0];
/// Bits of Asynchronous Event Configuration that may be set on an I/O controller: SMART / Health critical warnings
/// (never raised), and what OAES announces.
const IO_EVENTS: u32 = 0xff | feature::event::NAMESPACE_CHANGED | feature::event::ANA_CHANGED;
/// The same on a discovery controller.
const DISCOVERY_EVENTS: u32 = feature::event::DISCOVERY_CHANGED;

/// Values in force.
#[derive(Clone, Copy, Debug)]
pub(super) struct Features {
    /// Commands are taken in the order they arrive whatever the bursts: kept for the host to read.
    arbitration: u32,
    /// Over and under threshold of the composite temperature.
    temperature: [u32; 2],
    error_recovery: u32,
    write_cache: u32,
    /// I/O queues the host may connect, from 1.
    queues: u32,
    write_atomicity: u32,
    events: u32,
}

impl Features {
    pub(super) fn new() -> Self {
        Self {
            arbitration: 0,
            temperature: TEMPERATURE_DEFAULTS,
            error_recovery: 0,
            write_cache: WRITE_CACHE_ENABLED,
            queues: u32::from(IO_QUEUES_MAX),
            write_atomicity: 0,
            events: 0,
        }
    }

    pub(super) fn io_queues(&self) -> u16 {
        // At most `IO_QUEUES_MAX`.
        self.queues as u16
    }

    pub(super) fn event_mask(&self) -> u32 {
        self.events
    }

    pub(super) fn write_cache(&self) -> bool {
        self.write_cache & WRITE_CACHE_ENABLED != 0
    }

    /// Dword 0 of Get Features.
    fn value(&self, id: u8, cdw11: u32) -> Result<u32, Status> {
        Ok(match id {
            feature::ARBITRATION => self.arbitration,
            feature::POWER_MANAGEMENT | feature::COMMAND_SET_PROFILE => 0,
            feature::TEMPERATURE_THRESHOLD => self.temperature[threshold_index(cdw11)?],
            feature::ERROR_RECOVERY => self.error_recovery,
            feature::VOLATILE_WRITE_CACHE => self.write_cache,
            feature::NUMBER_OF_QUEUES => feature::encode_queue_count(self.queues),
            feature::WRITE_ATOMICITY => self.write_atomicity,
            feature::ASYNC_EVENT_CONFIGURATION => self.events,
            _ => return Err(Status::InvalidField),
        })
    }
}

/// Temperature Threshold: type in CDW11 bits 21:20 (0 over, 1 under), sensor in bits 19:16 (0 the composite one).
fn threshold_index(cdw11: u32) -> Result<usize, Status> {
    match (cdw11 >> 16 & 0xf, cdw11 >> 20 & 0b11) {
        (0, threshold @ (0 | 1)) => Ok(threshold as usize),
        _ => Err(Status::InvalidField),
    }
}

impl Controller {
    pub(super) fn get_features(&self, command: &AdminCommand<'_>) -> Result<Outcome, Status> {
        let (id, cdw11) = (command.entry.dword(10) as u8, command.entry.dword(11));
        let select = Select::parse(command.entry.dword(10)).ok_or(Status::InvalidField)?;
        self.check_supported(id)?;
        match select {
            Select::Capabilities => {
                let changeable = id != feature::HOST_IDENTIFIER;
                Ok(Completion::with_result(if changeable { CAPABILITY_CHANGEABLE } else { 0 }).into())
            }
            Select::Current | Select::Default | Select::Saved if id == feature::HOST_IDENTIFIER => {
                self.host_identifier(command, cdw11)
            }
            Select::Current if id == feature::KEEP_ALIVE_TIMER => {
                Ok(Completion::with_result(u64::from(self.keep_alive.timeout_ms)).into())
            }
            Select::Current => Ok(Completion::with_result(u64::from(self.features.value(id, cdw11)?)).into()),
            Select::Default | Select::Saved if id == feature::KEEP_ALIVE_TIMER => Ok(Completion::SUCCESS.into()),
            Select::Default | Select::Saved => {
                Ok(Completion::with_result(u64::from(Features::new().value(id, cdw11)?)).into())
            }
        }
    }

    fn host_identifier(&self, command: &AdminCommand<'_>, cdw11: u32) -> Result<Outcome, Status> {
        if cdw11 & EXTENDED_HOST_ID == 0 {
            return Err(Status::InvalidField);
        }
        super::sent(self.host_id.to_vec(), command.transfer)
    }

    pub(super) fn set_features(&mut self, entry: &Submission) -> Result<Completion, Status> {
        let (id, value) = (entry.dword(10) as u8, entry.dword(11));
        self.check_supported(id)?;
        if entry.dword(10) & SAVE != 0 {
            return Err(Status::FeatureNotSaveable);
        }
        let features = &mut self.features;
        match id {
            feature::ARBITRATION => features.arbitration = value,
            // There is one power state, and one combination of command sets.
            feature::POWER_MANAGEMENT if value & 0x1f == 0 => {}
            feature::COMMAND_SET_PROFILE if value & 0x1ff == 0 => return Ok(Completion::SUCCESS),
            feature::COMMAND_SET_PROFILE => return Err(Status::CommandSetCombinationRejected),
            feature::TEMPERATURE_THRESHOLD => features.temperature[threshold_index(value)?] = value & 0xffff,
            feature::ERROR_RECOVERY => features.error_recovery = value & 0xffff,
            feature::VOLATILE_WRITE_CACHE => features.write_cache = value & WRITE_CACHE_ENABLED,
            feature::NUMBER_OF_QUEUES => return self.set_queue_count(value),
            feature::WRITE_ATOMICITY => features.write_atomicity = value & 1,
            feature::ASYNC_EVENT_CONFIGURATION => {
                if value & !self.supported_events() != 0 {
                    return Err(Status::InvalidField);
                }
                self.features.events = value;
            }
            feature::KEEP_ALIVE_TIMER => self.keep_alive.timeout_ms = value,
            // The host identifier of a Fabrics host is that of its Connect (Base 5.27.1.25).
            feature::HOST_IDENTIFIER => return Err(Status::CommandSequenceError),
            _ => return Err(Status::InvalidField),
        }
        Ok(Completion::SUCCESS)
    }

    fn set_queue_count(&mut self, value: u32) -> Result<Completion, Status> {
        // Once I/O queues exist the number is fixed (Base 5.27.1.5).
        if self.io_queues != 0 {
            return Err(Status::CommandSequenceError);
        }
        let wanted = feature::parse_queue_count(value).ok_or(Status::InvalidField)?;
        self.features.queues = wanted.min(u32::from(IO_QUEUES_MAX));
        Ok(Completion::with_result(u64::from(feature::encode_queue_count(self.features.queues))))
    }

    fn supported_events(&self) -> u32 {
        match self.controller_type {
            ControllerType::Io => IO_EVENTS,
            ControllerType::Discovery => DISCOVERY_EVENTS,
        }
    }

    fn check_supported(&self, id: u8) -> Result<(), Status> {
        let everywhere = matches!(id, feature::ASYNC_EVENT_CONFIGURATION | feature::KEEP_ALIVE_TIMER);
        let io_only = matches!(
            id,
            feature::ARBITRATION
                | feature::POWER_MANAGEMENT
                | feature::TEMPERATURE_THRESHOLD
                | feature::ERROR_RECOVERY
                | feature::VOLATILE_WRITE_CACHE
                | feature::NUMBER_OF_QUEUES
                | feature::WRITE_ATOMICITY
                | feature::COMMAND_SET_PROFILE
                | feature::HOST_IDENTIFIER
        );
        if everywhere || io_only && self.controller_type == ControllerType::Io {
            Ok(())
        } else {
            Err(Status::InvalidField)
        }
    }
}
