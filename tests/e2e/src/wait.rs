//! Waiting for something to become so, with a limit.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

const POLL: Duration = Duration::from_millis(200);

/// Asks `probe` until it gives something, for at most `limit`; `what` says what is waited for.
pub(crate) fn wait_until<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let give_up = Instant::now() + limit;
    loop {
        if let Some(value) = probe()? {
            return Ok(value);
        }
        ensure!(Instant::now() < give_up, "waited {} s in vain until {what}", limit.as_secs());
        std::thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_in_vain_says_for_what() {
        let error = wait_until("it rains", Duration::ZERO, || Ok(None::<()>));
        assert!(error.is_err_and(|error| error.to_string() == "waited 0 s in vain until it rains"));
    }

    #[test]
    fn an_error_ends_the_waiting() {
        let error =
            wait_until("it rains", Duration::from_secs(600), || -> Result<Option<()>> { anyhow::bail!("no sky") });
        assert!(error.is_err_and(|error| error.to_string() == "no sky"));
    }
}
