//! What Prometheus is told by the real daemon: the numbers, the format, and that labels do not grow.

use std::io::Write;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use cli::client::answer;
use integration::{Exposition, Host, House, MIB, PATIENCE, export_of, probe, said};
use proto::v1::DeleteVolumeRequest;

fn scrape(address: SocketAddr) -> anyhow::Result<Exposition> {
    let page = probe(address, "/metrics")?;
    ensure!(page.status == 200, "{page:?}");
    Exposition::parse(&page.body)
}

/// Scrapes until something is as wanted; what is said of replicas and stores may be that of the scrape before.
fn scrape_until(address: SocketAddr, wanted: impl Fn(&Exposition) -> bool) -> anyhow::Result<Exposition> {
    let limit = Instant::now() + PATIENCE;
    loop {
        let scraped = scrape(address)?;
        if wanted(&scraped) {
            return Ok(scraped);
        }
        ensure!(Instant::now() < limit, "it stays {:#?}", scraped.series());
        std::thread::sleep(Duration::from_millis(50));
    }
}

const LATENCY: &str = "ashlar_volume_request_duration_seconds_count";
const BYTES: &str = "ashlar_volume_bytes_total";

#[tokio::test]
async fn what_hosts_did_and_how_replicas_are_is_told() -> anyhow::Result<()> {
    let mut house = House::open(&["a", "b"], 256 * MIB).await?;
    let volume = house.create_volume("v", 64 * MIB, &["a", "b"]).await?;
    house.create_volume("idle", 64 * MIB, &["a"]).await?;
    let addresses = house.cluster.nodes()[0].addresses();
    let (host, nqn) = (Host::new()?, export_of(&volume)?.nqn.clone());
    for round in 0..3 {
        // A write and a flush.
        host.write(addresses.nvmf, &nqn, 0, round, 8192).await?;
    }
    host.read(addresses.nvmf, &nqn, 0, 4096).await?;

    let v = |op| [("volume", "v"), ("op", op)];
    let in_sync = |node| [("volume", "v"), ("node", node)];
    let all = scrape_until(addresses.health, |all| all.get("ashlar_replica_in_sync", &in_sync("b")) == Some(1.0))?;
    let writes = [all.get(LATENCY, &v("write")), all.get(BYTES, &v("write")), all.get(LATENCY, &v("flush"))];
    assert_eq!(writes, [Some(3.0), Some(3.0 * 8192.0), Some(3.0)]);
    assert_eq!([all.get(LATENCY, &v("read")), all.get(BYTES, &v("read"))], [Some(1.0), Some(4096.0)]);
    assert_eq!(all.get("ashlar_volume_errors_total", &v("write")), Some(0.0));
    assert_eq!(all.get(LATENCY, &[("volume", "idle")]), None, "one without requests has no classes");
    for name in ["v", "idle"] {
        assert_eq!(all.get("ashlar_volume_healthy", &[("volume", name)]), Some(1.0));
        assert_eq!(all.get("ashlar_volume_requests_in_flight", &[("volume", name)]), Some(0.0));
        assert_eq!(all.get("ashlar_volume_state", &[("volume", name), ("state", "healthy")]), Some(1.0));
        assert_eq!(all.get("ashlar_volume_size_bytes", &[("volume", name)]), Some(64.0 * MIB as f64));
    }
    let store = |what: &str| all.get(&format!("ashlar_store_{what}"), &[("store", "main")]);
    assert!(store("free_bytes") < store("size_bytes"), "{:?}", store("free_bytes"));
    for counted in [
        "flushes_total",
        "flush_seconds_total",
        "journal_batches_total",
        "journal_written_bytes_total",
        "journal_size_bytes",
    ] {
        assert!(store(counted) > Some(0.0), "{counted}");
    }
    assert!(store("journal_bytes") <= store("journal_size_bytes"));
    assert_eq!(all.get("ashlar_last_run_end", &[("end", "first")]), Some(1.0));
    assert_eq!([all.get("ashlar_starts_total", &[]), all.get("ashlar_ready", &[])], [Some(1.0), Some(1.0)]);
    assert!(all.get("ashlar_reactor_busy_seconds_total", &[("reactor", "reactor-0")]) > Some(0.0));
    assert_eq!(all.get("ashlar_reactor_stalled", &[("reactor", "reactor-0")]), Some(0.0));
    assert!(all.get("process_resident_memory_bytes", &[]) > Some(1e6));

    assert_eq!(all.get("ashlar_replica_lag_bytes", &in_sync("b")), Some(0.0));
    assert_eq!(all.get("ashlar_replica_oldest_request_seconds", &in_sync("b")), Some(0.0));

    // The same series again and again.
    let before = scrape(addresses.health)?.series();
    assert_eq!(scrape(addresses.health)?.series(), before);
    let page = probe(addresses.health, "/metrics")?.body;
    check_with_promtool(&page)?;
    check_what_others_look_at(&page)?;

    house.cluster.node(1).kill()?;
    host.write(addresses.nvmf, &nqn, 0, 9, 4096).await?;
    let out = scrape_until(addresses.health, |all| all.get("ashlar_replica_in_sync", &in_sync("b")) == Some(0.0))?;
    assert_eq!(out.get("ashlar_replica_in_sync", &in_sync("a")), Some(1.0));
    // What was written since it left, in regions of 1 MiB, or all of it where that is not known.
    assert_eq!(out.get("ashlar_replica_lag_bytes", &in_sync("a")), Some(0.0));
    ensure!(out.get("ashlar_replica_lag_bytes", &in_sync("b")) > Some(0.0), "{:#?}", out.series());
    assert_eq!(out.get("ashlar_volume_state", &[("volume", "v"), ("state", "degraded")]), Some(1.0));

    // A volume that is gone takes its series along.
    let request = DeleteVolumeRequest { volume: "idle".to_owned(), ..Default::default() };
    answer(house.client(0).await?.volumes().delete(request).await)?;
    scrape_until(addresses.health, |all| !all.series().iter().any(|series| series.contains("idle")))?;
    Ok(())
}

