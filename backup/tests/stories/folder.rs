//! A real folder as a target.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use backup::create::{BackupRequest, Outcome};
use backup::target::check::{Step, check};
use backup::target::{Content, Credentials, FolderStore, Settings, Store, TargetUrl, open};
use backup::{Kind, Result};
use bytes::Bytes;
use futures_util::StreamExt;

use crate::volume::{TestDevice, Volume};
use crate::{BLOCK, MIB, back_up, in_time, restore};

const LIMIT: Duration = Duration::from_secs(60);

#[tokio::test(start_paused = true)]
async fn a_volume_goes_there_and_comes_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let url: TargetUrl = format!("vfs://{}", folder.path().display()).parse().expect("a URL");
    let store = open(&url, &Credentials::default(), &Settings::default()).expect("a target").store;
    let volume = Volume::new(16 * MIB);
    (0..5).for_each(|block| volume.write(block * BLOCK, block));
    let snapshot = volume.snapshot("snap-1");
    let request = BackupRequest::new("test", "vol-1", "backup-1", "snap-1");
    let outcome = in_time(back_up(&store, &snapshot, request)).await;
    assert!(matches!(outcome, Outcome::Complete { .. }), "{outcome:?}");
    let device = TestDevice::garbage(16 * MIB);
    in_time(restore(&store, &device, "vol-1", "backup-1")).await;
    assert!(device.bytes() == snapshot.bytes());

    // As the format has it: folders 0700, files 0644, nothing temporary left, locks gone.
    let mut folders = vec![folder.path().join("backupstore")];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("listed") {
            let path = entry.expect("listed").path();
            let mode = fs::metadata(&path).expect("there").permissions().mode() & 0o777;
            let name = path.display().to_string();
            assert!(!name.contains(".tmp.") && !name.ends_with(".lck"), "{name}");
            assert_eq!(mode, if path.is_dir() { 0o700 } else { 0o644 }, "{name}");
            if path.is_dir() { folders.push(path) } else { files += 1 }
        }
    }
    assert_eq!(files, 1 + 1 + 5);
}

#[tokio::test]
async fn a_root_that_is_not_there_is_unreachable_and_not_empty() -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder");
    let store = FolderStore::new(&folder.path().join("mount"), LIMIT);
    assert_eq!(store.put("a/b", Content::from(vec![1])).await.expect_err("no root").kind(), Kind::Connect);
    assert_eq!(store.folder("a").await.expect_err("no root").kind(), Kind::Connect);
    assert_eq!(store.head("a/b").await.expect_err("no root").kind(), Kind::Connect);
    let listed = store.list("a").next().await.expect("an error");
    assert_eq!(listed.expect_err("no root").kind(), Kind::Connect);
    assert!(!folder.path().join("mount").exists());
    Ok(())
}

#[tokio::test]
async fn objects_are_made_replaced_listed_and_removed() -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Arc::new(FolderStore::new(folder.path(), LIMIT));
    store.put("a/b/one", Content::from(vec![1; 700_000])).await?;
    store.put("a/b/one", Content::from(vec![2; 600_000])).await?;
    store.put("a/two", Content::from(vec![3])).await?;
    assert!(!store.create("a/two", Bytes::from_static(b"x")).await?);
    assert!(store.create("a/three", Bytes::from_static(b"x")).await?);
    // What others write meanwhile is not there yet.
    fs::write(folder.path().join("a/b/four.tmp.123"), "half").expect("written");
    let mut read = Vec::new();
    let mut body = store.get("a/b/one").await?;
    while let Some(piece) = body.next().await {
        read.extend_from_slice(&piece?);
    }
    assert_eq!(read, vec![2; 600_000]);
    let mut listed: Vec<String> = store.list("a").map(|object| object.expect("listed").key).collect().await;
    listed.sort();
    assert_eq!(listed, ["a/b/one", "a/three", "a/two"]);
    let found = store.folder("a").await?;
    assert_eq!((found.folders, found.objects.len()), (vec!["b".to_owned()], 2));
    assert_eq!(store.folder("none").await?, backup::target::Folder::default());
    store.delete("a/b/one").await?;
    store.delete("a/b/one").await?;
    assert_eq!(store.head("a/b/one").await?, None);
    assert_eq!(store.get("a/b/one").await.err().expect("gone").kind(), Kind::NotFound);
    // A file that somebody may still be writing stays.
    store.sweep("a").await?;
    assert!(folder.path().join("a/b/four.tmp.123").exists());
    let old = std::time::SystemTime::now() - Duration::from_secs(48 * 3600);
    let file = fs::File::options().write(true).open(folder.path().join("a/b/four.tmp.123")).expect("opened");
    file.set_modified(old).expect("aged");
    store.sweep("a").await?;
    assert!(!folder.path().join("a/b/four.tmp.123").exists());
    Ok(())
}

