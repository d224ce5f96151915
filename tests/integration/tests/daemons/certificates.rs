//! TLS between real programs: who gets in, who does not, and what a volume over it survives. What certificates are good is
//! tested in the crate `tls`.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use certificates::{Authority, Request};
use cli::client::{Client, answer};
use integration::{
    Host, MIB, PATIENCE, Secured, attach, export_of, node, probe, program, run_ashlar, said, uri, write_secret,
};
use proto::v1::{
    CreateReplicaRequest, DeleteVolumeRequest, EventsRequest, ListReplicasRequest, ListVolumesRequest, NodeInfoRequest,
};
use tls::Files;
use tonic::Code;

const SIZE: u64 = 32 * MIB;

#[tokio::test]
async fn a_volume_over_tls_survives_kills_of_its_nodes_and_no_secret_is_logged() -> anyhow::Result<()> {
    const SECRET: &str = "a secret that nobody logs";
    let mut secured = Secured::prepare(&["a", "b"], "log = \"trace\"")?;
    secured.house.cluster.start().await?;
    for index in 0..2 {
        secured.house.create_store(index, "main", 256 * MIB).await?;
    }
    let house = &mut secured.house;
    let volume = house.create_volume("v", SIZE, &["a", "b"]).await?;
    let (address, nqn) = (house.cluster.nodes()[0].addresses().nvmf, export_of(&volume)?.nqn.clone());
    let host = Host::new()?;
    host.write(address, &nqn, 0, 1, MIB as usize).await?;
    host.write(address, &nqn, 4 * MIB + 4096, 2, 4096).await?;
    house.cluster.node(1).kill()?;
    host.write(address, &nqn, 8 * MIB, 3, MIB as usize).await?;
    house.cluster.node(1).start().await?;
    house.wait_until_healthy("v").await?;
    house.cluster.node(0).kill()?;
    house.cluster.node(0).start().await?;
    house.wait_until_healthy("v").await?;
    for (offset, value, length) in [(0, 1, MIB as usize), (4 * MIB + 4096, 2, 4096), (8 * MIB, 3, MIB as usize)] {
        ensure!(host.read(address, &nqn, offset, length).await? == vec![value; length], "at {offset}");
    }

    let file = house.folder().join("chap");
    write_secret(&file, SECRET)?;
    let server = house.cluster.nodes()[0].server();
    let export = |chap: &[&str]| {
        let asked = ["--server", &server, "volume", "export", "v", "--frontend", "iscsi"];
        ashlar(&house.folder(), &[&asked[..], chap].concat())
    };
    let (good, text) = export(&["--chap-user", "host", "--chap-secret-file", &file.display().to_string()])?;
    ensure!(good && text.contains("chap     host"), "{text}");
    let logs: Vec<_> =
        house.cluster.nodes().iter().map(|node| fs::read_to_string(node.log())).collect::<Result<_, _>>()?;
    ensure!(logs[0].contains("TRACE"), "nothing is traced");
    let mut secrets = vec![SECRET.to_owned()];
    for node in house.cluster.nodes() {
        let key = fs::read_to_string(node.folder().join("node.key"))?;
        secrets.extend(key.lines().filter(|line| line.len() > 40).map(str::to_owned));
    }
    ensure!(secrets.len() > 3 && !secrets.iter().any(|secret| logs.iter().any(|log| log.contains(secret))));
    // Nor does `ps` show any, nor the environment.
    let pid = house.cluster.nodes()[0].pid().context("it runs")?;
    for file in ["cmdline", "environ"] {
        let shown = String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/{file}"))?).into_owned();
        ensure!(!secrets.iter().any(|secret| shown.contains(secret)), "{file}");
    }
    Ok(())
}

