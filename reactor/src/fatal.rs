//! The last word of a process that a fatal signal ends.
//!
//! ```text
//!   a fault ──▶ handler: one write to the file, the former action is put back ──▶ the fault again ──▶ the former action
//!   sent by a process (kill, abort) ──▶ handler: the same write, the default action is put back, raised again ──▶ the end
//! ```
//! The handler calls nothing but `write`, `sigaction` and `raise`, which a handler may (signal-safety(7)).

use std::fs::File;
use std::io;
use std::os::fd::IntoRawFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};

use libc::{c_int, c_void, sigaction, siginfo_t};

/// The signals that end a process for what it did itself, and what is written about each.
const FATAL: [(c_int, &[u8]); 5] = [
    (libc::SIGSEGV, b"signal SIGSEGV\n"),
    (libc::SIGBUS, b"signal SIGBUS\n"),
    (libc::SIGILL, b"signal SIGILL\n"),
    (libc::SIGFPE, b"signal SIGFPE\n"),
    (libc::SIGABRT, b"signal SIGABRT\n"),
];

/// Where to write; none before the handlers are there.
static NOTES: AtomicI32 = AtomicI32::new(-1);

/// What handled each signal before: the standard library tells of a stack overflow.
static FORMER: [OnceLock<sigaction>; FATAL.len()] = [const { OnceLock::new() }; FATAL.len()];

/// From now on a line `signal NAME` is written to `file` when a fatal signal ends this process. For the life of the process:
/// a second call is an error.
pub fn note_fatal_signals(file: File) -> io::Result<()> {
    // Never closed: a handler may run at any time.
    let descriptor = file.into_raw_fd();
    if NOTES.compare_exchange(-1, descriptor, Ordering::SeqCst, Ordering::SeqCst).is_err() {
        return Err(io::Error::other("fatal signals are noted already"));
    }
    for ((signal, _), former) in FATAL.iter().zip(&FORMER) {
        // SAFETY: all-zero is a valid value, with an empty mask.
        let mut action: sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: the same.
        let mut before: sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handle as *const () as usize;
        // On the stack that the standard library gives each thread for it: the ordinary one may be what overflowed.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: both live through the call, and the handler is one for SA_SIGINFO.
        if unsafe { sigaction(*signal, std::ptr::null(), &mut before) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // Known before the handler can run.
        let _ = former.set(before);
        // SAFETY: as above.
        if unsafe { sigaction(*signal, &action, std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

extern "C" fn handle(signal: c_int, info: *mut siginfo_t, _context: *mut c_void) {
    let Some(index) = FATAL.iter().position(|(fatal, _)| *fatal == signal) else { return };
    let line = FATAL[index].1;
    // SAFETY: the line is static; the descriptor is never closed. A result is of no use to a process that ends.
    let _ = unsafe { libc::write(NOTES.load(Ordering::SeqCst), line.as_ptr().cast(), line.len()) };
    // SAFETY: the kernel passes a valid structure to a handler with SA_SIGINFO.
    let sent = unsafe { (*info).si_code } <= 0;
    // SAFETY: all-zero is the default action.
    let default: sigaction = unsafe { std::mem::zeroed() };
    let next = FORMER[index].get().filter(|_| !sent).unwrap_or(&default);
    // SAFETY: the action lives through the call; a fault happens again when this returns, and what was sent is raised again.
    unsafe {
        sigaction(signal, next, std::ptr::null_mut());
        if sent {
            libc::raise(signal);
        }
    }
}
