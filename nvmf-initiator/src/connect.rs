//! Establishing all connections of a controller, and what it says about itself.

use std::rc::Rc;
use std::time::Duration;

use nvmf_target_protocol::Digests;
use nvmf_target_protocol::host::command::Command;
use nvmf_target_protocol::host::connection::{Options as ConnectionOptions, SLOTS_MAX};
use nvmf_target_protocol::wire::fabrics::{CONTROLLER_ANY, ConnectCommand, ConnectData};
use nvmf_target_protocol::wire::feature::{self, encode_queue_count, parse_queue_count};
use nvmf_target_protocol::wire::identify::{
    IDENTIFY_SIZE, IdentifyController, IdentifyNamespace, cns, find_uuid, parse_namespace_list,
};
use nvmf_target_protocol::wire::property::{self, Capabilities, Configuration, csts};
use nvmf_target_protocol::wire::submission::SUBMISSION_SIZE;
use reactor::Slice;

use crate::error::{CommandError, ConnectError};
use crate::options::Options;
use crate::queue::{Answer, Queue};
use crate::request::Request;
use crate::session::Session;

/// Entries of the admin queue: what every controller has (Base 6.3, at least 32).
const ADMIN_ENTRIES: u32 = 32;
/// In-capsule data that every controller takes on its admin queue.
const ADMIN_CAPSULE_DATA: u32 = 8192;
/// How often a controller that is not ready yet is asked.
const READY_POLL: Duration = Duration::from_millis(10);

/// What a controller says about itself.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Identity {
    pub(crate) controller_id: u16,
    pub(crate) controller: IdentifyController,
    /// None without I/O queues.
    pub(crate) namespace: Option<Namespace>,
}

/// A namespace of a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Namespace identifier (NSID).
    pub id: u32,
    /// Size in logical blocks.
    pub blocks: u64,
    /// Bytes of a logical block: a power of two from 512 to 64 KiB.
    pub block_size: u32,
    /// Namespace Globally Unique Identifier (NGUID).
    pub nguid: [u8; 16],
    /// UUID, if it has one.
    pub uuid: Option<[u8; 16]>,
    /// Most bytes that one command moves.
    pub max_transfer: u32,
}

impl Namespace {
    /// Bytes.
    pub fn size(&self) -> u64 {
        // Checked when it was identified.
        self.blocks * u64::from(self.block_size)
    }
}

impl Identity {
    /// Whether this is the same namespace under, maybe, another controller id. It may have grown.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        match (&self.namespace, &other.namespace) {
            (Some(own), Some(others)) => {
                (own.id, own.nguid, own.uuid, own.block_size)
                    == (others.id, others.nguid, others.uuid, others.block_size)
            }
            (own, others) => own.is_none() && others.is_none(),
        }
    }
}

pub(crate) fn connection_options(options: &Options) -> ConnectionOptions {
    ConnectionOptions {
        digests: Digests { header: options.header_digest, data: options.data_digest },
        data_alignment: 0,
    }
}

/// Connects the admin queue, enables the controller, connects the I/O queues, looks at the namespace.
pub(crate) async fn establish(session: &Rc<Session>) -> Result<Identity, ConnectError> {
    let admin = &session.admin;
    session.open(admin).await?;
    let controller_id = connect_queue(session, admin, ADMIN_ENTRIES, CONTROLLER_ANY).await?;
    admin.connected(ADMIN_ENTRIES as usize - 1, ADMIN_CAPSULE_DATA);
    let capabilities = enable(admin).await?;
    let answer = execute(admin, "Identify Controller", Command::identify(cns::CONTROLLER, 0)).await?;
    let controller = IdentifyController::parse(identify_bytes(&answer)?);
    let namespace = if session.io.is_empty() {
        None
    } else {
        connect_io_queues(session, &capabilities, &controller, controller_id).await?;
        Some(identify_namespace(admin, &controller).await?)
    };
    Ok(Identity { controller_id, controller, namespace })
}

async fn connect_io_queues(
    session: &Rc<Session>,
    capabilities: &Capabilities,
    controller: &IdentifyController,
    controller_id: u16,
) -> Result<(), ConnectError> {
    let Options { io_queues, queue_depth, .. } = session.options;
    // With a queue that is never full, head and tail tell empty from full also where flow control stays on.
    let entries = u32::from(queue_depth) + 1;
    if queue_depth == 0 || entries > capabilities.max_queue_entries || entries as usize > SLOTS_MAX {
        return Err(ConnectError::QueuesTooShort { depth: queue_depth, entries: capabilities.max_queue_entries });
    }
    let count = Command::set_feature(feature::NUMBER_OF_QUEUES, encode_queue_count(io_queues.into()));
    let answer = execute(&session.admin, "Set Features (Number of Queues)", count).await?;
    let granted = parse_queue_count(answer.result as u32).ok_or(ConnectError::Nonsense("Number of Queues"))?;
    if granted < u32::from(io_queues) {
        return Err(ConnectError::TooFewQueues { asked: io_queues, granted });
    }
    let capsule = controller.command_capsule_16.saturating_mul(16);
    let capsule_data = capsule.checked_sub(SUBMISSION_SIZE as u32).ok_or(ConnectError::Nonsense("IOCCSZ"))?;
    for queue in &session.io {
        session.open(queue).await?;
        connect_queue(session, queue, entries, controller_id).await?;
        queue.connected(queue.depth(), capsule_data);
    }
    Ok(())
}

