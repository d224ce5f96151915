//! A clock that wakes a thread once for each tick.
//!
//! Tokio's timers wake their thread up to three times for one of some seconds, as they get from coarse to fine lists: that would be most of what an idle
//! daemon does.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Ticks in equal distances; those that nobody took in time are one.
pub(super) struct Ticks(AsyncFd<OwnedFd>);

impl Ticks {
    /// The first one comes after one distance. Within a runtime of tokio.
    #[expect(
        deprecated,
        reason = "an OwnedFd holds all that is asked of whoever calls the unsafe function in its place"
    )]
    pub(super) fn every(distance: Duration) -> io::Result<Self> {
        let clock =
            rustix::time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        let distance = Timespec::try_from(distance).map_err(io::Error::other)?;
        let timer = Itimerspec { it_interval: distance, it_value: distance };
        rustix::time::timerfd_settime(&clock, TimerfdTimerFlags::empty(), &timer)?;
        Ok(Self(AsyncFd::with_interest(clock, Interest::READABLE)?))
    }

    /// Waits for the next one.
    pub(super) async fn next(&self) -> io::Result<()> {
        // How many there were, which is of no interest.
        let read = |clock: &OwnedFd| Ok(rustix::io::read(clock, &mut [0_u8; 8])?);
        self.0.async_io(Interest::READABLE, read).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ticks_come_one_after_the_other() {
        let ticks = Ticks::every(Duration::from_millis(2)).expect("a clock");
        for _ in 0..3 {
            ticks.next().await.expect("a tick");
        }
        let never = Ticks::every(Duration::from_secs(1 << 30)).expect("a clock");
        let mut next = std::pin::pin!(never.next());
        let waits = std::future::poll_fn(|cx| std::task::Poll::Ready(next.as_mut().poll(cx).is_pending())).await;
        assert!(waits, "a tick of the far future is not there yet");
    }
}
