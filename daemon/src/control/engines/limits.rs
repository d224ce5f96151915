//! What hosts may do with a volume in a second: `docs/qos.md`.

use std::time::Duration;

use block_device::Limits;
use proto::v1;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Engines;
use crate::control::error::ControlError;

/// Below the least, a single command would wait for longer than hosts do.
const IOPS: (u64, u64) = (10, 1_000_000_000);
const BYTES_PER_SECOND: (u64, u64) = (1 << 20, 1 << 40);
const MOST_BURST_MS: u64 = 3_600_000;

/// The limits of a volume, as the state directory knows them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LimitsRecord {
    /// Commands a second; 0 for no limit.
    #[serde(default)]
    iops: u64,
    /// 0 for no limit.
    #[serde(default)]
    bytes_per_second: u64,
    #[serde(default)]
    burst_ms: u64,
}

impl LimitsRecord {
    /// Whether it says anything.
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn describe(self) -> v1::VolumeLimits {
        let Self { iops, bytes_per_second, burst_ms } = self;
        v1::VolumeLimits { iops, bytes_per_second, burst_ms }
    }

    /// What is given replaces what was.
    fn changed_by(self, request: &v1::SetLimitsRequest) -> Result<Self, ControlError> {
        let changed = Self {
            iops: request.iops.unwrap_or(self.iops),
            bytes_per_second: request.bytes_per_second.unwrap_or(self.bytes_per_second),
            burst_ms: request.burst_ms.unwrap_or(self.burst_ms),
        };
        check("iops", changed.iops, IOPS)?;
        check("bytes_per_second", changed.bytes_per_second, BYTES_PER_SECOND)?;
        if changed.burst_ms > MOST_BURST_MS {
            return Err(ControlError::invalid("burst_ms", format!("at most {MOST_BURST_MS}: an hour")));
        }
        Ok(changed)
    }
}

impl From<LimitsRecord> for Limits {
    fn from(LimitsRecord { iops, bytes_per_second, burst_ms }: LimitsRecord) -> Self {
        Self { iops, bytes_per_second, burst: Duration::from_millis(burst_ms) }
    }
}

fn check(field: &str, value: u64, (least, most): (u64, u64)) -> Result<(), ControlError> {
    if value == 0 || (least..=most).contains(&value) {
        return Ok(());
    }
    Err(ControlError::invalid(field, format!("{value} is not among {least} to {most}, nor 0 for no limit")))
}

impl Engines {
    /// Notes what hosts may do with a volume, and holds them to it from now on.
    pub(in crate::control) async fn set_limits(
        &self,
        volume: Uuid,
        request: &v1::SetLimitsRequest,
    ) -> Result<(), ControlError> {
        let _lock = self.locks.lock(volume).await;
        let absent = || ControlError::not_found("engine", volume);
        let (before, home, _) = self.entry(volume).ok_or_else(absent)?;
        let limits = before.limits.changed_by(request)?;
        self.note(volume, |record| record.limits = limits).await?;
        self.here.data.set_limits(home, volume, limits.into()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_given_stays_and_what_makes_no_sense_is_refused() {
        let request = |iops, bytes_per_second, burst_ms| v1::SetLimitsRequest {
            volume: "v".to_owned(),
            iops,
            bytes_per_second,
            burst_ms,
        };
        let limits = LimitsRecord::default().changed_by(&request(Some(100), None, Some(7))).expect("good limits");
        assert_eq!(limits, LimitsRecord { iops: 100, bytes_per_second: 0, burst_ms: 7 });
        let limits = limits.changed_by(&request(None, Some(1 << 20), None)).expect("good limits");
        assert_eq!(limits, LimitsRecord { iops: 100, bytes_per_second: 1 << 20, burst_ms: 7 });
        assert_eq!(Limits::from(limits).burst, Duration::from_millis(7));
        for bad in [
            request(Some(9), None, None),
            request(Some(1_000_000_001), None, None),
            request(None, Some(1), None),
            request(None, Some(u64::MAX), None),
            request(None, None, Some(3_600_001)),
        ] {
            limits.changed_by(&bad).expect_err("it is out of range");
        }
        let none = limits.changed_by(&request(Some(0), Some(0), Some(0))).expect("no limits");
        assert!(none.is_empty() && !Limits::from(none).are_set());
    }
}
