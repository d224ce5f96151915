//! First writes: data into clusters, then the map.
//!
//! The order is what a crash is safe by: clusters are taken in memory only, the data is written, and only when it is there
//! does the journal say that the map has it. A crash before that leaves the old content and the cluster free.

use std::ops::Range as Span;

use block_device::{Error, ErrorKind, Range, Slice};
use reactor::Buffer;
use smallvec::SmallVec;

use crate::chain::Source;
use crate::error::StoreError;
use crate::format::record::{BlockChecksums, Record};
use crate::format::{BLOCK, crc32c};
use crate::locks::Mode;
use crate::lvol::{Lvol, aligned};
use crate::map::{Held, Map};

/// A write to the disk that is due.
struct DiskWrite {
    offset: u64,
    data: SmallVec<[Slice; 1]>,
    length: u64,
}

/// What a first write is going to do, before it does it.
#[derive(Default)]
struct Plan {
    writes: Vec<DiskWrite>,
    /// Bytes of the disk that must be zero: zeroes that had no cluster get one.
    zeroes: Vec<Range>,
    records: Vec<Record>,
}

/// Clusters that this write fills; given back when it is over.
struct Claims<'a> {
    lvol: &'a Lvol,
    indices: Vec<u32>,
}

impl Lvol {
    /// Writes data of which some blocks are not held yet, or that has to be merged with what is there.
    pub(crate) async fn first_write(&self, offset: u64, data: Slice) -> Result<(), Error> {
        if data.is_empty() {
            return Ok(());
        }
        let clusters = self.clusters(offset, data.len() as u64);
        let mut mode = self.needed_mode(offset, data.len() as u64, &clusters);
        let mut held = self.volume().locks.lock(clusters.clone(), mode).await;
        if mode == Mode::Shared && self.needed_mode(offset, data.len() as u64, &clusters) == Mode::Exclusive {
            // Meanwhile zeroes without a cluster came to be here.
            mode = Mode::Exclusive;
            drop(held);
            held = self.volume().locks.lock(clusters.clone(), mode).await;
        }
        let parts = self.block_parts(offset, data).await?;
        let claims = self.claim(clusters).await?;
        let plan = self.plan(&parts);
        self.perform(plan).await?;
        drop(claims);
        drop(held);
        Ok(())
    }

    /// The clusters of the lvol that a range of bytes touches.
    pub(crate) fn clusters(&self, offset: u64, length: u64) -> Span<u64> {
        let cluster_size = u64::from(self.core().layout().cluster_size);
        offset / cluster_size..(offset + length).div_ceil(cluster_size)
    }

    /// Blocks can be added to clusters by several at once; merging old bytes with new ones and turning zeroes into a
    /// cluster cannot (I19).
    fn needed_mode(&self, offset: u64, length: u64, clusters: &Span<u64>) -> Mode {
        let map = self.volume().map();
        let partial = !offset.is_multiple_of(BLOCK) || !(offset + length).is_multiple_of(BLOCK);
        let zeroes = || clusters.clone().any(|index| map.kind(index as u32) == Held::Zero);
        if partial || zeroes() { Mode::Exclusive } else { Mode::Shared }
    }

    /// Cuts the data into parts of whole blocks. Parts of a block are merged with the rest of it, unless the lvol holds the
    /// block and the disk can write the part alone.
    async fn block_parts(&self, offset: u64, data: Slice) -> Result<SmallVec<[(u64, Slice); 3]>, Error> {
        let mut parts = SmallVec::new();
        let end = offset + data.len() as u64;
        let slice = |from: u64, to: u64| data.slice((from - offset) as usize..(to - offset) as usize);
        let head = offset.next_multiple_of(BLOCK).min(end);
        let tail = (end - end % BLOCK).max(head);
        for (from, to) in [(offset, head), (tail, end)] {
            if from < to {
                let part = self.block_part(from, slice(from, to)).await?;
                parts.push(part);
            }
        }
        if head < tail {
            parts.push((head, aligned(slice(head, tail), self.core().disk.alignment())));
        }
        Ok(parts)
    }

