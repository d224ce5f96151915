//! Log lines on standard error, and panics among them.

use std::backtrace::Backtrace;
use std::io::IsTerminal;
use std::panic;

use anyhow::Context;
use tracing_subscriber::EnvFilter;

/// Starts logging what `filter` lets through.
pub(crate) fn start(filter: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter)
        .with_context(|| format!("log: `{filter}` is not a filter; try `info` or `debug`"))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    Ok(())
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
