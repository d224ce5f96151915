//! Disks: files and block devices through the driver, or plain memory.

use std::cell::{Cell, OnceCell, RefCell};
use std::io;
use std::path::Path;
use std::rc::Rc;

use smallvec::{SmallVec, smallvec};

use crate::buffer::{Buffer, Slice};
use crate::core::Home;
use crate::driver::{Completion, Operation, ResourceId};
use crate::memory::Memory;

/// How to open a disk.
#[derive(Clone, Debug, Default)]
pub struct DiskOptions {
    /// Make the file with this size in bytes if there is none (sparse).
    pub create: Option<u64>,
    /// Refuse writes.
    pub read_only: bool,
    /// Go without O_DIRECT where the file system has none (tmpfs): for tests.
    pub buffered: bool,
}

/// An open disk. Clones share it; the last one closes it. An exclusive lock is held while it is open, so that no second
/// process or store uses it.
///
/// Offsets, lengths and memory are multiples of [`Disk::alignment`].
#[derive(Clone)]
pub struct Disk {
    inner: Rc<Inner>,
}

struct Inner {
    backing: Backing,
    size: Cell<u64>,
    alignment: u32,
    atomic_write: u32,
    watcher: OnceCell<Box<dyn Fn(DiskAction)>>,
}

/// Something that a disk is asked to do, for [`Disk::watch`]. Offsets and lengths are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are what the type's own line says")]
pub enum DiskAction {
    /// Read.
    Read { offset: u64, length: u64 },
    /// Write.
    Write { offset: u64, length: u64 },
    /// Make a range read as zeroes.
    WriteZeroes { offset: u64, length: u64 },
    /// Give a range back.
    Discard { offset: u64, length: u64 },
    /// Make stable what was written.
    Sync,
}

enum Backing {
    Driver(Home, ResourceId),
    /// Inline copies: a memory file would cost more through the kernel (docs/decisions).
    Memory(RefCell<Memory>),
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Backing::Driver(home, id) = &self.backing {
            home.with(|core| core.close(*id));
        }
    }
}

/// Receives the end of a disk operation started with [`Disk::start_read`] or [`Disk::start_write`].
pub trait DiskSink {
    /// The read with this token is done; the buffer is full if the result is good.
    fn read_done(&self, token: u64, result: io::Result<()>, buffer: Buffer);
    /// The write with this token is done.
    fn write_done(&self, token: u64, result: io::Result<()>);
}

/// Turns completions of the driver into those of a disk.
struct SinkAdapter(Rc<dyn DiskSink>);

impl crate::core::OperationSink for SinkAdapter {
    fn complete(&self, token: u64, completion: Completion) {
        let result = completion.result.map(drop);
        match completion.operation {
            Some(Operation::DiskRead { buffer, .. }) => self.0.read_done(token, result, buffer),
            _ => self.0.write_done(token, result),
        }
    }
}

/// A [`DiskSink`] ready to be used again and again, so that starting an operation allocates nothing.
#[derive(Clone)]
pub struct DiskReply(Rc<SinkAdapter>);

impl DiskReply {
    /// Wraps a sink.
    pub fn new(sink: Rc<dyn DiskSink>) -> Self {
        Self(Rc::new(SinkAdapter(sink)))
    }
}

impl Disk {
    /// Opens a file or block device.
    ///
    /// # Errors
    /// `WouldBlock` with a clear text when another process holds it; the system's errors otherwise.
    pub fn open(path: &Path, options: &DiskOptions) -> io::Result<Self> {
        let home = Home::here();
        let opened = home.with_driver(|driver| driver.open_disk(path, options))?;
        let backing = Backing::Driver(home, opened.id);
        Ok(Self::new(backing, opened.size, opened.alignment, opened.atomic_write))
    }

    /// A disk of plain memory, zeroes at first, gone with its last clone.
    pub fn memory(size: u64) -> io::Result<Self> {
        Ok(Self::new(Backing::Memory(RefCell::new(Memory::dense(size)?)), size, 512, 4096))
    }

