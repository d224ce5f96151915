//! The initiator's load generator, which checks every block it reads, against the target.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use block_device::MemoryDevice;
use nvmf_initiator::load::{self, Job, Pattern};
use nvmf_initiator::{Controller, Options, Reconnect};
use nvmf_target::{
    AnaState, Directory, Hosts, Limits, Listener, ListenerOptions, Statistics, Subsystem, SubsystemOptions,
};
use reactor::{Config, Reactor};

use crate::util::{Stage, address, geometry, identity};

fn job(block_size: u32, loops: u32) -> Job {
    Job {
        rw: Pattern::RandRw,
        block_size,
        depth: 16,
        jobs: 2,
        runtime: None,
        loops: Some(loops),
        verify: true,
        flush_every: 10,
        ..Job::default()
    }
}

async fn connect(address: SocketAddr, job: &Job, header_digest: bool, data_digest: bool) -> Rc<Controller> {
    let reconnect = Some(Reconnect::within(Duration::from_secs(60)));
    let options = Options { header_digest, data_digest, reconnect, ..load::options(job) };
    Controller::connect(address, &identity().nqn, options).await.expect("connected")
}

#[test]
fn verified_loads_with_and_without_digests() {
    for (seed, block_size) in [(1, 4096), (2, 16 << 10), (3, 20 << 10), (4, 64 << 10)] {
        for (header, data) in [(false, false), (true, true), (true, false), (false, true)] {
            let stage = Stage::memory(seed);
            stage.host(async move {
                let job = job(block_size, 3);
                let controller = connect(address(), &job, header, data).await;
                let record = load::new_record(&controller, &job).expect("it fits");
                let report = load::run(&controller, &job, Some(Rc::clone(&record))).await.expect("it fits");
                assert!(report.is_clean(), "{report:?}");
                let report = load::check(&controller, &job, &record).await.expect("it fits");
                assert!(report.is_clean() && report.verify.checked > 0, "{report:?}");
            });
        }
    }
}

/// I16, I34: connections break at any moment; the host connects again, sends again what was not answered, and finds
/// every block as it should be.
#[test]
fn a_verified_load_survives_connections_that_break() {
    for seed in 10..13 {
        let stage = Stage::memory(seed);
        let story = stage.world.spawn(stage.host, async {
            let job = Job { runtime: Some(Duration::from_secs(3)), loops: None, rate: Some(2000), ..job(8192, 1) };
            let controller = connect(address(), &job, false, true).await;
            let record = load::new_record(&controller, &job).expect("it fits");
            let report = load::run(&controller, &job, Some(Rc::clone(&record))).await.expect("it fits");
            assert!(report.is_clean(), "{report:?}");
            let report = load::check(&controller, &job, &record).await.expect("it fits");
            assert!(report.is_clean(), "{report:?}");
            controller.reconnects()
        });
        let mut random = stage.world.random();
        for _ in 0..6 {
            stage.world.run_for(Duration::from_micros(200_000 + random.next_u64() % 300_000));
            stage.world.reset_connections(stage.host, stage.target);
        }
        assert!(stage.world.run_until(|| story.is_done(), Duration::from_secs(60)));
        assert!(story.take().is_some_and(|reconnects| reconnects >= 5));
        stage.world.run_for(Duration::from_secs(20));
        assert_eq!(stage.on_target(|subsystem| subsystem.controllers()), []);
    }
}

/// The same on the kernel's sockets: two reactors, loopback.
#[test]
fn a_verified_load_over_loopback() {
    let target = Reactor::start(Config::default()).expect("io_uring");
    let directory = Directory::new();
    let (sender, bound) = std::sync::mpsc::channel();
    let serve = move || async move {
        let options = ListenerOptions::new(([127, 0, 0, 1], 0).into());
        let listener = Listener::bind(&directory, options).expect("a free port");
        let options = SubsystemOptions { identity: identity(), hosts: Hosts::Any, limits: Limits::default() };
        let subsystem = Subsystem::start(&directory, options).expect("the only one");
        let device = Rc::new(MemoryDevice::new(geometry()).expect("enough memory"));
        subsystem.attach(1, device, &identity(), AnaState::Optimized);
        sender.send(listener.local_address()).expect("the test waits");
        // Until the test is over.
        while subsystem.statistics() == Statistics::default() || !subsystem.controllers().is_empty() {
            reactor::sleep(Duration::from_millis(10)).await;
        }
        subsystem.stop().await;
        drop(listener);
        subsystem.statistics()
    };
    let served = std::thread::spawn({
        let handle = target.handle();
        move || Reactor::run(&Config::default(), handle.call(serve)).expect("io_uring")
    });
    let address = bound.recv().expect("listening");
    let checked = Reactor::run(&Config::default(), async move {
        // Large enough for more chunks than one turn takes.
        let job = Job { depth: 8, ..job(128 << 10, 40) };
        let controller = connect(address, &job, true, true).await;
        let record = load::new_record(&controller, &job).expect("it fits");
        let report = load::run(&controller, &job, Some(Rc::clone(&record))).await.expect("it fits");
        assert!(report.is_clean(), "{report:?}");
        let report = load::check(&controller, &job, &record).await.expect("it fits");
        assert!(report.is_clean(), "{report:?}");
        report.verify.checked
    });
    assert!(checked.expect("io_uring") > 0);
    let statistics = served.join().expect("no panic").expect("the reactor lives");
    assert!(statistics.writes > 0 && statistics.reads > 0 && statistics.errors == 0, "{statistics:?}");
    target.stop().expect("stopped in good order");
}
