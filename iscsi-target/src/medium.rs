//! What the unit orders of the medium: one request to the device where that is enough, otherwise a few, one after the other.

use std::rc::Rc;

use block_device::{Allocation, Buffer, Error, ErrorKind, Geometry, Range, Request, Segments, Slice, execute};
use scsi_protocol::command::{Access, Blocks};
use scsi_protocol::copy::{Copy, CopyResult};
use scsi_protocol::provisioning::{Provisioning, Run, lba_status};
use scsi_protocol::sense::Sense;
use scsi_protocol::unit::{NexusId, Response};
use smallvec::SmallVec;

use crate::status::{Failure, failure_of};
use crate::target::Target;

/// Bytes that move at a time in commands that take several requests.
const STEP: u64 = 1 << 20;

/// Runs that one GET LBA STATUS tells: what initiators make room for.
const STATUS_RUNS: usize = 256;

/// What an access takes.
pub(crate) enum Plan {
    /// Nothing: there are no blocks.
    Nothing,
    /// One request.
    Request(Request),
    /// Several; [`carry_out`] does them.
    Several,
}

/// Whether an access changes the medium, so that the gate has to let it in.
#[inline]
pub(crate) fn writes(access: &Access) -> bool {
    matches!(access, Access::Write { .. } | Access::WriteSame { .. })
}

/// How an access with its data is done. Every write is durable if `fua`.
#[inline]
pub(crate) fn plan(access: &Access, data: impl FnOnce() -> Slice, block_size: u32, fua: bool) -> Plan {
    let range = |blocks: &Blocks| range_of(blocks, block_size);
    let is_long = |blocks: &Blocks| range(blocks).length > u64::from(Geometry::MAX_TRANSFER);
    Plan::Request(match access {
        Access::Read(blocks) | Access::Verify { blocks, .. } | Access::Write { blocks, .. } if blocks.count == 0 => {
            return Plan::Nothing;
        }
        Access::Read(blocks) | Access::Verify { blocks, .. } | Access::Write { blocks, .. } if is_long(blocks) => {
            return Plan::Several;
        }
        Access::Read(blocks) | Access::Verify { blocks, compare: false } => Request::Read { range: range(blocks) },
        Access::Write { blocks, fua: own } => {
            Request::Write { offset: range(blocks).offset, data: data(), fua: *own || fua }
        }
        Access::Verify { blocks, compare: true } => Request::Compare { offset: range(blocks).offset, data: data() },
        Access::WriteSame { blocks, unmap, zeroes } if *zeroes || data().iter().all(|byte| *byte == 0) => {
            Request::WriteZeroes { range: range(blocks), unmap: *unmap, fua }
        }
        Access::Flush => Request::Flush,
        Access::WriteAndVerify { blocks, .. }
        | Access::OrWrite { blocks, .. }
        | Access::CompareAndWrite { blocks, .. }
            if blocks.count == 0 =>
        {
            return Plan::Nothing;
        }
        Access::WriteSame { .. }
        | Access::WriteAndVerify { .. }
        | Access::OrWrite { .. }
        | Access::CompareAndWrite { .. }
        | Access::Status { .. } => return Plan::Several,
    })
}

/// An unmap as a request; none if there is nothing to do.
pub(crate) fn unmap(blocks: &[Blocks], block_size: u32) -> Option<Request> {
    let ranges: SmallVec<[Range; 2]> = blocks.iter().map(|blocks| range_of(blocks, block_size)).collect();
    (!ranges.is_empty()).then_some(Request::Unmap { ranges })
}

fn range_of(blocks: &Blocks, block_size: u32) -> Range {
    Range { offset: blocks.start * u64::from(block_size), length: u64::from(blocks.count) * u64::from(block_size) }
}

/// The answer to a failed request.
pub(crate) fn response_of(error: &Error) -> Response {
    match failure_of(error.kind()) {
        Failure::Check(sense) => Response::check(sense),
        Failure::Busy => Response::busy(),
    }
}

