//! Persistent reservations as stories of three hosts (SPC 5.12; I38).

use proptest::prelude::*;
use scsi_protocol::command::CDB_LENGTH;
use scsi_protocol::inquiry::Identity;
use scsi_protocol::ports::{AccessState, Group, Port};
use scsi_protocol::reservation::{PortName, RecordError, Reservations, Type};
use scsi_protocol::sense::{Sense, Status};
use scsi_protocol::unit::{Action, LogicalUnit, Medium, NexusId, Response};

const MEDIUM: Medium = Medium {
    blocks: 2048,
    block_size: 512,
    physical_exponent: 3,
    allocation_blocks: 8,
    transfer_max: 8192,
    write_same_max: 1 << 18,
    read_only: false,
};

const REGISTER: u8 = 0;
const RESERVE: u8 = 1;
const RELEASE: u8 = 2;
const CLEAR: u8 = 3;
const PREEMPT: u8 = 4;
const PREEMPT_AND_ABORT: u8 = 5;
const REGISTER_AND_IGNORE: u8 = 6;
const REGISTER_AND_MOVE: u8 = 7;

const TYPES: [Type; 6] = [
    Type::WriteExclusive,
    Type::ExclusiveAccess,
    Type::WriteExclusiveRegistrantsOnly,
    Type::ExclusiveAccessRegistrantsOnly,
    Type::WriteExclusiveAllRegistrants,
    Type::ExclusiveAccessAllRegistrants,
];

/// The host that never registers.
const WATCHER: usize = 3;

struct Story {
    unit: LogicalUnit,
    hosts: Vec<NexusId>,
    aborted: Vec<NexusId>,
}

fn name(number: usize) -> PortName {
    PortName::iscsi("iqn.1993-08.org.debian:01:host", [0, 2, 0x3d, 0, 0, number as u8])
}

impl Story {
    /// Three hosts that have been told everything, and one that only looks.
    fn new() -> Self {
        Self::resumed(Reservations::default())
    }

    fn resumed(reservations: Reservations) -> Self {
        let identity = Identity {
            uuid: [1; 16],
            serial: "1".to_owned(),
            revision: "1".to_owned(),
            target: "iqn.2026-11.io.ashlar:v".to_owned(),
        };
        let groups = vec![Group { id: 1, state: AccessState::Optimized, ports: vec![1, 2] }];
        let mut unit = LogicalUnit::new(identity, MEDIUM, groups, reservations);
        let hosts = (0..=WATCHER).map(|number| unit.attach(name(number), Port { relative: 1, group: 1 })).collect();
        let mut story = Self { unit, hosts, aborted: Vec::new() };
        (0..=WATCHER).for_each(|host| assert_eq!(story.attention(host), Some(0x2900)));
        story
    }

    fn send(&mut self, host: usize, bytes: &[u8], data: &[u8]) -> Response {
        let mut cdb = [0; CDB_LENGTH];
        cdb[..bytes.len()].copy_from_slice(bytes);
        let nexus = self.hosts[host];
        let command = match self.unit.start(nexus, &cdb) {
            Ok(command) => command,
            Err(response) => return response,
        };
        match self.unit.run(nexus, &command, data) {
            Action::Respond(response) => response,
            Action::Persist { abort, .. } => {
                self.aborted = abort;
                Response::good(Vec::new())
            }
            Action::Access(_) | Action::Unmap(_) | Action::Copy(_) => Response::good(Vec::new()),
        }
    }

    fn out_list(&mut self, host: usize, action: u8, kind: u8, list: &[u8]) -> Response {
        let length = list.len() as u8;
        self.send(host, &[0x5f, action, kind, 0, 0, 0, 0, 0, length], list)
    }

    fn out(&mut self, host: usize, action: u8, kind: u8, key: u64, action_key: u64, flags: u8) -> Response {
        let mut list = [key.to_be_bytes(), action_key.to_be_bytes()].concat();
        list.extend([0, 0, 0, 0, flags, 0, 0, 0]);
        self.out_list(host, action, kind, &list)
    }

    fn good(&mut self, host: usize, action: u8, kind: u8, key: u64, action_key: u64) {
        let response = self.out(host, action, kind, key, action_key, 0);
        assert_eq!(response.status, Status::Good, "{response:?}");
    }

