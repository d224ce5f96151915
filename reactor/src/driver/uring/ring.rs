//! The submission and completion queues of one io_uring, and the system call that moves them.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, Submitter, cqueue, squeue};

/// How many requests for a disk may wait for each other before the kernel gets them: docs/decisions/0006-disks-get-their-work-early.md.
const EARLY: u32 = 2;

/// A ring that belongs to the thread that made it.
pub(super) struct Ring {
    uring: IoUring,
    /// Flags of a sleep, beside those it always has.
    sleep_flags: EnterFlags,
}

impl Ring {
    /// Sets a ring up for one thread that submits and runs its own completions (Linux 6.1 or newer).
    pub(super) fn new(entries: u32) -> io::Result<Self> {
        // The indirection array of the submission queue is never used; leaving it out (Linux 6.6) saves its cache lines.
        let uring = builder(entries).setup_no_sqarray().build(entries);
        let uring = uring.or_else(|_| builder(entries).build(entries)).map_err(|error| {
            let text =
                format!("io_uring cannot be set up (it needs Linux 6.1 or newer, and not to be forbidden): {error}");
            io::Error::new(error.kind(), text)
        })?;
        // Without this flag (Linux 6.15) a sleeping reactor shows as a core that waits for disks.
        let no_iowait = uring.params().is_feature_no_iowait();
        let sleep_flags = if no_iowait { EnterFlags::NO_IOWAIT } else { EnterFlags::empty() };
        Ok(Self { uring, sleep_flags })
    }

    pub(super) fn submitter(&self) -> Submitter<'_> {
        self.uring.submitter()
    }

    /// Lets the kernel have so many threads at a time for operations on disks that block. Without a word it has a few, whatever the disk: those that hang
    /// at one would be missing for all others.
    pub(super) fn allow_threads(&self, count: u32) {
        // The second number is for what is no disk; zero leaves it as it is.
        if let Err(error) = self.submitter().register_iowq_max_workers(&mut [count, 0]) {
            tracing::warn!(%error, "a disk that hangs may hold up others");
        }
    }

    /// Puts an entry into the submission queue, making room once by submitting what is there. False if there is none.
    ///
    /// # Safety
    /// Whatever the entry points to stays valid and unaliased until its last completion.
    pub(super) unsafe fn push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: passed on to the caller.
        if unsafe { self.uring.submission().push(entry) }.is_ok() {
            return true;
        }
        if self.enter(0).is_err() {
            return false;
        }
        // SAFETY: passed on to the caller.
        unsafe { self.uring.submission().push(entry) }.is_ok()
    }

    /// Submits what was pushed and runs what the kernel has ready for this thread. Does not wait.
    ///
    /// # Errors
    /// Those that another try would not mend.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        harmless(self.enter(0))
    }

    /// Submits what was pushed once it is [`EARLY`] entries, and looks for nothing. An error comes again with the next submit.
    pub(super) fn submit_early(&mut self) {
        let pending = self.pending();
        if pending >= EARLY {
            // SAFETY: no argument is passed.
            let _ = unsafe { self.uring.submitter().enter::<libc::sigset_t>(pending, 0, 0, None) };
        }
    }

    /// Submits, then waits for a completion for at most `limit`.
    ///
    /// # Errors
    /// As [`Ring::submit`].
    pub(super) fn sleep(&mut self, limit: Option<Duration>) -> io::Result<()> {
        let timespec = limit.map(Timespec::from);
        let mut arguments = SubmitArgs::new();
        if let Some(timespec) = &timespec {
            arguments = arguments.timespec(timespec);
        }
        let flags = EnterFlags::GETEVENTS | EnterFlags::EXT_ARG | self.sleep_flags;
        let pending = self.pending();
        // SAFETY: the arguments and the time they point to live until the call returns.
        let result = unsafe { self.uring.submitter().enter(pending, 1, flags.bits(), Some(&arguments)) };
        harmless(result)
    }

    /// Whether entries wait to be submitted.
    pub(super) fn has_submissions(&mut self) -> bool {
        self.pending() > 0
    }

    /// Whether [`Ring::submit`] would bring completions, by the flags that the kernel shares.
    pub(super) fn has_deferred_work(&mut self) -> bool {
        let queue = self.uring.submission();
        queue.taskrun() || queue.cq_overflow()
    }

    /// Whether there are completions to take.
    pub(super) fn has_completions(&mut self) -> bool {
        !self.uring.completion().is_empty()
    }

    /// Takes all completions there are.
    pub(super) fn take_completions(&mut self, into: &mut Vec<cqueue::Entry>) {
        into.extend(self.uring.completion());
    }

    fn pending(&mut self) -> u32 {
        // The queue has at most 32 Ki entries.
        self.uring.submission().len() as u32
    }

    fn enter(&mut self, min_complete: u32) -> io::Result<usize> {
        let pending = self.pending();
        // Deferred completions run only in a call that asks for events.
        let flags = EnterFlags::GETEVENTS.bits();
        // SAFETY: no argument is passed.
        unsafe { self.uring.submitter().enter::<libc::sigset_t>(pending, min_complete, flags, None) }
    }
}

impl AsRawFd for Ring {
    fn as_raw_fd(&self) -> RawFd {
        self.uring.as_raw_fd()
    }
}

fn builder(entries: u32) -> io_uring::Builder {
    let mut builder = IoUring::builder();
    builder
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_submit_all()
        .setup_clamp()
        // Multishot receives bring more completions than there were submissions.
        .setup_cqsize(entries.saturating_mul(4));
    builder
}

/// The end of a time limit, a signal, and a kernel that is out of memory or has completions for us first are ordinary:
/// the next turn tries again.
fn harmless(result: io::Result<usize>) -> io::Result<()> {
    match result {
        Err(error) => match error.raw_os_error() {
            Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
            _ => Err(error),
        },
        Ok(_) => Ok(()),
    }
}
