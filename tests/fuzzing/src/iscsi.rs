//! Both ends of iSCSI, fed with anything.

use iscsi_target_protocol::Digests;
use iscsi_target_protocol::chap::Challenge;
use iscsi_target_protocol::initiator::connection::{self as initiator, Command, Data};
use iscsi_target_protocol::initiator::login::{self as initiator_login, Options};
use iscsi_target_protocol::negotiation::Parameters;
use iscsi_target_protocol::target::access::Access;
use iscsi_target_protocol::target::connection::{Connection, Event, Limits, Response, Scope, Transfer};
use iscsi_target_protocol::target::login::{self, Login};
use iscsi_target_protocol::target::session::Session;
use iscsi_target_protocol::wire::Name;
use iscsi_target_protocol::wire::request::TaskFunction;
use iscsi_target_protocol::wire::response::{LogoutOutcome, TaskManagementOutcome};

pub(super) const CHALLENGE: Challenge = Challenge { identifier: 1, bytes: [0x5a; 32] };
/// Bytes of the large commands.
const LARGE: u32 = 20_000;
/// Most bytes that a command of the fuzzer's gets.
const ANSWER_MAX: u32 = 100_000;

/// The first byte says which end and from which state on, the second how the stream is cut.
pub(super) fn pdus(bytes: &[u8]) {
    let [mode, size, bytes @ ..] = bytes else { return };
    let digests = Digests { header: mode & 2 != 0, data: mode & 4 != 0 };
    let cut = usize::from(*size) * 16 + 1;
    match (mode & 1, mode & 8) {
        (0, 0) => drive_login(bytes, cut),
        (0, _) => {
            let Ends { mut target_session, mut target, .. } = logged_in(digests);
            drive_target(&mut target_session, &mut target, bytes, cut);
        }
        _ => drive_initiator(bytes, cut, digests, mode & 8 == 0),
    }
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let mut login = Vec::new();
    initiator_login::Login::new(options(Digests::default()), 1).start(&mut login);
    let mut seeds = vec![[&[0, 255], &login[..]].concat(), [&[0, 1], &login[..]].concat()];
    for mode in (8..16).step_by(2) {
        let digests = Digests { header: mode & 2 != 0, data: mode & 4 != 0 };
        seeds.push([&[mode, 255], &requests(digests)[..]].concat());
    }
    // What a target sends: every opcode of its, and a login response.
    for opcode in [0x20u8, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x31, 0x32, 0x3f] {
        let mut pdu = vec![opcode, 0x87];
        pdu.resize(48, 0);
        pdu[27] = 1;
        seeds.push([&[9, 255], &pdu[..]].concat());
        seeds.push([&[1, 3], &pdu[..]].concat());
    }
    seeds
}

pub(super) fn options(digests: Digests) -> Options {
    let name = |text: &str| Name::parse(text).expect("a name");
    Options {
        initiator: name("iqn.2026-01.org:host"),
        target: Some(name("iqn.2026-01.org:target")),
        isid: [0; 6],
        tsih: 0,
        cid: 0,
        offer: Parameters { digests, first_burst: 2048, max_burst: 4096, ..Parameters::target() },
        chap: None,
        challenge: CHALLENGE,
    }
}

/// Both ends after a login.
pub(super) struct Ends {
    pub(super) target_session: Session,
    pub(super) target: Connection,
    initiator_session: initiator::Session,
    initiator: initiator::Connection,
}

pub(super) fn logged_in(digests: Digests) -> Ends {
    let mut login = initiator_login::Login::new(options(digests), 1);
    let mut target = Login::new(Limits::default(), 1);
    let (mut request, mut answer) = (Vec::new(), Vec::new());
    login.start(&mut request);
    assert_eq!(target.receive(&mut &request[..], &mut answer), Ok(Some(login::Event::Identified)));
    target.admit(&Access::default(), CHALLENGE, None, &mut answer);
    assert_eq!(target.receive(&mut &[][..], &mut answer), Ok(Some(login::Event::Complete)));
    let (target_session, target) = target.open(1, 0, &mut answer);
    assert_eq!(login.receive(&mut &answer[..], &mut request), Ok(Some(initiator_login::Event::Complete)));
    let (initiator_session, initiator) = login.finish();
    Ends { target_session, target, initiator_session, initiator }
}

fn commands() -> [Command; 3] {
    [Data::Send(LARGE), Data::Receive(LARGE), Data::None].map(|data| Command {
        lun: 0,
        cdb: [0; 16],
        data,
        immediate: false,
    })
}

