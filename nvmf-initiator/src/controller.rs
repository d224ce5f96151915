//! A controller and its namespace, for users.

use std::net::SocketAddr;
use std::rc::Rc;

use nvmf_target_protocol::host::command::Command;
use nvmf_target_protocol::wire::dataset::Range;
use nvmf_target_protocol::wire::identify::IdentifyController;
use nvmf_target_protocol::wire::property::{self, Configuration};
use reactor::{Buffer, Slice};

use crate::connect::Namespace;
use crate::error::{CommandError, ConnectError, ConnectionError};
use crate::options::Options;
use crate::queue::Queue;
use crate::request::Request;
use crate::session::Session;

/// A connected controller. Dropping it ends its connections; [`Controller::disconnect`] does so in good order.
///
/// Offsets and lengths of the methods below are in bytes, multiples of the namespace's block size. Each sends as many
/// commands as the controller's limits ask for, one after the other, on the first I/O queue. For many commands at once,
/// and to pay for no future, see [`Queue::submit`].
pub struct Controller {
    session: Rc<Session>,
}

impl Controller {
    /// Connects to a subsystem: admin queue and I/O queues, controller enabled, its first namespace identified.
    ///
    /// # Errors
    /// Nothing is left behind then; [`ConnectError::is_retryable`] tells whether trying again may help.
    pub async fn connect(address: SocketAddr, subsystem: &str, options: Options) -> Result<Rc<Self>, ConnectError> {
        let session = Session::start(address, subsystem, options).await?;
        Ok(Rc::new(Self { session }))
    }

    /// Controller ID (CNTLID) of the current connection.
    pub fn id(&self) -> u16 {
        self.session.identity(|identity| identity.controller_id)
    }

    /// What the controller says about itself.
    pub fn identify(&self) -> IdentifyController {
        self.session.identity(|identity| identity.controller.clone())
    }

    /// The namespace; none when connected without I/O queues.
    pub fn namespace(&self) -> Option<Namespace> {
        self.session.identity(|identity| identity.namespace)
    }

    /// The admin queue.
    pub fn admin(&self) -> &Rc<Queue> {
        &self.session.admin
    }

    /// The I/O queues.
    pub fn queues(&self) -> &[Rc<Queue>] {
        &self.session.io
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
            let command = Command::read(part.namespace, part.block, part.blocks, part.block_size);
            let answer = self.io().execute(command).await?;
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
            let Part { namespace, block, blocks, block_size, .. } = part;
            let command = Command::write(namespace, block, blocks, block_size, force_unit_access);
            self.io().execute(Request::sending(command, data.slice(part.start..part.end()))).await?;
        }
        Ok(())
    }

    /// Compares the content with data.
    ///
    /// # Errors
    /// Compare Failure if they differ; else the first command that failed.
    pub async fn compare(&self, offset: u64, data: Slice) -> Result<(), CommandError> {
        for part in self.parts(offset, data.len() as u64) {
            let command = Command::compare(part.namespace, part.block, part.blocks, part.block_size);
            self.io().execute(Request::sending(command, data.slice(part.start..part.end()))).await?;
        }
        Ok(())
    }

    /// Makes everything written before durable.
    ///
    /// # Errors
    /// The command's.
    pub async fn flush(&self) -> Result<(), CommandError> {
        self.io().execute(Command::flush(self.first_namespace().id)).await.map(drop)
    }

    /// Makes a range read as zeroes; its space may be given back with `deallocate`.
    ///
    /// # Errors
    /// The first command that failed.
    pub async fn write_zeroes(&self, offset: u64, length: u64, deallocate: bool) -> Result<(), CommandError> {
        for Part { namespace, block, blocks, .. } in self.parts(offset, length) {
            self.io().execute(Command::write_zeroes(namespace, block, blocks, deallocate)).await?;
        }
        Ok(())
    }

    /// Gives the space of ranges back: pairs of offset and length, 1 to 256 of them.
    ///
    /// # Errors
    /// The command's.
    ///
    /// # Panics
    /// When there are not 1 to 256 ranges, one has 2^32 blocks or more, or is not on block boundaries.
    pub async fn deallocate(&self, ranges: &[(u64, u64)]) -> Result<(), CommandError> {
        let Namespace { id, block_size, .. } = self.first_namespace();
        let to_blocks = |bytes: u64| {
            assert!(bytes.is_multiple_of(block_size.into()), "{bytes} bytes are no blocks of {block_size}");
            bytes / u64::from(block_size)
        };
        let ranges: Vec<_> = ranges
            .iter()
            .map(|&(offset, length)| {
                let Ok(blocks) = u32::try_from(to_blocks(length)) else { panic!("a range of {length} bytes") };
                Range { start: to_blocks(offset), blocks }
            })
            .collect();
        self.io().execute(Request::deallocate(id, &ranges)).await.map(drop)
    }

    /// Tells the controller to shut down, and ends the connections.
    pub async fn disconnect(&self) {
        if self.is_live() {
            let configuration = Configuration::enable(false).with_shutdown();
            let command = Command::set_property(property::CC, configuration.0);
            // Best effort: the connections end either way.
            let _ = reactor::timeout(self.session.options.connect_timeout, self.admin().execute(command)).await;
        }
        self.session.close(ConnectionError::Disconnected.into());
    }

    fn first_namespace(&self) -> Namespace {
        self.namespace().expect("block commands are for controllers connected with I/O queues")
    }

    fn io(&self) -> &Queue {
        &self.session.io[0]
    }

    /// Cuts a range into commands.
    fn parts(&self, offset: u64, length: u64) -> impl Iterator<Item = Part> + use<> {
        let Namespace { id, block_size, max_transfer, .. } = self.first_namespace();
        let unit = u64::from(block_size);
        assert!(offset.is_multiple_of(unit) && length.is_multiple_of(unit), "{offset} + {length} is not on blocks");
        let step = u64::from(max_transfer / block_size * block_size);
        (0..length.div_ceil(step)).map(move |number| {
            let start = number * step;
            Part {
                namespace: id,
                block: (offset + start) / unit,
                blocks: ((length - start).min(step) / unit) as u32,
                block_size,
                start: start as usize,
            }
        })
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.session.close(ConnectionError::Disconnected.into());
    }
}

/// One command's part of a longer range.
#[derive(Clone, Copy)]
struct Part {
    namespace: u32,
    block: u64,
    blocks: u32,
    block_size: u32,
    /// Bytes from the start of the range.
    start: usize,
}

impl Part {
    fn end(&self) -> usize {
        self.start + (self.blocks * self.block_size) as usize
    }
}
