//! A connection that has its queue: one task, from the answered Connect until everything is answered.
//!
//! Each turn: take what was received, pass commands on inline, answer what is done, send it all at once, wait.

mod admin;
mod io;

use std::rc::Rc;
use std::time::Duration;

use nvmf_target_protocol::HeaderSink;
use nvmf_target_protocol::target::connection::{Connection, Fault, Queue, Slot};
use nvmf_target_protocol::wire::Completion;
use reactor::{TcpStream, timeout};

use crate::association::{Association, Home};

/// Chunks taken from the socket in one turn, so that one connection does not starve the others.
const CHUNKS_PER_TURN: usize = 16;

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

/// A stream and the protocol's state on it.
pub(crate) struct Link {
    pub(crate) stream: TcpStream,
    pub(crate) protocol: Connection,
    /// Received and not given to `protocol` yet.
    pub(crate) unread: Vec<u8>,
}

impl Link {
    /// Answers the Connect that made `queue`.
    pub(crate) fn accept(&mut self, slot: Slot, queue: Queue, association: &Association) {
        self.protocol.connected(queue);
        let completion = Completion::with_result(u64::from(association.id()));
        self.protocol.respond_to_connect(slot, completion, &mut Output(&self.stream));
    }

    /// Refuses a Connect and closes.
    pub(crate) async fn refuse(&mut self, slot: Slot, completion: Completion) {
        self.protocol.respond(slot, completion, &mut Output(&self.stream));
        self.farewell().await;
    }

    /// Notes why the connection ends, and queues what there is to tell the host about it.
    pub(crate) fn fault(&self, fault: Fault) -> Ended {
        let peer = self.stream.peer_address();
        match fault {
            Fault::Protocol(error) => {
                tracing::warn!(%peer, ?error, "host broke the protocol");
                self.protocol.terminate(error, &mut Output(&self.stream));
                self.stream.flush();
            }
            Fault::TerminatedByHost(error) => tracing::warn!(%peer, ?error, "host ended the connection"),
        }
        Ended
    }

    /// Sends what is queued, for a while, then closes.
    pub(crate) async fn farewell(&self) {
        self.stream.flush();
        // An error or a slow host changes nothing: the connection is closed either way.
        let _ = timeout(FAREWELL_LIMIT, self.stream.drained(0)).await;
        self.stream.close();
    }
}

/// Serves a connection to its end.
pub(crate) async fn serve(link: Link, association: Rc<Association>, queue: Queue) {
    association.add_connection(queue.id, link.stream.clone());
    match &association.home {
        Home::Subsystem(subsystem) if queue.id != 0 => {
            io::serve(link, Rc::clone(&association), Rc::clone(subsystem), queue).await;
        }
        Home::Subsystem(_) | Home::Discovery(_) => admin::serve(link, &association).await,
    }
    association.queue_drained(queue.id);
}
