//! Watches of backups and of what makes them.

use proto::v1::backup_schedule_service_client::BackupScheduleServiceClient;
use proto::v1::standby_service_client::StandbyServiceClient;
use proto::v1::{
    BackupChange, BackupScheduleChange, BackupTargetChange, StandbyChange, WatchBackupSchedulesRequest,
    WatchBackupTargetsRequest, WatchBackupsRequest, WatchStandbysRequest,
};

use super::{Changes, Client};

impl Client {
    /// Follows the target with this UUID, or all of them.
    pub(crate) async fn follow_targets(&self, uuid: &str) -> anyhow::Result<Changes> {
        let request = WatchBackupTargetsRequest { target_uuid: uuid.to_owned(), ..Default::default() };
        Changes::of(self.targets().watch(request).await, BackupTargetChange::kind)
    }

    /// Follows the backups of a volume in a target.
    pub(crate) async fn follow_backups(&self, target: &str, volume: &str) -> anyhow::Result<Changes> {
        let (target, backup_volume) = (target.to_owned(), volume.to_owned());
        let request = WatchBackupsRequest { target, backup_volume, ..Default::default() };
        Changes::of(self.backups().watch(request).await, BackupChange::kind)
    }

    /// Follows the standby with this UUID, or all of them.
    pub(crate) async fn follow_standbys(&self, uuid: &str) -> anyhow::Result<Changes> {
        let request = WatchStandbysRequest { standby_uuid: uuid.to_owned(), ..Default::default() };
        let mut standbys = StandbyServiceClient::new(self.patient.clone());
        Changes::of(standbys.watch(request).await, StandbyChange::kind)
    }

    /// Follows the schedule with this UUID, or all of them.
    pub(crate) async fn follow_schedules(&self, uuid: &str) -> anyhow::Result<Changes> {
        let request = WatchBackupSchedulesRequest { schedule_uuid: uuid.to_owned(), ..Default::default() };
        let mut schedules = BackupScheduleServiceClient::new(self.patient.clone());
        Changes::of(schedules.watch(request).await, BackupScheduleChange::kind)
    }
}