/// Runs `ashlar` as the administrator of a folder.
fn ashlar(folder: &std::path::Path, arguments: &[&str]) -> anyhow::Result<(bool, String)> {
    let file = |name: &str| folder.join(name).display().to_string();
    let (certificate, key, ca) = (file("admin.crt"), file("admin.key"), file("ca.crt"));
    let tls = ["--tls-cert", &certificate, "--tls-key", &key, "--tls-ca", &ca];
    let output = run_ashlar(&[&tls[..], arguments].concat())?;
    Ok((output.status.success(), said(&output)))
}

#[tokio::test]
async fn everybody_may_what_the_certificate_says_and_nothing_without_one() -> anyhow::Result<()> {
    let mut secured = Secured::prepare(&["a"], "")?;
    secured.house.cluster.start().await?;
    secured.house.create_store(0, "main", 256 * MIB).await?;
    secured.house.create_volume("v", SIZE, &[]).await?;
    let list = |client: Client| async move { client.volumes().list(ListVolumesRequest::default()).await };
    let delete = |client: Client| async move {
        client.volumes().delete(DeleteVolumeRequest { volume: "v".to_owned(), ..DeleteVolumeRequest::default() }).await
    };

    let observer = secured.person("observer", &uri("role/read-only"))?;
    ensure!(answer(list(secured.client(0, &observer).await?).await)?.volumes.len() == 1);
    let refused = delete(secured.client(0, &observer).await?).await.err().context("an observer deletes")?;
    let info = proto::error::info(&refused).context("details")?;
    ensure!((refused.code(), info.reason.as_str()) == (Code::PermissionDenied, "ROLE"), "{refused}");
    ensure!(info.metadata["needs"].contains("admin"), "{info:?}");

    // A node that is no peer is nobody; neither is anybody of another cluster, or without a name.
    for (name, uri) in [
        ("stranger", uri("node/x")),
        ("elsewhere", "spiffe://other.example/ashlar/role/admin".to_owned()),
        ("unnamed", "https://tests.example".to_owned()),
    ] {
        let refused = list(secured.client(0, &secured.person(name, &uri)?).await?).await.err();
        ensure!(refused.as_ref().is_some_and(|status| status.code() == Code::PermissionDenied), "{name}: {refused:?}");
    }
    // A node may have its replicas here, and nothing else.
    let own = secured.client(0, &secured.person("peer", &uri("node/a"))?).await?;
    ensure!(own.replicas().list(ListReplicasRequest::default()).await.is_ok());
    let replica = own.replicas().create(CreateReplicaRequest::default()).await.err().context("of no size")?;
    ensure!(replica.code() == Code::InvalidArgument, "{replica}");
    ensure!(delete(own).await.is_err_and(|status| status.code() == Code::PermissionDenied));

    // No connection at all.
    let other = Authority::new("another");
    let admin = Request::new(&uri("role/admin"));
    let foreign = secured.files("foreign", &other.issue(&admin))?;
    let ended = secured.files("ended", &secured.authority.issue(&admin.clone().expired()))?;
    for files in [&foreign, &ended] {
        let refused = match secured.client(0, files).await {
            Ok(client) => answer(list(client).await).map(drop),
            Err(error) => Err(error),
        };
        let text = refused.err().context("it is let in")?.to_string();
        ensure!(text.contains("it refuses your certificate"), "{text}");
    }
    let fooled = Files { ca: secured.house.folder().join("foreign.crt"), ..observer.clone() };
    ensure!(secured.client(0, &fooled).await.is_err(), "a daemon of another authority");
    plaintext_gets_nowhere(&secured).await?;
    ensure!(answer(list(secured.house.client(0).await?).await)?.volumes.len() == 1, "the daemon is well");
    Ok(())
}

