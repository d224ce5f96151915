//! A logical unit, fed with anything two initiators might send.

use scsi_protocol::command::CDB_LENGTH;
use scsi_protocol::inquiry::Identity;
use scsi_protocol::opcodes::SUPPORTED;
use scsi_protocol::ports::{AccessState, Group, Port};
use scsi_protocol::reservation::{PortName, Reservations};
use scsi_protocol::unit::{Action, LogicalUnit, Medium, respond_without_unit};

/// Bytes of data-out behind each CDB.
const DATA: usize = 64;

/// A stream of commands: one byte for who sends it, a CDB, and data of which it takes what it wants. Before them a record of
/// reservations, if it is one.
pub(super) fn commands(bytes: &[u8]) {
    let reservations = Reservations::decode(bytes);
    if let Ok(reservations) = &reservations {
        assert_eq!(Reservations::decode(&reservations.encode()).as_ref(), Ok(reservations), "a record says it all");
    }
    let groups = vec![Group { id: 1, state: AccessState::Optimized, ports: vec![1] }];
    let mut unit = LogicalUnit::new(identity(), medium(), groups, reservations.unwrap_or_default());
    let nexuses = [1, 2].map(|number| {
        let initiator = PortName::iscsi("iqn.1993-08.org.debian:01:host", [number; 6]);
        unit.attach(initiator, Port { relative: 1, group: 1 })
    });
    for step in bytes.chunks_exact(1 + CDB_LENGTH + DATA) {
        let nexus = nexuses[usize::from(step[0] & 1)];
        let mut cdb = [0; CDB_LENGTH];
        cdb.copy_from_slice(&step[1..=CDB_LENGTH]);
        let data = &step[1 + CDB_LENGTH..];
        let _ = respond_without_unit(&cdb);
        let Ok(command) = unit.start(nexus, &cdb) else { continue };
        let takes = usize::try_from(command.data_out(unit.medium())).unwrap_or(usize::MAX).min(data.len());
        if let Action::Respond(response) = unit.run(nexus, &command, &data[..takes]) {
            assert!(response.data.len() <= 1 << 16, "answers are bounded");
            assert_eq!(response.sense.is_some(), response.status == scsi_protocol::sense::Status::CheckCondition);
        }
    }
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let step = |who: u8, cdb: &[u8], data: &[u8]| {
        let mut bytes = vec![0; 1 + CDB_LENGTH + DATA];
        bytes[0] = who;
        bytes[1..=cdb.len()].copy_from_slice(cdb);
        bytes[1 + CDB_LENGTH..][..data.len()].copy_from_slice(data);
        bytes
    };
    let every_command: Vec<u8> = SUPPORTED
        .iter()
        .flat_map(|row| {
            // With room for an answer, or a parameter list of 24 bytes, wherever that is in the CDB.
            let mut cdb = [row.code, row.service_action.unwrap_or(0), 0, 0, 24, 0, 0, 0, 24, 0, 0, 0, 0, 24, 0, 0];
            cdb[usize::from(row.length) - 1] = 0;
            step(0, &cdb, &[])
        })
        .collect();
    let reserve = [
        step(0, &[0], &[]),
        step(1, &[0], &[]),
        step(0, &[0x5f, 0, 0, 0, 0, 0, 0, 0, 24], &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]),
        step(0, &[0x5f, 1, 1, 0, 0, 0, 0, 0, 24], &[0, 0, 0, 0, 0, 0, 0, 7]),
        step(1, &[0x5e, 3, 0, 0, 0, 0, 0, 0, 255], &[]),
    ];
    let select = step(0, &[0x15, 0x10, 0, 0, 24], &[0, 0, 0, 0, 8, 18, 4]);
    vec![every_command, reserve.concat(), [step(0, &[0], &[]), select].concat()]
}

fn identity() -> Identity {
    Identity {
        uuid: [1; 16],
        serial: "1".to_owned(),
        revision: "1".to_owned(),
        target: "iqn.2026-11.io.ashlar:v".to_owned(),
    }
}

fn medium() -> Medium {
    Medium {
        blocks: 2048,
        block_size: 512,
        physical_exponent: 3,
        allocation_blocks: 8,
        transfer_max: 8192,
        write_same_max: 1 << 18,
        read_only: false,
    }
}
