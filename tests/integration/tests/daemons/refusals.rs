//! Bad input: a clear error each, and nothing lost.

use std::fs::{self, File};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use cli::client::answer;
use integration::{Host, House, MIB, program, run_ashlar, said};
use nvmf_initiator::{ConnectError, Controller, Options, Status};
use proto::v1::node_service_client::NodeServiceClient;
use proto::v1::{
    CreateLvolRequest, CreateVolumeRequest, DeleteLvolRequest, EventsRequest, GetVolumeRequest, ListLvolsRequest,
    ListStoresRequest, StoreState,
};
use tonic::Code;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::transport::Channel;

#[tokio::test]
async fn a_second_daemon_on_the_same_state_directory_is_refused() -> anyhow::Result<()> {
    let mut house = House::prepare(&["a"])?;
    house.cluster.start().await?;
    let node = &house.cluster.nodes()[0];
    let log = node.folder().join("second.log");
    let status = node.command(File::create(&log)?).status()?;
    assert_eq!(status.code(), Some(1));
    let text = fs::read_to_string(&log)?;
    let state = node.folder().join("state").display().to_string();
    assert!(text.contains(&state) && text.contains("in use by another ashlard"), "{text}");
    let pid = node.pid().context("the first one runs")?;
    assert!(text.contains(&format!("process {pid}")), "{text}");
    // The first one goes on.
    answer(house.client(0).await?.stores().list(ListStoresRequest::default()).await)?;
    Ok(())
}

#[tokio::test]
async fn a_store_file_that_is_none_fails_alone() -> anyhow::Result<()> {
    let mut house = House::open(&["a"], 512 * MIB).await?;
    house.create_store(0, "second", 256 * MIB).await?;
    house.create_volume("v", 64 * MIB, &[]).await?;
    house.cluster.node(0).stop().await?;
    fs::write(house.cluster.nodes()[0].folder().join("second.img"), vec![0xa5; 4 << 20])?;
    house.cluster.node(0).start().await?;
    house.wait_until_healthy("v").await?;
    let stores = answer(house.client(0).await?.stores().list(ListStoresRequest::default()).await)?.stores;
    let found: Vec<_> = stores.iter().map(|store| (store.name.as_str(), store.state())).collect();
    assert_eq!(found, [("main", StoreState::Ready), ("second", StoreState::Failed)]);
    assert!(stores[1].reason.contains("not a store"), "{}", stores[1].reason);

    // A missing one too, and it is not made anew in its place.
    house.cluster.node(0).stop().await?;
    let path = house.cluster.nodes()[0].folder().join("second.img");
    fs::remove_file(&path)?;
    house.cluster.node(0).start().await?;
    house.wait_until_healthy("v").await?;
    let stores = answer(house.client(0).await?.stores().list(ListStoresRequest::default()).await)?.stores;
    assert!(stores[1].reason.contains("does not exist"), "{}", stores[1].reason);
    assert!(!path.exists());
    Ok(())
}

#[tokio::test]
async fn a_file_with_other_content_is_not_formatted() -> anyhow::Result<()> {
    let mut house = House::prepare(&["a"])?;
    house.cluster.start().await?;
    let path = house.folder().join("precious");
    let content = vec![0x5a; 64 << 20];
    fs::write(&path, &content)?;
    let output = house.ashlar(0, &["store", "create", "main", "--path", &path.display().to_string()])?;
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("is not empty"), "{}", said(&output));
    assert_eq!(fs::read(&path)?, content);
    let stores = answer(house.client(0).await?.stores().list(ListStoresRequest::default()).await)?.stores;
    assert_eq!(stores, []);
    Ok(())
}

#[tokio::test]
async fn a_store_is_not_formatted_again_but_can_be_taken_in() -> anyhow::Result<()> {
    let house = House::open(&["a"], 512 * MIB).await?;
    let before = answer(house.client(0).await?.stores().list(ListStoresRequest::default()).await)?.stores;
    house.ashlar(0, &["store", "delete", "main"])?;
    let path = house.cluster.nodes()[0].folder().join("main.img").display().to_string();
    let refused = house.ashlar(0, &["store", "create", "main", "--path", &path])?;
    assert_eq!(refused.status.code(), Some(1));
    assert!(said(&refused).contains(&format!("--uuid {}", before[0].uuid)), "{}", said(&refused));
    let taken = house.ashlar(0, &["store", "create", "main", "--path", &path, "--uuid", &before[0].uuid])?;
    assert!(taken.status.success(), "{}", said(&taken));
    let after = answer(house.client(0).await?.stores().list(ListStoresRequest::default()).await)?.stores;
    assert_eq!(after, before);
    Ok(())
}

