//! In a simulated world: ends that are stopped, killed and started again, and targets that are none.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use block_device::{BlockDevice, ErrorKind, Geometry, Reply, Request};
use host_load::{Job, Load, Pattern};
use iscsi_initiator::{CommandError, ConnectError, ConnectionError, LogicalUnit, Options, Reconnect, Sense, load};
use iscsi_target::{Access, Directory, ListenerOptions};
use reactor::simulated::{NodeId, World};
use reactor::{Slice, TcpListener};

use crate::{BLOCK, export, export_device, identity, memory};

const ADDRESS: ([u8; 4], u16) = ([10, 0, 0, 1], 3260);

fn world(seed: u64) -> (World, NodeId, NodeId) {
    let world = World::new(seed);
    let (target, host) = (world.add_node(ADDRESS.0.into()), world.add_node([10, 0, 0, 2].into()));
    boot_target(&world, target);
    (world, target, host)
}

fn boot_target(world: &World, target: NodeId) {
    world.boot(target, || async {
        let _kept = export(&Directory::new(), ListenerOptions::new(ADDRESS.into()), Access::default());
        std::future::pending::<()>().await;
    });
}

async fn connect(options: Options) -> Result<Rc<LogicalUnit>, ConnectError> {
    LogicalUnit::connect(ADDRESS.into(), &identity().name, options).await
}

fn patient() -> Options {
    Options { reconnect: Some(Reconnect::within(Duration::from_secs(60))), ..Options::default() }
}

#[test]
fn nobody_listens_or_nobody_is_there() {
    let (world, _target, host) = world(1);
    world.block_on(host, async {
        let at = |address: ([u8; 4], u16)| async move {
            LogicalUnit::connect(address.into(), &identity().name, Options::default()).await.err()
        };
        let error = at(([10, 0, 0, 1], 9)).await;
        assert!(matches!(error, Some(ConnectError::Connection(ConnectionError::Io(_)))), "{error:?}");
        let start = reactor::now();
        assert!(at(([10, 0, 0, 77], 3260)).await.is_some());
        assert!(reactor::now() - start <= Options::default().connect_timeout + Duration::from_millis(1));
    });
}

/// I40: a login that fails leaves nothing behind.
#[test]
fn whatever_a_target_answers_the_initiator_gives_up_in_order() {
    let world = World::new(2);
    let (target, host) = (world.add_node(ADDRESS.0.into()), world.add_node([10, 0, 0, 2].into()));
    let answer = Rc::new(RefCell::new(Vec::new()));
    let told = Rc::clone(&answer);
    world.block_on(target, async move {
        let listener = TcpListener::bind(ADDRESS.into()).expect("a free port");
        reactor::spawn(async move {
            while let Ok(stream) = listener.accept().await {
                let _ = stream.receive().await;
                stream.push_copy(&told.borrow());
                let _ = stream.shutdown().await;
            }
        });
    });
    let mut login = vec![0; 48];
    // A login response: final, to the full feature phase; version, TSIH and status are zero: success without a handle.
    login[..2].copy_from_slice(&[0x23, 0x87]);
    let mut redirected = login.clone();
    redirected[7] = 36;
    redirected[36..38].copy_from_slice(&[1, 1]);
    let mut home = redirected.clone();
    redirected.extend_from_slice(b"TargetAddress=storage.example:3260,\0");
    home.extend_from_slice(b"TargetAddress=10.0.0.1:3260,1,aaaa.\0");
    let answers =
        [vec![], vec![0xff; 4096], login[..47].to_vec(), [&login[..], &[0xff; 512]].concat(), redirected, home];
    for bytes in answers {
        let before = world.block_on(host, async { reactor::task_count() });
        let length = bytes.len();
        answer.replace(bytes);
        world.block_on(host, async move {
            let error = connect(Options::default()).await.err();
            assert!(error.is_some(), "{length}");
            // The tasks of what was closed end with the next turn.
            reactor::sleep(Duration::from_millis(10)).await;
            error
        });
        assert_eq!(world.block_on(host, async { reactor::task_count() }), before, "{length}");
    }
}

#[test]
fn without_reconnect_a_lost_connection_fails_what_comes_later() {
    let (world, target, host) = world(3);
    let unit = world.block_on(host, connect(Options::default())).expect("connected");
    world.reset_connections(host, target);
    world.block_on(host, async move {
        reactor::sleep(Duration::from_secs(1)).await;
        assert_eq!(unit.flush().await, Err(CommandError::Lost));
        assert!(!unit.is_live() && matches!(unit.failure(), Some(ConnectError::Connection(_))), "{:?}", unit.failure());
    });
}

#[test]
fn a_host_that_was_stopped_for_too_long_comes_back() {
    let (world, target, host) = world(4);
    let unit = world.block_on(host, connect(patient())).expect("connected");
    world.pause(host);
    // The target pings, hears nothing, and ends the session.
    world.run_for(Duration::from_secs(60));
    world.resume(host);
    let _ = target;
    world.block_on(host, async move {
        reactor::sleep(Duration::from_secs(1)).await;
        unit.flush().await.expect("flushed");
        assert_eq!(unit.reconnects(), 1);
    });
}