/// On both ports; and a key that others may read is not even sent.
async fn plaintext_gets_nowhere(secured: &Secured) -> anyhow::Result<()> {
    let addresses = secured.house.cluster.nodes()[0].addresses();
    let plain = format!("http://{}", addresses.grpc);
    let refused = match Client::connect(&plain).await {
        Ok(client) => answer(client.node().info(NodeInfoRequest {}).await).map(drop),
        Err(error) => Err(error),
    };
    ensure!(refused.is_err(), "plaintext is served");
    for address in [addresses.grpc, addresses.replica] {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")?;
        let mut said = Vec::new();
        // An error is an end, too.
        let _ = stream.read_to_end(&mut said);
        ensure!(said.len() < 10 && said.first().is_none_or(|first| *first == 0x15), "{address}: {said:?}");
    }
    let (good, text) =
        ashlar(&secured.house.folder(), &["--server", &secured.house.cluster.nodes()[0].server(), "node", "info"])?;
    ensure!(good && text.contains("tls        node a in tests.example, ends within a day"), "{text}");
    let key = secured.house.folder().join("admin.key");
    fs::set_permissions(&key, Permissions::from_mode(0o640))?;
    let (good, text) =
        ashlar(&secured.house.folder(), &["--server", &secured.house.cluster.nodes()[0].server(), "node", "info"])?;
    ensure!(!good && text.contains("admin.key") && text.contains("mode 0640"), "{text}");
    fs::set_permissions(&key, Permissions::from_mode(0o600))?;
    let output = run_ashlar(&["--server", &secured.house.cluster.nodes()[0].server(), "node", "info"])?;
    ensure!(said(&output).contains("--tls-cert"), "{}", said(&output));
    Ok(())
}

#[tokio::test]
async fn certificates_are_replaced_under_connections_that_stay() -> anyhow::Result<()> {
    let mut secured = Secured::prepare(&["a", "b"], "")?;
    secured.house.cluster.start().await?;
    for index in 0..2 {
        secured.house.create_store(index, "main", 256 * MIB).await?;
    }
    let volume = secured.house.create_volume("v", SIZE, &["a", "b"]).await?;
    let (address, nqn) = (secured.house.cluster.nodes()[0].addresses().nvmf, export_of(&volume)?.nqn.clone());
    let client = secured.house.client(1).await?;
    let mut events =
        answer(client.patient_node().events(EventsRequest { follow: true, ..EventsRequest::default() }).await)?;
    let host = Host::new()?;

    // The certificate of somebody else's: refused, and said so.
    secured.replace(1, &secured.authority.issue(&node("x")))?;
    secured.house.cluster.node(1).signal("HUP")?;
    let refused = next_event(&mut events, "certificate-refused").await?;
    ensure!(refused.contains("node x, and this is node b"), "{refused}");
    let info = answer(client.node().info(NodeInfoRequest {}).await)?.certificate.context("there is one")?;
    ensure!(info.problem == refused && info.identity == "node b in tests.example", "{info:?}");
    let metrics = probe(secured.house.cluster.nodes()[1].addresses().health, "/metrics")?.body;
    ensure!(metrics.contains("ashlar_certificate_reload_failed 1\n"), "{metrics}");

    // One that lasts longer: taken, by itself.
    let not_after = std::time::SystemTime::now() + Duration::from_secs(90 * 24 * 60 * 60);
    secured.replace(1, &secured.authority.issue(&Request { not_after, ..node("b") }))?;
    next_event(&mut events, "certificate-replaced").await?;
    let later = answer(client.node().info(NodeInfoRequest {}).await)?.certificate.context("there is one")?;
    ensure!(
        later.not_after_unix_ms > info.not_after_unix_ms + 80 * 86_400_000 && later.problem.is_empty(),
        "{later:?}"
    );
    let metrics = probe(secured.house.cluster.nodes()[1].addresses().health, "/metrics")?.body;
    ensure!(
        metrics.contains(&format!("ashlar_certificate_not_after_seconds {}\n", later.not_after_unix_ms / 1000)),
        "{metrics}"
    );

    // Neither the calls above nor the replica's connection were cut off.
    host.write(address, &nqn, 0, 7, 65536).await?;
    let replicas = secured.house.volume("v").await?.engine.context("it has one")?;
    ensure!(replicas.state() == proto::v1::EngineState::Healthy, "{replicas:?}");
    let log = fs::read_to_string(secured.house.cluster.nodes()[0].log())?;
    ensure!(!log.contains("out of sync"), "the replica was lost for a while");
    Ok(())
}

