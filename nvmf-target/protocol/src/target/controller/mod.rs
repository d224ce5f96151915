//! One controller: what Connect to the admin queue makes and the loss of that queue ends. Admin commands go in,
//! completions and data come out; time comes in as nanoseconds of any clock that never goes back.
//!
//! # Call order
//! [`Controller::connect`] for a Connect with queue 0, [`Controller::connect_queue`] for each further queue. Commands of
//! the admin queue go to [`Controller::execute`]. After that, and after [`Controller::notify`], drain
//! [`Controller::next_completion`]: Asynchronous Event Requests that are answered now. Call [`Controller::touch`] when
//! any command of any queue arrived, and check [`Controller::is_expired`] no later than [`Controller::deadline_ns`].
//!
//! # States
//! ```text
//!            CC.EN 0→1, valid                  CC.SHN
//! disabled ────────────────────▶ ready ─────────────────────▶ shut down
//!    ▲  │  CC.EN 0→1, invalid      │                              │
//!    │  └─────────────▶ failed     │ CC.EN 1→0                    │ CC.EN 1→0
//!    └──────────────────────┴──────┴──────────────────────────────┘
//! ```
//! Only a ready controller executes commands other than Fabrics and Keep Alive. After `ready → disabled` its I/O queues
//! are gone: the driver closes their connections ([`Controller::is_ready`]).

mod events;
mod features;
mod identify;
mod log_pages;

use alloc::string::String;
use alloc::vec::Vec;

use self::events::Events;
use self::features::Features;
use self::log_pages::ErrorLog;
use super::connection::{Queue, SLOTS_MAX, Slot, Transfer};
use super::subsystem::Subsystem;
use crate::wire::discovery::DiscoveryEntry;
use crate::wire::fabrics::{
    CONNECT, CONTROLLER_ANY, ConnectCommand, ConnectData, InvalidParameter, PROPERTY_GET, PROPERTY_SET,
    PropertyCommand, connect_field,
};
use crate::wire::identify::ControllerType;
use crate::wire::log_page::{ErrorEntry, Health, Notice};
use crate::wire::property::{self, Capabilities, Configuration, ShutdownNotification, csts};
use crate::wire::{Completion, Status, Submission, opcode};

/// Most I/O queues of one controller.
pub const IO_QUEUES_MAX: u16 = 128;
/// Most entries of a queue (CAP.MQES, MAXCMD).
pub const QUEUE_ENTRIES_MAX: u32 = SLOTS_MAX as u32;
/// Fewest entries that Fabrics requires an admin queue to offer (Base 3.3.1, ASQSZ).
pub const ADMIN_QUEUE_ENTRIES: u16 = 32;
/// Granularity of the Keep Alive Timer (KAS), in 100 ms.
const KEEP_ALIVE_GRANULARITY_100MS: u16 = 10;
const KEEP_ALIVE_GRANULARITY_MS: u64 = KEEP_ALIVE_GRANULARITY_100MS as u64 * 100;
/// Worst time to become ready (CAP.TO), in 500 ms. Enabling is immediate.
const READY_TIMEOUT_500MS: u8 = 15;

/// What a controller serves.
#[derive(Clone, Copy, Debug)]
pub enum Service<'a> {
    /// An NVM subsystem.
    Nvm {
        /// Names and namespaces.
        subsystem: &'a Subsystem,
        /// The subsystem's counters.
        health: &'a Health,
    },
    /// The discovery service.
    Discovery {
        /// Changes whenever `entries` do (GENCTR).
        generation: u64,
        /// What this host may connect to.
        entries: &'a [DiscoveryEntry],
    },
}

/// An admin command. None that is supported takes data from the host: what a host sends with one is dropped.
#[derive(Clone, Copy, Debug)]
pub struct AdminCommand<'a> {
    /// Its place on the admin queue's connection.
    pub slot: Slot,
    /// The submission queue entry.
    pub entry: &'a Submission,
    /// How its data moves.
    pub transfer: Transfer,
}

/// What to do with an admin command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Respond.
    Complete(Completion),
    /// Send the data, then respond with success and `result`.
    Data {
        /// At most the transfer's length.
        bytes: Vec<u8>,
        /// Completion dwords 0 and 1.
        result: u64,
    },
    /// Nothing now: [`Controller::next_completion`] will answer it.
    Held,
}

