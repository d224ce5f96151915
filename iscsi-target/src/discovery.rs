//! Discovery sessions: an initiator asks which targets there are, and leaves (RFC 7143, 4.3).

use std::cell::RefCell;

use iscsi_target_protocol::target::TargetRecord;
use iscsi_target_protocol::target::access::Access;
use iscsi_target_protocol::target::connection::{Connection, Event, Wanted};
use iscsi_target_protocol::target::login::Event as LoginEvent;
use iscsi_target_protocol::target::session::Session;
use iscsi_target_protocol::wire::Name;
use iscsi_target_protocol::wire::response::LogoutOutcome;
use reactor::{TcpStream, now};

use crate::directory::Directory;
use crate::handshake::Entrant;
use crate::link::{Ended, Output, farewell};
use crate::login::challenge;

/// The handle of every discovery session: nothing can be told of one to another.
const HANDLE: u16 = 1;

/// Serves a discovery session to its end. Whoever may reach the portal may ask; each sees the targets that it may log in to.
pub(crate) async fn serve(mut entrant: Entrant, directory: &Directory) {
    entrant.login.admit(&Access::default(), challenge(), None, &mut Output(&entrant.stream));
    let Ok(LoginEvent::Complete) = entrant.next().await else { return };
    let initiator = entrant.login.identity().initiator.clone();
    let Entrant { stream, login, unread } = entrant;
    let (session, connection) = login.open(HANDLE, now().as_nanos(), &mut Output(&stream));
    stream.flush();
    let state = RefCell::new((session, connection));
    let Ended = answer(&stream, &state, directory, &initiator, unread).await;
    farewell(&stream).await;
}

async fn answer(
    stream: &TcpStream,
    state: &RefCell<(Session, Connection)>,
    directory: &Directory,
    initiator: &Name,
    mut unread: Vec<u8>,
) -> Ended {
    loop {
        if let Err(ended) = feed(stream, &mut state.borrow_mut(), directory, initiator, &unread) {
            return ended;
        }
        stream.flush();
        match stream.receive().await {
            Ok(chunk) if !chunk.is_empty() => unread = chunk.to_vec(),
            _ => return Ended,
        }
    }
}

fn feed(
    stream: &TcpStream,
    (session, connection): &mut (Session, Connection),
    directory: &Directory,
    initiator: &Name,
    mut input: &[u8],
) -> Result<(), Ended> {
    let output = &mut Output(stream);
    loop {
        match connection.receive(session, now().as_nanos(), &mut input, output) {
            Ok(Some(Event::SendTargets(wanted))) => {
                tell_targets(session, connection, directory, initiator, &wanted, None, output);
            }
            Ok(Some(Event::Logout { .. })) => {
                connection.respond_logout(session, LogoutOutcome::Closed, output);
                return Err(Ended);
            }
            // A discovery session has no tasks.
            Ok(Some(_)) => return Err(Ended),
            Ok(None) => return Ok(()),
            Err(violation) => {
                connection.reject(session, violation, output);
                return Err(Ended);
            }
        }
    }
}

/// Answers SendTargets with what the initiator may see.
pub(crate) fn tell_targets(
    session: &Session,
    connection: &mut Connection,
    directory: &Directory,
    initiator: &Name,
    wanted: &Wanted,
    own: Option<&Name>,
    output: &mut Output<'_>,
) {
    let targets = directory.visible(initiator, wanted, own);
    let records: Vec<TargetRecord<'_>> =
        targets.iter().map(|(name, addresses)| TargetRecord { name, addresses }).collect();
    connection.answer_targets(session, &records, output);
}
