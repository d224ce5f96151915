//! As much of HTTP/1.1 as a probe needs: one GET a connection, within bounds of size, number and time.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio::time::timeout;

/// Bytes of a request line with its headers.
const LONGEST_REQUEST: usize = 4096;
/// For a request to come.
const REQUEST_LIMIT: Duration = Duration::from_secs(2);
/// For an answer to be taken.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// One more ends the oldest.
const MOST_CONNECTIONS: usize = 64;
/// When the system gives no connection, as without file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Answers requests.
pub(super) trait Site: 'static {
    /// Answers a GET of `path`.
    fn get(&self, path: &str, answer: Answer<'_>) -> impl Future<Output = io::Result<()>>;
}

/// The end of a connection that the answer goes to.
pub(super) struct Answer<'a> {
    stream: &'a TcpStream,
}

impl Answer<'_> {
    /// A whole answer of text.
    pub(super) async fn text(self, status: &str, body: &str) -> io::Result<()> {
        let length = format!("Content-Length: {}\r\n", body.len());
        self.send(&head(status, "text/plain; charset=utf-8", &length)).await?;
        self.send(body).await
    }

    /// The beginning of one that has no length known before: it ends with the connection.
    pub(super) async fn begin(&self, content_type: &str) -> io::Result<()> {
        self.send(&head("200 OK", content_type, "")).await
    }

    /// The next part of it. Others get their turn meanwhile.
    pub(super) async fn send(&self, text: &str) -> io::Result<()> {
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            self.stream.writable().await?;
            match self.stream.try_write(rest) {
                Ok(sent) => rest = &rest[sent..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        tokio::task::yield_now().await;
        Ok(())
    }
}

fn head(status: &str, content_type: &str, more: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\n{more}Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
}

/// Serves for ever. Runs in a [`tokio::task::LocalSet`].
pub(super) async fn serve(listener: TcpListener, site: Rc<impl Site>) {
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        open.retain(|connection| !connection.is_finished());
        if open.len() >= MOST_CONNECTIONS
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
        }
        let site = Rc::clone(&site);
        // An error is the client's, who is gone or too slow.
        let connection = tokio::task::spawn_local(async move { drop(converse(&stream, &*site).await) });
        open.push_back(connection.abort_handle());
    }
}

async fn converse(stream: &TcpStream, site: &impl Site) -> io::Result<()> {
    let request = timeout(REQUEST_LIMIT, receive(stream)).await??;
    let answer = Answer { stream };
    let answered = async {
        match parse(&request) {
            Request::Get(path) => site.get(path, answer).await,
            Request::Other => answer.text("405 Method Not Allowed", "only GET is served here\n").await,
            Request::Malformed => answer.text("400 Bad Request", "this is not a request that can be read\n").await,
        }
    };
    timeout(ANSWER_LIMIT, answered).await?
}