/// Carries out an access that takes several requests.
pub(crate) async fn carry_out(target: &Rc<Target>, access: Access, data: Slice) -> Response {
    let medium = Medium { target, fua: target.unit.borrow().forces_unit_access() };
    let result = match access {
        Access::Read(blocks) => {
            return medium
                .read(range_of(&blocks, medium.block_size()))
                .await
                .map_or_else(|failed| failed, Response::good);
        }
        Access::Write { blocks, fua } => medium.write_entered(&blocks, fua, data).await,
        Access::Verify { blocks, compare } => medium.verify(&blocks, compare, &data).await,
        Access::WriteSame { blocks, .. } => medium.write_same(&blocks, &data).await,
        Access::WriteAndVerify { blocks, compare } => medium.write_and_verify(&blocks, compare, data).await,
        Access::OrWrite { blocks, fua } => medium.or_write(&blocks, fua, &data).await,
        Access::CompareAndWrite { blocks, fua } => medium.compare_and_write(&blocks, fua, &data).await,
        Access::Status { start, allocation } => return medium.status(start, allocation).await,
        // It is one request.
        Access::Flush => medium.execute(Request::Flush).await.map(drop),
    };
    match result {
        Ok(()) => Response::good(Vec::new()),
        Err(response) => response,
    }
}

/// Carries out a copy, and keeps its result.
pub(crate) async fn copy(target: &Rc<Target>, nexus: NexusId, copy: Copy) -> Response {
    let medium = Medium { target, fua: target.unit.borrow().forces_unit_access() };
    let mut result = CopyResult { list: copy.list.unwrap_or_default(), completed: true, segments: 0, bytes: 0 };
    let mut response = Response::good(Vec::new());
    for segment in &copy.segments {
        match medium.copy_blocks(&segment.source, segment.destination).await {
            Ok(bytes) => {
                result.segments += 1;
                result.bytes += bytes;
            }
            Err(failed) => {
                result.completed = false;
                response = failed;
                break;
            }
        }
    }
    if copy.list.is_some() {
        target.unit.borrow_mut().copied(nexus, result);
    }
    response
}

/// The device, for commands of several requests. A request that finds the device busy fails the command with BUSY.
struct Medium<'a> {
    target: &'a Rc<Target>,
    fua: bool,
}

