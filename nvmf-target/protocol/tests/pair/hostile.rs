//! Bytes that break the protocol: each ends its connection with the right reason, and nothing else.

use nvmf_target_protocol::Digests;
use nvmf_target_protocol::host::command::Command;
use nvmf_target_protocol::host::connection::{self as host, Options};
use nvmf_target_protocol::target::connection::{Connection, Event, Fault, Limits, Transfer};
use nvmf_target_protocol::wire::Status;
use nvmf_target_protocol::wire::pdu::FatalError;

use crate::util::{BLOCK, Pair, Setting, TargetEnd, World, pattern};

const IC_REQ: [u8; 8] = [0x00, 0, 0x80, 0, 0x80, 0, 0, 0];

fn ic_req() -> Vec<u8> {
    let mut bytes = IC_REQ.to_vec();
    bytes.resize(128, 0);
    bytes
}

/// A CapsuleCmd header with a Flush, and `length` as PLEN.
fn capsule(length: u32) -> Vec<u8> {
    let mut bytes = vec![0x04, 0, 72, 0];
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.resize(72, 0);
    bytes[9] = 0x40;
    bytes
}

/// Feeds `bytes` to a fresh target, byte by byte and all at once; both must end alike.
fn fault_of(bytes: &[u8]) -> Fault {
    let end = |fragment: usize| {
        let mut target = TargetEnd::new(Limits::default());
        let mut world = World::new();
        bytes.chunks(fragment).find_map(|chunk| target.receive(chunk, &mut world).err())
    };
    let whole = end(usize::MAX).expect("the stream breaks the protocol");
    assert_eq!(end(1), Some(whole));
    whole
}

fn after_ic_req(bytes: &[u8]) -> Fault {
    fault_of(&[&ic_req()[..], bytes].concat())
}

fn invalid(offset: u32) -> Fault {
    Fault::Protocol(FatalError::InvalidHeaderField(offset))
}

const SEQUENCE: Fault = Fault::Protocol(FatalError::SequenceError);

#[test]
fn the_first_pdu_is_a_sound_ic_req() {
    assert_eq!(fault_of(&capsule(72)), SEQUENCE, "a command first");
    assert_eq!(fault_of(b"GET / HTTP/1.1\r\n"), invalid(0), "not NVMe at all");
    let with = |index: usize, value: u8| {
        let mut bytes = ic_req();
        bytes[index] = value;
        fault_of(&bytes)
    };
    assert_eq!(with(1, 1), invalid(1), "a header digest flag before digests are agreed on");
    assert_eq!(with(2, 72), invalid(2), "HLEN");
    assert_eq!(with(4, 0), invalid(4), "PLEN below HLEN");
    assert_eq!(with(4, 0x81), invalid(3), "data in an ICReq, at PDO 0");
    assert_eq!(with(8, 1), Fault::Protocol(FatalError::UnsupportedParameter(8)), "PFV");
    assert_eq!(with(10, 32), Fault::Protocol(FatalError::UnsupportedParameter(10)), "HPDA");
}

#[test]
fn a_host_sends_nothing_that_only_a_controller_sends() {
    for pdu_type in [0x01, 0x03, 0x05, 0x07, 0x08, 0x09, 0x0a, 0xff] {
        assert_eq!(after_ic_req(&[pdu_type, 0, 24, 0, 24, 0, 0, 0]), invalid(0), "type {pdu_type:02x}h");
    }
    assert_eq!(after_ic_req(&ic_req()), SEQUENCE, "a second ICReq");
}

