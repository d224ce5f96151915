//! There and back, bit for bit, whatever is killed.

use anyhow::ensure;
use cli::client::answer;
use integration::MIB;
use proto::v1::{
    DeleteBackupRequest, ExportVolumeRequest, Frontend, GetBackupRequest, ListBackupVolumesRequest, ListBackupsRequest,
    OperationKind, OperationState, RestoreBackupRequest, UnexportVolumeRequest, VerifyBackupRequest, VolumeState,
};

use super::{Depot, SIZE, backup_request, reason, restore_request};

#[tokio::test]
async fn a_volume_goes_to_a_folder_and_comes_back_over_kills() -> anyhow::Result<()> {
    // Slow enough to be killed in the middle.
    let mut depot = Depot::open(&["a", "b"], "backup_bytes_per_second = 8388608").await?;
    depot.house.create_volume("vol", SIZE, &["a", "b"]).await?;
    depot.write("vol", 0, 1, 9 * MIB).await?;
    depot.write("vol", 16 * MIB, 2, 5 * MIB).await?;
    depot.snapshot("vol", "one").await?;
    let first = depot.content(0, "vol").await?;

    // A full backup, killed in the middle: the same operation goes on at the next block.
    let full = answer(depot.backups(0).await?.create(backup_request("one", "first")).await)?;
    assert_eq!((full.kind(), full.backup.as_str()), (OperationKind::Backup, "first"));
    depot.wait_for(0, &full.id, |found| found.done_bytes.is_some_and(|done| done > 4 * MIB)).await?;
    depot.house.cluster.node(0).kill()?;
    depot.house.cluster.node(0).start().await?;
    depot.wait_until_done(0, &full).await?;
    // Asked for again it is the same; another one under its name is refused (I30).
    assert_eq!(answer(depot.backups(0).await?.create(backup_request("one", "first")).await)?.id, full.id);
    let other = proto::v1::CreateBackupRequest { full: true, ..backup_request("one", "first") };
    assert_eq!(reason(depot.backups(0).await?.create(other).await)?, "CONFLICT");
    assert_eq!(depot.blocks()?, 4, "8 blocks in the maps, of which 4 are equal to others");

    // What changed since, zeroes in place of data among it.
    depot.write("vol", 10 * MIB, 3, 4096).await?;
    depot.write("vol", 8 * MIB, 4, 4096).await?;
    depot.write("vol", 2 * MIB, 0, 2 * MIB).await?;
    depot.snapshot("vol", "two").await?;
    let second = depot.content(0, "vol").await?;
    let incremental = depot.back_up("two", "second").await?;
    depot.wait_until_done(0, &incremental).await?;
    let get = |name: &str| GetBackupRequest {
        target: "depot".to_owned(),
        backup_volume: "vol".to_owned(),
        name: name.to_owned(),
    };
    let found = answer(depot.backups(0).await?.get(get("second")).await)?;
    assert!(found.complete && found.incremental && found.error.is_empty(), "{found:#?}");
    assert_eq!((found.blocks, found.labels["who"].as_str()), (9, "a test"));
    assert_eq!(format!("backup-{}", found.uuid), incremental.id);
    assert!(!answer(depot.backups(0).await?.get(get("first")).await)?.incremental);
    let list = ListBackupsRequest { target: "depot".to_owned(), backup_volume: "vol".to_owned(), ..Default::default() };
    let listed = answer(depot.backups(1).await?.list(list).await)?.backups;
    assert_eq!(listed.iter().map(|backup| backup.name.as_str()).collect::<Vec<_>>(), ["first", "second"]);
    let list = ListBackupVolumesRequest { target: "depot".to_owned(), ..Default::default() };
    let volumes = answer(depot.backups(1).await?.list_volumes(list).await)?.volumes;
    assert_eq!((volumes.len(), volumes[0].last_backup.as_str(), volumes[0].size_bytes), (1, "second", SIZE));

    // To new volumes: here, killed in the middle, and on another node.
    let here = depot.restore(0, "second", "here").await?;
    // Its volume is made before the first block comes.
    let limit = std::time::Instant::now() + integration::PATIENCE;
    while depot.house.volume("here").await.is_err() {
        ensure!(std::time::Instant::now() < limit, "no volume is made\n{}", depot.house.logs());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let there = depot.restore(1, "second", "there").await?;
    let verify =
        VerifyBackupRequest { target: "depot".to_owned(), backup_volume: "vol".to_owned(), name: "first".to_owned() };
    let verify = answer(depot.backups(1).await?.verify(verify).await)?;
    let half = depot.house.wait_until_healthy("here").await?;
    assert_eq!(half.state(), VolumeState::Restoring);
    assert!(half.engine.is_some_and(|engine| engine.nvmf.is_none()), "no host may see half a volume");
    let asked = ExportVolumeRequest { volume: "here".into(), frontend: Frontend::Nvmf.into(), ..Default::default() };
    assert_eq!(reason(depot.house.client(0).await?.volumes().export(asked.clone()).await)?, "RESTORING");
    depot.wait_for(0, &here.id, |found| found.done_bytes.is_some_and(|done| done > 4 * MIB)).await?;
    depot.house.cluster.node(0).kill()?;
    depot.house.cluster.node(0).start().await?;
    depot.wait_until_done(0, &here).await?;
    depot.wait_until_done(1, &there).await?;
    assert!(depot.wait_until_done(1, &verify).await?.reason.contains("blocks are whole"));
    assert_eq!(depot.house.volume("here").await?.state(), VolumeState::Created);
    ensure!(depot.content(0, "here").await? == second, "the restored volume differs");
    ensure!(depot.content(1, "there").await? == second, "the volume restored on another node differs");

    // Onto a volume that held garbage, which hosts must not have.
    depot.write("here", 24 * MIB, 9, 4 * MIB).await?;
    let onto = RestoreBackupRequest { replace: true, ..restore_request("first", "here") };
    assert_eq!(reason(depot.backups(0).await?.restore(restore_request("first", "here")).await)?, "EXISTS");
    assert_eq!(reason(depot.backups(0).await?.restore(onto.clone()).await)?, "EXPORTED");
    let unexport = UnexportVolumeRequest { volume: "here".to_owned(), ..Default::default() };
    answer(depot.house.client(0).await?.volumes().unexport(unexport).await)?;
    let onto = answer(depot.backups(0).await?.restore(onto).await)?;
    depot.wait_until_done(0, &onto).await?;
    answer(depot.house.client(0).await?.volumes().export(asked).await)?;
    ensure!(depot.content(0, "here").await? == first, "what the backup does not have has to be zero");

    // Blocks go with the last backup that has them, and a removal again is a success (I42).
    let delete = |name: &str| DeleteBackupRequest {
        target: "depot".to_owned(),
        backup_volume: "vol".to_owned(),
        name: name.to_owned(),
        expected_uuid: String::new(),
    };
    let wrong = DeleteBackupRequest { expected_uuid: uuid::Uuid::new_v4().to_string(), ..delete("first") };
    assert_eq!(reason(depot.backups(0).await?.delete(wrong).await)?, "OTHER_UUID");
    let before = depot.blocks()?;
    depot.expire_locks()?;
    let deleted = answer(depot.backups(0).await?.delete(delete("first")).await)?;
    depot.wait_until_done(0, &deleted).await?;
    let after = depot.blocks()?;
    ensure!(after + 1 == before, "{after} blocks of {before} are left: one was of this backup only");
    let again = answer(depot.backups(0).await?.delete(delete("first")).await)?;
    assert!(depot.wait_until_done(0, &again).await?.reason.contains("was not there"));
    let gone = depot.restore(1, "first", "gone").await?;
    let gone = depot.wait_for(1, &gone.id, |found| found.ended_at_unix_ms.is_some()).await?;
    assert_eq!((gone.state(), gone.failure.as_str()), (OperationState::Failed, "not_found"));
    let left = proto::v1::GetVolumeRequest { volume: "gone".to_owned() };
    assert_eq!(reason(depot.house.client(1).await?.volumes().get(left).await)?, "NOT_FOUND");
    depot
        .wait_for_metric(1, "ashlar_backup_failures_total", &[("work", "restore"), ("kind", "not_found")], |it| {
            it == 1.0
        })
        .await?;
    depot.wait_for_metric(0, "ashlar_backup_newest_seconds", &[("volume", "vol")], |taken| taken > 1.7e9).await?;
    depot.wait_for_metric(0, "ashlar_backup_restored_bytes_total", &[], |bytes| bytes > 4e6).await?;
    Ok(())
}
