//! Limits of a volume through the command line: kept over restarts, shown, told to Prometheus, and felt by its host.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use integration::{Exposition, Host, House, MIB, attach, export_of, probe, said};

fn ok(house: &House, arguments: &[&str]) -> anyhow::Result<String> {
    let output = house.ashlar(0, arguments)?;
    ensure!(output.status.success(), "{arguments:?}: {}\n{}", said(&output), house.logs());
    Ok(said(&output))
}

fn told(house: &House, what: &str) -> anyhow::Result<f64> {
    let page = probe(house.cluster.nodes()[0].addresses().health, "/metrics")?;
    let all = Exposition::parse(&page.body)?;
    all.get(&format!("ashlar_volume_{what}"), &[("volume", "v")]).with_context(|| format!("no {what}"))
}

/// Twelve reads in one go: however slow the machine is, they are there together.
async fn read_at_once(host: &Host, address: SocketAddr, nqn: &str) -> anyhow::Result<()> {
    let nqn = nqn.to_owned();
    let reads = move || async move {
        let controller = attach(address, &nqn).await?;
        let read = |_| {
            let controller = Rc::clone(&controller);
            reactor::spawn(async move { controller.read(0, 4096).await })
        };
        for read in (0..12).map(read).collect::<Vec<_>>() {
            read.await.context("it ended early")??;
        }
        controller.disconnect().await;
        Ok(())
    };
    host.run(reads).await
}

#[tokio::test]
async fn limits_hold_over_restarts_and_end_without_a_reconnect() -> anyhow::Result<()> {
    let mut house = House::open(&["a"], 256 * MIB).await?;
    let volume = house.create_volume("v", 64 * MIB, &["a"]).await?;
    let shown = ok(&house, &["volume", "show", "v"])?;
    ensure!(!shown.contains("limits"), "{shown}");
    let shown = ok(&house, &["volume", "limit", "v", "--iops", "20", "--bytes-per-second", "1MiB"])?;
    ensure!(shown.contains("limits   20 IOPS, 1 MiB/s\n"), "{shown}");
    ok(&house, &["volume", "limit", "v", "--bytes-per-second", "0"])?;
    let refused = house.ashlar(0, &["volume", "limit", "v", "--iops", "1"])?;
    ensure!(!refused.status.success() && said(&refused).contains("iops"), "{}", said(&refused));

    house.cluster.node(0).kill()?;
    house.cluster.node(0).start().await?;
    house.wait_until_healthy("v").await?;
    let shown = ok(&house, &["volume", "show", "v"])?;
    ensure!(shown.contains("limits   20 IOPS\n"), "{shown}");
    assert_eq!([told(&house, "limit_iops")?, told(&house, "limit_bytes_per_second")?], [20.0, 0.0]);

    let (address, nqn) = (house.cluster.nodes()[0].addresses().nvmf, export_of(&volume)?.nqn.clone());
    let (host, begun) = (Host::new()?, Instant::now());
    read_at_once(&host, address, &nqn).await?;
    // Eleven of them at 20 a second, less what was saved; a busy machine only takes longer.
    ensure!(begun.elapsed() > Duration::from_millis(400), "{:?}", begun.elapsed());
    ensure!(told(&house, "limited_requests_total")? >= 8.0 && told(&house, "limited_requests")? == 0.0);

    let shown = ok(&house, &["volume", "limit", "v", "--unlimited"])?;
    ensure!(!shown.contains("limits"), "{shown}");
    let before = told(&house, "limited_requests_total")?;
    read_at_once(&host, address, &nqn).await?;
    assert_eq!([told(&house, "limited_requests_total")?, told(&house, "limit_iops")?], [before, 0.0]);
    Ok(())
}
