//! I/O commands from a host to a device and back.

use std::rc::Rc;

use block_device::{ErrorKind, Request};
use nvmf_target::AnaState;
use nvmf_target_protocol::host::command::Command;
use nvmf_target_protocol::wire::dataset::Range;
use nvmf_target_protocol::wire::log_page::{GetLogPage, HEALTH, Notice};
use nvmf_target_protocol::wire::{Status, feature};

use crate::util::{BLOCK, Client, SOON, Scripted, Stage, pattern};

#[test]
fn what_a_host_writes_it_reads() {
    for seed in 0..20 {
        let stage = Stage::memory(seed);
        stage.host(async {
            let (_admin, id) = Client::admin(0).await.unwrap();
            let mut io = Client::io(1, id).await.unwrap();
            // In the capsule, and asked for; the second longer than one H2CData.
            for (start, blocks) in [(0, 4), (10, 256), (5, 5)] {
                let data = pattern((blocks * BLOCK) as usize, blocks as u8);
                let write = Command::write(1, start, blocks, BLOCK, start == 5);
                assert_eq!(io.command(&write, &data).await.unwrap().status(), Status::Success);
                let read = io.command(&Command::read(1, start, blocks, BLOCK), &[]).await.unwrap();
                assert_eq!(read.status(), Status::Success);
                assert!(read.data == data, "{blocks} blocks");
                let compare = Command::compare(1, start, blocks, BLOCK);
                assert_eq!(io.command(&compare, &data).await.unwrap().status(), Status::Success);
            }
            let zeroes = vec![0; BLOCK as usize];
            io.command(&Command::write_zeroes(1, 10, 1, true), &[]).await.unwrap();
            let compare = Command::compare(1, 10, 1, BLOCK);
            assert_eq!(io.command(&compare, &zeroes).await.unwrap().status(), Status::Success);
            let ranges = Range { start: 11, blocks: 1 }.encode();
            io.command(&Command::deallocate(1, 1), &ranges).await.unwrap();
            let read = io.command(&Command::read(1, 11, 1, BLOCK), &[]).await.unwrap();
            assert!(read.data == zeroes);
            assert_eq!(io.command(&Command::flush(1), &[]).await.unwrap().status(), Status::Success);
        });
    }
}

/// Long data goes straight into its buffer, short data and headers come between it.
#[test]
fn long_and_short_writes_side_by_side_arrive_whole() {
    const SIZES: [u32; 7] = [32, 1, 64, 5, 3, 256, 8];
    for seed in 0..20 {
        let stage = Stage::memory(seed);
        stage.host(async move {
            let (_admin, id) = Client::admin(0).await.unwrap();
            let mut io = Client::io(1, id).await.unwrap();
            let data = |round: u64, blocks: u32| pattern((blocks * BLOCK) as usize, (round as u8) << 4 ^ blocks as u8);
            let starts = || {
                SIZES
                    .into_iter()
                    .scan(0, |next, blocks| Some((std::mem::replace(next, *next + u64::from(blocks)), blocks)))
            };
            for round in 0..4 {
                let slots: Vec<_> = starts()
                    .map(|(start, blocks)| {
                        io.submit(&Command::write(1, start, blocks, BLOCK, false), &data(round, blocks))
                    })
                    .collect();
                for slot in slots {
                    assert_eq!(io.answer(slot).await.unwrap().status(), Status::Success);
                }
                for (start, blocks) in starts() {
                    let read = io.command(&Command::read(1, start, blocks, BLOCK), &[]).await.unwrap();
                    assert!(read.data == data(round, blocks), "{blocks} blocks, seed {seed}, round {round}");
                }
            }
        });
    }
}

/// I40: what a host leaves half sent keeps no buffer.
#[test]
fn a_host_that_leaves_in_the_middle_of_its_data_leaves_no_buffer_behind() {
    let before = reactor::buffer::lent();
    for seed in 0..20 {
        let stage = Stage::memory(seed);
        stage.host(async move {
            let (_admin, id) = Client::admin(0).await.unwrap();
            let mut io = Client::io(1, id).await.unwrap();
            io.submit(&Command::write(1, 0, 256, BLOCK, false), &pattern(256 * BLOCK as usize, 1));
            io.send_part_of_what_is_asked_for(1000 + 20_000 * seed as usize).await.unwrap();
        });
        stage.world.run_for(SOON * 10);
        assert_eq!(reactor::buffer::lent(), before, "seed {seed}");
        stage.host(async {
            let (_admin, id) = Client::admin(0).await.unwrap();
            let mut io = Client::io(1, id).await.unwrap();
            let read = io.command(&Command::read(1, 0, 1, BLOCK), &[]).await.unwrap();
            assert!(read.data.iter().all(|&byte| byte == 0), "a write whose data never came is not begun");
        });
    }
}

