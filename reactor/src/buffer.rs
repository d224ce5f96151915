//! Aligned buffers and shared slices of them: the memory of every I/O.
//!
//! Ownership, once for all: a [`Buffer`] is the only way to write to its bytes. Freezing it makes a [`Slice`],
//! which can be cloned and cut but never written again (I11: what was sent cannot change before the last
//! acknowledgement). Operations own the buffers they use until they complete (see `driver`), so there
//! is no way to free or change memory that the kernel still uses. Memory returns to a pool of its thread when
//! the last owner goes; it is never uninitialised, but holds what its last user left, so whoever takes a buffer
//! must fill it before anyone else reads it.
//!
//! Buffers live on one thread (`Rc` inside): they cannot cross reactors.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::{Cell, RefCell};
use std::fmt;
use std::ops::{Bound, Deref, DerefMut, RangeBounds};
use std::ptr::NonNull;
use std::rc::Rc;

/// The alignment of every buffer's first byte: what O_DIRECT asks for on any disk.
pub const ALIGNMENT: usize = 4096;

/// The sizes that are pooled; a request is served from the smallest that holds it, a larger one is allocated
/// by itself.
const CLASSES: [usize; 5] = [4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20];

/// How many free blocks of each class a thread keeps, so that at most about 80 MiB rest in the pool.
const KEEP: [usize; CLASSES.len()] = [4096, 1024, 256, 64, 16];

/// How many bytes [`Buffer::try_new`] hands out per thread at one time, unless [`set_limit`] says otherwise.
const DEFAULT_LIMIT: usize = 512 << 20;

/// One allocation. Its bytes are only reached through [`Buffer`]s of disjoint ranges or [`Slice`]s.
struct Block {
    memory: NonNull<u8>,
    layout: Layout,
    /// Index into [`CLASSES`], none for a block of its own size.
    class: Option<usize>,
    /// Bytes to give back to the thread's limit when this block is free again.
    charged: Cell<usize>,
}

impl Block {
    fn allocate(size: usize, class: Option<usize>) -> Self {
        let layout = Layout::from_size_align(size.max(1), ALIGNMENT).expect("sizes of I/O fit in a layout");
        // SAFETY: the layout's size is not zero.
        let memory = unsafe { alloc_zeroed(layout) };
        let Some(memory) = NonNull::new(memory) else { handle_alloc_error(layout) };
        Self { memory, layout, class, charged: Cell::new(0) }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: `memory` came from `alloc_zeroed` with this layout and nobody else refers to it any more.
        unsafe { dealloc(self.memory.as_ptr(), self.layout) }
    }
}

/// The free blocks of a thread and what it has lent.
struct Pool {
    free: [Vec<Rc<Block>>; CLASSES.len()],
    lent: usize,
    limit: usize,
}

thread_local! {
    static POOL: RefCell<Pool> = const { RefCell::new(Pool { free: [const { Vec::new() }; CLASSES.len()], lent: 0, limit: DEFAULT_LIMIT }) };
}

/// Sets how many bytes [`Buffer::try_new`] lends on this thread at one time.
pub fn set_limit(bytes: usize) {
    POOL.with_borrow_mut(|pool| pool.limit = bytes);
}

/// How many bytes are lent by [`Buffer::try_new`] on this thread now.
pub fn lent() -> usize {
    POOL.with_borrow(|pool| pool.lent)
}

fn take_block(size: usize) -> Rc<Block> {
    match CLASSES.iter().position(|&class| class >= size) {
        Some(class) => POOL
            .with_borrow_mut(|pool| pool.free[class].pop())
            .unwrap_or_else(|| Rc::new(Block::allocate(CLASSES[class], Some(class)))),
        None => Rc::new(Block::allocate(size, None)),
    }
}

/// Drops one owner of a block; the last one returns it to the pool of this thread.
#[inline]
fn release(block: Rc<Block>) {
    if Rc::strong_count(&block) == 1 {
        give_back(block);
    }
}

fn give_back(block: Rc<Block>) {
    // Thread-locals may be gone already while the thread ends; then the block is simply freed.
    let _ = POOL.try_with(|pool| {
        let mut pool = pool.borrow_mut();
        pool.lent -= block.charged.take();
        if let Some(class) = block.class
            && pool.free[class].len() < KEEP[class]
        {
            pool.free[class].push(block);
        }
    });
}

