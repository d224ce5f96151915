//! What probes learn of the real daemon while parts of it hang, and why its last run ended (lesson L1, I41).

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use cli::client::answer;
use integration::{Host, House, MIB, Mounted, Network, PATIENCE, Page, Stopped, export_of, probe, probe_until, said};
use proto::v1::{EngineState, LastRun, NodeInfoRequest, RunEnd};
use tonic::Streaming;
use tonic::transport::Channel;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

/// The threads that serve gRPC, and the main one.
const CONTROL: [&str; 2] = ["control", "ashlard"];

/// Writes that a disk has when it hangs.
const HANGING_WRITES: u64 = 100;

fn health_of(house: &House) -> SocketAddr {
    house.cluster.nodes()[0].addresses().health
}

fn is_good(page: &Page) -> bool {
    page.status == 200
}

fn says(page: &Page, text: &str) -> bool {
    page.status == 503 && page.body.contains(text)
}

#[tokio::test]
async fn control_threads_that_are_stopped_stop_neither_io_nor_liveness() -> anyhow::Result<()> {
    let house = House::open(&["a"], 256 * MIB).await?;
    let volume = house.create_volume("v", 64 * MIB, &[]).await?;
    let (health, nvmf) = (health_of(&house), house.cluster.nodes()[0].addresses().nvmf);
    let (nqn, host) = (export_of(&volume)?.nqn.clone(), Host::new()?);
    assert_eq!(probe(health, "/readyz")?.body, "ready\n");
    let pid = house.cluster.nodes()[0].pid().context("it runs")?;
    let stopped = Stopped::threads(pid, &CONTROL)?;
    // A round takes half a second: as long as nobody answers.
    let rounds = if std::env::var_os("ASHLAR_LONG_TESTS").is_some() { 120 } else { 3 };
    for round in 1..=rounds {
        host.write(nvmf, &nqn, 0, round, 8192).await?;
        assert_eq!(host.read(nvmf, &nqn, 4096, 4096).await?, vec![round; 4096]);
        assert!(is_good(&probe(health, "/livez")?));
        assert!(is_good(&probe(health, "/volumes")?));
        let ready = probe(health, "/readyz")?;
        assert!(says(&ready, "the control threads did not answer"), "{ready:?}");
    }
    drop(stopped);
    probe_until(health, "/readyz", is_good)?;
    house.volume("v").await?;
    Ok(())
}

async fn health_service(house: &House) -> anyhow::Result<HealthClient<Channel>> {
    let server = house.cluster.nodes()[0].server();
    Ok(HealthClient::new(Channel::from_shared(server)?.connect().await?))
}

/// Waits until a service is in this state.
async fn hear(watch: &mut Streaming<HealthCheckResponse>, wanted: ServingStatus) -> anyhow::Result<()> {
    loop {
        let message = tokio::time::timeout(PATIENCE, watch.message()).await??;
        if message.context("it ended")?.status() == wanted {
            return Ok(());
        }
    }
}

#[tokio::test]
async fn a_panic_in_one_volumes_task_ends_that_and_nothing_else() -> anyhow::Result<()> {
    let mut house = House::open(&["a"], 256 * MIB).await?;
    house.create_volume("good", 16 * MIB, &[]).await?;
    let bad = house.create_volume("bad", 16 * MIB, &[]).await?;
    house.cluster.node(0).stop().await?;
    house.cluster.node(0).launch_with(vec!["env".to_owned(), "ASHLAR_PANIC_WHEN_STARTING=bad".to_owned()]);
    house.cluster.node(0).start().await?;
    house.wait_until_healthy("good").await?;
    let broken = house.wait_for_engine("bad", |engine| engine.state() == EngineState::Failed).await?;
    let reason = broken.engine.context("it has one")?.reason;
    ensure!(reason.contains("asked for by ASHLAR_PANIC_WHEN_STARTING"), "{reason}");
    ensure!(reason.contains("`ashlar volume start bad`"), "{reason}");
    let refused = said(&house.ashlar(0, &["snapshot", "create", "bad"])?);
    ensure!(refused.contains("its task ended by a panic"), "{refused}");
    // What it is told to, twice: it is taken up where it was.
    for _ in 0..2 {
        let started = house.ashlar(0, &["volume", "start", "bad"])?;
        ensure!(started.status.success(), "{}", said(&started));
    }
    let again = house.wait_until_healthy("bad").await?;
    assert_eq!(again.uuid, bad.uuid);
    let host = Host::new()?;
    host.write(house.cluster.nodes()[0].addresses().nvmf, &export_of(&again)?.nqn, 0, 7, 4096).await?;
    ensure!(house.cluster.node(0).stop().await?.success(), "{}", house.logs());
    Ok(())
}