#[test]
fn two_queues_with_many_commands_each() {
    let stage = Stage::memory(1);
    stage.host(async {
        let (_admin, id) = Client::admin(0).await.unwrap();
        let mut queues = [Client::io(1, id).await.unwrap(), Client::io(2, id).await.unwrap()];
        let mut slots = Vec::new();
        for block in 0..100 {
            for (number, io) in queues.iter_mut().enumerate() {
                let write = Command::write(1, block * 2 + number as u64, 1, BLOCK, false);
                slots.push((number, io.submit(&write, &pattern(BLOCK as usize, block as u8))));
            }
        }
        for (number, slot) in slots {
            assert_eq!(queues[number].answer(slot).await.unwrap().status(), Status::Success);
        }
        for block in 0..100 {
            let read = queues[0].command(&Command::read(1, block * 2 + 1, 1, BLOCK), &[]).await.unwrap();
            assert!(read.data == pattern(BLOCK as usize, block as u8));
        }
    });
    assert_eq!(stage.on_target(|subsystem| subsystem.statistics().writes), 200);
}

#[test]
fn what_waits_for_a_host_that_does_not_read_is_taken_in_order() {
    const BLOCKS: u32 = 256;
    for seed in 0..20 {
        let stage = Stage::memory(seed);
        stage.host(async move {
            let (_admin, id) = Client::admin(0).await.unwrap();
            let mut io = Client::io(1, id).await.unwrap();
            // More answers than the target keeps for a host that does not read them, so that it takes nothing more ...
            let reads: Vec<_> = (0..12).map(|_| io.submit(&Command::read(1, 0, BLOCKS, BLOCK), &[])).collect();
            io.stream.flush();
            io.stream.drained(0).await.unwrap();
            reactor::sleep(SOON).await;
            // ... and these pile up before it.
            let mut writes = Vec::new();
            for block in 0..40 {
                let write = Command::write(1, block, 1, BLOCK, false);
                writes.push(io.submit(&write, &pattern(BLOCK as usize, block as u8)));
                io.stream.flush();
                reactor::sleep(SOON).await;
            }
            for slot in reads.into_iter().chain(writes) {
                assert_eq!(io.answer(slot).await.unwrap().status(), Status::Success, "seed {seed}");
            }
            for block in 0..40 {
                let read = io.command(&Command::read(1, block, 1, BLOCK), &[]).await.unwrap();
                assert!(read.data == pattern(BLOCK as usize, block as u8), "seed {seed}, block {block}");
            }
        });
    }
}

#[test]
fn errors_keep_their_meaning() {
    let device = Scripted::new();
    let stage = Stage::new(2, Rc::clone(&device) as Rc<_>);
    stage.host(async move {
        let (mut admin, id) = Client::admin(0).await.unwrap();
        let mut io = Client::io(1, id).await.unwrap();
        let write = Command::write(1, 0, 5, BLOCK, false);
        let data = pattern(5 * BLOCK as usize, 0);
        for (kind, status) in [
            (ErrorKind::NoSpace, Status::CapacityExceeded),
            (ErrorKind::ReadFailed, Status::UnrecoveredReadError),
            (ErrorKind::WriteFailed, Status::WriteFault),
            (ErrorKind::CompareMismatch, Status::CompareFailure),
            (ErrorKind::ReadOnly, Status::NamespaceWriteProtected),
            (ErrorKind::Fenced, Status::AnaInaccessible),
            (ErrorKind::Unavailable, Status::AnaInaccessible),
            (ErrorKind::InvalidRange, Status::LbaOutOfRange),
        ] {
            device.errors.borrow_mut().push_back(kind);
            assert_eq!(io.command(&write, &data).await.unwrap().status(), status, "{kind:?}");
        }
        assert_eq!(io.command(&write, &data).await.unwrap().status(), Status::Success, "and the queue lives on");
        let (page, length) = (HEALTH, 512);
        let log = GetLogPage { page, parameter: 0, retain_event: false, length, offset: 0, offset_is_index: false };
        let health = admin.command(&Command::get_log_page(&log), &[]).await.unwrap().data;
        assert_eq!((health[80], health[160], health[176]), (1, 2, 8), "writes, media errors, error log entries");
    });
}

/// I33: a device or pool that is full is asked again, whatever it takes; the host sees no error.
#[test]
fn a_busy_device_is_asked_again() {
    let device = Scripted::new();
    let stage = Stage::new(3, Rc::clone(&device) as Rc<_>);
    let script = Rc::clone(&device);
    stage.host(async move {
        let (_admin, id) = Client::admin(0).await.unwrap();
        let mut io = Client::io(1, id).await.unwrap();
        script.errors.borrow_mut().extend([ErrorKind::Busy; 50]);
        let write = Command::write(1, 0, 1, BLOCK, false);
        let data = pattern(BLOCK as usize, 0);
        let slots: Vec<_> = (0..10).map(|_| io.submit(&write, &data)).collect();
        for slot in slots {
            assert_eq!(io.answer(slot).await.unwrap().status(), Status::Success);
        }
    });
    assert_eq!(device.requests.borrow().len(), 60);
}

