//! A device over a whole disk or file, without a store.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use reactor::{Disk, DiskReply, DiskSink, spawn};
use smallvec::SmallVec;

use crate::{BlockDevice, Buffer, Error, ErrorKind, Geometry, GeometryError, Range, Reply, Request, Segments};

/// Passes requests straight to a disk. For raw disks and for measuring what the store adds.
pub struct FileDevice {
    disk: Disk,
    geometry: Geometry,
    in_flight: Rc<InFlight>,
    disk_reply: DiskReply,
}

/// Replies of reads and plain writes in flight: the token is the index.
#[derive(Default)]
struct InFlight(RefCell<(Vec<Option<Reply>>, Vec<usize>)>);

impl InFlight {
    fn insert(&self, reply: Reply) -> u64 {
        let (replies, free) = &mut *self.0.borrow_mut();
        let index = free.pop().unwrap_or_else(|| {
            replies.push(None);
            replies.len() - 1
        });
        replies[index] = Some(reply);
        index as u64
    }

    fn take(&self, token: u64) -> Option<Reply> {
        let (replies, free) = &mut *self.0.borrow_mut();
        let reply = replies[token as usize].take();
        free.push(token as usize);
        reply
    }
}

impl DiskSink for InFlight {
    fn read_done(&self, token: u64, result: io::Result<()>, buffer: Buffer) {
        if let Some(reply) = self.take(token) {
            reply.complete(read_outcome(result, buffer));
        }
    }

    fn write_done(&self, token: u64, result: io::Result<()>) {
        if let Some(reply) = self.take(token) {
            reply.complete(write_outcome(result));
        }
    }
}

fn read_outcome(result: io::Result<()>, buffer: Buffer) -> crate::Outcome {
    result.map(|()| Segments::from(buffer.freeze())).map_err(|error| Error::read_failed(&error))
}

fn write_outcome(result: io::Result<()>) -> crate::Outcome {
    result.map(|()| Segments::none()).map_err(|error| Error::write_failed(&error))
}

impl FileDevice {
    /// A device over `disk`, with blocks of `block_size`, at least the disk's own alignment.
    pub fn new(disk: Disk, block_size: u32) -> Result<Self, GeometryError> {
        if block_size < disk.alignment() {
            return Err(GeometryError::BlockSize(block_size));
        }
        let whole = disk.size() - disk.size() % u64::from(block_size);
        let atomic_write = disk.atomic_write().min(block_size);
        let geometry = Geometry { atomic_write, ..Geometry::new(whole, block_size)? };
        let in_flight = Rc::new(InFlight::default());
        let disk_reply = DiskReply::new(Rc::clone(&in_flight) as Rc<dyn DiskSink>);
        Ok(Self { disk, geometry, in_flight, disk_reply })
    }

    fn read(&self, range: Range, reply: Reply) {
        let Some(buffer) = Buffer::try_new(range.length as usize) else { return reply.fail(ErrorKind::Busy) };
        self.disk.start_read(range.offset, buffer, &self.disk_reply, self.in_flight.insert(reply));
    }
}

impl BlockDevice for FileDevice {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn submit(&self, request: Request, reply: Reply) {
        if let Err(error) = self.geometry.check(&request) {
            return reply.fail(error);
        }
        match request {
            Request::Read { range } => self.read(range, reply),
            Request::Write { offset, data, fua: false } => {
                self.disk.start_write(offset, data, &self.disk_reply, self.in_flight.insert(reply));
            }
            rare => {
                let disk = self.disk.clone();
                spawn(async move { reply.complete(perform(&disk, rare).await) });
            }
        }
    }
}

/// What is not on the hot path, as a task of its own.
async fn perform(disk: &Disk, request: Request) -> crate::Outcome {
    match request {
        Request::Read { .. } => return Err(ErrorKind::Internal.into()),
        Request::Write { offset, data, .. } => write_outcome(disk.write(offset, data).await)?,
        Request::WriteZeroes { range, unmap, .. } => {
            let result = match unmap {
                true => disk.discard(range.offset, range.length).await,
                false => disk.write_zeroes(range.offset, range.length).await,
            };
            write_outcome(result)?
        }
        Request::Unmap { ranges } => return unmap(disk, ranges).await,
        Request::Compare { offset, data } => return compare(disk, offset, &data).await,
        Request::Flush => Segments::none(),
    };
    // Flush, and whatever came here because of FUA.
    write_outcome(disk.sync().await)
}

async fn unmap(disk: &Disk, ranges: SmallVec<[Range; 2]>) -> crate::Outcome {
    for range in ranges {
        write_outcome(disk.discard(range.offset, range.length).await)?;
    }
    Ok(Segments::none())
}

async fn compare(disk: &Disk, offset: u64, expected: &[u8]) -> crate::Outcome {
    let buffer = Buffer::try_new(expected.len()).ok_or(ErrorKind::Busy)?;
    let (result, buffer) = disk.read(offset, buffer).await;
    let found = read_outcome(result, buffer)?;
    match found.equals(expected) {
        true => Ok(Segments::none()),
        false => Err(ErrorKind::CompareMismatch.into()),
    }
}
