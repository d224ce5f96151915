//! A unit as its initiators see it: attentions, pages, protection, access states, and what is refused.

use scsi_protocol::command::{Access, Blocks, CDB_LENGTH, Command};
use scsi_protocol::copy::CopyResult;
use scsi_protocol::inquiry::Identity;
use scsi_protocol::log::Space;
use scsi_protocol::ports::{AccessState, Group, Port};
use scsi_protocol::reservation::{PortName, Reservations};
use scsi_protocol::sense::{Key, Sense, Status};
use scsi_protocol::unit::{Action, LogicalUnit, Medium, NexusId, Response, respond_without_unit};

const MEDIUM: Medium = Medium {
    blocks: 2048,
    block_size: 512,
    physical_exponent: 3,
    allocation_blocks: 8,
    transfer_max: 8192,
    write_same_max: 1 << 18,
    read_only: false,
};
const PORT: Port = Port { relative: 1, group: 1 };
const TEST_UNIT_READY: &[u8] = &[0];
const WRITE: &[u8] = &[0x2a, 0, 0, 0, 0, 0, 0, 0, 1];
const READ: &[u8] = &[0x28, 0, 0, 0, 0, 0, 0, 0, 1];

fn identity() -> Identity {
    Identity {
        uuid: *b"0123456789abcdef",
        serial: "0123456789abcdef".to_owned(),
        revision: "1".to_owned(),
        target: "iqn.2026-11.io.ashlar:v".to_owned(),
    }
}

fn unit() -> LogicalUnit {
    let groups = vec![Group { id: 1, state: AccessState::Optimized, ports: vec![1] }];
    LogicalUnit::new(identity(), MEDIUM, groups, Reservations::default())
}

fn initiator(number: u8) -> PortName {
    PortName::iscsi("iqn.1993-08.org.debian:01:host", [0, 2, 0x3d, 0, 0, number])
}

/// Attaches, and takes the first attention.
fn attach(unit: &mut LogicalUnit, number: u8) -> NexusId {
    let nexus = unit.attach(initiator(number), PORT);
    assert_eq!(sense(unit, nexus, TEST_UNIT_READY).code, 0x2900);
    nexus
}

fn cdb(bytes: &[u8]) -> [u8; CDB_LENGTH] {
    let mut cdb = [0; CDB_LENGTH];
    cdb[..bytes.len()].copy_from_slice(bytes);
    cdb
}

fn send(unit: &mut LogicalUnit, nexus: NexusId, bytes: &[u8], data: &[u8]) -> Action {
    match unit.start(nexus, &cdb(bytes)) {
        Ok(command) => {
            assert_eq!(command.data_out(unit.medium()), data.len() as u64, "{command:?}");
            unit.run(nexus, &command, data)
        }
        Err(response) => Action::Respond(response),
    }
}

fn answer(unit: &mut LogicalUnit, nexus: NexusId, bytes: &[u8]) -> Response {
    match send(unit, nexus, bytes, &[]) {
        Action::Respond(response) => response,
        other => panic!("{other:?}"),
    }
}

fn sense(unit: &mut LogicalUnit, nexus: NexusId, bytes: &[u8]) -> Sense {
    let response = answer(unit, nexus, bytes);
    assert_eq!(response.status, Status::CheckCondition);
    response.sense.expect("sense data")
}

fn good(unit: &mut LogicalUnit, nexus: NexusId, bytes: &[u8]) -> Vec<u8> {
    let response = answer(unit, nexus, bytes);
    assert_eq!(response.status, Status::Good, "{response:?}");
    response.data
}

#[test]
fn an_attention_is_told_once_and_does_not_stop_an_inquiry() {
    let mut unit = unit();
    let nexus = unit.attach(initiator(1), PORT);
    assert_eq!(good(&mut unit, nexus, &[0x12, 0, 0, 0, 36]).len(), 36);
    assert_eq!(good(&mut unit, nexus, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 16])[..4], [0, 0, 0, 8]);
    let told = sense(&mut unit, nexus, READ);
    assert_eq!((told.key, told.code), (Key::UnitAttention, 0x2900));
    assert_eq!(send(&mut unit, nexus, READ, &[]), Action::Access(Access::Read(Blocks { start: 0, count: 1 })));
}

#[test]
fn request_sense_takes_the_attention() {
    let mut unit = unit();
    let nexus = unit.attach(initiator(1), PORT);
    let data = good(&mut unit, nexus, &[0x03, 0, 0, 0, 252]);
    assert_eq!((data[0], data[2], data[12]), (0x70, 6, 0x29));
    let data = good(&mut unit, nexus, &[0x03, 1, 0, 0, 252]);
    assert_eq!(data, [0x72, 0, 0, 0, 0, 0, 0, 0]);
    good(&mut unit, nexus, TEST_UNIT_READY);
}

