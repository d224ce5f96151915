//! An lvol as a block device.

use std::rc::Rc;

use block_device::{BlockDevice, Error, ErrorKind, Geometry, Outcome, Range, Reply, Request, Segments, Slice, execute};
use reactor::{Buffer, spawn};

use crate::chain::{Piece, Pieces, Source, find, resolve};
use crate::core::Core;
use crate::format::BLOCK;
use crate::io::Finish;
use crate::map::Held;
use crate::volume::Volume;

/// An open lvol. Snapshots refuse writes.
///
/// Reads, and writes to blocks that it holds already, go to the disk within [`BlockDevice::submit`], without a task and
/// without metadata. Everything else is a task of its own.
///
/// Requests that overlap a write in flight are not ordered with it, nor is the write one event to them. An unmap discards blocks on
/// the disk before the journal drops them: a read beside it may see zeroes, and a write that began after that read and was answered
/// before the unmap can be gone when the unmap is answered; a later read beside the two may see its data, and one after them not. All of
/// this is between requests in flight together; whatever starts when a write was answered finds it. Engines order what overlaps,
/// so no volume shows it.
pub struct Lvol {
    core: Rc<Core>,
    volume: Rc<Volume>,
}

impl Lvol {
    pub(crate) const fn new(core: Rc<Core>, volume: Rc<Volume>) -> Self {
        Self { core, volume }
    }

    pub(crate) fn core(&self) -> &Rc<Core> {
        &self.core
    }

    pub(crate) fn volume(&self) -> &Rc<Volume> {
        &self.volume
    }

    /// Whether parts of a 4 KiB block must be merged with the rest before they are written: the disk's blocks are larger
    /// than the lvol's.
    pub(crate) fn merges(&self) -> bool {
        self.core.disk.alignment() > self.volume.block_size()
    }

    fn read(&self, range: Range, reply: Reply) {
        let pieces = self.resolve(range);
        if let Err(error) = self.core.marks.check(&pieces) {
            return reply.fail(error);
        }
        let skip = (range.offset % self.alignment()) as usize;
        // Checked against the longest transfer, which a usize holds.
        let length = range.length as usize;
        if let [Piece { source: Source::Zeroes, .. }] = pieces.as_slice() {
            let mut segments = Segments::none();
            segments.push_zeroes(length);
            return reply.complete(Ok(segments));
        }
        let finish = Finish { reply, ticket: self.core.io.grace.enter(), volume: None, skip, length };
        if let [Piece { source: Source::Disk(offset), length }] = pieces.as_slice() {
            let Some(buffer) = Buffer::try_new(*length as usize) else { return self.refuse(finish, ErrorKind::Busy) };
            let token = self.core.io.whole(finish);
            return self.core.disk.start_read(*offset, buffer, &self.core.disk_reply, token);
        }
        self.read_pieces(&pieces, finish);
    }

    fn read_pieces(&self, pieces: &Pieces, finish: Finish) {
        let io = &self.core.io;
        let gather = io.gather(finish);
        for piece in pieces {
            let length = piece.length as usize;
            match piece.source {
                Source::Zeroes => push_zeroes(length, |zeroes| io.piece_done(gather, zeroes)),
                Source::Disk(offset) => match Buffer::try_new(length) {
                    Some(buffer) => {
                        let token = io.piece(gather);
                        self.core.disk.start_read(offset, buffer, &self.core.disk_reply, token);
                    }
                    None => io.piece_failed(gather, ErrorKind::Busy.into()),
                },
            }
        }
        io.started(gather);
    }

    fn refuse(&self, finish: Finish, kind: ErrorKind) {
        self.core.io.grace.leave(finish.ticket);
        finish.reply.fail(kind);
    }

    fn alignment(&self) -> u64 {
        u64::from(self.core.disk.alignment())
    }

    /// The pieces of a range, widened to the disk's alignment.
    pub(crate) fn resolve(&self, range: Range) -> Pieces {
        let alignment = self.alignment();
        let offset = range.offset - range.offset % alignment;
        let length = range.end().next_multiple_of(alignment) - offset;
        let number = self.volume.chain_number();
        self.volume.with_chain(|chain| {
            resolve(self.core.layout().cluster_size, Range { offset, length }, |index, first, count| {
                self.core.hints.find(number, chain, index, first, count)
            })
        })
    }

    /// A write that may have to wait for a snapshot.
    fn write(&self, request: Request, reply: Reply) {
        let Some((request, reply)) = self.volume.begin_write(request, reply) else { return };
        let (request, reply) = match request {
            Request::Write { offset, data, fua: false } => match self.overwrite(offset, data, reply) {
                None => return,
                Some((data, reply)) => (Request::Write { offset, data, fua: false }, reply),
            },
            request => (request, reply),
        };
        let lvol = Self { core: Rc::clone(&self.core), volume: Rc::clone(&self.volume) };
        spawn(async move {
            let outcome = lvol.change(request).await;
            lvol.volume.end_write();
            reply.complete(outcome);
        });
    }