impl From<Completion> for Outcome {
    fn from(completion: Completion) -> Self {
        Self::Complete(completion)
    }
}

/// A controller. See the module for the order of calls.
pub struct Controller {
    id: u16,
    controller_type: ControllerType,
    host_nqn: String,
    host_id: [u8; 16],
    configuration: Configuration,
    status: u32,
    /// Bit n: I/O queue n + 1 is connected.
    io_queues: u128,
    keep_alive: KeepAlive,
    events: Events,
    features: Features,
    errors: ErrorLog,
    limits: IdentifyLimits,
}

/// Limits of the driver that Identify announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdentifyLimits {
    /// Most data of one command in bytes: a power of two of at least 4096 (MDTS).
    pub transfer: u32,
    /// Most in-capsule data on an I/O queue in bytes: a multiple of 16 (IOCCSZ).
    pub io_capsule_data: u32,
}

impl Controller {
    /// Makes the controller that a Connect to queue 0 asks for; `id` is unused in the subsystem (I37).
    ///
    /// # Errors
    /// The completion to answer the Connect with.
    pub fn connect(
        id: u16,
        controller_type: ControllerType,
        limits: IdentifyLimits,
        command: &ConnectCommand,
        data: &ConnectData,
        now_ns: u64,
    ) -> Result<(Self, Queue), Completion> {
        if data.controller_id != CONTROLLER_ANY {
            // Dynamic controllers only (Base 6.3).
            return Err(invalid_parameter(InvalidParameter::data(connect_field::CONTROLLER_ID)));
        }
        let queue = check_queue(command, 0..=0)?;
        let controller = Self {
            id,
            controller_type,
            host_nqn: data.host_nqn.clone(),
            host_id: data.host_id,
            configuration: Configuration::default(),
            status: 0,
            io_queues: 0,
            keep_alive: KeepAlive::new(command.keep_alive_ms, now_ns),
            events: Events::new(),
            features: Features::new(),
            errors: ErrorLog::new(),
            limits,
        };
        Ok((controller, queue))
    }

    /// Adds the I/O queue that a Connect asks for.
    ///
    /// # Errors
    /// The completion to answer the Connect with: another host, a queue that exists or may not exist, or a controller
    /// that is not ready.
    pub fn connect_queue(&mut self, command: &ConnectCommand, data: &ConnectData) -> Result<Queue, Completion> {
        if data.host_nqn != self.host_nqn {
            return Err(invalid_parameter(InvalidParameter::data(connect_field::HOST_NQN)));
        }
        if data.host_id != self.host_id {
            return Err(invalid_parameter(InvalidParameter::data(connect_field::HOST_ID)));
        }
        if self.controller_type != ControllerType::Io {
            return Err(invalid_parameter(InvalidParameter::entry(connect_field::QUEUE_ID)));
        }
        if !self.is_ready() {
            return Err(Status::CommandSequenceError.into());
        }
        let queue = check_queue(command, 1..=self.features.io_queues())?;
        let bit = 1 << (queue.id - 1);
        if self.io_queues & bit != 0 {
            // A queue that is connected already (Base 6.3).
            return Err(Status::CommandSequenceError.into());
        }
        self.io_queues |= bit;
        Ok(queue)
    }

    /// An I/O queue's connection is gone; it may be connected again.
    pub fn disconnect_queue(&mut self, id: u16) {
        if (1..=IO_QUEUES_MAX).contains(&id) {
            self.io_queues &= !(1 << (id - 1));
        }
    }

    /// Controller ID (CNTLID).
    pub fn id(&self) -> u16 {
        self.id
    }

    /// Host NVMe Qualified Name (HOSTNQN).
    pub fn host_nqn(&self) -> &str {
        &self.host_nqn
    }

    /// Whether I/O commands may run (CSTS.RDY).
    pub fn is_ready(&self) -> bool {
        self.status & csts::READY != 0
    }

    /// Whether writes may complete from a volatile cache. When not, every write is to be made durable (FUA).
    pub fn write_cache_enabled(&self) -> bool {
        self.features.write_cache()
    }

