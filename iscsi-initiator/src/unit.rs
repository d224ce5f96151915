//! A logical unit, for users.

use std::net::SocketAddr;
use std::rc::Rc;

use iscsi_target_protocol::wire::Name;
use reactor::{Buffer, Slice};

use crate::cdb::{Access, Command};
use crate::connect::Medium;
use crate::error::{CommandError, ConnectError, ConnectionError};
use crate::options::Options;
use crate::queue::Queue;
use crate::request::{Request, UNMAP_RANGES_MAX};
use crate::session::Session;

/// A disk of a target that is logged in to. Dropping it ends its connections; [`LogicalUnit::disconnect`] does so in good order.
///
/// Offsets and lengths of the methods below are in bytes, multiples of the unit's block size. Each sends as many
/// commands as the unit's limits ask for, one after the other, on the first queue. For many commands at once,
/// and to pay for no future, see [`Queue::submit`].
pub struct LogicalUnit {
    session: Rc<Session>,
}

impl LogicalUnit {
    /// Logs in to a target: all queues, the unit found and ready.
    ///
    /// # Errors
    /// Nothing is left behind then; [`ConnectError::is_retryable`] tells whether trying again may help.
    pub async fn connect(address: SocketAddr, target: &Name, options: Options) -> Result<Rc<Self>, ConnectError> {
        let session = Session::start(address, target, options).await?;
        Ok(Rc::new(Self { session }))
    }

    /// What the unit says about itself.
    pub fn medium(&self) -> Medium {
        self.session.medium(Medium::clone)
    }

    /// The queues.
    pub fn queues(&self) -> &[Rc<Queue>] {
        &self.session.queues
    }

    /// Whether it is connected now.
    pub fn is_live(&self) -> bool {
        self.session.is_live()
    }

    /// How many times the connection was lost and made again.
    pub fn reconnects(&self) -> u64 {
        self.session.reconnects()
    }

    /// Why it was given up, if it was.
    pub fn failure(&self) -> Option<ConnectError> {
        self.session.failure()
    }

    /// Reads `length` bytes.
    ///
    /// # Errors
    /// The first command that failed.
    pub async fn read(&self, offset: u64, length: usize) -> Result<Slice, CommandError> {
        let mut whole = Buffer::new(length);
        for part in self.parts(offset, length as u64) {
            let answer = self.io().execute(Command::read(part.access)).await?;
            whole[part.start..part.end()].copy_from_slice(&answer.data);
        }
        Ok(whole.freeze())
    }

    /// Writes data, durably with `force_unit_access`.
    ///
    /// # Errors
    /// The first command that failed.
    pub async fn write(&self, offset: u64, data: Slice, force_unit_access: bool) -> Result<(), CommandError> {
        for part in self.parts(offset, data.len() as u64) {
            let command = Command::write(part.access, force_unit_access);
            self.io().execute(Request::sending(command, data.slice(part.start..part.end()))).await?;
        }
        Ok(())
    }

    /// Makes everything written before durable.
    ///
    /// # Errors
    /// The command's.
    pub async fn flush(&self) -> Result<(), CommandError> {
        self.io().execute(Command::flush()).await.map(drop)
    }

    /// Gives the space of ranges back: pairs of offset and length.
    ///
    /// # Errors
    /// The first command that failed.
    pub async fn unmap(&self, ranges: &[(u64, u64)]) -> Result<(), CommandError> {
        let unmap_max = self.session.medium(|medium| medium.unmap_max);
        let (ranges_max, blocks_max) = (unmap_max.0.clamp(1, UNMAP_RANGES_MAX as u32), unmap_max.1.max(1));
        let mut list = Vec::new();
        let mut blocks = 0;
        for &(offset, length) in ranges {
            for part in self.parts_of(offset, length, blocks_max) {
                let Access { block, blocks: count, .. } = part.access;
                if list.len() as u32 == ranges_max || count > blocks_max - blocks {
                    self.io().execute(Request::unmap(&std::mem::take(&mut list))).await?;
                    blocks = 0;
                }
                list.push((block, count));
                blocks += count;
            }
        }
        if !list.is_empty() {
            self.io().execute(Request::unmap(&list)).await?;
        }
        Ok(())
    }

    /// Writes the same block all over a range; with `unmap`, a range of zeroes gives its space back.
    ///
    /// # Errors
    /// The first command that failed.
    ///
    /// # Panics
    /// When `block` is not one block.
    pub async fn write_same(&self, offset: u64, length: u64, block: Slice, unmap: bool) -> Result<(), CommandError> {
        let blocks_max = self.session.medium(|medium| medium.write_same_max);
        for part in self.parts_of(offset, length, blocks_max) {
            self.io().execute(Request::sending(Command::write_same(part.access, unmap), block.clone())).await?;
        }
        Ok(())
    }

    /// Writes `data` if `expected` is there, in one step.
    ///
    /// # Errors
    /// A check condition with MISCOMPARE if something else is there; else why the command failed.
    ///
    /// # Panics
    /// When both are not equally long, or longer than the unit does at once.
    pub async fn compare_and_write(&self, offset: u64, expected: &[u8], data: &[u8]) -> Result<(), CommandError> {
        assert_eq!(expected.len(), data.len(), "as much is compared as is written");
        let mut parts = self.parts_of(offset, data.len() as u64, u32::MAX);
        let Some(part) = parts.next() else { return Ok(()) };
        let mut both = Buffer::new(2 * data.len());
        both[..data.len()].copy_from_slice(expected);
        both[data.len()..].copy_from_slice(data);
        self.io().execute(Request::sending(Command::compare_and_write(part.access), both.freeze())).await.map(drop)
    }

    /// Logs out, and ends the connections.
    pub async fn disconnect(&self) {
        if self.is_live() {
            self.session.leave();
            // Best effort: the connections end either way.
            let _ = reactor::timeout(self.session.options.connect_timeout, self.session.log_out()).await;
        }
        self.session.close(ConnectionError::Disconnected.into());
    }

    fn io(&self) -> &Queue {
        &self.session.queues[0]
    }

    /// Cuts a range into transfers.
    fn parts(&self, offset: u64, length: u64) -> impl Iterator<Item = Part> + use<> {
        let blocks_max = self.session.medium(|medium| medium.max_transfer / medium.block_size);
        self.parts_of(offset, length, blocks_max)
    }

    /// Cuts a range into pieces of at most `blocks_max` blocks.
    fn parts_of(&self, offset: u64, length: u64, blocks_max: u32) -> impl Iterator<Item = Part> + use<> {
        let block_size = self.session.medium(|medium| medium.block_size);
        let unit = u64::from(block_size);
        assert!(offset.is_multiple_of(unit) && length.is_multiple_of(unit), "{offset} + {length} is not on blocks");
        let step = u64::from(blocks_max.max(1)) * unit;
        (0..length.div_ceil(step)).map(move |number| {
            let start = number * step;
            let blocks = ((length - start).min(step) / unit) as u32;
            Part { access: Access { block: (offset + start) / unit, blocks, block_size }, start: start as usize }
        })
    }
}

impl Drop for LogicalUnit {
    fn drop(&mut self) {
        self.session.close(ConnectionError::Disconnected.into());
    }
}

/// One command's part of a longer range.
#[derive(Clone, Copy)]
struct Part {
    access: Access,
    /// Bytes from the start of the range.
    start: usize,
}

impl Part {
    fn end(&self) -> usize {
        self.start + self.access.blocks as usize * self.access.block_size as usize
    }
}