    /// Writes data straight to the disk if this lvol holds every block of it; hands it back otherwise.
    fn overwrite(&self, offset: u64, data: Slice, reply: Reply) -> Option<(Slice, Reply)> {
        if self.core.check_running().is_err() {
            // A batch that failed may be on disk all the same, and take these blocks away at the next open.
            return Some((data, reply));
        }
        if self.merges() || self.volume.is_moving(&self.clusters(offset, data.len() as u64)) {
            return Some((data, reply));
        }
        let Some(pieces) = self.held_pieces(offset, data.len() as u64) else { return Some((data, reply)) };
        if self.core.marks.check(&pieces).is_err() {
            // The marks go when the new data is durable.
            return Some((data, reply));
        }
        let ticket = self.core.io.grace.enter();
        let volume = Some(Rc::clone(&self.volume));
        let finish = Finish { reply, ticket, volume, skip: 0, length: 0 };
        let (disk, io, disk_reply) = (&self.core.disk, &self.core.io, &self.core.disk_reply);
        let data = aligned(data, self.core.disk.alignment());
        if let [Piece { source: Source::Disk(place), .. }] = pieces.as_slice() {
            disk.start_write(*place, data, disk_reply, io.whole(finish));
            return None;
        }
        let gather = io.gather(finish);
        let mut at = 0;
        for piece in pieces {
            let end = at + piece.length as usize;
            if let Source::Disk(place) = piece.source {
                let token = io.piece(gather);
                disk.start_write(place, data.slice(at..end), disk_reply, token);
            }
            at = end;
        }
        io.started(gather);
        None
    }

    /// Where the range is on disk if this lvol itself holds all of it.
    fn held_pieces(&self, offset: u64, length: u64) -> Option<Pieces> {
        let cluster_size = u64::from(self.core.layout().cluster_size);
        self.volume.with_chain(|chain| {
            let mut at = offset;
            while at < offset + length {
                let within = at % cluster_size;
                let end = (offset + length - at + within).min(cluster_size);
                let (first, blocks) = (within / BLOCK, end.div_ceil(BLOCK) - within / BLOCK);
                let run = chain[0].run((at / cluster_size) as u32, first as u32, blocks as u32);
                if !matches!(run.held, Held::Data(_)) || u64::from(run.count) < blocks {
                    return None;
                }
                at += end - within;
            }
            Some(resolve(self.core.layout().cluster_size, Range { offset, length }, |index, first, count| {
                find(&chain[..1], index, first, count)
            }))
        })
    }

    /// Whatever changes the lvol and is not an overwrite.
    async fn change(&self, request: Request) -> Outcome {
        self.core.check_running()?;
        let fua = match request {
            Request::Write { offset, data, fua } => {
                self.first_write(offset, data).await?;
                fua
            }
            Request::Unmap { ranges } => {
                for range in ranges {
                    self.erase(range).await?;
                }
                false
            }
            Request::WriteZeroes { range, fua, .. } => {
                self.erase(range).await?;
                fua
            }
            Request::Read { .. } | Request::Compare { .. } | Request::Flush => {
                return Err(ErrorKind::Internal.into());
            }
        };
        if fua {
            self.core.flush().await?;
        }
        Ok(Segments::none())
    }

    async fn compare(&self, offset: u64, expected: &Slice) -> Outcome {
        let found = execute(self, Request::read(offset, expected.len() as u64)).await?;
        match found.equals(expected) {
            true => Ok(Segments::none()),
            false => Err(ErrorKind::CompareMismatch.into()),
        }
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        if self.volume.is_retired() || self.core.is_closed() {
            return Err(ErrorKind::Unavailable.into());
        }
        self.geometry().check(request)
    }
}

impl Drop for Lvol {
    fn drop(&mut self) {
        if self.volume.is_deleted() {
            self.core.merges.wake();
        }
        // This handle is the last; the catalog has one reference.
        if Rc::strong_count(&self.volume) == 2 {
            let bytes = self.volume.with_chain(|chain| chain.iter().map(|map| map.heap_bytes()).sum());
            self.core.residency.let_go(bytes);
        }
    }
}

impl BlockDevice for Lvol {
    fn geometry(&self) -> Geometry {
        let (size, block_size) = (self.volume.size(), self.volume.block_size());
        Geometry {
            block_size,
            blocks: size / u64::from(block_size),
            allocation_unit: BLOCK as u32,
            // First writes are whole by the journal, whatever the disk does.
            atomic_write: self.core.disk.atomic_write().min(block_size),
            read_only: self.volume.read_only(),
        }
    }

    fn submit(&self, request: Request, reply: Reply) {
        if let Err(error) = self.check(&request) {
            return reply.fail(error);
        }
        match request {
            Request::Read { range: Range { length: 0, .. } } => reply.complete(Ok(Segments::none())),
            Request::Read { range } => self.read(range, reply),
            Request::Write { .. } | Request::Unmap { .. } | Request::WriteZeroes { .. } => self.write(request, reply),
            Request::Flush => {
                let core = Rc::clone(&self.core);
                spawn(
                    async move { reply.complete(core.flush().await.map(|()| Segments::none()).map_err(Error::from)) },
                );
            }
            Request::Compare { offset, data } => {
                let lvol = Self { core: Rc::clone(&self.core), volume: Rc::clone(&self.volume) };
                spawn(async move { reply.complete(lvol.compare(offset, &data).await) });
            }
        }
    }
}

/// Shared zeroes of this length, in as many slices as it takes.
pub(crate) fn push_zeroes(mut length: usize, mut push: impl FnMut(Slice)) {
    while length > 0 {
        let now = length.min(Slice::MAX_ZEROES);
        push(Slice::zeroes(now));
        length -= now;
    }
}

/// The same bytes where the disk can take them from: data from the network may lie anywhere in memory.
pub(crate) fn aligned(data: Slice, alignment: u32) -> Slice {
    match (data.as_ptr() as usize).is_multiple_of(alignment as usize) {
        true => data,
        false => Buffer::copy_of(&data).freeze(),
    }
}
