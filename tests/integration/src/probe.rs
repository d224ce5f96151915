//! A probe: one GET a connection, as kubelet or Prometheus does it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use anyhow::{Context, ensure};

use crate::{PATIENCE, POLL};

/// An answer over HTTP.
#[derive(Clone, Debug)]
pub struct Page {
    /// The status code.
    pub status: u16,
    /// What follows the headers.
    pub body: String,
}

/// Asks for a page.
pub fn probe(address: SocketAddr, path: &str) -> anyhow::Result<Page> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("no answer: {answer}"))?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok(Page { status: status.with_context(|| format!("no status: {head}"))?, body: body.to_owned() })
}

/// Asks until the page is as wanted.
pub fn probe_until(address: SocketAddr, path: &str, wanted: impl Fn(&Page) -> bool) -> anyhow::Result<Page> {
    let limit = Instant::now() + PATIENCE;
    loop {
        let page = probe(address, path)?;
        if wanted(&page) {
            return Ok(page);
        }
        ensure!(Instant::now() < limit, "{path} stays {page:?}");
        std::thread::sleep(POLL);
    }
}
