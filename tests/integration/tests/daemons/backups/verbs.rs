//! Each verb of the command line against a real daemon, once at least.

use anyhow::{Context, ensure};
use integration::{MIB, said};
use serde_json::Value;

use super::{Depot, SIZE};

impl Depot {
    /// What `ashlar` says, of which it thinks that it went well.
    fn say(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.house.ashlar(0, arguments)?;
        ensure!(output.status.success(), "{arguments:?}: {}\n{}", said(&output), self.house.logs());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The same as data.
    fn data(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let text = self.say(&[arguments, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("{arguments:?}: {text}"))
    }
}

#[tokio::test]
async fn every_verb_of_backups_does_what_it_says() -> anyhow::Result<()> {
    let depot = Depot::open(&["a"], "").await?;
    depot.house.create_volume("vol", SIZE, &["a"]).await?;
    depot.write("vol", 0, 1, 3 * MIB).await?;
    depot.snapshot("vol", "one").await?;
    let content = depot.content(0, "vol").await?;

    // Targets.
    let folder = depot.house.folder().join("second");
    std::fs::create_dir(&folder)?;
    let url = format!("vfs://{}", folder.display());
    let made = depot.data(&["backup-target", "create", "second", "--url", &url])?;
    ensure!(made["url"] == url.as_str(), "{made}");
    ensure!(depot.data(&["backup-target", "list"])?.as_array().map(Vec::len) == Some(2));
    ensure!(depot.say(&["backup-target", "show", "second"])?.contains("backupstore/ashlar-"));
    ensure!(depot.say(&["backup-target", "check", "second"])?.contains("conditional PUT honoured"));
    ensure!(depot.say(&["backup-target", "delete", "second"])?.contains("second"));
    ensure!(depot.data(&["backup-target", "list"])?.as_array().map(Vec::len) == Some(1));

    // Backups.
    let create =
        ["backup", "create", "vol", "one", "--target", "depot", "--name", "first", "--label", "who=me", "--wait"];
    let created = depot.data(&create)?;
    ensure!(created["state"] == "succeeded" && created["backup"] == "first", "{created}");
    ensure!(depot.data(&["backup", "list", "--target", "depot"])?[0]["name"] == "vol");
    let listed = depot.data(&["backup", "list", "vol", "--target", "depot"])?;
    ensure!(listed[0]["name"] == "first" && listed[0]["complete"] == true, "{listed}");
    let shown = depot.say(&["backup", "inspect", "vol", "first", "--target", "depot"])?;
    ensure!(shown.contains("state     complete") && shown.contains("who=me"), "{shown}");
    let verified = depot.data(&["backup", "verify", "vol", "first", "--target", "depot", "--wait"])?;
    ensure!(verified["state"] == "succeeded", "{verified}");
    let restore = ["backup", "restore", "vol", "first", "--target", "depot", "--to", "back", "--wait"];
    let restored = depot.data(&restore)?;
    ensure!(restored["state"] == "succeeded", "{restored}");
    ensure!(depot.content(0, "back").await? == content, "the restored volume differs");

    // Standbys.
    let create = ["standby", "create", "dr", "--target", "depot", "--follow", "vol", "--interval", "1"];
    ensure!(depot.data(&create)?["name"] == "dr");
    let limit = std::time::Instant::now() + integration::PATIENCE;
    while depot.data(&["standby", "show", "dr"])?["complete"] != "first" {
        ensure!(
            std::time::Instant::now() < limit,
            "{}\n{}",
            depot.say(&["standby", "show", "dr"])?,
            depot.house.logs()
        );
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    ensure!(depot.say(&["standby", "list"])?.contains("dr"));
    while !depot.house.ashlar(0, &["standby", "activate", "dr"])?.status.success() {
        ensure!(std::time::Instant::now() < limit, "{}", depot.say(&["standby", "show", "dr"])?);
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    ensure!(depot.data(&["standby", "show", "dr"])?["state"] == "active");
    ensure!(depot.content(0, "dr").await? == content, "the standby differs");
    ensure!(depot.say(&["standby", "delete", "dr"])?.contains("deleted"));
    ensure!(depot.data(&["standby", "list"])?.as_array().map(Vec::len) == Some(0));

    // Schedules.
    let create = ["schedule", "create", "yearly", "vol", "--cron", "@yearly", "--keep", "3", "--target", "depot"];
    let made = depot.data(&create)?;
    ensure!(made["retain"] == 3 && made["target"] == "depot", "{made}");
    ensure!(depot.say(&["schedule", "list"])?.contains("yearly"));
    ensure!(depot.say(&["schedule", "show", "yearly"])?.contains("keeps     3 backups"));
    ensure!(depot.say(&["schedule", "delete", "yearly"])?.contains("deleted"));
    ensure!(depot.data(&["schedule", "list"])?.as_array().map(Vec::len) == Some(0));

    // What is gone, and what nobody knows.
    let deleted = depot.data(&["backup", "delete", "vol", "first", "--target", "depot", "--wait"])?;
    ensure!(deleted["state"] == "succeeded" && depot.blocks()? == 0, "{deleted}");
    let unknown = depot.house.ashlar(0, &["backup", "inspect", "vol", "first", "--target", "depot"])?;
    ensure!(unknown.status.code() == Some(1), "{}", said(&unknown));
    Ok(())
}
