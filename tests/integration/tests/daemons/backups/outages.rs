//! Targets that do not work, snapshots that are gone, and credentials that nobody may see.

use std::fs;

use anyhow::ensure;
use cli::client::answer;
use integration::{MIB, write_secret};
use proto::v1::{
    CancelOperationRequest, CheckBackupTargetRequest, CreateBackupTargetRequest, DeleteBackupTargetRequest,
    DeleteSnapshotRequest, ListBackupTargetsRequest, OperationState,
};
use tonic::Code;

use super::{Depot, SIZE, backup_request, create_target, reason, resident_kib, targets};

#[tokio::test]
async fn a_target_is_tried_out_and_its_credentials_are_nowhere_to_be_seen() -> anyhow::Result<()> {
    const SECRET: &str = "a-key-that-nobody-logs";
    let depot = Depot::open(&["a"], "log = \"trace\"").await?;
    let mut client = targets(&depot.house, 0).await?;
    let checked = answer(client.check(CheckBackupTargetRequest { target: "depot".to_owned() }).await)?;
    let steps: Vec<_> = checked.steps.iter().map(|step| (step.step.as_str(), step.took_us.is_some())).collect();
    assert_eq!(steps, [("connect", true), ("list", true), ("put", true), ("get", true), ("delete", true)]);
    assert_eq!((checked.good, checked.conditional_put), (true, Some(true)));
    // Again it is the same, with another place it is refused (I30).
    create_target(&depot.house, 0, "depot", &depot.folder).await?;
    let absent = depot.house.folder().join("absent");
    let request = |name: &str, url: &str, file: &str| CreateBackupTargetRequest {
        name: name.to_owned(),
        url: url.to_owned(),
        credentials_file: file.to_owned(),
        ..CreateBackupTargetRequest::default()
    };
    let url = format!("vfs://{}", absent.display());
    assert_eq!(reason(client.create(request("depot", &url, "")).await)?, "CONFLICT");
    assert_eq!(reason(client.create(request("absent", &url, "")).await)?, "TARGET_CHECK");
    assert!(!absent.exists(), "nothing is made where nothing is mounted");
    assert_eq!(reason(client.create(request("nfs", "nfs://host/path", "")).await)?, "INVALID_ARGUMENT");

    let file = depot.house.folder().join("keys");
    let path = file.display().to_string();
    // Nobody listens there.
    let pairs = format!("AWS_ACCESS_KEY_ID=id\nAWS_SECRET_ACCESS_KEY={SECRET}\nAWS_ENDPOINTS=http://127.0.0.1:9\n");
    fs::write(&file, &pairs)?;
    assert_eq!(reason(client.create(request("s3", "s3://bucket@region/", &path)).await)?, "CREDENTIALS");
    write_secret(&file, &pairs)?;
    let refused = client.create(request("s3", "s3://bucket@region/", &path)).await;
    ensure!(!format!("{refused:?}").contains(SECRET));
    assert_eq!(reason(refused)?, "TARGET_CHECK");
    let unchecked = CreateBackupTargetRequest { unchecked: true, ..request("s3", "s3://bucket@region/", &path) };
    answer(client.create(unchecked).await)?;
    let listed = answer(client.list(ListBackupTargetsRequest::default()).await)?;
    assert_eq!(listed.targets.iter().map(|target| target.name.as_str()).collect::<Vec<_>>(), ["depot", "s3"]);
    let checked = answer(client.check(CheckBackupTargetRequest { target: "s3".to_owned() }).await)?;
    assert!(!checked.good && checked.steps.iter().any(|step| !step.error.is_empty()), "{checked:#?}");
    let log = fs::read_to_string(depot.house.cluster.nodes()[0].log())?;
    ensure!(log.contains("TRACE"), "nothing is traced");
    let state = fs::read_dir(depot.house.cluster.nodes()[0].folder().join("state/backup-targets"))?;
    let records: String = state.map(|entry| Ok(fs::read_to_string(entry?.path())?)).collect::<anyhow::Result<_>>()?;
    for shown in [format!("{listed:?} {checked:?}"), log, records] {
        ensure!(!shown.contains(SECRET));
    }
    let delete = |uuid: &str| DeleteBackupTargetRequest { target: "s3".to_owned(), expected_uuid: uuid.to_owned() };
    assert_eq!(reason(client.delete(delete(&uuid::Uuid::new_v4().to_string())).await)?, "OTHER_UUID");
    answer(client.delete(delete("")).await)?;
    answer(client.delete(delete("")).await)?;
    Ok(())
}

