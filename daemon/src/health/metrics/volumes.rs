//! Volumes: what their meters say. A volume has series for the kinds of requests that it has had.

use block_device::{CLASSES, Kind, Reading};

use super::text::{Family, Text, counter, gauge, histogram};
use crate::health::Progress;
use crate::health::feed::Volume;

/// Classes that are told apart: up to 32 µs, and up to twice as long each, to 8.4 s. The others count with their neighbours.
const FIRST: usize = 5;
const LAST: usize = 23;

const LATENCY: Family = histogram(
    "ashlar_volume_request_duration_seconds",
    "Time from a request's arrival to its answer; its count is that of requests.",
);
const BYTES: Family = counter("ashlar_volume_bytes_total", "Bytes that requests moved.");
const ERRORS: Family = counter("ashlar_volume_errors_total", "Requests that were answered with an error.");
const IN_FLIGHT: Family = gauge("ashlar_volume_requests_in_flight", "Requests without an answer: the queue depth.");
const OLDEST: Family = gauge("ashlar_volume_oldest_request_seconds", "Age of the oldest request without an answer.");
const HEALTHY: Family = gauge("ashlar_volume_healthy", "Whether that age is below unhealthy_after_ms.");

const LIMIT_IOPS: Family = gauge("ashlar_volume_limit_iops", "Commands a second that hosts may send; 0 for no limit.");
const LIMIT_BYTES: Family =
    gauge("ashlar_volume_limit_bytes_per_second", "Bytes a second that hosts may move; 0 for no limit.");
const LIMITED: Family = gauge("ashlar_volume_limited_requests", "Requests that wait because of the limits now.");
const LIMITED_TOTAL: Family =
    counter("ashlar_volume_limited_requests_total", "Requests that have waited because of the limits.");
const LIMITED_SECONDS: Family = counter(
    "ashlar_volume_limited_seconds_total",
    "Time that requests have waited because of the limits, all together.",
);

/// All families of volumes, in their order.
pub(super) const FAMILIES: [Family; 11] = [
    HEALTHY,
    IN_FLIGHT,
    OLDEST,
    LIMIT_IOPS,
    LIMIT_BYTES,
    LIMITED,
    LIMITED_TOTAL,
    LIMITED_SECONDS,
    LATENCY,
    BYTES,
    ERRORS,
];

/// The samples of a family for one volume.
pub(super) fn write(text: &mut Text, family: usize, volume: &Volume, progress: Progress) {
    let uuid = volume.uuid.to_string();
    let labels = [("volume", volume.name.as_str()), ("uuid", uuid.as_str())];
    let family = FAMILIES[family];
    match family.name {
        name if name == HEALTHY.name => text.sample(family, &labels, u8::from(progress.is_healthy)),
        name if name == IN_FLIGHT.name => text.sample(family, &labels, progress.in_flight),
        name if name == OLDEST.name => text.sample(family, &labels, progress.age.as_secs_f64()),
        name if name == LIMIT_IOPS.name => text.sample(family, &labels, volume.meter.limited().iops),
        name if name == LIMIT_BYTES.name => text.sample(family, &labels, volume.meter.limited().bytes_per_second),
        name if name == LIMITED.name => text.sample(family, &labels, volume.meter.limited().waiting),
        name if name == LIMITED_TOTAL.name => text.sample(family, &labels, volume.meter.limited().waited),
        name if name == LIMITED_SECONDS.name => {
            text.sample(family, &labels, volume.meter.limited().time.as_secs_f64());
        }
        _ => {
            for kind in Kind::ALL {
                let reading = volume.meter.reading(kind);
                if reading.count() > 0 {
                    write_kind(text, family, &[labels[0], labels[1], ("op", word(kind))], kind, &reading);
                }
            }
        }
    }
}

fn write_kind(text: &mut Text, family: Family, labels: &[(&str, &str); 3], kind: Kind, reading: &Reading) {
    if family.name == BYTES.name {
        if matches!(kind, Kind::Read | Kind::Write | Kind::Compare) {
            text.sample(family, labels, reading.bytes);
        }
        return;
    }
    if family.name == ERRORS.name {
        return text.sample(family, labels, reading.errors);
    }
    let classes: Vec<_> = (FIRST..=LAST).map(|class| (end_of(class), up_to(reading, class))).collect();
    text.histogram(family, labels, &classes, reading.count(), reading.time.as_secs_f64());
}