    async fn block_part(&self, offset: u64, part: Slice) -> Result<(u64, Slice), Error> {
        let block = offset - offset % BLOCK;
        let cluster_size = u64::from(self.core().layout().cluster_size);
        let map = self.volume().map();
        let run = map.run((block / cluster_size) as u32, (block % cluster_size / BLOCK) as u32, 1);
        if !self.merges()
            && let Held::Data(cluster) = run.held
        {
            let place = self.core().layout().cluster_offset(cluster) + block % cluster_size;
            if self.core().marks.touches(Range { offset: place, length: BLOCK }) {
                // The rest of the block is lost: nobody may take it for good.
                return Err(Error::with_detail(ErrorKind::ReadFailed, "the rest of the block is damaged"));
            }
            // Overwrites of other parts of this block do not take locks: merging would undo them.
            return Ok((offset, aligned(part, self.core().disk.alignment())));
        }
        let mut buffer = self.read_block(block).await?;
        let from = (offset - block) as usize;
        buffer[from..from + part.len()].copy_from_slice(&part);
        Ok((block, buffer.freeze()))
    }

    /// A whole block as the lvol reads now.
    async fn read_block(&self, offset: u64) -> Result<Buffer, Error> {
        let pieces = self.resolve(Range { offset, length: BLOCK });
        self.core().marks.check(&pieces)?;
        let buffer = Buffer::try_new(BLOCK as usize).ok_or(ErrorKind::Busy)?;
        match pieces[0].source {
            Source::Zeroes => {
                let mut buffer = buffer;
                buffer.fill(0);
                Ok(buffer)
            }
            Source::Disk(place) => {
                let ticket = self.core().io.grace.enter();
                let (result, buffer) = self.core().disk.read(place, buffer).await;
                self.core().io.grace.leave(ticket);
                result.map(|()| buffer).map_err(|error| Error::read_failed(&error))
            }
        }
    }

    /// Makes sure that each cluster of the lvol has one on disk: in the map, or being filled.
    async fn claim(&self, clusters: Span<u64>) -> Result<Claims<'_>, Error> {
        let mut claims = Claims { lvol: self, indices: Vec::new() };
        let mut next = clusters.start;
        while next < clusters.end {
            if self.claim_some(&mut next, clusters.end, &mut claims) {
                continue;
            }
            if !self.core().wait_for_space().await {
                return Err(StoreError::NoSpace { detail: "all clusters are in use" }.into());
            }
        }
        Ok(claims)
    }

    /// Claims clusters from `next` on; false when there is no space for the one at `next`.
    fn claim_some(&self, next: &mut u64, end: u64, claims: &mut Claims<'_>) -> bool {
        let volume = self.volume();
        let map = volume.map();
        let is_new = |index: u64| !matches!(map.kind(index as u32), Held::Data(_));
        if !is_new(*next) {
            *next += 1;
            return true;
        }
        if volume.join_filling(*next as u32).is_some() {
            claims.indices.push(*next as u32);
            *next += 1;
            return true;
        }
        let want = (*next..end).take_while(|&index| is_new(index)).count() as u64;
        let Some(run) = self.core().catalog.borrow_mut().take(want, volume.internal()) else { return false };
        let mut left = run.first..run.first + run.count;
        while *next < end && is_new(*next) {
            if volume.join_filling(*next as u32).is_none() {
                let Some(cluster) = left.next() else { break };
                volume.start_filling(*next as u32, cluster);
            }
            claims.indices.push(*next as u32);
            *next += 1;
        }
        // Others were filling some of them: the rest was not needed.
        let mut catalog = self.core().catalog.borrow_mut();
        left.for_each(|cluster| catalog.allocator.release(cluster));
        true
    }

    fn plan(&self, parts: &[(u64, Slice)]) -> Plan {
        let cluster_size = u64::from(self.core().layout().cluster_size);
        let map = self.volume().map();
        let mut plan = Plan::default();
        for (offset, data) in parts {
            let mut at = 0;
            while at < data.len() as u64 {
                let place = offset + at;
                let length = (cluster_size - place % cluster_size).min(data.len() as u64 - at);
                let piece = data.slice(at as usize..(at + length) as usize);
                self.plan_cluster(&map, place, piece, &mut plan);
                at += length;
            }
        }
        plan
    }

    /// Plans the write of data that lies within one cluster.
    fn plan_cluster(&self, map: &Map, offset: u64, data: Slice, plan: &mut Plan) {
        let cluster_size = u64::from(self.core().layout().cluster_size);
        let index = (offset / cluster_size) as u32;
        let within = offset % cluster_size;
        let kind = map.kind(index);
        let cluster = match kind {
            Held::Data(cluster) => cluster,
            // Claimed before: it is being filled.
            _ => self.volume().filling_cluster(index),
        };
        let base = self.core().layout().cluster_offset(cluster);
        let (first, blocks) = ((within / BLOCK) as u32, (data.len() as u64).div_ceil(BLOCK) as u32);
        if kind == Held::Zero {
            plan.keep_zeroes(map, index, cluster, base, first..first + blocks);
        }
        let mut at = first;
        while at < first + blocks {
            let run = map.run(index, at, first + blocks - at);
            if !matches!(run.held, Held::Data(_)) {
                // Only whole blocks get here: parts are merged unless the block is held.
                let from = ((at - first) as u64 * BLOCK) as usize;
                let bytes = &data[from..from + run.count as usize * BLOCK as usize];
                let checksums: BlockChecksums = bytes.chunks_exact(BLOCK as usize).map(crc32c).collect();
                let record = Record::MapSet { map: map.id(), index, cluster, first: at as u16, checksums };
                plan.records.push(record);
            }
            at += run.count;
        }
        plan.write(base + within, data);
    }

    async fn perform(&self, plan: Plan) -> Result<(), Error> {
        let disk = &self.core().disk;
        let mut plan = plan;
        let written = plan.writes.iter().map(|write| Range { offset: write.offset, length: write.length });
        let mended = self.core().marks.mended(written);
        for range in plan.zeroes {
            disk.write_zeroes(range.offset, range.length).await.map_err(|error| Error::write_failed(&error))?;
        }
        for write in plan.writes {
            disk.write_slices(write.offset, write.data).await.map_err(|error| Error::write_failed(&error))?;
        }
        if !mended.is_empty() {
            // A mark that went before its data was durable would leave the old bytes for good ones.
            self.core().flush().await?;
            plan.records.extend(mended);
        }
        if !plan.records.is_empty() {
            self.core().commit(plan.records).await?;
        }
        Ok(())
    }
}

