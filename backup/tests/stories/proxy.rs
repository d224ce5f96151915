//! A network that misbehaves between us and a server of S3: it drops, delays, cuts short, answers in the server's place, and damages what comes.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backup::Kind;
use backup::backoff::Pauses;
use backup::create::{BackupJob, BackupRequest, Options, Outcome};
use backup::progress::Phase;
use backup::restore::{self, RestoreJob, RestoreRequest};
use backup::target::{Credentials, Resolve, Settings, Store, open};
use futures_util::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::s3_server::S3Server;
use crate::volume::{TestDevice, Volume};
use crate::{BLOCK, MIB, Random, check};

const SIZE: u64 = 16 * MIB;

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// The connection ends before the server gets it.
    Dropped,
    /// The server does it, and the answer is lost.
    Unheard,
    /// It takes a while.
    Delayed,
    /// Nothing comes for longer than anybody waits.
    Silent,
    /// Half of the answer comes.
    CutShort,
    /// Somebody else answers, with this status.
    Answered(u16),
    /// What is read has another byte in its middle.
    Damaged,
    /// What is read is a page of a portal.
    Portal,
}

const FAULTS: [Fault; 10] = [
    Fault::Dropped,
    Fault::Unheard,
    Fault::Delayed,
    Fault::Silent,
    Fault::CutShort,
    Fault::Answered(500),
    Fault::Answered(503),
    Fault::Answered(429),
    Fault::Damaged,
    Fault::Portal,
];

#[derive(Debug)]
struct Plan {
    random: Random,
    /// One request in so many; 0 is none.
    one_in: u64,
    /// All requests, until this is taken back.
    always: Option<Fault>,
    /// What was damaged last is not damaged again: three times in a row would be damage of the store.
    damaged: String,
    seen: Vec<Fault>,
}

impl Plan {
    fn fault(&mut self, head: &str) -> Option<Fault> {
        let fault = self.always.or_else(|| {
            let is_one = self.one_in > 0 && self.random.below(self.one_in) == 0;
            is_one.then(|| FAULTS[self.random.below(FAULTS.len() as u64) as usize])
        })?;
        let line = head.lines().next().unwrap_or_default();
        if matches!(fault, Fault::Damaged | Fault::Portal) {
            let is_block = line.contains(".blk");
            // Of the files only blocks say whether they are what was stored, and only a portal's page is no listing.
            if !line.starts_with("GET ") || self.damaged == line || (fault == Fault::Damaged) != is_block {
                return None;
            }
            line.clone_into(&mut self.damaged);
        }
        self.seen.push(fault);
        Some(fault)
    }
}

/// It ends with its runtime.
struct Proxy {
    address: SocketAddr,
    plan: Arc<Mutex<Plan>>,
}

impl Proxy {
    async fn start(server: SocketAddr, seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound");
        let random = Random::new(seed);
        let plan = Plan { random, one_in: 0, always: None, damaged: String::new(), seen: Vec::new() };
        let plan = Arc::new(Mutex::new(plan));
        let shared = Arc::clone(&plan);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                // A connection that breaks is what this is about.
                let shared = Arc::clone(&shared);
                tokio::spawn(async move { pass(client, server, &shared).await });
            }
        });
        Self { address, plan }
    }

    fn with<T>(&self, what: impl FnOnce(&mut Plan) -> T) -> T {
        what(&mut self.plan.lock().expect("no panic"))
    }

    fn store(&self) -> Arc<dyn Store> {
        open(&S3Server::url(), &self.credentials(), &settings()).expect("a target").store
    }

    fn credentials(&self) -> Credentials {
        S3Server::credentials(&format!("http://{}", self.address))
    }
}

/// Limits that a story can wait for.
fn settings() -> Settings {
    let (connect_timeout, answer_timeout) = (Duration::from_secs(5), Duration::from_millis(500));
    Settings { connect_timeout, answer_timeout, ..Settings::default() }
}

fn options() -> Options {
    let pauses = Pauses { first: Duration::from_millis(20), longest: Duration::from_millis(200) };
    Options { pauses, ..Options::default() }
}