/// Whoever is on a revocation list loses the connections that he has, once the daemon has read it; nobody else does.
#[tokio::test]
async fn what_is_taken_back_ends_connections_that_were_there() -> anyhow::Result<()> {
    let mut secured = Secured::prepare(&["a", "b"], "")?;
    let b = secured.house.cluster.nodes()[1].folder().to_owned();
    let configuration = fs::read_to_string(b.join("node.toml"))?;
    fs::write(b.join("node.toml"), configuration.replace("ca = \"ca.crt\"", "ca = \"ca.crt\"\ncrl = \"ca.crl\""))?;
    fs::write(b.join("ca.crl"), secured.authority.revoke(&[]))?;
    let (of_a, of_eve) = (node("a"), Request { server: false, ..Request::new(&uri("role/read-only")) });
    let (of_a, of_eve) = (secured.authority.issue(&of_a), secured.authority.issue(&of_eve));
    secured.replace(0, &of_a)?;
    secured.house.cluster.start().await?;
    for index in 0..2 {
        secured.house.create_store(index, "main", 256 * MIB).await?;
    }
    let volume = secured.house.create_volume("v", SIZE, &["a", "b"]).await?;
    let (address, nqn) = (secured.house.cluster.nodes()[0].addresses().nvmf, export_of(&volume)?.nqn.clone());
    let host = Host::new()?;
    host.write(address, &nqn, 0, 1, 4096).await?;
    let (admin, eve) = (secured.house.client(1).await?, secured.client(1, &secured.files("eve", &of_eve)?).await?);
    let list = async |client: &Client| answer(client.volumes().list(ListVolumesRequest::default()).await);
    let follow = || EventsRequest { follow: true, ..EventsRequest::default() };
    let mut events = answer(admin.patient_node().events(follow()).await)?;
    let mut overheard = answer(eve.patient_node().events(follow()).await)?;
    ensure!(overheard.message().await?.is_some() && list(&eve).await.is_ok(), "she is let in");

    fs::write(b.join("ca.crl"), secured.authority.revoke(&[&of_a, &of_eve]))?;
    secured.house.cluster.node(1).signal("HUP")?;
    next_event(&mut events, "certificate-replaced").await?;
    // What happens from then on is told to the administrator, and to nobody whose certificate was taken back.
    let told = async {
        while let Some(event) = overheard.message().await? {
            ensure!(event.what != "certificate-replaced", "she hears of it");
        }
        Ok(())
    };
    let ended: anyhow::Result<()> = tokio::time::timeout(PATIENCE, told).await?;
    ensure!(ended.is_err_and(|error| !error.to_string().contains("she hears")), "the stream is cut off");
    ensure!(list(&eve).await.is_err(), "she is let in again");
    // The replica's connection, too: the volume goes on without it.
    secured.house.wait_for_engine("v", |engine| engine.state() == proto::v1::EngineState::Degraded).await?;
    host.write(address, &nqn, 4096, 2, 4096).await?;
    list(&admin).await.context("the administrator stays")?;

    secured.replace(0, &secured.authority.issue(&node("a")))?;
    secured.house.cluster.node(0).signal("HUP")?;
    secured.house.wait_until_healthy("v").await?;
    Ok(())
}

async fn next_event(events: &mut tonic::Streaming<proto::v1::Event>, what: &str) -> anyhow::Result<String> {
    let limit = Instant::now() + PATIENCE;
    while let Some(event) = tokio::time::timeout(limit - Instant::now(), events.message()).await?? {
        if event.what == what {
            return Ok(event.detail);
        }
    }
    anyhow::bail!("the events end")
}

