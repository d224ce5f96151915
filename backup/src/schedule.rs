//! When recurring snapshots and backups are due: five fields as in a crontab, or a name like `@daily`, in UTC.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cronexpr::{Crontab, FallbackTimezoneOption, MakeTimestamp, ParseOptions, parse_crontab_with};

use crate::error::{Result, invalid};

/// Names for what is usual.
const NAMES: [(&str, &str); 7] = [
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@hourly", "0 * * * *"),
];

/// A field: its name, what it may be, and whether its values have names, and it may be `?`.
struct Field {
    name: &'static str,
    values: &'static str,
    has_names: bool,
    is_day: bool,
}

const fn field(name: &'static str, values: &'static str, has_names: bool, is_day: bool) -> Field {
    Field { name, values, has_names, is_day }
}

const FIELDS: [Field; 5] = [
    field("minute", "0 to 59", false, false),
    field("hour", "0 to 23", false, false),
    field("day of month", "1 to 31", false, true),
    field("month", "1 to 12 or JAN to DEC", true, false),
    field("day of week", "0 to 7 (0 and 7 are Sunday) or SUN to SAT", true, true),
];

/// Longest text of a schedule.
const LONGEST: usize = 200;

/// From when on a schedule is tried out, as seconds since 1970: 2024-01-01, so that the four years that are looked at have a leap day.
const TRIAL: u64 = 1_704_067_200;

/// What is looked at ends here, in the year 9987: times are reckoned up to 9999.
const LAST_SECOND: u64 = 253_000_000_000;

/// When something is due, again and again.
#[derive(Clone, Debug)]
pub struct Schedule {
    text: String,
    crontab: Crontab,
}

impl Schedule {
    /// The schedule that a text says. Days of the month and of the week are both meant if one of them begins with `*`; otherwise either
    /// is, as cron has it.
    ///
    /// # Errors
    /// `Invalid`, with the field that makes no sense, or when no such time ever comes.
    pub fn parse(text: &str) -> Result<Self> {
        let text = text.trim();
        if text.len() > LONGEST {
            return Err(invalid(format!("schedule: {} characters are too many", text.len())));
        }
        let fields = match text.starts_with('@') {
            true => named(text)?,
            false => text,
        };
        let fields: Vec<_> = fields.split_ascii_whitespace().collect();
        if fields.len() != FIELDS.len() {
            let names = FIELDS.map(|field| field.name).join(", ");
            return Err(invalid(format!("schedule {text:?}: {} fields instead of five: {names}", fields.len())));
        }
        let mut checked = ["*"; 5];
        for (index, (field, text)) in FIELDS.iter().zip(fields).enumerate() {
            checked[index] = field.check(index, text)?;
        }
        let refused = |error| invalid(format!("schedule {text:?}: {error}"));
        let crontab = parse_crontab_with(&checked.join(" "), options()).map_err(refused)?;
        let schedule = Self { text: text.to_owned(), crontab };
        match schedule.next_after(UNIX_EPOCH + Duration::from_secs(TRIAL)) {
            Some(_) => Ok(schedule),
            None => Err(invalid(format!("schedule {text:?}: day of month and month: no such day comes in four years"))),
        }
    }

    /// The first time after this one that it is due; None if there is none within four years.
    pub fn next_after(&self, time: SystemTime) -> Option<SystemTime> {
        let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        if seconds > LAST_SECOND {
            return None;
        }
        let from = MakeTimestamp::from_second(i64::try_from(seconds).ok()?).ok()?;
        let next = self.crontab.find_next(from).ok()?.timestamp().as_second();
        UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(next).ok()?))
    }

    /// Whether it is due, now, for who ran at `last`. Runs that were missed are one: after it, `now` is when it ran.
    pub fn is_due(&self, last: SystemTime, now: SystemTime) -> bool {
        self.next_after(last).is_some_and(|next| next <= now)
    }
}

/// As it was given.
impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl PartialEq for Schedule {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Schedule {}

fn options() -> ParseOptions {
    let mut options = ParseOptions::default();
    options.fallback_timezone_option = FallbackTimezoneOption::UTC;
    options
}

/// The fields that a name stands for.
fn named(name: &str) -> Result<&'static str> {
    if let Some((_, fields)) = NAMES.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)) {
        return Ok(fields);
    }
    let known = NAMES.map(|(name, _)| name).join(", ");
    Err(invalid(format!("schedule {name:?}: none of the names {known}; other times are five fields, as in a crontab")))
}

