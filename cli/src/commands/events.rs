//! `ashlar events`.

use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proto::v1::{Event, EventsRequest};

use crate::client::{CallError, Client, answer};
use crate::output::Output;

/// A time, as one or as how long ago it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Since {
    Ago(Duration),
    At(SystemTime),
}

impl FromStr for Since {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(time) = humantime::parse_rfc3339_weak(text) {
            return Ok(Self::At(time));
        }
        humantime::parse_duration(text)
            .map(Self::Ago)
            .map_err(|_| "write 30m, 12h, 7d or 2026-11-21T03:00:00Z".to_owned())
    }
}

impl Since {
    fn unix_ms(self, now: SystemTime) -> i64 {
        let time = match self {
            Self::Ago(ago) => now.checked_sub(ago).unwrap_or(UNIX_EPOCH),
            Self::At(time) => time,
        };
        let since_then = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since_then.as_millis()).unwrap_or(i64::MAX)
    }
}

pub(super) async fn run(client: &Client, follow: bool, since: Option<Since>, output: Output) -> anyhow::Result<()> {
    let since_unix_ms = since.map_or(0, |since| since.unix_ms(SystemTime::now()));
    let request = EventsRequest { follow, since_unix_ms, ..EventsRequest::default() };
    let mut events = answer(client.patient_node().events(request).await)?;
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    loop {
        let next = tokio::select! {
            // The end that was asked for.
            _ = &mut interrupted => return Ok(()),
            next = events.message() => next,
        };
        match next.map_err(CallError)? {
            Some(event) => output.print_one_of_many(&event, |event| format!("{}\n", render(event)))?,
            None => return Ok(()),
        }
    }
}

fn render(event: &Event) -> String {
    let subject = event.subject();
    let mut line = format!("{}  {subject} {} {}", utc(event.at_unix_ms), event.name, event.what);
    if !event.detail.is_empty() {
        line.push_str(&format!(": {}", event.detail));
    }
    line
}

/// As RFC 3339 has it, in seconds.
pub(crate) fn utc(unix_ms: i64) -> String {
    const DAY: i64 = 86_400;
    let seconds = unix_ms.div_euclid(1000);
    let (day, second) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
    let (year, month, day) = date(day);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

/// The date of a day since 1970-01-01. Years are counted from March on, so that the day of a leap year comes last.
fn date(day: i64) -> (i64, i64, i64) {
    const ERA: i64 = 146_097;
    // 0000-03-01.
    let day = day + 719_468;
    let (era, of_era) = (day.div_euclid(ERA), day.rem_euclid(ERA));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = year + era * 400 + i64::from(month <= 2);
    (year, month, of_year - (153 * from_march + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1::EventSubject;

    #[test]
    fn times_are_those_of_the_calendar() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_782_399_999), "2000-02-28T23:59:59Z");
        assert_eq!(utc(951_782_400_000), "2000-02-29T00:00:00Z");
        assert_eq!(utc(951_868_800_000), "2000-03-01T00:00:00Z");
        assert_eq!(utc(1_709_164_800_000), "2024-02-29T00:00:00Z");
        assert_eq!(utc(4_107_542_400_000), "2100-03-01T00:00:00Z");
    }

    #[test]
    fn a_time_is_one_or_so_long_ago() {
        let now = UNIX_EPOCH + Duration::from_secs(10 * 86_400);
        let since = |text: &str| text.parse().map(|since: Since| since.unix_ms(now));
        assert_eq!(since("90s"), Ok((10 * 86_400 - 90) * 1000));
        assert_eq!(since("7d"), Ok(3 * 86_400_000));
        assert_eq!(since("1000d"), Ok(0));
        assert_eq!(since("1970-01-02T00:00:00Z"), Ok(86_400_000));
        assert_eq!(since("1970-01-02 00:00:01"), Ok(86_401_000));
        for text in ["", "yesterday", "7", "-1h"] {
            assert!(since(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_event_is_a_line() {
        let mut event = Event {
            subject: EventSubject::Volume.into(),
            name: "v".to_owned(),
            what: "degraded".to_owned(),
            ..Event::default()
        };
        assert_eq!(render(&event), "1970-01-01T00:00:00Z  volume v degraded");
        event.detail = "1 of 3 replicas not in sync".to_owned();
        assert_eq!(render(&event), "1970-01-01T00:00:00Z  volume v degraded: 1 of 3 replicas not in sync");
    }
}
