//! The tasks that bring engines up, their end by a panic, and pages of the list.

use std::sync::Arc;

use proto::v1::{self, EventSubject};
use uuid::Uuid;

use super::{EngineRecord, Engines, Phase};
use crate::control::error::ControlError;
use crate::control::events::Happened;
use crate::control::{pages, panics};

impl Phase {
    pub(super) fn may_become(&self, next: &Self) -> bool {
        match self {
            Self::Starting(_) => true,
            Self::Running | Self::Broken(_) | Self::Stopping => *next == Self::Stopping,
        }
    }
}

impl Engines {
    /// Brings the engine up; a panic on the way ends that, and the volume says so.
    pub(super) async fn keep(self: Arc<Self>, record: EngineRecord, home: usize) {
        let (volume, name) = (record.volume, record.name.clone());
        if let Err(panic) = panics::caught(Arc::clone(&self).keep_starting(record, home)).await {
            let reason = format!("its task ended by a panic ({panic}): `ashlar volume start {name}` takes it up again");
            tracing::error!(volume = %name, %panic, "a volume's task ended by a panic; the others go on");
            self.here.events.note(Happened::of(EventSubject::Volume, &name, volume, "failed", &reason));
            self.set_phase(volume, Phase::Broken(reason));
        }
    }

    /// Takes an engine up again whose task ended by a panic. One that goes on is left alone.
    pub(in crate::control) async fn take_up(self: &Arc<Self>, volume: Uuid) -> Result<(), ControlError> {
        let _lock = self.locks.lock(volume).await;
        let (record, _, phase) = self.entry(volume).ok_or_else(|| ControlError::not_found("engine", volume))?;
        if let Phase::Broken(_) = phase {
            self.stop_one(volume).await?;
            self.bring_up(record).await?;
        }
        Ok(())
    }

    /// A page of all engines, in order of their names.
    pub(crate) async fn list(&self, request: v1::ListEnginesRequest) -> Result<v1::ListEnginesResponse, ControlError> {
        let mut engines: Vec<_> = self.all().await?.into_values().collect();
        engines.sort_by(|one, other| (&one.name, &one.volume_uuid).cmp(&(&other.name, &other.volume_uuid)));
        let wanted = pages::Wanted { size: request.page_size, token: request.page_token };
        let (engines, next_page_token) =
            pages::page("engines", engines, |engine| [&engine.name, &engine.volume_uuid], &wanted)?;
        Ok(v1::ListEnginesResponse { engines, next_page_token })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stops_or_is_broken_runs_only_as_another_one() {
        let (starting, broken) = (Phase::Starting(String::new()), Phase::Broken(String::new()));
        for next in [&starting, &Phase::Running, &broken, &Phase::Stopping] {
            assert!(starting.may_become(next), "{next:?}");
            for ends in [&Phase::Running, &broken, &Phase::Stopping] {
                assert_eq!(ends.may_become(next), *next == Phase::Stopping, "{ends:?} to {next:?}");
            }
        }
    }
}
