//! Data goes to the device and comes back, whole, in part or not at all.

use std::rc::Rc;

use block_device::ErrorKind;
use iscsi_target::AccessState;
use iscsi_target_protocol::initiator::connection::Data;
use iscsi_target_protocol::wire::response::Residual;

use crate::util::{BLOCK, Client, SOON, Scripted, Stage, pattern};

#[test]
fn what_is_written_is_read_back_whatever_its_length() {
    let stage = Stage::memory(1);
    stage.host(async {
        let mut client = Client::ready(1).await;
        // Immediate, unsolicited, and asked for in several bursts.
        for (number, blocks) in [1_usize, 30, 200].into_iter().enumerate() {
            let bytes = pattern(blocks * BLOCK as usize, number as u8);
            client.write(number as u8, &bytes).await.unwrap().good();
            let read = client.read(number as u8, blocks as u8).await.unwrap().good();
            assert!(read == bytes, "{blocks} blocks");
        }
        // Longer than one request of the device.
        let long = pattern(2000 * BLOCK as usize, 9);
        let count = 2000_u16.to_be_bytes();
        let write = [0x2a, 0, 0, 0, 0, 0, 0, count[0], count[1]];
        client.command(&write, Data::Send(long.len() as u32), &long).await.unwrap().good();
        let read = [0x28, 0, 0, 0, 0, 0, 0, count[0], count[1]];
        let back = client.command(&read, Data::Receive(long.len() as u32), &[]).await.unwrap().good();
        assert!(back == long);
    });
    assert_eq!(stage.on_target(|target| target.statistics().bytes_written), 231 * u64::from(BLOCK));
}

#[test]
fn a_write_of_another_length_than_its_command_is_done_in_whole_blocks() {
    let stage = Stage::memory(2);
    stage.host(async {
        let mut client = Client::ready(1).await;
        client.write(0, &pattern(3 * BLOCK as usize, 1)).await.unwrap().good();
        let short = pattern(BLOCK as usize + 100, 2);
        let answer =
            client.command(&[0x2a, 0, 0, 0, 0, 0, 0, 0, 2], Data::Send(short.len() as u32), &short).await.unwrap();
        assert_eq!((answer.status, answer.residual), (0, Residual::Overflow(BLOCK - 100)));
        let read = client.read(0, 3).await.unwrap().good();
        assert_eq!(read[..BLOCK as usize], short[..BLOCK as usize]);
        assert!(read[BLOCK as usize..] == pattern(3 * BLOCK as usize, 1)[BLOCK as usize..]);
        let answer = client.command(&[0x28, 0, 0, 0, 0, 0, 0, 0, 1], Data::Receive(100), &[]).await.unwrap();
        assert_eq!((answer.data.len(), answer.residual), (100, Residual::Overflow(BLOCK - 100)));
    });
}

#[test]
fn compare_and_write_writes_only_what_is_expected() {
    let stage = Stage::memory(3);
    stage.host(async {
        let mut client = Client::ready(1).await;
        let (old, new) = (vec![1; BLOCK as usize], vec![2; BLOCK as usize]);
        client.write(5, &old).await.unwrap().good();
        let cdb = [0x89, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 1];
        let both = [&old[..], &new[..]].concat();
        let length = Data::Send(2 * BLOCK);
        client.command(&cdb, length, &both).await.unwrap().good();
        assert_eq!(client.read(5, 1).await.unwrap().good(), new);
        let answer = client.command(&cdb, length, &both).await.unwrap();
        assert_eq!(answer.why(), (0xe, 0x1d00));
        assert_eq!(answer.sense[3..7], [0; 4], "it differs from the first byte on");
        assert_eq!(client.read(5, 1).await.unwrap().good(), new);
        let or = vec![5; BLOCK as usize];
        let cdb = [0x8b, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 1];
        client.command(&cdb, Data::Send(BLOCK), &or).await.unwrap().good();
        assert_eq!(client.read(5, 1).await.unwrap().good(), vec![7; BLOCK as usize]);
    });
}

