//! Asking a discovery controller which subsystems there are.

use std::net::SocketAddr;

use nvmf_target_protocol::host::command::Command;
use nvmf_target_protocol::wire::discovery::{
    DiscoveryEntry, ENTRY_SIZE, parse_discovery_entry, parse_discovery_header,
};
use nvmf_target_protocol::wire::fabrics::DISCOVERY_NQN;
use nvmf_target_protocol::wire::log_page::{DISCOVERY, GetLogPage};

use crate::controller::Controller;
use crate::error::ConnectError;
use crate::options::Options;

/// Most entries that are read; a controller that has more is not one of ours.
const ENTRIES_MAX: u64 = 16_384;
/// Entries read with one command.
const ENTRIES_AT_ONCE: u64 = 16;
/// How often a log page that changes while it is read is read again.
const ATTEMPTS: usize = 5;

/// The entries of the discovery log page of the controller at `address` that are reachable over TCP.
///
/// # Errors
/// No connection, a failed command, or a log page that changed whenever it was read.
pub async fn discover(address: SocketAddr, options: &Options) -> Result<Vec<DiscoveryEntry>, ConnectError> {
    let options = Options { io_queues: 0, ..options.clone() };
    let controller = Controller::connect(address, DISCOVERY_NQN, options).await?;
    let entries = read_consistent(&controller).await;
    controller.disconnect().await;
    entries
}

async fn read_consistent(controller: &Controller) -> Result<Vec<DiscoveryEntry>, ConnectError> {
    for _ in 0..ATTEMPTS {
        let (generation, records) = read_header(controller).await?;
        if records > ENTRIES_MAX {
            break;
        }
        let entries = read_entries(controller, records).await?;
        if read_header(controller).await?.0 == generation {
            return Ok(entries);
        }
    }
    Err(ConnectError::Nonsense("Get Log Page (Discovery)"))
}

async fn read_header(controller: &Controller) -> Result<(u64, u64), ConnectError> {
    let page = read_page(controller, 0, ENTRY_SIZE as u64).await?;
    let header = page[..].try_into().map_err(|_| ConnectError::Nonsense("Get Log Page (Discovery)"))?;
    Ok(parse_discovery_header(header))
}

async fn read_entries(controller: &Controller, records: u64) -> Result<Vec<DiscoveryEntry>, ConnectError> {
    let size = ENTRY_SIZE as u64;
    let mut entries = Vec::new();
    for first in (0..records).step_by(ENTRIES_AT_ONCE as usize) {
        let count = ENTRIES_AT_ONCE.min(records - first);
        let page = read_page(controller, size * (1 + first), size * count).await?;
        // Entries of other transports are left out.
        entries.extend(page.as_chunks().0.iter().filter_map(parse_discovery_entry));
    }
    Ok(entries)
}

async fn read_page(controller: &Controller, offset: u64, length: u64) -> Result<reactor::Slice, ConnectError> {
    let request =
        GetLogPage { page: DISCOVERY, parameter: 0, retain_event: false, length, offset, offset_is_index: false };
    let answer = controller.admin().execute(Command::get_log_page(&request)).await;
    answer
        .map(|answer| answer.data)
        .map_err(|error| ConnectError::Command { command: "Get Log Page (Discovery)", error })
}
