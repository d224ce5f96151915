//! The load generator on a logical unit: [`host_load`] with iSCSI below.

use std::rc::Rc;

use host_load::{Geometry, Host, Io, IoError, Job, Lane, Refused, Sink};

use crate::{Access, Command, CommandError, CommandSink, LogicalUnit, Options, Queue, Request};

/// Connection options for a job: a queue for each of its jobs, as deep as it needs. The rest is the default.
pub fn options(job: &Job) -> Options {
    Options { queues: job.jobs, queue_depth: job.depth, ..Options::default() }
}

/// A queue, for transfers in blocks.
pub struct BlockQueue {
    queue: Rc<Queue>,
    block_size: u32,
}

impl Host for LogicalUnit {
    type Lane = BlockQueue;

    fn geometry(&self) -> Option<Geometry> {
        let medium = self.medium();
        let (blocks, block_size) = (medium.blocks, medium.block_size);
        Some(Geometry { blocks, block_size, max_transfer: medium.max_transfer })
    }

    fn lanes(&self) -> usize {
        self.queues().len()
    }

    fn lane(&self, number: usize) -> BlockQueue {
        BlockQueue { queue: Rc::clone(&self.queues()[number]), block_size: self.medium().block_size }
    }

    fn reconnects(&self) -> u64 {
        self.reconnects()
    }

    fn failure(&self) -> Option<String> {
        self.failure().map(|failure| failure.to_string())
    }
}

impl Lane for BlockQueue {
    type Error = CommandError;

    fn depth(&self) -> usize {
        self.queue.depth()
    }

    #[inline]
    fn submit<S: Sink<CommandError>>(&self, io: Io, sink: Rc<S>, token: u64) -> Result<(), Refused> {
        let access = |block, blocks| Access { block, blocks, block_size: self.block_size };
        let request: Request = match io {
            Io::Read { block, blocks } => Command::read(access(block, blocks)).into(),
            Io::Write { block, blocks, data } => Request::sending(Command::write(access(block, blocks), false), data),
            Io::Flush => Command::flush().into(),
        };
        self.queue.submit(request, sink, token).map_err(|_| Refused)
    }

    fn flush(&self) {
        self.queue.flush();
    }
}

impl IoError for CommandError {
    fn is_lost(&self) -> bool {
        *self == Self::Lost
    }
}

impl<S: Sink<CommandError>> CommandSink for S {
    #[inline]
    fn data(&self, token: u64, offset: usize, bytes: &[u8]) {
        Sink::data(self, token, offset, bytes);
    }

    #[inline]
    fn complete(&self, token: u64, outcome: Result<u32, CommandError>) {
        Sink::complete(self, token, outcome.map(drop));
    }
}
