//! Random and mutated streams: no panic, no more memory than the limits allow, whatever the fragments.

use iscsi_target_protocol::Digests;
use iscsi_target_protocol::negotiation::Parameters;
use iscsi_target_protocol::target::access::Access;
use iscsi_target_protocol::target::connection::{Connection, Event, Limits, Response, Transfer};
use iscsi_target_protocol::target::login::{self, Login};
use iscsi_target_protocol::target::session::Session;
use proptest::prelude::*;

use crate::util::{Pair, Setting, TARGET_CHALLENGE, numbered, pattern, read, write};

const COMMANDS: u32 = 8;

fn drive_login(stream: &[u8], fragment: usize) {
    let mut login = Login::new(Limits::default(), 1);
    let mut out = Vec::new();
    for chunk in stream.chunks(fragment) {
        let mut input = chunk;
        loop {
            match login.receive(&mut input, &mut out) {
                Ok(Some(login::Event::Identified)) => login.admit(&Access::default(), TARGET_CHALLENGE, None, &mut out),
                Ok(Some(login::Event::Complete)) => {
                    let (mut session, mut connection) = login.open(1, 0, &mut out);
                    return drive_target(&mut session, &mut connection, input, fragment);
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
        assert!(input.is_empty());
        assert!(out.len() < 1 << 20, "answers are bounded");
    }
}

/// Plays a driver that answers each command once, as soon as it may, and checks what the connection promises.
fn drive_target(session: &mut Session, connection: &mut Connection, stream: &[u8], fragment: usize) {
    let mut out = Vec::new();
    let mut expected = vec![None; 1024];
    for chunk in stream.chunks(fragment) {
        let mut input = chunk;
        loop {
            match connection.receive(session, 0, &mut input, &mut out) {
                Ok(Some(Event::Command { slot, transfer, .. })) => match transfer {
                    Transfer::None => connection.respond(session, slot, Response::default(), &mut out),
                    Transfer::ToInitiator { length } => {
                        let length = length.min(100_000);
                        while connection.write_data_header(session, slot, length, &mut out).is_some() {}
                    }
                    Transfer::FromInitiator { length, unsolicited: 0 } => {
                        expected[slot.index()] = Some((0, length));
                        connection.request_data(session, slot, length, &mut out);
                    }
                    Transfer::FromInitiator { length, .. } => expected[slot.index()] = Some((0, length)),
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
                Ok(Some(Event::TaskManagement { slot, .. })) => {
                    let outcome = iscsi_target_protocol::wire::response::TaskManagementOutcome::Complete;
                    connection.respond_task_management(session, slot, outcome, &mut out);
                }
                Ok(Some(Event::SendTargets(_))) => connection.answer_targets(session, &[], &mut out),
                Ok(Some(Event::Logout { .. })) => return,
                Ok(None) => break,
                Err(_) => return,
            }
            assert!(session.in_flight() <= session.commands(), "bounded by the window");
            assert!(connection.in_flight() <= session.commands() as usize + 8);
            out.clear();
        }
        if connection.is_waiting() {
            return;
        }
        assert!(input.is_empty());
    }
}

fn pair(digests: Digests) -> Pair {
    let offer =
        Parameters { digests, first_burst: 2048, max_burst: 4096, receive_segment: 1024, ..Parameters::target() };
    let limits = Limits { commands: COMMANDS, ..Limits::default() };
    let mut pair = Pair::open(Setting { limits, offer, ..Setting::default() });
    pair.hold = true;
    pair
}

/// A pair with every kind of request on its way to the target.
fn busy(digests: Digests) -> Pair {
    let mut pair = pair(digests);
    let data = pattern(10_000, 1);
    pair.submit(0, &write(0, 10_000), &data).unwrap();
    pair.submit(0, &write(0, 100), &data[..100]).unwrap();
    pair.submit(0, &read(0, 5000), &[]).unwrap();
    pair.submit(0, &numbered(0), &[]).unwrap();
    let link = &mut pair.links[0];
    link.initiator.ping(&mut pair.initiator, b"hello", &mut link.to_target).unwrap();
    link.initiator.send_text(&mut pair.initiator, b"SendTargets=\0", &mut link.to_target).unwrap();
    pair
}

fn digests() -> impl Strategy<Value = Digests> {
    (any::<bool>(), any::<bool>()).prop_map(|(header, data)| Digests { header, data })
}

/// Up to eight places in a stream, each with a new byte; small numbers meet interesting fields more often.
fn mutations() -> impl Strategy<Value = Vec<(prop::sample::Index, u8)>> {
    prop::collection::vec((any::<prop::sample::Index>(), prop_oneof![any::<u8>(), 0..16u8]), 0..8)
}

fn mutate(stream: &mut [u8], mutations: &[(prop::sample::Index, u8)]) {
    for (number, (index, byte)) in mutations.iter().enumerate() {
        // Every other mutation hits the first header, where most decisions are made.
        let range = if number % 2 == 0 { stream.len() } else { stream.len().min(48) };
        stream[index.index(range)] = *byte;
    }
}

fn login_stream() -> Vec<u8> {
    let mut login = iscsi_target_protocol::initiator::login::Login::new(crate::util::options(), 1);
    let mut bytes = Vec::new();
    login.start(&mut bytes);
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn random_bytes_never_harm_a_target(bytes in prop::collection::vec(any::<u8>(), 0..2048), fragment in 1..300usize) {
        drive_login(&bytes, fragment);
        let mut pair = pair(Digests::default());
        drive_target(&mut pair.target, &mut pair.links[0].target, &bytes, fragment);
    }

    #[test]
    fn mutated_logins_never_harm_a_target(mutations in mutations(), fragment in 1..900usize) {
        let mut stream = login_stream();
        mutate(&mut stream, &mutations);
        drive_login(&stream, fragment);
    }

    #[test]
    fn mutated_streams_never_harm_a_target(
        digests in digests(), mutations in mutations(), cut in any::<prop::sample::Index>(), fragment in 1..9000usize,
    ) {
        let mut pair = busy(digests);
        let mut stream = std::mem::take(&mut pair.links[0].to_target);
        mutate(&mut stream, &mutations);
        stream.truncate(cut.index(stream.len()) + 1);
        drive_target(&mut pair.target, &mut pair.links[0].target, &stream, fragment);
    }

    #[test]
    fn mutated_streams_never_harm_an_initiator(
        digests in digests(), mutations in mutations(), fragment in 1..9000usize,
    ) {
        let mut pair = busy(digests);
        pair.hold = false;
        pair.deliver_to_target(0).unwrap();
        let link = &mut pair.links[0];
        let mut stream = std::mem::take(&mut link.to_initiator);
        mutate(&mut stream, &mutations);
        let mut out = Vec::new();
        for chunk in stream.chunks(fragment) {
            let mut input = chunk;
            while let Ok(Some(_)) = link.initiator.receive(&mut pair.initiator, &mut input, &mut out) {
                out.clear();
            }
            if !input.is_empty() {
                break;
            }
        }
    }
}
