//! Both ends of the replica protocol, fed with anything.

use replica_protocol::{
    Chain, Client, ClientEvent, Command, Extents, Frame, Grant, HEADER_SIZE, Kind, Open, Server, ServerEvent, State,
    Status, checksum,
};

/// The longest payload that is made up here.
const PAYLOAD: usize = 512;

/// How many requests a server lets be in flight here.
const CREDITS: u32 = 64;

/// The first byte says which end, and whether frames are sealed; the second how the stream is cut.
pub(super) fn frames(bytes: &[u8]) {
    let [mode, size, bytes @ ..] = bytes else { return };
    let stream = if mode & 2 == 0 { sealed(bytes) } else { bytes.to_vec() };
    let pieces = stream.chunks(usize::from(*size) * 4 + 1);
    match mode & 1 {
        0 => serve(pieces, mode & 4 == 0),
        _ => ask(pieces),
    }
    messages(bytes);
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let (_, _, greeting) = greeted();
    let frame = |kind| Frame { epoch: 9, length: 4096, ..Frame::new(kind) }.encode();
    let requests: Vec<u8> = Kind::ALL.into_iter().flat_map(frame).collect();
    let mut seeds: Vec<Vec<u8>> = Vec::new();
    for mode in 0..8 {
        seeds.push([&[mode, 255], &greeting[..]].concat());
        seeds.push([&[mode, 9], &requests[..]].concat());
    }
    seeds
}

fn open() -> Open {
    Open { replica: [1; 16], volume: [2; 16], instance: [3; 16], epoch: 9 }
}

fn grant() -> Grant {
    Grant { epoch: 9, size: 1 << 20, block_size: 512, atomic_write: 512, allocation_unit: 4096, state: State::Complete }
}

/// The bytes as frames whose magic and checksums are right.
fn sealed(bytes: &[u8]) -> Vec<u8> {
    let mut stream = Vec::new();
    let mut rest = bytes;
    while let Some((header, after)) = rest.split_at_checked(HEADER_SIZE) {
        let mut frame: [u8; HEADER_SIZE] = header.try_into().expect("as long as a header");
        let sound = Frame::new(Kind::ALL[usize::from(frame[6]) % Kind::ALL.len()]).encode();
        frame[..7].copy_from_slice(&sound[..7]);
        let length = usize::from(u16::from_le_bytes([frame[40], frame[41]])) % (PAYLOAD + 1);
        let (payload, after) = after.split_at(length.min(after.len()));
        // At most PAYLOAD.
        frame[40..44].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        let sum = if payload.is_empty() { 0 } else { checksum(payload) };
        frame[44..48].copy_from_slice(&sum.to_le_bytes());
        let sum = checksum(&frame[..60]);
        frame[60..].copy_from_slice(&sum.to_le_bytes());
        stream.extend_from_slice(&frame);
        stream.extend_from_slice(payload);
        rest = after;
    }
    stream.extend_from_slice(rest);
    stream
}

/// A server that answers what it is asked, past the greeting if so wanted.
fn serve<'a>(pieces: impl Iterator<Item = &'a [u8]>, past_greeting: bool) {
    let mut server = if past_greeting { greeted().0 } else { Server::new(CREDITS, 0) };
    for piece in pieces {
        if !answer(&mut server, piece) {
            return;
        }
        assert!(server.in_flight() <= CREDITS);
    }
}

/// Both ends past the grant, and what the client said to get there.
fn greeted() -> (Server, Client<u32>, Vec<u8>) {
    let (mut server, mut client) = (Server::new(CREDITS, 0), Client::<u32>::default());
    let mut said = client.hello([3; 16], "a");
    assert!(matches!(server.handle(&mut &said[..]), Ok(Some(ServerEvent::Hello(_)))));
    let welcome = server.welcome("b");
    assert!(matches!(client.handle(&mut &welcome[..]), Ok(Some(ClientEvent::Welcome(_)))));
    let open = client.open(&open());
    said.extend_from_slice(&open);
    assert!(matches!(server.handle(&mut &open[..]), Ok(Some(ServerEvent::Open(_)))));
    let grant = server.grant(&grant());
    assert!(matches!(client.handle(&mut &grant[..]), Ok(Some(ClientEvent::Granted(_)))));
    (server, client, said)
}

/// Handles some bytes; false when the connection must be closed.
fn answer(server: &mut Server, bytes: &[u8]) -> bool {
    let mut input = bytes;
    let mut write = None;
    loop {
        match server.handle(&mut input) {
            Ok(None) => return true,
            Err(_) => return false,
            Ok(Some(event)) => match event {
                ServerEvent::Hello(_) => drop(server.welcome("b")),
                ServerEvent::Open(_) => drop(server.grant(&grant())),
                ServerEvent::Request { id, .. } => drop(server.answer_error(id, Status::Internal, "no")),
                ServerEvent::WriteBegin { id, .. } => write = Some(id),
                ServerEvent::WriteEnd => {
                    if let Some(id) = write.take() {
                        server.answer(id, Status::Good, std::iter::empty());
                    }
                }
                ServerEvent::Ping => drop(server.pong(0, 0, false)),
                _ => {}
            },
        }
    }
}

/// A client with some requests in flight.
fn ask<'a>(pieces: impl Iterator<Item = &'a [u8]>) {
    let (_, mut client, _) = greeted();
    for number in 0..4 {
        let _ = client.start(&Command::Read { offset: 0, length: 4096 }, number);
        let _ = client.start(&Command::Flush, number);
    }
    for piece in pieces {
        let mut input = piece;
        loop {
            match client.handle(&mut input) {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}

/// What is read of a message is what is written again.
fn messages(bytes: &[u8]) {
    if let Ok(chain) = Chain::parse(bytes) {
        assert_eq!(Chain::parse(&chain.encode()), Ok(chain));
    }
    if let Ok(extents) = Extents::parse(bytes) {
        assert_eq!(Extents::parse(&extents.encode()), Ok(extents));
    }
}