#[tokio::test]
async fn an_unknown_nqn_is_refused_by_name() -> anyhow::Result<()> {
    let house = House::open(&["a"], 512 * MIB).await?;
    let address = house.cluster.nodes()[0].addresses().nvmf;
    let refused = Host::new()?
        .run(move || async move {
            let result = Controller::connect(address, "nqn.2026-01.io.example:none", Options::default()).await;
            result.err().context("it connected")
        })
        .await?;
    assert!(matches!(refused, ConnectError::Refused { status: Status::ConnectInvalidParameters, .. }), "{refused}");
    Ok(())
}

#[test]
fn wrong_usage_exits_with_2() -> anyhow::Result<()> {
    for arguments in [&["volum", "list"][..], &["volume", "create", "v"], &["volume", "create", "v", "--size", "1GB"]] {
        let output = run_ashlar(arguments)?;
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", said(&output));
    }
    Ok(())
}

#[test]
fn a_daemon_out_of_reach_is_said_so() -> anyhow::Result<()> {
    // Port 1 has no server on a test machine.
    let output = run_ashlar(&["--server", "http://127.0.0.1:1", "volume", "list"])?;
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("cannot reach ashlard at http://127.0.0.1:1"), "{}", said(&output));
    Ok(())
}

#[test]
fn a_bad_configuration_is_refused_with_its_line() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("node.toml");
    for (text, expected) in [
        ("node = \"a\"\nreactor = 1\n", "unknown field `reactor`"),
        ("node = \"a\"\ngrpc = \"here\"\n", "line 2"),
        ("node = \"a\"\nreplica_deadline_ms = 60000\n", "replica_deadline_ms"),
    ] {
        fs::write(&path, text)?;
        let output = Command::new(program("ashlard")?).arg("--config").arg(&path).arg("--check").output()?;
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(said(&output).contains(expected), "{text}: {}", said(&output));
    }
    Ok(())
}

#[tokio::test]
async fn a_volume_needs_a_store_and_a_known_node() -> anyhow::Result<()> {
    let mut house = House::prepare(&["a"])?;
    house.cluster.start().await?;
    let output = house.ashlar(0, &["volume", "create", "v", "--size", "1GiB"])?;
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("ashlar store create"), "{}", said(&output));
    let output = house.ashlar(0, &["volume", "create", "w", "--size", "1GiB", "--replicas", "a,z"])?;
    assert!(said(&output).contains("node `z` is not known here"), "{}", said(&output));
    Ok(())
}

/// A connection on which every call goes to the method named.
#[derive(Clone)]
struct Misdirected(Channel, &'static str);

impl Service<http::Request<Body>> for Misdirected {
    type Response = http::Response<Body>;
    type Error = tonic::transport::Error;
    type Future = <Channel as Service<http::Request<Body>>>::Future;

    fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        *request.uri_mut() = http::Uri::from_static(self.1);
        self.0.call(request)
    }
}

