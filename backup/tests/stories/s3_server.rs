//! A small S3 server on loopback that misbehaves as told. It checks no signatures: `docs/backup.md` says what is tested against a real one.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use backup::format::time;
use backup::target::{Credentials, TargetUrl};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// How it answers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Mode {
    Well,
    /// Every answer has this status and body.
    Status(u16, &'static str),
    /// Connections are closed instead of an answer.
    Drop,
    /// Bodies end after half of what was announced.
    Truncate,
    /// Nothing is answered.
    Hang,
    /// Everything is well, and a page of some portal.
    Nonsense,
    /// Objects are replaced that should not be.
    Unconditional,
    /// The clock is an hour ahead.
    Ahead,
}

#[derive(Debug)]
struct State {
    objects: BTreeMap<String, (Vec<u8>, SystemTime)>,
    mode: Mode,
    /// What was asked, with headers.
    heads: Vec<String>,
}

/// The server; it ends with its runtime.
#[derive(Debug)]
pub(crate) struct S3Server {
    pub(crate) address: SocketAddr,
    state: Arc<Mutex<State>>,
}

/// A key that must never be seen in any text.
pub(crate) const SECRET: &str = "never-to-be-printed-0123456789abcdef";

/// Objects of a page of a listing: few, so that there are pages.
const PAGE: usize = 3;

impl S3Server {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound");
        let state = State { objects: BTreeMap::new(), mode: Mode::Well, heads: Vec::new() };
        let state = Arc::new(Mutex::new(state));
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&shared)));
            }
        });
        Self { address, state }
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.state.lock().expect("no panic").mode = mode;
    }

    pub(crate) fn keys(&self) -> Vec<String> {
        self.state.lock().expect("no panic").objects.keys().cloned().collect()
    }

    pub(crate) fn heads(&self) -> Vec<String> {
        self.state.lock().expect("no panic").heads.clone()
    }

    pub(crate) fn url() -> TargetUrl {
        "s3://bucket@us-east-1/some/prefix/".parse().expect("a URL")
    }

    pub(crate) fn credentials(endpoint: &str) -> Credentials {
        let pairs = [("AWS_ACCESS_KEY_ID", "an-id"), ("AWS_SECRET_ACCESS_KEY", SECRET), ("AWS_ENDPOINTS", endpoint)];
        Credentials::new(pairs.map(|(key, value)| (key.to_owned(), value.to_owned())))
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }
}

struct Request {
    method: String,
    key: String,
    query: BTreeMap<String, String>,
    if_none_match: bool,
    body: Vec<u8>,
}

struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Answer {
    fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into() }
    }
}

async fn serve(stream: TcpStream, state: Arc<Mutex<State>>) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let (request, head) = read_request(&mut stream).await?;
        let mode = {
            let mut state = state.lock().expect("no panic");
            state.heads.push(head);
            state.mode.clone()
        };
        let answer = match mode {
            Mode::Drop => return None,
            Mode::Hang => std::future::pending().await,
            Mode::Status(status, text) => Answer::new(status, text),
            Mode::Nonsense => Answer::new(200, "<html>Please log in</html>"),
            _ => answer(&request, &mut state.lock().expect("no panic")),
        };
        let date = SystemTime::now() + std::time::Duration::from_secs(if mode == Mode::Ahead { 3600 } else { 0 });
        let mut head = format!("HTTP/1.1 {} x\r\ncontent-length: {}\r\n", answer.status, answer.body.len());
        head.push_str(&format!("date: {}\r\n", httpdate::fmt_http_date(date)));
        answer.headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
        stream.write_all(format!("{head}\r\n").as_bytes()).await.ok()?;
        if request.method == "HEAD" {
            continue;
        }
        let length = if mode == Mode::Truncate { answer.body.len() / 2 } else { answer.body.len() };
        stream.write_all(&answer.body[..length]).await.ok()?;
        stream.flush().await.ok()?;
        if mode == Mode::Truncate {
            return None;
        }
    }
}

async fn read_request(stream: &mut BufReader<TcpStream>) -> Option<(Request, String)> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).await.ok()? == 0 {
            return None;
        }
    }
    let mut words = head.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let query = pairs.map(|(key, value)| (key.to_owned(), decoded(value))).collect();
    let key = decoded(path).trim_start_matches("/bucket").trim_start_matches('/').to_owned();
    let header = |name: &str| {
        head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix(name).map(|value| value.trim().to_owned()))
    };
    let length = header("content-length:").and_then(|length| length.parse().ok()).unwrap_or(0);
    let if_none_match = header("if-none-match:").is_some();
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some((Request { method, key, query, if_none_match, body }, head))
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()).filter(|_| *first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).expect("text")
}

fn answer(request: &Request, state: &mut State) -> Answer {
    let not_found = || Answer::new(404, "<Error><Code>NoSuchKey</Code></Error>");
    match request.method.as_str() {
        "GET" if request.key.is_empty() => Answer::new(200, listing(request, state)),
        "GET" | "HEAD" => state.objects.get(&request.key).map_or_else(not_found, |(body, modified)| {
            let mut answer = Answer::new(200, body.clone());
            answer.headers.push(("last-modified", httpdate::fmt_http_date(*modified)));
            answer.headers.push(("etag", "\"x\"".to_owned()));
            answer
        }),
        "PUT" => {
            let exists = state.objects.contains_key(&request.key);
            if exists && request.if_none_match && state.mode != Mode::Unconditional {
                return Answer::new(412, "<Error><Code>PreconditionFailed</Code></Error>");
            }
            state.objects.insert(request.key.clone(), (request.body.clone(), SystemTime::now()));
            let mut answer = Answer::new(200, "");
            answer.headers.push(("etag", "\"x\"".to_owned()));
            answer
        }
        "DELETE" => {
            state.objects.remove(&request.key);
            Answer::new(204, "")
        }
        _ => Answer::new(501, "<Error><Code>NotImplemented</Code></Error>"),
    }
}

/// ListObjectsV2.
fn listing(request: &Request, state: &State) -> String {
    let empty = String::new();
    let prefix = request.query.get("prefix").unwrap_or(&empty);
    let after = request.query.get("continuation-token").unwrap_or(&empty);
    let delimiter = request.query.contains_key("delimiter");
    let mut entries = BTreeMap::new();
    for (key, (body, modified)) in state.objects.iter().filter(|(key, _)| key.starts_with(prefix)) {
        match key[prefix.len()..].split_once('/').filter(|_| delimiter) {
            Some((folder, _)) => {
                let name = format!("{prefix}{folder}/");
                entries.insert(name.clone(), format!("<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>"));
            }
            None => {
                let (time, size) = (time::format(*modified), body.len());
                let entry = format!(
                    "<Contents><Key>{key}</Key><LastModified>{time}</LastModified><ETag>&quot;x&quot;</ETag><Size>{size}</Size></Contents>"
                );
                entries.insert(key.clone(), entry);
            }
        }
    }
    let rest: Vec<_> = entries.iter().filter(|(name, _)| *name > after).collect();
    let more = rest.len() > PAGE;
    let page: String = rest.iter().take(PAGE).map(|(_, entry)| entry.as_str()).collect();
    let next = rest
        .get(PAGE - 1)
        .filter(|_| more)
        .map_or(String::new(), |(name, _)| format!("<NextContinuationToken>{name}</NextContinuationToken>"));
    format!("<ListBucketResult><Name>bucket</Name><IsTruncated>{more}</IsTruncated>{page}{next}</ListBucketResult>")
}
