//! The logical unit: what it is, who uses it, and what it does with a command.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;
use core::mem;

use crate::attention::{Attention, Pending};
use crate::bytes::{cut, put};
use crate::command::{Access, Blocks, CDB_LENGTH, Command};
use crate::copy::{Copy, CopyResult, Results, operating_parameters};
use crate::inquiry::{self, Identity};
use crate::log::Space;
use crate::mode::Mode;
use crate::opcodes::{Operation, report_all, report_one};
use crate::ports::{self, AccessState, Group, Port};
use crate::provisioning::{capacity10, capacity16, unmap_ranges};
use crate::reservation::{Class, Effect, Nexus, Parameters, PortName, Refusal, Reservations};
use crate::sense::{Sense, Status};

/// What holds the blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Medium {
    /// Logical blocks in all; at least one.
    pub blocks: u64,
    /// Bytes of one.
    pub block_size: u32,
    /// LOGICAL BLOCKS PER PHYSICAL BLOCK EXPONENT.
    pub physical_exponent: u8,
    /// Blocks of an allocation unit.
    pub allocation_blocks: u32,
    /// MAXIMUM TRANSFER LENGTH in blocks.
    pub transfer_max: u32,
    /// MAXIMUM WRITE SAME LENGTH in blocks.
    pub write_same_max: u32,
    /// It refuses writes.
    pub read_only: bool,
}

#[cfg(test)]
impl Medium {
    pub(crate) const EXAMPLE: Self = Self {
        blocks: 1 << 20,
        block_size: 512,
        physical_exponent: 3,
        allocation_blocks: 8,
        transfer_max: 8192,
        write_same_max: 1 << 18,
        read_only: false,
    };
}

/// What an initiator is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// How the command ended.
    pub status: Status,
    /// Data-in, cut to the ALLOCATION LENGTH.
    pub data: Vec<u8>,
    /// Why it ended with CHECK CONDITION.
    pub sense: Option<Sense>,
}

impl Response {
    /// GOOD with data-in.
    pub const fn good(data: Vec<u8>) -> Self {
        Self { status: Status::Good, data, sense: None }
    }

    /// CHECK CONDITION.
    pub const fn check(sense: Sense) -> Self {
        Self { status: Status::CheckCondition, data: Vec::new(), sense: Some(sense) }
    }

    /// BUSY: to be tried again.
    pub const fn busy() -> Self {
        Self::of_status(Status::Busy)
    }

    const fn of_status(status: Status) -> Self {
        Self { status, data: Vec::new(), sense: None }
    }
}

impl From<Refusal> for Response {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Conflict => Self::of_status(Status::ReservationConflict),
            Refusal::Check(sense) => Self::check(sense),
        }
    }
}

/// The soft threshold of provisioning: less space than this part of the unit's blocks is little.
const LITTLE_SPACE: u64 = 16;

/// What is to be done for a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Answer.
    Respond(Response),
    /// Let the medium do it.
    Access(Access),
    /// Unmap these blocks.
    Unmap(Vec<Blocks>),
    /// Copy; then tell [`LogicalUnit::copied`].
    Copy(Copy),
    /// Make the reservations durable ([`LogicalUnit::reservations`]), abort the commands of these nexuses, then answer GOOD.
    Persist {
        /// Whose commands are aborted.
        abort: Vec<NexusId>,
        /// What to go back to if they cannot be made durable ([`LogicalUnit::restore_reservations`]).
        before: Reservations,
    },
}

/// An I_T nexus as long as it lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NexusId(u64);

/// An attached I_T nexus.
struct Attached {
    name: Nexus,
    group: u16,
    attentions: Pending,
    copies: Results,
}

/// A logical unit (LUN 0 of its target). All calls come from one thread.
///
/// Call order for a command: [`start`](Self::start), then with all of its data-out [`run`](Self::run).
pub struct LogicalUnit {
    identity: Identity,
    medium: Medium,
    space: Space,
    /// Less than a part of [`LITTLE_SPACE`] of the unit is left.
    has_little_space: bool,
    mode: Mode,
    groups: Vec<Group>,
    reservations: Reservations,
    nexuses: BTreeMap<NexusId, Attached>,
    next_nexus: u64,
}

impl LogicalUnit {
    /// A unit that nobody uses yet. `reservations` are those it had (I38).
    pub fn new(identity: Identity, medium: Medium, groups: Vec<Group>, reservations: Reservations) -> Self {
        let (space, mode) = (Space::default(), Mode::default());
        let (nexuses, next_nexus, has_little_space) = (BTreeMap::new(), 0, false);
        Self { identity, medium, space, has_little_space, mode, groups, reservations, nexuses, next_nexus }
    }