#[tokio::test]
async fn a_node_under_another_nodes_name_gets_no_replica() -> anyhow::Result<()> {
    let mut secured = Secured::prepare(&["a", "b"], "")?;
    secured.house.cluster.start().await?;
    for index in 0..2 {
        secured.house.create_store(index, "main", 256 * MIB).await?;
    }
    let volume = secured.house.create_volume("v", SIZE, &["a", "b"]).await?;
    let (address, nqn) = (secured.house.cluster.nodes()[0].addresses().nvmf, export_of(&volume)?.nqn.clone());
    let host = Host::new()?;
    host.write(address, &nqn, 0, 1, 4096).await?;
    // Where b was there is a daemon now that has everything of b, but the certificate.
    secured.house.cluster.node(1).stop().await?;
    let path = secured.house.cluster.nodes()[1].folder().join("node.toml");
    let configuration = fs::read_to_string(&path)?;
    let state = secured.house.cluster.nodes()[1].folder().join("state");
    fs::write(&path, configuration.replace("node = \"b\"", "node = \"c\""))?;
    fs::write(state.join("node.json"), fs::read_to_string(state.join("node.json"))?.replace("\"b\"", "\"c\""))?;
    secured.replace(1, &secured.authority.issue(&node("c")))?;
    secured.house.cluster.node(1).start().await?;
    host.write(address, &nqn, 4096, 2, 4096).await?;
    let wanted = "it is of node c, and node b is expected";
    let limit = Instant::now() + PATIENCE;
    while !fs::read_to_string(secured.house.cluster.nodes()[0].log())?.contains(wanted) {
        ensure!(Instant::now() < limit, "{}", secured.house.logs());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let engine = secured.house.volume("v").await?.engine.context("it has one")?;
    ensure!(engine.state() == proto::v1::EngineState::Degraded, "{engine:?}");
    let controller =
        host.run(move || async move { Ok(attach(address, &nqn).await?.read(0, 8192).await?.to_vec()) }).await?;
    ensure!(controller[..4096] == [1; 4096] && controller[4096..] == [2; 4096]);
    Ok(())
}

#[test]
fn a_configuration_that_would_let_everybody_in_is_refused() -> anyhow::Result<()> {
    let secured = Secured::prepare(&["a"], "")?;
    let folder = secured.house.cluster.nodes()[0].folder().to_owned();
    let path = folder.join("other.toml");
    let check = |text: &str, flags: &[&str]| -> anyhow::Result<(bool, String)> {
        fs::write(&path, text)?;
        let output =
            Command::new(program("ashlard")?).arg("--config").arg(&path).arg("--check").args(flags).output()?;
        Ok((output.status.success(), said(&output)))
    };
    let open = "node = \"a\"\ngrpc = \"0.0.0.0:7000\"\n";
    let (good, text) = check(open, &[])?;
    ensure!(!good && text.contains("grpc: 0.0.0.0:7000 is not on loopback") && text.contains("--insecure"), "{text}");
    ensure!(check(open, &["--insecure"])?.0);
    let tls = "[tls]\ncertificate = \"node.crt\"\nkey = \"node.key\"\nca = \"ca.crt\"\n";
    let (good, text) = check(&format!("{open}{tls}"), &[])?;
    ensure!(good, "{text}");
    fs::set_permissions(folder.join("node.key"), Permissions::from_mode(0o604))?;
    let (good, text) = check(&format!("{open}{tls}"), &[])?;
    ensure!(!good && text.contains("node.key") && text.contains("mode 0604"), "{text}");
    fs::set_permissions(folder.join("node.key"), Permissions::from_mode(0o400))?;
    ensure!(check(&format!("{open}{tls}"), &[])?.0);
    let (good, text) = check(&format!("{open}{tls}").replace("\"a\"", "\"b\""), &[])?;
    ensure!(!good && text.contains("certificate of node a, and this is node b"), "{text}");
    Ok(())
}
