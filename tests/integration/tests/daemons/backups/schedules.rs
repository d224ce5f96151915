//! Schedules: what was due while the daemon was away is made up for once, and no more is kept than wanted.

use std::fs;
use std::time::Instant;

use anyhow::{Context, ensure};
use cli::client::answer;
use integration::{MIB, PATIENCE};
use proto::v1::{
    BackupSchedule, CreateBackupScheduleRequest, DeleteBackupScheduleRequest, GetBackupScheduleRequest,
    ListBackupsRequest, ListSnapshotsRequest,
};

use super::{Depot, SIZE, reason};

fn schedule(cron: &str, retain: u32) -> CreateBackupScheduleRequest {
    CreateBackupScheduleRequest {
        name: "yearly".to_owned(),
        volume: "vol".to_owned(),
        cron: cron.to_owned(),
        target: "depot".to_owned(),
        retain,
        ..CreateBackupScheduleRequest::default()
    }
}

impl Depot {
    /// Makes the daemon find that the schedule's last run was due two years ago.
    async fn miss(&mut self, uuid: &str) -> anyhow::Result<()> {
        self.house.cluster.node(0).kill()?;
        let path = self.house.cluster.nodes()[0].folder().join(format!("state/backup-schedules/{uuid}.json"));
        let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&path)?)?;
        let long_ago = 2_u64 * 366 * 24 * 60 * 60 * 1000;
        for field in ["created_at", "last_due"] {
            let found = &mut record["record"][field];
            if let Some(time) = found.as_u64() {
                *found = time.saturating_sub(long_ago).into();
            }
        }
        fs::write(&path, serde_json::to_vec(&record)?)?;
        self.house.cluster.node(0).start().await
    }

    async fn wait_for_run(&self, since: Option<i64>) -> anyhow::Result<BackupSchedule> {
        let limit = Instant::now() + PATIENCE;
        loop {
            let request = GetBackupScheduleRequest { schedule: "yearly".to_owned() };
            let found = answer(self.schedules().await?.get(request).await)?;
            if found.last_due_unix_ms.is_some_and(|due| since.is_none_or(|since| due > since))
                && !found.last_operation.is_empty()
            {
                return Ok(found);
            }
            ensure!(Instant::now() < limit, "the schedule stays {found:#?}\n{}", self.house.logs());
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }

    /// The backups and snapshots that there are, once there are as many as wanted.
    async fn wait_for_kept(&self, wanted: (usize, usize)) -> anyhow::Result<Vec<String>> {
        let limit = Instant::now() + PATIENCE;
        loop {
            let list = ListBackupsRequest {
                target: "depot".to_owned(),
                backup_volume: "vol".to_owned(),
                ..ListBackupsRequest::default()
            };
            let backups = match self.backups(0).await?.list(list).await {
                Ok(listed) => listed.into_inner().backups,
                // Before the first one.
                Err(_) => Vec::new(),
            };
            let list = ListSnapshotsRequest { volume: "vol".to_owned(), ..ListSnapshotsRequest::default() };
            let snapshots = self.house.client(0).await?.volumes().list_snapshots(list).await;
            let snapshots = snapshots.map(|listed| listed.into_inner().snapshots.len()).unwrap_or_default();
            if (backups.iter().filter(|backup| backup.complete).count(), snapshots) == wanted {
                return Ok(backups.into_iter().map(|backup| backup.name).collect());
            }
            ensure!(Instant::now() < limit, "{backups:#?} and {snapshots} snapshots\n{}", self.house.logs());
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test]
async fn a_missed_run_is_made_up_for_once_and_old_backups_go() -> anyhow::Result<()> {
    let mut depot = Depot::open(&["a"], "").await?;
    depot.house.create_volume("vol", SIZE, &["a"]).await?;
    depot.write("vol", 0, 1, 3 * MIB).await?;
    let mut schedules = depot.schedules().await?;
    assert_eq!(reason(schedules.create(schedule("61 * * * *", 1)).await)?, "INVALID_ARGUMENT");
    assert_eq!(reason(schedules.create(schedule("0 0 1 1 *", 0)).await)?, "INVALID_ARGUMENT");
    let made = answer(schedules.create(schedule("0 0 1 1 *", 1)).await)?;
    assert_eq!(answer(schedules.create(schedule("0 0 1 1 *", 1)).await)?.uuid, made.uuid);
    assert_eq!(reason(schedules.create(schedule("0 0 1 2 *", 1)).await)?, "CONFLICT");
    assert!(made.next_due_unix_ms.is_some() && made.last_due_unix_ms.is_none(), "{made:#?}");

    depot.miss(&made.uuid).await?;
    let first = depot.wait_for_run(None).await?;
    let names = depot.wait_for_kept((1, 1)).await?;
    assert!(names[0].starts_with("yearly-"), "{names:?}");
    // A lock that a kill leaves would hold up the removal below until it expires.
    depot.wait_for(0, &first.last_operation, |found| found.ended_at_unix_ms.is_some()).await?;
    // It is not due again before the next year.
    assert!(first.next_due_unix_ms > Some(first.last_due_unix_ms.context("it ran")?), "{first:#?}");

    depot.write("vol", 8 * MIB, 2, MIB).await?;
    // Names have seconds.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    depot.miss(&made.uuid).await?;
    let second = depot.wait_for_run(first.last_due_unix_ms).await?;
    depot.wait_for(0, &second.last_operation, |found| found.ended_at_unix_ms.is_some()).await?;
    let limit = Instant::now() + PATIENCE;
    loop {
        let kept = depot.wait_for_kept((1, 1)).await?;
        if kept != names {
            break;
        }
        ensure!(Instant::now() < limit, "{kept:?}\n{}", depot.house.logs());
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let delete = || DeleteBackupScheduleRequest { schedule: "yearly".to_owned(), ..Default::default() };
    answer(depot.schedules().await?.delete(delete()).await)?;
    answer(depot.schedules().await?.delete(delete()).await)?;
    Ok(())
}