/// One of each request.
fn requests(digests: Digests) -> Vec<u8> {
    let Ends { mut initiator_session, mut initiator, .. } = logged_in(digests);
    let mut out = Vec::new();
    for command in commands() {
        let Some(submitted) = initiator.submit(&mut initiator_session, &command, &mut out) else { continue };
        let data = vec![7; submitted.immediate_data as usize];
        if !data.is_empty() {
            out.extend_from_slice(&data);
            initiator.write_data_end([&data[..]], &mut out);
        }
    }
    initiator.manage(&mut initiator_session, TaskFunction::LogicalUnitReset, 0, None, &mut out);
    initiator.ping(&mut initiator_session, b"ping", &mut out);
    initiator.send_text(&mut initiator_session, b"SendTargets=\0", &mut out);
    out
}

fn drive_login(stream: &[u8], cut: usize) {
    let mut login = Login::new(Limits::default(), 1);
    let mut out = Vec::new();
    for chunk in stream.chunks(cut) {
        let mut input = chunk;
        loop {
            match login.receive(&mut input, &mut out) {
                Ok(Some(login::Event::Identified)) => login.admit(&Access::default(), CHALLENGE, None, &mut out),
                Ok(Some(login::Event::Complete)) => {
                    let (mut session, mut connection) = login.open(1, 0, &mut out);
                    return drive_target(&mut session, &mut connection, input, cut);
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
        assert!(input.is_empty());
        out.clear();
    }
}

/// A driver that answers each command once, and checks what the connection promises.
pub(super) fn drive_target(session: &mut Session, connection: &mut Connection, stream: &[u8], cut: usize) {
    let mut out = Vec::new();
    let mut expected = vec![None; 1024];
    for chunk in stream.chunks(cut) {
        let mut input = chunk;
        loop {
            match connection.receive(session, 0, &mut input, &mut out) {
                Ok(Some(Event::Command { slot, transfer, .. })) => match transfer {
                    Transfer::None => connection.respond(session, slot, Response::default(), &mut out),
                    Transfer::ToInitiator { length } => {
                        let length = length.min(ANSWER_MAX);
                        while connection.write_data_header(session, slot, length, &mut out).is_some() {}
                    }
                    Transfer::FromInitiator { length, unsolicited } => {
                        expected[slot.index()] = Some((0, length));
                        if unsolicited == 0 {
                            connection.request_data(session, slot, length, &mut out);
                        }
                    }
                },
                Ok(Some(Event::Payload { slot, offset, bytes })) => {
                    let (received, length) = expected[slot.index()].as_mut().expect("a command that wants data");
                    assert_eq!(offset, *received);
                    *received += bytes.len() as u32;
                    assert!(*received <= *length, "no byte beyond the command's data");
                }
                Ok(Some(Event::PayloadEnd { slot, received, .. })) => {
                    assert_eq!(expected[slot.index()].take().expect("a command that wants data").0, received);
                    connection.respond(session, slot, Response::default(), &mut out);
                }
                Ok(Some(Event::TaskManagement { slot, lun, before, .. })) => {
                    for task in connection.abort(session, Scope::LogicalUnit(lun), Some(before)) {
                        assert!(!task.executing, "this driver answers at once what it has");
                        expected[task.slot.index()] = None;
                    }
                    connection.respond_task_management(session, slot, TaskManagementOutcome::Complete, &mut out);
                }
                Ok(Some(Event::SendTargets(_))) => connection.answer_targets(session, &[], &mut out),
                Ok(Some(Event::Logout { .. })) => {
                    return connection.respond_logout(session, LogoutOutcome::Closed, &mut out);
                }
                Ok(None) => break,
                Err(violation) => return connection.reject(session, violation, &mut out),
            }
            assert!(session.in_flight() <= session.commands(), "bounded by the window");
            out.clear();
        }
        if connection.is_waiting() {
            return;
        }
        assert!(input.is_empty());
    }
}

fn drive_initiator(stream: &[u8], cut: usize, digests: Digests, connected: bool) {
    let mut out = Vec::new();
    if !connected {
        let mut login = initiator_login::Login::new(options(digests), 1);
        login.start(&mut out);
        for chunk in stream.chunks(cut) {
            let mut input = chunk;
            if !matches!(login.receive(&mut input, &mut out), Ok(None)) {
                return;
            }
        }
        return;
    }
    let Ends { mut initiator_session, mut initiator, .. } = logged_in(digests);
    for command in commands() {
        let _ = initiator.submit(&mut initiator_session, &command, &mut out);
    }
    for chunk in stream.chunks(cut) {
        let mut input = chunk;
        loop {
            match initiator.receive(&mut initiator_session, &mut input, &mut out) {
                Ok(Some(initiator::Event::DataRequested { slot })) => {
                    while initiator.write_data_header(slot, &mut out).is_some() {}
                }
                Ok(Some(initiator::Event::Data { offset, bytes, .. })) => {
                    assert!(offset as usize + bytes.len() <= LARGE as usize, "no byte beyond the buffer");
                }
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return,
            }
            out.clear();
        }
    }
}