impl Medium<'_> {
    fn block_size(&self) -> u32 {
        self.target.device.geometry().block_size
    }

    async fn execute(&self, request: Request) -> Result<Segments, Response> {
        self.target.request_begins();
        let outcome = execute(&*self.target.device, request).await;
        self.target.request_ends();
        outcome.map_err(|error| response_of(&error))
    }

    /// Reads a range of any length.
    async fn read(&self, range: Range) -> Result<Vec<u8>, Response> {
        let mut bytes = Vec::with_capacity(range.length as usize);
        for range in steps(range) {
            self.execute(Request::Read { range }).await?.iter().for_each(|slice| bytes.extend_from_slice(slice));
        }
        Ok(bytes)
    }

    /// Writes data of any length. The gate is the caller's business.
    async fn write(&self, offset: u64, data: Slice, fua: bool) -> Result<(), Response> {
        for range in steps(Range { offset, length: data.len() as u64 }) {
            let from = (range.offset - offset) as usize;
            let data = data.slice(from..from + range.length as usize);
            self.execute(Request::Write { offset: range.offset, data, fua: fua || self.fua }).await?;
        }
        Ok(())
    }

    async fn write_entered(&self, blocks: &Blocks, fua: bool, data: Slice) -> Result<(), Response> {
        self.enter().await;
        let written = self.write(range_of(blocks, self.block_size()).offset, data, fua).await;
        self.target.gate.leave();
        written
    }

    /// Reads what is there, and compares it with the data if that is asked for.
    async fn verify(&self, blocks: &Blocks, compare: bool, data: &[u8]) -> Result<(), Response> {
        let old = self.read(range_of(blocks, self.block_size())).await?;
        if compare { check_equal(&old, data) } else { Ok(()) }
    }

    /// The same block again and again.
    async fn write_same(&self, blocks: &Blocks, block: &[u8]) -> Result<(), Response> {
        let range = range_of(blocks, self.block_size());
        let step = STEP.min(range.length);
        let mut pattern = Buffer::new(step as usize);
        pattern.chunks_exact_mut(block.len()).for_each(|chunk| chunk.copy_from_slice(block));
        let pattern = pattern.freeze();
        let mut at = range.offset;
        while at < range.end() {
            let length = step.min(range.end() - at);
            self.enter().await;
            let written = self.write(at, pattern.slice(..length as usize), false).await;
            self.target.gate.leave();
            written?;
            at += length;
        }
        Ok(())
    }

    /// Durable, and then read from the medium.
    async fn write_and_verify(&self, blocks: &Blocks, compare: bool, data: Slice) -> Result<(), Response> {
        let range = range_of(blocks, self.block_size());
        self.exclusively(async {
            self.write(range.offset, data.clone(), true).await?;
            let request =
                if compare { Request::Compare { offset: range.offset, data } } else { Request::Read { range } };
            self.execute(request).await.map(drop)
        })
        .await
    }

    async fn or_write(&self, blocks: &Blocks, fua: bool, data: &[u8]) -> Result<(), Response> {
        let range = range_of(blocks, self.block_size());
        self.exclusively(async {
            let old = self.read(range).await?;
            let mut new = Buffer::new(old.len());
            new.iter_mut().zip(old.iter().zip(data)).for_each(|(new, (old, data))| *new = old | data);
            self.write(range.offset, new.freeze(), fua).await
        })
        .await
    }

    /// The second half of the data where the first is.
    async fn compare_and_write(&self, blocks: &Blocks, fua: bool, data: &Slice) -> Result<(), Response> {
        let range = range_of(blocks, self.block_size());
        let half = range.length as usize;
        self.exclusively(async {
            let old = self.read(range).await?;
            check_equal(&old, &data[..half])?;
            self.write(range.offset, data.slice(half..), fua).await
        })
        .await
    }

    /// Bytes copied. Overlapping ranges end as if all had been read first, if a segment is not longer than a step.
    async fn copy_blocks(&self, source: &Blocks, destination: u64) -> Result<u64, Response> {
        let from = range_of(source, self.block_size());
        let to = destination * u64::from(self.block_size());
        let mut done = 0;
        while done < from.length {
            let length = STEP.min(from.length - done);
            let old = self.read(Range { offset: from.offset + done, length }).await?;
            self.enter().await;
            let written = self.write(to + done, Slice::from(&old[..]), false).await;
            self.target.gate.leave();
            written?;
            done += length;
        }
        Ok(done)
    }

    /// GET LBA STATUS. Where a device does not tell, all blocks have space of their own as far as an initiator can tell.
    async fn status(&self, start: u64, allocation: u32) -> Response {
        let block = u64::from(self.block_size());
        let told = self.target.device.allocation(start * block, STATUS_RUNS).await;
        let mut runs: Vec<_> = told.unwrap_or_default().iter().map_while(|told| run_of(told, block)).collect();
        if runs.is_empty() {
            let left = self.target.device.geometry().blocks.saturating_sub(start);
            let blocks = Blocks { start, count: u32::try_from(left).unwrap_or(u32::MAX) };
            runs.push(Run { blocks, provisioning: Provisioning::Mapped });
        }
        Response::good(lba_status(&runs, allocation))
    }

    /// Waits until the gate lets a write in.
    async fn enter(&self) {
        while !self.target.gate.enter() {
            self.target.gate.opened().await;
        }
    }

    /// With no other write at the device.
    async fn exclusively<T>(&self, work: impl Future<Output = Result<T, Response>>) -> Result<T, Response> {
        self.target.gate.close().await;
        let result = work.await;
        self.target.gate.open();
        self.target.wake_all();
        result
    }
}

/// A range in pieces that one request each can have.
fn steps(range: Range) -> impl Iterator<Item = Range> {
    let step = u64::from(Geometry::MAX_TRANSFER);
    (0..range.length.div_ceil(step)).map(move |index| {
        let offset = range.offset + index * step;
        Range { offset, length: step.min(range.end() - offset) }
    })
}

/// A run in blocks; none for what no descriptor can say, or is not of whole blocks.
fn run_of(told: &Allocation, block: u64) -> Option<Run> {
    let whole = told.range.offset.is_multiple_of(block) && told.range.length.is_multiple_of(block);
    let count = u32::try_from(told.range.length / block).ok().filter(|_| whole)?;
    let provisioning = if told.mapped { Provisioning::Mapped } else { Provisioning::Deallocated };
    Some(Run { blocks: Blocks { start: told.range.offset / block, count }, provisioning })
}

/// MISCOMPARE with the place of the first difference (SBC 5.3).
fn check_equal(old: &[u8], expected: &[u8]) -> Result<(), Response> {
    match old.iter().zip(expected).position(|(old, expected)| old != expected) {
        Some(offset) => Err(Response::check(Sense::MISCOMPARE.with_information(offset as u64))),
        None => Ok(()),
    }
}

/// Whether a request that failed so is to be tried again (I33).
pub(crate) fn is_busy(error: &Error) -> bool {
    error.kind() == ErrorKind::Busy
}
