//! Get Log Page (Base 5.16).

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use super::{AdminCommand, Controller, Outcome, Service};
use crate::target::subsystem::Subsystem;
use crate::wire::discovery::encode_discovery;
use crate::wire::identify::encode_namespace_list;
use crate::wire::log_page::{
    self, ERROR_ENTRY_SIZE, ErrorEntry, GetLogPage, Health, Notice, encode_ana, encode_effects, encode_firmware,
};
use crate::wire::{Status, opcode};

/// Errors that the Error Information page remembers (ELPE).
pub(super) const ERROR_ENTRIES: usize = 64;

/// LSP bit 0 of the ANA page: Return Groups Only (RGO).
const GROUPS_ONLY: u8 = 1;

/// The latest errors, newest first.
pub(super) struct ErrorLog {
    /// At most [`ERROR_ENTRIES`].
    entries: VecDeque<ErrorEntry>,
    count: u64,
}

impl ErrorLog {
    pub(super) fn new() -> Self {
        Self { entries: VecDeque::new(), count: 0 }
    }

    pub(super) fn record(&mut self, entry: ErrorEntry) {
        self.count += 1;
        self.entries.truncate(ERROR_ENTRIES - 1);
        self.entries.push_front(ErrorEntry { error_count: self.count, ..entry });
    }

    fn page(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.entries.iter().flat_map(ErrorEntry::encode).collect();
        bytes.resize(ERROR_ENTRIES * ERROR_ENTRY_SIZE, 0);
        bytes
    }
}

impl Controller {
    pub(super) fn get_log_page(
        &mut self,
        command: &AdminCommand<'_>,
        service: &Service<'_>,
    ) -> Result<Outcome, Status> {
        let request = GetLogPage::parse(command.entry);
        if request.offset_is_index || !request.offset.is_multiple_of(4) {
            return Err(Status::InvalidField);
        }
        if request.length > u64::from(self.limits.transfer) {
            return Err(Status::InvalidField);
        }
        if request.length > u64::from(command.transfer.length()) {
            return Err(Status::DataSglLengthInvalid);
        }
        let page = match service {
            Service::Nvm { subsystem, health } => self.nvm_page(&request, subsystem, health)?,
            Service::Discovery { generation, entries } if request.page == log_page::DISCOVERY => {
                self.read(Notice::DiscoveryChanged, &request);
                encode_discovery(*generation, entries)
            }
            Service::Discovery { .. } => return Err(Status::InvalidLogPage),
        };
        cut(page, &request).map(|bytes| Outcome::Data { bytes, result: 0 })
    }

    fn nvm_page(&mut self, request: &GetLogPage, subsystem: &Subsystem, health: &Health) -> Result<Vec<u8>, Status> {
        Ok(match request.page {
            log_page::ERROR => self.errors.page(),
            log_page::HEALTH => Health { error_log_entries: self.errors.count, ..*health }.encode(),
            log_page::FIRMWARE => encode_firmware(subsystem.firmware()),
            log_page::CHANGED_NAMESPACES => {
                let changed = self.events.changed_namespaces(!request.retain_event);
                self.read(Notice::NamespaceChanged, request);
                encode_namespace_list(changed.into_iter())
            }
            log_page::EFFECTS => encode_effects(&ADMIN_COMMANDS, &IO_READS, &IO_WRITES),
            log_page::ANA => {
                self.read(Notice::AnaChanged, request);
                let (change_count, groups) = subsystem.ana();
                encode_ana(change_count, &groups, request.parameter & GROUPS_ONLY != 0)
            }
            _ => return Err(Status::InvalidLogPage),
        })
    }

    /// The host has seen what `notice` told it of, unless it asked to retain the event.
    fn read(&mut self, notice: Notice, request: &GetLogPage) {
        if !request.retain_event {
            self.events.unmask(notice);
        }
    }
}

const ADMIN_COMMANDS: [u8; 8] = [
    opcode::GET_LOG_PAGE,
    opcode::IDENTIFY,
    opcode::ABORT,
    opcode::SET_FEATURES,
    opcode::GET_FEATURES,
    opcode::ASYNC_EVENT_REQUEST,
    opcode::KEEP_ALIVE,
    opcode::FABRICS,
];
const IO_READS: [u8; 3] = [opcode::READ, opcode::COMPARE, opcode::FLUSH];
const IO_WRITES: [u8; 3] = [opcode::WRITE, opcode::WRITE_ZEROES, opcode::DATASET_MANAGEMENT];

/// The part of a page that was asked for; zeros beyond its end.
fn cut(mut page: Vec<u8>, request: &GetLogPage) -> Result<Vec<u8>, Status> {
    let offset = usize::try_from(request.offset).ok().filter(|offset| *offset <= page.len());
    page.drain(..offset.ok_or(Status::InvalidField)?);
    // Checked against MDTS by the caller.
    page.resize(request.length as usize, 0);
    Ok(page)
}
