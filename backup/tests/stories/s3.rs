//! S3 over real sockets: each failure has its kind, and a volume goes there and comes back.

use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use backup::create::{BackupRequest, Outcome};
use backup::target::check::{Step, check};
use backup::target::{Content, Resolve, Settings, Store, open};
use backup::{Error, Kind, inspect};
use futures_util::StreamExt;

use crate::s3_server::{Mode, S3Server, SECRET};
use crate::volume::{TestDevice, Volume};
use crate::{BLOCK, MIB, back_up, remove, restore};

/// Limits that a story can wait for.
fn settings() -> Settings {
    Settings {
        connect_timeout: Duration::from_secs(5),
        answer_timeout: Duration::from_millis(500),
        ..Settings::default()
    }
}

fn store(server: &S3Server) -> Arc<dyn Store> {
    open(&S3Server::url(), &S3Server::credentials(&server.endpoint()), &settings()).expect("a target").store
}

/// Reads all of an object.
async fn read(store: &Arc<dyn Store>, key: &str) -> Result<Vec<u8>, Error> {
    let mut body = store.get(key).await?;
    let mut bytes = Vec::new();
    while let Some(piece) = body.next().await {
        bytes.extend_from_slice(&piece?);
    }
    Ok(bytes)
}

/// What each kind of request fails with.
async fn failures(store: &Arc<dyn Store>) -> Vec<Option<Kind>> {
    let kind = |error: Error| {
        let printed = format!("{error} {error:?}");
        assert!(!printed.contains(SECRET) && !printed.contains("an-id"), "{printed}");
        error.kind()
    };
    vec![
        read(store, "there").await.err().map(kind),
        store.head("there").await.err().map(kind),
        store.put("new", Content::from(vec![1; 100_000])).await.err().map(kind),
        store.delete("new").await.err().map(kind),
        store.folder("some").await.err().map(kind),
        store.list("some").next().await.and_then(Result::err).map(kind),
    ]
}

#[tokio::test]
async fn each_failure_has_its_kind() {
    let server = S3Server::start().await;
    let store = store(&server);
    store.put("there", Content::from(vec![7; 300_000])).await.expect("stored");
    assert_eq!(failures(&store).await, [None; 6]);
    for (mode, kind) in [
        (Mode::Status(500, ""), Kind::Server),
        (Mode::Status(503, ""), Kind::Server),
        (Mode::Status(503, "<Error><Code>SlowDown</Code></Error>"), Kind::Throttled),
        (Mode::Status(429, ""), Kind::Throttled),
        (Mode::Status(403, "<Error><Code>AccessDenied</Code></Error>"), Kind::Auth),
        (Mode::Status(401, ""), Kind::Auth),
        (Mode::Status(507, ""), Kind::NoSpace),
        (Mode::Drop, Kind::Interrupted),
        (Mode::Hang, Kind::TimedOut),
    ] {
        server.set(mode.clone());
        let mut found = failures(&store).await;
        if kind == Kind::Throttled && found[1] == Some(Kind::Server) {
            // The answer to a HEAD has no body that could say more than its status.
            found[1] = Some(kind);
        }
        assert_eq!(found, [Some(kind); 6], "{mode:?}");
    }
    // What is cut short, or is no answer of a store.
    server.set(Mode::Truncate);
    let cut = failures(&store).await;
    assert_eq!((cut[0], cut[4]), (Some(Kind::Interrupted), Some(Kind::Interrupted)), "{cut:?}");
    server.set(Mode::Nonsense);
    let nonsense = failures(&store).await;
    assert_eq!((nonsense[4], nonsense[5]), (Some(Kind::Server), Some(Kind::Server)), "{nonsense:?}");
    // "Not found" of a listing is no word on any object.
    server.set(Mode::Status(404, "<Error><Code>NoSuchBucket</Code></Error>"));
    let missing = failures(&store).await;
    assert_eq!((missing[0], missing[4], missing[5]), (Some(Kind::NotFound), Some(Kind::Empty), Some(Kind::Empty)));
}

/// Resolves nothing, or everything to loopback.
#[derive(Debug)]
struct Resolver(bool);

impl Resolve for Resolver {
    fn resolve(&self, _: String) -> Pin<Box<dyn Future<Output = std::io::Result<Vec<IpAddr>>> + Send>> {
        let alive = self.0;
        Box::pin(async move {
            let dead = || std::io::Error::other("server misbehaving");
            if alive { Ok(vec![IpAddr::V4(Ipv4Addr::LOCALHOST)]) } else { Err(dead()) }
        })
    }
}