/// Nothing may come in between the comparison and the write.
#[test]
fn compare_and_write_has_the_unit_to_itself() {
    let device = Scripted::new();
    let stage = Stage::new(4, Rc::clone(&device) as Rc<_>);
    let story = stage.world.spawn(stage.host, async {
        let mut client = Client::ready(1).await;
        let zeroes = vec![0; 2 * BLOCK as usize];
        let cdb = [0x89, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 1];
        let exchange = client.submit(&cdb, Data::Send(2 * BLOCK), &zeroes);
        reactor::sleep(SOON / 4).await;
        let write = client.submit_write(9, &vec![1; BLOCK as usize]);
        client.answer(exchange).await.unwrap().good();
        client.answer(write).await.unwrap().good();
    });
    device.holds.set(true);
    stage.world.run_for(SOON);
    assert_eq!((device.held(), device.writes.get()), (1, 0), "its read; the other write waits");
    device.release();
    stage.world.run_for(SOON);
    assert!(story.is_done());
    assert_eq!(device.writes.get(), 2);
}

#[test]
fn errors_keep_their_meaning() {
    let device = Scripted::new();
    let stage = Stage::new(5, Rc::clone(&device) as Rc<_>);
    let expected = [
        (ErrorKind::NoSpace, (7, 0x2707)),
        (ErrorKind::WriteFailed, (3, 0x0c00)),
        (ErrorKind::ReadOnly, (7, 0x2700)),
        (ErrorKind::Fenced, (2, 0x040c)),
        (ErrorKind::Internal, (4, 0x4400)),
    ];
    device.errors.borrow_mut().extend(expected.map(|(kind, _)| kind));
    stage.host(async move {
        let mut client = Client::ready(1).await;
        for (kind, why) in expected {
            let answer = client.write(0, &vec![1; BLOCK as usize]).await.unwrap();
            assert_eq!(answer.why(), why, "{kind:?}");
        }
    });
}

/// I33: a device that has no room now is asked again.
#[test]
fn a_busy_device_is_asked_again() {
    let device = Scripted::new();
    device.errors.borrow_mut().extend([ErrorKind::Busy; 5]);
    let stage = Stage::new(6, Rc::clone(&device) as Rc<_>);
    stage.host(async { Client::ready(1).await.write(0, &vec![1; BLOCK as usize]).await.unwrap().good() });
    assert_eq!(device.writes.get(), 6);
}

#[test]
fn a_grown_volume_and_a_lost_path_are_announced() {
    let device = Scripted::new();
    let stage = Stage::new(7, Rc::clone(&device) as Rc<_>);
    let client = stage.host(async { Client::ready(1).await });
    device.blocks.set(2 * device.blocks.get());
    stage.on_target(|target| {
        target.refresh();
        target.set_access_state(AccessState::Unavailable);
    });
    stage.host(async move {
        let mut client = client;
        let ready = &[0_u8][..];
        assert_eq!(client.command(ready, Data::None, &[]).await.unwrap().why(), (6, 0x2a06));
        assert_eq!(client.command(ready, Data::None, &[]).await.unwrap().why(), (6, 0x2a09));
        assert_eq!(client.command(ready, Data::None, &[]).await.unwrap().why(), (2, 0x040c));
        assert_eq!(client.read(0, 1).await.unwrap().why(), (2, 0x040c));
    });
}

#[test]
fn a_copy_moves_blocks_within_the_volume() {
    let stage = Stage::memory(8);
    stage.host(async {
        let mut client = Client::ready(1).await;
        let bytes = pattern(20 * BLOCK as usize, 3);
        client.write(0, &bytes).await.unwrap().good();
        let page = client.command(&[0x12, 1, 0x83, 0, 255], Data::Receive(255), &[]).await.unwrap().good();
        let naa = &page[8..16];
        let mut list = vec![0; 16 + 32 + 28];
        list[3] = 32;
        list[11] = 28;
        list[16] = 0xe4;
        list[20..24].copy_from_slice(&[1, 3, 0, 8]);
        list[24..32].copy_from_slice(naa);
        list[48] = 0x02;
        list[51] = 24;
        list[59] = 20;
        list[75] = 100;
        let cdb = [0x83, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, list.len() as u8];
        client.command(&cdb, Data::Send(list.len() as u32), &list).await.unwrap().good();
        assert!(client.read(100, 20).await.unwrap().good() == bytes);
        let status = client.command(&[0x84, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12], Data::Receive(12), &[]).await;
        assert_eq!(status.unwrap().good()[4..7], [1, 0, 1]);
    });
}
