//! Data both ways, with every combination of keys that decides how it moves.

use iscsi_target_protocol::Digests;
use iscsi_target_protocol::initiator::connection::Data;
use iscsi_target_protocol::negotiation::Parameters;
use iscsi_target_protocol::target::connection::Limits;
use iscsi_target_protocol::wire::response::Residual;

use crate::util::{Pair, Setting, pattern, read, write};

#[test]
fn data_comes_through_whatever_was_agreed_on() {
    for bits in 0..32u32 {
        let on = |bit: u32| bits & 1 << bit != 0;
        let offer = Parameters {
            digests: Digests { header: on(0), data: on(1) },
            initial_r2t: on(2),
            immediate_data: on(3),
            outstanding_r2t: if on(4) { 1 } else { 3 },
            receive_segment: 1000,
            max_burst: 2500,
            first_burst: 1500,
            ..Parameters::target()
        };
        let limits = Limits { offer: Parameters { receive_segment: 700, ..Parameters::target() }, ..Limits::default() };
        let mut pair = Pair::open(Setting { limits, offer, fragment: 333 });
        for (number, length) in [1, 3, 699, 700, 1499, 1500, 1501, 2500, 4000, 10_001].into_iter().enumerate() {
            let data = pattern(length as usize, number as u64);
            let reply = pair.command(&write(8192, length), &data);
            assert_eq!((reply.status, reply.residual), (0, Residual::None), "{offer:?}, {length}");
            let reply = pair.command(&read(8192, length), &[]);
            assert_eq!((reply.status, reply.residual, reply.intact), (0, Residual::None, true));
            assert!(reply.data == data, "{offer:?}, {length}");
        }
        assert_eq!((pair.target.in_flight(), pair.links[0].target.in_flight()), (0, 0));
        assert_eq!(pair.links[0].heard, [""; 0]);
    }
}

#[test]
fn a_small_write_is_one_pdu_each_way_and_so_is_a_small_read() {
    let mut pair = Pair::open(Setting::default());
    let data = pattern(4096, 1);
    pair.submit(0, &write(0, 4096), &data).unwrap();
    assert_eq!(pair.links[0].to_target.len(), 48 + 4 + 4096 + 4, "data in the command, both digests");
    pair.deliver_to_target(0).unwrap();
    assert_eq!(pair.links[0].to_initiator.len(), 48 + 4, "the response alone");
    pair.run();
    pair.submit(0, &read(0, 4096), &[]).unwrap();
    pair.deliver_to_target(0).unwrap();
    assert_eq!(pair.links[0].to_initiator.len(), 48 + 4 + 4096 + 4, "status in the Data-In");
    pair.run();
}

#[test]
fn residuals_tell_how_far_expectations_were_off() {
    let mut pair = Pair::open(Setting::default());
    pair.disk[..3000].copy_from_slice(&pattern(3000, 1));
    let mut command = read(0, 1000);
    command.data = Data::Receive(1500);
    let reply = pair.command(&command, &[]);
    assert_eq!((reply.data.len(), reply.residual), (1000, Residual::Underflow(500)));
    command.data = Data::Receive(400);
    let reply = pair.command(&command, &[]);
    assert!(reply.data == pattern(3000, 1)[..400]);
    assert_eq!(reply.residual, Residual::Overflow(600));
    command.data = Data::None;
    let reply = pair.command(&command, &[]);
    assert_eq!((reply.data.len(), reply.residual), (0, Residual::Overflow(1000)));
    let mut command = write(0, 512);
    command.data = Data::Send(1024);
    let reply = pair.command(&command, &pattern(1024, 2));
    assert_eq!((reply.status, reply.residual), (0, Residual::Underflow(512)));
}

#[test]
fn errors_come_with_their_sense() {
    let mut pair = Pair::open(Setting::default());
    let mut command = write(0, 0);
    command.cdb[0] = 0xff;
    let reply = pair.command(&command, &[]);
    assert_eq!(reply.status, 2);
    assert_eq!((reply.sense[0], reply.sense[2], reply.sense[12], reply.sense.len()), (0x70, 5, 0x20, 18));
}

#[test]
fn a_damaged_write_fails_alone_and_writes_nothing() {
    let offer = Parameters { immediate_data: true, initial_r2t: true, ..Parameters::target() };
    let offer =
        Parameters { digests: Digests { header: false, data: true }, max_burst: 8192, first_burst: 4096, ..offer };
    let mut pair = Pair::open(Setting { offer, ..Setting::default() });
    // Immediate data.
    let slot = pair.submit(0, &write(0, 2048), &[7; 2048]).unwrap();
    pair.links[0].to_target[1000] ^= 1;
    pair.run();
    let reply = pair.links[0].replies.remove(&slot.index()).unwrap();
    assert_eq!((reply.status, reply.sense[2], reply.sense[12], reply.sense[13]), (2, 0x0b, 0x47, 0x05));
    assert!(pair.links[0].heard[0].starts_with("Rejected { reason: 2"), "{:?}", pair.links[0].heard);
    // The first of two bursts that were asked for: the second is on its way, and no more are asked for.
    let slot = pair.submit(0, &write(0, 40_000), &[7; 40_000]).unwrap();
    pair.deliver_to_target(0).unwrap();
    pair.deliver_to_initiator(0).unwrap();
    pair.links[0].to_target[100] ^= 1;
    pair.run();
    assert_eq!(pair.links[0].replies.remove(&slot.index()).unwrap().sense[12], 0x47);
    assert!(pair.disk.iter().all(|byte| *byte == 0));
    assert_eq!(pair.command(&write(0, 40_000), &[7; 40_000]).status, 0, "the connection is as good as ever");
    assert_eq!(pair.target.in_flight(), 0);
}

#[test]
fn a_damaged_read_is_told_to_the_initiator() {
    let mut pair = Pair::open(Setting::default());
    let slot = pair.submit(0, &read(0, 2048), &[]).unwrap();
    pair.deliver_to_target(0).unwrap();
    pair.links[0].to_initiator[100] ^= 1;
    pair.run();
    assert!(!pair.links[0].replies[&slot.index()].intact);
}

#[test]
fn only_so_many_r2ts_are_out_at_a_time_and_none_is_longer_than_a_burst() {
    for outstanding_r2t in [1, 3] {
        let digests = Digests::default();
        let offer =
            Parameters { digests, outstanding_r2t, initial_r2t: true, immediate_data: false, ..Parameters::target() };
        let offer = Parameters { max_burst: 1000, first_burst: 1000, ..offer };
        let mut pair = Pair::open(Setting { offer, ..Setting::default() });
        pair.submit(0, &write(0, 9500), &pattern(9500, 1)).unwrap();
        pair.deliver_to_target(0).unwrap();
        let r2ts = std::mem::take(&mut pair.links[0].to_initiator);
        assert_eq!(r2ts.len(), 48 * outstanding_r2t as usize);
        for (number, r2t) in (0..).zip(r2ts.chunks(48)) {
            assert_eq!((r2t[0], r2t[39]), (0x31, number), "R2TSN");
            assert_eq!(r2t[40..48], [(u32::from(number) * 1000).to_be_bytes(), 1000_u32.to_be_bytes()].concat());
        }
        pair.links[0].to_initiator = r2ts;
        pair.run();
        assert!(pair.disk[..9500] == pattern(9500, 1));
    }
}
