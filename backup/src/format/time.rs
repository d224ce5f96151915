//! Times as the store has them: RFC 3339, UTC, whole seconds; an empty text is no time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chrono::{DateTime, SecondsFormat, Utc};

/// A time as text.
pub fn format(time: SystemTime) -> String {
    DateTime::<Utc>::from(time).to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// The time that a text says, if it says one from 1970 on. Parts of a second are dropped.
pub fn parse(text: &str) -> Option<SystemTime> {
    let seconds = u64::try_from(DateTime::parse_from_rfc3339(text).ok()?.timestamp()).ok()?;
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_comes_back() {
        let text = "2026-11-20T12:55:25Z";
        assert_eq!(format(parse(text).expect("a time")), text);
        assert_eq!(parse("2026-11-20T13:55:25.9+01:00"), parse(text));
    }

    #[test]
    fn what_is_no_time_is_none() {
        for text in ["", "yesterday", "2026-13-01T00:00:00Z", "1969-12-31T23:59:59Z"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
