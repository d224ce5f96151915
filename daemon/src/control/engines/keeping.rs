//! The tasks that bring engines up, their end by a panic, and pages of the list.

use std::sync::Arc;
use std::time::Duration;

use proto::v1::{self, EventSubject};
use uuid::Uuid;

use super::{EngineRecord, Engines, Phase};
use crate::control::error::ControlError;
use crate::control::events::Happened;
use crate::control::retry::Backoff;
use crate::control::{pages, panics};
use crate::data::Hidden;
use crate::health::{News, Volume};

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
    pub(super) async fn keep(self: Arc<Self>, record: EngineRecord, home: usize, hidden: Option<Hidden>) {
        let (volume, name) = (record.volume, record.name.clone());
        if let Err(panic) = panics::caught(Arc::clone(&self).keep_starting(record, home, hidden)).await {
            let reason = format!("its task ended by a panic ({panic}): `ashlar volume start {name}` takes it up again");
            tracing::error!(volume = %name, %panic, "a volume's task ended by a panic; the others go on");
            self.here.events.note(Happened::of(EventSubject::Volume, &name, volume, "failed", &reason));
            self.set_phase(volume, Phase::Broken(reason));
        }
    }

    /// Shows a volume to hosts and sets a task on it that starts its engine. An error: hosts cannot attach it as wanted yet, which is
    /// tried again.
    pub(super) async fn bring_up(self: &Arc<Self>, record: EngineRecord) -> Result<(), ControlError> {
        let volume = record.volume;
        let home = self.insert(record.clone(), Phase::Starting("it was just asked for".to_owned()));
        let export = self.export(&record, home).await;
        let hidden = export.is_err().then(|| self.here.data.hide());
        if let Err(error) = &export {
            self.set_phase(volume, Phase::Starting(error.to_string()));
        }
        let keeper = tokio::spawn(Arc::clone(self).keep(record, home, hidden));
        if let Some(entry) = self.entries().get_mut(&volume) {
            entry.keeper = Some(keeper);
        }
        export?
    }

    /// Shows a volume to hosts as it is wanted, now.
    pub(super) async fn show(&self, volume: Uuid) -> Result<(), ControlError> {
        let (record, home, _) = self.entry(volume).ok_or_else(|| ControlError::not_found("engine", volume))?;
        self.export(&record, home).await?
    }

    /// The outer error: there is no export. The inner one: some frontend of it is not as wanted, which the export itself tries again.
    async fn export(&self, record: &EngineRecord, home: usize) -> Result<Result<(), ControlError>, ControlError> {
        let (meter, shown) = self.here.data.export(home, self.spec(record)).await?;
        let volume = Volume { uuid: record.volume, name: record.name.clone(), meter };
        self.here.feed.tell(News::Shown(Arc::new(volume)));
        Ok(shown)
    }

    /// Tries to start the engine until it works; before that to export the volume, if it is `hidden`. Other nodes that do not answer do not
    /// keep it from starting when the replicas in reach suffice: that is the engine's own decision.
    async fn keep_starting(self: Arc<Self>, record: EngineRecord, home: usize, mut hidden: Option<Hidden>) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
        if hidden.is_some() {
            backoff.wait().await;
        }
        loop {
            match self.start_once(&record, home, &mut hidden).await {
                Ok(()) => {
                    tracing::info!(volume = %record.name, reactor = home, "engine is running");
                    return self.set_phase(record.volume, Phase::Running);
                }
                Err(error) => {
                    tracing::warn!(volume = %record.name, %error, "engine does not start yet");
                    self.set_phase(record.volume, Phase::Starting(error.to_string()));
                }
            }
            backoff.wait().await;
        }
    }

    async fn start_once(
        &self,
        record: &EngineRecord,
        home: usize,
        hidden: &mut Option<Hidden>,
    ) -> Result<(), ControlError> {
        panics::panic_if_asked_to(&record.name);
        if hidden.is_some() {
            // Who ends this task has the lock: not half way.
            let _lock = self.locks.lock(record.volume).await;
            let (now, ..) =
                self.entry(record.volume).ok_or_else(|| ControlError::not_found("engine", record.volume))?;
            // What the export tries again itself does not keep the engine from starting.
            let _ = self.export(&now, home).await?;
            hidden.take();
        }
        let mut spec = self.spec(record);
        for member in &mut spec.members {
            let Some(store) = member.store else { continue };
            if let Err(reason) = self.here.stores.opened(store).await {
                tracing::warn!(volume = %record.name, %reason, "the local replica is missing");
                member.store = None;
            }
        }
        self.here.data.start_engine(home, spec).await
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