/// Aligned memory with one owner, who may write to it.
pub struct Buffer {
    /// Taken only in `drop` and `freeze`.
    block: Option<Rc<Block>>,
    start: usize,
    length: usize,
}

impl Buffer {
    /// A buffer for control work and other small, bounded uses: not counted against the thread's limit.
    /// Its content is arbitrary.
    pub fn new(length: usize) -> Self {
        Self { block: Some(take_block(length)), start: 0, length }
    }

    /// A buffer for the data path, or `None` when the thread has lent its limit: push back then, and try again when
    /// something has completed. Its content is arbitrary.
    pub fn try_new(length: usize) -> Option<Self> {
        Reservation::try_new(length).map(Reservation::into_buffer)
    }

    /// A buffer of zeroes, not counted against the limit.
    pub fn zeroed(length: usize) -> Self {
        let mut buffer = Self::new(length);
        buffer.fill(0);
        buffer
    }

    /// A buffer that holds a copy of `bytes`, not counted against the limit.
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut buffer = Self::new(bytes.len());
        buffer.copy_from_slice(bytes);
        buffer
    }

    /// Cuts the buffer in two at `at`: this one keeps the bytes before it, the result has the rest. Both use the same
    /// allocation, so the second is aligned only if `at` is.
    ///
    /// # Panics
    /// When `at` is beyond the end.
    pub fn split_off(&mut self, at: usize) -> Self {
        assert!(at <= self.length, "split at {at} of {}", self.length);
        let rest = Self { block: self.block.clone(), start: self.start + at, length: self.length - at };
        self.length = at;
        rest
    }

    /// Shortens the buffer to `length` bytes; no effect if it is shorter already.
    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }

    /// Ends writing: the bytes can be shared from here on.
    pub fn freeze(mut self) -> Slice {
        Slice { block: self.block.take(), start: self.start, length: self.length }
    }

    fn block(&self) -> &Rc<Block> {
        self.block.as_ref().expect("taken only when the buffer itself is consumed")
    }
}

/// The right to a buffer of the data path, counted against the thread's limit as if it were there: for whoever promises room
/// before it is needed. The later the memory is taken, the likelier it is that a cache still has it.
#[derive(Debug)]
pub struct Reservation {
    length: usize,
    charge: usize,
}

impl Reservation {
    /// Reserves `length` bytes, or `None` when the thread has lent its limit: see [`Buffer::try_new`].
    pub fn try_new(length: usize) -> Option<Self> {
        let charge = CLASSES.into_iter().find(|&class| class >= length).unwrap_or(length);
        POOL.with_borrow_mut(|pool| {
            let lent = pool.lent.checked_add(charge).filter(|&lent| lent <= pool.limit)?;
            pool.lent = lent;
            Some(Self { length, charge })
        })
    }

    /// How many bytes are reserved.
    pub fn length(&self) -> usize {
        self.length
    }

    /// The buffer. Its content is arbitrary.
    pub fn into_buffer(mut self) -> Buffer {
        let buffer = Buffer::new(self.length);
        // From here on the memory gives back what was charged.
        buffer.block().charged.set(std::mem::take(&mut self.charge));
        buffer
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // Thread-locals may be gone already while the thread ends.
        let _ = POOL.try_with(|pool| pool.borrow_mut().lent -= self.charge);
    }
}

impl Deref for Buffer {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: the range lies within the block (kept so by `new` and `split_off`), is initialised (blocks start
        // zeroed), and no other `Buffer` or `Slice` covers it.
        unsafe { std::slice::from_raw_parts(self.block().memory.as_ptr().add(self.start), self.length) }
    }
}

impl DerefMut for Buffer {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.block().memory.as_ptr().add(self.start), self.length) }
    }
}

impl Drop for Buffer {
    #[inline]
    fn drop(&mut self) {
        if let Some(block) = self.block.take() {
            release(block);
        }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.length)
    }
}

/// Shared, immutable bytes: a range of a frozen [`Buffer`].
#[derive(Default)]
pub struct Slice {
    /// None when empty by construction, or taken in `drop`.
    block: Option<Rc<Block>>,
    start: usize,
    length: usize,
}

impl Slice {
    /// The longest slice [`Slice::zeroes`] can give.
    pub const MAX_ZEROES: usize = 1 << 20;

    /// A slice of zeroes, shared by all who ask: costs no memory.
    ///
    /// # Panics
    /// When `length` is over [`Self::MAX_ZEROES`].
    pub fn zeroes(length: usize) -> Self {
        thread_local! {
            /// Frozen pools hold old bytes, so this one is written once and kept.
            static CLEAN: Slice = Buffer::zeroed(Slice::MAX_ZEROES).freeze();
        }
        CLEAN.with(|zeroes| zeroes.slice(..length))
    }

