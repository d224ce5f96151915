//! What `ashlar` prints: tables for people, JSON for programs.

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, ensure};
use integration::{House, MIB, export_of, program, said, write_secret};
use serde_json::Value;

use crate::watching::lonely_replica;

fn json(house: &House, arguments: &[&str]) -> anyhow::Result<Value> {
    let output = house.ashlar(0, &[arguments, &["-o", "json"]].concat())?;
    anyhow::ensure!(output.status.success(), "{arguments:?}: {}", said(&output));
    serde_json::from_slice(&output.stdout).with_context(|| format!("{arguments:?}: {}", said(&output)))
}

#[tokio::test]
async fn every_command_has_json() -> anyhow::Result<()> {
    let house = House::open(&["a", "b"], 512 * MIB).await?;
    let created = json(&house, &["volume", "create", "v", "--size", "64MiB", "--replica-count", "2"])?;
    let volume = house.wait_until_healthy("v").await?;
    assert_eq!(created["uuid"], volume.uuid);
    let shown = json(&house, &["volume", "show", "v"])?;
    assert_eq!(shown["engine"]["state"], "healthy");
    assert_eq!(shown["engine"]["members"][1]["state"], "in sync");
    assert_eq!(shown["engine"]["nvmf"]["nqn"], export_of(&volume)?.nqn);
    assert_eq!(json(&house, &["volume", "list"])?[0]["name"], "v");
    assert_eq!(json(&house, &["store", "list"])?[0]["state"], "ready");
    assert_eq!(json(&house, &["replica", "list"])?[0]["volume_uuid"], volume.uuid);
    let peer = json(&house, &["node", "info"])?["peers"][0].clone();
    assert_eq!((&peer["name"], &peer["state"]), (&Value::from("b"), &Value::from("connected")));
    assert_eq!(json(&house, &["orphan", "list"])?, Value::Array(Vec::new()));
    json(&house, &["orphan", "delete", "00000000-0000-4000-8000-000000000002"])?;
    let uuid = "00000000-0000-4000-8000-000000000001";
    let cut = json(&house, &["volume", "snapshot", "v", "--name", "s", "--uuid", uuid])?;
    assert_eq!((&cut["uuid"], &cut["name"]), (&Value::from(uuid), &Value::from("s")));
    assert_eq!(json(&house, &["replica", "list"])?[0]["snapshots"], 1);
    assert_eq!(json(&house, &["volume", "delete", "v"])?["pending_nodes"], Value::Array(Vec::new()));
    json(&house, &["store", "delete", "main"])?;
    Ok(())
}