#[tokio::test]
async fn an_outage_is_waited_out_and_a_snapshot_that_is_gone_is_not() -> anyhow::Result<()> {
    let mut depot = Depot::open(&["a"], "").await?;
    depot.house.create_volume("vol", SIZE, &["a"]).await?;
    depot.write("vol", 0, 1, 3 * MIB).await?;
    depot.snapshot("vol", "one").await?;
    depot.snapshot("vol", "two").await?;
    // The target is away: the backup waits, says why and when, also after a restart, and the volume does not mind.
    let away = depot.house.folder().join("away");
    fs::rename(&depot.folder, &away)?;
    let backup = depot.back_up("one", "first").await?;
    let is_waiting = |found: &proto::v1::Operation| {
        found.state() == OperationState::Waiting && found.failure == "connect" && found.next_try_unix_ms.is_some()
    };
    depot.wait_for(0, &backup.id, is_waiting).await?;
    depot.house.cluster.node(0).kill()?;
    depot.house.cluster.node(0).start().await?;
    depot.wait_for(0, &backup.id, is_waiting).await?;
    assert!(!depot.folder.exists(), "nothing is made where nothing is mounted");
    depot.house.wait_until_healthy("vol").await?;
    let mut client = targets(&depot.house, 0).await?;
    let in_use = DeleteBackupTargetRequest { target: "depot".to_owned(), ..Default::default() };
    assert_eq!(reason(client.delete(in_use).await)?, "IN_USE");

    // Another one waits behind it, until it is called off.
    let second = depot.back_up("two", "second").await?;
    let cancel = CancelOperationRequest { id: second.id.clone() };
    answer(depot.house.client(0).await?.operations().cancel(cancel).await)?;
    // What is under way when its snapshot goes ends as soon as it looks, whatever the target does.
    let delete = |snapshot: &str| DeleteSnapshotRequest {
        volume: "vol".to_owned(),
        snapshot: snapshot.to_owned(),
        ..DeleteSnapshotRequest::default()
    };
    answer(depot.house.client(0).await?.volumes().delete_snapshot(delete("one")).await)?;
    let ended = depot.wait_for(0, &backup.id, |found| found.ended_at_unix_ms.is_some()).await?;
    assert_eq!((ended.state(), ended.failure.as_str()), (OperationState::Failed, "not_found"));
    let cancelled = depot.wait_for(0, &second.id, |found| found.ended_at_unix_ms.is_some()).await?;
    assert_eq!(cancelled.state(), OperationState::Cancelled);
    // It is there again: the same request, which was called off, begins anew.
    fs::rename(&away, &depot.folder)?;
    let again = depot.back_up("two", "second").await?;
    assert_eq!(again.id, second.id);
    depot.wait_until_done(0, &again).await?;

    // Requests for backups of a snapshot that is gone end at once (L3).
    let count = if std::env::var_os("ASHLAR_LONG_TESTS").is_some() { 5000 } else { 200 };
    let pid = depot.house.cluster.nodes()[0].pid().unwrap_or_default();
    let mut backups = depot.backups(0).await?;
    let mut resident = Vec::new();
    // Once to get what caches and allocators take, and once to measure.
    for round in 0..2 {
        let begun = std::time::Instant::now();
        for number in 0..count {
            let refused = backups.create(backup_request("one", &format!("lost-{round}-{number}"))).await;
            assert_eq!(refused.as_ref().err().map(tonic::Status::code), Some(Code::NotFound), "{refused:?}");
        }
        resident.push(resident_kib(pid)?);
        println!("{count} requests in {:?}, {} KiB resident", begun.elapsed(), resident[round]);
    }
    ensure!(resident[1] as f64 <= resident[0] as f64 * 1.05, "resident memory in KiB: {resident:?}");
    let records = fs::read_dir(depot.house.cluster.nodes()[0].folder().join("state/backups"))?.count();
    assert_eq!(records, 2, "nothing is left of what was refused");
    Ok(())
}
