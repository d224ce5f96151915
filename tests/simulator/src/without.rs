//! Parts of a plan that are left out, and how a person writes them.

use std::fmt;
use std::str::FromStr;

/// Steps that can be named.
const STEPS: usize = 128;

/// Volumes that can be named.
const VOLUMES: usize = 8;

/// What the limits of volumes are called.
const LIMITS: &str = "limits";

/// Parts of a plan that are left out. Scenarios without a plan ignore it.
///
/// Written as `3,5-9,v1,/4,limits`: steps, a volume, how much less work the hosts have, and the limits of volumes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Without {
    steps: u128,
    volumes: u8,
    /// How often the hosts' work is halved.
    pub(crate) halvings: u8,
    /// No volume has limits.
    pub(crate) limits: bool,
}

impl Without {
    /// Nothing is left out.
    pub const NOTHING: Self = Self { steps: 0, volumes: 0, halvings: 0, limits: false };

    /// Whether a step is left out.
    pub const fn step(&self, number: usize) -> bool {
        number < STEPS && self.steps >> number & 1 != 0
    }

    /// Whether a volume is left out.
    pub const fn volume(&self, number: usize) -> bool {
        number < VOLUMES && self.volumes >> number & 1 != 0
    }

    /// This, and half of the work that is left.
    #[must_use]
    pub const fn and_half_of_the_work(mut self) -> Self {
        self.halvings += 1;
        self
    }

    /// This, and no limits of volumes.
    #[must_use]
    pub const fn and_no_limits(mut self) -> Self {
        self.limits = true;
        self
    }

    /// This, and a step less.
    #[must_use]
    pub const fn and_step(mut self, number: usize) -> Self {
        self.steps |= 1 << number;
        self
    }

    /// This, and a volume less.
    #[must_use]
    pub const fn and_volume(mut self, number: usize) -> Self {
        self.volumes |= 1 << number;
        self
    }
}

impl fmt::Display for Without {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        let mut next = 0;
        while next < STEPS {
            let end = (next..STEPS).find(|&number| !self.step(number)).unwrap_or(STEPS);
            match end - next {
                0 => {}
                1 => parts.push(next.to_string()),
                _ => parts.push(format!("{next}-{}", end - 1)),
            }
            next = end + 1;
        }
        parts.extend((0..VOLUMES).filter(|&number| self.volume(number)).map(|number| format!("v{number}")));
        if self.halvings > 0 {
            parts.push(format!("/{}", 1 << self.halvings));
        }
        if self.limits {
            parts.push(LIMITS.to_owned());
        }
        f.write_str(&parts.join(","))
    }
}

impl FromStr for Without {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut without = Self::default();
        let number = |text: &str, limit: usize| {
            let number = text.parse().ok().filter(|&number| number < limit);
            number.ok_or_else(|| format!("{text} is not a number below {limit}"))
        };
        for part in text.split(',').filter(|part| !part.is_empty()) {
            if part == LIMITS {
                without = without.and_no_limits();
            } else if let Some(volume) = part.strip_prefix('v') {
                without = without.and_volume(number(volume, VOLUMES)?);
            } else if let Some(divisor) = part.strip_prefix('/') {
                let divisor = number(divisor, 1 << 8)?;
                if !divisor.is_power_of_two() {
                    return Err(format!("{divisor} is not a power of two"));
                }
                // Less than eight.
                without.halvings = divisor.trailing_zeros() as u8;
            } else {
                let (first, last) = part.split_once('-').unwrap_or((part, part));
                for step in number(first, STEPS)?..=number(last, STEPS)? {
                    without = without.and_step(step);
                }
            }
        }
        Ok(without)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for text in ["", "3", "3,5-9,v1,/4", "0-2,127", "v0,v7", "/2", "limits", "0-2,v1,/2,limits"] {
            let without: Without = text.parse().expect("it is well formed");
            assert_eq!(without.to_string(), text);
        }
        assert!("3,5-9".parse::<Without>().is_ok_and(|without| without.step(7) && !without.step(4)));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in ["x", "128", "v8", "/3", "3-", "1-x"] {
            assert!(text.parse::<Without>().is_err(), "{text}");
        }
    }
}
