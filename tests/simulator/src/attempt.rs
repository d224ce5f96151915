//! One run of a scenario, with its end caught: what a failure said, without printing it.

use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use crate::{Options, Report, Scenario};

thread_local! {
    /// What panics of this thread have said since it began to listen; none while it does not.
    static HEARD: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// Runs a scenario.
///
/// # Errors
/// What its first panic said.
pub fn attempt(scenario: &Scenario, options: Options) -> Result<Report, String> {
    listen();
    HEARD.set(Some(Vec::new()));
    let result = catch_unwind(AssertUnwindSafe(|| (scenario.run)(options)));
    let heard = HEARD.take().unwrap_or_default();
    result.map_err(|_| heard.into_iter().next().unwrap_or_else(|| "it panicked without a word".to_owned()))
}

/// Makes panics of threads that listen silent, once.
fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let text = info.payload_as_str().unwrap_or("no text");
            let place =
                info.location().map_or_else(String::new, |place| format!(" ({}:{})", place.file(), place.line()));
            let heard = HEARD.with_borrow_mut(|heard| heard.as_mut().map(|heard| heard.push(format!("{text}{place}"))));
            if heard.is_none() {
                usual(info);
            }
        }));
    });
}
