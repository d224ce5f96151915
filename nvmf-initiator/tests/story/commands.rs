//! Every command, on one and on several queues, with and without digests.

use nvmf_initiator::{Command, CommandError, Options, Status};
use nvmf_target_protocol::wire::feature;
use reactor::{Buffer, Slice};

use crate::fake::{BLOCK, BLOCKS};
use crate::{Stage, connect, options};

/// Bytes that differ from place to place.
fn pattern(length: usize) -> Slice {
    let mut buffer = Buffer::new(length);
    buffer.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at * 31 + at / 4096) as u8);
    buffer.freeze()
}

fn status(result: Result<(), CommandError>) -> Option<Status> {
    match result {
        Err(CommandError::Status { status, .. }) => Some(status),
        _ => None,
    }
}

#[test]
fn what_was_written_is_read_whatever_the_size_and_the_digests() {
    let stage = Stage::new();
    for (header_digest, data_digest) in [(false, false), (true, false), (false, true), (true, true)] {
        stage.host(async move {
            let controller = connect(Options { header_digest, data_digest, ..options() }).await.expect("connected");
            // In the capsule; more than fits in one; more than one H2CData; more than one command.
            for blocks in [1, 4, 5, 17, 32, 256] {
                let data = pattern(blocks * BLOCK);
                controller.write(8 * BLOCK as u64, data.clone(), false).await.expect("written");
                let read = controller.read(8 * BLOCK as u64, data.len()).await.expect("read");
                assert!(read[..] == data[..], "{blocks} blocks");
            }
        });
    }
}

#[test]
fn commands_without_data_and_compare() {
    let stage = Stage::new();
    stage.host(async {
        let controller = connect(options()).await.expect("connected");
        let data = pattern(4 * BLOCK);
        controller.write(0, data.clone(), true).await.expect("written");
        controller.flush().await.expect("flushed");
        controller.compare(0, data.clone()).await.expect("equal");
        let other = controller.compare(BLOCK as u64, data.slice(..BLOCK)).await;
        assert_eq!(status(other), Some(Status::CompareFailure));
        controller.write_zeroes(0, BLOCK as u64, true).await.expect("zeroed");
        controller.deallocate(&[(2 * BLOCK as u64, BLOCK as u64)]).await.expect("deallocated");
        let read = controller.read(0, 4 * BLOCK).await.expect("read");
        assert!(read[..BLOCK].iter().all(|&byte| byte == 0));
        assert_eq!(read[BLOCK..2 * BLOCK], data[BLOCK..2 * BLOCK]);
        assert!(read[2 * BLOCK..3 * BLOCK].iter().all(|&byte| byte == 0));
        assert_eq!(read[3 * BLOCK..], data[3 * BLOCK..]);
    });
    assert_eq!(stage.fake.flushes.get(), 1);
}

#[test]
fn errors_have_their_names() {
    let stage = Stage::new();
    stage.host(async {
        let controller = connect(options()).await.expect("connected");
        let beyond = controller.write(BLOCKS * BLOCK as u64, pattern(BLOCK), false).await;
        assert_eq!(status(beyond), Some(Status::LbaOutOfRange));
        let unknown = controller.admin().execute(Command::get_feature(0xfe)).await.map(drop);
        assert_eq!(status(unknown), Some(Status::InvalidField));
        assert!(controller.is_live());
    });
}

#[test]
fn identity_and_limits_come_from_the_controller() {
    let stage = Stage::new();
    stage.host(async {
        let controller = connect(options()).await.expect("connected");
        let namespace = controller.namespace().expect("connected for I/O");
        assert_eq!((namespace.blocks, namespace.block_size), (BLOCKS, BLOCK as u32));
        assert_eq!((namespace.nguid, namespace.uuid), ([0x11; 16], Some([0x22; 16])));
        assert_eq!(namespace.max_transfer, 128 << 10);
        assert_eq!(controller.identify().model, "Fake");
        let queues = controller.admin().execute(Command::get_feature(feature::NUMBER_OF_QUEUES)).await;
        assert_eq!(feature::parse_queue_count(queues.expect("a feature").result as u32), Some(1));
    });
}

#[test]
fn each_queue_is_a_connection_of_its_own_and_ends_with_the_controller() {
    let stage = Stage::new();
    let before = stage.host(async { reactor::task_count() });
    stage.host(async {
        let controller = connect(Options { io_queues: 4, ..options() }).await.expect("connected");
        for (number, queue) in (1..).zip(controller.queues()) {
            assert_eq!(queue.number(), number);
            queue.execute(Command::flush(1)).await.expect("flushed");
        }
        controller.disconnect().await;
        let after = controller.flush().await;
        assert_eq!(after, Err(CommandError::Lost));
    });
    assert_eq!((stage.fake.connects.get(), stage.fake.flushes.get()), (5, 4));
    // I40
    assert_eq!(stage.host(async { reactor::task_count() }), before);
}

#[test]
fn a_full_queue_makes_futures_wait_for_room() {
    let stage = Stage::new();
    stage.host(async {
        let controller = connect(Options { queue_depth: 2, ..options() }).await.expect("connected");
        let tasks: Vec<_> = (0..20u64)
            .map(|number| {
                let controller = controller.clone();
                reactor::spawn(async move { controller.write(number * BLOCK as u64, pattern(BLOCK), false).await })
            })
            .collect();
        for task in tasks {
            task.await.expect("ended well").expect("written");
        }
    });
}