/// One request of one connection, and its answer.
async fn pass(mut client: TcpStream, server: SocketAddr, plan: &Mutex<Plan>) -> std::io::Result<()> {
    let Some((head, body)) = read_request(&mut client).await? else { return Ok(()) };
    let fault = plan.lock().expect("no panic").fault(&head);
    match fault {
        Some(Fault::Dropped) => return Ok(()),
        Some(Fault::Silent) => {
            tokio::time::sleep(Duration::from_secs(1)).await;
            return Ok(());
        }
        Some(Fault::Delayed) => tokio::time::sleep(Duration::from_millis(200)).await,
        Some(Fault::Answered(status)) => return client.write_all(&own_answer(status, "")).await,
        Some(Fault::Portal) => return client.write_all(&own_answer(200, "<html>Welcome!</html>")).await,
        _ => {}
    }
    let mut upstream = TcpStream::connect(server).await?;
    upstream.write_all(head.as_bytes()).await?;
    upstream.write_all(&body).await?;
    // Nothing more is asked: the answer ends with the connection.
    upstream.shutdown().await?;
    let mut answer = Vec::new();
    upstream.read_to_end(&mut answer).await?;
    let begin = answer.windows(4).position(|end| end == b"\r\n\r\n").map_or(answer.len(), |at| at + 4);
    match fault {
        Some(Fault::Unheard) => return Ok(()),
        Some(Fault::CutShort) => answer.truncate(begin + (answer.len() - begin) / 2),
        Some(Fault::Damaged) if begin < answer.len() => {
            let middle = begin.midpoint(answer.len());
            answer[middle] ^= 0x10;
        }
        _ => {}
    }
    client.write_all(&answer).await?;
    client.shutdown().await
}

fn own_answer(status: u16, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status} Proxy\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}").into_bytes()
}

/// The head of a request, with its end, and its body.
async fn read_request(client: &mut TcpStream) -> std::io::Result<Option<(String, Vec<u8>)>> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|end| end == b"\r\n\r\n") {
            break at + 4;
        }
        if client.read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
    };
    let mut body = bytes.split_off(end);
    let head = String::from_utf8_lossy(&bytes).into_owned();
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    let length = length.unwrap_or(0);
    while body.len() < length {
        if client.read_buf(&mut body).await? == 0 {
            return Ok(None);
        }
    }
    Ok(Some((head, body)))
}

fn volume() -> Arc<Volume> {
    let volume = Volume::new(SIZE);
    (0..8).for_each(|block| volume.write(block * BLOCK, block));
    volume
}

async fn back_up(store: &Arc<dyn Store>, snapshot: &crate::volume::Snapshot) -> Outcome {
    let folder = crate::folder();
    let request = BackupRequest::new("test", "vol-1", "backup-1", "snap-1");
    let mut job = BackupJob::create(folder.path(), request, options()).expect("a job");
    job.run(store, snapshot).await.expect("its record")
}

async fn restore(store: &Arc<dyn Store>, device: &TestDevice) -> restore::Outcome {
    let folder = crate::folder();
    let request = RestoreRequest::new("test", "vol-1", "backup-1", "device");
    let mut job = RestoreJob::create(folder.path(), request, options()).expect("a job");
    job.run(store, device).await.expect("its record")
}

/// Longer than it takes on a machine that does other things, too.
async fn in_real_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(300), future).await.expect("an end")
}

async fn there_and_back(seed: u64) -> usize {
    let server = S3Server::start().await;
    let proxy = Proxy::start(server.address, seed).await;
    let (store, snapshot) = (proxy.store(), volume().snapshot("snap-1"));
    proxy.with(|plan| plan.one_in = 6);
    let outcome = in_real_time(back_up(&store, &snapshot)).await;
    assert!(matches!(outcome, Outcome::Complete { .. }), "seed {seed}: {outcome:?}");
    let device = TestDevice::garbage(SIZE);
    let outcome = in_real_time(restore(&store, &device)).await;
    assert!(matches!(outcome, restore::Outcome::Complete { .. }), "seed {seed}: {outcome:?}");
    assert!(device.bytes() == snapshot.bytes(), "seed {seed}");
    proxy.with(|plan| plan.one_in = 0);
    assert_eq!(in_real_time(check(&store, "vol-1", "backup-1")).await.bad, 0, "seed {seed}");
    proxy.with(|plan| plan.seen.len())
}

/// Both at once: they wait most of the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_misbehaves_is_waited_out() {
    tokio::join!(
        whatever_the_network_does_a_volume_goes_there_and_comes_back(),
        each_fault_is_waited_out_and_403_ends_the_job()
    );
}

async fn whatever_the_network_does_a_volume_goes_there_and_comes_back() {
    let seeds = if crate::long() { 100 } else { 2 };
    let stories = futures_util::stream::iter(0..seeds).map(there_and_back).buffer_unordered(4);
    let faults: usize = stories.collect::<Vec<_>>().await.into_iter().sum();
    assert!(faults > 0, "nothing went wrong");
}

