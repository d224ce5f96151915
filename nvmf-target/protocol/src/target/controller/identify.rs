//! Identify (Base 5.17).

use alloc::string::String;
use alloc::vec::Vec;

use super::events::REQUESTS_MAX;
use super::log_pages::ERROR_ENTRIES;
use super::{Controller, KEEP_ALIVE_GRANULARITY_100MS, QUEUE_ENTRIES_MAX, Service};
use crate::target::subsystem::{NAMESPACES_MAX, Namespace, Subsystem};
use crate::wire::fabrics::DISCOVERY_NQN;
use crate::wire::feature::event;
use crate::wire::identify::{
    ANACAP, CMIC_SHARED_WITH_ANA, CSI_NVM, CTRATT, CommandLimits, ControllerType, FRMW_ONE_READ_ONLY_SLOT,
    IDENTIFY_SIZE, IdentifyController, IdentifyNamespace, LPA, ONCS, SGLS, VWC, cns, encode_command_sets,
    encode_independent_namespace, encode_namespace_descriptors, encode_namespace_list,
};
use crate::wire::property::VERSION_2_0;
use crate::wire::{Status, Submission};

/// The NSID that means "all namespaces".
const ALL_NAMESPACES: u32 = 0xffff_ffff;
/// Aborts that may be in flight (ACL).
const ABORT_LIMIT: u16 = 4;
/// Longest change of an ANA state, after which the host gives up on the path (ANATT), in seconds.
const ANA_TRANSITION_S: u8 = 10;
/// Names of the discovery controller.
const DISCOVERY_MODEL: &str = "Ashlar Discovery";
/// Ranges and deallocations come in units of this many bytes; NPDG and the like announce it.
const PREFERRED_BYTES: u32 = 4096;
/// A whole cluster: writes of this size need no read of older data (NOWS).
const OPTIMAL_WRITE_BYTES: u32 = 64 << 10;

impl Controller {
    /// The data structure that an Identify asks for.
    pub(super) fn identify(&self, entry: &Submission, service: &Service<'_>) -> Result<Vec<u8>, Status> {
        let structure = entry.dword(10) as u8;
        match service {
            Service::Discovery { .. } if structure == cns::CONTROLLER => Ok(self.discovery_controller().encode()),
            Service::Discovery { .. } => Err(Status::InvalidField),
            Service::Nvm { subsystem, .. } => self.identify_nvm(structure, entry, subsystem),
        }
    }

    fn identify_nvm(&self, structure: u8, entry: &Submission, subsystem: &Subsystem) -> Result<Vec<u8>, Status> {
        let id = entry.namespace();
        let nvm_only = || {
            // CSI, CDW11 31:24.
            if (entry.dword(11) >> 24) as u8 == CSI_NVM { Ok(()) } else { Err(Status::InvalidField) }
        };
        match structure {
            cns::NAMESPACE => of_namespace(id, subsystem, |namespace| namespace_page(id, namespace)),
            cns::CONTROLLER => Ok(self.io_controller(subsystem).encode()),
            cns::ACTIVE_NAMESPACES => namespaces_above(id, subsystem),
            cns::NAMESPACE_DESCRIPTORS => {
                let namespace = subsystem.namespace(id).ok_or(Status::InvalidNamespaceOrFormat)?;
                Ok(encode_namespace_descriptors(&namespace.nguid, &namespace.uuid))
            }
            // No protection information, so nothing to say beyond CNS 00h (NVM 4.1.5.3).
            cns::COMMAND_SET_NAMESPACE => {
                nvm_only()?;
                of_namespace(id, subsystem, |_| empty())
            }
            cns::COMMAND_SET_CONTROLLER => {
                nvm_only()?;
                Ok(COMMAND_LIMITS.encode())
            }
            cns::COMMAND_SET_ACTIVE_NAMESPACES => {
                nvm_only()?;
                namespaces_above(id, subsystem)
            }
            cns::INDEPENDENT_NAMESPACE => of_namespace(id, subsystem, |_| encode_independent_namespace(id)),
            cns::COMMAND_SETS => Ok(encode_command_sets()),
            _ => Err(Status::InvalidField),
        }
    }

