//! Deliberate bugs: places where a line can be made wrong, so that the simulator can prove that it would notice.
//!
//! [`bug!`](crate::bug) is `false` at compile time unless the feature `deliberate-bugs` is on, which only the simulator's
//! own build of its bug list does (`cargo xtask tidy` checks that). With it, a test switches one bug on for its thread.

/// Whether a deliberate bug is switched on. Always `false` in programs.
#[macro_export]
macro_rules! bug {
    ($name:literal) => {
        $crate::bugs::is_active($name)
    };
}

#[cfg(feature = "deliberate-bugs")]
pub use self::switched::{activate, is_active};

/// Whether this bug is switched on: never, in this build.
#[cfg(not(feature = "deliberate-bugs"))]
#[inline(always)]
pub const fn is_active(_name: &str) -> bool {
    false
}

#[cfg(feature = "deliberate-bugs")]
mod switched {
    use std::cell::Cell;

    thread_local! {
        static ACTIVE: Cell<Option<&'static str>> = const { Cell::new(None) };
    }

    /// Switches a bug on for this thread, in the place of any other.
    pub fn activate(name: Option<&'static str>) {
        ACTIVE.set(name);
    }

    /// Whether this bug is switched on for this thread.
    pub fn is_active(name: &str) -> bool {
        ACTIVE.get() == Some(name)
    }
}
