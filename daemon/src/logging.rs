//! Log lines on standard error, and panics among them.

use std::backtrace::Backtrace;
use std::io::IsTerminal;
use std::panic;
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use tracing_subscriber::EnvFilter;

/// Characters of the longest filter.
const LONGEST: usize = 1024;

/// What is logged, and how to change it.
pub(crate) struct LogFilter {
    current: Mutex<String>,
    replace: Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>,
}

impl LogFilter {
    /// As it was given.
    pub(crate) fn current(&self) -> String {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes it, unless it makes no sense: then says why.
    pub(crate) fn set(&self, filter: &str) -> Result<(), String> {
        let parsed = parse(filter)?;
        // Held over both, so that one of two who change it at once wins as a whole.
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        (self.replace)(parsed)?;
        *current = filter.to_owned();
        Ok(())
    }
}

fn parse(filter: &str) -> Result<EnvFilter, String> {
    if filter.trim().is_empty() || filter.len() > LONGEST {
        return Err(format!("a filter of 1 to {LONGEST} characters is needed; try `info` or `debug`"));
    }
    EnvFilter::try_new(filter).map_err(|error| format!("`{filter}` is not a filter ({error}); try `info` or `debug`"))
}

/// Starts logging what `filter` lets through.
pub(crate) fn start(filter: &str) -> anyhow::Result<LogFilter> {
    let parsed = parse(filter).map_err(anyhow::Error::msg).context("log")?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(parsed)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_filter_reloading();
    let handle = subscriber.reload_handle();
    subscriber.init();
    let replace = Box::new(move |filter| handle.reload(filter).map_err(|error| error.to_string()));
    Ok(LogFilter { current: Mutex::new(filter.to_owned()), replace })
}

/// Logs each panic with its thread and a backtrace, and notes it for the next start. What the panic ends is up to the task it happens in.
pub(crate) fn log_panics() {
    panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current().name().unwrap_or("unnamed").to_owned();
        let backtrace = Backtrace::force_capture();
        // First what waits for no lock.
        crate::runs::note_panic(&format!("thread {thread} {panic}").replace('\n', " "), &backtrace);
        tracing::error!(%thread, "{panic}\n{backtrace}");
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_makes_no_sense_is_told_with_what_to_try() {
        for filter in ["", " ", "info,engine=loud", &"x".repeat(2000)] {
            assert!(parse(filter).is_err_and(|problem| problem.contains("try `info`")), "{filter}");
        }
        for filter in ["info", "off", "info,engine=debug,lvol=trace"] {
            assert!(parse(filter).is_ok(), "{filter}");
        }
    }
}
