//! A stream, and what is written to it.

use std::time::Duration;

use iscsi_target_protocol::HeaderSink;
use reactor::{TcpStream, timeout};

/// How long the last words of a connection may take to leave.
const FAREWELL_LIMIT: Duration = Duration::from_secs(1);

/// The connection has come to its end; whatever there was to say is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ended;

/// Writes headers to a stream's output.
pub(crate) struct Output<'a>(pub(crate) &'a TcpStream);

impl HeaderSink for Output<'_> {
    #[inline]
    fn push(&mut self, bytes: &[u8]) {
        self.0.push_copy(bytes);
    }
}

/// Sends what is queued, for a while, then closes.
pub(crate) async fn farewell(stream: &TcpStream) {
    stream.flush();
    // An error or a slow host changes nothing: the connection is closed either way.
    let _ = timeout(FAREWELL_LIMIT, stream.drained(0)).await;
    stream.close();
}
