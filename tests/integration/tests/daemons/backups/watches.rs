//! Targets, backups, standbys and schedules as streams of changes, with content and versions.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use cli::client::answer;
use integration::{MIB, PATIENCE, program};
use proto::v1::{
    ChangeKind, CreateBackupScheduleRequest, CreateStandbyRequest, DeleteBackupRequest, DeleteBackupScheduleRequest,
    DeleteBackupTargetRequest, DeleteStandbyRequest, ListBackupTargetsRequest, ListBackupsRequest, ListStandbysRequest,
    StandbyState, WatchBackupSchedulesRequest, WatchBackupTargetsRequest, WatchBackupsRequest, WatchStandbysRequest,
};
use tonic::Streaming;

use super::{Depot, SIZE, create_target, files_below, reason, targets};

/// The next message that is as wanted, and all before it.
async fn hear<T: std::fmt::Debug>(stream: &mut Streaming<T>, wanted: impl Fn(&T) -> bool) -> anyhow::Result<Vec<T>> {
    let mut heard = Vec::new();
    loop {
        let message = tokio::time::timeout(PATIENCE, stream.message()).await;
        let message = message.with_context(|| format!("nothing more after {heard:#?}"))??;
        heard.push(message.with_context(|| format!("it ended after {heard:#?}"))?);
        if heard.last().is_some_and(&wanted) {
            return Ok(heard);
        }
    }
}

#[tokio::test]
async fn targets_and_schedules_are_told_with_what_they_are() -> anyhow::Result<()> {
    let mut depot = Depot::open(&["a"], "").await?;
    depot.house.create_volume("vol", SIZE, &["a"]).await?;
    let mut client = targets(&depot.house, 0).await?;
    let mut watch = client.watch(WatchBackupTargetsRequest::default()).await?.into_inner();
    let listed = hear(&mut watch, |change| change.kind() == ChangeKind::Listed).await?;
    let names: Vec<_> = listed.iter().filter_map(|change| Some(change.target.as_ref()?.name.as_str())).collect();
    assert_eq!(names, ["depot"]);
    let version = listed.last().map(|last| last.resource_version.clone()).unwrap_or_default();
    assert_eq!(version, answer(client.list(ListBackupTargetsRequest::default()).await)?.resource_version);
    let second = create_target(&depot.house, 0, "second", &depot.folder).await?;
    let changed = hear(&mut watch, |change| change.kind() == ChangeKind::Changed).await?;
    assert_eq!(changed[0].target.as_ref(), Some(&second));
    let delete = DeleteBackupTargetRequest { target: "second".to_owned(), ..Default::default() };
    answer(client.delete(delete).await)?;
    let deleted = hear(&mut watch, |change| change.kind() == ChangeKind::Deleted).await?;
    assert_eq!(deleted[0].target.as_ref(), Some(&second));
    // Who was away hears what has changed since, and that only.
    let since = WatchBackupTargetsRequest { resource_version: version.clone(), ..Default::default() };
    let mut again = client.watch(since.clone()).await?.into_inner();
    let missed = hear(&mut again, |change| change.kind() == ChangeKind::Deleted).await?;
    assert_eq!(missed.len(), 1, "{missed:#?}");

    let mut schedules = depot.schedules().await?;
    let mut watch = schedules.watch(WatchBackupSchedulesRequest::default()).await?.into_inner();
    hear(&mut watch, |change| change.kind() == ChangeKind::Listed).await?;
    let request = CreateBackupScheduleRequest {
        name: "yearly".to_owned(),
        volume: "vol".to_owned(),
        cron: "@yearly".to_owned(),
        retain: 2,
        ..CreateBackupScheduleRequest::default()
    };
    let made = answer(schedules.create(request).await)?;
    let changed = hear(&mut watch, |change| change.kind() == ChangeKind::Changed).await?;
    assert_eq!(changed[0].schedule.as_ref(), Some(&made));
    let only = WatchBackupSchedulesRequest { schedule_uuid: uuid::Uuid::new_v4().to_string(), ..Default::default() };
    let mut others = schedules.watch(only).await?.into_inner();
    assert_eq!(hear(&mut others, |_| true).await?[0].kind(), ChangeKind::Listed, "of others nothing is told");
    let delete = DeleteBackupScheduleRequest { schedule: "yearly".to_owned(), ..Default::default() };
    answer(schedules.delete(delete).await)?;
    let deleted = hear(&mut watch, |change| change.kind() == ChangeKind::Deleted).await?;
    assert_eq!(deleted[0].schedule.as_ref().map(|schedule| schedule.uuid.as_str()), Some(made.uuid.as_str()));

    // A version is one of a run, and streams end with it.
    depot.house.cluster.node(0).stop().await?;
    ensure!(!matches!(watch.message().await, Ok(Some(_))), "it goes on");
    depot.house.cluster.node(0).start().await?;
    assert_eq!(reason(targets(&depot.house, 0).await?.watch(since).await)?, "EXPIRED");
    Ok(())
}