#[test]
fn lengths_and_offsets_are_checked_before_they_are_used() {
    assert_eq!(after_ic_req(&capsule(71)), invalid(4), "shorter than its header");
    assert_eq!(after_ic_req(&capsule(u32::MAX)), invalid(3), "4 GiB at PDO 0");
    let with_data = |offset: u8, length: u32| {
        let mut bytes = capsule(length);
        bytes[3] = offset;
        after_ic_req(&bytes)
    };
    assert_eq!(with_data(72, 72 + 8193), invalid(4), "more than fits in a capsule");
    assert_eq!(with_data(72, u32::MAX), invalid(4));
    assert_eq!(with_data(64, 100), invalid(3), "data inside the header");
    assert_eq!(with_data(74, 100), invalid(3), "unaligned data");
    assert_eq!(with_data(128, 100), invalid(4), "data beyond the end");
    assert_eq!(with_data(255, 300), invalid(3));
}

#[test]
fn in_capsule_data_is_limited_by_the_queue() {
    let mut world = World::new();
    let mut admin = Pair::admin(Setting::default(), &mut world);
    let mut bytes = capsule(72 + 16384);
    bytes[3] = 72;
    assert_eq!(admin.target.receive(&bytes, &mut world), Err(invalid(4)), "16 KiB on the admin queue");
    let mut io = Pair::io(1, 8, Setting::default(), &mut world);
    assert_eq!(io.target.receive(&bytes, &mut world), Ok(()), "but not on an I/O queue");
}

#[test]
fn a_wrong_header_digest_is_told_with_the_digest() {
    let mut world = World::new();
    let options = Options { digests: Digests { header: true, data: false }, data_alignment: 0 };
    let mut pair = Pair::open(Setting { options, ..Setting::default() }, &mut world);
    pair.host.submit(&Command::keep_alive(), &[]);
    let mut bytes = std::mem::take(&mut pair.host.out);
    bytes[72] ^= 0xff;
    let digest = u32::from_le_bytes(bytes[72..76].try_into().unwrap());
    let error = FatalError::HeaderDigestError(digest);
    assert_eq!(pair.target.receive(&bytes, &mut world), Err(Fault::Protocol(error)));
    let mut out = Vec::new();
    pair.target.connection.terminate(error, &mut out);
    assert_eq!(out[..8], [0x03, 0, 24, 0, 24 + 76, 0, 0, 0], "C2HTermReq, quoting the whole header");
    assert_eq!(out[8..14], [&[3, 0][..], &digest.to_le_bytes()].concat());
    assert_eq!(out[24..], bytes[..76]);
}

#[test]
fn a_pdu_without_the_agreed_digests_is_refused() {
    let mut world = World::new();
    let options = Options { digests: Digests { header: true, data: true }, data_alignment: 0 };
    let open = |world: &mut World| Pair::open(Setting { options, ..Setting::default() }, world);
    assert_eq!(open(&mut world).target.receive(&capsule(72), &mut world), Err(invalid(1)), "no header digest");
    let mut bytes = capsule(76 + 8);
    (bytes[1], bytes[3]) = (1, 76);
    assert_eq!(open(&mut world).target.receive(&bytes, &mut world), Err(invalid(1)), "no data digest");
}

#[test]
fn a_termination_request_ends_the_connection_with_its_reason() {
    let mut bytes = vec![0x02, 0, 24, 0, 48, 0, 0, 0, 0x04, 0];
    bytes.resize(48, 0);
    assert_eq!(after_ic_req(&bytes), Fault::TerminatedByHost(FatalError::DataOutOfRange));
    bytes[4] = 24 + 129;
    assert_eq!(after_ic_req(&bytes), invalid(4), "more than 128 bytes quoted");
}

#[test]
fn more_commands_than_the_queue_has_entries() {
    let mut target = Connection::new(Limits::default());
    let mut out = Vec::new();
    let bytes = [&ic_req()[..], &capsule(72), &capsule(72)].concat();
    let mut input = &bytes[..];
    assert_eq!(target.receive(&mut input), Ok(Some(Event::Initialize)));
    target.accept(&mut out);
    assert!(matches!(target.receive(&mut input), Ok(Some(Event::Command { .. }))));
    assert_eq!(target.receive(&mut input), Err(SEQUENCE), "Connect comes alone");

    let mut world = World::new();
    let _admin = Pair::admin(Setting::default(), &mut world);
    let mut io = Pair::io(1, 2, Setting::default(), &mut world);
    io.host.connection.connected(3, 0);
    let data = pattern(5 * BLOCK as usize, 0);
    for _ in 0..3 {
        // Each waits for its data.
        io.host.submit(&Command::write(1, 0, 5, BLOCK, false), &data);
    }
    let bytes = std::mem::take(&mut io.host.out);
    assert_eq!(io.target.receive(&bytes, &mut world), Err(SEQUENCE));
}