    /// The medium as it is described to initiators.
    pub fn medium(&self) -> &Medium {
        &self.medium
    }

    /// Whether every write is to be durable before it completes: the write cache is off (I4).
    #[inline]
    pub fn forces_unit_access(&self) -> bool {
        !self.mode.write_cache
    }

    /// What is to be durable of the reservations.
    pub fn reservations(&self) -> &Reservations {
        &self.reservations
    }

    /// Goes back to reservations that are durable: newer ones cannot be made so.
    pub fn restore_reservations(&mut self, before: Reservations) {
        self.reservations = before;
    }

    /// Sense data in the format that the initiators asked for.
    pub fn encode_sense(&self, sense: &Sense) -> Vec<u8> {
        sense.encode(self.mode.descriptor_sense)
    }

    /// An initiator port comes to the unit through a target port.
    pub fn attach(&mut self, initiator: PortName, port: Port) -> NexusId {
        let id = NexusId(self.next_nexus);
        self.next_nexus += 1;
        let name = Nexus { initiator, port: port.relative };
        let mut attentions = Pending::default();
        attentions.raise(Attention::PowerOn);
        self.nexuses.insert(id, Attached { name, group: port.group, attentions, copies: Results::default() });
        id
    }

    /// I_T nexus loss (SAM 6.3.4): what belongs to the session goes with it. Registrations stay.
    pub fn detach(&mut self, id: NexusId) {
        if let Some(attached) = self.nexuses.remove(&id) {
            self.reservations.release(&attached.name);
        }
    }

    /// Logical unit reset, or a reset of the target, that `by` asked for (SAM 6.3.3). Running commands are the caller's to
    /// abort.
    pub fn reset(&mut self, by: Option<NexusId>) {
        self.reservations.reset();
        self.mode = Mode::default();
        self.tell(by, Attention::Reset);
    }

    /// Takes over a medium that has changed, and tells the initiators (I39: after it is durable).
    pub fn set_medium(&mut self, medium: Medium) {
        if self.medium.blocks != medium.blocks {
            self.tell(None, Attention::CapacityChanged);
        }
        self.medium = medium;
    }

    /// Takes over what space there is. Initiators are told when little is left, once until there is more again (SBC 4.7.3.8).
    pub fn set_space(&mut self, space: Space) {
        self.space = space;
        let little = space.available < self.medium.blocks / LITTLE_SPACE;
        let had_little = mem::replace(&mut self.has_little_space, little);
        if little && !had_little {
            self.tell(None, Attention::ThinThreshold);
        }
    }

    /// Tells all initiators but `except`.
    pub fn tell(&mut self, except: Option<NexusId>, attention: Attention) {
        let others = self.nexuses.iter_mut().filter(|(id, _)| Some(**id) != except);
        others.for_each(|(_, attached)| attached.attentions.raise(attention));
    }

    /// Sets what the ports of a group can do, and tells the initiators.
    pub fn set_access_state(&mut self, group: u16, state: AccessState) {
        let group = self.groups.iter_mut().find(|known| known.id == group);
        if let Some(group) = group.filter(|group| group.state != state) {
            group.state = state;
            self.tell(None, Attention::AccessStateChanged);
        }
    }

    /// Takes a CDB of a nexus. Its data-out, [`Command::data_out`] bytes, is then to be given to [`run`](Self::run).
    ///
    /// # Errors
    /// The answer, if the command is refused before its data is needed.
    ///
    /// # Panics
    /// If the nexus is not attached.
    #[inline]
    pub fn start(&mut self, nexus: NexusId, cdb: &[u8; CDB_LENGTH]) -> Result<Command, Response> {
        let attached = self.nexuses.get_mut(&nexus).expect("a nexus that is attached");
        // Attentions come before all else, but for the three commands that never fail by them (SAM 5.14.1).
        if !matches!(cdb[0], INQUIRY | REPORT_LUNS | REQUEST_SENSE)
            && let Some(attention) = attached.attentions.take()
        {
            return Err(Response::check(attention.sense()));
        }
        let command = Command::parse(cdb, &self.medium).map_err(Response::check)?;
        let class = Class::of(&command);
        if needs_medium(&command, class)
            && let Some(group) = self.groups.iter().find(|group| group.id == attached.group)
            && let Some(sense) = group.state.refusal()
        {
            return Err(Response::check(sense));
        }
        if self.reservations.refuses(&attached.name, class) {
            return Err(Response::of_status(Status::ReservationConflict));
        }
        if command.writes() {
            self.check_writable().map_err(Response::check)?;
        }
        Ok(command)
    }

