//! Over the kernel's sockets: target and initiator on reactors of their own.

use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;

use host_load::{Job, Pattern};
use iscsi_initiator::{
    Algorithm, CommandError, ConnectError, LogicalUnit, LoginStatus, Name, Options, Sense, discover, load,
};
use iscsi_target::{Access, Directory, ListenerOptions};
use reactor::{Config, Reactor, Slice};

use crate::{BLOCK, SIZE, export, guarded, identity, pattern, proving};

/// Runs a story on a host while a target runs on another thread.
fn with_target<F, T>(access: Access, story: impl FnOnce(SocketAddr) -> F) -> T
where
    F: Future<Output = T> + 'static,
    T: 'static,
{
    let target = Reactor::start(Config::default()).expect("a reactor");
    let (sender, receiver) = std::sync::mpsc::channel();
    let start = move || {
        let kept = export(&Directory::new(), ListenerOptions::new(([127, 0, 0, 1], 0).into()), access);
        sender.send(kept.1.local_address()).expect("the test waits");
        reactor::spawn(async move {
            let _kept = kept;
            std::future::pending::<()>().await;
        });
    };
    target.handle().post(start).expect("a new reactor");
    let address = receiver.recv().expect("an address");
    let output = Reactor::run(&Config::default(), story(address)).expect("a reactor");
    target.stop().expect("it ran until now");
    output
}

async fn connect(address: SocketAddr, options: Options) -> Rc<LogicalUnit> {
    LogicalUnit::connect(address, &identity().name, options).await.expect("connected")
}

#[test]
fn what_was_written_is_read_whatever_the_size_and_the_digests() {
    with_target(Access::default(), |address| async move {
        for (header_digest, data_digest) in [(false, false), (true, false), (false, true), (true, true)] {
            let unit = connect(address, Options { header_digest, data_digest, ..Options::default() }).await;
            // In the command, unasked after it, asked for once, asked for several times, several commands.
            for length in [4 << 10, 20 << 10, 256 << 10, 300 << 10, 1 << 20, 3 << 20, 9 << 20] {
                let data = pattern(length);
                let written = unit.write(8192, data.clone(), false).await;
                assert_eq!(written, Ok(()), "{header_digest} {data_digest} {length}: {:?}", unit.failure());
                assert!(unit.read(8192, length).await.expect("read")[..] == data[..], "{length}");
            }
            unit.disconnect().await;
        }
    });
}

#[test]
fn every_other_command_does_what_it_says() {
    with_target(Access::default(), |address| async move {
        let unit = connect(address, Options::default()).await;
        let medium = unit.medium();
        assert_eq!((medium.lun, medium.size(), medium.block_size), (0, SIZE, BLOCK));
        assert!(medium.compare_and_write_max > 0 && medium.unmap_max.0 > 0 && !medium.designators.is_empty());
        let block = BLOCK as usize;
        unit.write(0, pattern(16 * block), true).await.expect("written durably");
        unit.flush().await.expect("flushed");
        unit.write_same(0, BLOCK.into(), Slice::zeroes(block), false).await.expect("zeroed");
        unit.unmap(&[(2 * 4096, 4096), (4 * 4096, 4096)]).await.expect("given back");
        unit.write_same(6 * 4096, 2 * 4096, Slice::zeroes(block), true).await.expect("zeroed and given back");
        let read = unit.read(0, 16 * block).await.expect("read");
        for (at, bytes) in read.chunks(block).enumerate() {
            let zero = bytes.iter().all(|&byte| byte == 0);
            assert_eq!(zero, matches!(at, 0 | 2 | 4 | 6 | 7), "block {at}");
        }
        let (old, new) = (&read[block..3 * block], vec![7; 2 * block]);
        unit.compare_and_write(BLOCK.into(), old, &new).await.expect("it was there");
        let again = unit.compare_and_write(BLOCK.into(), old, &new).await;
        assert!(matches!(again, Err(CommandError::Check(Sense { key: 0xe, .. }))), "{again:?}");
        assert!(unit.read(BLOCK.into(), 2 * block).await.expect("read")[..] == new[..]);
        let beyond = unit.write(SIZE, Slice::zeroes(block), false).await;
        assert_eq!(beyond, Err(CommandError::Check(Sense { key: 5, code: 0x2100 })));
        unit.disconnect().await;
        assert_eq!(unit.flush().await, Err(CommandError::Lost));
    });
}