/// Request line and headers, or as much as fits.
async fn receive(stream: &TcpStream) -> io::Result<Vec<u8>> {
    let mut request = Vec::new();
    let mut chunk = [0; LONGEST_REQUEST];
    while request.len() < LONGEST_REQUEST && !is_whole(&request) {
        stream.readable().await?;
        match stream.try_read(&mut chunk[request.len()..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => request.extend_from_slice(&chunk[request.len()..request.len() + length]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(request)
}

fn is_whole(request: &[u8]) -> bool {
    request.windows(4).any(|end| end == b"\r\n\r\n")
}

#[derive(Debug, PartialEq, Eq)]
enum Request<'a> {
    /// Of a path, without what follows a question mark.
    Get(&'a str),
    Other,
    Malformed,
}

fn parse(request: &[u8]) -> Request<'_> {
    let line = request.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let Some(line) = std::str::from_utf8(line).ok().filter(|_| is_whole(request)) else { return Request::Malformed };
    let mut words = line.split(' ');
    let (Some(method), Some(target), Some(version), None) = (words.next(), words.next(), words.next(), words.next())
    else {
        return Request::Malformed;
    };
    let is_method = !method.is_empty() && method.bytes().all(|byte| byte.is_ascii_alphabetic());
    if !is_method || !target.starts_with('/') || !matches!(version, "HTTP/1.1" | "HTTP/1.0") {
        return Request::Malformed;
    }
    match method {
        "GET" => Request::Get(target.split('?').next().unwrap_or_default()),
        _ => Request::Other,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpStream};

    use super::*;

    struct Echo;

    impl Site for Echo {
        async fn get(&self, path: &str, answer: Answer<'_>) -> io::Result<()> {
            match path {
                "/long" => {
                    answer.begin("text/plain").await?;
                    for _ in 0..1000 {
                        answer.send(&"stone".repeat(2000)).await?;
                    }
                    Ok(())
                }
                path => answer.text("200 OK", path).await,
            }
        }
    }

    /// A server on a thread of its own, for the life of the test.
    fn server() -> SocketAddr {
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime, async {
                let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
                sender.send(listener.local_addr().expect("bound")).expect("the test waits");
                serve(listener, Rc::new(Echo)).await;
            });
        });
        receiver.recv().expect("served")
    }

    fn ask(address: SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).expect("connected");
        stream.write_all(request).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answered");
        answer
    }

    #[test]
    fn requests_are_read_strictly() {
        assert_eq!(parse(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"), Request::Get("/livez"));
        assert_eq!(parse(b"GET /livez?verbose HTTP/1.0\r\n\r\n"), Request::Get("/livez"));
        assert_eq!(parse(b"POST /livez HTTP/1.1\r\n\r\n"), Request::Other);
        let malformed: [&[u8]; 9] = [
            b"",
            b"\r\n\r\n",
            b"GET /livez HTTP/1.1\r\n",
            b"GET /livez HTTP/1.1 more\r\n\r\n",
            b"GET livez HTTP/1.1\r\n\r\n",
            b"GET /livez HTTP/2\r\n\r\n",
            b"GET  /livez HTTP/1.1\r\n\r\n",
            b"G\x7fT /livez HTTP/1.1\r\n\r\n",
            b"GET /\xff HTTP/1.1\r\n\r\n",
        ];
        for request in malformed {
            assert_eq!(parse(request), Request::Malformed, "{}", request.escape_ascii());
        }
    }

    #[test]
    fn a_probe_gets_its_answer() {
        let server = server();
        let answer = ask(server, b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\n/livez"), "{answer}");
        assert!(answer.contains("Content-Length: 6\r\n"), "{answer}");
        let long = ask(server, b"GET /long HTTP/1.1\r\n\r\n");
        assert_eq!(long.split("\r\n\r\n").nth(1).map(str::len), Some(10_000_000));
        assert!(ask(server, b"PUT / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405 "));
        assert!(ask(server, b"nonsense\r\n\r\n").starts_with("HTTP/1.1 400 "));
    }

    #[test]
    fn a_request_without_an_end_is_refused() {
        let server = server();
        let endless = [&b"GET / HTTP/1.1\r\n"[..], &vec![b'x'; LONGEST_REQUEST - 16]].concat();
        assert!(ask(server, &endless).starts_with("HTTP/1.1 400 "));
    }

    #[test]
    fn clients_that_say_nothing_keep_nobody_out() {
        let server = server();
        let mut silent: Vec<_> =
            (0..3 * MOST_CONNECTIONS).map(|_| TcpStream::connect(server).expect("connected")).collect();
        assert!(ask(server, b"GET /livez HTTP/1.1\r\n\r\n").ends_with("/livez"));
        // All but the last were pushed out by then.
        let is_open = |stream: &mut TcpStream| {
            stream.set_nonblocking(true).expect("ours");
            matches!(stream.read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
        };
        let open = silent.iter_mut().filter_map(|stream| is_open(stream).then_some(())).count();
        assert!(open < MOST_CONNECTIONS, "{open}");
    }
}