impl Field {
    /// The field as the library takes it. It is parsed on its own, so that an error can name it.
    fn check<'a>(&self, index: usize, text: &'a str) -> Result<&'a str> {
        let text = if self.is_day && text == "?" { "*" } else { text };
        let mut alone = ["*"; 5];
        alone[index] = text;
        if self.is_plain(text) && parse_crontab_with(&alone.join(" "), options()).is_ok() {
            return Ok(text);
        }
        let values = self.values;
        Err(invalid(format!(
            "{}: {text:?} is not of {values}, `*`, a list `1,2`, a range `1-5`, or a step `*/2`",
            self.name
        )))
    }

    /// Whether it has nothing that crontabs do not have: no last days, nearest weekdays, or values by chance.
    fn is_plain(&self, text: &str) -> bool {
        let known = |byte: u8| byte.is_ascii_digit() || b"*,-/".contains(&byte);
        let words = text.split(|c: char| !c.is_ascii_alphabetic()).filter(|word| !word.is_empty());
        text.bytes().all(|byte| known(byte) || (self.has_names && byte.is_ascii_alphabetic()))
            && words.into_iter().all(|word| word.len() == 3)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use chrono::{DateTime, Datelike, Days, NaiveDate, Utc};
    use proptest::prelude::*;

    use super::*;
    use crate::error::Kind;
    use crate::format::time;

    fn next(schedule: &str, from: &str) -> String {
        let from = time::parse(from).expect("a time");
        time::format(Schedule::parse(schedule).expect(schedule).next_after(from).expect("a next time"))
    }

    #[test]
    fn times_are_those_of_cron() {
        let friday = "2026-11-20T12:55:25Z";
        for (schedule, expected) in [
            ("* * * * *", "2026-11-20T12:56:00Z"),
            ("*/15 * * * *", "2026-11-20T13:00:00Z"),
            ("7/20 * * * *", "2026-11-20T13:07:00Z"),
            ("30 2 * * *", "2026-11-21T02:30:00Z"),
            ("0 12,18 * * *", "2026-11-20T18:00:00Z"),
            ("0 0 * * 7", "2026-11-22T00:00:00Z"),
            ("0 0 * * ?", "2026-11-21T00:00:00Z"),
            ("0 0 ? * mon-Wed", "2026-11-23T00:00:00Z"),
            ("0 0 29 2 *", "2028-02-29T00:00:00Z"),
            // Either the 13th or a Friday.
            ("0 0 13 * FRI", "2026-11-27T00:00:00Z"),
            ("@hourly", "2026-11-20T13:00:00Z"),
            ("@daily", "2026-11-21T00:00:00Z"),
            ("@Midnight", "2026-11-21T00:00:00Z"),
            ("@weekly", "2026-11-22T00:00:00Z"),
            ("@monthly", "2026-12-01T00:00:00Z"),
            ("@yearly", "2027-01-01T00:00:00Z"),
        ] {
            assert_eq!(next(schedule, friday), expected, "{schedule}");
        }
        assert_eq!(next("0 12 * * *", "2026-11-20T12:00:00Z"), "2026-11-21T12:00:00Z", "after means after");
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_field() {
        for (schedule, field) in [
            ("60 * * * *", "minute"),
            ("x * * * *", "minute"),
            ("1,,2 * * * *", "minute"),
            ("*/0 * * * *", "minute"),
            ("H * * * *", "minute"),
            ("0 24 * * *", "hour"),
            ("0 5-1 * * *", "hour"),
            ("0 0 0 * *", "day of month"),
            ("0 0 L * *", "day of month"),
            ("0 0 15W * *", "day of month"),
            ("0 0 * 13 *", "month"),
            ("0 0 * MONDAY *", "month"),
            ("0 0 * * 8", "day of week"),
            ("0 0 * * 5L", "day of week"),
            ("0 0 * * 1#2", "day of week"),
            ("0 0 30 2 *", "day of month and month"),
            ("0 0 * * * *", "6 fields"),
            ("", "0 fields"),
            ("@every 1h", "@daily"),
            ("@reboot", "@daily"),
            ("0 0 * * * UTC", "6 fields"),
            (&"* ".repeat(300), "too many"),
        ] {
            let error = Schedule::parse(schedule).expect_err(schedule);
            assert_eq!(error.kind(), Kind::Invalid, "{schedule}");
            assert!(error.reason().contains(field), "{schedule}: {error}");
        }
    }

    #[test]
    fn missed_runs_are_one() {
        let schedule = Schedule::parse("@hourly").expect("a schedule");
        let at = |text| time::parse(text).expect("a time");
        let (last, now) = (at("2026-11-20T12:00:10Z"), at("2026-11-21T09:30:00Z"));
        assert!(schedule.is_due(last, now));
        assert!(!schedule.is_due(now, now) && !schedule.is_due(now, at("2026-11-21T09:59:59Z")));
        assert!(schedule.is_due(now, at("2026-11-21T10:00:00Z")));
        assert!(!schedule.is_due(now, last), "a clock that was set back makes nothing due");
    }

    #[test]
    fn times_that_nobody_lives_to_see_have_no_next_one() {
        let schedule = Schedule::parse("@yearly").expect("a schedule");
        assert_eq!(schedule.next_after(UNIX_EPOCH + Duration::from_secs(LAST_SECOND + 1)), None);
        assert!(schedule.next_after(UNIX_EPOCH + Duration::from_secs(LAST_SECOND)).is_some());
        assert!(schedule.next_after(UNIX_EPOCH - Duration::from_secs(9)).is_some());
    }

    /// Values of a field, and how they are written.
    #[derive(Clone, Debug)]
    struct Values {
        text: String,
        values: BTreeSet<u32>,
    }

    fn values(from: u32, to: u32) -> impl Strategy<Value = Values> {
        let all = move |step: u32| Values {
            text: if step == 1 { "*".to_owned() } else { format!("*/{step}") },
            values: (from..=to).step_by(step as usize).collect(),
        };
        let range = move |(one, other, step): (u32, u32, u32)| {
            let (begin, end) = (one.min(other), one.max(other));
            Values { text: format!("{begin}-{end}/{step}"), values: (begin..=end).step_by(step as usize).collect() }
        };
        let list = move |values: BTreeSet<u32>| Values {
            text: values.iter().map(u32::to_string).collect::<Vec<_>>().join(","),
            values,
        };
        let value = from..=to;
        prop_oneof![
            (1..=to.min(7)).prop_map(all),
            (value.clone(), value.clone(), 1..=to).prop_map(range),
            proptest::collection::btree_set(value, 1..4).prop_map(list),
        ]
    }

    /// The next time by looking at each day, hour and minute.
    fn slowly(fields: &[Values; 5], from: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let [minutes, hours, days, months, weekdays] = fields;
        let is_day = |date: &NaiveDate| {
            let day = days.values.contains(&date.day());
            let weekday = weekdays.values.contains(&date.weekday().num_days_from_sunday());
            let both = days.text.starts_with('*') || weekdays.text.starts_with('*');
            months.values.contains(&date.month()) && if both { day && weekday } else { day || weekday }
        };
        let dates = (0..1462).filter_map(|days| from.date_naive().checked_add_days(Days::new(days)));
        let mut times = dates.filter(is_day).flat_map(|date| {
            let times = hours.values.iter().flat_map(|hour| minutes.values.iter().map(move |minute| (*hour, *minute)));
            times.filter_map(move |(hour, minute)| Some(date.and_hms_opt(hour, minute, 0)?.and_utc()))
        });
        times.find(|time| *time > from)
    }

    proptest! {
        #[test]
        fn the_next_time_is_the_first_that_all_fields_have(
            fields in (values(0, 59), values(0, 23), values(1, 31), values(1, 12), values(0, 6)),
            seconds in 1_700_000_000_u64..1_900_000_000,
        ) {
            let fields = [fields.0, fields.1, fields.2, fields.3, fields.4];
            let text = fields.each_ref().map(|field| field.text.as_str()).join(" ");
            // Some never come.
            let Ok(schedule) = Schedule::parse(&text) else { return Ok(()) };
            let from = UNIX_EPOCH + Duration::from_secs(seconds);
            let found = schedule.next_after(from).map(DateTime::<Utc>::from);
            prop_assert_eq!(found, slowly(&fields, from.into()), "{}", text);
        }

        #[test]
        fn any_text_is_a_schedule_or_refused(text in "[-0-9*/,?@LWHa-z# ]{0,30}", any in ".{0,40}") {
            for text in [text, any] {
                if let Ok(schedule) = Schedule::parse(&text) {
                    let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
                    prop_assert!(schedule.next_after(now).is_none_or(|next| next > now));
                }
            }
        }
    }
}