    fn check_writable(&self) -> Result<(), Sense> {
        if self.mode.write_protected {
            return Err(Sense::SOFTWARE_WRITE_PROTECTED);
        }
        if self.medium.read_only { Err(Sense::WRITE_PROTECTED) } else { Ok(()) }
    }

    /// Carries out a command with its data-out, or says what the medium has to do for it.
    ///
    /// # Panics
    /// If the nexus is not attached.
    #[inline]
    pub fn run(&mut self, nexus: NexusId, command: &Command, data: &[u8]) -> Action {
        if let Command::Access(access) = command {
            return Action::Access(*access);
        }
        self.run_control(nexus, command, data).unwrap_or_else(Action::Respond)
    }

    fn run_control(&mut self, nexus: NexusId, command: &Command, data: &[u8]) -> Result<Action, Response> {
        match *command {
            Command::Unmap { .. } => Ok(Action::Unmap(unmap_ranges(data, &self.medium).map_err(Response::check)?)),
            Command::ExtendedCopy { .. } => {
                Copy::parse(data, &self.identity, &self.medium).map(Action::Copy).map_err(Response::check)
            }
            Command::ModeSelect { long, .. } => {
                let selected = self.mode.select(data, long, &self.medium).map_err(Response::check)?;
                if selected != self.mode {
                    self.mode = selected;
                    self.tell(Some(nexus), Attention::ModeParametersChanged);
                }
                Ok(Action::Respond(Response::good(Vec::new())))
            }
            Command::PersistentReserveOut { operation, scope_and_type, .. } => {
                self.reserve_out(nexus, operation, scope_and_type, data)
            }
            Command::Reserve6 => {
                let name = self.name(nexus).clone();
                self.reservations.reserve(&name);
                Ok(Action::Respond(Response::good(Vec::new())))
            }
            Command::Release6 => {
                let name = self.name(nexus).clone();
                self.reservations.release(&name);
                Ok(Action::Respond(Response::good(Vec::new())))
            }
            Command::Prefetch => Ok(Action::Respond(Response::of_status(Status::ConditionMet))),
            _ => self.report(nexus, command).map(|data| Action::Respond(Response::good(data))).map_err(Response::check),
        }
    }

    /// Commands that only ask.
    fn report(&mut self, nexus: NexusId, command: &Command) -> Result<Vec<u8>, Sense> {
        let (data, allocation) = match *command {
            Command::RequestSense { descriptors, allocation } => {
                let attention = self.attached(nexus).attentions.take();
                (attention.map_or(Sense::NONE, Attention::sense).encode(descriptors), allocation)
            }
            Command::Inquiry { page: None, allocation } => (inquiry::standard(&self.identity), allocation),
            Command::Inquiry { page: Some(page), allocation } => {
                let port = self.port(nexus);
                let data = inquiry::vital(page, &self.identity, &self.medium, port);
                (data.ok_or(Sense::cdb_field(2, None))?, allocation)
            }
            Command::ReportLuns { select, allocation } => (luns(select)?, allocation),
            Command::ReadCapacity10 => (capacity10(&self.medium), u32::MAX),
            Command::ReadCapacity16 { allocation } => (capacity16(&self.medium), allocation),
            Command::ModeSense(sense) => (self.mode.sense(&sense, &self.medium)?, sense.allocation),
            Command::LogSense { page, pointer, allocation } => {
                (crate::log::page(page, pointer, &self.space)?, allocation)
            }
            Command::PersistentReserveIn { operation, allocation } => (self.reserve_in(operation), allocation),
            Command::ReportTargetPortGroups { extended, allocation } => {
                (ports::report(&self.groups, extended), allocation)
            }
            Command::ReportOperationCodes { options: 0, timeouts, allocation, .. } => {
                (report_all(timeouts), allocation)
            }
            Command::ReportOperationCodes { options, code, action, timeouts, allocation } => {
                (report_one(options, code, action, timeouts)?, allocation)
            }
            Command::ReceiveCopyStatus { list, allocation } => (self.attached(nexus).copies.status(list)?, allocation),
            Command::ReceiveCopyParameters { allocation } => (operating_parameters(&self.medium), allocation),
            // TEST UNIT READY; the others never get here.
            _ => (Vec::new(), 0),
        };
        Ok(cut(data, allocation))
    }