    /// A disk of memory that keeps only what is not zero, so that it can be much larger than memory. Slower than
    /// [`Disk::memory`].
    pub fn sparse_memory(size: u64) -> Self {
        Self::new(Backing::Memory(RefCell::new(Memory::sparse())), size, 512, 4096)
    }

    fn new(backing: Backing, size: u64, alignment: u32, atomic_write: u32) -> Self {
        let size = Cell::new(size);
        Self { inner: Rc::new(Inner { backing, size, alignment, atomic_write, watcher: OnceCell::new() }) }
    }

    /// Tells `watcher` of everything that this disk, or a clone of it, is asked to do from now on, before it is done: for
    /// measurements and tests. Only the first watcher of a disk counts.
    pub fn watch(&self, watcher: impl Fn(DiskAction) + 'static) {
        // Refused when there is one.
        let _ = self.inner.watcher.set(Box::new(watcher));
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.inner.size.get()
    }

    /// What offsets, lengths and memory must be multiples of, in bytes: a power of two, 512 to 4096.
    pub fn alignment(&self) -> u32 {
        self.inner.alignment
    }

    /// What a power cut leaves whole or untouched when one write covers it, in bytes, at multiples of it: a power of two, 512 to
    /// 4096, as far as the kernel knows the drive. Of memory nothing is left anyway.
    pub fn atomic_write(&self) -> u32 {
        self.inner.atomic_write
    }

    /// Changes the size of a file or memory, durably. Blocking and rare.
    pub fn resize(&self, size: u64) -> io::Result<()> {
        match &self.inner.backing {
            Backing::Driver(home, id) => home.with_driver(|driver| driver.resize_disk(*id, size))?,
            Backing::Memory(memory) => memory.borrow_mut().resize(self.size(), size)?,
        }
        self.inner.size.set(size);
        Ok(())
    }

    /// Takes notice of a file or device that became larger meanwhile; returns its size. Brief and blocking.
    pub fn measure(&self) -> io::Result<u64> {
        if let Backing::Driver(home, id) = &self.inner.backing {
            let size = home.with_driver(|driver| driver.measure_disk(*id))?;
            self.inner.size.set(size);
        }
        Ok(self.size())
    }

    /// Fills `buffer` from `offset`. Hands it back also with an error.
    pub async fn read(&self, offset: u64, buffer: Buffer) -> (io::Result<()>, Buffer) {
        if let Err(error) = self.check(offset, buffer.len() as u64) {
            return (Err(error), buffer);
        }
        self.tell(DiskAction::Read { offset, length: buffer.len() as u64 });
        match &self.inner.backing {
            Backing::Memory(memory) => read_memory(&memory.borrow(), offset, buffer),
            Backing::Driver(home, disk) => {
                let (result, operation) = home.perform(Operation::DiskRead { disk: *disk, offset, buffer }).await;
                let Operation::DiskRead { buffer, .. } = operation else {
                    unreachable!("a driver hands back the operation it was given")
                };
                (result.map(drop), buffer)
            }
        }
    }

    /// Writes all of `data` at `offset`. Done means that a kill of the process loses nothing; see [`Disk::sync`] for
    /// power cuts.
    pub async fn write(&self, offset: u64, data: Slice) -> io::Result<()> {
        self.write_slices(offset, smallvec![data]).await
    }

    /// Writes several slices one after the other at `offset`, as one operation. Each is aligned in memory and length.
    pub async fn write_slices(&self, offset: u64, data: SmallVec<[Slice; 1]>) -> io::Result<()> {
        let length = data.iter().map(|slice| slice.len() as u64).sum();
        self.check(offset, length)?;
        self.tell(DiskAction::Write { offset, length });
        match &self.inner.backing {
            Backing::Memory(memory) => {
                write_memory(&mut memory.borrow_mut(), offset, &data);
                Ok(())
            }
            Backing::Driver(home, disk) => {
                home.perform(Operation::DiskWrite { disk: *disk, offset, data }).await.0.map(drop)
            }
        }
    }

    /// Makes every write that was done before this call stable: a power cut loses none of them.
    pub async fn sync(&self) -> io::Result<()> {
        self.tell(DiskAction::Sync);
        self.range_operation(|disk| Operation::DiskSync { disk }, |_| ()).await
    }

