//! A folder on which its file system is not mounted: nothing is written to the disk below.

use std::fs;
use std::process::Command;

use anyhow::ensure;
use cli::client::answer;
use integration::MIB;
use proto::v1::{
    BackupTarget, CheckBackupTargetRequest, CreateBackupTargetRequest, GetBackupTargetRequest, Operation,
    OperationState,
};

use super::{Depot, SIZE, backup_request, files_below, targets};

#[tokio::test]
async fn a_backup_waits_for_the_mount_of_its_folder_and_writes_nothing_below() -> anyhow::Result<()> {
    let mut depot = Depot::open(&["a"], "").await?;
    depot.house.create_volume("vol", SIZE, &["a"]).await?;
    depot.write("vol", 0, 1, 3 * MIB).await?;
    depot.snapshot("vol", "one").await?;
    depot.snapshot("vol", "two").await?;
    let mount = depot.house.folder().join("mount");
    fs::create_dir(&mount)?;
    // A folder of another disk in its place is what a mount is to a program. Where we may, it is one.
    let disk = depot.house.folder().join("disk");
    fs::create_dir(&disk)?;
    let is_real = bind(&disk, &mount)?;
    let _unmounted_at_last = Unmount(&mount);
    println!("with a real mount: {is_real}");
    let show = |is_there: bool| -> anyhow::Result<()> {
        match (is_real, is_there) {
            (true, true) => ensure!(bind(&disk, &mount)?, "it was possible before"),
            (true, false) => ensure!(Command::new("umount").arg(&mount).status()?.success(), "it stays mounted"),
            (false, true) => {
                fs::remove_dir(&mount)?;
                fs::rename(&disk, &mount)?;
            }
            (false, false) => {
                fs::rename(&mount, &disk)?;
                fs::create_dir(&mount)?;
            }
        }
        Ok(())
    };
    if !is_real {
        show(true)?;
    }
    let mut client = targets(&depot.house, 0).await?;
    let request = CreateBackupTargetRequest {
        name: "nfs".to_owned(),
        url: format!("vfs://{}", mount.display()),
        ..CreateBackupTargetRequest::default()
    };
    let made: BackupTarget = answer(client.create(request).await)?;
    ensure!(mount.join("backupstore").join(&made.mark).is_file() && !made.mark.is_empty(), "{made:?}");
    // The target of the other folder has a mark of its own.
    let other = answer(client.get(GetBackupTargetRequest { target: "depot".to_owned() }).await)?;
    ensure!(!other.mark.is_empty() && other.mark != made.mark, "{other:?}");
    let request = |snapshot: &str| proto::v1::CreateBackupRequest {
        target: "nfs".to_owned(),
        ..backup_request(snapshot, snapshot)
    };
    let first = answer(depot.backups(0).await?.create(request("one")).await)?;
    depot.wait_until_done(0, &first).await?;

    show(false)?;
    let second = answer(depot.backups(0).await?.create(request("two")).await)?;
    let waits = |found: &Operation| found.state() == OperationState::Waiting && found.failure == "not_mounted";
    let found = depot.wait_for(0, &second.id, waits).await?;
    ensure!(found.reason.contains("not mounted") && found.next_try_unix_ms.is_some(), "{found:#?}");
    let check = CheckBackupTargetRequest { target: "nfs".to_owned() };
    let checked = answer(client.check(check.clone()).await)?;
    let failed = checked.steps.last().map(|step| (step.step.as_str(), step.failure.as_str()));
    ensure!(!checked.good && failed == Some(("connect", "not_mounted")), "{checked:#?}");
    // A restart that finds it missing does not take the folder below for the target.
    depot.house.cluster.node(0).kill()?;
    depot.house.cluster.node(0).start().await?;
    depot.wait_for(0, &second.id, waits).await?;
    ensure!(fs::read_dir(&mount)?.count() == 0, "something was written below the mount");

    show(true)?;
    depot.expire_locks()?;
    depot.wait_until_done(0, &second).await?;
    ensure!(answer(targets(&depot.house, 0).await?.check(check).await)?.good);
    let backups = files_below(&mount, "cfg")?.len();
    ensure!(backups == 3, "the volume's file and two backups, not {backups}");
    Ok(())
}

/// A place where nothing is mounted when this goes.
struct Unmount<'a>(&'a std::path::Path);

impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        // An error means that nothing is mounted there.
        let _ = Command::new("umount").args(["--lazy".as_ref(), self.0.as_os_str()]).output();
    }
}

/// Mounts a folder at another place, where that is allowed.
fn bind(from: &std::path::Path, at: &std::path::Path) -> anyhow::Result<bool> {
    let mounted = Command::new("mount").arg("--bind").args([from, at]).output()?;
    Ok(mounted.status.success())
}