    /// A slice of the given range, sharing the memory.
    ///
    /// # Panics
    /// When the range is out of bounds.
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Self {
        let from = match range.start_bound() {
            Bound::Included(&at) => at,
            Bound::Excluded(&at) => at + 1,
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(&at) => at + 1,
            Bound::Excluded(&at) => at,
            Bound::Unbounded => self.length,
        };
        assert!(from <= to && to <= self.length, "{from}..{to} of {}", self.length);
        Self { block: self.block.clone(), start: self.start + from, length: to - from }
    }
}

impl Clone for Slice {
    #[inline]
    fn clone(&self) -> Self {
        Self { block: self.block.clone(), start: self.start, length: self.length }
    }
}

impl Deref for Slice {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match &self.block {
            // SAFETY: the range lies within the block, is initialised, and no `Buffer` covers it since it was frozen.
            Some(block) => unsafe { std::slice::from_raw_parts(block.memory.as_ptr().add(self.start), self.length) },
            None => &[],
        }
    }
}

impl Drop for Slice {
    #[inline]
    fn drop(&mut self) {
        if let Some(block) = self.block.take() {
            release(block);
        }
    }
}

impl From<Buffer> for Slice {
    fn from(buffer: Buffer) -> Self {
        buffer.freeze()
    }
}

impl From<&[u8]> for Slice {
    /// Copies.
    fn from(bytes: &[u8]) -> Self {
        Buffer::copy_of(bytes).freeze()
    }
}

impl fmt::Debug for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slice({} bytes)", self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_buffer_do_not_overlap() {
        let mut low = Buffer::zeroed(8192);
        let mut high = low.split_off(4096);
        low.fill(1);
        high.fill(2);
        assert!(low.iter().all(|&byte| byte == 1));
        assert!(high.iter().all(|&byte| byte == 2));
        assert_eq!(high.as_ptr() as usize % ALIGNMENT, 0);
    }

    #[test]
    fn memory_comes_back_only_after_the_last_owner() {
        // I11
        let buffer = Buffer::copy_of(&[7; 4096]);
        let address = buffer.as_ptr();
        let slice = buffer.freeze();
        let part = slice.slice(8..16);
        drop(slice);
        assert_ne!(Buffer::new(4096).as_ptr(), address);
        assert_eq!(&part[..], &[7; 8]);
        drop(part);
        let mut seen = Vec::new();
        for _ in 0..3 {
            seen.push(Buffer::new(4096));
        }
        assert!(seen.iter().any(|buffer| buffer.as_ptr() == address));
    }

    #[test]
    fn the_limit_pushes_back_and_recovers() {
        set_limit(8192);
        let first = Buffer::try_new(4096);
        let second = Buffer::try_new(100).map(Buffer::freeze);
        assert!(first.is_some() && second.is_some());
        assert!(Buffer::try_new(1).is_none());
        drop(second);
        assert!(Buffer::try_new(1).is_some());
        drop(first);
        assert_eq!(lent(), 0);
        set_limit(DEFAULT_LIMIT);
    }

    #[test]
    fn a_reservation_counts_until_its_buffer_is_gone_or_it_is_not_wanted() {
        set_limit(lent() + 8192);
        let reserved = Reservation::try_new(4096).expect("within the limit");
        assert_eq!((reserved.length(), lent()), (4096, 4096));
        assert!(Reservation::try_new(8192).is_none());
        let slice = reserved.into_buffer().freeze();
        assert_eq!((slice.len(), lent()), (4096, 4096), "counted once");
        drop(Reservation::try_new(4096).expect("the other half"));
        assert_eq!(lent(), 4096);
        drop(slice);
        assert_eq!(lent(), 0);
        set_limit(DEFAULT_LIMIT);
    }

    #[test]
    fn zeroes_are_zero_whatever_the_pool_held() {
        Buffer::new(1 << 20).fill(9);
        assert!(Slice::zeroes(Slice::MAX_ZEROES).iter().all(|&byte| byte == 0));
    }

    #[test]
    #[should_panic(expected = "5..9 of 8")]
    fn a_slice_out_of_bounds_is_our_mistake() {
        let _ = Slice::from(&[0; 8][..]).slice(5..9);
    }
}