    /// Gives a range back to the backing (hole punch or discard). It reads as zeroes afterwards.
    pub async fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.check(offset, length)?;
        self.tell(DiskAction::Discard { offset, length });
        self.range_operation(
            |disk| Operation::DiskDiscard { disk, offset, length },
            |memory| memory.zero(offset, length),
        )
        .await
    }

    /// Makes a range read as zeroes, keeping it allocated where the backing can.
    pub async fn write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.check(offset, length)?;
        self.tell(DiskAction::WriteZeroes { offset, length });
        self.range_operation(|disk| Operation::DiskZero { disk, offset, length }, |memory| memory.zero(offset, length))
            .await
    }

    /// Like [`Disk::read`] without a future: the sink is told. Memory disks answer before this returns.
    pub fn start_read(&self, offset: u64, buffer: Buffer, reply: &DiskReply, token: u64) {
        if let Err(error) = self.check(offset, buffer.len() as u64) {
            return reply.0.0.read_done(token, Err(error), buffer);
        }
        self.tell(DiskAction::Read { offset, length: buffer.len() as u64 });
        match &self.inner.backing {
            Backing::Memory(memory) => {
                let (result, buffer) = read_memory(&memory.borrow(), offset, buffer);
                reply.0.0.read_done(token, result, buffer);
            }
            Backing::Driver(home, disk) => {
                home.start(Operation::DiskRead { disk: *disk, offset, buffer }, Rc::clone(&reply.0) as Rc<_>, token);
            }
        }
    }

    /// Like [`Disk::write`] without a future: the sink is told. Memory disks answer before this returns.
    pub fn start_write(&self, offset: u64, data: Slice, reply: &DiskReply, token: u64) {
        if let Err(error) = self.check(offset, data.len() as u64) {
            return reply.0.0.write_done(token, Err(error));
        }
        self.tell(DiskAction::Write { offset, length: data.len() as u64 });
        match &self.inner.backing {
            Backing::Memory(memory) => {
                write_memory(&mut memory.borrow_mut(), offset, &[data]);
                reply.0.0.write_done(token, Ok(()));
            }
            Backing::Driver(home, disk) => {
                let operation = Operation::DiskWrite { disk: *disk, offset, data: smallvec![data] };
                home.start(operation, Rc::clone(&reply.0) as Rc<_>, token);
            }
        }
    }

    /// Reads from memory at once, without a future or a sink; `None` for other backings.
    pub fn read_now(&self, offset: u64, into: &mut [u8]) -> Option<io::Result<()>> {
        let Backing::Memory(memory) = &self.inner.backing else { return None };
        Some(self.check(offset, into.len() as u64).map(|()| {
            self.tell(DiskAction::Read { offset, length: into.len() as u64 });
            memory.borrow().read(offset, into);
        }))
    }

    async fn range_operation(
        &self,
        operation: impl FnOnce(ResourceId) -> Operation,
        in_memory: impl FnOnce(&mut Memory),
    ) -> io::Result<()> {
        match &self.inner.backing {
            Backing::Memory(memory) => {
                in_memory(&mut memory.borrow_mut());
                Ok(())
            }
            Backing::Driver(home, disk) => home.perform(operation(*disk)).await.0.map(drop),
        }
    }

    fn tell(&self, action: DiskAction) {
        if let Some(watcher) = self.inner.watcher.get() {
            watcher(action);
        }
    }

    fn check(&self, offset: u64, length: u64) -> io::Result<()> {
        let mask = u64::from(self.inner.alignment) - 1;
        let end = offset.checked_add(length);
        if (offset | length) & mask != 0 || end.is_none_or(|end| end > self.size()) {
            let size = self.size();
            let text = format!("{length} bytes at {offset} are not an aligned range of a disk of {size} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        Ok(())
    }
}

fn read_memory(memory: &Memory, offset: u64, mut buffer: Buffer) -> (io::Result<()>, Buffer) {
    memory.read(offset, &mut buffer);
    (Ok(()), buffer)
}

fn write_memory(memory: &mut Memory, offset: u64, data: &[Slice]) {
    let mut at = offset;
    for slice in data {
        memory.write(at, slice);
        at += slice.len() as u64;
    }
}