    fn conflicts(&mut self, host: usize, action: u8, kind: u8, key: u64, action_key: u64) {
        let response = self.out(host, action, kind, key, action_key, 0);
        assert_eq!(response.status, Status::ReservationConflict, "{response:?}");
    }

    fn register_all(&mut self) {
        (0..3).for_each(|host| self.good(host, REGISTER, 0, 0, host as u64 + 10));
    }

    fn keys(&mut self) -> Vec<u64> {
        let data = self.send(WATCHER, &[0x5e, 0, 0, 0, 0, 0, 0, 0xff, 0xff], &[]).data;
        data[8..].chunks(8).map(|key| u64::from_be_bytes(key.try_into().unwrap())).collect()
    }

    fn generation(&mut self) -> u32 {
        let data = self.send(WATCHER, &[0x5e, 0, 0, 0, 0, 0, 0, 0, 8], &[]).data;
        u32::from_be_bytes(data[..4].try_into().unwrap())
    }

    /// Key and type of the reservation.
    fn reservation(&mut self) -> Option<(u64, u8)> {
        let data = self.send(WATCHER, &[0x5e, 1, 0, 0, 0, 0, 0, 0, 24], &[]).data;
        (data.len() == 24).then(|| (u64::from_be_bytes(data[8..16].try_into().unwrap()), data[21]))
    }

    fn may(&mut self, host: usize, opcode: u8) -> bool {
        self.send(host, &[opcode, 0, 0, 0, 0, 0, 0, 0, 1], &[0; 512]).status == Status::Good
    }

    fn may_read(&mut self, host: usize) -> bool {
        self.may(host, 0x28)
    }

    fn may_write(&mut self, host: usize) -> bool {
        self.may(host, 0x2a)
    }

    /// What the host is told next, by REQUEST SENSE.
    fn attention(&mut self, host: usize) -> Option<u16> {
        let data = self.send(host, &[0x03, 0, 0, 0, 18], &[]).data;
        (data[2] == 6).then(|| u16::from_be_bytes([data[12], data[13]]))
    }
}

#[test]
fn a_key_is_registered_changed_and_removed() {
    let mut story = Story::new();
    story.conflicts(0, REGISTER, 0, 5, 10);
    story.good(0, REGISTER, 0, 0, 0);
    assert_eq!(story.generation(), 0);
    story.good(0, REGISTER, 0, 0, 10);
    story.conflicts(0, REGISTER, 0, 0, 11);
    story.good(0, REGISTER, 0, 10, 11);
    story.good(1, REGISTER_AND_IGNORE, 0, 99, 20);
    story.good(1, REGISTER_AND_IGNORE, 0, 98, 21);
    assert_eq!(story.keys(), [11, 21]);
    assert_eq!(story.generation(), 4);
    story.good(0, REGISTER, 0, 11, 0);
    assert_eq!(story.keys(), [21]);
}

#[test]
fn only_registrants_reserve_and_release() {
    let mut story = Story::new();
    story.conflicts(0, RESERVE, 1, 0, 0);
    story.conflicts(0, RELEASE, 1, 0, 0);
    story.register_all();
    story.conflicts(0, RESERVE, 1, 11, 0);
    story.good(0, RESERVE, 1, 10, 0);
    story.good(0, RESERVE, 1, 10, 0);
    story.conflicts(0, RESERVE, 3, 10, 0);
    story.conflicts(1, RESERVE, 1, 11, 0);
    assert_eq!(story.reservation(), Some((10, 1)));
    // Not its own to release: without effect.
    story.good(1, RELEASE, 1, 11, 0);
    assert_eq!(story.reservation(), Some((10, 1)));
    assert_eq!(story.out(0, RELEASE, 3, 10, 0, 0).sense, Some(Sense::INVALID_RELEASE));
    story.good(0, RELEASE, 1, 10, 0);
    assert_eq!(story.reservation(), None);
    let refused = story.out(0, RESERVE, 2, 10, 0, 0);
    assert_eq!(refused.sense, Some(Sense::cdb_field(2, None)));
    let scope = story.out(0, RESERVE, 0x11, 10, 0, 0);
    assert_eq!(scope.sense, Some(Sense::cdb_field(2, None)));
}

