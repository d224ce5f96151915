//! How long a call may take: what its client says (`grpc-timeout`), or what its class has.

use std::time::Duration;

use proto::v1::ErrorReason;
use tonic::codegen::http::HeaderMap;
use tonic::{Code, Status};

use super::classes::Class;
use super::name_of;

/// An answer that comes when its client has gone helps nobody: it comes this much before, or a tenth of the time if that is less.
const AHEAD: Duration = Duration::from_millis(100);

/// How long a call may take here. A header that makes no sense counts as none.
pub(super) fn limit(headers: &HeaderMap, class: Class) -> Duration {
    let given = headers.get("grpc-timeout").and_then(|value| parse(value.to_str().ok()?));
    given.map_or(class.duration(), |given| given.saturating_sub(AHEAD.min(given / 10)))
}

/// Up to eight digits and a unit, as gRPC over HTTP/2 has it.
fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 60 * 60)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// The error of a call that took longer.
pub(super) fn over(limit: Duration, class: Class) -> Status {
    let limit_ms = limit.as_millis();
    let then = match class {
        Class::Change => "what it changes goes on: look, or send the same again, which is safe",
        Class::Watch => "go on from the last version that came",
        Class::Transfer => "begin again, with more time",
        Class::Read | Class::Probe => "try again, with more time",
    };
    let text = format!("there was no answer within {limit_ms} ms; {then}");
    let details = [("limit_ms", limit_ms.to_string()), ("class", class.to_string())];
    proto::error::status(Code::DeadlineExceeded, &text, name_of(ErrorReason::Deadline), details)
}

#[cfg(test)]
mod tests {
    use tonic::codegen::http::HeaderValue;

    use super::*;

    #[test]
    fn timeouts_read_as_the_standard_writes_them() {
        // "TimeoutValue: positive integer as ASCII string of at most 8 digits; TimeoutUnit: H M S m u n"
        assert_eq!(parse("1H"), Some(Duration::from_secs(3600)));
        assert_eq!(parse("2M"), Some(Duration::from_secs(120)));
        assert_eq!(parse("3S"), Some(Duration::from_secs(3)));
        assert_eq!(parse("82m"), Some(Duration::from_millis(82)));
        assert_eq!(parse("10u"), Some(Duration::from_micros(10)));
        assert_eq!(parse("99999999n"), Some(Duration::from_nanos(99_999_999)));
        for text in ["", "S", "1", "1s", "+1S", "-1S", "123456789S", "1.5S", "1 S", "1é"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn the_client_hears_before_it_gives_up() {
        let limit_of = |timeout: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", HeaderValue::from_static(timeout));
            limit(&headers, Class::Read)
        };
        assert_eq!(limit_of("10S"), Duration::from_millis(9_900));
        assert_eq!(limit_of("100m"), Duration::from_millis(90));
        assert_eq!(limit_of("nonsense"), Class::Read.duration());
        assert_eq!(limit(&HeaderMap::new(), Class::Change), Class::Change.duration());
    }
}