impl Plan {
    /// An entry of zeroes gets a cluster: its zero blocks, but for those that are written now, must be zero there.
    ///
    /// The record covers those that are written too: when their data does not survive a power cut, they are zeroes again,
    /// not the parent's.
    fn keep_zeroes(&mut self, map: &Map, index: u32, cluster: u64, base: u64, written: Span<u32>) {
        let mut at = 0;
        while at < map.shape().blocks() {
            let run = map.run(index, at, map.shape().blocks() - at);
            if run.held == Held::Zero {
                // A cluster has at most 1024 blocks.
                let (first, count) = (at as u16, run.count as u16);
                self.records.push(Record::MapSetZeroed { map: map.id(), index, cluster, first, count });
                self.zero(base, at..(at + run.count).min(written.start));
                self.zero(base, at.max(written.end)..at + run.count);
            }
            at += run.count;
        }
    }

    fn zero(&mut self, base: u64, blocks: Span<u32>) {
        if !blocks.is_empty() {
            let length = u64::from(blocks.end - blocks.start) * BLOCK;
            self.zeroes.push(Range { offset: base + u64::from(blocks.start) * BLOCK, length });
        }
    }

    fn write(&mut self, offset: u64, data: Slice) {
        let length = data.len() as u64;
        match self.writes.last_mut() {
            Some(last) if last.offset + last.length == offset => {
                last.data.push(data);
                last.length += length;
            }
            _ => self.writes.push(DiskWrite { offset, data: SmallVec::from_iter([data]), length }),
        }
    }
}

impl Drop for Claims<'_> {
    fn drop(&mut self) {
        let volume = self.lvol.volume();
        let map = volume.map();
        for &index in &self.indices {
            let Some(cluster) = volume.end_filling(index) else { continue };
            // Nothing came of it. After a failed write of the journal nobody knows: the cluster stays taken.
            if map.kind(index) != Held::Data(cluster) && self.lvol.core().check_running().is_ok() {
                self.lvol.core().catalog.borrow_mut().allocator.release(cluster);
            }
        }
    }
}
