//! From an address to an open replica.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;

use block_device::{Error, ErrorKind, Geometry};
use reactor::{TcpStream, timeout};
use replica_protocol::{Client, ClientEvent, Grant, Open, ProtocolError, Refusal, Status};
use tokio::sync::Notify;

use super::{Pending, RemoteOptions, RemoteReplica, State};
use crate::status::error_of;
use crate::stream::Stream;
use crate::{Granted, OpenError, OpenReplica};

impl RemoteReplica {
    /// Connects, greets, and opens the replica at the epoch, in plaintext: nobody is reached so where connections are kept private.
    pub async fn connect(
        address: SocketAddr,
        open: &OpenReplica,
        options: &RemoteOptions,
    ) -> Result<Rc<Self>, OpenError> {
        Self::connect_to("", address, open, options).await
    }

    /// The same with the replicas of `node`; where connections are kept private, with nobody else.
    pub async fn connect_to(
        node: &str,
        address: SocketAddr,
        open: &OpenReplica,
        options: &RemoteOptions,
    ) -> Result<Rc<Self>, OpenError> {
        let asked = reactor::now();
        let opening = connect(node, address, open, options);
        let (stream, client, grant) = timeout(options.open_limit, opening)
            .await
            .map_err(|_| OpenError::Unreachable(format!("no grant within {:?}", options.open_limit)))??;
        let state = State {
            client,
            backlog: VecDeque::new(),
            failure: None,
            closing: false,
            last_heard: reactor::now(),
            pinged: VecDeque::new(),
            confirmed: asked,
            reported_age: None,
            findings: 0,
        };
        let replica = Rc::new(Self {
            id: open.replica,
            granted: Cell::new(granted(&grant)?),
            stream,
            state: RefCell::new(state),
            changed: Notify::new(),
            news: Notify::new(),
        });
        super::tasks::start(&replica, options);
        Ok(replica)
    }
}

type Opened = (Stream, Client<Pending>, Grant);

async fn connect(
    node: &str,
    address: SocketAddr,
    open: &OpenReplica,
    options: &RemoteOptions,
) -> Result<Opened, OpenError> {
    let socket = TcpStream::connect(address).await.map_err(unreachable)?;
    let secure = options.security.as_ref().map(|security| security.connect(node)).transpose().map_err(unreachable)?;
    let stream = Stream::establish(socket, secure).await.map_err(unreachable)?;
    let mut client = Client::default();
    stream.push_copy(&client.hello(open.instance.into_bytes(), &options.node));
    stream.flush();
    loop {
        let chunk = stream.receive().await.map_err(unreachable)?;
        if chunk.is_empty() {
            return Err(OpenError::Unreachable("it closed the connection".to_owned()));
        }
        let mut input = &chunk[..];
        while let Some(event) = client.handle(&mut input).map_err(broken)? {
            match event {
                ClientEvent::Welcome(_) => {
                    stream.push_copy(&client.open(&wire_open(open)));
                    stream.flush();
                }
                ClientEvent::Granted(grant) if input.is_empty() => {
                    drop(chunk);
                    return Ok((stream, client, grant));
                }
                ClientEvent::Refused(refusal) => return Err(refused(refusal)),
                _ => return Err(broken(ProtocolError::Malformed)),
            }
        }
    }
}

fn wire_open(open: &OpenReplica) -> Open {
    Open {
        replica: open.replica.into_bytes(),
        volume: open.volume.into_bytes(),
        instance: open.instance.into_bytes(),
        epoch: open.epoch,
    }
}

/// Believes a grant only when it describes something that can be.
fn granted(grant: &Grant) -> Result<Granted, OpenError> {
    let mut geometry = Geometry::new(grant.size, grant.block_size)
        .map_err(|error| OpenError::Mismatch(format!("it describes no device: {error}")))?;
    if !grant.atomic_write.is_power_of_two() || grant.allocation_unit == 0 {
        return Err(OpenError::Mismatch("it describes no device: no atomic write or allocation unit".to_owned()));
    }
    geometry.atomic_write = grant.atomic_write;
    geometry.allocation_unit = grant.allocation_unit;
    Ok(Granted { epoch: grant.epoch, geometry, state: grant.state.into() })
}

fn refused(refusal: Refusal) -> OpenError {
    match refusal.status {
        Status::Fenced => OpenError::Fenced { stored: refusal.stored_epoch },
        Status::NotFound => OpenError::NotFound,
        Status::Conflict => OpenError::Mismatch(refusal.text),
        Status::Unavailable => OpenError::Unreachable(refusal.text),
        status => {
            let error = error_of(status, Some(refusal.text));
            OpenError::Failed(error.unwrap_or_else(|| Error::new(ErrorKind::Internal)))
        }
    }
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn unreachable(error: std::io::Error) -> OpenError {
    OpenError::Unreachable(error.to_string())
}

fn broken(error: ProtocolError) -> OpenError {
    OpenError::Unreachable(format!("it does not speak our protocol: {error}"))
}