#[tokio::test]
async fn tables_fit_80_columns_whatever_the_names_and_other_formats_have_all_of_them() -> anyhow::Result<()> {
    let long = |letter: &str| letter.repeat(63);
    let (node, store, volume, lvol) = (long("n"), long("s"), long("v"), long("l"));
    let mut house = House::prepare(&[&node])?;
    house.cluster.start().await?;
    house.create_store(0, &store, 512 * MIB).await?;
    house.create_volume(&volume, 64 * MIB, &[]).await?;
    let done = |arguments: &[&str]| -> anyhow::Result<String> {
        let output = house.ashlar(0, arguments)?;
        ensure!(output.status.success(), "{arguments:?}: {}", said(&output));
        Ok(said(&output))
    };
    done(&["snapshot", "create", &volume, "--name", &long("c")])?;
    done(&["lvol", "create", &lvol, "--store", &store, "--size", "1MiB"])?;
    let lists: [&[&str]; 5] = [
        &["store", "list"],
        &["volume", "list"],
        &["replica", "list"],
        &["lvol", "list"],
        &["snapshot", "list", &volume],
    ];
    for list in lists {
        let text = done(list)?;
        ensure!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        let wide = done(&[list, &["-o", "wide"]].concat())?;
        ensure!(wide.lines().count() == text.lines().count(), "{wide}");
        ensure!(wide.lines().skip(1).any(|line| line.chars().count() > 80), "{wide}");
        let found: Value = serde_json::from_str(&done(&[list, &["-o", "json"]].concat())?)?;
        let yaml = done(&[list, &["-o", "yaml"]].concat())?;
        for object in found.as_array().context("a list")? {
            let uuid = object["uuid"].as_str().context("an identity")?;
            ensure!(wide.contains(uuid) && yaml.contains(uuid), "{wide}{yaml}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn errors_are_data_where_data_is_asked_for() -> anyhow::Result<()> {
    let house = House::open(&["a"], 256 * MIB).await?;
    let refused = house.ashlar(0, &["volume", "show", "none", "-o", "json"])?;
    assert_eq!((refused.status.code(), refused.stdout.len()), (Some(1), 0));
    let error: Value = serde_json::from_slice(&refused.stderr).with_context(|| said(&refused))?;
    assert_eq!((&error["reason"], &error["details"]["name"]), (&Value::from("NOT_FOUND"), &Value::from("none")));
    let refused = house.ashlar(0, &["volume", "show", "none"])?;
    ensure!(said(&refused).contains("List what there is with `ashlar … list`"), "{}", said(&refused));
    Ok(())
}

/// `ashlar` while it watches something, without looking at it by itself.
struct Watching {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Watching {
    fn start(house: &House, arguments: &[&str]) -> anyhow::Result<Self> {
        let server = house.cluster.nodes()[0].server();
        let mut command = Command::new(program("ashlar")?);
        command.args(["--server", &server]).args(arguments).arg("--watch=3600").stdout(Stdio::piped());
        let mut process = command.spawn()?;
        let lines = BufReader::new(process.stdout.take().context("piped")?).lines();
        Ok(Self { process, lines })
    }

    /// Waits for a line that begins so.
    fn hear(&mut self, wanted: &str) -> anyhow::Result<()> {
        loop {
            let line = self.lines.next().context("it ended")??;
            if line.split_whitespace().collect::<Vec<_>>().join(" ").starts_with(wanted) {
                return Ok(());
            }
        }
    }

    fn interrupt(mut self) -> anyhow::Result<()> {
        let interrupted = Command::new("sh").arg("-c").arg(format!("kill -INT {}", self.process.id())).status()?;
        ensure!(interrupted.success() && self.process.wait()?.success(), "an end in order");
        Ok(())
    }
}

/// Without a terminal only what changes is printed, and at once: the daemon tells of volumes. One that restarts is waited for, and an
/// interrupt is an end in order.
#[tokio::test]
async fn a_list_can_be_watched() -> anyhow::Result<()> {
    let mut house = House::open(&["a"], 256 * MIB).await?;
    let mut watching = Watching::start(&house, &["volume", "list"])?;
    watching.hear("There are no volumes.")?;
    house.create_volume("v", 64 * MIB, &[]).await?;
    watching.hear("v 64 MiB healthy 1/1")?;
    house.cluster.node(0).stop().await?;
    house.cluster.node(0).start().await?;
    house.wait_until_healthy("v").await?;
    house.create_volume("w", 64 * MIB, &[]).await?;
    watching.hear("w 64 MiB healthy 1/1")?;
    house.ashlar(0, &["volume", "delete", "w"])?;
    watching.hear("gone: w")?;
    watching.interrupt()
}

/// Also snapshots of a volume without a replica on the node that is asked, and what belongs to nobody.
#[tokio::test]
async fn snapshots_and_orphans_can_be_watched() -> anyhow::Result<()> {
    let house = House::open(&["a", "b"], 256 * MIB).await?;
    house.create_volume("v", 64 * MIB, &["b"]).await?;
    let mut watching = Watching::start(&house, &["snapshot", "list", "v"])?;
    watching.hear("Volume v has no snapshots.")?;
    house.ashlar(0, &["snapshot", "create", "v", "--name", "cut"])?;
    watching.hear("cut 64 MiB")?;
    house.ashlar(0, &["snapshot", "create", "v", "--name", "later"])?;
    watching.hear("later 64 MiB")?;
    house.ashlar(0, &["snapshot", "delete", "v", "cut"])?;
    watching.hear("gone: cut")?;
    watching.interrupt()?;
    let mut watching = Watching::start(&house, &["orphan", "list"])?;
    watching.hear("There are no orphans")?;
    let uuid = lonely_replica(&house).await?;
    watching.hear(&format!("replica {uuid}"))?;
    watching.interrupt()
}

/// Everything that can be had is in it, what cannot is noted, and no secret is.
#[tokio::test]
async fn a_support_bundle_has_what_there_is_and_no_secret() -> anyhow::Result<()> {
    const SECRET: &str = "open-sesame-42";
    let mut house = House::open(&["a"], 256 * MIB).await?;
    house.create_volume("v", 64 * MIB, &[]).await?;
    house.ashlar(0, &["snapshot", "create", "v", "--name", "cut"])?;
    let folder = house.folder();
    let secret = folder.join("secret").display().to_string();
    write_secret(secret.as_ref(), &format!("{SECRET}\n"))?;
    let with_chap = ["--chap-user", "host", "--chap-secret-file", &secret];
    let output = house.ashlar(0, &[&["volume", "export", "v", "--frontend", "iscsi"], &with_chap[..]].concat())?;
    ensure!(output.status.success(), "{}", said(&output));
    let node = house.cluster.nodes()[0].folder().to_owned();
    let (config, log) = (node.join("node.toml").display().to_string(), node.join("log"));
    // Somebody wrote it into the log.
    OpenOptions::new().append(true).open(&log)?.write_all(format!("set secret=\"{SECRET}\"\n").as_bytes())?;

    let log = log.display().to_string();
    let bundle = |house: &House, name: &str| -> anyhow::Result<(Value, PathBuf)> {
        let (file, unpacked) = (folder.join(format!("{name}.tar.gz")), folder.join(name));
        let file = file.display().to_string();
        let arguments = ["support-bundle", "--to", &file, "--config", &config, "--log", &log, "-o", "json"];
        let output = house.ashlar(0, &arguments)?;
        ensure!(output.status.success(), "{}", said(&output));
        fs::create_dir(&unpacked)?;
        let tar = Command::new("tar").args(["-xzf", &file, "--strip-components=1", "-C"]).arg(&unpacked).status()?;
        ensure!(tar.success(), "{tar}");
        Ok((serde_json::from_slice(&output.stdout)?, unpacked))
    };
    let missing = |manifest: &Value| -> Vec<String> {
        let parts = manifest["parts"].as_array().into_iter().flatten().filter(|part| !part["missing"].is_null());
        parts.map(|part| part["file"].as_str().unwrap_or_default().to_owned()).collect()
    };

    let (manifest, unpacked) = bundle(&house, "running")?;
    let text = |name: &str| fs::read_to_string(unpacked.join(name)).with_context(|| name.to_owned());
    let expected = [
        ("node/info.json", "\"state_directory\""),
        ("node/volumes.json", "\"name\": \"v\""),
        ("node/snapshots.json", "\"cut\""),
        ("node/events.jsonl", "healthy"),
        ("health/metrics.txt", "ashlar_replica_in_sync"),
        ("health/livez.txt", "200 OK"),
        ("machine/configuration.json", "\"replica_deadline_ms\": 4000"),
        ("machine/preflight.json", "io_uring"),
        ("machine/proc-meminfo", "MemTotal"),
        ("process/limits", "Max open files"),
        ("runs/runs.json", "boot"),
        ("log.txt", "ashlard serves"),
        ("log.txt", "secret=[left out]"),
        ("manifest.json", "node/info.json"),
    ];
    for (name, part) in expected {
        ensure!(text(name)?.contains(part), "{name} without {part}: {}", text(name)?);
    }
    ensure!(!missing(&manifest).iter().any(|file| file.starts_with("node/")), "{manifest:#}");
    let found = Command::new("grep").args(["-r", SECRET]).arg(&unpacked).output()?;
    ensure!(found.status.code() == Some(1), "a secret is in it: {}", said(&found));

    house.cluster.node(0).stop().await?;
    let (manifest, unpacked) = bundle(&house, "stopped")?;
    ensure!(missing(&manifest).contains(&"node/info.json".to_owned()), "{manifest:#}");
    ensure!(fs::read_to_string(unpacked.join("log.txt"))?.contains("stopped in order"), "the rest is there");
    Ok(())
}

#[tokio::test]
async fn a_preflight_knows_the_daemon_that_runs_and_who_else_has_its_ports() -> anyhow::Result<()> {
    let mut house = House::open(&["a", "b"], 256 * MIB).await?;
    let config = house.cluster.nodes()[0].folder().join("node.toml").display().to_string();
    let checks = |house: &House| -> anyhow::Result<(bool, Vec<Value>)> {
        let output = house.ashlar(0, &["preflight", "--config", &config, "-o", "json"])?;
        let checks: Value = serde_json::from_slice(&output.stdout).with_context(|| said(&output))?;
        Ok((output.status.success(), checks.as_array().context("a list")?.clone()))
    };
    let find = |checks: &[Value], name: &str| -> anyhow::Result<(String, String)> {
        let found = checks.iter().find(|check| check["name"] == name).with_context(|| format!("no check {name}"))?;
        let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
        Ok((text("verdict"), text("found")))
    };
    let (_, running) = checks(&house)?;
    for name in ["configuration", "kernel", "io_uring", "time-outs", "ports", "peers", "peers' clocks"] {
        let (verdict, found) = find(&running, name)?;
        ensure!(verdict == "ok", "{name}: {found}");
    }
    ensure!(find(&running, "ports")?.1.contains("in use by ashlard"), "{running:#?}");
    let (verdict, store) = find(&running, "store")?;
    ensure!(verdict != "fail" && store.contains("main.img"), "{store}");

    house.cluster.node(1).kill()?;
    house.cluster.node(0).stop().await?;
    let taken = std::net::TcpListener::bind(house.cluster.nodes()[0].addresses().replica)?;
    let (good, stopped) = checks(&house)?;
    ensure!(!good, "{stopped:#?}");
    let (verdict, found) = find(&stopped, "ports")?;
    ensure!(verdict == "fail" && found.contains("(replica) is in use by somebody else"), "{found}");
    assert_eq!(find(&stopped, "peers")?.0, "warn");
    drop(taken);

    let output = house.ashlar(0, &["preflight", "--config", "/no/such/file"])?;
    assert_eq!(output.status.code(), Some(1));
    ensure!(said(&output).contains("FAIL  configuration  cannot read the configuration file"), "{}", said(&output));
    Ok(())
}
