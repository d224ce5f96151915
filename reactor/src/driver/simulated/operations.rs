//! Operations of reactors: taken on, worked on, completed, cancelled.

use std::io;
use std::sync::Arc;

use super::disk::{Request, Want};
use super::errno::{EBADF, EIO, error};
use super::image::{Change, Content};
use super::queue::Event;
use super::random::nanoseconds;
use super::state::{Flight, Resource, State, Work};
use super::trace::hash_bytes;
use crate::core::ECANCELED;
use crate::driver::{Completion, Operation, OperationId, Output, ResourceId};

/// How many operations a reactor may submit in one turn: the size of its submission queue.
const SUBMISSIONS: usize = 256;

impl State {
    /// Hands a reactor what completed.
    pub(crate) fn take_completions(&mut self, index: usize, completions: &mut Vec<Completion>) {
        self.deliver_received(index);
        let reactor = &mut self.reactors[index];
        reactor.submitted = 0;
        match reactor.ready.len() as u64 {
            // Too many to be worth a line.
            0 => self.trace.silent(self.now, index as u64),
            count => self.trace.event(self.now, "turn: reactor, completions", [index as u64, count, 0]),
        }
        completions.append(&mut reactor.ready);
    }

    /// Ends an operation.
    pub(crate) fn complete(&mut self, index: usize, id: OperationId, result: io::Result<Output>) {
        if let Some(flight) = self.reactors[index].operations.remove(&id) {
            let operation = Some(flight.operation);
            self.reactors[index].ready.push(Completion { id, result, operation });
            self.wake(index);
        }
    }

    /// Adds a result of an operation that goes on.
    pub(crate) fn complete_part(&mut self, index: usize, id: OperationId, output: Output) {
        self.reactors[index].ready.push(Completion { id, result: Ok(output), operation: None });
    }

    pub(crate) fn operation(&self, index: usize, id: OperationId) -> Option<&Operation> {
        self.reactors[index].operations.get(&id).map(|flight| &flight.operation)
    }

    pub(super) fn operation_mut(&mut self, index: usize, id: OperationId) -> Option<&mut Operation> {
        self.reactors[index].operations.get_mut(&id).map(|flight| &mut flight.operation)
    }

    #[allow(clippy::result_large_err, reason = "the seam's contract: a full queue hands the operation back, unboxed")]
    pub(crate) fn submit(&mut self, index: usize, id: OperationId, operation: Operation) -> Result<(), Operation> {
        if !self.reactors[index].alive {
            // Its tasks are being dropped and start things in their last moment: nothing comes of it.
            return Ok(());
        }
        if self.reactors[index].submitted >= SUBMISSIONS || self.random.one_in(512) {
            return Err(operation);
        }
        self.reactors[index].submitted += 1;
        let work = self.begin(index, id, &operation);
        let delay = self.delay(&work);
        let reactor = &mut self.reactors[index];
        reactor.next_serial += 1;
        let serial = reactor.next_serial;
        reactor.operations.insert(id, Flight { serial, operation, work });
        if let Some(delay) = delay {
            self.queue.push(self.now + delay, Event::Finish { reactor: index, operation: id, serial });
        }
        Ok(())
    }

    fn begin(&mut self, index: usize, id: OperationId, operation: &Operation) -> Work {
        match operation {
            Operation::DiskRead { disk, offset, buffer } => {
                self.begin_disk(index, *disk, Want::Read { offset: *offset, length: buffer.len() as u64 })
            }
            Operation::DiskWrite { disk, offset, data } => {
                let data = data.iter().map(|slice| &slice[..]).collect::<Vec<_>>().concat().into_boxed_slice();
                self.begin_change(index, *disk, *offset, data.len() as u64, Content::Bytes(data))
            }
            Operation::DiskSync { disk } => self.begin_disk(index, *disk, Want::Sync),
            Operation::DiskDiscard { disk, offset, length } => {
                self.begin_change(index, *disk, *offset, *length, Content::Hole)
            }
            Operation::DiskZero { disk, offset, length } => {
                self.begin_change(index, *disk, *offset, *length, Content::Zeroes)
            }
            Operation::Accept { listener } => self.begin_accept(index, id, *listener),
            Operation::Connect { address } => self.begin_connect(index, id, *address),
            Operation::Receive { socket } | Operation::ReceiveOnce { socket, .. } => {
                self.begin_receive(index, id, *socket)
            }
            Operation::Send { socket, .. } => self.begin_send(index, id, *socket),
            Operation::ReadFile { .. }
            | Operation::ReplaceFile { .. }
            | Operation::RemoveFile { .. }
            | Operation::ListFolder { .. } => Work::Files,
        }
    }

