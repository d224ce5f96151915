//! Sizes as people write them: `1GiB`, `512M`, `4096`.

use std::fmt;
use std::str::FromStr;

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

const UNITS: [(&str, u32); 5] = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40), ("PiB", 50)];

impl FromStr for Size {
    type Err = String;

    /// A whole number and a unit: nothing or `B` for bytes; `k`, `M`, `G`, `T`, `P`, with or without `iB`, for powers of
    /// 1024. `GB` and the like are refused: half of the world means something else by them.
    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| "write a size like 1GiB, 512MiB or 4096".to_owned())?;
        let shift = shift(unit).ok_or_else(|| format!("`{unit}` is no unit: use KiB, MiB, GiB or TiB"))?;
        number.checked_mul(1 << shift).map(Size).ok_or_else(|| format!("{text} is too large"))
    }
}

fn shift(unit: &str) -> Option<u32> {
    if unit.is_empty() || unit == "B" {
        return Some(0);
    }
    let (_, shift) = UNITS.iter().find(|(name, _)| {
        name.eq_ignore_ascii_case(unit) || (unit.len() == 1 && name[..1].eq_ignore_ascii_case(unit))
    })?;
    Some(*shift)
}

impl fmt::Display for Size {
    /// In the largest unit that leaves at least one, with a decimal where the size is no whole number of units.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match UNITS.iter().rev().find(|(_, shift)| self.0 >= 1 << shift) {
            None => format!("{} B", self.0),
            Some((unit, shift)) if self.0.trailing_zeros() >= *shift => format!("{} {unit}", self.0 >> shift),
            Some((unit, shift)) => format!("{:.1} {unit}", self.0 as f64 / (1_u64 << shift) as f64),
        };
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::Size;

    #[test]
    fn sizes_are_read_as_powers_of_1024() {
        let sizes = [("4096", 4096), ("1KiB", 1 << 10), ("512MiB", 512 << 20), ("1g", 1 << 30), ("2T", 2 << 40)];
        for (text, bytes) in sizes {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "GiB", "-1", "1.5GiB", "1GB", "1 GiB", "1XiB", "99999999999999999999", "99999999PiB"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_written_short() {
        let sizes = [(0, "0 B"), (1023, "1023 B"), (1 << 30, "1 GiB"), (1536 << 10, "1.5 MiB"), (65536, "64 KiB")];
        for (bytes, text) in sizes {
            assert_eq!(Size(bytes).to_string(), text);
        }
    }
}
