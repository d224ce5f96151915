//! Both ends of NVMe/TCP, fed with anything.

use nvmf_target_protocol::Digests;
use nvmf_target_protocol::host::command::Command;
use nvmf_target_protocol::host::connection::{self as host, Options};
use nvmf_target_protocol::target::command::{IoCommand, parse_ranges};
use nvmf_target_protocol::target::connection::{Connection, Event, Limits, Queue, Transfer};
use nvmf_target_protocol::target::subsystem::{BlockSize, Namespace};
use nvmf_target_protocol::wire::log_page::AnaState;
use nvmf_target_protocol::wire::{Completion, Status};

const ENTRIES: u32 = 16;
const BLOCK: u32 = 4096;

/// The first byte says which end and from which state on, the second how the stream is cut.
pub(super) fn pdus(bytes: &[u8]) {
    let [mode, size, bytes @ ..] = bytes else { return };
    let digests = Digests { header: mode & 2 != 0, data: mode & 4 != 0 };
    let cut = usize::from(*size) * 16 + 1;
    let mut stream = Vec::new();
    match mode & 1 {
        0 => {
            if mode & 8 == 0 {
                stream = ic_req(digests);
            }
            stream.extend_from_slice(bytes);
            drive_target(&stream, cut);
        }
        _ => drive_host(bytes, cut, digests, mode & 8 == 0),
    }
    let _ = parse_ranges(bytes, (bytes.len() / 16).min(256) as u16, &namespace()).map(Iterator::count);
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let mut connection = open_host(Digests::default());
    let mut stream = Vec::new();
    let commands = [
        Command::read(1, 0, 2, BLOCK),
        Command::write(1, 0, 5, BLOCK, false),
        Command::flush(1),
        Command::write_zeroes(1, 0, 8, true),
        Command::deallocate(1, 2),
        Command::identify(1, 0),
        Command::keep_alive(),
    ];
    for command in &commands {
        let mut one = Vec::new();
        connection.submit(command, &mut one);
        stream.extend(one);
    }
    let mut seeds: Vec<Vec<u8>> = (0..16).map(|mode| [&[mode, 255], &stream[..]].concat()).collect();
    // What a controller sends: ICResp, a completion, data, R2T.
    for kind in [1u8, 5, 7, 9] {
        let length = if kind == 1 { 128 } else { 24 };
        let mut pdu = vec![kind, 0, length, 0, length, 0, 0, 0];
        pdu.resize(usize::from(length), 0);
        seeds.push([&[1, 255], &pdu[..]].concat());
        seeds.push([&[9, 3], &pdu[..]].concat());
    }
    seeds
}

fn ic_req(digests: Digests) -> Vec<u8> {
    let mut bytes = vec![0x00, 0, 0x80, 0, 0x80, 0, 0, 0, 0, 0, 0];
    bytes.push(u8::from(digests.header) | u8::from(digests.data) << 1);
    bytes.resize(128, 0);
    bytes
}

fn namespace() -> Namespace {
    Namespace {
        blocks: 1024,
        block_size: BlockSize::B4096,
        nguid: [0x11; 16],
        uuid: [0x22; 16],
        used_blocks: 7,
        atomic_blocks: 1,
        ana_state: AnaState::Optimized,
    }
}

/// A driver that answers each command once, and checks what the connection promises.
fn drive_target(stream: &[u8], cut: usize) {
    let mut connection = Connection::new(Limits::default());
    connection.connected(Queue { id: 1, entries: ENTRIES, flow_control_disabled: true });
    let mut out = Vec::new();
    let mut expected = [None; ENTRIES as usize];
    for chunk in stream.chunks(cut) {
        let mut input = chunk;
        loop {
            match connection.receive(&mut input) {
                Ok(Some(Event::Initialize)) => connection.accept(&mut out),
                Ok(Some(Event::Command { slot, entry, transfer })) => {
                    if let Ok(transfer) = transfer {
                        let _ = IoCommand::parse(&entry, transfer, &namespace(), Limits::default().transfer);
                    }
                    match transfer {
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
                    }
                }
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

/// A host whose greeting a target has answered.
fn open_host(digests: Digests) -> host::Connection {
    let mut host = host::Connection::new(Options { digests, data_alignment: 0 });
    let mut target = Connection::new(Limits::default());
    let (mut greeting, mut answer) = (Vec::new(), Vec::new());
    host.initialize(&mut greeting);
    assert_eq!(target.receive(&mut &greeting[..]), Ok(Some(Event::Initialize)));
    target.accept(&mut answer);
    assert!(matches!(host.receive(&mut &answer[..]), Ok(Some(_))));
    host.connected(ENTRIES as usize, 16 << 10);
    host
}

fn drive_host(stream: &[u8], cut: usize, digests: Digests, connected: bool) {
    let mut out = Vec::new();
    let mut connection = host::Connection::new(Options { digests, data_alignment: 0 });
    connection.initialize(&mut out);
    if connected {
        connection = open_host(digests);
        for command in [Command::read(1, 0, 5, BLOCK), Command::write(1, 0, 5, BLOCK, false)] {
            connection.submit(&command, &mut out);
        }
    }
    for chunk in stream.chunks(cut) {
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
