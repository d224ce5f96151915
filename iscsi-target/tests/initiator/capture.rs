//! Recorded connections as a capture file, as if somebody had listened on the wire.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// One direction of one connection, or the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    ToTarget,
    ToInitiator,
}

/// Bytes that went one way at once.
pub(crate) struct Passed {
    pub(crate) connection: usize,
    pub(crate) direction: Direction,
    pub(crate) bytes: Vec<u8>,
}

/// Most payload of a packet: what an IPv4 packet may have, but for headers.
const PAYLOAD_MAX: usize = 60_000;

/// LINKTYPE_IPV4 of the pcap format: packets begin with their IPv4 header.
const LINK_TYPE: u32 = 228;

const TARGET_PORT: u16 = 3260;
const SYN: u8 = 0x02;
const PUSH: u8 = 0x08;
const ACKNOWLEDGE: u8 = 0x10;

/// Where both directions of a connection are.
#[derive(Clone, Copy, Default)]
struct Sequence {
    to_target: u32,
    to_initiator: u32,
}

/// Writes a capture in the classic pcap format, a packet each microsecond.
pub(crate) fn write(path: &Path, passed: &[Passed]) -> io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    for word in [0xa1b2_c3d4, 0x0004_0002, 0, 0, 0xffff, LINK_TYPE] {
        file.write_all(&u32::to_le_bytes(word))?;
    }
    let connections = passed.iter().map(|passed| passed.connection + 1).max().unwrap_or(0);
    let mut sequences = vec![Sequence::default(); connections];
    let mut time = 0;
    let mut packet = |connection: usize, direction: Direction, flags: u8, payload: &[u8]| {
        time += 1;
        let sequence = &mut sequences[connection];
        let packet = ipv4(connection, direction, flags, *sequence, payload);
        let advance = payload.len() as u32 + u32::from(flags & SYN != 0);
        match direction {
            Direction::ToTarget => sequence.to_target += advance,
            Direction::ToInitiator => sequence.to_initiator += advance,
        }
        for word in [0, time, packet.len() as u32, packet.len() as u32] {
            file.write_all(&word.to_le_bytes())?;
        }
        file.write_all(&packet)
    };
    for connection in 0..connections {
        packet(connection, Direction::ToTarget, SYN, &[])?;
        packet(connection, Direction::ToInitiator, SYN | ACKNOWLEDGE, &[])?;
        packet(connection, Direction::ToTarget, ACKNOWLEDGE, &[])?;
    }
    for Passed { connection, direction, bytes } in passed {
        for payload in bytes.chunks(PAYLOAD_MAX) {
            packet(*connection, *direction, PUSH | ACKNOWLEDGE, payload)?;
        }
    }
    file.flush()
}

/// An IPv4 packet with a TCP segment. Nobody looks at the checksums.
fn ipv4(connection: usize, direction: Direction, flags: u8, sequence: Sequence, payload: &[u8]) -> Vec<u8> {
    const HEADERS: usize = 40;
    let (initiator, target) = (([10, 0, 0, 2], 40_000 + connection as u16), ([10, 0, 0, 1], TARGET_PORT));
    let (from, to, sent, received) = match direction {
        Direction::ToTarget => (initiator, target, sequence.to_target, sequence.to_initiator),
        Direction::ToInitiator => (target, initiator, sequence.to_initiator, sequence.to_target),
    };
    let mut packet = vec![0x45, 0];
    packet.extend(((HEADERS + payload.len()) as u16).to_be_bytes());
    // Identification; not to be fragmented; time to live; TCP; checksum.
    packet.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
    packet.extend(from.0);
    packet.extend(to.0);
    packet.extend(from.1.to_be_bytes());
    packet.extend(to.1.to_be_bytes());
    packet.extend(sent.to_be_bytes());
    packet.extend(received.to_be_bytes());
    // Five words of header; window; checksum; no urgent data.
    packet.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    packet.extend(payload);
    packet
}
