//! A Ceph with its object gateway, as Debian has it: one monitor, one store of objects in memory, one gateway, all on loopback and in one folder.

#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use object_store::ClientOptions;
use object_store::aws::AmazonS3Builder;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
};
use object_store::signer::Signer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Programs that it takes, of the Debian packages `ceph-mon`, `ceph-osd` and `radosgw`.
const PROGRAMS: [&str; 6] = ["monmaptool", "ceph-mon", "ceph", "ceph-osd", "radosgw", "radosgw-admin"];

/// It takes two seconds on an idle machine.
const LIMIT: Duration = Duration::from_secs(120);

const ID: &str = "ashlar-test-id";
/// The key that is right.
pub const SECRET: &str = "ashlar-test-secret";
const BUCKET: &str = "backups";

/// Daemons of Ceph, which end with this value or with the thread that started them.
#[derive(Debug)]
pub struct Ceph {
    folder: tempfile::TempDir,
    port: u16,
    monitor: Child,
    objects: Child,
    gateway: Mutex<Child>,
}

impl Ceph {
    /// Starts it with an empty bucket; None if it is not installed. The calling thread must live as long as this does.
    pub async fn start() -> Option<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let is_there = |program: &&&str| std::env::split_paths(&path).any(|folder| folder.join(program).is_file());
        if let Some(missing) = PROGRAMS.iter().find(|program| !is_there(program)) {
            eprintln!("left out: {missing} is not installed");
            return None;
        }
        let folder = folder();
        let (monitor_port, port) = (free_port(), free_port());
        fs::write(folder.path().join("ceph.conf"), configuration(folder.path(), monitor_port, port)).expect("written");
        fs::create_dir(folder.path().join("mon")).expect("made");
        fs::create_dir(folder.path().join("osd")).expect("made");
        let (id, address) = (uuid::Uuid::new_v4().to_string(), format!("[v2:127.0.0.1:{monitor_port}]"));
        run(folder.path(), "monmaptool", &["--create", "--fsid", &id, "--addv", "a", &address, "monmap"]);
        run(folder.path(), "ceph-mon", &["--mkfs", "-i", "a", "--fsid", &id, "--monmap", "monmap"]);
        let monitor = start(folder.path(), "ceph-mon", &["-f", "-i", "a"]);
        let objects_id = uuid::Uuid::new_v4().to_string();
        run(folder.path(), "ceph-osd", &["--mkfs", "-i", "0", "--osd-uuid", &objects_id]);
        run(folder.path(), "ceph", &["osd", "new", &objects_id]);
        let objects = start(folder.path(), "ceph-osd", &["-f", "-i", "0"]);
        let gateway = Mutex::new(start(folder.path(), "radosgw", &["-f", "-n", "client.gateway"]));
        let ceph = Self { folder, port, monitor, objects, gateway };
        ceph.wait();
        let user = ["user", "create", "--uid=test", "--display-name=test", "--access-key", ID, "--secret-key", SECRET];
        run(ceph.folder.path(), "radosgw-admin", &user);
        ceph.make_bucket().await;
        Some(ceph)
    }

    /// Where backups go: a place in the bucket below which nothing is.
    pub fn url() -> String {
        format!("s3://{BUCKET}@us-east-1/some/prefix/")
    }

    /// The keys to it and its address, by the names that backup targets have for them.
    pub fn credentials(&self, secret: &str) -> [(String, String); 3] {
        let pairs = [("AWS_ACCESS_KEY_ID", ID), ("AWS_SECRET_ACCESS_KEY", secret), ("AWS_ENDPOINTS", &self.endpoint())];
        pairs.map(|(key, value)| (key.to_owned(), value.to_owned()))
    }

    fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Kills the gateway. What it has answered is stored.
    pub fn kill_gateway(&self) {
        let mut gateway = self.gateway.lock().expect("no panic");
        gateway.kill().and_then(|()| gateway.wait()).expect("killed");
    }

    /// Starts it again.
    pub fn start_gateway(&self) {
        *self.gateway.lock().expect("no panic") = start(self.folder.path(), "radosgw", &["-f", "-n", "client.gateway"]);
        self.wait();
    }

    /// Waits until the gateway listens.
    fn wait(&self) {
        let begin = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_err() {
            let ended = self.gateway.lock().expect("no panic").try_wait().expect("a child");
            assert!(ended.is_none() && begin.elapsed() < LIMIT, "radosgw: {ended:?}\n{}", self.logs());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What its programs said last.
    fn logs(&self) -> String {
        let said = ["ceph-mon", "ceph-osd", "radosgw"].map(|program| {
            let text = fs::read_to_string(self.folder.path().join(format!("{program}.said"))).unwrap_or_default();
            format!("{program}: {}", &text[text.len().saturating_sub(2000)..])
        });
        said.join("\n")
    }

    /// Buckets are made by people, and not by us: with a request that is signed in its address.
    async fn make_bucket(&self) {
        let builder = AmazonS3Builder::new().with_endpoint(self.endpoint()).with_allow_http(true);
        let builder = builder.with_access_key_id(ID).with_secret_access_key(SECRET);
        let builder = builder.with_region("us-east-1").with_bucket_name(BUCKET).with_http_connector(Nowhere);
        let client = builder.build().expect("a client");
        let (nothing, minute) = (object_store::path::Path::default(), Duration::from_secs(60));
        let url = client.signed_url(http::Method::PUT, &nothing, minute).await.expect("signed");
        let path = url.as_str().strip_prefix(&self.endpoint()).expect("our endpoint").to_owned();
        let mut connection = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await.expect("listens");
        let host = format!("127.0.0.1:{}", self.port);
        let request = format!("PUT {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        connection.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await.expect("answered");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

impl Drop for Ceph {
    fn drop(&mut self) {
        let gateway = self.gateway.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        for child in [gateway, &mut self.objects, &mut self.monitor] {
            // One that has ended already is as good.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A connection to nowhere, for a client that only signs.
#[derive(Debug)]
struct Nowhere;

impl HttpConnector for Nowhere {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Self))
    }
}

#[async_trait]
impl HttpService for Nowhere {
    async fn call(&self, _: HttpRequest) -> Result<HttpResponse, HttpError> {
        Err(HttpError::new(HttpErrorKind::Connect, std::io::Error::other("nothing is sent")))
    }
}

/// Everything in one folder, for one copy of each object, without keys of Ceph's own, and without waiting for more changes that could be
/// settled together.
fn configuration(folder: &Path, monitor_port: u16, port: u16) -> String {
    let folder = folder.display();
    format!(
        "[global]
mon host = v2:127.0.0.1:{monitor_port}
mon initial members = a
auth cluster required = none
auth service required = none
auth client required = none
ms mon client mode = crc
ms bind msgr1 = false
public addr = 127.0.0.1
cluster addr = 127.0.0.1
run dir = {folder}
admin socket =
pid file =
crash dir = {folder}
keyring = {folder}/keyring
log to stderr = true
log file =
mon cluster log to file = false
mon data = {folder}/mon
mon data avail crit = 1
mon allow pool size one = true
paxos propose interval = 0.02
paxos min wait = 0.01
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = 1073741824
osd crush initial weight = 1
osd crush chooseleaf type = 0
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pg autoscale mode = off
rgw frontends = beast endpoint=127.0.0.1:{port}
rgw data = {folder}
rgw run sync thread = false
"
    )
}

/// A folder that goes with its value, in memory where there is such a place.
fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("a folder")
}

/// A port that is free now.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback");
    listener.local_addr().expect("bound").port()
}

/// A program of Ceph's, which does not outlive the thread that starts it.
fn program(folder: &Path, program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", program]).args(arguments).current_dir(folder);
    command.env("CEPH_CONF", folder.join("ceph.conf")).stdin(Stdio::null());
    command
}

fn start(folder: &Path, name: &str, arguments: &[&str]) -> Child {
    let said = File::create(folder.join(format!("{name}.said"))).expect("made");
    let mut command = program(folder, name, arguments);
    command.stdout(said.try_clone().expect("a file")).stderr(said).spawn().expect("setpriv")
}

/// Runs a program to its end.
fn run(folder: &Path, name: &str, arguments: &[&str]) {
    let said = folder.join(format!("{name}.said"));
    let mut child = start(folder, name, arguments);
    let begin = Instant::now();
    let status = loop {
        match child.try_wait().expect("a child") {
            Some(status) => break status,
            None if begin.elapsed() > LIMIT => {
                child.kill().and_then(|()| child.wait()).expect("killed");
                panic!("{name}: not done in {LIMIT:?}\n{}", fs::read_to_string(said).unwrap_or_default());
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    assert!(status.success(), "{name}: {status}\n{}", fs::read_to_string(said).unwrap_or_default());
}