    fn reserve_in(&self, operation: Operation) -> Vec<u8> {
        match operation {
            Operation::ReadKeys => self.reservations.keys(),
            Operation::ReadReservation => self.reservations.reservation(),
            Operation::ReportCapabilities => self.reservations.capabilities(),
            _ => self.reservations.full_status(),
        }
    }

    fn reserve_out(
        &mut self,
        nexus: NexusId,
        operation: Operation,
        scope_and_type: u8,
        data: &[u8],
    ) -> Result<Action, Response> {
        let parameters = Parameters::parse(operation, data).map_err(Response::check)?;
        let name = self.name(nexus).clone();
        let before = self.reservations.clone();
        let effect = self.reservations.out(&name, operation, scope_and_type, &parameters)?;
        let abort = self.spread(nexus, &effect);
        Ok(Action::Persist { abort, before })
    }

    /// Tells the other nexuses what happened to them; those whose commands are aborted.
    fn spread(&mut self, by: NexusId, effect: &Effect) -> Vec<NexusId> {
        let mut abort = Vec::new();
        for (id, attached) in self.nexuses.iter_mut().filter(|(id, _)| **id != by) {
            if let Some(attention) = effect.attention_for(&attached.name) {
                attached.attentions.raise(attention);
            }
            if effect.aborts(&attached.name) {
                abort.push(*id);
            }
        }
        abort
    }

    /// A copy has ended; its result is kept for the nexus if its list asked for that.
    pub fn copied(&mut self, nexus: NexusId, result: CopyResult) {
        if let Some(attached) = self.nexuses.get_mut(&nexus) {
            attached.copies.keep(result);
        }
    }

    fn attached(&mut self, nexus: NexusId) -> &mut Attached {
        self.nexuses.get_mut(&nexus).expect("a nexus that is attached")
    }

    fn name(&self, nexus: NexusId) -> &Nexus {
        &self.nexuses[&nexus].name
    }

    fn port(&self, nexus: NexusId) -> Port {
        let attached = &self.nexuses[&nexus];
        Port { relative: attached.name.port, group: attached.group }
    }
}

/// Operation codes of the commands that unit attentions do not stop.
const INQUIRY: u8 = 0x12;
const REPORT_LUNS: u8 = 0xa0;
const REQUEST_SENSE: u8 = 0x03;

/// Whether a command is not served where the medium cannot be had (SPC 5.15.2.4.4).
const fn needs_medium(command: &Command, class: Class) -> bool {
    match class {
        Class::Free => false,
        Class::Harmless => !matches!(
            command,
            Command::ReportTargetPortGroups { .. } | Command::LogSense { .. } | Command::PersistentReserveIn { .. }
        ),
        Class::Reads => !matches!(command, Command::ModeSense(_) | Command::ReportOperationCodes { .. }),
        Class::Registers | Class::Writes | Class::Reserve | Class::Release => true,
    }
}

/// REPORT LUNS parameter data (SPC 6.33): LUN 0 and no well known ones.
///
/// # Errors
/// INVALID FIELD IN CDB for a SELECT REPORT that there is not.
fn luns(select: u8) -> Result<Vec<u8>, Sense> {
    let count = match select {
        0 | 2 => 1,
        1 => 0,
        _ => return Err(Sense::cdb_field(2, None)),
    };
    let mut bytes = vec![0; 8 + 8 * count];
    put(&mut bytes, 0, (8 * count as u32).to_be_bytes());
    Ok(bytes)
}

/// What a command for a logical unit number is answered where there is no unit (SPC 4.4): INQUIRY and REPORT LUNS say what
/// there is, all else is refused.
pub fn respond_without_unit(cdb: &[u8; CDB_LENGTH]) -> Response {
    match cdb[0] {
        INQUIRY if cdb[1] & 1 == 0 => {
            let allocation = u32::from(u16::from_be_bytes([cdb[3], cdb[4]]));
            Response::good(cut(inquiry::standard_of_nothing(), allocation))
        }
        REPORT_LUNS => match luns(cdb[2]) {
            Ok(data) => Response::good(cut(data, u32::from_be_bytes([cdb[6], cdb[7], cdb[8], cdb[9]]))),
            Err(sense) => Response::check(sense),
        },
        REQUEST_SENSE => {
            let data = Sense::UNIT_NOT_SUPPORTED.encode(cdb[1] & 1 != 0);
            Response::good(cut(data, u32::from(cdb[4])))
        }
        _ => Response::check(Sense::UNIT_NOT_SUPPORTED),
    }
}