    fn io_controller(&self, subsystem: &Subsystem) -> IdentifyController {
        let atomic_bytes = |namespace: &Namespace| u64::from(namespace.atomic_blocks) << namespace.block_size.shift();
        // AWUN counts in blocks of a namespace's own size and must hold for all of them: the least, in the largest blocks.
        let atomic = subsystem.namespaces().map(|(_, namespace)| atomic_bytes(namespace) / 4096).min().unwrap_or(1);
        IdentifyController {
            serial: subsystem.serial().into(),
            model: subsystem.model().into(),
            firmware: subsystem.firmware().into(),
            multipath: CMIC_SHARED_WITH_ANA,
            max_transfer_shift: (self.limits.transfer / 4096).ilog2() as u8,
            events: event::NAMESPACE_CHANGED | event::ANA_CHANGED,
            controller_type: ControllerType::Io,
            abort_limit: ABORT_LIMIT,
            capacity: subsystem.capacity(),
            ana_transition_s: ANA_TRANSITION_S,
            ana_capabilities: ANACAP,
            ana_groups: NAMESPACES_MAX,
            namespaces: NAMESPACES_MAX,
            optional_commands: ONCS,
            volatile_write_cache: VWC,
            atomic_blocks: atomic.clamp(1, 65_536) as u32,
            subsystem_nqn: subsystem.nqn().into(),
            command_capsule_16: (64 + self.limits.io_capsule_data) / 16,
            response_capsule_16: 1,
            ..self.common_controller()
        }
    }

    fn discovery_controller(&self) -> IdentifyController {
        IdentifyController {
            model: DISCOVERY_MODEL.into(),
            firmware: env!("CARGO_PKG_VERSION").into(),
            max_transfer_shift: (self.limits.transfer / 4096).ilog2() as u8,
            events: event::DISCOVERY_CHANGED,
            controller_type: ControllerType::Discovery,
            subsystem_nqn: DISCOVERY_NQN.into(),
            ..self.common_controller()
        }
    }

    /// What holds for every controller, with nothing optional.
    fn common_controller(&self) -> IdentifyController {
        IdentifyController {
            serial: String::new(),
            model: String::new(),
            firmware: String::new(),
            multipath: 0,
            max_transfer_shift: 0,
            controller_id: self.id,
            version: VERSION_2_0,
            events: 0,
            attributes: CTRATT,
            controller_type: self.controller_type,
            abort_limit: 1,
            event_request_limit: REQUESTS_MAX as u16,
            firmware_updates: FRMW_ONE_READ_ONLY_SLOT,
            log_page_attributes: LPA,
            error_log_entries: ERROR_ENTRIES as u16,
            capacity: 0,
            keep_alive_granularity_100ms: KEEP_ALIVE_GRANULARITY_100MS,
            ana_transition_s: 0,
            ana_capabilities: 0,
            ana_groups: 0,
            max_commands: QUEUE_ENTRIES_MAX as u16,
            namespaces: 0,
            optional_commands: 0,
            volatile_write_cache: 0,
            atomic_blocks: 1,
            sgl_support: SGLS,
            subsystem_nqn: String::new(),
            command_capsule_16: 0,
            response_capsule_16: 0,
        }
    }
}

/// No limits but those of the commands' own fields.
const COMMAND_LIMITS: CommandLimits =
    CommandLimits { write_zeroes_shift: 0, dataset_ranges: 0, dataset_range_blocks: 0, dataset_blocks: 0 };

fn empty() -> Vec<u8> {
    alloc::vec![0; IDENTIFY_SIZE]
}

/// A structure about one namespace: all zero when it is not active (Base 5.17.2.2).
fn of_namespace(id: u32, subsystem: &Subsystem, encode: impl FnOnce(&Namespace) -> Vec<u8>) -> Result<Vec<u8>, Status> {
    if id == 0 || id > NAMESPACES_MAX {
        return Err(Status::InvalidNamespaceOrFormat);
    }
    Ok(subsystem.namespace(id).map_or_else(empty, encode))
}

fn namespaces_above(id: u32, subsystem: &Subsystem) -> Result<Vec<u8>, Status> {
    if id >= ALL_NAMESPACES - 1 {
        return Err(Status::InvalidNamespaceOrFormat);
    }
    Ok(encode_namespace_list(subsystem.namespaces().map(|(active, _)| active).filter(|active| *active > id)))
}

fn namespace_page(id: u32, namespace: &Namespace) -> Vec<u8> {
    let shift = namespace.block_size.shift();
    IdentifyNamespace {
        blocks: namespace.blocks,
        used_blocks: namespace.used_blocks.min(namespace.blocks),
        thin: true,
        block_shift: shift,
        atomic_blocks: namespace.atomic_blocks,
        preferred_blocks: PREFERRED_BYTES >> shift,
        optimal_write_blocks: OPTIMAL_WRITE_BYTES >> shift,
        ana_group: id,
        nguid: namespace.nguid,
    }
    .encode()
}
