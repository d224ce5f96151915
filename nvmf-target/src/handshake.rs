//! From accept to Connect: learns which subsystem a connection is for, and takes it there.

use std::io;
use std::rc::Rc;

use nvmf_target_protocol::target::connection::{Connection, Event, Limits, Slot, Transfer};
use nvmf_target_protocol::wire::Status;
use nvmf_target_protocol::wire::fabrics::{
    CONNECT, CONNECT_DATA_SIZE, ConnectCommand, ConnectData, DISCOVERY_NQN, InvalidParameter,
};
use nvmf_target_protocol::wire::{Completion, Submission, opcode};
use reactor::{DetachedStream, TcpStream};

use crate::Directory;
use crate::connection::{self, Ended, Link, Output};
use crate::discovery::Discovery;

/// A connection between two reactors, its Connect not answered yet.
pub(crate) struct Handover {
    stream: DetachedStream,
    protocol: Connection,
    /// Received after the Connect.
    unread: Vec<u8>,
    slot: Slot,
    command: ConnectCommand,
    data: ConnectData,
}

/// A connection whose Connect is to be answered.
pub(crate) struct Greeted {
    pub(crate) link: Link,
    pub(crate) slot: Slot,
    pub(crate) command: ConnectCommand,
    pub(crate) data: ConnectData,
}

impl Handover {
    /// Puts the connection on this reactor.
    pub(crate) fn attach(self) -> io::Result<Greeted> {
        let Self { stream, protocol, unread, slot, command, data } = self;
        let link = Link { stream: stream.attach()?, protocol, unread };
        Ok(Greeted { link, slot, command, data })
    }
}

impl Greeted {
    async fn detach(self) -> io::Result<Handover> {
        let Self { link: Link { stream, protocol, unread }, slot, command, data } = self;
        Ok(Handover { stream: stream.detach().await?, protocol, unread, slot, command, data })
    }
}

/// Where a Connect leads.
pub(crate) enum Destination {
    /// The discovery service, on this reactor.
    Discovery(Box<Greeted>),
    /// A subsystem, which has the connection now.
    HandedOver,
}

/// Reads until a Connect names a subsystem that exists and lets this host in; others are refused and may try again.
///
/// # Errors
/// The connection has ended.
pub(crate) async fn greet(stream: TcpStream, directory: &Directory, limits: Limits) -> Result<Destination, Ended> {
    let mut greeting = Greeting::new(Link { stream, protocol: Connection::new(limits), unread: Vec::new() });
    loop {
        let next = greeting.next_connect().await;
        let link = greeting.link;
        let Ok((slot, command, data)) = next else {
            link.farewell().await;
            return Err(Ended);
        };
        let mut greeted = Greeted { link, slot, command, data };
        if greeted.data.subsystem_nqn == DISCOVERY_NQN {
            return Ok(Destination::Discovery(Box::new(greeted)));
        }
        match directory.route(&greeted.data) {
            Ok(place) => {
                let handover = greeted.detach().await.map_err(|_| Ended)?;
                place.send(handover);
                return Ok(Destination::HandedOver);
            }
            Err(completion) => {
                let Greeted { data, .. } = &greeted;
                tracing::info!(subsystem = data.subsystem_nqn, host = data.host_nqn, "connect refused: {completion:?}");
                greeted.link.protocol.respond(slot, completion, &mut Output(&greeted.link.stream));
                greeted.link.stream.flush();
                greeting = Greeting::new(greeted.link);
            }
        }
    }
}

/// Serves the discovery service to a connection that asked for it.
pub(crate) async fn serve_discovery(mut greeted: Box<Greeted>, service: &Rc<Discovery>) {
    let peer = greeted.link.stream.peer_address();
    match service.connect(&greeted.command, &greeted.data, peer) {
        Ok((association, queue)) => {
            greeted.link.accept(greeted.slot, queue, &association);
            connection::serve(greeted.link, association, queue).await;
        }
        Err(completion) => greeted.link.refuse(greeted.slot, completion).await,
    }
}

/// A connection without a queue: one command at a time, and only Connect is one.
struct Greeting {
    link: Link,
    /// The Connect whose data is arriving.
    connect: Option<ConnectCommand>,
    /// At most [`CONNECT_DATA_SIZE`].
    data: Vec<u8>,
}

impl Greeting {
    fn new(link: Link) -> Self {
        Self { link, connect: None, data: Vec::new() }
    }

    /// The next well-formed Connect; what follows it stays unread.
    async fn next_connect(&mut self) -> Result<(Slot, ConnectCommand, ConnectData), Ended> {
        loop {
            let unread = std::mem::take(&mut self.link.unread);
            let mut input = &unread[..];
            let found = self.read(&mut input);
            self.link.unread = input.to_vec();
            self.link.stream.flush();
            if let Some(connect) = found? {
                return Ok(connect);
            }
            let chunk = self.link.stream.receive().await.map_err(|_| Ended)?;
            if chunk.is_empty() {
                return Err(Ended);
            }
            self.link.unread.extend_from_slice(&chunk);
        }
    }

    fn read(&mut self, input: &mut &[u8]) -> Result<Option<(Slot, ConnectCommand, ConnectData)>, Ended> {
        loop {
            let event = match self.link.protocol.receive(input) {
                Ok(Some(event)) => event,
                Ok(None) => return Ok(None),
                Err(fault) => return Err(self.link.fault(fault)),
            };
            match event {
                Event::Initialize => self.link.protocol.accept(&mut Output(&self.link.stream)),
                Event::Command { slot, entry, transfer } => self.command(slot, &entry, transfer),
                Event::Payload { bytes, .. } => self.data.extend_from_slice(bytes),
                Event::PayloadEnd { slot, result } => {
                    if let Some(connect) = self.finish(slot, result) {
                        return Ok(Some(connect));
                    }
                }
            }
        }
    }

    fn command(&mut self, slot: Slot, entry: &Submission, transfer: Result<Transfer, Status>) {
        let is_connect = entry.opcode() == opcode::FABRICS && entry.fabrics_type() == CONNECT;
        let refusal = match transfer {
            Err(status) => status,
            Ok(_) if !is_connect => Status::CommandSequenceError,
            Ok(transfer) if transfer.length() as usize != CONNECT_DATA_SIZE => Status::DataSglLengthInvalid,
            Ok(transfer) => {
                if matches!(transfer, Transfer::Solicited { .. }) {
                    self.link.protocol.request_data(slot, &mut Output(&self.link.stream));
                }
                self.connect = Some(ConnectCommand::parse(entry));
                self.data.clear();
                return;
            }
        };
        self.respond(slot, refusal.into());
    }

    fn finish(&mut self, slot: Slot, result: Result<(), Status>) -> Option<(Slot, ConnectCommand, ConnectData)> {
        let command = self.connect.take()?;
        let bytes = self.data.first_chunk::<CONNECT_DATA_SIZE>();
        let parsed = match (result, bytes) {
            (Err(status), _) => Err(Completion::error(status)),
            (Ok(()), None) => Err(Status::DataSglLengthInvalid.into()),
            (Ok(()), Some(bytes)) => ConnectData::parse(bytes).map_err(invalid),
        };
        match parsed {
            Ok(data) => Some((slot, command, data)),
            Err(completion) => {
                self.respond(slot, completion);
                None
            }
        }
    }

    fn respond(&mut self, slot: Slot, completion: Completion) {
        self.link.protocol.respond(slot, completion, &mut Output(&self.link.stream));
    }
}

fn invalid(parameter: InvalidParameter) -> Completion {
    Completion { result: parameter.to_result(), status: Status::ConnectInvalidParameters }
}
