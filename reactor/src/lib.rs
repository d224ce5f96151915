//! One core, one io_uring: tasks, timers, sockets, disks, buffers and mailboxes, with a simulated world behind
//! the same seam. See `docs/reactor.md`.
//!
//! Code that runs on a reactor calls the free functions and types of this crate; they find the reactor of the current
//! thread. Nothing here is `Send` but [`Handle`], [`DetachedStream`] and plain values, and nothing takes a lock on the
//! path of an I/O.

pub mod buffer;
pub mod bugs;
mod clock;
mod core;
mod counting;
pub mod disk;
mod driver;
mod executor;
mod fatal;
pub mod files;
mod heap;
mod mailbox;
mod memory;
pub mod net;
mod pages;
mod reactor;
pub mod simulated;
mod stats;
mod streaming;
mod time;
mod timer;

pub use crate::buffer::{Buffer, Reservation, Slice};
pub use crate::clock::{KernelClock, kernel_clock};
pub use crate::core::{
    TurnEnd, at_turn_end, boot_id, handle, monotonic_now, now, random, random_bytes, task_count, turn_began, wall_clock,
};
pub use crate::counting::CountingAllocator;
pub use crate::disk::{Disk, DiskAction, DiskOptions, DiskReply, DiskSink};
pub use crate::executor::{JoinHandle, TaskEnded, spawn, yield_now};
pub use crate::fatal::note_fatal_signals;
pub use crate::heap::give_back_freed_memory;
pub use crate::mailbox::{Handle, PostError};
pub use crate::net::{DetachedStream, Received, TcpListener, TcpStream};
pub use crate::pages::Pages;
pub use crate::reactor::{Config, Pulse, Reactor};
pub use crate::stats::Stats;
pub use crate::time::Instant;
pub use crate::timer::{Elapsed, Sleep, sleep, sleep_until, timeout};