#[tokio::test]
async fn a_name_that_does_not_resolve_and_a_port_that_is_closed_are_told_apart() {
    let server = S3Server::start().await;
    let endpoint = format!("http://s3.example:{}", server.address.port());
    for (alive, kind) in [(false, Some(Kind::Resolve)), (true, None)] {
        let settings = Settings { resolver: Arc::new(Resolver(alive)), ..settings() };
        let store = open(&S3Server::url(), &S3Server::credentials(&endpoint), &settings).expect("a target").store;
        store.put("there", Content::from(vec![1])).await.err();
        assert_eq!(failures(&store).await, [kind; 6]);
    }
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let closed = format!("http://{}", free.local_addr().expect("bound"));
    drop(free);
    let store = open(&S3Server::url(), &S3Server::credentials(&closed), &settings()).expect("a target").store;
    assert_eq!(failures(&store).await, [Some(Kind::Connect); 6]);
    // TLS that is none.
    let no_tls = server.endpoint().replace("http:", "https:");
    let store = open(&S3Server::url(), &S3Server::credentials(&no_tls), &settings()).expect("a target").store;
    assert_eq!(store.head("there").await.expect_err("no TLS").kind(), Kind::Connect);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_goes_there_and_comes_back_and_goes() {
    let server = S3Server::start().await;
    let store = store(&server);
    let volume = Volume::new(16 * MIB);
    (0..8).for_each(|block| volume.write(block * BLOCK, block));
    let snapshot = volume.snapshot("snap-1");
    let request = BackupRequest::new("test", "vol-1", "backup-1", "snap-1");
    let outcome = back_up(&store, &snapshot, request).await;
    assert!(matches!(outcome, Outcome::Complete { .. }), "{outcome:?}");
    assert!(server.keys().iter().all(|key| key.starts_with("some/prefix/backupstore/volumes/")), "{:?}", server.keys());
    let device = TestDevice::garbage(16 * MIB);
    restore(&store, &device, "vol-1", "backup-1").await;
    assert!(device.bytes() == snapshot.bytes());
    assert_eq!(inspect::volumes(&store).await.expect("listed"), ["vol-1"]);
    let removed = remove(&store, "vol-1", Some("backup-1")).await;
    assert_eq!((removed.blocks, removed.kept), (8, 0));
    assert_eq!(server.keys().len(), 1, "the volume's file: {:?}", server.keys());
    // Requests were signed; the key itself was never sent.
    let heads = server.heads();
    assert!(heads.iter().all(|head| head.contains("AWS4-HMAC-SHA256") && !head.contains(SECRET)));
}

#[tokio::test]
async fn a_check_tells_what_a_server_can() {
    let server = S3Server::start().await;
    let credentials = S3Server::credentials(&server.endpoint());
    let report = check(&S3Server::url(), &credentials, &settings()).await.expect("a target");
    assert!(report.is_good() && report.conditional_put == Some(true), "{report:?}");
    assert!(report.skew_seconds.is_some_and(|skew| skew.abs() < 60), "{report:?}");
    server.set(Mode::Unconditional);
    let report = check(&S3Server::url(), &credentials, &settings()).await.expect("a target");
    assert!(report.is_good() && report.conditional_put == Some(false), "{report:?}");
    server.set(Mode::Ahead);
    let report = check(&S3Server::url(), &credentials, &settings()).await.expect("a target");
    assert!(report.skew_seconds.is_some_and(|skew| (3500..3700).contains(&skew)), "{report:?}");
    assert_eq!(server.keys(), [""; 0], "nothing is left");
    server.set(Mode::Status(403, "<Error><Code>AccessDenied</Code></Error>"));
    let report = check(&S3Server::url(), &credentials, &settings()).await.expect("a target");
    let (last, failed) = report.steps.last().expect("steps");
    assert_eq!((*last, failed.as_ref().expect_err("refused").kind()), (Step::List, Kind::Auth), "{report:?}");
    let printed = format!("{report:?} {credentials:?}");
    assert!(!printed.contains(SECRET), "{printed}");
    let dead = Settings { resolver: Arc::new(Resolver(false)), ..settings() };
    let report = check(&S3Server::url(), &S3Server::credentials("http://s3.example"), &dead).await.expect("a target");
    assert_eq!(report.steps.len(), 1);
    assert!(matches!(&report.steps[0], (Step::Resolve, Err(error)) if error.kind() == Kind::Resolve), "{report:?}");
}