/// SPC table 65 in short: the holder, another registrant, and one that is not.
#[test]
fn each_type_lets_in_whom_it_should() {
    for kind in TYPES {
        let mut story = Story::new();
        story.good(0, REGISTER, 0, 0, 10);
        story.good(1, REGISTER, 0, 0, 11);
        story.good(0, RESERVE, kind as u8, 10, 0);
        let registrants = !matches!(kind, Type::WriteExclusive | Type::ExclusiveAccess);
        let readers = matches!(
            kind,
            Type::WriteExclusive | Type::WriteExclusiveRegistrantsOnly | Type::WriteExclusiveAllRegistrants
        );
        assert!(story.may_read(0) && story.may_write(0), "{kind:?}");
        assert_eq!((story.may_read(1), story.may_write(1)), (registrants || readers, registrants), "{kind:?}");
        assert_eq!((story.may_read(2), story.may_write(2)), (readers, false), "{kind:?}");
        // Looking is always free.
        assert_eq!(story.send(2, &[0x25], &[]).status, Status::Good);
        assert_eq!(story.keys(), [10, 11]);
    }
}

#[test]
fn a_release_is_told_to_the_other_registrants_where_it_changes_what_they_may() {
    for kind in TYPES {
        let mut story = Story::new();
        story.register_all();
        story.good(0, RESERVE, kind as u8, 10, 0);
        story.good(0, RELEASE, kind as u8, 10, 0);
        let told = !matches!(kind, Type::WriteExclusive | Type::ExclusiveAccess);
        assert_eq!(story.attention(1), told.then_some(0x2a04), "{kind:?}");
        assert_eq!(story.attention(0), None);
    }
}

#[test]
fn a_reservation_of_all_registrants_ends_with_the_last() {
    let mut story = Story::new();
    story.register_all();
    story.good(1, RESERVE, 7, 11, 0);
    assert_eq!(story.reservation(), Some((0, 7)));
    story.good(0, RESERVE, 7, 10, 0);
    story.good(1, REGISTER, 0, 11, 0);
    story.good(2, REGISTER, 0, 12, 0);
    assert_eq!(story.reservation(), Some((0, 7)));
    story.good(0, REGISTER, 0, 10, 0);
    assert_eq!(story.reservation(), None);
    assert!(story.may_write(2));
}

#[test]
fn a_holder_that_unregisters_releases() {
    let mut story = Story::new();
    story.register_all();
    story.good(0, RESERVE, 5, 10, 0);
    story.good(0, REGISTER, 0, 10, 0);
    assert_eq!(story.reservation(), None);
    assert_eq!(story.attention(1), Some(0x2a04));
    assert_eq!(story.attention(2), Some(0x2a04));
}

#[test]
fn a_holder_stays_when_another_unregisters() {
    let mut story = Story::new();
    story.register_all();
    story.good(2, RESERVE, 1, 12, 0);
    story.good(0, REGISTER, 0, 10, 0);
    assert_eq!(story.reservation(), Some((12, 1)));
    assert!(story.may_write(2) && !story.may_write(1));
}

#[test]
fn a_preempted_holder_has_lost_all() {
    let mut story = Story::new();
    story.register_all();
    story.good(0, RESERVE, 1, 10, 0);
    story.good(1, PREEMPT_AND_ABORT, 3, 11, 10);
    assert_eq!(story.aborted, [story.hosts[0]]);
    assert_eq!(story.reservation(), Some((11, 3)));
    assert_eq!(story.keys(), [11, 12]);
    assert_eq!(story.attention(0), Some(0x2a05));
    // The type is another one: who stays is told.
    assert_eq!(story.attention(2), Some(0x2a04));
    assert!(!story.may_read(0) && story.may_write(1));
    story.conflicts(0, RELEASE, 1, 10, 0);
}

#[test]
fn preempting_a_registrant_leaves_the_reservation() {
    let mut story = Story::new();
    story.register_all();
    story.good(0, RESERVE, 1, 10, 0);
    story.good(1, PREEMPT, 3, 11, 12);
    assert_eq!(story.reservation(), Some((10, 1)));
    assert_eq!(story.keys(), [10, 11]);
    assert_eq!(story.attention(2), Some(0x2a05));
    assert!(story.aborted.is_empty());
    story.conflicts(1, PREEMPT, 3, 11, 77);
    assert_eq!(story.out(1, PREEMPT, 3, 11, 0, 0).sense, Some(Sense::parameter_field(8)));
}

