//! Over the kernel's sockets: target and host on reactors of their own.

use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;

use nvmf_initiator::load::{self, Job, Pattern};
use nvmf_initiator::{Command, CommandError, ConnectError, Controller, Options, Status, SubsystemType, discover};
use nvmf_target::Directory;
use reactor::{Config, Reactor, Slice};

use crate::{BLOCK, SIZE, export, identity, pattern};

/// Runs a story on a host while a target runs on another thread.
fn with_target<F, T>(story: impl FnOnce(SocketAddr) -> F) -> T
where
    F: Future<Output = T> + 'static,
    T: 'static,
{
    let target = Reactor::start(Config::default()).expect("a reactor");
    let (sender, receiver) = std::sync::mpsc::channel();
    let start = move || {
        let (subsystem, listener) = export(&Directory::new(), ([127, 0, 0, 1], 0).into());
        sender.send(listener.local_address()).expect("the test waits");
        reactor::spawn(async move {
            let _kept = (subsystem, listener);
            std::future::pending::<()>().await;
        });
    };
    target.handle().post(start).expect("a new reactor");
    let address = receiver.recv().expect("an address");
    let output = Reactor::run(&Config::default(), story(address)).expect("a reactor");
    target.stop().expect("it ran until now");
    output
}

async fn connect(address: SocketAddr, options: Options) -> Rc<Controller> {
    Controller::connect(address, &identity().nqn, options).await.expect("connected")
}

#[test]
fn what_was_written_is_read_whatever_the_size_and_the_digests() {
    with_target(|address| async move {
        for (header_digest, data_digest) in [(false, false), (true, false), (false, true), (true, true)] {
            let controller = connect(address, Options { header_digest, data_digest, ..Options::default() }).await;
            for length in [4 << 10, 16 << 10, 20 << 10, 128 << 10, 1 << 20, 3 << 20] {
                let data = pattern(length);
                let written = controller.write(8192, data.clone(), false).await;
                assert_eq!(written, Ok(()), "{header_digest} {data_digest} {length}: {:?}", controller.failure());
                assert!(controller.read(8192, length).await.expect("read")[..] == data[..], "{length}");
                controller.compare(8192, data).await.expect("equal");
            }
            controller.disconnect().await;
        }
    });
}

#[test]
fn every_other_command_does_what_it_says() {
    with_target(|address| async move {
        let controller = connect(address, Options::default()).await;
        let block = BLOCK as usize;
        controller.write(0, pattern(8 * block), true).await.expect("written durably");
        controller.flush().await.expect("flushed");
        let other = controller.compare(BLOCK.into(), Slice::zeroes(block)).await;
        assert_eq!(other, Err(CommandError::Status { status: Status::CompareFailure, result: 0 }));
        controller.write_zeroes(0, BLOCK.into(), false).await.expect("zeroed");
        controller.deallocate(&[(2 * 4096, 4096), (4 * 4096, 4096)]).await.expect("given back");
        let read = controller.read(0, 8 * block).await.expect("read");
        for (at, bytes) in read.chunks(block).enumerate() {
            let zero = bytes.iter().all(|&byte| byte == 0);
            assert_eq!(zero, matches!(at, 0 | 2 | 4), "block {at}");
        }
        let beyond = controller.write(SIZE, Slice::zeroes(block), false).await;
        assert!(matches!(beyond, Err(CommandError::Status { status: Status::LbaOutOfRange, .. })), "{beyond:?}");
        // A command that is not there any more cannot be aborted: bit 0 of the result says so.
        let aborted = controller.admin().execute(Command::abort(1, 7)).await.expect("an abort always succeeds");
        assert_eq!(aborted.result & 1, 1);
        controller.disconnect().await;
    });
}

#[test]
fn a_verified_load_over_several_queues_is_clean() {
    with_target(|address| async move {
        let job = Job {
            rw: Pattern::RandRw,
            block_size: 32 << 10,
            jobs: 4,
            depth: 8,
            verify: true,
            runtime: None,
            loops: Some(4),
            flush_every: 50,
            ..Job::default()
        };
        let controller = connect(address, Options { data_digest: true, ..load::options(&job) }).await;
        let record = load::new_record(&controller, &job).expect("a good job");
        let report = load::run(&controller, &job, Some(Rc::clone(&record))).await.expect("a good job");
        assert!(report.is_clean() && report.verify.checked > 0 && report.flush.count > 0, "{report}");
        assert_eq!(report.read.count + report.write.count, 4 * SIZE / u64::from(job.block_size));
        let checked = load::check(&controller, &job, &record).await.expect("a good job");
        assert!(checked.is_clean() && checked.verify.checked > 0, "{checked}");
    });
}

#[test]
fn the_target_can_be_discovered_and_strangers_are_refused() {
    with_target(|address| async move {
        let entries = discover(address, &Options::default()).await.expect("discovered");
        let volumes: Vec<_> = entries.iter().filter(|entry| entry.subsystem_type == SubsystemType::Nvm).collect();
        assert_eq!(volumes.len(), 1);
        assert_eq!((&volumes[0].subsystem_nqn, volumes[0].address), (&identity().nqn, address));
        let refused = Controller::connect(address, "nqn.2026-01.io.ashlar:volume:none", Options::default()).await;
        let Err(ConnectError::Refused { status, .. }) = refused else { panic!("connected to nothing") };
        assert_eq!(status, Status::ConnectInvalidParameters);
    });
}
