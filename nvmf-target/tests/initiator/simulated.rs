//! In a simulated world: ends that are stopped, killed and started again.

use std::rc::Rc;
use std::time::Duration;

use nvmf_initiator::load::{self, Job, Load, Pattern};
use nvmf_initiator::{ConnectError, ConnectionError, Controller, Options, Reconnect};
use nvmf_target::Directory;
use reactor::simulated::{NodeId, World};

use crate::{export, identity};

const ADDRESS: ([u8; 4], u16) = ([10, 0, 0, 1], 4420);

fn world(seed: u64) -> (World, NodeId, NodeId) {
    let world = World::new(seed);
    let (target, host) = (world.add_node(ADDRESS.0.into()), world.add_node([10, 0, 0, 2].into()));
    boot_target(&world, target);
    (world, target, host)
}

fn boot_target(world: &World, target: NodeId) {
    world.boot(target, || async {
        let _kept = export(&Directory::new(), ADDRESS.into());
        std::future::pending::<()>().await;
    });
}

async fn connect(options: Options) -> Result<Rc<Controller>, ConnectError> {
    Controller::connect(ADDRESS.into(), &identity().nqn, options).await
}

#[test]
fn large_transfers_arrive_whole() {
    let (world, _target, host) = world(4);
    world.block_on(host, async {
        let controller = connect(Options::default()).await.expect("connected");
        let data = crate::pattern(3 << 20);
        assert_eq!(controller.write(4096, data.clone(), false).await, Ok(()), "{:?}", controller.failure());
        assert!(controller.read(4096, data.len()).await.expect("read")[..] == data[..]);
    });
}

#[test]
fn a_host_that_was_stopped_for_too_long_finds_its_controller_gone_and_comes_back() {
    let (world, _target, host) = world(1);
    let options = Options {
        keep_alive: Duration::from_secs(4),
        reconnect: Some(Reconnect::within(Duration::from_secs(60))),
        ..Options::default()
    };
    let controller = world.block_on(host, connect(options)).expect("connected");
    let id = controller.id();
    world.pause(host);
    world.run_for(Duration::from_secs(20));
    world.resume(host);
    let used = Rc::clone(&controller);
    world.block_on(host, async move {
        reactor::sleep(Duration::from_secs(1)).await;
        used.flush().await.expect("flushed");
        assert_eq!(used.reconnects(), 1);
        assert_ne!(used.id(), id);
    });
    world.block_on(host, async move { drop(controller) });
}

#[test]
fn a_killed_target_is_noticed_and_its_volume_in_memory_is_another_one_to_the_record() {
    let (world, target, host) = world(2);
    let job = Job {
        rw: Pattern::RandWrite,
        size: Some(1 << 20),
        depth: 4,
        rate: Some(500),
        runtime: Some(Duration::from_secs(4)),
        verify: true,
        ..Job::default()
    };
    let reconnect = Some(Reconnect::within(Duration::from_secs(30)));
    let options = Options { reconnect, ..load::options(&job) };
    let controller = world.block_on(host, connect(options)).expect("connected");
    let started = Rc::clone(&controller);
    let of_load = job.clone();
    let (load, record) = world.block_on(host, async move {
        let record = load::new_record(&started, &of_load).expect("a good job");
        (Load::start(&started, &of_load, Some(Rc::clone(&record))).expect("a good job"), record)
    });
    world.run_for(Duration::from_secs(2));
    world.kill(target);
    boot_target(&world, target);
    let report = world.block_on(host, load.finish());
    assert!(report.is_clean() && report.reconnects == 1, "{report}");
    // The host rode through it; but memory does not survive a kill, and the record must know.
    let checked = world.block_on(host, async move {
        let report = load::check(&controller, &job, &record).await.expect("a good job");
        drop(controller);
        report
    });
    assert!(checked.verify.failed > 0 && checked.verify.faults[0].contains("lost"), "{checked}");
}

#[test]
fn a_target_whose_network_is_gone_is_given_up_in_time() {
    let (world, target, host) = world(3);
    let controller = world
        .block_on(host, connect(Options { command_timeout: Duration::from_secs(5), ..Options::default() }))
        .expect("connected");
    world.power_cut(target);
    world.block_on(host, async move {
        assert!(controller.flush().await.is_err());
        assert_eq!(controller.failure(), Some(ConnectError::Connection(ConnectionError::TimedOut)));
    });
}
