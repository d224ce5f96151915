//! Until when a certificate is valid: for people and alerts. Whether it is valid is for the verifier.

use rustls::pki_types::CertificateDer;

/// The end of its validity in seconds since the Unix epoch; none if it cannot be read.
///
/// ```text
/// Certificate ::= SEQUENCE { SEQUENCE { [0] version OPTIONAL, serial, signature, issuer, SEQUENCE { notBefore, notAfter }, …   (RFC 5280, 4.1)
/// ```
pub(crate) fn not_after(certificate: &CertificateDer<'_>) -> Option<i64> {
    const SEQUENCE: u8 = 0x30;
    const VERSION: u8 = 0xa0;
    let (_, certificate, _) = element(certificate).filter(|(tag, ..)| *tag == SEQUENCE)?;
    let (_, mut body, _) = element(certificate).filter(|(tag, ..)| *tag == SEQUENCE)?;
    if let Some((VERSION, _, rest)) = element(body) {
        body = rest;
    }
    // Serial number, algorithm, issuer.
    for _ in 0..3 {
        body = element(body)?.2;
    }
    let (_, validity, _) = element(body).filter(|(tag, ..)| *tag == SEQUENCE)?;
    let (_, _, rest) = element(validity)?;
    let (tag, text, _) = element(rest)?;
    time(tag, std::str::from_utf8(text).ok()?)
}

/// Tag and content of the first element, and what follows it.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x83 => {
            let (length, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// UTCTime `YYMMDDhhmmssZ`, or GeneralizedTime `YYYYMMDDhhmmssZ`.
fn time(tag: u8, text: &str) -> Option<i64> {
    const UTC: u8 = 0x17;
    const GENERALIZED: u8 = 0x18;
    let digits = text.strip_suffix('Z').filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
    let number = |from: usize, to: usize| digits.get(from..to)?.parse::<i64>().ok();
    let (year, at) = match tag {
        UTC if digits.len() == 12 => number(0, 2).map(|year| (if year < 50 { 2000 + year } else { 1900 + year }, 2))?,
        GENERALIZED if digits.len() == 14 => (number(0, 4)?, 4),
        _ => return None,
    };
    let part = |index: usize| number(at + 2 * index, at + 2 * index + 2);
    let days = days_before(year, part(0).filter(|month| (1..=12).contains(month))?) + part(1)? - 1;
    Some(((days * 24 + part(2)?) * 60 + part(3)?) * 60 + part(4)?)
}

/// Days from 1970 to the first of the month. A year begins in March here, so that the leap day is its last.
fn days_before(year: i64, month: i64) -> i64 {
    let (year, months) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    // Of March to January five months in a row have 153 days.
    year * 365 + leap_days + (153 * months + 2) / 5 - 719_468
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use certificates::{Authority, Request};

    use super::*;

    #[test]
    fn the_end_is_read_from_certificates() {
        for seconds in [951_827_696, 1_798_761_599, 1_798_761_600, 2_000_000_000] {
            let not_after = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            let issued = Authority::new("ca").issue(&Request { not_after, ..Request::new("spiffe://c/x") });
            assert_eq!(super::not_after(&issued.certificate.into()), Some(seconds.cast_signed()));
        }
    }

    /// `date -u -d … +%s`
    #[test]
    fn times_of_both_kinds() {
        assert_eq!(time(0x17, "700101000000Z"), Some(0));
        assert_eq!(time(0x17, "491231235959Z"), Some(2_524_607_999));
        assert_eq!(time(0x18, "20500301000000Z"), Some(2_529_705_600));
        assert_eq!(time(0x18, "99991231235959Z"), Some(253_402_300_799));
        for (tag, text) in
            [(0x17, "20500301000000Z"), (0x18, "500301000000Z"), (0x17, "700001000000Z"), (0x17, "70010100000Z")]
        {
            assert_eq!(time(tag, text), None, "{text}");
        }
    }

    #[test]
    fn what_is_cut_off_or_no_certificate_has_no_end() {
        let whole = Authority::new("ca").issue(&Request::new("spiffe://c/x")).certificate;
        for length in 0..whole.len().min(150) {
            let _ = not_after(&whole[..length].to_vec().into());
        }
        assert_eq!(not_after(&whole[..60].to_vec().into()), None);
        assert_eq!(not_after(&vec![0x30, 0x84, 0xff, 0xff, 0xff, 0xff].into()), None);
    }
}