#[tokio::test]
async fn what_happened_before_a_restart_is_told_after_it() -> anyhow::Result<()> {
    let mut house = House::prepare(&["a"])?;
    house.cluster.start().await?;
    house.cluster.node(0).kill()?;
    house.cluster.start().await?;
    let all = scrape(house.cluster.nodes()[0].addresses().health)?;
    assert_eq!(all.get("ashlar_starts_total", &[]), Some(2.0));
    assert_eq!(all.get("ashlar_last_run_end", &[("end", "killed")]), Some(1.0));
    assert_eq!(all.get("ashlar_last_run_end", &[("end", "clean")]), Some(0.0));
    Ok(())
}

/// Whatever the dashboard and the alert rules look at is told, and the document has it.
fn check_what_others_look_at(page: &str) -> anyhow::Result<()> {
    let told: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let rules = include_str!("../../../../contrib/prometheus/ashlar-rules.yml");
    let dashboard = include_str!("../../../../contrib/grafana/ashlar.json");
    // Told by nodes with TLS only: `certificates.rs` looks at these.
    let shown = names(rules).chain(names(dashboard)).filter(|name| !name.starts_with("ashlar_certificate_"));
    for name in shown {
        let family = ["_bucket", "_sum", "_count"].into_iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
        ensure!(told.contains(&family), "nothing is told as {name}");
    }
    let document = include_str!("../../../../docs/metrics.md");
    for name in told.iter().filter_map(|name| name.strip_prefix("ashlar_")) {
        // The table gives the ends of those that begin alike.
        let end = name.split_once('_').map_or(name, |(_, end)| end);
        ensure!(document.contains(name) || document.contains(&format!("`_{end}`")), "ashlar_{name} is in no document");
    }
    Ok(())
}

fn names(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_'));
    words.filter(|word| word.starts_with("ashlar_") || word.starts_with("process_"))
}

/// Prometheus' own tool, where it is (Debian package prometheus).
fn check_with_promtool(text: &str) -> anyhow::Result<()> {
    let mut command = Command::new("promtool");
    let command =
        command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut checked = match command.spawn() {
        Ok(checked) => checked,
        Err(error) => {
            eprintln!("not checked by promtool: {error}");
            return Ok(());
        }
    };
    checked.stdin.take().context("piped")?.write_all(text.as_bytes())?;
    let output = checked.wait_with_output()?;
    ensure!(output.status.success() && said(&output).is_empty(), "promtool: {}", said(&output));
    Ok(())
}
