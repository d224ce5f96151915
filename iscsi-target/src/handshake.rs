//! From accept to the names of a login: learns which target a connection is for, and takes it there.

use std::io;

use iscsi_target_protocol::target::connection::Limits;
use iscsi_target_protocol::target::login::{Event, Login};
use reactor::{DetachedStream, TcpStream};

use crate::directory::Directory;
use crate::link::{Ended, Output, farewell};

/// The one portal group of a node.
pub(crate) const PORTAL_GROUP: u16 = 1;

/// A connection that logs in.
pub(crate) struct Entrant {
    pub(crate) stream: TcpStream,
    pub(crate) login: Login,
    /// Received and not given to `login` yet.
    pub(crate) unread: Vec<u8>,
}

/// A connection between two reactors: who it is and where it wants to go are known.
pub(crate) struct Handover {
    stream: DetachedStream,
    login: Login,
    unread: Vec<u8>,
}

impl Handover {
    /// Puts the connection on this reactor.
    pub(crate) fn attach(self) -> io::Result<Entrant> {
        let Self { stream, login, unread } = self;
        Ok(Entrant { stream: stream.attach()?, login, unread })
    }
}

/// Where a login leads.
pub(crate) enum Destination {
    /// The discovery service, on this reactor.
    Discovery(Box<Entrant>),
    /// A target, which has the connection now.
    HandedOver,
}

impl Entrant {
    pub(crate) fn new(stream: TcpStream, limits: Limits) -> Self {
        Self { stream, login: Login::new(limits, PORTAL_GROUP), unread: Vec::new() }
    }

    /// Reads until the driver has to act.
    ///
    /// # Errors
    /// The connection has ended; the initiator knows why.
    pub(crate) async fn next(&mut self) -> Result<Event, Ended> {
        loop {
            let unread = std::mem::take(&mut self.unread);
            let mut input = &unread[..];
            let event = self.login.receive(&mut input, &mut Output(&self.stream));
            self.unread = input.to_vec();
            self.stream.flush();
            match event {
                Ok(Some(event)) => return Ok(event),
                Ok(None) => {}
                Err(status) => {
                    tracing::info!(peer = %self.stream.peer_address(), ?status, "login refused");
                    farewell(&self.stream).await;
                    return Err(Ended);
                }
            }
            let chunk = self.stream.receive().await.map_err(|_| Ended)?;
            if chunk.is_empty() {
                return Err(Ended);
            }
            self.unread.extend_from_slice(&chunk);
        }
    }

    /// Ends the login with what was written.
    pub(crate) async fn leave(self) {
        farewell(&self.stream).await;
    }
}

/// Reads until it is known who logs in where.
///
/// # Errors
/// The connection has ended.
pub(crate) async fn greet(stream: TcpStream, directory: &Directory, limits: Limits) -> Result<Destination, Ended> {
    let mut entrant = Entrant::new(stream, limits);
    // Nothing else can come first.
    let Event::Identified = entrant.next().await? else { return Err(Ended) };
    let identity = entrant.login.identity();
    let target = match &identity.target {
        Some(target) if !identity.discovery => target,
        _ => return Ok(Destination::Discovery(Box::new(entrant))),
    };
    match directory.route(target) {
        Ok(place) => {
            let Entrant { stream, login, unread } = entrant;
            let stream = stream.detach().await.map_err(|_| Ended)?;
            place.send(Handover { stream, login, unread });
            Ok(Destination::HandedOver)
        }
        Err(status) => {
            tracing::info!(%target, initiator = %identity.initiator, ?status, "login refused");
            entrant.login.refuse(status, &mut Output(&entrant.stream));
            entrant.leave().await;
            Err(Ended)
        }
    }
}
