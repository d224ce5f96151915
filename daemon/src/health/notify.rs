//! What systemd is told (sd_notify(3)): lines to a socket whose name is in the environment.

use std::env;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Where to tell it, if anybody wants to know.
#[derive(Debug)]
pub(super) struct Notifier {
    socket: Option<(UnixDatagram, SocketAddr)>,
    /// How often it wants to hear that the daemon is live.
    pub(super) watchdog: Option<Duration>,
}

impl Notifier {
    /// As the environment says.
    pub(super) fn from_environment() -> io::Result<Self> {
        let own = env::var("WATCHDOG_PID").map_or(true, |pid| pid == std::process::id().to_string());
        let limit = env::var("WATCHDOG_USEC").ok().filter(|_| own).and_then(|limit| limit.parse().ok());
        let watchdog = limit.filter(|limit| *limit > 0).map(Duration::from_micros);
        let Some(name) = env::var_os("NOTIFY_SOCKET") else { return Ok(Self { socket: None, watchdog }) };
        let address = match name.as_bytes() {
            [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest),
            path => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path)),
        }?;
        let socket = UnixDatagram::unbound()?;
        // Nobody who is slow to listen holds this thread up.
        socket.set_nonblocking(true)?;
        Ok(Self { socket: Some((socket, address)), watchdog })
    }

    /// Tells it. That nobody listens is no reason for anything else.
    pub(super) fn tell(&self, line: &str) {
        if let Some((socket, address)) = &self.socket {
            let _ = socket.send_to_addr(line.as_bytes(), address);
        }
    }
}