#[tokio::test]
async fn a_reactor_that_does_not_turn_is_named_and_the_others_serve() -> anyhow::Result<()> {
    let mut house = House::prepare_with(&["a"], "reactors = 2")?;
    house.cluster.start().await?;
    house.create_store(0, "first", 256 * MIB).await?;
    let volume = house.create_volume("v", 64 * MIB, &[]).await?;
    assert_eq!(volume.engine.as_ref().map(|engine| engine.reactor), Some(0));
    let (health, nvmf) = (health_of(&house), house.cluster.nodes()[0].addresses().nvmf);
    let pid = house.cluster.nodes()[0].pid().context("it runs")?;
    let stopped = Stopped::threads(pid, &["reactor-1"])?;
    let page = probe_until(health, "/readyz", |page| says(page, "reactor-1 has been at one step for"))?;
    assert!(!page.body.contains("reactor-0"), "{page:?}");
    let mut health_service = health_service(&house).await?;
    let watched = HealthCheckRequest { service: "ashlar.v1.VolumeService".to_owned() };
    let mut watch = health_service.watch(watched).await?.into_inner();
    hear(&mut watch, ServingStatus::NotServing).await?;
    for (service, expected) in [("", ServingStatus::NotServing), ("ashlar.v1.NodeService", ServingStatus::Serving)] {
        let request = HealthCheckRequest { service: service.to_owned() };
        assert_eq!(health_service.check(request).await?.into_inner().status(), expected, "{service}");
    }
    assert!(is_good(&probe(health, "/livez")?));
    let host = Host::new()?;
    host.write(nvmf, &export_of(&volume)?.nqn, 0, 7, 4096).await?;
    drop(stopped);
    probe_until(health, "/readyz", is_good)?;
    hear(&mut watch, ServingStatus::Serving).await?;
    house.cluster.node(0).stop().await?;
    hear(&mut watch, ServingStatus::NotServing).await?;
    assert!(watch.message().await?.is_none(), "it ends in order");
    let log = fs::read_to_string(house.cluster.nodes()[0].log())?;
    assert!(log.contains("a reactor stalls") && log.contains("a reactor goes on"), "{log}");
    Ok(())
}