/// A target that has asked for 20 KiB, and the header of the H2CData with its first 16 KiB.
fn soliciting() -> (Pair, World, Vec<u8>) {
    let limits = Limits { host_data: 16 << 10, ..Limits::default() };
    let setting = Setting { limits, ..Setting::default() };
    let mut world = World::new();
    let _admin = Pair::admin(Setting::default(), &mut world);
    let mut io = Pair::io(1, 8, setting, &mut world);
    io.host.submit(&Command::write(1, 0, 5, BLOCK, false), &pattern(5 * BLOCK as usize, 0));
    let command = std::mem::take(&mut io.host.out);
    io.target.receive(&command, &mut world).unwrap();
    let r2t = std::mem::take(&mut io.target.out);
    let mut header = vec![0x06, 0, 24, 24];
    header.extend_from_slice(&(24u32 + (16 << 10)).to_le_bytes());
    header.extend_from_slice(&r2t[8..16]);
    header.extend_from_slice(&(16u32 << 10).to_le_bytes());
    header.resize(24, 0);
    (io, world, header)
}

#[test]
fn data_that_was_not_asked_for() {
    let with = |index: usize, value: u8| {
        let (mut io, mut world, mut header) = soliciting();
        header[index] = value;
        io.target.receive(&header, &mut world).unwrap_err()
    };
    let (_, _, good) = soliciting();
    assert_eq!(with(8, good[8] ^ 1), invalid(8), "another command's identifier");
    assert_eq!(with(10, good[10] ^ 1), invalid(10), "a tag never given");
    assert_eq!(with(11, good[11] ^ 0x80), invalid(10), "a tag of an older generation (I16)");
    assert_eq!(with(13, 1), Fault::Protocol(FatalError::DataOutOfRange), "an offset out of order");
    assert_eq!(with(15, 0xff), Fault::Protocol(FatalError::DataOutOfRange), "an offset that overflows");
    assert_eq!(with(18, 1), Fault::Protocol(FatalError::LimitExceeded), "more than MAXH2CDATA");
    assert_eq!(with(17, 0x10), invalid(16), "DATAL that PLEN contradicts");
    assert_eq!(with(1, 1 << 2), invalid(1), "last, but it is not");
    assert_eq!(with(5, 0x80), invalid(4), "PLEN beyond MAXH2CDATA");
}

#[test]
fn data_after_the_last_of_it() {
    // I11: what is complete cannot be changed by whoever sent it.
    let (mut io, mut world, header) = soliciting();
    io.target.receive(&[&header[..], &[1; 16 << 10]].concat(), &mut world).unwrap();
    let mut last = header.clone();
    last[1] = 1 << 2;
    last[4..8].copy_from_slice(&(24u32 + 4096).to_le_bytes());
    last[12..16].copy_from_slice(&(16u32 << 10).to_le_bytes());
    last[16..20].copy_from_slice(&4096u32.to_le_bytes());
    let not_last = [&last[..1], &[0], &last[2..]].concat();
    let mut beyond = last.clone();
    beyond[4..8].copy_from_slice(&(24u32 + 8192).to_le_bytes());
    beyond[16..20].copy_from_slice(&8192u32.to_le_bytes());

    let (mut other, mut other_world, _) = soliciting();
    other.target.receive(&[&header[..], &[1; 16 << 10]].concat(), &mut other_world).unwrap();
    assert_eq!(other.target.receive(&not_last, &mut other_world), Err(invalid(1)), "the last, unmarked");
    let (mut other, mut other_world, _) = soliciting();
    other.target.receive(&[&header[..], &[1; 16 << 10]].concat(), &mut other_world).unwrap();
    let out_of_range = Err(Fault::Protocol(FatalError::DataOutOfRange));
    assert_eq!(other.target.receive(&beyond, &mut other_world), out_of_range);

    io.target.receive(&[&last[..], &[2; 4096]].concat(), &mut world).unwrap();
    assert_eq!(world.disk[..16 << 10], [1; 16 << 10]);
    assert_eq!(world.disk[16 << 10..20 << 10], [2; 4096]);
    assert_eq!(io.target.receive(&header, &mut world), Err(invalid(10)), "the tag names nothing any more");
}