#[test]
fn preempting_all_registrants_takes_key_zero() {
    let mut story = Story::new();
    story.register_all();
    story.good(0, RESERVE, 8, 10, 0);
    story.good(1, PREEMPT, 8, 11, 0);
    assert_eq!(story.keys(), [11]);
    assert_eq!(story.attention(0), Some(0x2a05));
    assert_eq!(story.attention(2), Some(0x2a05));
    assert!(story.may_write(1) && !story.may_read(2));
}

#[test]
fn one_may_preempt_its_own_key_shared_with_others() {
    let mut story = Story::new();
    (0..3).for_each(|host| story.good(host, REGISTER, 0, 0, 9));
    story.good(0, RESERVE, 1, 9, 0);
    story.good(1, PREEMPT, 1, 9, 9);
    assert_eq!(story.keys(), [9]);
    assert!(story.may_write(1) && !story.may_write(0));
}

#[test]
fn clear_leaves_nothing() {
    let mut story = Story::new();
    story.register_all();
    story.good(0, RESERVE, 3, 10, 0);
    story.good(2, CLEAR, 0, 12, 0);
    assert_eq!((story.keys(), story.reservation()), (vec![], None));
    assert_eq!(story.attention(1), Some(0x2a03));
    assert_eq!(story.attention(2), None);
}

fn move_list(key: u64, action_key: u64, flags: u8, port: u16, to: &PortName) -> Vec<u8> {
    let mut text = to.as_str().as_bytes().to_vec();
    text.resize((text.len() + 1).next_multiple_of(4), 0);
    let mut list = [key.to_be_bytes(), action_key.to_be_bytes()].concat();
    list.extend([0, flags]);
    list.extend(port.to_be_bytes());
    list.extend((text.len() as u32 + 4).to_be_bytes());
    list.extend([0x45, 0]);
    list.extend((text.len() as u16).to_be_bytes());
    list.extend(text);
    list
}

#[test]
fn a_reservation_moves_to_another_nexus() {
    let mut story = Story::new();
    story.good(0, REGISTER, 0, 0, 10);
    let to_second = move_list(10, 20, 0, 1, &name(1));
    let conflict = story.out_list(0, REGISTER_AND_MOVE, 0, &to_second);
    assert_eq!(conflict.status, Status::ReservationConflict);
    story.good(0, RESERVE, 1, 10, 0);
    let own = move_list(10, 20, 0, 1, &name(0));
    assert_eq!(story.out_list(0, REGISTER_AND_MOVE, 0, &own).sense, Some(Sense::parameter_field(24)));
    let no_key = move_list(10, 0, 0, 1, &name(1));
    assert_eq!(story.out_list(0, REGISTER_AND_MOVE, 0, &no_key).sense, Some(Sense::parameter_field(8)));
    assert_eq!(story.out_list(0, REGISTER_AND_MOVE, 0, &to_second).status, Status::Good);
    assert_eq!(story.reservation(), Some((20, 1)));
    assert_eq!(story.keys(), [10, 20]);
    assert!(story.may_write(1) && !story.may_write(0));
    let back = move_list(20, 30, 2, 1, &name(2));
    assert_eq!(story.out_list(1, REGISTER_AND_MOVE, 0, &back).status, Status::Good);
    assert_eq!(story.keys(), [10, 30]);
    assert!(story.may_write(2));
    // Cut off.
    assert_eq!(story.out_list(2, REGISTER_AND_MOVE, 0, &back[..40]).sense, Some(Sense::PARAMETER_LIST_LENGTH));
}

#[test]
fn a_registration_through_all_ports_is_one_on_each() {
    let mut story = Story::new();
    assert_eq!(story.out(0, REGISTER, 0, 0, 10, 0x04).status, Status::Good);
    let other_port = story.unit.attach(name(0), Port { relative: 2, group: 1 });
    story.hosts.push(other_port);
    story.attention(4);
    story.good(4, RESERVE, 1, 10, 0);
    assert!(story.may_write(0) && story.may_write(4) && !story.may_write(1));
    let status = story.send(0, &[0x5e, 3, 0, 0, 0, 0, 0, 1, 0], &[]).data;
    assert_eq!((status[20], status[21]), (0x03, 1));
    assert_eq!(&status[32..36], &[0x45, 0, 0, 48]);
}

