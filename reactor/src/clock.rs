//! What the kernel says of its own clock: for programs that check a machine, not for the data path.

use std::io;
use std::time::Duration;

/// The state of the kernel's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelClock {
    /// Something disciplines it: NTP or the like.
    pub synchronized: bool,
    /// How wrong it may be, as the kernel reckons.
    pub max_error: Duration,
}

/// Asks the kernel, and changes nothing.
///
/// # Errors
/// Where asking is forbidden.
pub fn kernel_clock() -> io::Result<KernelClock> {
    // SAFETY: all fields are integers, for which zeroes are values. No mode is set: nothing is changed.
    let mut state: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the call fills the structure it is given.
    let returned = unsafe { libc::adjtimex(&mut state) };
    if returned < 0 {
        return Err(io::Error::last_os_error());
    }
    let unsynchronized = returned == libc::TIME_ERROR || state.status & libc::STA_UNSYNC != 0;
    let max_error = Duration::from_micros(u64::try_from(state.maxerror).unwrap_or_default());
    Ok(KernelClock { synchronized: !unsynchronized, max_error })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_how_wrong_its_clock_may_be() {
        let clock = kernel_clock().expect("asking is free");
        // While nothing disciplines it the kernel lets the figure grow up to 16 s.
        assert!(clock.max_error <= Duration::from_secs(16), "{clock:?}");
    }
}