    /// A command of any queue arrived: the Keep Alive Timer starts anew (CTRATT.TBKAS, traffic based keep alive).
    pub fn touch(&mut self, now_ns: u64) {
        self.keep_alive.last_ns = now_ns;
    }

    /// When the Keep Alive Timer expires, if it runs.
    pub fn deadline_ns(&self) -> Option<u64> {
        self.keep_alive.deadline_ns()
    }

    /// Whether the host has been silent for too long: every connection of the controller is to be closed.
    pub fn is_expired(&self, now_ns: u64) -> bool {
        self.deadline_ns().is_some_and(|deadline_ns| now_ns >= deadline_ns)
    }

    /// Something changed that the host may want to know; `namespace` for [`Notice::NamespaceChanged`], else 0.
    pub fn notify(&mut self, notice: Notice, namespace: u32) {
        self.events.notify(notice, namespace);
    }

    /// The next held command that is answered now.
    pub fn next_completion(&mut self) -> Option<(Slot, Completion)> {
        self.events.next_completion(self.features.event_mask())
    }

    /// Notes a failed command for the Error Information log page.
    pub fn record_error(&mut self, queue_id: u16, entry: &Submission, status: Status) {
        self.errors.record(ErrorEntry {
            error_count: 0,
            queue_id,
            command_id: entry.command_id(),
            status,
            block: entry.starting_block(),
            namespace: entry.namespace(),
        });
    }

    /// Executes a command of the admin queue.
    pub fn execute(&mut self, command: &AdminCommand<'_>, service: &Service<'_>, now_ns: u64) -> Outcome {
        self.touch(now_ns);
        let outcome = self.dispatch(command, service).unwrap_or_else(|status| Completion::error(status).into());
        if let Outcome::Complete(Completion { status, .. }) = outcome
            && status != Status::Success
        {
            self.record_error(0, command.entry, status);
        }
        outcome
    }

    fn dispatch(&mut self, command: &AdminCommand<'_>, service: &Service<'_>) -> Result<Outcome, Status> {
        let entry = command.entry;
        if entry.fuse() != 0 {
            return Err(Status::InvalidField);
        }
        match entry.opcode() {
            opcode::FABRICS => return self.fabrics(entry).map(Outcome::from),
            opcode::KEEP_ALIVE => return Ok(Completion::SUCCESS.into()),
            _ if !self.is_ready() => return Err(Status::CommandSequenceError),
            _ => {}
        }
        match entry.opcode() {
            opcode::IDENTIFY => sent(self.identify(entry, service)?, command.transfer),
            opcode::GET_LOG_PAGE => self.get_log_page(command, service),
            opcode::GET_FEATURES => self.get_features(command),
            opcode::SET_FEATURES => self.set_features(entry).map(Outcome::from),
            opcode::ASYNC_EVENT_REQUEST => self.events.request(command.slot, entry.command_id()),
            opcode::ABORT if self.controller_type == ControllerType::Io => Ok(self.abort(entry).into()),
            _ => Err(Status::InvalidOpcode),
        }
    }

    fn fabrics(&mut self, entry: &Submission) -> Result<Completion, Status> {
        let property = PropertyCommand::parse(entry);
        match entry.fabrics_type() {
            PROPERTY_GET => self.property(&property).map(Completion::with_result),
            PROPERTY_SET => self.set_property(&property).map(|()| Completion::SUCCESS),
            // The queue is connected already.
            CONNECT => Err(Status::CommandSequenceError),
            _ => Err(Status::InvalidOpcode),
        }
    }

    fn property(&self, command: &PropertyCommand) -> Result<u64, Status> {
        let capabilities =
            Capabilities { max_queue_entries: QUEUE_ENTRIES_MAX, ready_timeout_500ms: READY_TIMEOUT_500MS };
        match (command.offset, command.size) {
            (property::CAP, 8) => Ok(capabilities.encode()),
            (property::VS, 4) => Ok(u64::from(property::VERSION_2_0)),
            (property::CC, 4) => Ok(u64::from(self.configuration.0)),
            (property::CSTS, 4) => Ok(u64::from(self.status)),
            (property::NSSR, 4) => Ok(0),
            // CRWMT, bits 15:0, in 500 ms like CAP.TO.
            (property::CRTO, 4) => Ok(u64::from(READY_TIMEOUT_500MS)),
            _ => Err(Status::InvalidField),
        }
    }