#[test]
fn an_empty_pool_makes_large_writes_wait_not_fail() {
    let device = Scripted::new();
    device.holds.set(true);
    let stage = Stage::new(4, Rc::clone(&device) as Rc<_>);
    let limit = reactor::buffer::lent() + (1 << 20);
    reactor::buffer::set_limit(limit);
    let waiting = stage.world.spawn(stage.host, async {
        let (_admin, id) = Client::admin(0).await.unwrap();
        let mut io = Client::io(1, id).await.unwrap();
        let data = pattern(256 * BLOCK as usize, 0);
        let slots: Vec<_> = (0..4).map(|_| io.submit(&Command::write(1, 0, 256, BLOCK, false), &data)).collect();
        for slot in slots {
            assert_eq!(io.answer(slot).await.unwrap().status(), Status::Success);
        }
    });
    assert!(stage.world.run_until(|| device.held() == 1, SOON * 10), "one buffer, one write");
    stage.world.run_for(SOON);
    assert_eq!(device.held(), 1);
    let script = Rc::clone(&device);
    stage.on_target(move |_| script.release());
    assert!(stage.world.run_until(|| waiting.is_done(), SOON * 10));
    reactor::buffer::set_limit(512 << 20);
}

#[test]
fn without_a_write_cache_every_write_is_durable() {
    let device = Scripted::new();
    let stage = Stage::new(5, Rc::clone(&device) as Rc<_>);
    stage.host(async {
        let (mut admin, id) = Client::admin(0).await.unwrap();
        let mut io = Client::io(1, id).await.unwrap();
        let data = pattern(BLOCK as usize, 0);
        let write = Command::write(1, 0, 1, BLOCK, false);
        io.command(&write, &data).await.unwrap();
        admin.command(&Command::set_feature(feature::VOLATILE_WRITE_CACHE, 0), &[]).await.unwrap();
        io.command(&write, &data).await.unwrap();
        admin.command(&Command::set_feature(feature::VOLATILE_WRITE_CACHE, 1), &[]).await.unwrap();
        io.command(&write, &data).await.unwrap();
    });
    let requests = device.requests.borrow();
    let durable: Vec<bool> =
        requests.iter().map(|request| matches!(request, Request::Write { fua: true, .. })).collect();
    assert_eq!(durable, [false, true, false]);
}

#[test]
fn a_grown_device_is_told_and_used() {
    let device = Scripted::new();
    let stage = Stage::new(6, Rc::clone(&device) as Rc<_>);
    let subsystem = Rc::clone(&stage.subsystem);
    let grown = stage.world.spawn(stage.host, async {
        let (mut admin, id) = Client::admin(0).await.unwrap();
        let mut io = Client::io(1, id).await.unwrap();
        let read = Command::read(1, 1024, 1, BLOCK);
        assert_eq!(io.command(&read, &[]).await.unwrap().status(), Status::LbaOutOfRange);
        let events = feature::event::NAMESPACE_CHANGED | feature::event::ANA_CHANGED;
        admin.command(&Command::set_feature(feature::ASYNC_EVENT_CONFIGURATION, events), &[]).await.unwrap();
        let event = admin.submit(&Command::async_event_request(), &[]);
        let told = admin.answer(event).await.unwrap().completion.result;
        assert_eq!(Notice::from_result(told), Some(Notice::NamespaceChanged));
        assert_eq!(io.command(&read, &[]).await.unwrap().status(), Status::Success);
        let event = admin.submit(&Command::async_event_request(), &[]);
        let told = admin.answer(event).await.unwrap().completion.result;
        assert_eq!(Notice::from_result(told), Some(Notice::AnaChanged));
        assert_eq!(io.command(&read, &[]).await.unwrap().status(), Status::AnaInaccessible);
    });
    stage.world.run_for(SOON);
    device.blocks.set(2048);
    stage.on_target(|subsystem| subsystem.refresh(1));
    stage.world.run_for(SOON);
    stage.world.block_on(stage.target, async move {
        subsystem.set_ana_state(1, AnaState::Inaccessible);
        // I36: nothing is at the device any more once this returns.
        subsystem.drained(1).await;
    });
    assert!(stage.world.run_until(|| grown.is_done(), SOON));
}

#[test]
fn a_detached_namespace_is_gone_and_its_requests_end() {
    let device = Scripted::new();
    device.holds.set(true);
    let stage = Stage::new(7, Rc::clone(&device) as Rc<_>);
    let story = stage.world.spawn(stage.host, async {
        let (_admin, id) = Client::admin(0).await.unwrap();
        let mut io = Client::io(1, id).await.unwrap();
        let slot = io.submit(&Command::flush(1), &[]);
        assert_eq!(io.answer(slot).await.unwrap().status(), Status::Success);
        let again = io.command(&Command::flush(1), &[]).await.unwrap();
        assert_eq!(again.status(), Status::InvalidNamespaceOrFormat);
    });
    assert!(stage.world.run_until(|| device.held() == 1, SOON));
    let script = Rc::clone(&device);
    stage.on_target(move |subsystem| {
        subsystem.detach(1);
        script.release();
    });
    assert!(stage.world.run_until(|| story.is_done(), SOON));
}
