//! Large zeroed memory straight from the kernel.

use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::{self, NonNull};

/// A region of zeroed pages. Those never touched cost nothing.
#[derive(Debug)]
pub struct Pages {
    memory: NonNull<u8>,
    length: usize,
}

impl Pages {
    /// Maps `length` bytes of zeroes.
    ///
    /// # Errors
    /// `OutOfMemory` when there is no room for them, or `length` is no length of anything in memory.
    pub fn new(length: u64) -> io::Result<Self> {
        let length = usize::try_from(length).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        if length == 0 {
            return Ok(Self { memory: NonNull::dangling(), length });
        }
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new anonymous mapping touches no memory that is in use.
        let memory = unsafe { libc::mmap(ptr::null_mut(), length, protection, flags, -1, 0) };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let memory = NonNull::new(memory.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { memory, length })
    }

    /// The same, for random access over hundreds of MiB, which spends more time on address translation than on the bytes: the
    /// kernel is asked for huge pages where it has some at hand. Nothing is reserved, and without them it works the same.
    ///
    /// # Errors
    /// As [`Pages::new`].
    pub fn for_random_access(length: u64) -> io::Result<Self> {
        let pages = Self::new(length)?;
        // SAFETY: the range is ours. It is advice: an error means that there are no huge pages.
        unsafe { libc::madvise(pages.memory.as_ptr().cast(), pages.length, libc::MADV_HUGEPAGE) };
        Ok(pages)
    }

    /// The first byte, aligned to a page.
    pub(crate) fn as_ptr_mut(&self) -> *mut u8 {
        self.memory.as_ptr()
    }
}

impl Deref for Pages {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: mapped with this length for as long as `self` lives, initialised by the kernel (zeroes), and only written
        // through `&mut self` by those who use it as a slice; for no bytes a dangling pointer is valid.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.length) }
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr(), self.length) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        if self.length > 0 {
            // SAFETY: mapped in `new` with this length, and nobody refers to it any more.
            unsafe { libc::munmap(self.memory.as_ptr().cast(), self.length) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_zero_and_keep_what_is_written() {
        let mut pages = Pages::for_random_access((4 << 20) + 5).expect("mapped");
        assert!(pages.iter().all(|&byte| byte == 0));
        pages[4 << 20] = 7;
        assert_eq!((pages.len(), pages[4 << 20]), ((4 << 20) + 5, 7));
        assert!(Pages::new(0).expect("nothing is easy").is_empty());
        assert!(Pages::new(u64::MAX).is_err());
    }
}