#[tokio::test]
async fn a_disk_that_hangs_makes_its_own_volumes_unhealthy_only() -> anyhow::Result<()> {
    let Some(_network) = Network::enter(0)? else { return Ok(()) };
    let mut house = House::prepare_with(&["a"], "replica_deadline_ms = 500\nunhealthy_after_ms = 1000")?;
    house.cluster.start().await?;
    let folder = house.cluster.nodes()[0].folder().to_owned();
    // Goes before the daemon, which hangs while it is frozen.
    let disk = Mounted::make(&folder.join("disk.ext4"), &folder.join("disk"), 192 * MIB)?;
    house.create_store(0, "well", 256 * MIB).await?;
    let well = house.create_volume("well", 64 * MIB, &[]).await?;
    house.create_store_at(0, "hanging", &disk.path().join("store.img"), 256 * MIB).await?;
    let request = proto::v1::CreateVolumeRequest {
        name: "hanging".to_owned(),
        size_bytes: 64 * MIB,
        store: "hanging".to_owned(),
        ..Default::default()
    };
    answer(house.client(0).await?.volumes().create(request).await)?;
    let hanging = house.wait_until_healthy("hanging").await?;
    let (health, nvmf) = (health_of(&house), house.cluster.nodes()[0].addresses().nvmf);
    let (well, hanging) = (export_of(&well)?.nqn.clone(), export_of(&hanging)?.nqn.clone());
    let (host, other) = (Host::new()?, Host::new()?);
    host.write(nvmf, &hanging, 0, 1, 4096).await?;
    assert!(is_good(&probe(health, "/volumes")?));

    disk.freeze()?;
    let nqn = hanging.clone();
    let written = other.run(move || async move {
        let controller = integration::attach(nvmf, &nqn).await?;
        // More than the kernel has threads for if nobody asks for more: those that hang must not be missing for the other disk.
        let writes = (0..HANGING_WRITES).map(|block| {
            let (controller, data) = (Rc::clone(&controller), reactor::Slice::from(&[2; 4096][..]));
            reactor::spawn(async move { controller.write(block * 4096, data, false).await })
        });
        for write in writes.collect::<Vec<_>>() {
            write.await.context("it was given up")??;
        }
        controller.disconnect().await;
        Ok(())
    });
    let page = probe_until(health, "/volumes", |page| says(page, "unhealthy hanging "))?;
    for round in 3..6 {
        host.write(nvmf, &well, 0, round, 4096).await?;
        assert_eq!(host.read(nvmf, &well, 0, 4096).await?, vec![round; 4096]);
    }
    assert!(page.body.contains("ok well "), "{page:?}");
    assert!(is_good(&probe(health, "/livez")?));
    assert!(is_good(&probe(health, "/readyz")?), "a volume is no matter of the daemon");
    disk.thaw()?;
    written.await?;
    let page = probe_until(health, "/volumes", is_good)?;
    assert!(page.body.contains("ok hanging "), "{page:?}");
    Ok(())
}

async fn last_run(house: &House) -> anyhow::Result<(RunEnd, LastRun)> {
    let info = answer(house.client(0).await?.node().info(NodeInfoRequest {}).await)?;
    let last = info.last_run.context("it says how the last run ended")?;
    let shown = said(&house.ashlar(0, &["node", "info"])?);
    ensure!(shown.contains(&format!("last run   {}", last.end())), "{shown}");
    Ok((last.end(), last))
}

/// Sends a signal and waits for the end.
fn end_by(house: &mut House, signal: &str) -> anyhow::Result<()> {
    let pid = house.cluster.nodes()[0].pid().context("it runs")?;
    ensure!(Command::new("sh").arg("-c").arg(format!("kill -{signal} {pid}")).status()?.success());
    let limit = Instant::now() + PATIENCE;
    let status = format!("/proc/{pid}/status");
    while !fs::read_to_string(&status)?.contains("State:\tZ") {
        ensure!(Instant::now() < limit, "SIG{signal} does not end it");
        std::thread::sleep(Duration::from_millis(5));
    }
    house.cluster.node(0).kill()
}

