//! Random and mutated streams: no panic, no more memory than the limits allow, whatever the fragments.

use nvmf_target_protocol::Digests;
use nvmf_target_protocol::host::command::Command;
use nvmf_target_protocol::host::connection::{self as host, Options};
use nvmf_target_protocol::target::connection::{Connection, Event, Limits, Queue, Transfer};
use nvmf_target_protocol::target::controller::IO_QUEUES_MAX;
use nvmf_target_protocol::wire::{Completion, Status};
use proptest::prelude::*;

use crate::util::{BLOCK, Pair, Setting, World, pattern};

const ENTRIES: u32 = 16;

/// Plays a driver that answers each command once, as soon as it may, and checks what the connection promises.
fn drive_target(connection: &mut Connection, stream: &[u8], fragment: usize) {
    let mut out = Vec::new();
    let mut expected = [None; ENTRIES as usize];
    for (number, chunk) in stream.chunks(fragment).enumerate() {
        let mut input = chunk;
        if let Some(awaited) = connection.awaited().filter(|_| number % 2 == 1) {
            let (data, rest) = input.split_at(input.len().min(awaited.length as usize));
            input = rest;
            let (received, length) = expected[awaited.slot.index()].as_mut().expect("a command that wants data");
            assert_eq!(awaited.offset, *received);
            *received += data.len() as u32;
            assert!(*received <= *length, "no byte beyond the command's buffer");
            connection.placed(data);
        }
        loop {
            match connection.receive(&mut input) {
                Ok(Some(Event::Initialize)) => connection.accept(&mut out),
                Ok(Some(Event::Command { slot, transfer, .. })) => match transfer {
                    Err(status) => connection.respond(slot, status.into(), &mut out),
                    Ok(Transfer::None | Transfer::ToHost { .. }) => {
                        connection.respond(slot, Completion::SUCCESS, &mut out);
                    }
                    Ok(Transfer::InCapsule { length }) => expected[slot.index()] = Some((0, length)),
                    Ok(Transfer::Solicited { length }) => {
                        assert!(length <= Limits::default().transfer);
                        expected[slot.index()] = Some((0, length));
                        connection.request_data(slot, &mut out);
                    }
                },
                Ok(Some(Event::Payload { slot, offset, bytes })) => {
                    let (received, length) = expected[slot.index()].as_mut().expect("a command that wants data");
                    assert_eq!(offset, *received);
                    *received += bytes.len() as u32;
                    assert!(*received <= *length, "no byte beyond the command's buffer");
                }
                Ok(Some(Event::PayloadEnd { slot, result })) => {
                    let (received, length) = expected[slot.index()].take().expect("a command that wants data");
                    assert_eq!(received, length);
                    let status = result.err().unwrap_or(Status::Success);
                    connection.respond(slot, status.into(), &mut out);
                }
                Ok(None) => break,
                Err(_) => return,
            }
            assert!(connection.in_flight() <= ENTRIES as usize, "bounded by the queue");
            out.clear();
        }
        assert!(input.is_empty());
    }
}

fn drive_host(connection: &mut host::Connection, stream: &[u8], fragment: usize) {
    let mut out = Vec::new();
    for chunk in stream.chunks(fragment) {
        let mut input = chunk;
        loop {
            match connection.receive(&mut input) {
                Ok(Some(host::Event::DataRequested { slot })) => {
                    while connection.write_data_header(slot, &mut out).is_some() {}
                }
                Ok(Some(host::Event::Data { offset, bytes, .. })) => {
                    assert!(offset as usize + bytes.len() <= 5 * BLOCK as usize, "no byte beyond the buffer");
                }
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return,
            }
            out.clear();
        }
    }
}

/// What a host sends: every kind of command, large and small, after ICReq.
fn host_stream(digests: Digests) -> Vec<u8> {
    let mut world = World::new();
    let setting = Setting { options: Options { digests, data_alignment: 0 }, ..Setting::default() };
    let mut pair = Pair::open(setting, &mut world);
    pair.host.connection.connected(ENTRIES as usize, 16 << 10);
    let large = pattern(5 * BLOCK as usize, 1);
    pair.host.submit(&Command::write(1, 0, 5, BLOCK, false), &large);
    pair.host.submit(&Command::write(1, 0, 1, BLOCK, true), &large[..BLOCK as usize]);
    pair.host.submit(&Command::read(1, 0, 2, BLOCK), &[]);
    pair.host.submit(&Command::flush(1), &[]);
    pair.host.submit(&Command::deallocate(1, 2), &large[..32]);
    let mut stream = ic_req(digests);
    stream.append(&mut pair.host.out);
    stream
}

