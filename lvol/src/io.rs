//! Disk operations of the data path in flight: no task and no future for each, only a place in a table.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use block_device::{Buffer, Error, Outcome, Reply, Segments, Slice};
use reactor::DiskSink;
use slab::Slab;

use crate::grace::{Grace, Ticket};
use crate::volume::Volume;

/// What is in flight. The token of a disk operation is its place.
#[derive(Default)]
pub(crate) struct Io {
    operations: RefCell<Slab<Operation>>,
    pub(crate) grace: Grace,
}

/// The end of one request: whom to tell, and what to give back before.
pub(crate) struct Finish {
    pub(crate) reply: Reply,
    pub(crate) ticket: Ticket,
    /// Set for writes: counted until they are over.
    pub(crate) volume: Option<Rc<Volume>>,
    /// The part of the bytes read that was asked for: the rest is there because of the disk's alignment.
    pub(crate) skip: usize,
    pub(crate) length: usize,
}

enum Operation {
    /// The only piece of a request.
    Whole(Finish),
    /// One piece of several: which gathering, and which place in it.
    Piece(usize, usize),
    /// Where the pieces of a request come together.
    Gather(Box<Gather>),
}

struct Gather {
    finish: Finish,
    parts: Vec<Slice>,
    left: usize,
    error: Option<Error>,
}

impl Io {
    /// A request that is one disk operation. Returns its token.
    pub(crate) fn whole(&self, finish: Finish) -> u64 {
        self.operations.borrow_mut().insert(Operation::Whole(finish)) as u64
    }

    /// A request of several pieces. It is answered when [`Io::started`] was called and all pieces are done.
    pub(crate) fn gather(&self, finish: Finish) -> usize {
        let gather = Gather { finish, parts: Vec::new(), left: 1, error: None };
        self.operations.borrow_mut().insert(Operation::Gather(Box::new(gather)))
    }

    /// A piece that is here already.
    pub(crate) fn piece_done(&self, gather: usize, part: Slice) {
        if let Some(Operation::Gather(gather)) = self.operations.borrow_mut().get_mut(gather) {
            gather.parts.push(part);
        }
    }

    /// A piece that a disk operation brings. Returns its token.
    pub(crate) fn piece(&self, gather: usize) -> u64 {
        let mut operations = self.operations.borrow_mut();
        let mut place = 0;
        if let Some(Operation::Gather(gather)) = operations.get_mut(gather) {
            gather.left += 1;
            place = gather.parts.len();
            gather.parts.push(Slice::default());
        }
        operations.insert(Operation::Piece(gather, place)) as u64
    }

    /// A piece that could not be started.
    pub(crate) fn piece_failed(&self, gather: usize, error: Error) {
        if let Some(Operation::Gather(gather)) = self.operations.borrow_mut().get_mut(gather) {
            gather.error.get_or_insert(error);
        }
    }

    /// All pieces are started.
    pub(crate) fn started(&self, gather: usize) {
        self.count_down(gather);
    }

    fn done(&self, token: u64, result: Result<Slice, Error>) {
        let operation = self.operations.borrow_mut().remove(token as usize);
        match operation {
            Operation::Whole(finish) => self.finish(finish, result.map(Segments::from)),
            Operation::Piece(gather, place) => {
                if let Some(Operation::Gather(gather)) = self.operations.borrow_mut().get_mut(gather) {
                    match result {
                        Ok(bytes) => gather.parts[place] = bytes,
                        Err(error) => drop(gather.error.get_or_insert(error)),
                    }
                }
                self.count_down(gather);
            }
            Operation::Gather(_) => unreachable!("a gathering is no disk operation"),
        }
    }

    fn count_down(&self, place: usize) {
        let mut operations = self.operations.borrow_mut();
        let Some(Operation::Gather(gather)) = operations.get_mut(place) else { return };
        gather.left -= 1;
        if gather.left > 0 {
            return;
        }
        let Operation::Gather(gather) = operations.remove(place) else { return };
        drop(operations);
        let mut segments = Segments::none();
        gather.parts.into_iter().for_each(|part| segments.push(part));
        self.finish(gather.finish, gather.error.map_or(Ok(segments), Err));
    }

    fn finish(&self, finish: Finish, outcome: Outcome) {
        self.grace.leave(finish.ticket);
        if let Some(volume) = &finish.volume {
            volume.end_write();
        }
        let outcome = outcome.map(|segments| trim(segments, finish.skip, finish.length));
        finish.reply.complete(outcome);
    }
}

/// The `length` bytes after the first `skip`.
pub(crate) fn trim(segments: Segments, mut skip: usize, length: usize) -> Segments {
    if skip == 0 && segments.length() <= length {
        return segments;
    }
    let mut left = length;
    let mut trimmed = Segments::none();
    for segment in segments {
        let from = skip.min(segment.len());
        let to = segment.len().min(from + left);
        skip -= from;
        left -= to - from;
        trimmed.push(segment.slice(from..to));
    }
    trimmed
}

impl DiskSink for Io {
    fn read_done(&self, token: u64, result: io::Result<()>, buffer: Buffer) {
        self.done(token, result.map(|()| buffer.freeze()).map_err(|error| Error::read_failed(&error)));
    }

    fn write_done(&self, token: u64, result: io::Result<()>) {
        self.done(token, result.map(|()| Slice::default()).map_err(|error| Error::write_failed(&error)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trimming_cuts_across_segments() {
        let segments = || {
            let mut segments = Segments::from(Slice::from(&[1, 2, 3][..]));
            segments.push(Slice::from(&[4, 5][..]));
            segments.push(Slice::from(&[6][..]));
            segments
        };
        assert!(trim(segments(), 0, 6).equals(&[1, 2, 3, 4, 5, 6]));
        assert!(trim(segments(), 1, 3).equals(&[2, 3, 4]));
        assert!(trim(segments(), 3, 1).equals(&[4]));
        assert!(trim(segments(), 5, 1).equals(&[6]));
    }
}
