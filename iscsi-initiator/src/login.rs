//! From a TCP connection to one in its full feature phase (RFC 7143, 6.3).

use std::net::SocketAddr;

use iscsi_target_protocol::chap::{CHALLENGE_SIZE, Challenge};
use iscsi_target_protocol::initiator::connection::{Connection, Session as Numbers};
use iscsi_target_protocol::initiator::login::{Event, Login, Options as LoginOptions};
use iscsi_target_protocol::wire::login::Isid;
use iscsi_target_protocol::wire::{LoginStatus, Name};
use reactor::TcpStream;

use crate::error::{ConnectError, ConnectionError};
use crate::options::Options;
use crate::queue::{Output, Window};

/// CmdSN of a session's first command.
const FIRST_COMMAND: u32 = 1;

/// How often a login follows a redirection.
const REDIRECTIONS_MAX: usize = 4;

/// The port of a TargetAddress that names none.
const PORT: u16 = 3260;

/// A connection that is logged in.
pub(crate) struct Entered {
    pub(crate) stream: TcpStream,
    /// What came after the login.
    pub(crate) unread: Vec<u8>,
    /// Of no use if the login joined a session.
    pub(crate) numbers: Numbers,
    pub(crate) connection: Connection,
}

/// Which session and connection to log in as.
pub(crate) struct Place<'a> {
    pub(crate) initiator: &'a Name,
    /// A discovery session without.
    pub(crate) target: Option<&'a Name>,
    pub(crate) isid: Isid,
    pub(crate) cid: u16,
    /// The session to join.
    pub(crate) joins: Option<&'a Window>,
}

/// Connects and logs in, following redirections.
pub(crate) async fn log_in(address: SocketAddr, place: &Place<'_>, options: &Options) -> Result<Entered, ConnectError> {
    let mut address = address;
    for _ in 0..=REDIRECTIONS_MAX {
        match negotiate(address, login(place, options)).await? {
            Outcome::Entered(entered) => return Ok(*entered),
            Outcome::Moved(text) => address = parse_address(&text).ok_or(ConnectError::Redirected(text))?,
        }
    }
    Err(ConnectError::Redirected(address.to_string()))
}

fn login(place: &Place<'_>, options: &Options) -> Login {
    let options = LoginOptions {
        initiator: place.initiator.clone(),
        target: place.target.cloned(),
        isid: place.isid,
        tsih: 0,
        cid: place.cid,
        offer: options.offer(),
        chap: options.chap.clone(),
        challenge: challenge(),
    };
    match place.joins {
        None => Login::new(options, FIRST_COMMAND),
        Some(window) => Login::joining(options, &window.numbers.borrow()),
    }
}

/// What the target has to answer if it has to prove something: new each time.
fn challenge() -> Challenge {
    let mut bytes = [0; CHALLENGE_SIZE];
    bytes.as_chunks_mut().0.iter_mut().for_each(|half| *half = reactor::random_bytes());
    Challenge { identifier: reactor::random() as u8, bytes }
}

enum Outcome {
    Entered(Box<Entered>),
    /// TargetAddress.
    Moved(String),
}

async fn negotiate(address: SocketAddr, mut login: Login) -> Result<Outcome, ConnectError> {
    let io = |error| ConnectError::Connection(ConnectionError::io(&error));
    let stream = TcpStream::connect(address).await.map_err(io)?;
    login.start(&mut Output(&stream));
    loop {
        stream.flush();
        let chunk = stream.receive().await.map_err(io)?;
        if chunk.is_empty() {
            return Err(ConnectionError::Closed.into());
        }
        let mut input = &chunk[..];
        let event = login.receive(&mut input, &mut Output(&stream)).map_err(ConnectionError::Protocol)?;
        return match event {
            None => continue,
            Some(Event::Complete) => {
                let unread = input.to_vec();
                let (numbers, connection) = login.finish();
                Ok(Outcome::Entered(Box::new(Entered { stream, unread, numbers, connection })))
            }
            Some(Event::Refused {
                status: LoginStatus::MovedTemporarily | LoginStatus::MovedPermanently,
                address: Some(address),
            }) => Ok(Outcome::Moved(address)),
            Some(Event::Refused { status, .. }) => Err(ConnectError::Refused(status)),
            Some(Event::Distrusted) => Err(ConnectError::Distrusted),
        };
    }
}

/// The address that a TargetAddress (13.8) names, `address[:port][,group]`; none if it is a host's name.
pub(crate) fn parse_address(text: &str) -> Option<SocketAddr> {
    let address = text.split(',').next()?;
    if let Ok(address) = address.parse() {
        return Some(address);
    }
    let ip = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
    Some(SocketAddr::new(ip.parse().ok()?, PORT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_as_targets_write_them() {
        let parse = |text| parse_address(text).map(|address| address.to_string());
        assert_eq!(parse("10.0.0.1:3261,1").as_deref(), Some("10.0.0.1:3261"));
        assert_eq!(parse("10.0.0.1").as_deref(), Some("10.0.0.1:3260"));
        assert_eq!(parse("[fe80::1]:3262,7").as_deref(), Some("[fe80::1]:3262"));
        assert_eq!(parse("[fe80::1],7").as_deref(), Some("[fe80::1]:3260"));
        assert_eq!(parse("storage.example:3260,1"), None);
        assert_eq!(parse(""), None);
    }
}