    /// How long work takes that ends with an [`Event::Finish`].
    fn delay(&mut self, work: &Work) -> Option<u64> {
        match work {
            Work::Disk(_, request) => request.delay.map(nanoseconds),
            Work::Files => Some(200_000 + self.random.below(5_000_000)),
            Work::Refused(_) => Some(1_000),
            _ => None,
        }
    }

    fn begin_change(&mut self, index: usize, resource: ResourceId, offset: u64, length: u64, content: Content) -> Work {
        let Resource::Disk { disk, .. } = self.resource(index, resource) else {
            unreachable!("a disk operation names a disk")
        };
        let sector = u64::from(self.disks[disk].alignment());
        let change = Change { offset, length, sector, content };
        self.begin_disk(index, resource, Want::Change(Arc::new(change)))
    }

    fn begin_disk(&mut self, index: usize, resource: ResourceId, want: Want) -> Work {
        let Resource::Disk { disk, read_only, .. } = self.resource(index, resource) else {
            unreachable!("a disk operation names a disk")
        };
        if read_only && matches!(want, Want::Change(_)) {
            return Work::Refused(EBADF);
        }
        let request = self.disks[disk].start(want, &mut self.random);
        Work::Disk(disk, request)
    }

    pub(super) fn finish(&mut self, index: usize, id: OperationId, serial: u64) {
        let operations = &mut self.reactors[index].operations;
        if operations.get(&id).is_none_or(|flight| flight.serial != serial) {
            return;
        }
        let Some(Flight { mut operation, work, .. }) = operations.remove(&id) else { return };
        let result = match work {
            Work::Disk(disk, request) => self.finish_disk(disk, request, &mut operation),
            Work::Refused(code) => Err(error(code)),
            _ => self.finish_files(self.reactors[index].node, &operation),
        };
        let name = operation_name(&operation, result.is_ok());
        let (offset, length) = place_of(&operation);
        self.trace.event(self.now, name, [index as u64, offset, length]);
        let resource = disk_of(&operation);
        self.reactors[index].ready.push(Completion { id, result, operation: Some(operation) });
        self.wake(index);
        if let Some(resource) = resource {
            self.release_disk(index, resource);
        }
    }

    fn finish_disk(&mut self, disk: usize, request: Request, operation: &mut Operation) -> io::Result<Output> {
        let written = request.written_hash();
        let into: &mut [u8] = match operation {
            Operation::DiskRead { buffer, .. } => buffer,
            _ => &mut [],
        };
        let result = self.disks[disk].finish(request, into, &mut self.random);
        // Two runs that differ anywhere will differ in what they write or read. A read that fails leaves in its buffer whatever was
        // in that memory before.
        let read = if result.is_ok() { hash_bytes(into) } else { 0 };
        self.trace.silent(self.now, written ^ read);
        result.map(|()| Output::Done)
    }

    fn finish_files(&mut self, node: usize, operation: &Operation) -> io::Result<Output> {
        if self.nodes[node].files.fails(&mut self.random) {
            return Err(error(EIO));
        }
        let files = &mut self.nodes[node].files;
        match operation {
            Operation::ReadFile { path } => files.read(path).map(Output::Content),
            Operation::ReplaceFile { path, content } => {
                files.put(path, Some(content.clone()));
                Ok(Output::Done)
            }
            Operation::RemoveFile { path } => {
                files.put(path, None);
                Ok(Output::Done)
            }
            Operation::ListFolder { path } => {
                let mut names = files.list(path);
                let disks = self.disk_names.keys().filter(|key| key.0 == node && key.1.parent() == Some(path));
                names.extend(disks.filter_map(|key| Some(key.1.file_name()?.to_string_lossy().into_owned())));
                names.sort();
                Ok(Output::Names(names))
            }
            other => unreachable!("{other:?} is not an operation on files"),
        }
    }