/// Seconds.
fn end_of(class: usize) -> f64 {
    debug_assert!(class < CLASSES);
    (1_u64 << class) as f64 / 1e6
}

fn up_to(reading: &Reading, class: usize) -> u64 {
    reading.latencies[..=class].iter().sum()
}

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Read => "read",
        Kind::Write => "write",
        Kind::Flush => "flush",
        Kind::Discard => "discard",
        Kind::Compare => "compare",
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use block_device::{Limits, Meter};
    use uuid::Uuid;

    use super::*;

    fn render(meter: Meter) -> String {
        let volume = Volume { uuid: Uuid::nil(), name: "v".to_owned(), meter: Arc::new(meter) };
        let progress = Progress { in_flight: 2, age: Duration::from_millis(1500), is_healthy: true };
        let mut text = Text::default();
        (0..FAMILIES.len()).for_each(|family| write(&mut text, family, &volume, progress));
        text.take()
    }

    #[test]
    fn a_volume_without_requests_has_series_of_its_state_and_limits() {
        let text = render(Meter::default());
        let labels = format!("{{volume=\"v\",uuid=\"{}\"}}", Uuid::nil());
        let expected = format!(
            "ashlar_volume_healthy{labels} 1\nashlar_volume_requests_in_flight{labels} 2\n\
             ashlar_volume_oldest_request_seconds{labels} 1.5\n\
             ashlar_volume_limit_iops{labels} 0\nashlar_volume_limit_bytes_per_second{labels} 0\n\
             ashlar_volume_limited_requests{labels} 0\nashlar_volume_limited_requests_total{labels} 0\n\
             ashlar_volume_limited_seconds_total{labels} 0\n"
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn limits_are_told_with_what_they_did() {
        let meter = Meter::default();
        meter.set_limits(Limits { iops: 100, bytes_per_second: 1 << 20, burst: Duration::ZERO });
        (0..3).for_each(|_| meter.begin_limited());
        meter.end_limited(Duration::from_millis(250));
        let text = render(meter);
        for (name, value) in [
            ("limit_iops", "100"),
            ("limit_bytes_per_second", "1048576"),
            ("limited_requests", "2"),
            ("limited_requests_total", "1"),
            ("limited_seconds_total", "0.25"),
        ] {
            let line = text.lines().find(|line| line.starts_with(&format!("ashlar_volume_{name}{{")));
            assert_eq!(line.and_then(|line| line.rsplit(' ').next()), Some(value), "{name}");
        }
    }

    #[test]
    fn requests_are_told_by_kind_and_latency() {
        let meter = Meter::default();
        meter.answer(Kind::Read, Duration::from_micros(3), Some(4096));
        meter.answer(Kind::Read, Duration::from_micros(40), Some(4096));
        meter.answer(Kind::Read, Duration::from_secs(100), None);
        meter.answer(Kind::Flush, Duration::from_micros(1), Some(0));
        let text = render(meter);
        let value = |series: &str| {
            let line = text.lines().find(|line| line.starts_with(series) || line.contains(series));
            line.and_then(|line| line.rsplit(' ').next()).map(str::to_owned)
        };
        assert_eq!(value("op=\"read\",le=\"0.000032\"").as_deref(), Some("1"), "{text}");
        assert_eq!(value("op=\"read\",le=\"0.000064\"").as_deref(), Some("2"));
        assert_eq!(value("op=\"read\",le=\"8.388608\"").as_deref(), Some("2"));
        assert_eq!(value("op=\"read\",le=\"+Inf\"").as_deref(), Some("3"));
        assert_eq!(
            value("_sum{volume=\"v\",uuid=\"00000000-0000-0000-0000-000000000000\",op=\"read\"}").as_deref(),
            Some("100.000043")
        );
        assert!(
            !text.contains("op=\"write\"")
                && !text
                    .contains("bytes_total{volume=\"v\",uuid=\"00000000-0000-0000-0000-000000000000\",op=\"flush\"")
        );
        let bytes = text.lines().find(|line| line.starts_with("ashlar_volume_bytes_total"));
        assert!(bytes.is_some_and(|line| line.ends_with(" 8192")), "{text}");
        let errors: Vec<_> = text.lines().filter(|line| line.starts_with("ashlar_volume_errors_total")).collect();
        assert!(errors.len() == 2 && errors[0].ends_with(" 1") && errors[1].ends_with(" 0"), "{text}");
    }
}