#[test]
fn bad_sgls_are_the_commands_fault_not_the_connections() {
    // Byte 24 + 8 is the opcode... of the entry that starts at byte 8: SGL at 32, its length at 40, its type at 47.
    let transfer = |opcode: u8, psdt: u8, sgl: [u8; 16]| {
        let mut target = Connection::new(Limits::default());
        let mut bytes = [&ic_req()[..], &capsule(72)].concat();
        (bytes[128 + 8], bytes[128 + 9]) = (opcode, psdt << 6);
        bytes[128 + 32..128 + 48].copy_from_slice(&sgl);
        let mut input = &bytes[..];
        assert_eq!(target.receive(&mut input), Ok(Some(Event::Initialize)));
        target.accept(&mut Vec::new());
        match target.receive(&mut input) {
            Ok(Some(Event::Command { transfer, .. })) => transfer,
            other => panic!("{other:?}"),
        }
    };
    let sgl = |identifier: u8, length: u32, offset: u64| {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&offset.to_le_bytes());
        bytes[8..12].copy_from_slice(&length.to_le_bytes());
        bytes[15] = identifier;
        bytes
    };
    let (read, write, flush) = (0x02, 0x01, 0x00);
    assert_eq!(transfer(read, 1, sgl(0x5a, 512, 0)), Ok(Transfer::ToHost { length: 512 }));
    assert_eq!(transfer(write, 1, sgl(0x5a, 512, 0)), Ok(Transfer::Solicited { length: 512 }));
    assert_eq!(transfer(flush, 1, sgl(0xff, 512, 0)), Ok(Transfer::None));
    assert_eq!(transfer(read, 0, sgl(0x5a, 512, 0)), Err(Status::InvalidField), "PRPs");
    assert_eq!(transfer(read, 1, sgl(0x01, 512, 0)), Err(Status::SglDescriptorTypeInvalid), "read into a capsule");
    assert_eq!(transfer(write, 1, sgl(0x40, 512, 0)), Err(Status::SglDescriptorTypeInvalid), "a key");
    assert_eq!(transfer(write, 1, sgl(0x20, 512, 0)), Err(Status::SglDescriptorTypeInvalid), "a segment");
    assert_eq!(transfer(write, 1, sgl(0x01, 512, 0)), Err(Status::DataSglLengthInvalid), "data that is not there");
    assert_eq!(transfer(write, 1, sgl(0x01, 512, 8)), Err(Status::SglOffsetInvalid));
    assert_eq!(transfer(write, 1, sgl(0x5a, u32::MAX, 0)), Err(Status::InvalidField), "more than MDTS");
}

