//! Backups, and where they are kept.

use proto::v1;
use proto::v1::backup_schedule_service_server::BackupScheduleService;
use proto::v1::backup_service_server::BackupService;
use proto::v1::backup_target_service_server::BackupTargetService;
use proto::v1::standby_service_server::StandbyService;
use tonic::Request;

use super::{Answer, Services, answer};
use crate::control::ChangeStream;

#[tonic::async_trait]
impl BackupTargetService for Services {
    type WatchStream = ChangeStream<v1::BackupTargetChange>;

    async fn watch(&self, request: Request<v1::WatchBackupTargetsRequest>) -> Answer<Self::WatchStream> {
        answer(self.control.backups.targets.watch(&request.into_inner()))
    }

    async fn create(&self, request: Request<v1::CreateBackupTargetRequest>) -> Answer<v1::BackupTarget> {
        self.detached(|control| async move { control.backups.create_target(request.into_inner()).await }).await
    }

    async fn list(&self, request: Request<v1::ListBackupTargetsRequest>) -> Answer<v1::ListBackupTargetsResponse> {
        answer(self.control.backups.list_targets(request.into_inner()))
    }

    async fn get(&self, request: Request<v1::GetBackupTargetRequest>) -> Answer<v1::BackupTarget> {
        answer(self.control.backups.get_target(&request.into_inner().target))
    }

    async fn delete(&self, request: Request<v1::DeleteBackupTargetRequest>) -> Answer<v1::DeleteBackupTargetResponse> {
        self.detached(|control| async move {
            let deleted = control.backups.delete_target(request.into_inner()).await;
            deleted.map(|()| v1::DeleteBackupTargetResponse {})
        })
        .await
    }

    async fn check(&self, request: Request<v1::CheckBackupTargetRequest>) -> Answer<v1::BackupTargetCheck> {
        self.detached(|control| async move { control.backups.check_target(&request.into_inner().target).await }).await
    }
}

#[tonic::async_trait]
impl BackupService for Services {
    type WatchStream = ChangeStream<v1::BackupChange>;

    async fn watch(&self, request: Request<v1::WatchBackupsRequest>) -> Answer<Self::WatchStream> {
        answer(self.control.backups.watch(request.into_inner()).await)
    }

    async fn create(&self, request: Request<v1::CreateBackupRequest>) -> Answer<v1::Operation> {
        self.detached(|control| async move { control.backups.create(request.into_inner()).await }).await
    }

    async fn list_volumes(
        &self,
        request: Request<v1::ListBackupVolumesRequest>,
    ) -> Answer<v1::ListBackupVolumesResponse> {
        answer(self.control.backups.list_volumes(request.into_inner()).await)
    }

    async fn list(&self, request: Request<v1::ListBackupsRequest>) -> Answer<v1::ListBackupsResponse> {
        answer(self.control.backups.list(request.into_inner()).await)
    }

    async fn get(&self, request: Request<v1::GetBackupRequest>) -> Answer<v1::Backup> {
        answer(self.control.backups.get(request.into_inner()).await)
    }

    async fn delete(&self, request: Request<v1::DeleteBackupRequest>) -> Answer<v1::Operation> {
        self.detached(|control| async move { control.backups.delete(request.into_inner()).await }).await
    }

    async fn verify(&self, request: Request<v1::VerifyBackupRequest>) -> Answer<v1::Operation> {
        self.detached(|control| async move { control.backups.verify(request.into_inner()).await }).await
    }

    async fn restore(&self, request: Request<v1::RestoreBackupRequest>) -> Answer<v1::Operation> {
        self.detached(|control| async move { control.backups.restore(request.into_inner()).await }).await
    }
}

#[tonic::async_trait]
impl StandbyService for Services {
    type WatchStream = ChangeStream<v1::StandbyChange>;

    async fn watch(&self, request: Request<v1::WatchStandbysRequest>) -> Answer<Self::WatchStream> {
        answer(self.control.backups.standbys.watch(&request.into_inner()))
    }

    async fn create(&self, request: Request<v1::CreateStandbyRequest>) -> Answer<v1::Standby> {
        self.detached(|control| async move { control.backups.create_standby(request.into_inner()).await }).await
    }

    async fn list(&self, request: Request<v1::ListStandbysRequest>) -> Answer<v1::ListStandbysResponse> {
        answer(self.control.backups.standbys.list(request.into_inner()))
    }

    async fn get(&self, request: Request<v1::GetStandbyRequest>) -> Answer<v1::Standby> {
        answer(self.control.backups.standbys.get(&request.into_inner().standby))
    }

    async fn activate(&self, request: Request<v1::ActivateStandbyRequest>) -> Answer<v1::Standby> {
        self.detached(|control| async move { control.backups.standbys.activate(&request.into_inner().standby).await })
            .await
    }

    async fn delete(&self, request: Request<v1::DeleteStandbyRequest>) -> Answer<v1::DeleteStandbyResponse> {
        self.detached(|control| async move {
            let deleted = control.backups.standbys.delete(request.into_inner()).await;
            deleted.map(|()| v1::DeleteStandbyResponse {})
        })
        .await
    }
}

#[tonic::async_trait]
impl BackupScheduleService for Services {
    type WatchStream = ChangeStream<v1::BackupScheduleChange>;

    async fn watch(&self, request: Request<v1::WatchBackupSchedulesRequest>) -> Answer<Self::WatchStream> {
        answer(self.control.backups.schedules.watch(&request.into_inner()))
    }

    async fn create(&self, request: Request<v1::CreateBackupScheduleRequest>) -> Answer<v1::BackupSchedule> {
        self.detached(|control| async move { control.backups.create_schedule(request.into_inner()).await }).await
    }

    async fn list(&self, request: Request<v1::ListBackupSchedulesRequest>) -> Answer<v1::ListBackupSchedulesResponse> {
        answer(self.control.backups.schedules.list(request.into_inner()))
    }

    async fn get(&self, request: Request<v1::GetBackupScheduleRequest>) -> Answer<v1::BackupSchedule> {
        answer(self.control.backups.schedules.get(&request.into_inner().schedule))
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteBackupScheduleRequest>,
    ) -> Answer<v1::DeleteBackupScheduleResponse> {
        self.detached(|control| async move {
            let deleted = control.backups.schedules.delete(request.into_inner()).await;
            deleted.map(|()| v1::DeleteBackupScheduleResponse {})
        })
        .await
    }
}
