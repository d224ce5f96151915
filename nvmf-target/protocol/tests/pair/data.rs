//! Reads, writes and everything between: contents arrive whatever the digests, fragments and sizes.

use nvmf_target_protocol::Digests;
use nvmf_target_protocol::host::command::Command;
use nvmf_target_protocol::host::connection::Options;
use nvmf_target_protocol::target::connection::Limits;
use nvmf_target_protocol::wire::dataset::Range;
use nvmf_target_protocol::wire::log_page::AnaState;
use nvmf_target_protocol::wire::{Status, Submission};

use crate::util::{BLOCK, Pair, Setting, World, namespace, pattern};

fn settings() -> Vec<Setting> {
    let mut settings = Vec::new();
    for (header, data) in [(false, false), (true, false), (false, true), (true, true)] {
        for fragment in [0, 1, 7, 24, 73, 4096, 65_536] {
            for flow_control_disabled in [false, true] {
                for data_alignment in [0, 128] {
                    settings.push(Setting {
                        limits: Limits { host_data: 8192, ..Limits::default() },
                        options: Options { digests: Digests { header, data }, data_alignment },
                        flow_control_disabled,
                        fragment,
                        keep_alive_ms: 0,
                    });
                }
            }
        }
    }
    settings
}

/// In capsule, just over it, and in several H2CData.
const SIZES_IN_BLOCKS: [u32; 4] = [1, 4, 5, 11];

#[test]
fn what_is_written_is_read_whatever_the_digests_and_fragments() {
    for setting in settings() {
        let mut world = World::new();
        let _admin = Pair::admin(Setting::default(), &mut world);
        let mut io = Pair::io(1, 128, setting, &mut world);
        for (seed, blocks) in (1..).zip(SIZES_IN_BLOCKS) {
            let data = pattern((blocks * BLOCK) as usize, seed);
            let written = io.command(&Command::write(1, seed, blocks, BLOCK, false), &data, &mut world);
            assert_eq!(written.status(), Status::Success, "{setting:?}");
            let read = io.command(&Command::read(1, seed, blocks, BLOCK), &[], &mut world);
            assert_eq!(read.status(), Status::Success, "{setting:?}");
            assert!(read.data == data, "{blocks} blocks with {setting:?}");
        }
    }
}

#[test]
fn a_whole_mebibyte_goes_in_one_command() {
    let mut world = World::new();
    let _admin = Pair::admin(Setting::default(), &mut world);
    let mut io = Pair::io(1, 2, Setting::default(), &mut world);
    let data = pattern(1 << 20, 3);
    assert_eq!(io.command(&Command::write(1, 0, 256, BLOCK, false), &data, &mut world).status(), Status::Success);
    assert!(io.command(&Command::read(1, 0, 256, BLOCK), &[], &mut world).data == data);
    let larger = Command::write(1, 0, 257, BLOCK, false);
    let refused = io.command(&larger, &pattern(257 * 4096, 3), &mut world);
    assert_eq!(refused.status(), Status::InvalidField, "beyond MDTS");
}

#[test]
fn many_commands_in_flight_complete_each_once() {
    let mut world = World::new();
    let _admin = Pair::admin(Setting::default(), &mut world);
    let mut io = Pair::io(1, 1024, Setting { fragment: 1000, ..Setting::default() }, &mut world);
    let write = |index: u64| (Command::write(1, index, 1, BLOCK, false), pattern(BLOCK as usize, index));
    let slots: Vec<_> = (0..1000)
        .map(|index| {
            let (command, data) = write(index);
            io.host.submit(&command, &data)
        })
        .collect();
    io.run(&mut world);
    assert_eq!(io.host.connection.in_flight(), 0);
    assert_eq!(io.target.connection.in_flight(), 0);
    for slot in slots {
        assert_eq!(io.host.replies.remove(&slot).expect("I34").status(), Status::Success);
    }
    for index in 0..1000 {
        assert!(io.command(&Command::read(1, index, 1, BLOCK), &[], &mut world).data == write(index).1);
    }
}

/// PDU types in a stream without digests.
fn pdu_types(mut stream: &[u8]) -> Vec<u8> {
    let mut types = Vec::new();
    while let Some(header) = stream.first_chunk::<8>() {
        types.push(header[0]);
        let length = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
        stream = &stream[length as usize..];
    }
    types
}

#[test]
fn only_without_flow_control_does_the_last_data_replace_the_response() {
    for (flow_control_disabled, expected) in [(false, &[0x07, 0x05][..]), (true, &[0x07][..])] {
        let mut world = World::new();
        let _admin = Pair::admin(Setting::default(), &mut world);
        let mut io = Pair::io(1, 8, Setting { flow_control_disabled, ..Setting::default() }, &mut world);
        io.seen_by_host.clear();
        assert_eq!(io.command(&Command::read(1, 0, 1, BLOCK), &[], &mut world).status(), Status::Success);
        assert_eq!(pdu_types(&io.seen_by_host), expected);
    }
}

#[test]
fn large_writes_are_asked_for_once_and_sent_in_parts() {
    let mut world = World::new();
    let _admin = Pair::admin(Setting::default(), &mut world);
    let mut io = Pair::io(1, 8, Setting::default(), &mut world);
    let data = pattern(1 << 20, 9);
    let slot = io.host.submit(&Command::write(1, 0, 256, BLOCK, false), &data);
    let command = std::mem::take(&mut io.host.out);
    assert_eq!(command.len(), 72, "no data with the command");
    io.target.receive(&command, &mut world).unwrap();
    assert_eq!(pdu_types(&io.target.out), [0x09]);
    io.run(&mut world);
    assert_eq!(io.host.replies.remove(&slot).unwrap().status(), Status::Success);
    assert!(world.disk[..1 << 20] == data[..]);
}

