//! The load generator on a controller: [`host_load`] with NVMe/TCP below.

use std::rc::Rc;

use host_load::{Geometry, Host, Io, IoError, Lane, Refused, Sink};

use crate::{Command, CommandError, CommandSink, Controller, Options, Queue, Request};

pub use host_load::{
    BLOCK_SIZE_MAX, Fault, FaultKind, Figures, Histogram, Job, JobError, Latency, Pattern, Progress, Record, Report,
    SharedRecord, Verified, check, new_record, run,
};

/// A load on a controller.
pub type Load = host_load::Load<Controller>;

/// Connection options for a job: an I/O queue for each of its jobs, as deep as it needs. The rest is the default.
pub fn options(job: &Job) -> Options {
    Options { io_queues: job.jobs, queue_depth: job.depth, ..Options::default() }
}

/// An I/O queue, for commands to its namespace.
pub struct NamespaceQueue {
    queue: Rc<Queue>,
    namespace: u32,
    block_size: u32,
}

impl Host for Controller {
    type Lane = NamespaceQueue;

    fn geometry(&self) -> Option<Geometry> {
        let namespace = self.namespace()?;
        let (blocks, block_size) = (namespace.blocks, namespace.block_size);
        Some(Geometry { blocks, block_size, max_transfer: namespace.max_transfer })
    }

    fn lanes(&self) -> usize {
        self.queues().len()
    }

    fn lane(&self, number: usize) -> NamespaceQueue {
        let namespace = self.namespace().expect("a controller with I/O queues has identified its namespace");
        let queue = Rc::clone(&self.queues()[number]);
        NamespaceQueue { queue, namespace: namespace.id, block_size: namespace.block_size }
    }

    fn reconnects(&self) -> u64 {
        self.reconnects()
    }

    fn failure(&self) -> Option<String> {
        self.failure().map(|failure| failure.to_string())
    }
}

impl Lane for NamespaceQueue {
    type Error = CommandError;

    fn depth(&self) -> usize {
        self.queue.depth()
    }

    #[inline]
    fn submit<S: Sink<CommandError>>(&self, io: Io, sink: Rc<S>, token: u64) -> Result<(), Refused> {
        let Self { namespace, block_size, .. } = *self;
        let request: Request = match io {
            Io::Read { block, blocks } => Command::read(namespace, block, blocks, block_size).into(),
            Io::Write { block, blocks, data } => {
                Request::sending(Command::write(namespace, block, blocks, block_size, false), data)
            }
            Io::Flush => Command::flush(namespace).into(),
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
    fn complete(&self, token: u64, outcome: Result<u64, CommandError>) {
        Sink::complete(self, token, outcome.map(drop));
    }
}