/// The folder on which nothing is mounted is there, and is another one.
#[tokio::test(start_paused = true)]
async fn a_folder_whose_file_system_is_not_mounted_is_not_the_target() -> Result<()> {
    let parent = tempfile::tempdir().expect("a folder");
    let (mounted, below) = (parent.path().join("mount"), parent.path().join("below"));
    fs::create_dir(&mounted).expect("made");
    fs::create_dir(&below).expect("made");
    let store = FolderStore::new(&mounted, LIMIT);
    let mark = store.mark().await?;
    // Other nodes find it.
    assert_eq!(FolderStore::new(&mounted, LIMIT).mark().await?, mark);
    let store = Arc::new(store.marked(Some(&mark)));
    let target = crate::target(&store);
    let volume = Volume::new(16 * MIB);
    volume.write(0, 1);
    let request = |name: &str| BackupRequest::new("test", "vol-1", name, name);
    in_time(back_up(&target, &volume.snapshot("one"), request("one"))).await;

    let swap = || {
        let aside = parent.path().join("aside");
        for (from, to) in [(&mounted, &aside), (&below, &mounted), (&aside, &below)] {
            fs::rename(from, to).expect("renamed");
        }
    };
    swap();
    let url: TargetUrl = format!("vfs://{}", mounted.display()).parse()?;
    let settings = Settings { mark: Some(mark.clone()), ..Settings::default() };
    let report = check(&url, &Credentials::default(), &settings).await?;
    assert_eq!(report.steps.len(), 1, "{report:?}");
    let error = report.steps[0].1.as_ref().expect_err("not mounted");
    assert!(error.kind() == Kind::NotMounted && error.reason().contains(&mark), "{error}");
    for kind in [
        store.put("a/b", Content::from(vec![1])).await.expect_err("not mounted").kind(),
        store.folder("backupstore").await.expect_err("not mounted").kind(),
        store.list("backupstore").next().await.expect("an error").expect_err("not mounted").kind(),
        store.delete("a/b").await.expect_err("not mounted").kind(),
    ] {
        assert_eq!(kind, Kind::NotMounted);
    }
    // A backup waits, and a restore says neither that there is nothing nor that it is done.
    let device = TestDevice::garbage(16 * MIB);
    let mount_again = async {
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!(fs::read_dir(&mounted).expect("listed").count(), 0, "something was written below the mount");
        swap();
    };
    let snapshot = volume.snapshot("two");
    let (backed_up, restored, ()) = in_time(async {
        tokio::join!(
            back_up(&target, &snapshot, request("two")),
            restore(&target, &device, "vol-1", "one"),
            mount_again
        )
    })
    .await;
    assert!(matches!(backed_up, Outcome::Complete { .. }), "{backed_up:?}");
    assert!(matches!(restored, backup::restore::Outcome::Complete { .. }), "{restored:?}");
    assert!(check(&url, &Credentials::default(), &settings).await?.is_good());
    Ok(())
}

#[tokio::test]
async fn a_check_tells_what_a_folder_can() -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder");
    let url = |path: &str| format!("vfs://{}/{path}", folder.path().display()).parse::<TargetUrl>().expect("a URL");
    let report = check(&url(""), &Credentials::default(), &Settings::default()).await?;
    assert!(report.is_good(), "{report:?}");
    assert_eq!(
        report.steps.iter().map(|(step, _)| *step).collect::<Vec<_>>(),
        [Step::Connect, Step::List, Step::Put, Step::Get, Step::Delete]
    );
    assert_eq!(report.conditional_put, Some(true));
    assert!(report.skew_seconds.is_some_and(|skew| skew.abs() < 60), "{report:?}");
    assert_eq!(fs::read_dir(folder.path().join("backupstore")).expect("made").count(), 0, "nothing is left");
    let refused = check(&"nfs://host:/path".parse()?, &Credentials::default(), &Settings::default()).await;
    assert!(refused.expect_err("not ours to mount").reason().contains("vfs:///"));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_check_of_a_folder_that_is_not_there_ends_with_connect() -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder");
    let url = format!("vfs://{}/none", folder.path().display()).parse()?;
    let report = check(&url, &Credentials::default(), &Settings::default()).await?;
    assert_eq!(report.steps.len(), 1);
    assert_eq!(report.steps[0].1.as_ref().expect_err("not there").kind(), Kind::Connect);
    Ok(())
}
