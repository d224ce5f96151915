//! Thousands of backups that were accepted and whose snapshot is deleted before they come to it (L3).

use std::fs;
use std::time::{Duration, Instant};

use anyhow::ensure;
use cli::client::answer;
use integration::{MIB, PATIENCE};
use proto::v1::{DeleteSnapshotRequest, ListOperationsRequest, OperationState};

use super::{Depot, SIZE, backup_request, reason, resident_kib};

/// As many as there may be at one time.
const MOST: usize = 1024;
/// What is kept of those that have ended.
const KEPT: usize = 256;

#[tokio::test]
async fn accepted_backups_of_a_snapshot_that_is_deleted_end_and_leave_nothing() -> anyhow::Result<()> {
    let (rounds, at_once) = if std::env::var_os("ASHLAR_LONG_TESTS").is_some() { (6, MOST) } else { (4, 60) };
    let depot = Depot::open(&["a"], "").await?;
    depot.house.create_volume("vol", SIZE, &["a"]).await?;
    depot.write("vol", 0, 1, 3 * MIB).await?;
    // Nothing is written, and what began would wait for ever.
    let away = depot.house.folder().join("away");
    fs::rename(&depot.folder, &away)?;
    let pid = depot.house.cluster.nodes()[0].pid().unwrap_or_default();
    let mut resident = Vec::new();
    for round in 0..rounds {
        depot.snapshot("vol", "lost").await?;
        let mut backups = depot.backups(0).await?;
        let mut first = String::new();
        for number in 0..at_once {
            let request = backup_request("lost", &format!("lost-{round}-{number}"));
            let accepted = answer(backups.create(request).await)?;
            if number == 0 {
                first = accepted.id;
            }
        }
        let waits =
            |found: &proto::v1::Operation| found.state() == OperationState::Waiting && found.failure == "connect";
        depot.wait_for(0, &first, waits).await?;
        if at_once == MOST {
            assert_eq!(reason(backups.create(backup_request("lost", "one-more")).await)?, "BUSY");
        }
        let delete = DeleteSnapshotRequest {
            volume: "vol".to_owned(),
            snapshot: "lost".to_owned(),
            ..DeleteSnapshotRequest::default()
        };
        answer(depot.house.client(0).await?.volumes().delete_snapshot(delete).await)?;
        let begun = Instant::now();
        let failed = [("work", "backup"), ("kind", "not_found")];
        let total = (at_once * (round + 1)) as f64;
        depot.wait_for_metric(0, "ashlar_backup_failures_total", &failed, |count| count == total).await?;
        resident.push(resident_kib(pid)?);
        println!("{at_once} jobs ended within {:?}, {} KiB resident", begun.elapsed(), resident[round]);
    }
    // What caches and allocators take is taken in the first rounds.
    let (before, after) = (resident[rounds / 2 - 1], resident[rounds - 1]);
    ensure!(after as f64 <= before as f64 * 1.05, "resident memory in KiB: {resident:?}");
    // The last one is counted before what it has left is gone.
    let state = depot.house.cluster.nodes()[0].folder().join("state");
    let left = |folder: &str| anyhow::Ok(fs::read_dir(state.join(folder))?.count());
    let limit = Instant::now() + PATIENCE;
    while left("backups")? > KEPT || left("backup-work")? > 0 {
        ensure!(Instant::now() < limit, "{} records and {} folders", left("backups")?, left("backup-work")?);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let active = ListOperationsRequest { only_active: true, ..ListOperationsRequest::default() };
    let active = depot.house.client(0).await?.list_operations(active).await?;
    ensure!(active.iter().all(|operation| operation.backup.is_empty()), "{active:#?}");
    Ok(())
}