    pub(crate) fn cancel(&mut self, index: usize, id: OperationId) {
        let Some(flight) = self.reactors[index].operations.get(&id) else { return };
        match flight.work {
            Work::Receive(end) => self.cancel_receive(index, id, end),
            Work::Send(end) => self.cancel_send(index, id, end),
            Work::Accept(listener) => self.cancel_accept(index, id, listener),
            Work::Connect(connecting) => self.cancel_connect(index, id, connecting),
            Work::Disk(..) => self.cancel_disk(index, id),
            Work::Files | Work::Refused(_) => {}
        }
    }

    /// A kernel can call back what still waits, but not what its disk works on.
    fn cancel_disk(&mut self, index: usize, id: OperationId) {
        let waits = self.random.one_in(8);
        let resource = self.operation(index, id).and_then(disk_of);
        if let (true, Some(resource)) = (waits, resource) {
            self.cancelled(index, id);
            self.release_disk(index, resource);
        }
    }

    pub(crate) fn cancelled(&mut self, index: usize, id: OperationId) {
        self.complete(index, id, Err(error(ECANCELED)));
    }

    pub(crate) fn resource(&self, index: usize, resource: ResourceId) -> Resource {
        *self.reactors[index].resources.get(resource).expect("the front half names only what it has open")
    }

    pub(crate) fn close(&mut self, index: usize, resource: ResourceId) {
        if !self.reactors[index].alive {
            return;
        }
        match self.resource(index, resource) {
            Resource::Disk { .. } => {
                if let Resource::Disk { closing, .. } = &mut self.reactors[index].resources[resource] {
                    *closing = true;
                }
                self.release_disk(index, resource);
            }
            Resource::Socket(end) => {
                self.reactors[index].resources.remove(resource);
                self.close_socket(end);
            }
            Resource::Listener(listener) => {
                self.reactors[index].resources.remove(resource);
                self.close_listener(listener, false);
            }
        }
    }

    /// Lets go of a disk that was closed, once nothing is in flight on it.
    pub(super) fn release_disk(&mut self, index: usize, resource: ResourceId) {
        let Some(Resource::Disk { disk, closing: true, .. }) = self.reactors[index].resources.get(resource).copied()
        else {
            return;
        };
        let mut flights = self.reactors[index].operations.values();
        if flights.all(|flight| disk_of(&flight.operation) != Some(resource)) {
            self.reactors[index].resources.remove(resource);
            self.disks[disk].unlock();
        }
    }
}

fn disk_of(operation: &Operation) -> Option<ResourceId> {
    match operation {
        Operation::DiskRead { disk, .. }
        | Operation::DiskWrite { disk, .. }
        | Operation::DiskSync { disk }
        | Operation::DiskDiscard { disk, .. }
        | Operation::DiskZero { disk, .. } => Some(*disk),
        _ => None,
    }
}

/// The bytes of a disk that an operation is about: offset and length.
fn place_of(operation: &Operation) -> (u64, u64) {
    match operation {
        Operation::DiskRead { offset, buffer, .. } => (*offset, buffer.len() as u64),
        Operation::DiskWrite { offset, data, .. } => (*offset, data.iter().map(|slice| slice.len() as u64).sum()),
        Operation::DiskDiscard { offset, length, .. } | Operation::DiskZero { offset, length, .. } => {
            (*offset, *length)
        }
        _ => (0, 0),
    }
}

/// What the event log calls the end of an operation that a disk or file system worked on.
fn operation_name(operation: &Operation, good: bool) -> &'static str {
    match (operation, good) {
        (Operation::DiskRead { .. }, true) => "read done: reactor, offset, length",
        (Operation::DiskRead { .. }, false) => "read failed: reactor, offset, length",
        (Operation::DiskWrite { .. }, true) => "write done: reactor, offset, length",
        (Operation::DiskWrite { .. }, false) => "write failed: reactor, offset, length",
        (Operation::DiskSync { .. }, true) => "sync done: reactor",
        (Operation::DiskSync { .. }, false) => "sync failed: reactor",
        (Operation::DiskDiscard { .. }, true) => "discard done: reactor, offset, length",
        (Operation::DiskDiscard { .. }, false) => "discard failed: reactor, offset, length",
        (Operation::DiskZero { .. }, true) => "zero done: reactor, offset, length",
        (Operation::DiskZero { .. }, false) => "zero failed: reactor, offset, length",
        (_, true) => "file operation done: reactor",
        (_, false) => "file operation failed: reactor",
    }
}
