//! Asking a portal which targets there are (RFC 7143, 4.3 and appendix C).

use std::net::SocketAddr;

use iscsi_target_protocol::initiator::connection::Event;
use iscsi_target_protocol::wire::Name;
use iscsi_target_protocol::wire::request::LogoutReason;
use iscsi_target_protocol::wire::text::pairs;

use crate::error::{ConnectError, ConnectionError};
use crate::login::{Entered, Place, log_in, parse_address};
use crate::options::Options;
use crate::queue::Output;
use crate::session::{random_isid, random_name};

/// Most text that is read; a portal that has more to say is not one of ours.
const TEXT_MAX: usize = 4 << 20;

/// A target that a portal told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoveredTarget {
    /// Its name.
    pub name: Name,
    /// Where it is reached; without those that are hosts' names.
    pub addresses: Vec<SocketAddr>,
}

/// The targets that the portal at `address` tells this initiator of. What [`Options::chap`] proves is for a target: a portal is not
/// proved anything.
///
/// # Errors
/// No session, or an answer that makes no sense.
pub async fn discover(address: SocketAddr, options: &Options) -> Result<Vec<DiscoveredTarget>, ConnectError> {
    match reactor::timeout(options.connect_timeout, ask(address, options)).await {
        Ok(targets) => targets,
        Err(_) => Err(ConnectError::TimedOut),
    }
}

async fn ask(address: SocketAddr, options: &Options) -> Result<Vec<DiscoveredTarget>, ConnectError> {
    let initiator = options.initiator.clone().unwrap_or_else(random_name);
    let place = Place { initiator: &initiator, target: None, isid: random_isid(), cid: 0, joins: None };
    let entered = log_in(address, &place, &Options { chap: None, ..options.clone() }).await?;
    let text = send_targets(entered).await?;
    parse(&text).ok_or(ConnectError::Nonsense("SendTargets"))
}

/// All text of the answer to SendTargets; then the session is logged out of.
async fn send_targets(entered: Entered) -> Result<Vec<u8>, ConnectError> {
    let Entered { stream, unread, mut numbers, mut connection } = entered;
    let mut whole = Vec::new();
    let mut chunk = unread;
    connection.send_text(&mut numbers, b"SendTargets=All\0", &mut Output(&stream));
    loop {
        let mut input = &chunk[..];
        while let Some(event) =
            connection.receive(&mut numbers, &mut input, &mut Output(&stream)).map_err(ConnectionError::Protocol)?
        {
            match event {
                Event::Text { text, .. } if whole.len() + text.len() > TEXT_MAX => {
                    return Err(ConnectError::Nonsense("SendTargets"));
                }
                Event::Text { slot, text, more } => {
                    whole.extend_from_slice(&text);
                    match more {
                        Some(tag) => connection.continue_text(&numbers, slot, tag, &mut Output(&stream)),
                        None => {
                            // It closes the connection, as we do.
                            let cid = connection.cid();
                            connection.logout(&mut numbers, LogoutReason::CloseSession, cid, &mut Output(&stream));
                            stream.flush();
                            return Ok(whole);
                        }
                    }
                }
                Event::Rejected { reason, .. } => return Err(ConnectionError::Rejected(reason).into()),
                _ => {}
            }
        }
        stream.flush();
        let received = stream.receive().await.map_err(|error| ConnectionError::io(&error))?;
        if received.is_empty() {
            return Err(ConnectionError::Closed.into());
        }
        chunk = received.to_vec();
    }
}

/// Names, each followed by its addresses.
fn parse(text: &[u8]) -> Option<Vec<DiscoveredTarget>> {
    let mut targets: Vec<DiscoveredTarget> = Vec::new();
    for pair in pairs(text) {
        match pair.ok()? {
            ("TargetName", name) => {
                targets.push(DiscoveredTarget { name: Name::parse(name)?, addresses: Vec::new() });
            }
            ("TargetAddress", address) => targets.last_mut()?.addresses.extend(parse_address(address)),
            _ => {}
        }
    }
    Some(targets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_their_addresses() {
        let text = b"TargetName=iqn.2026-01.org:a\0TargetAddress=10.0.0.1:3260,1\0TargetAddress=host.example,1\0\
            TargetName=iqn.2026-01.org:b\0TargetAddress=[::1]:3261,2\0";
        let targets = parse(text).expect("good text");
        assert_eq!(targets.len(), 2);
        assert_eq!((targets[0].name.as_str(), targets[0].addresses.len()), ("iqn.2026-01.org:a", 1));
        assert_eq!(targets[1].addresses, [([0, 0, 0, 0, 0, 0, 0, 1], 3261).into()]);
        assert_eq!(parse(b""), Some(Vec::new()));
        assert_eq!(parse(b"TargetAddress=10.0.0.1:3260,1\0"), None, "of nobody");
        assert_eq!(parse(b"TargetName=not a name\0"), None);
        assert_eq!(parse(b"TargetName\0"), None);
    }
}