#[tokio::test]
async fn each_end_of_a_run_is_known_at_the_next_start() -> anyhow::Result<()> {
    let mut house = House::prepare(&["a"])?;
    house.cluster.start().await?;
    assert_eq!(last_run(&house).await?.0, RunEnd::First);
    house.cluster.node(0).stop().await?;
    house.cluster.start().await?;
    let (end, last) = last_run(&house).await?;
    assert_eq!((end, last.detail.as_str(), last.number), (RunEnd::Clean, "SIGTERM", 1));
    assert!(last.ended_at_unix_ms >= Some(last.started_at_unix_ms), "{last:?}");

    end_by(&mut house, "KILL")?;
    house.cluster.start().await?;
    let (end, last) = last_run(&house).await?;
    assert_eq!((end, last.ended_at_unix_ms), (RunEnd::Killed, None));

    for signal in ["SEGV", "ABRT"] {
        end_by(&mut house, signal)?;
        house.cluster.start().await?;
        let (end, last) = last_run(&house).await?;
        assert_eq!((end, last.detail), (RunEnd::Signal, format!("SIG{signal}")));
    }

    end_by(&mut house, "KILL")?;
    // As if the machine had been booted since.
    let runs = house.cluster.nodes()[0].folder().join("state/runs/runs.json");
    let text = fs::read_to_string(&runs)?;
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    ensure!(text.contains(boot.trim()));
    fs::write(&runs, text.replace(boot.trim(), "00000000-0000-4000-8000-000000000000"))?;
    house.cluster.start().await?;
    assert_eq!(last_run(&house).await?.0, RunEnd::Power);

    // A start that comes to nothing is a run, too.
    house.cluster.node(0).stop().await?;
    let node = &house.cluster.nodes()[0];
    let taken = std::net::TcpListener::bind(node.addresses().grpc)?;
    let status = node.command(File::create(node.folder().join("failed.log"))?).status()?;
    assert_eq!(status.code(), Some(1));
    drop(taken);
    house.cluster.start().await?;
    let (end, last) = last_run(&house).await?;
    assert_eq!(end, RunEnd::Failed);
    assert!(last.detail.contains("cannot serve the API at"), "{last:?}");
    house.cluster.node(0).stop().await?;
    Ok(())
}

#[tokio::test]
async fn a_panic_that_ends_the_run_is_told_with_its_backtrace() -> anyhow::Result<()> {
    let mut house = House::prepare(&["a"])?;
    let node = &house.cluster.nodes()[0];
    let mut command = node.command(File::create(node.folder().join("panic.log"))?);
    let status = command.env("ASHLAR_PANIC_WHEN_SERVING", "1").status()?;
    assert_eq!(status.code(), Some(101), "a panic; this test needs a build with debug assertions");
    house.cluster.start().await?;
    let (end, last) = last_run(&house).await?;
    assert_eq!(end, RunEnd::Panic);
    assert!(last.panic.contains("asked for by ASHLAR_PANIC_WHEN_SERVING"), "{last:?}");
    assert!(last.panic.contains("lifecycle.rs") && last.panic.lines().count() > 5, "{last:?}");
    let shown = said(&house.ashlar(0, &["node", "info"])?);
    assert!(shown.contains("panic      thread main panicked at"), "{shown}");
    Ok(())
}

#[tokio::test]
async fn systemd_hears_when_the_daemon_serves_lives_and_stops() -> anyhow::Result<()> {
    let house = House::prepare(&["a"])?;
    let socket = UnixDatagram::bind(house.folder().join("notify"))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let node = &house.cluster.nodes()[0];
    let mut command = node.command(File::create(node.log())?);
    let mut process =
        command.env("NOTIFY_SOCKET", house.folder().join("notify")).env("WATCHDOG_USEC", "300000").spawn()?;
    let hear_until = |wanted: &str| -> anyhow::Result<usize> {
        let mut lives = 0;
        loop {
            let mut bytes = [0; 256];
            let length = socket.recv(&mut bytes).with_context(|| format!("no {wanted}"))?;
            let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
            if text.lines().any(|line| line == wanted) {
                return Ok(lives);
            }
            lives += usize::from(text == "WATCHDOG=1");
        }
    };
    let heard = (|| {
        hear_until("READY=1")?;
        ensure!(probe(node.addresses().health, "/readyz")?.status == 200, "it said that it is");
        hear_until("WATCHDOG=1")?;
        hear_until("WATCHDOG=1")?;
        ensure!(Command::new("sh").arg("-c").arg(format!("kill {}", process.id())).status()?.success());
        hear_until("STOPPING=1")
    })();
    if heard.is_err() {
        process.kill()?;
    }
    let status = process.wait()?;
    heard?;
    assert!(status.success(), "{status}");
    Ok(())
}
