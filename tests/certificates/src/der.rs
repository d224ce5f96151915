//! DER (X.690): what certificates are written in.

use std::time::SystemTime;

fn tagged(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    let length = u16::try_from(content.len()).expect("certificates of tests are small").to_be_bytes();
    match length {
        [0, short @ 0..128] => bytes.push(short),
        [0, long] => bytes.extend([0x81, long]),
        [high, low] => bytes.extend([0x82, high, low]),
    }
    bytes.extend(content);
    bytes
}

pub(crate) fn sequence(parts: &[Vec<u8>]) -> Vec<u8> {
    tagged(0x30, &parts.concat())
}

pub(crate) fn set(parts: &[Vec<u8>]) -> Vec<u8> {
    tagged(0x31, &parts.concat())
}

/// A context-specific tag; 0x20 added for one that holds others.
pub(crate) fn context(number: u8, content: &[u8]) -> Vec<u8> {
    tagged(0x80 | number, content)
}

pub(crate) fn boolean(value: bool) -> Vec<u8> {
    tagged(1, &[if value { 0xff } else { 0 }])
}

pub(crate) fn integer(value: u32) -> Vec<u8> {
    // A zero in front keeps it positive, as few bytes as possible otherwise.
    let bytes = u64::from(value).to_be_bytes();
    let first = (0..7).find(|&at| bytes[at] != 0 || bytes[at + 1] & 0x80 != 0).unwrap_or(7);
    tagged(2, &bytes[first..])
}

pub(crate) fn bits(content: &[u8]) -> Vec<u8> {
    tagged(3, &[&[0], content].concat())
}

pub(crate) fn octets(content: &[u8]) -> Vec<u8> {
    tagged(4, content)
}

pub(crate) fn utf8(text: &str) -> Vec<u8> {
    tagged(12, text.as_bytes())
}

pub(crate) fn oid(arcs: &[u32]) -> Vec<u8> {
    let mut content = Vec::new();
    let mut arc = |value: u32| {
        let groups = (0..5).rev().map(|group| (value >> (7 * group)) as u8 & 0x7f);
        let skipped: Vec<_> = groups.skip_while(|group| *group == 0).collect();
        let (last, others) = skipped.split_last().unwrap_or((&0, &[]));
        content.extend(others.iter().map(|group| group | 0x80));
        content.push(*last);
    };
    arc(arcs[0] * 40 + arcs[1]);
    arcs[2..].iter().copied().for_each(&mut arc);
    tagged(6, &content)
}

/// UTCTime: years 1950 to 2049.
pub(crate) fn time(at: SystemTime) -> Vec<u8> {
    let seconds = at.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
    let (mut days, second) = (seconds / 86_400, seconds % 86_400);
    let mut year = 1970;
    while days >= length_of(year) {
        days -= length_of(year);
        year += 1;
    }
    let february = length_of(year) - 337;
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let (hour, minute) = (second / 3600, second / 60 % 60);
    let text = format!("{:02}{month:02}{:02}{hour:02}{minute:02}{:02}Z", year % 100, days + 1, second % 60);
    tagged(0x17, text.as_bytes())
}

fn length_of(year: u64) -> u64 {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    if leap { 366 } else { 365 }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn values_are_written_as_in_x690() {
        assert_eq!(integer(0), [2, 1, 0]);
        assert_eq!(integer(127), [2, 1, 127]);
        assert_eq!(integer(128), [2, 2, 0, 128]);
        assert_eq!(integer(0x0102_0304), [2, 4, 1, 2, 3, 4]);
        // The example of RFC 5280 for ecdsa-with-SHA256 (RFC 5758, section 3.2).
        assert_eq!(oid(&[1, 2, 840, 10045, 4, 3, 2]), [6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2]);
        assert_eq!(sequence(&[vec![0; 200]])[..4], [0x30, 0x81, 200, 0]);
        assert_eq!(sequence(&[vec![0; 300]])[..4], [0x30, 0x82, 1, 44]);
    }

    #[test]
    fn times_know_leap_years() {
        let text =
            |seconds: u64| String::from_utf8(time(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))[2..].to_vec());
        assert_eq!(text(951_827_696), Ok("000229123456Z".to_owned()));
        assert_eq!(text(1_798_761_599), Ok("261231235959Z".to_owned()));
    }
}
