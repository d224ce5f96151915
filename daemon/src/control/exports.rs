//! Over which frontends hosts reach a volume.

use proto::v1;
use uuid::Uuid;

use super::engines::Engines;
use super::error::ControlError;
use super::frontends::{Frontend, Frontends};
use super::volumes::Volumes;

impl Engines {
    /// Changes the frontends of a volume: first on record, so that a restart does not undo what hosts have seen.
    async fn change_frontends(
        &self,
        volume: Uuid,
        change: impl FnOnce(&Frontends) -> Result<Frontends, ControlError>,
    ) -> Result<(), ControlError> {
        let _lock = self.lock(volume).await;
        let (record, home) = self.record_of(volume).ok_or_else(|| ControlError::not_found("engine", volume))?;
        let frontends = change(&record.frontends)?;
        if frontends != record.frontends {
            self.note(volume, |record| record.frontends = frontends.clone()).await?;
        }
        self.data().set_frontends(home, volume, frontends).await
    }
}

impl Engines {
    /// Shows a volume to hosts as a new one is. One that is shown already stays as it is.
    pub(super) async fn export_by_default(&self, volume: Uuid) -> Result<(), ControlError> {
        let shown = |frontends: &Frontends| match frontends.nvmf.is_some() || frontends.iscsi.is_some() {
            true => Ok(frontends.clone()),
            false => Ok(Frontends::default()),
        };
        self.change_frontends(volume, shown).await
    }
}

impl Volumes {
    /// Shows a volume to hosts over a frontend, or changes who may attach there.
    pub(crate) async fn export(&self, request: v1::ExportVolumeRequest) -> Result<v1::Volume, ControlError> {
        let volume = self.free_uuid_of(&request.volume)?;
        if request.frontend() == v1::Frontend::Iscsi && !self.engines().has_portals() {
            let text = "this node has no iSCSI portals: give it one (`iscsi` in its configuration) and restart it";
            return Err(ControlError::precondition("NO_PORTALS", text));
        }
        self.engines().change_frontends(volume, |frontends| frontends.export(&request)).await?;
        self.get(&volume.to_string()).await
    }

    /// Takes a volume from hosts at one frontend, or at all of them.
    pub(crate) async fn unexport(&self, request: v1::UnexportVolumeRequest) -> Result<v1::Volume, ControlError> {
        let volume = self.uuid_of(&request.volume)?;
        let frontend = Frontend::of(request.frontend());
        self.engines().change_frontends(volume, |frontends| Ok(frontends.unexport(frontend))).await?;
        self.get(&volume.to_string()).await
    }
}