fn ic_req(digests: Digests) -> Vec<u8> {
    let mut bytes = vec![0x00, 0, 0x80, 0, 0x80, 0, 0, 0, 0, 0, 0];
    bytes.push(u8::from(digests.header) | u8::from(digests.data) << 1);
    bytes.resize(128, 0);
    bytes
}

fn io_target() -> Connection {
    let mut connection = Connection::new(Limits::default());
    connection.connected(Queue { id: IO_QUEUES_MAX, entries: ENTRIES, flow_control_disabled: true });
    connection
}

/// A host with a read, a small and a large write in flight, and what the target answered to them.
fn host_and_answers(digests: Digests) -> (host::Connection, Vec<u8>) {
    let mut world = World::new();
    let setting = Setting { options: Options { digests, data_alignment: 0 }, ..Setting::default() };
    let _admin = Pair::admin(Setting::default(), &mut world);
    let submit = |io: &mut Pair| {
        let large = pattern(5 * BLOCK as usize, 1);
        io.host.submit(&Command::read(1, 0, 5, BLOCK), &[]);
        io.host.submit(&Command::write(1, 0, 1, BLOCK, false), &large[..BLOCK as usize]);
        io.host.submit(&Command::write(1, 0, 5, BLOCK, false), &large);
    };
    let mut answered = Pair::io(1, ENTRIES, setting, &mut world);
    answered.seen_by_host.clear();
    submit(&mut answered);
    answered.run(&mut world);
    let mut waiting = Pair::io(2, ENTRIES, setting, &mut world);
    submit(&mut waiting);
    (waiting.host.connection, answered.seen_by_host)
}

fn digests() -> impl Strategy<Value = Digests> {
    (any::<bool>(), any::<bool>()).prop_map(|(header, data)| Digests { header, data })
}

/// Up to eight places in a stream, each with a new byte; small numbers meet interesting fields more often.
fn mutations() -> impl Strategy<Value = Vec<(prop::sample::Index, u8)>> {
    prop::collection::vec((any::<prop::sample::Index>(), prop_oneof![any::<u8>(), 0..16u8]), 0..8)
}

fn mutate(stream: &mut [u8], mutations: &[(prop::sample::Index, u8)], headers_end: usize) {
    for (number, (index, byte)) in mutations.iter().enumerate() {
        // Every other mutation hits the first headers, where most decisions are made.
        let range = if number % 2 == 0 { stream.len() } else { headers_end };
        stream[index.index(range)] = *byte;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn random_bytes_never_harm_a_target(bytes in prop::collection::vec(any::<u8>(), 0..4096), fragment in 1..300usize) {
        drive_target(&mut Connection::new(Limits::default()), &bytes, fragment);
        let mut stream = ic_req(Digests::default());
        stream.extend_from_slice(&bytes);
        drive_target(&mut io_target(), &stream, fragment);
    }

    #[test]
    fn mutated_streams_never_harm_a_target(
        digests in digests(), mutations in mutations(), cut in any::<prop::sample::Index>(), fragment in 1..9000usize,
    ) {
        let mut stream = host_stream(digests);
        mutate(&mut stream, &mutations, 128 + 80);
        stream.truncate(cut.index(stream.len()) + 1);
        drive_target(&mut io_target(), &stream, fragment);
    }

    #[test]
    fn mutated_streams_never_harm_a_host(
        digests in digests(), mutations in mutations(), cut in any::<prop::sample::Index>(), fragment in 1..9000usize,
    ) {
        let (mut host, mut stream) = host_and_answers(digests);
        mutate(&mut stream, &mutations, 48);
        stream.truncate(cut.index(stream.len()) + 1);
        drive_host(&mut host, &stream, fragment);
    }
}
