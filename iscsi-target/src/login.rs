//! A login at its target: who it is, what it replaces, and then the connection.

use std::rc::Rc;
use std::time::Duration;

use iscsi_target_protocol::chap::Challenge;
use iscsi_target_protocol::target::login::Event;
use iscsi_target_protocol::target::sessions::{Nexus, Placement, Replaces};
use iscsi_target_protocol::wire::LoginStatus;
use reactor::{now, timeout};
use scsi_protocol::reservation::PortName;

use crate::connection;
use crate::handshake::{Entrant, Handover};
use crate::link::Output;
use crate::session::{Line, Session};
use crate::target::{PORT, Target};

/// How long a login waits for what it replaces to end (I16), before it is told to try again.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

/// How long a login may take at its target, apart from that.
const LOGIN_LIMIT: Duration = Duration::from_secs(15);

/// A challenge that nobody can know.
pub(crate) fn challenge() -> Challenge {
    let mut bytes = [0; 32];
    bytes[..16].copy_from_slice(&reactor::random_bytes());
    bytes[16..].copy_from_slice(&reactor::random_bytes());
    Challenge { identifier: reactor::random() as u8, bytes }
}

/// Serves a connection whose login named this target, to its end.
pub(crate) async fn adopt(target: Rc<Target>, handover: Handover) {
    let Ok(mut entrant) = handover.attach() else { return };
    let Some(access) = target.directory().access(&target.identity().name) else {
        entrant.login.refuse(LoginStatus::NotFound, &mut Output(&entrant.stream));
        return entrant.leave().await;
    };
    let joined = target.session(entrant.login.identity().tsih).filter(|session| !session.has_ended());
    {
        let numbers = joined.as_ref().map(|session| session.numbers.borrow());
        entrant.login.admit(&access, challenge(), numbers.as_deref(), &mut Output(&entrant.stream));
    }
    let Ok(Ok(Event::Complete)) = timeout(LOGIN_LIMIT, entrant.next()).await else {
        return entrant.leave().await;
    };
    match place(&target, &entrant).await {
        Ok(placement) => enter(target, entrant, placement).await,
        Err(status) => {
            entrant.login.refuse(status, &mut Output(&entrant.stream));
            entrant.leave().await;
        }
    }
}

/// Finds the login's place, and ends what it replaces: nothing old takes effect after the login is answered (I16).
async fn place(target: &Rc<Target>, entrant: &Entrant) -> Result<Placement, LoginStatus> {
    if target.is_stopped() {
        return Err(LoginStatus::NotFound);
    }
    let identity = entrant.login.identity();
    let nexus = Nexus { initiator: &identity.initiator, isid: identity.isid, tsih: identity.tsih, cid: identity.cid };
    let placement = target.table.borrow_mut().place(&nexus, entrant.login.connections_max())?;
    let gone = async {
        match placement.replaces {
            Replaces::Nothing | Replaces::NothingInSession => {}
            Replaces::Session(handle) => {
                if let Some(old) = target.session(handle) {
                    old.end();
                }
                target.wait_until(|| target.session(handle).is_none()).await;
            }
            Replaces::Connection => {
                let Some(session) = target.session(placement.tsih) else { return };
                let Some(line) = session.line(nexus.cid) else { return };
                line.stream.close();
                target.wait_until(|| line.protocol.borrow().is_none() && line.outstanding.get() == 0).await;
            }
        }
    };
    match timeout(DRAIN_LIMIT, gone).await {
        Ok(()) => Ok(placement),
        Err(_) => {
            target.table.borrow_mut().close_connection(placement.tsih, nexus.cid);
            Err(LoginStatus::Unavailable)
        }
    }
}

/// Answers the login and serves the connection.
async fn enter(target: Rc<Target>, entrant: Entrant, placement: Placement) {
    let Entrant { stream, login, unread } = entrant;
    let identity = login.identity().clone();
    let peer = stream.peer_address();
    let output = &mut Output(&stream);
    let (session, protocol) = if matches!(placement.replaces, Replaces::Nothing | Replaces::Session(_)) {
        let (numbers, protocol) = login.open(placement.tsih, now().as_nanos(), output);
        let port = PortName::iscsi(identity.initiator.as_str(), identity.isid);
        let nexus = target.unit.borrow_mut().attach(port, PORT);
        let initiator = identity.initiator.clone();
        let session = Session::new(Rc::clone(&target), placement.tsih, initiator, nexus, numbers);
        target.add(Rc::clone(&session));
        tracing::info!(target = %target.identity().name, initiator = %identity.initiator, %peer, "initiator logged in");
        (session, protocol)
    } else {
        let Some(session) = target.session(placement.tsih).filter(|session| !session.has_ended()) else {
            // It ended while this login waited.
            return stream.close();
        };
        let protocol = login.join(&session.numbers.borrow(), now().as_nanos(), output);
        (session, protocol)
    };
    stream.flush();
    connection::serve(Line::new(stream, protocol), session, unread).await;
}