#[test]
fn the_submission_head_follows_the_commands_around_the_queue() {
    let mut world = World::new();
    let _admin = Pair::admin(Setting::default(), &mut world);
    let mut io = Pair::io(1, 4, Setting::default(), &mut world);
    let heads: Vec<u16> = (0..5).map(|_| io.command(&Command::flush(1), &[], &mut world).submission_head).collect();
    // The Connect took entry 0.
    assert_eq!(heads, [2, 3, 0, 1, 2]);
}

#[test]
fn compare_write_zeroes_deallocate_flush_and_fua() {
    let mut world = World::new();
    let _admin = Pair::admin(Setting::default(), &mut world);
    let mut io = Pair::io(1, 8, Setting::default(), &mut world);
    let data = pattern(2 * BLOCK as usize, 1);
    let mut status = |command: &Command, data: &[u8]| io.command(command, data, &mut world).status();

    assert_eq!(status(&Command::write(1, 4, 2, BLOCK, true), &data), Status::Success);
    assert_eq!(status(&Command::compare(1, 4, 2, BLOCK), &data), Status::Success);
    assert_eq!(status(&Command::write_zeroes(1, 5, 1, true), &[]), Status::Success);
    assert_eq!(status(&Command::compare(1, 4, 2, BLOCK), &data), Status::CompareFailure);
    let ranges: Vec<u8> =
        [Range { start: 4, blocks: 1 }, Range { start: 0, blocks: 0 }].iter().flat_map(Range::encode).collect();
    assert_eq!(status(&Command::deallocate(1, 2), &ranges), Status::Success);
    assert_eq!(status(&Command::compare(1, 4, 2, BLOCK), &vec![0; data.len()]), Status::Success);
    assert_eq!(status(&Command::flush(1), &[]), Status::Success);
    assert_eq!(world.flushes, 2, "a FUA write and a Flush");
}

#[test]
fn faults_of_a_command_leave_the_connection_as_it_was() {
    let mut world = World::new();
    let _admin = Pair::admin(Setting::default(), &mut world);
    let mut io = Pair::io(1, 8, Setting { fragment: 100, ..Setting::default() }, &mut world);
    let data = pattern(5 * BLOCK as usize, 1);
    let mut status = |command: &Command, data: &[u8]| io.command(command, data, &mut world).status();

    assert_eq!(status(&Command::read(1, 1024, 1, BLOCK), &[]), Status::LbaOutOfRange);
    assert_eq!(status(&Command::write(1, 1023, 2, BLOCK, false), &data[..8192]), Status::LbaOutOfRange, "in capsule");
    assert_eq!(status(&Command::write(1, 1023, 5, BLOCK, false), &data), Status::LbaOutOfRange, "solicited");
    assert_eq!(status(&Command::read(2, 0, 1, BLOCK), &[]), Status::InvalidNamespaceOrFormat);
    assert_eq!(status(&Command::read(1, 0, 1, 512), &[]), Status::DataSglLengthInvalid);
    let unknown = Command { entry: Submission::new(0x10, 1), ..Command::flush(1) };
    assert_eq!(status(&unknown, &[]), Status::InvalidOpcode);
    let both_ways = Command { entry: Submission::new(0x83, 1), ..Command::flush(1) };
    assert_eq!(status(&both_ways, &[]), Status::InvalidOpcode);
    let ranges = Range { start: 1024, blocks: 1 }.encode();
    assert_eq!(status(&Command::deallocate(1, 1), &ranges), Status::LbaOutOfRange);

    assert_eq!(status(&Command::write(1, 0, 5, BLOCK, false), &data), Status::Success);
    assert!(world.disk[..data.len()] == data[..]);
}

#[test]
fn an_inaccessible_path_says_so_and_serves_again_later() {
    let mut world = World::new();
    let _admin = Pair::admin(Setting::default(), &mut world);
    let mut io = Pair::io(1, 8, Setting::default(), &mut world);
    let read = Command::read(1, 0, 1, BLOCK);
    world.subsystem.attach(
        1,
        nvmf_target_protocol::target::subsystem::Namespace { ana_state: AnaState::Inaccessible, ..namespace() },
    );
    assert_eq!(io.command(&read, &[], &mut world).status(), Status::AnaInaccessible);
    world.subsystem.attach(1, namespace());
    assert_eq!(io.command(&read, &[], &mut world).status(), Status::Success);
}

#[test]
fn damaged_data_fails_its_command_and_no_other() {
    let digests = Digests { header: false, data: true };
    let setting = Setting { options: Options { digests, data_alignment: 0 }, ..Setting::default() };
    let mut world = World::new();
    let _admin = Pair::admin(Setting::default(), &mut world);
    let mut io = Pair::io(1, 8, setting, &mut world);
    let data = pattern(BLOCK as usize, 1);

    let slot = io.host.submit(&Command::write(1, 0, 1, BLOCK, false), &data);
    io.host.out[80] ^= 1;
    io.run(&mut world);
    assert_eq!(io.host.replies.remove(&slot).unwrap().status(), Status::TransientTransportError);
    assert!(world.disk[..data.len()].iter().all(|byte| *byte == 0), "nothing of it was written");

    assert_eq!(io.command(&Command::write(1, 0, 1, BLOCK, false), &data, &mut world).status(), Status::Success);

    // The other way: the host finds it.
    let slot = io.host.submit(&Command::read(1, 0, 1, BLOCK), &[]);
    let command = std::mem::take(&mut io.host.out);
    io.target.receive(&command, &mut world).unwrap();
    io.target.out[100] ^= 1;
    io.run(&mut world);
    assert_eq!(io.host.replies.remove(&slot).unwrap().status(), Status::TransientTransportError);
}
