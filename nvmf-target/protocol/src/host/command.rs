//! Commands a host sends, ready for [`Connection::submit`](super::connection::Connection::submit): the entry and how its
//! data moves.

use crate::wire::dataset::ATTRIBUTE_DEALLOCATE;
use crate::wire::fabrics::{CONNECT_DATA_SIZE, ConnectCommand, PropertyCommand};
use crate::wire::identify::IDENTIFY_SIZE;
use crate::wire::log_page::GetLogPage;
use crate::wire::{Submission, opcode};

/// What a command does with data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// Nothing.
    None,
    /// Receives at most this many bytes.
    Receive(u32),
    /// Sends this many bytes.
    Send(u32),
}

/// A command: the connection adds command identifier and SGL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command {
    /// The submission queue entry.
    pub entry: Submission,
    /// Its data.
    pub data: Data,
}

impl Command {
    /// Connect; its data is a [`ConnectData`](crate::wire::fabrics::ConnectData).
    pub fn connect(connect: &ConnectCommand) -> Self {
        Self { entry: connect.encode(), data: Data::Send(CONNECT_DATA_SIZE as u32) }
    }

    /// Property Get of `size` (4 or 8) bytes.
    pub fn get_property(offset: u32, size: u8) -> Self {
        Self { entry: PropertyCommand::get(offset, size), data: Data::None }
    }

    /// Property Set of 4 bytes.
    pub fn set_property(offset: u32, value: u32) -> Self {
        Self { entry: PropertyCommand::set(offset, value), data: Data::None }
    }

    /// Identify structure `cns` of `namespace`.
    pub fn identify(cns: u8, namespace: u32) -> Self {
        let mut entry = Submission::new(opcode::IDENTIFY, namespace);
        entry.set_dword(10, u32::from(cns));
        Self { entry, data: Data::Receive(IDENTIFY_SIZE as u32) }
    }

    /// Get Log Page of at most 4 GiB.
    ///
    /// # Panics
    /// If the length is no positive multiple of 4, or does not fit in 32 bits.
    pub fn get_log_page(request: &GetLogPage) -> Self {
        let mut entry = Submission::new(opcode::GET_LOG_PAGE, 0xffff_ffff);
        request.encode(&mut entry);
        let Ok(length) = u32::try_from(request.length) else { panic!("a log page of {} bytes", request.length) };
        Self { entry, data: Data::Receive(length) }
    }

    /// Set Features `id` to `value` (CDW11).
    pub fn set_feature(id: u8, value: u32) -> Self {
        let mut entry = Submission::new(opcode::SET_FEATURES, 0);
        entry.set_dword(10, u32::from(id));
        entry.set_dword(11, value);
        Self { entry, data: Data::None }
    }

    /// Get Features `id`, the value in force.
    pub fn get_feature(id: u8) -> Self {
        let mut entry = Submission::new(opcode::GET_FEATURES, 0);
        entry.set_dword(10, u32::from(id));
        Self { entry, data: Data::None }
    }

    /// Keep Alive.
    pub fn keep_alive() -> Self {
        Self { entry: Submission::new(opcode::KEEP_ALIVE, 0), data: Data::None }
    }

    /// Asynchronous Event Request.
    pub fn async_event_request() -> Self {
        Self { entry: Submission::new(opcode::ASYNC_EVENT_REQUEST, 0), data: Data::None }
    }

    /// Abort of a command on queue `queue_id`.
    pub fn abort(queue_id: u16, command_id: u16) -> Self {
        let mut entry = Submission::new(opcode::ABORT, 0);
        entry.set_dword(10, u32::from(command_id) << 16 | u32::from(queue_id));
        Self { entry, data: Data::None }
    }

    /// Read `blocks` logical blocks of `block_size` bytes.
    pub fn read(namespace: u32, start: u64, blocks: u32, block_size: u32) -> Self {
        let data = Data::Receive(blocks * block_size);
        Self { entry: blocks_entry(opcode::READ, namespace, start, blocks), data }
    }

    /// Write `blocks` logical blocks of `block_size` bytes; `fua` for durable before the completion.
    pub fn write(namespace: u32, start: u64, blocks: u32, block_size: u32, fua: bool) -> Self {
        let mut entry = blocks_entry(opcode::WRITE, namespace, start, blocks);
        entry.set_dword(12, entry.dword(12) | u32::from(fua) << 30);
        Self { entry, data: Data::Send(blocks * block_size) }
    }

    /// Compare `blocks` logical blocks of `block_size` bytes.
    pub fn compare(namespace: u32, start: u64, blocks: u32, block_size: u32) -> Self {
        let data = Data::Send(blocks * block_size);
        Self { entry: blocks_entry(opcode::COMPARE, namespace, start, blocks), data }
    }

    /// Write Zeroes; `deallocate` gives the space back.
    pub fn write_zeroes(namespace: u32, start: u64, blocks: u32, deallocate: bool) -> Self {
        let mut entry = blocks_entry(opcode::WRITE_ZEROES, namespace, start, blocks);
        entry.set_dword(12, entry.dword(12) | u32::from(deallocate) << 25);
        Self { entry, data: Data::None }
    }

    /// Flush.
    pub fn flush(namespace: u32) -> Self {
        Self { entry: Submission::new(opcode::FLUSH, namespace), data: Data::None }
    }

    /// Dataset Management that deallocates `ranges` (1 to 256) ranges, sent as data.
    ///
    /// # Panics
    /// If `ranges` is not 1 to 256.
    pub fn deallocate(namespace: u32, ranges: u32) -> Self {
        assert!((1..=256).contains(&ranges), "{ranges} ranges");
        let mut entry = Submission::new(opcode::DATASET_MANAGEMENT, namespace);
        entry.set_dword(10, ranges - 1);
        entry.set_dword(11, ATTRIBUTE_DEALLOCATE);
        Self { entry, data: Data::Send(ranges * 16) }
    }
}

/// # Panics
/// If `blocks` is not 1 to 65536.
fn blocks_entry(opcode: u8, namespace: u32, start: u64, blocks: u32) -> Submission {
    assert!((1..=65_536).contains(&blocks), "{blocks} blocks in one command");
    let mut entry = Submission::new(opcode, namespace);
    entry.set_starting_block(start);
    entry.set_dword(12, blocks - 1);
    entry
}
