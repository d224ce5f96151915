//! What a certificate that may only look may do with backups.

use anyhow::{Context, ensure};
use cli::client::Client;
use integration::{MIB, Secured, uri};
use proto::v1::{
    ActivateStandbyRequest, CheckBackupTargetRequest, CreateBackupRequest, CreateBackupScheduleRequest,
    CreateBackupTargetRequest, CreateStandbyRequest, DeleteBackupRequest, DeleteBackupScheduleRequest,
    DeleteBackupTargetRequest, DeleteStandbyRequest, GetBackupRequest, GetBackupScheduleRequest,
    GetBackupTargetRequest, GetStandbyRequest, ListBackupSchedulesRequest, ListBackupTargetsRequest,
    ListBackupVolumesRequest, ListBackupsRequest, ListStandbysRequest, RestoreBackupRequest, VerifyBackupRequest,
    WatchBackupSchedulesRequest, WatchBackupTargetsRequest, WatchBackupsRequest, WatchStandbysRequest,
};
use tonic::{Code, Status};

const CONTRACT: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../proto/ashlar/v1/backup.proto"));

/// What became of a call, by its name.
type Called = Vec<(&'static str, Result<(), Status>)>;

/// Calls with a request that says nothing, and tells what became of each.
macro_rules! call {
    ($client:expr, $($service:ident.$method:ident($request:ident)),+ $(,)?) => {
        vec![$((
            concat!(stringify!($service), ".", stringify!($method)),
            $client.$service().$method($request::default()).await.map(drop),
        )),+]
    };
}

async fn look(client: &Client) -> Called {
    call!(
        client,
        targets.list(ListBackupTargetsRequest),
        targets.get(GetBackupTargetRequest),
        targets.watch(WatchBackupTargetsRequest),
        backups.list(ListBackupsRequest),
        backups.list_volumes(ListBackupVolumesRequest),
        backups.get(GetBackupRequest),
        backups.watch(WatchBackupsRequest),
        standbys.list(ListStandbysRequest),
        standbys.get(GetStandbyRequest),
        standbys.watch(WatchStandbysRequest),
        schedules.list(ListBackupSchedulesRequest),
        schedules.get(GetBackupScheduleRequest),
        schedules.watch(WatchBackupSchedulesRequest),
    )
}

async fn change(client: &Client) -> Called {
    call!(
        client,
        targets.create(CreateBackupTargetRequest),
        targets.delete(DeleteBackupTargetRequest),
        targets.check(CheckBackupTargetRequest),
        backups.create(CreateBackupRequest),
        backups.delete(DeleteBackupRequest),
        backups.verify(VerifyBackupRequest),
        backups.restore(RestoreBackupRequest),
        standbys.create(CreateStandbyRequest),
        standbys.activate(ActivateStandbyRequest),
        standbys.delete(DeleteStandbyRequest),
        schedules.create(CreateBackupScheduleRequest),
        schedules.delete(DeleteBackupScheduleRequest),
    )
}

#[tokio::test]
async fn an_observer_sees_backups_and_changes_none() -> anyhow::Result<()> {
    let mut secured = Secured::prepare(&["a"], "")?;
    secured.house.cluster.start().await?;
    secured.house.create_store(0, "main", 64 * MIB).await?;
    let admin = secured.house.client(0).await?;
    let observer = secured.client(0, &secured.person("observer", &uri("role/read-only"))?).await?;
    let (changes, looks) = (change(&observer).await, look(&observer).await);
    ensure!(changes.len() + looks.len() == CONTRACT.matches("\n  rpc ").count(), "the contract has others, too");
    for (method, refused) in changes {
        let refused = refused.err().with_context(|| format!("{method} by an observer"))?;
        let reason = proto::error::info(&refused).map(|info| info.reason);
        ensure!((refused.code(), reason.as_deref()) == (Code::PermissionDenied, Some("ROLE")), "{method}: {refused}");
    }
    // These have no targets to name: that one is not found is said to who may ask.
    for (method, seen) in looks {
        let is_allowed = seen.as_ref().map_or_else(|error| error.code() == Code::NotFound, |()| true);
        ensure!(is_allowed, "{method}: {seen:?}");
    }
    // An administrator is refused for what the requests say, or not at all.
    for (method, done) in change(&admin).await {
        ensure!(done.as_ref().err().is_none_or(|error| error.code() != Code::PermissionDenied), "{method}: {done:?}");
    }
    Ok(())
}