async fn each_fault_is_waited_out_and_403_ends_the_job() {
    // The other three are none when they come again and again: what is late comes, and what is read is right the next time.
    let passing = [Fault::Delayed, Fault::Damaged, Fault::Portal];
    let stories = FAULTS.into_iter().filter(|fault| !passing.contains(fault));
    let stories = stories.map(|fault| async move {
        let server = S3Server::start().await;
        let proxy = Proxy::start(server.address, 1).await;
        proxy.with(|plan| plan.always = Some(fault));
        let (folder, snapshot) = (crate::folder(), volume().snapshot("snap-1"));
        let request = BackupRequest::new("test", "vol-1", "backup-1", "snap-1");
        let mut job = BackupJob::create(folder.path(), request, options()).expect("a job");
        let mut progress = job.progress().subscribe();
        let store = proxy.store();
        let healed = async {
            let waits =
                progress.wait_for(|state| matches!(state.phase, Phase::Waiting(_))).await.expect("told").clone();
            let Phase::Waiting(waiting) = waits.phase else { unreachable!() };
            assert!(!waiting.kind.is_terminal(), "{fault:?}: {waiting:?}");
            proxy.with(|plan| plan.always = None);
        };
        let (outcome, ()) = in_real_time(async { tokio::join!(job.run(&store, &snapshot), healed) }).await;
        assert!(matches!(outcome, Ok(Outcome::Complete { .. })), "{fault:?}: {outcome:?}");
    });
    futures_util::future::join_all(stories).await;

    let server = S3Server::start().await;
    let proxy = Proxy::start(server.address, 1).await;
    proxy.with(|plan| plan.always = Some(Fault::Answered(403)));
    let (store, snapshot) = (proxy.store(), volume().snapshot("snap-1"));
    let outcome = in_real_time(back_up(&store, &snapshot)).await;
    assert!(matches!(outcome, Outcome::Failed { kind: Kind::Auth, .. }), "{outcome:?}");
    proxy.with(|plan| plan.always = None);
    let outcome = in_real_time(back_up(&store, &snapshot)).await;
    assert!(matches!(outcome, Outcome::Complete { .. }), "{outcome:?}");
}

/// A resolver that is dead at first.
#[derive(Debug)]
struct Mortal(Arc<Mutex<bool>>);

impl Resolve for Mortal {
    fn resolve(
        &self,
        _: String,
    ) -> std::pin::Pin<Box<dyn Future<Output = std::io::Result<Vec<std::net::IpAddr>>> + Send>> {
        let dead = *self.0.lock().expect("no panic");
        Box::pin(async move {
            match dead {
                true => Err(std::io::Error::other("server misbehaving")),
                false => Ok(vec![std::net::Ipv4Addr::LOCALHOST.into()]),
            }
        })
    }
}

/// Half an hour without a resolver, in virtual time, through the whole of the client; then time is real, since a socket takes part.
#[tokio::test(start_paused = true)]
async fn a_resolver_that_is_dead_for_half_an_hour_faults_nothing() {
    let server = S3Server::start().await;
    let dead = Arc::new(Mutex::new(true));
    let settings = Settings { resolver: Arc::new(Mortal(Arc::clone(&dead))), ..Settings::default() };
    let endpoint = format!("http://s3.example:{}", server.address.port());
    let store = open(&S3Server::url(), &S3Server::credentials(&endpoint), &settings).expect("a target").store;
    let (folder, snapshot) = (crate::folder(), volume().snapshot("snap-1"));
    let request = BackupRequest::new("test", "vol-1", "backup-1", "snap-1");
    // The longest pause is short, so that nobody waits minutes of real time.
    let pauses = Pauses { longest: Duration::from_secs(2), ..Pauses::default() };
    let mut job = BackupJob::create(folder.path(), request, Options { pauses, ..Options::default() }).expect("a job");
    let mut progress = job.progress().subscribe();
    let begin = tokio::time::Instant::now();
    let alive = async {
        tokio::time::sleep(Duration::from_secs(1800)).await;
        let waits = progress.wait_for(|state| matches!(state.phase, Phase::Waiting(_))).await.expect("told").clone();
        let Phase::Waiting(waiting) = waits.phase else { unreachable!() };
        assert_eq!(waiting.kind, Kind::Resolve, "{waiting:?}");
        assert!(waiting.attempt > 100, "{waiting:?}");
        *dead.lock().expect("no panic") = false;
        tokio::time::resume();
    };
    let (outcome, ()) = tokio::join!(job.run(&store, &snapshot), alive);
    assert!(matches!(outcome, Ok(Outcome::Complete { .. })), "{outcome:?}");
    assert!(begin.elapsed() >= Duration::from_secs(1800));
    let device = TestDevice::garbage(SIZE);
    in_real_time(restore(&store, &device)).await;
    assert!(device.bytes() == snapshot.bytes());
}