/// I39: hosts hear of a grown volume.
#[test]
fn a_grown_medium_is_announced_to_all() {
    let mut unit = unit();
    let (first, second) = (attach(&mut unit, 1), attach(&mut unit, 2));
    unit.set_medium(Medium { blocks: 4096, ..MEDIUM });
    for nexus in [first, second] {
        assert_eq!(sense(&mut unit, nexus, TEST_UNIT_READY).code, 0x2a09);
        assert_eq!(good(&mut unit, nexus, &[0x25])[..4], [0, 0, 0x0f, 0xff]);
    }
    unit.set_medium(Medium { blocks: 4096, ..MEDIUM });
    good(&mut unit, first, TEST_UNIT_READY);
}

#[test]
fn a_mode_select_is_announced_to_the_others() {
    let mut unit = unit();
    let (first, second) = (attach(&mut unit, 1), attach(&mut unit, 2));
    assert!(!unit.forces_unit_access());
    let mut list = good(&mut unit, first, &[0x1a, 0x08, 0x08, 0, 255]);
    assert_eq!(list.len(), 24);
    list[0] = 0;
    list[6] = 0;
    let select = [0x15, 0x10, 0, 0, 24];
    assert_eq!(send(&mut unit, first, &select, &list), Action::Respond(Response::good(vec![])));
    assert!(unit.forces_unit_access());
    good(&mut unit, first, TEST_UNIT_READY);
    assert_eq!(sense(&mut unit, second, TEST_UNIT_READY).code, 0x2a01);
    // The same again changes nothing.
    send(&mut unit, first, &select, &list);
    good(&mut unit, second, TEST_UNIT_READY);
}

#[test]
fn software_write_protection_stops_writes_only() {
    let mut unit = unit();
    let nexus = attach(&mut unit, 1);
    let mut list = good(&mut unit, nexus, &[0x1a, 0x08, 0x0a, 0, 255]);
    list[0] = 0;
    list[8] |= 0x08;
    send(&mut unit, nexus, &[0x15, 0x10, 0, 0, 16], &list);
    let refused = |unit: &mut LogicalUnit, bytes: &[u8]| unit.start(nexus, &cdb(bytes)).unwrap_err().sense;
    for write in [WRITE, &[0x42, 0, 0, 0, 0, 0, 0, 0, 8], &[0x83, 0], &[0x41, 0, 0, 0, 0, 0, 0, 0, 1]] {
        assert_eq!(refused(&mut unit, write), Some(Sense::SOFTWARE_WRITE_PROTECTED));
    }
    assert!(matches!(send(&mut unit, nexus, READ, &[]), Action::Access(_)));
    assert_eq!(send(&mut unit, nexus, &[0x35], &[]), Action::Access(Access::Flush));
    unit.set_medium(Medium { read_only: true, ..MEDIUM });
    unit.reset(Some(nexus));
    assert_eq!(refused(&mut unit, WRITE), Some(Sense::WRITE_PROTECTED));
}