/// Sends Connect; returns the controller's id.
async fn connect_queue(
    session: &Session,
    queue: &Queue,
    queue_entries: u32,
    controller_id: u16,
) -> Result<u16, ConnectError> {
    let keep_alive_ms = match queue.number() {
        0 => u32::try_from(session.options.keep_alive.as_millis()).unwrap_or(u32::MAX),
        _ => 0,
    };
    let connect = ConnectCommand {
        record_format: 0,
        queue_id: queue.number(),
        queue_entries,
        // A read is then complete with its data, without a response capsule.
        flow_control_disabled: true,
        keep_alive_ms,
    };
    let data = ConnectData {
        host_id: *session.host_id.as_bytes(),
        controller_id,
        subsystem_nqn: session.subsystem.clone(),
        host_nqn: session.host_nqn.clone(),
    };
    let request = Request::sending(Command::connect(&connect), Slice::from(&data.encode()[..]));
    let result = match queue.execute_internal(request).await {
        Ok(answer) => answer.result,
        Err(CommandError::Status { status, result }) => return Err(ConnectError::Refused { status, result }),
        Err(error) => return Err(ConnectError::Command { command: "Connect", error }),
    };
    // AUTHREQ, bits 17:16 of dword 0 (Base 6.3).
    if result >> 16 & 0b11 != 0 {
        return Err(ConnectError::AuthenticationRequired);
    }
    Ok(result as u16)
}

/// Enables the controller and waits until it is ready.
async fn enable(admin: &Queue) -> Result<Capabilities, ConnectError> {
    let capabilities = get_property(admin, property::CAP, 8).await?;
    // CAP.CSS bit 0 (of the property bit 37): the NVM command set can be chosen alone.
    let configuration = Configuration::enable(capabilities & 1 << 37 == 0);
    let capabilities = Capabilities::parse(capabilities);
    execute(admin, "Property Set (CC)", Command::set_property(property::CC, configuration.0)).await?;
    let limit = Duration::from_millis(500) * u32::from(capabilities.ready_timeout_500ms.max(1));
    let deadline = reactor::now() + limit;
    loop {
        let status = get_property(admin, property::CSTS, 4).await? as u32;
        if status & csts::FATAL != 0 || status & csts::READY == 0 && reactor::now() >= deadline {
            return Err(ConnectError::NotReady { status });
        }
        if status & csts::READY != 0 {
            return Ok(capabilities);
        }
        reactor::sleep(READY_POLL).await;
    }
}

async fn get_property(admin: &Queue, offset: u32, size: u8) -> Result<u64, ConnectError> {
    Ok(execute(admin, "Property Get", Command::get_property(offset, size)).await?.result)
}

/// The first active namespace.
async fn identify_namespace(admin: &Queue, controller: &IdentifyController) -> Result<Namespace, ConnectError> {
    let list = execute(admin, "Identify (active namespaces)", Command::identify(cns::ACTIVE_NAMESPACES, 0)).await?;
    let id = *parse_namespace_list(identify_bytes(&list)?).first().ok_or(ConnectError::NoNamespace)?;
    let answer = execute(admin, "Identify Namespace", Command::identify(cns::NAMESPACE, id)).await?;
    let found = IdentifyNamespace::parse(identify_bytes(&answer)?).ok_or(ConnectError::NoNamespace)?;
    let block_size = 1u32 << found.block_shift;
    if found.blocks.checked_mul(block_size.into()).is_none() {
        return Err(ConnectError::Nonsense("Identify Namespace"));
    }
    let descriptors = Command::identify(cns::NAMESPACE_DESCRIPTORS, id);
    let descriptors = execute(admin, "Identify (namespace descriptors)", descriptors).await?;
    let uuid = find_uuid(identify_bytes(&descriptors)?);
    let max_transfer = max_transfer(controller.max_transfer_shift, block_size);
    Ok(Namespace { id, blocks: found.blocks, block_size, nguid: found.nguid, uuid, max_transfer })
}

/// Most bytes of one command: MDTS, and 65,536 blocks.
fn max_transfer(shift: u8, block_size: u32) -> u32 {
    let by_blocks = 65_536 * u64::from(block_size);
    let by_controller = if shift == 0 || shift > 20 { u64::MAX } else { 4096 << shift };
    by_blocks.min(by_controller).min(1 << 31) as u32
}

async fn execute(admin: &Queue, name: &'static str, command: Command) -> Result<Answer, ConnectError> {
    admin.execute_internal(command.into()).await.map_err(|error| ConnectError::Command { command: name, error })
}

fn identify_bytes(answer: &Answer) -> Result<&[u8; IDENTIFY_SIZE], ConnectError> {
    answer.data[..].try_into().map_err(|_| ConnectError::Nonsense("Identify"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_transfer_of_any_announcement_fits_a_command() {
        assert_eq!(max_transfer(8, 512), 1 << 20);
        assert_eq!(max_transfer(8, 4096), 1 << 20);
        assert_eq!(max_transfer(0, 512), 32 << 20);
        assert_eq!(max_transfer(255, 4096), 256 << 20);
        assert_eq!(max_transfer(20, 65_536), 1 << 31);
    }
}