#[test]
fn reserve_6_and_persistent_reservations_exclude_each_other() {
    let mut story = Story::new();
    assert_eq!(story.send(0, &[0x16], &[]).status, Status::Good);
    story.conflicts(0, REGISTER, 0, 0, 10);
    story.conflicts(1, REGISTER, 0, 0, 11);
    assert_eq!(story.send(0, &[0x17], &[]).status, Status::Good);
    story.good(0, REGISTER, 0, 0, 10);
    assert_eq!(story.send(0, &[0x16], &[]).status, Status::ReservationConflict);
    assert_eq!(story.send(1, &[0x17], &[]).status, Status::ReservationConflict);
}

/// I38: after a restart the same hosts have the same rights, without having said anything.
#[test]
fn a_recorded_reservation_holds_after_a_restart() {
    let mut story = Story::new();
    story.register_all();
    story.good(1, RESERVE, 3, 11, 0);
    assert!(!story.unit.reservations().persists_through_power_loss());
    assert_eq!(story.out(1, REGISTER_AND_IGNORE, 0, 0, 21, 0x01).status, Status::Good);
    assert!(story.unit.reservations().persists_through_power_loss());
    let record = story.unit.reservations().encode();
    let mut after = Story::resumed(Reservations::decode(&record).unwrap());
    assert_eq!(after.keys(), [10, 21, 12]);
    assert_eq!(after.reservation(), Some((21, 3)));
    assert!(after.may_write(1) && !after.may_read(0));
    assert_eq!(after.generation(), story.generation());
}

#[test]
fn a_damaged_record_is_not_taken_for_one() {
    let mut story = Story::new();
    story.register_all();
    story.good(2, RESERVE, 3, 12, 0);
    let record = story.unit.reservations().encode();
    for length in 0..record.len() {
        assert!(Reservations::decode(&record[..length]).is_err());
    }
    assert_eq!(Reservations::decode(&[&record[..], &[0]].concat()), Err(RecordError::Damaged));
    let mut other = record.clone();
    other[0] = 2;
    assert_eq!(Reservations::decode(&other), Err(RecordError::Version(2)));
    let mut holder = record;
    holder[9] = 3;
    assert_eq!(Reservations::decode(&holder), Err(RecordError::Damaged));
}

#[test]
fn more_registrations_than_there_is_room_for() {
    let mut story = Story::new();
    for number in 0..257 {
        let port = PortName::iscsi(&format!("iqn.1993-08.org.debian:01:{number}"), [0; 6]);
        let nexus = story.unit.attach(port, Port { relative: 1, group: 1 });
        story.hosts.push(nexus);
        let host = story.hosts.len() - 1;
        story.attention(host);
        let response = story.out(host, REGISTER, 0, 0, 7, 0);
        let expected = (number == 256).then_some(Sense::REGISTRATION_RESOURCES);
        assert_eq!(response.sense, expected, "{number}");
    }
}

proptest! {
    /// Whatever hosts do: a reservation has a registered holder, and the record says it all.
    #[test]
    fn any_sequence_leaves_a_reservation_with_a_holder(
        steps in prop::collection::vec((0_usize..3, 0_u8..8, 0_u8..9, 0_u64..4, 0_u64..4, 0_u8..8), 1..60)
    ) {
        let mut story = Story::new();
        for (host, action, kind, key, action_key, flags) in steps {
            if action == REGISTER_AND_MOVE {
                let list = move_list(key, action_key, flags & 3, 1, &name(usize::from(kind % 3)));
                story.out_list(host, action, 0, &list);
            } else {
                story.out(host, action, kind, key, action_key, flags & 5);
            }
            let keys = story.keys();
            if let Some((holder, kind)) = story.reservation() {
                prop_assert!(keys.contains(&holder) || (kind >= 7 && holder == 0 && !keys.is_empty()));
            }
            let record = story.unit.reservations().encode();
            let decoded = Reservations::decode(&record);
            prop_assert_eq!(decoded.as_ref(), Ok(story.unit.reservations()));
            (0..3).for_each(|host| while story.attention(host).is_some() {});
        }
    }
}