fn verified(jobs: u16) -> Job {
    Job {
        rw: Pattern::RandRw,
        block_size: 32 << 10,
        jobs,
        depth: 8,
        verify: true,
        runtime: None,
        loops: Some(4),
        flush_every: 50,
        ..Job::default()
    }
}

#[test]
fn a_verified_load_is_clean_whoever_shares_a_session() {
    with_target(Access::default(), |address| async move {
        for (jobs, connections_per_session) in [(1, 1), (4, 1), (4, 4), (5, 2)] {
            let job = verified(jobs);
            let options = Options { data_digest: true, connections_per_session, ..load::options(&job) };
            let unit = connect(address, options).await;
            let record = host_load::new_record(&unit, &job).expect("a good job");
            let report = host_load::run(&unit, &job, Some(Rc::clone(&record))).await.expect("a good job");
            assert!(report.is_clean() && report.verify.checked > 0 && report.flush.count > 0, "{report}");
            assert_eq!(report.read.count + report.write.count, 4 * SIZE / u64::from(job.block_size));
            let checked = host_load::check(&unit, &job, &record).await.expect("a good job");
            assert!(checked.is_clean() && checked.verify.checked > 0, "{checked}");
            unit.disconnect().await;
        }
    });
}

/// The target's window has 128 places: what it does not take waits at the initiator.
#[test]
fn more_commands_than_the_window_takes_wait_for_it() {
    with_target(Access::default(), |address| async move {
        for connections_per_session in [1, 2] {
            let job = Job { block_size: 4096, depth: 500, ..verified(2) };
            let unit = connect(address, Options { connections_per_session, ..load::options(&job) }).await;
            let report = host_load::run(&unit, &job, None).await.expect("a good job");
            assert!(report.is_clean() && report.verify.checked > 0, "{report}");
        }
    });
}

#[test]
fn the_target_can_be_discovered_and_strangers_are_refused() {
    with_target(Access::default(), |address| async move {
        let targets = discover(address, &Options::default()).await.expect("discovered");
        assert_eq!(targets.len(), 1);
        assert_eq!((&targets[0].name, &targets[0].addresses[..]), (&identity().name, &[address][..]));
        let nobody = Name::parse("iqn.2026-01.io.ashlar:volume:none").expect("a name");
        let refused = LogicalUnit::connect(address, &nobody, Options::default()).await;
        assert_eq!(refused.err(), Some(ConnectError::Refused(LoginStatus::NotFound)));
        let lun = Some(1 << 48);
        let refused = LogicalUnit::connect(address, &identity().name, Options { lun, ..Options::default() }).await;
        assert_eq!(refused.err(), Some(ConnectError::NoUnit(1 << 48)));
        let refused =
            LogicalUnit::connect(address, &identity().name, Options { queue_depth: 0, ..Options::default() }).await;
        assert_eq!(refused.err(), Some(ConnectError::Queues));
    });
}

#[test]
fn both_prove_who_they_are() {
    with_target(guarded(), |address| async move {
        for algorithm in Algorithm::ALL {
            for wanted in [None, Some(&b"the volume's own"[..])] {
                connect(address, proving(b"the host's secret", wanted, algorithm)).await.disconnect().await;
            }
        }
        let refused = |options| async move { LogicalUnit::connect(address, &identity().name, options).await.err() };
        let failed = Some(ConnectError::Refused(LoginStatus::AuthenticationFailure));
        assert_eq!(refused(Options::default()).await, failed, "no proof");
        assert_eq!(refused(proving(b"another's secret", None, Algorithm::Sha256)).await, failed);
        let impostor = proving(b"the host's secret", Some(b"somebody else's"), Algorithm::Sha256);
        assert_eq!(refused(impostor).await, Some(ConnectError::Distrusted));
    });
}