#[tokio::test]
async fn backups_and_standbys_are_told_as_they_come_and_go() -> anyhow::Result<()> {
    let depot = Depot::open(&["a", "b"], "").await?;
    depot.house.create_volume("vol", SIZE, &["a"]).await?;
    depot.write("vol", 0, 1, 3 * MIB).await?;
    depot.snapshot("vol", "one").await?;
    let request = || WatchBackupsRequest {
        target: "depot".to_owned(),
        backup_volume: "vol".to_owned(),
        ..WatchBackupsRequest::default()
    };
    let mut here = depot.backups(0).await?.watch(request()).await?.into_inner();
    // Nobody tells the other daemon: it lists.
    let mut there = depot.backups(1).await?.watch(request()).await?.into_inner();
    for watch in [&mut here, &mut there] {
        assert_eq!(hear(watch, |_| true).await?[0].kind(), ChangeKind::Listed);
    }
    let mut standbys = depot.standbys(1).await?;
    let mut standby = standbys.watch(WatchStandbysRequest::default()).await?.into_inner();
    hear(&mut standby, |change| change.kind() == ChangeKind::Listed).await?;
    let create = CreateStandbyRequest {
        name: "dr".to_owned(),
        target: "depot".to_owned(),
        backup_volume: "vol".to_owned(),
        interval_seconds: 1,
        ..CreateStandbyRequest::default()
    };
    let made = answer(standbys.create(create).await)?;
    // It waits: there is no such volume yet.
    let is_in = |state: StandbyState| {
        move |change: &proto::v1::StandbyChange| change.standby.as_ref().is_some_and(|found| found.state() == state)
    };
    hear(&mut standby, is_in(StandbyState::Waiting)).await?;

    let mut cli = Command::new(program("ashlar")?);
    cli.args(["--server", &depot.house.cluster.nodes()[0].server()]);
    cli.args(["backup", "list", "vol", "--target", "depot", "--watch=3600"]);
    let mut cli = cli.stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(cli.stdout.take().context("piped")?).lines();
    let mut read = |wanted: &str| -> anyhow::Result<()> {
        loop {
            if lines.next().context("it ended")??.trim_start().starts_with(wanted) {
                return Ok(());
            }
        }
    };
    read("Target depot has no backups")?;
    depot.wait_until_done(0, &depot.back_up("one", "first").await?).await?;
    read("first")?;
    let is_complete = |change: &proto::v1::BackupChange| {
        change.kind() == ChangeKind::Changed
            && change.backup.as_ref().is_some_and(|backup| backup.name == "first" && backup.complete)
    };
    let told = hear(&mut here, is_complete).await?;
    let version = told.last().map(|last| last.resource_version.clone()).unwrap_or_default();
    let list = ListBackupsRequest { target: "depot".to_owned(), backup_volume: "vol".to_owned(), ..Default::default() };
    let listed = answer(depot.backups(0).await?.list(list).await)?;
    assert_eq!(
        (listed.backups.first(), &listed.resource_version),
        (told.last().and_then(|last| last.backup.as_ref()), &version)
    );
    hear(&mut there, is_complete).await?;

    // The standby restores it, and says so.
    let has = |change: &proto::v1::StandbyChange| {
        change.standby.as_ref().is_some_and(|found| found.complete == "first" && found.state() == StandbyState::Idle)
    };
    let told = hear(&mut standby, has).await?;
    let last = told.last().and_then(|last| last.standby.clone()).context("it idles")?;
    assert_eq!(last.uuid, made.uuid);
    let versions = answer(standbys.list(ListStandbysRequest::default()).await)?.resource_version;
    ensure!(!versions.is_empty());
    answer(standbys.delete(DeleteStandbyRequest { standby: "dr".to_owned(), ..Default::default() }).await)?;
    hear(&mut standby, |change| change.kind() == ChangeKind::Deleted).await?;

    // A file that breaks is told, too, though no job has touched it.
    let file = files_below(&depot.folder, "cfg")?.into_iter().find(|path| path.ends_with("backup_first.cfg"));
    std::fs::write(file.context("its file")?, "{")?;
    let is_broken =
        |change: &proto::v1::BackupChange| change.backup.as_ref().is_some_and(|backup| !backup.error.is_empty());
    hear(&mut here, is_broken).await?;
    depot.expire_locks()?;
    let delete = DeleteBackupRequest {
        target: "depot".to_owned(),
        backup_volume: "vol".to_owned(),
        name: "first".to_owned(),
        ..DeleteBackupRequest::default()
    };
    answer(depot.backups(0).await?.delete(delete).await)?;
    hear(&mut here, |change| change.kind() == ChangeKind::Deleted).await?;
    read("gone: first")?;
    let since = WatchBackupsRequest { resource_version: version, ..request() };
    let mut again = depot.backups(0).await?.watch(since).await?.into_inner();
    assert_eq!(hear(&mut again, |_| true).await?[0].kind(), ChangeKind::Deleted);
    let interrupted = Command::new("sh").arg("-c").arg(format!("kill -INT {}", cli.id())).status()?;
    ensure!(interrupted.success() && cli.wait()?.success(), "an end in order");
    Ok(())
}
