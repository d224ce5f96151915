//! S3 as the target of real daemons: Ceph's object gateway, which the test starts. Left out where that is missing.

use anyhow::ensure;
use ceph::{Ceph, SECRET};
use cli::client::answer;
use integration::{MIB, write_secret};
use proto::v1::{
    CreateBackupRequest, CreateBackupTargetRequest, ListBackupVolumesRequest, RestoreBackupRequest, VerifyBackupRequest,
};

use super::{Depot, SIZE, backup_request, restore_request, targets};

#[tokio::test]
async fn a_volume_goes_to_s3_and_comes_back_over_kills() -> anyhow::Result<()> {
    let Some(ceph) = Ceph::start().await else { return Ok(()) };
    // Slow enough to be killed in the middle.
    let mut depot = Depot::open(&["a"], "backup_bytes_per_second = 4194304").await?;
    depot.house.create_volume("vol", SIZE, &["a"]).await?;
    for block in 0..8 {
        depot.write("vol", block * 2 * MIB, u8::try_from(block)? + 1, 2 * MIB).await?;
    }
    depot.snapshot("vol", "one").await?;
    let content = depot.content(0, "vol").await?;
    let file = depot.house.folder().join("keys");
    let lines: String = ceph.credentials(SECRET).map(|(name, value)| format!("{name}={value}\n")).concat();
    write_secret(&file, &lines)?;
    let request = CreateBackupTargetRequest {
        name: "s3".to_owned(),
        url: Ceph::url(),
        credentials_file: file.display().to_string(),
        ..CreateBackupTargetRequest::default()
    };
    let made = answer(targets(&depot.house, 0).await?.create(request).await)?;
    ensure!(made.mark.is_empty(), "a bucket is there or not: {made:?}");

    let request = CreateBackupRequest { target: "s3".to_owned(), ..backup_request("one", "first") };
    let backup = answer(depot.backups(0).await?.create(request).await)?;
    depot.wait_for(0, &backup.id, |found| found.done_bytes.is_some_and(|done| done > 3 * MIB)).await?;
    depot.house.cluster.node(0).kill()?;
    depot.house.cluster.node(0).start().await?;
    let half = depot.wait_for(0, &backup.id, |found| found.done_bytes.is_some()).await?;
    ensure!(half.done_bytes.is_some_and(|done| done > 3 * MIB), "it began anew: {half:#?}");
    depot.wait_until_done(0, &backup).await?;
    let list = ListBackupVolumesRequest { target: "s3".to_owned(), ..ListBackupVolumesRequest::default() };
    let volumes = answer(depot.backups(0).await?.list_volumes(list).await)?.volumes;
    ensure!(volumes.len() == 1 && volumes[0].last_backup == "first", "{volumes:#?}");

    let request = RestoreBackupRequest { target: "s3".to_owned(), ..restore_request("first", "back") };
    let restore = answer(depot.backups(0).await?.restore(request).await)?;
    depot.wait_for(0, &restore.id, |found| found.done_bytes.is_some_and(|done| done > 3 * MIB)).await?;
    depot.house.cluster.node(0).kill()?;
    // The gateway goes, too, and is back before the daemon has given up: there is no giving up.
    ceph.kill_gateway();
    depot.house.cluster.node(0).start().await?;
    depot.wait_for(0, &restore.id, |found| found.failure == "connect").await?;
    ceph.start_gateway();
    depot.wait_until_done(0, &restore).await?;
    ensure!(depot.content(0, "back").await? == content, "the restored volume differs");

    let verify =
        VerifyBackupRequest { target: "s3".to_owned(), backup_volume: "vol".to_owned(), name: "first".to_owned() };
    let verify = answer(depot.backups(0).await?.verify(verify).await)?;
    depot.wait_until_done(0, &verify).await?;
    Ok(())
}
