//! Steps that tests make fail, and steps at which tests kill the daemon (I40, L3, L5).
//!
//! Everything that the control side waits for and that can fail is a step: a state file, a message to a reactor, a step of what the
//! reactor does then, a call to a peer. Each step is passed twice, before it begins and when it is done: a failure at the first is one
//! that changed nothing, a failure at the second is an answer that was lost.
//!
//! In builds with debug assertions, if the environment variable `ASHLAR_FAILPOINTS` names a file, that file says what becomes of steps:
//!
//! | content | effect |
//! |---|---|
//! | `NAME count 0` | they are counted |
//! | `NAME fail N` | the N-th passage fails |
//! | `NAME kill N` | the process ends at the N-th passage, as if killed |
//! | `NAME every N` | each N-th passage fails |
//! | `NAME only TEXT` | each passage of a step with TEXT in its name fails |
//!
//! Counting begins with 1 when the content changes, which is what NAME is for. What was passed is appended to the file with `.passed` added
//! to its name, a line each: the number, `+` for a step that is done, the step. In other builds there is nothing of it.

use std::fmt;
use std::future::Future;
use std::io;

use crate::control::ControlError;

/// A failure that a test asked for.
#[derive(Debug)]
#[cfg_attr(not(debug_assertions), allow(dead_code, reason = "nothing fails on purpose in programs that are released"))]
pub(crate) struct Injected(&'static str);

impl fmt::Display for Injected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} failed because a test asked for it", self.0)
    }
}

impl std::error::Error for Injected {}

impl From<Injected> for io::Error {
    fn from(injected: Injected) -> Self {
        Self::other(injected)
    }
}

impl From<Injected> for ControlError {
    fn from(injected: Injected) -> Self {
        Self::unavailable("FAILPOINT", injected)
    }
}

/// Does `work`, which is one step.
pub(crate) async fn step<T, E: From<Injected>>(
    name: &'static str,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    pass(name, false)?;
    let done = work.await?;
    pass(name, true)?;
    Ok(done)
}

/// The step begins, or is done.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub(crate) const fn pass(_name: &'static str, _done: bool) -> Result<(), Injected> {
    Ok(())
}

#[cfg(debug_assertions)]
pub(crate) use self::armed::pass;

#[cfg(debug_assertions)]
mod armed {
    use std::fs::{self, OpenOptions};
    use std::io::Write;
    use std::path::PathBuf;
    use std::sync::{Mutex, OnceLock, PoisonError};

    use super::Injected;

    /// What the file said when it was read last, and the passages since it says that.
    #[derive(Default)]
    struct Passages {
        plan: String,
        count: u64,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Effect {
        None,
        Fail,
        Kill,
    }

    pub(crate) fn pass(name: &'static str, done: bool) -> Result<(), Injected> {
        static FILE: OnceLock<Option<PathBuf>> = OnceLock::new();
        static PASSAGES: Mutex<Passages> = Mutex::new(Passages { plan: String::new(), count: 0 });
        let file = FILE.get_or_init(|| std::env::var_os("ASHLAR_FAILPOINTS").map(PathBuf::from));
        let Some(file) = file else { return Ok(()) };
        let Ok(plan) = fs::read_to_string(file) else { return Ok(()) };
        let mut passages = PASSAGES.lock().unwrap_or_else(PoisonError::into_inner);
        let effect = passages.pass(plan, name);
        let mut log = file.clone().into_os_string();
        log.push(".passed");
        if let Ok(mut log) = OpenOptions::new().create(true).append(true).open(log) {
            let line = format!("{} {}{name}\n", passages.count, if done { "+" } else { "" });
            // A test that reads it notices.
            let _ = log.write_all(line.as_bytes());
        }
        match effect {
            Effect::None => Ok(()),
            Effect::Fail => Err(Injected(name)),
            Effect::Kill => std::process::abort(),
        }
    }

    impl Passages {
        fn pass(&mut self, plan: String, step: &str) -> Effect {
            if self.plan != plan {
                *self = Self { plan, count: 0 };
            }
            self.count += 1;
            let mut words = self.plan.trim().splitn(3, ' ').skip(1);
            let (Some(what), Some(which)) = (words.next(), words.next()) else { return Effect::None };
            match (what, which.parse::<u64>()) {
                ("fail", Ok(number)) if number == self.count => Effect::Fail,
                ("kill", Ok(number)) if number == self.count => Effect::Kill,
                ("every", Ok(number)) if number > 0 && self.count.is_multiple_of(number) => Effect::Fail,
                ("only", _) if step.contains(which) => Effect::Fail,
                _ => Effect::None,
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_plan_counts_from_its_beginning() {
            let mut passages = Passages::default();
            let mut effects = |plan: &str| (0..4).map(|_| passages.pass(plan.to_owned(), "a step")).collect::<Vec<_>>();
            let none = Effect::None;
            assert_eq!(effects("a count 0"), [none; 4]);
            assert_eq!(effects("b fail 2"), [none, Effect::Fail, none, none]);
            assert_eq!(effects("b fail 2"), [none; 4], "it goes on counting");
            assert_eq!(effects("c fail 2"), [none, Effect::Fail, none, none]);
            assert_eq!(effects("d kill 1"), [Effect::Kill, none, none, none]);
            assert_eq!(effects("e every 2"), [none, Effect::Fail, none, Effect::Fail]);
            assert_eq!(effects("e only step"), [Effect::Fail; 4]);
            assert_eq!(effects("e only a step, and more"), [none; 4]);
            for nonsense in ["", "f", "f fail", "f every 0", "f fail x", "f what 1"] {
                assert_eq!(effects(nonsense), [none; 4], "{nonsense}");
            }
        }
    }
}