#[test]
fn an_answered_commands_data_is_dropped_and_the_next_command_understood() {
    let mut world = World::new();
    let _admin = Pair::admin(Setting::default(), &mut world);
    let mut io = Pair::io(1, 8, Setting::default(), &mut world);
    let slot = io.host.submit(&Command::write(1, 0, 4, BLOCK, false), &pattern(4 * BLOCK as usize, 0));
    let bytes = std::mem::take(&mut io.host.out);
    let mut input = &bytes[..1000];
    let event = io.target.connection.receive(&mut input);
    let Ok(Some(Event::Command { slot: answered, .. })) = event else { panic!("{event:?}") };
    io.target.connection.respond(answered, Status::LbaOutOfRange.into(), &mut io.target.out);
    assert_eq!(io.target.connection.receive(&mut input), Ok(None), "its data is dropped");
    io.target.receive(&bytes[1000..], &mut world).unwrap();
    io.run(&mut world);
    assert_eq!(io.host.replies.remove(&slot).unwrap().status(), Status::LbaOutOfRange);
    assert_eq!(io.command(&Command::flush(1), &[], &mut world).status(), Status::Success);
}

/// A host that has opened its connection and waits for a Connect of its own.
fn open_host(digests: Digests) -> (host::Connection, host::Slot) {
    let mut world = World::new();
    let options = Options { digests, data_alignment: 0 };
    let mut pair = Pair::open(Setting { options, ..Setting::default() }, &mut world);
    pair.host.connection.connected(2, 8192);
    let slot = pair.host.submit(&Command::read(1, 0, 2, 4096), &[]);
    (pair.host.connection, slot)
}

#[test]
fn a_target_that_breaks_the_protocol_is_left() {
    let run = |bytes: &[u8]| {
        let (mut host, slot) = open_host(Digests::default());
        let mut bytes = bytes.to_vec();
        if let Some(field) = bytes.get_mut(8..10) {
            // Byte 8: the command identifier of data and R2T.
            let claimed = u16::from_le_bytes([field[0], field[1]]);
            field.copy_from_slice(&claimed.wrapping_add(slot.tag()).to_le_bytes());
        }
        let mut input = &bytes[..];
        loop {
            match host.receive(&mut input) {
                Ok(Some(_)) => {}
                Ok(None) => panic!("no fault"),
                Err(fault) => return fault,
            }
        }
    };
    let invalid = |offset| host::Fault::Protocol(FatalError::InvalidHeaderField(offset));
    let out_of_range = host::Fault::Protocol(FatalError::DataOutOfRange);
    let mut data = vec![0x07, 0, 24, 24, 24, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0];
    assert_eq!(run(&[0x04, 0, 72, 0, 72, 0, 0, 0]), invalid(0), "a command from the target");
    data[8] = 1;
    assert_eq!(run(&data), invalid(8), "an unknown command");
    (data[8], data[12]) = (0, 4);
    assert_eq!(run(&data), out_of_range, "a gap");
    (data[12], data[5], data[17]) = (0, 0x30, 0x30);
    assert_eq!(run(&data), out_of_range, "more than the buffer holds");
    (data[5], data[17], data[1]) = (0x20, 0x20, 1 << 3);
    assert_eq!(run(&data), invalid(1), "success before the last data");
    data[17] = 0x10;
    assert_eq!(run(&data), invalid(16), "DATAL that PLEN contradicts");
    let r2t = [0x09, 0, 24, 0, 24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(run(&r2t), invalid(8), "R2T for a read");
    let mut response = vec![0x05, 0, 24, 0, 24, 0, 0, 0];
    response.resize(24, 0xff);
    assert_eq!(run(&response), invalid(20), "the end of an unknown command");
    let mut terminate = vec![0x03, 0, 24, 0, 24, 0, 0, 0, 0, 0];
    terminate.resize(24, 0);
    assert!(matches!(run(&terminate), host::Fault::TerminatedByController(_)));
}

#[test]
fn a_target_that_turns_digests_on_is_left() {
    let mut host = host::Connection::new(Options::default());
    host.initialize(&mut Vec::new());
    let mut bytes = vec![0x01, 0, 0x80, 0, 0x80, 0, 0, 0, 0, 0, 0, 0b10, 0, 0x10, 0, 0];
    bytes.resize(128, 0);
    let fault = host.receive(&mut &bytes[..]);
    assert_eq!(fault, Err(host::Fault::Protocol(FatalError::InvalidHeaderField(11))));
}