/// I14: where another node serves the volume, a host is told so, and not an error of the medium.
#[test]
fn a_path_that_does_not_serve_says_so() {
    let mut unit = unit();
    let nexus = attach(&mut unit, 1);
    unit.set_access_state(1, AccessState::Unavailable);
    assert_eq!(sense(&mut unit, nexus, READ).code, 0x2a06);
    assert_eq!(sense(&mut unit, nexus, READ), Sense::PORT_UNAVAILABLE);
    assert_eq!(sense(&mut unit, nexus, TEST_UNIT_READY), Sense::PORT_UNAVAILABLE);
    let groups = good(&mut unit, nexus, &[0xa3, 0x0a, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(groups[4], 3);
    good(&mut unit, nexus, &[0x12, 0, 0, 0, 36]);
    unit.set_access_state(1, AccessState::Optimized);
    assert_eq!(sense(&mut unit, nexus, READ).code, 0x2a06);
    assert!(matches!(send(&mut unit, nexus, READ, &[]), Action::Access(_)));
}

#[test]
fn a_reserved_unit_is_for_its_holder_until_the_session_or_a_reset_ends_it() {
    const RESERVE: &[u8] = &[0x16];
    const RELEASE: &[u8] = &[0x17];
    let mut unit = unit();
    let (first, second) = (attach(&mut unit, 1), attach(&mut unit, 2));
    good(&mut unit, first, RESERVE);
    good(&mut unit, first, RESERVE);
    for bytes in [RESERVE, READ, WRITE, TEST_UNIT_READY] {
        let refused = unit.start(second, &cdb(bytes)).unwrap_err();
        assert_eq!(refused.status, Status::ReservationConflict, "{bytes:?}");
    }
    good(&mut unit, second, &[0x12, 0, 0, 0, 36]);
    // Without effect: it is not the holder's.
    good(&mut unit, second, RELEASE);
    assert_eq!(unit.start(second, &cdb(READ)).unwrap_err().status, Status::ReservationConflict);
    good(&mut unit, first, RELEASE);
    good(&mut unit, second, RESERVE);
    unit.detach(second);
    good(&mut unit, first, RESERVE);
    unit.reset(None);
    let third = attach(&mut unit, 3);
    good(&mut unit, third, RESERVE);
    assert_eq!(sense(&mut unit, first, READ).code, 0x2903);
}

#[test]
fn thin_space_and_unmap() {
    let mut unit = unit();
    let nexus = attach(&mut unit, 1);
    unit.set_space(Space { used: 2 << 11, available: 7 << 11 });
    let page = good(&mut unit, nexus, &[0x4d, 0, 0x4c, 0, 0, 0, 0, 1, 0]);
    assert_eq!((page[11], page[23]), (7, 2));
    let mut list = vec![0, 22, 0, 16, 0, 0, 0, 0];
    list.extend(8_u64.to_be_bytes());
    list.extend(16_u32.to_be_bytes());
    list.extend([0; 4]);
    let unmap = [0x42, 0, 0, 0, 0, 0, 0, 0, 24];
    assert_eq!(send(&mut unit, nexus, &unmap, &list), Action::Unmap(vec![Blocks { start: 8, count: 16 }]));
    list[8] = 1;
    assert_eq!(send(&mut unit, nexus, &unmap, &list), Action::Respond(Response::check(Sense::LBA_OUT_OF_RANGE)));
}

#[test]
fn the_result_of_a_copy_is_there_for_who_asked_for_it() {
    let mut unit = unit();
    let (first, second) = (attach(&mut unit, 1), attach(&mut unit, 2));
    let status = [0x84, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    assert_eq!(sense(&mut unit, first, &status), Sense::cdb_field(2, None));
    unit.copied(first, CopyResult { list: 5, completed: true, segments: 1, bytes: 2048 });
    assert_eq!(good(&mut unit, first, &status)[4], 1);
    assert_eq!(sense(&mut unit, second, &status), Sense::cdb_field(2, None));
}

#[test]
fn what_is_sent_is_cut_to_the_room_there_is() {
    let mut unit = unit();
    let nexus = attach(&mut unit, 1);
    for length in 0..40 {
        let capacity = good(&mut unit, nexus, &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, length]);
        assert_eq!(capacity.len(), usize::from(length).min(32));
        assert_eq!(good(&mut unit, nexus, &[0x12, 0, 0, 0, length]).len(), usize::from(length));
    }
}

#[test]
fn where_there_is_no_unit() {
    let nothing = respond_without_unit(&cdb(&[0x12, 0, 0, 0, 36]));
    assert_eq!((nothing.status, nothing.data[0]), (Status::Good, 0x7f));
    assert_eq!(respond_without_unit(&cdb(&[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 16])).data.len(), 16);
    assert_eq!(respond_without_unit(&cdb(READ)).sense, Some(Sense::UNIT_NOT_SUPPORTED));
    assert_eq!(respond_without_unit(&cdb(&[0x12, 1])).sense, Some(Sense::UNIT_NOT_SUPPORTED));
}

proptest::proptest! {
    /// Whatever comes, an answer goes: no panic, and no more data than asked for.
    #[test]
    fn any_command_with_any_data_is_answered(bytes: [u8; CDB_LENGTH], row in 0_usize..100, data: Vec<u8>) {
        let mut unit = unit();
        let nexus = attach(&mut unit, 1);
        let mut cdb = bytes;
        // Mostly commands that there are.
        if let Some(row) = scsi_protocol::opcodes::SUPPORTED.get(row) {
            cdb[0] = row.code;
            cdb[1] = row.service_action.unwrap_or(cdb[1] & 0x12);
            cdb[usize::from(row.length) - 1] = 0;
        }
        if let Ok(command) = unit.start(nexus, &cdb) {
            let takes = (command.data_out(unit.medium()) as usize).min(data.len());
            let action = unit.run(nexus, &command, &data[..takes]);
            if let (Command::Inquiry { allocation, .. }, Action::Respond(response)) = (command, action) {
                assert!(response.data.len() <= allocation as usize);
            }
        }
    }
}

#[test]
fn initiators_are_told_once_when_little_space_is_left() {
    let mut unit = unit();
    let nexus = attach(&mut unit, 1);
    // A sixteenth of the blocks is 128.
    let told = |unit: &mut LogicalUnit, available| {
        unit.set_space(Space { used: 1, available });
        let response = answer(unit, nexus, TEST_UNIT_READY);
        response.sense.map(|sense| sense.code)
    };
    let answers = [4096, 128, 127, 100, 128, 0].map(|available| told(&mut unit, available));
    assert_eq!(answers, [None, None, Some(0x3807), None, None, Some(0x3807)]);
}
