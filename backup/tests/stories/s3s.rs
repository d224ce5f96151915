//! S3 as a second server speaks it: `s3s-fs`, which keeps objects in files. Only where `ASHLAR_S3S_FS` names its program, as
//! `cargo xtask conformance s3 --long` does.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use backup::target::Credentials;
use ceph::free_port;

use crate::radosgw::{LIMIT, of_any_server};

const ID: &str = "ashlar-test-id";
const SECRET: &str = "ashlar-test-secret";
const BUCKET: &str = "backups";

/// Until it listens.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stories_against_s3s_fs() {
    let Some(program) = std::env::var_os("ASHLAR_S3S_FS") else { return };
    let server = Server::start(&program);
    let url = format!("s3://{BUCKET}@us-east-1/some/prefix/").parse().expect("a target");
    tokio::time::timeout(LIMIT, of_any_server(&url, &server.credentials())).await.expect("an end");
}

/// The server, which ends with this value or with the thread that started it.
struct Server {
    folder: tempfile::TempDir,
    port: u16,
    child: Child,
}

impl Server {
    /// Starts it with an empty bucket: a folder.
    fn start(program: &OsStr) -> Self {
        let (folder, port) = (crate::folder(), free_port());
        fs::create_dir_all(folder.path().join("root").join(BUCKET)).expect("made");
        let said = File::create(folder.path().join("said")).expect("made");
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(program).args(["--host", "127.0.0.1", "--port", &port.to_string()]);
        command.args(["--access-key", ID, "--secret-key", SECRET]).arg(folder.path().join("root"));
        command.stdin(Stdio::null()).stdout(said.try_clone().expect("a file")).stderr(said);
        let mut server = Self { folder, port, child: command.spawn().expect("setpriv") };
        server.wait();
        server
    }

    fn wait(&mut self) {
        let begin = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_err() {
            let ended = self.child.try_wait().expect("a child");
            let said = fs::read_to_string(self.folder.path().join("said")).unwrap_or_default();
            assert!(ended.is_none() && begin.elapsed() < PATIENCE, "{ended:?}\n{said}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn credentials(&self) -> Credentials {
        let endpoint = format!("http://127.0.0.1:{}", self.port);
        let pairs = [("AWS_ACCESS_KEY_ID", ID), ("AWS_SECRET_ACCESS_KEY", SECRET), ("AWS_ENDPOINTS", &endpoint)];
        Credentials::new(pairs.map(|(key, value)| (key.to_owned(), value.to_owned())))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that has ended already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