#[tokio::test]
async fn every_error_says_its_reason_and_the_id_of_its_request() -> anyhow::Result<()> {
    let house = House::open(&["a"], 256 * MIB).await?;
    let server = house.cluster.nodes()[0].server();
    let channel = Channel::from_shared(server)?.connect().await?;
    let request = || {
        let mut request = tonic::Request::new(EventsRequest { follow: true, ..Default::default() });
        request.metadata_mut().insert("x-request-id", "job-7".parse()?);
        anyhow::Ok(request)
    };
    // A method that there is not, a service that there is not, a message that is of another call, a volume that there is not.
    for (path, code, reason) in [
        ("/ashlar.v1.VolumeService/Paint", Code::Unimplemented, "UNIMPLEMENTED"),
        ("/ashlar.v9.VolumeService/Get", Code::Unimplemented, "UNIMPLEMENTED"),
        ("/ashlar.v1.VolumeService/Get", Code::Internal, "MALFORMED"),
        ("/grpc.health.v1.Health/Check", Code::Internal, "MALFORMED"),
    ] {
        let mut client = NodeServiceClient::new(Misdirected(channel.clone(), path));
        let status = client.events(request()?).await.expect_err(path);
        let info = proto::error::info(&status).with_context(|| format!("{path}: {status:?}"))?;
        assert_eq!((status.code(), info.reason.as_str(), info.domain.as_str()), (code, reason, "ashlar"), "{path}");
        assert_eq!(info.metadata["request_id"], "job-7", "{path}");
        assert_eq!(status.metadata().get("x-request-id").and_then(|id| id.to_str().ok()), Some("job-7"));
    }
    let status = house.client(0).await?.volumes().get(GetVolumeRequest { volume: "none".to_owned() }).await;
    let info = proto::error::info(&status.expect_err("there is none")).context("details")?;
    assert_eq!(info.reason, "NOT_FOUND");
    ensure!(uuid::Uuid::try_parse(&info.metadata["request_id"]).is_ok(), "{info:?}");
    Ok(())
}

#[tokio::test]
async fn a_deadline_ends_the_wait_and_not_the_work() -> anyhow::Result<()> {
    let house = House::open(&["a", "b"], 256 * MIB).await?;
    house.cluster.nodes()[1].pause()?;
    let nodes = ["a", "b"].map(str::to_owned).to_vec();
    let wanted = CreateVolumeRequest { name: "v".to_owned(), size_bytes: 16 * MIB, nodes, ..Default::default() };
    let mut request = tonic::Request::new(wanted);
    request.set_timeout(Duration::from_secs(1));
    request.metadata_mut().insert("x-request-id", "late-1".parse()?);
    let status = house.client(0).await?.volumes().create(request).await.expect_err("b does not answer");
    let info = proto::error::info(&status).with_context(|| format!("{status:?}"))?;
    assert_eq!((status.code(), info.reason.as_str()), (Code::DeadlineExceeded, "DEADLINE"), "{status:?}");
    house.cluster.nodes()[1].resume()?;
    house.wait_until_healthy("v").await?;
    let log = fs::read_to_string(house.cluster.nodes()[0].log())?;
    let line = "call{id=late-1 method=VolumeService/Create volume=v}";
    ensure!(log.contains(line), "no {line} in {log}");
    Ok(())
}

#[tokio::test]
async fn lists_come_in_pages_and_stay_in_order() -> anyhow::Result<()> {
    let house = House::open(&["a"], 256 * MIB).await?;
    let client = house.client(0).await?;
    let make = |name: &str| CreateLvolRequest {
        name: name.to_owned(),
        store: "main".to_owned(),
        size_bytes: MIB,
        ..Default::default()
    };
    for name in ["a", "b", "c", "d", "e"] {
        answer(client.lvols().create(make(name)).await)?;
    }
    let mut request = ListLvolsRequest { page_size: 2, ..Default::default() };
    let mut pages = Vec::new();
    loop {
        let page = answer(client.lvols().list(request.clone()).await)?;
        pages.push(page.lvols.iter().map(|lvol| lvol.name.clone()).collect::<Vec<_>>().concat());
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
        // Neither what comes before the page nor what goes there moves it.
        answer(client.lvols().create(make("aa")).await)?;
        let gone = DeleteLvolRequest { lvol: "b".to_owned(), ..Default::default() };
        answer(client.lvols().delete(gone).await)?;
    }
    assert_eq!(pages, ["ab", "cd", "e"]);
    let first = answer(client.lvols().list(ListLvolsRequest { page_size: 1, ..Default::default() }).await)?;
    let other = ListStoresRequest { page_token: first.next_page_token, ..Default::default() };
    let status = client.stores().list(other).await.expect_err("a token of another list");
    assert_eq!(proto::error::info(&status).map(|info| info.metadata["field"].clone()).as_deref(), Some("page_token"));
    assert_eq!(client.list_lvols(ListLvolsRequest { page_size: 1, ..Default::default() }).await?.lvols.len(), 5);
    Ok(())
}