    fn set_property(&mut self, command: &PropertyCommand) -> Result<(), Status> {
        if (command.offset, command.size) != (property::CC, 4) {
            return Err(Status::InvalidField);
        }
        // A property of four bytes: the upper half is reserved.
        let configuration = Configuration(command.value as u32);
        let was_enabled = self.configuration.enabled();
        self.configuration = configuration;
        match (was_enabled, configuration.enabled()) {
            (false, true) => self.enable(),
            (true, false) => self.reset(),
            _ => {}
        }
        if configuration.shutdown() == ShutdownNotification::Shutdown {
            self.status |= csts::SHUTDOWN_COMPLETE;
        }
        Ok(())
    }

    fn enable(&mut self) {
        let configuration = self.configuration;
        // NVM, all supported command sets, or admin only; round robin; pages of 4 KiB.
        let supported = matches!(configuration.command_sets(), 0b000 | 0b110 | 0b111)
            && configuration.arbitration() == 0
            && configuration.memory_page_shift() == 12;
        self.status = if supported { csts::READY } else { csts::FATAL };
    }

    fn reset(&mut self) {
        self.status = 0;
        self.io_queues = 0;
        self.features = Features::new();
    }

    /// Best effort (Base 5.1): only a held Asynchronous Event Request can be aborted; bit 0 says "not aborted".
    fn abort(&mut self, entry: &Submission) -> Completion {
        let (queue_id, command_id) = (entry.dword(10) & 0xffff, (entry.dword(10) >> 16) as u16);
        let aborted = queue_id == 0 && self.events.abort(command_id);
        Completion::with_result(u64::from(!aborted))
    }
}

/// A data structure as the outcome of a command that asked for it. The host's buffer may be longer.
fn sent(bytes: Vec<u8>, transfer: Transfer) -> Result<Outcome, Status> {
    if (transfer.length() as usize) < bytes.len() {
        return Err(Status::DataSglLengthInvalid);
    }
    Ok(Outcome::Data { bytes, result: 0 })
}

fn invalid_parameter(parameter: InvalidParameter) -> Completion {
    Completion { result: parameter.to_result(), status: Status::ConnectInvalidParameters }
}

/// Checks what a Connect says about its queue.
fn check_queue(command: &ConnectCommand, ids: core::ops::RangeInclusive<u16>) -> Result<Queue, Completion> {
    if command.record_format != 0 {
        return Err(Status::IncompatibleFormat.into());
    }
    if !ids.contains(&command.queue_id) {
        return Err(invalid_parameter(InvalidParameter::entry(connect_field::QUEUE_ID)));
    }
    // SQSIZE 0, one entry, is not allowed.
    if !(2..=QUEUE_ENTRIES_MAX).contains(&command.queue_entries) {
        return Err(invalid_parameter(InvalidParameter::entry(connect_field::QUEUE_SIZE)));
    }
    Ok(Queue {
        id: command.queue_id,
        entries: command.queue_entries,
        flow_control_disabled: command.flow_control_disabled,
    })
}

/// The Keep Alive Timer (Base 3.9).
#[derive(Clone, Copy, Debug)]
struct KeepAlive {
    /// Keep Alive Timeout (KATO) as the host set it, in milliseconds; 0 when the timer is off.
    timeout_ms: u32,
    last_ns: u64,
}

impl KeepAlive {
    fn new(timeout_ms: u32, now_ns: u64) -> Self {
        Self { timeout_ms, last_ns: now_ns }
    }

    /// KATO rounded up to the granularity, and one granule more for a host that sends at the last moment.
    fn deadline_ns(&self) -> Option<u64> {
        let granules = u64::from(self.timeout_ms).div_ceil(KEEP_ALIVE_GRANULARITY_MS) + 1;
        (self.timeout_ms > 0).then(|| self.last_ns.saturating_add(granules * KEEP_ALIVE_GRANULARITY_MS * 1_000_000))
    }
}