/// I16, I34: connections break at any moment; the host logs in again, sends again what was not answered, and finds every block as it
/// should be.
#[test]
fn a_verified_load_survives_connections_that_break() {
    for (seed, connections_per_session) in [(10, 1), (11, 2), (12, 1)] {
        let (world, target, host) = world(seed);
        let story = world.spawn(host, async move {
            let job = Job {
                rw: Pattern::RandRw,
                block_size: 8192,
                depth: 16,
                jobs: 2,
                runtime: Some(Duration::from_secs(3)),
                verify: true,
                flush_every: 10,
                rate: Some(2000),
                ..Job::default()
            };
            let options = Options {
                data_digest: true,
                reconnect: patient().reconnect,
                connections_per_session,
                ..load::options(&job)
            };
            let unit = connect(options).await.expect("connected");
            let record = host_load::new_record(&unit, &job).expect("it fits");
            let report = host_load::run(&unit, &job, Some(Rc::clone(&record))).await.expect("it fits");
            assert!(report.is_clean(), "{report:?}");
            let report = host_load::check(&unit, &job, &record).await.expect("it fits");
            assert!(report.is_clean(), "{report:?}");
            unit.reconnects()
        });
        let mut random = world.random();
        for _ in 0..6 {
            world.run_for(Duration::from_micros(200_000 + random.next_u64() % 300_000));
            world.reset_connections(host, target);
        }
        assert!(world.run_until(|| story.is_done(), Duration::from_secs(60)));
        assert!(story.take().expect("done") > 0);
    }
}

#[test]
fn a_killed_target_is_noticed_and_its_volume_in_memory_is_another_one_to_the_record() {
    let (world, target, host) = world(5);
    let job = Job {
        rw: Pattern::RandWrite,
        size: Some(1 << 20),
        depth: 4,
        rate: Some(500),
        runtime: Some(Duration::from_secs(4)),
        verify: true,
        ..Job::default()
    };
    let options = Options { reconnect: patient().reconnect, ..load::options(&job) };
    let unit = world.block_on(host, connect(options)).expect("connected");
    let (started, of_load) = (Rc::clone(&unit), job.clone());
    let (load, record) = world.block_on(host, async move {
        let record = host_load::new_record(&started, &of_load).expect("a good job");
        (Load::start(&started, &of_load, Some(Rc::clone(&record))).expect("a good job"), record)
    });
    world.run_for(Duration::from_secs(2));
    world.kill(target);
    boot_target(&world, target);
    let report = world.block_on(host, load.finish());
    assert!(report.is_clean() && report.reconnects == 1, "{report}");
    let checked =
        world.block_on(host, async move { host_load::check(&unit, &job, &record).await.expect("a good job") });
    assert!(checked.verify.failed > 0 && checked.verify.faults[0].contains("lost"), "{checked}");
}

#[test]
fn a_target_whose_network_is_gone_is_given_up_in_time() {
    let (world, target, host) = world(6);
    let options = Options { command_timeout: Duration::from_secs(5), ..Options::default() };
    let [busy, idle] =
        [options.clone(), options].map(|options| world.block_on(host, connect(options)).expect("connected"));
    world.power_cut(target);
    world.block_on(host, async move {
        let start = reactor::now();
        assert_eq!(busy.flush().await, Err(CommandError::Lost));
        assert!(reactor::now() - start <= Duration::from_secs(8));
        assert_eq!(busy.failure(), Some(ConnectionError::TimedOut.into()));
        // One that has nothing to do notices by its ping.
        reactor::sleep(Duration::from_secs(8)).await;
        assert!(!idle.is_live());
    });
}

#[test]
fn an_idle_session_lasts() {
    let (world, _target, host) = world(7);
    let unit = world.block_on(host, connect(Options::default())).expect("connected");
    world.run_for(Duration::from_secs(600));
    world.block_on(host, async move { unit.flush().await.expect("still there") });
}

/// A device that is as large as it is told, and fails as it is told.
struct Moody {
    memory: Rc<dyn BlockDevice>,
    error: Cell<Option<ErrorKind>>,
    blocks: Cell<u64>,
}

impl BlockDevice for Moody {
    fn geometry(&self) -> Geometry {
        Geometry { blocks: self.blocks.get(), ..self.memory.geometry() }
    }

    fn submit(&self, request: Request, reply: Reply) {
        match self.error.get() {
            Some(error) => reply.fail(error),
            None => self.memory.submit(request, reply),
        }
    }
}

#[test]
fn what_a_unit_has_to_say_and_errors_of_its_device_are_told_apart() {
    let world = World::new(8);
    let (target_node, host) = (world.add_node(ADDRESS.0.into()), world.add_node([10, 0, 0, 2].into()));
    let device = Rc::new(Moody { memory: memory(), error: Cell::new(None), blocks: Cell::new(1000) });
    let exported = Rc::clone(&device) as Rc<dyn BlockDevice>;
    let kept = world.block_on(target_node, async move {
        export_device(&Directory::new(), ListenerOptions::new(ADDRESS.into()), Access::default(), exported)
    });
    let unit = world.block_on(host, connect(Options::default())).expect("connected");
    // Grown: a unit attention, which no command ends with (I39).
    device.blocks.set(2000);
    let target = Rc::clone(&kept.0);
    world.block_on(target_node, async move { target.refresh() });
    let writer = Rc::clone(&unit);
    world.block_on(host, async move {
        let data = Slice::from(&[7; BLOCK as usize][..]);
        writer.write(0, data, false).await.expect("written");
        assert_eq!(writer.read(0, BLOCK as usize).await.expect("read")[..], [7; BLOCK as usize]);
    });
    device.error.set(Some(ErrorKind::NoSpace));
    world.block_on(host, async move {
        let full = unit.write(0, Slice::zeroes(BLOCK as usize), false).await;
        // DATA PROTECT, SPACE ALLOCATION FAILED WRITE PROTECT (I32).
        assert_eq!(full, Err(CommandError::Check(Sense { key: 7, code: 0x2707 })));
    });
    world.block_on(target_node, async move { drop(kept) });
}
